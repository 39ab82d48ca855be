"""Checks of what a data set holds, before anything learns from it. Each raises :class:`DataError` with file and place.

A place is a row, counted from 0 as NumPy does, or a line of a text, counted from 1 as editors do.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kdbench.errors import DataError

SPLITS = ("train", "val", "test")
BLOCK = 2**22  # values that are looked at at once
UNREADABLE = (EOFError, LookupError, MemoryError, OSError, OverflowError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises."""


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read."""
    try:
        yield
    except UNREADABLE as error:
        why = str(error.args[0] if isinstance(error, KeyError) else error) or type(error).__name__
        raise DataError(f"{path} cannot be read: {why.rstrip('.')}.") from None


def load_array(path: Path, mapped: bool = False) -> np.ndarray:
    """The array of a ``.npy`` file, in memory or as a private memory map."""
    with reading(path):
        array = np.load(path, mmap_mode="c" if mapped else None)
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays, not one array in NumPy's .npy format.")
    return array


def shaped(values: np.ndarray, where: Path | str, shape: tuple[int | None, ...]) -> None:
    """Raise unless ``values`` are numbers of this shape; None: any length but 0."""
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where} holds {values.dtype}, not numbers.")
    if values.ndim != len(shape) or any(
        have == 0 if want is None else have != want for have, want in zip(values.shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise DataError(f"{where} has the shape {list(values.shape)}, not [{wanted}].")


def numbers(values: np.ndarray, where: Path | str, shape: tuple[int | None, ...]) -> np.ndarray:
    """``values`` if they are :func:`shaped` so and finite in float32."""
    shaped(values, where, shape)
    step = max(1, BLOCK // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values) if values.dtype.kind == "f" else 0, step):
        with np.errstate(over="ignore"):
            sound = np.isfinite(values[start : start + step].astype(np.float32, copy=False))
        if not sound.all():
            row = int(sound.reshape(len(sound), -1).all(axis=1).argmin())
            bad = values[start + row][~sound[row]].ravel()
            raise DataError(f"{where}, row {start + row}: {bad[0]} is not a finite number in float32.")
    return values


def integers(
    values: np.ndarray, where: Path | str, what: str, low: int, high: int | np.ndarray, lines: bool = False
) -> np.ndarray:
    """``values`` ``[n]`` as int64 if all are whole numbers from ``low`` up to, not including, ``high``.

    ``high`` may be one for each value. ``lines``: value i is of line i + 1.
    """
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        first = f", such as {values.flat[0]!r}" if values.size and values.dtype.kind not in "iuf" else ""
        raise DataError(f"{where} holds {values.dtype} of shape {list(values.shape)}{first}, not one {what} a row.")
    sound = (values >= low) & (values < high) & (values == np.floor(values))
    if sound.all():
        return values.astype(np.int64)
    row = int(sound.argmin())
    bound = high if isinstance(high, int) else int(high[row])
    place = f"{where}:{row + 1}" if lines else f"{where}, row {row}"
    from_one = isinstance(high, int) and values.min() == low + 1 and values.max() == high
    hint = f" They seem to count from {low + 1}: count from {low}." if from_one else ""
    fault = f"is none of {low}…{bound - 1}" if bound > low else f"is wrong: there is no {what}"
    raise DataError(f"{place}: {what} {values[row]} {fault}.{hint}")


def same_length(parts: Mapping[str, int]) -> int:
    """The length that all parts, by file, have."""
    if len(set(parts.values())) > 1:
        raise DataError(", ".join(f"{where} has {count} rows" for where, count in parts.items()) + ": not as many.")
    return next(iter(parts.values()))


def disjoint(parts: Mapping[str, np.ndarray], count: int, what: str) -> np.ndarray:
    """For each of ``count`` rows the number of the part that lists it, int64, -1 for none; ``parts``: rows by file."""
    group = np.full(count, -1)
    for number, (where, listed) in enumerate(parts.items()):
        rows = integers(listed, where, what, 0, count)
        again = np.flatnonzero((group[rows] >= 0) | (np.bincount(rows, minlength=count)[rows] > 1))
        if len(again):
            raise DataError(
                f"{where}, row {again[0]}: {what} {rows[again[0]]} is listed twice, here or in another split."
            )
        group[rows] = number
    return group


def covered(
    y: np.ndarray, split: np.ndarray, classes: int, where: str, needed: Collection[str] = ("train",), hint: str = ""
) -> None:
    """Raise where a split is empty, or one of those ``needed`` lacks a class.

    ``y``: classes, int64 ``[n]``. ``split``: int64 ``[n]``, 0 train, 1 validation, 2 test, other values none.
    """
    counts = {name: np.bincount(y[split == group], minlength=classes) for group, name in enumerate(SPLITS)}
    for name, of_split in counts.items():
        if not of_split.sum():
            sizes = ", ".join(f"{other} {count.sum()}" for other, count in counts.items())
            raise DataError(f"{where}: the {name} split is empty ({sizes}).{hint}")
        if name in needed and not of_split.all():
            missing = np.flatnonzero(of_split == 0)
            held = ", ".join(f"{other} {count[missing[0]]} of {count.sum()}" for other, count in counts.items())
            more = f", and {len(missing) - 1} more classes miss" if len(missing) > 1 else ""
            raise DataError(f"{where}: the {name} split has no example of class {missing[0]} ({held}){more}.{hint}")


def counted(y: np.ndarray, split: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Examples of each class in each split, by their names; ``y`` and ``split`` as for :func:`covered`."""
    counts = {name: np.bincount(y[split == group], minlength=len(names)) for group, name in enumerate(SPLITS)}
    return {name: dict(zip(names, of_split.tolist(), strict=True)) for name, of_split in counts.items()}
