"""A site of records: what it holds, that it is all of them or nothing, and that it is the same every time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.board import place
from kdbench.board.build import build
from kdbench.errors import UsageError


def content(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_a_site_holds_every_page(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    report = build([records], site)
    assert (report.records, report.tasks, report.problems) == (12, 1, [])
    names = content(site).keys()
    for name in (
        "index.html",
        "about.html",
        "family/graph.html",
        "task/imagined.html",
        "method/graph--newkd.html",
        "method/graph--alone.html",
        "method/graph--lingugkd.html",
        "data/imagined.csv",
        "data/results.json",
        "assets/board.js",
    ):
        assert name in names
    found = [json.loads(path.read_bytes()) for path in records.glob("*.json")]
    for one in found:
        page = f"record/imagined/{one['config_hash'][:16]}"
        assert f"{page}.html" in names and json.loads((site / f"{page}.json").read_bytes()) == one
    assert len([name for name in names if name.endswith(".html")]) == report.pages
    assert not list(tmp_path.glob(".*")), "something was left beside the site"


def test_the_same_records_give_the_same_bytes(records: Path, tmp_path: Path) -> None:
    build([records], tmp_path / "one")
    for index, path in enumerate(sorted(records.glob("*.json"), reverse=True)):
        run = tmp_path / "runs" / str(index) / "record.json"
        run.parent.mkdir(parents=True)
        run.write_bytes(path.read_bytes())
    build([tmp_path / "runs"], tmp_path / "two", jobs=1)
    files = sorted(records.glob("*.json"), key=lambda path: path.name[::-1])
    build(files, tmp_path / "three")
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "three")


def test_several_processes_write_the_same_bytes(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.board.build.CHUNK", 5)
    build([records], tmp_path / "one", jobs=1)
    build([records], tmp_path / "two", jobs=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_with_one_bad_record_all_problems_are_listed_and_nothing_is_written(records: Path, tmp_path: Path) -> None:
    paths = sorted(records.glob("*.json"))
    for path, key in zip(paths, ("seed", "digest"), strict=False):
        held = json.loads(path.read_bytes())
        held[key] = 77 if key == "seed" else "0" * 64
        path.write_text(json.dumps(held))
    site = tmp_path / "new" / "site"
    report = build([records], site)
    assert {problem.path for problem in report.problems} == set(paths[:2])
    assert {"seed", "digest"} <= {problem.field for problem in report.problems}
    assert not site.parent.exists() and report.pages == 0


def test_a_refused_build_leaves_the_old_site(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([records], site)
    before = content(site)
    (records / "bad.json").write_text("{}")
    assert build([records], site).problems
    assert content(site) == before and not list(tmp_path.glob(".*"))


def test_what_a_former_build_left_is_removed(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([records], site)
    (site / "task" / "gone.html").write_text("old")
    build([records], site)
    assert not (site / "task" / "gone.html").exists()


def test_a_folder_of_others_is_never_touched(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    build([records], site)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds files of another kind"):
        build([records], mine)
    with pytest.raises(UsageError, match="is a file"):
        build([records], mine / "thesis.tex")
    assert content(mine) == {"thesis.tex": b"years of work"}


def test_records_are_needed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no record"):
        build([tmp_path / "empty"], tmp_path / "site")
    with pytest.raises(UsageError, match="No such file"):
        build([tmp_path / "nowhere"], tmp_path / "site")
    assert not (tmp_path / "site").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from kdbench.board import build, {module}
def die(*words, **more):
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{name} = die
build.build([Path(sys.argv[1])], Path(sys.argv[2]), jobs=1)
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [("build", "record_page"), ("build", "write_overviews"), ("place", "os.replace"), ("place", "shutil.rmtree")],
)
def test_a_killed_build_leaves_a_whole_site_and_the_next_one_cleans_up(
    records: Path, tmp_path: Path, module: str, name: str
) -> None:
    site = tmp_path / "site"
    build([records], site)
    before = content(site)
    script = KILLED.format(module=module, name=name)
    done = subprocess.run([sys.executable, "-c", script, str(records), str(site)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert content(site) == before
    assert build([records], site).problems == [] and content(site) == before
    assert not list(tmp_path.glob(".*"))


def test_a_build_killed_between_two_renames_is_undone_by_the_next(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([records], site)
    before = content(site)
    site.rename(tmp_path / ".site.kdbench-old")
    (records / "bad.json").write_text("{}")
    assert build([records], site).problems
    assert content(site) == before and not list(tmp_path.glob(".*"))


def test_two_builds_of_one_site_do_not_meet(records: Path, tmp_path: Path) -> None:
    with place.replaced(tmp_path / "site"), pytest.raises(UsageError, match="Another build is writing"):
        build([records], tmp_path / "site")
