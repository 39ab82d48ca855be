"""The lean loop against Lightning's own: equal hooks, weights, counters and curves; and that it is in use at all."""

from __future__ import annotations

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
from kdbench.engine.callbacks import CheckedCheckpoints, Selection
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


def _trained(folder: Path, monkeypatch: pytest.MonkeyPatch, lean: bool, **more: Any) -> tuple[Any, ...]:
    steps = []
    step = loop.LeanEpochLoop._step
    with monkeypatch.context() as patch:
        patch.setattr(loop.LeanEpochLoop, "_step", lambda self, *a: steps.append(1) or step(self, *a))
        if not lean:
            patch.setattr(loop, "_plain", lambda trainer: False)
        torch.manual_seed(0)
        module, objective = Module(nn.Linear(4, 1), Optimizer(lr=0.01)), Watched()
        module.attach(objective, {})
        options = Trainer(max_epochs=3, accelerator="cpu", checkpoint_every_n_epochs=1, **more)
        curves, _ = distil(module, Data(), Selection("error", "min"), options, 3, 7, folder)
    assert len(steps) == (15 if lean else 0)
    saved = CheckedCheckpoints().load_checkpoint(folder / "last.ckpt")
    return objective.calls, curves.values, saved["loops"], saved["state_dict"], saved["optimizer_states"]


@pytest.mark.parametrize(
    "more", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=["plain", "accumulating", "clipping"]
)
def test_hooks_weights_curves_and_checkpoint_are_those_of_lightnings_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    calls, curves, loops, *state = _trained(tmp_path / "lean", monkeypatch, True, **more)
    own_calls, own_curves, own_loops, *own_state = _trained(tmp_path / "own", monkeypatch, False, **more)
    assert calls == own_calls and len(calls) > 100
    assert curves == own_curves and {"train/double", "train/weight of size"} <= curves.keys()
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
