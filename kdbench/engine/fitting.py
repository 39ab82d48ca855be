"""Fits with Lightning, the same way for the student and for a stage that trains a network: seeded, resumable."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from kdbench.engine.callbacks import CheckedCheckpoints, Checkpoints, StepBudget, StepStreams
from kdbench.engine.distributed import rank
from kdbench.engine.loop import LeanEpochLoop
from kdbench.engine.objective import Objective
from kdbench.hashing import remove_unfinished
from kdbench.plan.options import Trainer

EXPECTED = (
    r"The '\w+_dataloader' does not have many workers",  # small batches, made faster than workers could hand them over
    r"Found \d+ module\(s\) in eval mode",  # parts that a network keeps frozen
    r"GPU available but not used",  # asked for by trainer.accelerator=cpu
    r"It is recommended to use `self\.log\(.*sync_dist=True",  # what is logged is that of all processes
    r"The `srun` command is available on your system but is not used",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
)
"""How Lightning's warnings begin that hold for every run and tell a user nothing; all others are shown."""

for _message in EXPECTED:
    warnings.filterwarnings("ignore", message=_message)
for _name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def fit(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    options: Trainer,
    epochs: int,
    seed: int,
    folder: Path,
    callbacks: Sequence[pl.Callback],
) -> torch.device:
    """Train for ``epochs``, from ``folder/last.ckpt`` if there is one; the device that it ran on.

    A damaged checkpoint is set aside, and what killed writers left in ``folder`` is removed: hold its lock.
    Raises :class:`StoppedError` after ``callbacks.stop_asked`` was set, and KeyboardInterrupt where Lightning turned
    one into an exit.
    """
    if rank(options.processes) == 0:
        remove_unfinished(folder)
    checkpoint = Checkpoints(folder, options.checkpoint_every_n_epochs, options.checkpoint_every_n_steps)
    budget, files = [StepBudget(options.max_steps)] if options.max_steps else [], CheckedCheckpoints()
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=options.max_steps or -1,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(options, callbacks),
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val or None,
        check_val_every_n_epoch=min(options.check_val_every_n_epoch, epochs),
        callbacks=[StepStreams(seed), *callbacks, *budget, checkpoint],
        plugins=[files, *_environment(options)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    LeanEpochLoop.install(trainer)
    start = files.start(folder / "last.ckpt", set_aside=rank(options.processes) == 0)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except BaseException as error:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.procs.clear()  # else Lightning kills us when one of them ends, before we have told of the error
        if isinstance(error, SystemExit) and trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    return trainer.strategy.root_device


def _strategy(options: Trainer, callbacks: Sequence[pl.Callback]) -> str:
    """Lightning's name of the strategy; DDP waits for ever for the gradient of a parameter that a step left out."""
    if options.processes == 1 or not any(isinstance(one, Objective) and one.skips for one in callbacks):
        return options.strategy
    return f"{options.strategy.replace('auto', 'ddp')}_find_unused_parameters_true"


def _environment(options: Trainer) -> list[Any]:
    """Where Lightning would choose wrongly: how the processes of a fit find each other."""
    if options.processes == 1:
        return [LightningEnvironment()]  # no siblings, whatever the variables of a launcher say
    if SLURMEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]  # its own checkpoints are from the middle of an epoch
    return []
