"""What every method owes on every task, parametrised over all that is discovered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.engine.method import Method
from kdbench.engine.runner import Session, load_method, run, run_folder
from kdbench.engine.task import Task
from kdbench.engine.teachers import FrozenTeacher, weights_digest
from kdbench.errors import UsageError
from kdbench.plan import cards, catalog
from kdbench.plan.cards import section_types
from kdbench.plan.config import RunConfig, resolve
from kdbench.plan.datasets import dataset
from kdbench.results import store

EPOCHS = 4
QUICK = ("node_classification",)  # kinds whose real data trains in seconds; others are tested at scale=tiny


def pairs() -> Iterator[Any]:
    for name in cards.task_paths():
        card = cards.card(name)
        for info in catalog.offered_methods(card.family, card.kind).values():
            if card.default_scale == "full" or (card.default_scale == "small" and card.kind not in QUICK):
                continue
            yield pytest.param(name, info.name, id=f"{name}-{info.name}")


def configure(task: str, method: str, **settings: Any) -> RunConfig:
    """The task at its smallest scale, a few epochs, a narrow student where it has a width."""
    card = cards.card(task)
    info = dataset(card.dataset_of(card.default_scale))
    if not info.generated and any(info.state(name)[0] != "present" for name in info.files):
        pytest.skip(f"the data set {info.name} is not here (KDBENCH_DATA)")
    trainer = {"max_epochs": EPOCHS, "checkpoint_every_n_epochs": 1, "check_val_every_n_epoch": 1, "accelerator": "cpu"}
    narrow = {"student.width": 16} if "width" in section_types(card)["student"].__dataclass_fields__ else {}
    return resolve(
        {"task": task, "method": method, **narrow, **{f"trainer.{k}": v for k, v in trainer.items()}, **settings}
    )


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run of a task and method, done once."""
    root, done = tmp_path_factory.mktemp("baseline"), {}

    def get(task: str, method: str) -> Any:
        if (task, method) not in done:
            done[task, method] = run(configure(task, method), root, Plain())
        return done[task, method]

    return get


