"""Mirage: train on the sets of computation trees that are frequent in their class, instead of on the graphs.

A message-passing network of L layers sees of a node v its computation tree alone,

    T_0(v) = (x_v),   T_l(v) = (x_v, multiset{ (e_vu, T_{l−1}(u)) : u ∈ N(v) }).

1. Every training graph becomes the set of its nodes' trees T_L, told apart by Weisfeiler–Leman colours (``trees.py``);
   isolated nodes are left out.
2. For each class c, all sets P of trees that at least θ_c graphs of the class hold are mined exactly (``itemsets.py``).
3. Each P becomes one training graph of class c: its trees side by side, edges from child to parent.
4. The student is trained on those alone, ``z_P = Σ_{roots r} h_r^(L)``, dropout, linear head, cross-entropy; P is drawn
   with a probability in proportion to its support. It is validated and tested on the task's own graphs.

Nothing is trained in 1–3, and the set depends on no network but through L, so one set serves every student of a split.
With L layers the roots' states equal the original nodes' for GIN and GAT; a GCN's degree norms differ on a tree.

Budget: as many epochs as every other arm, and (``steps=data``) as many optimiser steps an epoch as an arm on the full
data has, each on at most the task's batch size of tree sets. At least one step precedes the first validation.

``train/bytes`` and ``train/graphs`` of the record tell the size of the distilled set: the bytes of its tensors (int64,
one bool a node for the roots).

The released code goes once through the list an epoch (``sampling=uniform steps=set``), pools all nodes of the trees on
IMDB-B (``readout=all hops=2`` with 3 layers), and drops shared sets on NCI1 and IMDB-B, as is the default here. Its
validation of the untrained network and its choice among seeds are not followed; ``benchmarks/mirage_protocol.py`` shows
what they make of the records.

Source: Gupta, Manchanda, Kodamana, Ranu, "Mirage: Model-Agnostic Graph Distillation for Graph Classification", ICLR
2024, arXiv 2310.09486.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Len
from torch import Tensor

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage
from kdbench.engine.step import Step
from kdbench.families.graph.graph_classification import condense
from kdbench.families.graph.graph_classification.draws import SmallLoaders, size_of
from kdbench.families.graph.graph_classification.task import GraphTask


@dataclass(frozen=True)
class Hyperparameters:
    hops: Annotated[int, Ge(1)] | None = None
    """Depth L of the trees; null takes the student's number of layers, for which the roots' states are exact."""
    theta: Annotated[tuple[Annotated[int, Ge(1)], ...], Len(2)] | None = None
    """Thresholds θ_0, θ_1, …: training graphs of the class that hold a set of trees; null takes the data set's own, or
    without them a quarter of each class's training graphs."""
    drop_shared: bool | None = None
    """Remove sets that are frequent in several classes; null does so on nci1 and imdb_b, as the released scripts do."""
    sampling: Literal["frequency", "uniform"] = "frequency"
    """How sets are drawn: in proportion to their support (paper) or each as often (released code)."""
    readout: Literal["roots", "all"] = "roots"
    """Nodes that are pooled: the trees' roots, or all of them (released IMDB-B script)."""
    steps: Literal["data", "set"] = "data"
    """Optimiser steps an epoch: as many as on the full data, or once through the distilled set (released code)."""
    batch: Annotated[int, Ge(1)] | None = None
    """Tree sets a step; null takes the task's batch size, but no more than there are."""


class Mirage(Method[GraphTask]):
    """Adds no loss term: other training data."""

    title = "training on frequent computation trees"
    paper = "https://arxiv.org/abs/2310.09486"
    teacher = "none"
    options: Hyperparameters

    def stages(self, task: GraphTask) -> Sequence[Stage]:
        options = self.options
        layers = task.config.student.layers
        chosen = condense.settings(task.graphs, layers, options.hops, options.theta, options.drop_shared)
        return [condense.stage(task.graphs, chosen)]

    def data(self, task: GraphTask) -> SmallLoaders:
        options, condensed = self.options, condense.load(task.folder(condense.STAGE))
        self.distilled = condensed.graphs if options.readout == "roots" else replace(condensed.graphs, read=None)
        weights = condensed.support if options.sampling == "frequency" else None
        return SmallLoaders(task, self.distilled, weights, options.steps, options.batch)

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        step.logs |= size_of(self.distilled)
        return {}
