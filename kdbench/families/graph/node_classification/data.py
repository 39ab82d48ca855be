"""Node-classification data: what a graph is, and the readers of the published ones; ``tables.py`` reads your own."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError, UsageError
from kdbench.families.graph.node_classification.graphs import (
    OGB_SPLITS,
    TEST,
    TRAIN,
    UNLABELLED,
    VAL,
    NodeGraph,
    check_pairs,
    clean,
    drawn_split,
    shuffled_split,
    with_words,
)
from kdbench.families.graph.node_classification.options import OGB, BlockModel, Cane, NodeData, Planetoid
from kdbench.families.graph.node_classification.tables import csv_text, npz_graph
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import Dataset, dataset, fetch, reading_options


@remembered(4)
def load(name: str, options: NodeData, split_seed: int) -> NodeGraph:
    """The data set ``name`` for one run seed. Raises :class:`kdbench.errors.DataError` when its files are not sound."""
    data = dataset(name)
    drawn = {"random": axis(split_seed, "split"), "seed": split_seed % 2}
    graph = read(name, options, drawn[options.split] if options.split in drawn else int(options.split))
    if not graph.edges.shape[1]:
        raise DataError(f"{data.name} has no edge between two nodes: its nodes cannot learn from each other.")
    hint = " Take more data.nodes or fewer data.classes." if data.generated else ""
    inputs.covered(graph.y.numpy(), graph.split.numpy(), graph.classes, data.name, hint=hint)
    return replace(graph, how=data.how)


def read(name: str, options: NodeData, split: int) -> NodeGraph:
    """The data set ``name`` with one of its splits, before any check of the whole."""
    data = dataset(name)
    return READERS[data.reader](data, reading_options(data), options, split)


def block_model(data: Dataset, how: BlockModel, options: NodeData, split: int) -> NodeGraph:
    """A text-attributed block model: labels give edges and words; teacher and student each know a part.

    Each text has 30 of 400 words, one in five from the 40 words of its class; 40/20/40 % train, validation, test.
    Raises :class:`UsageError` for more classes than have words, and a degree that gives no edge or more than there are.
    """
    rng = np.random.default_rng(axis(split, "block_model"))
    nodes, classes = options.nodes, options.classes
    if 40 * classes > 400:
        raise UsageError(f"data.classes={classes} is too many: each class has 40 of 400 words, so 10 at most.")
    if not 2 <= nodes * options.degree < nodes * nodes:
        raise UsageError(f"data.degree={options.degree:g} cannot be the mean number of neighbours among {nodes} nodes.")
    y = rng.permutation(np.arange(nodes) % classes)
    wanted = int(nodes * options.degree / 2)
    source = rng.integers(nodes, size=4 * wanted)
    same = rng.random(4 * wanted) < options.homophily
    members = [np.flatnonzero(y == c) for c in range(classes)]
    others = [np.flatnonzero(y != c) for c in range(classes)]
    pools = [(members if alike else others)[y[node]] for node, alike in zip(source, same, strict=True)]
    target = np.array([rng.choice(pool) for pool in pools])
    pairs = np.stack([source, target])[:, source != target][:, :wanted]
    topics = rng.permutation(400)[: 40 * classes].reshape(classes, 40)
    words = np.stack([np.where(rng.random(30) < 0.2, rng.choice(topics[c], 30), rng.integers(400, size=30)) for c in y])
    texts = [" ".join(f"word{word:03d}" for word in row) for row in words]
    order = rng.permutation(nodes)
    groups = np.empty(nodes, dtype=np.int64)
    groups[order] = np.searchsorted([0.4, 0.6], np.arange(nodes) / nodes, side="right")
    sha256 = digest({"texts": texts, "edges": pairs.tolist(), "y": y.tolist()})
    names = [f"topic {c}" for c in range(classes)]
    return with_words(data.name, options, pairs, y, groups, texts, names, None, sha256)


def cane(data: Dataset, how: Cane, options: NodeData, split: int) -> NodeGraph:
    """Cora with abstracts (CANE copy): a TAPE split and the DeBERTa features tuned on it, or a random split without.

    The features have seen the labels of their split's training nodes, so that no other split may use them.
    """
    files = ["data.txt", "graph.txt", "group.txt"]
    if published := options.split != "random":
        files += ["lm_align.npz", f"lm_emb_seed{split}.npy"]
    paths, sha256 = fetch(data, files)
    names = how.class_names
    with inputs.reading(paths["data.txt"]):
        texts = _lines(paths["data.txt"])
    with inputs.reading(paths["group.txt"]):
        labels = _lines(paths["group.txt"])  # an unlabelled paper's line is empty
        y = np.array([int(label or 0) for label in labels])
    with inputs.reading(paths["graph.txt"]):
        pairs = np.loadtxt(paths["graph.txt"], dtype=np.int64, ndmin=2)
    count = inputs.same_length({str(paths["data.txt"]): len(texts), str(paths["group.txt"]): len(y)})
    y = inputs.integers(y, paths["group.txt"], "label", 0, len(names), lines=True)
    y[[not label for label in labels]] = -1
    check_pairs(pairs, paths["graph.txt"], count, lines=True)
    if not published:
        return with_words(data.name, options, pairs.T, y, drawn_split(y, split), texts, names, None, sha256)
    with inputs.reading(paths["lm_align.npz"]), np.load(paths["lm_align.npz"]) as align:
        groups = align[f"split_seed{split}"]
    inputs.numbers(groups, f"{paths['lm_align.npz']}: split_seed{split}", (count,))
    groups = inputs.integers(groups, paths["lm_align.npz"], "split", TRAIN, UNLABELLED + 1)
    groups[y < 0] = UNLABELLED
    features = inputs.numbers(inputs.load_array(paths[files[-1]]), paths[files[-1]], (count, None)).astype(np.float32)
    cached = torch.from_numpy(features)
    return with_words(data.name, options, pairs.T, y, groups, texts, names, cached, sha256)


def planetoid(data: Dataset, how: Planetoid, options: NodeData, split: int) -> NodeGraph:
    """A Planetoid set, its features scaled to rows that sum to 1: row-normalised words, or TF-IDF.

    ``texts.txt`` beside its files, one line a node in Planetoid's order, gives it texts; they then enter the
    fingerprint. Raises :class:`DataError` when the file has another number of lines.
    """
    read, x, sha256 = _planetoid(data, how)
    count, texts = len(x), list[str]()
    beside = [path for place in data.places() if (path := place / "texts.txt").is_file()]
    if beside:
        with inputs.reading(beside[0]):
            texts = _lines(beside[0])
        sha256 = digest({"files": sha256, "texts": file_digest(beside[0])})
        if len(texts) != count:
            raise DataError(
                f"{beside[0]} has {len(texts)} lines for {count} nodes; give one text a line, in node order."
            )
    if how.split == "random":
        groups = torch.from_numpy(shuffled_split(count, split))
    else:
        groups = torch.full((count,), UNLABELLED)
        for mask, group in ((read.train_mask, TRAIN), (read.val_mask, VAL), (read.test_mask, TEST)):
            groups[mask] = group
    names = how.class_names or [f"class {c}" for c in range(how.classes)]
    if len(names) != how.classes:
        raise DataError(f"{data.name}: {len(names)} names are given for {how.classes} classes.")
    return NodeGraph(data.name, x, clean(read.edge_index), read.y, groups, texts, names, None, sha256)


def ogb(data: Dataset, how: OGB, options: NodeData, split: int) -> NodeGraph:
    """ogbn-arxiv: 128-d averaged word vectors, OGB's split by year, titles and abstracts joined by paper number.

    Read from OGB's own archive, so that its checksum covers every file. A paper without a line has an empty text.
    """
    paths, sha256 = fetch(data, ("arxiv.zip", "titleabs.tsv.gz"))
    where = paths["arxiv.zip"]
    with inputs.reading(where), ZipFile(where) as archive:

        def table(member: str, kind: type, header: int = 0) -> np.ndarray:
            with (
                inputs.reading(f"{where}:{member}"),
                archive.open(f"arxiv/{member}.csv.gz") as packed,
                gzip.open(packed, "rt") as lines,
            ):
                return np.loadtxt(lines, dtype=kind, delimiter=",", skiprows=header, ndmin=2)

        x, pairs = table("raw/node-feat", np.float32), table("raw/edge", np.int64)
        labels = table("raw/node-label", np.int64)
        listed = {f"{where}:split/time/{name}": table(f"split/time/{name}", np.int64).ravel() for name in OGB_SPLITS}
        papers: list[int] = table("mapping/nodeidx2paperid", np.int64, header=1)[:, 1].tolist()
        categories: list[str] = table("mapping/labelidx2arxivcategeory", str, header=1)[:, 1].tolist()
    count = inputs.same_length({f"{where}:raw/node-feat": len(x), f"{where}:mapping/nodeidx2paperid": len(papers)})
    inputs.numbers(x, f"{where}:raw/node-feat", (None, None))
    inputs.numbers(labels, f"{where}:raw/node-label", (count, 1))
    y = inputs.integers(labels.ravel(), f"{where}:raw/node-label", "label", 0, len(categories))
    check_pairs(pairs, f"{where}:raw/edge", count)
    groups = inputs.disjoint(listed, count, "node")
    groups[groups < 0] = UNLABELLED
    names = [f"cs.{category.split()[-1].upper()}" for category in categories]  # "arxiv cs na" is cs.NA
    texts = _titles_and_abstracts(paths["titleabs.tsv.gz"], papers)
    edges = clean(torch.from_numpy(pairs.T.copy()))
    tensors = torch.from_numpy(x), edges, torch.from_numpy(y), torch.from_numpy(groups)
    return NodeGraph(data.name, *tensors, texts, names, None, sha256)


PLANETOID = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")


def _planetoid(data: Dataset, how: Planetoid) -> tuple[Any, Tensor, str]:
    """PyG's reading of the files, features with rows that sum to 1, fingerprint."""
    prefix = how.prefix or data.name
    paths, sha256 = fetch(data, list(data.files) or [f"ind.{prefix}.{part}" for part in PLANETOID])
    folders = {path.parent for path in paths.values()}
    if len(folders) == 1:
        read = _read_planetoid(folders.pop(), prefix, how.classes)
    else:
        with TemporaryDirectory() as folder:
            for file, path in paths.items():
                (Path(folder) / file).symlink_to(path.resolve())
            read = _read_planetoid(Path(folder), prefix, how.classes)
    x: Tensor = read.x / read.x.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return read, x.float(), sha256


