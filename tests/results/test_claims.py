"""Sign flips, equivalence and the false discovery rate against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.results.claims import FLIPS, benjamini_hochberg, equivalent, sign_flip
from kdbench.results.crossed import Variance, variance


@pytest.mark.parametrize("n", [2, 5, 10, 14])
def test_every_pattern_of_signs(n: int) -> None:
    d = np.random.default_rng(n).normal(0.5, 1, n)
    means = [np.mean(d * signs) for signs in itertools.product((1, -1), repeat=n)]
    share = np.mean(np.abs(means) >= abs(d.mean()) - 1e-12)
    assert sign_flip(d.tolist()) == pytest.approx(share)
    assert sign_flip((-d).tolist()) == pytest.approx(share)


def test_it_is_scipys_permutation_test() -> None:
    d = np.random.default_rng(4).normal(0.4, 1, 12)
    reference = scipy_stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(d) == pytest.approx(reference.pvalue)


def test_drawn_patterns_are_the_same_each_time() -> None:
    d = np.random.default_rng(0).normal(0.6, 1, 20).tolist()
    assert sign_flip(d) == sign_flip(d) == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert sign_flip([1.0] * 30) == pytest.approx(1 / (FLIPS + 1))


def test_ten_equal_signs() -> None:
    assert sign_flip([0.1 * i for i in range(1, 11)]) == pytest.approx(2 / 1024)
    assert sign_flip([1.0, -1.0] * 5) == 1.0


def test_two_one_sided_tests() -> None:
    d = np.array([0.01, -0.02, 0.015, 0.0, 0.005])
    found = variance([np.array([x]) for x in d])
    assert found
    lower = scipy_stats.ttest_1samp(d, -0.02, alternative="greater").pvalue
    upper = scipy_stats.ttest_1samp(d, 0.02, alternative="less").pvalue
    assert equivalent(d.mean(), found, 0.02) == pytest.approx(max(lower, upper))
    # At the level 1 − 2α the interval just touches the margin.
    edge = d.mean() + found.margin(0.10)
    assert equivalent(d.mean(), found, edge) == pytest.approx(0.05)
    assert equivalent(0.5, found, 0.02) == pytest.approx(1.0, abs=1e-3)


def test_equivalence_needs_a_spread_and_a_margin() -> None:
    assert equivalent(0.0, Variance(0.0, 0.0, 5, 0), 0.01) is None
    with pytest.raises(ValueError, match="above 0"):
        equivalent(0.0, Variance(0.1, 0.0, 5, 0), 0.0)


def test_benjamini_hochberg_by_hand() -> None:
    assert benjamini_hochberg([0.01, None, 0.04, 0.03, 0.5]) == [
        pytest.approx(x) if x is not None else None for x in (0.04, None, 0.16 / 3, 0.16 / 3, 0.5)
    ]
    assert benjamini_hochberg([None]) == [None] and benjamini_hochberg([]) == []
