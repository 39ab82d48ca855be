"""MST-Distill against an independent float64 transcription of its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.distillation import assemble
from kdbench.engine.module import DistillationModule
from kdbench.engine.objective import Objective
from kdbench.engine.runner import Outcome, Session, Silent
from kdbench.engine.step import Shapes, Step
from kdbench.engine.teachers import CachedTeacher, FrozenTeacher
from kdbench.errors import UsageError
from kdbench.families.vision_language.paired_classification import collaboration
from kdbench.families.vision_language.paired_classification.collaboration import (
    Collaboration,
    Plan,
    Specialisation,
    mutual_terms,
)
from kdbench.families.vision_language.paired_classification.masks import Masked, SpecialisedTeacher
from kdbench.families.vision_language.paired_classification.methods.mst_distill import (
    Hyperparameters,
    MSTDistill,
    balance_loss,
    decays,
    divergences,
)
from kdbench.families.vision_language.paired_classification.task import PairedTask, logits_of

ROWS, CLASSES, TEACHERS, TEMPERATURE = 9, 5, 4, 4.0
RNG = np.random.default_rng(11)
NETWORKS = {role: 3 * RNG.normal(size=(ROWS, CLASSES)) for role in ("student", "cross_modal", "multimodal")}
SPECIALISED = 3 * RNG.normal(size=(TEACHERS, ROWS, CLASSES))
LABELS = RNG.integers(CLASSES, size=ROWS)
PLAN = Plan((1, 1), True, TEMPERATURE, 2, 6, 2, 3)


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kd(learner: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``T² KL(target ‖ learner)``, row by row."""
    p, q = softmax(target / TEMPERATURE), softmax(learner / TEMPERATURE)
    return TEMPERATURE**2 * (p * (np.log(p) - np.log(q))).sum(axis=-1)


def ce(z: np.ndarray) -> float:
    return float(-np.log(softmax(z)[np.arange(ROWS), LABELS]).mean())


def leaf(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy()).requires_grad_()


def lesson(task: PairedTask, student: Tensor, rows: Tensor | None = None) -> Step:
    """A step in which the student gave these logits."""
    batch, labels = torch.arange(ROWS), torch.from_numpy(LABELS)
    if rows is not None:
        batch, labels = rows, task.pairs.labels(rows)
    return Step(batch, labels, {"logits": student}, {}, {}, 0, 1, nn.Module())


