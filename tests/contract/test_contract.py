"""What every method owes, on the tiny card of its kind: one card a kind, every method that the kind offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.engine.method import Method
from kdbench.engine.runner import Outcome, Session, load_method, run, run_folder
from kdbench.engine.task import Task
from kdbench.engine.teachers import FrozenTeacher, weights_digest
from kdbench.errors import UsageError
from kdbench.plan import cards, catalog
from kdbench.plan.cards import section_types
from kdbench.plan.config import RunConfig, resolve
from kdbench.plan.datasets import dataset
from kdbench.results import outcomes, store

EPOCHS = 3
SHORT = (("student", "width", 16), ("student", "source_epochs", 8), ("teacher", "epochs", 4))


def kinds() -> list[tuple[str, str]]:
    """Family and kind of every kind of task."""
    return [(family, kind) for family in catalog.families() for kind in catalog.kinds(family)]


def tiny_cards() -> dict[tuple[str, str], str]:
    """The first card of each kind that has a tiny scale on generated data."""
    chosen: dict[tuple[str, str], str] = {}
    for name in cards.task_paths():
        card = cards.card(name)
        if card.default_scale == "tiny" and dataset(card.dataset_of("tiny")).generated:
            chosen.setdefault((card.family, card.kind), name)
    return chosen


def pairs() -> Iterator[Any]:
    for (family, kind), task in tiny_cards().items():
        deployed = {"teacher_network"}  # has neither a student of its own nor a training
        for method in sorted(catalog.offered_methods(family, kind).keys() - deployed):
            yield pytest.param((task, method), id=f"{task}-{method}")


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


def configure(task: str, method: str, **settings: Any) -> RunConfig:
    """The task at its tiny scale, a few epochs also of what it begins with, a narrow student where it has a width."""
    trainer = {"max_epochs": EPOCHS, "checkpoint_every_n_epochs": 1, "check_val_every_n_epoch": 1, "accelerator": "cpu"}
    types = section_types(cards.card(task))
    short = {
        f"{section}.{name}": value for section, name, value in SHORT if name in types[section].__dataclass_fields__
    }
    return resolve(
        {"task": task, "method": method, **short, **{f"trainer.{k}": v for k, v in trainer.items()}, **settings}
    )


def do(config: RunConfig, root: Path) -> Outcome:
    outcome = run(config, root, Plain())
    assert outcome is not None
    return outcome


@dataclass(frozen=True)
class Live:
    """One fit beside teachers that compute each batch anew, up to where its student is chosen."""

    session: Session
    networks: list[torch.nn.Module]
    before: list[str]
    module: Any
    weights: dict[str, torch.Tensor]
    curves: dict[str, list[float]]


@dataclass(frozen=True)
class Watched:
    """A run of another seed, and what was seen of it."""

    outcome: Outcome
    asked: list[bool]
    """For every time that the test loader was made: whether the training was over."""
    evaluated: list[bool]
    """For every evaluation: whether the student had the selected weights."""


class Pair:
    """A method on its kind's tiny card, and its runs, each done once. All but one share the stages of the kind."""

    def __init__(self, task: str, method: str, root: Path, shared: Path) -> None:
        self.task, self.method, self.root, self.shared = task, method, root, shared
        card = cards.card(task)
        self.info = catalog.method(method, card.family, card.kind)
        self.task_type: type[Task] = catalog.kind_module(card.family, card.kind, "task").TASK

    def config(self, **settings: Any) -> RunConfig:
        return configure(self.task, self.method, **settings)

    def place(self, name: str) -> Path:
        """A new root for runs that finds the kind's stages done."""
        root = self.root / name
        root.mkdir()
        (root / "stages").symlink_to(self.shared)
        return root

    @cached_property
    def baseline(self) -> Outcome:
        return do(self.config(), self.place("baseline"))

    @cached_property
    def live(self) -> Live:
        settings = {"teacher.cache": False} if self.info.teacher == "frozen" else {}
        root = self.place("live")
        session = Session(self.config(**settings), root, root, Plain())
        module, teachers = assembled(session)
        networks = [teacher.network for teacher in teachers.values() if isinstance(teacher, FrozenTeacher)]
        before = [weights_digest(network) for network in networks]
        selection, curves = session.train(module)
        return Live(session, networks, before, module, selection.weights, curves.values)

    @cached_property
    def watched(self) -> Watched:
        config, root = self.config(seed=1), self.place("watched")
        session = Session(config, root, run_folder(root, config), Plain())
        kind, chosen, asked, evaluated = type(session.task.data()), [], [], []
        loader, train, evaluate = kind.test_dataloader, Session.train, Session.evaluate

        def watched_loader(data: Any) -> Any:
            asked.append(bool(chosen))
            return loader(data)

        def watched_train(session: Session, module: Any, attempt: int) -> Any:
            result = train(session, module, attempt)
            chosen.append(result[0].weights)
            return result

        def watched_evaluate(session: Session, module: Any, split: str) -> dict[str, float]:
            state = module.student.state_dict()
            evaluated.append(all(torch.equal(state[name], value) for name, value in chosen[-1].items()))
            return evaluate(session, module, split)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kind, "test_dataloader", watched_loader)
            patched.setattr(Session, "train", watched_train)
            patched.setattr(Session, "evaluate", watched_evaluate)
            return Watched(do(config, root), asked, evaluated)


