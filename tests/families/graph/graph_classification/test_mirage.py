"""Mirage and its controls: what is trained on, how often, and what the record says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.engine.runner import Outcome, Session, Silent
from kdbench.errors import UsageError
from kdbench.families.graph.graph_classification import condense
from kdbench.families.graph.graph_classification.data import Graphs
from kdbench.families.graph.graph_classification.draws import Draws, SmallLoaders
from kdbench.families.graph.graph_classification.methods.random_graphs import draw_bytes, draw_count
from kdbench.families.graph.graph_classification.task import GraphTask
from kdbench.plan.config import expand

Do = Callable[..., Outcome]
QUICK = ("task=graph_classification", "trainer.max_epochs=2", "student.width=8")


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Session]:
    """``prepare("method=mirage", …)`` is a session whose stages are done."""

    def once(*words: str) -> Session:
        (config,) = expand([*QUICK, *words, "trainer.accelerator=cpu"])
        session = Session(config, tmp_path, tmp_path, Silent())
        for stage in session.stages():
            session.store.ensure(stage)
        return session

    return once


def batches(session: Session, epoch: int = 0) -> list[Any]:
    loader = session.method.data(session.task).train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def small(session: Session) -> SmallLoaders:
    data = session.method.data(session.task)
    assert isinstance(data, SmallLoaders)
    return data


def test_the_condensed_set_depends_on_the_split_alone(prepare: Callable[..., Session]) -> None:
    def key(*words: str) -> str:
        (result,) = prepare("method=mirage", *words).store.results.values()
        return result.key

    first = key("seed=0")
    assert first != key("seed=3") and key("data.split=fixed") == key("seed=3", "data.split=fixed")
    assert first == key("student.name=gcn") == key("student.dropout=0.1", "method.sampling=uniform")
    assert first == key("student.layers=5", "method.hops=2") == key("method.theta=[40,40]", "method.drop_shared=false")
    others = (
        key("student.layers=1"),
        key("method.theta=[40,41]"),
        key("method.drop_shared=true"),
        key("data.graphs=390"),
    )
    assert len({first, *others}) == 5
    assert prepare("method=random_graphs").store.results["condense"].key == first


def test_students_train_on_the_sets_and_are_judged_on_the_tasks_graphs(prepare: Callable[..., Session]) -> None:
    session = prepare("method=mirage")
    data, own = small(session), session.task.data()
    assert isinstance(session.task, GraphTask) and isinstance(own, type(data).__bases__[0])
    condensed = condense.load(session.task.folder("condense"))
    patterns = {(int(y), int(n)) for y, n in zip(condensed.graphs.y, condensed.graphs.nodes, strict=True)}
    for batch in batches(session):
        counts = torch.bincount(batch.batch).tolist()
        assert {*zip(batch.y.tolist(), counts, strict=True)} <= patterns and "read" in batch
        assert torch.equal(
            torch.bincount(batch.batch[batch.read]), torch.bincount(batch.batch, weights=batch.read.double())
        )
    for mine, theirs in (
        (data.val_dataloader(), own.val_dataloader()),
        (data.test_dataloader(), own.test_dataloader()),
    ):
        (left,), (right,) = mine, theirs
        assert torch.equal(left.rows, right.rows) and torch.equal(left.x, right.x) and "read" not in left


def test_every_arm_takes_as_many_steps(prepare: Callable[..., Session]) -> None:
    arms = [prepare(f"method={name}") for name in ("alone", "mirage", "random_graphs")]
    assert {len(batches(arm)) for arm in arms} == {5}, "320 training graphs in batches of 64"
    data = small(arms[1])
    sizes = [len(batch.y) for batch in batches(arms[1])]
    assert sizes == [min(64, len(data.small))] * 5


def test_one_pass_over_the_set(prepare: Callable[..., Session]) -> None:
    session = prepare("method=mirage", "method.steps=set", "method.sampling=uniform", "method.batch=4")
    count = len(small(session).small)
    drawn = batches(session)
    assert len(drawn) == -(-count // 4)
    assert sorted(torch.cat([batch.rows for batch in drawn]).tolist()) == list(range(count))


def test_all_nodes_are_pooled_on_request(prepare: Callable[..., Session]) -> None:
    assert all("read" not in batch for batch in batches(prepare("method=mirage", "method.readout=all")))


def test_sets_are_drawn_in_proportion_to_their_support() -> None:
    weights = torch.tensor([1, 5, 2])
    drawn = Counter(Draws(3, weights, 8000, 0, (1, 0)))
    assert [drawn[item] / 1000 for item in range(3)] == pytest.approx([1, 5, 2], abs=0.15)
    assert set(Counter(Draws(3, None, 9, 0, (1, 0))).values()) == {3}


def test_draws_depend_on_seed_and_epoch_and_are_shared_out() -> None:
    def epoch(number: int, seed: int = 0, place: tuple[int, int] = (1, 0), draws: int = 40) -> list[int]:
        sampler = Draws(7, torch.ones(7), draws, seed, place)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(1) == epoch(1) != epoch(2) and epoch(1) != epoch(1, seed=1)
    halves = [epoch(1, place=(2, rank), draws=20) for rank in (0, 1)]
    assert [item for pair in zip(*halves, strict=True) for item in pair] == epoch(1)


def test_the_record_tells_the_size_of_the_set(do: Do, tmp_path: Path) -> None:
    outcome = do(*QUICK, "method=mirage")
    (stage,) = outcome.record.stages
    tensors = load_file(tmp_path / "runs/stages" / f"condense-{stage.key[:16]}/condensed.safetensors")
    bytes_ = sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name != "support")
    assert outcome.record.curves["train/bytes"] == pytest.approx([bytes_] * 2, rel=1e-6)
    assert outcome.record.curves["train/graphs"] == pytest.approx([len(tensors["y"])] * 2)


@pytest.mark.parametrize("match", ["count", "bytes"])
def test_random_graphs_match_the_set(match: str, prepare: Callable[..., Session]) -> None:
    session = prepare("method=random_graphs", f"method.match={match}")
    target = condense.load(session.store.results["condense"].folder).graphs
    assert isinstance(session.task, GraphTask)
    train = session.task.graphs.graphs.take(session.task.graphs.ids("train"))
    drawn = small(session).small
    assert drawn.read is None
    if match == "count":
        assert torch.equal(torch.bincount(drawn.y), torch.bincount(target.y))
    for label in (0, 1):
        room = int(target.bytes_each()[target.y == label].sum())
        used = int(drawn.bytes_each()[drawn.y == label].sum())
        smallest = int(train.bytes_each()[train.y == label].min())
        assert match == "count" or room - smallest < used <= room
    again, other = small(session).small, small(prepare("method=random_graphs", f"method.match={match}", "seed=1")).small
    assert torch.equal(drawn.x, again.x) and not torch.equal(drawn.x, other.x)


def test_random_draws_hold_no_graph_twice_and_never_leave_a_class_out(prepare: Callable[..., Session]) -> None:
    task = prepare("method=untrained").task
    assert isinstance(task, GraphTask)
    train = task.graphs.graphs.take(task.graphs.ids("train"))
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(2, dtype=torch.int64)
    empty = Graphs(train.x[:0], train.edges[:, :0], train.edge_labels[:0], torch.tensor([0, 1]), none, none)
    for draw in (draw_count, draw_bytes):
        assert set(train.y[draw(train, empty, generator)].tolist()) == {0, 1}
        many = draw(train, train, generator)
        assert len(many.unique()) == len(many)


def test_the_untrained_student_is_the_one_that_alone_begins_with(do: Do, prepare: Callable[..., Session]) -> None:
    outcome = do(*QUICK, "method=untrained", "seed=2")
    start, _ = prepare("method=alone", "seed=2").assemble()
    left = load_file(outcome.folder / "student.safetensors")
    assert all(torch.equal(left[name], value) for name, value in start.student.state_dict().items())
    assert outcome.record.curves == {"epoch": []} and outcome.record.costs is not None
    assert outcome.record.costs.train_seconds == 0


def test_the_teacher_is_of_the_run_seed_or_of_the_one_that_is_asked_for(prepare: Callable[..., Session]) -> None:
    words = ("method=kd", "teacher.epochs=2", "data.split=fixed")
    keys = [prepare(*words, f"seed={seed}").store.results["teacher"].key for seed in (0, 1)]
    assert keys[0] != keys[1]
    sessions = [prepare(*words, "teacher.seed=0", f"seed={seed}") for seed in (0, 1)]
    assert len({session.store.results["teacher"].key for session in sessions}) == 1
    task = sessions[0].task
    rows, more = task.batch_of(torch.tensor([5, 2])), task.batch_of(torch.arange(50))
    left, right = task.live_teacher()(rows)["logits"], task.live_teacher()(more)["logits"]
    assert torch.equal(left, right[[5, 2]]) and left.dtype == torch.float32
    assert task.rows_of(rows).tolist() == [5, 2]


@pytest.mark.parametrize("words", [["method.theta=[0,3]"], ["method.theta=[3]"], ["method.theta=5"], ["method.hops=0"]])
def test_wrong_options_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match=words[0].partition("=")[0].replace(".", r"\.")):
        expand([*QUICK, "method=mirage", *words])


def test_several_thresholds_are_several_runs() -> None:
    configs = expand([*QUICK, "method=mirage", "method.theta=[40,40],[30,30]"])
    assert [config.hyperparameters.theta for config in configs] == [(40, 40), (30, 30)]
    assert "method.theta=[30,30]" in configs[1].command
