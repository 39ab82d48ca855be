"""What a record must have in common with what is installed here: task, method, data set, and the clock."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from kdbench import hashing
from kdbench.errors import CardError, UsageError
from kdbench.plan.cards import Card, card, task_paths
from kdbench.plan.catalog import offered_methods
from kdbench.plan.config import RunConfig, from_json, resolve
from kdbench.plan.datasets import dataset
from kdbench.plan.overrides import Override, parse_overrides
from kdbench.results.record import ARM_KEYS, PROTOCOL, Problem, Record, group_of

AHEAD = timedelta(days=1)
"""How far a clock may go ahead of ours."""
LONGEST_COMMAND = 10_000
SECTIONS = ("data", "student", "teacher", "optimizer", "trainer")
OF_CARDS = (*SECTIONS, "search")
"""Sections in which a command leaves to the card what it does not say itself."""

_ONE_SEED = re.compile(r"seed=(\d{1,12})", re.ASCII)
_CALL = re.compile(r"[^=]*=\s*\w+\(")


def _installed(task: str) -> Card | str:
    """The card of a task, or why there is none to check records against."""
    if task not in task_paths():
        return f"task '{task}' is not installed here"
    try:
        return card(task)
    except CardError as error:
        return f"the card of task '{task}' is faulty: {error}"


def unchecked(record: Record) -> str | None:
    """Why the configuration of a record cannot be checked here; None where it is."""
    if isinstance(here := _installed(record.task), str):
        return here
    if record.method not in _methods(record.task):
        return f"method '{record.method}' of task '{record.task}' is not installed here"
    return None


@functools.cache
def _methods(task: str) -> frozenset[str]:
    """Names of the methods that run on an installed task."""
    return frozenset(offered_methods(card(task).family, card(task).kind))


def faults(record: Record) -> Iterator[Problem]:
    """What a record says that the installed task, its data set, its options or the clock contradict.

    The configuration, and so the command, must resolve to the record's hash. Of a method that is not installed all but
    its own options is checked, of a task that is not installed nothing is but the clock: :func:`unchecked` tells.
    """
    if record.finished > datetime.now(UTC) + AHEAD:
        yield Problem("finished", f"{record.finished:%Y-%m-%d %H:%M} is in the future")
    here = _installed(record.task)
    if isinstance(here, str):
        return
    if record.family != here.family:
        yield Problem("family", f"{record.family!r}, but the card of {record.task} says '{here.family}'")
    yield from _data_faults(record, here)
    wrong = list(_config_faults(record))
    yield from wrong or _command_faults(record)


def _data_faults(record: Record, here: Card) -> Iterator[Problem]:
    if record.data is None:
        return
    known = dataset(here.dataset_of(record.scale))
    for name in ("name", "generated", "licence"):
        said, right = getattr(record.data, name), getattr(known, name)
        if said != right:
            yield Problem(f"data.{name}", f"{said!r}, but that of {record.task} scale={record.scale} is {right!r}")


def _config_faults(record: Record) -> Iterator[Problem]:
    for key in ("method", *SECTIONS):
        if not isinstance(record.config[key], dict | None):
            yield Problem(f"config.{key}", "should be an object")
            return
    known = record.method in _methods(record.task)
    stand_in = {"method": {"name": "alone"}, "teacher": None, "control": "none"}  # shares all but what makes its arm
    config: dict[str, Any] = record.config if known else {**record.config, **stand_in}
    resolved = _resolved(hashing.canonical_json({key: value for key, value in config.items() if key != "seed"}))
    if isinstance(resolved, Problem):
        yield resolved
        return
    run = replace(resolved, seed=record.seed)
    if run.hash != record.config_hash if known else group_of(run.to_json()) != record.group:
        right = {key: value for key, value in run.to_json().items() if known or key not in ARM_KEYS}
        problems = [Problem(f"config.{key}", text) for key, text in _differing(config, right)]
        yield from problems or [Problem("config_hash", f"this version resolves the configuration to {run.hash[:16]}")]


def _differing(said: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options, ``section.option``, of a configuration that are not as they should be, and how they differ."""
    mine = _flat(said)
    for name, value in _flat(right).items():
        if name not in mine:
            yield name, "is missing"
        elif hashing.canonical_json([mine[name]]) != hashing.canonical_json([value]):
            yield name, f"{json.dumps(mine[name])}, but it resolves to {json.dumps(value)}"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, options in config.items():
        flat |= {f"{section}.{k}": v for k, v in options.items()} if isinstance(options, dict) else {section: options}
    return flat


@functools.lru_cache(4096)
def _resolved(text: str) -> RunConfig | Problem:
    """The run of a configuration without its seed, as canonical JSON; the runs of a grid have few."""
    if "${" in text:
        return Problem("config", "holds an expression in place of a value")
    try:
        return from_json({**json.loads(text), "seed": 0})
    except UsageError as error:
        field = getattr(error, "field", "")
        return Problem(f"config.{field}" if field else "config", str(error))


def _command_faults(record: Record) -> Iterator[Problem]:
    """The command's words must make one run, the record's."""
    if unchecked(record) is not None:
        return
    try:
        words = shlex.split(record.command) if len(record.command) <= LONGEST_COMMAND else []
    except ValueError as error:
        yield Problem("command", f"cannot be read: {error}")
        return
    if words[:2] != ["kdbench", "run"]:
        yield Problem("command", "is not 'kdbench run …'")
        return
    seeds = [int(match[1]) for word in words if (match := _ONE_SEED.fullmatch(word))]
    resolved = _run_of(tuple(word for word in words[2:] if not _ONE_SEED.fullmatch(word)), len(seeds))
    if isinstance(resolved, Problem):
        yield resolved
        return
    run = replace(resolved, seed=seeds[0]) if seeds else resolved
    if run.hash == record.config_hash:
        return
    other = [name for name, _ in _differing(record.config, run.to_json())]
    if record.protocol < PROTOCOL:  # what it leaves to the card was said by the card of its time
        settled = {word.partition("=")[0] for word in run.overrides}
        chosen = [values for arm, values in card(record.task).methods.items() if arm.partition("/")[0] == record.method]
        cards = {f"method.{option}" for values in chosen for option in values}
        other = [one for one in other if one in settled or not (one in cards or one.partition(".")[0] in OF_CARDS)]
        if not other:
            return
    yield Problem("command", f"is of another run; it differs in {', '.join(other) or 'what it resolves to'}")


@functools.lru_cache(4096)
def _run_of(words: tuple[str, ...], seeds: int) -> RunConfig | Problem:
    """The one run that a command's words make, of which ``seeds`` words, given apart, set the seed."""
    try:
        given = [_override(word) for word in (*words, *["seed=0"] * seeds)]
        chosen = {override.key: override.values for override in given}
        if len(chosen) < len(given) or any(len(values) != 1 for values in chosen.values()):
            raise UsageError("it should give each option once and one value of each")
        if not {"task", "method"} <= chosen.keys():
            raise UsageError("it names no task or no method")
        return resolve({key: values[0] for key, values in chosen.items()})
    except (UsageError, RecursionError, ValueError) as error:
        return Problem("command", f"does not resolve to a run: {error}")


@functools.lru_cache(4096)
def _override(word: str) -> Override:
    if _CALL.match(word) or "${" in word:
        raise UsageError("it holds more than plain values")
    return parse_overrides([word])[0]
