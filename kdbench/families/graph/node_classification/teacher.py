"""Teachers for node classification: hop-wise text features of a frozen encoder, and a softmax head on the deepest hop.

A causal language model reads prompts that put the node's 0…l-hop neighbourhood into words (LinguGKD stages 1 and 2).
Every other source encodes the node's own text, ``H``, and ``t^(l) = S^l H`` (S: symmetrically normalised adjacency with
self-loops) stands for "the encoder sees l hops"; the record says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.engine.inputs import numbers
from kdbench.engine.stages import Stage, StageResult
from kdbench.errors import UsageError
from kdbench.families.graph import logistic
from kdbench.families.graph.node_classification import networks as models
from kdbench.families.graph.node_classification import prompts
from kdbench.families.graph.node_classification.graphs import NodeGraph, require_texts, tfidf
from kdbench.families.graph.node_classification.options import NodeTeacher
from kdbench.hashing import digest, file_digest
from kdbench.networks import instruction_tuning, language_model, sentence_encoder
from kdbench.plan.options import plain

TINY = "tiny-llama"
READ_OUT = 500  # validation nodes at most whose prompts the tuned language model answers


class HopTeacher(nn.Module):
    """Hop features and class logits of every node.

    ``features``: ``[n, D]`` (own text; hops by propagation) or ``[n, k+1, D]`` (one prompt a hop). ``forward(rows)``
    gives ``hop0 … hopk`` ``[b, D]`` and ``logits = t^(k) W^T + b`` ``[b, C]`` for node numbers ``rows`` ``[b]``. The
    first call computes all nodes' outputs, and every later one reads them: the network is frozen from then on.
    """

    features: Tensor
    adjacency: Tensor

    def __init__(self, features: Tensor, adjacency: Tensor, hops: int, classes: int) -> None:
        super().__init__()
        self.hops = hops
        self.register_buffer("features", features)
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.head = nn.Linear(features.shape[-1], classes)
        self._table: dict[str, Tensor] = {}

    def all_hops(self) -> list[Tensor]:
        """``t^(0) … t^(k)``, each ``[n, D]``."""
        if self.features.dim() == 3:
            return list(self.features.unbind(dim=1))
        hops = [self.features]
        for _ in range(self.hops):
            hops.append(self.adjacency @ hops[-1])
        return hops

    @torch.no_grad()
    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        if not self._table or self._table["logits"].device != self.features.device:
            hops = self.all_hops()
            self._table = {**{f"hop{hop}": value for hop, value in enumerate(hops)}, "logits": self.head(hops[-1])}
        return {name: value[rows] for name, value in self._table.items()}


def text_graph(graph: NodeGraph) -> prompts.TextGraph:
    """The graph as the prompt writer wants it."""
    neighbours: list[list[int]] = [[] for _ in graph.texts]
    for source, target in graph.edges.T.tolist():
        neighbours[source].append(target)
    return prompts.TextGraph(list(graph.texts), neighbours, list(graph.class_names))


def stages(graph: NodeGraph, options: NodeTeacher, hops: int, seed: int) -> list[Stage]:
    """``teacher-features`` (with ``teacher-tuning`` before it for a language model), then ``teacher-head``.

    Features that no label has entered serve every split, those of a language model the seed that it is tuned with too.
    Raises :class:`UsageError` when the source reads texts and the data set has none, or a file of another shape.
    """
    if options.source in ("llm", "minilm"):
        require_texts(graph, options.source)
    if options.source == "file":
        _checked(_read(_file(options)), graph, hops, options.model)  # before any work is done for it
    inputs = {"data": graph.sha256, **_relevant(options)}
    supervised = {**inputs, "split": graph.split_sha256, "hops": hops}
    plan = []
    needs: tuple[str, ...] = ()
    if options.source == "llm":
        supervised["seed"] = seed
        needs = ("teacher-tuning",)
        plan.append(Stage("teacher-tuning", supervised, lambda place, _: _tune(graph, options, seed, hops, place)))
        inputs = supervised

    def encode(place: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
        features = _features(graph, options, hops, upstream)
        save_file({"features": features.contiguous()}, place / "features.safetensors")
        return {"width": features.shape[-1]}

    def fit(place: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
        return fit_head(graph, upstream["teacher-features"].folder, hops, place)

    plan.append(Stage("teacher-features", inputs, encode, needs=needs))
    plan.append(Stage("teacher-head", supervised, fit, needs=("teacher-features",)))
    return plan


def _relevant(options: NodeTeacher) -> dict[str, Any]:
    """What the features depend on; files by their content, since paths differ between machines."""
    values = plain(options)
    if options.source == "file":
        return {"source": "file", "sha256": file_digest(_file(options))}
    if options.source == "llm":
        base = Path(options.model)
        content = {"base": _folder_digest(base)} if base.is_dir() else {"model": options.model}
        return {**{k: v for k, v in values.items() if k not in ("cache", "model", "seed")}, **content}
    return {"source": options.source}


def _folder_digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def _file(options: NodeTeacher) -> Path:
    path = Path(options.model)
    if not path.is_file():
        raise UsageError(f"teacher.source=file reads teacher.model, and there is no file '{path}'.")
    return path


def _features(graph: NodeGraph, options: NodeTeacher, hops: int, upstream: Mapping[str, StageResult]) -> Tensor:
    if options.source == "cached":
        if graph.cached is None:
            raise UsageError(
                f"No language-model features of this split lie with {graph.name}; use another teacher.source, or a "
                "published split where there is one (data.split=seed)."
            )
        return graph.cached
    if options.source == "file":
        return _checked(_read(_file(options)), graph, hops, options.model)
    if options.source == "minilm":
        return sentence_encoder.sentence_features(graph.texts)
    if options.source == "llm":
        asked = _prompts(text_graph(graph), options, hops, range(len(graph.texts)))
        tuned = _opened(upstream["teacher-tuning"].folder, options)
        return language_model.features(tuned, asked, tuning_options(options))
    return tfidf(graph.texts, None) if graph.texts else graph.x


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is not a safetensors file: {error}.") from None


def _checked(tensors: Mapping[str, Tensor], graph: NodeGraph, hops: int, where: str) -> Tensor:
    features = tensors.get("features")
    wanted = f"'features' [{len(graph.y)}, D] or [{len(graph.y)}, {hops + 1}, D]"
    if features is None:
        raise UsageError(f"{where} holds {', '.join(tensors) or 'nothing'}; a teacher of this task is {wanted}.")
    shape = tuple(features.shape)
    if shape[:1] != (len(graph.y),) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[1] != hops + 1):
        raise UsageError(f"{where} holds the teacher of another task: 'features' {list(shape)}, wanted {wanted}.")
    if not features.is_floating_point():
        raise UsageError(f"{where}: 'features' are {features.dtype}, not floating-point numbers.")
    numbers(features.float().numpy(), f"{where}: 'features'", (*shape[:-1], None))
    return features.float()


def _prompts(texts: prompts.TextGraph, options: NodeTeacher, hops: int, nodes: Iterable[int]) -> list[list[str | None]]:
    words, neighbours = options.prompt_words, options.prompt_neighbours
    return [
        [prompts.prompt(texts, node, hop, words=words, max_neighbours=neighbours) for hop in range(hops + 1)]
        for node in nodes
    ]


def tuning_options(options: NodeTeacher) -> language_model.TuningOptions:
    """Instruction-tuning options of a teacher."""
    return language_model.TuningOptions(
        lr=options.tune_lr,
        epochs=options.tune_epochs,
        max_length=options.tune_length,
        ending=prompts.RESPONSE_MARKER,
        lora_r=options.lora_rank,
        lora_alpha=options.lora_rank / 2,
        quantize=options.quantize,
    )


def _tune(graph: NodeGraph, options: NodeTeacher, seed: int, hops: int, folder: Path) -> dict[str, Any]:
    texts, train = text_graph(graph), graph.ids("train").tolist()
    examples = [
        (prompt, prompts.response(texts, int(graph.y[node])))
        for node, asked in zip(train, _prompts(texts, options, hops, train), strict=True)
        for prompt in asked
        if prompt is not None
    ]
    if options.model == TINY:
        language_model.tiny_llama(folder / "base", seed, [prompt + answer for prompt, answer in examples])
    result = instruction_tuning.tune(_base(folder, options), examples, tuning_options(options), folder, seed)
    return {
        "loss_first": result.loss_first,
        "loss_last": result.loss_last,
        "steps": result.steps,
        "notes": list(result.notes),
        "answers": _answers(graph, texts, options, hops, folder),
    }


def _base(tuned: Path, options: NodeTeacher) -> str | Path:
    """Where the base model is now: in the stage's folder, which may have moved, or what ``teacher.model`` says."""
    return tuned / "base" if options.model == TINY else options.model


