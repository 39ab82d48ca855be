"""Mixed precision, gradient accumulation and two processes give the numbers that they should."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdbench.cli import main as cli
from kdbench.engine import fitting
from kdbench.engine.runner import Outcome, Silent, run
from kdbench.plan.config import expand
from kdbench.results.record import loads

pytestmark = pytest.mark.usefixtures("quick_start")

PLAIN = ["student.dropout=0", "optimizer.name=sgd", "optimizer.lr=0.05", "optimizer.schedule=constant"]
SMALL = ["task=gnn", "student.width=16", "trainer.max_epochs=2", "trainer.accelerator=cpu", *PLAIN]


def student(folder: Path) -> dict[str, torch.Tensor]:
    """The trained weights, without what batch norm only counts."""
    return {
        k: v for k, v in load_file(folder / "student.safetensors").items() if "running" not in k and "num_" not in k
    }


def in_process(root: Path, *words: str) -> Outcome:
    """Do one run here."""
    (config,) = expand([*SMALL, *words])
    outcome = run(config, root, Silent())
    assert outcome is not None
    return outcome


def processes(root: Path, *words: str) -> Path:
    """Do one small run of ``gnn`` by the command line, which may start more processes; its folder."""
    return command_line(root, *SMALL, *words)


def command_line(root: Path, *words: str, **variables: str) -> Path:
    """Do one run by the command line, with further environment ``variables``; its folder."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    clean |= variables
    command = [
        sys.executable,
        "-m",
        "kdbench.cli",
        "run",
        *words,
        "--no-baselines",
        "--json",
        "--runs",
        str(root),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = root.rglob("record.json")
    return path.parent


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    # Batch norm sees the whole graph either way, so two half batches are one whole batch.
    whole = in_process(tmp_path, "method=kd", "data.batch_size=120")
    halves = in_process(tmp_path, "method=kd", "data.batch_size=60", "trainer.accumulate_grad_batches=2")
    single = in_process(tmp_path, "method=kd", "data.batch_size=60")
    assert largest_difference(student(whole.folder), student(halves.folder)) < 1e-5
    assert largest_difference(student(whole.folder), student(single.folder)) > 1e-4


def test_bfloat16_trains(tmp_path: Path) -> None:
    mixed = in_process(tmp_path, "method=lingugkd", "trainer.precision=bf16-mixed").record.curves["train/loss"]
    single = in_process(tmp_path, "method=lingugkd").record.curves["train/loss"]
    assert mixed != single and mixed == pytest.approx(single, rel=0.05)


@pytest.mark.slow
def test_one_process_is_the_first_whatever_a_launcher_left_behind(tmp_path: Path) -> None:
    left = dict.fromkeys(("RANK", "LOCAL_RANK", "SLURM_PROCID"), "1")
    stale = command_line(tmp_path / "stale", *SMALL, "method=alone", **left)
    plain = in_process(tmp_path / "plain", "method=alone")
    assert largest_difference(student(stale), student(plain.folder)) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU"),
        (["trainer.precision=16-mixed", "trainer.accelerator=cpu"], "trainer.precision=16-mixed needs a GPU"),
        (["trainer.accelerator=gpu"], f"torch finds none here, beside {os.cpu_count()} processor cores"),
        (["trainer.accelerator=gpu", "trainer.devices=2"], "trainer.devices=2 ask for as many GPUs"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_this_machine_lacks_is_told_before_any_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    code = cli.entry(["run", "task=gnn", "method=kd", *words, "--runs", str(tmp_path)])
    assert code == 2 and told in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_lightning_s_warnings_are_shown_but_for_the_expected(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        importlib.reload(fitting)
        in_process(tmp_path, "method=kd")
        warnings.warn_explicit("unheard of", UserWarning, "x.py", 1, module="pytorch_lightning.trainer")
    assert [str(warning.message) for warning in seen] == ["unheard of"]
    assert logging.getLogger("pytorch_lightning").level == logging.WARNING


@pytest.mark.slow
def test_two_processes_equal_one_on_the_same_global_batch(tmp_path: Path) -> None:
    # The contrast needs every row of the global batch: it only matches if the rows are gathered with their gradients.
    words = ["method=lingugkd", "method.projector_dropout=0"]
    one = student(in_process(tmp_path / "a", *words, "data.batch_size=120").folder)
    half = student(in_process(tmp_path / "b", *words, "data.batch_size=60").folder)
    two = student(processes(tmp_path / "c", *words, "data.batch_size=60", "trainer.devices=2", "trainer.strategy=ddp"))
    assert largest_difference(one, two) < 2e-5
    assert largest_difference(one, half) > 1e-3


@pytest.mark.slow
def test_one_of_two_processes_trains_the_teacher(tmp_path: Path) -> None:
    words = ["task=graph_classification", "method=kd", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    two = command_line(tmp_path / "two", *words, "trainer.devices=2", "trainer.strategy=ddp")
    one = command_line(tmp_path / "one", *words)
    teachers = [loads((folder / "record.json").read_text(), "record").teacher for folder in (one, two)]
    assert teachers[0] is not None and teachers[1] is not None
    assert teachers[0].sha256 == teachers[1].sha256
