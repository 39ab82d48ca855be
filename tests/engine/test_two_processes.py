"""Two processes give what one gives on the same global batches: weights, moving teacher, curves, and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from kdbench.engine.callbacks import Curves, Selection
from kdbench.engine.classification import Classification, RowLoaders
from kdbench.engine.distributed import rank
from kdbench.engine.fitting import fit
from kdbench.engine.method import Method
from kdbench.engine.teachers import EMATeacher
from kdbench.errors import KdbenchError
from kdbench.options import Optimizer, Trainer

folder, processes, rows, accumulate, norm, spoiled = Path(sys.argv[1]), *map(int, sys.argv[2:])
X, Y = torch.arange(4.0 * rows).reshape(rows, 4).cos(), torch.arange(rows) % 3


class Points(Classification):
    def __init__(self):
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
        if spoiled in step.batch:  # a row that only one of two processes meets
            loss = loss * torch.nan
        step.told["rows"] = torch.tensor(float(step.batch.float().mean()))
        return {"kd": loss}


options = Trainer(devices=processes, strategy="ddp" if processes > 1 else "auto", accelerator="cpu",
                  accumulate_grad_batches=accumulate)
method, module, curves = Told(None), Points(), Curves()
teacher = EMATeacher(0.5, lambda network, batch: {"logits": network(X[batch])}, every=2)
module.attach(method, {"teacher": teacher}, {})
data = RowLoaders(lambda split: torch.arange(rows), 12 // processes, seed=0)
try:
    fit(module, data, options, 3, 0, folder, [method, teacher, Selection("accuracy"), curves])
    told = {"teacher": teacher.sha256, "curves": curves.values,
            "network": {k: v.tolist() for k, v in teacher.network.state_dict().items()},
            "student": {k: v.tolist() for k, v in module.student.state_dict().items()}}
except KdbenchError as error:
    told = {"error": str(error)}
(folder / f"{rank(processes)}.json").write_text(json.dumps(told))
sys.exit("error" in told)
"""


def fits(folder: Path, processes: int, rows: int = 24, accumulate: int = 1, norm: int = 0, spoiled: int = -1) -> Any:
    """What each process tells of one fit."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    words = [str(folder), *map(str, (processes, rows, accumulate, norm, spoiled))]
    command = [sys.executable, str(folder / "script.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean, check=False)
    told = [json.loads((folder / f"{number}.json").read_text()) for number in range(processes)]
    assert done.returncode == ("error" in told[0]), done.stderr
    return told


@pytest.mark.parametrize(("rows", "accumulate"), [(24, 1), (60, 2)])
def test_student_teacher_and_curves_are_those_of_one_process(tmp_path: Path, rows: int, accumulate: int) -> None:
    (one,) = fits(tmp_path / "one", 1, rows, accumulate)
    two = fits(tmp_path / "two", 2, rows, accumulate)
    assert two[0] == two[1], "every process tells the same"
    for part in ("student", "network"):
        for name, value in one[part].items():
            assert two[0][part][name] == pytest.approx(value, abs=1e-6) if not isinstance(value[0], list) else True
    assert one["curves"].keys() == two[0]["curves"].keys()
    for name, values in one["curves"].items():
        assert two[0]["curves"][name] == pytest.approx(values, abs=1e-6), name


def test_both_processes_move_one_teacher_whatever_statistics_they_keep(tmp_path: Path) -> None:
    first, second = fits(tmp_path / "norm", 2, norm=1)
    assert first["teacher"] == second["teacher"] and first["network"] == second["network"]


def test_a_loss_that_one_process_cannot_use_ends_both_with_one_error(tmp_path: Path) -> None:
    first, second = fits(tmp_path / "spoiled", 2, spoiled=7)
    assert first == second
    assert first["error"].startswith("The loss is not finite at step ") and "kd = nan" in first["error"]
