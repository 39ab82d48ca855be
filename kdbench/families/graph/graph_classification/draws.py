"""Training on a small set of graphs in place of the training graphs, at the same number of optimiser steps."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kdbench.engine.loaders import Loaders, Order, Rows
from kdbench.engine.seeds import axis
from kdbench.families.graph.graph_classification.data import Graphs
from kdbench.families.graph.graph_classification.task import GraphTask, collate, graph_rows


class Draws(Order):
    """Graph numbers of one epoch, which depend on (seed, epoch) alone; every process gets its share.

    With ``weights`` they are drawn in proportion to them, with replacement; without, the whole set is gone through in
    one random order after another.
    """

    def __init__(self, count: int, weights: Tensor | None, draws: int, seed: int, place: tuple[int, int]) -> None:
        self.count, self.weights, self.draws, self.seed = count, weights, draws, seed
        self.world, self.rank = place

    def __len__(self) -> int:
        return self.draws

    def rows(self) -> list[int]:
        generator = torch.Generator().manual_seed(axis(self.seed, "data_order", self.epoch))
        total = self.draws * self.world
        if self.weights is not None:
            drawn = torch.multinomial(self.weights.double(), total, replacement=True, generator=generator)
        else:
            rounds = range(math.ceil(total / self.count))
            drawn = torch.cat([torch.randperm(self.count, generator=generator) for _ in rounds])[:total]
        numbers: list[int] = drawn[self.rank :: self.world].tolist()
        return numbers


class SmallLoaders(Loaders):
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
        self.graphs, self.batch_size = task.graphs, task.config.data.batch_size
        super().__init__(self.rows_of, task.config.seed)
        self.small, self.weights, self.steps = small, weights, steps
        self.small_batch = batch or min(self.batch_size, len(small))

    def rows_of(self, split: str) -> Rows:
        """The small set for training, the task's own graphs of the other splits."""
        if split != "train":
            return graph_rows(self.graphs, self.batch_size, split)
        every = torch.arange(len(self.small))
        return Rows(len(self.small), partial(collate, self.small, every), self.small_batch)

    def order(self, rows: Rows) -> Draws:
        world, _ = self.place
        draws = math.ceil(rows.count / world)
        if self.steps == "data":
            share = math.ceil(len(self.graphs.ids("train")) / world)
            draws = math.ceil(share / self.batch_size) * self.small_batch
        return Draws(rows.count, self.weights, draws, self.seed, self.place)


def size_of(small: Graphs) -> dict[str, Tensor]:
    """The size of a training set for the log: ``bytes`` of its tensors, number of ``graphs``."""
    return {"bytes": torch.tensor(float(small.bytes)), "graphs": torch.tensor(float(len(small)))}
