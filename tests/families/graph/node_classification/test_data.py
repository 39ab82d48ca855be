"""Data sets: facts of the real ones where they are here, and small ones in the layout of those that are not."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from kdbench.engine.runner import Outcome
from kdbench.errors import DataError, UsageError
from kdbench.families.graph.node_classification import data, graphs
from kdbench.families.graph.node_classification.graphs import TEST, TRAIN, UNLABELLED, VAL, NodeGraph
from kdbench.families.graph.node_classification.options import NodeData
from kdbench.plan import datasets

Publish = Callable[[str, Mapping[str, bytes]], Path]


def undirected(graph: NodeGraph) -> int:
    """Number of edges, after checking that both directions are there once and no self-loop is."""
    pairs = set(map(tuple, graph.edges.T.tolist()))
    assert len(pairs) == graph.edges.shape[1] and all((b, a) in pairs and a != b for a, b in pairs)
    return len(pairs) // 2


def homophily(graph: NodeGraph) -> float:
    source, target = graph.y[graph.edges]
    return float((source == target)[(source >= 0) & (target >= 0)].float().mean())


# the generated graph


def test_block_model_is_the_same_twice_and_another_for_another_split() -> None:
    options = NodeData(nodes=150, words=30)
    one, again, other = (data.read("block_model", options, split) for split in (0, 0, 1))
    assert one.sha256 == again.sha256 != other.sha256 and one.split_sha256 == again.split_sha256
    assert torch.equal(one.x, again.x) and torch.equal(one.edges, again.edges) and one.texts == again.texts


@pytest.mark.parametrize("wanted", [0.2, 0.7, 0.95])
def test_block_model_keeps_to_its_options(wanted: float) -> None:
    graph = data.read("block_model", NodeData(nodes=800, classes=5, degree=6, homophily=wanted), 0)
    assert homophily(graph) == pytest.approx(wanted, abs=0.05)
    assert 2 * undirected(graph) / 800 == pytest.approx(6, rel=0.05)
    assert graph.y.bincount().tolist() == [160] * 5
    assert [len(graph.ids(split)) for split in ("train", "val", "test")] == [320, 160, 320]
    assert len(graph.texts) == 800 and {len(text.split()) for text in graph.texts} == {30}


def test_splits_cover_the_nodes_once() -> None:
    graph = data.read("block_model", NodeData(nodes=100), 0)
    ids = torch.cat([graph.ids(split) for split in ("train", "val", "test")])
    assert sorted(ids.tolist()) == list(range(100))


def test_words_limit_the_students_text() -> None:
    texts = ["red green blue", "red green", "red blue", "red", "rare"]
    assert torch.equal(graphs.tfidf(texts, 0), torch.ones(5, 1))
    two, every = graphs.tfidf(texts, 2), graphs.tfidf(texts, None)
    assert two.shape == (5, 2) and every.shape == (5, 3)  # 'rare' is in one text only
    torch.testing.assert_close(every[:4].norm(dim=1), torch.ones(4))
    assert every.dtype == torch.float32 and not every[4].any()


def test_a_matrix_of_words_that_cannot_be_dense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "DENSE_BYTES", 40)
    with pytest.raises(UsageError, match=r"4 texts and 3 words.*data\.words"):
        graphs.tfidf(["red green blue", "red green", "red blue", "red"], None)


def test_seeds_alternate_between_two_splits() -> None:
    options = NodeData(nodes=60, split="seed")
    read = [data.load("block_model", options, seed) for seed in range(4)]
    assert read[0].sha256 == read[2].sha256 != read[1].sha256 == read[3].sha256
    assert data.load("block_model", NodeData(nodes=60, split="1"), 0).sha256 == read[1].sha256
    with pytest.raises(UsageError, match="Did you mean 'cora'"):
        data.load("corra", options, 0)


def test_every_seed_draws_a_split_of_its_own() -> None:
    splits = [data.load("block_model", NodeData(nodes=60), seed).split_sha256 for seed in range(10)]
    assert len(set(splits)) == 10
    assert data.load("block_model", NodeData(nodes=60), 3).split_sha256 == splits[3]


def test_a_drawn_split_leaves_out_nodes_without_a_class() -> None:
    y = np.array([0, -1, 1, 1, -1, 0, 2])
    groups = graphs.drawn_split(y, 5)
    assert (groups[y < 0] == UNLABELLED).all()
    assert groups[y >= 0].tolist() == graphs.shuffled_split(5, 5).tolist()


def test_shuffled_split_is_tapes() -> None:
    np.random.seed(7)
    order = np.arange(11)
    np.random.shuffle(order)
    groups = data.shuffled_split(11, 7)
    assert set(order[:6]) == set(np.flatnonzero(groups == TRAIN))
    assert set(order[6:8]) == set(np.flatnonzero(groups == VAL))
    assert set(order[8:]) == set(np.flatnonzero(groups == TEST))


# real data


@pytest.mark.parametrize("split", [0, 1])
def test_cora_text_is_as_its_source_says(real_data: Path, split: int) -> None:
    graph = data.read("cora_text", NodeData(split="seed"), split)
    degree = torch.bincount(graph.edges[0], minlength=2277)
    assert len(graph.y) == len(graph.texts) == 2277 and int((graph.y >= 0).sum()) == 2211
    assert undirected(graph) == 4771 and int((degree == 0).sum()) == 72
    assert graph.y[graph.y >= 0].bincount().tolist() == [645, 195, 351, 292, 321, 252, 155]
    assert homophily(graph) == pytest.approx(0.8015, abs=1e-4)  # 0.81 in the source counts self-loops
    lengths = sorted(len(text.split()) for text in graph.texts)
    assert (lengths[0], lengths[1138], lengths[-1]) == (30, 82, 410)
    assert graph.cached is not None and graph.cached.shape == (2277, 768) and graph.x.shape == (2277, 1000)
    assert bool((graph.split[graph.y < 0] == UNLABELLED).all())
    sizes = [len(graph.ids(name)) for name in ("train", "val", "test")]
    assert sizes == [[1307, 448, 456], [1331, 440, 440]][split]
    with np.load(real_data / "graph/cora_text/lm_align.npz") as align:
        tape = data.shuffled_split(2708, split)[align["cora_content_index"]]
    assert graph.split[graph.y >= 0].tolist() == tape[graph.y >= 0].tolist()


def test_cora_texts_splits_differ_in_split_and_features_alone(real_data: Path) -> None:
    zero, one = (data.read("cora_text", NodeData(split="seed"), split) for split in (0, 1))
    assert zero.split_sha256 != one.split_sha256 and zero.sha256 != one.sha256
    assert torch.equal(zero.x, one.x) and torch.equal(zero.y, one.y) and torch.equal(zero.edges, one.edges)


def test_random_splits_of_cora_text_share_all_else(real_data: Path) -> None:
    zero, one = (data.read("cora_text", NodeData(), split) for split in (2, 3))
    assert zero.sha256 == one.sha256 and zero.split_sha256 != one.split_sha256 and torch.equal(zero.x, one.x)
    assert zero.cached is None, "the features have seen the labels of another split"
    assert [len(zero.ids(name)) for name in ("train", "val", "test")] == [1326, 442, 443]


def test_planetoid_cora_is_as_its_source_says(real_data: Path) -> None:
    graph = data.read("cora", NodeData(), 0)
    assert graph.x.shape == (2708, 1433) and graph.classes == 7 and undirected(graph) == 5278
    assert [len(graph.ids(name)) for name in ("train", "val", "test")] == [140, 500, 1000]
    assert graph.y[graph.ids("train")].bincount().tolist() == [20] * 7
    torch.testing.assert_close(graph.x.sum(dim=1), torch.ones(2708))


@pytest.mark.slow
def test_a_plain_gcn_on_our_cora_reaches_what_is_known(real_data: Path) -> None:
    graph = data.read("cora", NodeData(), 0)
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = GCNConv(1433, 16, cached=True), GCNConv(16, 7, cached=True)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h = F.dropout(self.one(F.dropout(x, 0.5, self.training), edges).relu(), 0.5, self.training)
            logits: Tensor = self.two(h, edges)
            return logits

    network = Plain()
    optimizer = torch.optim.Adam(
        [{"params": network.one.parameters(), "weight_decay": 5e-4}, {"params": network.two.parameters()}], lr=0.01
    )
    train, val, test = (graph.ids(name) for name in ("train", "val", "test"))
    best, chosen = 0.0, 0.0
    for _ in range(100):
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(graph.x, graph.edges)[train], graph.y[train]).backward()
        optimizer.step()
        network.eval()
        with torch.no_grad():
            right = network(graph.x, graph.edges).argmax(dim=1) == graph.y
        if (score := float(right[val].float().mean())) > best:
            best, chosen = score, float(right[test].float().mean())
    assert chosen > 0.79


# small sets in the layout of the full scale's


def planetoid(seed: int = 0) -> dict[str, bytes]:
    """540 nodes, 5 words, 3 classes in Planetoid's eight files; test nodes are listed out of order."""
    rng = np.random.default_rng(seed)
    words = sp.csr_matrix(rng.random((540, 5)) * (rng.random((540, 5)) < [1, 0.7, 0.7, 0.5, 0.1]))
    onehot = np.eye(3, dtype=np.int32)[rng.integers(3, size=540)]
    parts = {"x": words[:6], "y": onehot[:6], "allx": words[:520], "ally": onehot[:520]}
    parts |= {
        "tx": words[520:],
        "ty": onehot[520:],
        "graph": {i: [i, (i + 1) % 540, (i * 7) % 540] for i in range(540)},
    }
    files = {f"ind.pubmed.{name}": pickle.dumps(part) for name, part in parts.items()}
    return {**files, "ind.pubmed.test.index": "".join(f"{i}\n" for i in reversed(range(520, 540))).encode()}


