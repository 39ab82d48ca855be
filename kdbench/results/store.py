"""Records on disk: written whole, read back checked, and compared with each other for what one alone cannot show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kdbench import hashing
from kdbench.errors import UsageError
from kdbench.results.record import InvalidRecord, Record, dumps, loads


class Fault(NamedTuple):
    """What is wrong with one field of the record at ``path``."""

    path: Path
    field: str
    message: str


class Report(NamedTuple):
    """The outcome of ``validate``: how many records hold, and everything that is wrong with the others."""

    valid: int
    problems: list[Fault]


def files(paths: Iterable[Path]) -> list[Path]:
    """The record files that ``paths`` name, each once.

    A file is taken as it is. A folder is searched at any depth for ``record.json`` (run folders hold other JSON too),
    and for every ``*.json`` where there is none of that name (published records). Raises UsageError for a missing path.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"No such file or folder: {path}")
        below = sorted(path.rglob("record.json")) or sorted(path.rglob("*.json")) if path.is_dir() else [path]
        found.update(dict.fromkeys(below))
    return list(found)


def read(paths: Iterable[Path]) -> list[Record]:
    """All records in files and folders, in path order. Raises InvalidRecord for the first that does not hold."""
    return [loads(path.read_bytes(), path) for path in files(paths)]


def write(record: Record, path: Path) -> None:
    """Write a record so that ``path`` never holds half of one."""
    hashing.write_atomic(path, dumps(record))


OWN_TEACHERS = ("ema", "co-trained", "several")
"""Kinds of teachers that a run makes for itself; any other is the task's and shared by all arms."""


def _pairings(record: Record) -> Iterator[tuple[str, tuple[object, ...], object]]:
    """What records that pair must share: the field, which records pair in it, and this record's value."""
    pair = (record.group, record.seed)
    yield "family", (record.task,), record.family
    if record.data:
        yield "data.sha256", pair, record.data.sha256
        yield "data.split_sha256", pair, record.data.split_sha256
    if record.teacher and record.teacher.kind not in OWN_TEACHERS and record.control == "none":
        teacher = hashing.canonical_json(record.config["teacher"])
        yield "teacher.sha256", (*pair, teacher), record.teacher.sha256
    for axis, number in record.seeds.items():
        yield f"seeds.{axis}", (record.seed,), number


def check(records: Sequence[tuple[Path, Record]], trusted: Collection[Path] = ()) -> list[Fault]:
    """Faults that only show across records: a run given twice, and arms that do not share data, teacher or seeds.

    Among records that must agree, those that differ from the commonest value (the first, if several are) are at fault;
    where some are at ``trusted`` paths, it is the commonest of theirs.
    """
    faults: list[Fault] = []
    runs: dict[str, Path] = {}
    shared: dict[tuple[str, tuple[object, ...]], list[tuple[Path, object]]] = defaultdict(list)
    for path, record in records:
        first = runs.setdefault(record.config_hash, path)
        if first != path:
            faults.append(Fault(path, "config_hash", f"the same run as {first}"))
        for field, pairing, value in _pairings(record):
            shared[field, pairing].append((path, value))
    for (field, _), values in shared.items():
        if all(value == values[0][1] for _, value in values):
            continue
        judges = [(path, value) for path, value in values if path in trusted] or values
        ((common, _),) = Counter(value for _, value in judges).most_common(1)
        witness = next(path for path, value in judges if value == common)
        faults += [Fault(path, field, f"{v}, but {common} in {witness}") for path, v in values if v != common]
    return faults


def validate(paths: Iterable[Path]) -> Report:
    """Check every record alone and all together. Never raises for a bad record; UsageError for a missing path."""
    faults: list[Fault] = []
    records: list[tuple[Path, Record]] = []
    found = files(paths)
    for path in found:
        try:
            records.append((path, loads(path.read_bytes(), path)))
        except InvalidRecord as error:
            faults += [Fault(path, *problem) for problem in error.problems]
    faults += check(records)
    return Report(len(found) - len({fault.path for fault in faults}), faults)
