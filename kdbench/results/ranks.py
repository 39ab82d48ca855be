"""Statistics over all arms of a table or all methods of a board: groups that are not distinguishable, and ranks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from kdbench.results.stats import RESOLUTION

Matrix = NDArray[np.float64]
LEVEL = 0.05
FLAT = 2.0  # stands for the p of differences without spread, which have none


def pairwise(scores: Sequence[Mapping[int, float]]) -> Matrix:
    """Holm-adjusted p of the paired t test between any two arms, whose scores are given by seed; k × k, symmetric.

    Each test is Student's, over the seeds that both arms have, and Holm runs over all pairs that have at least two; the
    others, and the diagonal, are NaN. So are those whose differences are all equal, which count in Holm as tests that
    found nothing.
    """
    seeds = {seed: index for index, seed in enumerate(sorted({seed for arm in scores for seed in arm}))}
    table = np.full((len(scores), len(seeds)), np.nan)
    for row, arm in zip(table, scores, strict=True):
        row[[seeds[seed] for seed in arm]] = list(arm.values())
    adjusted = np.full((len(scores), len(scores)), np.nan)
    above = np.triu_indices(len(scores), 1)
    if above[0].size:
        p = np.concatenate([_paired(row, table[i + 1 :]) for i, row in enumerate(table[:-1])])
        adjusted[above] = np.where(p == FLAT, np.nan, _holm(np.minimum(p, 1.0)))
    symmetric: Matrix = np.fmax(adjusted, adjusted.T)
    return symmetric


def _paired(one: Matrix, others: Matrix) -> Matrix:
    """p of ``stats.paired`` of one arm against each of several; NaN for fewer than two common seeds, or ``FLAT``."""
    both = ~np.isnan(one) & ~np.isnan(others)
    n = both.sum(axis=1)
    some = np.maximum(n, 2)
    with np.errstate(all="ignore"):
        d = np.where(both, one - others, 0.0)
        largest = np.where(both, np.maximum(np.abs(one), np.abs(others)), 0.0).max(axis=1, initial=0.0)
        low = np.where(both, d, np.inf).min(axis=1, initial=np.inf)
        high = np.where(both, d, -np.inf).max(axis=1, initial=-np.inf)
        mean = d.sum(axis=1) / some
        variance = (np.where(both, d - mean[:, None], 0.0) ** 2).sum(axis=1) / (some - 1)
        p: Matrix = 2 * special.stdtr(some - 1, -np.abs(mean) / np.sqrt(variance / some))
    p = np.where(high - low <= RESOLUTION * largest, FLAT, p)
    p[n < 2] = np.nan
    return p


def _holm(p: Matrix) -> Matrix:
    """``stats.holm`` of an array; NaN stays NaN and does not count."""
    order = np.argsort(p)
    order = order[: np.count_nonzero(~np.isnan(p))]
    steps = np.minimum(1.0, p[order] * np.arange(len(order), 0, -1))
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def letters(p: Matrix, order: Sequence[int], level: float = LEVEL) -> list[str]:
    """Compact letter display of k arms: two arms share a letter if and only if their p is not below ``level``.

    ``p`` is :func:`pairwise`; NaN, a pair that cannot be tested, is not distinguished. ``order`` names the arms from
    best to worst, and the letters follow it. A letter stands for a maximal clique in the graph of pairs that are not
    distinguished: the first pair in order that has no letter yet, extended by every arm in order that is distinguished
    from none in it. The relation is not transitive: a ~ b ~ c with a ≠ c gives "a", "ab", "b". All letters are empty
    where 52 do not suffice, for nobody could read them.
    Source: Piepho (2004), Journal of Computational and Graphical Statistics 13, 456-466; here each letter covers a new
    pair, so their number stays polynomial.
    """
    like = ~(p < level)[np.ix_(order, order)]
    covered = np.zeros_like(like)
    labels = [""] * len(p)
    names = iter(ascii_letters)
    for first in range(len(order)):
        while (pending := like[first] & ~covered[first])[first:].any():
            second = first + int(np.argmax(pending[first:]))
            clique, common = [first, second], like[first] & like[second]
            common[clique] = False
            while common.any():
                clique.append(int(np.argmax(common)))
                common &= like[clique[-1]]
                common[clique[-1]] = False
            covered[np.ix_(clique, clique)] = True
            name = next(names, None)
            if name is None:
                return [""] * len(p)
            for member in set(clique):
                labels[order[member]] += name
    return labels


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over ``blocks`` tables, 1 = best; methods whose ranks differ by less than ``cd`` are not told apart.

    ``p`` is Friedman's, of the hypothesis that all methods are alike; None for two methods.
    """

    ranks: dict[str, float]
    cd: float
    p: float | None
    blocks: int


@functools.cache
def _studentized_range(level: float, k: int) -> float:
    return float(stats.studentized_range.ppf(1 - level, k, np.inf))


def critical_difference(scores: Mapping[str, Sequence[float]], maximise: bool = True, level: float = LEVEL) -> Ranking:
    """Friedman's mean ranks of k ≥ 2 methods over N ≥ 2 tables, and Nemenyi's critical difference.

    Ranks are drawn in each table, ties (scores that differ by less than ``RESOLUTION``) sharing their mean, and
    CD = q_α √(k (k + 1) / (6 N)), where q_α is the quantile 1 − α of the studentized range of k means at infinite
    degrees of freedom, divided by √2. ``scores`` holds the method's score on each table, in one order. Raises
    ValueError for fewer methods or tables, or unequal lengths.
    Source: Demšar (2006), Journal of Machine Learning Research 7, 1-30.
    """
    lengths = {len(values) for values in scores.values()}
    if len(scores) < 2 or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(f"Ranks need two methods and the same two tables or more, not {len(scores)} with {lengths}.")
    table = _levels(np.asarray(list(scores.values()), dtype=float) * (-1 if maximise else 1))
    k, blocks = table.shape
    means = stats.rankdata(table, axis=0).mean(axis=1)
    cd = _studentized_range(level, k) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * blocks))
    p = None
    if k > 2:
        p = 1.0 if np.ptp(table, axis=0).max() == 0 else float(stats.friedmanchisquare(*table).pvalue)
    return Ranking(dict(zip(scores, map(float, means), strict=True)), float(cd), p, blocks)


def _levels(table: Matrix) -> Matrix:
    """The numbers of each column's levels, 0 the smallest; values that differ by rounding alone are on one."""
    order = np.argsort(table, axis=0)
    steps = np.diff(np.take_along_axis(table, order, axis=0), axis=0) > RESOLUTION * np.abs(table).max(axis=0)
    levels = np.zeros_like(table)
    np.put_along_axis(levels, order, np.vstack([np.zeros((1, table.shape[1])), np.cumsum(steps, axis=0)]), axis=0)
    return levels
