"""What the site shows: each task's comparisons, and what its pages and tables are called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pydantic import JsonValue

from kdbench.board import safe
from kdbench.plan.cards import Card, card, task_paths
from kdbench.results.audit import Audit, audited
from kdbench.results.compare import Comparison, Row, compare
from kdbench.results.headline import card_of
from kdbench.results.record import PROTOCOL, Record

SCALES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Run:
    """A record that a page links to: its page's name, its seed, and whether it failed."""

    hash16: str
    seed: int
    method: str
    failed: bool


@dataclass(frozen=True)
class View:
    """One comparison on a task's page.

    ``student`` is its name, or its options where it has none; ``others`` are mean scores of the metrics beside the
    first: label -> metric -> score.
    """

    id: str
    comparison: Comparison
    student: str | None
    records: int
    failures: tuple[Run, ...]
    others: Mapping[str, Mapping[str, float]]
    audit: Audit | None
    """Whether the comparison is sound; None for one without a method."""
    primary: bool
    """Whether it is the one that the task's card stands for."""


@dataclass(frozen=True)
class Task:
    """A task that has records: its comparisons, the card's primary one first, then those with most records."""

    name: str
    slug: str
    family: str
    records: int
    views: tuple[View, ...]
    methods: tuple[str, ...]
    newest: str

    @property
    def headline(self) -> View:
        """The comparison that the card stands for, else the one with most records."""
        return self.views[0]


def installed_card(task: str) -> Card | None:
    """The task's card, where it is installed here."""
    return card(task) if task in task_paths() else None


def task_of(records: Sequence[Record]) -> Task:
    """All comparisons of the records of one task, whatever the order of the records."""
    ordered = sorted(records, key=lambda record: record.config_hash)
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in ordered:
        groups[record.group].append(record)
    runs = {record.config_hash: record for record in ordered}
    views: list[View] = []
    known = card_of(ordered[0].task, ordered[0].family)
    primary = known.primary if known else None
    for group, members in groups.items():
        failures = tuple(
            Run(r.config_hash[:16], r.seed, r.method, True)
            for r in sorted(members, key=lambda r: (r.method, r.seed, r.config_hash))
            if r.status == "failed"
        )
        for comparison in compare(members):
            count = sum(row.n + row.failed for row in comparison.rows if row.method != "teacher")
            student = comparison.student or _options(members[0].config["student"])
            label = safe.identifier(student or "student", comparison.scale, group[:8])
            judged, more = audited(comparison, runs), _others(comparison, runs)
            about = comparison.scale, members[0].config["student"], comparison.settings
            stands = primary is not None and members[0].protocol == PROTOCOL and primary.asks_for(*about)
            views.append(View(label, comparison, student, count, failures, more, judged, stands))
    views.sort(key=_rank)
    named = Counter[str]()
    for place, view in enumerate(views):
        named[view.id] += 1
        if named[view.id] > 1:
            views[place] = replace(view, id=f"{view.id}-{named[view.id]}")
    first = ordered[0]
    names = tuple(sorted({record.method for record in ordered}))
    newest = max(record.finished.date().isoformat() for record in ordered)
    return Task(first.task, safe.task_slug(first.task), first.family, len(ordered), tuple(views), names, newest)


def _options(student: JsonValue) -> str | None:
    """The options of a student without a name."""
    if not isinstance(student, dict):
        return None if student is None else str(student)
    return ", ".join(f"{key}={value}" for key, value in student.items()) or None


def _rank(view: View) -> tuple[bool, int, bool, int, str, str]:
    """The card's primary comparison, most records, measured before generated data, the larger scale."""
    one = view.comparison
    generated, scale = bool(one.generated), -SCALES.index(one.scale)
    return not view.primary, -view.records, generated, scale, view.id, one.teacher or ""


def _others(comparison: Comparison, runs: Mapping[str, Record]) -> dict[str, dict[str, float]]:
    others: dict[str, dict[str, float]] = {}
    for row in comparison.rows:
        tests = [metrics.test for key in row.runs if row.method != "teacher" and (metrics := runs[key].metrics)]
        shared = set.intersection(*map(set, tests)) - {comparison.metric} if tests else set()
        others[row.label] = {name: _mean(test[name] for test in tests) for name in sorted(shared)}
    return others


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    try:
        return fmean(listed)
    except OverflowError:
        return sum(value / len(listed) for value in listed)


def rows_of(task: Task, method: str) -> Iterable[tuple[View, Row]]:
    """The rows of a method in all comparisons of a task."""
    return ((view, row) for view in task.views for row in view.comparison.rows if row.method == method)
