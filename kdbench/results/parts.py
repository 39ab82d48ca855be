"""What a record is made of: the types of its fields, and its parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from kdbench.results.checks import Fault, Loc


def leaves(value: object, loc: Loc = ()) -> Iterator[tuple[Loc, object]]:
    """Every value of a JSON document that is no object and no list, with its path."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*loc, key))
    else:
        yield loc, value


def reject(faults: Iterable[Fault]) -> None:
    """Raise one validation error that carries every fault with its own path; pydantic prepends the outer path."""
    lines = [
        InitErrorDetails(type=PydanticCustomError("record", "{message}", {"message": message}), loc=loc, input=None)
        for loc, message in faults
    ]
    if lines:
        raise ValidationError.from_exception_data("Record", lines)


def _jsonable(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_jsonable, value.values()))
    if isinstance(value, list):
        return all(map(_jsonable, value))
    return math.isfinite(value) if isinstance(value, float) else value is None or isinstance(value, str | int)


def _plain(config: object) -> object:
    """Refuse what JSON cannot hold, before pydantic's union of JSON types would blur the path to it."""
    if not _jsonable(config):
        loc, leaf = next((loc, leaf) for loc, leaf in leaves(config) if not _jsonable(leaf))
        reject([(loc, f"{leaf!r} is not a finite number, text, true, false or null")])
    return config


def _time(value: object) -> object:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _number_or_text(value: object, check: ValidatorFunctionWrapHandler) -> float | str:
    try:
        checked: float | str = check(value)
    except ValidationError:
        raise PydanticCustomError("record", "Input should be a finite number, or text such as 'nan'") from None
    return checked


Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Confusion = list[list[Count]]
Seconds = Annotated[float, Field(ge=0)]
Scores = dict[str, float]
Predictions = Annotated[str, Field(pattern=r"^[0-9a-z]*$", max_length=10_000)]
Time = Annotated[AwareDatetime, BeforeValidator(_time)]
Term = Annotated[float | str, WrapValidator(_number_or_text)]
Config = Annotated[dict[str, JsonValue], BeforeValidator(_plain)]


class Part(BaseModel):
    """Something that a document holds: frozen, without unknown fields, with the very types that it names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Git(Part):
    """The source the run was made from."""

    commit: str | None = Field(description="commit of the checkout, null outside one", pattern=r"^[0-9a-f]{7,64}$")
    dirty: bool | None = Field(description="whether tracked files differed from the commit, null outside a checkout")


class Code(Part):
    """The code that the numbers depend on, by content: import closure of method, task and engine."""

    sha256: Hex = Field(description="SHA-256 of files")
    files: dict[str, Annotated[str, Field(pattern=r"^([0-9a-f]{16}|missing)$")]] = Field(
        description="path from the package on -> first digits of the SHA-256 of its code without comments"
    )


class Hardware(Part):
    """The machine the run was made on."""

    cpu: str = Field(description="processor: its name, from schema 4 on with family, model and stepping")
    cores: int = Field(description="processor cores the run could use", ge=1)
    threads: int = Field(description="threads the run computed with", ge=1)
    memory_bytes: Count = Field(description="main memory, bytes")
    accelerator: str | None = Field(description="accelerator model, null for none")
    os: str = Field(description="operating system and version")


class Load(Part):
    """How busy the machine was: the mean number of processes that ran or waited in the minute before."""

    start: Seconds = Field(description="load average when the run began")
    end: Seconds = Field(description="load average when it ended")


class Outcomes(Part):
    """The file of per-item outcomes beside the record: see kdbench.results.outcomes."""

    sha256: Hex = Field(description="SHA-256 of the file")
    bytes: Count = Field(description="size of the file, bytes")
    labels_sha256: Hex = Field(description="SHA-256 of the test items and their labels")


class Search(Part):
    """The validation search that chose the arm's options."""

    points: int = Field(description="settings that were tried", ge=1)
    seeds: list[int] = Field(description="seeds that each was tried with")
    sha256: Hex = Field(description="SHA-256 of the search's log")


class Sizes(Part):
    """Number of examples in each split."""

    train: Count = Field(description="examples the student is trained on")
    val: Count = Field(description="examples used for model selection")
    test: int = Field(description="examples used once, for the reported scores", ge=1)


class Data(Part):
    """The data set and its split, by content."""

    name: str = Field(description="data set")
    sha256: Hex = Field(description="SHA-256 of the data")
    split_sha256: Hex = Field(description="SHA-256 of the train, validation and test indices")
    generated: bool = Field(description="whether the data is synthetic")
    licence: str = Field(description="licence of the data")
    sizes: Sizes = Field(description="examples in each split")


class Metrics(Part):
    """Scores by split and name, in the ranges that the family declares."""

    val: Scores = Field(description="validation scores")
    test: Scores = Field(description="test scores")


class Teacher(Part):
    """The teacher, by content, and how well it does alone."""

    kind: str = Field(description="source of the task's frozen teacher; ema, co-trained or several for a run's own")
    description: str = Field(description="what the teacher is, in words")
    sha256: Hex = Field(description="SHA-256 of the teacher's weights")
    metrics: Metrics = Field(description="the teacher's own scores")
    predictions: Predictions | None = Field(description="the teacher's test predictions, written like the student's")


class Stage(Part):
    """One trainer fit of the run, or the reuse of one that was finished before."""

    name: str = Field(description="what the stage does")
    key: Hex = Field(description="content address of the stage")
    seconds: Seconds = Field(description="wall time of the stage when it ran, seconds")
    reused: bool = Field(description="whether a finished stage was taken over")


class Report(Part):
    """What a stage said of itself."""

    values: Config = Field(description="what it reported, by name; numbers that are not finite as text")
    curves: dict[str, list[float]] = Field(description="values by epoch, all as long as the curve 'epoch'")


class Selection(Part):
    """Which epoch's weights were kept, chosen on validation data only. The curves tell the training terms then."""

    metric: str = Field(description="validation metric that chose the epoch")
    mode: Literal["min", "max"] = Field(description="whether the metric's smallest or largest value is best")
    epoch: Count = Field(description="epoch of the kept weights")
    value: float = Field(description="the metric at that epoch; equals metrics.val[metric]")


class Costs(Part):
    """What the method costs to train and the student to deploy."""

    parameters: Count = Field(description="parameters of the deployed student")
    trained_parameters: Count = Field(description="parameters that were optimised, helpers included")
    flops: Count | None = Field(description="floating-point operations of one forward pass of the student")
    latency_ms: Seconds | None = Field(description="median time of one forward pass of the student, milliseconds")
    train_seconds: Seconds = Field(description="wall time of the student's training, seconds")
    stage_seconds: Seconds = Field(description="wall time of the method's other stages, seconds")
    peak_memory_bytes: Count | None = Field(description="peak memory of the training process or device, bytes")


class Failure(Part):
    """Why a run failed."""

    reason: str = Field(description="the error, in words")
    step: Count | None = Field(description="optimiser step of the failure, null outside training")
    terms: dict[str, Term] | None = Field(description="loss terms at that step; text where one is not finite")
