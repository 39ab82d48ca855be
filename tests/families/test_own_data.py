"""A stranger's data sets, each described in a card of a folder outside the repository, without a line of ours."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from kdbench.engine.runner import Outcome
from kdbench.errors import DataError, UsageError
from kdbench.families.detection.domain_adaptation import domains

Do = Callable[..., Outcome]
GRAPHS = """
scales:
  tiny:
    data: {batch_size: 16}
    student: {width: 8, layers: 1}
    teacher: {width: 8, layers: 1, epochs: 1}
    trainer: {max_epochs: 1}
"""
NODES = """
scales:
  tiny:
    student: {width: 8, layers: 1}
    trainer: {max_epochs: 1}
"""
DETECTION = """
scales:
  tiny:
    data: {short_side: 64, long_side: 64, batch_size: 2, source_batch_size: 2}
    student:
      name: r18_fpn
      base_channels: 8
      levels: 1
      neck_channels: 16
      head_channels: 16
      anchor_scales: [2]
      anchors: 32
      regions: 16
      proposals: 20
      training_proposals: 30
      source_epochs: 1
      source_validations: 1
    trainer: {max_epochs: 1}
"""
MEDICAL = """
scales:
  tiny:
    data: {train_volumes: null, patch: [16, 16, 16]}
    student: {filters: [4, 8, 16]}
    teacher: {filters: [4, 8, 16], epochs: 1}
    trainer: {max_epochs: 1}
"""
PAIRS = """
scales:
  tiny:
    data: {pairs: null, validation_pairs: null, batch_size: 16}
    student: {modality: image}
    trainer: {max_epochs: 1}
"""


def card(folder: Path, family: str, kind: str, metric: str, reader: str, rest: str, name: str = "mine") -> str:
    """Write a card whose data lies in ``data`` beside it; its path."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"title: My own\nfamily: {family}\nkind: {kind}\nmetric: {metric}\ndataset: own_set\n"
        f"datasets:\n  own_set:\n    title: A set of my own\n    licence: CC0-1.0\n    folder: data\n"
        f"    reader: {reader}\n{rest}"
    )
    return f"task={path}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_tu(folder: Path, graphs: int = 60, classes: Sequence[int] = (-1, 1)) -> None:
    """Trees, the class telling how many edges they have beside, in the TU collection's files."""
    rng, edges, indicator, offset = np.random.default_rng(0), [], [], 0
    for graph in range(graphs):
        size = int(rng.integers(4, 8))
        pairs = [(node, int(rng.integers(node))) for node in range(1, size)]
        pairs += [(size - 1, extra) for extra in range(graph % len(classes))]
        edges += [(offset + a + 1, offset + b + 1) for pair in pairs for a, b in (pair, pair[::-1])]
        indicator += [graph + 1] * size
        offset += size
    lines = {
        "A": [f"{a}, {b}" for a, b in edges],
        "graph_indicator": indicator,
        "graph_labels": [classes[graph % len(classes)] for graph in range(graphs)],
        "node_labels": rng.integers(3, size=offset).tolist(),
    }
    for name, rows in lines.items():
        (folder / f"RINGS_{name}.txt").write_text("".join(f"{row}\n" for row in rows))


def test_a_set_of_the_tu_collection(tmp_path: Path, data: Path, do: Do) -> None:
    write_tu(data)
    shares = "    options: {validation: 0.2, test: 0.2}\n"
    task = card(tmp_path, "graph", "graph_classification", "auc", "tu", shares + GRAPHS)
    record = do(task, "method=mirage").record
    assert record.task == "mine" and record.data is not None and record.data.name == "own_set"
    sizes = record.data.sizes
    assert (sizes.train, sizes.val, sizes.test) == (36, 12, 12) and record.data.licence == "CC0-1.0"
    assert do(task, "method=kd").record.status == "done"


def test_graphs_of_three_classes(tmp_path: Path, data: Path, do: Do) -> None:
    write_tu(data, classes=(4, 7, 9))
    shares = "    options: {validation: 0.25, test: 0.25}\n"
    task = card(tmp_path, "graph", "graph_classification", "accuracy", "tu", shares + GRAPHS)
    for method in ("kd", "mirage", "random_graphs"):
        record = do(task, f"method={method}").record
        assert record.metrics is not None and 0 <= record.metrics.test["auc"] <= 1
        assert record.confusion is not None and len(record.confusion) == 3
        assert record.predictions is not None and set(record.predictions) <= set("012")
    with pytest.raises(UsageError, match=r"theta=\[3, 3\]: own_set has 3 classes, so as many thresholds"):
        do(task, "method=mirage", "method.theta=[3,3]")


