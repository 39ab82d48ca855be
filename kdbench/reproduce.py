"""Run a record again from its JSON alone and hold the new numbers against it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdbench.catalog import require_extra
from kdbench.config import from_json
from kdbench.errors import KdbenchError, UsageError
from kdbench.launch.display import Bars, names_of
from kdbench.results import record as records

FLOAT32 = 2.0**-23
"""The relative distance of neighbouring float32 numbers."""


def reproduce(path: Path, runs: Path) -> dict[str, Any]:
    """Whether the run gives the same numbers again.

    ``differences`` lists metrics, predictions, data and teacher that differ, ``environment`` versions and hardware that
    do; ``match`` says that ``differences`` is empty. The run happens in a folder of its own (under ``runs`` where that
    exists), so nothing is taken over from earlier runs or stages, and with the record's number of threads. Numbers are
    compared exactly: on the same kind of machine with the same versions a run is repeated bit for bit. Only the scores
    of records of schema version 1 are compared as the float32 means that they are.
    """
    if not path.is_file():
        raise UsageError(f"There is no record file '{path}'.")
    old = records.loads(path.read_bytes(), path)
    if old.status != "done":
        raise UsageError(f"{path} is the record of a failed run; there are no numbers to repeat.")
    config = from_json(old.config)
    if config.hash != old.config_hash:
        raise KdbenchError(
            f"{path}: this version resolves the configuration to {config.hash[:16]}, not {old.config_hash[:16]}."
        )
    require_extra(config.family)
    place = runs if runs.is_dir() else None
    folder = tempfile.TemporaryDirectory(prefix="reproduce-", dir=place)
    with folder, _threads(old.hardware.threads), Bars(names_of([config])) as bars:
        from kdbench.engine.runner import run

        bars.begin(config)
        outcome = run(config, Path(folder.name), bars)
    if outcome is None:
        raise KdbenchError("Only the first process of a distributed run compares.")
    new = outcome.record
    differences = _numbers(old, new)
    return {"match": not differences, "differences": differences, "environment": _environment(old, new)}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads: sums are rounded in another order by another number of them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)  # read by libraries that are not loaded yet
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _same(before: float, after: float | None, version: int) -> bool:
    """Whether two scores are equal, to two steps of float32 where those were its sums and quotients."""
    if version > 1 or after is None:
        return before == after
    return abs(before - after) <= 2 * FLOAT32 * max(abs(before), abs(after))


def _numbers(old: records.Record, new: records.Record) -> list[str]:
    told = []
    for split in ("val", "test"):
        before, after = ({} if side.metrics is None else getattr(side.metrics, split) for side in (old, new))
        differing = (k for k in before if not _same(before[k], after.get(k), old.schema_version))
        told += [f"metrics.{split}.{k}: {before[k]} -> {after.get(k)}" for k in differing]
    if old.predictions != new.predictions:
        changed = sum(a != b for a, b in zip(old.predictions or "", new.predictions or "", strict=False))
        told.append(f"predictions: {changed} differ")
    for part, key in (("data", "sha256"), ("data", "split_sha256"), ("teacher", "sha256")):
        before, after = (getattr(getattr(side, part), key, None) for side in (old, new))
        told += [f"{part}.{key}: {before} -> {after}"] if before != after else []
    return told


def _environment(old: records.Record, new: records.Record) -> list[str]:
    told = []
    for name in sorted(old.versions.keys() | new.versions.keys()):
        before, after = old.versions.get(name, "absent"), new.versions.get(name, "absent")
        told += [f"{name} {before} -> {after}"] if before != after else []
    for name in ("cpu", "threads", "accelerator"):
        before, after = getattr(old.hardware, name), getattr(new.hardware, name)
        told += [f"{name}: {before} -> {after}"] if before != after else []
    return told
