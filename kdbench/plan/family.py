"""``family.yaml`` beside a family's code: its extras, the packages that its records name, its data sets."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import CardError, MissingExtraError, unknown
from kdbench.plan.catalog import families, folder_of
from kdbench.plan.collected import Collected
from kdbench.plan.marked_yaml import line_of, read_yaml
from kdbench.plan.options import OptionError, build

FIELDS = ("extras", "packages", "datasets")


@dataclass(frozen=True)
class FamilyFile:
    """A ``family.yaml`` as it is written, with the line of every field; a family may have none."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Extra:
    """Optional dependencies. The family of an extra's name needs that extra."""

    enables: str
    modules: tuple[str, ...]
    example: str | None = None
    """Words of a run that needs this extra and no other."""

    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class _Packages:
    packages: tuple[str, ...] = ()


SLURM = Extra("launcher=slurm: sweeps on a SLURM cluster", ("submitit",))


@functools.cache
def family_files() -> Collected[str, FamilyFile]:
    """The file of every family, by its name; ours first, so that no installed one can take a name from them."""
    read: Collected[str, FamilyFile] = Collected()
    ours_first = sorted(families().items(), key=lambda one: (not one[1].startswith("kdbench.families."), one))
    for family, package in ours_first:
        with read.reading(family):
            path = folder_of(package) / "family.yaml"
            read[family] = read_family(path) if path.exists() else FamilyFile(path)
    return read


def read_family(path: Path) -> FamilyFile:
    """A ``family.yaml`` whose fields have known names. Errors name the file, the line and the field."""
    content, lines = read_yaml(path)
    if not isinstance(content, dict):
        raise CardError(f"{path}:1: this is a mapping of {', '.join(FIELDS)}.")
    for name in content:
        if name not in FIELDS:
            raise CardError(f"{path}:{line_of(lines, name)}: {unknown('field', name, FIELDS)}")
    return FamilyFile(path, content, lines)


@functools.cache
def extras() -> dict[str, Extra]:
    """Every extra by name: those of the families, and that of the launcher."""
    return {name: extra for file in family_files().values() for name, extra in extras_of(file).items()} | {
        "slurm": SLURM
    }


def extras_of(file: FamilyFile) -> dict[str, Extra]:
    """The extras that a family's file tells of. Raises :class:`CardError` with file and line."""
    given = file.content.get("extras", {})
    try:
        if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
            raise OptionError("extras", "extras: this is a mapping of extras by name, each a mapping of fields.")
        return {name: build(Extra, one, f"extras.{name}") for name, one in given.items()}
    except OptionError as error:
        raise CardError(f"{file.path}:{line_of(file.lines, error.field)}: {error}") from None


def recorded_packages() -> tuple[str, ...]:
    """The packages of all families whose versions a record names, once each."""
    names: dict[str, None] = {}
    for file in family_files().values():
        given = {"packages": file.content["packages"]} if "packages" in file.content else {}
        try:
            names |= dict.fromkeys(build(_Packages, given, "").packages)
        except OptionError as error:
            raise CardError(f"{file.path}:{line_of(file.lines, error.field)}: {error}") from None
    return tuple(names)


def extra_of(family: str) -> str:
    """The name of a family's extra: with hyphens, for older pips find no extra that is written otherwise."""
    return family.replace("_", "-")


def require_extra(family: str) -> None:
    """Raise :class:`MissingExtraError` when the family's optional dependencies are not installed."""
    extra = extra_of(family)
    missing = extras()[extra].missing() if extra in extras() else []
    if missing:
        listed = ", ".join(f"'{module}'" for module in missing)
        raise MissingExtraError(f"The {family} family needs {listed}. Run: pip install 'kdbench[{extra}]'")
