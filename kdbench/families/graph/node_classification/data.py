"""Node-classification data: generated block model, Cora with texts, Planetoid Cora and PubMed, ogbn-arxiv."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError, UsageError, unknown
from kdbench.families.graph.node_classification.options import NodeData
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import dataset, fetch

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


@remembered(4)
def load(name: str, options: NodeData, split_seed: int) -> NodeGraph:
    """The data set ``name`` for one run seed. Raises :class:`kdbench.errors.DataError` when its files are not sound."""
    if name not in LOADERS:
        raise unknown("node-classification data set", name, LOADERS)
    split = split_seed % 2 if options.split == "seed" else int(options.split)
    graph = LOADERS[name](options, split)
    if not graph.edges.shape[1]:
        raise DataError(f"{name} has no edge between two nodes: its nodes cannot learn from each other.")
    hint = " Take more data.nodes or fewer data.classes." if dataset(name).generated else ""
    inputs.covered(graph.y.numpy(), graph.split.numpy(), graph.classes, name, hint=hint)
    return graph


def block_model(options: NodeData, split: int) -> NodeGraph:
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
    return _with_words("block_model", options, pairs, y, groups, texts, names, None, sha256)


def cora_text(options: NodeData, split: int) -> NodeGraph:
    """Cora with abstracts (CANE copy), its published TAPE split and the DeBERTa features tuned on that split."""
    files = ["data.txt", "graph.txt", "group.txt", "lm_align.npz", f"lm_emb_seed{split}.npy"]
    paths, sha256 = fetch("cora_text", files)
    names = [
        "Neural Networks",
        "Reinforcement Learning",
        "Probabilistic Methods",
        "Theory",
        "Genetic Algorithms",
        "Case Based",
        "Rule Learning",
    ]
    with inputs.reading(paths["data.txt"]):
        texts = _lines(paths["data.txt"])
    with inputs.reading(paths["group.txt"]):
        labels = _lines(paths["group.txt"])  # an unlabelled paper's line is empty
        y = np.array([int(label or 0) for label in labels])
    with inputs.reading(paths["graph.txt"]):
        pairs = np.loadtxt(paths["graph.txt"], dtype=np.int64, ndmin=2)
    with inputs.reading(paths["lm_align.npz"]), np.load(paths["lm_align.npz"]) as align:
        groups = align[f"split_seed{split}"]
    count = inputs.same_length({str(paths["data.txt"]): len(texts), str(paths["group.txt"]): len(y)})
    y = inputs.integers(y, paths["group.txt"], "label", 0, len(names), lines=True)
    y[[not label for label in labels]] = -1
    _check_pairs(pairs, paths["graph.txt"], count, lines=True)
    inputs.numbers(groups, f"{paths['lm_align.npz']}: split_seed{split}", (count,))
    groups = inputs.integers(groups, paths["lm_align.npz"], "split", TRAIN, UNLABELLED + 1)
    groups[y < 0] = UNLABELLED
    features = inputs.numbers(inputs.load_array(paths[files[-1]]), paths[files[-1]], (count, None)).astype(np.float32)
    cached = torch.from_numpy(features)
    return _with_words("cora_text", options, pairs.T, y, groups, texts, names, cached, sha256)


def cora(options: NodeData, split: int) -> NodeGraph:
    """Planetoid Cora with its public split (140 / 500 / 1000) and row-normalised bag of words; it has no texts."""
    data, x, sha256 = _planetoid("cora", 7)
    groups = torch.full((data.num_nodes,), UNLABELLED)
    for mask, group in ((data.train_mask, TRAIN), (data.val_mask, VAL), (data.test_mask, TEST)):
        groups[mask] = group
    names = [f"class {c}" for c in range(7)]
    return NodeGraph("cora", x, _clean(data.edge_index), data.y, groups, [], names, None, sha256)


def pubmed(options: NodeData, split: int) -> NodeGraph:
    """Planetoid PubMed: row-normalised TF-IDF of 500 words, 60/20/20 % of the nodes by the recipe of cora_text's split.

    ``texts.txt`` beside its files, one line a node in Planetoid's order, gives it texts; they then enter the
    fingerprint. Raises :class:`DataError` when the file has another number of lines.
    """
    data, x, sha256 = _planetoid("pubmed", 3)
    count, texts = len(x), list[str]()
    found = [path for place in dataset("pubmed").places() if (path := place / "texts.txt").is_file()]
    if found:
        with inputs.reading(found[0]):
            texts = _lines(found[0])
        sha256 = digest({"files": sha256, "texts": file_digest(found[0])})
        if len(texts) != count:
            raise DataError(
                f"{found[0]} has {len(texts)} lines for {count} nodes; give one text a line, in node order."
            )
    groups = torch.from_numpy(shuffled_split(count, split))
    names = ["Experimental Diabetes", "Type 1 Diabetes", "Type 2 Diabetes"]
    return NodeGraph("pubmed", x, _clean(data.edge_index), data.y, groups, texts, names, None, sha256)


def arxiv(options: NodeData, split: int) -> NodeGraph:
    """ogbn-arxiv: 128-d averaged word vectors, OGB's split by year, titles and abstracts joined by paper number.

    Read from OGB's own archive, so that its checksum covers every file. A paper without a line has an empty text.
    """
    paths, sha256 = fetch("arxiv")
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
    _check_pairs(pairs, f"{where}:raw/edge", count)
    groups = inputs.disjoint(listed, count, "node")
    groups[groups < 0] = UNLABELLED
    names = [f"cs.{category.split()[-1].upper()}" for category in categories]  # "arxiv cs na" is cs.NA
    texts = _titles_and_abstracts(paths["titleabs.tsv.gz"], papers)
    edges = _clean(torch.from_numpy(pairs.T.copy()))
    tensors = torch.from_numpy(x), edges, torch.from_numpy(y), torch.from_numpy(groups)
    return NodeGraph("arxiv", *tensors, texts, names, None, sha256)


LOADERS = {"block_model": block_model, "cora_text": cora_text, "cora": cora, "pubmed": pubmed, "arxiv": arxiv}


def shuffled_split(nodes: int, seed: int) -> np.ndarray:
    """60/20/20 % of the nodes, int64 ``[nodes]``: ``np.random.seed(seed)`` and a shuffle, as in TAPE's code."""
    order = np.arange(nodes)
    np.random.RandomState(seed).shuffle(order)
    groups = np.full(nodes, TEST)
    groups[order[: int(nodes * 0.6)]] = TRAIN
    groups[order[int(nodes * 0.6) : int(nodes * 0.8)]] = VAL
    return groups


