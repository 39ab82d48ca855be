"""Columns and cells of tables: what a person reads of a value, and the exact value for machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kdbench.board import safe
from kdbench.results.compare import Comparison, Row
from kdbench.results.render import LEVEL, MISSING, better, count, fixed, number, p_value, signed
from kdbench.results.stats import Estimate


@dataclass(frozen=True)
class Column:
    """A column; ``facet`` gets a menu of its values, ``hidden`` is shown on demand where there is a script."""

    key: str
    title: str
    type: Literal["text", "number"] = "number"
    facet: bool = False
    hidden: bool = False
    help: str = ""


@dataclass(frozen=True)
class Badge:
    """A word beside a value: generated, scale, control, reported or failed."""

    kind: str
    text: str


@dataclass(frozen=True)
class Cell:
    """``text`` is for people, ``value`` exact; no value: missing."""

    text: str = MISSING
    value: str | int | float | None = None
    low: float | None = None
    high: float | None = None
    href: str | None = None
    state: Literal["", "better", "worse", "unclear"] = ""
    badges: tuple[Badge, ...] = ()


@dataclass(frozen=True)
class Line:
    """A row of a table, named by ``key``."""

    key: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table. ``name`` is the file name of its downloads, ``cite`` the key of its citation."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    cite: str = "kdbench"


def text(value: str | None, href: str | None = None, badges: tuple[Badge, ...] = ()) -> Cell:
    """A cell of text."""
    return Cell() if value is None else Cell(safe.cut(value, 160), safe.cut(value), href=href, badges=badges)


def figure(value: float | None, shown: str | None = None, **more: Any) -> Cell:
    """A cell of a number; a number that is missing or not finite is missing."""
    held = safe.finite(value)
    return Cell() if held is None else Cell(shown if shown is not None else f"{held:,}", held, **more)


def arm_cell(row: Row, family: str, root: str) -> Cell:
    """The arm's name, linked to its method's page."""
    kind = row.kind
    badges: tuple[Badge, ...] = (Badge("control", kind),) if kind in ("control", "bound", "reference") else ()
    badges += (Badge("failed", f"{row.failed} failed"),) if row.failed else ()
    href = None if row.method == "teacher" else f"{root}method/{safe.slug(family)}--{safe.slug(row.method)}.html"
    return text(row.label, href, badges)


def score_cell(row: Row, unit: str) -> Cell:
    """Mean ± half of its 95 % interval."""
    if safe.finite(row.mean) is None or row.mean is None:
        return Cell()
    low, high = (None, None) if row.interval is None else map(safe.finite, row.interval)
    if low is None or high is None:
        return Cell(number(row.mean, unit), row.mean + 0.0)
    return Cell(f"{number(row.mean, unit)} ± {number((high - low) / 2, unit)}", row.mean + 0.0, low, high)


def seeds_cell(row: Row, unit: str) -> Cell:
    """The mean with its interval over seeds alone, which holds the test items for fixed."""
    own = row.estimate
    if own is None or safe.finite(own.mean) is None or own.seeds_low is None or own.seeds_high is None:
        return Cell()
    half = (own.seeds_high - own.seeds_low) / 2
    return Cell(f"{number(own.mean, unit)} ± {number(half, unit)}", own.mean + 0.0, own.seeds_low, own.seeds_high)


def delta_cell(delta: Estimate | None, p: float | None, comparison: Comparison) -> Cell:
    """A paired difference with its interval; its state says whether p is below the level, and in which direction.

    Differences without spread have no p, so they are neither better nor worse.
    """
    if delta is None or safe.finite(delta.mean) is None:
        return Cell()
    low, high, shown = safe.finite(delta.low), safe.finite(delta.high), signed(delta.mean, comparison.unit)
    if low is not None and high is not None:
        shown += f" [{signed(low, comparison.unit)}, {signed(high, comparison.unit)}]"
    shown += " (no spread)" if delta.flat else ""
    state: Literal["", "better", "worse", "unclear"] = "unclear"
    if p is not None and p < LEVEL and comparison.mode is not None:
        state = "better" if better(delta.mean, comparison) else "worse"
    return Cell(shown, delta.mean + 0.0, low, high, state=state)


def p_cell(p: float | None) -> Cell:
    """A p value."""
    return figure(p, None if p is None else p_value(p))


def gap_cell(row: Row) -> Cell:
    """The share of the gap to the teacher that is closed, with its interval where it is bounded."""
    gap = safe.finite(row.gap_closed)
    if gap is None:
        return Cell()
    low, high = (None, None) if row.gap_interval is None else map(safe.finite, row.gap_interval)
    bounds = "" if low is None or high is None else f" [{fixed(low, 2)}, {fixed(high, 2)}]"
    return Cell(fixed(gap, 2) + bounds, gap, *((low, high) if bounds else ()))


def cost_cells(row: Row) -> tuple[Cell, ...]:
    """Parameters, FLOPs, latency, time of a step and of training, stages' time and peak memory."""
    return (
        figure(row.parameters, shown(row.parameters, count)),
        figure(row.flops, shown(row.flops, count)),
        figure(row.latency_ms, shown(row.latency_ms, lambda value: fixed(value, 2))),
        figure(row.step_ms, shown(row.step_ms, lambda value: fixed(value, 2))),
        figure(row.train_seconds, shown(row.train_seconds, lambda value: fixed(value, 1))),
        figure(row.stage_seconds, shown(row.stage_seconds, lambda value: fixed(value, 1))),
        figure(row.peak_memory_bytes, shown(row.peak_memory_bytes, lambda value: fixed(value / 1e6, 0))),
    )


def shown(value: float | None, write: Callable[[float], str]) -> str | None:
    """What ``write`` makes of a number; None for one that is missing or not finite."""
    held = safe.finite(value)
    return None if held is None else write(held)


COSTS = (
    Column("parameters", "parameters", help="parameters of the deployed student"),
    Column(
        "flops",
        "FLOPs",
        hidden=True,
        help="operations of a forward pass: of one example, in protocol 1 of a batch",
    ),
    Column("latency_ms", "latency ms", help="median time of a forward pass: of one example, in protocol 1 of a batch"),
    Column("step_ms", "step ms", hidden=True, help="median time of a training step"),
    Column("train_seconds", "train s", help="time of the student's training steps; in protocol 1 its wall time"),
    Column("stage_seconds", "stages s", help="wall time of the method's other stages"),
    Column(
        "peak_memory_bytes",
        "peak MB",
        hidden=True,
        help="memory of training beyond the libraries; in protocol 1 all",
    ),
)


def score_title(metric: str | None, unit: str) -> str:
    """What the column of scores is called."""
    return " ".join([safe.name(metric) if metric else "score", *([safe.name(unit)] if unit else [])])
