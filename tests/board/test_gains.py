"""The README's table of gains: made of the records, of each card's primary comparison alone, and put between marks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench.board import gains
from kdbench.errors import DataError
from kdbench.plan.cards import Primary
from kdbench.results import compare
from kdbench.results.record import PROTOCOL, Record


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The imagined task gets a card with a primary comparison."""

    def give(**student: Any) -> None:
        one = SimpleNamespace(name="imagined", primary=Primary("small", student, "accuracy"))
        monkeypatch.setattr(gains, "task_paths", lambda: {"imagined": Path()})
        monkeypatch.setattr(gains, "card", lambda name: one)
        monkeypatch.setattr(gains, "PROTOCOL", 1)  # that of the imagined records

    return give


def test_every_method_of_the_primary_comparison_has_a_row(
    board: Callable[..., list[Record]], card: Callable[..., None]
) -> None:
    card(name="gcn")
    records = board()
    (comparison,) = compare.compare(records)
    lines = gains.table(records).splitlines()[2:]
    rows = [row for row in comparison.rows if row.kind == "method"]
    assert len(lines) == len(rows) == 1
    for line, row in zip(lines, rows, strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[0] == f"`imagined`, gcn, accuracy %, {row.n} seeds" and cells[-1] == "unsound"
        assert row.mean is not None and cells[5].startswith(f"{row.label} {100 * row.mean:.2f}")
        assert row.delta_alone is not None and cells[6].startswith(
            f"{100 * row.delta_alone.mean:+.2f}".replace("-", "−")
        )


def test_other_students_and_other_protocols_are_no_part_of_it(
    board: Callable[..., list[Record]], card: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(name="gat")
    assert gains.table(board()) == "No comparison of this protocol is on record yet.\n"
    card(name="gcn")
    monkeypatch.setattr(gains, "PROTOCOL", PROTOCOL)
    assert gains.table(board()) == "No comparison of this protocol is on record yet.\n"


def test_a_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gains.BEGIN}\nold\n{gains.END}\nafter\n")
    assert gains.insert("new\n", page) and not gains.insert("new\n", page)
    assert page.read_text() == f"before\n{gains.BEGIN}\nnew\n{gains.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(DataError, match="lacks the marks"):
        gains.insert("new\n", page)
