"""The files of the TU collection, its own or one in DGCNN's text format, checked line by line."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench.engine import inputs
from kdbench.errors import DataError

LABELS = 2**20  # values of a column of labels at most: each has an embedding


TU_FILES = ("_A.txt", "_graph_indicator.txt", "_graph_labels.txt", "_node_labels.txt", "_edge_labels.txt")


def files_of(folder: Path) -> list[str]:
    """The files of a set of the TU collection in a folder, or its one file in DGCNN's format."""
    ends = [path.name.removesuffix("_A.txt") for path in sorted(folder.glob("*_A.txt"))]
    if len(ends) == 1:
        needed, others = TU_FILES[:3], [ends[0] + end for end in TU_FILES[3:]]
        return [*(ends[0] + end for end in needed), *(name for name in others if (folder / name).is_file())]
    texts = sorted(path.name for pattern in ("*.txt", "*.txt.gz") for path in folder.glob(pattern))
    if len(texts) != 1 or ends:
        raise DataError(f"{folder} holds no set of the TU collection: one NAME_A.txt and its like, or one NAME.txt.")
    return texts


@dataclass(frozen=True)
class Read:
    """Graphs as their files tell of them; nodes and edges lie graph by graph."""

    nodes: np.ndarray
    classes: np.ndarray
    labels: np.ndarray | None
    """``[n, 1]``."""
    pairs: np.ndarray
    """``[2, e]``, node numbers inside each graph."""
    pair_labels: np.ndarray
    """``[e, m]``."""
    sizes: np.ndarray


def read_collection(paths: Mapping[str, Path]) -> Read:
    """The files of the TU collection, by the ends of their names.

    ``_A``: a line ``i, j`` for each directed edge; ``_graph_indicator``: the graph of each node, ascending; the labels:
    one a line. All count from 1.
    """
    ends = {end: path for end in TU_FILES for name, path in paths.items() if name.endswith(end)}
    if missing := [end for end in TU_FILES[:3] if end not in ends]:
        raise DataError(f"{', '.join(map(str, paths.values()))}: the file NAME{missing[0]} is not among them.")
    tables = {end: _text_table(path, 2 if end == "_A.txt" else 1) for end, path in ends.items()}
    pairs, graph = tables["_A.txt"].T, tables["_graph_indicator.txt"][:, 0]
    count = len(tables["_graph_labels.txt"])
    where = ends["_graph_indicator.txt"]
    graph = inputs.integers(graph, where, "graph", 1, count + 1, lines=True) - 1
    nodes = np.bincount(graph, minlength=count)
    if (back := np.flatnonzero(np.diff(graph) < 0)).size:
        raise DataError(f"{where}:{back[0] + 2}: the nodes of a graph are to stand together, in the graphs' order.")
    if not nodes.all():
        raise DataError(f"{where}: graph {int(nodes.argmin()) + 1} has no node.")
    for column in pairs:
        inputs.integers(column, ends["_A.txt"], "node", 1, len(graph) + 1, lines=True)
    of_edge = graph[pairs - 1]
    if (apart := np.flatnonzero(of_edge[0] != of_edge[1])).size:
        raise DataError(f"{ends['_A.txt']}:{apart[0] + 1}: its nodes are of different graphs.")
    order = np.argsort(of_edge[0], kind="stable")
    first = np.cumsum(nodes) - nodes
    labels = [tables.get(end) for end in TU_FILES[3:]]
    lengths = {str(ends[end]): len(tables[end]) for end in ("_graph_indicator.txt", "_node_labels.txt") if end in ends}
    inputs.same_length(lengths)
    inputs.same_length({str(ends[end]): len(tables[end]) for end in ("_A.txt", "_edge_labels.txt") if end in ends})
    node_labels, edge_labels = (None if one is None else np.unique(one, return_inverse=True)[1] for one in labels)
    return Read(
        nodes,
        tables["_graph_labels.txt"][:, 0],
        None if node_labels is None else node_labels.reshape(-1, 1),
        (pairs - 1 - first[of_edge[0]])[:, order],
        np.empty((pairs.shape[1], 0)) if edge_labels is None else edge_labels.reshape(-1, 1)[order],
        np.bincount(of_edge[0], minlength=count),
    )


def _text_table(path: Path, columns: int) -> np.ndarray:
    with inputs.reading(path), path.open(encoding="utf-8") as lines:
        table = np.loadtxt(lines, dtype=np.int64, delimiter=",", ndmin=2)
    return inputs.numbers(table, path, (None, columns))


def read_dgcnn(path: Path) -> Read:
    """One file in DGCNN's format, packed or not."""
    with inputs.reading(path), gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
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
    nodes, start = first[graph], np.cumsum(first[graph]) - first[graph]
    local = np.repeat(np.arange(len(degree)) - np.repeat(start, nodes), degree)
    pairs, sizes = np.stack([neighbours, local]), np.add.reduceat(degree, start)
    return Read(nodes, second[graph], first[node][:, None], pairs, np.empty((pairs.shape[1], 0)), sizes)
