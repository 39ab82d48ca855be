"""What the pages tell: the numbers of the comparison, nothing missing as zero, failures, controls, reported values."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdbench.board import docstrings, figures, tables
from kdbench.board.build import build
from kdbench.board.model import Task, task_of
from kdbench.hashing import canonical_json
from kdbench.plan.cards import Reported, card
from kdbench.results import compare, render, store
from kdbench.results.arms import arms_of, kinds_of
from kdbench.results.record import Record

PUBLISHED = Path(__file__).parents[2] / "leaderboard" / "records"
Make = Callable[..., Record]
Cell = dict[str, str | None]


class Tables(HTMLParser):
    """Every result table of a page: name -> row -> column key -> attributes and text of the cell."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: dict[str, dict[str, dict[str, Cell]]] = {}
        self.keys: list[str] = []
        self.rows: dict[str, dict[str, Cell]] | None = None
        self.cell: Cell | None = None
        self.row: dict[str, Cell] | None = None
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self.keys = []
            self.rows = self.found.setdefault(str(given["data-name"]), {}) if "data-name" in given else None
        elif tag == "th" and "data-key" in given:
            self.keys.append(str(given["data-key"]))
        elif tag == "tr" and self.rows is not None and "data-arm" in given:
            self.row = self.rows.setdefault(str(given["data-arm"]), {})
        elif tag in ("td", "th") and self.row is not None:
            self.cell = self.row[self.keys[len(self.row)]] = {**given, "text": ""}

    def handle_endtag(self, tag: str) -> None:
        self.cell = None if tag in ("td", "th") else self.cell
        self.row = None if tag == "tr" else self.row

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell is not None:
            self.cell["text"] = str(self.cell["text"]) + data


@pytest.fixture
def failing(board: Callable[..., list[Record]], sealed: Make, save: Callable[..., Path], tmp_path: Path) -> Path:
    """The site of a board on which two runs of a method failed, and some costs are not known."""

    def fail(fields: dict[str, Any]) -> None:
        fields |= dict.fromkeys(("selection", "metrics", "confusion", "predictions", "costs")) | {"curves": {}}
        fields |= {
            "status": "failed",
            "failure": {"reason": "The loss is not finite.", "step": 7, "terms": {"kd": "nan"}},
        }

    def unknown(fields: dict[str, Any]) -> None:
        fields["costs"] |= {"latency_ms": None, "flops": None, "peak_memory_bytes": None}

    lost = [sealed(fail, "newkd", 7, 40), sealed(fail, "lostkd", 0, 40)]
    build(
        [save([*board(), *lost, *(sealed(unknown, "quick", seed, 50 - seed) for seed in range(3))])], tmp_path / "site"
    )
    return tmp_path / "site"


def test_a_task_page_tells_the_comparison(failing: Path, tmp_path: Path) -> None:
    (comparison,) = compare.compare(store.read([tmp_path / "records"]))
    page = Tables(failing / "task" / "imagined.html")
    (rows,) = page.found.values()
    assert list(rows) == [row.label for row in comparison.rows]
    for row in comparison.rows:
        cells = rows[row.label]
        for key in ("mean", "gap_closed", "agreement", "p_alone", "p_kd", "parameters", "latency_ms", "n"):
            held = getattr(row, key)
            assert cells[key].get("data-v") == (None if held is None else json.dumps(held)), (row.label, key)
            assert held is not None or cells[key]["text"] == "–"
        for key in ("delta_alone", "delta_kd"):
            delta = getattr(row, key)
            assert cells[key].get("data-v") == (None if delta is None else json.dumps(delta.mean))
            assert cells[key].get("data-low") == (None if delta is None or delta.low is None else json.dumps(delta.low))
        assert (cells["letters"]["text"] or "") == (row.letters or "–")
    for sentence in render.verdicts(comparison):
        assert sentence in page.text
    assert "Paired differences with intervals" in page.text and "One dot for each seed" in page.text


def test_the_audits_verdict_stands_beside_the_numbers(failing: Path) -> None:
    page = (failing / "task" / "imagined.html").read_text(encoding="utf-8")
    assert '<span class="badge unsound">unsound</span>' in page
    assert "No conclusion should be drawn from this comparison" in page and "names no reference" in page


def test_a_page_names_what_mixes_its_arms_and_calls_no_flat_difference_a_result(
    sealed: Make, save: Callable[..., Path], tmp_path: Path
) -> None:
    def other(fields: dict[str, Any]) -> None:
        fields["hardware"]["threads"] = 1

    runs = [sealed(None, "alone", seed, 40 + seed) for seed in range(3)]
    build([save([*runs, *(sealed(other, "kd", seed, 44 + seed) for seed in range(3))])], tmp_path / "site")
    page = Tables(tmp_path / "site" / "task" / "imagined.html")
    assert "arms of seed 0, 1, 2 differ in threads (1, 2): " in page.text
    assert "kd − alone: +6.67 points in each of 3 paired seeds; no spread: add seeds" in page.text
    cells = next(iter(page.found.values()))["kd"]
    assert cells["delta_alone"]["text"] == "+6.67 (no spread)" and cells["p_alone"]["text"] == "–"
    assert not {"better", "worse"} & set(str(cells["delta_alone"]["class"]).split())
    overview = Tables(tmp_path / "site" / "index.html").text
    assert (
        "0 better, 0 worse, 0 not distinguishable, 1 without a test (Benjamini–Hochberg over all 1 of the board)"
        in overview
    )
    (row, *_) = csv.DictReader((tmp_path / "site" / "data" / "results.csv").read_text().splitlines())
    assert (row["metric"], row["best"]) == ("accuracy", "largest")


