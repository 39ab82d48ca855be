"""Lightning's loop over a training epoch, less what a plain fit has no use for.

Plain is one process and device in float32 with a common optimizer. Every other fit goes by Lightning's own step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from kdbench.engine.module import DistillationModule

HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
"""What is called at every step, first on the callbacks, then on the module."""
OWN = ("on_train_batch_start", "optimizer_step", "lr_scheduler_step")
"""Hooks of the module whose overriding means more than a call: Lightning's own step honours them."""
MOVES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
WITHOUT_CLOSURE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


class LeanEpochLoop(_TrainingEpochLoop):
    """Calls only the hooks that a callback or the module has, and the optimizer without closures.

    Counters, schedules, logging, validation and checkpoints are Lightning's; so is the order of hooks.
    """

    _lean = False
    _callbacks: tuple[pl.Callback, ...] = ()

    @classmethod
    def install(cls, trainer: pl.Trainer) -> None:
        """Give a new trainer this loop in place of its own."""
        own = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, own.min_steps, own.max_steps)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        self._lean = _plain(self.trainer) and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self._validates_last = self._lean and _validates_last(self.trainer)
        self._schedules = any(one.interval == "step" for one in self.trainer.lr_scheduler_configs)
        self._moves = self._lean and _moves(self.trainer)
        self._clips = self.trainer.gradient_clip_val or is_overridden(
            "configure_gradient_clipping", self.trainer.lightning_module, pl.LightningModule
        )
        if (callbacks := tuple(self.trainer.callbacks)) != self._callbacks:
            self._callbacks = callbacks
            self._listeners = {hook: _listeners(self.trainer, hook) for hook in HOOKS}
        if self._lean and self.trainer.strategy.root_device.type == "cpu":
            # a step would ask for a GPU's driver each time, 0.1 ms where there is none
            self.trainer.optimizers[0]._accelerator_graph_capture_health_check = _nothing

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if self.restarting or not self._lean:
            return super().advance(data_fetcher)
        trainer, progress, results = self.trainer, self.batch_progress, self._results
        module, logs = trainer.lightning_module, trainer._logger_connector
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        number = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        if self._moves:
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        logs._first_loop_iter = logs._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self._call("on_train_batch_start", batch, number)
        progress.increment_started()
        output = {"loss": self._step(batch, number)}
        progress.increment_processed()
        if self._schedules:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", output, batch, number)
        if results:
            logs.on_batch_end()
        results.batch, results.batch_size = None, None
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        ends = self.batch_progress.is_last_batch or self.trainer.should_stop or self.trainer.received_sigterm
        if ends or self._skip_next_val or not self._validates_last:
            super().on_advance_end(data_fetcher)
        elif not self._should_accumulate():
            self._batches_that_stepped += 1

    def _step(self, batch: Any, number: int) -> Tensor:
        """Forward, backward and, where enough gradients are gathered, the optimizer's step; the loss."""
        trainer, module = self.trainer, self.trainer.lightning_module
        optimizer, progress = trainer.optimizers[0], self.automatic_optimization.optim_progress.optimizer
        stepping = not self._should_accumulate()
        if stepping:
            progress.step.increment_ready()
        loss: Tensor = self._named("training_step", module.training_step, batch, number)
        if trainer.accumulate_grad_batches > 1:
            loss = loss / trainer.accumulate_grad_batches
        if number % trainer.accumulate_grad_batches == 0:
            progress.zero_grad.increment_ready()
            self._call("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            module.optimizer_zero_grad(trainer.current_epoch, number, optimizer)
            progress.zero_grad.increment_completed()
        self._call("on_before_backward", loss)
        module.backward(loss)
        self._call("on_after_backward")
        if stepping:
            self._call("on_before_optimizer_step", optimizer)
            if self._clips:
                clipping = optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                self._named("configure_gradient_clipping", module.configure_gradient_clipping, *clipping)
            optimizer.step()
            progress.step.increment_completed()
        return loss.detach()

    def _call(self, hook: str, *values: Any) -> None:
        for listener in self._listeners[hook]:
            self._named(hook, listener, *values)

    def _named(self, hook: str, listener: Callable[..., Any], *values: Any) -> Any:
        """Call it where ``module.log()`` knows for which hook."""
        module = vars(self.trainer.lightning_module)  # past the costly __setattr__ of torch modules
        module["_current_fx_name"] = hook
        result = listener(*values)
        module["_current_fx_name"] = None
        return result


def _plain(trainer: Any) -> bool:
    """Whether nothing but what :class:`LeanEpochLoop` does happens in a step."""
    module, optimizers = trainer.lightning_module, trainer.optimizers
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and type(trainer.profiler) is PassThroughProfiler
        and type(trainer._logger_connector) is _LoggerConnector
        and not trainer.loggers
        and isinstance(module, DistillationModule)
        and module.automatic_optimization
        and not any(is_overridden(hook, module, pl.LightningModule) for hook in OWN)
        and len(optimizers) == 1
        and type(optimizers[0]) in WITHOUT_CLOSURE
    )


def _validates_last(trainer: Any) -> bool:
    """Whether an epoch's last batch alone may be followed by a validation, or by a scheduler that waits for one."""
    return (
        trainer.val_check_batch == trainer.num_training_batches != float("inf")
        and trainer.check_val_every_n_epoch is not None
        and trainer._val_check_time_interval is None
        and not any(one.reduce_on_plateau for one in trainer.lr_scheduler_configs)
    )


def _nothing() -> None:
    """Take a check's place."""


def _moves(trainer: Any) -> bool:
    """Whether a batch has to be moved, or a hook wants to see it being moved."""
    owners = (trainer.lightning_module, pl.LightningModule), (trainer.datamodule, pl.LightningDataModule)
    return trainer.strategy.root_device.type != "cpu" or any(
        is_overridden(hook, owner, parent) for owner, parent in owners for hook in MOVES
    )


def _listeners(trainer: Any, hook: str) -> list[Callable[..., Any]]:
    """The callbacks' and the module's own methods for a hook, in Lightning's order."""
    module = trainer.lightning_module
    callbacks = [callback for callback in trainer.callbacks if is_overridden(hook, callback, pl.Callback)]
    listeners: list[Callable[..., Any]] = [partial(getattr(each, hook), trainer, module) for each in callbacks]
    return listeners + ([getattr(module, hook)] if is_overridden(hook, module, pl.LightningModule) else [])
