"""Damaged graphs: each is refused when it is loaded, by file and place, before anything is trained on it."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from kdbench.engine import inputs
from kdbench.engine.runner import Outcome
from kdbench.errors import DataError, UsageError
from kdbench.families.graph.graph_classification import data as graph_data
from kdbench.families.graph.graph_classification.options import GraphData
from kdbench.families.graph.node_classification import data
from kdbench.families.graph.node_classification.options import NodeData

Publish = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for module in (data, graph_data):
        module.load.cache_clear()
    yield
    for module in (data, graph_data):
        module.load.cache_clear()


def array(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def archive(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def table(rows: np.ndarray) -> bytes:
    return gzip.compress("".join(",".join(map(str, row)) + "\n" for row in np.atleast_2d(rows)).encode())


def told_of(value: object) -> str:
    """A file's content makes no name for a test: that of an archive differs from second to second."""
    return "" if isinstance(value, bytes) or "\n" in str(value) else str(value)


def hole(values: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[row] = value
    return changed


# options of generated graphs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 21, "classes": 30}, "data.classes=30 is too many: .* 10 at most"),
        ({"nodes": 21, "classes": 10}, r"block_model: the \w+ split has no example of class \d.*fewer data.classes"),
        ({"nodes": 21, "degree": 0.01}, "data.degree=0.01 cannot be the mean number of neighbours among 21 nodes"),
        ({"nodes": 21, "degree": 21.0}, "data.degree=21 cannot be"),
    ],
)
def test_options_of_no_block_model(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.load("block_model", NodeData(**options), 0)  # type: ignore[arg-type]


def test_too_few_graphs_for_both_classes_in_every_split(do: Callable[..., Outcome], tmp_path: Path) -> None:
    message = (
        r"motifs: the test split has no example of class 1 \(train 9 of 16, val 1 of 2, test 0 of 2\)\. Take more data"
    )
    with pytest.raises(UsageError, match=message):
        do("task=graph_classification", "method=kd", "data.graphs=20")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


# the text-attributed graph

TEXTS = 40
FEATURES = np.random.default_rng(0).normal(size=(TEXTS, 6)).astype("f2")
SPLIT = np.repeat([0, 1, 2], [24, 8, 8]).astype("i1")


def cora_text(**changed: bytes) -> dict[str, bytes]:
    """40 papers in a ring; keywords replace a file, its name without the ending."""
    lines = {
        "data": "\n".join(f"word{i % 7} word{i % 5} paper" for i in range(TEXTS)),
        "group": "\n".join("" if i == 38 else str(i % 7) for i in range(TEXTS)),
        "graph": "".join(f"{i}\t{(i + 1) % TEXTS}\n" for i in range(TEXTS)),
    }
    files = {f"{name}.txt": text.encode() for name, text in lines.items()}
    files |= {"lm_align.npz": archive(split_seed0=SPLIT, split_seed1=SPLIT), "lm_emb_seed0.npy": array(FEATURES)}
    files["lm_emb_seed1.npy"] = files["lm_emb_seed0.npy"]
    return {file: changed.get(file.partition(".")[0], content) for file, content in files.items()}


def lines(file: str, line: int, text: str) -> bytes:
    given = cora_text()[file].decode().split("\n")
    return "\n".join([*given[: line - 1], text, *given[line:]]).encode()


def test_a_sound_text_graph_is_loaded(publish: Publish) -> None:
    publish("cora_text", cora_text())
    graph = data.load("cora_text", NodeData(split="seed"), 0)
    assert len(graph.texts) == TEXTS and int(graph.y[38]) == -1 and int(graph.split[38]) == data.UNLABELLED


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("group", lines("group.txt", 3, "7"), r"group\.txt:3: label 7 is none of 0…6"),
        ("group", lines("group.txt", 3, "-2"), r"group\.txt:3: label -2"),
        ("group", lines("group.txt", 3, "-1"), r"group\.txt:3: label -1 is none of 0…6"),
        ("group", lines("group.txt", 3, "1.5"), r"group\.txt cannot be read: .*'1\.5'"),
        ("group", lines("group.txt", 3, "Theory"), r"group\.txt cannot be read: .*'Theory'"),
        ("group", b"\n".join([b"0"] * 41), r"data\.txt has 40 rows, .*group\.txt has 41 rows"),
        ("group", b"", r"group\.txt has 1 rows"),
        ("group", b"\n".join([b"0"] * 40), "cora_text: the train split has no example of class 1 .train 0 of 24"),
        ("data", b"\xff\xfe", r"data\.txt cannot be read: .*utf-8"),
        ("data", b"\n".join(b"own%d" % i for i in range(TEXTS)), "The 40 texts give no words to learn from"),
        ("graph", lines("graph.txt", 5, "4\t40"), r"graph\.txt:5: node 40 is none of 0…39"),
        ("graph", lines("graph.txt", 5, "-1\t4"), r"graph\.txt:5: node -1"),
        ("graph", lines("graph.txt", 5, "4"), r"graph\.txt cannot be read: the number of columns changed"),
        ("graph", lines("graph.txt", 5, "nan\t4"), r"graph\.txt cannot be read: .*'nan'"),
        ("graph", b"3\t3\n", "cora_text has no edge between two nodes"),
        ("graph", b"1\t2\t3\n", r"graph\.txt has the shape \[1, 3\]"),
        ("lm_align", archive(split_seed1=SPLIT), r"lm_align\.npz cannot be read: split_seed0 is not a file"),
        ("lm_align", archive(split_seed0=hole(SPLIT, 6, 4)), r"lm_align\.npz.*, row 6: split 4 is none of 0…3"),
        ("lm_align", archive(split_seed0=SPLIT[1:]), r"lm_align\.npz: split_seed0 has the shape \[39\]"),
        ("lm_align", archive(split_seed0=np.zeros(TEXTS, "i1")), "cora_text: the val split is empty .train 39, val 0"),
        ("lm_emb_seed0", array(hole(FEATURES, 30, np.nan)), r"lm_emb_seed0\.npy, row 30: nan is not a finite"),
        ("lm_emb_seed0", array(hole(FEATURES, 38, -np.inf)), r"lm_emb_seed0\.npy, row 38: -inf"),
        ("lm_emb_seed0", array(FEATURES[:-1]), r"lm_emb_seed0\.npy has the shape \[39, 6\], not \[40, any\]"),
        ("lm_emb_seed0", array(FEATURES)[:-100], r"lm_emb_seed0\.npy cannot be read"),
        ("lm_emb_seed0", array(FEATURES.astype("U8")), r"lm_emb_seed0\.npy holds <U8, not numbers"),
        ("lm_emb_seed0", array(FEATURES.astype(object)), r"lm_emb_seed0\.npy cannot be read: .*allow_pickle"),
    ],
    ids=told_of,
)
def test_a_damaged_text_graph_is_refused(publish: Publish, file: str, content: bytes, message: str) -> None:
    publish("cora_text", cora_text(**{file: content}))
    with pytest.raises(DataError, match=message):
        data.load("cora_text", NodeData(split="seed"), 0)


