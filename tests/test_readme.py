"""What the README says can be typed: runs resolve, files exist, extras and tasks are those that there are."""

import re
import shlex
from pathlib import Path

import pytest

from kdbench.cli import main as cli
from kdbench.plan import cards
from kdbench.plan.family import extras

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [
    line.partition("  #")[0] for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("kdbench run")])
def test_its_runs_resolve(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.entry([*shlex.split(line)[1:], "--dry-run"]) == 0
    assert "kdbench run" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("kdbench sweep")])
def test_its_sweeps_resolve(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.entry([*shlex.split(line)[1:], "--dry-run"]) == 0
    assert "kdbench run" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", [line for line in SHELL if line.startswith(("kdbench list", "kdbench show", "kdbench data"))]
)
def test_its_questions_are_answered(line: str) -> None:
    assert cli.entry(shlex.split(line)[1:]) == 0


def test_it_names_what_there_is() -> None:
    assert [line for line in SHELL if line.startswith("kdbench run")]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"benchmarks/\w+\.py", TEXT):
        assert (ROOT / script).exists(), script
    assert set(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.M)) == set(extras())
    table = TEXT.partition("## Families")[2].partition("```sh")[0]
    for name in re.findall(
        r"`((?:gnn|graph_classification|hippocampus|brain_tumour|heart|blood_cells|avdigits|crisismmd)\w*)`", table
    ):
        assert name in cards.task_paths(), name
