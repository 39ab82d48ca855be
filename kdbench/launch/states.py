"""What becomes of each run of a sweep: written by the process that does it, read by ``status``.

A finished run's record is what counts; a state file tells of the way there, and of runs that left no record.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import DamagedError
from kdbench.hashing import write_atomic
from kdbench.plan.config import NamedRun, run_folder
from kdbench.results.record import Record, loads

INTERVAL = 1.0  # seconds between two writes of a state that only progressed


@dataclass(frozen=True)
class State:
    """How far a run is. ``phase``: running, stopped (with a checkpoint, to be gone on with), done, failed."""

    phase: str
    log: str
    """Path of the log below the sweep's folder."""
    job: str | None = None
    """SLURM job, ``ARRAY_TASK``; None on this machine."""
    host: str = ""
    pid: int = 0
    attempt: int = 1
    started: float = 0.0
    updated: float = 0.0
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    """Newest validation score."""
    reason: str = ""
    """Why it failed."""


def state_path(folder: Path, key: str) -> Path:
    """The state file of a run in a sweep's folder."""
    return folder / "states" / f"{key[:16]}.json"


def read(path: Path) -> State | None:
    """The state in a file; None where there is none. Raises :class:`DamagedError`."""
    try:
        return State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(path, error) from None


def _before(path: Path) -> int:
    """Attempts before this one; of a damaged file 0."""
    try:
        state = read(path)
    except DamagedError:
        return 0
    return state.attempt if state else 0


class Journal:
    """Keeps one run's state file; the engine's reporter of a run that no terminal watches."""

    def __init__(self, path: Path, log: str, job: str | None = None) -> None:
        now, attempt = time.time(), _before(path) + 1
        self.path, self._written = path, 0.0
        self.state = State("running", log, job, socket.gethostname(), os.getpid(), attempt, now, now)
        self._write()

    def stage(self, name: str) -> None:
        """A stage of the run begins."""
        print(f"stage {name}", flush=True)
        self._save(stage=name)

    def epoch(self, done: int, total: int, value: float | None) -> None:
        """An epoch of the student's training is done."""
        score = "" if value is None else f", val {value:.4f}"
        print(f"epoch {done}/{total}{score}", flush=True)
        self._save(stage="", epoch=done, epochs=total, value=value)

    def note(self, text: str) -> None:
        """Something the user should know."""
        print(text, flush=True)

    def end(self, phase: str, reason: str = "") -> None:
        """The run is over, or stopped."""
        print(f"{phase}: {reason}" if reason else phase, flush=True)
        self.state = replace(self.state, phase=phase, reason=reason)
        self._write()

    def _save(self, **changes: str | float | None) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        if time.monotonic() - self._written > INTERVAL:
            with suppress(OSError):  # of a full disk the checkpoint and the record tell
                self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self.state = replace(self.state, updated=time.time())
        write_atomic(self.path, json.dumps(asdict(self.state)))


def record_of(root: Path, run: NamedRun) -> Record | None:
    """The run's record, of whatever status; None where there is none."""
    path = run_folder(root, run) / "record.json"
    return loads(path.read_bytes(), path) if path.exists() else None


def busy(root: Path, run: NamedRun) -> bool:
    """Whether a process of this machine is at the run: it holds the lock of the run folder."""
    path = run_folder(root, run) / "lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except FileNotFoundError:  # the run came to nothing
        return False
    except Timeout:
        return True
