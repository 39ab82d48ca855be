"""Whether a comparison is sound: trained students, a student alone that reaches its reference, a teacher above it.

A gain over a baseline that was not trained tells only that more training helps. Five checks, each of an arm:

- ``converged``: a run is still rising when its kept epoch lies in the last tenth of its epochs *and* its validation
  score rises there, ``mean(last k) − mean(k before) > 1.645 s √(2/k)``: k is a tenth of the validations, s their noise,
  the standard deviation of successive differences over the second half, divided by √2. At most one run of five may be.
  A rate that anneals makes every curve flat: of the student alone a longer training (``alone`` with a larger
  ``budget``) has to be on record then, and not above it by more than the interval of their difference.
- ``reference``: the student alone is not below the card's reference by more than the interval of their difference.
- ``teacher``: the teacher's mean is above that of the student alone, over the same seeds.
- ``search``: its options were chosen by a search on validation data that is on record, as those of every other arm.
- ``collapse``: at most one run of ten predicts a single class, or has a class with a score of nothing.

A check that fails may be excused by the task's card, in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdbench.plan.cards import Card
from kdbench.results.arms import collapsed
from kdbench.results.compare import Comparison, Row, compare
from kdbench.results.headline import card_of
from kdbench.results.record import Record
from kdbench.results.stats import Estimate, paired

State = Literal["sound", "excused", "unsound"]
ONE_SIDED = 1.6448536269514722
"""The 95 % quantile of the normal distribution."""
FEWEST = 4
"""Validations from which a curve can be seen to rise."""
RISING, COLLAPSED = 0.2, 0.1
"""Shares of an arm's runs that may still rise, or be collapsed."""


@dataclass(frozen=True)
class Verdict:
    """What one check says of one arm, and the card's excuse where it fails."""

    check: str
    arm: str
    holds: bool
    why: str
    excuse: str | None = None


@dataclass(frozen=True)
class Audit:
    """A comparison and what every check says of it."""

    comparison: Comparison
    verdicts: tuple[Verdict, ...]

    @property
    def state(self) -> State:
        """``sound`` where every check holds, ``excused`` where the card has words for each that does not."""
        failed = [one for one in self.verdicts if not one.holds]
        if not failed:
            return "sound"
        return "excused" if all(one.excuse for one in failed) else "unsound"

    @property
    def faults(self) -> tuple[str, ...]:
        """The checks that fail, in words; with the card's excuse where it has one."""
        failed = [one for one in self.verdicts if not one.holds]
        return tuple(f"{v.arm}: {v.why}" + (f" (excused: {v.excuse})" if v.excuse else "") for v in failed)


def audit(records: Sequence[Record]) -> list[Audit]:
    """What the checks say of every comparison of these records that holds a method against ``alone``."""
    runs = {record.config_hash: record for record in records}
    return [judged for one in compare(records) if (judged := audited(one, runs))]


def audited(comparison: Comparison, runs: Mapping[str, Record]) -> Audit | None:
    """What the checks say of a comparison; None for one without a method. ``runs`` are its records, by hash."""
    return Audit(comparison, tuple(_verdicts(comparison, runs))) if _compares(comparison) else None


def _compares(comparison: Comparison) -> bool:
    return any(row.kind == "method" or row.method == "kd" for row in comparison.rows if row.n)


def _verdicts(comparison: Comparison, runs: Mapping[str, Record]) -> Iterator[Verdict]:
    card = card_of(comparison.task, comparison.family)
    excused = card.excused if card else {}

    def verdict(check: str, arm: Row | str, holds: bool, why: str) -> Verdict:
        method, label = (arm, arm) if isinstance(arm, str) else (arm.method, arm.label)
        excuse = next(
            (excused[key] for key in (f"{label}.{check}", f"{method}.{check}", check) if key in excused), None
        )
        return Verdict(check, label, holds, why, None if holds else excuse)

    trained = [row for row in comparison.rows if row.kind in ("baseline", "method", "ablation") and row.n]
    for row in trained:
        made = [runs[name] for name in row.runs if name in runs]
        rising = [one for one in (still_rising(run) for run in made) if one is not None]
        if rising:
            late = sum(rising)
            why = f"{late} of {len(rising)} runs still rise at their end"
            yield verdict("converged", row, late <= RISING * len(rising), why)
        elif any(run.curves.get("epoch") for run in made):
            yield verdict("converged", row, False, f"fewer than {FEWEST} validations: it cannot be seen to converge")
        gone = sum(map(collapsed, made))
        if made:
            yield verdict("collapse", row, gone <= COLLAPSED * len(made), f"{gone} of {len(made)} runs collapsed")
    for row in trained:
        if row.kind != "ablation" and not all(runs[name].search for name in row.runs if name in runs):
            yield verdict("search", row, False, "no search on validation data chose its options")
    alone = next((row for row in trained if row.label == comparison.alone), None)
    if alone is None:
        yield verdict("reference", "alone", False, "no student alone is on record")
        return
    yield from (verdict("converged", alone, *one) for one in _outlasted(comparison, alone, runs))
    yield verdict("reference", alone, *_reached(comparison, card))
    teacher = next((row for row in comparison.rows if row.method == "teacher"), None)
    if teacher is not None:
        yield verdict("teacher", teacher, *_above(teacher, alone, comparison))


