"""Classification of whole graphs: the LightningModule, the loaders and the teacher of this kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torchmetrics.functional.classification import binary_auroc, multiclass_confusion_matrix

from kdbench.axes import teacher_seed
from kdbench.engine import inputs, outputs, own
from kdbench.engine.classification import encode
from kdbench.engine.loaders import Loaders, Rows
from kdbench.engine.losses import at_least_float32
from kdbench.engine.module import DistillationModule
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import DataFacts, Task
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.families.graph.graph_classification.data import Graphs, GraphSet, load
from kdbench.families.graph.graph_classification.networks import GraphNet
from kdbench.families.graph.graph_classification.options import GraphData, GraphStudent, GraphTeacher
from kdbench.families.graph.node_classification.graphs import SPLITS
from kdbench.plan.config import RunConfig
from kdbench.plan.datasets import dataset
from kdbench.plan.metrics import Undefined, defined
from kdbench.plan.own import module_of

EVALUATED = 1024  # graphs at once where nothing is trained


class GraphClassification(DistillationModule):
    """Cross-entropy on the batch's graphs; a batch is a PyG batch."""

    def __init__(self, student: nn.Module, config: RunConfig) -> None:
        super().__init__(student, config.optimizer)
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {"val": [], "test": []}
        self._outcomes: dict[str, dict[str, Tensor]] = {}
        self._details: dict[str, Any] = {}

    def forward_batch(self, batch: Batch) -> Outputs:
        return {"logits": self.student(batch)}

    def targets(self, batch: Batch) -> Tensor:
        y: Tensor = batch.y
        return y

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        return {"task": F.cross_entropy(at_least_float32(output["logits"]), targets)}

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        self._seen[split].append((output["logits"].detach().cpu(), targets.cpu()))

    def results(self, split: str) -> dict[str, float | Undefined]:
        if not self._seen[split]:
            return dict.fromkeys(("auc", "accuracy"), Undefined("it has no graphs"))
        logits, targets = (torch.cat(parts) for parts in zip(*self._seen[split], strict=True))
        self._seen[split] = []
        predicted = logits.argmax(dim=-1)
        self._outcomes[split] = {"logits": logits, "predicted": predicted, "targets": targets}
        if split == "test":
            confusion = multiclass_confusion_matrix(predicted, targets, logits.shape[1]).tolist()
            self._details = {"confusion": confusion, "predictions": encode(predicted)}
        return scores(logits, targets)

    def outcomes(self, split: str) -> Mapping[str, Tensor]:
        return self._outcomes[split]

    def details(self) -> dict[str, Any]:
        return self._details


def scores(logits: Tensor, targets: Tensor) -> dict[str, float | Undefined]:
    """``auc`` and ``accuracy`` for logits ``[b, C]``.

    ``auc`` is the area under the ROC curve of ``z_1 − z_0``; of more than two classes the mean over them of that of
    ``z_c − log Σ_{k≠c} exp z_k`` for c against the others.
    """
    accuracy = int((logits.argmax(dim=-1) == targets).sum()) / len(targets)
    counts = targets.bincount(minlength=logits.shape[1])
    if not counts.all():
        alone = f"all {len(targets)} graphs are of class {int(counts.argmax())}"
        absent = f"none of its {len(targets)} graphs is of class {int(counts.argmin())}"
        return {"auc": Undefined(alone if counts.max() == len(targets) else absent), "accuracy": accuracy}
    z = logits.double()
    if logits.shape[1] == 2:
        return {"auc": area(z[:, 1] - z[:, 0], targets), "accuracy": accuracy}
    areas = [
        area(z[:, c] - z[:, [k for k in range(z.shape[1]) if k != c]].logsumexp(dim=1), (targets == c).long())
        for c in range(z.shape[1])
    ]
    return {"auc": sum(areas) / len(areas), "accuracy": accuracy}


def area(margin: Tensor, targets: Tensor) -> float:
    """The area under the ROC curve of ``margin`` ``[b]`` for targets 0 and 1.

    It keeps torchmetrics' float32 sum: of epochs with equal areas its last bits have chosen, and go on to.
    """
    ranks = torch.unique(margin, return_inverse=True)[1]
    # torchmetrics squeezes scores outside [0, 1] through a sigmoid, which ties large ones
    return float(binary_auroc(ranks.double() / max(1, len(ranks)), targets))


def graph_loaders(data: GraphSet, batch_size: int, seed: int) -> Loaders:
    """Loaders of PyG batches."""
    return Loaders(partial(graph_rows, data, batch_size), seed)


