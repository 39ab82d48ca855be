"""The record: the versioned JSON document that a run leaves, checked field by field and against itself.

``python -m kdbench.results.record > kdbench/results/record.schema.json`` regenerates the published JSON schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from kdbench import hashing
from kdbench.errors import KdbenchError
from kdbench.plan.options import identity
from kdbench.plan.search import SECTIONS
from kdbench.results import checks
from kdbench.results.checks import Fault, Loc

SCHEMA_VERSION = 4
ADDED = {"code": 2, "reports": 3, "protocol": 4, "steps": 4, "load": 4, "outcomes": 4, "search": 4}
"""Fields that older schemas lack, with the version that brought them."""
OPTIONAL = ("load", "outcomes", "search")
"""Those of them that may be null in a finished run."""
PROTOCOL = 2
"""The protocol of runs made now. 1: budgets, splits and intervals as they were before there were references."""
CONFIG_KEYS = ("task", "scale", "method", "control", "seed", "data", "student", "teacher", "optimizer", "trainer")
ARM_KEYS = frozenset({"method", "control", "seed", "teacher"})

Confusion = list[list[Annotated[int, Field(ge=0)]]]


class Problem(NamedTuple):
    """What is wrong with one field of a record; ``field`` is its path, such as ``metrics.test.accuracy``."""

    field: str
    message: str


class InvalidRecord(KdbenchError):
    """A record that does not hold. ``problems`` lists every wrong field."""

    def __init__(self, where: Path | str, problems: Iterable[Problem]) -> None:
        self.where, self.problems = where, list(problems)
        listed = "".join(f"\n  {problem.field}: {problem.message}" for problem in self.problems)
        super().__init__(f"{where} is not a valid record:{listed}")

    @property
    def short(self) -> str:
        """One line, with the first of the problems."""
        field, message = self.problems[0]
        return f"{self.where} is not a valid record ({field}: {message})."


class NoRecord(InvalidRecord):
    """JSON that does not pose as a record: it is no object with a ``schema_version``."""


def _leaves(value: object, loc: Loc = ()) -> Iterator[tuple[Loc, object]]:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, (*loc, key))
    else:
        yield loc, value


def _reject(faults: Iterable[Fault]) -> None:
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
        loc, leaf = next((loc, leaf) for loc, leaf in _leaves(config) if not _jsonable(leaf))
        _reject([(loc, f"{leaf!r} is not a finite number, text, true, false or null")])
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
Seconds = Annotated[float, Field(ge=0)]
Scores = dict[str, float]
Predictions = Annotated[str, Field(pattern=r"^[0-9a-z]*$", max_length=10_000)]
Time = Annotated[AwareDatetime, BeforeValidator(_time)]
Term = Annotated[float | str, WrapValidator(_number_or_text)]
Config = Annotated[dict[str, JsonValue], BeforeValidator(_plain)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Git(_Part):
    """The source the run was made from."""

    commit: str | None = Field(description="commit of the checkout, null outside one", pattern=r"^[0-9a-f]{7,64}$")
    dirty: bool | None = Field(description="whether tracked files differed from the commit, null outside a checkout")


class Code(_Part):
    """The code that the numbers depend on, by content: import closure of method, task and engine."""

    sha256: Hex = Field(description="SHA-256 of files")
    files: dict[str, Annotated[str, Field(pattern=r"^([0-9a-f]{16}|missing)$")]] = Field(
        description="path from the package on -> first digits of the SHA-256 of its code without comments"
    )


class Hardware(_Part):
    """The machine the run was made on."""

    cpu: str = Field(description="processor: its name, from schema 4 on with family, model and stepping")
    cores: int = Field(description="processor cores the run could use", ge=1)
    threads: int = Field(description="threads the run computed with", ge=1)
    memory_bytes: Count = Field(description="main memory, bytes")
    accelerator: str | None = Field(description="accelerator model, null for none")
    os: str = Field(description="operating system and version")


class Load(_Part):
    """How busy the machine was: the mean number of processes that ran or waited in the minute before."""

    start: Seconds = Field(description="load average when the run began")
    end: Seconds = Field(description="load average when it ended")


class Outcomes(_Part):
    """The file of per-item outcomes beside the record: see kdbench.results.outcomes."""

    sha256: Hex = Field(description="SHA-256 of the file")
    bytes: Count = Field(description="size of the file, bytes")
    labels_sha256: Hex = Field(description="SHA-256 of the test items and their labels")


class Search(_Part):
    """The validation search that chose the arm's options."""

    points: int = Field(description="settings that were tried", ge=1)
    seeds: list[int] = Field(description="seeds that each was tried with")
    sha256: Hex = Field(description="SHA-256 of the search's log")


