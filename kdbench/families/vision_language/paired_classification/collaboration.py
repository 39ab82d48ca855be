"""Stages 1 and 2 of MST-Distill, each one Lightning fit: networks that teach each other, then masks on frozen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.engine.callbacks import Selection
from kdbench.engine.fitting import fit
from kdbench.engine.losses import distillation_kl
from kdbench.engine.method import Method
from kdbench.engine.seeds import axis, seeded
from kdbench.engine.stages import Stage, StageResult
from kdbench.engine.teachers import Outputs
from kdbench.families.vision_language.paired_classification.data import Pairs
from kdbench.families.vision_language.paired_classification.masks import Masked, mask_networks
from kdbench.families.vision_language.paired_classification.networks import PairNetwork
from kdbench.families.vision_language.paired_classification.task import PairedClassification, PairedTask, logits_of
from kdbench.plan.config import RunConfig
from kdbench.plan.options import plain

TEACHERS = ("multimodal", "cross_modal")
INITIALISED, SPECIALISED = "mst-initialisation", "mst-specialisation"


@dataclass(frozen=True)
class Plan:
    """What both stages are told."""

    epochs: tuple[int, int]
    """Of stage 1 and stage 2; 0 epochs leave stage 2 out."""
    mutual: bool
    """Whether the networks of stage 1 teach each other, or learn from the labels alone."""
    temperature: float
    layers: int
    width: int | None
    factor: int
    heads: int


def three_networks(task: PairedTask) -> dict[str, PairNetwork]:
    """Fresh networks by role, each from a stream of its own; the student's is that of every arm."""
    seed, made = task.config.seed, {}
    for role, stream in (("student", "student"), ("cross_modal", "teacher"), ("multimodal", "method")):
        with seeded(axis(seed, stream)):
            made[role] = getattr(task, role)()
    return made


class Collaboration(PairedClassification):
    """Stage 1: ``L = Σ_n CE(z_n, y) + Σ_{n ≠ m} T² KL( softmax(z_m/T) ‖ softmax(z_n/T) )``, nothing detached.

    All six ordered pairs of the three networks; gradients flow into the learner n and into its target m.
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: RunConfig, pairs: Pairs, plan: Plan) -> None:
        super().__init__(nn.ModuleDict(networks), config, pairs)
        self.plan = plan
        self._hits: dict[str, list[Tensor]] = {}

    def forward_batch(self, batch: Tensor) -> Outputs:
        return {
            role: logits_of(self.pairs, network, batch)["logits"] for role, network in self.student.named_children()
        }

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        terms = {f"task of {role}": F.cross_entropy(logits, targets) for role, logits in output.items()}
        return terms | (mutual_terms(output, self.plan.temperature) if self.plan.mutual else {})

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        for role, logits in output.items():
            self._hits.setdefault(role, []).append(logits.argmax(dim=-1) == targets)

    def results(self, split: str) -> dict[str, float]:
        found = {role: float(torch.cat(hits).float().mean()) for role, hits in self._hits.items()}
        self._hits = {}
        return found


def mutual_terms(logits: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """``kd of n from m``: ``T² · KL(m ‖ n)`` for every ordered pair of roles, with gradients on both sides."""
    return {
        f"kd of {learner} from {target}": distillation_kl(logits[learner], logits[target], temperature)
        for learner, target in permutations(logits, 2)
    }


class Specialisation(PairedClassification):
    """Stage 2: for each teacher and layer, ``L = T² KL( softmax(z_S/T) ‖ softmax(z_masked/T) )``, z_S detached.

    Only the masks train, each through its own term, so that one Adam over all of them is one Adam for each. The frozen
    networks are no submodules: nothing switches them to train mode.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Module],
        networks: Mapping[str, nn.Module],
        config: RunConfig,
        pairs: Pairs,
        plan: Plan,
    ) -> None:
        super().__init__(nn.ModuleDict(trained), config, pairs)
        self.plan = plan
        self._networks = [(role, network.eval().requires_grad_(False)) for role, network in networks.items()]
        self._seen: list[tuple[float, int]] = []

    def forward_batch(self, batch: Tensor) -> Outputs:
        networks = {role: network.to(batch.device) for role, network in self._networks}
        outputs = {"student": logits_of(self.pairs, networks["student"], batch)["logits"].detach()}
        for name, mask in self.student.named_children():
            role, _, path = name.partition("-")
            with Masked(networks[role], {path: mask}):
                outputs[name] = logits_of(self.pairs, networks[role], batch)["logits"]
        return outputs

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        student = output["student"].detach()
        return {
            name: distillation_kl(logits, student, self.plan.temperature)
            for name, logits in output.items()
            if name != "student"
        }

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        total = torch.stack(list(self.task_terms(output, targets).values())).sum()
        self._seen.append((float(total), len(targets)))

    def results(self, split: str) -> dict[str, float]:
        seen, self._seen = self._seen, []
        return {"kl": sum(total * size for total, size in seen) / sum(size for _, size in seen)}


