"""Self-training of a detector with a mean teacher: what plain distillation and LPLD share.

The teacher, a moving average of the student, sees the weak view and gives its confident detections ``H``; the student
is trained on the strong view with ``H`` as ground truth: ``L = L_rpn_cls + L_rpn_box + L_roi_cls + L_roi_box``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.engine.module import DistillationModule
from kdbench.engine.step import Step
from kdbench.engine.teachers import EMATeacher, Outputs
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation import views
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.task import AdaptationTask, forward

Empty = Literal["skip", "background"]


def high_confidence(outputs: Outputs, threshold: float) -> list[Truth]:
    """``H`` of each image: the detections with a score above ``threshold``."""
    rows = zip(outputs["boxes"], outputs["scores"], outputs["labels"], strict=True)
    return [Truth(boxes[scores > threshold], labels[scores > threshold]) for boxes, scores, labels in rows]


@dataclass
class Lesson:
    """One step of self-training: the student's feature maps of the strong view, ``H``, and the detection losses."""

    maps: Sequence[Tensor]
    """``[b, c, h, w]`` a level."""
    confident: list[Truth]
    terms: Mapping[str, Tensor]


class SelfTraining(pl.Callback):
    """The mean teacher of a run, and the student's detection losses under its confident labels.

    Images without a confident label: ``skip`` leaves them out, and a step of such images alone leaves the student and
    its optimiser as they are; ``background`` trains all of such an image as background.
    """

    def __init__(self, threshold: float, empty: Empty) -> None:
        self.threshold, self.empty = threshold, empty
        self._teacher: EMATeacher | None = None
        self._raw: dict[str, Tensor] = {}
        self._learned = False

    def mean_teacher(self, task: AdaptationTask) -> EMATeacher:
        """The teacher, made from the task's options; it is deployed."""
        options = task.config.teacher
        self._teacher = EMATeacher(options.keep, forward, options.every or task.steps(), deploy=True)
        return self._teacher

    def callbacks(self) -> list[pl.Callback]:
        """What a method gives as its companions."""
        assert self._teacher is not None, "mean_teacher() comes first"
        return [self, self._teacher]

    def lesson(self, step: Step) -> Lesson:
        """The student's losses of one step; their names and what is logged are the same at every step."""
        batch, student = step.batch, step.student
        confident = high_confidence(step.teacher, self.threshold)
        images = views.strong(batch.images, batch.sizes)
        maps = student.extract_feat(models.normalised(images, batch.sizes))  # type: ignore[operator]
        filled = [row for row, one in enumerate(confident) if len(one.boxes)]
        rows = filled if self.empty == "skip" else range(len(confident))
        self._learned |= len(rows) > 0
        terms = self._losses(student, maps, models.samples(images, batch.sizes), confident, rows)
        count = len(confident)
        step.logs["confident labels"] = torch.tensor(sum(len(one.boxes) for one in confident) / count)
        step.logs["images without label"] = torch.tensor(1 - len(filled) / count)
        return Lesson(maps, confident, terms)

    @staticmethod
    def _losses(
        student: nn.Module, maps: Sequence[Tensor], samples: Sequence[Any], truth: Sequence[Truth], rows: Sequence[int]
    ) -> dict[str, Tensor]:
        """The losses of the images in ``rows``, times their share of the batch; zeros with a gradient for none."""
        if not rows:
            nothing = 0 * torch.stack([level.sum() for level in maps]).sum()
            return dict.fromkeys(models.LOSSES, nothing)
        mine = [level[list(rows)] for level in maps]
        values = models.losses(student, mine, [samples[row] for row in rows], [truth[row] for row in rows])
        return {name: value * (len(rows) / len(samples)) for name, value in values.items()}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        learned = trainer.strategy.reduce(torch.tensor(float(self._learned), device=module.device), reduce_op="max")
        if not learned:  # in any process: neither momentum nor weight decay moves a weight without a gradient
            for parameter in module.parameters():
                parameter.grad = None
        self._learned = False

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        state = module.get_submodule("student").state_dict()
        self._raw = {name: value.detach().cpu().clone() for name, value in state.items()}

    def facts(self, task: AdaptationTask, module: DistillationModule) -> dict[str, Any]:
        """The record's account: the teacher is what is deployed, so only the raw student's scores are new."""
        deployed = {name: value.detach().clone() for name, value in module.student.state_dict().items()}
        module.student.load_state_dict(self._raw)
        raw = {split: task.score(module, split) for split in ("val", "test")}
        module.student.load_state_dict(deployed)
        metrics = {split: {f"student_{name}": value for name, value in scores.items()} for split, scores in raw.items()}
        description = "moving average of the student, deployed; student_*: the raw student"
        return {"kind": "ema", "description": description, "metrics": metrics, "predictions": None}
