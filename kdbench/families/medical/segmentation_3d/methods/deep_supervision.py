"""Deep supervision: the decoder's stages are trained on the labels through heads that are thrown away.

``L = L_DiceCE(o_m, y) + Σ_j L_DiceCE(d_j, y)`` with ``o_m`` the main logits and ``d_j`` those of the head at decoder
stage j, the bottleneck included; all weights 1. The heads are those of ``heads.py``: this is
DSD without its divergences, the baseline that tells their effect apart.

Source: Lee et al., "Deeply-Supervised Nets", arXiv 1409.5185; the form is that of DSD's released code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdbench.engine.method import Method
from kdbench.engine.step import Shapes, Step
from kdbench.families.medical.segmentation_3d import heads


class DeepSupervision(Method):
    """Adds the term ``deep``; logs that of each decoder stage."""

    title = "decoder stages trained on the labels through auxiliary heads"
    paper = "https://arxiv.org/abs/1409.5185"
    teacher = "none"
    role = "control"

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        return heads.taps(student, encoder=False)

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        self.heads = heads.heads(shapes.student, shared=True)
        return self.heads

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        deep = heads.supervised(heads.logits(self.heads, step, shared=True), step.targets)
        step.logs |= {f"deep {alias}": loss for alias, loss in deep.items()}
        return {"deep": torch.stack(list(deep.values())).sum()}
