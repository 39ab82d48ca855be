"""Label smoothing: soft labels without a teacher, the control for what a cross-modal teacher adds.

``L = (1 − ε) · CE(z, y) + ε · (1/C) Σ_c −log softmax(z)_c``, the cross-entropy to ``(1 − ε)·onehot(y) + ε/C``.

A teacher of another view that is independent of the student's given the class cannot tell two examples of a class
apart; what its soft labels add may be no more than this.

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from kdbench.engine.losses import at_least_float32
from kdbench.engine.method import Method
from kdbench.engine.step import Step


@dataclass(frozen=True)
class Hyperparameters:
    epsilon: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share ε of the label that is spread evenly over the classes."""


class LabelSmoothing(Method):
    """Adds the term ``smoothing``."""

    title = "label smoothing (control: soft labels without a teacher)"
    paper = "https://arxiv.org/abs/1512.00567"
    teacher = "none"
    role = "control"
    options: Hyperparameters

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return {"smoothing": -F.log_softmax(at_least_float32(step.output["logits"]), dim=-1).mean()}

    def weights(self, step: Step) -> Mapping[str, float]:
        return {"task": 1 - self.options.epsilon, "smoothing": self.options.epsilon}
