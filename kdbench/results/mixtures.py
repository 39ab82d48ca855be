"""What the arms of one seed should have in common, so that a method alone explains how they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kdbench.results.record import Record


class Trait(NamedTuple):
    """What a run has of it, None where that is not known, and what follows where the arms of a seed differ."""

    name: str
    of: Callable[[Record], str | None]
    otherwise: str


ROUNDING = "they share all random streams, but not rounding"
TRAITS = (
    Trait("processor", lambda run: run.hardware.cpu, ROUNDING),
    Trait("accelerator", lambda run: run.hardware.accelerator or "none", ROUNDING),
    Trait("threads", lambda run: str(run.hardware.threads), ROUNDING),
    Trait("data", lambda run: run.data.sha256[:16] if run.data else None, "the data is part of their differences"),
)


@dataclass(frozen=True)
class Mixture:
    """A trait in which the arms of these seeds differ: its values there, and what follows."""

    trait: str
    values: tuple[str, ...]
    seeds: tuple[int, ...]
    otherwise: str


def mixtures(arms: Iterable[Mapping[int, Record]]) -> tuple[Mixture, ...]:
    """The traits in which arms, whose runs are given by seed, differ within a seed."""
    runs: dict[int, list[Record]] = defaultdict(list)
    for arm in arms:
        for seed, run in arm.items():
            runs[seed].append(run)
    found = []
    for trait in TRAITS:
        values = {seed: {value for run in runs[seed] if (value := trait.of(run)) is not None} for seed in sorted(runs)}
        mixed = {seed: known for seed, known in values.items() if len(known) > 1}
        if mixed:
            told = sorted(set.union(*mixed.values()))
            found.append(Mixture(trait.name, tuple(told), tuple(mixed), trait.otherwise))
    return tuple(found)
