"""Computation trees, frequent sets, condensed graphs: against reference counts and against trees built in full."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.families.graph.graph_classification.condense import CAP, condense, mine, settings
from kdbench.families.graph.graph_classification.data import Graphs, GraphSet, load
from kdbench.families.graph.graph_classification.itemsets import frequent_itemsets
from kdbench.families.graph.graph_classification.options import GraphData
from kdbench.families.graph.graph_classification.trees import colour, expand
from kdbench.plan.datasets import dataset

Tree = tuple[object, ...]


def loaded(name: str) -> GraphSet:
    info = dataset(name)
    if any(info.state(file)[0] != "present" for file in info.files):
        pytest.skip(f"the data set {name} is not here (KDBENCH_DATA)")
    return load(name, GraphData(split="fixed"), 0)


def training_graphs(name: str) -> Graphs:
    data = loaded(name)
    return data.graphs.take(data.ids("train"))


def tree(graphs: Graphs, node: int, depth: int) -> Tree:
    """The definition, word by word: node labels and the sorted (edge label, child's tree)."""
    own = tuple(graphs.x[node].tolist())
    if not depth:
        return (own,)
    into = (graphs.edges[1] == node).nonzero().flatten().tolist()
    children = [(tuple(graphs.edge_labels[e].tolist()), tree(graphs, int(graphs.edges[0, e]), depth - 1)) for e in into]
    return (own, *sorted(children))


def some_graphs() -> Graphs:
    """Twelve graphs of the generated set, one with an isolated node."""
    graphs = load("motifs", GraphData(split="fixed"), 0).graphs.take(torch.arange(12))
    alone = Graphs(
        torch.cat([graphs.x, torch.tensor([[3]])]),
        graphs.edges,
        graphs.edge_labels,
        graphs.y,
        graphs.nodes + torch.tensor([0] * 11 + [1]),
        graphs.sizes,
    )
    assert int(alone.nodes.sum()) == len(alone.x)
    return alone


# data set, depth, trees of each class, with those of isolated nodes left out, thresholds, frequent sets, not shared
COUNTS = [
    ("molbace", 3, (5892, 3592), None, (150, 104), (4, 9), (3, 8)),
    ("molbace", 3, (5892, 3592), None, (105, 72), (37, 39), (1, 3)),
    ("nci1", 2, (2957, 2065), (2939, 2049), (440, 570), (8, 11), (2, 5)),
    ("nci1", 2, (2957, 2065), (2939, 2049), (420, 550), (10, 11), (2, 3)),
    ("imdb_b", 2, (1845, 1174), None, (9, 10), (10, 39), (3, 32)),
    ("imdb_b", 2, (1845, 1174), None, (4, 5), (75, 69), (52, 46)),
    ("mutag", 2, (109, 86), None, (10, 30), (135, 311), (32, 208)),
]


@pytest.mark.parametrize(("name", "depth", "trees", "connected", "theta", "patterns", "kept"), COUNTS)
def test_counts_on_the_real_data_equal_the_reference(
    name: str,
    depth: int,
    trees: tuple[int, int],
    connected: tuple[int, int] | None,
    theta: tuple[int, int],
    patterns: tuple[int, int],
    kept: tuple[int, int],
) -> None:
    graphs = training_graphs(name)
    all_of_them, without = (condense(graphs, depth, theta, drop_shared=shared).facts for shared in (False, True))
    assert tuple(all_of_them["trees"]) == trees
    assert tuple(all_of_them["patterns"]) == tuple(all_of_them["kept"]) == patterns
    assert tuple(without["patterns"]) == patterns and tuple(without["kept"]) == kept
    coloured = colour(graphs, depth)
    classes = graphs.y.repeat_interleave(graphs.nodes).numpy()
    if connected:
        bonded = coloured.degrees > 0
        counted = tuple(len(np.unique(coloured.colours[-1][bonded & (classes == label)])) for label in (0, 1))
        assert counted == connected


def test_trees_are_skewed_as_the_reference_says() -> None:
    for name, share in (("nci1", 0.07), ("mutag", 0.16)):
        counts = np.bincount(colour(training_graphs(name), 2).colours[-1])
        assert round(counts.max() / counts.sum(), 2) == share


def test_a_low_threshold_is_stopped() -> None:
    trees = colour(training_graphs("proteins"), 1)
    assert len(mine(trees, 0, 60)) == 7201 < CAP
    with pytest.raises(UsageError, match=rf"More than {CAP} sets.* class 0\. Raise the threshold of class 0"):
        mine(trees, 0, 40)


def test_both_classes_need_a_set() -> None:
    graphs = training_graphs("mutag")
    with pytest.raises(UsageError, match=r"class 1: none is that frequent\. Lower its threshold"):
        condense(graphs, 2, (10, 1000), drop_shared=False)
    with pytest.raises(UsageError, match=r"all \d+ are frequent in both classes.*method.drop_shared=false"):
        condense(graphs, 2, (30, 5), drop_shared=True)


def test_thresholds_are_the_options_else_the_data_sets_else_a_share_of_a_class() -> None:
    data, own = loaded("nci1"), loaded("proteins")
    assert settings(data, 3, None, (5, 6), None) == {"hops": 3, "theta": [5, 6], "drop_shared": True}
    assert settings(data, 3, 2, None, False) == {"hops": 2, "theta": [440, 570], "drop_shared": False}
    sizes = own.graphs.y[own.ids("train")].bincount().tolist()
    with pytest.raises(UsageError, match=rf"No set of trees can be in 5000 graphs of class 1: {sizes[1]} are for"):
        settings(own, 3, None, (5, 5000), None)
    assert settings(own, 3, None, None, None)["theta"] == [round(0.25 * size) for size in sizes]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_colours_tell_trees_apart_and_nothing_else(depth: int) -> None:
    graphs = some_graphs()
    built = [tree(graphs, node, depth) for node in range(len(graphs.x))]
    colours = colour(graphs, depth).colours[depth].tolist()
    assert len(set(colours)) == len(set(built)) == len(set(zip(colours, built, strict=True)))


def test_colours_see_edge_labels_and_multiplicity() -> None:
    """Stars whose leaves or edges differ in one place; the second differs from the first by a leaf given twice."""
    leaves = [[1, 2], [1, 1, 2], [1, 2, 2], [2, 1], [1, 2]]
    bonds = [[0, 0], [0, 0, 0], [0, 0, 0], [0, 0], [0, 1]]
    x, edges, labels, nodes = [], [], [], []
    for tags, kinds in zip(leaves, bonds, strict=True):
        start = len(x)
        x += [0, *tags]
        edges += [(start + 1 + leaf, start) for leaf in range(len(tags))]
        labels += kinds
        nodes.append(1 + len(tags))
    graphs = Graphs(
        torch.tensor(x)[:, None],
        torch.tensor(edges).T,
        torch.tensor(labels)[:, None],
        torch.zeros(5, dtype=torch.int64),
        torch.tensor(nodes),
        torch.tensor([len(kinds) for kinds in bonds]),
    )
    hubs = colour(graphs, 1).colours[1][np.cumsum([0, *nodes[:-1]])]
    assert hubs[0] == hubs[3] and len(set(hubs.tolist())) == 4


@pytest.mark.parametrize("threshold", [1, 2, 3, 5])
def test_itemsets_equal_counting_every_subset(threshold: int) -> None:
    rng = np.random.default_rng(2)
    baskets = [np.flatnonzero(rng.random(7) < 0.5) for _ in range(12)]
    counts: Counter[tuple[int, ...]] = Counter()
    for basket in baskets:
        counts.update(subset for size in range(1, 8) for subset in combinations(basket.tolist(), size))
    wanted = {subset: count for subset, count in counts.items() if count >= threshold}
    rows = np.repeat(np.arange(12), [len(basket) for basket in baskets])
    itemsets = list(frequent_itemsets(rows, np.concatenate(baskets), threshold))
    assert len(itemsets) == len(wanted) and dict(itemsets) == wanted


def test_a_condensed_graph_is_its_trees_read_at_their_roots() -> None:
    graphs = some_graphs()
    trees = colour(graphs, 2)
    roots = np.array([0, 5, 17])
    built = expand(trees, roots, 1)
    assert built.read is not None and built.read.nonzero().flatten().tolist() == [0, 1, 2]
    assert [tree(built, root, 2) for root in range(3)] == [tree(graphs, int(node), 2) for node in roots]
    assert sorted(torch.bincount(built.edges[0], minlength=len(built.x)).tolist()) == [0] * 3 + [1] * (len(built.x) - 3)
    assert int(built.nodes) == len(built.x) == 3 + int(built.sizes) and built.y.tolist() == [1]


def test_condensed_graphs_carry_class_and_support() -> None:
    graphs = some_graphs()
    done = condense(graphs, 2, (2, 2), drop_shared=True)
    sets: list[set[Tree]] = []
    first = 0
    for count in graphs.nodes.tolist():
        into = torch.bincount(graphs.edges[1], minlength=len(graphs.x))
        sets.append({tree(graphs, node, 2) for node in range(first, first + count) if into[node]})
        first += count
    for number in range(len(done.graphs)):
        one = done.graphs.take(torch.tensor([number]))
        assert one.read is not None
        pattern = {tree(one, node, 2) for node in one.read.nonzero().flatten().tolist()}
        held = [pattern <= trees for trees in sets]
        mine_ = [hold for hold, label in zip(held, graphs.y.tolist(), strict=True) if label == int(one.y)]
        others = sum(held) - sum(mine_)
        assert sum(mine_) == int(done.support[number]) >= 2 and others < 2
    assert set(done.graphs.y.tolist()) == {0, 1} and done.facts["bytes"] == done.graphs.bytes
