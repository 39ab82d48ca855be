"""What the README says can be typed: runs resolve, files exist, extras and tasks are those that there are."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench.board import gains
from kdbench.cli import main as cli
from kdbench.engine.method import Method
from kdbench.plan import cards
from kdbench.plan.catalog import read_method
from kdbench.plan.family import extras
from kdbench.results import store

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [
    line.partition("  #")[0] for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the card of one's own data and the files that it names."""
    (card,) = re.findall(r"```yaml\n(# mine\.yaml, .*?)```", TEXT, re.S)
    (tmp_path / "mine.yaml").write_text(card)
    folder, *names = re.findall(r"folder (\w+) with|(?:, | )(RINGS_\w+\.txt)", card.splitlines()[0])
    (tmp_path / folder[0]).mkdir()
    graphs = range(40)
    edges = [(4 * g + a, 4 * g + b) for g in graphs for a, b in [(1, 2), (2, 3), (3, 4), (4, 1)][: 4 - g % 2]]
    rows: dict[str, Sequence[object]] = {
        "RINGS_A.txt": [f"{a}, {b}" for pair in edges for a, b in (pair, pair[::-1])],
        "RINGS_graph_indicator.txt": [g + 1 for g in graphs for _ in range(4)],
        "RINGS_graph_labels.txt": [g % 2 for g in graphs],
        "RINGS_node_labels.txt": [0] * 160,
    }
    assert rows.keys() == {name for _, name in names}
    for name, lines in rows.items():
        (tmp_path / folder[0] / name).write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_example_of_ones_own_data_is_checked_and_runs(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (check,) = (line for line in SHELL if line.startswith("kdbench check"))
    assert cli.entry(shlex.split(check)[1:]) == 0
    assert "train 24, val 8, test 8" in capsys.readouterr().out
    (run,) = (line for line in SHELL if line.startswith("kdbench run") and "mine.yaml" in line)
    assert cli.entry([*shlex.split(run)[1:-1], "--runs", str(own / "runs")]) == 0
    assert {path.parts[-3] for path in (own / "runs" / "mine").rglob("record.json")} == {"alone", "kd", "mirage"}


@pytest.mark.usefixtures("own")
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


def test_its_gains_are_those_of_the_records() -> None:
    _, _, rest = TEXT.partition(gains.BEGIN)
    assert rest.partition(gains.END)[0] == "\n" + gains.table(store.read([ROOT / "leaderboard" / "records"]))


def test_its_method_is_one(tmp_path: Path) -> None:
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "class MyMethod" in text]
    (tmp_path / "mymethod.py").write_text(block)
    info = read_method(tmp_path / "mymethod.py", "graph", "mymethod")
    assert info is not None and info.teacher == "frozen" and [field.name for field in info.fields] == ["weight"]
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert issubclass(names["MyMethod"], Method)
