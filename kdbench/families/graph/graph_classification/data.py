"""Graph-classification data: generated motifs, sets of the TU collection in two formats, molecules of OGB."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError
from kdbench.families.graph.graph_classification.options import OGB, TU, GraphData, Motifs
from kdbench.families.graph.graph_classification.tu import LABELS, TU_FILES, files_of, read_collection, read_dgcnn
from kdbench.families.graph.node_classification.graphs import OGB_SPLITS, SPLITS, TEST, TRAIN, VAL
from kdbench.hashing import digest, remembered
from kdbench.plan.datasets import Dataset, dataset, fetch, folder_of, reading_options


@dataclass(frozen=True)
class Graphs:
    """Many graphs in flat tensors: nodes and directed edges lie graph by graph."""

    x: Tensor
    """Node labels, int64 ``[n, k]``: one categorical number a column."""
    edges: Tensor
    """From and to, int64 ``[2, e]``, node numbers of the whole set."""
    edge_labels: Tensor
    """int64 ``[e, m]``; m = 0 without edge labels."""
    y: Tensor
    """Classes, int64 ``[g]``."""
    nodes: Tensor
    """Number of nodes, int64 ``[g]``."""
    sizes: Tensor
    """Number of directed edges, int64 ``[g]``."""
    read: Tensor | None = None
    """bool ``[n]``: the nodes whose last states are pooled; all of them where it is None."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def bytes(self) -> int:
        """Size of the tensors: 8 bytes a number, 1 a node for ``read``."""
        return int(self.bytes_each().sum())

    def bytes_each(self) -> Tensor:
        """Bytes of each graph's part of the tensors, int64 ``[g]``."""
        node = 8 * self.x.shape[1] + (0 if self.read is None else 1)
        return 24 + node * self.nodes + (16 + 8 * self.edge_labels.shape[1]) * self.sizes

    @functools.cached_property
    def _starts(self) -> tuple[Tensor, Tensor]:
        return self.nodes.cumsum(0) - self.nodes, self.sizes.cumsum(0) - self.sizes

    def take(self, ids: Tensor) -> Graphs:
        """The graphs ``ids`` (int64 ``[b]``) in that order; one may come more than once."""
        nodes, sizes = self.nodes[ids], self.sizes[ids]
        first_node, first_edge = (start[ids] for start in self._starts)
        node, edge = _ranges(first_node, nodes), _ranges(first_edge, sizes)
        shift = (nodes.cumsum(0) - nodes - first_node).repeat_interleave(sizes)
        read = None if self.read is None else self.read[node]
        return Graphs(
            self.x[node], self.edges[:, edge] + shift, self.edge_labels[edge], self.y[ids], nodes, sizes, read
        )

    def batch(self, ids: Tensor) -> Batch:
        """The graphs ``ids`` as one PyG batch: ``x``, ``edge_index``, ``edge_attr``, ``y``, ``batch``, ``ptr``.

        ``rows`` are the ``ids``, ``read`` (where the set has it) the nodes to pool.
        """
        taken = self.take(ids)
        fields: dict[str, Any] = {"x": taken.x, "edge_index": taken.edges, "edge_attr": taken.edge_labels, "y": taken.y}
        if taken.read is not None:
            fields["read"] = taken.read
        batch = torch.arange(len(ids)).repeat_interleave(taken.nodes)
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), taken.nodes.cumsum(0)])
        return Batch(**fields, rows=ids, batch=batch, ptr=ptr)


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """``starts[i] … starts[i] + lengths[i] − 1`` of every i, one after the other."""
    shift = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)


