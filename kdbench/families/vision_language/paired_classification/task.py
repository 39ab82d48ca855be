"""Classification of paired views: the student sees one modality, its teachers see the other or both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.engine import inputs, outputs, own
from kdbench.engine.classification import Classification, encode, number_loaders, scores_of
from kdbench.engine.loaders import Loaders
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import DataFacts, Task
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.families.vision_language.paired_classification import data as pairs
from kdbench.families.vision_language.paired_classification.data import SPLITS, Pairs
from kdbench.families.vision_language.paired_classification.networks import PairNetwork
from kdbench.families.vision_language.paired_classification.options import PairData, PairStudent, PairTeacher
from kdbench.plan.config import RunConfig
from kdbench.plan.datasets import dataset
from kdbench.plan.options import plain
from kdbench.plan.own import module_of


class PairedClassification(Classification):
    """A batch is pair numbers, and a network takes what it sees of them."""

    student: PairNetwork

    def __init__(self, student: nn.Module, config: RunConfig, pairs: Pairs) -> None:
        super().__init__(student, config.optimizer, pairs.classes)
        self.pairs = pairs

    def forward_batch(self, batch: Tensor) -> Outputs:
        return logits_of(self.pairs, self.student, batch)

    def targets(self, batch: Tensor) -> Tensor:
        return self.pairs.labels(batch)


def logits_of(pairs: Pairs, network: Any, rows: Tensor) -> Outputs:
    """The network's ``logits`` for pairs ``rows``."""
    return {"logits": network(*pairs.inputs(network, rows))}


