"""A card's search: the options that every arm tries on validation data, and what was chosen for each arm.

::

    search: {optimizer.lr: [0.01, 0.003], student.dropout: [0.5, 0.8], kd: {alpha: [0.3, 0.7]}}
    methods: {alone: {optimizer.lr: 0.01}, kd: {alpha: 0.3, optimizer.lr: 0.003}, kd/gat: {optimizer.lr: 0.01}}

A key of ``search`` with a dot is an option that all arms search, any other a method with hyper-parameters of its own.
What was chosen stands under ``methods``: for an arm, and for the arm with one student (``METHOD/STUDENT``), which has
the last word. What arms share, such as a teacher, is trained with the card's own values of the searched options.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from kdbench.errors import shown, unknown
from kdbench.plan.options import OptionError, build
from kdbench.plan.overrides import word

SECTIONS = ("student", "optimizer")
"""Sections that arms may differ in: data, teacher and budget are the same for all."""
MOST_POINTS = 8
"""Points of one arm's search."""

SEEDS = (1000, 1001)
"""What each point is tried with: seeds apart from those that are published."""

Types = Mapping[str, type]
Lookup = Callable[[str], type]
"""The hyper-parameters of a method by its name; raises :class:`UsageError` for a method that the task has not."""


def shared(search: Mapping[str, Any]) -> list[str]:
    """The options ``section.option`` that every arm searches, in the card's order."""
    return [key for key in search if "." in key]


def values(search: Mapping[str, Any], method: str) -> dict[str, list[Any]]:
    """What an arm searches: ``section.option`` (``method.option`` for its hyper-parameters) -> the values to try."""
    own = {f"method.{name}": tried for name, tried in search.get(method, {}).items()}
    return {**{key: search[key] for key in shared(search)}, **own}


def points(search: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """Every point of an arm's search, ``section.option`` -> value; the last option varies fastest."""
    tried = values(search, method)
    return [dict(zip(tried, point, strict=True)) for point in itertools.product(*tried.values())]


def chosen(methods: Mapping[str, Mapping[str, Any]], method: str, student: str) -> dict[str, dict[str, Any]]:
    """What a card says of a method, for the student of that name, as sections of options."""
    sections: dict[str, dict[str, Any]] = {}
    for key in (method, f"{method}/{student}"):
        for name, value in methods.get(key, {}).items():
            section, _, option = name.rpartition(".")
            sections.setdefault(section or "method", {})[option] = value
    return sections


def check(search: Any, types: Types, hyperparameters: Lookup) -> None:
    """Raise :class:`OptionError` for an option, a value or a size that a search may not have."""
    if not isinstance(search, Mapping):
        raise OptionError("", "a search is a mapping of options to the values to try.")
    for key in shared(search):
        section, _, option = key.partition(".")
        if section not in SECTIONS or key == "student.name":
            raise OptionError(key, f"arms differ in options of {' and '.join(SECTIONS)}, not in {shown(key)}.")
        _check_values(types[section], section, option, search[key], key)
    for name in search.keys() - {*shared(search)}:
        own, options = search[name], hyperparameters(name)
        if not isinstance(own, Mapping):
            raise OptionError(name, "what a method searches is a mapping of its hyper-parameters to values.")
        for option, tried in own.items():
            _check_values(options, name, option, tried, f"{name}.{option}")
    for name in ("", *search):
        sizes = {} if "." in name else {key: len(tried) for key, tried in values(search, name).items()}
        if math.prod(sizes.values()) > MOST_POINTS:
            product = " × ".join(f"{size} of {key}" for key, size in sizes.items())
            raise OptionError(name, f"{product} are more than {MOST_POINTS} points for an arm.")


def _check_values(options: type, section: str, option: str, tried: Any, field: str) -> None:
    if not isinstance(tried, list) or not tried:
        raise OptionError(field, "give the values to try as a list.")
    taken = [_taken(options, section, option, value) for value in tried]
    if any(value in taken[:place] for place, value in enumerate(taken)):
        raise OptionError(field, "a value is given twice.")


def _taken(options: type, section: str, option: str, value: Any) -> Any:
    """A value as its option takes it, checked."""
    return getattr(build(options, {option: value}, section), option)


def check_chosen(methods: Any, search: Mapping[str, Any], types: Types, hyperparameters: Lookup) -> None:
    """Raise :class:`OptionError` for an arm or an option that the task has not, or a value that was not searched."""
    if not isinstance(methods, Mapping):
        raise OptionError("", "this is a mapping of methods by name.")
    for key, given in methods.items():
        name, slash, student = key.partition("/")
        options = {"method": hyperparameters(name), **types}
        if slash:
            build(types["student"], {"name": student}, key)
        if not isinstance(given, Mapping):
            raise OptionError(key, "a method's defaults are a mapping of its options.")
        searched = values(search, name)
        for option, value in given.items():
            if "." in option and option not in searched:
                raise OptionError(f"{key}.{option}", str(unknown("searched option", option, shared(search))))
            section, _, name = option.rpartition(".")
            place, kind = f"{key}.{section}".rstrip("."), options[section or "method"]
            taken = _taken(kind, place, name, value)
            tried = searched.get(option if section else f"method.{option}")
            if tried is not None and all(taken != _taken(kind, place, name, other) for other in tried):
                raise OptionError(f"{key}.{option}", f"{shown(word(value))} is not among the values that are searched.")
