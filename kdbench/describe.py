"""Texts about tasks, methods, records, data and this installation; none of them imports torch."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdbench.errors import UsageError, shown, unknown
from kdbench.plan import cards, catalog, family
from kdbench.plan.cards import section_types, sections_of
from kdbench.plan.datasets import dataset
from kdbench.plan.options import build, merge, plain

SPLITS = ("train", "val", "test")
CORE = ("torch", "pytorch-lightning", "torchmetrics", "hydra-core", "pydantic", "scipy", "rich")


def listing(pattern: str = "*") -> dict[str, list[dict[str, Any]]]:
    """Tasks and methods whose names match a wildcard. Raises :class:`UsageError` when none does."""
    wild = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    tasks = [
        {"name": card.name, "family": card.family, "kind": card.kind, "scales": list(card.scales), "title": card.title}
        for card in cards.listed().values()
        if fnmatch(card.name, wild)
    ]
    methods = [
        {
            "name": m.name,
            "family": m.family or "all",
            "role": m.role,
            "teacher": m.teacher,
            "title": m.title,
            "paper": m.paper,
        }
        for m in catalog.methods()
        if fnmatch(m.name, wild)
    ]
    if not tasks and not methods:
        cards.listed().check(pattern)
        _check(pattern)
        raise unknown("task or method", pattern, [*cards.task_paths(), *(m.name for m in catalog.methods())])
    return {"tasks": tasks, "methods": methods}


def description(name: str) -> dict[str, Any]:
    """One task, method or record file, as plain values."""
    if name in cards.task_paths() or cards.is_path(name):
        return task(name)
    bare = name.rpartition("/")[2]
    namesakes = catalog.methods(lambda place: place[2] == bare)
    _check(name)
    if asked := [m for m in namesakes if name in (m.name, f"{m.family}/{m.name}")]:
        return {"methods": [method(m) for m in asked]}
    if os.path.isfile(name):
        return {"record": record(Path(name))}
    if name.endswith(".json"):
        raise UsageError(f"There is no record file '{shown(name)}'.")
    raise unknown("task, method or record", name, [*cards.task_paths(), *(m.name for m in catalog.methods())])


def _check(name: str) -> None:
    """Raise the fault of the task or method of that name, if it has one that was read."""
    cards.task_paths().check(name)
    faulty = catalog.methods_by_place(lambda place: False)
    faulty.check(*(key for key in faulty.faulty if name in (key[2], f"{key[0]}/{key[2]}")))


def method(info: catalog.MethodInfo) -> dict[str, Any]:
    """A method: paper, equations, hyper-parameters with defaults and meaning."""
    return {
        "method": info.name,
        "family": info.family or "all",
        "kinds": list(info.kinds),
        "role": info.role,
        "teacher": info.teacher,
        "title": info.title,
        "paper": info.paper,
        "doc": info.doc,
        "hyperparameters": [asdict(field) for field in info.fields],
    }


def task(name: str) -> dict[str, Any]:
    """A task: data and licence, scales with their options, methods, reported numbers."""
    card = cards.card(name)
    types = section_types(card)
    scales = {}
    for scale in card.scales:
        merged = merge(sections_of(card, scale))
        scales[scale] = {name: plain(build(kind, merged.get(name, {}), name)) for name, kind in types.items()}
    return {
        "task": name,
        "title": card.title,
        "family": card.family,
        "kind": card.kind,
        "metric": card.metric,
        "data": _data(card.dataset),
        "data_of_scales": {scale: _data(name) for scale, name in card.own_datasets.items()},
        "notes": card.notes,
        "methods": sorted(catalog.offered_methods(card.family, card.kind)),
        "scales": scales,
        "sections": {section: inspect.cleandoc(kind.__doc__ or "") for section, kind in types.items()},
        "options": {section: [asdict(f) for f in catalog.documented_options(kind)] for section, kind in types.items()},
        "defaults_of_methods": {name: dict(values) for name, values in card.methods.items()},
        "search": card.search,
        "primary": asdict(card.primary) if card.primary else None,
        "reference": card.reference,
        "excused": dict(card.excused),
        "reported": [asdict(entry) for entry in card.reported],
    }


def _data(name: str) -> dict[str, str]:
    data = dataset(name)
    return {"name": data.name, "title": data.title, "licence": data.licence, "source": data.source}


def rows(words: Sequence[str]) -> dict[str, Any]:
    """The rows of a task that its teacher has outputs for: number, split and, where it has one, name (imports torch).

    ``words``: the task's name, then ``scale=…``, ``seed=…`` and ``data.option=…``.
    """
    if not words:
        raise UsageError("Rows of which task? Example: kdbench data rows gnn seed=0")
    from kdbench.engine.runner import load_task
    from kdbench.engine.stages import StageStore
    from kdbench.plan.config import expand

    name, *more = words
    for word in more:
        if not word.startswith(("scale=", "seed=", "data.")):
            raise UsageError(f"'{shown(word)}': rows depend on scale=…, seed=… and data.option=… alone.")
    configs = expand([f"task={name}", "method=alone", *more])
    if len(configs) > 1:
        raise UsageError("Rows of one scale and seed at a time.")
    task = load_task(configs[0], StageStore(Path(os.devnull)))
    facts, shape = task.facts, task.logits_shape
    if shape is None:
        raise UsageError(f"{name}: a teacher of its kind has no outputs by row.")
    splits = [SPLITS[group] if 0 <= group < len(SPLITS) else "none" for group in facts.groups.tolist()]
    names = facts.names or [""] * facts.rows
    listed = [{"id": row, "split": s, "name": n} for row, (s, n) in enumerate(zip(splits, names, strict=True))]
    return {"task": name, "scale": configs[0].scale, "data": facts.sha256, "logits": list(shape), "rows": listed}


def record(path: Path) -> dict[str, Any]:
    """A record's content after validation."""
    from kdbench.results import record as records

    content: dict[str, Any] = json.loads(records.dumps(records.loads(path.read_bytes(), path)))
    return content


def doctor() -> dict[str, Any]:
    """Versions, devices, extras and what each missing extra would enable."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    extras = {name: {"missing": one.missing(), "enables": one.enables} for name, one in family.extras().items()}
    return {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in ("kdbench", *CORE)},
        "devices": devices(),
        "extras": extras,
    }


def devices() -> list[str]:
    """Devices that torch sees (imports torch)."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu, {torch.get_num_threads()} threads", *gpus]