class Sizes(_Part):
    """Number of examples in each split."""

    train: Count = Field(description="examples the student is trained on")
    val: Count = Field(description="examples used for model selection")
    test: int = Field(description="examples used once, for the reported scores", ge=1)


class Data(_Part):
    """The data set and its split, by content."""

    name: str = Field(description="data set")
    sha256: Hex = Field(description="SHA-256 of the data")
    split_sha256: Hex = Field(description="SHA-256 of the train, validation and test indices")
    generated: bool = Field(description="whether the data is synthetic")
    licence: str = Field(description="licence of the data")
    sizes: Sizes = Field(description="examples in each split")


class Metrics(_Part):
    """Scores by split and name, in the ranges that the family declares."""

    val: Scores = Field(description="validation scores")
    test: Scores = Field(description="test scores")


class Teacher(_Part):
    """The teacher, by content, and how well it does alone."""

    kind: str = Field(description="source of the task's frozen teacher; ema, co-trained or several for a run's own")
    description: str = Field(description="what the teacher is, in words")
    sha256: Hex = Field(description="SHA-256 of the teacher's weights")
    metrics: Metrics = Field(description="the teacher's own scores")
    predictions: Predictions | None = Field(description="the teacher's test predictions, written like the student's")


class Stage(_Part):
    """One trainer fit of the run, or the reuse of one that was finished before."""

    name: str = Field(description="what the stage does")
    key: Hex = Field(description="content address of the stage")
    seconds: Seconds = Field(description="wall time of the stage when it ran, seconds")
    reused: bool = Field(description="whether a finished stage was taken over")


class Report(_Part):
    """What a stage said of itself."""

    values: Config = Field(description="what it reported, by name; numbers that are not finite as text")
    curves: dict[str, list[float]] = Field(description="values by epoch, all as long as the curve 'epoch'")


class Selection(_Part):
    """Which epoch's weights were kept, chosen on validation data only. The curves tell the training terms then."""

    metric: str = Field(description="validation metric that chose the epoch")
    mode: Literal["min", "max"] = Field(description="whether the metric's smallest or largest value is best")
    epoch: Count = Field(description="epoch of the kept weights")
    value: float = Field(description="the metric at that epoch; equals metrics.val[metric]")


class Costs(_Part):
    """What the method costs to train and the student to deploy."""

    parameters: Count = Field(description="parameters of the deployed student")
    trained_parameters: Count = Field(description="parameters that were optimised, helpers included")
    flops: Count | None = Field(description="floating-point operations of one forward pass of the student")
    latency_ms: Seconds | None = Field(description="median time of one forward pass of the student, milliseconds")
    train_seconds: Seconds = Field(description="wall time of the student's training, seconds")
    stage_seconds: Seconds = Field(description="wall time of the method's other stages, seconds")
    peak_memory_bytes: Count | None = Field(description="peak memory of the training process or device, bytes")


class Failure(_Part):
    """Why a run failed."""

    reason: str = Field(description="the error, in words")
    step: Count | None = Field(description="optimiser step of the failure, null outside training")
    terms: dict[str, Term] | None = Field(description="loss terms at that step; text where one is not finite")


