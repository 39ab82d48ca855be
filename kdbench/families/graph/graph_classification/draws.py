"""Training on a small set of graphs in place of the training graphs, at the same number of optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch_geometric.data import Batch

from kdbench.engine.seeds import axis
from kdbench.families.graph.graph_classification.data import Graphs
from kdbench.families.graph.graph_classification.task import GraphLoaders, GraphTask, loader


class Draws(Sampler[int]):
    """Graph numbers of one epoch, which depend on (seed, epoch) alone; every process gets its share.

    With ``weights`` they are drawn in proportion to them, with replacement; without, the whole set is gone through in
    one random order after another.
    """

    def __init__(self, count: int, weights: Tensor | None, draws: int, seed: int, place: tuple[int, int]) -> None:
        self.count, self.weights, self.draws, self.seed, self.epoch = count, weights, draws, seed, 0
        self.world, self.rank = place

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(axis(self.seed, "data_order", self.epoch))
        total = self.draws * self.world
        if self.weights is not None:
            drawn = torch.multinomial(self.weights.double(), total, replacement=True, generator=generator)
        else:
            rounds = range(math.ceil(total / self.count))
            drawn = torch.cat([torch.randperm(self.count, generator=generator) for _ in rounds])[:total]
        return iter(drawn[self.rank :: self.world].tolist())


class SmallLoaders(GraphLoaders):
    """The task's loaders with another training set, ``small``.

    Batches hold ``batch`` graphs, by default the task's batch size, but no more than there are. ``steps``: 'data' gives
    an epoch as many optimiser steps as one over the task's training graphs has, 'set' goes through ``small`` once.
    """

    def __init__(
        self,
        task: GraphTask,
        small: Graphs,
        weights: Tensor | None,
        steps: Literal["data", "set"],
        batch: int | None,
    ) -> None:
        super().__init__(task.graphs, task.config.data.batch_size, task.config.seed)
        self.small, self.weights, self.steps = small, weights, steps
        self.small_batch = batch or min(self.batch_size, len(small))

    def train_dataloader(self) -> DataLoader[Batch]:
        world, _ = self.place
        draws = math.ceil(len(self.small) / world)
        if self.steps == "data":
            share = math.ceil(len(self.graphs.ids("train")) / world)
            draws = math.ceil(share / self.batch_size) * self.small_batch
        sampler = Draws(len(self.small), self.weights, draws, self.seed, self.place)
        return loader(self.small, torch.arange(len(self.small)), self.small_batch, sampler)


def size_of(small: Graphs) -> dict[str, Tensor]:
    """The size of a training set for the log: ``bytes`` of its tensors, number of ``graphs``."""
    return {"bytes": torch.tensor(float(small.bytes)), "graphs": torch.tensor(float(len(small)))}
