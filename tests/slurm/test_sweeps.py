"""Sweeps through a real SLURM: to the same numbers as on this machine, whatever is done to their jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from local_cluster import LocalCluster

from kdbench.cli import main as cli
from kdbench.engine import runner
from kdbench.launch import slurm, states
from kdbench.launch.status import RunStatus, statuses
from kdbench.launch.sweep import Sweep, from_words, load
from kdbench.plan.config import run_folder

SMALL = ["slurm.memory=2GB", "slurm.cpus=1", "slurm.time=10"]
PLAIN = ["trainer.max_epochs=10"]
LONG = ["trainer.max_epochs=100000"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("quick_start")]


@pytest.fixture(autouse=True)
def on_the_cluster(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    yield
    cluster.command("scancel", "--me")


def sweep(words: list[str], root: Path, *more: str, code: int = 0) -> Sweep:
    """Do ``kdbench sweep`` to its end or, on the cluster without ``--wait``, until all is submitted."""
    assert cli.entry(["sweep", *words, *more, "--runs", str(root)]) == code
    return from_words(words, root)


def numbers(asked: Sweep) -> dict[str, Any]:
    """A run's result by hash: all but times and the machine."""
    found = {}
    for key, run in asked.runs.items():
        record = states.record_of(asked.root, run)
        assert record is not None and record.status == "done", (run.command, logs(asked))
        found[key] = (record.metrics, record.predictions, record.selection, record.curves, record.hardware.threads)
    return found


def logs(asked: Sweep) -> str:
    return "\n".join(path.read_text(errors="replace") for path in asked.folder.glob("slurm/*.out"))


def locally(words: list[str], root: Path) -> dict[str, Any]:
    """The numbers of the same runs, uninterrupted, in this process."""
    asked = from_words([word for word in words if not word.startswith(("slurm.", "launcher="))], root)
    for run in asked.runs.values():
        runner.run(run.config(), root, runner.Silent())
    return numbers(asked)


def wait_for(condition: Callable[[], Any], asked: Sweep, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain; {statuses(asked)}\n{logs(asked)}"
        time.sleep(0.05)


def state(asked: Sweep) -> states.State:
    (key,) = asked.runs
    return states.read(states.state_path(asked.folder, key)) or states.State("none", "")


def only(asked: Sweep) -> RunStatus:
    (one,) = statuses(asked)
    return one


@pytest.fixture(autouse=True)
def no_threads_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are the run's to say, not the environment's."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_an_array_sweep_gives_the_numbers_of_this_machine_and_starts_nothing_twice(
    tmp_path: Path, cluster: LocalCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["task=gnn", "method=alone,kd,lingugkd", "seed=0..1", *PLAIN, "name=array", "launcher=slurm", *SMALL]
    asked = sweep(words, tmp_path / "cluster", "--wait")
    jobs = slurm.submitted(asked)
    runs = [job for job in jobs if job.run != slurm.PREPARATION]
    assert len(runs) == 6 and len({job.id.partition("_")[0] for job in runs}) == 1, "one array"
    assert len(jobs) == 8, "and before it one preparation for each seed"
    prepared = [r.stages for run in asked.runs.values() if run.teacher is not None for r in [record(asked, run.hash)]]
    assert prepared and all(stage.reused for stages in prepared for stage in stages), "no run made a teacher"
    assert numbers(asked) == locally(words, tmp_path / "local")

    before = {path: path.stat().st_mtime_ns for path in asked.root.rglob("record.json")}
    sweep(words, asked.root, "--wait")
    assert slurm.submitted(asked) == jobs
    assert before == {path: path.stat().st_mtime_ns for path in asked.root.rglob("record.json")}

    assert cli.entry(["collect", "array", "-o", str(tmp_path / "out"), "--runs", str(asked.root)]) == 0
    assert cli.entry(["validate", str(tmp_path / "out")]) == 0
    assert "6 valid" in capfd.readouterr().out


def record(asked: Sweep, key: str) -> Any:
    return states.record_of(asked.root, asked.runs[key])


def test_a_time_limit_is_met_by_a_checkpoint_and_the_numbers_stay(tmp_path: Path) -> None:
    """SLURM warns of it 10 to 40 s after the start. The run is frozen meanwhile, so that it need not be long."""
    words = ["task=gnn", "method=kd", "trainer.max_epochs=300", "name=late", "launcher=slurm", *SMALL[:2]]
    words += ["slurm.time=2", "slurm.signal=80", "slurm.requeues=50"]
    asked = sweep(words, tmp_path / "cluster")
    wait_for(lambda: state(asked).epoch > 2, asked)
    pid = state(asked).pid
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: warned(pid), asked)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: only(asked).phase == "done", asked)
    assert state(asked).attempt > 1, "it was stopped and queued again"
    assert "the checkpoint is written" in logs(asked)
    assert numbers(asked) == locally(words, tmp_path / "local")


