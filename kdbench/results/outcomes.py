"""Per-item outcomes of a run: what it gave for each validation and test example, in a file beside the record.

``outcomes.safetensors`` lies beside a run's ``record.json``, ``HASH.safetensors`` beside a published ``HASH.json``. Its
arrays are named ``val/NAME`` and ``test/NAME``, ``teacher/NAME`` for the teacher on the test examples. Of a split:

- ``items`` int ``[n]``: row numbers of the data set, the same in whatever split an example is;
- ``clusters`` int ``[n]``, where examples are not independent: those that share something have one number;
- ``targets`` (or ``targets of CLASS``) int ``[n, …]``: the labels, or what tells them apart;
- what a score is made of: ``predicted`` int ``[n]``, ``logits`` ``[n, C]``, scores of each case and class ``[n, C]``,
  detections (:func:`kdbench.results.pseudovalues.average_precision`).

A record tells the file's SHA-256. It holds without the file, and then intervals cover seeds alone; a file that is not
the one that was written is a fault.
"""

from __future__ import annotations

import functools
import hashlib
import math
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kdbench.errors import DataError
from kdbench.plan.metrics import lookup
from kdbench.results.pseudovalues import Array, Arrays

if TYPE_CHECKING:
    from kdbench.results.record import Record

SPLITS = ("val", "test")
TOLERANCE = 1e-5
"""By how much a score may miss the mean of its values: families sum in float32."""
LARGEST = 100_000_000
"""Bytes that the file may have."""


class Contributions(NamedTuple):
    """What each example adds to a score: ``values`` float64 ``[n]``, whose mean is the score.

    ``items`` int64 ``[n]`` are row numbers of the data set, ``clusters`` int64 ``[n]`` equal for examples that are not
    independent (else the items).
    """

    items: Array
    clusters: Array
    values: Array


def sidecar(path: Path) -> Path:
    """Where the outcomes of the record at ``path`` lie."""
    return path.with_name("outcomes.safetensors") if path.name == "record.json" else path.with_suffix(".safetensors")


def packed(arrays: Arrays) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the file that holds these arrays, and what the record says of it."""
    data = save({name: _small(np.ascontiguousarray(value)) for name, value in arrays.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    return data, {"sha256": sha256, "bytes": len(data), "labels_sha256": labels_digest(arrays)}


def _small(values: Array) -> Array:
    """Whole numbers in the smallest type that holds them."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iu" or not values.size:
        return values
    low, high = int(values.min()), int(values.max())
    kinds = ("u1", "u2", "u4", "u8") if low >= 0 else ("i1", "i2", "i4", "i8")
    kind = next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(kind)


def labels_digest(arrays: Arrays) -> str:
    """SHA-256 of the test examples and their labels: ``items``, ``targets``, ``targets of …``, whatever their types."""
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        split, _, part = name.partition("/")
        if split == "test" and (part == "items" or part.partition(" of ")[0] == "targets"):
            values = arrays[name].astype("<i8")
            hashed.update(f"{part} {list(values.shape)}\n".encode() + values.tobytes())
    return hashed.hexdigest()


def read(record: Record) -> Arrays | None:
    """All arrays of a record's outcomes, by name; None where it has none, or they do not lie beside it.

    A record that was read from text alone has no place beside which they could lie. Raises :class:`DataError` for a
    file that is not the one that was written.
    """
    if record.outcomes is None or record.path is None:
        return None
    place = sidecar(record.path)
    try:
        now = place.stat()
        if now.st_size != record.outcomes.bytes or now.st_size > LARGEST:
            raise DataError(f"{place} has {now.st_size:,} bytes, not the {record.outcomes.bytes:,} that were written.")
        return _read(place, record.outcomes.sha256, now.st_mtime_ns)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}.") from None


@functools.lru_cache(64)
def _read(path: Path, sha256: str, modified: int) -> Arrays:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path} was changed after the run: its SHA-256 is not the record's.")
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no safetensors file of numbers: {error}.") from None


def split_of(arrays: Arrays, split: str) -> dict[str, Array]:
    """The arrays of one split (or of the ``teacher``), without its name."""
    return {name.removeprefix(f"{split}/"): value for name, value in arrays.items() if name.startswith(f"{split}/")}