class Plain:
    """A reporter that remembers epochs, and kills the run after one of them if asked."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.kill_after, self.epochs = kill_after, []

    def stage(self, name: str) -> None: ...

    def note(self, text: str) -> None: ...

    def epoch(self, done: int, total: int, value: float | None) -> None:
        self.epochs.append(done)
        if done == self.kill_after:
            raise Killed


class Killed(BaseException):
    """Stands for kill -9: nothing of ours handles it."""


@pytest.mark.parametrize(("task", "method"), pairs())
def test_the_record_validates_and_every_term_is_logged(task: str, method: str, baseline: Any) -> None:
    outcome = baseline(task, method)
    assert store.validate([outcome.folder / "record.json"]).problems == []
    curves = outcome.record.curves
    trained = load_method(configure(task, method)).epochs(EPOCHS)
    assert curves["epoch"] == list(range(trained)) and ("train/loss" in curves) == (trained > 0)
    weighted = {name.removeprefix("train/weight of ") for name in curves if "weight of" in name}
    assert all(f"train/{name}" in curves for name in weighted)
    assert torch.isfinite(torch.tensor(list(curves.values()))).all()


@pytest.mark.parametrize(("task", "method"), pairs())
def test_the_same_seed_gives_the_same_bits(task: str, method: str, baseline: Any, tmp_path: Path) -> None:
    first, again = baseline(task, method), run(configure(task, method), tmp_path, Plain())
    assert again is not None and first.record.metrics == again.record.metrics
    assert first.record.predictions == again.record.predictions and first.record.curves == again.record.curves
    other = run(configure(task, method, seed=1), tmp_path, Plain())
    assert other is not None
    weights, others = (load_file(o.folder / "student.safetensors") for o in (first, other))
    assert not all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(("task", "method"), pairs())
def test_a_killed_run_goes_on_to_the_same_bits(task: str, method: str, baseline: Any, tmp_path: Path) -> None:
    config = configure(task, method)
    if not load_method(config).epochs(EPOCHS):
        pytest.skip("nothing is trained after the stages")
    with pytest.raises(Killed):
        run(config, tmp_path, Plain(kill_after=3))
    assert not (run_folder(tmp_path, config) / "record.json").exists()
    second = Plain()
    resumed = run(config, tmp_path, second)
    assert second.epochs == [3, 4], "it goes on after the last checkpoint, that of epoch 2"
    assert resumed is not None and resumed.record.metrics == baseline(task, method).record.metrics
    assert resumed.record.curves == baseline(task, method).record.curves
    assert not (resumed.folder / "last.ckpt").exists()


@pytest.mark.parametrize(("task", "method"), pairs())
def test_the_test_loader_waits_for_the_selected_weights(
    task: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(task, method)
    session = Session(config, tmp_path, run_folder(tmp_path, config), Plain())
    asked: list[bool] = []
    kind, trained = type(session.task.data()), []
    real_loader, real_train = kind.test_dataloader, Session.train
    monkeypatch.setattr(kind, "test_dataloader", lambda self: (asked.append(bool(trained)), real_loader(self))[1])

    def train(self: Session, module: Any) -> Any:
        result = real_train(self, module)
        trained.append(result[0].weights)
        return result

    monkeypatch.setattr(Session, "train", train)
    evaluated: list[bool] = []
    real_evaluate = Session.evaluate

    def evaluate(self: Session, module: Any, split: str) -> dict[str, float]:
        state = module.student.state_dict()
        evaluated.append(all(torch.equal(state[name], value) for name, value in trained[0].items()))
        return real_evaluate(self, module, split)

    monkeypatch.setattr(Session, "evaluate", evaluate)
    session.folder.mkdir(parents=True)
    session.execute()
    assert asked and all(asked) and evaluated == [True, True]


@pytest.mark.parametrize(("task", "method"), pairs())
def test_the_teacher_stays_out_of_training(task: str, method: str, tmp_path: Path) -> None:
    settings = {"teacher.cache": False} if catalog_entry(task, method).teacher == "frozen" else {}
    config = configure(task, method, **settings)
    session = Session(config, tmp_path, tmp_path, Plain())
    for stage in session.stages():
        session.store.ensure(stage)
    module, teachers = session.assemble()
    if session.method.teacher == "none":
        assert teachers == {} and config.to_json()["teacher"] is None
        return
    frozen = [teacher for teacher in teachers.values() if isinstance(teacher, FrozenTeacher)]
    assert frozen or session.method.teacher != "frozen"
    before = [weights_digest(teacher.network) for teacher in frozen]
    session.train(module)
    mine = {
        id(parameter) for teacher in frozen for parameter in (*teacher.network.parameters(), *teacher.network.buffers())
    }
    assert mine.isdisjoint(id(p) for p in (*module.parameters(), *module.buffers()))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    saved = [value for value in checkpoint["state_dict"].values() if value.dim() > 1]
    for teacher in frozen:  # by value, since a student may be of the same shape as a part of its teacher
        for value in teacher.network.state_dict().values():
            assert value.dim() < 2 or not any(value.shape == s.shape and torch.equal(value, s) for s in saved)
    assert all(not child.training for teacher in frozen for child in teacher.network.modules())
    assert [weights_digest(teacher.network) for teacher in frozen] == before


def task_type(task: str) -> type[Task]:
    card = cards.card(task)
    found: type[Task] = catalog.kind_module(card.family, card.kind, "task").TASK
    return found


def catalog_entry(task: str, method: str) -> catalog.MethodInfo:
    card = cards.card(task)
    return catalog.method(method, card.family, card.kind)


@pytest.mark.parametrize(("task", "method"), pairs())
def test_cached_training_is_live_training(task: str, method: str, baseline: Any, tmp_path: Path) -> None:
    if catalog_entry(task, method).teacher != "frozen":
        pytest.skip("only a frozen teacher has a cache")
    if not task_type(task).cacheable:
        with pytest.raises(UsageError, match="random view"):
            run(configure(task, method, **{"teacher.cache": True}), tmp_path, Plain())
        return
    live = run(configure(task, method, **{"teacher.cache": False}), tmp_path, Plain())
    assert live is not None
    weights, cached = (load_file(o.folder / "student.safetensors") for o in (live, baseline(task, method)))
    assert all(torch.equal(weights[name], cached[name]) for name in cached) and len(weights) == len(cached)
    assert live.record.curves == baseline(task, method).record.curves


@pytest.mark.parametrize(("task", "method"), pairs())
def test_arms_of_one_seed_start_from_the_same_student(task: str, method: str, tmp_path: Path) -> None:
    starts = []
    for name in ("alone", method):
        session = Session(configure(task, name), tmp_path, tmp_path, Plain())
        if type(session.method).student is not Method.student:
            pytest.skip("its student begins with what its stages left")
        for stage in session.stages():
            session.store.ensure(stage)
        starts.append(weights_digest(session.assemble()[0].student))
    assert starts[0] == starts[1]


@pytest.mark.parametrize("control", ["shuffled_teacher", "random_teacher"])
@pytest.mark.parametrize(("task", "method"), pairs())
def test_controls_change_the_teacher_and_nothing_else(
    task: str, method: str, control: str, baseline: Any, tmp_path: Path
) -> None:
    if catalog_entry(task, method).teacher != "frozen":
        pytest.skip("controls replace a frozen teacher")
    if not task_type(task).cacheable:
        with pytest.raises(UsageError, match="random view"):
            run(configure(task, method, control=control), tmp_path, Plain())
        return
    outcome = run(configure(task, method, control=control), tmp_path, Plain())
    assert outcome is not None and store.validate([outcome.folder / "record.json"]).problems == []
    real = baseline(task, method).record
    assert outcome.record.group == real.group and outcome.record.data == real.data
    assert outcome.record.curves["train/loss"] != real.curves["train/loss"]


def test_options_reach_the_method() -> None:
    config = configure("gnn", "kd", **{"method.alpha": 0.25})
    assert asdict(config.hyperparameters)["alpha"] == 0.25
