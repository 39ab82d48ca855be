"""The wheel: what is in it, and that it works where there is no clone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from kdbench.plan import catalog
from kdbench.plan.cards import task_paths

ROOT = Path(__file__).parent.parent


def run(*words: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=ROOT)
    (path,) = folder.glob("kdbench-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_cards_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    cards = {
        f"kdbench/_tasks/{path.relative_to(ROOT / 'tasks').as_posix()}" for path in (ROOT / "tasks").rglob("*.yaml")
    }
    site = {
        f"kdbench/_{path.relative_to(ROOT).as_posix()}"
        for part in ("pages", "assets", "search", "measurements")
        for path in (ROOT / "leaderboard" / part).rglob("*")
        if path.is_file()
    }
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kdbench").rglob("*")
        if path.suffix in {".py", ".yaml", ".json"} and path.is_file()
    }
    assert "kdbench/families/graph/family.yaml" in sources and "kdbench/_tasks/gnn.yaml" in cards
    assert {"kdbench/_leaderboard/pages/index.html", "kdbench/_leaderboard/assets/board.js"} <= site
    assert cards | site | sources <= names
    others = {name for name in names - cards - site - sources if ".dist-info/" not in name}
    assert not others


@pytest.mark.slow
def test_the_wheel_works_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    """In an environment that sees this one's packages but not its editable kdbench, whose ``.pth`` file is not read."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    place = run(python, "-c", "import kdbench; print(kdbench.__file__)", cwd=tmp_path)
    assert Path(place.strip()) == site / "kdbench" / "__init__.py"
    kdbench = tmp_path / "venv" / "bin" / "kdbench"
    listed = run(kdbench, "list", cwd=tmp_path)
    for name in (*task_paths(), *(info.name for info in catalog.methods())):
        assert f"\n  {name} " in listed
    assert "block model" in run(kdbench, "show", "gnn", cwd=tmp_path)
    assert "cora (graph):" in run(kdbench, "data", "cora", cwd=tmp_path)
    words = ["run", "task=gnn", "method=alone", "--no-baselines", "trainer.max_epochs=1", "--runs", tmp_path / "runs"]
    assert "Records: 1" in run(kdbench, *words, cwd=tmp_path)
