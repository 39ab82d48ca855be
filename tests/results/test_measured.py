"""A measurement: median and range over rounds, sealed, and read for the arm of a record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kdbench import hashing
from kdbench.errors import DataError
from kdbench.results import measured
from kdbench.results.compare import compare
from kdbench.results.measured import Measurement, Times, of_record, path_of
from kdbench.results.record import Record

HARDWARE = {"cpu": "c", "cores": 2, "threads": 1, "memory_bytes": 1, "accelerator": "none", "os": "o"}


def fields(record: Record) -> dict[str, Any]:
    method = record.config["method"]
    assert isinstance(method, dict)
    now = datetime.now(UTC)
    arm = {
        "method": record.method,
        "hyperparameters": {name: value for name, value in method.items() if name != "name"},
        "parameters": 10,
        "trained_parameters": 12,
        "examples": 4,
        "flops": 1000,
        "forward_one": {"rounds": [1.0, 3.0, 2.0]},
        "forward_batch": {"rounds": [4.0]},
        "step": {"rounds": [20.0]},
        "stage_seconds": None,
        "memory_bytes": 5,
    }
    return {
        "task": record.task,
        "scale": record.scale,
        "student": "gcn",
        "settings": [],
        "group": record.group,
        "seed": 0,
        "versions": {},
        "git": {"commit": None, "dirty": None},
        "hardware": HARDWARE,
        "load": {"start": 0.1, "end": 1.0},
        "busy": False,
        "started": now,
        "finished": now,
        "arms": [arm],
    }


def test_times_are_the_median_and_the_range_of_the_rounds() -> None:
    times = Times(rounds=[1.0, 4.0, 2.0])
    assert (times.median, times.low, times.high) == (2.0, 1.0, 4.0)


def test_a_measurement_is_read_back_and_a_changed_one_is_refused(make: Any, tmp_path: Path) -> None:
    measurement, path = Measurement.seal(fields(make("kd", 0))), tmp_path / "m.json"
    path.write_text(measurement.text)
    assert Measurement.read(path) == measurement and measurement.arms[0].flops_per_example == 250
    content = json.loads(path.read_text())
    content["arms"][0]["forward_one"]["rounds"][0] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"m\.json: digest: "):
        Measurement.read(path)
    content["arms"][0]["step"]["rounds"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"m\.json: arms\.0\.step\.rounds: "):
        Measurement.read(path)


def test_a_record_finds_the_costs_of_its_own_arm(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "published", lambda: tmp_path)
    kd = make("kd", 3)
    path = path_of(tmp_path, kd.task, "gat")
    path.parent.mkdir(parents=True)
    path.write_text(Measurement.seal(fields(make("kd", 0))).text)
    arm = of_record(kd)
    assert arm is not None and arm.forward_one.median == 2.0
    assert of_record(make("alone", 3)) is None
    assert of_record(make("kd", 3, control="shuffled_teacher")) is None


def test_a_measurement_beside_the_runs_serves_them(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "published", lambda: tmp_path / "nothing")
    kd = make("kd", 3)
    path = path_of(tmp_path / "measurements", kd.task)
    path.parent.mkdir(parents=True)
    path.write_text(Measurement.seal(fields(kd)).text)
    assert of_record(kd) is None
    assert of_record(kd.at(tmp_path / kd.task / "kd" / "0123" / "record.json")) is not None
    assert of_record(kd.at(tmp_path / "kd.json")) is None


def test_a_table_of_protocol_2_takes_costs_from_a_measurement_alone(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "published", lambda: tmp_path)
    now = {"schema_version": 4, "protocol": 2, "steps": 50, "code": {"sha256": hashing.digest({}), "files": {}}}
    runs = [make("kd", seed, **now, reports={}) for seed in (0, 1)]
    (row,) = [row for row in compare(runs)[0].rows if row.method == "kd"]
    assert row.parameters and (row.flops, row.latency_ms, row.train_seconds, row.peak_memory_bytes) == (None,) * 4
    path = path_of(tmp_path, runs[0].task, "gcn")
    path.parent.mkdir(parents=True)
    path.write_text(Measurement.seal(fields(runs[0])).text)
    measured._of_group.cache_clear()
    (row,) = [row for row in compare(runs)[0].rows if row.method == "kd"]
    assert (row.flops, row.latency_ms, row.step_ms, row.train_seconds) == (250, 2.0, 20.0, 1.0)
    assert row.peak_memory_bytes == 5 and row.stage_seconds is None
    (old,) = [row for row in compare([make("kd", 0)])[0].rows if row.method == "kd"]
    assert old.latency_ms not in (None, 2.0)
