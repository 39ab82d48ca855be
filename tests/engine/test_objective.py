"""What an objective may ask of a fit: its own inputs, frozen parts, parameter groups, the loss as its judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.callbacks import Selection
from kdbench.engine.classification import Classification, number_loaders
from kdbench.engine.distillation import assemble, distil
from kdbench.engine.objective import Objective, decay_groups
from kdbench.engine.step import Shapes, Step
from kdbench.engine.teachers import FrozenTeacher, Teacher
from kdbench.errors import KdbenchError
from kdbench.plan.options import Optimizer, Trainer

X = torch.arange(60.0).reshape(12, 5).cos()
Y = torch.arange(12) % 3


class Points(Classification):
    """Twelve points of three classes; a batch is their numbers."""

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        super().__init__(student, optimizer or Optimizer(schedule="constant"), 3)

    def forward_batch(self, batch: Tensor) -> dict[str, Tensor]:
        return {"logits": self.student(X[batch])}

    def targets(self, batch: Tensor) -> Tensor:
        return Y[batch]


def train(
    folder: Path, objective: Objective, selection: Selection, optimizer: Optimizer | None = None, epochs: int = 3
) -> tuple[Points, dict[str, list[float]]]:
    module, network = Points(optimizer), nn.Linear(5, 3)
    teacher = FrozenTeacher(network, lambda network, batch: {"logits": network(X[batch])})
    assemble(module, objective, {"teacher": teacher}, torch.arange(4), 0)
    data = number_loaders(lambda split: torch.arange(12), 4, seed=0, evaluated=5)
    curves, _ = distil(module, data, selection, Trainer(accelerator="cpu"), epochs, 0, folder)
    return module, curves.values


class Pretext(Objective):
    """Pulls a projection of the student's hidden state to the teacher; no label is looked at."""

    supervised = False
    judged_by = "loss"

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        return {"hidden": "2"}

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        self.projection = nn.Linear(shapes.student["hidden"][0], shapes.teacher["logits"][0])
        return {"projection": self.projection}

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return {"pull": (self.projection(step.features["hidden"]) - step.teacher["logits"]).square().mean()}


def test_a_pretext_is_judged_by_its_loss_and_keeps_its_networks(tmp_path: Path) -> None:
    selection = Selection("loss", "min", wanted=True)
    module, curves = train(tmp_path, Pretext(), selection)
    assert curves["val/loss"] == sorted(curves["val/loss"], reverse=True), "it learns"
    assert selection.value == min(curves["val/loss"]) and "train/task" not in curves and "val/accuracy" not in curves
    assert selection.networks.keys() == {"projection.weight", "projection.bias"}
    module.eval()
    with torch.no_grad():
        total, _, _, _ = module._loss(torch.arange(12))
    assert selection.value == pytest.approx(float(total), rel=1e-6), "the mean over rows, however they are batched"


def test_the_objectives_networks_have_a_stream_of_their_own() -> None:
    weights = []
    for seed in (3, 3, 4):
        objective, module = Pretext(), Points()
        teacher = FrozenTeacher(nn.Linear(5, 3), lambda network, batch: {"logits": network(X[batch])})
        torch.manual_seed(len(weights))
        assemble(module, objective, {"teacher": teacher}, torch.arange(4), seed)
        weights.append(objective.projection.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


class Moved(FrozenTeacher):
    """Keeps where it is told to go."""

    places: tuple[torch.device, ...] = ()

    def to(self, device: torch.device) -> None:
        self.places += (device,)
        super().to(device)


def test_the_engine_moves_teachers_when_a_fit_starts(tmp_path: Path) -> None:
    module = Points()
    teacher = Moved(nn.Linear(5, 3), lambda network, batch: {"logits": network(X[batch])})
    assemble(module, Pretext(), {"teacher": teacher}, torch.arange(4), 0)
    data, before = number_loaders(lambda split: torch.arange(12), 4, seed=0, evaluated=5), len(teacher.places)
    distil(module, data, Selection("loss", "min"), Trainer(accelerator="cpu"), 2, 0, tmp_path)
    assert before == 1 and teacher.places == (torch.device("cpu"),) * 2


class Probe(Objective):
    """Trains the head on a frozen trunk."""

    def frozen(self, student: nn.Module) -> Iterable[nn.Module]:
        return list(student.children())[:-1]


def test_frozen_parts_move_neither_weights_nor_running_statistics(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in Points().student.state_dict().items()}
    module, _ = train(tmp_path, Probe(), Selection("accuracy"))
    moved = {name for name, value in module.student.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"3.weight", "3.bias"}
    assert not any(part.training for part in list(module.student.children())[:-1]) and module.student[3].training  # type: ignore[index]
    assert module.train(False).train().student[1].training is False  # type: ignore[index]


class Rates(Objective):
    """A slow trunk, a quick head, no decay on biases and norms."""

    def parameter_groups(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[Mapping[str, Any]]:
        head = {name: value for name, value in parameters.items() if name.startswith("student.3.")}
        trunk = [value for name, value in parameters.items() if name not in head]
        return [*decay_groups(trunk, lr=0.0), *decay_groups(head.values(), lr=0.1)]


def test_parameter_groups_have_rates_and_decay_of_their_own(tmp_path: Path) -> None:
    optimizer = Optimizer(lr=0.01, weight_decay=0.25, schedule="constant")
    before = {name: value.clone() for name, value in Points().student.named_parameters()}
    module, _ = train(tmp_path, Rates(), Selection("accuracy"), optimizer)
    moved = {name for name, value in module.student.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"3.weight", "3.bias"}
    groups = module.configure_optimizers().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.0, 0.25), (0.0, 0), (0.1, 0.25), (0.1, 0)]
    assert [len(group["params"]) for group in groups] == [1, 3, 1, 1]


class Forgets(Objective):
    def parameter_groups(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[Mapping[str, Any]]:
        return [{"params": [value for name, value in parameters.items() if name != "student.3.bias"]}]


def test_a_parameter_in_no_group_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        KdbenchError, match=r"'Forgets': .* hold each trained parameter once; 'student\.3\.bias' is not"
    ):
        train(tmp_path, Forgets(), Selection("accuracy"))


class Harder(Objective):
    """Sees the teacher's most certain half of each batch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def inputs(self, batch: Tensor, teachers: Mapping[str, Teacher], student: nn.Module) -> Tensor:
        certainty = teachers["teacher"](batch)["logits"].softmax(dim=1).amax(dim=1)
        return batch[certainty.topk(2).indices]

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        self.seen.append(len(step.targets))
        return {"mean": step.teacher["logits"].mean()}


def test_the_batch_may_depend_on_the_teacher(tmp_path: Path) -> None:
    objective = Harder()
    _, curves = train(tmp_path, objective, Selection("accuracy"), epochs=1)
    assert objective.seen == [2, 2, 2]
    network = nn.Linear(5, 3)
    assert curves["train/mean"][0] != pytest.approx(float(network(X).mean().detach()))
