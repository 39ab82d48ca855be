"""A fit that is asked to stop ends after its epoch, with a checkpoint from which it goes on as if it had not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdbench.engine.callbacks import stop_asked
from kdbench.engine.fitting import fit
from kdbench.errors import StoppedError
from kdbench.plan.options import Trainer

EPOCHS = 6
OPTIONS = Trainer(max_epochs=EPOCHS, accelerator="cpu", checkpoint_every_n_epochs=100)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.arange(20.0).reshape(5, 4).cos()), batch_size=2)

    val_dataloader = train_dataloader


class Learner(pl.LightningModule):
    """Learns with dropout and momentum, so that both random streams and optimiser state matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return (self.student(batch[0]) - 1).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Asks(pl.Callback):
    """Asks to stop in the middle of an epoch, as a signal handler would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.batches: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, index: int) -> None:
        self.batches.append(index)
        if (trainer.current_epoch, index) == (self.epoch, 1):
            stop_asked.set()


@pytest.fixture(autouse=True)
def _unasked() -> Iterator[None]:
    yield
    stop_asked.clear()


def learnt(folder: Path, *callbacks: pl.Callback) -> dict[str, Tensor]:
    module = Learner()
    fit(module, Data(), OPTIONS, EPOCHS, 3, folder, callbacks)
    return module.student.state_dict()


@pytest.mark.parametrize("epoch", [0, 2, EPOCHS - 1])
def test_it_stops_after_the_epoch_and_goes_on_exactly(epoch: int, tmp_path: Path) -> None:
    asks = Asks(epoch)
    with pytest.raises(StoppedError, match=f"after epoch {epoch + 1};"):
        learnt(tmp_path / "stopped", asks)
    assert asks.batches == [0, 1, 2] * (epoch + 1), "the epoch was ended"
    assert (tmp_path / "stopped" / "last.ckpt").exists()
    stop_asked.clear()
    resumed, whole = learnt(tmp_path / "stopped"), learnt(tmp_path / "whole")
    assert all(whole[name].isfinite().all() and torch.equal(resumed[name], whole[name]) for name in whole)


def test_without_being_asked_no_checkpoint_is_written_before_its_time(tmp_path: Path) -> None:
    learnt(tmp_path)
    assert not (tmp_path / "last.ckpt").exists()