def warned(pid: int) -> bool:
    """Whether SLURM's warning waits for a process that is frozen, or SLURM has let it go on and it ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    masks = re.findall(r"^(?:Sig|Shd)Pnd:\s+(\w+)", status, re.M)
    return any(int(mask, 16) >> signal.SIGUSR2 - 1 & 1 for mask in masks)


def test_a_run_that_a_more_urgent_job_preempts_checkpoints_and_goes_on_afterwards(
    tmp_path: Path, cluster: LocalCluster
) -> None:
    words = ["task=gnn", "method=lingugkd", "trainer.max_epochs=300", "name=warned", "launcher=slurm", *SMALL]
    asked = sweep(words, tmp_path / "cluster")
    wait_for(lambda: state(asked).epoch > 2, asked)
    urgent = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    job = cluster.command("sbatch", "--parsable", *urgent).strip()
    wait_for(lambda: state(asked).phase == "stopped", asked)
    cluster.wait_jobs([job], ["COMPLETED"])
    assert only(asked).active
    wait_for(lambda: only(asked).phase == "done", asked)
    assert state(asked).attempt == 2
    assert numbers(asked) == locally(words, tmp_path / "local")


def test_a_lost_node_s_run_is_queued_again_and_the_numbers_stay(tmp_path: Path, cluster: LocalCluster) -> None:
    words = ["task=gnn", "method=kd", "trainer.max_epochs=300", "trainer.checkpoint_every_n_epochs=5"]
    words += ["name=node", "launcher=slurm", *SMALL]
    asked = sweep(words, tmp_path / "cluster")
    wait_for(lambda: state(asked).epoch > 6, asked)
    node = cluster.command("squeue", "--noheader", "--format=%N", f"--jobs={only(asked).job}").strip()
    cluster.node_down(node, with_jobs=True)
    wait_for(lambda: only(asked).phase == "done", asked)
    cluster.node_up(node)
    assert state(asked).attempt == 2
    assert numbers(asked) == locally(words, tmp_path / "local")


def test_one_task_that_is_cancelled_is_lost_alone_and_retried_alone(tmp_path: Path, cluster: LocalCluster) -> None:
    words = ["task=gnn", "method=alone", "seed=0..2", *LONG, "name=cut", "launcher=slurm", *SMALL]
    asked = sweep(words, tmp_path)
    wait_for(lambda: sum(one.epoch > 2 for one in statuses(asked)) == 3, asked)
    first, second, third = statuses(asked)
    cluster.command("scancel", str(second.job))
    wait_for(lambda: statuses(asked)[1].phase == "lost", asked)
    told = [one.phase for one in statuses(asked)]
    assert told == ["running", "lost", "running"]
    assert cli.entry(["retry", "cut", "--runs", str(tmp_path)]) == 0
    wait_for(lambda: statuses(asked)[1].phase == "running", asked)
    again = statuses(asked)
    assert [one.job for one in again] == [first.job, again[1].job, third.job] and again[1].job != second.job
    assert cli.entry(["cancel", "cut", "--runs", str(tmp_path)]) == 0
    wait_for(lambda: not any(one.active for one in statuses(asked)), asked)
    assert [one.phase for one in statuses(asked)] == 3 * ["lost"]


def test_a_killed_process_is_lost_with_its_job_named_and_resumes(tmp_path: Path) -> None:
    words = ["task=gnn", "method=kd", "trainer.max_epochs=300", "trainer.checkpoint_every_n_epochs=5"]
    words += ["name=killed", "launcher=slurm", *SMALL]
    asked = sweep(words, tmp_path / "cluster")
    wait_for(lambda: state(asked).epoch > 6, asked)
    os.kill(state(asked).pid, signal.SIGKILL)
    wait_for(lambda: only(asked).phase == "lost", asked)
    assert "FAILED" in only(asked).detail and "epoch" in only(asked).detail
    sweep(words, asked.root, "--wait")
    assert numbers(asked) == locally(words, tmp_path / "local")


def test_a_poisoned_job_is_named_and_stops_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "poisoned.yaml"
    runs = ["task=gnn method=alone seed=0..2 trainer.max_epochs=1"]
    runs += ["task=gnn method=alone seed=77 trainer.max_epochs=5 optimizer.name=sgd optimizer.lr=1e30 data.words=50"]
    file.write_text(json.dumps({"runs": runs, "launcher": "slurm", "slurm": {"memory": "2GB", "cpus": 1}}))
    words = ["sweep", str(file), "--wait", "--runs", str(tmp_path / "runs")]
    assert cli.entry(words) == 1
    told = capfd.readouterr().err
    assert "1 of 4 runs have no result" in told and "seed=77" in told and "not finite" in told
    phases = [one.phase for one in statuses(load("poisoned", tmp_path / "runs"))]
    assert phases.count("done") == 3 and phases.count("failed") == 1


def test_two_sweeps_over_the_same_runs_do_each_once(tmp_path: Path) -> None:
    words = ["task=gnn", "method=alone,kd", "seed=0..1", *PLAIN, "launcher=slurm", *SMALL]
    first = sweep([*words, "name=one"], tmp_path)
    second = sweep([*words, "name=two"], tmp_path)
    for asked in (first, second):
        wait_for(lambda asked=asked: all(one.phase == "done" for one in statuses(asked)), asked)
    began = {key: record(first, key).started for key in first.runs}
    assert len(set(began.values())) == 4
    logs_of_both = logs(first) + logs(second)
    assert logs_of_both.count("epoch 10/10") == 4, "every run was trained once"


def test_a_sweep_is_split_at_the_largest_array(
    tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm.max_array_size() == cluster.shape.max_array_size
    monkeypatch.setattr(slurm, "max_array_size", lambda: 2)
    asked = from_words(["task=gnn", "method=alone", "seed=0..4", *LONG, "slurm.throttle=1", *SMALL], tmp_path)
    asked.save()
    jobs = slurm.submit(asked, list(asked.runs.values()), lambda line: None)
    cluster.command("scancel", "--me")
    arrays = [job.id.partition("_")[0] for job in jobs]
    assert [arrays.count(one) for one in dict.fromkeys(arrays)] == [2, 2, 1]
    assert {job.run for job in jobs} == set(asked.runs)


def test_a_multi_node_run_trains_one_model_on_two_nodes(tmp_path: Path) -> None:
    words = ["task=gnn", "method=kd", *PLAIN, "trainer.num_nodes=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    asked = sweep([*words, "data.batch_size=64", "name=nodes", "launcher=slurm", *SMALL], tmp_path, "--wait")
    (run,) = asked.runs.values()
    assert (run.nodes, run.processes) == (2, 1)
    assert record(asked, run.hash).status == "done"
    assert not (run_folder(asked.root, run) / "last.ckpt").exists()
