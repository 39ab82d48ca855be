"""What SLURM is asked for, held against golden text; stand-ins play its commands, which a real cluster has."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.cli import main as cli
from kdbench.errors import KdbenchError, UsageError
from kdbench.launch import slurm
from kdbench.launch.status import statuses
from kdbench.launch.sweep import Slurm, from_words

GOLDEN = Path(__file__).parent / "golden"
PROFILE = """\
partition: gpu
account: kd
qos: long
constraint: a100|h100
time: 240
memory: 32GB
cpus: 8
throttle: 20
signal: 120
setup: [module load cuda, "source /shared/venv/bin/activate"]
sbatch: {nice: "100"}
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's commands; ``squeue`` prints the file ``queue``, sbatch counts up from 100."""
    place = tmp_path / "bin"
    place.mkdir()
    count = f"n=$(($(cat {place}/n 2>/dev/null || echo 99) + 1)); echo $n > {place}/n"
    scripts = {
        "sbatch": f'{count}; echo "Submitted batch job $n"',
        "squeue": f"cat {place}/queue 2>/dev/null; true",
        "scontrol": '[ "$2" = config ] && echo "MaxArraySize            = 4"',
        "scancel": f'echo "$@" >> {place}/cancelled',
        "srun": "exit 1",
    }
    for name, line in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


