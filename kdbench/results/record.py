"""The record: the versioned JSON document that a run leaves, checked field by field and against itself.

``python -m kdbench.results.record > kdbench/results/record.schema.json`` regenerates the published JSON schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, JsonValue, PrivateAttr, ValidationError, model_validator

from kdbench import hashing
from kdbench.errors import KdbenchError
from kdbench.plan.options import identity
from kdbench.plan.search import SECTIONS
from kdbench.results import checks
from kdbench.results.checks import Fault
from kdbench.results.parts import (
    Code,
    Config,
    Confusion,
    Costs,
    Count,
    Data,
    Failure,
    Git,
    Hardware,
    Hex,
    Load,
    Metrics,
    Outcomes,
    Part,
    Predictions,
    Report,
    Search,
    Selection,
    Stage,
    Teacher,
    Time,
    leaves,
    reject,
)

SCHEMA_VERSION = 4
ADDED = {"code": 2, "reports": 3, "protocol": 4, "steps": 4, "load": 4, "outcomes": 4, "search": 4}
"""Fields that older schemas lack, with the version that brought them."""
OPTIONAL = ("load", "outcomes", "search")
"""Those of them that may be null in a finished run."""
PROTOCOL = 2
"""The protocol of runs made now. 1: budgets, splits and intervals as they were before there were references."""
CONFIG_KEYS = ("task", "scale", "method", "control", "seed", "data", "student", "teacher", "optimizer", "trainer")
ARM_KEYS = frozenset({"method", "control", "seed", "teacher"})


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


class Content(Part):
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
        reject(self._faults())
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
    walked = leaves(raw) if doubled else ()
    return raw, [".".join(map(str, loc)) for loc, leaf in walked if leaf is _TWICE]


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
