"""A sweep on this machine: its commands, a poisoned run, workers that are killed, a stop, a full disk."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli import main as cli
from kdbench.engine import runner
from kdbench.launch import states
from kdbench.launch.sweep import Sweep, from_words, load
from kdbench.plan.config import run_folder
from kdbench.results import record as records

pytestmark = pytest.mark.usefixtures("quick_start")

QUICK = ["trainer.max_epochs=1"]
POISON = "optimizer.name=sgd optimizer.lr=1e30"


def kdbench(*words: str | Path, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdbench.cli", *map(str, words), "--runs", str(runs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def numbers(asked: Sweep) -> dict[str, Any]:
    """What a run's result is, by hash: all but times and the machine."""
    found = {}
    for key, run in asked.runs.items():
        record = states.record_of(asked.root, run)
        assert record is not None and record.status == "done", run.command
        assert record.metrics and record.selection
        found[key] = (record.metrics, record.predictions, record.selection, record.curves)
    return found


def swept(words: list[str], root: Path) -> dict[str, Any]:
    """The numbers of a sweep that is done, or gone on with, to its end."""
    assert cli.entry(["sweep", *words, "--runs", str(root)]) == 0
    return numbers(from_words(words, root))


def uninterrupted(words: list[str], root: Path) -> dict[str, Any]:
    """The numbers of the same runs, one after another in this process."""
    asked = from_words(words, root)
    for run in asked.runs.values():
        runner.run(run.config(), root, runner.Silent())
    return numbers(asked)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def one_poisoned(tmp_path: Path) -> Path:
    file = tmp_path / "poisoned.yaml"
    runs = [f"task=gnn method=alone seed=0..98 {QUICK[0]}", f"task=gnn method=alone seed=777 {POISON}"]
    file.write_text(json.dumps({"runs": runs, "local": {"workers": 2}}))
    return file


@pytest.mark.slow
def test_one_poisoned_run_is_named_and_stops_no_other(
    one_poisoned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    assert cli.entry(["sweep", str(one_poisoned), "--runs", str(runs)]) == 1
    told = capfd.readouterr()
    assert "1 of 100 runs have no result" in told.err and "seed=777" in told.err and "not finite" in told.err
    assert "alone" in told.out, "the table of the others"

    assert cli.entry(["status", "poisoned", "--runs", str(runs), "--json"]) == 0
    status = json.loads(capfd.readouterr().out)
    assert status["counts"] == {"done": 99, "failed": 1}
    (failed,) = (run for run in status["runs"] if run["phase"] == "failed")
    assert "not finite" in failed["detail"] and "seed=777" in failed["command"]

    assert cli.entry(["collect", "poisoned", "-o", str(out), "--runs", str(runs)]) == 0
    assert "99 records of 100 runs" in capfd.readouterr().out
    assert cli.entry(["validate", str(out)]) == 0
    capfd.readouterr()

    assert cli.entry(["logs", failed["hash"][:10], "--runs", str(runs)]) == 0
    assert "NonFiniteLossError" in capfd.readouterr().out

    times = {path: path.stat().st_mtime_ns for path in runs.rglob("record.json")}
    assert cli.entry(["retry", "poisoned", "--runs", str(runs)]) == 1
    assert "1 runs, 1 to do" in capfd.readouterr().err
    done = {path for path in times if records.loads(path.read_bytes(), path).status == "done"}
    assert len(done) == 99 and all(path.stat().st_mtime_ns == times[path] for path in done), "the others stayed"


@pytest.mark.slow
def test_a_sweep_that_is_done_starts_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "task=gnn", "method=alone", *QUICK, "name=again", "--runs", str(tmp_path)]
    assert cli.entry(words) == 0
    assert "1 runs, 1 to do" in capfd.readouterr().err
    assert cli.entry(words) == 0
    told = capfd.readouterr()
    assert "1 runs, 0 to do" in told.err and "alone" in told.out
    (state,) = (tmp_path / "sweeps" / "again" / "states").iterdir()
    assert json.loads(state.read_text())["attempt"] == 1
    assert cli.entry(["retry", "again", "--runs", str(tmp_path)]) == 0
    assert "No run of 'again' failed or was lost" in capfd.readouterr().out


