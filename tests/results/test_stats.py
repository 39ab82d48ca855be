"""Statistics against values worked out by hand and against scipy."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score

from kdbench.plan.metrics import scores
from kdbench.results.claims import FEWEST, sign_flip
from kdbench.results.stats import (
    RESOLUTION,
    adjusted,
    agreement,
    average,
    estimate,
    fieller,
    gap_closed,
    holm,
    paired,
)

A = [0.81, 0.84, 0.79, 0.86, 0.80]
B = [0.80, 0.80, 0.77, 0.85, 0.77]


def interval(values: list[float], **more: Any) -> tuple[float | None, float | None]:
    found = estimate(values, 1e-6 * max(map(abs, values)), **more)
    return found.low, found.high


def test_mean_interval_by_hand() -> None:
    # s = 1, n = 3, t_{0.975, 2} = 4.302653 (table): half width 4.302653 / √3.
    assert estimate([1.0, 2.0, 3.0], 1e-6).mean == 2.0
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    # t_{0.9, 2} = 1.885618 (table).
    assert interval([1.0, 2.0, 3.0], alpha=0.2) == pytest.approx((2 - 1.088662, 2 + 1.088662), abs=1e-6)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert estimate([0.5], 1e-6).mean == 0.5 and interval([0.5]) == (None, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([], 1e-6)


def test_paired_by_hand() -> None:
    # d = 1, 4, 2, 1, 3 hundredths: mean 2.2, s = √1.7, s / √5 = 0.583095.
    # Tables give t_{0.975, 4} = 2.776445; noncentral t of 80 % power there has the noncentrality 3.761061.
    result = paired(A, B)
    assert result.n == 5
    assert result.mean == pytest.approx(0.022)
    assert (result.low, result.high) == pytest.approx((0.022 - 0.01618932, 0.022 + 0.01618932), abs=1e-7)
    assert result.detectable == pytest.approx(3.761061 * 0.00583095, abs=1e-7)
    assert scipy_stats.nct.sf(2.776445, 4, 3.761061) == pytest.approx(0.8, abs=1e-6)
    # t = 2.2 / 0.583095 = 3.772970; two-sided p at 4 degrees of freedom by the closed form of its distribution.
    t = 2.2 / math.sqrt(1.7 / 5)
    x = t / math.sqrt(4 + t * t)
    assert result.p == pytest.approx(1 - x * (1 + (1 - x * x) / 2))


def test_paired_agrees_with_scipy() -> None:
    reference = scipy_stats.ttest_rel(A, B)
    interval, result = reference.confidence_interval(0.95), paired(A, B)
    assert (result.p, result.low, result.high) == pytest.approx((reference.pvalue, interval.low, interval.high))


def test_paired_is_antisymmetric() -> None:
    forth, back = paired(A, B), paired(B, A)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -(forth.high or 0), -(forth.low or 0)))
    assert back.p == pytest.approx(forth.p)


@pytest.mark.parametrize("kind", [float, np.float32])
@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [
        (A, A, 0.0),
        ([0.8, 0.5], [0.9, 0.6], -0.1),
        ([0.3, 0.9, 0.7], [0.2, 0.8, 0.6], 0.1),
        ([0.1 + 0.2, 0.5], [0.3, 0.5], 0.0),
        ([80.0, 50.0], [90.0, 60.0], -10.0),
        ([8e-6, 5e-6], [9e-6, 6e-6], -1e-6),
    ],
)
def test_differences_without_spread_allow_no_statement(a: list[float], b: list[float], mean: float, kind: Any) -> None:
    """Also where scores were computed in float32, whose last bits make a spread of 1e-8 around 0.1."""
    result = paired(*([float(kind(value)) for value in values] for values in (a, b)))
    assert result.flat and result.n == len(a) and result.mean == pytest.approx(mean, rel=1e-5, abs=0)
    assert result.low is result.high is result.p is result.detectable is None


@pytest.mark.parametrize("examples", [10, 1000, 48_603, 400_000])
def test_one_example_more_is_a_spread(examples: int) -> None:
    a, b = [0.75, 0.75 + 1 / examples], [0.5, 0.5]
    for kind in (float, np.float32):
        result = paired([float(kind(value)) for value in a], b)
        assert not result.flat and result.p is not None
    assert paired(a, b).p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)


def test_equal_scores_have_no_interval() -> None:
    assert interval([0.1 + 0.2, 0.3, 0.3]) == interval([float(np.float32(0.3)), 0.3]) == (None, None)


def test_flat_differences_count_in_holm_as_tests_that_found_nothing() -> None:
    tests = [paired(A, B), paired(A, A), None, paired(A, [x - 0.1 for x in A]), paired([0.9], [0.8])]
    raw = tests[0].p if tests[0] else None
    assert raw is not None and adjusted(tests) == [pytest.approx(3 * raw), None, None, None, None]


def test_sums_and_quotients_in_float32_stay_within_the_resolution() -> None:
    """Macro F1 and AUC as torchmetrics computes them, against exact ones of scipy and of integers."""
    draw, worst = np.random.default_rng(0), 0.0
    for trial in range(60):
        size = int(draw.integers(20, 3000))
        truth = draw.integers(0, 2, size)
        truth[:2] = 0, 1
        margin = draw.normal(truth, 1).round(1 if trial % 2 else 6)
        ranks, positives = scipy_stats.rankdata(margin), int(truth.sum())
        exact = (ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * (size - positives))
        levels = np.unique(margin, return_inverse=True)[1] / size
        worst = max(worst, abs(float(binary_auroc(torch.from_numpy(levels), torch.from_numpy(truth))) / exact - 1))
        told, classes = draw.integers(0, 7, (2, size)), 7
        confusion = np.zeros((classes, classes), dtype=int)
        np.add.at(confusion, tuple(told), 1)
        found = multiclass_f1_score(*map(torch.from_numpy, told[::-1]), classes, average="macro")
        worst = max(worst, abs(float(found) / scores(confusion.tolist())["macro_f1"] - 1))
    assert worst < RESOLUTION / 4, "the differences of four scores"


def test_one_pair_allows_no_statement() -> None:
    result = paired([0.9], [0.8])
    assert result.mean == pytest.approx(0.1)
    assert (result.low, result.high, result.p, result.detectable) == (None, None, None, None)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_unpaired_values_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired(a, b)


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.04, None, 0.03], [0.06, None, 0.06]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm_by_hand(raw: list[float | None], adjusted: list[float | None]) -> None:
    assert holm(raw) == [None if value is None else pytest.approx(value) for value in adjusted]


def test_gap_closed() -> None:
    assert gap_closed([0.7, 0.8], [0.6, 0.6], [0.9, 0.9]) == pytest.approx(0.5)
    assert gap_closed([0.5], [0.6], [0.9]) == pytest.approx(-1 / 3)
    assert gap_closed([0.7], [0.6], [0.5]) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("method", "alone", "teacher"),
    [
        ([0.7], [0.6], [0.6]),
        ([0.7], [0.6], [0.6 + 1e-8]),
        ([0.7, 0.7], [0.6, 0.6], [0.9, None]),
        ([0.7], [0.6], []),
        ([], [], []),
    ],
)
def test_gap_closed_is_missing(method: list[float], alone: list[float], teacher: list[float | None]) -> None:
    assert gap_closed(method, alone, teacher) is None


def test_agreement() -> None:
    assert agreement("0123", "0120") == 0.75
    for a, b in (("01", "012"), ("", "")):
        with pytest.raises(ValueError, match="cannot be compared"):
            agreement(a, b)


def test_an_agreement_of_characters_beyond_ascii_is_refused() -> None:
    with pytest.raises(ValueError, match="ascii"):
        agreement("é", "é")


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
def test_paired_to_twelve_digits_of_scipy(n: int) -> None:
    draw = np.random.default_rng(n)
    for scale in (1e-6, 1.0, 1e6):
        a, b = (list(draw.normal(0.1, 1, n) * scale) for _ in range(2))
        reference = scipy_stats.ttest_rel(a, b)
        bounds, result = reference.confidence_interval(0.95), paired(a, b)
        assert (result.low, result.high) == pytest.approx((bounds.low, bounds.high), rel=1e-12, abs=1e-12 * scale)
        if n < FEWEST:
            assert result.p == pytest.approx(reference.pvalue, rel=1e-12)
        else:
            assert result.p == sign_flip(np.subtract(a, b))


def test_fieller_by_its_definition() -> None:
    # The ends are the ratios ρ for which a t test of x − ρ y has p = 0.05; any ρ between them is not rejected.
    x, y = [0.02, 0.05, 0.03, 0.06, 0.02], [0.08, 0.11, 0.07, 0.12, 0.10]
    interval = fieller(x, y)
    assert interval

    def p(ratio: float) -> float:
        return float(scipy_stats.ttest_1samp(np.asarray(x) - ratio * np.asarray(y), 0).pvalue)

    assert [p(end) for end in interval] == pytest.approx([0.05, 0.05])
    assert interval[0] < sum(x) / sum(y) < interval[1] and p(sum(x) / sum(y)) == pytest.approx(1)
    narrower = fieller(x, y, level=0.5)
    assert narrower and [p(end) for end in narrower] == pytest.approx([0.5, 0.5])


def test_fieller_of_a_constant_gap_is_the_t_interval() -> None:
    x = [0.02, 0.05, 0.03, 0.06, 0.02]
    low, high = interval(x)
    assert low and high and fieller(x, [0.1] * 5) == pytest.approx((low / 0.1, high / 0.1))
    assert fieller(x, [-0.1] * 5) == pytest.approx((-high / 0.1, -low / 0.1))


def test_fieller_without_spread_has_no_interval() -> None:
    assert fieller([0.1, 0.1], [0.2, 0.2]) is None
    gaps = [0.08, 0.11, 0.07]
    assert fieller(gaps, gaps) is None and fieller([0.1] * 3, gaps) is None
    noisy = [gap + 1e-8 * sign for gap, sign in zip(gaps, (1, -1, 1), strict=True)]
    assert fieller(noisy, gaps) is None
    off = [gap + 3e-7 * sign for gap, sign in zip(gaps, (1, -1, 1), strict=True)]
    assert fieller(off, gaps) and fieller(off, gaps, finest=1e-6) is None


@pytest.mark.slow
def test_fieller_covers_95_percent() -> None:
    draw, hits, trials = np.random.default_rng(7), 0, 4000
    covariance = [[1.0, 0.6], [0.6, 2.0]]
    for _ in range(trials):
        x, y = draw.multivariate_normal([3.0, 10.0], covariance, 6).T
        interval = fieller(list(x), list(y))
        assert interval
        hits += interval[0] <= 0.3 <= interval[1]
    # Three standard errors of a share of 4,000.
    assert hits / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize(
    ("x", "y"),
    [([0.1, 0.2], [0.3, -0.2]), ([0.1, 0.2], [0.0, 0.0]), ([0.1], [0.2]), ([], []), ([1e308, -1e308], [1.0, 1.1])],
)
def test_fieller_without_a_finite_interval(x: list[float], y: list[float]) -> None:
    assert fieller(x, y) is None


def test_fieller_needs_pairs() -> None:
    with pytest.raises(ValueError, match="equally long"):
        fieller([1.0], [1.0, 2.0])


def test_absurd_numbers_leave_what_a_float_holds() -> None:
    huge = [1e308, 1.5e308, 1.7e308]
    assert average(huge) == pytest.approx(1.4e308) and average([0.1, 0.2]) == pytest.approx(0.15)
    assert average([10**400, 0]) == pytest.approx(sys.float_info.max / 2)
    assert estimate(huge, 1e302).mean == pytest.approx(1.4e308) and interval(huge) == (None, None)
    result = paired(huge, [-1e308, 0.0, 1.0])
    assert result.n == 3 and math.isfinite(result.mean) and result.low is result.p is result.detectable is None
    assert paired([1e200, 3e200, 2e200], [0.0, 0.0, 0.0]).p is None
    assert gap_closed(huge, [0.1] * 3, [0.2] * 3) is None
