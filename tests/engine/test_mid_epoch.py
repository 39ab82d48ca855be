"""Fits that end in the middle of an epoch, stopped or killed, and go on to the numbers of one that did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.engine.callbacks import Selection
from kdbench.engine.classification import Classification
from kdbench.engine.distillation import assemble, distil
from kdbench.engine.loaders import CompositeLoaders, Loaders, Rows
from kdbench.engine.objective import Objective
from kdbench.engine.step import Step
from kdbench.plan.options import Optimizer, Trainer

Batch = tuple[Tensor, Tensor]
EPOCHS = 3


def view(rows: Sequence[int], epoch: int) -> Batch:
    """Points that are others in each epoch, and their classes."""
    numbers = torch.tensor(list(rows))
    return (numbers[:, None] * torch.arange(1.0, 6.0) + epoch).cos(), numbers % 3


def points(size: int = 4, seed: int = 0, workers: int = 0) -> Loaders:
    """24 training rows."""
    return Loaders(lambda split: Rows(24, view, size if split == "train" else None), seed, workers)


class Points(Classification):
    def __init__(self, optimizer: Optimizer) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.Linear(6, 3)), optimizer, 3)

    def forward_batch(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.student(batch[0])}

    def targets(self, batch: Batch) -> Tensor:
        return batch[1]


class Beside(Objective):
    """Another term where a batch lies beside the main one; killed before batch ``killed`` of the training."""

    def __init__(self, killed: int = -1) -> None:
        self.killed, self.rates, self.batches = killed, [], 0  # type: ignore[var-annotated]

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        beside = step.beside.get("target")
        return {} if beside is None else {"target": step.student(beside[0]).square().mean()}

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * 6 + batch_idx == self.killed:
            raise InterruptedError
        self.batches += 1

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.killed == "validation":
            raise InterruptedError

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


Fit = tuple[dict[str, Tensor], dict[str, list[float]], tuple[int, float], Beside]


def train(folder: Path, data: Any, killed: Any = -1, optimizer: Optimizer | None = None, **options: Any) -> Fit:
    """Weights, curves, the chosen epoch and its value, and what the objective noted."""
    module, selection, objective = Points(optimizer or Optimizer(lr=0.05)), Selection("accuracy"), Beside(killed)
    assemble(module, objective, {}, view(range(4), 0), 0)
    given = Trainer(accelerator="cpu", **{"checkpoint_every_n_steps": 1, **options})
    curves, _ = distil(module, data, selection, given, EPOCHS, 0, folder)
    return dict(module.state_dict()), curves.values, (selection.epoch, selection.value), objective


def same(one: Fit, other: Fit) -> None:
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert one[1:3] == other[1:3]


BY_STEP = Optimizer(lr=0.05, schedule_by="step", warmup_steps=2)


@pytest.mark.parametrize("killed", [4, 9, 12])
@pytest.mark.parametrize("optimizer", [None, BY_STEP], ids=["by epoch", "by step"])
def test_a_killed_fit_goes_on_with_the_next_batch(tmp_path: Path, killed: int, optimizer: Optimizer | None) -> None:
    whole = train(tmp_path / "whole", points(), optimizer=optimizer)
    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", points(), killed, optimizer)
    again = train(tmp_path / "killed", points(), optimizer=optimizer)
    same(whole, again)
    assert again[3].batches == 18 - killed + (killed % 6 == 0), "no checkpoint at the end of an epoch"
    assert whole[3].rates[-len(again[3].rates) :] == again[3].rates


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_that_goes_on_with_a_new_epoch_has_the_views_of_that_epoch(tmp_path: Path, workers: int) -> None:
    options = {"checkpoint_every_n_steps": None, "checkpoint_every_n_epochs": 1}
    whole = train(tmp_path / "whole", points(), **options)
    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", points(workers=workers), 9, **options)
    again = train(tmp_path / "killed", points(workers=workers), **options)
    same(whole, again)
    assert again[3].batches == 12


def test_views_made_ahead_by_workers_are_those_of_the_epoch_that_goes_on(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", points())
    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", points(workers=2), 9)
    same(whole, train(tmp_path / "killed", points(workers=2)))


def test_a_composite_goes_on_with_all_of_its_loaders(tmp_path: Path) -> None:
    def composite() -> CompositeLoaders:
        return CompositeLoaders(points(), {"target": points(5, 1)})

    whole = train(tmp_path / "whole", composite())
    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", composite(), 9)
    same(whole, train(tmp_path / "killed", composite()))


def test_a_fit_killed_twice_within_one_optimiser_step_loses_no_gradient(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2}
    whole = train(tmp_path / "whole", points(), **options)
    for killed in (3, 3, 9, 9):
        with pytest.raises(InterruptedError):
            train(tmp_path / "killed", points(), killed, **options)
    same(whole, train(tmp_path / "killed", points(), **options))


def test_a_fit_killed_at_its_last_step_is_still_validated(tmp_path: Path) -> None:
    options = {"max_steps": 8, "check_val_every_n_epoch": 3}
    whole = train(tmp_path / "whole", points(), **options)
    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", points(), "validation", **options)
    same(whole, train(tmp_path / "killed", points(), **options))
