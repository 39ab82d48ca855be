"""Stages: pieces of work with a content address, done once and shared by every run that needs them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdbench.errors import StaleCacheError
from kdbench.hashing import digest, file_digest, write_atomic
from kdbench.plan.provenance import closure_digest


@dataclass(frozen=True)
class StageResult:
    """A finished stage: where its files are, what it reported, and what it cost when it was done."""

    name: str
    key: str
    folder: Path
    info: Mapping[str, Any]
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Stage:
    """One piece of work. Its address is the SHA-256 of its name, inputs, code and upstream addresses."""

    name: str
    inputs: Mapping[str, Any]
    """JSON values that the result depends on (options, seeds, data fingerprint)."""
    run: Callable[[Path, Mapping[str, StageResult]], Mapping[str, Any]]
    """Does the work in the given folder, from the upstream results, and returns JSON values to report.

    The folder may hold what a killed attempt left; go on from it where that is exact, else overwrite it.
    """
    code: Sequence[str] = ()
    """Modules beside ``run``'s own that the work is done by; with all that they import they are its code."""
    needs: tuple[str, ...] = ()
    """Names of upstream stages."""

    def key(self, upstream: Mapping[str, StageResult]) -> str:
        """The content address."""
        keys = {name: upstream[name].key for name in self.needs}
        code = closure_digest((self.run.__module__, *self.code))
        return digest({"name": self.name, "inputs": dict(self.inputs), "code": code, "needs": keys})


def _silent(text: str) -> None:
    """Tells nobody."""


@dataclass
class StageStore:
    """Finished stages under one folder, each in ``<root>/<name>-<key>``; ``note`` hears what the user should know."""

    root: Path
    note: Callable[[str], None] = _silent
    results: dict[str, StageResult] = field(default_factory=dict)

    def ensure(self, stage: Stage) -> StageResult:
        """The result of ``stage``, doing the work unless it is done; a lock makes parallel runs wait for one worker.

        A stage whose files are not those that it left is done again.
        """
        key = stage.key(self.results)
        folder = self.root / f"{stage.name}-{key[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            done = folder / "stage.json"
            entry = self._finished(folder, key)
            reused = entry is not None
            if entry is None:
                started = time.perf_counter()
                info = dict(stage.run(folder, self.results))
                seconds = time.perf_counter() - started
                entry = {"key": key, "info": info, "seconds": seconds, "files": _kept(folder)}
                write_atomic(done, json.dumps({**entry, "digest": digest(entry)}, indent=1))
        result = StageResult(stage.name, key, folder, entry["info"], entry["seconds"], reused)
        self.results[stage.name] = result
        return result

    def _finished(self, folder: Path, key: str) -> dict[str, Any] | None:
        """What a finished stage left word of; None where there is none, or its files are not what they were."""
        done = folder / "stage.json"
        if not done.exists():
            return None
        try:
            entry: dict[str, Any] = json.loads(done.read_bytes())
            sound = entry.pop("digest") == digest(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            sound, entry = False, {"key": key}
        damaged = [] if sound else [done.name]
        for name, wanted in entry["files"].items() if sound else ():
            if not (folder / name).is_file() or file_digest(folder / name) != wanted:
                damaged.append(name)
        if entry["key"] != key:
            raise StaleCacheError(f"The stage in {folder} has another address; delete the folder to do it again.")
        if not damaged:
            return entry
        self.note(f"{folder / damaged[0]} is damaged: its content is not what the stage left. Doing the stage again.")
        for name in (done.name, *damaged):
            (folder / name).unlink(missing_ok=True)
        return None


def _kept(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a stage by path below its folder, each on the disk before the stage counts as done."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in ("lock", "stage.json", "last.ckpt"):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            digests[name] = file_digest(path)
    return digests
