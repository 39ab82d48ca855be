"""MST-Distill: a student of one modality learns from a routed mixture of specialised teachers.

Networks: student s, cross-modal c (sees the other view) and multimodal t (sees both); logits z;
``KD(n ← m) = T² · KL( softmax(z_m/T) ‖ softmax(z_n/T) )``, mean over the batch.

Stage 1 (collaborative initialisation) trains all three with one Adam and no detach; the last epoch's weights go on:

    L_1 = Σ_n CE(z_n, y) + Σ_{n ≠ m} KD(n ← m)

Stage 2 (specialisation) freezes them. Each of two layers of t and of c gets a mask network (see ``masks.py``), trained
alone to pull the masked *teacher* to the student: ``f' = m(f) · f``, ``L_2 = KD(masked teacher ← s)``. The masks with
the smallest summed validation divergence stay: N = 4 specialised teachers.

Stage 3, here, goes on with the student of stage 1. A router of two linear maps (without nonlinearity) reads the
student's logits, ``c_b = softmax(g(z_b))``, and its top K of the N teachers teach example b:

    L_3 = CE(z, y) + w_kd · mean_b (1/K) Σ_{k ∈ topK(c_b)} T² KL( softmax(z_k/T) ‖ softmax(z_b/T) )
                   + w_b · (1/N) Σ_k u log(u / c̄_k),   u = 1/N, c̄ = mean_b c_b

``w_kd`` is halved after epoch 0 and after every ``h_kd·E`` epochs, ``w_b`` times 0.9 after epoch 0 and after every
``h_b·E`` (released code: after epochs 0, 30, 60, 90 and 0, 10, 20, … of E = 100). As in the released code the gates
multiply nothing, so the router learns from the balance term alone, whose gradient also reaches the student;
``router=weighted`` multiplies each teacher's term by its gate, ``router=random`` draws the K teachers.

Source: Li et al., "MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation", arXiv
2507.07015 (ACM MM 2025), and its released code (commit 093b2fe). The paper's full text was not at hand; where its code
is the source, this says "released".

``variant=official`` does what the released code does in stage 3: hooks pile up, so that a network's second specialised
teacher runs with both masks, though trained with one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.engine.losses import at_least_float32
from kdbench.engine.method import Method
from kdbench.engine.module import DistillationModule
from kdbench.engine.stages import Stage
from kdbench.engine.step import Shapes, Step
from kdbench.engine.teachers import FrozenTeacher, Teacher
from kdbench.errors import UsageError
from kdbench.families.vision_language.paired_classification import collaboration
from kdbench.families.vision_language.paired_classification.collaboration import TEACHERS, Plan
from kdbench.families.vision_language.paired_classification.masks import SpecialisedTeacher
from kdbench.families.vision_language.paired_classification.task import PairedTask


@dataclass(frozen=True)
class Hyperparameters:
    temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature T of every divergence (released: 4)."""
    initialisation: Annotated[float, Gt(0)] = 0.5
    """Epochs of stage 1 for each epoch of stage 3 (released: 1)."""
    specialisation: Annotated[float, Gt(0)] = 1 / 6
    """Epochs of stage 2 for each epoch of stage 3 (released: 1)."""
    collaborate: bool = True
    """Whether the networks of stage 1 teach each other; without, each learns from the labels alone, for as long."""
    specialise: bool = True
    """Whether there is a stage 2; without, the two networks of stage 1 are the teachers."""
    mask_layers: Literal[1, 2] = 2
    """Masked layers of each teacher (released: 2)."""
    mask_width: Annotated[int, Gt(2)] | None = 6
    """Largest token width h of a mask network; null for the released width, D / (2·3) rounded down, times 3."""
    mask_factor: Annotated[int, Gt(0)] = 2
    """Factor that divides the released width (released: 2)."""
    mask_heads: Annotated[int, Gt(0)] = 3
    """Attention heads of a mask network (released: 3)."""
    top: Annotated[int, Gt(0)] = 1
    """Teachers K of an example (released: 1)."""
    router: Literal["official", "random", "weighted"] = "official"
    """official: top K of the gates, which weigh nothing; random: K drawn evenly; weighted: each term times its gate."""
    kd_weight: Annotated[float, Ge(0)] = 1.0
    """w_kd at the start (released: 1)."""
    kd_halving: Annotated[float, Ge(0)] = 0.3
    """Share h_kd of the epochs between two halvings of w_kd; 0 for a constant one."""
    balance_weight: Annotated[float, Ge(0)] = 1.0
    """w_b at the start (released: 1)."""
    balance_decay: Annotated[float, Ge(0)] = 0.1
    """Share h_b of the epochs between two decays of w_b by 0.9; 0 for a constant one."""
    balance: Literal["kl", "cv"] = "kl"
    """kl: divergence of the mean gate from even use, divided by N; cv: deviation over mean of the summed gates."""
    variant: Literal["paper", "official"] = "paper"
    """paper: every specialised teacher has its own mask alone; official: masks pile up."""


def balance_loss(gates: Tensor, mode: str) -> Tensor:
    """How unevenly ``gates`` ``[b, N]`` use the teachers.

    kl: ``(1/N) Σ_k u log(u / c̄_k)``, u = 1/N, as released ("batchmean" on a vector of length N divides by N once more);
    cv: unbiased standard deviation over mean of ``Σ_b c_b``. Means are clamped at 1e-12.
    """
    if mode == "cv":
        total = gates.sum(dim=0)
        return total.std() / total.mean()
    mean = gates.mean(dim=0).clamp(min=1e-12)
    return F.kl_div(mean.log(), torch.full_like(mean, 1 / len(mean)), reduction="batchmean")


