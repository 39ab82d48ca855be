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


def _sealed(change: Callable[[Fields], None] | None = None, *args: Any, **changes: Any) -> Record:
    """A valid record of the imagined task ``imagined``; ``change`` may alter its fields before hashes are taken."""
    return _imagined(SAMPLE.fields_of(*args, **changes), change)


def _imagined(fields: Fields, change: Callable[[Fields], None] | None = None) -> Record:
    fields["config"]["task"] = fields["task"] = "imagined"
    if change:
        change(fields)
    config = fields["config"]
    fields |= {"config_hash": record.hashing.digest(config), "group": record.group_of(config)}
    return record.seal(fields)


def _board(rights: Sequence[int] = (44, 46, 47)) -> list[Record]:
    """Runs of alone, kd, a method and its control on three seeds."""
    found = []
    for seed, right in enumerate(rights):
        found += [_sealed(None, "alone", seed, right), _sealed(None, "kd", seed, right + 2 + seed)]
        found += [_sealed(None, "newkd", seed, right + 5 - seed)]
        found += [_sealed(None, "newkd", seed, right - 1, control="shuffled_teacher")]
    return found


def _saved(records: Sequence[Record], folder: Path) -> Path:
    """Write records to their published places below ``folder``, whatever their names hold."""
    for item in records:
        path = folder / f"{item.config_hash[:32]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(item.model_dump(mode="json")))
    return folder


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder with the records of :func:`_board`."""
    return _saved(_board(), tmp_path / "records")


@pytest.fixture
def sealed() -> Callable[..., Record]:
    """``sealed(change, method, seed, right, …)``: see :func:`_sealed`."""
    return _sealed


@pytest.fixture
def board() -> Callable[..., list[Record]]:
    """``board(rights)``: see :func:`_board`."""
    return _board


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Sequence[Record]], Path]:
    """Write records to a folder, and return it."""
    return lambda records: _saved(records, tmp_path / "records")


@pytest.fixture
def failed() -> Callable[..., Record]:
    """A failed run of the imagined task: ``failed(method, seed, …)``."""
    return lambda *args, **changes: _imagined(SAMPLE.failed_fields(*args, **changes))
