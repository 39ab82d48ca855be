"""The runs of one command: side by side or one after another, to the same numbers, and what stops them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli import main as cli
from kdbench.engine import runner
from kdbench.errors import UsageError
from kdbench.launch import local
from kdbench.launch.endings import Ending
from kdbench.launch.pool import _Queue
from kdbench.launch.states import record_of
from kdbench.launch.sweep import Run, from_words
from kdbench.plan.config import RunConfig, expand, run_folder

pytestmark = pytest.mark.usefixtures("quick_start")

GRID = ["task=gnn", "method=kd", "seed=0..1", "trainer.max_epochs=2"]


def scores(root: Path, configs: list[RunConfig]) -> dict[str, Any]:
    """Everything of each record but times and the machine's name."""
    found = {}
    for config in configs:
        record = record_of(root, config)
        assert record is not None and record.metrics
        found[config.hash] = (record.metrics, record.predictions, record.selection, record.curves)
        assert record.hardware.threads == 1
    return found


@pytest.mark.slow
def test_a_grid_has_the_same_numbers_in_workers_in_one_process_and_in_a_sweep(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("KDBENCH_WORKERS")
    monkeypatch.setattr(local, "cores", lambda: 2)
    configs = local.with_baselines(expand(GRID))
    assert cli.entry(["run", *GRID, "--json", "--runs", str(tmp_path / "workers")]) == 0
    said = capfd.readouterr()
    told = json.loads(said.out)
    folders = [str(run_folder(tmp_path / "workers", config) / "record.json") for config in configs]
    assert told["records"] == folders, "in the order of the plan, whichever ended first"
    lines = sorted(line.rpartition(" ")[0] for line in said.err.splitlines())
    assert lines == sorted(
        f"gnn tiny {method} seed={seed}: test accuracy" for method in ("alone", "kd") for seed in (0, 1)
    )
    assert not (tmp_path / "workers" / "sweeps").exists()

    assert cli.entry(["run", *GRID, "--workers", "1", "--runs", str(tmp_path / "one")]) == 0
    sweep = ["task=gnn", "method=alone,kd", *GRID[2:], "local.workers=2"]
    assert cli.entry(["sweep", *sweep, "--runs", str(tmp_path / "sweep")]) == 0
    found = [scores(tmp_path / name, configs) for name in ("workers", "one", "sweep")]
    assert found[0] == found[1] == found[2]
    capfd.readouterr()

    assert cli.entry(["run", *GRID, "--runs", str(tmp_path / "workers")]) == 0
    again = capfd.readouterr().err.splitlines()[1:]
    assert len(again) == 4 and all(line.endswith("(done earlier)") for line in again)


def workers(words: list[str], asked: int | None = None) -> int:
    return local._workers(expand(["task=gnn", "method=alone,kd", *words]), asked)


def test_only_runs_of_one_process_on_the_processor_are_done_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert workers([]) == workers(["trainer.accelerator=cpu"]) == 4
    assert workers([], 3) == 3 and workers([], 1) == 1
    assert local._workers(expand(["task=gnn", "method=alone"]), None) == 1, "a single run stays in this process"
    assert workers(["trainer.accelerator=gpu"]) == 1
    assert workers(["trainer.devices=1,2"]) == workers(["trainer.num_nodes=2"]) == 1
    with pytest.raises(UsageError, match="--workers 2"):
        workers(["trainer.devices=2"], 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert workers([]) == 1 and workers(["trainer.accelerator=cpu"]) == 4
    for name in ("SLURM_STEP_NUM_TASKS", "TORCHELASTIC_RUN_ID"):
        with monkeypatch.context() as inside:
            inside.setenv(name, "1")
            assert workers(["trainer.accelerator=cpu"]) == 1


def test_no_more_workers_than_slurm_gave_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert 1 <= local.cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert local.cores() == 1


def test_a_run_waits_for_what_its_pairing_shares_only_when_nothing_else_is_left(tmp_path: Path) -> None:
    asked = from_words(["task=gnn", "method=alone,kd,lingugkd", "seed=0..1"], tmp_path)
    queue = _Queue(tmp_path, asked.runs.values(), retries=1)

    def taken() -> tuple[Run, str]:
        run = queue.take()
        assert run is not None
        return run, re.sub(r".*method=(\w+) .*seed=(\d+).*", r"\1 \2", run.command)

    first, told = taken()
    assert told == "alone 0"
    second, told = taken()
    assert told == "alone 1", "the runs of seed 0 would wait for the first"
    queue.training(first)
    third, told = taken()
    assert told == "kd 0", "seed by seed"
    fourth, told = taken()
    assert told == "lingugkd 0", "both seeds are at their stages: in order"
    queue.training(second)
    queue.training(third)
    queue.training(fourth)
    assert [taken()[1], taken()[1], queue.take()] == ["kd 1", "lingugkd 1", None]
    assert queue.again(first) and taken()[0] == first and not queue.again(first)
    queue.again(second)
    queue.stop()
    assert queue.take() is None


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no room"), EOFError("cut off")])
def test_a_run_fails_alone_of_whatever_it_dies(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    do = runner.run

    def run(config: RunConfig, *rest: Any, **more: Any) -> Any:
        if config.seed == 0:
            raise error
        return do(config, *rest, **more)

    monkeypatch.setattr(runner, "run", run)
    words = ["run", "task=gnn", "method=alone", "seed=0..1", "trainer.max_epochs=1", "--no-baselines", "--workers", "1"]
    assert cli.entry([*words, "--runs", str(tmp_path)]) == 1
    said = capfd.readouterr()
    assert "1 of 2 runs failed" in said.err and f"{type(error).__name__}: {error}" in said.err
    assert "alone" in said.out, "the table of the other"


def test_a_worker_tells_of_a_full_disk_and_of_a_mistake_of_the_user() -> None:
    full = Ending.of(RuntimeError("writing failed"))
    full.check_disk()
    cause = RuntimeError("writing failed")
    cause.__cause__ = OSError(28, "No space left on device", "/there")
    with pytest.raises(OSError, match="writing failed") as raised:
        Ending.of(cause).check_disk()
    assert (raised.value.errno, raised.value.filename) == (28, "/there")
    assert isinstance(Ending.of(UsageError("no")).error(), UsageError)
    assert not isinstance(Ending.of(ValueError("no")).error(), UsageError)


@pytest.mark.slow
def test_failures_and_notes_of_workers_reach_the_user_and_stop_no_other_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["task=gnn", "method=alone", "seed=0..2", "trainer.max_epochs=1"]
    broken, damaged, _ = expand(words)
    (run_folder(tmp_path, broken) / "record.json").mkdir(parents=True)
    run_folder(tmp_path, damaged).mkdir(parents=True)
    (run_folder(tmp_path, damaged) / "record.json").write_text('{"schema_version": ')
    assert cli.entry(["run", *words, "--no-baselines", "--workers", "2", "--runs", str(tmp_path)]) == 1
    said = capfd.readouterr()
    assert "1 of 3 runs failed" in said.err and "gnn tiny alone seed=0: FAILED: IsADirectoryError" in said.err
    assert "is not a valid record" in said.err and "The run is done again." in said.err
    assert all(f"seed={seed}: test accuracy" in said.err for seed in (1, 2))

    words = ["run", "task=gnn", "teacher.source=cached", "trainer.max_epochs=1", "--workers", "2"]
    assert cli.entry([*words, "method=kd", "seed=0..1", "--no-baselines", "--runs", str(tmp_path / "bad")]) == 2
    said = capfd.readouterr()
    assert "2 of 2 runs failed" in said.err and "No language-model features" in said.err
    assert not (tmp_path / "bad" / "gnn").exists()


def processes(folder: Path) -> list[int]:
    """Processes that name the folder on their command lines, but for this one."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 280.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_the_end_of_the_command_leave_checkpoints_and_no_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    words = ["task=gnn", "method=alone", "seed=0..1", "trainer.max_epochs=100000"]
    command = [sys.executable, "-m", "kdbench.cli", "run", *words, "trainer.checkpoint_every_n_epochs=5"]
    process = subprocess.Popen(
        [*command, "--no-baselines", "--workers", "2", "--runs", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(list(tmp_path.rglob("last.ckpt"))) == 2)
    before = time.time()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    wait_for(lambda: not processes(tmp_path))
    assert all(path.stat().st_mtime >= before for path in tmp_path.rglob("last.ckpt"))
    if number == signal.SIGINT:
        assert process.returncode == 130 and out == ""
        assert "Interrupted. The same command goes on from the last checkpoint." in err and "Traceback" not in err
