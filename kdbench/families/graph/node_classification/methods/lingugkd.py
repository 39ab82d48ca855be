"""LinguGKD: layer-adaptive contrastive distillation of a language model's hop-wise features into a GNN.

Stage 1 tunes a causal language model on prompts that put a node and its 0…k-hop neighbourhood into words; stage 2
caches ``t_i^(l)``, its last hidden state at the end of the hop-l prompt (both belong to the task's teacher, see
``teachers.py``). Stage 3, here, trains the student:

    z_i^(l) = W · MLP_l(t_i^(l)),   MLP_l = Linear(D→d) · PReLU · LayerNorm · Dropout · Linear(d→d)
    c_ij    = cos(s_i^(l), z_j^(l))
    L_l     = −(1/N) Σ_i log( exp(c_ii/τ) / (exp(c_ii/τ) + Σ_{j: y_j ≠ y_i} exp(c_ij/τ)) )
    L_KD    = Σ_l γ_l L_l,          γ = softmax(g)
    L       = α_0 · CE + α_1 · L_KD,  α = softmax(a)

with ``s_i^(l)`` the student's state at layer l, ``W``, ``MLP_l``, ``g`` and ``a`` learned, and N the labelled training
nodes only, because the negatives are chosen by label.

Source: Hu et al., "Large Language Model Meets Graph Neural Network in Knowledge Distillation", arXiv 2402.05894
(AAAI 2025). The AAAI version's graph-level term has no published code or readable equation and is not built.

``variant=official`` does what the released code does: one projector and one layer weight per hop 0…k, but only k
aligned states, the layer-l state paired with the hop-(l−1) feature; the unused weight's gradient then drains the KD
term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from kdbench.engine.distributed import gather
from kdbench.engine.losses import info_nce
from kdbench.engine.method import Method
from kdbench.engine.step import Shapes, Step
from kdbench.errors import UsageError


@dataclass(frozen=True)
class Hyperparameters:
    temperature: Annotated[float, Gt(0)] = 0.07
    """Temperature τ of the contrast (released code: 0.07)."""
    projector_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Dropout inside each hop's projector (released code: 0.2)."""
    layer_weights: Literal["learned", "fixed"] = "learned"
    """γ: learned with the student, or uniform."""
    loss_weights: Literal["learned", "fixed"] = "learned"
    """α: learned with the student, or 0.5 / 0.5."""
    variant: Literal["paper", "official"] = "paper"
    """paper: every state meets its own hop; official: the pairing of the released code."""


class Projector(nn.Module):
    """``W · MLP_l`` for every hop; W is shared. ``forward``: hop features ``[n, D]`` each -> ``[n, d]`` each."""

    def __init__(self, inputs: list[int], width: int, dropout: float) -> None:
        super().__init__()
        self.hops = nn.ModuleList(
            nn.Sequential(
                nn.Linear(d, width), nn.PReLU(), nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for d in inputs
        )
        self.shared = nn.Linear(width, width, bias=False)

    def forward(self, hop: int, features: Tensor) -> Tensor:
        projected: Tensor = self.shared(self.hops[hop](features))
        return projected


class Weights(nn.Module):
    """Logits of the weights, initialised to ones, so that fixed ones are uniform: ``layers`` (g) and ``losses`` (a)."""

    def __init__(self, layers: int, options: Hyperparameters) -> None:
        super().__init__()
        self.layers = nn.Parameter(torch.ones(layers), requires_grad=options.layer_weights == "learned")
        self.losses = nn.Parameter(torch.ones(2), requires_grad=options.loss_weights == "learned")


class LinguGKD(Method):
    """Adds the term ``kd``; logs each hop's loss and weight γ."""

    title = "layer-adaptive contrast with a language model's hop-wise features"
    paper = "https://arxiv.org/abs/2402.05894"
    teacher = "frozen"
    options: Hyperparameters

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        states = student.get_submodule("states")
        return {f"state{layer}": f"states.{layer}" for layer, _ in enumerate(states.children())}

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        inputs = [shape[-1] for name, shape in shapes.teacher.items() if name.startswith("hop")]
        if len(inputs) != len(shapes.student):
            last, given = len(shapes.student) - 1, ", ".join(shapes.teacher)
            raise UsageError(f"Hop-wise distillation reads the teacher's outputs hop0 … hop{last}; it has {given}.")
        width = shapes.student["state0"][-1]
        self.projector = Projector(inputs, width, self.options.projector_dropout)
        self.logits = Weights(len(inputs), self.options)
        return {"projector": self.projector, "weights": self.logits}

    def pairs(self, states: int) -> list[tuple[int, int]]:
        """(student layer, teacher hop) of each aligned pair."""
        if self.options.variant == "official":
            return [(layer, layer - 1) for layer in range(1, states)]
        return [(layer, layer) for layer in range(states)]

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        labels, offset = gather(step.targets)
        positives = torch.arange(len(step.targets), device=labels.device) + offset
        negatives = step.targets[:, None] != labels[None, :]
        layers = {}
        for layer, hop in self.pairs(len(step.features)):
            candidates, _ = gather(self.projector(hop, step.teacher[f"hop{hop}"]))
            layers[hop] = info_nce(
                step.features[f"state{layer}"], candidates, positives, negatives, self.options.temperature
            )
        gamma = self.logits.layers.softmax(0)
        step.logs |= {f"layer{hop}": loss for hop, loss in layers.items()}
        step.logs |= {f"gamma{hop}": weight for hop, weight in enumerate(gamma)}
        return {"kd": torch.stack([gamma[hop] * loss for hop, loss in layers.items()]).sum()}

    def weights(self, step: Step) -> Mapping[str, Tensor]:
        alpha = self.logits.losses.softmax(0)
        return {"task": alpha[0], "kd": alpha[1]}
