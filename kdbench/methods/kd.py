"""Plain knowledge distillation on nodes or whole graphs: match the teacher's softened class probabilities.

``L = (1 − α) · CE(z_S, y) + α · T² · KL( softmax(z_T / T) ‖ softmax(z_S / T) )`` on the labelled training examples.

The teacher's logits ``z_T`` come from the softmax head trained on its features (nodes), or from a network trained on
all training graphs.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Tensor

from kdbench.engine.losses import distillation_kl
from kdbench.engine.method import Method
from kdbench.engine.schedules import linear_ramp
from kdbench.engine.step import Step


@dataclass(frozen=True)
class Hyperparameters:
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Weight α of the teacher's term."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature T."""
    ramp_epochs: Annotated[int, Ge(0)] = 0
    """Epochs over which α grows linearly from 0; 0 for a constant α."""


class KD(Method):
    """Adds the term ``kd``."""

    title = "plain KD (softened KL to the teacher's class probabilities)"
    paper = "https://arxiv.org/abs/1503.02531"
    teacher = "frozen"
    kinds = ("node_classification", "graph_classification")
    options: Hyperparameters

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return {"kd": distillation_kl(step.output["logits"], step.teacher["logits"], self.options.temperature)}

    def weights(self, step: Step) -> Mapping[str, float]:
        alpha = self.options.alpha * linear_ramp(step.epoch, self.options.ramp_epochs)
        return {"task": 1 - alpha, "kd": alpha}
