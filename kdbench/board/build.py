"""From records to a site: check all, write every page beside the old site, then take its place."""

from __future__ import annotations

import functools
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.board import pages, place, safe, task_page
from kdbench.board.model import Task, installed_card, task_of
from kdbench.board.overview import write_overviews
from kdbench.board.record_page import record_page
from kdbench.board.workers import processors, spread, without_collection
from kdbench.errors import UsageError
from kdbench.results import store
from kdbench.results.record import InvalidRecord, Record, loads
from kdbench.results.store import Fault

CHUNK = 250
"""Records that one process reads before it reports."""
ALONE = 1500
"""Records up to which one process is quicker than several."""
DRAWN = 20_000
"""Records up to which their pages have plots: those of more would take half of the time of a build."""


class Report(NamedTuple):
    """The outcome of a build: with problems, nothing was written."""

    records: int
    tasks: int
    pages: int
    problems: list[Fault]


class _Refused(Exception):
    def __init__(self, problems: list[Fault]) -> None:
        self.problems = problems


def build(paths: Iterable[Path], site: Path, jobs: int | None = None) -> Report:
    """Make the site of all records in ``paths`` and let it take the place of ``site``; same records, same bytes.

    Every record is checked alone and against the others; if one does not hold, nothing is written and the report lists
    all problems. Raises UsageError for paths without records, and where ``site`` holds something else.
    """
    place.refuse_foreign(site)
    found = store.files(paths)
    if not found:
        raise UsageError("There is no record in what was named; a run leaves record.json in its folder.")
    jobs = jobs or (1 if len(found) <= ALONE else processors())
    try:
        with place.replaced(site) as folder, without_collection():
            records = _read(found, folder, jobs)
            tasks = _write_tasks(records, folder, jobs)
            count = len(records) + len(tasks) + write_overviews(tasks, folder)
            _write_assets(folder)
    except _Refused as refused:
        return Report(len(found), 0, 0, refused.problems)
    return Report(len(found), len(tasks), count, [])


def check(records: Sequence[tuple[Path, Record]], trusted: Collection[Path] = ()) -> list[Fault]:
    """Faults across records: those of ``store.check``, and what would give two records one page."""
    faults = store.check(records, trusted)
    pages_of: dict[tuple[str, str], tuple[str, Path]] = {}
    for path, record in records:
        page = (record.task, record.config_hash[:16])
        known, first = pages_of.setdefault(page, (record.config_hash, path))
        if known != record.config_hash:
            faults.append(Fault(path, "config_hash", f"begins with the same 16 digits as that of {first}"))
        card = _card_family(record.task)
        if card is not None and record.family != card:
            faults.append(Fault(path, "family", f"{record.family!r}, but the card of {record.task} says '{card}'"))
    return faults


@functools.cache
def _card_family(task: str) -> str | None:
    card = installed_card(task)
    return card.family if card else None


def _read(found: Sequence[Path], folder: Path, jobs: int) -> list[Record]:
    """All records without what only their own pages show, which are written on the way."""
    chunks = [found[start : start + CHUNK] for start in range(0, len(found), CHUNK)]
    records: list[tuple[Path, Record]] = []
    faults: list[Fault] = []
    read = functools.partial(_read_chunk, folder=folder, drawn=len(found) <= DRAWN)
    for some, wrong in spread(read, chunks, jobs):
        records += some
        faults += wrong
    faults += check(records)
    if faults:
        raise _Refused(faults)
    return [record for _, record in records]


def _read_chunk(paths: Sequence[Path], folder: Path, drawn: bool) -> tuple[list[tuple[Path, Record]], list[Fault]]:
    records: list[tuple[Path, Record]] = []
    faults: list[Fault] = []
    made: set[str] = set()
    for path in paths:
        try:
            raw = path.read_bytes()
            record = loads(raw, path)
        except InvalidRecord as error:
            faults += [Fault(path, *problem) for problem in error.problems]
            continue
        place = f"{folder}/record/{safe.task_slug(record.task)}"
        if place not in made:
            os.makedirs(place, exist_ok=True)
            made.add(place)
        page = f"{place}/{record.config_hash[:16]}"
        with open(f"{page}.html", "wb", buffering=0) as stream:
            stream.write(record_page(record, drawn).encode())
        _put_json(path, raw, f"{page}.json")
        records.append((path, _slim(record)))
    return records, faults


def _put_json(source: Path, raw: bytes, target: str) -> None:
    """The record's bytes: the same file under a second name where that can be, which saves half of all writing.

    Records are replaced and never written into, so the second name keeps these bytes.
    """
    try:
        if source.stat().st_mode & 0o444 == 0o444:  # what only its owner may read could not be published
            os.link(source, target)
            return
    except OSError:  # another file system, or one without links
        pass
    with open(target, "wb", buffering=0) as stream:
        stream.write(raw)


def _slim(record: Record) -> Record:
    """What comparisons need of a record: a third of it to send and to keep."""
    config = {name: record.config[name] for name in ("method", "student", "teacher")}
    unused: dict[str, Any] = {"curves": {}, "confusion": None, "versions": {}, "notes": [], "stages": []}
    return record.model_copy(update={"config": config, **unused})


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
    shutil.copytree(pages.sources() / "assets", folder / "assets")
