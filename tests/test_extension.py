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

PACKAGE = Path(__file__).parent / "fixtures" / "extension"
RUN = """
import sys
from kdbench.cli import entry
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
        ("dots.cards", "dots.options", "'dots.options' is a module, not a package"),
        ("dots.cards", "nothing.cards", "there is no module 'nothing.cards'"),
    ],
)
def test_a_wrong_entry_point_is_named(package: Path, old: str, new: str, said: str) -> None:
    points = package / "kdbench_extension-1.0.dist-info" / "entry_points.txt"
    text = points.read_text()
    assert text.count(old) == 1
    points.write_text(text.replace(old, new))
    done = kdbench(package, "list")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and said in done.stderr and "Traceback" not in done.stderr


def test_a_card_and_a_data_set_that_exist_already_are_refused(package: Path) -> None:
    shutil.copy(package / "dots/cards/dots.yaml", package / "dots/cards/gnn.yaml")
    assert "there is a task 'gnn' already" in kdbench(package, "list").stderr
    (package / "dots/cards/gnn.yaml").unlink()
    data = package / "dots/datasets.yaml"
    data.write_text(data.read_text().replace("two_clouds", "cora"))
    assert "data set 'cora' is also one of the graph family" in kdbench(package, "list").stderr
