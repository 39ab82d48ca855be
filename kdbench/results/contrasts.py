"""Which arms are held against which, in families of tests that are declared before a number is seen.

- ``baseline``: kd − alone;
- ``primary``: each method − kd, and each method − alone, at equal total budget where such a student alone was trained;
- ``ablation``: an arm with other hyper-parameters − the same with its own;
- ``control``: the method − its control; and what controls that are methods of their own do to alone and kd;
- ``bound`` and ``reference``: theirs to alone and kd.

Other differences to alone and kd, of ablations and of shuffled or random teachers, are shown at 95 % and not tested.

Holm's correction runs within a family. Intervals and detectable differences are at the level of the family's first
step, α = 0.05 / m of its m tests, so that all its intervals hold at once with 95 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdbench.results.arms import Arm, Kind, counterpart, longer
from kdbench.results.crossed import matched, units_of
from kdbench.results.ranks import LEVEL, Matrix, pairwise
from kdbench.results.stats import ByItem, Estimate, adjusted, estimate, paired, raw_p, resolution

UNTESTED = "untested"
Against = Literal["alone", "kd", "real", "default"]


@dataclass(frozen=True)
class Contrast:
    """The mean of one arm's scores less another's over their common seeds; ``p`` is adjusted within the family.

    ``of`` is the label of the arm in whose row it stands, ``first`` and ``second`` are those of first − second.
    """

    of: str
    against: Against
    family: str
    first: str
    second: str
    estimate: Estimate
    p: float | None = None


def contrasts(
    arms: Sequence[Arm], kinds: Sequence[Kind], alone: Arm | None, kd: Arm | None, margin: float | None = None
) -> dict[tuple[str, Against], Contrast]:
    """Every declared contrast with a common seed, by its row's label and what it is against."""
    families: dict[str, list[tuple[Arm, Against, Arm, Arm]]] = defaultdict(list)
    for arm, kind in zip(arms, kinds, strict=True):
        for against, first, second in _declared(arm, kind, arms, kinds, alone, kd):
            if first.scores.keys() & second.scores.keys():
                tested = against in ("real", "default", arm.method) or (kind != "ablation" and arm.control == "none")
                family: str = "primary" if kind == "method" else kind
                families[family if tested else UNTESTED].append((arm, against, first, second))
    listed: dict[tuple[str, Against], Contrast] = {}
    for name, members in families.items():
        raw = [difference(first, second) for *_, first, second in members]
        tests = 1 if name == UNTESTED else sum(raw_p(one) is not None for one in raw)
        given = raw
        if tests > 1 or margin:
            given = [difference(first, second, LEVEL / max(1, tests), margin) for *_, first, second in members]
        corrected = [None] * len(given) if name == UNTESTED else adjusted(given)
        for (arm, against, first, second), one, p in zip(members, given, corrected, strict=True):
            listed[arm.label, against] = Contrast(arm.label, against, name, first.label, second.label, one, p)
    return listed


def _declared(
    arm: Arm, kind: Kind, arms: Sequence[Arm], kinds: Sequence[Kind], alone: Arm | None, kd: Arm | None
) -> Iterable[tuple[Against, Arm, Arm]]:
    if alone is not None and arm is not alone:
        equal = longer(arm, arms, kd) if kind == "method" else None
        yield "alone", arm, equal or alone
    if kd is not None and alone is not arm is not kd:
        yield "kd", arm, kd
    if kind == "ablation" and arm.method not in ("alone", "kd"):
        yield from (("default", arm, one) for one in arms if one.default and one.method == arm.method and one.scores)
    if kind == "control" and (real := counterpart(arm, arms, kinds)) is not None:
        yield "real", real, arm


def difference(first: Arm, second: Arm, alpha: float = LEVEL, margin: float | None = None) -> Estimate:
    """first − second over their common seeds, over seeds and items where both arms' runs left their outcomes.

    Raises ValueError for arms without a common seed.
    """
    seeds = [seed for seed in first.scores if seed in second.scores]
    return paired(
        [first.scores[seed] for seed in seeds],
        [second.scores[seed] for seed in seeds],
        units=_units(first, seeds),
        by_item=_matched(first, second, seeds),
        alpha=alpha,
        margin=margin,
    )


def mean(arm: Arm) -> Estimate:
    """The arm's mean score. Raises ValueError for an arm without scores."""
    scores = list(arm.scores.values())
    by_item = None
    if len(arm.contributions) == len(scores):
        parts = [arm.contributions[seed] for seed in arm.scores]
        by_item = ByItem([part.clusters for part in parts], [part.values for part in parts])
    return estimate(scores, resolution(scores), units=_units(arm, list(arm.scores)), by_item=by_item)


def all_pairs(arms: Sequence[Arm]) -> Matrix:
    """Holm-adjusted p of the difference of any two arms, k × k, for letters; NaN where two share less than two seeds.

    Over seeds and test items where every run left its outcomes, else of paired t tests over seeds
    (:func:`kdbench.results.ranks.pairwise`), for all pairs alike.
    """
    if not all(len(arm.contributions) == len(arm.scores) for arm in arms):
        return pairwise([arm.scores for arm in arms])
    pairs = [
        (i, j, difference(arms[i], arms[j]) if arms[i].scores.keys() & arms[j].scores.keys() else None)
        for i in range(len(arms))
        for j in range(i)
    ]
    p = np.full((len(arms), len(arms)), np.nan)
    for (i, j, _), value in zip(pairs, adjusted(one for *_, one in pairs), strict=True):
        p[i, j] = p[j, i] = np.nan if value is None else value
    return p


def _units(arm: Arm, seeds: Sequence[int]) -> list[int]:
    splits = arm.splits
    return units_of([splits[seed] for seed in seeds])


def _matched(first: Arm, second: Arm, seeds: Sequence[int]) -> ByItem | None:
    """The differences of two arms at each item; None where a run left no outcomes or was tested on other items."""
    clusters, values = [], []
    for seed in seeds:
        ours, theirs = first.contributions.get(seed), second.contributions.get(seed)
        if ours is None or theirs is None:
            return None
        try:
            here, there = matched(ours.items, theirs.items)
        except ValueError:
            return None
        clusters.append(ours.clusters[here])
        values.append(ours.values[here] - theirs.values[there])
    return ByItem(clusters, values)