@dataclass(frozen=True)
class GraphSet:
    """Labelled graphs with one split."""

    name: str
    graphs: Graphs
    split: Tensor
    """int64 ``[g]``: 0 train, 1 validation, 2 test."""
    sha256: str
    how: Motifs = field(default_factory=Motifs)
    """What its description says for methods."""

    @property
    def classes(self) -> int:
        """Number of classes, two at least."""
        return max(2, int(self.graphs.y.max()) + 1)

    @property
    def node_values(self) -> tuple[int, ...]:
        """Number of values of each column of node labels."""
        return tuple((self.graphs.x.max(dim=0).values + 1).tolist())

    @property
    def edge_values(self) -> tuple[int, ...]:
        """Number of values of each column of edge labels."""
        labels = self.graphs.edge_labels
        return tuple((labels.max(dim=0).values + 1).tolist()) if labels.numel() else ()

    def ids(self, split: str) -> Tensor:
        """Graphs of a split, int64 ascending."""
        return (self.split == SPLITS[split]).nonzero().flatten()

    @property
    def split_sha256(self) -> str:
        """Digest of the split."""
        return digest(self.split.tolist())


@remembered(4)
def load(name: str, options: GraphData, seed: int) -> GraphSet:
    """The data set ``name`` for one run seed. Raises :class:`kdbench.errors.DataError` for files that are not sound."""
    split = axis(seed, "split") if options.split == "random" else 0
    data, described = read(name, options, split), dataset(name)
    if not data.graphs.edges.shape[1]:
        raise DataError(f"{data.name} has no edge in any of its {len(data.graphs)} graphs.")
    hint = " Take more data.graphs." if described.generated else ""
    # the area under the ROC curve of two classes needs both, wherever it is computed
    needed = inputs.SPLITS if data.classes == 2 else ("train",)
    inputs.covered(data.graphs.y.numpy(), data.split.numpy(), data.classes, data.name, needed, hint)
    return data


def read(name: str, options: GraphData, split: int) -> GraphSet:
    """The data set ``name`` with one of its splits, before any check of the whole."""
    data = dataset(name)
    how = reading_options(data)
    return replace(READERS[data.reader](data, how, options, split), how=how)


def permuted_split(graphs: int, seed: int, validation: float = 0.1, test: float = 0.1) -> Tensor:
    """80/10/10 % or other shares: ``p = RandomState(seed).permutation(graphs)``.

    The first ``⌊(validation + test)·graphs⌋`` of ``p`` are held out: the first of them validate, by their share, the
    others test.
    """
    order = np.random.RandomState(seed).permutation(graphs)
    held = int((validation + test) * graphs)
    validating = int(held * validation / (validation + test))
    groups = np.full(graphs, TRAIN)
    groups[order[:validating]] = VAL
    groups[order[validating:held]] = TEST
    return torch.from_numpy(groups)


def assemble(
    labels: np.ndarray, pairs: np.ndarray, pair_labels: np.ndarray, y: np.ndarray, nodes: np.ndarray, sizes: np.ndarray
) -> Graphs:
    """Graphs from arrays; ``pairs`` ``[2, e]`` are node numbers inside each graph."""
    starts = np.cumsum(nodes) - nodes
    edges = pairs + np.repeat(starts, sizes)
    arrays = labels, edges, pair_labels, y, nodes, sizes
    return Graphs(*(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays))


MOTIFS: tuple[tuple[tuple[int, ...], tuple[tuple[int, int, int], ...], float], ...] = (
    ((1, 1, 2), ((0, 1, 0), (1, 2, 0), (2, 0, 1)), 0.75),
    ((2, 3, 2, 3), ((0, 1, 1), (1, 2, 0), (2, 3, 1), (3, 0, 0)), 0.6),
    ((3, 1, 1, 1), ((0, 1, 0), (0, 2, 0), (0, 3, 1)), 0.4),
    ((1, 2, 1, 3), ((0, 1, 1), (1, 2, 1), (2, 3, 1)), 0.25),
)
"""Node labels, edges with their labels, and the share of class 0 among the graphs that have the motif."""


