"""Graph-classification data: generated motifs, the TU sets in the DGCNN text format, ogbg-molbace."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError, unknown
from kdbench.families.graph.graph_classification.options import GraphData
from kdbench.families.graph.node_classification.data import OGB_SPLITS, SPLITS, TEST, TRAIN, VAL
from kdbench.hashing import digest, remembered
from kdbench.plan.datasets import dataset, fetch

LABELS = 2**20  # values of a column of labels at most: each has an embedding


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
    """Graphs of two classes with one split."""

    name: str
    graphs: Graphs
    split: Tensor
    """int64 ``[g]``: 0 train, 1 validation, 2 test."""
    sha256: str

    classes = 2

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
def load(name: str, options: GraphData) -> GraphSet:
    """The data set ``name``. Raises :class:`kdbench.errors.DataError` when its files are not sound."""
    if name not in LOADERS:
        raise unknown("graph-classification data set", name, LOADERS)
    data = LOADERS[name](options)
    if not data.graphs.edges.shape[1]:
        raise DataError(f"{name} has no edge in any of its {len(data.graphs)} graphs.")
    hint = " Take more data.graphs." if dataset(name).generated else ""
    # the area under the ROC curve is of two classes, wherever it is computed
    inputs.covered(data.graphs.y.numpy(), data.split.numpy(), data.classes, name, inputs.SPLITS, hint)
    return data


def permuted_split(graphs: int) -> Tensor:
    """80/10/10 %, the same for every seed: ``p = RandomState(0).permutation(graphs)``.

    Training graphs are ``p[⌊0.2·graphs⌋:]``; of the others the first half in ``p`` validates, the second tests.
    """
    order = np.random.RandomState(0).permutation(graphs)
    held = int(0.2 * graphs)
    groups = np.full(graphs, TRAIN)
    groups[order[: held // 2]] = VAL
    groups[order[held // 2 : held]] = TEST
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


def motifs(options: GraphData) -> GraphSet:
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
    return GraphSet("motifs", graphs, permuted_split(options.graphs), sha256)


def _both_directions(
    pairs: np.ndarray, labels: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every edge in both directions, next to each other."""
    both = np.stack([pairs, pairs[::-1]], axis=2).reshape(2, -1)
    return both, labels.repeat(2, axis=0), 2 * sizes


def tu(name: str, file: str, degrees: bool = False) -> GraphSet:
    """A TU set in the DGCNN text format, split by :func:`permuted_split`; ``degrees`` take the place of node tags.

    The text is the number of graphs, and for each ``n label`` and n lines ``tag m neighbour_1 … neighbour_m``.
    """
    paths, sha256 = fetch(name)
    path = paths[f"{file}.txt.gz"]
    nodes, classes, tags, degree, source = _read_dgcnn(path)
    found, y = np.unique(classes, return_inverse=True)
    if len(found) != GraphSet.classes:
        raise DataError(f"{path} has graphs of the classes {found.tolist()}; this kind of task knows two.")
    first = np.cumsum(nodes) - nodes
    target = np.repeat(np.arange(len(tags)) - np.repeat(first, nodes), degree)
    labels = (degree if degrees else tags)[:, None]
    sizes = np.add.reduceat(degree, first)
    graphs = assemble(labels, np.stack([source, target]), np.empty((len(source), 0)), y, nodes, sizes)
    return GraphSet(name, graphs, permuted_split(len(graphs)), sha256)


def _read_dgcnn(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Size and class of each graph, tag and degree of each node, and all neighbours, node by node."""
    with inputs.reading(path), gzip.open(path, "rt") as stream:
        lines = stream.read().rstrip().split("\n")
        words = [line.split() for line in lines]
        numbers = np.array([word for line in words for word in line], dtype=np.int64)

    def check(wrong: np.ndarray) -> None:
        if wrong.any():
            at = int(wrong.argmax())
            text = f"{lines[at][:60]!r}"
            raise DataError(f"{path}:{at + 1}: {text} does not fit a set of {first[0]} graphs in DGCNN's format.")

    lengths = np.array([len(line) for line in words])
    starts = np.cumsum(lengths) - lengths
    first, second = np.append(numbers, [0, 0])[np.stack([starts, starts + 1])]
    heads, at = [], 1
    while at < len(lines) and first[at] > 0:
        heads.append(at)
        at += 1 + int(first[at])
    rows = np.arange(len(lines))
    graph = np.isin(rows, heads)
    node = ~graph & (rows > 0)
    check(lengths != np.select([node, graph], [second + 2, 2], 1))
    check(node & ((first < 0) | (first >= LABELS)))
    if at != len(lines) or len(heads) != first[0]:
        raise DataError(
            f"{path} holds {len(heads)} graphs in {len(lines)} lines, not the {first[0]} of its first line."
        )
    degree = second[node]
    neighbours = np.delete(numbers, np.concatenate([[0], starts[1:], starts[1:] + 1]))
    bound = np.repeat(first[graph], first[graph]).repeat(degree)
    check(np.isin(rows, rows[node].repeat(degree)[(neighbours < 0) | (neighbours >= bound)]))
    return first[graph], second[graph], first[node], degree, neighbours


def molbace(options: GraphData) -> GraphSet:
    """ogbg-molbace with OGB's scaffold split: 9 labels a node, 3 an edge (its files list each edge once)."""
    paths, sha256 = fetch("molbace")
    tables = {file.removesuffix(".csv.gz"): _table(path) for file, path in paths.items()}
    files = {name: str(paths[f"{name}.csv.gz"]) for name in tables}
    _check_tables(tables, files)
    nodes, once, y = (tables[f"raw/{name}"][:, 0] for name in ("num-node-list", "num-edge-list", "graph-label"))
    pairs, labels, sizes = _both_directions(tables["raw/edge"].T, tables["raw/edge-feat"], once)
    graphs = assemble(tables["raw/node-feat"], pairs, labels, y, nodes, sizes)
    names = [f"split/scaffold/{part}" for part in OGB_SPLITS]
    split = inputs.disjoint({files[name]: tables[name][:, 0] for name in names}, len(y), "graph")
    if (split < 0).any():
        raise DataError(f"Graph {(split < 0).argmax()} is in none of {', '.join(files[name] for name in names)}.")
    return GraphSet("molbace", graphs, torch.from_numpy(split), sha256)


def _table(path: Path) -> np.ndarray:
    with inputs.reading(path), gzip.open(path, "rt") as lines:
        return np.loadtxt(lines, dtype=np.int64, delimiter=",", ndmin=2)


def _check_tables(tables: Mapping[str, np.ndarray], files: Mapping[str, str]) -> None:
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
    check("graph-label", "label", 0, GraphSet.classes)
    check("node-feat", "label", 0, LABELS)
    check("edge-feat", "label", 0, LABELS)
    check("edge", "node", 0, nodes.repeat(once))


LOADERS: dict[str, Callable[[GraphData], GraphSet]] = {
    "motifs": motifs,
    "mutag": lambda options: tu("mutag", "MUTAG"),
    "nci1": lambda options: tu("nci1", "NCI1"),
    "proteins": lambda options: tu("proteins", "PROTEINS"),
    "imdb_b": lambda options: tu("imdb_b", "IMDBBINARY", degrees=True),
    "molbace": molbace,
}


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
