"""Random graphs: the control that a condensed training set has to beat.

The student is trained on real training graphs drawn at random, of each class as many as Mirage's set for the same
thresholds has (``match=count``), or as many as fit into the bytes of that class in Mirage's set (``match=bytes``; of
each class at least the smallest graph). Each run seed draws its own. Budget, validation and the fields ``train/bytes``
and ``train/graphs`` of the record are those of Mirage; every graph is drawn as often.

Source: the baseline "Random" of arXiv 2310.09486.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Len
from torch import Tensor

from kdbench.engine.method import Method
from kdbench.engine.seeds import axis
from kdbench.engine.stages import Stage
from kdbench.engine.step import Step
from kdbench.families.graph.graph_classification import condense
from kdbench.families.graph.graph_classification.data import Graphs
from kdbench.families.graph.graph_classification.draws import SmallLoaders, size_of
from kdbench.families.graph.graph_classification.task import GraphTask


@dataclass(frozen=True)
class Hyperparameters:
    match: Literal["count", "bytes"] = "count"
    """What each class has in common with Mirage's set: the number of graphs, or the bytes of their tensors."""
    hops: Annotated[int, Ge(1)] | None = None
    """Depth of the trees of that set; null takes the student's number of layers."""
    theta: Annotated[tuple[Annotated[int, Ge(1)], ...], Len(2)] | None = None
    """Thresholds of that set; null takes the data set's own."""
    drop_shared: bool | None = None
    """Whether that set lacks what is frequent in both classes; null does so on nci1 and imdb_b."""
    steps: Literal["data", "set"] = "data"
    """Optimiser steps an epoch: as many as on the full data, or once through the drawn graphs."""
    batch: Annotated[int, Ge(1)] | None = None
    """Graphs a step; null takes the task's batch size, but no more than there are."""


class RandomGraphs(Method[GraphTask]):
    """Adds no loss term: other training data."""

    title = "training on a few random graphs"
    paper = "https://arxiv.org/abs/2310.09486"
    teacher = "none"
    role = "control"
    options: Hyperparameters

    def stages(self, task: GraphTask) -> Sequence[Stage]:
        options = self.options
        layers = task.config.student.layers
        chosen = condense.settings(task.graphs, layers, options.hops, options.theta, options.drop_shared)
        return [condense.stage(task.graphs, chosen)]

    def data(self, task: GraphTask) -> SmallLoaders:
        target, data = condense.load(task.folder(condense.STAGE)).graphs, task.graphs
        train = data.graphs.take(data.ids("train"))
        generator = torch.Generator().manual_seed(axis(task.config.seed, "method"))
        draw = draw_count if self.options.match == "count" else draw_bytes
        self.drawn = train.take(draw(train, target, generator))
        return SmallLoaders(task, self.drawn, None, self.options.steps, self.options.batch)

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        step.logs |= size_of(self.drawn)
        return {}


def draw_count(train: Graphs, target: Graphs, generator: torch.Generator) -> Tensor:
    """Of each class as many of ``train`` as ``target`` has, int64."""
    drawn = []
    for label in range(int(target.y.max()) + 1):
        mine = (train.y == label).nonzero().flatten()
        drawn.append(mine[torch.randperm(len(mine), generator=generator)][: int((target.y == label).sum())])
    return torch.cat(drawn)


def draw_bytes(train: Graphs, target: Graphs, generator: torch.Generator) -> Tensor:
    """Of each class, in random order, those of ``train`` that still fit into its bytes in ``target``, int64."""
    sizes, drawn = train.bytes_each(), []
    for label in range(int(target.y.max()) + 1):
        mine = (train.y == label).nonzero().flatten()
        room = int(target.bytes_each()[target.y == label].sum())
        chosen = []
        for graph in mine[torch.randperm(len(mine), generator=generator)].tolist():
            if sizes[graph] <= room:
                chosen.append(graph)
                room -= int(sizes[graph])
        drawn.append(torch.tensor(chosen) if chosen else mine[sizes[mine].argmin()][None])
    return torch.cat(drawn)
