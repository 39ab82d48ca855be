"""Letters, ranks and critical differences against their definitions, tables and scipy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.results.ranks import Matrix, critical_difference, letters, pairwise
from kdbench.results.stats import adjusted, paired


def arms(count: int, seeds: int, draw: np.random.Generator) -> list[dict[int, float]]:
    """Arms of various means, each without some of the seeds."""
    means, shared = draw.normal(0, 1.5, count), draw.normal(0, 1, seeds)
    return [
        {seed: mean + shared[seed] + draw.normal(0, 0.5) for seed in range(seeds) if draw.random() < 0.8}
        for mean in means
    ]


def one_by_one(scores: list[dict[int, float]]) -> Matrix:
    raw, pairs = [], list(itertools.combinations(range(len(scores)), 2))
    for i, j in pairs:
        common = sorted(scores[i].keys() & scores[j].keys())
        raw.append(paired([scores[i][s] for s in common], [scores[j][s] for s in common]) if common else None)
    p = np.full((len(scores), len(scores)), np.nan)
    for (i, j), value in zip(pairs, adjusted(raw), strict=True):
        p[i, j] = p[j, i] = np.nan if value is None else value
    return p


@pytest.mark.parametrize("seeds", [1, 2, 3, 10])
def test_all_pairs_at_once_equal_one_by_one(seeds: int) -> None:
    scores = arms(12, seeds, np.random.default_rng(seeds))
    np.testing.assert_allclose(pairwise(scores), one_by_one(scores), rtol=1e-9)


@pytest.mark.parametrize("kind", [float, np.float32])
def test_pairs_without_spread_and_without_seeds(kind: Any) -> None:
    given = [{0: 0.1, 1: 0.2}, {0: 0.3, 1: 0.4}, {0: 0.1, 1: 0.2}, {0: 0.5, 1: 0.61}, {5: 0.1}, {}]
    scores = [{seed: float(kind(value)) for seed, value in arm.items()} for arm in given]
    p = pairwise(scores)
    np.testing.assert_allclose(p, one_by_one(scores), rtol=1e-9)
    tested = ~np.isnan(p)
    assert np.argwhere(tested).tolist() == [[0, 3], [1, 3], [2, 3], [3, 0], [3, 1], [3, 2]]
    # Six pairs with common seeds; those without spread count as tests that found nothing.
    raw = [scipy_stats.ttest_rel(list(scores[3].values()), list(scores[i].values())).pvalue for i in (0, 1, 2)]
    assert p[3, 0] == pytest.approx(min(1, 6 * min(raw)))
    assert pairwise([]).shape == (0, 0) and np.isnan(pairwise([{}, {}])).all()


def display(p: Matrix) -> list[str]:
    return letters(p, list(range(len(p))))


def of(pairs: list[tuple[int, int]], count: int) -> Matrix:
    """A matrix in which these pairs differ."""
    p = np.ones((count, count))
    for i, j in pairs:
        p[i, j] = p[j, i] = 0.01
    return p


def test_letters_by_hand() -> None:
    assert display(of([], 3)) == ["a", "a", "a"]
    assert display(of([(0, 1), (0, 2), (1, 2)], 3)) == ["a", "b", "c"]
    assert display(of([(0, 2)], 3)) == ["a", "ab", "b"]
    # A square without diagonals: four pairs alike, no three.
    assert display(of([(0, 2), (1, 3)], 4)) == ["ab", "ac", "cd", "bd"]
    assert letters(of([(0, 2)], 3), [2, 1, 0]) == ["b", "ab", "a"]
    assert display(of([], 1)) == ["a"] and display(of([], 0)) == []


def test_the_level_itself_is_no_difference() -> None:
    p = of([], 2)
    p[0, 1] = p[1, 0] = 0.05
    assert display(p) == ["a", "a"]
    p[0, 1] = p[1, 0] = np.nextafter(0.05, 0)
    assert display(p) == ["a", "b"]
    assert display(np.full((2, 2), np.nan)) == ["a", "a"]


@pytest.mark.parametrize("seed", range(40))
def test_arms_share_a_letter_exactly_if_not_distinguished(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 11))
    p = np.triu(draw.random((count, count)) * draw.choice([0.07, 0.1, 0.5]), 1)
    p = p + p.T
    found = letters(p, [int(i) for i in draw.permutation(count)])
    for i, j in itertools.combinations(range(count), 2):
        assert bool(set(found[i]) & set(found[j])) == (p[i, j] >= 0.05)
    for letter in set("".join(found)):
        inside = [i for i in range(count) if letter in found[i]]
        outside = [i for i in range(count) if letter not in found[i]]
        assert all(any(p[i, j] < 0.05 for j in inside) for i in outside), "a clique that could be larger"


def test_more_groups_than_letters_have_none() -> None:
    everyone = [pair for pair in itertools.combinations(range(53), 2)]
    assert display(of(everyone, 53)) == [""] * 53
    assert len(set(display(of([p for p in everyone if max(p) < 52], 52)))) == 52


# Demšar (2006), table 5(a).
TABLE = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("k", "q"), TABLE.items())
def test_critical_difference_against_the_table(k: int, q: float) -> None:
    blocks = 14
    ranking = critical_difference({f"m{i}": [float(i)] * blocks for i in range(k)})
    assert ranking.cd / np.sqrt(k * (k + 1) / (6 * blocks)) == pytest.approx(q, abs=1.1e-3)
    assert list(ranking.ranks.values()) == [float(k - i) for i in range(k)] and ranking.blocks == blocks


def test_ranks_with_ties_and_friedman() -> None:
    scores = {"a": [0.9, 0.8, 0.7, 0.9], "b": [0.9, 0.7, 0.6, 0.8], "c": [0.5, 0.6, 0.65, 0.3]}
    ranking = critical_difference(scores)
    assert ranking.ranks == {"a": (1.5 + 1 + 1 + 1) / 4, "b": (1.5 + 2 + 3 + 2) / 4, "c": (3 + 3 + 2 + 3) / 4}
    assert ranking.p == pytest.approx(scipy_stats.friedmanchisquare(*scores.values()).pvalue)
    errors = critical_difference(scores, maximise=False)
    assert errors.ranks == {name: 4 - rank for name, rank in ranking.ranks.items()}


def test_means_that_differ_by_rounding_are_tied() -> None:
    a = {"a": [0.9, 0.8, 0.7], "b": [0.9 + 1e-9, 0.8 - 1e-8, 0.7], "c": [0.9 - 1e-5, 0.9, 0.7 + 5e-8]}
    assert critical_difference(a).ranks == {"a": (1.5 + 2.5 + 2) / 3, "b": (1.5 + 2.5 + 2) / 3, "c": (3 + 1 + 2) / 3}


def test_ranks_of_two_methods_and_of_equal_ones() -> None:
    assert critical_difference({"a": [1.0, 2.0], "b": [0.0, 1.0]}).p is None
    same = critical_difference({name: [0.5, 0.5] for name in "abc"})
    assert same.p == 1 and set(same.ranks.values()) == {2.0}


@pytest.mark.parametrize("scores", [{}, {"a": [1.0, 2.0]}, {"a": [1.0], "b": [2.0]}, {"a": [1.0, 2.0], "b": [1.0]}])
def test_too_little_to_rank(scores: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="two methods"):
        critical_difference(scores)