def divergences(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """``T² KL(teacher k ‖ student)`` example by example: ``[b, C]`` and ``[b, K, C]`` give ``[b, K]``."""
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=-1)[:, None]
    log_p = F.log_softmax(at_least_float32(teachers) / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def decays(epoch: int, share: float, epochs: int) -> int:
    """How many of the epochs 0, h·E, 2h·E, … lie before ``epoch``; 0 for a share h of 0."""
    every = max(round(share * epochs), 1)
    return -(-epoch // every) if share else 0


class MSTDistill(Method[PairedTask]):
    """Adds the terms ``kd`` and ``balance``; logs the share of examples that each specialised teacher got."""

    title = "mixture of specialised teachers across modalities"
    paper = "https://arxiv.org/abs/2507.07015"
    teacher = "several"
    controls = True
    options: Hyperparameters

    def stages(self, task: PairedTask) -> Sequence[Stage]:
        return collaboration.stages(task, self.plan(task))

    def plan(self, task: PairedTask) -> Plan:
        """Stages 1 and 2 for this task's budget."""
        options, budget = self.options, task.config.trainer.max_epochs
        first, second = (max(round(share * budget), 1) for share in (options.initialisation, options.specialisation))
        return Plan(
            (first, second if options.specialise else 0),
            options.collaborate,
            options.temperature,
            options.mask_layers,
            options.mask_width,
            options.mask_factor,
            options.mask_heads,
        )

    def student(self, task: PairedTask) -> nn.Module:
        return collaboration.load_networks(task)["student"]

    def specialised(self, task: PairedTask) -> dict[str, FrozenTeacher]:
        """The specialised teachers by ``<teacher>-<layer>``; without stage 2 the teachers by name."""
        networks = collaboration.load_networks(task)
        if not self.options.specialise:
            return {role: task.frozen(networks[role]) for role in TEACHERS}
        masks = collaboration.load_masks(task, self.plan(task), networks)
        made = {}
        for role in TEACHERS:
            mine = {name: mask for name, mask in masks.items() if name.startswith(f"{role}-")}
            for place, name in enumerate(mine):
                first = 0 if self.options.variant == "official" else place
                worn = {n.partition("-")[2]: mask for n, mask in list(mine.items())[first : place + 1]}
                made[name] = task.frozen(SpecialisedTeacher(networks[role], worn))
        return made

    def teachers(self, task: PairedTask) -> Mapping[str, Teacher]:
        made = self.specialised(task)
        if self.options.top > len(made):
            raise UsageError(f"method.top={self.options.top}, and there are {len(made)} specialised teachers.")
        return {name: task.wanted(teacher, number) for number, (name, teacher) in enumerate(made.items())}

    def teacher_facts(self, task: PairedTask, module: DistillationModule) -> dict[str, Any]:
        """Scores of the multimodal network of stage 1; by name the other networks' and every specialised teacher's."""
        networks = collaboration.load_networks(task)
        several = {role: task.frozen(networks[role].eval()) for role in networks}
        several |= self.specialised(task) if self.options.specialise else {}
        every = {name: task.scores(task.all_logits(teacher)) for name, teacher in several.items()}
        shown = every["multimodal"]
        for name, scores in every.items():
            for split in ("val", "test"):
                shown["metrics"][split][f"accuracy of {name}"] = scores["metrics"][split]["accuracy"]
        wanted = len(several) - len(networks) or len(TEACHERS)
        return {"kind": "several", "description": f"{wanted} specialised; scores of the multimodal one", **shown}

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        classes = shapes.teacher["logits"][-1]
        self.gate = nn.Sequential(nn.Linear(classes, 2 * classes), nn.Linear(2 * classes, self.ways))
        return {"gate": self.gate}

    @property
    def ways(self) -> int:
        """Number N of specialised teachers."""
        return len(TEACHERS) * (self.options.mask_layers if self.options.specialise else 1)

    def route(self, gates: Tensor) -> Tensor:
        """The K teachers of each example, int64 ``[b, K]``."""
        scores = torch.rand_like(gates) if self.options.router == "random" else gates
        return scores.topk(self.options.top, dim=-1).indices

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        logits = step.output["logits"]
        gates = self.gate(logits).softmax(dim=-1)
        chosen = self.route(gates)
        every = torch.stack([teacher(step.batch)["logits"] for teacher in step.teachers.values()], dim=1)
        taught = every.gather(1, chosen[..., None].expand(-1, -1, every.shape[-1]))
        terms = divergences(logits, taught, self.options.temperature)
        if self.options.router == "weighted":
            terms = terms * gates.gather(1, chosen)
        shares = F.one_hot(chosen, every.shape[1]).double().mean(dim=(0, 1))
        step.logs |= {f"share of {name}": share for name, share in zip(step.teachers, shares, strict=True)}
        return {"kd": terms.mean(), "balance": balance_loss(gates, self.options.balance)}

    def weights(self, step: Step) -> Mapping[str, float]:
        options, epochs = self.options, step.epochs
        return {
            "kd": options.kd_weight * 0.5 ** decays(step.epoch, options.kd_halving, epochs),
            "balance": options.balance_weight * 0.9 ** decays(step.epoch, options.balance_decay, epochs),
        }
