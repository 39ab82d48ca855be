"""Stand-in for plain knowledge distillation: a mean teacher's confident detections as labels (no plain KD exists here).

    H = { detections of the teacher on the weak view with score > τ }
    L = L_rpn_cls(H) + L_rpn_box(H) + L_roi_cls(H) + L_roi_box(H)      student, strong view
    θ_T ← keep · θ_T + (1 − keep) · θ_S                                every ``teacher.every`` steps

A batch's losses are the mean over its images. The teacher is deployed as it is after the last epoch.

Source: Tarvainen and Valpola, "Mean teachers are better role models", arXiv 1703.01780; with pseudo-labelled boxes as
in Liu et al., "Unbiased Teacher", arXiv 2102.09480; setting and constants are LPLD's, arXiv 2407.13524, without its
distillation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from annotated_types import Interval
from torch import Tensor

from kdbench.engine.method import Method
from kdbench.engine.module import DistillationModule
from kdbench.engine.step import Step
from kdbench.engine.teachers import Teacher
from kdbench.families.detection.domain_adaptation.pseudo_labels import SelfTraining
from kdbench.families.detection.domain_adaptation.task import AdaptationTask


@dataclass(frozen=True)
class Hyperparameters:
    threshold: Annotated[float, Interval(ge=0, lt=1)] = 0.7
    """Score τ above which a detection is a label."""
    empty: Literal["skip", "background"] = "skip"
    """Images without a label: left out, or trained as background everywhere (released code of LPLD)."""


class KD(Method[AdaptationTask]):
    """Self-training with confident labels."""

    title = "stand-in for plain KD: mean teacher with confident pseudo-labels only"
    paper = "https://arxiv.org/abs/1703.01780"
    teacher = "ema"
    skips = True  # images without a confident label
    options: Hyperparameters

    def __init__(self, options: Hyperparameters) -> None:
        super().__init__(options)
        self.training = SelfTraining(options.threshold, options.empty)

    def teachers(self, task: AdaptationTask) -> Mapping[str, Teacher]:
        return {"teacher": self.training.mean_teacher(task)}

    def companions(self) -> Sequence[pl.Callback]:
        return self.training.callbacks()

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return self.training.lesson(step).terms

    def teacher_facts(self, task: AdaptationTask, module: DistillationModule) -> dict[str, Any]:
        return self.training.facts(task, module)
