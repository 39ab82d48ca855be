"""Whether a run is done: its record, and what would come out otherwise by now."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from kdbench.errors import DataError
from kdbench.hashing import file_digest
from kdbench.plan.config import RunConfig, run_folder
from kdbench.plan.provenance import Made, changes, code_of, here
from kdbench.results import outcomes
from kdbench.results.record import Record, loads


def finished(root: Path, config: RunConfig) -> Record | None:
    """The record of this run if it is done and valid, stale or not."""
    path = run_folder(root, config) / "record.json"
    record = loads(path.read_bytes(), path) if path.exists() else None
    return record if record is not None and record.status == "done" else None


def set_aside(folder: Path) -> None:
    """Keep a run's record and its outcomes under names that are no record's."""
    path = folder / "record.json"
    os.replace(path, folder / "record.json.stale")
    beside = outcomes.sidecar(path)
    if beside.exists():
        os.replace(beside, folder / f"{beside.name}.stale")


def stale(record: Record, config: RunConfig, folder: Path) -> list[str]:
    """Why the record of a finished run is not what the run would give here and now; empty where it is.

    Files that the run read and that are not here any more cannot be held against it.
    """
    if record.code is None:
        return ["the code that made it is not known"]
    reasons = changes(record.code.files, code_of(config))
    try:
        if record.outcomes is not None and outcomes.read(record) is None:
            reasons.append("the file of its per-item outcomes is gone")
    except DataError as error:
        reasons.append(str(error).rstrip("."))
    asked, ran = config.trainer, record.hardware
    on_gpu = ran.accelerator not in (None, "none")
    if asked.accelerator != "auto" and (asked.accelerator == "gpu") != on_gpu:
        reasons.append(f"it ran on {ran.accelerator if on_gpu else 'the processor'}")
    if not on_gpu and ran.threads != asked.threads:
        reasons.append(f"it was computed with {ran.threads} threads")
    made = Made.load(folder)
    if made is None:
        return [*reasons, "which files it read is not known"]
    for name, digest in made.inputs.items():
        path = here(name)
        if path.is_file() and _digest_of(path, path.stat().st_mtime_ns, path.stat().st_size) != digest:
            reasons.append(f"{path} changed")
    return reasons


@functools.lru_cache(maxsize=100_000)
def _digest_of(path: Path, modified: int, size: int) -> str:
    return file_digest(path)
