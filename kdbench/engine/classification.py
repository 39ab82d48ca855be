"""What kinds of classification have in common: the module with its metrics, and loaders of row numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from kdbench.engine.loaders import Loaders, Rows
from kdbench.engine.losses import at_least_float32
from kdbench.engine.module import DistillationModule
from kdbench.engine.teachers import Outputs
from kdbench.plan.metrics import Undefined, scores
from kdbench.plan.options import Optimizer

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Classification(DistillationModule):
    """Cross-entropy on ``logits`` ``[b, C]``; ``accuracy`` and ``macro_f1``, confusion and predictions of the test."""

    def __init__(self, student: nn.Module, optimizer: Optimizer, classes: int) -> None:
        super().__init__(student, optimizer)
        self.metrics = nn.ModuleDict({"val_": counter(classes), "test_": counter(classes)})
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {"val": [], "test": []}
        self._outcomes: dict[str, dict[str, Tensor]] = {}
        self._details: dict[str, Any] = {}

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        return {"task": F.cross_entropy(at_least_float32(output["logits"]), targets)}

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        predicted = output["logits"].argmax(dim=-1)
        self.metrics[f"{split}_"].update(predicted, targets)  # type: ignore[operator]
        self._seen[split].append((predicted, targets))

    def results(self, split: str) -> Mapping[str, float | Undefined]:
        matrix = self.metrics[f"{split}_"]
        assert isinstance(matrix, MulticlassConfusionMatrix)
        confusion: list[list[int]] = matrix.compute().tolist()
        matrix.reset()
        seen, self._seen[split] = self._seen[split], []
        if not any(map(any, confusion)):
            return dict.fromkeys(("accuracy", "macro_f1"), Undefined("it has no examples"))
        predicted, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
        self._outcomes[split] = {"predicted": predicted, "targets": targets}
        if split == "test":
            self._details = {"confusion": confusion, "predictions": encode(predicted)}
        return scores(confusion)

    def outcomes(self, split: str) -> Mapping[str, Tensor]:
        return self._outcomes[split]

    def details(self) -> dict[str, Any]:
        return self._details


def counter(classes: int) -> MulticlassConfusionMatrix:
    """The confusion matrix (rows: true classes) of predicted classes ``[b]``; all scores are computed from it."""
    return MulticlassConfusionMatrix(classes, sync_on_compute=False)


def scores_of(predicted: Tensor, targets: Tensor, classes: int) -> dict[str, float]:
    """``accuracy`` and ``macro_f1`` of predicted classes ``[b]``."""
    return scores(counter(classes)(predicted, targets).tolist())


def encode(predictions: Tensor) -> str | None:
    """One base-36 digit a prediction; None for more than 36 classes or 10,000 examples."""
    if len(predictions) > 10_000 or (len(predictions) and int(predictions.max()) >= len(DIGITS)):
        return None
    return "".join(DIGITS[value] for value in predictions.tolist())


def number_loaders(
    ids: Callable[[str], Tensor], batch_size: int | None, seed: int, evaluated: int | None = None
) -> Loaders:
    """Loaders of row numbers ``ids(split)``, ``batch_size`` or ``evaluated`` at once, all of them for None."""
    return Loaders(partial(_numbers, ids, batch_size, evaluated), seed)


def _numbers(ids: Callable[[str], Tensor], batch_size: int | None, evaluated: int | None, split: str) -> Rows:
    numbers = ids(split)
    return Rows(len(numbers), partial(_pick, numbers), batch_size if split == "train" else evaluated)


def _pick(numbers: Tensor, rows: Sequence[int], epoch: int) -> Tensor:
    return numbers[rows]