def _opened(tuned: Path, options: NodeTeacher) -> language_model.LanguageModel:
    return language_model.load(tuned, options.quantize, _base(tuned, options))


def _answers(
    graph: NodeGraph, texts: prompts.TextGraph, options: NodeTeacher, hops: int, tuned: Path
) -> dict[str, float]:
    """Accuracy of what the tuned model itself answers, on evenly chosen validation nodes."""
    val = graph.ids("val")
    nodes = val[:: -(-len(val) // READ_OUT)].tolist()
    asked = _prompts(texts, options, hops, nodes)
    named = language_model.answers(_opened(tuned, options), asked, texts.class_names, tuning_options(options))
    wanted = [prompts.response(texts, int(graph.y[node])) for node in nodes]
    said = {"majority": language_model.read_out(named, "majority"), "last": language_model.read_out(named, "last")}
    return {rule: float(np.mean([a == b for a, b in zip(said[rule], wanted, strict=True)])) for rule in said}


def build(graph: NodeGraph, hops: int, features: Path, head: Path) -> HopTeacher:
    """The teacher network from its finished stages."""
    adjacency = models.normalised_adjacency(graph.edges, len(graph.y))
    network = HopTeacher(load_file(features / "features.safetensors")["features"], adjacency, hops, graph.classes)
    network.head.load_state_dict(load_file(head / "head.safetensors"))
    return network


def fit_head(graph: NodeGraph, features: Path, hops: int, folder: Path) -> dict[str, Any]:
    """Multinomial logistic regression on the deepest hop of the training nodes, its strength chosen on validation."""
    adjacency = models.normalised_adjacency(graph.edges, len(graph.y))
    network = HopTeacher(load_file(features / "features.safetensors")["features"], adjacency, hops, graph.classes)
    deepest = network.all_hops()[-1]
    scale = float(deepest.norm(dim=1).mean())
    if not 0 < scale < np.inf:
        raise UsageError(f"The teacher's features cannot be learnt from: their mean length is {scale}.")
    fitted = logistic_on(deepest / scale, graph, logistic.STRENGTHS)
    save_file({"weight": fitted.weight / scale, "bias": fitted.bias}, folder / "head.safetensors")
    return {"strength": fitted.strength, "val_accuracy": fitted.value}


def logistic_on(x: Tensor, graph: NodeGraph, strengths: Sequence[float]) -> logistic.Logistic:
    """Logistic regression on rows ``x`` ``[n, f]`` of the graph's nodes, chosen by accuracy on validation."""
    train, val = (graph.ids(split).numpy() for split in ("train", "val"))
    return logistic.fit(x.numpy(), graph.y.numpy(), train, val, graph.classes, accuracy, strengths)


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of rows whose largest logit is that of their class."""
    return int((logits.argmax(dim=-1) == targets).sum()) / len(targets)
