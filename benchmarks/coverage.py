"""How often intervals of a paired difference hold the truth, by simulation of seeds and test items.

``python benchmarks/coverage.py`` prints, as Markdown, the share of 95 % intervals that hold the true difference, by
four formulas, and how often each test finds a difference where there is none. ``--quick``: does it run?

Two arms share their seeds and test items. Their contributions differ by a_s + b_i + c_si (normal outcomes), or each is
right with a probability that depends on the item, on the arm at that item and on the run (right or wrong). The designs:
one test set for all seeds; a test set for each seed, drawn from a pool five times as large; and two such test sets,
each shared by half of the seeds, with an effect of the split's training data. Every trial draws all of it anew.
``width`` is the length of the crossed interval by that over seeds; ``sign flip`` is the share of p below 0.05 where the
arms are equal, over ten seeds. The crossed p is below 0.05 just where its interval leaves out 0.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kdbench.results.claims import sign_flip
from kdbench.results.crossed import Floats, Integers, units_of, variance

FORMULAS = ("t over seeds", "two-way clusters", "Satterthwaite", "crossed")
POOL = 5


class Outcomes(NamedTuple):
    """Standard deviations of the seeds', the items' and the remaining effects, and the true difference of two arms.

    Those of ``right or wrong`` are of the probit of being right, whose difficulty by item has 1.
    """

    name: str
    kind: Literal["normal", "right or wrong"]
    seed: float
    item: float
    rest: float
    effect: float = 0.0


OUTCOMES = (
    Outcomes("normal, seeds and items", "normal", 0.01, 0.15, 0.3),
    Outcomes("normal, items mostly", "normal", 0.003, 0.2, 0.3),
    Outcomes("normal, seeds alone", "normal", 0.01, 0.0, 0.3),
    Outcomes("right or wrong, equal arms", "right or wrong", 0.05, 0.3, 1.0),
    Outcomes("right or wrong, one better", "right or wrong", 0.05, 0.3, 1.0, 0.2),
)
EASE = 1.2


class Design(NamedTuple):
    """How many seeds are tested on which items: ``splits`` test sets, 0 for one a seed, and one seed's items."""

    name: str
    seeds: int
    items: int
    splits: int


DESIGNS = (
    *(Design("one test set", n, m, 1) for n in (5, 10) for m in (200, 1000)),
    *(Design("a test set a seed", n, m, 0) for n in (5, 10) for m in (200, 1000)),
    *(Design("2 test sets × 5", 10, m, 2) for m in (200, 1000)),
)


class Trial(NamedTuple):
    """The items, the differences of contributions and the split of every seed."""

    items: list[Integers]
    values: list[Floats]
    splits: list[int]


def truth(outcomes: Outcomes, splits: int) -> float:
    """The true mean difference: Φ(μ / √(1 + all variances)) of one arm less that of the other."""
    if outcomes.kind == "normal":
        return outcomes.effect
    spread = 2 + outcomes.item**2 + outcomes.seed**2
    better = special.ndtr((EASE + outcomes.effect) / math.sqrt(spread + (outcomes.seed**2 if splits > 1 else 0)))
    return float(better - special.ndtr(EASE / math.sqrt(spread)))


def trial(outcomes: Outcomes, design: Design, draw: np.random.Generator) -> Trial:
    """One experiment."""
    n, m = design.seeds, design.items
    pool = m if design.splits == 1 else POOL * m
    sets = [draw.choice(pool, m, replace=False) for _ in range(design.splits or n)]
    splits = [seed * len(sets) // n for seed in range(n)]
    of_splits = draw.normal(0, outcomes.seed if design.splits > 1 else 0.0, len(sets))
    difficulty, *arms = draw.normal(0, 1, pool), *draw.normal(0, outcomes.item, (2, pool))
    values = []
    for split in splits:
        items = sets[split]
        own = of_splits[split] + draw.normal(0, outcomes.seed)
        if outcomes.kind == "normal":
            values.append(outcomes.effect + own + arms[0][items] + draw.normal(0, outcomes.rest, m))
            continue
        shared = draw.normal(0, 1, m)
        noise = (shared + draw.normal(0, 1, (2, m))) / math.sqrt(2)
        ease = EASE + difficulty[items]
        better = noise[0] < ease + outcomes.effect + own + arms[0][items]
        worse = noise[1] < ease + draw.normal(0, outcomes.seed) + arms[1][items]
        values.append(better.astype(float) - worse)
    return Trial([sets[split] for split in splits], values, splits)


def margins(one: Trial) -> Iterator[float]:
    """Half of the 95 % interval, by ``FORMULAS``."""
    n = len(one.values)
    seeds, found = variance(one.values), variance(one.values, one.items, units_of(one.splits))
    assert seeds and found
    yield seeds.margin()
    yield -special.stdtrit(n - 1, 0.025) * math.sqrt(max(0.0, _two_way(one)))
    freedom = found.error**4 / (found.over_units**2 / (found.units - 1) + found.shared**2 / (found.items - 1))
    yield -special.stdtrit(freedom, 0.025) * found.error
    yield found.margin()


def _two_way(one: Trial) -> float:
    """V_seed + V_item − V_both of Cameron, Gelbach and Miller, each with its own small-sample factor."""
    n, means = len(one.values), np.array([each.mean() for each in one.values])
    rest = np.concatenate([(each - means.mean()) / (len(each) * n) for each in one.values])
    place = np.unique_inverse(np.concatenate(one.items)).inverse_indices
    of_items, of_seeds = np.bincount(place, rest), (means - means.mean()) / n
    parts: Sequence[NDArray[np.float64]] = (of_seeds, of_items, rest)
    seed, item, both = (float(part @ part) * len(part) / (len(part) - 1) for part in parts)
    return seed + item - both


def measure(outcomes: Outcomes, design: Design, trials: int) -> list[str]:
    """One row of the table."""
    draw, true = np.random.default_rng(design.seeds * design.items), truth(outcomes, design.splits)
    held, widths, flipped = np.zeros(len(FORMULAS)), np.zeros(len(FORMULAS)), 0
    for _ in range(trials):
        one = trial(outcomes, design, draw)
        scores = [float(each.mean()) for each in one.values]
        found = np.array(list(margins(one)))
        held += abs(np.mean(scores) - true) <= found
        widths += found
        flipped += design.seeds >= 10 and sign_flip(scores) < 0.05
    flip = f"{100 * flipped / trials:.1f}" if design.seeds >= 10 and not outcomes.effect else ""
    shares = [f"{100 * share / trials:.1f}" for share in held]
    return [
        outcomes.name,
        design.name,
        str(design.seeds),
        f"{design.items:,}",
        *shares,
        f"{widths[3] / widths[0]:.2f}",
        flip,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few trials: does it run?")
    parser.add_argument("--trials", type=int, help="experiments a row (default 400, quick 20)")
    chosen = parser.parse_args()
    trials = chosen.trials or (20 if chosen.quick else 400)
    started = time.perf_counter()
    print("| outcomes | design | seeds | items | " + " | ".join(FORMULAS) + " | width | sign flip |")
    print("| --- | --- | " + " | ".join(["---:"] * (len(FORMULAS) + 4)) + " |")
    for outcomes in OUTCOMES:
        for design in DESIGNS:
            print("| " + " | ".join(measure(outcomes, design, trials)) + " |", flush=True)
    error, seconds = 100 * math.sqrt(0.05 * 0.95 / trials), time.perf_counter() - started
    print(f"\n{trials:,} experiments a row, standard error {error:.1f}; {seconds:.0f} s.")


if __name__ == "__main__":
    main()
