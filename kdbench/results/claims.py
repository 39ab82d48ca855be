"""Tests of paired differences that need no normal distribution, of equivalence, and of many claims at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from kdbench.results.crossed import Floats, Variance

FLIPS = 2**14
"""Sign patterns up to which all are taken, else so many drawn ones."""
FEWEST = 10
"""Pairs from which signs are flipped: fewer have too few patterns for a p that a correction leaves below 0.05."""


def sign_flip(differences: Sequence[float] | Floats) -> float:
    """Two-sided p of the sign-flip permutation test of a mean of 0 of ``differences`` [n].

    Under the hypothesis that each difference is as likely of either sign, p is the share of the 2^n patterns of signs
    whose mean is at least as far from 0. Up to n = 14 all are taken; beyond, 2^14 are drawn by a fixed seed, and p is
    (b + 1) / (2^14 + 1) of b such patterns. Source: Fisher (1935), The design of experiments, section 21; Phipson and
    Smyth (2010), Statistical Applications in Genetics 9, 39.
    """
    values = np.asarray(differences, dtype=float)
    sums = np.abs(_signs(len(values)) @ values)
    far = np.abs(values.sum()) - 1e-12 * np.abs(values).sum()  # sums of the same numbers differ by rounding
    drawn = int(2 ** len(values) > FLIPS)
    return float((np.count_nonzero(sums >= far) + drawn) / (len(sums) + drawn))


@functools.lru_cache(32)
def _signs(n: int) -> Floats:
    """Patterns of n signs [patterns, n]: all, or ``FLIPS`` drawn ones."""
    if 2**n <= FLIPS:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (FLIPS, n))
    return (2.0 * bits - 1.0).astype(np.float64)


def equivalent(mean: float, variance: Variance, margin: float) -> float | None:
    """The p of two one-sided tests that the true mean lies within ± ``margin``: the larger of the two.

    Below α, the interval at level 1 − 2α lies within the margin. None without any spread. Raises ValueError for a
    margin that is not above 0. Source: Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15, 657-680.
    """
    if not margin > 0:
        raise ValueError(f"A margin of equivalence is above 0, not {margin}.")
    worst = 0.0
    for inside in (margin - mean, margin + mean):
        p = variance.p_value(inside)
        if p is None:
            return None
        worst = max(worst, p / 2 if inside > 0 else 1 - p / 2)
    return worst


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini and Hochberg's adjusted p, q_(i) = min_{j ≥ i} m p_(j) / j over the m values that are not None.

    Of the claims with q ≤ α, a share of at most α is false in the mean, where tests are independent or positively
    dependent. Source: Benjamini and Hochberg (1995), Journal of the Royal Statistical Society B 57, 289-300.
    """
    known = [p for p in p_values if p is not None]
    adjusted = iter(stats.false_discovery_control(known).tolist() if known else ())
    return [None if p is None else next(adjusted) for p in p_values]
