"""What the families' files say of extras, held to the distribution's."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kdbench.errors import CardError
from kdbench.plan.catalog import families
from kdbench.plan.family import extra_of, extras, extras_of, read_family, recorded_packages

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]


def named(requirements: list[str]) -> set[str]:
    """The distributions of requirements, lower case; those that another extra brings count for that one."""
    return {re.split(r"[\[<>=]", word)[0].lower() for word in requirements} - {"kdbench"}


def test_their_names_are_written_as_they_are_normalised() -> None:
    for name in OPTIONAL:
        assert name == re.sub(r"[-_.]+", "-", name).lower(), "pip before 23.3 installs nothing for another spelling"


def test_every_family_has_its_extra() -> None:
    inside = {name for name, package in families().items() if package.startswith("kdbench.")}
    assert {extra_of(family) for family in inside} <= set(extras())


def test_every_extra_brings_the_modules_that_its_family_tells_of() -> None:
    assert set(extras()) == set(OPTIONAL) - {"all", "dev"}
    owners = packages_distributions()
    for name, extra in extras().items():
        asked = named(OPTIONAL[name])
        assert len(extra.modules) == len(asked)
        for module in extra.modules:
            assert module not in owners or {owner.lower() for owner in owners[module]} & asked
    everything = re.fullmatch(r"kdbench\[(.*)\]", OPTIONAL["all"][0])
    assert everything and set(everything[1].split(",")) == set(extras()) - {"quantize"}, "quantize needs CUDA"


def test_a_record_names_packages_that_an_extra_brings() -> None:
    base = named(PROJECT["dependencies"])
    brought = {package for name in extras() for package in named(OPTIONAL[name])}
    assert set(recorded_packages()) <= brought and not set(recorded_packages()) & base


def test_every_family_of_ours_has_an_example_of_its_extra() -> None:
    from kdbench.plan.config import expand

    for family in (name for name, package in families().items() if package.startswith("kdbench.")):
        example = extras()[extra_of(family)].example
        assert example is not None
        (config,) = expand(example.split())
        assert (config.family, config.scale) == (family, "tiny")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("- a\n", 1, "a mapping of extras, packages, datasets"),
        ("packages: []\nextra: {}\n", 2, "Unknown field 'extra'. Did you mean 'extras'?"),
        ("extras:\n  a:\n    modules: [x]\n", 2, "extras.a.enables is missing"),
        ("extras:\n  a: {enables: y, modules: [x],\n   modul: z}\n", 3, "Unknown option 'modul'"),
        ("extras: [a]\n", 1, "a mapping of extras by name"),
    ],
)
def test_a_faulty_family_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(text)
    with pytest.raises(CardError) as caught:
        extras_of(read_family(path))
    assert str(caught.value).startswith(f"{path}:{line}: ") and said in str(caught.value)
