"""A user's own card: asked for by its path, named by its file, with the data that it describes."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kdbench import describe
from kdbench.errors import CardError, UsageError
from kdbench.launch.reproduce import brought, own_card
from kdbench.launch.sweep import Run
from kdbench.plan import cards, datasets
from kdbench.plan.config import RunConfig, expand, expand_baselines, from_json, run_folder
from kdbench.results.record import Record, group_of

CARD = """\
title: My own
family: graph
kind: graph_classification
metric: auc
dataset: rings
datasets:
  rings:
    title: Rings
    licence: CC0-1.0
    folder: data/rings
    reader: tu
    options: {test: 0.2}
methods:
  mirage: {theta: [3, 4]}
primary: {scale: small, student: {name: gin}, metric: auc, margin: 0.01, settings: [data.batch_size=16]}
excused: {teacher: a teacher of equal size, kd.converged: as published}
scales:
  tiny:
    dataset: motifs
  small:
    data: {batch_size: 16}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CARD)
    return tmp_path / "mine.yaml"


def one(*words: str) -> RunConfig:
    (config,) = expand(words)
    return config


def test_a_run_has_the_files_name_and_its_command_the_path(mine: Path) -> None:
    config = one("task=./mine.yaml", "method=mirage", "scale=small")
    assert (config.task, config.family, config.metric) == ("mine", "graph", "auc")
    assert config.command == "kdbench run task=./mine.yaml method=mirage scale=small seed=0"
    assert run_folder(Path("runs"), config).parts[:3] == ("runs", "mine", "mirage")
    assert one(*shlex.split(config.command)[2:]) == config == Run.of(config).config()
    assert from_json(config.to_json(), "./mine.yaml") == config
    assert [run.asked for run in expand_baselines(config)] == ["./mine.yaml"] * 2
    assert one(f"task='{mine}'", "method=mirage", "scale=small").hash == config.hash, "wherever the card lies"


def test_its_data_lies_beside_it_and_is_no_one_elses(mine: Path, tmp_path: Path) -> None:
    data = datasets.dataset(one("task=mine.yaml", "method=alone", "scale=small").dataset)
    assert (data.name, data.family, data.kind) == ("rings", "graph", "graph_classification")
    assert data.places()[0] == Path("data/rings") and "rings" not in datasets.datasets()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.yaml").write_text(CARD)
    found = datasets.dataset(one("task=other/mine.yaml", "method=alone", "scale=small").dataset)
    assert found.places()[0] == Path("other/data/rings")
    with pytest.raises(UsageError, match=r"mine\.yaml and other/mine\.yaml are both task 'mine'"):
        expand(["task=mine.yaml,other/mine.yaml", "method=alone"])


def test_what_the_card_says_beside_the_options_is_part_of_the_run(mine: Path) -> None:
    before = one("task=mine.yaml", "method=alone", "scale=small")
    assert before.to_json()["card"] == before.card_sha256 != one("task=mine.yaml", "method=alone").card_sha256
    assert "card" not in one("task=graph_classification", "method=alone").to_json()
    changed = {"test: 0.2": "test: 0.3", "metric: auc\nd": "metric: accuracy\nd"}
    for old, new in changed.items():
        mine.write_text(CARD.replace(old, new))
        again = one("task=mine.yaml", "method=alone", "scale=small")
        assert again.hash != before.hash and group_of(again.to_json()) != group_of(before.to_json())
    mine.write_text(CARD.replace("title: Rings", "title: Rings and more").replace("CC0-1.0", "MIT"))
    assert one("task=mine.yaml", "method=alone", "scale=small").hash == before.hash, "words make no other run"


def test_a_card_gives_methods_defaults_that_the_user_overrides(mine: Path) -> None:
    assert one("task=mine.yaml", "method=mirage").hyperparameters.theta == (3, 4)
    assert one("task=mine.yaml", "method=mirage", "method.theta=[5,6]").hyperparameters.theta == (5, 6)
    assert one("task=mine.yaml", "method=random_graphs").hyperparameters.theta is None


def test_it_is_shown(mine: Path) -> None:
    told = describe.description("mine.yaml")
    assert told["data"]["name"] == "rings" and told["data_of_scales"]["tiny"]["name"] == "motifs"
    assert told["defaults_of_methods"] == {"mirage": {"theta": [3, 4]}}
    assert told["primary"]["margin"] == 0.01
    assert told["primary"]["student"] == {"name": "gin"} and told["primary"]["settings"] == ("data.batch_size=16",)
    assert told["reference"] is None
    assert told["excused"] == {"teacher": "a teacher of equal size", "kd.converged": "as published"}


