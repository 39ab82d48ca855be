"""Two processes give what one gives on the same global batches: weights, moving teacher, curves, and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_start")]

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from kdbench.engine.callbacks import Curves, Selection
from kdbench.engine.classification import Classification, number_loaders
from kdbench.engine.distributed import rank
from kdbench.engine.fitting import fit
from kdbench.engine.method import Method
from kdbench.engine.teachers import EMATeacher
from kdbench.errors import KdbenchError
from kdbench.plan.options import Optimizer, Trainer

folder, processes = Path(sys.argv[1]), int(sys.argv[2])
X, Y = torch.arange(240.0).reshape(60, 4).cos(), torch.arange(60) % 3


class Points(Classification):
    def __init__(self, norm):
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(5) if norm else nn.Tanh()
        optimizer = Optimizer(name="sgd", lr=0.1, schedule="constant")
        super().__init__(nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, 3)), optimizer, 3)

    def forward_batch(self, batch):
        return {"logits": self.student(X[batch])}

    def targets(self, batch):
        return Y[batch]


class Told(Method):
    title, paper, teacher = "tells", "", "ema"

    def loss_terms(self, step):
        loss = step.teacher["logits"].sub(step.output["logits"]).square().mean()
        if self.options in step.batch:  # a row that only one of two processes meets
            loss = loss * torch.nan
        step.logs["rows"] = step.batch.float().mean()
        return {"kd": loss}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.killed == (trainer.current_epoch, batch_idx):
            raise KdbenchError("killed")


def trained(case, rows, accumulate=1, norm=False, spoiled=-1, killed=None):
    options = Trainer(devices=processes, strategy="ddp" if processes > 1 else "auto", accelerator="cpu",
                      accumulate_grad_batches=accumulate, checkpoint_every_n_steps=1)
    method, module, curves = Told(spoiled), Points(norm), Curves()
    method.killed = killed
    teacher = EMATeacher(0.5, lambda network, batch: {"logits": network(X[batch])}, every=2)
    module.attach(method, {"teacher": teacher})
    data = number_loaders(lambda split: torch.arange(rows), 12 // processes, seed=0)
    try:
        fit(module, data, options, 3, 0, folder / case, [method, teacher, Selection("accuracy"), curves])
    except KdbenchError as error:
        return {"error": str(error)}
    networks = {"student": module.student, "teacher": teacher.network}
    states = {of: {k: v.tolist() for k, v in network.state_dict().items()} for of, network in networks.items()}
    return {"sha256": teacher.sha256, "curves": curves.values, **states}


told = {
    "whole": trained("whole", 24),
    "accumulated": trained("accumulated", 60, accumulate=2),
    "norm": trained("norm", 24, norm=True),
    "spoiled": trained("spoiled", 24, spoiled=7),
    "killed": trained("again", 24, killed=(1, 1)),
    "again": trained("again", 24),
}
(folder / f"{rank(processes)}.json").write_text(json.dumps(told))
"""


def told(folder: Path, processes: int) -> list[Any]:
    """What each process tells of the fits."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, str(folder / "script.py"), str(folder), str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr and "Tip" not in done.stderr
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(processes)]


def flat(value: Any) -> list[float]:
    """The numbers of nested lists."""
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


def test_two_processes_give_what_one_gives_or_fail_together(tmp_path: Path) -> None:
    (one,), (first, second) = told(tmp_path / "one", 1), told(tmp_path / "two", 2)
    assert first == second, "students, moving teachers, curves and errors are the same in both processes"
    for case in ("whole", "accumulated"):
        for part in ("student", "teacher", "curves"):
            assert one[case][part].keys() == first[case][part].keys()
            for name, value in one[case][part].items():
                assert flat(first[case][part][name]) == pytest.approx(flat(value), abs=1e-6), (case, part, name)
        assert one[case]["teacher"] != one[case]["student"]
    for every in (one, first):
        assert every["killed"] == {"error": "killed"}
        assert every["again"] == every["whole"], "a fit killed in the middle of an epoch goes on as if it was not"
    for error in (one["spoiled"]["error"], first["spoiled"]["error"]):
        assert error.startswith("The loss is not finite at step ") and error.endswith("kd = nan.")
