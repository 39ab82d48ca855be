"""What a faulty method or network is told: its name, the wrong one, and the names that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.engine.cache import CacheKey, TeacherCache
from kdbench.engine.callbacks import Selection
from kdbench.engine.classification import Classification, number_loaders
from kdbench.engine.fitting import fit
from kdbench.engine.method import Method
from kdbench.engine.step import Shapes, Step
from kdbench.engine.teachers import CachedTeacher, EMATeacher, FrozenTeacher, RandomTeacher, Teacher
from kdbench.errors import KdbenchError, NonFiniteLossError
from kdbench.plan.options import Optimizer, Trainer

X = torch.arange(48.0).reshape(12, 4).cos()
Y = torch.arange(12) % 3


class Points(Classification):
    """Twelve points of three classes; ``spoiled`` rows are NaN where a split is evaluated."""

    def __init__(self, spoiled: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        super().__init__(student, Optimizer(schedule="constant"), 3)
        self.spoiled = torch.tensor(spoiled, dtype=torch.int64)

    def forward_batch(self, batch: Tensor) -> dict[str, Tensor]:
        x = X.clone()
        if not self.training:
            x[self.spoiled] = torch.nan
        return {"logits": self.student(x[batch])}

    def targets(self, batch: Tensor) -> Tensor:
        return Y[batch]


class Faulty(Method):
    title, paper, teacher = "a faulty method", "https://example.org", "frozen"

    def __init__(
        self,
        terms: Callable[[Step], Mapping[str, Any]] = lambda step: {},
        weights: Callable[[Step], Mapping[str, Any]] = lambda step: {},
    ) -> None:
        super().__init__(None)
        self.terms, self.weights = terms, weights  # type: ignore[method-assign]

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        return {"hidden": "0"}

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        return self.terms(step)


def train(folder: Path, method: Method, module: Points | None = None, *callbacks: pl.Callback, epochs: int = 1) -> None:
    module = module or Points()
    network = nn.Linear(4, 3)
    teacher = FrozenTeacher(network, lambda network, batch: {"logits": network(X[batch]), "hop1": X[batch]})
    module.attach(method, {"teacher": teacher})
    data = number_loaders(lambda split: torch.arange(12), 4, seed=0, evaluated=5)
    options = Trainer(accelerator="cpu", checkpoint_every_n_epochs=100)
    fit(module, data, options, epochs, 0, folder, [method, *callbacks])


NAMES: dict[str, tuple[Method, str]] = {
    "weight": (
        Faulty(lambda step: {"kd": step.output["logits"].mean()}, lambda step: {"kdd": 0.5}),
        r"weights: Unknown loss term 'kdd'\. Did you mean 'kd'\? Valid: kd, task\.",
    ),
    "output": (
        Faulty(lambda step: {"kd": step.teacher["hop"].mean()}),
        r"Unknown teacher output 'hop'\. Did you mean 'hop1'\? Valid: hop1, logits\.",
    ),
    "output of one of several": (
        Faulty(lambda step: {"kd": step.teachers["teacher"](step.batch)["hop"].mean()}),
        "Unknown teacher output 'hop'",
    ),
    "teacher": (
        Faulty(lambda step: {"kd": step.teachers["teachr"](step.batch)}),
        r"teacher 'teachr'.*Valid: teacher\.",
    ),
    "tap": (Faulty(lambda step: {"kd": step.features["h"]}), r"tapped student feature 'h'.*Valid: hidden\."),
    "student": (Faulty(lambda step: {"kd": step.output["logit"]}), r"student output 'logit'.*Valid: logits\."),
    "in weights": (Faulty(weights=lambda step: {"task": step.teacher["h"]}), "Unknown teacher output 'h'"),
    "rows": (
        Faulty(lambda step: {"kd": step.output["logits"].mean(dim=1)}),
        r"the loss term 'kd' is of shape \[4\]; a scalar tensor is due",
    ),
    "a term of the task": (
        Faulty(lambda step: {"task": step.output["logits"].mean()}),
        "names a loss term 'task', which the task has too",
    ),
    "number": (Faulty(lambda step: {"kd": 0.5}), "the loss term 'kd' is a float; a scalar tensor is due"),
    "device": (
        Faulty(lambda step: {"kd": torch.ones((), device="meta")}),
        "the loss term 'kd' is on meta, not on cpu; a scalar tensor is due",
    ),
    "weight of rows": (
        Faulty(weights=lambda step: {"task": torch.ones(2)}),
        r"the weight of 'task' is of shape \[2\]; a scalar tensor is due",
    ),
}


@pytest.mark.parametrize("fault", NAMES)
def test_the_method_and_what_it_got_wrong_are_named(tmp_path: Path, fault: str) -> None:
    method, told = NAMES[fault]
    with pytest.raises(KdbenchError, match=f"Method 'test_faulty_methods'.*{told}"):
        train(tmp_path, method)


def test_rows_of_one_length_are_no_loss_terms(tmp_path: Path) -> None:
    """Of one shape, they would be summed in silence."""

    class Rows(Points):
        def task_terms(self, output: Any, targets: Tensor) -> Mapping[str, Tensor]:
            return {"task": output["logits"].square().mean(dim=1)}

    with pytest.raises(KdbenchError, match=r"'task' is of shape \[4\], the loss term 'kd' is of shape \[4\]"):
        train(tmp_path, Faulty(lambda step: {"kd": step.output["logits"].mean(dim=1)}), Rows())


def test_a_step_without_loss_terms_is_refused(tmp_path: Path) -> None:
    class Nothing(Points):
        def task_terms(self, output: Any, targets: Tensor) -> Mapping[str, Tensor]:
            return {}

    with pytest.raises(KdbenchError, match="neither it nor the task names a loss term"):
        train(tmp_path, Faulty(), Nothing())


def test_every_kind_of_teacher_names_its_outputs(tmp_path: Path) -> None:
    cache = TeacherCache.ensure(tmp_path, CacheKey("t", ("logits",), "d", 12), [{"logits": torch.randn(12, 3)}])
    average = EMATeacher(0.5, lambda network, batch: {"logits": batch})
    average.network = nn.Identity()
    teachers: list[Teacher] = [
        CachedTeacher(cache, lambda batch: batch, "t"),
        RandomTeacher(cache, lambda batch: batch, 0),
        average,
    ]
    for teacher in teachers:
        assert teacher(torch.arange(3))["logits"] is not None
        with pytest.raises(KdbenchError, match=r"teacher output 'h'.*Valid: logits\."):
            teacher(torch.arange(3))["h"]


def test_shapes_name_what_there_is() -> None:
    shapes = Shapes({"hidden": (5,)}, {"logits": (3,)})
    assert shapes.teacher["logits"] == (3,)
    for part, told in ((shapes.teacher, "teacher output 'h'.*logits"), (shapes.student, "feature 'h'.*hidden")):
        with pytest.raises(KdbenchError, match=told):
            part["h"]


@pytest.mark.parametrize(("row", "batch", "place"), [(0, 0, 0), (7, 1, 2), (11, 2, 1)])
def test_an_output_that_is_not_finite_is_no_score(tmp_path: Path, row: int, batch: int, place: int) -> None:
    told = f"'logits' for the val split is not finite: row {place} of batch {batch}"
    with pytest.raises(KdbenchError, match=told):
        train(tmp_path, Faulty(), Points((row,)), Selection("accuracy"))


def test_ragged_outputs_are_looked_through_and_large_ones_are_finite() -> None:
    module = Points()
    ragged = [torch.zeros(2, 3), torch.zeros(0, 3), torch.tensor([[1.0, torch.inf]])]
    module.forward_batch = lambda batch: {"boxes": ragged}  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(KdbenchError, match=r"'boxes' for the test split is not finite: row 2 of batch 4"):
        module.judge("test", torch.arange(3), 4)
    large = torch.full((3, 3), torch.finfo(torch.float32).max)
    module.forward_batch = lambda batch: {"logits": large, "n": torch.arange(3)}  # type: ignore[method-assign]
    module.judge("test", torch.arange(3), 0)


def test_a_loss_that_is_not_finite_tells_its_terms(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 0: task = [\d.]+, kd = nan"):
        train(tmp_path, Faulty(lambda step: {"kd": step.output["logits"].mean() * torch.nan}))