def _planetoid(name: str, classes: int) -> tuple[Any, Tensor, str]:
    """PyG's reading of the files, features with rows that sum to 1, fingerprint."""
    paths, sha256 = fetch(name)
    folders = {path.parent for path in paths.values()}
    if len(folders) == 1:
        data = _read_planetoid(folders.pop(), name, classes)
    else:
        with TemporaryDirectory() as folder:
            for file, path in paths.items():
                (Path(folder) / file).symlink_to(path.resolve())
            data = _read_planetoid(Path(folder), name, classes)
    x: Tensor = data.x / data.x.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return data, x.float(), sha256


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
    _check_pairs(data.edge_index.T.numpy(), f"{where}: edges", count)
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
    wanted, found = set(papers), dict[int, str]()
    with inputs.reading(path), gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            number, _, rest = line.rstrip("\n").partition("\t")
            if number.isdecimal() and int(number) in wanted:  # the published file begins and ends with a tar's padding
                found[int(number)] = rest.replace("\t", ". ")
    if not found:
        raise DataError(f"{path} holds none of the {len(wanted)} papers of the graph.")
    return [found.get(paper, "") for paper in papers]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _check_pairs(pairs: np.ndarray, where: Path | str, nodes: int, lines: bool = False) -> None:
    """Raise :class:`DataError` unless ``pairs`` ``[e, 2]`` are numbers of nodes that exist."""
    if len(pairs):
        inputs.numbers(pairs, where, (None, 2))
        for column in pairs.T:
            inputs.integers(column, where, "node", 0, nodes, lines)


def _clean(pairs: Tensor) -> Tensor:
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


def _with_words(
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
    edges = _clean(torch.from_numpy(np.ascontiguousarray(pairs)))
    x = tfidf(texts, options.words)
    return NodeGraph(name, x, edges, torch.from_numpy(y), torch.from_numpy(groups), texts, class_names, cached, sha256)


def require_texts(graph: NodeGraph, source: str) -> None:
    """Raise :class:`UsageError` when a teacher needs texts that the data set does not have."""
    if not graph.texts:
        raise UsageError(
            f"teacher.source={source} reads texts, and there are none of {graph.name}. {dataset(graph.name).how} "
            "teacher.source=tfidf does without."
        )
