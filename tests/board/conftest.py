"""Records for the leaderboard's tests: an imagined task that no card here tells of, and a folder to write them to."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdbench.results import record
from kdbench.results.record import Record

Fields = dict[str, Any]


def _sample() -> ModuleType:
    path = Path(__file__).parent.parent / "results" / "conftest.py"
    spec = importlib.util.spec_from_file_location("records_by_hand", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLE = _sample()


def sealed(change: Callable[[Fields], None] | None = None, *args: Any, **changes: Any) -> Record:
    """A valid record of the imagined task ``imagined``; ``change`` may alter its fields before hashes are taken."""
    fields = SAMPLE.fields_of(*args, **changes)
    fields["config"]["task"] = fields["task"] = "imagined"
    if change:
        change(fields)
    config = fields["config"]
    fields |= {"config_hash": record.hashing.digest(config), "group": record.group_of(config)}
    return record.seal(fields)


def board(rights: Sequence[int] = (44, 46, 47)) -> list[Record]:
    """Runs of alone, kd, a method and its control on three seeds."""
    found = []
    for seed, right in enumerate(rights):
        found += [sealed(None, "alone", seed, right), sealed(None, "kd", seed, right + 2 + seed)]
        found += [sealed(None, "newkd", seed, right + 5 - seed)]
        found += [sealed(None, "newkd", seed, right - 1, control="shuffled_teacher")]
    return found


def published(records: Sequence[Record], folder: Path) -> Path:
    """Write records to their published places below ``folder``, whatever their names hold."""
    for item in records:
        path = folder / f"{item.config_hash[:32]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(item.model_dump(mode="json")))
    return folder


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder with the records of :func:`board`."""
    return published(board(), tmp_path / "records")