# Planetoid and OGB


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("allx", b"", "ind.cora.. cannot be read: EOFError"),
        ("tx", pickle.dumps(sp.csr_matrix(-np.eye(1000, 1433))), r"features, row \d+: there is a negative one"),
        ("allx", b"no pickle", "ind.cora.. cannot be read: "),
        (
            "ally",
            pickle.dumps(np.zeros((1708, 7), dtype="i4")),
            r"ind\.cora\.ally, row 0: number of classes 0.* is none of 1…1",
        ),
        ("test.index", b"1\n", r"ind\.cora\.test\.index does not list the last 1000 of 2708 nodes"),
    ],
    ids=told_of,
)
def test_damaged_planetoid_files_are_refused(
    real_data: Path, publish: Publish, part: str, content: bytes, message: str
) -> None:
    folder = real_data / "graph/planetoid/cora"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    publish("cora", {**files, f"ind.cora.{part}": content})
    with pytest.raises(DataError, match=message):
        data.load("cora", NodeData(), 0)


def test_planetoid_files_leave_nothing_in_the_temporary_folder(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "TemporaryDirectory", None)  # a killed run would leave it
    assert len(data.load("cora", NodeData(), 0).y) == 2708


# sets of graphs

TEXT = "12\n" + "3 2\n5 2 1 2\n0 1 0\n0 1 0\n2 0\n1 0\n4 0\n" * 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("5 2 1 2", "5 2 1 3", 1), r"MUTAG\.txt\.gz:3: '5 2 1 3' does not fit a set of 12 graphs"),
        (TEXT.replace("5 2 1 2", "5 2 -1 2", 1), ":3: '5 2 -1 2' does not fit"),
        (TEXT.replace("5 2 1 2", "-5 2 1 2", 1), ":3: '-5 2 1 2' does not fit"),
        (TEXT.replace("5 2 1 2", "99999999 2 1 2", 1), ":3: '99999999 2 1 2' does not fit"),
        (TEXT.replace("5 2 1 2", "5.5 2 1 2", 1), "cannot be read: .*'5.5'"),
        (TEXT.replace("5 2 1 2", "nan 2 1 2", 1), "cannot be read: .*'nan'"),
        (TEXT.replace("5 2 1 2", "9" * 30 + " 2 1 2", 1), "cannot be read: "),
        (TEXT.replace("3 2\n", "3 0\n"), r"the class \[0\] alone"),
        (TEXT.replace("2 0\n", "0 0\n", 1), r"MUTAG\.txt\.gz:9: '3 2' does not fit"),
        (TEXT.replace("5 2 1 2", "5 -2 1 2", 1), ":3: '5 -2 1 2' does not fit"),
        (TEXT.replace("5 2 1 2\n0 1 0", "5 2 1\n2 0 1 0", 1), ":3: '5 2 1' does not fit"),
        (TEXT.replace("12", "13", 1), "holds 12 graphs in 43 lines, not the 13 of its first line"),
        (TEXT + "4 0\n", ":44: '4 0' does not fit|in 44 lines"),
        ("", ":1: '' does not fit"),
        ("2\n1 0\n4 0\n1 1\n4 0\n", "mutag has no edge in any of its 2 graphs"),
        (TEXT, "mutag: the val split has no example of class 0 .train 5 of 10, val 0 of 1, test 1 of 1"),
    ],
    ids=told_of,
)
def test_a_damaged_set_in_the_text_format_is_refused(publish: Publish, text: str, message: str) -> None:
    publish("mutag", {"MUTAG.txt.gz": gzip.compress(text.encode())})
    with pytest.raises(DataError, match=message):
        graph_data.load("mutag", GraphData(split="fixed"), 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"plain", gzip.compress(TEXT.encode())[:-9], gzip.compress(b"\xff")],
    ids=["empty", "plain", "cut", "binary"],
)
def test_a_damaged_archive_is_named(publish: Publish, content: bytes) -> None:
    publish("mutag", {"MUTAG.txt.gz": content})
    with pytest.raises(DataError, match=r"MUTAG\.txt\.gz(:1: '' does not fit| cannot be read: )"):
        graph_data.load("mutag", GraphData(split="fixed"), 0)