def test_reproducing_asks_before_it_uses_a_card(mine: Path) -> None:
    config = one("task=./mine.yaml", "method=alone")
    record = Record.model_construct(command=config.command)
    assert own_card(record) == "./mine.yaml"
    assert own_card(Record.model_construct(command="kdbench run task=gnn method=kd")) == ""
    assert own_card(Record.model_construct(command="kdbench run 'task=")) == ""
    record = cast(Record, SimpleNamespace(hardware=SimpleNamespace(threads=1)))
    assert brought(record, config) == ["task=./mine.yaml: a card, and the data that it describes"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.yaml", "There is no task card 'nothing.yaml'"),
        ("gnn.yaml", "gnn.yaml: there is a task 'gnn' already"),
        ("my card.yaml", "the file's name"),
        (".yaml", "no task card"),
    ],
)
def test_a_file_of_no_use_as_a_card_is_named(mine: Path, name: str, said: str) -> None:
    if not name.startswith(("nothing", ".")):
        mine.rename(mine.with_name(name))
    with pytest.raises(UsageError, match=said.replace("the file's name", "file's name")):
        expand([f"task='{name}'", "method=alone"])


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("reader: tu", "reader: tue", "    reader", "Unknown reader of graph classification 'tue'. Did you mean 'tu'?"),
        ("    reader: tu\n", "", "  rings", "reader: is missing"),
        ("{test: 0.2}", "{tst: 0.2}", "    options", "Unknown option 'tst'. Did you mean 'test'?"),
        ("{test: 0.2}", "{test: 2}", "    options", "options.test=2: should be less than 1"),
        ("licence: CC0-1.0", "licnce: x", "    licnce", "Did you mean 'licence'?"),
        ("dataset: rings", "dataset: ring", "dataset", "Did you mean 'rings'?"),
        ("  mirage: {theta", "  mirag: {theta", "  mirag", "Did you mean 'mirage'?"),
        ("{theta: [3, 4]}", "{thet: [3, 4]}", "  mirage", "Did you mean 'theta'?"),
        ("{theta: [3, 4]}", "{theta: [0, 4]}", "  mirage", "should be greater than or equal to 1"),
        ("scale: small", "scale: full", "primary", "Unknown scale 'full'"),
        ("{name: gin}", "{name: gim}", "primary", "should be 'gcn', 'gat' or 'gin'"),
        ("metric: auc, m", "metric: acu, m", "primary", "Did you mean 'auc'?"),
        ("[data.batch_size=16]", "[dat.batch_size=16]", "primary", "Did you mean 'data'?"),
        ("[data.batch_size=16]", "[data.batch_size=0]", "primary", "should be greater than 0"),
        ("margin: 0.01", "margin: 0", "primary", "primary.margin=0: should be greater than 0"),
        ("margin: 0.01", "margn: 0.01", "primary", "Did you mean 'margin'?"),
        ("scales:\n", "reference: mirage\nscales:\n", "reference", "Unknown reference for graph graph classification"),
        ("kd.converged:", "kd.convergd:", "excused", "Unknown check 'convergd'. Did you mean 'converged'?"),
        ("as published}", "''}", "excused", "an excuse is said in words"),
    ],
)
def test_a_faulty_card_is_named_with_its_line(mine: Path, old: str, new: str, at: str, said: str) -> None:
    assert CARD.count(old) == 1
    text = CARD.replace(old, new)
    mine.write_text(text)
    line = next(number for number, words in enumerate(text.splitlines(), 1) if words.startswith(at))
    with pytest.raises(CardError) as caught:
        cards.card("mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml:{line}: ") and said in str(caught.value)


SETS = """\
rings:
  family: graph
  kind: graph_classification
  title: Rings
  licence: CC0-1.0
  folder: rings
  reader: tu
"""


def test_a_file_of_data_sets_serves_every_card(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "all.yaml").write_text(SETS)
    lines = CARD.splitlines(keepends=True)
    without = "".join(lines[:5] + lines[12:])
    assert "datasets" not in without
    mine.write_text(without)
    with pytest.raises(CardError, match="Unknown dataset 'rings'"):
        cards.card("mine.yaml")
    monkeypatch.setenv("KDBENCH_DATA_SETS", "sets/all.yaml")
    data = datasets.dataset(one("task=mine.yaml", "method=alone", "scale=small").dataset)
    assert data.places()[0] == Path("sets/rings")
    (tmp_path / "sets" / "taken.yaml").write_text(SETS.replace("rings:", "cora:"))
    monkeypatch.setenv("KDBENCH_DATA_SETS", "sets/taken.yaml")
    with pytest.raises(CardError, match=r"sets/taken\.yaml:1: data set 'cora' is also one of the graph family"):
        datasets.datasets()
    (tmp_path / "sets" / "lacks.yaml").write_text(SETS.replace("  family: graph\n", ""))
    monkeypatch.setenv("KDBENCH_DATA_SETS", "sets/lacks.yaml")
    with pytest.raises(CardError, match=r"sets/lacks\.yaml:1: rings: field 'family' is missing"):
        datasets.datasets()
