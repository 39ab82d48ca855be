"""Classification of paired views: the student sees one modality, its teachers see the other or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
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
from kdbench.families.vision_language import avdigits, pair_networks, pairs
from kdbench.families.vision_language.options import PairData, PairStudent, PairTeacher
from kdbench.families.vision_language.pair_networks import PairNetwork
from kdbench.families.vision_language.pairs import SPLITS, Pairs
from kdbench.options import plain

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
CODE = (Path(__file__), *(Path(str(module.__file__)) for module in (avdigits, pair_networks, pairs)))


class PairedClassification(DistillationModule):
    """Cross-entropy on the batch's pairs; a batch is pair numbers, and a network takes what it sees of them."""

    student: PairNetwork

    def __init__(self, student: nn.Module, config: RunConfig, pairs: Pairs) -> None:
        super().__init__(student, config.optimizer)
        self.pairs = pairs
        self.metrics = nn.ModuleDict({"val_": _metrics(pairs.classes), "test_": _metrics(pairs.classes)})
        self._predicted: list[Tensor] = []
        self._details: dict[str, Any] = {}

    def forward_batch(self, batch: Tensor) -> Outputs:
        return logits_of(self.pairs, self.student, batch)

    def targets(self, batch: Tensor) -> Tensor:
        return self.pairs.labels(batch)

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
            self._details = {"confusion": values["confusion"].tolist(), "predictions": encode(predictions)}
        metrics.reset()
        return {name: float(values[name]) for name in ("accuracy", "macro_f1")}

    def _metrics_of(self, split: str) -> MetricCollection:
        metrics = self.metrics[f"{split}_"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def details(self) -> dict[str, Any]:
        return self._details


def logits_of(pairs: Pairs, network: nn.Module, rows: Tensor) -> Outputs:
    """The network's ``logits`` for pairs ``rows``."""
    assert isinstance(network, PairNetwork)
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
        found = [self._done[block][place] for block, place in zip(blocks, (rows % self.size).tolist(), strict=True)]
        return {"logits": torch.stack(found)}


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


class Numbers(Dataset[Tensor]):
    """Pair numbers; a batch is fetched in one step."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.ids[indices]


class PairLoaders(pl.LightningDataModule):
    """Loaders of pair numbers. Training order depends on (seed, epoch) alone and is shared out among the processes."""

    def __init__(self, pairs: Pairs, batch_size: int, seed: int) -> None:
        super().__init__()
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed

    def train_dataloader(self) -> DataLoader[Tensor]:
        numbers, trainer = Numbers(self.pairs.ids("train")), self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler: DistributedSampler[Tensor] = DistributedSampler(
            numbers, world, rank, seed=axis(self.seed, "data_order") % 2**31
        )
        return DataLoader(numbers, self.batch_size, sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Numbers(self.pairs.ids("val")), self.batch_size, collate_fn=_same)

    def test_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Numbers(self.pairs.ids("test")), self.batch_size, collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch


class PairedTask(Task):
    """Classification of paired views for the engine."""

    def __init__(self, config: RunConfig, store: StageStore) -> None:
        super().__init__(config, store)
        self.data_options: PairData = config.data
        self.chunk = self.data_options.batch_size
        self.student_options: PairStudent = config.student
        self.pairs = pairs.load(config.dataset, config.data, config.seed)
        self.other = self.pairs.other(self.student_options.modality)

    @cached_property
    def facts(self) -> DataFacts:
        pairs, info = self.pairs, dataset(self.config.dataset)
        sizes = {split: len(pairs.ids(split)) for split in SPLITS}
        return DataFacts(
            pairs.name, pairs.sha256, pairs.split_sha256, info.generated, info.licence, sizes, len(pairs.y), pairs.split
        )

    def data(self) -> PairLoaders:
        return PairLoaders(self.pairs, self.data_options.batch_size, self.config.seed)

    def student(self) -> PairNetwork:
        return self.pairs.network((self.student_options.modality,), self.student_options)

    def cross_modal(self) -> PairNetwork:
        """A fresh network of the view that the student does not see."""
        return self.pairs.network((self.other,), self.student_options)

    def multimodal(self) -> PairNetwork:
        """A fresh network of both views."""
        return self.pairs.network(tuple(self.pairs.views), self.student_options)

    def module(self, student: nn.Module) -> PairedClassification:
        return PairedClassification(student, self.config, self.pairs)

    def example(self) -> Tensor:
        return self.pairs.ids("train")[: self.data_options.batch_size]

    def batch_of(self, rows: Tensor) -> Tensor:
        return rows

    def rows_of(self, batch: Tensor) -> Tensor:
        return batch

    @property
    def inputs(self) -> dict[str, Any]:
        """What every stage depends on: the pairs, the batches and the networks."""
        batch, student = self.data_options.batch_size, plain(self.student_options)
        return {"data": self.pairs.sha256, "split": self.pairs.split_sha256, "batch": batch, "student": student}

    @property
    def source(self) -> str:
        """Which teacher plain distillation has."""
        options: PairTeacher = self.config.teacher
        return options.source

    def stages(self) -> Sequence[Stage]:
        network: Callable[[], PairNetwork] = getattr(self, self.source)
        trainer, seed = self.config.trainer, self.config.seed
        inputs = {**self.inputs, "source": self.source}
        return [self.supervised("pair-teacher", network, inputs, CODE, trainer.max_epochs, seed)]

    def frozen(self, network: nn.Module) -> FrozenTeacher:
        """A teacher of pairs that gives the network's ``logits``."""
        return FrozenTeacher(network, InBlocks(self.pairs, self.data_options.batch_size))

    def live_teacher(self) -> FrozenTeacher:
        network: PairNetwork = getattr(self, self.source)()
        network.load_state_dict(load_file(self.folder("pair-teacher") / "weights.safetensors"))
        return self.frozen(network)

    def all_logits(self, teacher: FrozenTeacher) -> Tensor:
        """The teacher's logits for every pair, ``[n, C]``, from its cache."""
        return self.cache_of(teacher).read(torch.arange(len(self.pairs.y)))["logits"]

    def scores(self, logits: Tensor) -> dict[str, Any]:
        """``metrics`` of val and test, and test ``predictions``, of a teacher's logits for all pairs ``[n, C]``."""
        predicted, metrics = logits.argmax(dim=-1), {}
        for split in ("val", "test"):
            ids, score = self.pairs.ids(split), _metrics(self.pairs.classes)
            score.update(predicted[ids], self.pairs.y[ids])
            values = score.compute()
            metrics[split] = {name: float(values[name]) for name in ("accuracy", "macro_f1")}
        return {"metrics": metrics, "predictions": encode(predicted[self.pairs.ids("test")])}

    def teacher_facts(self) -> dict[str, Any]:
        logits = self.all_logits(self.live_teacher())
        seen = " and ".join(self.pairs.views) if self.source == "multimodal" else self.other
        return {"kind": self.source, "description": f"sees {seen}", **self.scores(logits)}


TASK = PairedTask