def scripts(folder: Path) -> str:
    """The batch scripts of a sweep in the order of their submission, without what this machine is called."""
    texts = []
    for path in sorted((folder / "slurm").glob("*_submission.sh"), key=lambda path: int(path.name.partition("_")[0])):
        text = path.read_text().replace(str(folder), "SWEEP").replace(sys.executable, "PYTHON")
        texts.append(f"--- {path.name}\n{text.rstrip()}\n")
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plain", ["task=gnn", "method=alone,kd", "seed=0..2"]),
        ("profile", ["task=gnn", "method=kd", "trainer.accelerator=gpu", "trainer.devices=2", "trainer.num_nodes=1,2"]),
    ],
)
def test_the_batch_scripts_are_those_of_the_golden_file(
    name: str, words: list[str], tmp_path: Path, commands: Path, request: pytest.FixtureRequest
) -> None:
    if name == "profile":
        (tmp_path / "profile.yaml").write_text(PROFILE)
        words = [*words, f"profile={tmp_path}/profile.yaml"]
    asked = from_words([*words, f"name={name}", "launcher=slurm"], tmp_path / "runs")
    told: list[str] = []
    jobs = slurm.submit(asked, list(asked.runs.values()), told.append)
    assert slurm.submitted(asked) == jobs
    assert [job.run for job in jobs if job.run != slurm.PREPARATION] == list(asked.runs)
    found = scripts(asked.folder)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("KDBENCH_WRITE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


def test_a_run_is_pending_while_its_job_is_queued_and_lost_once_slurm_forgot_it(
    tmp_path: Path, commands: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["task=gnn", "method=alone", "seed=0..1", "name=a", "launcher=slurm"]
    assert cli.entry(["sweep", *words, "--runs", str(tmp_path)]) == 0
    asked = from_words(words, tmp_path)
    first, second = slurm.submitted(asked)
    (commands / "queue").write_text(f"{first.id}|PENDING|Priority\n{second.id}|RUNNING|None\n777|RUNNING|None\n")
    assert [(one.phase, one.detail) for one in statuses(asked)] == [
        ("pending", "pending: Priority"),
        ("running", "starting"),
    ]
    capfd.readouterr()
    assert cli.entry(["sweep", *words, "--runs", str(tmp_path)]) == 0
    assert "2 runs, 0 to do" in capfd.readouterr().err
    assert cli.entry(["cancel", "a", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["jobs"] == [first.id, second.id]
    assert (commands / "cancelled").read_text().split() == [first.id, second.id]
    (commands / "queue").write_text("")
    assert {one.phase for one in statuses(asked)} == {"lost"}
    assert "no longer knows" in statuses(asked)[0].detail
    assert cli.entry(["retry", "a", "--runs", str(tmp_path)]) == 0
    assert len(slurm.submitted(asked)) == 4


def test_without_slurm_the_request_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["sweep", "task=gnn", "method=alone", "launcher=slurm", "--runs", str(tmp_path / "runs")]
    assert cli.entry(words) == 2
    assert "needs the command 'sbatch'" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_slurm_refuses_is_told(tmp_path: Path, commands: Path) -> None:
    (commands / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition specified: gpo' >&2\nexit 1\n")
    asked = from_words(["task=gnn", "method=alone", "slurm.partition=gpo"], tmp_path)
    with pytest.raises(KdbenchError, match=r"did not take the jobs.*gpo"):
        slurm.submit(asked, list(asked.runs.values()), print)


def test_a_run_on_gpus_asks_for_as_many_as_it_has_processes() -> None:
    asked = slurm.parameters("a", Slurm(), (2, 4, True))
    assert (asked["nodes"], asked["ntasks_per_node"], asked["gpus_per_node"]) == (2, 4, 4)
    assert slurm.parameters("a", Slurm(gpus=8), (2, 4, True))["gpus_per_node"] == 8
    assert "gpus_per_node" not in slurm.parameters("a", Slurm(), (1, 1, False))


def test_memory_is_asked_for_once_and_left_out_where_it_is_null() -> None:
    assert slurm.parameters("a", Slurm(), (1, 1, False))["mem"] == "8GB"
    assert "mem" not in slurm.parameters("a", replace(Slurm(), memory=None), (1, 1, False))
    asked = slurm.parameters("a", Slurm(sbatch={"mem-per-cpu": "4G"}), (1, 1, False))
    assert "mem" not in asked and asked["additional_parameters"]["mem-per-cpu"] == "4G"


def test_memory_of_each_core_reaches_the_batch_script(tmp_path: Path, commands: Path) -> None:
    words = ["task=gnn", "method=alone", "name=a", "slurm.sbatch={mem-per-cpu: 4G}"]
    asked = from_words(words, tmp_path)
    slurm.submit(asked, list(asked.runs.values()), lambda line: None)
    told = scripts(asked.folder)
    assert "#SBATCH --mem-per-cpu=4G\n" in told and "--mem=" not in told


def test_more_threads_than_cores_are_refused_and_nothing_is_written(
    tmp_path: Path, commands: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "task=gnn", "method=alone", "trainer.threads=4", "launcher=slurm", "--runs", str(tmp_path / "r")]
    assert cli.entry([*words, "slurm.cpus=2"]) == 2
    assert "trainer.threads=4 is more than slurm.cpus=2" in capfd.readouterr().err
    assert not (tmp_path / "r").exists()
    assert cli.entry([*words, "slurm.cpus=4"]) == 0


def test_what_a_job_tells_of_itself_is_not_handed_on_to_new_jobs(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands / "sbatch").write_text(f"#!/bin/sh\nenv > {commands}/seen\necho Submitted batch job 7\n")
    inherited = ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "SLURM_NTASKS", "RANK"]
    inherited += ["LOCAL_RANK", "WORLD_SIZE", "SUBMITIT_EXECUTOR", "SLURMD_NODENAME", "SBATCH_CPU_BIND", "SRUN_DEBUG"]
    kept = ["SLURM_CONF", "SBATCH_ACCOUNT", "MASTER_ADDR", "KDBENCH_OFFLINE"]
    for name in (*inherited, *kept):
        monkeypatch.setenv(name, "3")
    before = dict(os.environ)
    asked = from_words(["task=gnn", "method=alone", "name=a"], tmp_path)
    slurm.submit(asked, list(asked.runs.values()), lambda line: None)
    seen = {line.partition("=")[0] for line in (commands / "seen").read_text().splitlines()}
    assert seen.isdisjoint(inherited) and seen.issuperset(kept)
    assert dict(os.environ) == before


def test_every_example_profile_is_read() -> None:
    root = Path(__file__).parents[2] / "slurm"
    profiles = [path for path in root.glob("*.yaml") if "runs:" not in path.read_text()]
    assert profiles
    for path in profiles:
        commented = re.sub(r"^# ?(\w+:)", r"\1", path.read_text(), flags=re.M)
        for text in (path.read_text(), commented):
            place = Path(os.environ.get("TMPDIR", "/tmp")) / f"kdbench-{os.getpid()}-{path.name}"
            place.write_text(text)
            try:
                assert from_words(["task=gnn", "method=alone", f"profile={place}"], root).slurm.time > 0
            finally:
                place.unlink()


def test_a_wrong_option_of_a_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("partiton: gpu\n")
    with pytest.raises(UsageError, match="Did you mean 'partition'"):
        from_words(["task=gnn", "method=alone", f"profile={tmp_path}/p.yaml"], tmp_path)
