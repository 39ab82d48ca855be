"""Running strangers' records again: nothing that a record brings is used unasked, and only a rerun tells some lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench import hashing
from kdbench.cli import main as cli
from kdbench.engine import runner
from kdbench.plan.config import expand, run_folder
from kdbench.results import record as records
from kdbench.results import store

SHORT = ["task=gnn", "method=kd", "trainer.max_epochs=2", "seed=0,1", "data.nodes=120"]
Body = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs of kd on the generated graph."""
    runs = tmp_path_factory.mktemp("finished")
    assert cli.entry(["run", *SHORT, "--no-baselines", "--runs", str(runs)]) == 0
    return runs


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be started."""
    monkeypatch.setattr(runner, "run", lambda *words: pytest.fail("a run was started"))


def first(runs: Path) -> Path:
    return run_folder(runs, expand(SHORT)[0]) / "record.json"


def forged(runs: Path, place: Path, change: Callable[[Body], object]) -> Path:
    """A finished run's record after a change, sealed as a forger would."""
    body: Body = json.loads(first(runs).read_bytes())
    del body["digest"]
    change(body)
    config = body["config"]
    body |= {"config_hash": hashing.digest(config), "group": records.group_of(config)}
    store.write(records.seal(body), place / "record.json")
    return place / "record.json"


BROUGHT: dict[str, tuple[Callable[[Body], object], str]] = {
    "processes": (lambda body: body["config"]["trainer"].update(devices=3), "trainer.devices=3"),
    "nodes": (lambda body: body["config"]["trainer"].update(num_nodes=2), "trainer.num_nodes=2"),
    "threads": (lambda body: body["hardware"].update(threads=1000), "1000 threads, on "),
    "hub model": (lambda body: body["config"]["teacher"].update(model="evil/model"), "teacher.model=evil/model"),
    "path": (lambda body: body["config"]["teacher"].update(model="/etc"), "teacher.model=/etc"),
}


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("case", BROUGHT)
def test_what_a_record_brings_is_not_used_unasked(
    case: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, told = BROUGHT[case]
    path = forged(finished, tmp_path, change)
    assert cli.entry(["reproduce", str(path), "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr()
    assert told in said.err and "--yes runs it without asking" in said.err and said.out == ""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *words, **more: False)
    assert cli.entry(["reproduce", str(path)]) == 2
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("answer", ["--yes", "a yes on the terminal"])
def test_with_a_yes_it_runs(
    answer: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = forged(finished, tmp_path, lambda body: body["config"]["teacher"].update(model="evil/model"))
    began: list[str] = []

    def run(config: Any, *more: object) -> None:
        began.append(config.teacher.model)

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *words, **more: True)
    cli.entry(["reproduce", str(path), *([answer] if answer.startswith("--") else [])])
    assert began == ["evil/model"]


@pytest.mark.usefixtures("never")
def test_a_record_of_endless_processes_or_threads_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = forged(finished, tmp_path, lambda body: body["config"]["trainer"].update(devices=1_000_000))
    assert cli.entry(["reproduce", str(path), "--yes"]) == 2
    assert "trainer.devices=1000000: should be less than or equal to 256" in capsys.readouterr().err
    text = first(finished).read_text()
    path.write_text(text.replace('"threads": 1', '"threads": 5000', 1))
    assert text != path.read_text() and cli.entry(["reproduce", str(path), "--yes"]) == 1
    assert "hardware.threads: 5000 are more than the 1024" in capsys.readouterr().err


def test_an_ordinary_record_is_run_without_a_question(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.entry(["reproduce", str(first(finished)), "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("match: ") and "brings" not in said.err


def test_submit_runs_records_again_on_request(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published"
    words = ["leaderboard", "submit", "--to", str(published), "--runs", str(tmp_path / "runs"), "--rerun", "9"]
    assert cli.entry([*words, str(finished), "--write"]) == 0
    said = capsys.readouterr()
    assert said.err.count("match: ") == 2 and len(list(published.rglob("*.json"))) == 2

    def better(body: Body) -> None:
        body["teacher"]["sha256"] = "f" * 64

    path = forged(finished, tmp_path / "forged", better)
    words[3] = str(tmp_path / "elsewhere")
    assert cli.entry([*words, str(path), "--write"]) == 1
    said = capsys.readouterr()
    assert f"{path}: teacher.sha256: {'f' * 64} -> " in said.err and "run again here" in said.err
    assert not (tmp_path / "elsewhere").exists()
