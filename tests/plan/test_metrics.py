"""What families declare of their metrics, and what follows where one has no value."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import CardError, UndefinedMetricError
from kdbench.plan import cards, metrics
from kdbench.plan.catalog import families, kind_module, kinds
from kdbench.plan.metrics import Metric, Undefined, defined, share
from kdbench.results import store

RECORDS = Path(__file__).parents[2] / "leaderboard" / "archive" / "protocol-1"


@pytest.mark.parametrize("family", families())
def test_every_kind_declares_its_metrics_and_a_name_means_one_thing(family: str) -> None:
    means: dict[str, Metric] = {}
    assert kinds(family)
    for kind in kinds(family):
        declared = metrics.of_kind(family, kind)
        assert len({metric.name for metric in declared}) == len(declared)
        for metric in declared:
            assert metric.doc and means.setdefault(metric.name, metric) == metric


@pytest.mark.parametrize("task", cards.task_paths())
def test_every_card_names_a_metric_of_its_kind(task: str) -> None:
    card = cards.card(task)
    assert metrics.named(card.family, card.kind, card.metric).name == card.metric


def test_every_published_score_is_declared() -> None:
    """So that its range is checked and its unit shown."""
    for record in store.read([RECORDS]):
        scored = [record.metrics, record.teacher.metrics if record.teacher else None]
        names = {name for given in scored if given for found in (given.val, given.test) for name in found}
        assert not [name for name in names if metrics.lookup(record.family, name) is None]
        assert record.selection and record.selection.mode == cards_mode(record.task)


def cards_mode(task: str) -> str:
    card = cards.card(task)
    return metrics.named(card.family, card.kind, card.metric).mode


@pytest.mark.parametrize(
    ("family", "name", "mode", "unit"),
    [
        ("graph", "auc", "max", "%"),
        ("medical", "hd95", "min", "mm"),
        ("medical", "absent", "min", ""),
        ("detection", "ap50_RBC", "max", "%"),
        ("detection", "student_ar100_a b", "max", "%"),
        ("vision_language", "accuracy of cross_modal-fc1", "max", "%"),
    ],
)
def test_a_metric_is_found_by_its_name(family: str, name: str, mode: str, unit: str) -> None:
    found = metrics.lookup(family, name)
    assert found and (found.mode, found.unit, metrics.unit(family, name)) == (mode, unit, unit)


@pytest.mark.parametrize(("family", "name"), [("graph", "hd95"), ("graph", "Auc"), ("nosuch", "accuracy")])
def test_a_metric_that_nobody_declares_has_no_unit(family: str, name: str) -> None:
    assert metrics.lookup(family, name) is None and metrics.unit(family, name) == ""
    assert metrics.unit("graph", None) == ""


@pytest.mark.parametrize(
    ("metric", "inside", "outside", "told"),
    [
        (share("a"), (0, 1, 0.5), (-1, -1e-9, 1 + 1e-9, 80), "within 0 and 1"),
        (Metric("a", low=0), (0, 1e300), (-1,), "at least 0"),
        (Metric("a", high=3), (-1e300, 3), (4,), "at most 3"),
        (Metric("a"), (-1, 1e300), (), "any number"),
    ],
)
def test_a_range(metric: Metric, inside: tuple[float, ...], outside: tuple[float, ...], told: str) -> None:
    assert all(map(metric.holds, inside)) and not any(map(metric.holds, outside)) and metric.range == told


def test_what_has_no_value_is_left_out_and_the_headline_must_have_one() -> None:
    found: dict[str, float | Undefined] = {"a": 0.5, "b": Undefined("nothing to rank"), "c": float("nan")}
    assert defined(found, None, "val") == defined(found, "a", "val") == {"a": 0.5}
    for name, why in (("b", "nothing to rank"), ("c", "it is nan"), ("d", "the evaluation does not compute it")):
        with pytest.raises(UndefinedMetricError) as caught:
            defined(found, name, "test")
        assert str(caught.value) == f"{name} is not defined on the test split: {why}." and caught.value.exit_code == 1


def test_a_kind_without_metrics_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(kind_module("graph", "node_classification", "options"), "METRICS")
    with pytest.raises(CardError, match=r"node_classification/options\.py:1: METRICS is missing"):
        metrics.named("graph", "node_classification", "accuracy")