def contributions(family: str, metric: str, arrays: Arrays, split: str = "test") -> Contributions | None:
    """What each example of a split adds to a metric of the family.

    None where the metric does not say how (:attr:`kdbench.plan.metrics.Metric.by_item`), where the arrays that it is
    made of are not there, and where its jackknife is not defined.
    """
    declared, mine = lookup(family, metric), split_of(arrays, split)
    if declared is None or not declared.by_item or "items" not in mine:
        return None
    try:
        values = pkgutil.resolve_name(declared.by_item)(mine, metric)
    except KeyError:  # an array that this run did not leave
        return None
    if values is None:
        return None
    items = mine["items"].astype(np.int64)
    return Contributions(items, mine.get("clusters", items).astype(np.int64), np.asarray(values, dtype=np.float64))


def of(record: Record, metric: str, split: str = "test") -> Contributions | None:
    """:func:`contributions` of a record to one of its scores; None too where its outcomes are not there."""
    arrays = read(record)
    return None if arrays is None else contributions(record.family, metric, arrays, split)


def lacking(record: Record) -> bool:
    """Whether a record tells of outcomes that do not lie beside it."""
    return record.outcomes is not None and record.path is not None and not sidecar(record.path).exists()


def faults(record: Record) -> Iterator[tuple[str, str]]:
    """The field of the record and the message, for everything that its outcomes contradict."""
    try:
        arrays = read(record)
    except DataError as error:
        yield "outcomes", str(error)
        return
    if arrays is None or record.outcomes is None:
        return
    if record.outcomes.labels_sha256 != labels_digest(arrays):
        yield "outcomes.labels_sha256", "is not the digest of the test items and labels in the outcomes"
    for split in SPLITS:
        mine = split_of(arrays, split)
        wrong = list(_shape_faults(record, split, mine))
        yield from wrong or _score_faults(record, split, arrays)
    yield from _prediction_faults(record, split_of(arrays, "test"))


def _shape_faults(record: Record, split: str, mine: Arrays) -> Iterator[tuple[str, str]]:
    items = mine.get("items")
    size = getattr(record.data.sizes, split) if record.data else None
    if items is None or items.ndim != 1 or items.dtype.kind not in "iu" or len(items) != size:
        yield "outcomes", f"'{split}/items' are not the row numbers of the {size} examples"
        return
    if len(np.unique(items)) < len(items):
        yield "outcomes", f"'{split}/items' names an example twice"
    for name, values in mine.items():
        what, _, named = name.partition(" of ")
        length = len(mine.get(f"image of {named}", items)) if what in ("image", "score", "matched") else len(items)
        if not values.ndim or len(values) != length:
            yield "outcomes", f"'{split}/{name}' has shape {list(values.shape)} for {length} rows"
        elif values.dtype.kind == "f" and not np.isfinite(values).all():
            yield "outcomes", f"'{split}/{name}' holds what is no number"


def _score_faults(record: Record, split: str, arrays: Arrays) -> Iterator[tuple[str, str]]:
    scores: Mapping[str, float] = getattr(record.metrics, split) if record.metrics else {}
    for metric, stated in scores.items():
        try:
            given = contributions(record.family, metric, arrays, split)
        except (ValueError, IndexError) as error:
            yield "outcomes", f"no {metric} can be computed from '{split}': {error}"
            continue
        if given is None:
            continue
        mean = float(given.values.mean())
        if not math.isclose(mean, stated, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"metrics.{split}.{metric}", f"{stated:.6f}, but the outcomes give {mean:.6f}"


def _prediction_faults(record: Record, test: Arrays) -> Iterator[tuple[str, str]]:
    """A confusion matrix or predictions that are not those of the arrays."""
    predicted, targets = test.get("predicted"), test.get("targets")
    if predicted is None or targets is None or predicted.shape != targets.shape or predicted.ndim != 1:
        return
    if record.predictions is not None and record.predictions != "".join(np.base_repr(p, 36).lower() for p in predicted):
        yield "predictions", "are not those of the outcomes"
    if record.confusion is not None:
        size = len(record.confusion)
        counted = np.zeros((size, size), dtype=np.int64)
        inside = (predicted < size) & (targets < size)
        np.add.at(counted, (targets[inside], predicted[inside]), 1)
        if not inside.all() or counted.tolist() != record.confusion:
            yield "confusion", "is not that of the outcomes"
