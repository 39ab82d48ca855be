"""The variance over seeds and items against mean squares, t tests, the noncentral t and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.results.crossed import LEAST, Variance, matched, units_of, variance


def table(n: int, m: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(0.1, 0.3, (n, 1)) + draw.normal(0, 1, (1, m)) + draw.normal(0, 1, (n, m))


@pytest.mark.parametrize(("n", "m"), [(2, 3), (5, 40), (10, 200)])
def test_a_complete_table_gives_mean_squares(n: int, m: int) -> None:
    x = table(n, m)
    whole, seeds, items = x.mean(), x.mean(axis=1, keepdims=True), x.mean(axis=0)
    of_seeds = m * ((seeds - whole) ** 2).sum() / (n - 1)
    of_items = n * ((items - whole) ** 2).sum() / (m - 1)
    of_both = ((x - seeds - items + whole) ** 2).sum() / ((n - 1) * (m - 1))
    found = variance(list(x), [np.arange(m)] * n)
    assert found and (found.units, found.items) == (n, m)
    assert found.over_units == pytest.approx(of_seeds / (n * m))
    assert found.error**2 == pytest.approx((of_seeds + max(0.0, of_items - of_both)) / (n * m))


def test_items_match_by_their_number_in_any_order() -> None:
    x = table(4, 30)
    shuffled = [np.random.default_rng(seed).permutation(30) for seed in range(4)]
    assert variance([row[order] for row, order in zip(x, shuffled, strict=True)], shuffled) == variance(
        list(x), [np.arange(30)] * 4
    )


def test_disjoint_test_sets_leave_the_t_interval() -> None:
    x = table(5, 40)
    found = variance(list(x), [np.arange(40) + 40 * seed for seed in range(5)])
    reference = scipy_stats.ttest_1samp(x.mean(axis=1), 0)
    assert found and found.shared == 0 and found.freedom() == 4
    low, high = reference.confidence_interval()
    assert found.margin() == pytest.approx((high - low) / 2) and found.p_value(x.mean()) == pytest.approx(
        reference.pvalue
    )
    assert variance(list(x)) == Variance(found.over_units, 0.0, 5, 0, 0.0, 5)


def test_a_pool_shares_as_much_as_its_size_says() -> None:
    """Test sets of 60 of 300 items: κ is σ_b² / 300 in the mean of many draws."""
    draw, found = np.random.default_rng(3), []
    for _ in range(400):
        effects = draw.normal(0, 1, 300)
        tests = [draw.choice(300, 60, replace=False) for _ in range(6)]
        values = [effects[test] + draw.normal(0, 0.2, 60) for test in tests]
        one = variance(values, tests)
        assert one
        found.append(one.shared)
    assert np.mean(found) == pytest.approx(1 / 300, rel=0.1)


def test_dependent_items_count_as_one() -> None:
    x = table(5, 40)
    twice = variance([np.repeat(row, 2) for row in x], [np.repeat(np.arange(40), 2)] * 5)
    once = variance(list(x), [np.arange(40)] * 5)
    assert twice and once and (twice.units, twice.items) == (5, 40)
    assert (twice.over_units, twice.shared) == pytest.approx((once.over_units, once.shared))


def test_seeds_that_share_a_split_are_one_unit() -> None:
    assert units_of(["a", "a", "a"]) == [0, 1, 2]
    assert units_of(["a", "b", "c"]) == [0, 1, 2]
    assert units_of(["a", "b", "a", "b", "b"]) == [0, 1, 0, 1, 1]
    x = table(6, 20)
    tests = [np.arange(20) + 20 * (seed // 3) for seed in range(6)]
    found = variance(list(x), tests, [0, 0, 0, 1, 1, 1])
    split = x.mean(axis=1).reshape(2, 3).mean(axis=1)
    assert found and found.units == 2 and found.over_units == pytest.approx(split.var(ddof=1) / 2)
    assert found.margin() == pytest.approx(12.7062047 * split.std(ddof=1) / math.sqrt(2))


def test_splits_that_lie_close_by_chance_do_not_shorten_the_interval_of_their_runs() -> None:
    values = [np.array([x]) for x in (1.0, 2.0, 3.0, 1.1, 2.0, 2.9)]
    found = variance(values, units=[0, 0, 0, 1, 1, 1])
    assert found and found.over_units == pytest.approx(0.0, abs=1e-15)
    within = np.mean([np.var([1.0, 2.0, 3.0], ddof=1), np.var([1.1, 2.0, 2.9], ddof=1)])
    assert found.error == pytest.approx(math.sqrt(within / 6))
    assert found.margin() == pytest.approx(scipy_stats.t.ppf(0.975, 4) * found.error)
    assert found.p_value(found.margin(0.01)) == pytest.approx(0.01)
    assert found.freedom() == pytest.approx(4)


def test_unequal_splits_weigh_as_many_as_their_seeds() -> None:
    values = [np.full(4, x) for x in (1.0, 1.0, 1.0, 5.0)]
    found = variance(values, units=[0, 0, 0, 1])
    mean = 2.0
    assert found and found.over_units == pytest.approx(2 * ((3 / 4 * (1 - mean)) ** 2 + (1 / 4 * (5 - mean)) ** 2))


def test_one_unit_has_no_variance() -> None:
    assert variance([np.ones(3)], [np.arange(3)]) is None
    assert variance([np.ones(3)] * 2, [np.arange(3)] * 2, [0, 0]) is None


def test_margins_add_in_squares_and_p_inverts_them() -> None:
    both = Variance(0.04, 0.09, 5, 100)
    quantiles = [scipy_stats.t.ppf(0.975, freedom) for freedom in (4, 99)]
    assert both.margin() == pytest.approx(math.hypot(0.2 * quantiles[0], 0.3 * quantiles[1]))
    for alpha in (0.5, 0.05, 0.01, 1e-6):
        assert both.p_value(-both.margin(alpha)) == pytest.approx(alpha, rel=1e-6)
    assert both.p_value(0.0) == pytest.approx(1.0) and both.p_value(1e30) == LEAST
    assert Variance(0.0, 0.0, 5, 100).p_value(0.1) is None
    only_items = Variance(0.0, 0.09, 5, 100)
    assert only_items.p_value(0.6) == pytest.approx(2 * scipy_stats.t.sf(2, 99))


def test_freedom_is_that_of_the_same_margin() -> None:
    for given in (Variance(0.04, 0.09, 5, 100), Variance(0.04, 0.0001, 2, 1000), Variance(1e-9, 0.09, 10, 2000)):
        nu = given.freedom()
        assert given.units - 1 <= nu <= given.items - 1
        assert scipy_stats.t.ppf(0.975, nu) * given.error == pytest.approx(given.margin(), rel=1e-6)


@pytest.mark.parametrize("given", [Variance(0.04, 0.0, 5, 0), Variance(0.04, 0.09, 10, 100)])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_detectable_has_its_power(given: Variance, alpha: float) -> None:
    nu, effect = given.freedom(alpha), given.detectable(alpha) / given.error
    quantile = scipy_stats.t.ppf(1 - alpha / 2, nu)
    power = scipy_stats.nct.sf(quantile, nu, effect) + scipy_stats.nct.cdf(-quantile, nu, effect)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_arms_are_matched_by_item() -> None:
    first, second = matched(np.array([7, 3, 5]), np.array([5, 7, 3]))
    assert first.tolist() == [1, 2, 0] and second.tolist() == [2, 0, 1]
    for theirs in ([7, 3, 6], [7, 3]):
        with pytest.raises(ValueError, match="same items"):
            matched(np.array([7, 3, 5]), np.array(theirs))
    with pytest.raises(ValueError, match="same items"):
        matched(np.array([7, 7]), np.array([7, 7]))


def test_intervals_cover_where_those_over_seeds_do_not() -> None:
    """Five seeds, one test set of 100 items that differ between the arms: 95 % against about 75 %."""
    draw, trials, hits = np.random.default_rng(11), 400, np.zeros(2)
    for _ in range(trials):
        x = draw.normal(0, 0.005, (5, 1)) + draw.normal(0, 0.2, 100) + draw.normal(0, 0.3, (5, 100))
        crossed, seeds = variance(list(x), [np.arange(100)] * 5), variance(list(x))
        assert crossed and seeds
        hits += [abs(x.mean()) <= found.margin() for found in (crossed, seeds)]
    assert 0.93 <= hits[0] / trials <= 0.99 and hits[1] / trials < 0.88