class Content(_Part):
    """All of a record but its digest. ``data``, ``costs``, ``metrics``, ``selection`` are null only in failed runs."""

    schema_version: int = Field(description="version of this schema", ge=1, le=SCHEMA_VERSION)
    protocol: int = Field(
        default=1, description="version of the protocol, 1 up to schema 3; runs of two are never compared", ge=1
    )
    status: Literal["done", "failed"] = Field(description="whether the run finished")
    family: str = Field(description="family of tasks and methods")
    task: str = Field(description="task card")
    scale: Literal["tiny", "small", "full"] = Field(description="scale of the task")
    method: str = Field(description="distillation method; alone = no teacher, kd = the family's plain distillation")
    control: Literal["none", "shuffled_teacher", "random_teacher"] = Field(
        description="negative control of the teacher"
    )
    seed: int = Field(description="the number every seed is drawn from; it pairs the arms")
    command: str = Field(description="one line that reproduces the run", pattern=r"^[^\r\n]+$")
    config: Config = Field(description="resolved configuration; keys: " + ", ".join(CONFIG_KEYS))
    config_hash: Hex = Field(description="SHA-256 of the configuration less what changes no number; names the run")
    group: Hex = Field(
        description="SHA-256 of the configuration without " + ", ".join(sorted(ARM_KEYS)) + ", searched options"
    )
    versions: dict[str, str] = Field(description="package versions")
    git: Git = Field(description="source of the run")
    code: Code | None = Field(default=None, description="code of the run; null where it is not known (schema 1)")
    hardware: Hardware = Field(description="machine of the run")
    load: Load | None = Field(default=None, description="how busy the machine was; null where it is not known")
    data: Data | None = Field(description="data and split")
    teacher: Teacher | None = Field(description="teacher; null exactly when config.teacher is")
    stages: list[Stage] = Field(description="stages in order")
    reports: dict[str, Report] | None = Field(
        default=None, description="what each stage reported, by its name; null where it is not known (schema 1, 2)"
    )
    seeds: dict[str, int] = Field(description="seed of each named axis, drawn from seed")
    steps: Count | None = Field(
        default=None, description="optimiser steps of the student's fit; null where not known (schema 1 to 3)"
    )
    search: Search | None = Field(default=None, description="search that chose the options; null for none")
    selection: Selection | None = Field(description="model selection")
    metrics: Metrics | None = Field(description="scores of the selected weights")
    confusion: Confusion | None = Field(description="test confusion matrix; rows: true class, columns: predicted class")
    predictions: Predictions | None = Field(description="test predictions in split order, one base-36 digit each")
    outcomes: Outcomes | None = Field(
        default=None, description="per-item outcomes, in a file of their own; null for none"
    )
    costs: Costs | None = Field(description="costs of training and of deploying")
    curves: dict[str, list[float]] = Field(
        description="values by epoch, all as long as the curve 'epoch'; may be empty"
    )
    failure: Failure | None = Field(description="cause of the failure; null exactly when the run is done")
    notes: list[str] = Field(description="remarks for the reader")
    started: Time = Field(description="start, ISO 8601 with time zone")
    finished: Time = Field(description="end, ISO 8601 with time zone")

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        _reject(self._faults())
        return self

    def _faults(self) -> Iterator[Fault]:
        yield from _identity_faults(self)
        yield from checks.faults(self)


class Record(Content):
    """A run's record. Two records with one digest are the same document."""

    digest: Hex = Field(description="SHA-256 of the canonical JSON of all other fields")
    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that it was read from; None for one that was read from text alone."""
        return self._path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and vars(self) == vars(other)  # wherever they lie

    def at(self, path: Path) -> Self:
        """The same record, as that of a file."""
        self._path = path
        return self

    def _faults(self) -> Iterator[Fault]:
        yield from super()._faults()
        if self.digest != hashing.digest(_body(self)):
            yield ("digest",), "does not match the record: a field was changed after the run"


def _body(record: Content) -> dict[str, Any]:
    """All that the digest is over: the fields of the record's own schema."""
    newer = {name for name, version in ADDED.items() if version > record.schema_version}
    return record.model_dump(mode="json", exclude={"digest", *newer})


def group_of(config: Mapping[str, JsonValue]) -> str:
    """What makes two runs comparable as arms: the digest of a configuration without method, control, seed, teacher.

    Options that change no number do not count either, nor those that each arm searched for itself.
    """
    kept = {key: value for key, value in identity(config).items() if key not in ARM_KEYS}
    for name in searched(config):
        section, _, option = name.partition(".")
        if isinstance(options := kept.get(section), dict):
            kept[section] = {key: value for key, value in options.items() if key != option}
    return hashing.digest(kept)


def searched(config: Mapping[str, JsonValue]) -> list[str]:
    """The options ``section.option`` that each arm searched for itself."""
    given = config.get("search")
    return list(given) if isinstance(given, dict) else []


