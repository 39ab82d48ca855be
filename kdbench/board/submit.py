"""A contribution: records checked alone, against each other and against the published ones, and where they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdbench.board import safe
from kdbench.board.build import EMPTY, check
from kdbench.errors import UsageError
from kdbench.results import store
from kdbench.results.agree import Fault
from kdbench.results.compare import Comparison, compare
from kdbench.results.record import Record


class Submission(NamedTuple):
    """What a contribution comes to. With problems there are no places; ``known`` counts what is published already.

    ``fresh`` are the new records where they are, ``places`` where they go.
    """

    fresh: list[tuple[Path, Record]]
    places: list[tuple[Path, Record]]
    known: int
    problems: list[Fault]
    notes: list[str]
    comparisons: list[Comparison]

    def with_problems(self, problems: list[Fault]) -> Submission:
        """The same, refused where there are problems."""
        return Submission([], [], 0, problems, self.notes, []) if problems else self


def prepare(paths: Iterable[Path], published: Path) -> Submission:
    """Check records and compare them with the published ones; nothing is written.

    A record of a run that is published already is a problem, unless both are the same document. Among records that must
    share data, split, teacher and seeds, the published ones are right. Raises UsageError for paths without records.
    """
    mine = store.load(store.files(paths))
    if not mine.records and not mine.faults:
        raise UsageError(EMPTY)
    standing = store.load(store.files([published]) if published.exists() else [])
    there, faults = standing.records, [*standing.faults, *mine.faults]
    known = {record.config_hash: (path, record) for path, record in there}
    fresh: list[tuple[Path, Record]] = []
    for path, record in mine.records:
        place, other = known.setdefault(record.config_hash, (path, record))
        if other is record:
            fresh.append((path, record))
        elif other.digest != record.digest:
            faults.append(Fault(path, "config_hash", f"this run is there already with another outcome: {place}"))
    faults += check([*there, *fresh], frozenset(path for path, _ in there))
    places = [(published / place_of(record), record) for _, record in fresh]
    faults += [Fault(path, "config_hash", "another file is there") for path, _ in places if path.exists()]
    if faults:
        return Submission([], [], 0, faults, [f"{path} is no record" for path in mine.others], [])
    groups = {record.group for _, record in fresh}
    stand = [record for _, record in (*there, *fresh) if record.group in groups]
    notes = [*_notes(fresh), *(f"{path} is no record" for path in mine.others)]
    return Submission(fresh, places, len(mine.records) - len(fresh), [], notes, compare(stand))


def write(submission: Submission) -> list[Path]:
    """Write the records and their outcomes to their published places; those places."""
    for path, record in submission.places:
        store.write(record, path)
    return [path for path, _ in submission.places]


def place_of(record: Record) -> Path:
    """``TASK/METHOD/HASH16.json``, each part of it a plain name whatever the record says."""
    parts = record.task.split("/")
    plain = all(safe.slug(part) == part for part in parts)
    task = Path(*parts) if plain else Path(safe.task_slug(record.task))
    return task / safe.slug(record.method) / f"{record.config_hash[:16]}.json"


def _notes(records: Sequence[tuple[Path, Record]]) -> list[str]:
    """What a reviewer will ask about."""
    counted = {
        "of failed runs; they are shown as failed": sum(record.status == "failed" for _, record in records),
        "made from sources with changes that no commit holds": sum(bool(record.git.dirty) for _, record in records),
        "made outside a checkout, so from sources that nothing names": sum(r.git.commit is None for _, r in records),
    }
    notes = [f"{count} of {len(records)} records {what}" for what, count in counted.items() if count]
    unchecked = Counter(why for _, record in records for why in store.unchecked(record))
    return notes + [
        f"{count} of {len(records)} records were not checked in all: {why}" for why, count in unchecked.items()
    ]
