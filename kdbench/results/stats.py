"""Statistics for arms that are paired by seed: means, paired differences, Holm's correction, gap closed, agreement."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]

RESOLUTION = 1e-6
"""Of two scores' difference, relative to the larger one: what is smaller is rounding and says nothing.

Scores that were computed in float32, as those of records of schema version 1 were, are off by up to 1.5e-7 of their
size, so equal differences of four scores seem to differ by up to 6e-7. A single example more tells more than 1e-6 in
every test set of less than a million.
"""


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a − b over ``n`` pairs, in the unit of the values; None where the pairs allow no statement.

    ``flat`` says that there are several and that all differ by the same, zero or not, as far as their scores resolve.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    flat: bool = False


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


@np.errstate(over="ignore", invalid="ignore")
def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float] | None]:
    """Mean and its two-sided Student t interval: x̄ ± t_{(1+level)/2, n−1} · s / √n.

    The interval is in the unit of the values, and None for one value, for values without spread (:func:`flat`) and
    where no float holds it. Raises ValueError for none.
    """
    if not values:
        raise ValueError("The mean of no values is not defined.")
    center, n = float(np.mean(values)), len(values)
    if not math.isfinite(center):
        return average(values), None
    if n == 1 or flat(values, resolution(values)):
        return center, None
    half = float(t_quantile((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return center, (center - half, center + half) if math.isfinite(half) else None


def resolution(*scores: Sequence[float]) -> float:
    """The smallest difference that counts between these scores: ``RESOLUTION`` of the largest of them."""
    return RESOLUTION * max(float(np.abs(values).max()) for values in scores)


def flat(values: Sequence[float] | Values, finest: float) -> bool:
    """Whether no two of the values differ by more than ``finest``: there is no spread to judge a mean by."""
    return bool(np.ptp(values) <= finest)


@np.errstate(over="ignore", invalid="ignore")
def paired(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Two-sided paired t test of a − b, with its 95 % interval and the smallest difference it could detect.

    With d = a − b, p = 2 F(−|t|) where t = d̄ √n / s_d and F is Student's t distribution at n − 1 degrees of freedom.
    detectable = (t_{0.975, n−1} + t_{0.8, n−1}) · s_d / √n, the difference found with 80 % power at the 5 % level.
    Differences that are all equal as far as the scores resolve (``RESOLUTION``) are ``flat``: s_d is 0 or rounding, and
    t is not defined. They have no interval, p or detectable, whether they are 0 or not: few seeds and a small test set
    give equal differences by chance. Neither has one pair, or differences whose spread no float holds. Raises
    ValueError for unequal lengths or no pairs.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"Pairs need two equally long, non-empty sequences, not {len(a)} and {len(b)} values.")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n, finest = len(differences), resolution(a, b)
    if n > 1 and math.isfinite(finest) and flat(differences, finest):
        same = float(differences.mean())
        return PairedDifference(n, same if abs(same) > finest else 0.0, None, None, None, None, flat=True)
    center = float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else math.inf
    if not math.isfinite(center + error):
        return PairedDifference(n, average(np.nan_to_num(differences).tolist()), None, None, None, None)
    t, power = t_quantile(0.975, n - 1), t_quantile(0.8, n - 1)
    p = float(2 * special.stdtr(n - 1, -abs(center / error)))
    return PairedDifference(n, center, center - t * error, center + t * error, p, (t + power) * error)


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


def adjusted(differences: Iterable[PairedDifference | None]) -> list[float | None]:
    """Holm-adjusted p of paired tests. Flat differences have none, but count as a test that found nothing."""
    listed = list(differences)
    p_values = holm([None if one is None else 1.0 if one.flat else one.p for one in listed])
    return [None if one is None or one.flat else p for one, p in zip(listed, p_values, strict=True)]


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
