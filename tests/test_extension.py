"""Another package adds a method, a family and a task through entry points (``fixtures/extension``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.results import record as records

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parent / "fixtures" / "extension"
RUN = """
import sys
from kdbench.cli.main import entry
common = ["trainer.max_epochs=2", "--runs", sys.argv[1]]
print("codes", entry(["run", "task=gnn", "method=mymethod", "method.weight=2", *common]),
      entry(["run", "task=dots", "method=alone", *common]), entry(["run", "task=dots", "method=mymethod", *common]))
"""


def kdbench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with another package installed in ``folder``."""
    command = [sys.executable, "-m", "kdbench.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the other package, to be spoilt."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "site"))


def test_its_method_family_and_task_are_listed_and_shown(tmp_path: Path) -> None:
    told = json.loads(kdbench(PACKAGE, "list", "--json").stdout)
    assert {"gnn", "dots"} <= {task["name"] for task in told["tasks"]}
    assert [method["family"] for method in told["methods"] if method["name"] == "mymethod"] == ["graph"]
    assert "weight = 1.0  Weight w of the teacher's term." in kdbench(PACKAGE, "show", "mymethod").stdout
    shown = kdbench(PACKAGE, "show", "dots").stdout
    assert "family dots, clouds, metric accuracy" in shown and "methods: alone\n" in shown
    assert "distance = 2.0  Distance of the two clouds." in shown
    assert "two_clouds (dots): generated." in kdbench(PACKAGE, "data").stdout


def test_its_method_and_its_task_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("codes 0 0 2\n"), done.stderr
    assert "Unknown method for dots clouds 'mymethod'" in done.stderr
    found = {(r.task, r.method): r for r in (records.loads(p.read_bytes(), p) for p in tmp_path.rglob("record.json"))}
    assert set(found) == {("gnn", "alone"), ("gnn", "kd"), ("gnn", "mymethod"), ("dots", "alone")}
    assert found["gnn", "mymethod"].config["method"] == {"name": "mymethod", "weight": 2.0}
    assert "train/mine" in found["gnn", "mymethod"].curves
    dots = found["dots", "alone"]
    assert (dots.selection and dots.selection.mode, dots.metrics and dots.metrics.test.keys()) == ("max", {"accuracy"})
    assert dots.family == "dots" and dots.metrics is not None and dots.data is not None and dots.data.sizes.train == 64


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dots = dots", "graph = dots", "there is a family of that name already, kdbench.families.graph"),
        ("dots = dots", "dots = doots", "there is no module 'doots'"),
        ("graph.mymethod =", "graph.other =", "a method has the name of its file, 'mymethod'"),
        ("graph.mymethod =", "grahp.mymethod =", "Did you mean 'graph'?"),
        ("= moregraph.mymethod", "= moregraph.nothing", "there is no module 'moregraph.nothing'"),
        ("dots.cards", "dots.clouds.options", "'dots.clouds.options' is a module, not a package"),
        ("dots.cards", "nothing.cards", "there is no module 'nothing.cards'"),
    ],
)
def test_a_wrong_entry_point_is_named_and_left_out(package: Path, old: str, new: str, said: str) -> None:
    points = package / "kdbench_extension-1.0.dist-info" / "entry_points.txt"
    text = points.read_text()
    assert text.count(old) == 1
    points.write_text(text.replace(old, new))
    done = kdbench(package, "list")
    assert done.returncode == 0 and "lingugkd" in done.stdout and "hippocampus" in done.stdout
    told = [line for line in done.stderr.splitlines() if said in line]
    assert len(told) == 1 and told[0].startswith("Left out: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "asked", "said"),
    [
        ("moregraph/mymethod.py", "class MyMethod", "clas MyMethod", "mymethod", "mymethod.py:"),
        ("moregraph/mymethod.py", "title =", "titel =", "mymethod", "lacks title"),
        ("dots/cards/dots.yaml", "family:", "famly:", "dots", "dots.yaml:2: Unknown field 'famly'"),
        ("dots/family.yaml", "two_clouds", "cora", "dots", "'cora' is also one of the graph family"),
        ("dots/family.yaml", "title:", "titel:", "dots", "family.yaml:3: datasets.two_clouds: Unknown field 'titel'"),
        ("dots/clouds/options.py", "@dataclass", "import nothing\n\n\n@dataclass", "dots", "options.py:13: importing"),
        ("dots/clouds/options.py", "SECTIONS =", "S S =", "dots", "options.py:31: importing 'dots.clouds.options'"),
        ("dots/clouds/options.py", "SECTIONS =", "SECTION =", "dots", "options.py:1: SECTIONS is missing"),
        ("dots/clouds/options.py", "METRICS =", "METRIC =", "dots", "options.py:1: METRICS is missing"),
        ("dots/cards/dots.yaml", "kind: clouds", "kind: cloud", "dots", "Did you mean 'clouds'?"),
        ("dots/__init__.py", "", "raise OSError('gone')\n", "dots", "gone"),
    ],
)
def test_a_faulty_file_stops_nothing_but_who_asks_for_it(
    package: Path, file: str, old: str, new: str, asked: str, said: str
) -> None:
    path = package / file
    path.write_text(path.read_text().replace(old, new, 1))
    done = kdbench(package, "list")
    assert done.returncode == 0 and "lingugkd" in done.stdout, done.stderr
    assert kdbench(package, "run", "task=gnn", "method=kd", "--dry-run").returncode == 0
    done = kdbench(package, "show", asked)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    words = ["task=gnn", "method=mymethod"] if asked == "mymethod" else ["task=dots", "method=alone"]
    done = kdbench(package, "run", *words, "--dry-run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_card_that_exists_already_is_refused(package: Path) -> None:
    shutil.copy(package / "dots/cards/dots.yaml", package / "dots/cards/gnn.yaml")
    done = kdbench(package, "list")
    assert done.returncode == 0 and "gnn.yaml:1: there is a task 'gnn' already" in done.stderr
    assert "  gnn " not in done.stdout and "  gnn/cora " in done.stdout
    done = kdbench(package, "run", "task=gnn", "method=kd", "--dry-run")
    assert done.returncode == 2 and "Error: " in done.stderr and "there is a task 'gnn' already" in done.stderr