def test_what_was_not_measured_is_missing_and_never_zero(failing: Path) -> None:
    (rows,) = Tables(failing / "task" / "imagined.html").found.values()
    for key in ("latency_ms", "flops", "peak_memory_bytes"):
        assert rows["quick"][key] == {"text": "–", "class": "number"}
        assert "data-v" in rows["kd"][key]
    assert rows["lostkd"]["mean"] == {"text": "–", "class": "number"} and rows["lostkd"]["n"]["data-v"] == "0"
    found = {row["arm"]: row for row in json.loads((failing / "data" / "imagined.json").read_bytes())}
    assert found["quick"]["latency_ms"] is None and found["lostkd"]["mean"] is None
    with (failing / "data" / "imagined.csv").open(newline="") as stream:
        read = {row["arm"]: row for row in csv.DictReader(stream)}
    assert read["quick"]["latency_ms"] == "" and float(read["kd"]["latency_ms"]) == found["kd"]["latency_ms"] == 1.25
    assert float(read["kd"]["mean_low"]) == found["kd"]["mean_low"]


def test_failed_runs_are_shown_as_failed(failing: Path) -> None:
    page = (failing / "task" / "imagined.html").read_text()
    assert page.count('<span class="badge failed">1 failed</span>') == 2 and "1 of 4 runs failed" in page
    failed = [path for path in failing.glob("record/imagined/*.html") if "<h2>Failure</h2>" in path.read_text()]
    assert len(failed) == 2
    for path in failed:
        text = path.read_text()
        assert '<span class="badge failed">failed</span>' in text and "The loss is not finite." in text
        assert "<dt>step</dt><dd>7</dd>" in text and "<dt>kd</dt><dd>nan</dd>" in text
        assert f'href="../record/imagined/{path.name}"' in page
        assert 'id="scores"' not in text or "test</th>" not in text.partition("<tbody>")[0].replace("teacher, test", "")


def test_controls_are_marked_and_no_result(failing: Path) -> None:
    (rows,) = Tables(failing / "task" / "imagined.html").found.values()
    control = rows["newkd · shuffled teacher"]
    assert control["kind"]["data-v"] == "control" and control["letters"]["text"] == "–"
    assert "control" in str(control["arm"]["text"])
    (overview,) = Tables(failing / "index.html").found.values()
    assert not [key for key in overview if "shuffled" in key]
    assert {key.split(" ", 1)[1] for key in overview} == {"alone", "kd", "newkd", "quick"}


def test_what_is_not_installed_has_pages_all_the_same(failing: Path) -> None:
    assert "is not installed where this page was made" in (failing / "method" / "graph--newkd.html").read_text()
    assert "is not installed where this page was made" in (failing / "task" / "imagined.html").read_text()


def test_a_record_page_tells_its_run(failing: Path, tmp_path: Path) -> None:
    one = next(r for r in store.read([tmp_path / "records"]) if r.method == "newkd" and r.control == "none")
    text = (failing / "record" / "imagined" / f"{one.config_hash[:16]}.html").read_text()
    told = re.sub(r"<[^>]+>", " ", text)
    assert one.data is not None and one.teacher is not None
    for part in (one.command, one.digest, one.config_hash, one.data.split_sha256, one.teacher.sha256, "student.width"):
        assert part in told
    assert f"kdbench reproduce {one.config_hash[:16]}.json" in told and "val_accuracy" in told
    assert 'id="confusion"' in text and "<dt>torch</dt><dd>2.15.0</dd>" in text


@pytest.fixture(scope="module")
def cora() -> Task:
    """The published task ``gnn/cora_text``."""
    return task_of(store.read([PUBLISHED / "gnn" / "cora_text"]))


def test_reported_values_stand_beside_measured_ones_in_a_table_of_their_own(cora: Task) -> None:
    told = card("gnn/cora_text").reported
    table = tables.reported_table(cora, told)
    shown = {line.key: dict(zip((c.key for c in table.columns), line.cells, strict=True)) for line in table.lines}
    assert len(shown) == len(told)
    gcn = next(cells for cells in shown.values() if (cells["arm"].value, cells["student"].value) == ("lingugkd", "gcn"))
    assert gcn["reported"].value == 0.9077 and gcn["reported"].badges[0].kind == "reported"
    means = {
        row.mean
        for view in cora.views
        if view.student == "gcn"
        for row in view.comparison.rows
        if row.label == "lingugkd"
    }
    assert gcn["measured"].value in means
    sage = next(cells for cells in shown.values() if (cells["arm"].value, cells["student"].value) == ("alone", "sage"))
    assert sage["measured"].value is None and sage["measured"].text == "–"
    reported = {entry.value for entry in told}
    for view in cora.views:
        measured = tables.comparison_table(view, cora)
        assert not reported & {cell.value for line in measured.lines for cell in line.cells}
    assert tables.reported_table(cora, [Reported("nobody", "accuracy", 0.5, "a paper")]).lines[0].cells[4].value is None


