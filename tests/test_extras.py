"""The extras of the distribution are those that the catalogue tells of, under names that every pip finds."""

import re
import tomllib
from pathlib import Path

from kdbench.plan.catalog import EXTRAS, extra_of, families

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_their_names_are_written_as_they_are_normalised() -> None:
    for name in PROJECT["optional-dependencies"]:
        assert name == re.sub(r"[-_.]+", "-", name).lower(), "pip before 23.3 installs nothing for another spelling"


def test_every_family_has_its_extra() -> None:
    inside = {name for name, package in families().items() if package.startswith("kdbench.")}
    assert {extra_of(family) for family in inside} <= set(EXTRAS)
