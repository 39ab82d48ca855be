"""Condensing graphs into the sets of computation trees that are frequent in their class (Mirage's data stage)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.engine.stages import Stage, StageResult
from kdbench.errors import UsageError
from kdbench.families.graph.graph_classification.data import Graphs, GraphSet, concatenate
from kdbench.families.graph.graph_classification.itemsets import frequent_itemsets
from kdbench.families.graph.graph_classification.trees import Trees, colour, expand

STAGE = "condense"
CAP = 10_000
SHARE = 0.25
"""Of a class's training graphs: its threshold where nothing else is said."""


@dataclass(frozen=True)
class Condensed:
    """Frequent tree sets as tiny training graphs."""

    graphs: Graphs
    support: Tensor
    """Training graphs of the class that hold each set, int64 ``[p]``."""
    facts: Mapping[str, Any]
    """``trees`` and ``patterns`` of each class, patterns ``kept``, and ``bytes`` of the graphs."""


def condense(graphs: Graphs, hops: int, theta: tuple[int, ...], drop_shared: bool) -> Condensed:
    """Mine the sets of trees of depth ``hops`` that at least ``theta[c]`` graphs of class c hold, and build them.

    A graph counts for the set of its trees, those of isolated nodes left out. ``drop_shared`` removes sets that are
    frequent in several classes. Raises :class:`UsageError` where a class has no set, or more than 10,000.
    """
    trees = colour(graphs, hops)
    mined = [mine(trees, label, threshold) for label, threshold in enumerate(theta)]
    holders = Counter(pattern for one in mined for pattern in one)
    shared = {pattern for pattern, classes in holders.items() if classes > 1} if drop_shared else set()
    kept = [{pattern: count for pattern, count in one.items() if pattern not in shared} for one in mined]
    for label, one in enumerate(kept):
        if not one:
            others = "both classes" if len(theta) == 2 else "other classes"
            why = f"all {len(mined[label])} are frequent in {others}" if mined[label] else "none is that frequent"
            raise UsageError(
                f"No set of trees is left for class {label}: {why}. Lower its threshold (method.theta={list(theta)}), "
                f"raise the other class's{', or keep shared sets (method.drop_shared=false)' if shared else ''}."
            )
    final = trees.colours[-1]
    node_of = np.empty(int(final.max()) + 1, dtype=np.int64)
    node_of[final[::-1]] = np.arange(len(final))[::-1]
    chosen = [(label, pattern, count) for label, one in enumerate(kept) for pattern, count in one.items()]
    built = concatenate([expand(trees, node_of[list(pattern)], label) for label, pattern, _ in chosen])
    facts = {
        "trees": [len(np.unique(final[_nodes(graphs, label)])) for label in range(len(theta))],
        "patterns": [len(one) for one in mined],
        "kept": [len(one) for one in kept],
        "bytes": built.bytes,
    }
    return Condensed(built, torch.tensor([count for _, _, count in chosen]), facts)


def mine(trees: Trees, label: int, threshold: int) -> dict[tuple[int, ...], int]:
    """The tree sets that at least ``threshold`` graphs of class ``label`` hold, as sorted colours -> support.

    Most frequent first, then by size and colour. Raises :class:`UsageError` for more than 10,000.
    """
    nodes = _nodes(trees.graphs, label) & (trees.degrees > 0)
    graph = np.repeat(np.arange(len(trees.graphs)), trees.graphs.nodes.numpy())[nodes]
    colours = trees.colours[-1][nodes]
    pairs = np.unique(graph * (int(trees.colours[-1].max(initial=0)) + 1) + colours)
    transactions, items = np.divmod(pairs, int(trees.colours[-1].max(initial=0)) + 1)
    sets = list(islice(frequent_itemsets(transactions, items, threshold), CAP + 1))
    if len(sets) > CAP:
        raise UsageError(
            f"More than {CAP} sets of trees are in at least {threshold} graphs of class {label}. "
            f"Raise the threshold of class {label} (method.theta)."
        )
    return dict(sorted(sets, key=lambda one: (-one[1], len(one[0]), one[0])))


def _nodes(graphs: Graphs, label: int) -> np.ndarray:
    """Which nodes are of graphs of that class, bool ``[n]``."""
    nodes: np.ndarray = (graphs.y == label).repeat_interleave(graphs.nodes).numpy()
    return nodes


def settings(
    data: GraphSet, layers: int, hops: int | None, theta: tuple[int, ...] | None, drop_shared: bool | None
) -> dict[str, Any]:
    """The options of :func:`condense`, those left open filled in: as many hops as layers, what the data set says.

    Its thresholds where it says none: a quarter of each class's training graphs.
    """
    for given in (theta, data.how.theta):
        if given is not None and len(given) != data.classes:
            raise UsageError(f"theta={list(given)}: {data.name} has {data.classes} classes, so as many thresholds.")
    sizes = data.graphs.y[data.ids("train")].bincount(minlength=data.classes)
    shares = tuple(max(1, round(SHARE * size)) for size in sizes.tolist())
    chosen = theta or data.how.theta or shares
    for label, (threshold, size) in enumerate(zip(chosen, sizes.tolist(), strict=True)):
        if threshold > size:
            raise UsageError(
                f"No set of trees can be in {threshold} graphs of class {label}: {size} are for training. Lower its "
                f"threshold (method.theta={list(chosen)})."
            )
    shared = data.how.drop_shared if drop_shared is None else drop_shared
    return {"hops": hops or layers, "theta": list(chosen), "drop_shared": shared}


def stage(data: GraphSet, options: Mapping[str, Any]) -> Stage:
    """The stage that condenses the training graphs; it depends on the split, and on no other seed and no student."""

    def run(folder: Path, upstream: Mapping[str, StageResult]) -> Mapping[str, Any]:
        train = data.graphs.take(data.ids("train"))
        done = condense(train, **{**options, "theta": tuple(options["theta"])})
        fields = ("x", "edges", "edge_labels", "y", "nodes", "sizes", "read")
        tensors = {name: getattr(done.graphs, name).contiguous() for name in fields}
        save_file({**tensors, "support": done.support}, folder / "condensed.safetensors")
        return done.facts

    inputs = {**options, "data": data.sha256, "split": data.split_sha256, "cap": CAP}
    return Stage(STAGE, inputs, run)


def load(folder: Path) -> Condensed:
    """What the stage left in its folder."""
    tensors = load_file(folder / "condensed.safetensors")
    support = tensors.pop("support")
    return Condensed(Graphs(**tensors), support, json.loads((folder / "stage.json").read_text())["info"])
