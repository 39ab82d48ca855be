"""What the arms of a task cost, measured side by side on an idle machine; sealed like a record.

Published as ``leaderboard/measurements/TASK.json`` (``TASK/STUDENT.json`` for another student than the card's).
Seconds, milliseconds and bytes of protocol 2 are shown from here alone: those of records were taken while other runs
were at work.
"""

from __future__ import annotations

import functools
import statistics
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from kdbench.plan.catalog import leaderboard
from kdbench.results.parts import Count, Git, Hardware, Hex, Load, Part, Seconds, Time
from kdbench.results.record import Record
from kdbench.results.sealed import Sealed

BUSY = 0.5
"""Load from which a machine is not idle: the mean number of processes that ran or waited in the last minute."""


class Times(Part):
    """Milliseconds of each round: median and range over them."""

    rounds: list[Seconds] = Field(min_length=1, description="median of each round, milliseconds")

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        return min(self.rounds)

    @property
    def high(self) -> float:
        return max(self.rounds)


class Arm(Part):
    """What an arm costs."""

    method: str
    hyperparameters: dict[str, JsonValue]
    parameters: Count = Field(description="parameters of the deployed student")
    trained_parameters: Count = Field(description="parameters that are optimised, helpers included")
    examples: int = Field(ge=1, description="examples of the task's batch")
    flops: Count = Field(description="floating-point operations of a forward pass of the task's batch")
    forward_one: Times = Field(description="a forward pass of the deployed student for one example")
    forward_batch: Times = Field(description="the same for the task's batch")
    step: Times | None = Field(description="a training step on the task's batch; null for an arm that trains nothing")
    stage_seconds: Seconds | None = Field(
        description="wall time of the arm's stages, teacher included; null where some were done before"
    )
    memory_bytes: Count | None = Field(description="what training takes beyond libraries; null where not known")

    @property
    def flops_per_example(self) -> float:
        return self.flops / self.examples


class Measurement(Sealed):
    """The costs of a task's arms. ``group`` tells which runs they are of."""

    called = "the measurement"

    version: Literal[1] = 1
    task: str
    scale: str
    student: str | None
    settings: list[str]
    group: Hex
    seed: int
    versions: dict[str, str]
    git: Git
    hardware: Hardware
    load: Load | None
    busy: bool = Field(description="whether other processes were at work: times are then too long")
    started: Time
    finished: Time
    arms: list[Arm] = Field(min_length=1)


def published() -> Path:
    """The folder of published measurements."""
    return leaderboard() / "measurements"


def path_of(folder: Path, task: str, student: str = "") -> Path:
    """Where a task's measurement lies, or that of another student than the card's."""
    return folder / task / f"{student}.json" if student else folder / f"{task}.json"


def of_record(record: Record) -> Arm | None:
    """The costs of a record's arm, as published or as they lie in the folder of its run.

    None where they were not measured, and for a control of a teacher.
    """
    method = record.config.get("method")
    if record.control != "none" or not isinstance(method, dict):
        return None
    own = {name: value for name, value in method.items() if name != "name"}
    arms = [arm for folder in _folders(record) for arm in _of_group(folder, record.task).get(record.group, ())]
    return next((arm for arm in arms if arm.method == record.method and arm.hyperparameters == own), None)


def _folders(record: Record) -> list[Path]:
    """Where a record's measurement may lie: among the published ones, and in the folder of runs."""
    above = list(record.path.parents) if record.path and record.path.name == "record.json" else []
    return [published(), *(root / "measurements" for root in above[3 + record.task.count("/") :][:1])]


@functools.lru_cache(1024)
def _of_group(folder: Path, task: str) -> dict[str, tuple[Arm, ...]]:
    """The arms of a task's published measurements by group."""
    paths = [folder / f"{task}.json", *sorted((folder / task).glob("*.json"))]
    measurements = [Measurement.read(path) for path in paths if path.is_file()]
    return {one.group: tuple(one.arms) for one in measurements if one.task == task}
