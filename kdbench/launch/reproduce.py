"""Run a record again from its JSON alone and hold the new numbers against it."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from kdbench.errors import KdbenchError, UsageError
from kdbench.launch.display import Bars, names_of
from kdbench.plan.cards import is_path
from kdbench.plan.config import SECTIONS, RunConfig, from_json, resolve
from kdbench.plan.family import require_extra
from kdbench.plan.overrides import parse_overrides, word
from kdbench.plan.own import modules
from kdbench.plan.provenance import changes
from kdbench.results import record as records

FLOAT32 = 2.0**-23
"""The relative distance of neighbouring float32 numbers."""

PARTS = (("data", "sha256"), ("data", "split_sha256"), ("teacher", "sha256"))
OUTCOMES = (("outcomes", "labels_sha256"), ("outcomes", "sha256"))
"""Digests by which two records of one run are compared."""

Consent = Callable[[Sequence[str]], None]
"""Is told what a record brings, and raises where that may not be used."""


def reproduce(path: Path, runs: Path, consent: Consent) -> dict[str, Any]:
    """Whether the run of a record file gives the same numbers again: see :func:`rerun`."""
    if not path.is_file():
        raise UsageError(f"There is no record file '{path}'.")
    return rerun(records.loads(path.read_bytes(), path), path, runs, consent)


def rerun(old: records.Record, path: Path, runs: Path, consent: Consent) -> dict[str, Any]:
    """Whether the run of the record at ``path`` gives the same numbers again; ``consent`` is asked before it starts.

    ``differences`` lists metrics, predictions, outcomes, data and teacher that differ, ``environment`` versions and
    hardware that do; ``match`` says that ``differences`` is empty. The run happens in a folder of its own (under
    ``runs`` where that exists), so nothing is taken over from earlier runs or stages, and with the record's number of
    threads. Numbers are compared exactly: on the same kind of machine with the same versions a run is repeated bit for
    bit. Only the scores of records of schema version 1 are compared as the float32 means that they are.
    """
    if old.status != "done":
        raise UsageError(f"{path} is the record of a failed run; there are no numbers to repeat.")
    config = from_json(old.config, own_card(old))
    if config.hash != old.config_hash:
        raise KdbenchError(
            f"{path}: this version resolves the configuration to {config.hash[:16]}, not {old.config_hash[:16]}."
        )
    require_extra(config.family)
    consent(brought(old, config))
    as_then = replace(config, trainer=replace(config.trainer, threads=old.hardware.threads))
    place = runs if runs.is_dir() else None
    folder = tempfile.TemporaryDirectory(prefix="reproduce-", dir=place)
    with folder, Bars(names_of([as_then])) as bars:
        from kdbench.engine.runner import run

        bars.begin(as_then)
        outcome = run(as_then, Path(folder.name), bars)
    if outcome is None:
        raise KdbenchError("Only the first process of a distributed run compares.")
    new = outcome.record
    differences = _numbers(old, new)
    return {"match": not differences, "differences": differences, "environment": _environment(old, new)}


def own_card(old: records.Record) -> str:
    """The path of the user's own card that a record's command names; empty for an installed task."""
    with suppress(ValueError):
        for text in shlex.split(old.command):
            key, _, value = text.partition("=")
            if key == "task" and is_path(value.strip("'\"")):
                return str(parse_overrides([text])[0].values[0])
    return ""


def brought(old: records.Record, config: RunConfig) -> list[str]:
    """What a record asks of this machine beyond its task's defaults: processes, threads, files and downloads.

    Any text that is not one of an option's own choices may name a file, or what a hub is asked for.
    """
    unusual, cores = [], len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.trainer.processes > 1:
        unusual.append(
            f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}: processes"
        )
    if old.hardware.threads > cores:
        unusual.append(f"{old.hardware.threads} threads, on {cores} cores")
    if config.card:
        unusual.append(f"task={config.card}: a card, and the data that it describes")
    unusual += [f"the module '{module}': code of a network" for module in modules(config.student, config.teacher)]
    chosen = {name: getattr(config, name) for name in ("method", "scale", "control", "seed")} | {"task": config.asked}
    usual = resolve(chosen)
    for section in ("hyperparameters", *SECTIONS):
        own, default = getattr(config, section), getattr(usual, section)
        for name, kind in get_type_hints(type(own)).items() if own is not None else ():
            value = getattr(own, name)
            if _free(kind) and value != getattr(default, name) and value is not None:
                place = "method" if section == "hyperparameters" else section
                unusual.append(f"{place}.{name}={word(value)}: a file, or a download")
    return unusual


def _free(kind: Any) -> bool:
    """Whether values of a type may hold text of the user's own."""
    return kind in (str, Any) or any(map(_free, get_args(kind)))


def _same(before: float, after: float | None, version: int) -> bool:
    """Whether two scores are equal, to two steps of float32 where those were its sums and quotients."""
    if version > 1 or after is None:
        return before == after
    return abs(before - after) <= 2 * FLOAT32 * max(abs(before), abs(after))


def _numbers(old: records.Record, new: records.Record) -> list[str]:
    differences = []
    for split in ("val", "test"):
        before, after = ({} if side.metrics is None else getattr(side.metrics, split) for side in (old, new))
        differing = (k for k in before if not _same(before[k], after.get(k), old.schema_version))
        differences += [f"metrics.{split}.{k}: {before[k]} -> {after.get(k)}" for k in differing]
    if old.predictions != new.predictions:
        changed = sum(a != b for a, b in zip(old.predictions or "", new.predictions or "", strict=False))
        differences.append(f"predictions: {changed} differ")
    for part, key in (*PARTS, *(OUTCOMES if old.outcomes else ())):
        before, after = (getattr(getattr(side, part), key, None) for side in (old, new))
        differences += [f"{part}.{key}: {before} -> {after}"] if before != after else []
    return differences


def _environment(old: records.Record, new: records.Record) -> list[str]:
    differences = []
    for name in sorted(old.versions.keys() | new.versions.keys()):
        before, after = old.versions.get(name, "absent"), new.versions.get(name, "absent")
        differences += [f"{name} {before} -> {after}"] if before != after else []
    for name in ("cpu", "threads", "accelerator"):
        before, after = getattr(old.hardware, name), getattr(new.hardware, name)
        differences += [f"{name}: {before} -> {after}"] if before != after else []
    return differences + (changes(old.code.files, new.code.files) if old.code and new.code else [])
