"""The lean loop against Lightning's own: equal hooks, weights, counters and curves; and that it is in use at all."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdbench.engine import loop
from kdbench.engine.callbacks import CheckedCheckpoints, Curves, Selection
from kdbench.engine.distillation import distil
from kdbench.engine.module import DistillationModule
from kdbench.engine.objective import Objective
from kdbench.plan.options import Optimizer, Trainer

STEP_HOOKS = (
    *loop.HOOKS,
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_end",
    "on_train_start",
    "on_train_end",
    "on_save_checkpoint",
)


class Module(DistillationModule):
    """A linear student of four features."""

    def forward_batch(self, batch: Any) -> dict[str, Tensor]:
        return {"value": self.student(batch[0]).squeeze(-1)}

    def targets(self, batch: Any) -> Tensor:
        return batch[1]

    def task_terms(self, output: Any, targets: Any) -> dict[str, Tensor]:
        return {"task": (output["value"] - targets).square().mean()}

    def evaluate(self, split: str, output: Any, targets: Any) -> None:
        self.error = float((output["value"] - targets).abs().mean())

    def results(self, split: str) -> dict[str, float]:
        return {"error": self.error}


class Data(pl.LightningDataModule):
    """Five batches of 4 rows, the last of 2."""

    def train_dataloader(self) -> Any:
        rows = torch.randn(18, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(rows, rows.sum(dim=1)), 4)

    val_dataloader = train_dataloader


class Watched(Objective):
    """Adds terms, logs in hooks, and notes every hook and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def loss_terms(self, step: Any) -> dict[str, Tensor]:
        self.calls.append("loss_terms")
        step.logs["mean"] = step.output["value"].mean()
        return {"size": step.output["value"].square().mean(), "double": step.output["value"].double().abs().mean()}

    def weights(self, step: Any) -> dict[str, float]:
        return {"size": 0.1, "double": 0.3}

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.calls.append("on_after_backward")
        module.log("hook/gradient", module.student.weight.grad.norm(), on_step=False, on_epoch=True, batch_size=1)


class Dies(pl.Callback):
    """Is killed before batch ``number`` of the training; None: lives."""

    def __init__(self, number: int | None) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * 5 + batch_idx == self.number:
            raise InterruptedError


def _noting(hook: str) -> Any:
    def note(self: Watched, trainer: Any, module: Any, *values: Any) -> None:
        shown = [value.item() for value in values if isinstance(value, Tensor)]
        shown += [value["loss"].item() for value in values if isinstance(value, dict) and "loss" in value]
        shown += [value for value in values if isinstance(value, int)]
        shown += [type(value).__name__ for value in values if isinstance(value, torch.optim.Optimizer)]
        weight = module.student.weight
        state = weight.sum().item(), weight.grad is None, trainer.global_step, trainer.current_epoch
        self.calls.append((hook, *shown, *state, module._current_fx_name))

    return note


for _hook in STEP_HOOKS:
    if _hook != "on_after_backward":
        setattr(Watched, _hook, _noting(_hook))


BY_STEP = Optimizer(lr=0.01, schedule_by="step", warmup_steps=2)


def _trained(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    lean: bool,
    batches: int = 15,
    optimizer: Optimizer | None = None,
    dies_at: int | None = None,
    **more: Any,
) -> tuple[Any, ...]:
    """Hooks called, curves, and what the checkpoint of a fit holds that runs ``batches`` and may die before one."""
    steps: list[int] = []
    step = loop.LeanEpochLoop._step
    with monkeypatch.context() as patch:
        patch.setattr(loop.LeanEpochLoop, "_step", lambda self, *a: steps.append(1) or step(self, *a))
        if not lean:
            patch.setattr(loop, "_plain", lambda trainer: False)
        torch.manual_seed(0)
        module, objective = Module(nn.Linear(4, 1), optimizer or Optimizer(lr=0.01)), Watched()
        module.attach(objective, {})
        options = Trainer(max_epochs=3, accelerator="cpu", checkpoint_every_n_epochs=1, **more)
        curves = Curves()
        with nullcontext() if dies_at is None else pytest.raises(InterruptedError):
            curves, _ = distil(module, Data(), Selection("error", "min"), options, 3, 7, folder, [Dies(dies_at)])
    assert len(steps) == (batches if lean else 0)
    saved = CheckedCheckpoints().load_checkpoint(folder / "last.ckpt")
    kept = ("loops", "state_dict", "optimizer_states", "lr_schedulers", "logged")
    return objective.calls, curves.values, *(saved[name] for name in kept)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"optimizer": BY_STEP},
        {"optimizer": BY_STEP, "accumulate_grad_batches": 2},
        {"max_steps": 7, "batches": 7},
        {"max_steps": 10, "batches": 10, "optimizer": BY_STEP, "check_val_every_n_epoch": 3},
        {"checkpoint_every_n_steps": 2},
    ],
    ids=["plain", "accumulating", "clipping", "by step", "by step, accumulating", "7 steps", "two epochs", "mid-epoch"],
)
def test_hooks_weights_curves_and_checkpoint_are_those_of_lightnings_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    calls, curves, loops, *state = _trained(tmp_path / "lean", monkeypatch, True, **more)
    own_calls, own_curves, own_loops, *own_state = _trained(tmp_path / "own", monkeypatch, False, **more)
    assert calls == own_calls and len(calls) > 60
    assert curves == own_curves and {"train/double", "train/weight of size"} <= curves.keys()
    assert loops == own_loops
    torch.testing.assert_close(state, own_state, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [None, BY_STEP], ids=["by epoch", "by step"])
def test_a_fit_killed_in_mid_epoch_goes_on_as_by_lightnings_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer | None
) -> None:
    given: dict[str, Any] = {"optimizer": optimizer, "checkpoint_every_n_steps": 1}
    resumed = []
    for lean in (True, False):
        _trained(tmp_path / str(lean), monkeypatch, lean, batches=7, dies_at=7, **given)
        resumed.append(_trained(tmp_path / str(lean), monkeypatch, lean, batches=7, **given))
    (calls, curves, loops, *state), (own_calls, own_curves, own_loops, *own_state) = resumed
    assert calls == own_calls and len(calls) > 50
    assert curves == own_curves and curves["epoch"] == [0.0, 1.0, 2.0]
    assert loops == own_loops
    torch.testing.assert_close(state, own_state, rtol=0, atol=0)


def test_what_the_loop_relies_on_is_there() -> None:
    own = loop._TrainingEpochLoop
    for name in ("advance", "on_run_start", "update_lr_schedulers", "_should_accumulate", "_num_ready_batches_reached"):
        assert callable(getattr(own, name)), name
    trainer: Any = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    assert type(trainer.fit_loop.epoch_loop) is own
    loop.LeanEpochLoop.install(trainer)
    assert type(trainer.fit_loop.epoch_loop) is loop.LeanEpochLoop
    assert type(trainer.strategy) is SingleDeviceStrategy and type(trainer.precision_plugin) is Precision
    assert type(trainer.profiler) is PassThroughProfiler and type(trainer._logger_connector) is loop._LoggerConnector
    assert "_current_fx_name" in vars(pl.LightningModule())
    for hook in loop.HOOKS:
        assert hasattr(pl.Callback, hook) and hasattr(pl.LightningModule, hook), hook
    for hook in (*loop.OWN, *loop.MOVES):
        assert hasattr(pl.LightningModule, hook), hook
