"""What is wrong with a task shows before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdbench.cli import main as cli
from kdbench.errors import UsageError
from kdbench.launch import local
from kdbench.launch.check import check
from kdbench.plan.config import expand

CARD = """\
title: My own
family: graph
kind: node_classification
metric: accuracy
dataset: ring
datasets:
  ring: {title: A ring, licence: CC0-1.0, folder: data, reader: npz_graph}
scales:
  tiny:
    student: {width: 8, layers: 1}
    trainer: {max_epochs: 1}
  small:
    data: {split: "1"}
    teacher: {source: llm}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a card with 60 nodes of three classes in a ring."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CARD)
    (tmp_path / "data").mkdir()
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changed: np.ndarray) -> None:
    nodes = np.arange(60)
    arrays = {"x": np.eye(3)[nodes % 3], "edges": np.stack([nodes, (nodes + 3) % 60]), "y": nodes % 3}
    np.savez(folder / "data" / "ring.npz", **{**arrays, **changed})


def test_it_says_what_the_data_is_and_which_methods_run(mine: Path) -> None:
    told = check("mine.yaml")
    assert (told["task"], told["family"], list(told["scales"])) == ("mine", "graph", ["tiny", "small"])
    tiny, small = told["scales"].values()
    assert tiny["data"] == "ring" and tiny["licence"] == "CC0-1.0" and len(tiny["sha256"]) == 64
    assert tiny["sizes"] == {"train": 36, "val": 12, "test": 12}
    assert {split: sum(counts.values()) for split, counts in tiny["classes"].items()} == tiny["sizes"]
    assert list(tiny["classes"]["train"]) == ["class 0", "class 1", "class 2"]
    assert tiny["methods"] == dict.fromkeys(("alone", "kd", "lingugkd", "sgc"))
    assert small["split_sha256"] != tiny["split_sha256"] and small["methods"]["alone"] is None
    assert "there are none of ring" in small["methods"]["kd"] and "there are none" in small["methods"]["lingugkd"]
    assert {path.name for path in mine.iterdir()} == {"mine.yaml", "data"}, "nothing is written"


def test_the_command_prints_it_and_names_the_first_fault(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.entry(["check", "./mine.yaml", "--scale", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "scale=tiny: data ring; train 36, val 12, test 12; licence: CC0-1.0" in out
    assert "  will run: alone, kd, lingugkd, sgc" in out and "scale=small" not in out
    assert cli.entry(["check", "./mine.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scales"]["tiny"]["data"] == "ring"
    assert cli.entry(["check", "./mine.yaml", "--scale", "tyni"]) == 2
    assert "Did you mean 'tiny'?" in capsys.readouterr().err
    (mine / "mine.yaml").write_text(CARD.replace("reader: npz_graph", "reader: npz_grph"))
    assert cli.entry(["check", "./mine.yaml"]) == 2
    assert "mine.yaml:7: datasets.ring.reader: " in capsys.readouterr().err


def test_a_wrong_label_is_named_by_file_and_row(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.arange(60) % 3
    y[7] = -2
    (mine / "mine.yaml").write_text(CARD.replace("A ring", "A ring with a wrong label"))
    write(mine, y=y)
    from kdbench.families.graph.node_classification import data

    data.load.cache_clear()
    assert cli.entry(["check", "./mine.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "data/ring.npz: y, row 7: class -2 is none of -1…" in err
    data.load.cache_clear()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_one_arm_cannot_do_is_said_before_the_others_are_trained(mine: Path, workers: int) -> None:
    configs = local.with_baselines(expand(["task=mine.yaml", "method=lingugkd", "scale=small"]))
    assert len(configs) == 3
    with pytest.raises(UsageError, match="there are none of ring"):
        local.launch(configs, mine / "runs", workers=workers)
    assert not [path for path in (mine / "runs").rglob("*") if path.is_file()]


def test_a_file_of_data_sets_is_named_by_an_option(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDBENCH_DATA_SETS", "")
    lines = CARD.splitlines(keepends=True)
    (mine / "mine.yaml").write_text("".join(lines[:5] + lines[7:]))
    entry = "ring: {title: R, licence: L, family: graph, kind: node_classification, folder: data, reader: npz_graph}\n"
    (mine / "sets.yaml").write_text(entry)
    assert cli.entry(["check", "mine.yaml", "--scale", "tiny"]) == 2
    assert "Unknown dataset 'ring'" in capsys.readouterr().err
    assert cli.entry(["check", "mine.yaml", "--scale", "tiny", "--data-sets", "sets.yaml"]) == 0
    assert "data ring; train 36" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["gnn", "graph_classification", "hippocampus", "paired_classification"])
def test_every_kind_tells_its_classes(task: str) -> None:
    (one,) = check(task, "tiny")["scales"].values()
    assert list(one["classes"]) == ["train", "val", "test"] and set(one["methods"].values()) == {None}
    assert all(sum(counts.values()) >= one["sizes"][split] for split, counts in one["classes"].items())


def test_domains_tell_their_boxes_but_the_targets_hidden_ones() -> None:
    (one,) = check("domain_adaptation", "tiny")["scales"].values()
    assert list(one["classes"]) == ["source train", "source val", "val", "test"]
    assert one["classes"]["test"].keys() == {"disc", "square", "dot"} and set(one["methods"].values()) == {None}