def stages(task: PairedTask, plan: Plan) -> Sequence[Stage]:
    """``mst-initialisation``, and ``mst-specialisation`` unless it has no epochs.

    They depend on the run's seed, since the student is one of those that learn. A killed fit goes on from its last
    checkpoint.
    """
    config = task.config
    optimizer, trainer = plain(config.optimizer), plain(config.trainer)
    told = {**task.inputs, "optimizer": optimizer, "precision": trainer["precision"], "seed": config.seed}
    told |= {"accumulate": trainer["accumulate_grad_batches"], "clip": trainer["gradient_clip_val"]}
    first = {**told, "epochs": plan.epochs[0], "mutual": plan.mutual, "temperature": plan.temperature}
    second = {**told, "plan": plain(plan)}
    plans = [Stage(INITIALISED, first, lambda folder, _: initialise(task, plan, folder))]
    if plan.epochs[1]:

        def run(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
            return specialise(task, plan, upstream[INITIALISED].folder, folder)

        plans.append(Stage(SPECIALISED, second, run, needs=(INITIALISED,)))
    return plans


def initialise(task: PairedTask, plan: Plan, folder: Path) -> dict[str, float]:
    """Stage 1: the networks after the last epoch (``weights.safetensors``), and each one's validation accuracy."""
    module = Collaboration(three_networks(task), task.config, task.pairs, plan)
    _fit(task, module, plan.epochs[0], folder, [], validate_every=plan.epochs[0])
    weights = {name: value.detach().cpu().contiguous() for name, value in module.student.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    return {f"val/accuracy of {role}": value for role, value in task.score(module.to("cpu"), "val").items()}


def specialise(task: PairedTask, plan: Plan, networks: Path, folder: Path) -> dict[str, float]:
    """Stage 2: the masks of the epoch with the smallest summed validation divergence (``weights.safetensors``)."""
    trained = load_networks(task, networks)
    module = Specialisation(fresh_masks(task, plan, trained), trained, task.config, task.pairs, plan)
    module.headline, selection = "kl", Selection("kl", mode="min")
    _fit(task, module, plan.epochs[1], folder, [selection])
    save_file(selection.weights, folder / "weights.safetensors")
    return {"epoch": selection.epoch, "val/kl": selection.value}


def _fit(
    task: PairedTask,
    module: PairedClassification,
    epochs: int,
    folder: Path,
    callbacks: list[Any],
    validate_every: int = 1,
) -> None:
    module.attach(Method(None), {}, {})
    trainer = replace(task.config.trainer.in_one_process(), check_val_every_n_epoch=validate_every)
    fit(module, task.data(), trainer, epochs, task.config.seed, folder, callbacks)
    (folder / "last.ckpt").unlink(missing_ok=True)


def fresh_masks(task: PairedTask, plan: Plan, networks: Mapping[str, PairNetwork]) -> dict[str, nn.Module]:
    """New masks by ``<teacher>-<layer>``."""
    made: dict[str, nn.Module] = {}
    with seeded(axis(task.config.seed, "method", 2)):
        for role in TEACHERS:
            inputs = task.pairs.inputs(networks[role], task.example()[:2])
            of = mask_networks(networks[role].eval(), inputs, plan.layers, plan.width, plan.factor, plan.heads)
            made |= {f"{role}-{path}": mask for path, mask in of.items()}
    return made


def load_networks(task: PairedTask, folder: Path) -> dict[str, PairNetwork]:
    """The three networks that stage 1 left, by role."""
    networks = three_networks(task)
    nn.ModuleDict(networks).load_state_dict(load_file(folder / "weights.safetensors"))
    return networks


def load_masks(task: PairedTask, plan: Plan, networks: Mapping[str, PairNetwork], folder: Path) -> dict[str, nn.Module]:
    """The masks that stage 2 left, by ``<teacher>-<layer>``."""
    made = fresh_masks(task, plan, networks)
    nn.ModuleDict(made).load_state_dict(load_file(folder / "weights.safetensors"))
    return made
