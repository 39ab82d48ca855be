"""Graph-classification data: flat tensors, the readers of both formats, and the real files."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.errors import DataError, UsageError
from kdbench.families.graph.graph_classification import data as graph_data
from kdbench.families.graph.graph_classification.data import Graphs, GraphSet, concatenate, load
from kdbench.families.graph.graph_classification.options import GraphData
from kdbench.plan.datasets import dataset

Publish = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    graph_data.load.cache_clear()
    yield
    graph_data.load.cache_clear()


def real(name: str) -> GraphSet:
    info = dataset(name)
    if any(info.state(file)[0] != "present" for file in info.files):
        pytest.skip(f"the data set {name} is not here (KDBENCH_DATA)")
    return load(name, GraphData(split="fixed"), 0)


def same(left: Graphs, right: Graphs) -> bool:
    fields = ("x", "edges", "edge_labels", "y", "nodes", "sizes")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in fields)


def test_taking_graphs_keeps_each_as_it_was() -> None:
    graphs = graph_data.read("motifs", GraphData(graphs=20), 0).graphs
    ids = torch.tensor([7, 0, 7, 19])
    taken = graphs.take(ids)
    node, edge = 0, 0
    for graph in ids.tolist():
        first, first_edge = int(graphs.nodes[:graph].sum()), int(graphs.sizes[:graph].sum())
        n, e = int(graphs.nodes[graph]), int(graphs.sizes[graph])
        assert torch.equal(taken.x[node : node + n], graphs.x[first : first + n])
        moved = taken.edges[:, edge : edge + e] - node
        assert torch.equal(moved, graphs.edges[:, first_edge : first_edge + e] - first)
        assert torch.equal(taken.edge_labels[edge : edge + e], graphs.edge_labels[first_edge : first_edge + e])
        node, edge = node + n, edge + e
    assert node == len(taken.x) and edge == taken.edges.shape[1] and torch.equal(taken.y, graphs.y[ids])
    parts = [graphs.take(torch.tensor([graph])) for graph in range(20)]
    assert same(concatenate(parts), graphs)
    assert taken.bytes == int(graphs.bytes_each()[ids].sum())
    assert graphs.bytes == sum(
        8 * tensor.numel()
        for tensor in (graphs.x, graphs.edges, graphs.edge_labels, graphs.y, graphs.nodes, graphs.sizes)
    )


def test_every_seed_draws_a_split_of_the_same_graphs() -> None:
    drawn = [load("motifs", GraphData(), seed) for seed in range(10)]
    assert len({data.split_sha256 for data in drawn}) == 10 and len({data.sha256 for data in drawn}) == 1
    assert all([len(data.ids(split)) for split in ("train", "val", "test")] == [320, 40, 40] for data in drawn)
    fixed = [load("motifs", GraphData(split="fixed"), seed) for seed in (0, 7)]
    assert fixed[0].split_sha256 == fixed[1].split_sha256 not in {data.split_sha256 for data in drawn}


def test_a_batch_is_a_pyg_batch() -> None:
    graphs = graph_data.read("motifs", GraphData(graphs=20), 0).graphs
    batch = graphs.batch(torch.tensor([3, 1]))
    assert batch.num_graphs == 2 and batch.rows.tolist() == [3, 1] and "read" not in batch
    assert batch.ptr.tolist() == [0, int(graphs.nodes[3]), int(graphs.nodes[[3, 1]].sum())]
    assert torch.bincount(batch.batch).tolist() == graphs.nodes[[3, 1]].tolist()


def test_generated_graphs() -> None:
    data = load("motifs", GraphData(split="fixed"), 0)
    graphs = data.graphs
    assert len(graphs) == 400 and graphs.y.sum() == 200 and data.node_values == (4,) and data.edge_values == (2,)
    assert [len(data.ids(split)) for split in ("train", "val", "test")] == [320, 40, 40]
    edges = set(map(tuple, graphs.edges.T.tolist()))
    assert len(edges) == graphs.edges.shape[1] and {(b, a) for a, b in edges} == edges
    owner = torch.arange(400).repeat_interleave(graphs.nodes)
    assert torch.equal(owner[graphs.edges[0]], owner[graphs.edges[1]])
    assert torch.equal(owner[graphs.edges[0]], torch.arange(400).repeat_interleave(graphs.sizes))
    assert (
        data.sha256
        == load("motifs", GraphData(batch_size=3, split="fixed"), 0).sha256
        != graph_data.read("motifs", GraphData(graphs=30), 0).sha256
    )


SIZES = [
    ("mutag", 188, [63, 125], (151, 18, 19), 17.93, 19.79, (7,)),
    ("nci1", 4110, [2053, 2057], (3288, 411, 411), 29.87, 32.30, (37,)),
    ("proteins", 1113, [663, 450], (891, 111, 111), 39.06, 72.82, (3,)),
    ("imdb_b", 1000, [500, 500], (800, 100, 100), 19.77, 96.53, (136,)),
    ("molbace", 1513, [822, 691], (1210, 151, 152), 34.1, 36.9, None),
]


@pytest.mark.parametrize(("name", "count", "classes", "sizes", "nodes", "edges", "values"), SIZES)
def test_real_sets_have_their_published_sizes(
    name: str,
    count: int,
    classes: list[int],
    sizes: tuple[int, ...],
    nodes: float,
    edges: float,
    values: tuple[int, ...] | None,
) -> None:
    data = real(name)
    graphs, digits = data.graphs, 1 if name == "molbace" else 2
    assert len(graphs) == count and torch.bincount(graphs.y).tolist() == classes
    splits = [data.ids(split) for split in ("train", "val", "test")]
    assert tuple(map(len, splits)) == sizes and len(torch.cat(splits).unique()) == count
    assert round(len(graphs.x) / count, digits) == nodes
    assert round(graphs.edges.shape[1] / 2 / count, digits) == edges
    assert values is None or data.node_values == values
    pairs = set(map(tuple, graphs.edges.T.tolist()))
    assert {(b, a) for a, b in pairs} == pairs


def test_training_graphs_are_those_of_the_stated_permutation() -> None:
    data, order = real("nci1"), np.random.RandomState(0).permutation(4110)
    assert data.ids("train").tolist() == sorted(order[822:].tolist())
    assert data.ids("val").tolist() == sorted(order[:411].tolist())


def test_molbace_has_its_labels_and_the_official_split() -> None:
    data = real("molbace")
    graphs = data.graphs
    assert len(graphs.x.unique(dim=0)) == 73 and len(graphs.edge_labels.unique(dim=0)) == 11
    held = {split: torch.bincount(graphs.y[data.ids(split)]).tolist() for split in ("train", "val", "test")}
    assert held == {"train": [730, 480], "val": [21, 130], "test": [71, 81]}
    forth, back = graphs.edges[:, 0::2], graphs.edges[:, 1::2]
    assert torch.equal(forth, back.flip(0)) and torch.equal(graphs.edge_labels[0::2], graphs.edge_labels[1::2])


def test_degrees_are_the_labels_of_imdb() -> None:
    graphs = real("imdb_b").graphs
    assert torch.equal(graphs.x[:, 0], torch.bincount(graphs.edges[0], minlength=len(graphs.x)))


TEXT = "2\n3 2\n5 2 1 2\n0 1 0\n0 1 0\n2 0\n1 0\n4 0\n"


def test_the_text_format(publish: Publish) -> None:
    publish("mutag", {"MUTAG.txt.gz": gzip.compress(TEXT.encode())})
    graphs = graph_data.read("mutag", GraphData(), 0).graphs
    assert graphs.x.tolist() == [[5], [0], [0], [1], [4]] and graphs.y.tolist() == [1, 0]
    assert graphs.edges.T.tolist() == [[1, 0], [2, 0], [0, 1], [0, 2]] and graphs.nodes.tolist() == [3, 2]


@pytest.mark.parametrize("text", [TEXT[:-4], TEXT + "1\n", TEXT.replace("2\n3", "3\n3", 1)])
def test_a_broken_text_is_refused(publish: Publish, text: str) -> None:
    publish("mutag", {"MUTAG.txt.gz": gzip.compress(text.encode())})
    with pytest.raises(
        DataError, match=r"MUTAG\.txt\.gz(:\d+: '.*' does not fit a set of . graphs| holds \d graphs in \d lines)"
    ):
        load("mutag", GraphData(split="fixed"), 0)


def test_changed_and_missing_files_are_refused(publish: Publish) -> None:
    folder = publish("mutag", {"MUTAG.txt.gz": gzip.compress(TEXT.encode())})
    (folder / "MUTAG.txt.gz").write_bytes(b"other")
    with pytest.raises(DataError, match="is corrupt"):
        load("mutag", GraphData(split="fixed"), 0)
    with pytest.raises(DataError, match=r"'nci1' lacks NCI1\.txt\.gz"):
        load("nci1", GraphData(split="fixed"), 0)
    with pytest.raises(UsageError, match="'nci1'"):
        load("nci", GraphData(split="fixed"), 0)
