"""Distillation of the teacher's mean soft label of each class: plain KD without anything particular to an example.

    p̄_c = mean of softmax(z_T / T) over the training pairs of class c
    L   = (1 − α_e) · CE(z_S, y) + α_e · T² · KL( p̄_y ‖ softmax(z_S / T) )

with plain KD's teacher, temperature and schedule of α. Where the teacher's view is independent of the student's given
the class, this says all that the teacher can: a difference to plain KD is noise in its soft labels.

Source: a control of this benchmark to plain KD (Hinton, Vinyals, Dean, arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn import functional as F

from kdbench.engine.losses import at_least_float32
from kdbench.engine.method import Method
from kdbench.engine.step import Step
from kdbench.engine.teachers import Teacher
from kdbench.families.vision_language.paired_classification.task import PairedTask


@dataclass(frozen=True)
class Hyperparameters:
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Weight α of the teacher's term at the start."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature T."""
    halving: Annotated[float, Ge(0)] = 0.3
    """Share h of the run's epochs between two halvings of α; 0 for a constant α."""


def class_means(logits: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """``p̄`` ``[C, C]`` of teacher logits ``[n, C]``; a class without an example has even probabilities."""
    soft = (at_least_float32(logits) / temperature).softmax(dim=-1)
    members = F.one_hot(labels, classes).to(soft.dtype)
    counts = members.sum(dim=0)[:, None]
    return torch.where(counts > 0, members.T @ soft / counts.clamp(min=1), torch.full_like(soft[:1], 1 / classes))


class ClassMeanKD(Method[PairedTask]):
    """Adds the term ``kd``."""

    title = "KD from the teacher's mean soft label of each class (control)"
    paper = "https://arxiv.org/abs/1503.02531"
    teacher = "frozen"
    role = "control"
    options: Hyperparameters
    means: Tensor

    def teachers(self, task: PairedTask) -> Mapping[str, Teacher]:
        teacher, pairs = task.teacher(), task.pairs
        rows = pairs.ids("train")
        logits = torch.cat([teacher(some)["logits"] for some in torch.split(rows, task.chunk or len(rows))])
        self.means = class_means(logits, pairs.y[rows], pairs.classes, self.options.temperature)
        return {"teacher": teacher}

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        logits, temperature = step.output["logits"], self.options.temperature
        wanted = self.means.to(logits.device)[step.targets]
        log_q = F.log_softmax(at_least_float32(logits) / temperature, dim=-1)
        return {"kd": temperature**2 * F.kl_div(log_q, wanted, reduction="batchmean")}

    def weights(self, step: Step) -> Mapping[str, float]:
        every = round(self.options.halving * step.epochs)
        alpha = self.options.alpha * 0.5 ** (step.epoch // every if every else 0)
        return {"task": 1 - alpha, "kd": alpha}