def test_parts_of_a_sweep_are_disjoint_and_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "task=gnn", "method=alone,kd", "seed=0..4", "--dry-run", "--json", "--runs", str(tmp_path)]
    seen: list[str] = []
    for part in range(3):
        assert cli.entry([*words, "--part", f"{part}/3"]) == 0
        seen += [run["hash"] for run in json.loads(capfd.readouterr().out)]
    assert sorted(seen) == sorted(from_words(words[1:4], tmp_path).runs)
    for wrong in ("3/3", "1", "a/b", "-1/3"):
        assert cli.entry([*words, "--part", wrong]) == 2
    assert not list(tmp_path.iterdir())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Sweep]]:
    """A sweep of one long run at work, past its first epochs."""
    words = ["task=gnn", "method=alone", "trainer.max_epochs=100000", "name=long"]
    process = kdbench("sweep", *words, runs=tmp_path)
    asked = from_words(words, tmp_path)
    (key,) = asked.runs
    path = states.state_path(asked.folder, key)

    def at_work() -> bool:
        assert process.poll() is None, process.communicate()
        state = states.read(path)
        return state is not None and state.epoch > 3

    wait_for(at_work)
    yield process, asked
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_cancel_leaves_a_checkpoint_that_retry_goes_on_from(
    started: tuple[subprocess.Popen[str], Sweep], capfd: pytest.CaptureFixture[str]
) -> None:
    process, asked = started
    (run,) = asked.runs.values()
    assert cli.entry(["status", "long", "--runs", str(asked.root)]) == 0
    told = capfd.readouterr().out
    assert "1 running" in told and "epoch" in told
    watching = kdbench("status", "long", "--watch", runs=asked.root)
    assert watching.stderr is not None and watching.stderr.readline() == "1 running\n"
    assert cli.entry(["cancel", "long", "--runs", str(asked.root)]) == 0
    assert "1 processes" in capfd.readouterr().out
    assert process.wait(60) == 130
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "1 lost" in out + err
    state = states.read(states.state_path(asked.folder, run.hash))
    assert state is not None and state.phase == "stopped" and state.epoch > 3
    assert (run_folder(asked.root, run) / "last.ckpt").exists()
    assert cli.entry(["status", "long", "--runs", str(asked.root)]) == 0
    assert "1 lost" in capfd.readouterr().out


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ["task=gnn", "method=lingugkd", "trainer.max_epochs=60", "name=stopped"]
    asked = from_words(words, tmp_path / "a")
    (run,) = asked.runs.values()
    process = kdbench("sweep", *words, runs=asked.root)
    path = states.state_path(asked.folder, run.hash)
    wait_for(lambda: (s := states.read(path)) is not None and s.epoch > 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 130)
    process.communicate()
    stopped = states.read(path)
    assert stopped is not None and stopped.phase == "stopped", stopped
    assert swept(words, asked.root) == uninterrupted(words, tmp_path / "b")
    again = states.read(path)
    assert again is not None and again.attempt == 2


EPOCHS = 60


def told_of(asked: Sweep) -> dict[str, states.State]:
    """The state of every run that was begun, by hash."""
    found = {key: states.read(states.state_path(asked.folder, key)) for key in asked.runs}
    return {key: state for key, state in found.items() if state is not None}


def epochs(log: Path, since: int) -> int:
    """The newest epoch that a log tells of behind its first ``since`` bytes."""
    told = re.findall(rb"^epoch (\d+)/", log.read_bytes()[since:] if log.exists() else b"", re.M)
    return int(told[-1]) if told else 0