def test_other_settings_are_measured_against_the_default_ones() -> None:
    """By hand from the records: mean over seeds of the accuracy with the setting minus that without."""
    records = store.read([PUBLISHED / "avdigits"])
    task = task_of(records)
    table = tables.settings_table([task], "mst_distill", "../")
    line = next(line for line in table.lines if "variant=official" in str(line.cells[0].value))
    cells = dict(zip((column.key for column in table.columns), line.cells, strict=True))
    group = next(r.group for r in records if '"variant":"official"' in canonical_json(r.config["method"]))
    score: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for record in records:
        options = record.config["method"]
        assert isinstance(options, dict)
        plain = [options.get(name) for name in ("router", "collaborate", "specialise")] == ["official", True, True]
        if plain and record.group == group and record.metrics:
            score[options["variant"] == "official"][record.seed] = record.metrics.test["accuracy"]
    differences = [value - score[False][seed] for seed, value in score[True].items() if seed in score[False]]
    assert cells["n"].value == len(differences) == 5
    assert cells["delta_default"].value == pytest.approx(sum(differences) / 5)
    assert cells["delta_default"].low is not None and cells["p_default"].value is not None


def test_ranks_need_tasks_that_share_methods_and_power(cora: Task) -> None:
    graphs = [
        task_of(store.read([PUBLISHED / "graph_classification" / name])) for name in ("imdb_b", "molbace", "nci1")
    ]
    found = figures.ranks([cora, *graphs])
    assert found.figures == [] and "over 3 tasks, ranks of" in found.sentence and "more than half" in found.sentence
    many = [replace(one, name=f"{one.name}_{copy}") for one in graphs for copy in range(4)]
    found = figures.ranks([cora, *many])
    assert len(found.figures) == 1 and "Mean ranks over 12 tasks" in found.figures[0].caption
    assert "gnn/cora_text" not in found.sentence and "graph_classification/nci1" in found.sentence
    none = figures.ranks([cora, *graphs[:2]])
    assert none.figures == [] and none.sentence.startswith("No critical-difference diagram: it needs 3 tasks")


def test_gaps_without_a_better_teacher_are_left_out(cora: Task) -> None:
    cells = task_of(store.read([PUBLISHED / "blood_cells"]))
    assert figures.gaps([cells], "") == []
    (drawn,) = figures.gaps([cells, cora], "")
    assert "lingugkd" in drawn.svg and "left out (1)" in drawn.caption


def test_a_docstring_becomes_sentences_equations_and_differences() -> None:
    doc = "Idea with ``code``.\n\n    a = b\n      + c\n\nMore text. ``variant=official`` does as the released code.\n"
    found = docstrings.blocks(doc)
    assert [(block.equation, block.text) for block in found] == [
        (False, "Idea with code."),
        (True, "a = b\n  + c"),
        (False, "More text. variant=official does as the released code."),
    ]
    assert [piece for piece in found[0].pieces if piece.code] == [docstrings.Piece("code", True)]
    assert [block.text for block in docstrings.differences(doc)] == ["variant=official does as the released code."]


def test_identifiers_do_not_depend_on_what_else_is_there(cora: Task) -> None:
    records = store.read([PUBLISHED / "gnn" / "cora_text"])
    group = cora.views[2].comparison.group
    (alone,) = task_of([record for record in records if record.group == group]).views
    assert alone.id == cora.views[2].id


def test_controls_and_bounds_stand_beside_the_methods_and_count_as_none(sealed: Make) -> None:
    arms = ("alone", "kd", "mirage", "untrained", "newkd")
    found = [sealed(None, method, seed, 44 + seed + place) for seed in range(3) for place, method in enumerate(arms)]
    task = task_of(found)
    assert {row.method for row in tables.headline_rows(task.headline.comparison)} == set(arms)
    assert {row.method for row in tables.judged_rows(task.headline.comparison)} == set(arms) - {"untrained"}
    kinds = {row.method: row.kind for row in task.headline.comparison.rows}
    expected = {"alone": "baseline", "kd": "baseline", "mirage": "method", "untrained": "control", "newkd": "method"}
    assert kinds == {**expected, "teacher": "teacher"}
    (oracle,) = arms_of([sealed(None, "oracle", 0, 50)], "accuracy")
    assert kinds_of([oracle], "detection", []) == ["bound"]


def test_items_of_a_list_in_a_docstring_are_paragraphs_of_their_own() -> None:
    told = docstrings.blocks("First:\n\n1. one,\n   and more\n2. two\n\n- three\n\nLast.")
    assert [block.text for block in told] == ["First:", "1. one, and more", "2. two", "- three", "Last."]
