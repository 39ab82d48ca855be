"""What records must agree in where they share a group, a seed, a split or a teacher: what one alone cannot show."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from kdbench import hashing
from kdbench.plan.catalog import installed_method
from kdbench.plan.options import plain
from kdbench.results.parts import Data, Teacher
from kdbench.results.record import Record

OWN_TEACHERS = ("ema", "co-trained", "several")
"""Kinds of teachers that a run makes for itself; any other is the task's and shared by all arms."""
RICH = 20
"""Wrong predictions, and predictions beside the commonest, from which two runs do not agree in all by chance."""


class Fault(NamedTuple):
    """What is wrong with one field of the record at ``path``."""

    path: Path
    field: str
    message: str


class Claim(NamedTuple):
    """What a record says of something that all records with the same ``about`` must say alike."""

    field: str
    about: tuple[object, ...]
    value: object


def check(records: Sequence[tuple[Path, Record]], trusted: Collection[Path] = ()) -> list[Fault]:
    """Faults that only show across records: a run given twice, and records that differ where they must agree.

    Among records that must agree, those that differ from the commonest value (the first, if several are) are at fault;
    where some are at ``trusted`` paths, it is the commonest of theirs. Runs of two protocols need not agree.
    """
    faults: list[Fault] = []
    runs: dict[tuple[str, int], Path] = {}
    said: dict[tuple[str, tuple[object, ...]], object] = {}
    disputed: dict[tuple[str, tuple[object, ...]], list[tuple[Path, object]]] = {}
    for path, record in records:
        first = runs.setdefault((record.config_hash, record.protocol), path)
        if first != path:
            faults.append(Fault(path, "config_hash", f"the same run as {first}"))
        for field, about, value in claims(record):
            about = (record.protocol, *about)
            if said.setdefault((field, about), value) != value:
                disputed[field, about] = []
    for path, record in records if disputed else ():
        for field, about, value in claims(record):
            if (field, (record.protocol, *about)) in disputed:
                disputed[field, (record.protocol, *about)].append((path, value))
    for (field, _), values in disputed.items():
        judges = [(path, value) for path, value in values if path in trusted] or values
        ((common, _),) = Counter(value for _, value in judges).most_common(1)
        witness = next(path for path, value in judges if value == common)
        faults += [Fault(path, field, f"{v}, but {common} in {witness}") for path, v in values if v != common]
    return faults


def claims(record: Record) -> Iterator[Claim]:
    """Everything of a record that others must say too. Of :func:`slim` records as of whole ones."""
    group, teacher = (record.group,), hashing.canonical_json(record.config["teacher"])
    yield Claim("family", (record.task,), record.family)
    yield from _arm(record, teacher)
    for name, number in record.seeds.items():
        yield Claim(f"seeds.{name}", (record.seed,), number)
    yield Claim("seeds", group, ", ".join(sorted(record.seeds)))
    if record.data:
        yield from _of_data(record, record.data)
    if record.teacher:
        yield from _of_teacher(record, record.teacher, teacher)
    if record.status != "done":
        return
    for key in ("confusion", "predictions"):
        yield Claim(key, group, "null" if getattr(record, key) is None else "given")
    if record.curves.get("epoch") and record.selection:
        name = f"val/{record.selection.metric}"
        yield Claim("curves", group, f"{'with' if name in record.curves else 'without'} {name}")
    yield Claim("curves", (record.group, record.method), "given" if record.curves.get("epoch") else "empty")
    if len(course := record.curves.get("train/loss", [])) > 1:
        yield Claim("curves", (record.task, course[0], course[-1]), f"of seed {record.seed}")
    if record.costs:
        deployed = (*group, _reference(record))
        yield Claim("costs.parameters", deployed, record.costs.parameters)
        if record.costs.flops is not None:  # of a batch of its split
            counter = (record.seed, record.hardware.accelerator, record.versions.get("torch"))
            yield Claim("costs.flops", (*deployed, *counter), record.costs.flops)


def _reference(record: Record) -> str:
    """The record's method where it is a reference, which deploys a model of its own; else nothing."""
    info = installed_method(record.family, record.method)
    return record.method if info and info.role == "reference" else ""


