"""Statistics against values worked out by hand and against scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats as scipy_stats

from kdbench.results.stats import agreement, gap_closed, holm, mean_interval, paired

A = [0.81, 0.84, 0.79, 0.86, 0.80]
B = [0.80, 0.80, 0.77, 0.85, 0.77]


def test_mean_interval_by_hand() -> None:
    # s = 1, n = 3, t_{0.975, 2} = 4.302653 (table): half width 4.302653 / √3.
    mean, interval = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    _, narrower = mean_interval([1.0, 2.0, 3.0], level=0.8)
    # t_{0.9, 2} = 1.885618 (table).
    assert narrower == pytest.approx((2 - 1.088662, 2 + 1.088662), abs=1e-6)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean_interval([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_paired_by_hand() -> None:
    # d = 1, 4, 2, 1, 3 hundredths: mean 2.2, s = √1.7, s / √5 = 0.583095.
    # Tables give t_{0.975, 4} = 2.776445 and t_{0.8, 4} = 0.940965.
    result = paired(A, B)
    assert result.n == 5
    assert result.mean == pytest.approx(0.022)
    assert (result.low, result.high) == pytest.approx((0.022 - 0.01618932, 0.022 + 0.01618932), abs=1e-7)
    assert result.detectable == pytest.approx((2.776445 + 0.940965) * 0.00583095, abs=1e-7)
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


def test_paired_without_spread() -> None:
    same = paired(A, A)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    shifted = paired([0.3, 0.9, 0.7], [0.2, 0.8, 0.6])
    assert shifted.mean == shifted.low == shifted.high == pytest.approx(0.1)
    assert (shifted.p, shifted.detectable) == (0, 0)


def test_rounding_is_no_difference() -> None:
    result = paired([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (result.mean, result.p) == (0, 1)


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
    [([0.7], [0.6], [0.6]), ([0.7, 0.7], [0.6, 0.6], [0.9, None]), ([0.7], [0.6], []), ([], [], [])],
)
def test_gap_closed_is_missing(method: list[float], alone: list[float], teacher: list[float | None]) -> None:
    assert gap_closed(method, alone, teacher) is None


def test_agreement() -> None:
    assert agreement("0123", "0120") == 0.75
    for a, b in (("01", "012"), ("", "")):
        with pytest.raises(ValueError, match="cannot be compared"):
            agreement(a, b)
