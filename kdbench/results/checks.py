"""What must agree within one record: outcome and fields, scores and confusion matrix, predictions, curves, times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdbench.metrics import lookup, scores

if TYPE_CHECKING:
    from kdbench.results.record import Content

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
TOLERANCE = 1e-6

Loc = tuple[str | int, ...]
Fault = tuple[Loc, str]


def faults(record: Content) -> Iterator[Fault]:
    """Every contradiction within a record whose fields have the right types: the path of the wrong field, and why."""
    yield from _outcome_faults(record)
    yield from _range_faults(record)
    yield from _score_faults(record)
    yield from _prediction_faults(record)
    yield from _course_faults(record)


def _outcome_faults(record: Content) -> Iterator[Fault]:
    done = record.status == "done"
    if done == (record.failure is not None):
        yield ("failure",), "forbidden when status is done" if done else "required when status is failed"
    for key in ("data", "costs", "metrics", "selection") if done else ():
        if getattr(record, key) is None:
            yield (key,), "required when status is done"
    for key in () if done else ("metrics", "confusion", "predictions"):
        if getattr(record, key) is not None:
            yield (key,), "forbidden when status is failed"
    if record.teacher and record.config.get("teacher") is None:
        yield ("teacher",), "given, but config.teacher is null"
    # A run may fail before its teacher exists.
    if done and record.teacher is None and record.config.get("teacher") is not None:
        yield ("teacher",), "null, but config.teacher is not"


def _range_faults(record: Content) -> Iterator[Fault]:
    """Scores and directions that contradict what the family, where it is installed, declares of its metrics."""
    taught = record.teacher.metrics if record.teacher else None
    for loc, given in ((("metrics",), record.metrics), (("teacher", "metrics"), taught)):
        for split, found in (("val", given.val), ("test", given.test)) if given else ():
            for name, value in found.items():
                if (metric := lookup(record.family, name)) and not metric.holds(value):
                    yield (*loc, split, name), f"{value:g} is not {metric.range}"
    chosen = record.selection
    if chosen and (metric := lookup(record.family, chosen.metric)) and chosen.mode != metric.mode:
        yield ("selection", "mode"), f"'{chosen.mode}', but of {chosen.metric} it is '{metric.mode}'"


def _score_faults(record: Content) -> Iterator[Fault]:
    confusion, size = record.confusion, record.data.sizes.test if record.data else None
    if confusion is not None and size is not None:
        if any(len(row) != len(confusion) for row in confusion):
            yield ("confusion",), "is not a square matrix"
        elif (counted := sum(map(sum, confusion))) != size:
            yield ("confusion",), f"counts {counted} examples, but data.sizes.test is {size}"
        else:
            stated = record.metrics.test if record.metrics else {}
            for name, value in scores(confusion).items():
                if name in stated and not math.isclose(stated[name], value, rel_tol=0, abs_tol=TOLERANCE):
                    yield ("metrics", "test", name), f"{stated[name]:.6f}, but the confusion matrix gives {value:.6f}"
    if record.selection and record.metrics:
        name, chosen = record.selection.metric, record.selection.value
        if name not in record.metrics.val:
            yield ("selection", "metric"), f"metrics.val has no '{name}'"
        elif not math.isclose(record.metrics.val[name], chosen, rel_tol=0, abs_tol=TOLERANCE):
            yield ("selection", "value"), f"{chosen:.6f}, but metrics.val.{name} is {record.metrics.val[name]:.6f}"


def _prediction_faults(record: Content) -> Iterator[Fault]:
    size = record.data.sizes.test if record.data else None
    given: tuple[tuple[Loc, str | None], ...] = (
        (("predictions",), record.predictions),
        (("teacher", "predictions"), record.teacher.predictions if record.teacher else None),
    )
    for loc, text in given:
        if text is not None and size is not None and len(text) != size:
            yield loc, f"holds {len(text)} examples, but data.sizes.test is {size}"
    if record.confusion and record.predictions is not None:
        columns = [sum(column) for column in zip(*record.confusion, strict=False)]
        if len(columns) > len(DIGITS):
            yield ("predictions",), f"{len(columns)} classes do not fit one base-36 digit"
        elif columns != [record.predictions.count(digit) for digit in DIGITS[: len(columns)]]:
            yield ("predictions",), "are not distributed as the columns of the confusion matrix"


def _course_faults(record: Content) -> Iterator[Fault]:
    if record.finished < record.started:
        yield ("finished",), "is before started"
    if record.curves and "epoch" not in record.curves:
        yield ("curves", "epoch"), "is missing"
    epochs = record.curves.get("epoch", [])
    for name, values in record.curves.items():
        if epochs and len(values) != len(epochs):
            yield ("curves", name), f"has {len(values)} values, but curves.epoch has {len(epochs)}"
    if epochs and record.selection and record.selection.epoch not in epochs:
        yield ("selection", "epoch"), f"{record.selection.epoch} is not in curves.epoch"