def assembled(session: Session) -> tuple[Any, dict[str, Any]]:
    for stage in session.stages():
        session.store.ensure(stage)
    return session.assemble()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind's finished stages."""
    root = tmp_path_factory.mktemp("stages")

    def folder(task: str) -> Path:
        (root / task).mkdir(parents=True, exist_ok=True)
        return root / task

    return folder


@pytest.fixture(scope="module", params=pairs())
def pair(
    request: pytest.FixtureRequest, shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    task, method = request.param
    return Pair(task, method, tmp_path_factory.mktemp("pair"), shared(task))


@pytest.mark.parametrize("kind", kinds(), ids="-".join)
def test_every_kind_has_a_tiny_card(kind: tuple[str, str]) -> None:
    assert kind in tiny_cards(), "a kind is held to this contract on generated data"


def test_the_record_validates_and_every_term_is_logged(pair: Pair) -> None:
    assert store.validate([pair.baseline.folder / "record.json"]).problems == []
    curves = pair.baseline.record.curves
    trained = load_method(pair.config()).epochs(EPOCHS)
    assert curves["epoch"] == list(range(trained)) and ("train/loss" in curves) == (trained > 0)
    assert pair.baseline.record.steps is not None and (pair.baseline.record.steps > 0) == (trained > 0)
    weighted = {name.removeprefix("train/weight of ") for name in curves if "weight of" in name}
    assert all(f"train/{name}" in curves for name in weighted)
    assert torch.isfinite(torch.tensor(list(curves.values()))).all()


def test_the_outcomes_give_the_scores(pair: Pair) -> None:
    """Of val and test, and so the intervals of the task's own metric cover its examples."""
    record = pair.baseline.record
    arrays = outcomes.read(record)
    assert arrays is not None and record.outcomes and record.metrics and record.data
    for split in ("val", "test"):
        stated = getattr(record.metrics, split)
        given = {name: outcomes.contributions(record.family, name, arrays, split) for name in stated}
        means = {name: float(one.values.mean()) for name, one in given.items() if one is not None}
        assert means == pytest.approx({name: stated[name] for name in means}, abs=1e-6)
        assert pair.config().metric in means
        assert len(arrays[f"{split}/items"]) == getattr(record.data.sizes, split)
    assert not set(arrays["val/items"].tolist()) & set(arrays["test/items"].tolist())


def test_the_same_seed_gives_the_same_bits(pair: Pair, tmp_path: Path) -> None:
    """From nothing, its stages included."""
    first, again = pair.baseline, do(pair.config(), tmp_path)
    assert not any(stage.reused for stage in again.record.stages)
    assert first.record.metrics == again.record.metrics
    assert first.record.predictions == again.record.predictions and first.record.curves == again.record.curves
    assert first.record.outcomes == again.record.outcomes and first.record.steps == again.record.steps
    assert same(*(load_file(o.folder / "student.safetensors") for o in (first, again)))


def test_another_seed_gives_other_bits(pair: Pair) -> None:
    assert not same(*(load_file(o.folder / "student.safetensors") for o in (pair.baseline, pair.watched.outcome)))


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_killed_run_goes_on_to_the_same_bits(pair: Pair) -> None:
    config = pair.config()
    if not load_method(config).epochs(EPOCHS):
        pytest.skip("nothing is trained after the stages")
    root = pair.place("killed")
    with pytest.raises(Killed):
        run(config, root, Plain(kill_after=2))
    assert not (run_folder(root, config) / "record.json").exists()
    second = Plain()
    resumed = run(config, root, second)
    assert second.epochs == [2, 3], "it goes on after the last checkpoint, that of epoch 1"
    assert resumed is not None and resumed.record.metrics == pair.baseline.record.metrics
    assert resumed.record.curves == pair.baseline.record.curves
    assert (
        resumed.record.outcomes == pair.baseline.record.outcomes and resumed.record.steps == pair.baseline.record.steps
    )
    assert not (resumed.folder / "last.ckpt").exists()


def test_the_test_loader_waits_for_the_selected_weights(pair: Pair) -> None:
    assert pair.watched.asked and all(pair.watched.asked) and pair.watched.evaluated == [True, True]


def test_the_teacher_stays_out_of_training(pair: Pair) -> None:
    if pair.info.teacher == "none":
        session = Session(pair.config(), pair.root, pair.root, Plain())
        assert session.method.teacher == "none" and session.config.to_json()["teacher"] is None
        assert not session.method.teachers(session.task)
        return
    live = pair.live
    assert live.networks or live.session.method.teacher != "frozen"
    theirs = {id(p) for network in live.networks for p in (*network.parameters(), *network.buffers())}
    assert theirs.isdisjoint(id(p) for p in (*live.module.parameters(), *live.module.buffers()))
    checkpoint = torch.load(live.session.folder / "last.ckpt", weights_only=False)
    saved = [value for value in checkpoint["state_dict"].values() if value.dim() > 1]
    for network in live.networks:  # by value, since a student may be of the same shape as a part of its teacher
        for value in network.state_dict().values():
            assert value.dim() < 2 or not any(value.shape == s.shape and torch.equal(value, s) for s in saved)
    assert all(not child.training for network in live.networks for child in network.modules())
    assert [weights_digest(network) for network in live.networks] == live.before


def test_cached_training_is_live_training(pair: Pair, tmp_path: Path) -> None:
    if pair.info.teacher != "frozen":
        pytest.skip("only a frozen teacher has a cache")
    if not pair.task_type.cacheable:
        with pytest.raises(UsageError, match="random view"):
            run(pair.config(**{"teacher.cache": True}), tmp_path, Plain())
        return
    assert same(load_file(pair.baseline.folder / "student.safetensors"), pair.live.weights)
    assert pair.live.curves == pair.baseline.record.curves


def test_arms_of_one_seed_start_from_the_same_student(pair: Pair) -> None:
    root, starts = pair.place("start"), []
    for name in ("alone", pair.method):
        session = Session(configure(pair.task, name), root, root, Plain())
        if type(session.method).student is not Method.student:
            pytest.skip("its student begins with what its stages left")
        starts.append(weights_digest(assembled(session)[0].student))
    assert starts[0] == starts[1]


@pytest.mark.parametrize("control", ["shuffled_teacher", "random_teacher"])
def test_controls_change_the_teacher_and_nothing_else(pair: Pair, control: str, tmp_path: Path) -> None:
    if pair.info.teacher != "frozen":
        pytest.skip("controls replace a frozen teacher")
    if not pair.task_type.cacheable:
        with pytest.raises(UsageError, match="random view"):
            run(pair.config(control=control), tmp_path, Plain())
        return
    outcome = do(pair.config(control=control), pair.place(control))
    assert store.validate([outcome.folder / "record.json"]).problems == []
    real = pair.baseline.record
    assert outcome.record.group == real.group and outcome.record.data == real.data
    assert outcome.record.curves["train/loss"] != real.curves["train/loss"]


def test_options_reach_the_method() -> None:
    config = configure("gnn", "kd", **{"method.alpha": 0.25})
    assert asdict(config.hyperparameters)["alpha"] == 0.25
