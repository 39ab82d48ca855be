"""Contributions: checked against what is published, compared with it, written only on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.board import submit
from kdbench.cli import main as cli
from kdbench.errors import UsageError
from kdbench.results import record as recording
from kdbench.results import store

Make = Callable[..., recording.Record]


@pytest.fixture
def published(board: Callable[..., list[recording.Record]], tmp_path: Path) -> Path:
    """The published records: alone, kd and a method on three seeds."""
    folder = tmp_path / "published"
    for item in board():
        store.write(item, folder / submit.place_of(item))
    return folder


def saved(folder: Path, *records: recording.Record) -> Path:
    for index, item in enumerate(records):
        store.write(item, folder / str(index) / "record.json")
    return folder


def resealed(item: recording.Record, **changes: Any) -> recording.Record:
    content = item.model_dump(mode="json")
    del content["digest"]
    return recording.seal({**content, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_records_are_compared_and_written_to_their_places(
    sealed: Make, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [sealed(None, "better", seed, 55 + seed % 2) for seed in range(3)]
    runs = saved(tmp_path / "runs", *mine)
    before = files(published)
    assert cli.entry(["leaderboard", "submit", str(runs), "--to", str(published)]) == 0
    said = capsys.readouterr().out
    assert "better − kd" in said and "alone" in said and "3 new, 0 published already; --write does it" in said
    assert files(published) == before
    assert cli.entry(["leaderboard", "submit", str(runs), "--to", str(published), "--write", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    added = {name: text for name, text in files(published).items() if name not in before}
    assert sorted(added) == sorted(f"imagined/better/{item.config_hash[:16]}.json" for item in mine)
    assert [Path(path).is_file() for path in told["written"]] == [True] * 3 and told["problems"] == []
    assert store.validate([published]).problems == [] and files(published).items() >= before.items()
    again = submit.prepare([runs], published)
    assert (again.places, again.known, again.problems) == ([], 3, [])


def test_another_outcome_of_a_published_run_is_refused(
    board: Callable[..., list[recording.Record]], published: Path, tmp_path: Path
) -> None:
    other = resealed(board()[0], notes=["again, with luck"])
    found = submit.prepare([saved(tmp_path / "runs", other)], published)
    (problem,) = found.problems
    assert problem.field == "config_hash" and "another outcome" in problem.message and not found.places


@pytest.mark.parametrize("field", ["data.sha256", "data.split_sha256", "teacher.sha256", "seeds.initialisation"])
def test_the_published_data_split_teacher_and_seeds_are_right_even_against_more(
    sealed: Make, published: Path, tmp_path: Path, field: str
) -> None:
    section, key = field.split(".")

    def change(fields: dict[str, Any]) -> None:
        fields[section][key] = 77 if section == "seeds" else "e" * 64

    mine = [sealed(change, f"new{index}", 0, 50) for index in range(9)]
    found = submit.prepare([saved(tmp_path / "runs", *mine)], published)
    assert {problem.field for problem in found.problems} == {field}
    assert {problem.path.parent.parent for problem in found.problems} == {tmp_path / "runs"}
    assert len(found.problems) == 9 and str(published) in found.problems[0].message


def test_a_record_that_does_not_hold_is_refused_and_nothing_is_written(
    sealed: Make, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = saved(tmp_path / "runs", sealed(None, "good", 0, 50), sealed(None, "good", 1, 50))
    path = runs / "1" / "record.json"
    path.write_text(path.read_text().replace('"seed": 1,', '"seed": 2,', 1))
    before = files(published)
    assert cli.entry(["leaderboard", "submit", str(runs), "--to", str(published), "--write"]) == 1
    said = capsys.readouterr()
    assert f"{path}: seed: " in said.err and "nothing was written" in said.err and files(published) == before


def test_names_cannot_leave_the_folder(sealed: Make, tmp_path: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["config"]["task"] = fields["task"] = "../../../etc/cron.d"
        fields["config"]["method"]["name"] = fields["method"] = "../../up"

    mine = sealed(change, "kd", 0, 50)
    found = submit.prepare([saved(tmp_path / "runs", mine)], tmp_path / "published")
    (path,) = submit.write(found)
    assert path.resolve().is_relative_to(tmp_path / "published") and ".." not in path.relative_to(tmp_path).parts


def test_what_a_reviewer_will_ask_is_told(failed: Make, tmp_path: Path) -> None:
    mine = failed("kd", 0, git={"commit": "0" * 40, "dirty": True})
    found = submit.prepare([saved(tmp_path / "runs", mine)], tmp_path / "published")
    assert [note.split(" records ")[1] for note in found.notes] == [
        "of failed runs; they are shown as failed",
        "made from sources with changes that no commit holds",
        "were not checked in all: task 'imagined' is not installed here",
    ]


def test_records_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no record"):
        submit.prepare([tmp_path], tmp_path / "published")