class Progress:
    """Fails once none of the files below a folder has grown or come for so long that all must be stuck."""

    def __init__(self, folder: Path, seconds: float = 600.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.seen, self.since = 0, time.monotonic()

    def check(self) -> None:
        seen = sum(path.stat().st_size for path in self.folder.glob("logs/*"))
        if seen != self.seen:
            self.seen, self.since = seen, time.monotonic()
        assert time.monotonic() - self.since < self.seconds, "nothing goes on"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_kills_lose_no_finished_run_and_change_no_number(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The process of a run is killed at a random epoch of it, ``--kills`` times. What is done stays, the rest resumes.

    A kill waits for an epoch, not for a time, and costs the few epochs since the last checkpoint: a slow machine does
    the same work as a fast one. A run that ended before its kill passes it on to another.
    """
    kills = pytestconfig.getoption("kills")
    words = ["task=gnn", "method=alone,kd,lingugkd", f"seed=0..{max(1, kills // 12)}", f"trainer.max_epochs={EPOCHS}"]
    words += ["trainer.checkpoint_every_n_epochs=5"]
    launched = [*words, "local.workers=2", f"local.retries={kills}", "name=killed"]
    chance = random.Random(0)
    asked = from_words(launched, tmp_path / "a")
    due = Counter(chance.choices(list(asked.runs), k=kills))
    attempts: dict[tuple[str, int], tuple[int, int]] = {}  # what its log held before, and the epoch of its kill
    process = kdbench("sweep", *launched, runs=asked.root)
    progress = Progress(asked.folder)
    finished: dict[Path, bytes] = {}
    while process.poll() is None:
        time.sleep(0.01)
        progress.check()
        found = told_of(asked)
        left = [key for key in asked.runs if key not in found or found[key].phase != "done"]
        for key in set(due) - set(left) if left else ():
            due.update(chance.choices(left, k=due.pop(key)))
        for key, state in found.items():
            log = asked.folder / state.log
            held = log.stat().st_size if log.exists() else 0
            begun, last = attempts.setdefault((key, state.attempt), (held, chance.randint(0, EPOCHS)))
            if state.phase != "running" or not due[key] or epochs(log, begun) < last:
                continue
            with suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL)
                due[key] -= 1
                attempts[key, state.attempt] = begun, EPOCHS + 1  # it is dead
            now = {path: path.read_bytes() for path in asked.root.glob("gnn/*/*/record.json")}
            assert all(now.get(path) == content for path, content in finished.items()), "a finished run was lost"
            finished = now
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert not due.total(), "the sweep ended first"
    assert sum(state.attempt - 1 for state in told_of(asked).values()) >= 0.75 * kills, (
        "few hit a process between two runs"
    )
    assert numbers(asked) == uninterrupted(words, tmp_path / "b")
    assert load("killed", asked.root).runs == asked.runs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``small_disk("2m")`` mounts a file system of that size, or changes the size of the one that is mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: str) -> Path:
        again = ["-o", f"remount,size={size}"] if place.is_mount() else ["-o", f"size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_file_system_loses_no_finished_run(
    tmp_path: Path, small_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["task=gnn", "method=alone,kd", "seed=0..5", "trainer.max_epochs=4", "name=full"]
    runs = small_disk("2m") / "runs"
    assert cli.entry(["sweep", *words, "--runs", str(runs)]) == 1
    told = capfd.readouterr().err
    assert "The disk is full" in told and "Finished runs are safe" in told
    done = {path: path.read_bytes() for path in runs.rglob("record.json")}
    assert 0 < len(done) < 12
    assert cli.entry(["validate", *map(str, done)]) == 0
    assert cli.entry(["status", "full", "--runs", str(runs)]) == 0

    small_disk("200m")
    assert cli.entry(["sweep", *words, "--runs", str(runs)]) == 0
    assert all(path.read_bytes() == content for path, content in done.items())
    assert numbers(from_words(words, runs)) == uninterrupted(words, tmp_path / "other")
