"""DSD: dual self-distillation of a U-shaped network, decoder stages and encoder stages each from their deepest.

Every stage but the main output has a head that gives full-size logits (see ``heads.py``):
``e_1 … e_N`` on the encoder, full resolution first, and ``d_1 … d_M`` on the decoder, half resolution first and the
bottleneck last. With ``o_m`` the main logits,

    L_gt     = Σ_{o ∈ {o_m, d_1 … d_M}} [ Dice(softmax o, y) + CE(o, y) ]
    KLv(t,s) = mean over batch and voxels of Σ_k p_k (log p_k − log q_k), p = softmax(t/T), q = softmax(s/T)
    L_dec    = Σ_{j=2…M}   T² KLv(d_1, d_j)
    L_enc    = Σ_{j=1…N−1} T² KLv(e_N, e_j)
    L        = L_gt + α (L_dec + L_enc)

Background is a class like any other. The encoder's logits meet no label. With one head for each resolution, shared by
encoder and decoder, its heads are trained on labels through the decoder; with heads of its own the encoder's divergence
is smallest for constant heads, so watch the logged entropy of ``e_N``. The teachers' logits are not detached unless
asked for.

Source: arXiv 2306.03271 (IEEE TBME 2025); what its abstract leaves open (T, α, no detaching, sharing) is that of the
released code, soumbane/DualSelfDistillation at commit 55f8db54, where heads are shared for nnU-Net and SwinUNETR, not
for UNETR. In that code α has no effect: 1 is what it trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from kdbench.engine.method import Method
from kdbench.engine.step import Shapes, Step
from kdbench.families.medical.segmentation_3d import heads


@dataclass(frozen=True)
class Hyperparameters:
    temperature: Annotated[float, Gt(0)] = 3.0
    """Temperature T (released code: 3)."""
    alpha: Annotated[float, Ge(0)] = 1.0
    """Weight α of both divergences (released code: 1)."""
    encoder: bool = True
    """Distil the encoder's deepest stage into its other stages."""
    decoder: bool = True
    """Distil the decoder's deepest stage into its other stages."""
    detach_teacher: bool = False
    """Stop the gradient of the divergences at the deepest stages."""
    shared_heads: bool = True
    """One head a resolution for encoder and decoder; false gives the encoder heads of its own."""


class DSD(Method):
    """Adds the terms ``deep``, ``decoder`` and ``encoder``; logs every stage's part and the entropy of ``e_N``."""

    title = "dual self-distillation of encoder and decoder stages"
    paper = "https://arxiv.org/abs/2306.03271"
    teacher = "none"
    options: Hyperparameters

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        return heads.taps(student, self.options.encoder)

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        self.heads = heads.heads(shapes.student, self.options.shared_heads)
        return self.heads

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        options = self.options
        predicted = heads.logits(self.heads, step, options.shared_heads)
        deep = heads.supervised(predicted, step.targets)
        step.logs |= {f"deep {alias}": loss for alias, loss in deep.items()}
        terms = {"deep": torch.stack(list(deep.values())).sum()}
        if options.decoder:
            terms["decoder"] = self._divergence(step, predicted, sorted(deep, key=heads.number))
        if options.encoder:
            inner_first = sorted((alias for alias in predicted if alias not in deep), key=heads.number, reverse=True)
            terms["encoder"] = self._divergence(step, predicted, inner_first)
            step.logs[f"entropy of {inner_first[0]}"] = heads.entropy(predicted[inner_first[0]])
        return terms

    def _divergence(self, step: Step, predicted: Mapping[str, Tensor], stages: list[str]) -> Tensor:
        """``Σ_j T² KLv(t, s_j)`` from the first of the stages to each of the others."""
        first, *others = stages
        teacher = predicted[first].detach() if self.options.detach_teacher else predicted[first]
        parts = {alias: heads.voxel_kl(predicted[alias], teacher, self.options.temperature) for alias in others}
        step.logs |= {f"{first} to {alias}": part for alias, part in parts.items()}
        return torch.stack(list(parts.values())).sum()

    def weights(self, step: Step) -> Mapping[str, float]:
        on = {"decoder": self.options.decoder, "encoder": self.options.encoder}
        return {name: self.options.alpha for name, wanted in on.items() if wanted}
