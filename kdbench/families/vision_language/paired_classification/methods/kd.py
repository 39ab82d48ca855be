"""Plain knowledge distillation across modalities: match a teacher that sees the other view, or both.

``L = (1 − α_e) · CE(z_S, y) + α_e · T² · KL( softmax(z_T / T) ‖ softmax(z_S / T) )``,
``α_e = α · 2^(−⌊e / (h·E)⌋)`` in epoch e = 0 … E − 1: α is halved after every ``h·E`` epochs.

The teacher is trained on the labels alone (``teacher.source=multimodal`` or ``cross_modal``) and frozen.

Source: the baseline of MST-Distill's released code (KD.py, T = 4, α = 0.5 halved after epochs 30, 60 and 90 of 100);
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Tensor

from kdbench.engine.losses import distillation_kl
from kdbench.engine.method import Method
from kdbench.engine.step import Step


@dataclass(frozen=True)
class Hyperparameters:
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Weight α of the teacher's term at the start."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature T."""
    halving: Annotated[float, Ge(0)] = 0.3
    """Share h of the run's epochs between two halvings of α; 0 for a constant α."""


class KD(Method):
    """Adds the term ``kd``."""

    title = "plain KD from a multimodal or cross-modal teacher"
    paper = "https://arxiv.org/abs/1503.02531"
    teacher = "frozen"
    options: Hyperparameters

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return {"kd": distillation_kl(step.output["logits"], step.teacher["logits"], self.options.temperature)}

    def weights(self, step: Step) -> Mapping[str, float]:
        every = round(self.options.halving * step.epochs)
        alpha = self.options.alpha * 0.5 ** (step.epoch // every if every else 0)
        return {"task": 1 - alpha, "kd": alpha}
