"""By which metric the runs of one group are compared, and in which direction."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.errors import KdbenchError
from kdbench.plan import metrics
from kdbench.plan.cards import Card, read_card, task_paths
from kdbench.plan.metrics import Mode
from kdbench.results.record import Record


@dataclass(frozen=True)
class Headline:
    """The metric's name, direction and unit; None or empty where they are not known.

    ``margin`` is the difference that the task's card calls none (:attr:`kdbench.plan.cards.Primary.margin`).
    """

    metric: str | None
    mode: Mode | None
    unit: str
    margin: float | None = None


def headline(group: Sequence[Record], named: str | None = None) -> Headline:
    """The metric of the task's card unless one is ``named``, as its family declares it.

    Only of what is not installed here the runs tell metric and direction themselves. Raises :class:`KdbenchError` where
    they were selected by different metrics, or in different directions.
    """
    own, mode = _selected_by(group) or (None, None)
    family = group[0].family
    card = card_of(group[0].task, family)
    metric = named or (card.metric if card else None) or own
    declared = metrics.lookup(family, metric) if metric else None
    if declared is None:
        return Headline(metric, mode if metric == own else None, "")
    primary = card.primary if card else None
    margin = primary.margin if primary and primary.metric == metric else None
    return Headline(metric, declared.mode, declared.unit, margin)


def _selected_by(group: Sequence[Record]) -> tuple[str, Mode] | None:
    """What all runs of a group were selected by; None where none was."""
    selections: dict[tuple[str, Mode], Record] = {}
    for run in group:
        if run.selection:
            selections.setdefault((run.selection.metric, run.selection.mode), run)
    if len(selections) > 1:
        choices = "; ".join(
            f"{metric} ({mode}) by {run.method}, seed {run.seed}, {run.config_hash[:16]}"
            for (metric, mode), run in selections.items()
        )
        place = f"{group[0].task}, {group[0].scale}"
        raise KdbenchError(f"{place}: these runs are not comparable, for they were selected by {choices}.")
    return next(iter(selections), None)


@functools.cache
def card_of(task: str, family: str) -> Card | None:
    """The task's card, where it is installed here."""
    path = task_paths().get(task)
    card = read_card(path, task, options=False) if path else None
    return card if card and card.family == family else None