class InBlocks:
    """A frozen network's logits, computed for blocks of ``size`` consecutive pairs and remembered.

    In fixed blocks, because convolutions and products give a row other last bits in another batch; so a teacher that is
    read from the cache and one that is not give the same bits.
    """

    def __init__(self, pairs: Pairs, size: int) -> None:
        self.pairs, self.size = pairs, size
        self._done: dict[int, Tensor] = {}

    def __call__(self, network: nn.Module, rows: Tensor) -> Outputs:
        blocks = (rows // self.size).tolist()
        for block in sorted(set(blocks) - self._done.keys()):
            end = min((block + 1) * self.size, len(self.pairs.y))
            members = torch.arange(block * self.size, end, device=rows.device)
            self._done[block] = logits_of(self.pairs, network, members)["logits"]
        logits = [self._done[block][place] for block, place in zip(blocks, (rows % self.size).tolist(), strict=True)]
        return {"logits": torch.stack(logits)}


class PairedTask(Task[PairData, PairStudent, PairTeacher]):
    """Classification of paired views for the engine."""

    def __init__(self, config: RunConfig[PairData, PairStudent, PairTeacher], store: StageStore) -> None:
        super().__init__(config, store)
        self.chunk = self.config.data.batch_size
        self.pairs = pairs.load(config.dataset, config.data, config.seed)
        self.other = self.pairs.other(self.config.student.modality)

    @cached_property
    def facts(self) -> DataFacts:
        pairs, info = self.pairs, dataset(self.config.dataset)
        sizes = {split: len(pairs.ids(split)) for split in SPLITS}
        return DataFacts(
            pairs.name, pairs.sha256, pairs.split_sha256, info.generated, info.licence, sizes, len(pairs.y), pairs.split
        )

    def balance(self) -> dict[str, dict[str, int]]:
        names = [f"class {number}" for number in range(self.pairs.classes)]
        return inputs.counted(self.pairs.y.numpy(), self.pairs.split.numpy(), names)

    def data(self) -> Loaders:
        size = self.config.data.batch_size
        return number_loaders(self.pairs.ids, size, self.config.seed, evaluated=size)

    def network(self, sees: tuple[str, ...], options: PairStudent | PairTeacher) -> PairNetwork:
        """A fresh network of these views."""
        if not module_of(options.name):
            return self.pairs.network(sees, self.config.student)
        section = "student" if isinstance(options, PairStudent) else "teacher"
        shapes = [tuple(self.pairs.views[name].rows(torch.zeros(1, dtype=torch.int64)).shape[1:]) for name in sees]
        dictated = {"sees": sees, "shapes": shapes, "classes": self.pairs.classes}
        network: Any = own.build(options.name, section, options.options, **dictated)
        network.sees = sees
        return network  # type: ignore[no-any-return]

    def student(self) -> PairNetwork:
        return self.network((self.config.student.modality,), self.config.student)

    def cross_modal(self) -> PairNetwork:
        """A fresh network of the view that the student does not see."""
        return self.network((self.other,), self.config.teacher)

    def multimodal(self) -> PairNetwork:
        """A fresh network of both views."""
        return self.network(tuple(self.pairs.views), self.config.teacher)

    def teacher_network(self) -> PairNetwork:
        network: PairNetwork = getattr(self, "multimodal" if self.brought else self.source)()
        return network

    def module(self, student: nn.Module) -> PairedClassification:
        return PairedClassification(student, self.config, self.pairs)

    def example(self) -> Tensor:
        return self.pairs.ids("train")[: self.config.data.batch_size]

    def batch_of(self, rows: Tensor) -> Tensor:
        return rows

    def rows_of(self, batch: Tensor) -> Tensor:
        return batch

    @cached_property
    def by_variety(self) -> list[Tensor]:
        """What pairs show of each view, int64 ``[n]``, of the one with fewest examples first."""
        return sorted((view.index for view in self.pairs.views.values()), key=lambda shown: len(set(shown.tolist())))

    def items_of(self, split: str, batch: Tensor) -> Tensor:
        """The examples of the view that shows each once, since pairs are drawn anew by each seed; else pair numbers."""
        shown = self.by_variety[-1]
        return shown[batch.cpu()] if len(set(shown.tolist())) == len(shown) else batch

    def clusters(self, batch: Tensor) -> Tensor | None:
        """The examples of the view with fewest, where pairs share them."""
        shown = self.by_variety[0]
        return shown[batch.cpu()] if len(set(shown.tolist())) < len(shown) else None

    @property
    def inputs(self) -> dict[str, Any]:
        """What every stage depends on: the pairs, the batches and the networks."""
        config, pairs = self.config, self.pairs
        made_of = {"data": pairs.sha256, "split": pairs.split_sha256, "batch": config.data.batch_size}
        teacher = {"name": config.teacher.name, "options": config.teacher.options}
        return {**made_of, "student": plain(config.student), "teacher": teacher}

    @property
    def source(self) -> str:
        """Which teacher plain distillation has."""
        return self.config.teacher.source

    @property
    def logits_shape(self) -> tuple[int, ...]:
        return (self.pairs.classes,)

    def stages(self) -> Sequence[Stage]:
        if self.brought:
            return ()
        inputs = {**self.inputs, "source": self.source}
        return [self.teacher_stage("pair-teacher", inputs, self.config.trainer.max_epochs, self.config.seed)]

    def frozen(self, network: nn.Module) -> FrozenTeacher:
        return FrozenTeacher(network, InBlocks(self.pairs, self.config.data.batch_size))

    def live_teacher(self) -> FrozenTeacher:
        if self.brought:
            return self.brought
        network = self.teacher_network()
        network.load_state_dict(load_file(self.folder("pair-teacher") / "weights.safetensors"))
        return self.frozen(network)

    def all_logits(self, teacher: FrozenTeacher) -> Tensor:
        """The teacher's logits for every pair, ``[n, C]``, from its cache."""
        return self.cache_of(teacher).read(torch.arange(len(self.pairs.y)))["logits"]

    def scores(self, logits: Tensor) -> dict[str, Any]:
        """``metrics`` of val and test, and test ``predictions``, of a teacher's logits for all pairs ``[n, C]``."""
        predicted, metrics = logits.argmax(dim=-1), {}
        for split in ("val", "test"):
            ids = self.pairs.ids(split)
            metrics[split] = scores_of(predicted[ids], self.pairs.y[ids], self.pairs.classes)
        return {"metrics": metrics, "predictions": encode(predicted[self.pairs.ids("test")])}

    def teacher_facts(self) -> dict[str, Any]:
        logits = self.all_logits(self.live_teacher())
        seen = " and ".join(self.pairs.views) if self.source == "multimodal" else self.other
        of: list[str] = [self.config.teacher.name] if module_of(self.config.teacher.name) else []
        of += ["weights from a file"] if self.config.teacher.weights else []
        description = outputs.DESCRIPTION if self.brought else ", ".join([*of, f"sees {seen}"])
        return {"kind": self.source, "description": description, **self.scores(logits)}


TASK = PairedTask
