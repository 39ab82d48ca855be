"""Which weights are kept: of the best validation, of the last, of the average; and what is logged of an epoch."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdbench.engine.callbacks import Curves, Selection
from kdbench.engine.fitting import fit
from kdbench.engine.teachers import EMATeacher
from kdbench.errors import KdbenchError
from kdbench.plan.options import Trainer

SCORES = [0.1, 0.8, 0.8, 0.3]


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.arange(20.0).reshape(5, 4).cos()), batch_size=2)

    val_dataloader = train_dataloader


class Learner(pl.LightningModule):
    """Notes the student's weight as each validation and each training epoch meets it."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 1)
        self.validated: list[Tensor] = []
        self.trained: list[Tensor] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.student(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None: ...

    def on_train_epoch_start(self) -> None:
        self.trained.append(self.student.weight.detach().clone())

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.student.weight.detach().clone())
        self.log("val/score", SCORES[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path, selection: Selection, *more: pl.Callback) -> Learner:
    torch.manual_seed(0)
    module = Learner()
    fit(module, Data(), Trainer(accelerator="cpu"), len(SCORES), 0, folder, [selection, Curves(), *more])
    return module


@pytest.mark.parametrize(("last", "epoch"), [(False, 1), (True, 3)])
def test_the_first_best_or_the_last_validation_is_kept(tmp_path: Path, last: bool, epoch: int) -> None:
    selection = Selection("score", last=last)
    module = train(tmp_path, selection)
    assert (selection.epoch, selection.value) == (epoch, pytest.approx(SCORES[epoch]))
    assert torch.equal(selection.weights["weight"], module.validated[epoch])


def test_the_smallest_is_best_where_the_metric_says_so(tmp_path: Path) -> None:
    selection = Selection("score", mode="min")
    train(tmp_path, selection)
    assert selection.epoch == 0


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_a_first_validation_without_a_score_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, undefined: float
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SCORES", [undefined, 0.3, undefined, 0.3])
    selection = Selection("score", mode=mode)
    train(tmp_path, selection)
    assert (selection.epoch, selection.value) == (1, pytest.approx(0.3))


def test_without_any_score_there_is_nothing_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SCORES", [math.nan] * 4)
    with pytest.raises(KdbenchError, match="val/score was not finite at any validation of the 4 epochs"):
        train(tmp_path, Selection("score"))


def test_a_deployed_average_is_what_is_validated_and_kept_while_the_student_trains_on(tmp_path: Path) -> None:
    def outputs(network: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"z": network(batch)}

    plain = train(tmp_path / "plain", Selection("score", last=True))
    average, selection = EMATeacher(0.5, outputs, every=1, deploy=True), Selection("score", last=True)
    module = train(tmp_path / "average", selection, average)
    assert average.network is not None
    assert all(torch.equal(a, b) for a, b in zip(plain.trained, module.trained, strict=True))
    assert torch.equal(module.student.weight, plain.student.weight)
    assert torch.equal(selection.weights["weight"], average.network.state_dict()["weight"])
    assert torch.equal(module.validated[-1], selection.weights["weight"])
    assert not torch.equal(selection.weights["weight"], module.student.weight) and len(average.sha256) == 64


def test_a_fit_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise InterruptedError

    options = Trainer(accelerator="cpu", checkpoint_every_n_epochs=1)
    whole = train(tmp_path / "whole", Selection("score"))
    torch.manual_seed(0)
    module, selection = Learner(), Selection("score")
    with pytest.raises(InterruptedError):
        fit(module, Data(), options, 4, 0, tmp_path, [selection, Stop()])
    again, selected = Learner(), Selection("score")
    fit(again, Data(), options, 4, 0, tmp_path, [selected])
    assert len(again.trained) == 2 and torch.equal(again.student.weight, whole.student.weight)
    assert selected.epoch == 1 and torch.equal(selected.weights["weight"], whole.validated[1])
