"""The variance of a mean score, or of a paired difference, over seeds *and* test items.

A run's score is a mean of contributions, one of each item of its test set: x_si of seed s and item i. Seeds are a
sample, and so are items. The t interval over seeds holds the test items for fixed, and where all seeds are tested on
the same items it leaves out that another test set would give another mean. In the crossed model

    x_si = θ + a_s + b_i + c_si    with variances σ_a², σ_b², σ_c²

the mean of n seeds' scores on the same m items has the variance σ_a²/n + σ_b²/m + σ_c²/(nm), of which the variance over
seeds estimates the first and the last term alone. In general, whichever items each seed was tested on,

    Var(x̄) = E[S²/n] + κ,    κ = the mean covariance of the scores of two seeds,

where S² is the sample variance of the n scores, for E[S²] is the mean variance less the mean covariance. Seeds have
covariance through the items that they share. So one formula serves a test set that all seeds share, where κ = σ_b²/m,
test sets drawn from a finite pool of N items, where κ is about σ_b²/N, and disjoint ones, where κ = 0.

What the seeds share beside test items, such as the pool that their training sets are drawn from, is held for fixed.

Sources: Owen (2007), The pigeonhole bootstrap, Annals of Applied Statistics 1, 386-411; Cameron, Gelbach and Miller
(2011), Robust inference with multiway clustering, Journal of Business & Economic Statistics 29, 238-249, whose
V_seed + V_item − V_both is this up to small samples. How often the intervals hold the truth, and how often those of
other formulas do: ``benchmarks/coverage.py``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LEAST = 1e-30
"""The smallest p that is computed for an interval over seeds and items."""


@dataclass(frozen=True)
class Variance:
    """The variance of a mean over ``units`` seeds (or splits) and ``items`` groups of dependent test items.

    ``over_units`` is S²/n. ``shared`` is κ, or 0 where its estimate is below that by chance, so that the variance is
    never less than over seeds alone. Where nothing is known of the items, ``items`` and ``shared`` are 0. ``within`` is
    what the ``runs`` within units vary by, W²/n, 0 where each unit is one run: their mean varies by no less, however
    close the means of two splits happen to lie.
    """

    over_units: float
    shared: float
    units: int
    items: int
    within: float = 0.0
    runs: int = 0

    @property
    def error(self) -> float:
        """The standard error √(S²/n + κ), at least √(W²/n), in the unit of the values."""
        return math.sqrt(max(self.over_units + self.shared, self.within))

    def margin(self, alpha: float = 0.05) -> float:
        """Half of the two-sided interval at level 1 − α: √(t²_{G−1} S²/n + t²_{J−1} κ), of G units and J item groups.

        The errors of the seeds and of the items that they share are independent, and each has degrees of freedom of its
        own, so that their margins add in squares (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702).
        Satterthwaite's one number of degrees of freedom is taken from the same S², so where that is small by chance, as
        it often is of two splits, it makes the interval shorter still. At least t_{n−G} W/√n.
        """
        seeds = special.stdtrit(self.units - 1, alpha / 2) ** 2 * self.over_units
        items = special.stdtrit(self.items - 1, alpha / 2) ** 2 * self.shared if self.shared else 0.0
        runs = special.stdtrit(self.runs - self.units, alpha / 2) ** 2 * self.within if self.within else 0.0
        return float(np.sqrt(max(seeds + items, runs)))

    def p_value(self, mean: float) -> float | None:
        """The two-sided p of the hypothesis that the mean is 0: the α whose margin is |mean|, at least ``LEAST``.

        None without any spread.
        """
        if not self.error:
            return None
        if not self.shared and not self.within:
            return float(2 * special.stdtr(self.units - 1, -abs(mean) / self.error))
        if abs(mean) >= self.margin(LEAST):
            return LEAST
        log_p = optimize.brentq(lambda x: self.margin(math.exp(x)) - abs(mean), math.log(LEAST), 0.0, xtol=1e-12)
        return math.exp(log_p)

    def freedom(self, alpha: float = 0.05) -> float:
        """The degrees of freedom at which Student's t has the same margin; of the parts' the least to the greatest."""
        parts = (
            (self.over_units, self.units - 1),
            (self.shared, self.items - 1),
            (self.within, self.runs - self.units),
        )
        known = [float(freedom) for part, freedom in parts if part]
        if len(known) < 2:
            return known[0] if known else self.units - 1.0
        alike = float(special.stdtridf(1 - alpha / 2, self.margin(alpha) / self.error))
        return min(max(alike, min(known)), max(known)) if math.isfinite(alike) else max(known)

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """The smallest true mean that a two-sided test at level α detects with this power, by the noncentral t.

        δ with P(T > t) = power, where t is the test's quantile and T is noncentral t at δ / error; the other tail has
        no share worth counting.
        """
        freedom = self.freedom(alpha)
        quantile = -special.stdtrit(freedom, alpha / 2)
        return float(special.nctdtrinc(freedom, 1 - power, quantile)) * self.error


def units_of(splits: Sequence[Hashable]) -> list[int]:
    """The number of each run's independent unit, given the split that its seed drew.

    Seeds that share one of several splits are one unit, for they share training data and test items: five seeds on each
    of two splits are two units. Where all seeds share one split nothing tells what another would give, so that the
    seeds are the units, and the mean that is estimated is that of this split's training data.
    """
    numbers = {split: number for number, split in enumerate(dict.fromkeys(splits))}
    return list(range(len(splits))) if len(numbers) == 1 else [numbers[split] for split in splits]


def matched(ours: Integers, theirs: Integers) -> tuple[Integers, Integers]:
    """The orders that put two arms' items of one seed beside each other: ``ours[first]`` equals ``theirs[second]``.

    Raises ValueError where the arms were tested on other items, or on one twice.
    """
    first, second = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
    items = ours[first]
    if not np.array_equal(items, theirs[second]) or (items[1:] == items[:-1]).any():
        raise ValueError("The arms of one seed were not tested on the same items.")
    return first, second


def variance(
    values: Sequence[Floats], clusters: Sequence[Integers] | None = None, units: Sequence[int] | None = None
) -> Variance | None:
    """The variance of the mean over runs of the mean of each run's ``values`` [m_s]; None for fewer than two units.

    ``clusters`` [m_s] say of which group of dependent test items each value is, by a number that is the same in all
    runs; without them only S²/n is estimated. ``units`` [n] are the runs' :func:`units_of`, else each run is one. With
    p_g the share of the runs that are unit g's, x̄_g its mean, and y_gj the sum over its items of group j of
    (x − x̄_s) / m_s, averaged over its runs,

        S²/n = G/(G−1) Σ_g p_g² (x̄_g − x̄)²,    W²/n = Σ_s (x̄_s − x̄_g)² / (n (n − G)),
        κ = G/(G−1) Σ_{g≠h} p_g p_h Σ_j y_gj y_hj / f_gh.

    f_gh = 1 − 1/J_g − 1/J_h + J_gh/(J_g J_h), of the numbers of item groups of g, of h and of both, undoes that each
    run's values are centred at their own mean. On a complete table S²/n + κ is the estimate by mean squares,
    (MS_a + MS_b − MS_ab) / (nm).
    """
    _, unit = np.unique(np.arange(len(values)) if units is None else np.asarray(units), return_inverse=True)
    runs = np.bincount(unit)
    count, share = len(runs), runs / len(unit)
    if count < 2:
        return None
    scores = np.array([float(np.mean(each)) for each in values])
    means = np.bincount(unit, scores) / runs
    small = count / (count - 1)
    over_units = small * float(share**2 @ (means - share @ means) ** 2)
    rest = len(unit) - count
    within = float(((scores - means[unit]) ** 2).sum()) / (rest * len(unit)) if rest else 0.0
    if clusters is None:
        return Variance(over_units, 0.0, count, 0, within, len(unit))
    groups, place = np.unique(np.concatenate(clusters), return_inverse=True)
    table = np.zeros((count, len(groups)))  # p_g y_gj
    present = np.zeros_like(table)
    ends = np.cumsum([len(each) for each in values])
    for g, each, own in zip(unit, values, np.split(place, ends[:-1]), strict=True):
        table[g] += np.bincount(own, (each - np.mean(each)) / (len(each) * len(unit)), len(groups))
        present[g, own] = 1.0
    sizes = present.sum(axis=1)
    kept = 1 - 1 / sizes[:, None] - 1 / sizes + present @ present.T / np.outer(sizes, sizes)
    pairs = ~np.eye(count, dtype=bool) & (kept > 0)
    shared = small * float(((table @ table.T)[pairs] / kept[pairs]).sum())
    return Variance(over_units, max(0.0, shared), count, len(groups), within, len(unit))
