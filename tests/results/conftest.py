"""Valid record fields that the tests of this folder start from, made by hand and without a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench import hashing
from kdbench.axes import axis
from kdbench.results import record, store
from kdbench.results.record import Record

CLASSES, TEST = 3, 60
Fields = dict[str, Any]


def predictions(right: int) -> str:
    """Test predictions of which the first ``right`` are right; example i has class i mod 3."""
    return "".join(str((i if i < right else i + 1) % CLASSES) for i in range(TEST))


def confusion(predicted: str) -> list[list[int]]:
    matrix = [[0] * CLASSES for _ in range(CLASSES)]
    for index, digit in enumerate(predicted):
        matrix[index % CLASSES][int(digit)] += 1
    return matrix


def metrics(predicted: str, val: float) -> dict[str, dict[str, float]]:
    matrix = confusion(predicted)
    f1 = [2 * matrix[i][i] / (sum(matrix[i]) + sum(row[i] for row in matrix)) for i in range(CLASSES)]
    test = {"accuracy": sum(matrix[i][i] for i in range(CLASSES)) / TEST, "macro_f1": sum(f1) / CLASSES}
    return {"val": {"accuracy": val, "macro_f1": val}, "test": test}


def teacher_of(config: Fields, right: int, control: str) -> Fields:
    predicted = predictions(right)
    return {
        "kind": "frozen",
        "description": f"{config['name']}, two layers",
        "sha256": hashing.digest([config, right, control == "random_teacher"]),
        "metrics": metrics(predicted, 0.9),
        "predictions": predicted,
    }


def config_of(method: str, seed: int, control: str, teacher: Fields | None, hyper: Fields, student: str) -> Fields:
    return {
        "task": "gnn/cora",
        "scale": "small",
        "method": {"name": method, **hyper},
        "control": control,
        "seed": seed,
        "data": {"name": "cora", "split": 0.1},
        "student": {"name": student, "width": 16},
        "teacher": teacher,
        "optimizer": {"name": "adam", "lr": 0.01},
        "trainer": {"epochs": 3},
    }


def fields_of(
    method: str = "kd",
    seed: int = 0,
    right: int = 48,
    *,
    control: str = "none",
    hyper: Fields | None = None,
    teacher: str | None = "gat",
    teacher_right: int = 54,
    student: str = "gcn",
    **changes: Any,
) -> Fields:
    """Every field of a valid, finished run but ``digest``; ``right`` of its 60 test examples are right."""
    teacher_config = None if teacher is None or method == "alone" else {"name": teacher, "width": 64}
    config = config_of(method, seed, control, teacher_config, hyper or {}, student)
    predicted = predictions(right)
    return {
        "schema_version": 1,
        "status": "done",
        "family": "graph",
        "task": "gnn/cora",
        "scale": "small",
        "method": method,
        "control": control,
        "seed": seed,
        "command": f"kdbench run gnn/cora method={method} seed={seed}",
        "config": config,
        "config_hash": hashing.digest(config),
        "group": record.group_of(config),
        "versions": {"kdbench": "0.1.0", "torch": "2.15.0"},
        "git": {"commit": "0" * 40, "dirty": False},
        "hardware": {"cpu": "x", "cores": 2, "threads": 2, "memory_bytes": 8, "accelerator": None, "os": "Linux"},
        "data": {
            "name": "cora",
            "sha256": "a" * 64,
            "split_sha256": hashing.digest(["split", seed]),
            "generated": False,
            "licence": "CC0-1.0",
            "sizes": {"train": 140, "val": 50, "test": TEST},
        },
        "teacher": teacher_of(teacher_config, teacher_right, control) if teacher_config else None,
        "stages": [{"name": "distil", "key": "b" * 64, "seconds": 0.5, "reused": False}],
        "seeds": {"data_order": axis(seed, "data_order"), "initialisation": 2000 + seed},
        "selection": {"metric": "accuracy", "mode": "max", "epoch": 2, "value": 0.75},
        "metrics": metrics(predicted, 0.75),
        "confusion": confusion(predicted),
        "predictions": predicted,
        "costs": {
            "parameters": 23063,
            "trained_parameters": 23063,
            "flops": 62_000_000,
            "latency_ms": 1.25,
            "train_seconds": 3.5,
            "stage_seconds": 0.5,
            "peak_memory_bytes": 250_000_000,
        },
        "curves": {"epoch": [0.0, 1.0, 2.0], "val_accuracy": [0.5, 0.7, 0.75]},
        "failure": None,
        "notes": [],
        "started": "2026-10-01T10:00:00Z",
        "finished": "2026-10-01T10:00:05Z",
        **changes,
    }


def failed_fields(method: str = "kd", seed: int = 0, **changes: Any) -> Fields:
    """Every field but ``digest`` of a run that failed in training."""
    failure = {"reason": "The loss is not finite at step 7.", "step": 7, "terms": {"task": 0.5, "kd": "nan"}}
    empty = dict.fromkeys(("selection", "metrics", "confusion", "predictions", "costs"))
    return fields_of(method, seed, **{"status": "failed", "failure": failure, "curves": {}, **empty, **changes})


@pytest.fixture
def fields() -> Callable[..., Fields]:
    return fields_of


@pytest.fixture
def failed() -> Callable[..., Fields]:
    return failed_fields


@pytest.fixture
def make() -> Callable[..., Record]:
    """Sealed records: ``make("kd", seed, right, …)``."""
    return lambda *args, **changes: record.seal(fields_of(*args, **changes))


@pytest.fixture
def make_failed() -> Callable[..., Record]:
    return lambda *args, **changes: record.seal(failed_fields(*args, **changes))


@pytest.fixture
def arms(make: Callable[..., Record]) -> Callable[..., list[Record]]:
    """The runs of one arm, seeds 0, 1, …: ``arms("kd", [48, 50], …)``."""
    return lambda method, rights, **changes: [make(method, s, r, **changes) for s, r in enumerate(rights)]


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Sequence[Record]], Path]:
    """Write records as run folders below one folder, and return it."""

    def write(records: Sequence[Record]) -> Path:
        for index, item in enumerate(records):
            store.write(item, tmp_path / "runs" / str(index) / "record.json")
        return tmp_path / "runs"

    return write


@pytest.fixture(autouse=True)
def _unknown_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records here are of imagined tasks and methods, of which no card and no method file tells."""
    from kdbench.results import arms, origin

    monkeypatch.setattr(origin, "task_paths", dict)
    monkeypatch.setattr(arms, "defaults", lambda family, method: None)
