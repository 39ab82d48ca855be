"""Trainings that can be compared step by step, and a family of plain vectors for the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from kdbench.engine.callbacks import Selection
from kdbench.engine.method import Method
from kdbench.engine.module import DistillationModule
from kdbench.engine.runner import Session, Silent
from kdbench.engine.teachers import Outputs
from kdbench.methods.kd import KD, Hyperparameters
from kdbench.plan.config import RunConfig, expand
from kdbench.plan.options import Optimizer

Batch = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Inputs ``[b, d]``, labels ``[b]`` and ``{"rows": [b]}``: the triple that torchdistill's boxes expect."""


class Clock:
    """Notes when every training step begins: at the student's first layer, the same place in every loop.

    It also seeds dropout by the number of the step, so that loops with equal weights draw equal masks.
    """

    def __init__(self, first: nn.Module) -> None:
        self.starts: list[float] = []
        first.register_forward_pre_hook(self._tick)

    def _tick(self, layer: nn.Module, inputs: Any) -> None:
        if layer.training:
            torch.default_generator.manual_seed(len(self.starts))
            self.starts.append(time.perf_counter())

    def intervals(self) -> Iterator[float]:
        """Seconds from each step's beginning to the next one's."""
        return (after - before for before, after in zip(self.starts, self.starts[1:], strict=False))


@dataclass(frozen=True)
class Trained:
    """A finished training: how long each step and the whole took, and the weights that came out."""

    steps: list[float]
    seconds: float
    weights: Mapping[str, Tensor]


def same_weights(trainings: Mapping[str, list[Trained]], expected: str) -> int:
    """Check that every training ended with the bits of ``expected``'s first one; returns the number of its steps."""
    reference = trainings[expected][0]
    for name, results in trainings.items():
        for result in results:
            pairs = zip(sorted(result.weights.items()), sorted(reference.weights.items()), strict=True)
            different = [mine for (mine, a), (theirs, b) in pairs if mine != theirs or not torch.equal(a, b)]
            if different:
                raise AssertionError(f"'{name}' and '{expected}' trained different weights: {', '.join(different)}")
    return len(reference.steps) + 1


def mlp(inputs: int, width: int, depth: int, classes: int) -> nn.Sequential:
    """``depth`` blocks of Linear, LayerNorm and GELU, and a linear head."""
    blocks = [
        nn.Sequential(nn.Linear(width if i else inputs, width), nn.LayerNorm(width), nn.GELU()) for i in range(depth)
    ]
    return nn.Sequential(*blocks, nn.Linear(width, classes))


class Rows(Dataset[Batch]):
    """Random vectors with random labels; a batch is fetched in one step."""

    def __init__(self, rows: int, width: int, classes: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, width, generator=generator)
        self.y = torch.randint(classes, (rows,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        return self.x[rows], self.y[rows], {"rows": rows}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.batch(torch.tensor(indices))


def unchanged(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch


def shuffled_rows(data: Rows) -> DistributedSampler[Batch]:
    """The sampler of one process; ``set_epoch`` chooses the order."""
    return DistributedSampler(data, num_replicas=1, rank=0, seed=0)


class VectorLoaders(pl.LightningDataModule):
    """Shuffled training batches; one batch to validate on."""

    def __init__(self, data: Rows, batch_size: int) -> None:
        super().__init__()
        self.rows, self.batch_size = data, batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.rows, self.batch_size, sampler=shuffled_rows(self.rows), collate_fn=unchanged)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.rows, self.batch_size, sampler=range(self.batch_size), collate_fn=unchanged)


class VectorModule(DistillationModule):
    """Classification of vectors in the engine's terms."""

    def __init__(self, student: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(student, optimizer)
        self._right: list[Tensor] = []

    def forward_batch(self, batch: Batch) -> Outputs:
        return {"logits": self.student(batch[0])}

    def targets(self, batch: Batch) -> Tensor:
        return batch[1]

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        return {"task": F.cross_entropy(output["logits"], targets)}

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        self._right.append(output["logits"].argmax(dim=-1) == targets)

    def results(self, split: str) -> dict[str, float]:
        right, self._right = torch.cat(self._right), []
        return {"accuracy": float(right.float().mean())}


class VectorTask:
    """What a session asks of a task while it trains."""

    def __init__(self, data: Rows, batch_size: int) -> None:
        self._loaders = VectorLoaders(data, batch_size)

    def data(self) -> VectorLoaders:
        """The loaders."""
        return self._loaders

    def selection(self) -> Selection:
        """Keeps the weights of the best accuracy."""
        return Selection("accuracy")


class VectorSession(Session):
    """The engine's own training over vectors, by plain KD."""

    def __init__(self, config: RunConfig, task: Any, folder: Path) -> None:
        self.config, self.task, self.folder, self.reporter = config, task, folder, Silent()
        self.method: Method = KD(Hyperparameters())


def vector_config(epochs: int) -> RunConfig:
    """The run configuration that a session over vectors reads its trainer and optimizer from."""
    (config,) = expand(["task=gnn", "method=kd", f"trainer.max_epochs={epochs}"])
    trainer = replace(config.trainer, accelerator="cpu", check_val_every_n_epoch=epochs)
    return replace(config, trainer=trainer, optimizer=Optimizer(lr=1e-3))


def by_engine(session: Session, module: DistillationModule, first: nn.Module, folder: Path) -> Trained:
    """Train by the engine, just as a run does; ``folder`` must be empty."""
    session.folder, clock = folder, Clock(first)
    start = time.perf_counter()
    session.train(module)
    seconds = time.perf_counter() - start
    parts = {"student": module.student, "method": module.networks}
    return Trained(list(clock.intervals()), seconds, weights(parts))


def weights(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter and buffer by the name of its part and its own."""
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
