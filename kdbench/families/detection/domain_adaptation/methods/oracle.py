"""The source detector fine-tuned on the labels of the target's training images: an upper reference, not a method.

``L = L_rpn_cls + L_rpn_box + L_roi_cls + L_roi_box`` on the strong view with the true boxes, as many steps as every
other arm. The last weights are deployed. The only arm that reads the target's training labels.

Source: Ren et al., "Faster R-CNN", arXiv 1506.01497.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage
from kdbench.families.detection.domain_adaptation.task import AdaptationTask


class Oracle(Method[AdaptationTask]):
    """Trains on labelled target images."""

    title = "oracle: fine-tuning on the target's labels"
    paper = "https://arxiv.org/abs/1506.01497"
    teacher = "none"
    role = "bound"

    def stages(self, task: AdaptationTask) -> Sequence[Stage]:
        task.labelled()  # what is wrong with the labels shows before the source detector is trained
        return ()

    def data(self, task: AdaptationTask) -> pl.LightningDataModule:
        return task.labelled()
