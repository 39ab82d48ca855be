"""Which plots a page has, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from kdbench.board import plots, safe
from kdbench.board.cells import score_title
from kdbench.board.model import Task, View
from kdbench.board.tables import headline_rows, judged_rows
from kdbench.plan.metrics import PERCENT
from kdbench.results.compare import Comparison, Row
from kdbench.results.ranks import critical_difference
from kdbench.results.record import Record
from kdbench.results.render import better, fixed, p_value

ROWS = 60
"""Rows of a plot that a reader can still follow."""
MARKS = 40
"""Marks of a plot of scores against costs, whose labels must find room."""
POINTS = 200
"""Points to which a curve is thinned."""
LINES = 8
FEWEST = 3
"""Tasks, and methods in each, that a critical-difference diagram needs."""


@dataclass(frozen=True)
class Drawn:
    """A plot and what it says below it."""

    svg: Markup
    caption: str


class _Kinds:
    """The colour of every arm, the same in all plots of a page."""

    def __init__(self, rows: Sequence[Row]) -> None:
        names = dict.fromkeys(row.label for row in rows if row.method not in ("teacher", "alone", "kd"))
        self.of = {label: str(index % 8) for index, label in enumerate(names)}

    def __call__(self, row: Row) -> str:
        if row.control != "none":
            return "control"
        return row.method if row.method in ("teacher", "alone", "kd") else self.of[row.label]


def _students(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.method != "teacher" and row.n]


def _factor(comparison: Comparison) -> float:
    return 100.0 if comparison.unit == PERCENT else 1.0


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def of_comparison(view: View) -> list[Drawn]:
    """Paired differences, the score of every seed, and score against training time."""
    one = view.comparison
    rows = _students(one)[:ROWS]
    kinds, factor, score = _Kinds(rows), _factor(one), score_title(one.metric, one.unit)
    drawn = []
    differences, groups = [], []
    for baseline, deltas in (
        (one.alone, [(row, row.delta_alone, row.p_alone) for row in rows]),
        (one.kd, [(row, row.delta_kd, row.p_kd) for row in rows]),
    ):
        for row, delta, p in deltas:
            if delta is not None and safe.finite(delta.mean) is not None:
                low, high = _scaled(delta.low, factor), _scaled(delta.high, factor)
                note = "no spread" if delta.flat else "" if p is None else f"p {p_value(p)}"
                label = safe.name(row.label)
                differences.append(plots.Interval(label, kinds(row), delta.mean * factor, low, high, note=note))
                groups.append(f"minus {safe.name(str(baseline))}")
    if differences:
        svg = plots.intervals(differences, "Paired differences", f"difference of {score}", groups=groups)
        drawn.append(
            Drawn(
                Markup(svg),
                "Paired differences with intervals that hold for all tests of a family at once; p adjusted by Holm.",
            )
        )
    seeds = [plots.Series(safe.name(r.label), kinds(r), tuple(s * factor for s in r.scores)) for r in rows if r.scores]
    if any(len(series.values) > 1 for series in seeds):
        svg = plots.dots(seeds, "Scores of every seed", score)
        drawn.append(Drawn(Markup(svg), "One dot for each seed; the bar is the mean."))
    points = [_point(row, one, kinds, _training(row)) for row in rows]
    return drawn + _pareto(points, "training time", "training with all stages, seconds", one)


def _training(row: Row) -> float | None:
    if row.train_seconds is None:
        return None
    return row.train_seconds + (row.stage_seconds or 0.0)


def _point(row: Row, one: Comparison, kinds: _Kinds, cost: float | None, prefix: str = "") -> plots.Point | None:
    if cost is None or safe.finite(cost) is None or row.mean is None or safe.finite(row.mean) is None:
        return None
    factor = _factor(one)
    low, high = row.interval or (None, None)
    label = f"{prefix}{safe.name(row.label)}"
    return plots.Point(label, kinds(row), cost, row.mean * factor, _scaled(low, factor), _scaled(high, factor))


def _pareto(points: Sequence[plots.Point | None], what: str, axis: str, one: Comparison) -> list[Drawn]:
    """Score against a cost, where that differs at all."""
    shown = [point for point in points if point is not None][:MARKS]
    if len({point.x for point in shown}) < 2:
        return []
    score = score_title(one.metric, one.unit)
    svg = plots.pareto(shown, f"{score} against {what}", axis, score, maximise=one.mode != "min")
    caption = f"{score} against {what}; the dashed line is the front that no other arm beats in both."
    return [Drawn(Markup(svg), caption)]


def of_task(task: Task) -> list[Drawn]:
    """Score against latency and parameters, over all students of the task."""

    def like(one: Comparison) -> tuple[str | None, str | None, str]:
        return one.metric, one.mode, one.scale

    first = task.headline.comparison
    views = [view for view in task.views if like(view.comparison) == like(first)]
    kinds = _Kinds([row for view in views for row in _students(view.comparison)])
    drawn = []
    for key, what, axis in (
        ("latency_ms", "latency", "one forward pass of the student, milliseconds"),
        ("parameters", "parameters", "parameters of the deployed student"),
    ):
        points = [
            _point(row, view.comparison, kinds, getattr(row, key), f"{safe.cut(view.student or '', 24)} ")
            for view in views
            for row in headline_rows(view.comparison)
        ]
        drawn += _pareto(points, what, axis, first)
    return drawn


def gaps(tasks: Sequence[Task], root: str) -> list[Drawn]:
    """The gap closed by every method on every task, from the task's comparison with most records."""
    rows, groups, without = [], [], 0
    for task in tasks:
        one = task.headline.comparison
        if not _teacher_is_better(one):
            without += 1
            continue
        arms = [row for row in judged_rows(one) if row.method != "alone"]
        kinds = _Kinds(arms)
        for row in arms:
            gap = safe.finite(row.gap_closed)
            if gap is not None:
                low, high = row.gap_interval or (None, None)
                href = f"{root}task/{task.slug}.html#{task.headline.id}"
                rows.append(plots.Interval(safe.name(row.label), kinds(row), gap, low, high, href))
                groups.append(safe.name(task.name))
    if not rows:
        return []
    caption = "Gap closed: 0 is the student alone, 1 its teacher; 95 % intervals (Fieller) where they are bounded."
    if len(rows) > ROWS:
        caption += f" The first {ROWS} of {len(rows)}; the others stand in the table."
    if without:
        caption += f" Tasks whose teacher is no better than the student alone are left out ({without})."
    svg = plots.intervals(rows[:ROWS], "Gap closed", "gap closed", groups=groups[:ROWS])
    return [Drawn(Markup(svg), caption)]


