"""Transductive node classification: the LightningModule, the loaders and the teacher of the graph family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchmetrics import ConfusionMatrix, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kdbench.config import RunConfig
from kdbench.datasets import dataset
from kdbench.engine.module import DistillationModule
from kdbench.engine.seeds import axis
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import DataFacts, Task
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.families.graph import teachers
from kdbench.families.graph.data import SPLITS, NodeGraph, load
from kdbench.families.graph.models import GNN
from kdbench.families.graph.options import NodeData, NodeStudent, NodeTeacher

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
ROWS = 8192  # of the teacher cache, written or read at once


class NodeClassification(DistillationModule):
    """Cross-entropy on the batch's nodes; a batch is a set of node numbers, and the student sees the whole graph."""

    def __init__(self, student: nn.Module, config: RunConfig, graph: NodeGraph) -> None:
        super().__init__(student, config.optimizer)
        self.graph = graph
        self._moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self.metrics = nn.ModuleDict({"val_": _metrics(graph.classes), "test_": _metrics(graph.classes)})
        self._predicted: list[Tensor] = []
        self._details: dict[str, Any] = {}

    def on_device(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, edges and labels on the module's device."""
        if self.device not in self._moved:
            graph = self.graph
            self._moved = {self.device: (graph.x.to(self.device), graph.edges.to(self.device), graph.y.to(self.device))}
        return self._moved[self.device]

    def forward_batch(self, batch: Tensor) -> Outputs:
        x, edges, _ = self.on_device()
        return {"logits": self.student(x, edges)[batch]}

    def rows(self, feature: Tensor, batch: Tensor) -> Tensor:
        return feature[batch]

    def targets(self, batch: Tensor) -> Tensor:
        return self.on_device()[2][batch]

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        return {"task": F.cross_entropy(output["logits"].float(), targets)}

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        predicted = output["logits"].argmax(dim=-1)
        self._metrics_of(split).update(predicted, targets)
        if split == "test":
            self._predicted.append(predicted.cpu())

    def results(self, split: str) -> dict[str, float]:
        metrics = self._metrics_of(split)
        values = metrics.compute()
        if split == "test":
            predictions, self._predicted = torch.cat(self._predicted), []
            confusion = values["confusion"].tolist()
            self._details = {"confusion": confusion, "predictions": encode(predictions)}
        metrics.reset()
        return {name: float(values[name]) for name in ("accuracy", "macro_f1")}

    def _metrics_of(self, split: str) -> MetricCollection:
        metrics = self.metrics[f"{split}_"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def details(self) -> dict[str, Any]:
        return self._details


def _metrics(classes: int) -> MetricCollection:
    options: dict[str, Any] = {"num_classes": classes, "sync_on_compute": False}
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(average="micro", **options),
            "macro_f1": MulticlassF1Score(average="macro", **options),
            "confusion": ConfusionMatrix(task="multiclass", **options),
        },
        compute_groups=False,
    )


def encode(predictions: Tensor) -> str | None:
    """One base-36 digit a prediction; None for more than 36 classes or 10,000 examples."""
    if len(predictions) > 10_000 or (len(predictions) and int(predictions.max()) >= len(DIGITS)):
        return None
    return "".join(DIGITS[value] for value in predictions.tolist())


class Nodes(Dataset[Tensor]):
    """Node numbers; a batch is fetched in one step."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.ids[indices]


class NodeLoaders(pl.LightningDataModule):
    """Loaders of node numbers. Training order depends on (seed, epoch) alone and is shared out among the processes."""

    def __init__(self, graph: NodeGraph, batch_size: int | None, seed: int) -> None:
        super().__init__()
        self.graph, self.batch_size, self.seed = graph, batch_size, seed

    def train_dataloader(self) -> DataLoader[Tensor]:
        nodes = Nodes(self.graph.ids("train"))
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler: DistributedSampler[Tensor] = DistributedSampler(
            nodes, world, rank, shuffle=self.batch_size is not None, seed=axis(self.seed, "data_order") % 2**31
        )
        return DataLoader(nodes, batch_size=self.batch_size or len(nodes), sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader[Tensor]:
        nodes = Nodes(self.graph.ids(split))
        return DataLoader(nodes, batch_size=len(nodes), collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch


class NodeTask(Task):
    """Node classification for the engine."""

    chunk = ROWS
    data_options: NodeData
    student_options: NodeStudent

    def __init__(self, config: RunConfig, store: StageStore) -> None:
        super().__init__(config, store)
        self.data_options, self.student_options = config.data, config.student
        self.graph = load(config.dataset, config.data, config.seed)

    @cached_property
    def facts(self) -> DataFacts:
        graph, info = self.graph, dataset(self.config.dataset)
        sizes = {split: len(graph.ids(split)) for split in SPLITS}
        return DataFacts(
            graph.name, graph.sha256, graph.split_sha256, info.generated, info.licence, sizes, len(graph.y), graph.split
        )

    def data(self) -> NodeLoaders:
        return NodeLoaders(self.graph, self.data_options.batch_size, self.config.seed)

    def student(self) -> GNN:
        return GNN(self.graph.x.shape[1], self.graph.classes, self.student_options)

    def module(self, student: nn.Module) -> NodeClassification:
        return NodeClassification(student, self.config, self.graph)

    def example(self) -> Tensor:
        return self.graph.ids("train")[: self.data_options.batch_size]

    def batch_of(self, rows: Tensor) -> Tensor:
        return rows

    def rows_of(self, batch: Tensor) -> Tensor:
        return batch

    @property
    def teacher_options(self) -> NodeTeacher:
        """Options of the run's teacher."""
        options: NodeTeacher = self.config.teacher
        return options

    def stages(self) -> Sequence[Stage]:
        return teachers.stages(self.graph, self.teacher_options, self.student_options.layers)

    def live_teacher(self) -> FrozenTeacher:
        features, head = self.folder("teacher-features"), self.folder("teacher-head")
        network = teachers.build(self.graph, self.student_options.layers, features, head)
        return FrozenTeacher(network, lambda network, rows: network(rows))

    def teacher_facts(self) -> dict[str, Any]:
        source = self.teacher_options.source
        hops = "one prompt a hop" if source == "llm" else "hop features by propagation"
        rows = torch.split(torch.arange(len(self.graph.y)), ROWS)
        predicted = torch.cat([self.cache.read(some)["logits"].argmax(dim=-1) for some in rows])
        metrics = {}
        for split in ("val", "test"):
            ids, score = self.graph.ids(split), _metrics(self.graph.classes)
            score.update(predicted[ids], self.graph.y[ids])
            values = score.compute()
            metrics[split] = {name: float(np.float32(values[name])) for name in ("accuracy", "macro_f1")}
        predictions = encode(predicted[self.graph.ids("test")])
        return {"kind": source, "description": f"{source}, {hops}", "metrics": metrics, "predictions": predictions}


TASK = NodeTask
