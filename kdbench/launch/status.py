"""Where the runs of a sweep stand: from their records, their state files, and what SLURM or this machine says."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import DamagedError
from kdbench.launch import slurm, states
from kdbench.launch.states import State
from kdbench.launch.sweep import Run, Sweep
from kdbench.plan.config import run_folder
from kdbench.results.finished import stale
from kdbench.results.record import InvalidRecord

PHASES = ("pending", "running", "done", "failed", "lost")
AT_WORK = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED")


@dataclass(frozen=True)
class RunStatus:
    """One run: its phase, and what there is to say of it."""

    hash: str
    command: str
    phase: str
    """One of :data:`PHASES`."""
    detail: str
    active: bool
    """Whether it is queued or at work."""
    job: str | None = None
    log: str | None = None
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def counts(statuses: Iterable[RunStatus]) -> dict[str, int]:
    """How many runs are in each phase that there is one in."""
    phases = [one.phase for one in statuses]
    return {phase: phases.count(phase) for phase in PHASES if phase in phases}


def log_files(sweeps: Iterable[Sweep], beginning: str) -> list[tuple[str, Path]]:
    """Hash and newest log of every run of these sweeps whose hash begins so."""
    files = []
    for sweep in sweeps:
        jobs = _jobs(sweep)[0]
        for key, run in sweep.runs.items():
            if key.startswith(beginning):
                log = log_of(sweep, _state(sweep, run)[0], jobs.get(key))
                files += [(key, Path(log))] if log else []
    return files


def outdated(root: Path, run: Run) -> str | None:
    """Why a finished run is to be done again: its record is damaged or stale. None where it is neither."""
    try:
        record = states.record_of(root, run)
    except InvalidRecord as error:
        return error.short
    why = stale(record, run.config(), run_folder(root, run)) if record else ["its record is gone"]
    return f"{run.command}: its record is stale, since {'; '.join(why)}." if why else None


def statuses(sweep: Sweep) -> list[RunStatus]:
    """Every run of a sweep, in its order."""
    return list(_statuses(sweep))


def _statuses(sweep: Sweep) -> Iterator[RunStatus]:
    jobs, damage = _jobs(sweep)
    active = slurm.queue() if jobs else {}
    for run in sweep.runs.values():
        state, damaged = _state(sweep, run)
        job = jobs.get(run.hash)
        phase, detail, at_work = _phase(sweep, run, state, job.id if job else None, active, damaged or damage)
        yield RunStatus(
            run.hash,
            run.command,
            phase,
            detail,
            at_work,
            job.id if job else None,
            log_of(sweep, state, job),
            state.epoch if state else 0,
            (state.epochs if state else 0) or run.epochs,
            state.value if state else None,
            state.updated - state.started if state else None,
        )


def _jobs(sweep: Sweep) -> tuple[dict[str, slurm.Job], str]:
    """The newest job of each run, or in words that their file is damaged."""
    try:
        return {job.run: job for job in slurm.submitted(sweep)}, ""
    except DamagedError as error:
        return {}, str(error)


def _state(sweep: Sweep, run: Run) -> tuple[State | None, str]:
    """What its file tells of a run, or in words that the file is damaged."""
    try:
        return states.read(states.state_path(sweep.folder, run.hash)), ""
    except DamagedError as error:
        return None, str(error)


def log_of(sweep: Sweep, state: State | None, job: slurm.Job | None) -> str | None:
    """The newest log of a run."""
    logs = [job.log] if job else []
    logs += [state.log] if state else []
    return next((str(sweep.folder / log) for log in logs if (sweep.folder / log).exists()), None)


def _phase(
    sweep: Sweep, run: Run, state: State | None, job: str | None, queue: Mapping[str, tuple[str, str]], damage: str
) -> tuple[str, str, bool]:
    """Phase, detail, and whether it is queued or at work; ``damage`` tells of a file that would have said more."""
    if (ended := _ended(sweep.root, run, state)) is not None:
        return *ended, False
    if job is not None and job in queue:
        queued, reason = queue[job]
        if queued in AT_WORK:
            return "running", _progress(state, "starting"), True
        again = f"stopped after epoch {state.epoch}, " if state and state.phase == "stopped" else ""
        return "pending", f"{again}{queued.lower()}: {reason}", True
    if states.busy(sweep.root, run):
        return "running", _progress(state, "started by another command"), True
    if state is not None and state.phase == "failed":
        return "failed", state.reason, False
    if damage:
        return "lost", f"{damage} 'kdbench retry {sweep.name}' starts the run again", False
    if state is None and job is None:
        return "pending", "not started", False
    at = f" at epoch {state.epoch}" if state and state.epoch else ""
    why = "stopped" if state and state.phase == "stopped" else slurm.fate(job) if job else "its process is gone"
    return "lost", f"{why}{at}; 'kdbench retry {sweep.name}' goes on from the last checkpoint", False


def _ended(root: Path, run: Run, state: State | None) -> tuple[str, str] | None:
    """The phase of a run with a record, unless it is at work on another."""
    path = run_folder(root, run) / "record.json"
    if not path.exists():
        return None
    if state is not None and state.phase == "done" and path.stat().st_mtime <= state.updated:
        return "done", ""  # it was whole when the run ended: reading it would take milliseconds
    try:
        record = states.record_of(root, run)
    except InvalidRecord as error:
        again = state is not None and state.phase in ("running", "stopped")
        return None if again else ("lost", f"{error.short} 'kdbench retry' does the run again")
    if record is None or record.status == "done":
        return "done", ""
    if state is not None and state.phase in ("running", "stopped"):
        return None  # it is being done again
    return "failed", record.failure.reason if record.failure else ""


def _progress(state: State | None, otherwise: str) -> str:
    if state is None or state.phase != "running":
        return otherwise
    if state.stage:
        return f"stage {state.stage}"
    score = "" if state.value is None else f", val {state.value:.4f}"
    ago = time.time() - state.updated
    silent = f", silent for {ago / 60:.0f} min" if ago > 120 else ""
    return f"epoch {state.epoch}/{state.epochs}{score}{silent}"