def _reached(comparison: Comparison, card: Card | None) -> tuple[bool, str]:
    """Whether the student alone is not below the card's reference by more than the interval of their difference."""
    if card is None or card.reference is None:
        return False, "the task's card names no reference"
    row = next((row for row in comparison.rows if row.method == card.reference and row.control == "none"), None)
    delta = row.delta_alone if row else None
    if delta is None:
        return False, f"no run of its reference {card.reference} pairs with it on record"
    ahead, low = _better(delta.mean, comparison), _least(delta, comparison)
    shown = f"{card.reference} is {'above' if ahead > 0 else 'not above'} it by {abs(ahead):.4f}"
    return low <= 0, f"{shown} over {delta.n} seeds" + ("" if low > 0 or ahead <= 0 else ", within the interval")


def _above(teacher: Row, alone: Row, comparison: Comparison) -> tuple[bool, str]:
    scores = dict(zip(alone.seeds, alone.scores, strict=True))
    pairs = [(own, scores[seed]) for seed, own in zip(teacher.seeds, teacher.scores, strict=True) if seed in scores]
    if not pairs:
        return False, "shares no seed with the student alone"
    ahead = _better(paired(*zip(*pairs, strict=True)).mean, comparison)
    return ahead > 0, f"{'above' if ahead > 0 else 'not above'} the student alone by {abs(ahead):.4f}"


def _outlasted(comparison: Comparison, alone: Row, runs: Mapping[str, Record]) -> Iterator[tuple[bool, str]]:
    """What the longer trainings of the student alone say of its own; nothing where its rate does not anneal."""
    own = next((runs[name] for name in alone.runs if name in runs), None)
    if own is None:
        return
    longer = [
        row
        for row in comparison.rows
        if row.method == "alone" and any(_budget(runs[name]) > _budget(own) for name in row.runs if name in runs)
    ]
    for row in longer:
        if row.delta_alone is not None:
            ahead, low = _better(row.delta_alone.mean, comparison), _least(row.delta_alone, comparison)
            shown = "gains" if ahead > 0 else "loses"
            yield low <= 0, f"{row.label} {shown} {abs(ahead):.4f} over {row.delta_alone.n} seeds"
    optimizer = own.config["optimizer"]
    anneals = isinstance(optimizer, dict) and optimizer.get("schedule", "constant") != "constant"
    if not longer and anneals:
        yield False, "its rate anneals, so that a flat end says nothing, and no longer training of it is on record"


def _budget(run: Record) -> float:
    method = run.config["method"]
    budget = method.get("budget", 1.0) if isinstance(method, dict) else 1.0
    return float(budget) if isinstance(budget, int | float) else 1.0


def _least(delta: Estimate, comparison: Comparison) -> float:
    """The end of a difference's interval that speaks least for it; the difference itself where it has none."""
    if delta.low is None or delta.high is None:
        return _better(delta.mean, comparison)
    return min(_better(delta.low, comparison), _better(delta.high, comparison))


def _better(difference: float, comparison: Comparison) -> float:
    return -difference if comparison.mode == "min" else difference


@np.errstate(over="ignore", invalid="ignore")
def still_rising(run: Record) -> bool | None:
    """Whether a run would have gained from more epochs; None where its curve does not tell."""
    epochs, chosen = run.curves.get("epoch", []), run.selection
    curve = run.curves.get(f"val/{chosen.metric}", []) if chosen else []
    if chosen is None or len(curve) < FEWEST:
        return None
    if chosen.epoch + 1 <= 0.9 * (epochs[-1] + 1):
        return False
    values = np.asarray(curve) * (-1 if chosen.mode == "min" else 1)
    k = max(1, len(values) // 10)
    noise = float(np.diff(values[len(values) // 2 :]).std()) / math.sqrt(2) if len(values) > FEWEST else 0.0
    gain = float(values[-k:].mean() - values[-2 * k : -k].mean())
    return gain > ONE_SIDED * noise * math.sqrt(2 / k)
