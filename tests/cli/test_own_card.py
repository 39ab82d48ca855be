"""A stranger's card from its first check to its page, from a folder outside the repository."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.cli import main as cli

CARD = """\
title: My own
family: graph
kind: node_classification
metric: accuracy
dataset: ring
datasets:
  ring: {title: A ring, licence: CC0-1.0, folder: data, reader: npz_graph}
methods:
  lingugkd: {temperature: 0.5}
scales:
  tiny:
    student: {width: 8, layers: 1}
    trainer: {max_epochs: 1}
"""


Say = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """``say(line)``: exit code and output of a command beside ``mine.yaml``."""
    (tmp_path / "data").mkdir()
    nodes = np.arange(60)
    np.savez(tmp_path / "data/g.npz", x=np.eye(3)[nodes % 3], edges=np.stack([nodes, (nodes + 3) % 60]), y=nodes % 3)
    (tmp_path / "mine.yaml").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_RUNS", "runs")

    def said(line: str) -> tuple[int, str, str]:
        code = cli.entry(shlex.split(line))
        out, err = capsys.readouterr()
        return code, out, err

    return said


def records() -> dict[tuple[str, int], Path]:
    """The records by method and seed."""
    paths = Path("runs/mine").rglob("record.json")
    return {(one["method"], one["seed"]): path for path in paths for one in [json.loads(path.read_text())]}


def test_run_status_reproduce_and_board(say: Say) -> None:
    code, out, err = say("run task=./mine.yaml method=lingugkd")
    assert code == 0 and "mine · tiny · data ring" in out and "running mine at scale=tiny." in err
    assert set(records()) == {("alone", 0), ("kd", 0), ("lingugkd", 0)}
    path = records()["lingugkd", 0]
    one = json.loads(path.read_text())
    assert (one["task"], one["config"]["task"], one["data"]["name"]) == ("mine", "mine", "ring")
    assert one["command"] == "kdbench run task=./mine.yaml method=lingugkd scale=tiny seed=0"
    assert one["config"]["method"]["temperature"] == 0.5
    assert say("sweep task=./mine.yaml method=alone,lingugkd name=own")[0] == 0
    assert "own: 2 done" in say("status own")[1]
    assert "3 valid, 0 with problems" in say("validate runs")[1]
    assert say("compare task=mine")[0] == say("leaderboard build runs -o site")[0] == 0
    assert "mine" in Path("site/index.html").read_text()
    code, out, err = say(f"reproduce {path}")
    assert code == 2 and "task=./mine.yaml: a card, and the data that it describes" in err
    assert say(f"reproduce {path} --yes")[:2] == (0, f"match: {path}\n")
    Path("mine.yaml").write_text(CARD.replace("npz_graph}", "npz_graph, options: {normalise: true}}"))
    code, out, err = say(f"reproduce {path} --yes")
    assert code == 1 and "this version resolves the configuration to" in err


@pytest.mark.slow
def test_the_processes_of_a_sweep_find_the_card(say: Say) -> None:
    assert say("sweep task=./mine.yaml method=alone,kd name=own")[0] == 0
    assert set(records()) == {("alone", 0), ("kd", 0)} and "own: 2 done" in say("status own")[1]
