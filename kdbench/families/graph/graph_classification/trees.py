"""Computation trees of a message-passing network, told apart by colours and expanded only where they are wanted.

The tree of depth l at node v is ``T_0(v) = (x_v)``, ``T_l(v) = (x_v, multiset{ (e_vu, T_{l−1}(u)) : u ∈ N(v) })``; the
parent is a neighbour like any other. Two nodes have one tree of depth l exactly if l rounds of Weisfeiler–Leman
refinement give them one colour, so trees are compared without being built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kdbench.families.graph.graph_classification.data import Graphs


@dataclass(frozen=True)
class Trees:
    """The nodes' trees of depth 0 … L as colours, with the edges that lead into each node."""

    graphs: Graphs
    colours: tuple[np.ndarray, ...]
    """int64 ``[n]`` for each depth; equal exactly where the trees are."""
    edges: np.ndarray
    """Edge numbers ordered by the node they lead to, int64 ``[e]``."""
    starts: np.ndarray
    """Place in ``edges`` of each node's first, int64 ``[n]``."""
    degrees: np.ndarray
    """Edges into each node, int64 ``[n]``."""


def colour(graphs: Graphs, depth: int) -> Trees:
    """Refine ``depth`` times, exactly: O(depth · e · log e) time, O(n + e) memory, no tree is built."""
    source, target = graphs.edges.numpy()
    count = len(graphs.x)
    order = np.argsort(target, kind="stable")
    degrees = np.bincount(target, minlength=count)
    starts = np.cumsum(degrees) - degrees
    labels, edge_labels = dense_rows(graphs.x.numpy()), dense_rows(graphs.edge_labels.numpy())
    own = dense(labels * (int(degrees.max(initial=0)) + 1) + degrees)
    colours = [labels]
    for _ in range(depth):
        seen = dense(edge_labels * _bound(colours[-1]) + colours[-1][source])
        ranked = seen[order][np.argsort(target[order] * _bound(seen) + seen[order], kind="stable")]
        colours.append(_with_children(own, degrees, starts, ranked))
    return Trees(graphs, tuple(colours), order, starts, degrees)


def _with_children(own: np.ndarray, degrees: np.ndarray, starts: np.ndarray, children: np.ndarray) -> np.ndarray:
    """A number for each (``own``, its sorted ``children``); ``own`` tells degrees apart, so no length is mixed."""
    nodes = np.argsort(-degrees, kind="stable")
    left = np.searchsorted(-degrees[nodes], -np.arange(1, degrees.max(initial=0) + 1), side="right")
    colours, bound = own[nodes], _bound(children)
    for place, many in enumerate(left):
        colours[:many] = dense(colours[:many] * bound + children[starts[nodes[:many]] + place])
    result = np.empty_like(colours)
    result[nodes] = dense(colours * _bound(degrees) + degrees[nodes])
    return result


def dense(values: np.ndarray) -> np.ndarray:
    """Equal numbers for equal values, 0 … (number of values − 1) in their order."""
    ranks: np.ndarray = np.unique(values, return_inverse=True)[1]
    return ranks


def dense_rows(rows: np.ndarray) -> np.ndarray:
    """Equal numbers for equal rows of non-negative integers ``[n, k]``; zeros for k = 0."""
    result = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        result = dense(result * _bound(column) + column)
    return result


def _bound(values: np.ndarray) -> int:
    return int(values.max(initial=0)) + 1


def expand(trees: Trees, roots: np.ndarray, label: int) -> Graphs:
    """The disjoint union of the trees at nodes ``roots`` as one graph of class ``label``.

    Edges lead from child to parent, and only the roots are read.
    """
    depth = len(trees.colours) - 1
    origin, at = [roots], np.arange(len(roots))
    edges, parents = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    total = len(roots)
    source = trees.graphs.edges[0].numpy()
    for _ in range(depth):
        degrees = trees.degrees[origin[-1]]
        first = trees.starts[origin[-1]] - (np.cumsum(degrees) - degrees)
        incoming = trees.edges[np.arange(degrees.sum()) + np.repeat(first, degrees)]
        edges.append(incoming)
        parents.append(np.repeat(at, degrees))
        origin.append(source[incoming])
        at = np.arange(total, total + len(incoming))
        total += len(incoming)
    nodes, edge, parent = (torch.from_numpy(np.concatenate(part)) for part in (origin, edges, parents))
    children = torch.arange(len(roots), total)
    return Graphs(
        trees.graphs.x[nodes],
        torch.stack([children, parent]),
        trees.graphs.edge_labels[edge],
        torch.tensor([label]),
        torch.tensor([total]),
        torch.tensor([len(edge)]),
        torch.arange(total) < len(roots),
    )