def motifs(data: Dataset, how: Motifs, options: GraphData, split: int) -> GraphSet:
    """Random trees of 4 to 8 nodes (mostly of label 0) with three motifs hung on; the class tells which are likely."""
    rng = np.random.default_rng(axis(0, "motifs"))
    y = rng.permutation(np.arange(options.graphs) % 2)
    share = np.array([motif[2] for motif in MOTIFS])
    chances = np.stack([share, 1 - share]) / np.stack([share, 1 - share]).sum(axis=1, keepdims=True)
    labels: list[np.ndarray] = []
    pairs: list[tuple[int, int, int]] = []
    sizes = np.empty(options.graphs, dtype=np.int64)
    for graph, kind in enumerate(y):
        before, count = len(pairs), int(rng.integers(4, 9))
        tags = [*rng.choice(4, size=count, p=[0.85, 0.05, 0.05, 0.05]).tolist()]
        parents = (rng.random(count) * np.arange(count)).astype(int)
        pairs += [(int(parents[node]), node, 0) for node in range(1, count)]
        for motif, at in zip(
            rng.choice(len(MOTIFS), size=3, p=chances[kind]), rng.integers(count, size=3), strict=True
        ):
            start = len(tags)
            tags += MOTIFS[motif][0]
            pairs += [(start + a, start + b, label) for a, b, label in MOTIFS[motif][1]]
            pairs.append((int(at), start, 1))
        labels.append(np.array(tags))
        sizes[graph] = len(pairs) - before
    nodes = np.array([len(tags) for tags in labels])
    once = np.array(pairs)
    both, both_labels, sizes = _both_directions(once[:, :2].T, once[:, 2:], sizes)
    graphs = assemble(np.concatenate(labels)[:, None], both, both_labels, y, nodes, sizes)
    sha256 = digest({"labels": np.concatenate(labels).tolist(), "edges": pairs, "y": y.tolist()})
    return GraphSet(data.name, graphs, permuted_split(options.graphs, split), sha256)


