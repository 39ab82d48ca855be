"""A node and its surroundings in words: the prompts of LinguGKD's language-model teacher.

Source: Hu et al., "Large Language Model Meets Graph Neural Network in Knowledge Distillation", arXiv 2402.05894,
stage 1 (TAG instruction tuning). The authors' templates were not released; the wording here is kdbench's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.errors import DataError

RESPONSE_MARKER = "### Response: "

_DISTANCES = {1: "Directly linked to it", 2: "Two links away", 3: "Three links away"}


@dataclass(frozen=True)
class TextGraph:
    """A text-attributed graph G = (V, E, text). Raises DataError if the parts disagree.

    texts: one text per node, N in all; its first words serve as the node's title.
    neighbours: for each node, the nodes it shares a link with (undirected: both ends list each other).
    class_names: the words to answer with; label c means class_names[c].
    """

    texts: Sequence[str]
    neighbours: Sequence[Sequence[int]]
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        count = len(self.texts)
        if len(self.neighbours) != count:
            raise DataError(f"A text graph has {count} texts but {len(self.neighbours)} lists of neighbours.")
        for node, others in enumerate(self.neighbours):
            if any(not 0 <= other < count for other in others):
                raise DataError(f"Node {node} is linked to a node that does not exist; nodes are 0 to {count - 1}.")


def hop_neighbourhoods(graph: TextGraph, node: int, hops: int) -> list[list[int]]:
    """Breadth-first rings around a node: ring l = {u : shortest path(node, u) = l}, l = 0 … hops.

    Returns hops + 1 lists (empty ones beyond the component), each in order of discovery, which follows the order of
    ``graph.neighbours``. Raises DataError for a node that does not exist.
    """
    _check_index("node", node, len(graph.texts))
    seen = {node}
    rings = [[node]]
    for _ in range(hops):
        reached = dict.fromkeys(u for v in rings[-1] for u in graph.neighbours[v] if u not in seen)
        seen.update(reached)
        rings.append(list(reached))
    return rings


def prompt(
    graph: TextGraph,
    node: int,
    hop: int,
    *,
    max_neighbours: int = 5,
    words: int = 100,
    title_words: int = 6,
    rng: np.random.Generator | None = None,
) -> str | None:
    """The question about a node as seen from ``hop`` links around it, up to and including the response marker.

    The input holds the node's text, for each ring 1 … hop the titles of its nodes, and the links among all nodes
    named. Each named node has a number in brackets; the target's is 0.

    max_neighbours: nodes named per ring, drawn without replacement by ``rng``, the first discovered if that is None.
    words, title_words: the first words kept of the node's own text and of each neighbour's.
    Returns None if no node lies exactly ``hop`` links away: the prompt would say nothing that hop - 1 does not.
    Source: arXiv 2402.05894, stage 1. Raises DataError for a node that does not exist.
    """
    rings = hop_neighbourhoods(graph, node, hop)
    if not rings[hop]:
        return None
    shown = [_pick(ring, max_neighbours, rng) for ring in rings]
    number = {u: i for i, u in enumerate(u for ring in shown for u in ring)}
    lines = [
        "### Instruction: Sort one document of a linked collection into its class. Its text comes first"
        + (", then the documents around it, nearest first." if hop else ".")
        + f" The classes are: {', '.join(graph.class_names)}. Answer with the name of one class and nothing else.",
        f"### Input: Document [0]: {_first_words(graph.texts[node], words)}",
    ]
    for distance in range(1, hop + 1):
        listed = "; ".join(f"[{number[u]}] {_first_words(graph.texts[u], title_words)}" for u in shown[distance])
        where = _DISTANCES.get(distance, f"{distance} links away")
        lines.append(f"{where} ({len(shown[distance])} of {len(rings[distance])}): {listed}")
    if hop:
        ends = ((number[u], number[v]) for u in number for v in graph.neighbours[u] if v in number)
        links = sorted({(min(end), max(end)) for end in ends if end[0] != end[1]})
        lines.append(f"Links: {', '.join(f'[{a}]-[{b}]' for a, b in links) or 'none among these'}")
    return "\n".join([*lines, RESPONSE_MARKER])


def response(graph: TextGraph, label: int) -> str:
    """The answer wanted for a label c: class_names[c]. Raises DataError for a label without a class."""
    _check_index("label", label, len(graph.class_names))
    return graph.class_names[label]


def _pick(ring: list[int], count: int, rng: np.random.Generator | None) -> list[int]:
    if rng is None or len(ring) <= count:
        return ring[:count]
    return [ring[i] for i in sorted(rng.choice(len(ring), count, replace=False))]


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def _check_index(kind: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise DataError(f"There is no {kind} {index}: the graph has {kind}s 0 to {count - 1}.")
