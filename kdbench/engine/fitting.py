"""Fits with Lightning, the same way for the student and for a stage that trains a network: seeded, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment  # type: ignore[attr-defined]

from kdbench.engine.callbacks import AtomicCheckpoints, Checkpoints, StepStreams
from kdbench.engine.distributed import started
from kdbench.engine.method import Method
from kdbench.options import Trainer


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

    Raises :class:`StoppedError` after ``callbacks.stop_asked`` was set, and KeyboardInterrupt where Lightning turned
    one into an exit.
    """
    checkpoint = Checkpoints(folder, options.checkpoint_every_n_epochs)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(options, callbacks),
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val or None,
        check_val_every_n_epoch=min(options.check_val_every_n_epoch, epochs),
        callbacks=[StepStreams(seed), *callbacks, checkpoint],
        plugins=[AtomicCheckpoints(), *_environment(options)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    start = str(last) if last.exists() else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=False)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    return trainer.strategy.root_device


def _strategy(options: Trainer, callbacks: Sequence[pl.Callback]) -> str:
    """Lightning's name of the strategy; DDP waits for ever for the gradient of a parameter that a step left out."""
    if options.processes == 1 or not any(isinstance(one, Method) and one.skips for one in callbacks):
        return options.strategy
    return f"{options.strategy.replace('auto', 'ddp')}_find_unused_parameters_true"


def _environment(options: Trainer) -> list[Any]:
    """Where Lightning would choose wrongly: how the processes of a fit find each other."""
    if options.processes == 1 and started() > 1:
        return [LightningEnvironment()]  # a stage, which shall not look for our siblings
    if SLURMEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]  # its own checkpoints are from the middle of an epoch
    return []