def _both_directions(
    pairs: np.ndarray, labels: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every edge in both directions, next to each other."""
    both = np.stack([pairs, pairs[::-1]], axis=2).reshape(2, -1)
    return both, labels.repeat(2, axis=0), 2 * sizes


def tu(data: Dataset, how: TU, options: GraphData, split: int) -> GraphSet:
    """A TU set, split by :func:`permuted_split`; with ``how.degrees`` they take the place of node labels.

    Its files are the collection's own (:func:`read_collection`) or one in DGCNN's text format: the number of graphs,
    and for each ``n label`` and n lines ``label m neighbour_1 … neighbour_m``.
    """
    if how.validation + how.test >= 1:
        raise DataError(f"{data.name}: validation and test leave no graph for training.")
    listed = list(data.files) or files_of(folder_of(data))
    paths, sha256 = fetch(data, listed)
    read = read_dgcnn(*paths.values()) if len(paths) == 1 else read_collection(paths)
    classes, y = np.unique(read.classes, return_inverse=True)
    if len(classes) < 2:
        where = paths.get(next((name for name in listed if name.endswith(TU_FILES[2])), listed[0]))
        raise DataError(f"{where} has graphs of the class {classes.tolist()} alone: there is nothing to tell apart.")
    labels = read.labels
    if how.degrees:
        first = np.cumsum(read.nodes) - read.nodes
        labels = np.bincount(read.pairs[1] + np.repeat(first, read.sizes), minlength=int(read.nodes.sum()))[:, None]
    if labels is None:
        raise DataError(
            f"{data.name} has no labels of nodes ({data.name}_node_labels.txt): say 'degrees: true' to take degrees."
        )
    graphs = assemble(labels, read.pairs, read.pair_labels, y, read.nodes, read.sizes)
    return GraphSet(data.name, graphs, permuted_split(len(graphs), split, how.validation, how.test), sha256)


OGB_TABLES = ("edge", "edge-feat", "graph-label", "node-feat", "num-edge-list", "num-node-list")


def ogb(data: Dataset, how: OGB, options: GraphData, split: int) -> GraphSet:
    """Molecules of OGB with one of its own splits (its files list each edge once)."""
    parts = [f"split/{how.split}/{part}" for part in OGB_SPLITS]
    listed = [f"{name}.csv.gz" for name in (*(f"raw/{table}" for table in OGB_TABLES), *parts)]
    paths, sha256 = fetch(data, list(data.files) or listed)
    tables = {file.removesuffix(".csv.gz"): _table(path) for file, path in paths.items()}
    files = {name: str(paths[f"{name}.csv.gz"]) for name in tables}
    _check_tables(tables, files, how.classes)
    nodes, once, y = (tables[f"raw/{name}"][:, 0] for name in ("num-node-list", "num-edge-list", "graph-label"))
    pairs, labels, sizes = _both_directions(tables["raw/edge"].T, tables["raw/edge-feat"], once)
    graphs = assemble(tables["raw/node-feat"], pairs, labels, y, nodes, sizes)
    groups = inputs.disjoint({files[name]: tables[name][:, 0] for name in parts}, len(y), "graph")
    if (groups < 0).any():
        raise DataError(f"Graph {(groups < 0).argmax()} is in none of {', '.join(files[name] for name in parts)}.")
    return GraphSet(data.name, graphs, torch.from_numpy(groups), sha256)


def _table(path: Path) -> np.ndarray:
    with inputs.reading(path), gzip.open(path, "rt") as lines:
        return np.loadtxt(lines, dtype=np.int64, delimiter=",", ndmin=2)


def _check_tables(tables: Mapping[str, np.ndarray], files: Mapping[str, str], classes: int) -> None:
    """Raise :class:`DataError` unless OGB's tables, by name, fit together."""
    for name, table in tables.items():
        columns = {"raw/node-feat": None, "raw/edge-feat": None, "raw/edge": 2}.get(name, 1)
        inputs.numbers(table, files[name], (None, columns))

    def check(name: str, what: str, low: int, high: int | np.ndarray) -> None:
        for column in tables[f"raw/{name}"].T:
            inputs.integers(column, files[f"raw/{name}"], what, low, high, lines=True)

    def same(*names: str, **more: int) -> None:
        inputs.same_length({files[f"raw/{name}"]: len(tables[f"raw/{name}"]) for name in names} | more)

    same("graph-label", "num-node-list", "num-edge-list")
    check("num-node-list", "number of nodes", 1, LABELS)
    check("num-edge-list", "number of edges", 0, LABELS)
    nodes, once = (tables[f"raw/num-{name}-list"][:, 0] for name in ("node", "edge"))
    same("node-feat", **{f"{files['raw/num-node-list']} in all": int(nodes.sum())})
    same("edge", "edge-feat", **{f"{files['raw/num-edge-list']} in all": int(once.sum())})
    check("graph-label", "label", 0, classes)
    check("node-feat", "label", 0, LABELS)
    check("edge-feat", "label", 0, LABELS)
    check("edge", "node", 0, nodes.repeat(once))


READERS: dict[str, Callable[[Dataset, Any, GraphData, int], GraphSet]] = {"motifs": motifs, "tu": tu, "ogb": ogb}


def concatenate(parts: Sequence[Graphs]) -> Graphs:
    """Several sets as one; all or none of them say which nodes are read."""
    starts = np.cumsum([0, *(len(part.x) for part in parts[:-1])]).tolist()
    read = None if parts[0].read is None else torch.cat([part.read for part in parts if part.read is not None])
    return Graphs(
        torch.cat([part.x for part in parts]),
        torch.cat([part.edges + start for part, start in zip(parts, starts, strict=True)], dim=1),
        torch.cat([part.edge_labels for part in parts]),
        torch.cat([part.y for part in parts]),
        torch.cat([part.nodes for part in parts]),
        torch.cat([part.sizes for part in parts]),
        read,
    )
