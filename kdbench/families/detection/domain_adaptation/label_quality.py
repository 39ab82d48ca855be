"""How good the labels of a teacher are, against the target's hidden labels: an analysis of a finished run.

No training reads what is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.ops import box_iou

from kdbench.families.detection.domain_adaptation.networks import Truth


@dataclass
class Count:
    """Labels of one kind and class: how many, how many are right, how many objects there were to find and are found."""

    given: int = 0
    right: int = 0
    objects: int = 0
    recalled: int = 0

    def add(self, other: Count) -> None:
        """Add another image's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def precision(self) -> float:
        """Share of the labels that are right; NaN without a label."""
        return self.right / self.given if self.given else float("nan")

    @property
    def recall(self) -> float:
        """Share of the objects that a label finds; NaN without an object."""
        return self.recalled / self.objects if self.objects else float("nan")


@dataclass
class Quality:
    """Counts by kind of label (confident, low-confidence, random region), each by class."""

    classes: tuple[str, ...]
    counts: dict[str, list[Count]] = field(default_factory=dict)

    def add(self, kind: str, labels: Truth, truth: Truth, left: Tensor) -> None:
        """Add the labels of one image; ``left`` bool ``[n]`` says which true boxes are there to be found."""
        rows = self.counts.setdefault(kind, [Count() for _ in self.classes])
        for row, other in zip(rows, judged(labels, truth, left, len(self.classes)), strict=True):
            row.add(other)

    def table(self) -> list[Mapping[str, object]]:
        """One row for each kind and class."""
        return [
            {"labels": kind, "class": name, **vars(row), "precision": row.precision, "recall": row.recall}
            for kind, rows in self.counts.items()
            for name, row in zip(self.classes, rows, strict=True)
        ]


def matches(labels: Truth, truth: Truth, overlap: float = 0.5) -> Tensor:
    """Which label is at which true box, bool ``[labels, true boxes]``: IoU ≥ 0.5 and the same class."""
    same = labels.labels[:, None] == truth.labels[None]
    overlaps: Tensor = box_iou(labels.boxes, truth.boxes)
    return (overlaps >= overlap) & same


def judged(labels: Truth, truth: Truth, left: Tensor, classes: int) -> list[Count]:
    """The counts of one image by class.

    A label is right when it is at a true box of its class; several labels of one object are all right, as proposals
    overlap. An object in ``left`` is found when a label is at it.
    """
    hit = matches(labels, truth)
    right = hit.any(dim=1) if len(truth.boxes) else torch.zeros(len(labels.boxes), dtype=torch.bool)
    recalled = hit.any(dim=0) & left if len(labels.boxes) else torch.zeros(len(truth.boxes), dtype=torch.bool)
    counts = []
    for number in range(classes):
        mine, objects = labels.labels == number, truth.labels == number
        totals = mine.sum(), (right & mine).sum(), (objects & left).sum(), (recalled & objects).sum()
        counts.append(Count(*(int(total) for total in totals)))
    return counts