def _arm(record: Record, teacher: str) -> Iterator[Claim]:
    """One label for one arm: hyper-parameters that a table shows alike are alike."""
    method = record.config["method"]
    given = {key: value for key, value in method.items() if key != "name"} if isinstance(method, dict) else {}
    label = f"{record.method} ({_shown(given, _defaults(record.family, record.method))})"
    yield Claim("config.method", (record.group, teacher, record.control, label), hashing.canonical_json(given))


@functools.cache
def _defaults(family: str, method: str) -> Mapping[str, Any]:
    info = installed_method(family, method)
    return plain(info.hyperparameters()) if info else {}


def _shown(given: Mapping[str, JsonValue], defaults: Mapping[str, Any]) -> str:
    """What a label tells of hyper-parameters: those that equal their defaults are left out, 4 is as good as 4.0."""
    return ", ".join(f"{k}={_written(v)}" for k, v in sorted(given.items()) if _written(v) != _written(defaults.get(k)))


def _written(value: Any) -> str:
    if isinstance(value, int) and abs(value) < 1 << 53:
        value = float(value)
    return value if isinstance(value, str) else json.dumps(value)


def _of_data(record: Record, data: Data) -> Iterator[Claim]:
    pair, split = (record.group, record.seed), (data.sha256, data.split_sha256)
    for key in ("name", "licence", "generated"):
        yield Claim(f"data.{key}", (record.group,), getattr(data, key))
    if record.outcomes:
        labels = record.outcomes.labels_sha256
        yield Claim("outcomes.labels_sha256", (record.group, *split), labels)
    yield Claim("data.sha256", pair, data.sha256)
    yield Claim("data.split_sha256", pair, data.split_sha256)
    for part in ("train", "val", "test"):
        yield Claim(f"data.sizes.{part}", pair, getattr(data.sizes, part))
    if record.confusion is not None:
        yield Claim("confusion", (record.task, *split), f"true classes {[sum(row) for row in record.confusion]}")
    if record.predictions and record.metrics:
        wrong = data.sizes.test * (1 - record.metrics.test.get("accuracy", 1.0))
        others = len(record.predictions) - max(map(record.predictions.count, set(record.predictions)))
        if min(wrong, others) >= RICH:
            of_split = f"of split {data.split_sha256[:16]}"
            yield Claim("predictions", (record.task, record.predictions), of_split)


def _of_teacher(record: Record, teacher: Teacher, config: str) -> Iterator[Claim]:
    own = teacher.kind in OWN_TEACHERS
    if not own and record.control == "none":
        yield Claim("teacher.sha256", (record.group, record.seed, config), teacher.sha256)
    given = "null" if teacher.predictions is None else "given"
    yield Claim("teacher.predictions", (record.group, teacher.kind, record.method if own else None), given)
    if record.data:
        rounding = (record.hardware.cpu, record.hardware.accelerator, record.schema_version)
        about = (teacher.sha256, record.data.sha256, record.data.split_sha256, *rounding)
        for split in ("val", "test"):
            scores: dict[str, float] = getattr(teacher.metrics, split)
            yield Claim(f"teacher.metrics.{split}", about, ", ".join(sorted(scores)))
            for name, value in scores.items():
                yield Claim(f"teacher.metrics.{split}.{name}", about, value)
        if teacher.predictions is not None:
            yield Claim("teacher.predictions", about, teacher.predictions)


def slim(record: Record) -> Record:
    """What comparisons and :func:`claims` need of a record: a third of it to send and to keep."""
    kept = ("method", "student", "teacher", "optimizer", "search")
    config = {name: record.config[name] for name in kept if name in record.config}
    chosen = f"val/{record.selection.metric}" if record.selection else ""
    judged = {name: record.curves[name] for name in ("epoch", chosen) if name in record.curves}
    ends = {name: values[:1] + values[1:][-1:] for name, values in record.curves.items() if name == "train/loss"}
    less: dict[str, Any] = {
        "curves": {**judged, **ends},
        "confusion": None if record.confusion is None else [[sum(row)] for row in record.confusion],
        "versions": {"torch": record.versions["torch"]} if "torch" in record.versions else {},
    }
    return record.model_copy(update={"config": config, "notes": [], "reports": None, **less})
