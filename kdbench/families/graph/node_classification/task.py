"""Transductive node classification: the LightningModule, the loaders and the teacher of the graph family."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.axes import teacher_seed
from kdbench.engine import inputs, outputs, own
from kdbench.engine.classification import Classification, encode, number_loaders, scores_of
from kdbench.engine.loaders import Loaders
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import DataFacts, Task
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.families.graph.node_classification import teacher as teachers
from kdbench.families.graph.node_classification.data import load
from kdbench.families.graph.node_classification.graphs import SPLITS, NodeGraph
from kdbench.families.graph.node_classification.networks import network
from kdbench.families.graph.node_classification.options import NodeData, NodeStudent, NodeTeacher
from kdbench.plan.config import RunConfig
from kdbench.plan.datasets import dataset
from kdbench.plan.own import module_of

ROWS = 8192  # of the teacher cache, written or read at once


class NodeClassification(Classification):
    """A batch is a set of node numbers, and the student sees the whole graph."""

    def __init__(self, student: nn.Module, config: RunConfig, graph: NodeGraph) -> None:
        super().__init__(student, config.optimizer, graph.classes)
        self.graph = graph
        self._moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

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


class NodeTask(Task[NodeData, NodeStudent, NodeTeacher]):
    """Node classification for the engine."""

    chunk = ROWS

    def __init__(self, config: RunConfig[NodeData, NodeStudent, NodeTeacher], store: StageStore) -> None:
        super().__init__(config, store)
        self.graph = load(config.dataset, config.data, config.seed)

    @cached_property
    def facts(self) -> DataFacts:
        graph, info = self.graph, dataset(self.config.dataset)
        sizes = {split: len(graph.ids(split)) for split in SPLITS}
        return DataFacts(
            graph.name, graph.sha256, graph.split_sha256, info.generated, info.licence, sizes, len(graph.y), graph.split
        )

    def balance(self) -> dict[str, dict[str, int]]:
        return inputs.counted(self.graph.y.numpy(), self.graph.split.numpy(), self.graph.class_names)

    def data(self) -> Loaders:
        return number_loaders(self.graph.ids, self.config.data.batch_size, self.config.seed)

    def student(self) -> nn.Module:
        options = self.config.student
        if module_of(options.name):
            dictated = {"inputs": self.graph.x.shape[1], "classes": self.graph.classes}
            return own.build(options.name, "student", options.options, **dictated)
        return network(self.graph.x.shape[1], self.graph.classes, self.config.student)

    def module(self, student: nn.Module) -> NodeClassification:
        return NodeClassification(student, self.config, self.graph)

    def example(self) -> Tensor:
        return self.graph.ids("train")[: self.config.data.batch_size]

    def batch_of(self, rows: Tensor) -> Tensor:
        return rows

    def rows_of(self, batch: Tensor) -> Tensor:
        return batch

    @property
    def logits_shape(self) -> tuple[int, ...]:
        return (self.graph.classes,)

    def stages(self) -> Sequence[Stage]:
        if self.brought:
            return ()
        options = self.config.teacher
        seed = teacher_seed(options.seed, self.config.seed)
        return teachers.stages(self.graph, options, self.config.student.layers, seed)

    def live_teacher(self) -> FrozenTeacher:
        if self.brought:
            return self.brought
        features, head = self.folder("teacher-features"), self.folder("teacher-head")
        network = teachers.build(self.graph, self.config.student.layers, features, head)
        return FrozenTeacher(network, lambda network, rows: network(rows))

    def teacher_facts(self) -> dict[str, Any]:
        source = self.config.teacher.source
        hops = "one prompt a hop" if source == "llm" else "hop features by propagation"
        rows = torch.split(torch.arange(len(self.graph.y)), ROWS)
        predicted = torch.cat([self.cache.read(some)["logits"].argmax(dim=-1) for some in rows])
        metrics = {}
        for split in ("val", "test"):
            ids = self.graph.ids(split)
            metrics[split] = scores_of(predicted[ids], self.graph.y[ids], self.graph.classes)
        predictions = encode(predicted[self.graph.ids("test")])
        description = outputs.DESCRIPTION if self.brought else f"{source}, {hops}"
        return {"kind": source, "description": description, "metrics": metrics, "predictions": predictions}


TASK = NodeTask