def given(logits: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Stand-ins for networks, by role, that give these logits."""
    networks: dict[str, nn.Module] = {role: nn.Identity() for role in logits}
    by_network = {id(network): logits[role] for role, network in networks.items()}
    monkeypatch.setattr(collaboration, "logits_of", lambda pairs, network, rows: {"logits": by_network[id(network)]})
    return networks


# stage 1


@pytest.mark.parametrize("mutual", [True, False])
def test_stage_1_equals_the_card_and_detaches_nothing(
    small_task: Callable[..., PairedTask], monkeypatch: pytest.MonkeyPatch, mutual: bool
) -> None:
    task = small_task("method=mst_distill", f"method.collaborate={str(mutual).lower()}")
    plan = MSTDistill(task.config.hyperparameters).plan(task)
    logits = {role: leaf(values) for role, values in NETWORKS.items()}
    others = given({role: z for role, z in logits.items() if role != "student"}, monkeypatch)
    terms = Collaboration(task.pairs, others, plan).loss_terms(lesson(task, logits["student"]))  # type: ignore[arg-type]
    assert len(terms) == 2 + 6 * mutual
    task_term = nn.functional.cross_entropy(logits["student"], torch.from_numpy(LABELS))  # the module's own
    total = torch.stack([task_term, *terms.values()]).sum()
    total.backward()
    wanted = sum(ce(z) for z in NETWORKS.values())
    if mutual:
        wanted += sum(kd(NETWORKS[n], NETWORKS[m]).mean() for n, m in permutations(NETWORKS, 2))
    assert total.item() == pytest.approx(wanted, rel=1e-12)

    onehot, t = np.eye(CLASSES)[LABELS], TEMPERATURE
    for n, z in NETWORKS.items():
        grad, q = softmax(z) - onehot, softmax(z / t)
        for m in NETWORKS.keys() - {n} if mutual else ():
            p = softmax(NETWORKS[m] / t)
            grad = grad + t * (q - p)  # as learner
            gap = np.log(q) - np.log(p)
            grad = grad + t * q * (gap - (q * gap).sum(axis=1, keepdims=True))  # as target of m
        found = logits[n].grad
        assert found is not None
        np.testing.assert_allclose(found.numpy(), grad / ROWS, rtol=0, atol=1e-10)


def test_six_ordered_pairs() -> None:
    terms = mutual_terms({role: torch.from_numpy(z) for role, z in NETWORKS.items()}, TEMPERATURE)
    assert len(terms) == 6 and len({round(float(value), 9) for value in terms.values()}) == 6
    assert terms["kd of student from multimodal"].item() == pytest.approx(
        kd(NETWORKS["student"], NETWORKS["multimodal"]).mean(), rel=1e-12
    )


def assembled(task: PairedTask, objective: Objective, student: nn.Module) -> DistillationModule:
    module = task.module(student)
    assemble(module, objective, {}, task.example(), 0)
    return module


def test_one_optimiser_trains_all_three_from_the_arms_common_student(small_task: Callable[..., PairedTask]) -> None:
    task = small_task("method=mst_distill", "seed=3")
    others = collaboration.other_networks(task)
    module = assembled(task, Collaboration(task.pairs, others, PLAN), task.student())
    (group,) = module.configure_optimizers().param_groups
    every = [module.student, *others.values()]
    assert {id(p) for p in group["params"]} == {id(p) for network in every for p in network.parameters()}


# stage 2


@pytest.fixture
def specialisation(small_task: Callable[..., PairedTask]) -> tuple[PairedTask, dict[str, Any], Specialisation]:
    task = small_task("method=mst_distill")
    networks: dict[str, Any] = {"student": task.student(), **collaboration.other_networks(task)}
    masks = collaboration.fresh_masks(task, PLAN, networks)
    return task, networks, Specialisation(task.pairs, networks, masks, PLAN)


def test_stage_2_pulls_each_masked_teacher_to_the_student(specialisation: Any) -> None:
    task, networks, objective = specialisation
    rows = task.example()
    for network in [networks["student"], *objective.masks.values()]:
        network.eval()
    logits = logits_of(task.pairs, networks["student"], rows)["logits"]
    terms = objective.loss_terms(lesson(task, logits, rows))
    assert list(terms) == ["multimodal-concat", "multimodal-fc1", "cross_modal-conv2", "cross_modal-conv3"]
    for name, term in terms.items():
        role, _, path = name.partition("-")
        with Masked(networks[role], {path: objective.masks[name]}):
            masked = logits_of(task.pairs, networks[role], rows)["logits"].detach().double().numpy()
        assert term.item() == pytest.approx(kd(masked, logits.detach().double().numpy()).mean(), rel=1e-4, abs=1e-6)


def test_stage_2_in_float64_and_its_gradient(
    small_task: Callable[..., PairedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, masked, student = small_task("method=mst_distill"), leaf(SPECIALISED[0]), leaf(NETWORKS["student"])
    networks: Any = given(dict.fromkeys(("multimodal", "cross_modal"), masked), monkeypatch)
    networks["multimodal"].fc1 = nn.Identity()
    objective = Specialisation(task.pairs, networks, {"multimodal-fc1": nn.Identity()}, PLAN)
    (term,) = objective.loss_terms(lesson(task, student)).values()
    term.backward()
    assert term.item() == pytest.approx(kd(SPECIALISED[0], NETWORKS["student"]).mean(), rel=1e-12)
    p, q = softmax(NETWORKS["student"] / TEMPERATURE), softmax(SPECIALISED[0] / TEMPERATURE)
    assert student.grad is None and masked.grad is not None
    np.testing.assert_allclose(masked.grad.numpy(), TEMPERATURE * (q - p) / ROWS, rtol=0, atol=1e-12)


def test_stage_2_trains_masks_alone_each_by_its_own_term(specialisation: Any) -> None:
    task, networks, objective = specialisation
    module = assembled(task, objective, networks["student"])
    module.train()
    assert not any(child.training for network in networks.values() for child in network.modules())
    (group,) = module.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for mask in objective.masks.values() for p in mask.parameters()}
    rows = task.example()
    terms = objective.loss_terms(lesson(task, module.forward_batch(rows)["logits"], rows))
    for name, term in terms.items():
        module.zero_grad()
        term.backward(retain_graph=True)
        moved = {n.partition(".")[0] for n, p in module.networks.named_parameters() if p.grad is not None}
        assert moved == {name}
    assert all(p.grad is None for network in networks.values() for p in network.parameters())


def test_no_hook_stays_after_the_stages_and_a_step(small_task: Callable[..., PairedTask], tmp_path: Path) -> None:
    task = small_task("method=mst_distill", "trainer.max_epochs=2", "teacher.cache=false")
    method = MSTDistill(task.config.hyperparameters)
    for stage in method.stages(task):
        task.store.ensure(stage)
    teachers = method.teachers(task)
    assert list(teachers) == ["multimodal-concat", "multimodal-fc1", "cross_modal-conv2", "cross_modal-conv3"]
    for teacher in teachers.values():
        assert isinstance(teacher, FrozenTeacher)
        assert isinstance(teacher.network, SpecialisedTeacher)
        assert teacher(task.example())["logits"].shape == (16, 4)
        assert not any(module._forward_hooks for module in teacher.network.modules())
    assert [[*teacher.network.paths] for teacher in teachers.values()] == [["concat"], ["fc1"], ["conv2"], ["conv3"]]  # type: ignore[attr-defined]


def test_official_teachers_wear_both_masks_and_paper_ones_their_own(small_task: Callable[..., PairedTask]) -> None:
    outputs: dict[str, dict[str, Tensor]] = {}
    for variant in ("paper", "official"):
        task = small_task("method=mst_distill", "trainer.max_epochs=2", f"method.variant={variant}")
        method = MSTDistill(task.config.hyperparameters)
        for stage in method.stages(task):
            task.store.ensure(stage)
        made = method.specialised(task)
        outputs[variant] = {name: teacher(task.example())["logits"] for name, teacher in made.items()}
        worn = {name: teacher.network.paths for name, teacher in made.items()}
    assert worn == {
        "multimodal-concat": ("concat",),
        "multimodal-fc1": ("concat", "fc1"),
        "cross_modal-conv2": ("conv2",),
        "cross_modal-conv3": ("conv2", "conv3"),
    }
    same = {name: torch.equal(outputs["paper"][name], outputs["official"][name]) for name in worn}
    assert same == {name: place % 2 == 0 for place, name in enumerate(worn)}  # the first of each is not affected


# stage 3


class Example:
    """One step of stage 3 on random float64 tensors."""

    def __init__(self, **options: Any) -> None:
        self.method = MSTDistill(Hyperparameters(**options))
        self.logits = leaf(NETWORKS["student"])
        shapes = Shapes({}, {"logits": (CLASSES,)})
        torch.manual_seed(8)
        self.gate = self.method.modules(shapes)["gate"].double()
        teachers = {f"t{k}": (lambda batch, k=k: {"logits": torch.from_numpy(SPECIALISED[k])}) for k in range(TEACHERS)}
        rows = torch.arange(ROWS)
        labels = torch.from_numpy(LABELS)
        self.step = Step(rows, labels, {"logits": self.logits}, {}, teachers, 0, 100, nn.Module())  # type: ignore[arg-type]

    def gates(self) -> np.ndarray:
        (a, b), (c, d) = ([p.detach().numpy() for p in (layer.weight, layer.bias)] for layer in self.gate.children())
        return softmax((NETWORKS["student"] @ a.T + b) @ c.T + d)


@pytest.mark.parametrize("top", [1, 2, 4])
@pytest.mark.parametrize("router", ["official", "weighted"])
def test_stage_3_equals_the_card(top: int, router: str) -> None:
    example = Example(top=top, router=router)
    terms = example.method.loss_terms(example.step)
    gates = example.gates()
    total = 0.0
    for b in range(ROWS):
        for k in np.argsort(-gates[b])[:top]:
            one = kd(NETWORKS["student"][b], SPECIALISED[k, b])
            total += one * (gates[b, k] if router == "weighted" else 1) / top
    mean, u = gates.mean(axis=0), 1 / TEACHERS
    assert terms["kd"].item() == pytest.approx(total / ROWS, rel=1e-12)
    assert terms["balance"].item() == pytest.approx((u * np.log(u / mean)).sum() / TEACHERS, rel=1e-12)
    shares = [float(share) for name, share in example.step.logs.items() if name.startswith("share")]
    assert sum(shares) == pytest.approx(1) and len(shares) == TEACHERS


def test_terms_are_row_by_row_the_shared_divergence() -> None:
    from kdbench.engine.losses import distillation_kl

    student, teacher = torch.from_numpy(NETWORKS["student"]), torch.from_numpy(SPECIALISED[1])
    rows = divergences(student, teacher[:, None], TEMPERATURE)
    assert rows.shape == (ROWS, 1)
    assert rows.mean().item() == pytest.approx(distillation_kl(student, teacher, TEMPERATURE).item(), rel=1e-12)
    assert rows[3, 0].item() == pytest.approx(kd(NETWORKS["student"][3], SPECIALISED[1, 3]), rel=1e-12)


def test_only_the_weighted_router_learns_from_distillation() -> None:
    for router, learns in (("official", False), ("random", False), ("weighted", True)):
        example = Example(router=router)
        kd_term = example.method.loss_terms(example.step)["kd"]
        grads = torch.autograd.grad(kd_term, list(example.gate.parameters()), allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads) == learns, router


def test_the_balance_term_reaches_the_router_and_the_student() -> None:
    example = Example()
    balance = example.method.loss_terms(example.step)["balance"]
    grads = torch.autograd.grad(balance, [example.logits, *example.gate.parameters()])
    assert all(g.abs().sum() > 0 for g in grads)


def test_the_random_router_draws_different_teachers_evenly() -> None:
    method = MSTDistill(Hyperparameters(router="random", top=2))
    torch.manual_seed(0)
    chosen = method.route(torch.tensor([0.97, 0.01, 0.01, 0.01]).expand(4000, 4))
    assert (chosen[:, 0] != chosen[:, 1]).all()
    torch.testing.assert_close(chosen.flatten().bincount() / 8000, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_balance_modes() -> None:
    gates = torch.from_numpy(softmax(RNG.normal(size=(ROWS, TEACHERS))))
    total = gates.sum(dim=0).numpy()
    assert balance_loss(gates, "cv").item() == pytest.approx(total.std(ddof=1) / total.mean(), rel=1e-12)
    assert balance_loss(torch.full((3, 4), 0.25), "kl").item() == pytest.approx(0, abs=1e-7)
    assert torch.isfinite(balance_loss(torch.tensor([[1.0, 0.0]]), "kl"))


def test_schedules_of_the_released_code() -> None:
    method, example = MSTDistill(Hyperparameters()), Example()
    told = []
    for epoch in range(100):
        example.step.epoch = epoch
        told.append(method.weights(example.step))
    kd_halvings = [sum(epoch > end for end in (0, 30, 60, 90)) for epoch in range(100)]
    lb_decays = [sum(epoch > end for end in range(0, 100, 10)) for epoch in range(100)]
    assert [weights["kd"] for weights in told] == [0.5**n for n in kd_halvings]
    assert [weights["balance"] for weights in told] == pytest.approx([0.9**n for n in lb_decays])
    assert told[0] == {"kd": 1.0, "balance": 1.0} and told[1]["kd"] == 0.5
    assert "task" not in told[0], "the label's weight stays 1"


def test_schedules_scale_with_the_epochs() -> None:
    assert [decays(epoch, 0.3, 10) for epoch in range(10)] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {decays(epoch, 0, 10) for epoch in range(10)} == {0}


def test_more_teachers_than_there_are_is_an_error(small_task: Callable[..., PairedTask]) -> None:
    task = small_task("method=mst_distill", "trainer.max_epochs=1", "method.specialise=false", "method.top=3")
    method = MSTDistill(task.config.hyperparameters)
    for stage in method.stages(task):
        task.store.ensure(stage)
    with pytest.raises(UsageError, match=r"method\.top=3, and there are 2"):
        method.teachers(task)


# whole runs

SHORT = [
    "data.pairs=40",
    "data.validation_pairs=24",
    "data.batch_size=16",
    "student.channels=2",
    "trainer.max_epochs=3",
]


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_both_directions(do: Callable[..., Any], modality: str) -> None:
    outcome = do("task=paired_classification", "method=mst_distill", f"student.modality={modality}", *SHORT)
    record = outcome.record
    layers = {"image": ("conv2", "conv3"), "audio": ("conv3", "fc1")}[modality]
    names = {"multimodal-concat", "multimodal-fc1", *(f"cross_modal-{layer}" for layer in layers)}
    assert {n.removeprefix("train/share of ") for n in record.curves if "share of" in n} == names
    assert {f"accuracy of {name}" for name in ("student", "cross_modal", "multimodal", *names)} <= set(
        record.teacher.metrics.test
    )
    assert [stage.name for stage in record.stages] == ["mst-initialisation", "mst-specialisation"]
    first, second = (record.reports[stage.name] for stage in record.stages)
    assert first.values["epoch"] == first.curves["epoch"][-1] and "train/kd of student from multimodal" in first.curves
    assert second.values["val/loss"] == min(second.curves["val/loss"])


@pytest.mark.parametrize(
    ("options", "stages", "ways"),
    [
        (["method.specialise=false"], ["mst-initialisation"], 2),
        (["method.collaborate=false"], ["mst-initialisation", "mst-specialisation"], 4),
        (["method.mask_layers=1"], ["mst-initialisation", "mst-specialisation"], 2),
        (["method.router=weighted", "method.top=3"], ["mst-initialisation", "mst-specialisation"], 4),
        (["method.router=random"], ["mst-initialisation", "mst-specialisation"], 4),
        (["method.variant=official"], ["mst-initialisation", "mst-specialisation"], 4),
    ],
)
def test_every_option_runs(do: Callable[..., Any], options: list[str], stages: list[str], ways: int) -> None:
    record = do("task=paired_classification", "method=mst_distill", *SHORT, *options).record
    assert [stage.name for stage in record.stages] == stages
    assert len([name for name in record.curves if "share of" in name]) == ways


def test_the_cache_changes_nothing(do: Callable[..., Any]) -> None:
    one, two = (
        do("task=paired_classification", "method=mst_distill", f"teacher.cache={cache}", *SHORT).record
        for cache in ("true", "false")
    )
    assert one.curves == two.curves and one.predictions == two.predictions


def test_the_student_goes_on_from_stage_1(small_task: Callable[..., PairedTask], tmp_path: Path) -> None:
    task = small_task("method=mst_distill", "trainer.max_epochs=2")
    session = Session(task.config, tmp_path, tmp_path, Silent())
    for stage in session.stages():
        session.store.ensure(stage)
    module, teachers = session.assemble()
    networks = collaboration.load_networks(session.task)  # type: ignore[arg-type]
    left: Mapping[str, Tensor] = networks["student"].state_dict()
    fresh = task.student().state_dict()
    assert all(torch.equal(value, left[name]) for name, value in module.student.state_dict().items())
    assert not all(torch.equal(value, fresh[name]) for name, value in left.items())
    assert all(isinstance(teacher, CachedTeacher) for teacher in teachers.values())


class Stop(BaseException):
    """Stands for a kill."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_a_killed_stage_goes_on_to_the_same_bits(
    small_task: Callable[..., PairedTask], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: int
) -> None:
    from kdbench.engine.stages import StageStore

    words = ["trainer.max_epochs=6", "method.specialisation=0.5", "trainer.checkpoint_every_n_epochs=1"]
    task = small_task("method=mst_distill", *words)
    plans = MSTDistill(task.config.hyperparameters).stages(task)
    whole = [task.store.ensure(plan) for plan in plans][stage]

    task.store = StageStore(tmp_path / "again")
    if stage:
        task.store.ensure(plans[0])
    kind = (Collaboration, Specialisation)[stage]
    terms = kind.loss_terms

    def killed(self: Any, step: Step) -> Mapping[str, Tensor]:
        if step.epoch == 2:
            raise Stop
        return terms(self, step)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(kind, "loss_terms", killed)
        task.store.ensure(plans[stage])
    again = task.store.ensure(plans[stage])
    assert not whole.reused and not again.reused and again.folder != whole.folder
    for name in ("weights.safetensors", "networks.safetensors"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    reports = [{k: v for k, v in result.info.items() if k != "train_seconds"} for result in (whole, again)]
    assert reports[0] == reports[1] and reports[0]["curves"]["epoch"] == list(range((3, 3)[stage]))


@pytest.mark.parametrize("control", ["shuffled_teacher", "random_teacher"])
def test_controls_take_the_place_of_every_specialised_teacher(control: str, do: Callable[..., Outcome]) -> None:
    words = ["task=paired_classification", "method=mst_distill", "trainer.max_epochs=2"]
    real, stood_in = (do(*words, f"control={one}").record for one in ("none", control))
    assert stood_in.curves["train/kd"] != real.curves["train/kd"]
    assert real.teacher is not None and stood_in.teacher is not None
    assert stood_in.teacher.metrics == real.teacher.metrics, "the teachers that are replaced are the same"
    assert all(stage.reused for stage in stood_in.stages)
