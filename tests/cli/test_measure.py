"""``kdbench measure``: counts, times of every round, memory; nothing on a machine at work unless it is wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.cli.main import entry
from kdbench.engine import costs
from kdbench.results.measured import Measurement


def test_arms_are_measured_in_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "load", lambda: 0.2)
    words = ["measure", "graph_classification", "method=alone", "--rounds", "2"]
    assert entry([*words, "--runs", str(tmp_path)]) == 0
    assert "step, ms" in capsys.readouterr().out
    measurement = Measurement.read(tmp_path / "measurements" / "graph_classification.json")
    assert not measurement.busy and measurement.hardware.threads == 1
    (alone,) = measurement.arms
    assert alone.step and len(alone.step.rounds) == len(alone.forward_one.rounds) == 2
    assert alone.forward_one.median < alone.forward_batch.median, "a batch of 64 graphs takes longer than one"
    assert alone.flops > 0 and alone.examples == 64
    assert alone.memory_bytes and 1e6 < alone.memory_bytes < 1e9


def test_a_machine_at_work_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "load", lambda: 3.0)
    assert entry(["measure", "gnn", "method=alone", "--runs", str(tmp_path / "runs")]) == 2
    assert "load 3.0" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_busy_measurement_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "load", lambda: 3.0)
    monkeypatch.setattr("kdbench.engine.measuring._in_a_process", lambda config, root: None)
    words = ["measure", "gnn", "method=lingugkd", "student.name=gat", "--rounds", "1", "--busy", "--json"]
    assert entry([*words, "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "too long" in told.err
    content = json.loads(told.out)
    assert content["busy"] and content["load"] == {"start": 3.0, "end": 3.0}
    (arm,) = content["arms"]
    assert arm["method"] == "lingugkd" and arm["trained_parameters"] > arm["parameters"] and arm["step"]
    assert (tmp_path / "measurements" / "gnn" / "gat.json").is_file()


def test_an_arm_that_trains_nothing_has_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.engine.measuring._in_a_process", lambda config, root: None)
    words = ["measure", "graph_classification", "method=untrained", "--rounds", "1", "--busy", "--json"]
    assert entry([*words, "--runs", str(tmp_path)]) == 0
    (arm,) = json.loads(capsys.readouterr().out)["arms"]
    assert arm["step"] is None and arm["memory_bytes"] is None


def test_students_are_measured_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["measure", "gnn", "student.name=gcn,gat", "--busy", "--runs", str(tmp_path)]) == 2
    assert "one student" in capsys.readouterr().err
