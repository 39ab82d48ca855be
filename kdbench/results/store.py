"""Records on disk: found in files and folders, written whole, read back checked alone and against each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kdbench import hashing
from kdbench.errors import UsageError
from kdbench.results import agree, origin, outcomes
from kdbench.results.agree import Fault
from kdbench.results.record import InvalidRecord, NoRecord, Problem, Record, dumps, loads

BOOKKEEPING = ("made.json", "sweep.json", "jobs.json", "stage.json", "cache.json")
"""What runs, sweeps, stages and caches leave beside records; states lie in a folder of their own by ``sweep.json``."""
LARGEST = 100_000_000
"""Bytes that a record may have."""


class Candidate(NamedTuple):
    """A file that may be a record.

    It ``must`` be one where the user or a run named it so; ``beside`` the record of a run lies other JSON too.
    """

    path: Path
    must: bool
    beside: bool


@dataclass(frozen=True)
class Loaded:
    """Records that hold by themselves, what is wrong with others, and the JSON files that are no records."""

    records: list[tuple[Path, Record]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


class Report(NamedTuple):
    """The outcome of ``validate``: how many records hold, and everything that is wrong with the others.

    ``read`` counts the files that are records or pose as such, ``others`` are JSON files that do not. ``unchecked``
    tells what of how many records could not be checked, and why.
    """

    valid: int
    problems: list[Fault]
    read: int
    others: list[Path]
    unchecked: Mapping[str, int]


def files(paths: Iterable[Path]) -> list[Candidate]:
    """The files that ``paths`` name, each once: a file as it is, of a folder every ``*.json`` at any depth.

    A folder that holds ``record.json`` is a run's; what else lies there is a record only if it poses as one, and hides
    nothing. Raises UsageError for a missing path, and for a folder that cannot be read.
    """
    candidates: dict[Path, Candidate] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"No such file or folder: {path}")
        below = sorted(_below(path)) if path.is_dir() else [Candidate(path, must=True, beside=False)]
        candidates.update((one.path, one) for one in below)
    return list(candidates.values())


def _below(root: Path) -> Iterator[Candidate]:
    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}.")

    for folder, below, names in os.walk(root, onerror=refuse):
        below.sort()
        if os.path.basename(folder) == "states" and os.path.exists(os.path.join(folder, os.pardir, "sweep.json")):
            continue
        run = "record.json" in names
        for name in sorted(names):
            if name.endswith(".json") and name not in BOOKKEEPING:
                yield Candidate(Path(folder, name), must=name == "record.json", beside=run and name != "record.json")


def take(candidate: Candidate) -> tuple[bytes, Record]:
    """A file's bytes and the record that they are.

    Raises InvalidRecord for one that does not hold, and NoRecord for a file that is none and need not be.
    """
    path, must, beside = candidate
    try:
        raw = _bytes(path, must)
        return raw, loads(raw, path)
    except NoRecord as error:
        raise InvalidRecord(path, error.problems) if must else error from None
    except InvalidRecord as error:
        unread = any(problem.field == "file" for problem in error.problems)
        raise NoRecord(path, error.problems) if beside and unread else error from None


def _bytes(path: Path, must: bool) -> bytes:
    kind = InvalidRecord if must else NoRecord
    if not path.is_file():
        raise kind(path, [Problem("file", "is no regular file")])
    try:
        if path.stat().st_size > LARGEST:
            raise InvalidRecord(path, [Problem("file", f"is larger than {LARGEST:,} bytes")])
        return path.read_bytes()
    except OSError as error:
        raise InvalidRecord(path, [Problem("file", f"cannot be read: {error.strerror}")]) from None


def load(candidates: Iterable[Candidate]) -> Loaded:
    """All records of ``candidates``, each checked alone: by itself, and against what is installed here."""
    loaded = Loaded()
    for candidate in candidates:
        try:
            _, record = take(candidate)
        except NoRecord:
            loaded.others.append(candidate.path)
        except InvalidRecord as error:
            loaded.faults.extend(Fault(candidate.path, *problem) for problem in error.problems)
        else:
            wrong = faults_of(candidate.path, record)
            loaded.faults.extend(wrong)
            loaded.records.extend([] if wrong else [(candidate.path, record)])  # none that is false judges others
    return loaded


def faults_of(path: Path, record: Record) -> list[Fault]:
    """What a record says that its outcomes, or what is installed here, contradict."""
    return [Fault(path, *problem) for problem in (*origin.faults(record), *outcomes.faults(record))]


def unchecked(record: Record) -> Iterator[str]:
    """What of a record could not be checked, and why."""
    if (why := origin.unchecked(record)) is not None:
        yield why
    if outcomes.lacking(record):
        yield "the file of their outcomes is not beside them, so that intervals cover seeds alone"


def read(paths: Iterable[Path]) -> list[Record]:
    """All records in files and folders, in path order. Raises InvalidRecord for the first that does not hold."""
    records = []
    for candidate in files(paths):
        try:
            records.append(take(candidate)[1])
        except NoRecord:
            continue
    return records


def write(record: Record, path: Path) -> None:
    """Write a record, after the outcomes that lie beside it, so that ``path`` never holds half of one or one without.

    Raises :class:`DataError` for outcomes that are not those that were written.
    """
    beside = outcomes.sidecar(path)
    if outcomes.read(record) is not None and record.path is not None:
        hashing.write_atomic(beside, outcomes.sidecar(record.path).read_bytes())
    else:
        beside.unlink(missing_ok=True)
    hashing.write_atomic(path, dumps(record))


def check(records: Sequence[tuple[Path, Record]], trusted: Collection[Path] = ()) -> list[Fault]:
    """Faults that only show across records: see :func:`kdbench.results.agree.check`."""
    return agree.check(records, trusted)


def validate(paths: Iterable[Path]) -> Report:
    """Check every record alone and all together. Never raises for a bad record; UsageError for a missing path."""
    candidates = files(paths)
    loaded = load(candidates)
    faults = [*loaded.faults, *check(loaded.records)]
    read = len(candidates) - len(loaded.others)
    open_questions = Counter(why for _, record in loaded.records for why in unchecked(record))
    return Report(read - len({fault.path for fault in faults}), faults, read, loaded.others, open_questions)
