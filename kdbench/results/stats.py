"""Statistics for arms that are paired by seed: means, paired differences, Holm's correction, gap closed, agreement."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kdbench.results.claims import FEWEST, equivalent, sign_flip
from kdbench.results.crossed import Floats, Integers, variance

Values = NDArray[np.float64]

RESOLUTION = 1e-6
"""Of two scores' difference, relative to the larger one: what is smaller is rounding and says nothing.

Scores that were computed in float32, as those of records of schema version 1 were, are off by up to 1.5e-7 of their
size, so equal differences of four scores seem to differ by up to 6e-7. A single example more tells more than 1e-6 in
every test set of less than a million.
"""


class ByItem(NamedTuple):
    """What the items of each run's test set contribute to its value: ``values`` [m_s], whose mean the value is.

    ``clusters`` [m_s] say of which group of dependent items each is, by a number that is the same in all runs.
    """

    clusters: Sequence[Integers]
    values: Sequence[Floats]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds, or a mean difference of ``n`` pairs; None where they allow no statement.

    ``low`` and ``high`` bound its interval at level 1 − ``alpha``, ``detectable`` is the smallest true mean that a test
    at level ``alpha`` detects with 80 % power, and ``p`` is of the hypothesis that it is 0, before any correction. All
    are in the unit of the values. ``over`` says what they are over: ``seeds``, or ``splits`` where several seeds share
    one, and ``… × items`` where the test items are a sample too; ``units`` is how many seeds or splits.
    ``seeds_low`` and ``seeds_high`` bound the t interval over seeds (or splits), which holds the test items for fixed.
    ``equivalence`` is the p of the hypothesis that the mean lies outside a margin (:func:`equivalent`).

    ``flat`` says that there are several values, all the same as far as they resolve, zero or not.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    flat: bool = False
    over: str = "seeds"
    units: int = 0
    alpha: float = 0.05
    seeds_low: float | None = None
    seeds_high: float | None = None
    equivalence: float | None = None


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution with ``freedom`` degrees of freedom."""
    return float(special.stdtrit(freedom, probability))


def average(values: Sequence[float]) -> float:
    """The arithmetic mean, also where no float holds the sum; larger integers count as the largest float.

    Raises StatisticsError for no values.
    """
    try:
        return fmean(values)
    except OverflowError:
        return 2 * math.fsum(min(value, sys.float_info.max) / (2 * len(values)) for value in values)


def resolution(*scores: Sequence[float]) -> float:
    """The smallest difference that counts between these scores: ``RESOLUTION`` of the largest of them."""
    return RESOLUTION * max(float(np.abs(values).max()) for values in scores)


def flat(values: Sequence[float] | Values, finest: float) -> bool:
    """Whether no two of the values differ by more than ``finest``: there is no spread to judge a mean by."""
    return bool(np.ptp(values) <= finest)


@np.errstate(over="ignore", invalid="ignore")
def estimate(
    values: Sequence[float] | Values,
    finest: float,
    *,
    units: Sequence[int] | None = None,
    by_item: ByItem | None = None,
    alpha: float = 0.05,
    margin: float | None = None,
) -> Estimate:
    """The mean of ``values`` [n], one a seed, with interval and test (:func:`kdbench.results.crossed.variance`).

    ``units`` number the seeds' independent units, by default each is one. With ``by_item`` they are over seeds and test
    items. Without it, p is the t test's for fewer than ``FEWEST`` units and the sign-flip test's from there on; the
    interval is Student's t. Values that differ by no more than ``finest`` are ``flat`` and have neither, whether they
    are 0 or not: few seeds and a small test set give equal values by chance. Nor has one unit, or values whose spread
    no float holds. Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("The mean of no values is not defined.")
    given = np.asarray(values, dtype=float)
    n, unit = len(given), list(range(len(given))) if units is None else list(units)
    center = float(given.mean())
    means = np.bincount(unit, given) / np.bincount(unit)
    over = "seeds" if len(means) == n else "splits"
    if n > 1 and math.isfinite(finest) and (flat(given, finest) or (len(means) > 1 and flat(means, finest))):
        return Estimate(n, center if abs(center) > finest else 0.0, flat=True, over=over, units=len(means), alpha=alpha)
    seeds = variance([given[[place]] for place in range(n)], units=unit)
    if seeds is None or not math.isfinite(center + seeds.error):
        mean = center if math.isfinite(center) else average(np.nan_to_num(given).tolist())
        return Estimate(n, mean, over=over, units=len(means), alpha=alpha)
    crossed = variance(by_item.values, by_item.clusters, unit) if by_item else None
    total = seeds if crossed is None else replace(crossed, over_units=seeds.over_units, within=seeds.within)
    half, half_seeds = total.margin(alpha), seeds.margin(alpha)
    return Estimate(
        n,
        center,
        center - half,
        center + half,
        sign_flip(means) if crossed is None and len(means) == n >= FEWEST else total.p_value(center),
        total.detectable(alpha),
        over=over if crossed is None else f"{over} × items",
        units=len(means),
        alpha=alpha,
        seeds_low=center - half_seeds,
        seeds_high=center + half_seeds,
        equivalence=equivalent(center, total, margin) if margin else None,
    )


def paired(a: Sequence[float], b: Sequence[float], **more: Any) -> Estimate:
    """The :func:`estimate` of the mean of a − b over pairs, which resolves to ``RESOLUTION`` of the larger score.

    Raises ValueError for unequal lengths or no pairs.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"Pairs need two equally long, non-empty sequences, not {len(a)} and {len(b)} values.")
    with np.errstate(over="ignore", invalid="ignore"):
        differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return estimate(differences, resolution(a, b), **more)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: p̃_(i) = min(1, max_{j ≤ i} (m − j + 1) p_(j)) over the m values that are not None.

    None stays None and does not count as a test. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def adjusted(estimates: Iterable[Estimate | None]) -> list[float | None]:
    """Holm-adjusted p of tests. Flat differences have none, but count as a test that found nothing."""
    listed = list(estimates)
    corrected = holm([raw_p(one) for one in listed])
    return [None if one is None or one.flat else p for one, p in zip(listed, corrected, strict=True)]