def _teacher_is_better(one: Comparison) -> bool:
    teacher = next((row.mean for row in one.rows if row.method == "teacher"), None)
    alone = next((row.mean for row in one.rows if row.label == one.alone), None)
    return teacher is not None and alone is not None and better(teacher - alone, one)


class Ranks(NamedTuple):
    """A critical-difference diagram, or why there is none."""

    figures: list[Drawn]
    sentence: str


def ranks(tasks: Sequence[Task]) -> Ranks:
    """Mean ranks of the methods over the tasks that share them, one comparison of each task.

    Drawn only where the critical difference is at most half of the largest difference of ranks, from about ten tasks
    on: with fewer, a diagram joins all methods by one bar, however they differ.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in tasks:
        one = task.headline.comparison
        sign = {"max": 1.0, "min": -1.0}.get(one.mode or "")
        if sign is not None:
            means = {row.method: safe.finite(row.mean) for row in judged_rows(one)}
            scores[task.name] = {method: sign * mean for method, mean in means.items() if mean is not None}
    chosen, names = _shared(scores)
    if len(chosen) < FEWEST or len(names) < FEWEST:
        reason = f"No critical-difference diagram: it needs {FEWEST} tasks that share {FEWEST} methods, "
        return Ranks([], reason + f"and {len(chosen)} of the {len(tasks)} here share {len(names)}.")
    ranking = critical_difference({name: [scores[task][name] for task in chosen] for name in names})
    if ranking.cd > (len(names) - 1) / 2:
        reason = f"No critical-difference diagram: over {len(chosen)} tasks, ranks of {len(names)} methods differ from "
        reason += f"{fixed(ranking.cd, 2)} on alone, more than half of the {len(names) - 1} that they can differ by."
        return Ranks([], reason)
    test = "" if ranking.p is None else f" (Friedman test of no difference at all: p {p_value(ranking.p)})"
    svg = plots.critical_difference_diagram(
        {safe.name(name): rank for name, rank in ranking.ranks.items()}, ranking.cd, "Mean ranks"
    )
    caption = f"Mean ranks over {ranking.blocks} tasks, 1 = best; methods under one bar are not told apart{test}."
    return Ranks([Drawn(Markup(svg), caption)], f"Ranked on {', '.join(map(safe.name, chosen[:20]))}.")


def _shared(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """The most tasks that share ``alone``, ``kd`` and a third method, and all methods that they share."""
    both = [task for task, means in scores.items() if {"alone", "kd"} <= means.keys()]
    thirds = sorted({method for task in both for method in scores[task]} - {"alone", "kd"})
    sets = [[task for task in both if method in scores[task]] for method in thirds]
    chosen = max(sets, key=len, default=both)
    names = set.intersection(*(set(scores[task]) for task in chosen)) if chosen else set()
    return chosen, sorted(names)


def of_record(record: Record) -> list[Drawn]:
    """Validation scores by epoch, and loss terms by epoch: of the run, then of each of its stages."""
    stages = {f"Stage {safe.cut(name, 80)}: ": report.curves for name, report in (record.reports or {}).items()}
    return [one for prefix, curves in {"": record.curves, **stages}.items() for one in _of_curves(curves, prefix)]


def _of_curves(curves: Mapping[str, Sequence[float]], prefix: str) -> Iterator[Drawn]:
    epochs = curves.get("epoch", [])
    step = max(1, -(-len(epochs) // POINTS))
    places = sorted({*range(0, len(epochs), step), len(epochs) - 1}) if epochs else []
    for course, chosen in _courses(curves).items():
        title = prefix + course
        lines = [
            plots.Series(safe.cut(name, 40), str(index), tuple(curves[name][place] for place in places))
            for index, name in enumerate(chosen[:LINES])
        ]
        if lines and len(places) > 1:
            svg = plots.curves([epochs[place] for place in places], lines, title, "epoch", "value")
            more = f" The first {LINES} of {len(chosen)} curves." if len(chosen) > LINES else ""
            thinned = f" Every {step}th epoch." if step > 1 else ""
            yield Drawn(Markup(svg), f"{title}.{more}{thinned}")


def _courses(curves: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
    names = sorted(name for name in curves if name != "epoch")
    validation = [name for name in names if name.startswith("val")]
    return {"Validation by epoch": validation, "Training by epoch": [name for name in names if name not in validation]}
