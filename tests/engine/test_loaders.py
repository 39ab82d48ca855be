"""Loaders of rows: orders, shares, epochs, composites, and a fit that is stopped in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.engine import callbacks
from kdbench.engine.callbacks import Curves, Selection
from kdbench.engine.classification import Classification, number_loaders
from kdbench.engine.distillation import assemble, distil
from kdbench.engine.loaders import Composite, CompositeLoaders, Loaders, RowLoader, Rows, Shuffled
from kdbench.engine.objective import Objective
from kdbench.engine.step import Step
from kdbench.errors import StoppedError, UsageError
from kdbench.plan.options import Optimizer, Trainer

X = torch.arange(120.0).reshape(24, 5).cos()
Y = torch.arange(24) % 3


def named(tag: str, rows: Sequence[int], epoch: int) -> list[str]:
    return [f"{tag}{row}@{epoch}" for row in rows]


def loaders(tag: str, count: int, size: int | None, seed: int = 0, workers: int = 0) -> Loaders:
    def split(name: str) -> Rows:
        return Rows(count if name == "train" else 3, partial(named, tag), size if name == "train" else 2)

    return Loaders(split, seed, workers)


def epoch_of(loader: RowLoader, epoch: int) -> list[list[str]]:
    assert loader.order is not None
    loader.order.set_epoch(epoch)
    return list(loader)


def flat(batches: Sequence[Sequence[Any]]) -> list[Any]:
    return [row for batch in batches for row in batch]


def test_an_epoch_is_one_random_order_of_all_rows_and_views_know_it() -> None:
    loader = loaders("a", 7, 3).train_dataloader()
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert [len(batch) for batch in first] == [3, 3, 1]
    assert sorted(flat(first)) == [f"a{row}@0" for row in range(7)]
    assert sorted(flat(second)) == [f"a{row}@1" for row in range(7)]
    assert epoch_of(loader, 0) == first
    assert [row.partition("@")[0] for row in flat(first)] != [row.partition("@")[0] for row in flat(second)]
    assert epoch_of(loaders("a", 7, 3, seed=1).train_dataloader(), 0) != first


def test_the_order_is_pinned() -> None:
    """Published records depend on it."""
    assert Shuffled(8, 0).rows() == [0, 3, 6, 7, 5, 1, 4, 2]
    other = Shuffled(8, 5)
    other.set_epoch(3)
    assert other.rows() == [7, 5, 0, 2, 3, 4, 6, 1]


def test_all_rows_at_once_keep_their_order_and_evaluation_too() -> None:
    given = loaders("a", 5, None)
    assert epoch_of(given.train_dataloader(), 2) == [[f"a{row}@2" for row in range(5)]]
    assert list(given.val_dataloader()) == list(given.test_dataloader()) == [["a0@0", "a1@0"], ["a2@0"]]


def test_processes_share_an_epoch() -> None:
    shares = [Shuffled(8, 3, 2, rank).rows() for rank in (0, 1)]
    assert sorted(flat(shares)) == list(range(8)) and Shuffled(8, 3).rows()[::2] == shares[0]


def test_workers_make_the_same_batches() -> None:
    alone, helped = (loaders("a", 7, 3, workers=workers).train_dataloader() for workers in (0, 2))
    assert [epoch_of(alone, epoch) for epoch in (0, 1)] == [epoch_of(helped, epoch) for epoch in (0, 1)]


def test_an_epoch_goes_on_after_the_batches_that_are_done() -> None:
    done = SimpleNamespace(batches=0)
    rows = Rows(10, partial(named, "a"), 3)
    loader = RowLoader(rows, Shuffled(10, 0), 0, lambda: done.batches)
    whole = epoch_of(loader, 4)
    for done.batches in range(4):
        again = RowLoader(rows, Shuffled(10, 0), 0)
        again.load_state_dict(loader.state_dict())
        assert epoch_of(again, 4) == whole[done.batches :]
        assert epoch_of(again, 5) == epoch_of(loader, 5), "only the epoch that was begun"
    done.batches = 4
    assert loader.state_dict() == {"batches": 0}, "an epoch that is over is not begun"


# composites


def composite(seed: int = 0) -> CompositeLoaders:
    return CompositeLoaders(loaders("m", 6, 2), {"target": loaders("t", 4, 3, 1), "labelled": loaders("l", 2, 1, 2)})


def composites(loader: Any, epoch: int) -> list[Composite]:
    loader.order.set_epoch(epoch)
    return list(loader)


def test_an_epoch_of_a_composite_is_that_of_its_main_loader_and_the_others_cycle() -> None:
    loader = composite().train_dataloader()
    every = [batch for epoch in range(4) for batch in composites(loader, epoch)]
    assert len(loader) == 3 and len(every) == 12 and [len(batch) for batch in every] == [2] * 12
    assert [row for batch in every[:3] for row in batch.main] == flat(
        epoch_of(loaders("m", 6, 2).train_dataloader(), 0)
    )
    target = [batch for epoch in range(6) for batch in epoch_of(loaders("t", 4, 3, 1).train_dataloader(), epoch)]
    labelled = [batch for epoch in range(6) for batch in epoch_of(loaders("l", 2, 1, 2).train_dataloader(), epoch)]
    assert [batch.beside["target"] for batch in every] == target and len(target) == 12
    assert [batch.beside["labelled"] for batch in every] == labelled
    assert list(composite().val_dataloader()) == [["m0@0", "m1@0"], ["m2@0"]]


def test_a_composite_goes_on_in_the_middle_of_an_epoch() -> None:
    loader = composite().train_dataloader()
    whole = composites(loader, 2)
    again = composite().train_dataloader()
    again.load_state_dict({"batches": 2})
    assert composites(again, 2) == whole[2:]


# whole fits


class Points(Classification):
    def __init__(self, optimizer: Optimizer) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.Linear(6, 3)), optimizer, 3)
        self.rates: list[float] = []

    def forward_batch(self, batch: Tensor) -> dict[str, Tensor]:
        return {"logits": self.student(X[batch])}

    def targets(self, batch: Tensor) -> Tensor:
        return Y[batch]


class Notes(Objective):
    """Notes the rate of every step, and asks for a stop after some of them."""

    def __init__(self, stop_after: int = -1) -> None:
        self.rates: list[float] = []
        self.stop_after = stop_after

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.stop_after:
            callbacks.stop_asked.set()

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture(autouse=True)
def no_stop() -> Iterator[None]:
    callbacks.stop_asked.clear()
    yield
    callbacks.stop_asked.clear()


def train(
    folder: Path, objective: Objective, optimizer: Optimizer | None = None, data: Any = None, **options: Any
) -> tuple[Points, Curves, Selection]:
    module, selection = Points(optimizer or Optimizer(lr=0.05)), Selection("accuracy")
    assemble(module, objective, {}, torch.arange(4), 0)
    data = data or number_loaders(lambda split: torch.arange(24), 4, seed=0, evaluated=24)
    given = Trainer(accelerator="cpu", **options)
    curves, _ = distil(module, data, selection, given, 3, 0, folder)
    return module, curves, selection


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fit_stopped_in_the_middle_of_an_epoch_ends_as_one_that_was_not(tmp_path: Path, accumulate: int) -> None:
    options = {"checkpoint_every_n_steps": 1, "accumulate_grad_batches": accumulate}
    whole, curves, selection = train(tmp_path / "whole", Notes(), **options)
    with pytest.raises(StoppedError, match="after step 5"):
        train(tmp_path / "stopped", Notes(stop_after=5), **options)
    callbacks.stop_asked.clear()
    notes = Notes()
    again, more, chosen = train(tmp_path / "stopped", notes, **options)
    assert len(notes.rates) == 18 // accumulate - 5
    assert more.values == curves.values and (chosen.epoch, chosen.value) == (selection.epoch, selection.value)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_budget_in_steps_ends_with_a_validation(tmp_path: Path) -> None:
    notes = Notes()
    _, curves, selection = train(tmp_path, notes, max_steps=8, check_val_every_n_epoch=3)
    assert len(notes.rates) == 8 and curves.values["epoch"] == [1.0] and selection.epoch == 1
    assert len(curves.values["train/loss"]) == len(curves.values["val/accuracy"]) == 1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_by_step_warm_up_and_then_follow_the_schedule(tmp_path: Path, schedule: Any) -> None:
    notes, optimizer = Notes(), Optimizer(lr=0.08, schedule=schedule, schedule_by="step", warmup_steps=3)
    train(tmp_path, notes, optimizer)
    assert notes.rates[:3] == pytest.approx([0.02, 0.04, 0.06])
    rest = torch.arange(15.0)
    wanted = 0.08 * (1 + torch.cos(torch.pi * rest / 15)) / 2 if schedule == "cosine" else torch.full((15,), 0.08)
    assert notes.rates[3:] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_a_warm_up_longer_than_the_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"optimizer\.warmup_steps=18: the training has 18 optimiser steps in all"):
        train(tmp_path, Notes(), Optimizer(schedule_by="step", warmup_steps=18))


class Beside(Objective):
    """A term on the batch beside the main one."""

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return {"target": step.student(X[step.beside["target"]]).square().mean()}


def test_an_objective_sees_what_lies_beside_the_main_batch(tmp_path: Path) -> None:
    main, target = (number_loaders(lambda split: torch.arange(24), size, 0, 24) for size in (4, 3))
    _, curves, _ = train(tmp_path, Beside(), data=CompositeLoaders(main, {"target": target}))
    assert len(curves.values["train/target"]) == 3 and min(curves.values["train/target"]) > 0