def test_the_tu_files_mean_the_graphs_that_they_list(tmp_path: Path, data: Path) -> None:
    from kdbench.families.graph.graph_classification.data import read
    from kdbench.plan.config import expand

    files = {
        "A": "1, 2\n4, 5\n2, 1\n5, 4\n",
        "graph_indicator": "1\n1\n1\n2\n2\n",
        "graph_labels": "-1\n1\n",
        "node_labels": "7\n-1\n7\n3\n3\n",
        "edge_labels": "5\n9\n5\n9\n",
    }
    for name, text in files.items():
        (data / f"X_{name}.txt").write_text(text)
    task = card(tmp_path, "graph", "graph_classification", "auc", "tu", GRAPHS)
    (config,) = expand([task, "method=alone"])
    graphs = read(config.dataset, config.data, 0).graphs
    assert graphs.x.tolist() == [[2], [0], [2], [1], [1]] and graphs.y.tolist() == [0, 1]
    assert graphs.edges.tolist() == [[0, 1, 3, 4], [1, 0, 4, 3]] and graphs.edge_labels.tolist() == [[0], [0], [1], [1]]
    assert graphs.nodes.tolist() == [3, 2] and graphs.sizes.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("A", "1, 2\n2, 3\n", r"X_A\.txt:2: its nodes are of different graphs"),
        ("A", "1, 9\n", r"X_A\.txt:1: node 9 is none of 1…4"),
        ("A", "1\n", r"X_A\.txt has the shape \[1, 1\]"),
        ("graph_indicator", "1\n2\n1\n2\n", r"X_graph_indicator\.txt:3: the nodes of a graph are to stand together"),
        ("graph_indicator", "1\n1\n1\n1\n", r"graph 2 has no node"),
        ("graph_indicator", "1\n1\n3\n3\n", r"X_graph_indicator\.txt:3: graph 3 is none of 1…2"),
        ("graph_labels", "1\nx\n", r"X_graph_labels\.txt cannot be read"),
        ("graph_labels", "1\n1\n", r"X_graph_labels\.txt has graphs of the class \[1\] alone"),
        ("node_labels", "1\n", r"X_graph_indicator\.txt has 4 rows, .*X_node_labels\.txt has 1 rows"),
        ("node_labels", None, r"own_set has no labels of nodes .*: say 'degrees: true'"),
        ("graph_labels", None, r"lacks X_graph_labels\.txt"),
    ],
)
def test_a_faulty_tu_file_is_named(tmp_path: Path, data: Path, file: str, text: str | None, said: str) -> None:
    from kdbench.families.graph.graph_classification.data import read
    from kdbench.plan.config import expand

    sound = {"A": "1, 2\n3, 4\n", "graph_indicator": "1\n1\n2\n2\n", "graph_labels": "1\n2\n", "node_labels": "1\n" * 4}
    for name, content in {**sound, file: text}.items():
        if content is not None:
            (data / f"X_{name}.txt").write_text(content)
    task = card(tmp_path, "graph", "graph_classification", "auc", "tu", GRAPHS)
    (config,) = expand([task, "method=alone"])
    with pytest.raises(DataError, match=said):
        read(config.dataset, config.data, 0)


def ring(nodes: int = 60) -> dict[str, np.ndarray]:
    """Nodes of three classes in a ring, each with its class among its features."""
    y = np.arange(nodes) % 3
    x = np.eye(3)[y] + np.random.default_rng(0).random((nodes, 3))
    return {"x": x, "edges": np.stack([np.arange(nodes), (np.arange(nodes) + 3) % nodes]), "y": y}


