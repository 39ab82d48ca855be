"""The validation search of a task's arms: which runs it takes, and what they choose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdbench.errors import KdbenchError, UsageError, shown
from kdbench.plan import search as searches
from kdbench.plan.cards import Card, card
from kdbench.plan.catalog import offered_methods
from kdbench.plan.config import RunConfig, expand, resolve
from kdbench.plan.metrics import named
from kdbench.plan.overrides import parse_overrides
from kdbench.results.record import Record, group_of
from kdbench.results.searches import Point, Search, best, value_of


@dataclass(frozen=True)
class Arm:
    """An arm, the points of its search, and the runs of each point, one a seed."""

    name: str
    base: RunConfig
    runs: tuple[tuple[RunConfig, ...], ...]

    @property
    def options(self) -> list[str]:
        """The options that it searches."""
        return list(searches.values(card(self.base.asked).search, self.base.method))


def bases(task: str, words: Sequence[str]) -> list[tuple[str, RunConfig]]:
    """The arms that the words ask for, by name: those of ``method=…``, else every method and control of the task.

    They are those of the card's primary comparison where the words do not say otherwise. The name is the key under
    ``methods`` of the card: ``METHOD``, or ``METHOD/STUDENT`` for another student than the card's.
    """
    asked = card(task)
    keys = {override.key for override in parse_overrides(words)}
    if wrong := keys & {"task", "seed", "control"}:
        raise UsageError(f"'{min(wrong)}' is not for you to choose here: leave it out.")
    primary = asked.primary.words if asked.primary else []
    own = [word for word in primary if word.partition("=")[0] not in keys]
    if "method" not in keys:
        offered = offered_methods(asked.family, asked.kind).values()
        own.append(f"method={','.join(info.name for info in offered if info.role in ('method', 'control'))}")
    usual = asked.primary.student.get("name") if asked.primary else None
    named = []
    for base in expand([f"task={task}", *own, *words]):
        student = getattr(base.student, "name", "")
        other = "student.name" in keys and student != usual
        named.append((f"{base.method}/{student}" if other else base.method, base))
    return named


def arms(task: str, words: Sequence[str]) -> list[Arm]:
    """The searches of the arms that the words ask for (:func:`bases`)."""
    asked = card(task)
    if not asked.search:
        raise UsageError(f"The card of {asked.name} names no search ({asked.path}).")
    for override in parse_overrides(words):
        if override.key.startswith("method.") or override.key in searches.shared(asked.search):
            raise UsageError(f"'{shown(override.key)}' is what a search says itself: leave it out.")
    return [_arm(asked, name, base) for name, base in bases(task, words)]


def _arm(asked: Card, name: str, base: RunConfig) -> Arm:
    chosen = {"task": base.asked, "scale": base.scale, "method": base.method, **dict(base.settings)}
    points = searches.points(asked.search, base.method)
    runs = (tuple(resolve({**chosen, **point, "seed": seed}) for seed in searches.SEEDS) for point in points)
    return Arm(name, base, tuple(runs))


def search_of(arm: Arm, records: Mapping[str, Record]) -> Search:
    """The search of an arm from the records of its runs, by hash; a run without one failed.

    Of scores only those on validation data are read. Raises :class:`KdbenchError` where every point has a run that
    failed.
    """
    base, config = arm.base, arm.base.to_json()
    mode = named(base.family, base.kind, base.metric).mode
    points = [_point(arm, runs, records) for runs in arm.runs]
    known = [records[run.hash] for runs in arm.runs for run in runs if run.hash in records]
    try:
        chosen = best(points, mode)
    except ValueError as error:
        raise KdbenchError(f"{arm.name}: {error}.") from None
    return Search.seal(
        {
            "task": base.task,
            "scale": base.scale,
            "method": base.method,
            "student": getattr(base.student, "name", None),
            "settings": [word for word in base.overrides if not word.startswith("student.name=")],
            "group": group_of(config),
            "teacher": config["teacher"],
            "metric": base.metric,
            "mode": mode,
            "seeds": list(searches.SEEDS),
            "points": [point.model_dump() for point in points],
            "chosen": chosen.options,
            "code": sorted({record.code.sha256 for record in known if record.code}),
        }
    )


def _point(arm: Arm, runs: Sequence[RunConfig], records: Mapping[str, Record]) -> Point:
    def score(run: RunConfig) -> float | None:
        metrics = records[run.hash].metrics if run.hash in records else None
        return metrics.val[run.metric] if metrics else None

    return Point(options={key: value_of(runs[0], key) for key in arm.options}, scores=[score(run) for run in runs])


def lines(searched: Mapping[str, Search]) -> str:
    """What the card is to say of the arms, as YAML."""
    chosen = ["methods:"]
    for name, search in searched.items():
        values = {key.removeprefix("method."): value for key, value in search.chosen.items()}
        chosen.append(f"  {name}: {{{', '.join(f'{key}: {json.dumps(value)}' for key, value in values.items())}}}")
    return "\n".join(chosen)
