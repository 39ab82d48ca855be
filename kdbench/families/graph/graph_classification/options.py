"""Options of graph classification; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from kdbench.plan.metrics import ACCURACY, AUC, share
from kdbench.plan.options import LATER, Before
from kdbench.plan.own import OrOwn


@dataclass(frozen=True)
class GraphData:
    """A set of small labelled graphs."""

    split: Annotated[Literal["random", "fixed"], Before("fixed")] = "random"
    """random: the run seed draws which graphs train, validate and test; fixed: one draw for all seeds. A set with a
    split of its own (molbace) keeps it."""
    batch_size: Annotated[int, Gt(0)] = 64
    """Training graphs a step."""
    graphs: Annotated[int, Gt(19)] = 400
    """Generated set: number of graphs."""


@dataclass(frozen=True)
class GraphStudent:
    """A message-passing network for whole graphs: label embeddings, convolutions, pooling, dropout, linear head.

    One of your own is built as ``Class(node_values=…, edge_values=…, classes=…, **options)``: the number of values of
    each column of node and edge labels. Its ``forward(batch)`` takes a PyG batch with ``x`` int64 ``[n, columns]``,
    ``edge_index``, ``edge_attr`` int64 ``[e, columns]`` and ``batch``, and gives logits ``[b, classes]``. Where the
    batch has ``read``, bool ``[n]``, those nodes alone make the graph's state: Mirage trains on such trees.
    """

    name: Annotated[Literal["gcn", "gat", "gin"], OrOwn()] = "gin"
    """Convolution: GCN, GAT (4 heads), GIN, which read edge labels where there are any; or module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    width: Annotated[int, Gt(3)] = 128
    """Width of every state."""
    layers: Annotated[int, Gt(0)] = 3
    """Message-passing layers."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """Dropout of the pooled state."""
    pool: Literal["sum", "mean"] = "sum"
    """How the nodes' last states make the graph's."""
    norm: Annotated[Literal["none", "batch", "layer"], LATER] = "none"
    """Batch or layer norm after every convolution. Layer norm knows one node alone, as Mirage's trees want it."""
    readout: Annotated[Literal["last", "all"], LATER] = "last"
    """Which states are pooled: the last alone, or the labels' embedding and every convolution's, side by side."""


@dataclass(frozen=True)
class GraphTeacher:
    """The frozen teacher: a network of the student's kind, trained on the labels of all training graphs.

    One of your own keeps to the student's contract, and computes in float64 where its weights are of that type.
    """

    name: Annotated[Literal["gcn", "gat", "gin"], OrOwn()] = "gin"
    """Convolution: GCN, GAT (4 heads), GIN; or a network of your own, module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    weights: Annotated[str | None, LATER] = None
    """A safetensors file of the network's weights, which takes the place of its training."""
    width: Annotated[int, Gt(3)] = 128
    """Width of every state."""
    layers: Annotated[int, Gt(0)] = 3
    """Message-passing layers."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """Dropout of the pooled state."""
    pool: Literal["sum", "mean"] = "sum"
    """How the nodes' last states make the graph's."""
    norm: Annotated[Literal["none", "batch", "layer"], LATER] = "none"
    """Batch or layer norm after every convolution. Layer norm knows one node alone, as Mirage's trees want it."""
    readout: Annotated[Literal["last", "all"], LATER] = "last"
    """Which states are pooled: the last alone, or the labels' embedding and every convolution's, side by side."""
    epochs: Annotated[int, Gt(0)] = 30
    """Epochs of the teacher's training."""
    seed: Annotated[int, Ge(0)] | None = None
    """Seed of the teacher's training; null draws it from the run seed, and any other serves all run seeds."""
    source: Annotated[Literal["trained", "outputs"], LATER] = "trained"
    """trained: as above; outputs: logits computed elsewhere, read from ``path``."""
    path: Annotated[str | None, LATER] = None
    """outputs: a .npz or .safetensors file with 'ids' (see 'kdbench data rows'), 'logits' and further outputs."""
    cache: bool = True
    """Read the teacher's outputs from the cache instead of computing them at every step; the numbers are the same."""


@dataclass(frozen=True)
class Motifs:
    """Generated graphs, and what every reader may be told of its set."""

    theta: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Mirage's thresholds, one a class; without them they are a share of each class's training graphs."""
    drop_shared: bool = False
    """Whether Mirage drops the sets of trees that are frequent in several classes, unless it is told."""


@dataclass(frozen=True)
class TU(Motifs):
    """A set of the TU Dortmund collection: ``NAME_A.txt``, ``NAME_graph_indicator.txt`` …, or one file of DGCNN's."""

    degrees: bool = False
    """Take the nodes' degrees in the place of their labels."""
    validation: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Share of the graphs for validation, drawn at random."""
    test: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Share of the graphs for the test."""


@dataclass(frozen=True)
class OGB(Motifs):
    """A set of the Open Graph Benchmark: ``raw/*.csv.gz`` and ``split/SPLIT/*.csv.gz``."""

    split: str = "scaffold"
    """The folder of its split."""
    classes: Annotated[int, Gt(1)] = 2
    """Number of classes."""


READERS = {"motifs": Motifs, "tu": TU, "ogb": OGB}

SECTIONS = {"data": GraphData, "student": GraphStudent, "teacher": GraphTeacher}

METRICS = (
    share(
        "auc",
        "area under the ROC curve of z_1 − z_0; not defined where all graphs are of one class; of more than two "
        "classes the mean of each one's against the others, not defined where one has no graph",
        AUC,
    ),
    share("accuracy", "share of examples whose largest logit is that of their class", ACCURACY),
)
