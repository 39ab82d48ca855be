"""Readers of one's own graphs: from a NumPy archive, or from tables of nodes with texts and of edges."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from kdbench.engine import inputs
from kdbench.errors import DataError, unknown
from kdbench.families.graph.node_classification import graphs
from kdbench.families.graph.node_classification.graphs import SPLITS, UNLABELLED, NodeGraph, drawn_split
from kdbench.families.graph.node_classification.options import CsvText, NodeData, NpzGraph
from kdbench.plan.datasets import Dataset, fetch, folder_of


def npz_graph(data: Dataset, how: NpzGraph, options: NodeData, split: int) -> NodeGraph:
    """A graph of :class:`NpzGraph`'s arrays.

    ``y``: classes from 0 on, -1 for a node without one. ``edges``: either direction is enough. ``split``: 0 train,
    1 validation, 2 test, 3 none; without it 60/20/20 % of the nodes with a class, by the seed of the split.
    """
    file = how.file or _only(data, "*.npz")
    paths, sha256 = fetch(data, [file])
    path = paths[file]
    with inputs.reading(path), np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if missing := {"x", "edges", "y"} - arrays.keys():
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: it holds {', '.join(arrays) or 'nothing'}.")
    count = len(arrays["y"])
    x = inputs.numbers(arrays["x"], f"{path}: x", (count, None)).astype(np.float32)
    if how.normalise:
        if (negative := (x < 0).any(axis=1)).any():
            raise DataError(f"{path}: x, row {negative.argmax()}: rows of sum 1 have nothing negative.")
        x = x / np.maximum(x.sum(axis=1, keepdims=True), 1e-12)
    inputs.shaped(arrays["edges"], f"{path}: edges", (2, None))
    graphs.check_pairs(arrays["edges"].T, f"{path}: edges", count)
    most = len(how.class_names) or count
    y = inputs.integers(arrays["y"], f"{path}: y", "class", -1, most)
    if "split" in arrays:
        groups = inputs.integers(arrays["split"], f"{path}: split", "split", 0, UNLABELLED + 1)
        inputs.same_length({f"{path}: y": count, f"{path}: split": len(groups)})
        groups[y < 0] = UNLABELLED
    else:
        groups = drawn_split(y, split)
    names = how.class_names or [f"class {c}" for c in range(int(y.max()) + 1)]
    edges = graphs.clean(torch.from_numpy(arrays["edges"].astype(np.int64)))
    tensors = torch.from_numpy(x), edges, torch.from_numpy(y), torch.from_numpy(groups)
    return NodeGraph(data.name, *tensors, [], names, None, sha256)


def csv_text(data: Dataset, how: CsvText, options: NodeData, split: int) -> NodeGraph:
    """A graph whose nodes have texts, from :class:`CsvText`'s tables; the student reads TF-IDF of ``data.words``."""
    paths, sha256 = fetch(data, [how.nodes, how.edges])
    wanted = [how.id, how.text, how.label, *([how.split] if how.split else [])]
    columns = _columns(paths[how.nodes], wanted)
    where, ids = paths[how.nodes], columns[how.id]
    place: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in place:
            raise DataError(f"{where}:{row + 2}: the node '{name}' is in line {place[name] + 2} already.")
        place[name] = row
    names = sorted(set(columns[how.label]) - {""})
    y = np.array([names.index(label) if label else -1 for label in columns[how.label]])
    groups = drawn_split(y, split) if how.split is None else _named_split(columns[how.split], y, where)
    pairs = _pairs(paths[how.edges], place)
    texts = columns[how.text]
    return graphs.with_words(data.name, options, pairs, y, groups, texts, names, None, sha256)


def _columns(path: Path, wanted: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a table by name."""
    with inputs.reading(path), path.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.reader(lines))
    if not rows:
        raise DataError(f"{path} is empty.")
    for name in wanted:
        if name not in rows[0]:
            raise DataError(f"{path}:1: {unknown('column', name, rows[0])}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}:{number}: {len(row)} columns, but the first line names {len(rows[0])}.")
    return {name: [row[rows[0].index(name)].strip() for row in rows[1:]] for name in wanted}


def _named_split(column: Sequence[str], y: np.ndarray, path: Path) -> np.ndarray:
    known = {**SPLITS, "": UNLABELLED}
    for row, name in enumerate(column):
        if name not in known:
            raise DataError(f"{path}:{row + 2}: {unknown('split', name, SPLITS)}")
    groups = np.array([known[name] for name in column])
    groups[y < 0] = UNLABELLED
    return groups


def _pairs(path: Path, place: Mapping[str, int]) -> np.ndarray:
    """Node numbers of each edge, int64 ``[2, e]``."""
    with inputs.reading(path), path.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    pairs = []
    for number, row in enumerate(rows, 2):
        for name in (ends := [word.strip() for word in row[:2]]):
            if name not in place:
                raise DataError(f"{path}:{number}: there is no node '{name}'.")
        if len(ends) < 2:
            raise DataError(f"{path}:{number}: an edge has two ends.")
        pairs.append([place[name] for name in ends])
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def _only(data: Dataset, pattern: str) -> str:
    """The only file of a data set, listed or in its folder."""
    names = list(data.files) or [path.name for path in sorted(folder_of(data).glob(pattern))]
    if len(names) != 1:
        raise DataError(f"{data.name} has {len(names)} files {pattern}: say which one by the option 'file'.")
    return names[0]
