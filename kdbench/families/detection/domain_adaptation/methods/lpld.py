"""LPLD: low-confidence pseudo-label distillation for source-free adaptive detection.

A mean teacher sees the weak view. Its confident detections ``H`` (score > τ_H) train the student on the strong view as
in plain self-training. Of its R region proposals p_i, with logits z_i ∈ R^{C+1} (background last) and b_i the box
decoded with the deltas of the largest logit (p_i itself where that is the background), unclipped, it keeps

    M = { i : max_{h∈H} IoU(b_i, h) ≤ τ_IoU,  max_c softmax(z_i[:C])_c ≥ τ_fg,  softmax(z_i)_bg ≤ τ_bg }

and the student's RoI head, on its own features at p_i, learns the teacher's class distribution without background:

    q_i = [ softmax(z_i[:C]), ε ],   r_i = softmax(z^S_i),   w_i = 1 − cos(f^S_i, f^T_i)
    L_LPLD = (1/|M|) Σ_{i∈M} w_i Σ_c q_ic (log q_ic − log r_ic)
    L = L_rpn_cls + L_rpn_box + L_roi_cls + L_roi_box + λ L_LPLD

``f`` is the spatial mean of the region's feature; w_i and q_i carry no gradient. The regions and the box regression
learn nothing from L_LPLD. It is computed per image and averaged over the batch; an image without confident label, or
whose M is empty, gives 0. The teacher moves by ``teacher.keep`` every ``teacher.every`` steps (released code: 0.75,
once an epoch) and is deployed as it is after the last epoch.

The released code trains images without any confident label as background everywhere (``empty=background``), which can
start a collapse; the default leaves them out. It also lets gradients run into the teacher, where no optimiser holds
them; here they are cut.

Source: "Enhancing Source-Free Domain Adaptive Object Detection with Low-confidence Pseudo Label Distillation",
arXiv 2407.13524 (ECCV 2024), by its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from kdbench.engine.losses import at_least_float32
from kdbench.engine.method import Method
from kdbench.engine.module import DistillationModule
from kdbench.engine.step import Step
from kdbench.engine.teachers import Teacher
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.pseudo_labels import Lesson, SelfTraining
from kdbench.families.detection.domain_adaptation.task import AdaptationTask


@dataclass(frozen=True)
class Hyperparameters:
    threshold: Annotated[float, Interval(ge=0, lt=1)] = 0.7
    """Score τ_H above which a detection is a confident label (released code: 0.7)."""
    overlap: Annotated[float, Interval(ge=0, le=1)] = 0.4
    """Largest IoU τ_IoU of a low-confidence label with a confident one (released code: 0.4)."""
    foreground: Annotated[float, Interval(ge=0, le=1)] = 0.9
    """Least probability τ_fg of the best class without background (released code: 0.9)."""
    background: Annotated[float, Interval(ge=0, le=1)] = 0.99
    """Largest probability τ_bg of the background (released code: 0.99)."""
    weight: Annotated[float, Ge(0)] = 0.1
    """Weight λ of the distillation (released code: 0.1)."""
    weighted: bool = True
    """Weigh each region by w_i, the distance of teacher and student features; false: w_i = 1 (ablation)."""
    epsilon: Annotated[float, Gt(0)] = 1e-9
    """Background entry ε of the target (released code: 1e-9)."""
    empty: Literal["skip", "background"] = "skip"
    """Images without a confident label: left out, or trained as background everywhere (released code)."""


def decoded(proposals: Tensor, logits: Tensor, deltas: Tensor) -> Tensor:
    """``b_i``: proposals ``[n, 4]`` moved by the deltas of their largest logit, not clipped to the image.

    ``logits`` ``[n, C+1]``, ``deltas`` ``[n, 4C]`` in units of (0.1, 0.1, 0.2, 0.2); a side grows at most by 1000/16.
    A proposal whose largest logit is the background stays. At least in float32.
    """
    proposals, deltas = at_least_float32(proposals), at_least_float32(deltas)
    classes = logits.shape[1] - 1
    best = logits.argmax(dim=1)
    own = deltas.view(len(deltas), classes, 4)[torch.arange(len(deltas)), best.clamp(max=classes - 1)]
    dx, dy, dw, dh = (own * own.new_tensor([0.1, 0.1, 0.2, 0.2])).unbind(dim=1)
    sides = proposals[:, 2:] - proposals[:, :2]
    centres = (proposals[:, :2] + proposals[:, 2:]) / 2 + sides * torch.stack([dx, dy], dim=1)
    limit = torch.log(own.new_tensor(1000 / 16))
    half = sides * torch.stack([dw, dh], dim=1).clamp(max=limit).exp() / 2
    moved = torch.cat([centres - half, centres + half], dim=1)
    return torch.where((best == classes)[:, None], proposals, moved)


def low_confidence(
    proposals: Tensor, logits: Tensor, deltas: Tensor, confident: Tensor, options: Hyperparameters
) -> Tensor:
    """``M`` as a mask, bool ``[n]``; ``confident``: the boxes of H ``[m, 4]``. Empty where H is.

    Shapes as for :func:`decoded`.
    """
    if not len(confident):
        return torch.zeros(len(proposals), dtype=torch.bool, device=proposals.device)
    z = at_least_float32(logits)
    overlaps: Tensor = box_iou(decoded(proposals, logits, deltas), at_least_float32(confident))
    apart = overlaps.amax(dim=1) <= options.overlap
    clear = z[:, :-1].softmax(dim=1).amax(dim=1) >= options.foreground
    return apart & clear & (z.softmax(dim=1)[:, -1] <= options.background)


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """``w_i = 1 − cos(f^S_i, f^T_i)``, ``[n]``, of features ``[n, d]``; no gradient."""
    student, teacher = at_least_float32(student.detach()), at_least_float32(teacher.detach())
    return 1 - (F.normalize(student, dim=1) * F.normalize(teacher, dim=1)).sum(dim=1)


def distillation(student: Tensor, teacher: Tensor, weights: Tensor, epsilon: float) -> Tensor:
    """``(1/n) Σ_i w_i Σ_c q_ic (log q_ic − log r_ic)`` of logits ``[n, C+1]`` and weights ``[n]``, n > 0; a scalar."""
    classes = at_least_float32(teacher.detach())[:, :-1].softmax(dim=1)
    q = torch.cat([classes, classes.new_full((len(classes), 1), epsilon)], dim=1)
    log_r = at_least_float32(student).log_softmax(dim=1)
    return (weights[:, None] * F.kl_div(log_r, q, reduction="none")).sum() / len(q)


class LPLD(Method[AdaptationTask]):
    """Adds the term ``lpld`` to the detection losses under confident labels."""

    title = "mean teacher with confident pseudo-labels and distillation at low-confidence regions"
    paper = "https://arxiv.org/abs/2407.13524"
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
        lesson = self.training.lesson(step)
        return {**lesson.terms, "lpld": self.low_confidence_term(step, lesson)}

    def low_confidence_term(self, step: Step, lesson: Lesson) -> Tensor:
        """The mean of L_LPLD over the batch's images; tells |M| per image and the mean w_i of the step (0 for none)."""
        student, taught = step.student, step.teacher
        total = 0 * torch.stack([level.sum() for level in lesson.maps]).sum()
        regions, weights = 0, list[Tensor]()
        for row, one in enumerate(lesson.confident):
            count = int(taught["proposed"][row])
            proposals, logits, deltas, features = (
                taught[name][row, :count] for name in ("proposals", "logits", "deltas", "features")
            )
            chosen = low_confidence(proposals, logits, deltas, one.boxes, self.options)
            if not chosen.any():
                continue
            maps = [level[row : row + 1] for level in lesson.maps]
            said, _, own = models.classify(student, maps, models.as_rois([proposals[chosen]]))
            away = distances(own, features[chosen])
            w = away if self.options.weighted else torch.ones_like(away)
            total = total + distillation(said, logits[chosen], w, self.options.epsilon)
            regions, weights = regions + len(away), [*weights, away]
        step.logs["low-confidence labels"] = torch.tensor(regions / len(lesson.confident))
        step.logs["feature distance"] = torch.cat(weights).mean() if weights else torch.tensor(0.0)
        return total / len(lesson.confident)

    def weights(self, step: Step) -> Mapping[str, float]:
        return {"lpld": self.options.weight}

    def teacher_facts(self, task: AdaptationTask, module: DistillationModule) -> dict[str, Any]:
        return self.training.facts(task, module)