MOLECULES = 12
TABLES = {
    "raw/num-node-list": np.full((MOLECULES, 1), 3),
    "raw/num-edge-list": np.full((MOLECULES, 1), 2),
    "raw/node-feat": np.arange(MOLECULES * 3 * 2).reshape(-1, 2) % 5,
    "raw/edge": np.tile([[0, 1], [1, 2]], (MOLECULES, 1)),
    "raw/edge-feat": np.arange(MOLECULES * 2)[:, None] % 3,
    "raw/graph-label": np.arange(MOLECULES)[:, None] % 2,
    "split/scaffold/train": np.arange(8)[:, None],
    "split/scaffold/valid": np.arange(8, 10)[:, None],
    "split/scaffold/test": np.arange(10, 12)[:, None],
}


def molbace(publish: Publish, **changed: bytes) -> None:
    """Twelve paths of three nodes; keywords replace a file, '_' for '-'."""
    files = {f"{name}.csv.gz": table(rows) for name, rows in TABLES.items()}
    for name, content in changed.items():
        (file,) = [file for file in files if file.endswith(f"/{name.replace('_', '-')}.csv.gz")]
        files[file] = content
    publish("molbace", files)


def test_sound_molecules_are_loaded(publish: Publish) -> None:
    molbace(publish)
    loaded = graph_data.load("molbace", GraphData(split="fixed"), 0)
    assert [len(loaded.ids(split)) for split in inputs.SPLITS] == [8, 2, 2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "graph_label",
            table(hole(TABLES["raw/graph-label"], 4, 2)),
            r"graph-label\.csv\.gz:5: label 2 is none of 0…1",
        ),
        ("graph_label", table(TABLES["raw/graph-label"] + 1), r"graph-label\.csv\.gz:2: label 2 .*count from 1"),
        ("graph_label", table(hole(TABLES["raw/graph-label"], 4, -1)), r"graph-label\.csv\.gz:5: label -1"),
        ("graph_label", table(TABLES["raw/graph-label"] + 0.5), r"graph-label\.csv\.gz cannot be read: .*'0\.5'"),
        ("graph_label", table(TABLES["raw/graph-label"][1:]), r"graph-label\.csv\.gz has 11 rows"),
        ("graph_label", table(np.zeros((MOLECULES, 2), int)), r"graph-label\.csv\.gz has the shape \[12, 2\]"),
        ("graph_label", table(TABLES["raw/graph-label"] * 0), "molbace: the train split has no example of class 1"),
        ("graph_label", b"", r"graph-label\.csv\.gz has the shape"),
        ("node_feat", table(hole(TABLES["raw/node-feat"], 7, -3)), r"node-feat\.csv\.gz:8: label -3"),
        ("node_feat", table(TABLES["raw/node-feat"][1:]), r"node-feat.* has 35 rows, .*num-node-list.* in all has 36"),
        ("node_feat", table(TABLES["raw/node-feat"])[:-9], r"node-feat\.csv\.gz cannot be read"),
        ("node_feat", gzip.compress(b"1,2\n3\n"), r"node-feat\.csv\.gz cannot be read: the number of columns"),
        ("edge", table(hole(TABLES["raw/edge"], 6, 3)), r"edge\.csv\.gz:7: node 3 is none of 0…2"),
        ("edge", table(TABLES["raw/edge"][1:]), r"edge\.csv\.gz has 23 rows, .*num-edge-list.* in all has 24"),
        ("edge_feat", table(TABLES["raw/edge-feat"][1:]), r"edge-feat\.csv\.gz has 23 rows"),
        (
            "num_node_list",
            table(hole(TABLES["raw/num-node-list"], 2, 0)),
            r"num-node-list\.csv\.gz:3: number of nodes 0",
        ),
        (
            "num_edge_list",
            table(hole(TABLES["raw/num-edge-list"], 2, -2)),
            r"num-edge-list\.csv\.gz:3: number of edges",
        ),
        ("train", table(np.array([[0, 1, 2, 3, 4, 5, 6, 12]]).T), r"train\.csv\.gz, row 7: graph 12 is none of 0…11"),
        ("train", table(np.arange(7)[:, None]), r"Graph 7 is in none of .*train\.csv\.gz"),
        ("valid", table(np.arange(7, 10)[:, None]), r"valid\.csv\.gz, row 0: graph 7 is listed twice"),
    ],
    ids=told_of,
)
def test_damaged_molecules_are_refused(publish: Publish, file: str, content: bytes, message: str) -> None:
    molbace(publish, **{file: content})
    with pytest.raises(DataError, match=message):
        graph_data.load("molbace", GraphData(split="fixed"), 0)


