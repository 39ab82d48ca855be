"""One model trained on two nodes of a real SLURM: the same numbers as two plain processes, and one record."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from safetensors.torch import load_file

from kdbench.results.record import Record, loads

pytestmark = pytest.mark.usefixtures("quick_start")

TEMPLATES = Path(__file__).parents[2] / "slurm"
WORDS = [
    "task=gnn",
    "method=lingugkd",
    "method.projector_dropout=0",
    "student.dropout=0",
    "student.width=16",
    "data.batch_size=60",
    "optimizer.name=sgd",
    "optimizer.lr=0.05",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "--no-baselines",
]
NODES = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp"]
SRUN = ["srun", "--nodes=2", "--ntasks-per-node=1", "--job-name=kdbench"]


def kdbench_run() -> list[str]:
    return [sys.executable, "-m", "kdbench.cli", "run"]


def outcome(root: Path) -> tuple[Record, Path]:
    """The only record below ``root``, and its folder."""
    (path,) = root.rglob("record.json")
    return loads(path.read_text(), str(path)), path.parent


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for ``$PATH`` whose ``kdbench`` is this one."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "kdbench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kdbench.cli "$@"\n')
    program.chmod(0o755)
    return tmp_path / "bin"


def batch(cluster: LocalCluster, folder: Path, commands: Path, *words: str) -> None:
    """Submit a template and wait for its end; the address of the first node is left for it to find."""
    environment = {name: value for name, value in cluster.environment.items() if name != "MASTER_ADDR"}
    environment["PATH"] = f"{commands}:{environment['PATH']}"
    done = subprocess.run(
        ["sbatch", "--wait", f"--output={folder}/log-%a", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in folder.glob("log-*"))


@pytest.mark.slow
def test_two_nodes_equal_two_processes(cluster: LocalCluster, tmp_path: Path, commands: Path) -> None:
    template = str(TEMPLATES / "multinode.sbatch")
    batch(cluster, tmp_path, commands, template, *WORDS, "--json", "--runs", str(tmp_path / "nodes"))
    here = [*kdbench_run(), *WORDS, "trainer.devices=2", "trainer.strategy=ddp", "--runs", str(tmp_path / "here")]
    plain = subprocess.run(here, capture_output=True, text=True, env=cluster.environment, check=False)
    assert plain.returncode == 0, plain.stderr
    (nodes, its), (processes, others) = outcome(tmp_path / "nodes"), outcome(tmp_path / "here")
    assert nodes.status == processes.status == "done"
    assert nodes.config["trainer"]["num_nodes"] == 2 and processes.config["trainer"]["num_nodes"] == 1
    assert nodes.metrics == processes.metrics and nodes.predictions == processes.predictions
    assert nodes.curves == processes.curves
    weights, other = load_file(its / "student.safetensors"), load_file(others / "student.safetensors")
    assert all(weights[name].equal(other[name]) for name in weights.keys() | other.keys())


@pytest.mark.slow
def test_one_node_trains_the_teacher_of_two(cluster: LocalCluster, tmp_path: Path) -> None:
    words = ["task=graph_classification", "method=kd", "trainer.max_epochs=2", "trainer.accelerator=cpu", *NODES]
    told = cluster.command(*SRUN, *kdbench_run(), *words, "--no-baselines", "--json", "--runs", str(tmp_path))
    assert len(json.loads(told)["records"]) == 1  # only the first process prints
    record, _ = outcome(tmp_path)
    assert record.status == "done" and [stage.name for stage in record.stages] == ["teacher"]


@pytest.mark.slow
def test_processes_that_nobody_asked_for_are_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    command = [*SRUN, *kdbench_run(), *WORDS, "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=cluster.environment, check=False)
    assert done.returncode == 2 and "srun started 2 processes" in done.stderr
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.slow
def test_an_array_runs_a_seed_a_task(cluster: LocalCluster, tmp_path: Path, commands: Path) -> None:
    template = str(TEMPLATES / "run.sbatch")
    batch(cluster, tmp_path, commands, "--array=0-1", template, *WORDS, "--runs", str(tmp_path / "runs"))
    records = [loads(path.read_text(), str(path)) for path in (tmp_path / "runs").rglob("record.json")]
    assert sorted(record.seed for record in records) == [0, 1]


def shell(text: str) -> list[str]:
    """Lines of a Markdown text's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lines_for_one_s_own_machine_work(running: LocalCluster, tmp_path: Path, commands: Path) -> None:
    section = (TEMPLATES / "README.md").read_text().partition("## On your own machine")[2]
    lines = [line for line in shell(section) if not line.startswith("sudo ")]
    assert len(lines) >= 5 and lines[0].startswith("eval ") and " stop " in lines[-1]
    python = commands / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"PATH": f"{commands}:{os.environ['PATH']}", "KDBENCH_RUNS": str(tmp_path / "runs")}
    environment |= {"SBATCH_OUTPUT": f"{tmp_path}/%x-%A_%a.log"}
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="kd-") as folder:
        os.chmod(folder, 0o755)  # munge refuses a socket that others cannot reach
        script = f"trap '{lines[-1]}' EXIT\n".join([lines[0] + "\n", "\n".join(lines[1:-1])])
        done = subprocess.run(
            ["bash", "-ec", script.replace("/tmp/slurm", folder)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=TEMPLATES.parent,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 done" in done.stdout and "lingugkd" in done.stdout
    assert len(list((tmp_path / "runs").glob("gnn/*/*/record.json"))) == 6


def test_the_checks_of_the_notes_work(cluster: LocalCluster, tmp_path: Path, commands: Path) -> None:
    lines = [line for line in shell((TEMPLATES / "README.md").read_text()) if line.startswith("srun")]
    assert len(lines) >= 3
    environment = {**cluster.environment, "PATH": f"{commands}:{cluster.environment['PATH']}", "RUNS": str(tmp_path)}
    for line in lines:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        told = [words.split() for words in done.stdout.splitlines()]
        if " df " in line:
            assert len({source for source, target in told[1::2]}) == 1
        elif " flock " in line:
            assert len({node for node, _ in told}) == 2
            first, second = sorted(datetime.strptime(moment, "%H:%M:%S") for _, moment in told)
            assert 2 <= (second - first).seconds <= 60
        else:
            assert "python" in done.stdout
