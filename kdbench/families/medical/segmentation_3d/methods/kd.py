"""Plain knowledge distillation for segmentation: match a wider network's softened class probabilities voxel by voxel.

``L = (1 − α) · L_task + α · T² · mean over batch and voxels of KL( softmax(z_T / T) ‖ softmax(z_S / T) )``

with ``L_task = Dice + CE``, ``z_S`` the student's main logits and ``z_T`` those of the frozen teacher for one view.
Background is a class like any other.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Interval
from torch import Tensor

from kdbench.engine.method import Method
from kdbench.engine.step import Step
from kdbench.families.medical.segmentation_3d.heads import voxel_kl


@dataclass(frozen=True)
class Hyperparameters:
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Weight α of the teacher's term."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature T."""


class KD(Method):
    """Adds the term ``kd``."""

    title = "plain KD (voxel-wise softened KL to a wider network)"
    paper = "https://arxiv.org/abs/1503.02531"
    teacher = "frozen"
    options: Hyperparameters

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return {"kd": voxel_kl(step.output["logits"], step.teacher["logits"], self.options.temperature)}

    def weights(self, step: Step) -> Mapping[str, float]:
        return {"task": 1 - self.options.alpha, "kd": self.options.alpha}
