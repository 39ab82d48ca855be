"""Statistics for arms that are paired by seed: means, paired differences, Holm's correction, gap closed, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Differences of scores that are equal but for the last bits of a float are equal.
ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a − b over ``n`` pairs, in the unit of the values; None where one pair allows no statement."""

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float] | None]:
    """Mean and its two-sided Student t interval: x̄ ± t_{(1+level)/2, n−1} · s / √n.

    The interval is in the unit of the values, and None for one value. Raises ValueError for none.
    """
    if not values:
        raise ValueError("The mean of no values is not defined.")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return mean, None
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, (mean - half, mean + half)


def paired(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Two-sided paired t test of a − b, with its 95 % interval and the smallest difference it could detect.

    With d = a − b, p is that of t = d̄ √n / s_d at n − 1 degrees of freedom (``scipy.stats.ttest_rel``), and
    detectable = (t_{0.975, n−1} + t_{0.8, n−1}) · s_d / √n, the difference found with 80 % power at the 5 % level.
    Where all differences are equal, s_d is 0 and t is not defined: p is 1 if they are all 0, and otherwise 0, the limit
    of t → ∞. That limit says how the test behaves, not that the effect is certain: few seeds and a small test set give
    equal differences by chance. One pair has no interval, p or detectable. Raises ValueError for unequal lengths or no
    pairs.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"Pairs need two equally long, non-empty sequences, not {len(a)} and {len(b)} values.")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    scale = ROUNDING * max(1.0, float(np.abs(a).max()), float(np.abs(b).max()))
    if np.abs(differences).max() <= scale:
        differences[:] = 0.0
    elif np.ptp(differences) <= scale:
        differences[:] = differences[0]
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return PairedDifference(n, mean, None, None, None, None)
    if np.ptp(differences) == 0:
        return PairedDifference(n, mean, mean, mean, float(mean == 0), 0.0)
    error = float(differences.std(ddof=1) / np.sqrt(n))
    t = float(stats.t.ppf(0.975, n - 1))
    power = float(stats.t.ppf(0.8, n - 1))
    p = float(stats.ttest_rel(a, b).pvalue)
    return PairedDifference(n, mean, mean - t * error, mean + t * error, p, (t + power) * error)


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


def gap_closed(method: Sequence[float], alone: Sequence[float], teacher: Sequence[float | None]) -> float | None:
    """(method − alone) / (teacher − alone), a ratio of means over the same seeds: 0 = no gain, 1 = the teacher's score.

    None when there are no values, a seed's teacher is missing, or |teacher − alone| < 1e-12. Negative also when the
    teacher is the one that is worse than the student alone.
    """
    known = [value for value in teacher if value is not None]
    if not (method and alone and known) or len(known) < len(teacher):
        return None
    base = float(np.mean(alone))
    gap = float(np.mean(known)) - base
    return None if abs(gap) < ROUNDING else (float(np.mean(method)) - base) / gap


def agreement(a: str, b: str) -> float:
    """Share in [0, 1] of examples with the same prediction. Raises ValueError for other lengths or no examples."""
    if len(a) != len(b) or not a:
        raise ValueError(f"Predictions of {len(a)} and {len(b)} examples cannot be compared.")
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
