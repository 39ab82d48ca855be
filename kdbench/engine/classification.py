"""What kinds of classification have in common: the module with its metrics, and loaders of row numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchmetrics import ConfusionMatrix, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kdbench.engine.losses import at_least_float32
from kdbench.engine.module import DistillationModule
from kdbench.engine.seeds import axis
from kdbench.engine.teachers import Outputs
from kdbench.options import Optimizer

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Classification(DistillationModule):
    """Cross-entropy on ``logits`` ``[b, C]``; ``accuracy`` and ``macro_f1``, confusion and predictions of the test."""

    def __init__(self, student: nn.Module, optimizer: Optimizer, classes: int) -> None:
        super().__init__(student, optimizer)
        self.metrics = nn.ModuleDict({"val_": metrics(classes), "test_": metrics(classes)})
        self._predicted: list[Tensor] = []
        self._details: dict[str, Any] = {}

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        return {"task": F.cross_entropy(at_least_float32(output["logits"]), targets)}

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        predicted = output["logits"].argmax(dim=-1)
        self._metrics_of(split).update(predicted, targets)
        if split == "test":
            self._predicted.append(predicted.cpu())

    def results(self, split: str) -> dict[str, float]:
        found = self._metrics_of(split)
        values = found.compute()
        if split == "test":
            predictions, self._predicted = torch.cat(self._predicted), []
            self._details = {"confusion": values["confusion"].tolist(), "predictions": encode(predictions)}
        found.reset()
        return {name: float(values[name]) for name in ("accuracy", "macro_f1")}

    def _metrics_of(self, split: str) -> MetricCollection:
        found = self.metrics[f"{split}_"]
        assert isinstance(found, MetricCollection)
        return found

    def details(self) -> dict[str, Any]:
        return self._details


def metrics(classes: int) -> MetricCollection:
    """``accuracy``, ``macro_f1`` and the ``confusion`` matrix (rows: true classes) of predicted classes ``[b]``."""
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


class Rows(Dataset[Tensor]):
    """Row numbers; a batch is fetched in one step."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.ids[indices]


class RowLoaders(pl.LightningDataModule):
    """Loaders of row numbers ``ids(split)``, ``batch_size`` or ``evaluated`` at once, all of them for None.

    Training order depends on (seed, epoch) alone and is shared out among the processes; a full batch keeps its order.
    """

    def __init__(
        self, ids: Callable[[str], Tensor], batch_size: int | None, seed: int, evaluated: int | None = None
    ) -> None:
        super().__init__()
        self.ids, self.batch_size, self.seed, self.evaluated = ids, batch_size, seed, evaluated

    def train_dataloader(self) -> DataLoader[Tensor]:
        rows, trainer = Rows(self.ids("train")), self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler: DistributedSampler[Tensor] = DistributedSampler(
            rows, world, rank, shuffle=self.batch_size is not None, seed=axis(self.seed, "data_order") % 2**31
        )
        return DataLoader(rows, batch_size=self.batch_size or len(rows), sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[Tensor]:
        rows = Rows(self.ids(split))
        return DataLoader(rows, batch_size=self.evaluated or len(rows), collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch
