"""The tables of the pages, as columns and cells that a template, CSV and JSON can be made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdbench.board import safe
from kdbench.board.cells import (
    COSTS,
    Badge,
    Cell,
    Column,
    Line,
    Table,
    arm_cell,
    cost_cells,
    delta_cell,
    figure,
    gap_cell,
    p_cell,
    score_cell,
    score_title,
    seeds_cell,
    shown,
    text,
)
from kdbench.board.model import Task, View, rows_of
from kdbench.plan import metrics
from kdbench.plan.cards import Reported
from kdbench.results import render
from kdbench.results.compare import Comparison, Row
from kdbench.results.render import fixed, number
from kdbench.results.stats import Estimate


def comparison_table(view: View, task: Task, root: str = "../") -> Table:
    """One row for each arm of a comparison."""
    comparison = view.comparison
    names = sorted({name for scores in view.others.values() for name in scores})[:12]
    others = {name: metrics.unit(comparison.family, name) for name in names}
    columns = (
        Column("arm", "arm", "text"),
        Column("kind", "kind", "text", facet=True, hidden=True),
        Column("n", "seeds", help="runs that finished"),
        Column("failed", "failed", hidden=True, help="runs that failed"),
        Column(
            "mean", score_title(comparison.metric, comparison.unit), help="mean over seeds ± half of its 95 % interval"
        ),
        Column("delta_alone", "Δ alone", help="paired difference to the student without a teacher [interval]"),
        Column("p_alone", "p alone", help="test against alone, Holm within its family of contrasts"),
        Column("delta_kd", "Δ kd", help="paired difference to plain distillation [interval]"),
        Column("p_kd", "p kd", help="test against kd, Holm within its family of contrasts"),
        Column("delta_real", "real − control", hidden=True, help="the method with its real teacher minus this control"),
        Column("p_real", "p real", hidden=True, help="test of real − control, Holm over the controls"),
        Column(
            "over", "interval over", "text", hidden=True, help="what the intervals are over: seeds, splits, test items"
        ),
        Column("mean_seeds", "over seeds", hidden=True, help="mean with its 95 % t interval over seeds alone"),
        Column("pairs_alone", "pairs alone", hidden=True, help="pairs of runs in Δ alone"),
        Column("pairs_kd", "pairs kd", hidden=True, help="pairs of runs in Δ kd"),
        Column("collapsed", "collapsed %", hidden=True, help="share of runs that do no better than a constant"),
        Column("letters", "group", "text", help="arms that share a letter are not distinguishable"),
        Column("gap_closed", "gap closed", help="(arm − alone) / (teacher − alone) [95 % interval]"),
        Column("agreement", "agreement %", help="share of test examples predicted as the teacher predicts them"),
        *COSTS,
        *(
            Column(f"test.{safe.key(name)}", score_title(name, unit), hidden=True, help="mean over seeds")
            for name, unit in others.items()
        ),
    )
    lines = []
    for row in comparison.rows:
        share = safe.finite(row.agreement)
        cells = (
            arm_cell(row, task.family, root),
            text(row.kind),
            figure(row.n),
            figure(row.failed),
            score_cell(row, comparison.unit),
            delta_cell(row.delta_alone, row.p_alone, comparison),
            p_cell(row.p_alone),
            delta_cell(row.delta_kd, row.p_kd, comparison),
            p_cell(row.p_kd),
            delta_cell(row.delta_real, row.p_real, comparison),
            p_cell(row.p_real),
            text(row.estimate.over if row.estimate else None),
            seeds_cell(row, comparison.unit),
            figure(row.delta_alone.n if row.delta_alone else None),
            figure(row.delta_kd.n if row.delta_kd else None),
            figure(row.collapsed, shown(row.collapsed, lambda share: fixed(100 * share, 0))),
            text(row.letters or None),
            gap_cell(row),
            figure(share, None if share is None else fixed(100 * share, 2)),
            *cost_cells(row),
            *(_other(view.others.get(row.label, {}).get(name), unit) for name, unit in others.items()),
        )
        lines.append(Line(safe.key(row.label), cells))
    return Table(f"{task.slug}-{view.id}", render_title(comparison), columns, tuple(lines))


def _other(value: float | None, unit: str) -> Cell:
    return figure(value, shown(value, lambda held: number(held, unit)))


def render_title(comparison: Comparison) -> str:
    """The comparison in words, short enough for a caption."""
    return safe.cut(render.title(comparison), 300)


def context_cells(view: View, task: Task, root: str) -> tuple[Cell, ...]:
    """Family, task, scale, data, student and metric of a row that stands among those of other comparisons."""
    one = view.comparison
    generated = (Badge("generated", "generated data"),) if one.generated else ()
    return (
        text(task.family, f"{root}family/{safe.slug(task.family)}.html"),
        text(task.name, f"{root}task/{task.slug}.html#{view.id}", generated),
        text(one.scale),
        text(view.student),
        text(one.metric),
    )


CONTEXT = (
    Column("family", "family", "text", facet=True),
    Column("task", "task", "text", facet=True),
    Column("scale", "scale", "text", facet=True),
    Column("student", "student", "text", facet=True),
    Column("metric", "metric", "text", facet=True, hidden=True),
)

RESULTS = (
    Column("n", "seeds", help="runs that finished"),
    Column("mean", "score", help="mean test score ± half of its 95 % interval, in the task's metric"),
    Column("delta_alone", "Δ alone", help="paired difference to the student without a teacher [interval]"),
    Column("p_alone", "p alone", help="test against alone, Holm within its family of contrasts"),
    Column("delta_kd", "Δ kd", help="paired difference to plain distillation [interval]"),
    Column("p_kd", "p kd", help="test against kd, Holm within its family of contrasts"),
    Column("gap_closed", "gap closed", help="(method − alone) / (teacher − alone) [95 % interval]"),
    Column("train_seconds", "train s", help="wall time of the student's training"),
)


def result_cells(row: Row, comparison: Comparison) -> tuple[Cell, ...]:
    """The cells of ``RESULTS``."""
    return (
        figure(row.n),
        score_cell(row, comparison.unit),
        delta_cell(row.delta_alone, row.p_alone, comparison),
        p_cell(row.p_alone),
        delta_cell(row.delta_kd, row.p_kd, comparison),
        p_cell(row.p_kd),
        gap_cell(row),
        figure(row.train_seconds, shown(row.train_seconds, lambda value: fixed(value, 1))),
    )


def headline_table(tasks: Sequence[Task], name: str, caption: str, root: str, families: bool = True) -> Table:
    """One row for each method of every task, from the task's comparison with most records; ``families`` are named."""
    first = 0 if families else 1
    kind = Column("kind", "kind", "text", facet=True, hidden=True)
    columns = (Column("arm", "method", "text", facet=True), kind, *CONTEXT[first:], *RESULTS)
    lines = []
    for task in tasks:
        view = task.headline
        for row in headline_rows(view.comparison):
            arm = (arm_cell(row, task.family, root), text(row.kind))
            cells = (*arm, *context_cells(view, task, root)[first:])
            line = (*cells, *result_cells(row, view.comparison))
            lines.append(Line(safe.key(f"{task.name} {row.label}"), line))
    return Table(name, caption, columns, tuple(lines))


def headline_rows(comparison: Comparison) -> list[Row]:
    """The arms of a comparison with default settings, and those of a method without them; no teacher, no control."""
    rows = [row for row in comparison.rows if row.control == "none" and row.n]
    usual = {row.method for row in rows if row.default}
    return [row for row in rows if row.kind not in ("teacher", "ablation") and (row.default or row.method not in usual)]


def judged_rows(comparison: Comparison) -> list[Row]:
    """Those headline rows that say what distillation is worth: baselines and methods, but no control and no bound."""
    kinds = ("baseline", "method")
    return [row for row in headline_rows(comparison) if row.kind in kinds]


def method_table(tasks: Sequence[Task], method: str, root: str) -> Table:
    """One row for each comparison, setting and control of a method."""
    setting = (Column("arm", "settings", "text"), Column("kind", "kind", "text", facet=True, hidden=True))
    lines = []
    for task in tasks:
        for view, row in rows_of(task, method):
            cells = (
                arm_cell(row, task.family, root),
                text(row.kind),
                *context_cells(view, task, root)[1:],
            )
            line = (*cells, *result_cells(row, view.comparison))
            lines.append(Line(safe.key(f"{task.slug} {view.id} {row.label}"), line))
    return Table(
        f"method-{safe.slug(method)}",
        "Every comparison, setting and control",
        (*setting, *CONTEXT[1:], *RESULTS),
        tuple(lines),
    )