def test_a_graph_without_edges_among_others_is_trained_on(publish: Publish, do: Callable[..., Outcome]) -> None:
    edges, kinds, many = TABLES["raw/edge"][2:], TABLES["raw/edge-feat"][2:], hole(TABLES["raw/num-edge-list"], 0, 0)
    molbace(publish, edge=table(edges), edge_feat=table(kinds), num_edge_list=table(many))
    words = ("task=graph_classification/molbace", "method=kd", "student.width=4", "teacher.width=4")
    assert do(*words, "trainer.max_epochs=2", "teacher.epochs=2", "data.batch_size=1").record.status == "done"


def ogb(**changed: bytes) -> bytes:
    """arxiv.zip of 40 nodes in a ring with three classes; keywords replace a member, '_' for '-'."""
    count = 40
    tables = {
        "raw/edge": np.stack([np.arange(count), (np.arange(count) + 1) % count], axis=1),
        "raw/node-feat": np.ones((count, 4)),
        "raw/node-label": np.arange(count)[:, None] % 3,
        "split/time/train": np.arange(20)[:, None],
        "split/time/valid": np.arange(20, 30)[:, None],
        "split/time/test": np.arange(30, 40)[:, None],
        "mapping/nodeidx2paperid": np.stack([np.arange(-1, count)] * 2, axis=1),
        "mapping/labelidx2arxivcategeory": np.array(
            [["id", "category"], *([str(i), f"arxiv cs c{i}"] for i in range(3))]
        ),
    }
    members = {f"arxiv/{name}.csv.gz": table(rows) for name, rows in tables.items()}
    for name, content in changed.items():
        (member,) = [member for member in members if member.endswith(f"/{name.replace('_', '-')}.csv.gz")]
        members[member] = content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for member, content in members.items():
            packed.writestr(member, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"arxiv\.zip cannot be read"),
        (ogb()[:-40], r"arxiv\.zip cannot be read"),
        (ogb(node_label=table(np.arange(40)[:, None] % 4)), r"zip:raw/node-label, row 3: label 3 is none of 0…2"),
        (ogb(node_label=table(np.arange(39)[:, None] % 3)), r"zip:raw/node-label has the shape \[39, 1\]"),
        (ogb(node_feat=table(hole(np.ones((40, 4)), 21, np.nan))), r"zip:raw/node-feat, row 21: nan is not"),
        (ogb(node_feat=table(np.ones((39, 4)))), r"zip:raw/node-feat has 39 rows"),
        (ogb(node_feat=b"no gzip"), r"zip:raw/node-feat cannot be read"),
        (ogb(edge=table(np.array([[0, 40], [1, 2]]))), r"zip:raw/edge, row 0: node 40 is none of 0…39"),
        (ogb(valid=table(np.arange(19, 30)[:, None])), r"zip:split/time/valid, row 0: node 19 is listed twice"),
        (ogb(test=b""), r"arxiv: the test split is empty"),
    ],
    ids=told_of,
)
def test_a_damaged_archive_of_ogb_is_refused(publish: Publish, content: bytes, message: str) -> None:
    titles = "".join(f"{i}\ttitle {i}\tof some words\n" for i in range(40))
    publish("arxiv", {"arxiv.zip": content, "titleabs.tsv.gz": gzip.compress(titles.encode())})
    with pytest.raises(DataError, match=message):
        data.load("arxiv", NodeData(), 0)


def test_a_damaged_file_of_titles_is_named(publish: Publish) -> None:
    publish("arxiv", {"arxiv.zip": ogb(), "titleabs.tsv.gz": gzip.compress(b"0\ttitle\n")[:-6]})
    with pytest.raises(DataError, match=re.escape("titleabs.tsv.gz cannot be read")):
        data.load("arxiv", NodeData(), 0)