def test_a_graph_in_a_numpy_archive(tmp_path: Path, data: Path, do: Do) -> None:
    np.savez(data / "graph.npz", **ring())
    task = card(tmp_path, "graph", "node_classification", "accuracy", "npz_graph", NODES)
    with pytest.raises(UsageError, match=r"there are none of own_set\. .*teacher\.source=tfidf does without"):
        do(task, "method=lingugkd", "teacher.source=llm")
    record = do(task, "method=alone").record
    assert record.data is not None
    sizes = record.data.sizes
    assert (sizes.train, sizes.val, sizes.test) == (36, 12, 12)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"edges": np.array([[0], [60]])}, r"graph\.npz: edges, row 0: node 60 is none of 0…59"),
        ({"y": np.arange(60) % 3 - 2}, r"graph\.npz: y, row 0: class -2"),
        ({"x": np.full((60, 3), np.nan)}, r"graph\.npz: x, row 0: nan is not a finite number"),
        ({"x": np.ones((59, 3))}, r"graph\.npz: x has the shape \[59, 3\], not \[60, any\]"),
        ({"split": np.full(60, 7)}, r"graph\.npz: split, row 0: split 7"),
        ({"split": np.zeros(60, int)}, "own_set: the val split is empty"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_a_faulty_archive_is_named(tmp_path: Path, data: Path, changed: dict[str, np.ndarray], said: str) -> None:
    from kdbench.families.graph.node_classification.data import load
    from kdbench.plan.config import expand

    np.savez(data / "graph.npz", **{**ring(), **changed})
    task = card(tmp_path, "graph", "node_classification", "accuracy", "npz_graph", NODES)
    (config,) = expand([task, "method=alone"])
    with pytest.raises(DataError, match=said):
        load(config.dataset, config.data, 0)


def write_texts(folder: Path, nodes: int = 60) -> None:
    with (folder / "nodes.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["paper", "abstract", "topic"])
        table.writerows(
            [f"p{node}", f"{'cats' if node % 2 else 'dogs'}, they say, {node % 5}th", "cat" if node % 2 else "dog"]
            for node in range(nodes)
        )
    pairs = [f"p{node},p{(node + 2) % nodes}\n" for node in range(nodes)]
    (folder / "edges.csv").write_text("from,to\n" + "".join(pairs))


TEXT = "    options: {id: paper, text: abstract, label: topic}\n"


def test_a_graph_of_texts_in_tables(tmp_path: Path, data: Path, do: Do) -> None:
    write_texts(data)
    task = card(tmp_path, "graph", "node_classification", "accuracy", "csv_text", TEXT + NODES)
    record = do(task, "method=lingugkd", "data.words=20").record
    assert record.teacher is not None and record.data is not None and record.data.sizes.train == 36


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("nodes.csv", "abstract", "abstrakt", r"nodes\.csv:1: Unknown column 'abstract'\. Did you mean 'abstrakt'"),
        ("nodes.csv", "p3,", "p2,", r"nodes\.csv:5: the node 'p2' is in line 4 already"),
        ("nodes.csv", ",cat\n", ",cat,x\n", r"nodes\.csv:3: 4 columns, but the first line names 3"),
        ("edges.csv", "p4,p6", "p4,q6", r"edges\.csv:6: there is no node 'q6'"),
        ("edges.csv", "p4,p6", "p4", r"edges\.csv:6: an edge has two ends"),
    ],
)
def test_a_faulty_table_is_named(tmp_path: Path, data: Path, file: str, old: str, new: str, said: str) -> None:
    from kdbench.families.graph.node_classification.data import load
    from kdbench.plan.config import expand

    write_texts(data)
    text = (data / file).read_text()
    assert old in text
    (data / file).write_text(text.replace(old, new, 1))
    task = card(tmp_path, "graph", "node_classification", "accuracy", "csv_text", TEXT + NODES)
    (config,) = expand([task, "method=alone"])
    with pytest.raises(DataError, match=said):
        load(config.dataset, config.data, 0)


def write_coco(folder: Path, file: str, count: int, seed: int) -> None:
    """Pictures of one bright square each, and their json."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for number in range(count):
        name = f"{file}_{number}.png"
        pixels = rng.integers(60, size=(64, 64, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(30, size=2))
        pixels[y : y + 24, x : x + 24] += 180
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, 24, 24]})
    told = {"images": images, "categories": [{"id": 1, "name": "square"}], "annotations": boxes}
    (folder / f"{file}.json").write_text(json.dumps(told))


COCO = """    options:
      source_train: day/train.json
      source_val: day/val.json
      target_train: night/train.json
      target_test: night/test.json
