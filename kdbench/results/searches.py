"""The log of an arm's validation search: what was tried, what it scored, what was chosen; sealed like a record.

Logs are published as ``leaderboard/search/TASK/ARM.json``. A run whose options a published log chose names its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, JsonValue, model_validator

from kdbench.plan.catalog import leaderboard
from kdbench.plan.config import RunConfig
from kdbench.plan.options import plain
from kdbench.results.parts import Hex, Part
from kdbench.results.record import group_of
from kdbench.results.sealed import Sealed

Options = dict[str, JsonValue]
"""Values by ``section.option``; ``method.option`` for hyper-parameters."""
Score = Annotated[float | None, BeforeValidator(lambda given: None if given is None else float(given))]


class Point(Part):
    """One point of a search."""

    options: Options
    scores: list[Score]
    """Validation score of each seed; null for a run that failed."""

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None where a run failed."""
        known = [score for score in self.scores if score is not None]
        return float(np.mean(known)) if len(known) == len(self.scores) else None


class Search(Sealed):
    """The search of one arm. ``group`` and ``teacher`` tell which runs it was made for."""

    called = "the log"

    version: Literal[1] = 1
    task: str
    scale: str
    method: str
    student: str | None
    settings: list[str]
    group: Hex
    teacher: dict[str, JsonValue] | None
    metric: str
    mode: Literal["min", "max"]
    seeds: list[int]
    points: list[Point] = Field(min_length=1)
    chosen: Options
    code: list[Hex]
    """Digests of the code of its runs: one, unless it changed meanwhile."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if any(len(point.scores) != len(self.seeds) for point in self.points):
            raise ValueError("every point has a score for each seed")
        if self.chosen != best(self.points, self.mode).options:
            raise ValueError("chosen is not the point of the best mean validation score")
        return self

    def serves(self, config: RunConfig) -> bool:
        """Whether the search was made for this run's arm, and chose its options."""
        made_for = (self.task, self.scale, self.method, self.group)
        if made_for != (config.task, config.scale, config.method, group_of(config.to_json())):
            return False
        teacher = config.to_json()["teacher"]
        return self.teacher == teacher and all(value_of(config, key) == value for key, value in self.chosen.items())


def best(points: Sequence[Point], mode: str) -> Point:
    """The point of the best mean score, the first of several; ValueError where every point has a run that failed."""
    sound = [point for point in points if point.mean is not None]
    if not sound:
        raise ValueError("every point has a run that failed")
    sign = -1 if mode == "max" else 1
    return min(sound, key=lambda point: sign * (point.mean or 0.0))


def value_of(config: RunConfig, key: str) -> Any:
    """The plain value of an option ``section.option`` of a run."""
    section, _, option = key.partition(".")
    return plain(config.hyperparameters if section == "method" else getattr(config, section))[option]


def published() -> Path:
    """The folder of published logs."""
    return leaderboard() / "search"


def log_path(folder: Path, task: str, arm: str) -> Path:
    """Where the log of an arm (``METHOD`` or ``METHOD/STUDENT``) lies."""
    return folder / task / f"{arm}.json"


def budget(config: RunConfig) -> dict[str, Any] | None:
    """What a record says of the published search that chose a run's options; None where none did."""
    if not config.search:
        return None
    folder = published() / config.task
    for path in (folder / f"{config.method}.json", *sorted((folder / config.method).glob("*.json"))):
        if path.is_file() and (search := Search.read(path)).serves(config):
            return {"points": len(search.points), "seeds": search.seeds, "sha256": search.digest}
    return None
