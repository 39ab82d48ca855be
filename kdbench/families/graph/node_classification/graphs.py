"""What a graph of node classification is, and what its readers share: splits, edges, TF-IDF of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdbench.engine import inputs
from kdbench.errors import DataError, UsageError
from kdbench.families.graph.node_classification.options import NodeData
from kdbench.hashing import digest

TRAIN, VAL, TEST, UNLABELLED = 0, 1, 2, 3
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}
OGB_SPLITS = ("train", "valid", "test")  # in the order of their numbers
DENSE_BYTES = 8 * 2**30  # the largest TF-IDF matrix that is made dense


@dataclass(frozen=True)
class NodeGraph:
    """A graph with labels and one split."""

    name: str
    x: Tensor
    """Student input, float32 ``[n, f]``."""
    edges: Tensor
    """Both directions of every edge without self-loops, int64 ``[2, e]``."""
    y: Tensor
    """Classes, int64 ``[n]``; -1 where unlabelled."""
    split: Tensor
    """int64 ``[n]``: 0 train, 1 validation, 2 test, 3 none."""
    texts: Sequence[str]
    """One text a node; empty where there is none."""
    class_names: Sequence[str]
    cached: Tensor | None
    """Language-model features that lie with the data, float32 ``[n, d]``."""
    sha256: str
    how: str = ""
    """How the data set is got."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def ids(self, split: str) -> Tensor:
        """Nodes of a split, int64 ascending."""
        return (self.split == SPLITS[split]).nonzero().flatten()

    @property
    def split_sha256(self) -> str:
        """Digest of the split."""
        return digest(self.split.tolist())


def shuffled_split(nodes: int, seed: int) -> np.ndarray:
    """60/20/20 % of the nodes, int64 ``[nodes]``: ``np.random.seed(seed)`` and a shuffle, as in TAPE's code."""
    order = np.arange(nodes)
    np.random.RandomState(seed).shuffle(order)
    groups = np.full(nodes, TEST)
    groups[order[: int(nodes * 0.6)]] = TRAIN
    groups[order[int(nodes * 0.6) : int(nodes * 0.8)]] = VAL
    return groups


def drawn_split(y: np.ndarray, seed: int) -> np.ndarray:
    """:func:`shuffled_split` of the nodes that have a class (``y`` ≥ 0), the others unlabelled: int64 ``[nodes]``."""
    groups, known = np.full(len(y), UNLABELLED), np.flatnonzero(y >= 0)
    groups[known] = shuffled_split(len(known), seed)
    return groups


def check_pairs(pairs: np.ndarray, where: Path | str, nodes: int, lines: bool = False) -> None:
    """Raise :class:`DataError` unless ``pairs`` ``[e, 2]`` are numbers of nodes that exist."""
    if len(pairs):
        inputs.numbers(pairs, where, (None, 2))
        for column in pairs.T:
            inputs.integers(column, where, "node", 0, nodes, lines)


def clean(pairs: Tensor) -> Tensor:
    """Both directions of every edge once, without self-loops, sorted."""
    from torch_geometric.utils import remove_self_loops, to_undirected

    edges: Tensor = to_undirected(remove_self_loops(pairs)[0])
    return edges


def tfidf(texts: Sequence[str], words: int | None) -> Tensor:
    """TF-IDF rows of unit length, float32 ``[n, words]``; 0 words give a constant column.

    Raises :class:`UsageError` for a matrix of more than 8 GiB, :class:`DataError` where no two texts share a word.
    """
    if words == 0:
        return torch.ones(len(texts), 1)
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        matrix = TfidfVectorizer(max_features=words, min_df=2, dtype=np.float32).fit_transform(texts)
    except ValueError as error:  # scikit-learn's word for a vocabulary without words
        raise DataError(f"The {len(texts)} texts give no words to learn from: {error}") from None
    if (size := 4 * matrix.shape[0] * matrix.shape[1]) > DENSE_BYTES:
        raise UsageError(
            f"TF-IDF of {matrix.shape[0]} texts and {matrix.shape[1]} words takes {size / 2**30:.0f} GiB. "
            "Take fewer words (data.words) or another teacher.source."
        )
    return torch.from_numpy(matrix.toarray())


def with_words(
    name: str,
    options: NodeData,
    pairs: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    texts: Sequence[str],
    class_names: Sequence[str],
    cached: Tensor | None,
    sha256: str,
) -> NodeGraph:
    edges = clean(torch.from_numpy(np.ascontiguousarray(pairs)))
    x = tfidf(texts, options.words)
    return NodeGraph(name, x, edges, torch.from_numpy(y), torch.from_numpy(groups), texts, class_names, cached, sha256)


def require_texts(graph: NodeGraph, source: str) -> None:
    """Raise :class:`UsageError` when a teacher needs texts that the data set does not have."""
    if not graph.texts:
        raise UsageError(
            f"teacher.source={source} reads texts, and there are none of {graph.name}. {graph.how} "
            "teacher.source=tfidf does without."
        )
