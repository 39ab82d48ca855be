"""Options of node classification; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from kdbench.plan.metrics import ACCURACY, MACRO_F1, share
from kdbench.plan.options import LATER
from kdbench.plan.own import OrOwn


@dataclass(frozen=True)
class NodeData:
    """A node-classification data set as the student sees it."""

    split: Literal["random", "seed", "0", "1"] = "random"
    """random: the run seed draws 60/20/20 % train, validation, test; 0 and 1: two fixed splits, on cora_text those that
    its language-model features were tuned on; seed: the run seed modulo 2. A set with a split of its own keeps it."""
    words: Annotated[int, Ge(0)] | None = 1000
    """Words of the student's TF-IDF input, most frequent first; 0 hides all text (constant input), null keeps all.
    Data sets with features of their own (cora, pubmed, arxiv) keep those."""
    batch_size: Annotated[int, Gt(0)] | None = None
    """Training nodes a step; null takes all of them (full batch)."""
    nodes: Annotated[int, Gt(20)] = 600
    """Generated graph: number of nodes."""
    classes: Annotated[int, Gt(1)] = 4
    """Generated graph: number of classes."""
    degree: Annotated[float, Gt(0)] = 4.0
    """Generated graph: mean number of neighbours."""
    homophily: Annotated[float, Interval(ge=0, le=1)] = 0.7
    """Generated graph: share of edges that join nodes of one class."""


@dataclass(frozen=True)
class NodeStudent:
    """A message-passing network: linear block, ``layers`` convolution blocks, linear block, linear head.

    One of your own is built as ``Class(inputs=…, classes=…, **options)``. Its ``forward(x, edges)`` takes features
    float32 ``[n, inputs]`` and edges int64 ``[2, e]``, in both directions, and gives logits ``[n, classes]``. LinguGKD
    reads the outputs ``[n, d]`` of the modules ``states.0`` to ``states.<layers>``, the states after 0 to ``layers``
    hops.
    """

    name: Annotated[Literal["gcn", "gat", "sage", "gin"], OrOwn()] = "gcn"
    """Convolution: GCN, GAT (4 heads), GraphSAGE (mean), GIN; or a network of your own, module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    width: Annotated[int, Gt(3)] = 256
    """Width of every state."""
    layers: Annotated[int, Gt(0)] = 2
    """Message-passing layers; the teacher gives one feature per hop 0…layers."""
    layout: Annotated[Literal["blocks", "plain"], LATER] = "blocks"
    """blocks: as above, each with batch norm, dropout, PReLU and rows of unit length; plain: dropout, projection,
    convolutions with ReLU and dropout between them, linear head."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Dropout in every block, or of the input and between convolutions."""


@dataclass(frozen=True)
class NodeTeacher:
    """Where the teacher's hop-wise features come from; a softmax head on top gives its class probabilities."""

    source: Literal["tfidf", "cached", "minilm", "llm", "file", "outputs"] = "tfidf"
    """tfidf: all words; cached: language-model features that lie with the data; minilm: sentence encoder;
    llm: causal LM tuned on prompts; file: your own features; outputs: logits (and features 'hop0' …) computed
    elsewhere, read from ``path``."""
    model: str = "tiny-llama"
    """llm: Hugging Face id or folder of a causal language model ('tiny-llama' builds a small one);
    file: a safetensors file with 'features', [nodes, D] or [nodes, layers + 1, D]."""
    path: Annotated[str | None, LATER] = None
    """outputs: a .npz or .safetensors file with 'ids' (see 'kdbench data rows'), 'logits' and further outputs."""
    prompt_words: Annotated[int, Gt(0)] = 100
    """llm: words of a text in a prompt."""
    prompt_neighbours: Annotated[int, Gt(0)] = 5
    """llm: neighbours of each hop in a prompt."""
    tune_epochs: Annotated[int, Gt(0)] = 1
    """llm: epochs of instruction tuning."""
    tune_lr: Annotated[float, Gt(0)] = 2e-4
    """llm: learning rate of instruction tuning."""
    tune_length: Annotated[int, Gt(0)] = 520
    """llm: longest prompt and answer, tokens."""
    lora_rank: Annotated[int, Gt(0)] = 64
    """llm: rank of the LoRA adapters."""
    quantize: Literal["auto", "none", "nf4"] = "auto"
    """llm: 4-bit base weights; auto takes them where CUDA and bitsandbytes are there."""
    seed: Annotated[int, Ge(0)] | None = None
    """Seed of the teacher's own training; null draws it from the run seed, and any other serves all run seeds."""
    cache: bool = True
    """Read the teacher's outputs from the cache instead of computing them at every step; the numbers are the same."""


@dataclass(frozen=True)
class BlockModel:
    """A generated graph: its options are those of the data."""


@dataclass(frozen=True)
class Cane:
    """A text graph as CANE publishes it, with features of a language model and splits beside it."""

    class_names: tuple[str, ...]
    """Names of the classes, in their order."""


@dataclass(frozen=True)
class Planetoid:
    """A set in Planetoid's files ``ind.NAME.*``."""

    classes: Annotated[int, Gt(1)]
    """Number of classes."""
    prefix: str | None = None
    """NAME; null takes the data set's own."""
    split: Literal["public", "random"] = "public"
    """public: that of the files; random: 60/20/20 % by the seed of the split."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in their order."""


@dataclass(frozen=True)
class OGB:
    """A node-property set of the Open Graph Benchmark, ``arxiv.zip``, and the papers' ``titleabs.tsv.gz``."""


@dataclass(frozen=True)
class NpzGraph:
    """A graph in one NumPy archive: ``x`` [n, f], ``edges`` [2, e], ``y`` [n], and ``split`` [n] where it has one."""

    file: str | None = None
    """Its file; null takes the only one."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in their order; without them their numbers."""
    normalise: bool = False
    """Scale each row of ``x`` (none of them negative) to the sum 1."""


@dataclass(frozen=True)
class CsvText:
    """A text-attributed graph in two tables with a line of column names: nodes, and edges between their ids."""

    nodes: str = "nodes.csv"
    """File with a line for each node."""
    edges: str = "edges.csv"
    """File with a line for each edge; its first two columns are ids."""
    id: str = "id"
    """Column of the nodes' ids."""
    text: str = "text"
    """Column of their texts."""
    label: str = "label"
    """Column of their classes, by name; empty where a node has none."""
    split: str | None = None
    """Column of train, val and test, empty for neither; null draws 60/20/20 % by the seed of the split."""


READERS = {
    "block_model": BlockModel,
    "cane": Cane,
    "planetoid": Planetoid,
    "ogb": OGB,
    "npz_graph": NpzGraph,
    "csv_text": CsvText,
}

SECTIONS = {"data": NodeData, "student": NodeStudent, "teacher": NodeTeacher}

METRICS = (
    share("accuracy", "share of examples whose largest logit is that of their class", ACCURACY),
    share("macro_f1", "F1 of each class that is true or predicted somewhere, averaged", MACRO_F1),
)
