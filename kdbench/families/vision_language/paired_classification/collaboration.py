"""Stages 1 and 2 of MST-Distill as objectives: networks that teach each other, then masks on frozen ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.engine.losses import distillation_kl
from kdbench.engine.objective import Objective
from kdbench.engine.seeds import axis, seeded
from kdbench.engine.stages import Stage
from kdbench.engine.step import Shapes, Step
from kdbench.errors import UsageError
from kdbench.families.vision_language.paired_classification.data import Pairs
from kdbench.families.vision_language.paired_classification.masks import Masked, mask_networks
from kdbench.families.vision_language.paired_classification.networks import PairNetwork
from kdbench.families.vision_language.paired_classification.task import PairedTask, logits_of
from kdbench.plan.options import plain
from kdbench.plan.own import module_of, modules

TEACHERS = ("multimodal", "cross_modal")
INITIALISED, SPECIALISED = "mst-initialisation", "mst-specialisation"


@dataclass(frozen=True)
class Plan:
    """What both stages depend on."""

    epochs: tuple[int, int]
    """Of stage 1 and stage 2; 0 epochs leave stage 2 out."""
    mutual: bool
    """Whether the networks of stage 1 teach each other, or learn from the labels alone."""
    temperature: float
    layers: int
    width: int | None
    factor: int
    heads: int


class Collaboration(Objective):
    """Stage 1: ``L = Σ_n CE(z_n, y) + Σ_{n ≠ m} T² KL( softmax(z_m/T) ‖ softmax(z_n/T) )``, nothing detached.

    All six ordered pairs of the student and the two ``networks`` trained beside it; gradients flow into the learner n
    and into its target m.
    """

    def __init__(self, pairs: Pairs, networks: Mapping[str, PairNetwork], plan: Plan) -> None:
        self.pairs, self.networks, self.plan = pairs, networks, plan

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        return self.networks

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        others = {role: logits_of(self.pairs, network, step.batch)["logits"] for role, network in self.networks.items()}
        terms = {f"task of {role}": F.cross_entropy(logits, step.targets) for role, logits in others.items()}
        logits = {"student": step.output["logits"], **others}
        return terms | (mutual_terms(logits, self.plan.temperature) if self.plan.mutual else {})


def mutual_terms(logits: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """``kd of n from m``: ``T² · KL(m ‖ n)`` for every ordered pair of roles, with gradients on both sides."""
    return {
        f"kd of {learner} from {target}": distillation_kl(logits[learner], logits[target], temperature)
        for learner, target in permutations(logits, 2)
    }


class Specialisation(Objective):
    """Stage 2: for each teacher and layer, ``L = T² KL( softmax(z_S/T) ‖ softmax(z_masked/T) )``, z_S detached.

    Only the masks train, each through its own term, so that one Adam over all of them is one Adam for each. The
    teachers' frozen ``networks`` are no submodules: nothing switches them to train mode.
    """

    supervised = False
    judged_by = "loss"

    def __init__(
        self, pairs: Pairs, networks: Mapping[str, PairNetwork], masks: Mapping[str, nn.Module], plan: Plan
    ) -> None:
        self.pairs, self.masks, self.plan = pairs, masks, plan
        self.networks = {role: networks[role].eval().requires_grad_(False) for role in TEACHERS}

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        return self.masks

    def frozen(self, student: nn.Module) -> Iterable[nn.Module]:
        return [student]

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        wanted, terms = step.output["logits"].detach(), {}
        for name, mask in self.masks.items():
            role, _, path = name.partition("-")
            with Masked(self.networks[role].to(wanted.device), {path: mask}):
                masked = logits_of(self.pairs, self.networks[role], step.batch)["logits"]
            terms[name] = distillation_kl(masked, wanted, self.plan.temperature)
        return terms


def stages(task: PairedTask, plan: Plan) -> Sequence[Stage]:
    """``mst-initialisation``, and ``mst-specialisation`` unless it has no epochs.

    They depend on the run's seed, since the student is one of those that learn. The first leaves the weights of its
    last epoch, the second the masks of the epoch with the smallest summed validation divergence.
    """
    seed, code = task.config.seed, modules(task.config.student, task.config.teacher)
    if plan.epochs[1]:
        _check_masked(task, plan)

    def masks() -> Specialisation:
        networks = load_networks(task)
        return Specialisation(task.pairs, networks, fresh_masks(task, plan, networks), plan)

    first = {**task.inputs, "mutual": plan.mutual, "temperature": plan.temperature}
    plans = [
        task.distilled(
            INITIALISED,
            task.student,
            lambda: Collaboration(task.pairs, other_networks(task), plan),
            first,
            plan.epochs[0],
            seed,
            last=True,
            code=code,
        )
    ]
    if plan.epochs[1]:
        second = {**task.inputs, "plan": plain(plan)}
        plans.append(
            task.distilled(
                SPECIALISED,
                lambda: load_networks(task)["student"],
                masks,
                second,
                plan.epochs[1],
                seed,
                last=False,
                needs=(INITIALISED,),
                code=code,
            )
        )
    return plans


def _check_masked(task: PairedTask, plan: Plan) -> None:
    """Raise where teachers of the user's own do not name the layers to mask."""
    name = task.config.teacher.name
    if not module_of(name):
        return
    paths = getattr(task.multimodal(), "masked", ())
    if len(paths) < plan.layers:
        raise UsageError(f"teacher.name={name}: its attribute 'masked' names {len(paths)} layers, not {plan.layers}.")


def other_networks(task: PairedTask) -> dict[str, PairNetwork]:
    """Fresh networks that the student learns with, by role, each from a stream of its own."""
    made: dict[str, PairNetwork] = {}
    for role, stream in (("cross_modal", "teacher"), ("multimodal", "method")):
        with seeded(axis(task.config.seed, stream)):
            made[role] = getattr(task, role)()
    return made


def fresh_masks(task: PairedTask, plan: Plan, networks: Mapping[str, PairNetwork]) -> dict[str, nn.Module]:
    """New masks by ``<teacher>-<layer>``."""
    made: dict[str, nn.Module] = {}
    with seeded(axis(task.config.seed, "method", 2)):
        for role in TEACHERS:
            inputs = task.pairs.inputs(networks[role], task.example()[:2])
            of = mask_networks(networks[role].eval(), inputs, plan.layers, plan.width, plan.factor, plan.heads)
            made |= {f"{role}-{path}": mask for path, mask in of.items()}
    return made


def load_networks(task: PairedTask) -> dict[str, PairNetwork]:
    """The three networks that stage 1 left, by role."""
    folder, student, others = task.folder(INITIALISED), task.student(), other_networks(task)
    student.load_state_dict(load_file(folder / "weights.safetensors"))
    nn.ModuleDict(others).load_state_dict(load_file(folder / "networks.safetensors"))
    return {"student": student, **others}


def load_masks(task: PairedTask, plan: Plan, networks: Mapping[str, PairNetwork]) -> dict[str, nn.Module]:
    """The masks that stage 2 left, by ``<teacher>-<layer>``."""
    made = fresh_masks(task, plan, networks)
    nn.ModuleDict(made).load_state_dict(load_file(task.folder(SPECIALISED) / "networks.safetensors"))
    return made
