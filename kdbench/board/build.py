"""From records to a site: check all, write every page beside the old site, then take its place."""

from __future__ import annotations

import functools
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kdbench.board import place, safe, task_page
from kdbench.board.model import Task, task_of
from kdbench.board.overview import write_overviews
from kdbench.board.record_page import record_page
from kdbench.board.workers import processors, spread, without_collection
from kdbench.errors import UsageError
from kdbench.plan.catalog import leaderboard
from kdbench.results import agree, outcomes, store
from kdbench.results.agree import Fault
from kdbench.results.record import InvalidRecord, NoRecord, Record
from kdbench.results.store import Candidate

CHUNK = 250
"""Records that one process reads before it reports."""
ALONE = 1500
"""Records up to which one process is quicker than several."""
EMPTY = "There is no record in what was named; a run leaves record.json in its folder."
DRAWN = 20_000
"""Records up to which their pages have plots: those of more would take half of the time of a build."""


class Report(NamedTuple):
    """The outcome of a build: with problems, nothing was written.

    ``others`` are JSON files that are no records; ``unchecked`` as in :class:`kdbench.results.store.Report`.
    """

    records: int
    tasks: int
    pages: int
    problems: list[Fault]
    others: list[Path]
    unchecked: Mapping[str, int]


@dataclass(frozen=True)
class _Read:
    """What was found in files: slim records, what is wrong with others, files that are no records."""

    records: list[tuple[Path, Record]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unchecked: Counter[str] = field(default_factory=Counter)

    def add(self, more: _Read) -> None:
        self.records.extend(more.records)
        self.faults.extend(more.faults)
        self.others.extend(more.others)
        self.unchecked.update(more.unchecked)


class _Refused(Exception):
    def __init__(self, read: _Read) -> None:
        self.read = read


def build(paths: Iterable[Path], site: Path, jobs: int | None = None) -> Report:
    """Make the site of all records in ``paths`` and let it take the place of ``site``; same records, same bytes.

    Every record is checked alone and against the others; if one does not hold, nothing is written and the report lists
    all problems. Raises UsageError for paths without records, and where ``site`` holds something else.
    """
    place.refuse_foreign(site)
    candidates = store.files(paths)
    if not candidates:
        raise UsageError(EMPTY)
    jobs = jobs or (1 if len(candidates) <= ALONE else processors())
    try:
        with place.replaced(site) as folder, without_collection():
            read = _read(candidates, folder, jobs)
            records = [record for _, record in read.records]
            tasks = _write_tasks(records, folder, jobs)
            count = len(records) + len(tasks) + write_overviews(tasks, folder)
            _write_assets(folder)
            place.seal(folder)
    except _Refused as refused:
        read = refused.read
        return Report(len(candidates) - len(read.others), 0, 0, read.faults, read.others, read.unchecked)
    return Report(len(records), len(tasks), count, [], read.others, read.unchecked)


def check(records: Sequence[tuple[Path, Record]], trusted: Collection[Path] = ()) -> list[Fault]:
    """Faults across records: those of ``store.check``, and what would give two records one page."""
    faults = store.check(records, trusted)
    pages_of: dict[tuple[str, str], tuple[Record, Path]] = {}
    for path, record in records:
        page = (record.task, record.config_hash[:16])
        known, first = pages_of.setdefault(page, (record, path))
        if known.config_hash != record.config_hash:
            faults.append(Fault(path, "config_hash", f"begins with the same 16 digits as that of {first}"))
        elif known.protocol != record.protocol:
            faults.append(Fault(path, "protocol", f"{record.protocol}, but {first} is the same run under another"))
    return faults


def _read(candidates: Sequence[Candidate], folder: Path, jobs: int) -> _Read:
    """All records without what only their own pages show, which are written on the way."""
    chunks = [candidates[start : start + CHUNK] for start in range(0, len(candidates), CHUNK)]
    whole = _Read()
    for part in spread(functools.partial(_read_chunk, folder=folder, drawn=len(candidates) <= DRAWN), chunks, jobs):
        whole.add(part)
    whole.faults.extend(check(whole.records))
    if whole.faults:
        raise _Refused(whole)
    if not whole.records:
        raise UsageError(EMPTY)
    return whole


def _read_chunk(candidates: Sequence[Candidate], folder: Path, drawn: bool) -> _Read:
    read = _Read()
    made: set[str] = set()
    for candidate in candidates:
        path = candidate.path
        try:
            raw, record = store.take(candidate)
        except NoRecord:
            read.others.append(path)
            continue
        except InvalidRecord as error:
            read.faults.extend(Fault(path, *problem) for problem in error.problems)
            continue
        if wrong := store.faults_of(path, record):
            read.faults.extend(wrong)
            continue
        read.unchecked.update(store.unchecked(record))
        place = f"{folder}/record/{safe.task_slug(record.task)}"
        if place not in made:
            os.makedirs(place, exist_ok=True)
            made.add(place)
        page = f"{place}/{record.config_hash[:16]}"
        beside = None if outcomes.read(record) is None else outcomes.sidecar(path).read_bytes()
        written = {"html": record_page(record, drawn).encode(), "json": raw, "safetensors": beside}
        for kind, content in written.items():
            if content is not None:
                with open(f"{page}.{kind}", "wb", buffering=0) as stream:
                    stream.write(content)
        read.records.append((path, agree.slim(record)))
    return read


def _write_tasks(records: Iterable[Record], folder: Path, jobs: int) -> list[Task]:
    """The page and the data files of every task, in the order of their names."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.task].append(record)
    families = sorted({members[0].family for members in by_task.values()})
    work = [by_task[name] for name in sorted(by_task)]
    return list(spread(functools.partial(_write_task, folder=folder, families=families), work, jobs))


def _write_task(records: Sequence[Record], folder: Path, families: Sequence[str]) -> Task:
    task = task_of(records)
    task_page.write(task, folder, families)
    return task


def _write_assets(folder: Path) -> None:
    shutil.copytree(leaderboard() / "assets", folder / "assets")
