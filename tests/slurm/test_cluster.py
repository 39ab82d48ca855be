"""The local cluster is a SLURM like any other: arrays, requeues, time limits, lost nodes. Nothing is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import local_cluster
import pytest
from local_cluster import LocalCluster, Shape, Unavailable, temporary

from kdbench.errors import KdbenchError, UsageError

SCRIPT = local_cluster.__file__
COUNT = "echo start $SLURM_RESTART_COUNT on $SLURMD_NODENAME"


def submit(cluster: LocalCluster, folder: Path, script: str, *options: str) -> str:
    """Submit a batch script that writes ``<job>.log`` or ``<job>_<task>.log`` into the folder; the job's number."""
    (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
    name = "%A_%a.log" if any(option.startswith("--array") for option in options) else "%j.log"
    places = [f"--output={folder}/{name}", f"--chdir={folder}", "--open-mode=append"]
    return cluster.command("sbatch", "--parsable", *places, *options, str(folder / "job.sh")).strip()


SLEEPS = (["sleep", "98765"], ["sleep", "98764"])


def alive(number: int) -> bool:
    """Whether there is a process of this number that is no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def belonging(folder: Path) -> set[str]:
    """Programs that work in the cluster's folder or name it, by the traces that are not its own way of finding them."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_text().split("\0")
            where = os.readlink(place / "cwd")
        except OSError:
            continue
        if str(folder) in where or any(str(folder) in word for word in words) or words[:2] in SLEEPS:
            found.add(Path(words[0]).name.partition(":")[0])
    return found


def test_every_node_is_idle_and_works(cluster: LocalCluster) -> None:
    assert cluster.states() == dict.fromkeys(["n1", "n2", "n3", "n4"], "idle")
    names = cluster.command("srun", "-N4", "--ntasks-per-node=1", "sh", "-c", "echo $SLURMD_NODENAME $SLURM_PROCID")
    assert sorted(names.split("\n")[:4]) == ["n1 0", "n2 1", "n3 2", "n4 3"]
    assert cluster.command("srun", "hostname") == cluster.command("hostname")


def test_an_array_runs_each_task_once_at_its_throttle(cluster: LocalCluster, tmp_path: Path) -> None:
    script = "date +%s.%N; sleep 0.5; date +%s.%N"
    job = submit(cluster, tmp_path, script, "--array=0-5%2")
    cluster.wait_jobs([f"{job}_{task}" for task in range(6)], ["COMPLETED"])
    spans = [tuple(map(float, (tmp_path / f"{job}_{task}.log").read_text().split())) for task in range(6)]
    assert all(len(span) == 2 for span in spans)
    together = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(together) <= 2


def test_one_task_of_an_array_is_cancelled(cluster: LocalCluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "[ $SLURM_ARRAY_TASK_ID = 1 ] && exec sleep 300; echo over", "--array=0-2")
    cluster.wait_jobs([f"{job}_1"], ["RUNNING"])
    cluster.command("scancel", f"{job}_1")
    cluster.wait_jobs([f"{job}_1"], ["CANCELLED"])
    cluster.wait_jobs([f"{job}_0", f"{job}_2"], ["COMPLETED"])
    assert "over" not in (tmp_path / f"{job}_1.log").read_text()


def test_the_size_of_arrays_is_bounded(cluster: LocalCluster, tmp_path: Path) -> None:
    assert cluster.shape.max_array_size == 1001
    with pytest.raises(KdbenchError, match="Invalid job array"):
        submit(cluster, tmp_path, "true", "--array=0-1001")


def test_a_job_that_is_requeued_starts_again(cluster: LocalCluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, f"{COUNT}; [ $SLURM_RESTART_COUNT ] || sleep 300; echo over")
    cluster.wait_jobs([job], ["RUNNING"])
    cluster.command("scontrol", "requeue", job)
    cluster.wait_jobs([job], ["COMPLETED"])
    lines = (tmp_path / f"{job}.log").read_text().splitlines()
    assert [line for line in lines if line.startswith(("start", "over"))][-2:] == ["start 1 on n1", "over"]


def test_a_job_outlives_the_daemon_that_started_it(cluster: LocalCluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "echo begun; sleep 8; echo over", "--nodelist=n3")
    log, end = tmp_path / f"{job}.log", time.monotonic() + 60
    while not (log.exists() and "begun" in log.read_text()):  # a job is called running before its process starts
        assert time.monotonic() < end
        time.sleep(0.1)
    before = set(cluster.processes("n3"))
    cluster.node_down("n3")
    try:
        assert len(before - set(cluster.processes("n3"))) == 1
    finally:
        cluster.node_up("n3")
    cluster.wait_jobs([job], ["COMPLETED"])
    assert log.read_text() == "begun\nover\n"


def test_nothing_is_left_after_an_exception(running: LocalCluster, tmp_path: Path) -> None:
    folder, daemons = Path("/nowhere"), []
    with pytest.raises(ZeroDivisionError), temporary(Shape(nodes=1)) as cluster:
        folder = cluster.folder
        job = submit(cluster, tmp_path, "setsid sleep 98765 & sleep 98764")
        cluster.wait_jobs([job], ["RUNNING"])
        end = time.monotonic() + 20
        while not {"munged", "slurmctld", "slurmd", "sleep"} <= belonging(folder):
            assert time.monotonic() < end, belonging(folder)
            time.sleep(0.1)
        daemons = cluster.processes()
        raise ZeroDivisionError
    assert not folder.exists()
    assert belonging(folder) == set()
    assert not [number for number in daemons if alive(number)]
    assert set(running.states().values()) == {"idle"}  # the other one is as it was


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """An empty folder whose path is short enough for a cluster."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="kd-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the module as a script."""
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)


def test_the_script_starts_shows_and_stops_a_cluster(running: LocalCluster, short_folder: Path) -> None:
    assert "no cluster" in script("stop", short_folder).stderr
    started = script("start", short_folder, "--nodes=2", "--cpus=3", "--max-array-size=11")
    try:
        assert started.stdout.startswith(f"export SLURM_CONF={short_folder}/slurm.conf\n"), started.stderr
        again = script("start", short_folder)
        assert again.returncode == 2 and "stop it first" in again.stderr
        told = script("status", short_folder).stdout
        assert "idle" in told and "n[1-2]" in told
        configured = LocalCluster(short_folder).command("scontrol", "show", "config")
        assert "MaxArraySize            = 11\n" in configured
    finally:
        stopped = script("stop", short_folder)
    assert stopped.returncode == 0, stopped.stderr
    assert [path.name for path in short_folder.iterdir()] == ["log"]
    assert LocalCluster(short_folder).processes() == []


def test_a_folder_in_use_is_left_alone(short_folder: Path) -> None:
    (short_folder / "state").write_text("mine")
    with pytest.raises(UsageError, match="not empty"), LocalCluster(short_folder):
        pass
    assert (short_folder / "state").read_text() == "mine"
    with pytest.raises(UsageError, match="characters"), LocalCluster(short_folder / ("long" * 20)):
        pass


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> None:
    monkeypatch.setattr(local_cluster, "SEARCH", str(short_folder))
    with pytest.raises(Unavailable, match=r"slurmctld.*srun.*apt-get install slurm-wlm munge"), temporary():
        pass


def test_an_unknown_node_is_refused(running: LocalCluster) -> None:
    with pytest.raises(UsageError, match="Did you mean 'n1'"):
        running.node_down("n11")