def raw_p(one: Estimate | None) -> float | None:
    """The p that a correction counts: 1 of flat differences, which were tested and found nothing."""
    return None if one is None else 1.0 if one.flat else one.p


@np.errstate(over="ignore", invalid="ignore")
def gap_closed(method: Sequence[float], alone: Sequence[float], teacher: Sequence[float | None]) -> float | None:
    """(method − alone) / (teacher − alone), a ratio of means over the same seeds: 0 = no gain, 1 = the teacher's score.

    None when there are no values, a seed's teacher is missing, teacher and alone do not differ (``RESOLUTION``), or no
    float holds the ratio. Negative also when the teacher is the one that is worse than the student alone.
    """
    known = [value for value in teacher if value is not None]
    if not (method and alone and known) or len(known) < len(teacher):
        return None
    base = float(np.mean(alone))
    gap = float(np.mean(known)) - base
    closed = math.nan if abs(gap) <= resolution(alone, known) else (float(np.mean(method)) - base) / gap
    return closed if math.isfinite(closed) else None


@np.errstate(over="ignore", invalid="ignore")
def fieller(
    x: Sequence[float], y: Sequence[float], level: float = 0.95, finest: float = 0.0
) -> tuple[float, float] | None:
    """Fieller's confidence interval of the ratio of means ρ = E[x] / E[y] of paired values, for ``gap_closed``.

    It holds every ρ that a t test of x − ρ y does not reject: (x̄ − ρ ȳ)² ≤ c (s_xx − 2 ρ s_xy + ρ² s_yy) with
    c = t²_{(1+level)/2, n−1} / n and sample (co)variances s. With δ = ρ − x̄ / ȳ, e = x − (x̄ / ȳ) y and
    A = ȳ² − c s_yy this is A δ² + 2 c s_ey δ − c s_ee ≤ 0, so

        δ = (−c s_ey ± √(c² s_ey² + A c s_ee)) / A.

    A constant y leaves the t interval of x̄, divided by y. None where no bounded interval exists: A ≤ 0, which is where
    ȳ does not differ from 0 at this level; for fewer than two pairs; where x or e has no spread to judge by, none above
    ``finest`` or ``RESOLUTION`` of the values; and where no float holds the interval. Raises ValueError for unequal
    lengths.
    Source: Fieller (1954), Journal of the Royal Statistical Society B 16, 175-185.
    """
    if len(x) != len(y):
        raise ValueError(f"Pairs need two equally long sequences, not {len(x)} and {len(y)} values.")
    n = len(x)
    if n < 2:
        return None
    over, under = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    finest = max(finest, resolution(x, y))
    if flat(under, finest):
        under = np.full(n, under.mean())
    base = float(under.mean())
    c = t_quantile((1 + level) / 2, n - 1) ** 2 / n
    if flat(over, finest) or abs(base) <= finest or (leading := base**2 - c * float(under.var(ddof=1))) <= 0:
        return None
    ratio = float(over.mean()) / base
    rest = over - ratio * under
    if flat(rest, finest):
        return None
    rest -= rest.mean()
    s_ee, s_ey = (float(rest @ other) / (n - 1) for other in (rest, under - base))
    root = np.sqrt((c * s_ey) ** 2 + leading * c * s_ee)
    low, high = ratio + float(-c * s_ey - root) / leading, ratio + float(-c * s_ey + root) / leading
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def agreement(a: str, b: str) -> float:
    """Share in [0, 1] of examples with the same prediction, one ASCII character each.

    Raises ValueError for other lengths, no examples or other characters.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"Predictions of {len(a)} and {len(b)} examples cannot be compared.")
    mine, theirs = (np.frombuffer(text.encode("ascii"), dtype=np.uint8) for text in (a, b))
    return int(np.count_nonzero(mine == theirs)) / len(a)