def graph_rows(data: GraphSet, batch_size: int, split: str) -> Rows:
    """The graphs of a split."""
    ids = data.ids(split)
    return Rows(len(ids), partial(collate, data.graphs, ids), batch_size if split == "train" else EVALUATED)


def collate(graphs: Graphs, ids: Tensor, rows: Sequence[int], epoch: int) -> Batch:
    """The batch of the graphs ``ids[rows]``."""
    return graphs.batch(ids[rows])


class GraphTask(Task[GraphData, GraphStudent, GraphTeacher]):
    """Graph classification for the engine."""

    chunk = EVALUATED

    def __init__(self, config: RunConfig[GraphData, GraphStudent, GraphTeacher], store: StageStore) -> None:
        super().__init__(config, store)
        self.graphs = load(config.dataset, config.data, config.seed)

    @cached_property
    def facts(self) -> DataFacts:
        data, info = self.graphs, dataset(self.config.dataset)
        sizes = {split: len(data.ids(split)) for split in SPLITS}
        rows = len(data.graphs)
        return DataFacts(
            data.name, data.sha256, data.split_sha256, info.generated, info.licence, sizes, rows, data.split
        )

    def balance(self) -> dict[str, dict[str, int]]:
        names = [f"class {number}" for number in range(self.graphs.classes)]
        return inputs.counted(self.graphs.graphs.y.numpy(), self.graphs.split.numpy(), names)

    def data(self) -> Loaders:
        return graph_loaders(self.graphs, self.config.data.batch_size, self.config.seed)

    def network(self, options: GraphStudent | GraphTeacher) -> nn.Module:
        """A freshly initialised network for this data."""
        data, section = self.graphs, "student" if isinstance(options, GraphStudent) else "teacher"
        if module_of(options.name):
            dictated = {"node_values": data.node_values, "edge_values": data.edge_values, "classes": data.classes}
            return own.build(options.name, section, options.options, **dictated)
        return GraphNet(data.node_values, data.edge_values, data.classes, options)

    def student(self) -> nn.Module:
        return self.network(self.config.student)

    def teacher_network(self) -> nn.Module:
        return self.network(self.config.teacher)

    def module(self, student: nn.Module) -> GraphClassification:
        return GraphClassification(student, self.config)

    def example(self) -> Batch:
        return self.batch_of(self.graphs.ids("train")[: self.config.data.batch_size])

    def batch_of(self, rows: Tensor) -> Batch:
        return self.graphs.graphs.batch(rows)

    def rows_of(self, batch: Batch) -> Tensor:
        rows: Tensor = batch.rows
        return rows

    @property
    def logits_shape(self) -> tuple[int, ...]:
        return (self.graphs.classes,)

    def stages(self) -> Sequence[Stage]:
        if self.brought:
            return ()
        options, data = self.config.teacher, self.graphs
        of_network = ("name", "width", "layers", "dropout", "pool", "norm", "readout", "options")
        network = {name: getattr(options, name) for name in of_network}
        inputs = {**network, "data": data.sha256, "split": data.split_sha256, "batch_size": self.config.data.batch_size}
        seed = teacher_seed(options.seed, self.config.seed)
        loaders = graph_loaders(data, self.config.data.batch_size, seed)
        return [self.teacher_stage("teacher", inputs, options.epochs, seed, loaders)]

    def frozen(self, network: nn.Module) -> FrozenTeacher:
        """The teacher in float64, its logits rounded to float32: they do not depend on the batch around a graph."""

        def forward(network: nn.Module, batch: Batch) -> Outputs:
            return {"logits": network(batch).float()}

        return FrozenTeacher(network.double(), forward)

    def live_teacher(self) -> FrozenTeacher:
        if self.brought:
            return self.brought
        network = self.teacher_network()
        network.load_state_dict(load_file(self.folder("teacher") / "weights.safetensors"))
        return self.frozen(network)

    def teacher_facts(self) -> dict[str, Any]:
        options, metrics, predictions = self.config.teacher, {}, None
        for split in ("val", "test"):
            ids = self.graphs.ids(split)
            logits = self.cache.read(ids)["logits"]
            metrics[split] = defined(scores(logits, self.graphs.graphs.y[ids]), self.config.metric, split)
            predictions = encode(logits.argmax(dim=-1))
        scored = {"metrics": metrics, "predictions": predictions, "outcomes": {"logits": logits}}
        if self.brought:
            return {"kind": "outputs", "description": outputs.DESCRIPTION, **scored}
        size = "" if module_of(options.name) else f", {options.layers} layers of width {options.width}"
        how = "weights from a file" if options.weights else "trained on all training graphs"
        description = f"{options.name}{size}, {how}"
        return {"kind": options.name, "description": description, **scored}


TASK = GraphTask
