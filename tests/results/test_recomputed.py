"""The statistics of a table once more, by other formulas than the package's: scipy's tests, enumeration, root finding.

From the records' scores alone: mean, paired difference and p, interval, detectable difference, Holm, Benjamini and
Hochberg, gap closed with Fieller's interval, sign flips, equivalence; and the crossed variance by mean squares and by a
bootstrap of seeds and items.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from kdbench.board import overview
from kdbench.board.model import Task, task_of
from kdbench.board.overview import claims
from kdbench.results.claims import equivalent
from kdbench.results.compare import Comparison, Row, compare
from kdbench.results.crossed import variance
from kdbench.results.record import Record

Scores = dict[str, np.ndarray]
Arms = Callable[..., list[Record]]
RIGHTS = {
    "alone": [36, 38, 35, 39, 37, 33, 36, 40, 38, 37, 35, 36],
    "kd": [38, 39, 38, 40, 36, 37, 36, 41, 40, 40, 38, 36],
    "close": [39, 38, 40, 41, 36, 36, 38, 40, 41, 42, 37, 38],
    "far": [44, 42, 43, 47, 41, 40, 46, 44, 45, 47, 42, 44],
}
TEACHER = [54, 50, 52, 55, 51, 53, 52, 54, 50, 56, 53, 52]


@pytest.fixture(params=[5, 12])
def comparison(request: pytest.FixtureRequest, make: Callable[..., Record]) -> Comparison:
    """Four arms of 5 or of 12 seeds: t tests, or sign flips."""
    return compare(records_of(make, request.param))[0]


def records_of(make: Callable[..., Record], seeds: int) -> list[Record]:
    return [
        make(method, seed, right, teacher_right=TEACHER[seed])
        for method, rights in RIGHTS.items()
        for seed, right in enumerate(rights[:seeds])
    ]


def row(comparison: Comparison, label: str) -> Row:
    (single,) = [row for row in comparison.rows if row.label == label]
    return single


def scores(comparison: Comparison) -> Scores:
    return {found.label: np.array(found.scores) for found in comparison.rows}


def p_of(differences: np.ndarray) -> float:
    """Student's test of few pairs, every pattern of signs of more."""
    if len(differences) < 10:
        return float(scipy_stats.ttest_1samp(differences, 0).pvalue)
    exact = {"permutation_type": "samples", "n_resamples": np.inf}
    return float(scipy_stats.permutation_test((differences,), np.mean, **exact).pvalue)


def closed_testing(p: list[float]) -> list[float]:
    """Holm as it is derived: the largest Bonferroni p of all sets of hypotheses that hold one."""
    sets = [subset for size in range(1, len(p) + 1) for subset in itertools.combinations(range(len(p)), size)]
    bonferroni = {subset: min(1.0, len(subset) * min(p[i] for i in subset)) for subset in sets}
    return [max(value for subset, value in bonferroni.items() if i in subset) for i in range(len(p))]


def test_means_and_their_intervals(comparison: Comparison) -> None:
    for label, values in scores(comparison).items():
        if label != "teacher":
            bounds = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
            found = row(comparison, label)
            assert found.mean == pytest.approx(values.mean(), rel=1e-13)
            assert found.interval == pytest.approx((bounds.low, bounds.high), rel=1e-11)


