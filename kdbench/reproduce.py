"""Run a record again from its JSON alone and hold the new numbers against it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from kdbench.config import from_json
from kdbench.errors import KdbenchError, UsageError
from kdbench.results import record as records


class Silent:
    """Reports nothing."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def epoch(self, done: int, total: int, value: float | None) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """A remark."""


def reproduce(path: Path, runs: Path) -> dict[str, Any]:
    """``match``, the ``differences`` of metrics, predictions, data and teacher, and what differs in the ``environment``.

    The run happens in a folder of its own under ``runs``, so nothing is taken over from earlier runs or stages. Numbers are
    compared exactly: on the same machine with the same versions and threads a run is repeated bit for bit.
    """
    if not path.is_file():
        raise UsageError(f"There is no record file '{path}'.")
    old = records.loads(path.read_text(), str(path))
    if old.status != "done":
        raise UsageError(f"{path} is the record of a failed run; there are no numbers to repeat.")
    config = from_json(old.config)
    if config.hash != old.config_hash:
        raise KdbenchError(
            f"{path}: this version resolves the configuration to {config.hash[:16]}, not {old.config_hash[:16]}."
        )
    from kdbench.engine.runner import run

    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="reproduce-", dir=runs))
    try:
        new = run(config, folder, Silent()).record
    finally:
        shutil.rmtree(folder)
    assert old.metrics and new.metrics
    differences = []
    for split in ("val", "test"):
        before, after = getattr(old.metrics, split), getattr(new.metrics, split)
        differences += [f"metrics.{split}.{k}: {before[k]} -> {after[k]}" for k in before if before[k] != after.get(k)]
    if old.predictions != new.predictions:
        changed = sum(a != b for a, b in zip(old.predictions or "", new.predictions or "", strict=False))
        differences.append(f"predictions: {changed} differ")
    for place in ("data.sha256", "data.split_sha256", "teacher.sha256"):
        part, key = place.split(".")
        sides = [getattr(getattr(side, part), key, None) for side in (old, new)]
        differences += [f"{place}: {sides[0]} -> {sides[1]}"] if sides[0] != sides[1] else []
    return {"match": not differences, "differences": differences, "environment": _environment(old, new)}


def _environment(old: records.Record, new: records.Record) -> list[str]:
    told = []
    for name in sorted(old.versions.keys() | new.versions.keys()):
        before, after = old.versions.get(name, "absent"), new.versions.get(name, "absent")
        told += [f"{name} {before} -> {after}"] if before != after else []
    for name in ("cpu", "threads", "accelerator"):
        before, after = getattr(old.hardware, name), getattr(new.hardware, name)
        told += [f"{name}: {before} -> {after}"] if before != after else []
    return told
