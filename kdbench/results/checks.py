"""What must agree within one record: outcome and fields, scores and confusion matrix, predictions, curves, times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdbench.axes import AXES, axis
from kdbench.plan.metrics import lookup, scores

if TYPE_CHECKING:
    from kdbench.results.record import Content

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
TOLERANCE = 1e-6
ROUGH = 0.05
"""By how much a share of the kept weights may miss its curve where the epoch was validated in other arithmetic."""
DEEPEST = 100
"""Levels of objects and lists that a configuration may be deep."""
MOST_THREADS = 1024

Loc = tuple[str | int, ...]
Fault = tuple[Loc, str]


def faults(record: Content) -> Iterator[Fault]:
    """Every contradiction within a record whose fields have the right types: the path of the wrong field, and why."""
    yield from _outcome_faults(record)
    yield from _range_faults(record)
    yield from _score_faults(record)
    yield from _prediction_faults(record)
    yield from _course_faults(record)
    yield from _curve_faults(record)
    yield from _draw_faults(record)


def unsound(text: str, raw: Any) -> Iterator[Fault]:
    """What a parsed JSON document holds that its readers cannot: a config too deep, text that is no Unicode."""
    halves = "\\ud" in text.lower()  # only an escape can write half of a pair
    waiting: list[tuple[Loc, Any]] = [((), raw)]
    while waiting:
        loc, value = waiting.pop()
        if len(loc) > DEEPEST:
            yield loc[:2], f"is more than {DEEPEST} levels deep"
            return
        if isinstance(value, str) and not _unicode(value):
            yield loc, "holds half of a surrogate pair, which is no Unicode text"
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            if isinstance(key, str) and not _unicode(key):
                yield loc or ("record",), "has a key with half of a surrogate pair, which is no Unicode text"
            elif halves or loc or key == "config":  # all else has a depth of its own and no walk to pay
                waiting.append(((*loc, key), item))


def _unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
        for split, by_metric in (("val", given.val), ("test", given.test)) if given else ():
            for name, value in by_metric.items():
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
    for stage, report in (record.reports or {}).items():
        if stage not in {one.name for one in record.stages}:
            yield ("reports", stage), "is no stage of this run"
        steps = report.curves.get("epoch", [])
        for name, values in report.curves.items():
            if len(values) != len(steps):
                yield ("reports", stage, "curves", name), f"has {len(values)} values, but 'epoch' has {len(steps)}"


def _curve_faults(record: Content) -> Iterator[Fault]:
    """Validation scores that are not those of the curves at the kept epoch, and an epoch that nothing would choose."""
    epochs, chosen, metrics = record.curves.get("epoch", []), record.selection, record.metrics
    if chosen is None or metrics is None or chosen.epoch not in epochs:
        return
    at, name = epochs.index(chosen.epoch), f"val/{chosen.metric}"
    curve = record.curves.get(name, [])
    if len(curve) == len(epochs):
        best = max(curve) if chosen.mode == "max" else min(curve)
        if at not in (curve.index(best), len(epochs) - 1):
            yield ("selection", "epoch"), f"{chosen.epoch} is neither the best of curve '{name}' nor the last"
    for metric, value in metrics.val.items():
        curve = record.curves.get(f"val/{metric}", [])
        if len(curve) == len(epochs) and not _repeats(record, metric, value, curve[at]):
            message = f"{value:.6f}, but curve 'val/{metric}' has {curve[at]:.6f} at epoch {chosen.epoch}"
            yield ("metrics", "val", metric), message


def _repeats(record: Content, metric: str, value: float, curve: float) -> bool:
    """Whether a score of the kept weights is the curve's. Several processes may draw the curve of the first's examples;
    accelerators and lower precision validate an epoch in other arithmetic, so that only shares can be held to it.
    """
    given = record.config.get("trainer")
    trainer = given if isinstance(given, dict) else {}
    if trainer.get("devices", 1) != 1 or trainer.get("num_nodes", 1) != 1:
        return True
    if record.hardware.accelerator in (None, "none") and trainer.get("precision", "32-true") == "32-true":
        return math.isclose(value, curve, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    share = 0 <= value <= 1 and 0 <= curve <= 1 and record.selection is not None and metric == record.selection.metric
    return not share or abs(value - curve) <= ROUGH


def _draw_faults(record: Content) -> Iterator[Fault]:
    """Seeds that are not drawn from the run's, stages that do not add up, more threads than any machine has."""
    seed = record.config.get("seed")
    if record.seed < 0:
        yield ("seed",), "is negative"
    drawn = {name: axis(seed, name) for name in AXES if name in record.seeds} if isinstance(seed, int) else {}
    for name, number in drawn.items():
        if record.seeds[name] != number:
            yield ("seeds", name), f"{record.seeds[name]}, but seed {seed} draws {number}"
    total = sum(stage.seconds for stage in record.stages)
    if record.costs and not math.isclose(record.costs.stage_seconds, total, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield ("costs", "stage_seconds"), f"{record.costs.stage_seconds:.6f}, but the stages took {total:.6f}"
    if record.hardware.threads > MOST_THREADS:
        yield ("hardware", "threads"), f"{record.hardware.threads} are more than the {MOST_THREADS} of any machine"
