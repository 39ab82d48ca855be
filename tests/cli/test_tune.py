"""``kdbench tune``: runs of every point, a choice by validation alone, a log, the lines for the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.cli.main import entry
from kdbench.plan import cards
from kdbench.plan.cards import own_card
from kdbench.plan.config import from_json
from kdbench.results import searches, store
from kdbench.results.searches import Search

SEARCH = "search: {optimizer.lr: [0.02, 0.0001], kd: {alpha: [0.3, 0.7]}}"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A card of the tiny task of nodes, with a search."""
    path = tmp_path / "searched.yaml"
    text = cards.task_paths()["gnn"].read_text().replace("max_epochs: 60", "max_epochs: 4")
    path.write_text(f"{text.rstrip()}\n{SEARCH}\n")
    return path


def out(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    code = entry([*map(str, words)])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def test_a_search_ends_with_a_table_a_log_and_lines_that_the_card_takes(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, logs = tmp_path / "runs", tmp_path / "logs"
    words = ["tune", task, "method=kd", "--runs", runs, "--workers", "1", "-o", logs]
    assert entry([*map(str, words)]) == 0
    told = capsys.readouterr()
    assert "validation" in told.out and "test" not in told.out.lower().replace(str(tmp_path), "")
    assert "val accuracy" in told.err and "test accuracy" not in told.err
    assert sorted(r.seed for r in store.read([runs])) == [1000] * 4 + [1001] * 4

    log = Search.read(logs / "searched" / "kd.json")
    assert [len(point.scores) for point in log.points] == [2] * 4
    by_options = {json.dumps(point.options, sort_keys=True): point.scores for point in log.points}
    for record in store.read([runs]):
        config = from_json(record.config, str(task))
        key = json.dumps({"method.alpha": config.hyperparameters.alpha, "optimizer.lr": config.optimizer.lr})
        assert record.metrics and by_options[key][record.seed - 1000] == record.metrics.val["accuracy"]
    assert log.chosen["optimizer.lr"] == 0.02

    lines = told.out[told.out.index("methods:") : told.out.index("\n\nLogs")]
    task.write_text(f"{task.read_text()}\n{lines}\n")
    assert own_card(str(task)).methods["kd"]["optimizer.lr"] == 0.02
    assert out(capsys, *words, "--json").count('"digest"') == 1, "the same search, from the runs that are there"
    assert Search.read(logs / "searched" / "kd.json") == log

    monkeypatch.setattr(searches, "published", lambda: logs)
    out(capsys, "run", f"task={task}", "method=kd", "seed=5", "--no-baselines", "--runs", tmp_path / "after")
    (record,) = store.read([tmp_path / "after"])
    assert record.search and record.search.sha256 == log.digest and record.search.points == 4


def test_every_method_and_control_of_the_task_searches(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(out(capsys, "tune", task, "--dry-run", "--json"))
    commands = [one["command"] for one in listed]
    assert {word for command in commands for word in command.split() if word.startswith("method=")} == {
        "method=alone",
        "method=kd",
        "method=lingugkd",
    }
    assert len(commands) == 2 * (2 + 4 + 2)


def test_another_student_than_the_cards_is_an_arm_of_its_own(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["student.name=gat", "method=alone", "--runs", tmp_path / "runs", "--workers", "1"]
    assert "\n  alone/gat: {optimizer.lr: " in out(capsys, "tune", task, *words)
    assert (tmp_path / "runs" / "search" / "searched" / "alone" / "gat.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gnn"], "names no search"),
        (["TASK", "optimizer.lr=1"], "'optimizer.lr' is what a search says"),
        (["TASK", "seed=0..4"], "'seed' is not for you to choose"),
        (["TASK", "method.alpha=1"], "'method.alpha' is what a search says"),
        (["TASK", "method=kdd"], "'kdd'"),
    ],
)
def test_what_a_search_cannot_do_is_refused(
    task: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(["tune", *[word.replace("TASK", str(task)) for word in words]]) == 2
    assert said in capsys.readouterr().err