"""


def test_two_domains_in_cocos_json(tmp_path: Path, data: Path, do: Do) -> None:
    parts = (("day", "train"), ("day", "val"), ("night", "train"), ("night", "test"))
    for seed, (domain, file) in enumerate(parts):
        write_coco(data / domain, file, 4, seed)
    task = card(tmp_path, "detection", "domain_adaptation", "map50", "coco", COCO + DETECTION)
    record = do(task, "method=kd").record
    assert record.data is not None
    sizes = record.data.sizes
    assert (sizes.train, sizes.val, sizes.test) == (4, 4, 4)
    listing = (data / "night" / "test.json").read_text()
    (data / "night" / "test.json").write_text(listing.replace("test_0.png", "train_0.png"))
    domains.load.cache_clear()
    with pytest.raises(DataError, match=r"train_0\.png is in two splits: target_train and target_test"):
        do(task, "method=kd", "seed=1")


def write_volumes(folder: Path, count: int = 6) -> None:
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        label = np.zeros((16, 16, 16), dtype=np.uint8)
        label[4:10, 4:10, 4:10], label[10:14, 4:10, 4:10] = 1, 2
        image = (label + rng.normal(size=label.shape)).astype(np.float32)
        for sub, values in (("images", image), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), folder / sub / f"v{number}.nii.gz")


def test_a_folder_of_nifti_files(tmp_path: Path, data: Path, do: Do) -> None:
    write_volumes(data)
    task = card(tmp_path, "medical", "segmentation_3d", "dice", "nifti_folder", MEDICAL)
    record = do(task, "method=kd").record
    assert record.data is not None
    sizes = record.data.sizes
    assert (sizes.train, sizes.val, sizes.test) == (4, 1, 1)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (
            {"train": ["v0"], "val": ["v1"], "test": ["v9"]},
            r"splits\.json lists v9, of which there is no .*v9\.nii",
        ),
        ({"train": ["v0"], "val": ["v1"], "test": ["v1"]}, r"splits\.json lists v1 more than once"),
        ({"train": ["v0"], "val": ["v1"]}, r"splits\.json does not list the names of train, val, test"),
        ([], r"splits\.json does not list the names"),
    ],
)
def test_a_faulty_list_of_volumes_is_named(tmp_path: Path, data: Path, splits: object, said: str) -> None:
    from kdbench.families.medical.segmentation_3d.data import load
    from kdbench.plan.config import expand

    write_volumes(data, 2)
    (data / "splits.json").write_text(json.dumps(splits))
    rest = "    options: {splits: splits.json}\n" + MEDICAL
    (config,) = expand([card(tmp_path, "medical", "segmentation_3d", "dice", "nifti_folder", rest), "method=alone"])
    with pytest.raises(DataError, match=said):
        load(config.dataset, config.data, 0)


PAIRED = "    options: {views: {image: seen.npy, text: read.npy}}\n"


def write_pairs(folder: Path, count: int = 60) -> None:
    rng, y = np.random.default_rng(0), np.arange(count) % 3
    np.save(folder / "seen.npy", (np.eye(3)[y] @ rng.normal(size=(3, 12)) + rng.normal(size=(count, 12))).astype("f4"))
    np.save(folder / "read.npy", (np.eye(3)[y] @ rng.normal(size=(3, 7))).astype("f4"))
    np.save(folder / "labels.npy", y)


def test_paired_arrays(tmp_path: Path, data: Path, do: Do) -> None:
    write_pairs(data)
    task = card(tmp_path, "vision_language", "paired_classification", "accuracy", "paired_arrays", PAIRED + PAIRS)
    record = do(task, "method=kd").record
    assert (
        record.data is not None and record.teacher is not None and record.teacher.description == "sees image and text"
    )
    sizes = record.data.sizes
    assert (sizes.train, sizes.val, sizes.test) == (36, 12, 12)
    np.save(data / "read.npy", np.zeros((60, 2, 7)))
    with pytest.raises(DataError, match=r"read\.npy has examples of the shape \[2, 7\]: networks=features takes"):
        do(task, "method=kd", "seed=1")
