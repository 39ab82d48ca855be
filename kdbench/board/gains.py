"""What each method gains in the comparison that its task's card stands for: a table that the README takes over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdbench.errors import DataError
from kdbench.hashing import write_atomic
from kdbench.plan.cards import Card, Primary, card, task_paths
from kdbench.results.audit import Audit, audit
from kdbench.results.compare import Comparison, Row
from kdbench.results.record import PROTOCOL, Record
from kdbench.results.render import MISSING, number, p_value, signed
from kdbench.results.stats import Estimate

BEGIN, END = "<!-- gains -->", "<!-- /gains -->"
HEADINGS = ("task, student, metric", "reference", "teacher", "alone", "kd", "method", "− alone", "− kd", "audit")


def primary(records: Sequence[Record]) -> list[tuple[Primary, Audit]]:
    """The comparisons that installed cards stand for, in the order of the tasks' names, with what an audit says."""
    cards = [(one, one.primary) for name in sorted(task_paths()) if (one := card(name)).primary]
    judged = [(wanted, _audited(one, wanted, records)) for one, wanted in cards if wanted]
    return [(wanted, one) for wanted, one in judged if one]


def _audited(task: Card, wanted: Primary, records: Sequence[Record]) -> Audit | None:
    """The primary comparison of a card in this protocol; of several with other teachers the one with most runs."""
    mine = [record for record in records if (record.task, record.protocol) == (task.name, PROTOCOL)]
    students = {record.group: record.config["student"] for record in mine}
    fit = [
        one
        for one in audit(mine)
        if wanted.asks_for(one.comparison.scale, students[one.comparison.group], one.comparison.settings)
    ]
    return max(fit, key=lambda one: sum(row.n for row in one.comparison.rows), default=None)


def table(records: Sequence[Record]) -> str:
    """A Markdown table with a row for each method of each task's primary comparison, or for ``kd`` where there is none.

    It ends with a newline.
    """
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for wanted, one in primary(records):
        lines += _lines(wanted, one)
    if len(lines) == 2:
        return "No comparison of this protocol is on record yet.\n"
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _lines(wanted: Primary, judged: Audit) -> Iterator[tuple[str, ...]]:
    one = judged.comparison
    student = ", ".join(str(value) for value in wanted.student.values())
    metric = f"{one.metric} {one.unit}".strip()
    shared = [_score(_first(one, kind), one) for kind in ("reference", "teacher")]
    shared += [_score(_labelled(one, label), one) for label in (one.alone, one.kd)]
    kd = _labelled(one, one.kd)
    for row in [row for row in one.rows if row.kind == "method" and row.n] or ([kd] if kd else []):
        gains = (_gain(delta, p, one) for delta, p in ((row.delta_alone, row.p_alone), (row.delta_kd, row.p_kd)))
        about = f"`{one.task}`, {student}, {metric}, {row.n} seeds"
        yield (about, *shared, f"{row.label} {_score(row, one)}", *gains, judged.state)


def _first(comparison: Comparison, kind: str) -> Row | None:
    return next((row for row in comparison.rows if row.kind == kind), None)


def _labelled(comparison: Comparison, label: str | None) -> Row | None:
    return next((row for row in comparison.rows if row.label == label), None)


def _score(row: Row | None, comparison: Comparison) -> str:
    if row is None or row.mean is None:
        return MISSING
    unit = comparison.unit
    half = f" ± {number((row.interval[1] - row.interval[0]) / 2, unit)}" if row.interval else ""
    return number(row.mean, unit) + half


def _gain(delta: Estimate | None, p: float | None, comparison: Comparison) -> str:
    if delta is None:
        return MISSING
    unit = comparison.unit
    shown = signed(delta.mean, unit)
    if delta.low is None or delta.high is None or p is None:
        return shown
    said = p_value(p) if p < 0.001 else f"= {p_value(p)}"
    return f"{shown} [{signed(delta.low, unit)}, {signed(delta.high, unit)}], p {said}"


def insert(text: str, into: Path) -> bool:
    """Put a table between the marks of a file; whether that changed it. Raises :class:`DataError` without the marks."""
    before = into.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{into} lacks the marks {BEGIN} and {END}.")
    after = f"{head}{BEGIN}\n{text}{END}{tail}"
    if after != before:
        write_atomic(into, after)
    return after != before