def test_paired_differences_at_the_level_of_their_family(comparison: Comparison) -> None:
    """Four primary contrasts, of two methods with two baselines; kd − alone stands alone."""
    known = scores(comparison)
    for label, base, family in (("kd", "alone", 1), *((m, b, 4) for m in ("close", "far") for b in ("alone", "kd"))):
        delta = getattr(row(comparison, label), f"delta_{base}")
        d = known[label] - known[base]
        bounds = scipy_stats.ttest_rel(known[label], known[base]).confidence_interval(1 - 0.05 / family)
        assert (delta.mean, delta.n) == (pytest.approx(d.mean()), len(d))
        assert (delta.low, delta.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
        assert delta.p == pytest.approx(p_of(d), rel=1e-9)


def test_the_detectable_difference_has_80_percent_power(comparison: Comparison) -> None:
    known = scores(comparison)
    for base in ("alone", "kd"):
        delta = getattr(row(comparison, "close"), f"delta_{base}")
        d = known["close"] - known[base]
        freedom, error = len(d) - 1, scipy_stats.sem(d)
        quantile = scipy_stats.t.ppf(1 - 0.05 / 4 / 2, freedom)

        def power(effect: float, quantile: float = quantile, freedom: int = freedom) -> float:
            return float(sum(scipy_stats.nct.sf(quantile, freedom, side * effect) for side in (1, -1))) - 0.8

        assert delta.detectable == pytest.approx(error * optimize.brentq(power, 0.5, 12), rel=1e-4)


def test_holm_within_the_declared_families(comparison: Comparison) -> None:
    known = scores(comparison)
    pairs = [(label, base) for label in ("close", "far") for base in ("alone", "kd")]
    expected = closed_testing([p_of(known[label] - known[base]) for label, base in pairs])
    assert [getattr(row(comparison, label), f"p_{base}") for label, base in pairs] == pytest.approx(expected)
    assert row(comparison, "kd").p_alone == pytest.approx(p_of(known["kd"] - known["alone"]))


def test_the_board_controls_false_discoveries(make: Callable[..., Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """q is the largest rate at which Benjamini and Hochberg's step-up procedure does not find the claim."""
    monkeypatch.setattr(overview, "sound", lambda task: True)
    task: Task = task_of(records_of(make, 5))
    made = claims([task, task])
    raw = np.array([one.delta.p for one in made])
    assert len(raw) == 10

    def rejected(rate: float) -> np.ndarray:
        ordered = np.sort(raw)
        passing = np.flatnonzero(ordered <= rate * np.arange(1, len(raw) + 1) / len(raw))
        return raw <= ordered[passing[-1]] if passing.size else np.zeros(len(raw), dtype=bool)

    for place, claim in enumerate(made):
        assert claim.q is not None
        assert rejected(claim.q * (1 + 1e-9))[place]
        assert not rejected(claim.q * (1 - 1e-9))[place]


def test_the_gap_and_its_interval(comparison: Comparison) -> None:
    """Fieller: the ratios whose contrast a t test does not reject; a bootstrap of seeds gives about the same."""
    known = scores(comparison)
    x, y = known["far"] - known["alone"], known["teacher"] - known["alone"]
    found = row(comparison, "far")
    assert found.gap_closed == pytest.approx(x.mean() / y.mean()) and found.gap_interval

    def excess(ratio: float) -> float:
        return float(scipy_stats.ttest_1samp(x - ratio * y, 0).pvalue) - 0.05

    center = x.mean() / y.mean()
    ends = optimize.brentq(excess, center - 2, center), optimize.brentq(excess, center, center + 2)
    assert found.gap_interval == pytest.approx(ends, rel=1e-6)
    if len(x) >= 10:
        take = np.random.default_rng(0).integers(0, len(x), (20_000, len(x)))
        spread = np.quantile(x[take].mean(axis=1) / y[take].mean(axis=1), [0.025, 0.975])
        assert np.diff(spread) == pytest.approx(np.diff(found.gap_interval), rel=0.25)


def test_equivalence_is_the_interval_within_the_margin(comparison: Comparison) -> None:
    known = scores(comparison)
    d = known["close"] - known["kd"]
    found = variance([np.array([value]) for value in d])
    assert found
    lower = scipy_stats.ttest_1samp(d, -0.03, alternative="greater").pvalue
    upper = scipy_stats.ttest_1samp(d, 0.03, alternative="less").pvalue
    assert equivalent(d.mean(), found, 0.03) == pytest.approx(max(lower, upper), rel=1e-9)


def test_the_crossed_variance_by_a_bootstrap_of_seeds_and_items() -> None:
    """Drawing seeds and items anew gives σ_a²/n + σ_b²/m + 3 σ_c²/(nm) in the mean (Owen 2007): one c too much twice.

    Two of the three are taken off by the mean square of what neither explains.
    """
    draw = np.random.default_rng(5)
    n, m = 10, 60
    x = draw.normal(0, 0.3, (n, 1)) + draw.normal(0, 1, (1, m)) + draw.normal(0, 1, (n, m))
    found = variance(list(x), [np.arange(m)] * n)
    assert found
    means = [x[np.ix_(draw.integers(0, n, n), draw.integers(0, m, m))].mean() for _ in range(20_000)]
    rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
    between = (rest**2).sum() / ((n - 1) * (m - 1)) / (n * m)
    # The bootstrap's variances of seeds and items are (n − 1)/n and (m − 1)/m of the unbiased ones.
    assert found.error**2 == pytest.approx(np.var(means) - 2 * between, rel=0.12)