def _read_planetoid(folder: Path, name: str, classes: int) -> Any:
    from torch_geometric.io.planetoid import read_file, read_planetoid_data

    where = f"{folder}/ind.{name}.*"
    try:
        data = read_planetoid_data(str(folder), name)
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}.") from None
    count = inputs.same_length({f"{where}: features": len(data.x), f"{where}: labels": len(data.y)})
    negative = (inputs.numbers(data.x.numpy(), f"{where}: features", (count, None)) < 0).any(axis=1)
    if negative.any():
        raise DataError(f"{where}: features, row {negative.argmax()}: there is a negative one among its words.")
    check_pairs(data.edge_index.T.numpy(), f"{where}: edges", count)
    for part in ("ally", "ty"):
        onehot = read_file(str(folder), name, part).numpy()
        inputs.numbers(onehot, f"{folder}/ind.{name}.{part}", (None, classes))
        inputs.integers(onehot.sum(axis=1), f"{folder}/ind.{name}.{part}", "number of classes", 1, 2)
    tested = read_file(str(folder), name, "test.index").sort().values
    if tested.tolist() != list(range(count - len(onehot), count)):
        raise DataError(
            f"{folder}/ind.{name}.test.index does not list the last {len(onehot)} of {count} nodes once each."
        )
    return data


def _titles_and_abstracts(path: Path, papers: Sequence[int]) -> list[str]:
    """``title. abstract`` of each paper, from lines ``number<TAB>title<TAB>abstract``."""
    wanted, texts = set(papers), dict[int, str]()
    with inputs.reading(path), gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            number, _, rest = line.rstrip("\n").partition("\t")
            if number.isdecimal() and int(number) in wanted:  # the published file begins and ends with a tar's padding
                texts[int(number)] = rest.replace("\t", ". ")
    if not texts:
        raise DataError(f"{path} holds none of the {len(wanted)} papers of the graph.")
    return [texts.get(paper, "") for paper in papers]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


READERS: dict[str, Callable[[Dataset, Any, NodeData, int], NodeGraph]] = {
    "block_model": block_model,
    "cane": cane,
    "planetoid": planetoid,
    "ogb": ogb,
    "npz_graph": npz_graph,
    "csv_text": csv_text,
}