def settings_table(tasks: Sequence[Task], method: str, root: str) -> Table:
    """What other than default settings change: each such arm minus the method's default one, paired by seed."""
    lines = []
    for task in tasks:
        for view, row in rows_of(task, method):
            delta, p = _to_default(row)
            if delta is not None:
                difference = (figure(delta.n), delta_cell(delta, p, view.comparison), p_cell(p))
                cells = (text(row.label), *context_cells(view, task, root)[1:], *difference)
                lines.append(Line(safe.key(f"{task.slug} {view.id} {row.label}"), cells))
    columns = (
        Column("arm", "settings", "text"),
        *CONTEXT[1:],
        Column("n", "pairs", help="seeds that both settings have"),
        Column("delta_default", "Δ default", help="paired difference to the default settings [interval]"),
        Column("p_default", "p", help="Holm over the ablations of each comparison"),
    )
    return Table(
        f"settings-{safe.slug(method)}", "Other settings minus the default ones, paired by seed", columns, tuple(lines)
    )


def _to_default(row: Row) -> tuple[Estimate | None, float | None]:
    """The difference of an ablation to the arm with default settings, and its p."""
    if row.kind != "ablation":
        return None, None
    of_baseline = {"alone": (row.delta_alone, row.p_alone), "kd": (row.delta_kd, row.p_kd)}
    return of_baseline.get(row.method, (row.delta_default, row.p_default))


def reported_table(task: Task, reported: Iterable[Reported]) -> Table:
    """Published numbers, each beside what was measured here for the same arm, student and metric."""
    columns = (
        Column("arm", "arm", "text"),
        Column("student", "student", "text", facet=True),
        Column("metric", "metric", "text"),
        Column("reported", "reported", help="the publication's number, in its own setting"),
        Column("measured", "measured here", help="mean over seeds ± half of its 95 % interval"),
        Column("n", "seeds"),
        Column("scale", "scale", "text"),
        Column("source", "source", "text"),
    )
    lines = []
    for place, entry in enumerate(reported):
        view, row = _measured(task, entry)
        unit = metrics.unit(task.family, entry.metric)
        spread = "" if entry.spread is None else f" ± {number(entry.spread, unit)}"
        shown = figure(entry.value, number(entry.value, unit) + spread, badges=(Badge("reported", "reported"),))
        cells = (
            text(entry.arm),
            text(entry.student),
            text(entry.metric),
            shown,
            score_cell(row, unit) if row else Cell(),
            figure(row.n) if row else Cell(),
            text(view.comparison.scale, f"#{view.id}") if view else Cell(),
            text(entry.source),
        )
        lines.append(Line(f"{place + 1} {safe.key(entry.arm)}", cells))
    return Table(f"{task.slug}-reported", "Reported in publications, not measured here", columns, tuple(lines))


def _measured(task: Task, entry: Reported) -> tuple[View | None, Row | None]:
    """The row of the same arm, student and metric; of several that of the comparison with most records."""
    for view in task.views:
        one = view.comparison
        if one.metric == entry.metric and entry.student in (None, one.student):
            for row in one.rows:
                if row.method == entry.arm and row.control == "none" and (row.default or row.method == "teacher"):
                    return view, row
    return None, None
