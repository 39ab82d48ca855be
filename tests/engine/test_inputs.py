"""Checks of what data sets hold: what they let pass, and that each error names file and place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.engine import inputs
from kdbench.errors import DataError, UsageError

HUGE = np.ones((4, 3))
HUGE[2, 1] = 1e300
GAP = np.ones((4, 3), dtype="f2")
GAP[3, 0] = np.inf


def test_an_error_of_the_data_is_the_users_to_mend() -> None:
    assert issubclass(DataError, UsageError) and DataError("").exit_code == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (GAP, "x.npy, row 3: inf is not a finite number"),
        (HUGE, "x.npy, row 2: 1e.300 is not a finite number in float32"),
        (np.ones((4, 2)), r"x.npy has the shape \[4, 2\], not \[any, 3\]"),
        (np.ones((0, 3)), r"x.npy has the shape \[0, 3\]"),
        (np.ones(12), r"x.npy has the shape \[12\]"),
        (np.ones((4, 3), dtype=complex), "x.npy holds complex128, not numbers"),
        (np.array([["a"] * 3]), "x.npy holds <U1, not numbers"),
        (np.ones((4, 3), dtype=bool), "x.npy holds bool"),
    ],
)
def test_numbers_are_finite_and_of_their_shape(values: np.ndarray, told: str) -> None:
    with pytest.raises(DataError, match=told):
        inputs.numbers(values, "x.npy", (None, 3))


@pytest.mark.parametrize("place", [0, 1, 6, 9])
def test_every_row_is_looked_at(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK", 8)
    values = np.zeros((10, 2, 2), dtype="f4")
    assert inputs.numbers(values, "x.npy", (None, 2, 2)) is values
    values[place, 1, 1] = np.nan
    with pytest.raises(DataError, match=f"row {place}: nan"):
        inputs.numbers(values, "x.npy", (None, 2, 2))


@pytest.mark.parametrize("kind", ["i1", "u8", "i8", "f4"])
def test_whole_numbers_of_any_type_are_labels(kind: str) -> None:
    found = inputs.integers(np.array([0, 7, 3], dtype=kind), "y.npy", "label", 0, 8)
    assert found.dtype == np.int64 and found.tolist() == [0, 7, 3]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0, 1, 8], "y.npy, row 2: label 8 is none of 0…7"),
        ([0, -1, 3], "y.npy, row 1: label -1 is none of 0…7"),
        ([0.5, 1.5, 2.5], "y.npy, row 0: label 0.5"),
        ([1, 2, np.nan], "y.npy, row 2: label nan"),
        ([1, 2, np.inf], "y.npy, row 2: label inf"),
        ([3, 1, 8], "row 2: label 8 is none of 0…7. They seem to count from 1: count from 0"),
        (["not_humanitarian"], "y.npy holds .*'not_humanitarian'.*, not one label a row"),
        ([True, False], "y.npy holds bool"),
        ([[0], [1]], r"y.npy holds int64 of shape \[2, 1\]"),
        ([2**63 + 5], "y.npy, row 0"),
    ],
)
def test_labels_are_whole_numbers_of_the_classes(values: list[object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        inputs.integers(np.array(values), "y.npy", "label", 0, 8)


def test_a_line_of_a_text_counts_from_one() -> None:
    with pytest.raises(DataError, match=r"edges\.csv:2: node 5 is none of 0…3"):
        inputs.integers(np.array([1, 5]), "edges.csv", "node", 0, np.array([2, 4]), lines=True)


@pytest.mark.parametrize(
    ("y", "split", "told"),
    [
        ([0, 1, 0], [0, 0, 2], "digits: the val split is empty .train 2, val 0, test 1."),
        ([0, 1, 0], [1, 1, 2], "the train split is empty"),
        (
            [0, 0, 1, 1],
            [0, 0, 1, 2],
            "the train split has no example of class 1 .train 0 of 2, val 1 of 1, test 1 of 1.",
        ),
        ([0, 1, 1, 1], [0, 0, 1, 3], "the test split is empty"),
    ],
)
def test_every_split_has_rows_and_the_training_split_every_class(y: list[int], split: list[int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        inputs.covered(np.array(y), np.array(split), 2, "digits")


def test_a_metric_may_need_every_class_in_every_split() -> None:
    y, split = np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
    inputs.covered(y, split, 2, "digits")
    with pytest.raises(DataError, match=r"the test split has no example of class 0.*Take more"):
        inputs.covered(y, split, 2, "digits", inputs.SPLITS, " Take more.")


def test_a_row_is_in_one_split() -> None:
    parts = {"a.csv": np.array([0, 2]), "b.csv": np.array([3])}
    assert inputs.disjoint(parts, 5, "graph").tolist() == [0, -1, 0, 1, -1]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([3, 2], "row 1: graph 2 is listed twice"),
        ([3, 1, 1], "row 1: graph 1 is"),
        ([5], "row 0: graph 5 is none of 0…4"),
    ],
)
def test_a_row_of_two_splits_or_of_none_that_exists(rows: list[int], told: str) -> None:
    with pytest.raises(DataError, match=rf"b\.csv, {told}"):
        inputs.disjoint({"a.csv": np.array([0, 2]), "b.csv": np.array(rows)}, 5, "graph")


def test_parts_are_as_many() -> None:
    assert inputs.same_length({"a": 3, "b": 3}) == 3
    with pytest.raises(DataError, match="a has 3 rows, b has 4 rows"):
        inputs.same_length({"a": 3, "b": 4})


def cut(path: Path) -> None:
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:200])


DAMAGES: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"no array"),
    lambda path: np.save(path, np.array([{}], dtype=object)),
    lambda path: np.savez(path.open("wb"), values=np.arange(3)),
    lambda path: path.mkdir(),
    lambda path: None,
    cut,
]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_array_is_named(damage: Callable[[Path], object], mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    damage(path)
    with pytest.raises(DataError, match=r"x\.npy (cannot be read: .+\.|is an archive)"):
        inputs.load_array(path, mapped)