def _identity_faults(record: Content) -> Iterator[Fault]:
    config, method = record.config, record.config.get("method")
    yield from ((("config", key), "is missing") for key in CONFIG_KEYS if key not in config)
    if not isinstance(method, dict) or "name" not in method:
        yield ("config", "method"), "should be an object with a name and the hyper-parameters"
    elif method["name"] == "teacher":
        yield ("method",), "'teacher' is the name of the teacher's row in every table"
    elif method["name"] != record.method:
        yield ("method",), f"'{record.method}', but config.method.name is {method['name']!r}"
    for name in searched(config):
        if name.partition(".")[0] not in SECTIONS:
            yield ("config", "search", name), "is no option that arms may differ in"
    for key in ("task", "scale", "control", "seed"):
        own, given = getattr(record, key), config.get(key)
        if key in config and (type(given) is not type(own) or given != own):
            yield (key,), f"{own!r}, but config.{key} is {given!r}"
    if record.config_hash != hashing.digest(identity(config)):
        yield ("config_hash",), "is not the digest of config"
    for name, version in ADDED.items():
        absent = getattr(record, name) == Content.model_fields[name].default
        if version > record.schema_version and not absent:
            yield (name,), f"is no field of schema {record.schema_version}"
        elif version > record.schema_version or name in OPTIONAL:
            continue
        elif absent and (record.status == "done" or name == "protocol"):
            yield (name,), f"required from schema {version} on"
    if record.code and record.code.sha256 != hashing.digest(record.code.files):
        yield ("code", "sha256"), "is not the digest of code.files"
    if record.group != group_of(config):
        yield ("group",), f"is not the digest of config without {', '.join(sorted(ARM_KEYS))}"


_Model = TypeVar("_Model", bound=Content)


def _validated(model: type[_Model], value: object, where: Path | str) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = error.errors(include_url=False, include_input=False, include_context=False)
        problems = [Problem(".".join(map(str, line["loc"])) or "record", line["msg"]) for line in lines]
        raise InvalidRecord(where, problems) from None


def seal(fields: Mapping[str, Any]) -> Record:
    """Build a record from all fields but ``digest``, which is computed. Raises InvalidRecord, naming every field."""
    body = _body(_validated(Content, dict(fields), "This run's result"))
    return _validated(Record, {**body, "digest": hashing.digest(body)}, "This run's result")


def _one_line(match: re.Match[str]) -> str:
    return "[" + " ".join(match[0][1:-1].split()) + "]"


def dumps(record: Record) -> str:
    """The record as JSON text: fields in schema order, lists of numbers on one line, a newline at the end."""
    text = json.dumps({**_body(record), "digest": record.digest}, indent=1, ensure_ascii=False, allow_nan=False)
    # JSON escapes newlines within strings, so a bracket before a newline always opens a list.
    return re.sub(r"\[\n[^][{}\"]*\]", _one_line, text) + "\n"


_TWICE = object()


def _parsed(text: str | bytes) -> tuple[object, list[str]]:
    """A JSON value and the paths of keys that were given more than once. Raises ValueError or RecursionError."""
    doubled = False

    def pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal doubled
        members = dict(pairs)
        if len(members) == len(pairs):
            return members
        doubled = True
        keys = [key for key, _ in pairs]
        return {key: _TWICE if keys.count(key) > 1 else value for key, value in pairs}

    raw = json.loads(text, object_pairs_hook=pairs)
    # The walk over every value is worth its time only when there is something to find.
    leaves = _leaves(raw) if doubled else ()
    return raw, [".".join(map(str, loc)) for loc, leaf in leaves if leaf is _TWICE]


def loads(text: str | bytes, where: Path | str) -> Record:
    """Read and check a record; ``where`` names it in errors. Raises InvalidRecord, which lists every wrong field,
    and NoRecord for JSON of another kind.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        raw, twice = _parsed(text)
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON: {error}" if text.strip() else "is empty"
        raise InvalidRecord(where, [Problem("file", reason)]) from None
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise NoRecord(
            where, [Problem("record", "is no record: it should be a valid dictionary with a schema_version")]
        )
    if odd := [Problem(".".join(map(str, loc)), message) for loc, message in checks.unsound(text, raw)]:
        raise InvalidRecord(where, odd)
    if twice:
        raise InvalidRecord(where, [Problem(field, "this key is given more than once") for field in twice])
    version = raw["schema_version"]
    if isinstance(version, int) and version > SCHEMA_VERSION:
        reason = f"written by a newer kdbench (schema {version}; this one reads up to {SCHEMA_VERSION}): upgrade"
        raise InvalidRecord(where, [Problem("schema_version", reason)])
    record = _validated(Record, raw, where)
    return record.at(where) if isinstance(where, Path) else record


def json_schema() -> str:
    """The JSON schema of a record (draft 2020-12): the text of ``record.schema.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
