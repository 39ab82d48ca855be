"""A site of records: what it holds, that it is all of them or nothing, and that it is the same every time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdbench.board import place
from kdbench.board.build import build
from kdbench.cli import main as cli
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


def _pages(records: Sequence[Path]) -> set[str]:
    hashes = [json.loads(path.read_bytes())["config_hash"][:16] for path in records]
    return {f"{one}.{kind}" for one in hashes for kind in ("html", "json")}


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
    (records / "bad.json").write_text('{"schema_version": 1}')
    assert build([records], site).problems
    assert content(site) == before and not list(tmp_path.glob(".*"))


def test_what_a_former_build_left_is_removed(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([records], site)
    before = content(site)
    paths = sorted(records.glob("*.json"))
    build(paths[:5], site)
    assert before.keys() - content(site).keys() == {f"record/imagined/{name}" for name in _pages(paths[5:])}


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


def test_a_file_that_was_put_into_a_site_is_not_deleted(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([records], site)
    for name in ("CNAME", "task/mine.html", "record/imagined/notes.txt", "assets/mine/logo.svg"):
        mine = site / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(UsageError, match=f"{name} was not made by a build"):
            build([records], site)
        assert mine.read_text() == "mine"
        mine.unlink()
    (site / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UsageError, match="linked was not made by a build"):
        build([records], site)
    (site / "linked").unlink()
    assert build([records], site).problems == []


def test_the_site_shares_no_file_with_the_records(records: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in records.glob("*.json"):
        (linked / path.name).symlink_to(path)
    build([records], tmp_path / "one")
    build([linked], tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    before = content(records)
    for site in (tmp_path / "one", tmp_path / "two"):
        for page in site.glob("record/*/*.json"):
            assert not page.is_symlink() and page.stat().st_nlink == 1
            page.write_text("edited")
    assert content(records) == before


def test_json_that_is_no_record_is_told(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records / "notes.json").write_text("{}")
    words = ["leaderboard", "build", str(records), "-o", str(tmp_path / "site")]
    assert cli.entry(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith("12 records of 1 tasks") and f"note: {records / 'notes.json'} is no record" in said.err
    assert "12 records could not be checked in all: task 'imagined' is not installed here" in said.err
    assert cli.entry([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["others"] == [str(records / "notes.json")] and sum(told["unchecked"].values()) == 12


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


@pytest.mark.slow
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
    (records / "bad.json").write_text('{"schema_version": 1}')
    assert build([records], site).problems
    assert content(site) == before and not list(tmp_path.glob(".*"))


def test_two_builds_of_one_site_do_not_meet(records: Path, tmp_path: Path) -> None:
    with place.replaced(tmp_path / "site"), pytest.raises(UsageError, match="Another build is writing"):
        build([records], tmp_path / "site")