def test_pubmed_reads_planetoids_files(publish: Publish) -> None:
    files = planetoid()
    publish("pubmed", files)
    graph, other = (data.read("pubmed", NodeData(), split) for split in (0, 1))
    assert graph.x.shape == (540, 5) and graph.classes == 3 and list(graph.texts) == []
    torch.testing.assert_close(graph.x.sum(dim=1), torch.ones(540))
    words = pickle.loads(files["ind.pubmed.tx"]).toarray()[0]  # the first row belongs to the last node
    np.testing.assert_allclose(graph.x[539], words / words.sum(), rtol=1e-5)
    assert undirected(graph) == len(
        {frozenset(p) for i in range(540) for p in ((i, (i + 1) % 540), (i, i * 7 % 540)) if p[0] != p[1]}
    )
    assert [len(graph.ids(name)) for name in ("train", "val", "test")] == [324, 108, 108]
    assert graph.split.tolist() == data.shuffled_split(540, 0).tolist() != other.split.tolist()


def test_pubmed_reads_a_file_of_texts_if_there_is_one(publish: Publish) -> None:
    folder = publish("pubmed", planetoid())
    without = data.read("pubmed", NodeData(), 0).sha256
    (folder / "texts.txt").write_text("".join(f"paper {i}\n" for i in range(540)))
    graph = data.read("pubmed", NodeData(), 0)
    assert list(graph.texts[:2]) == ["paper 0", "paper 1"] and len(graph.texts) == 540 and graph.sha256 != without
    (folder / "texts.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"texts\.txt has 2 lines for 540 nodes"):
        data.read("pubmed", NodeData(), 0)


def test_pubmed_serves_a_teacher_on_words_and_refuses_one_on_texts(
    publish: Publish, do: Callable[..., Outcome]
) -> None:
    publish("pubmed", planetoid())
    small = ("task=gnn/pubmed", "student.width=8", "trainer.max_epochs=2", "data.batch_size=100")
    record = do(*small, "method=lingugkd", "teacher.source=tfidf").record
    assert record.status == "done" and record.teacher is not None
    assert record.teacher.description == "tfidf, hop features by propagation"
    with pytest.raises(UsageError, match=r"llm reads texts, and there are none of pubmed\..*texts\.txt.*tfidf"):
        do(*small, "method=lingugkd")


def packed(rows: Any, header: str = "") -> bytes:
    lines = ([header] if header else []) + [",".join(map(str, np.atleast_1d(row))) for row in rows]
    return gzip.compress("".join(f"{line}\n" for line in lines).encode())


def arxiv(nodes: int = 60) -> tuple[dict[str, bytes], dict[str, Any]]:
    """OGB's archive and its file of texts, and what is in them. Node 3's paper has no text."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(nodes, 128)).round(6), rng.integers(4, size=nodes)
    edges = np.array([(i, (i + d) % nodes) for i in range(nodes) for d in (1, 5)] + [(2, 2), (1, 0)])
    order, papers = rng.permutation(nodes), rng.permutation(10 * nodes)[:nodes] + 1000
    split = {"train": order[: nodes // 2], "valid": order[nodes // 2 : -10], "test": order[-10:]}
    members = {
        "raw/edge": packed(edges),
        "raw/node-feat": packed(x),
        "raw/node-label": packed(y),
        "raw/num-node-list": packed([nodes]),
        "raw/num-edge-list": packed([len(edges)]),
        "raw/node_year": packed([2018] * nodes),
        **{f"split/time/{name}": packed(ids) for name, ids in split.items()},
        "mapping/nodeidx2paperid": packed(enumerate(papers), "node idx,paper id"),
        "mapping/labelidx2arxivcategeory": packed(
            enumerate(f"arxiv cs {c}" for c in ("na", "mm", "lo", "cy")), "label idx,arxiv category"
        ),
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"arxiv/{name}.csv.gz", content)
    texts = [
        f"{paper}\tTitle of {node}\tabout {'abcd'[y[node]] * 3} é" for node, paper in enumerate(papers) if node != 3
    ]
    lines = ["titleabs.tsv\0\0\0200971\tontology\tas a source", *reversed(texts), "77\tnot\tin the graph", "\0\0\0"]
    files = {"arxiv.zip": stream.getvalue(), "titleabs.tsv.gz": gzip.compress("\n".join(lines).encode())}
    return files, {"x": x, "y": y, "edges": edges, "split": split}


def test_arxiv_reads_ogbs_archive_and_joins_the_texts(publish: Publish) -> None:
    files, content = arxiv()
    publish("arxiv", files)
    graph = data.read("arxiv", NodeData(), 0)
    np.testing.assert_allclose(graph.x, content["x"].astype(np.float32))
    assert graph.y.tolist() == content["y"].tolist()
    assert undirected(graph) == len({frozenset(pair) for pair in content["edges"].tolist() if pair[0] != pair[1]})
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert graph.ids(ours).tolist() == sorted(content["split"][theirs])
    assert list(graph.class_names) == ["cs.NA", "cs.MM", "cs.LO", "cs.CY"]
    assert graph.texts[5] == f"Title of 5. about {'abcd'[content['y'][5]] * 3} é" and graph.texts[3] == ""
    assert graph.cached is None and graph.sha256 == datasets.fetch(datasets.dataset("arxiv"))[1]


def test_arxiv_refuses_texts_of_other_papers(publish: Publish) -> None:
    files, _ = arxiv()
    publish("arxiv", {**files, "titleabs.tsv.gz": gzip.compress(b"1\tanother\tpaper\n")})
    with pytest.raises(DataError, match=r"titleabs\.tsv\.gz holds none of the 60 papers"):
        data.read("arxiv", NodeData(), 0)


def test_arxiv_runs_with_a_language_model_as_teacher(publish: Publish, do: Callable[..., Outcome]) -> None:
    publish("arxiv", arxiv(40)[0])
    small = ("student.width=8", "trainer.max_epochs=2", "data.batch_size=8", "teacher.lora_rank=4")
    record = do("task=gnn/arxiv", "method=lingugkd", "teacher.model=tiny-llama", *small).record
    assert record.status == "done" and record.teacher is not None
    assert record.teacher.description == "llm, one prompt a hop"
    assert record.data is not None
    sizes = record.data.sizes
    assert (sizes.train, sizes.val, sizes.test) == (20, 10, 10) and record.data.licence.startswith("ODC-BY")


@pytest.mark.parametrize("name", ["pubmed", "arxiv"])
def test_what_is_not_here_says_where_it_belongs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KDBENCH_DATA", "KDBENCH_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("KDBENCH_OFFLINE", "1")
    with pytest.raises(DataError, match=rf"Data set '{name}' lacks .*graph/{name}.*kdbench data {name}"):
        data.read(name, NodeData(), 0)
