"""A damaged file of a sweep is named; what it would have told counts as lost, and nothing else breaks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.cli import main as cli
from kdbench.errors import DamagedError
from kdbench.launch import slurm, states
from kdbench.launch.status import statuses
from kdbench.launch.sweep import Sweep, from_words, load
from kdbench.plan.config import run_folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_start")]

DAMAGES = [b"", b'{"runs": [', b"[1, 2]", b"null", b"\x00" * 64, b"\xff\xfe", b"[" * 100_000, b'{"phase": "done"}']
WORDS = ["task=gnn", "method=alone", "seed=0..1", "trainer.max_epochs=1", "name=first"]

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, preloaded: str) -> Path:
    """A folder with a sweep that is done."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", preloaded)
        assert cli.entry(["sweep", *WORDS, "--runs", str(root)]) == 0
    return root


@pytest.fixture
def asked(done: Path, tmp_path: Path) -> Sweep:
    """A copy of it."""
    shutil.copytree(done, tmp_path / "runs")
    return load("first", tmp_path / "runs")


@pytest.fixture
def say(asked: Sweep, capfd: pytest.CaptureFixture[str]) -> Say:
    def command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.entry([*words, "--runs", str(asked.root)])
        return code, *capfd.readouterr()

    return command


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_runs_is_named_and_breaks_no_other_sweep(damage: bytes, asked: Sweep, say: Say) -> None:
    from_words([*WORDS[:-1], "name=second"], asked.root).save()
    path = asked.folder / "sweep.json"
    path.write_bytes(damage)
    code, out, err = say("status")
    assert code == 0 and "second: 2 done" in out and f"first: {path} is damaged" in err
    code, out, err = say("status", "--json")
    assert json.loads(out) == {"second": {"done": 2}} and str(path) in err
    for command in (["status", "first"], ["retry", "first"], ["collect", "first", "-o", str(asked.root / "out")]):
        code, _, err = say(*command)
        assert code == 1 and f"{path} is damaged" in err and "Nobody foresaw" not in err
    assert say("logs", next(iter(asked.runs)))[0] == 2, "nobody knows of the run"
    assert say("sweep", *WORDS)[0] == 0
    assert load("first", asked.root).runs == asked.runs


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_a_damaged_state_is_named_and_its_run_lost_unless_its_record_says_more(
    damage: bytes, asked: Sweep, say: Say
) -> None:
    first, second = asked.runs.values()
    for run in (first, second):
        states.state_path(asked.folder, run.hash).write_bytes(damage)
    (run_folder(asked.root, second) / "record.json").unlink()
    found = statuses(asked)
    assert [one.phase for one in found] == ["done", "lost"]
    assert f"{states.state_path(asked.folder, second.hash)} is damaged" in found[1].detail
    code, out, _ = say("status", "first")
    assert code == 0 and "1 done, 1 lost" in out
    with pytest.raises(DamagedError):
        states.read(states.state_path(asked.folder, second.hash))
    journal = states.Journal(states.state_path(asked.folder, second.hash), "logs/x.log")
    assert journal.state.attempt == 1 and states.read(journal.path) == journal.state


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_jobs_is_named_and_what_is_not_done_lost(damage: bytes, asked: Sweep, say: Say) -> None:
    second = list(asked.runs.values())[1]
    (run_folder(asked.root, second) / "record.json").unlink()
    states.state_path(asked.folder, second.hash).unlink()
    (asked.folder / "jobs.json").write_bytes(damage)
    found = statuses(asked)
    assert [one.phase for one in found] == ["done", "lost"]
    assert f"{asked.folder / 'jobs.json'} is damaged" in found[1].detail
    assert "1 done, 1 lost" in say("status", "first")[1]
    code, _, err = say("cancel", "first")
    assert code == 1 and f"{asked.folder / 'jobs.json'} is damaged" in err
    slurm._remember(asked, [slurm.Job("7_0", second.hash)])
    assert slurm.submitted(asked) == [slurm.Job("7_0", second.hash)]
    assert (asked.folder / "jobs.damaged").read_bytes() == damage


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_its_run_to_do_again(damage: bytes, asked: Sweep, say: Say) -> None:
    first, second = asked.runs.values()
    path = run_folder(asked.root, second) / "record.json"
    path.write_bytes(damage)
    found = statuses(asked)
    assert [one.phase for one in found] == ["done", "lost"] and str(path) in found[1].detail
    out = asked.root / "out"
    code, told, err = say("collect", "first", "-o", str(out))
    assert code == 0 and "1 records of 2 runs" in told and str(path) in err
    assert [path.stem for path in out.rglob("*.json")] == [first.hash[:16]]


def test_retry_does_the_run_of_a_damaged_record_again(asked: Sweep, say: Say) -> None:
    second = list(asked.runs.values())[1]
    path = run_folder(asked.root, second) / "record.json"
    before = states.record_of(asked.root, second)
    path.write_bytes(path.read_bytes()[:-100])
    code, out, err = say("retry", "first")
    assert code == 0 and "1 runs, 1 to do" in err and "alone" in out
    after = states.record_of(asked.root, second)
    assert before and after and (before.metrics, before.predictions) == (after.metrics, after.predictions)
    assert {one.phase for one in statuses(asked)} == {"done"}


def test_a_sweep_does_the_run_of_a_record_again_that_rotted_unseen(asked: Sweep, say: Say) -> None:
    second = list(asked.runs.values())[1]
    path = run_folder(asked.root, second) / "record.json"
    path.write_bytes(b"\0" * 100)
    os.utime(path, (1, 1))
    code, out, err = say("sweep", *WORDS)
    assert code == 0 and "2 runs, 1 to do" in err and f"{path} is not a valid record" in err and "alone" in out
