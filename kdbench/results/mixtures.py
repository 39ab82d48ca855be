"""What the arms of one seed should have in common, so that a method alone explains how they differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    Trait(
        "commit", lambda run: run.git.commit and run.git.commit[:10], "what their numbers depend on is compared as code"
    ),
    Trait("data", lambda run: run.data.sha256[:16] if run.data else None, "the data is part of their differences"),
)


@dataclass(frozen=True)
class Mixture:
    """A trait in which the arms of these seeds differ: its values there, and what follows.

    Code must be the same in all seeds too: ``values`` are the files that differ then, ``seeds`` those of fewer runs.
    """

    trait: str
    values: tuple[str, ...]
    seeds: tuple[int, ...]
    otherwise: str


def mixtures(arms: Iterable[Mapping[int, Record]]) -> tuple[Mixture, ...]:
    """The traits in which arms, whose runs are given by seed, differ within a seed, and code that differs anywhere."""
    arms = list(arms)
    runs: dict[int, list[Record]] = defaultdict(list)
    for arm in arms:
        for seed, run in arm.items():
            runs[seed].append(run)
    by_trait = []
    for trait in TRAITS:
        values = {seed: {value for run in runs[seed] if (value := trait.of(run)) is not None} for seed in sorted(runs)}
        mixed = {seed: known for seed, known in values.items() if len(known) > 1}
        if mixed:
            distinct = sorted(set.union(*mixed.values()))
            by_trait.append(Mixture(trait.name, tuple(distinct), tuple(mixed), trait.otherwise))
    return (*by_trait, *_programs([run for arm in arms for run in arm.values()]))


def _programs(runs: Sequence[Record]) -> Iterator[Mixture]:
    """Code of which the runs had different versions; code that is not known differs from any that is."""
    versions: dict[str, dict[int, str]] = defaultdict(dict)
    known = any(run.code for run in runs)
    for place, run in enumerate(runs):
        if run.code:
            for path, digest in run.code.files.items():
                versions[path][place] = digest
        elif known:
            versions["code that is not known"][place] = ""
    differing, odd = [], set[int]()
    for path, digests in versions.items():
        ((commonest, _),) = Counter(digests.values()).most_common(1)
        others = {place for place, digest in digests.items() if digest != commonest}
        others |= set(digests) if not commonest else set()
        if others:
            differing.append(path)
            odd |= others
    if differing:
        seeds = sorted({runs[place].seed for place in odd})
        yield Mixture("code", tuple(sorted(differing)), tuple(seeds), "they are numbers of different programs")
