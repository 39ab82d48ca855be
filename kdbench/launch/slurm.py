"""A sweep on a SLURM cluster, through submitit: one array for each resource shape, shared stages before the runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from kdbench.errors import DamagedError, KdbenchError, MissingExtraError, StoppedError, UsageError
from kdbench.hashing import write_atomic
from kdbench.launch.job import execute, journalled, on_signal, prepare
from kdbench.launch.states import Journal, state_path
from kdbench.launch.sweep import Run, Slurm, Sweep, shared
from kdbench.plan.family import SLURM

PREPARATION = "preparation"
_INHERITED = re.compile(
    r"SLURM_(?!CONF$|CLUSTERS$)|SLURMD_|SRUN_|SUBMITIT_|SBATCH_(CPU|MEM)_BIND|PMIX?_|TORCHELASTIC_"
    r"|((GROUP|ROLE|LOCAL|NODE)_)?RANK$|(LOCAL_)?WORLD_SIZE$"
)
LAST_WAIT = 3600.0  # seconds; longer than the grace time of most partitions

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A task that was submitted: its SLURM id, and the hash of its run or ``preparation``."""

    id: str
    run: str

    @property
    def log(self) -> str:
        """Its log below the sweep's folder."""
        return f"slurm/{self.id}_0_log.out"


class _Task(ABC):
    """What an array task does; submitit pickles it and calls it on the node.

    Told by a signal that its time is up, it ends the epoch, checkpoints and is queued again.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def __call__(self, work: Any) -> None:
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's own handler: it queues the task again and exits
        late: list[bool] = []
        on_signal(signal.SIGUSR2, lambda: late.append(True))
        on_signal(signal.SIGTERM)  # preemption or cancellation: SLURM decides what comes after
        try:
            self.do(work)
        except StoppedError:
            if not late:
                time.sleep(LAST_WAIT)  # SLURM queues a preempted job again only if it is there to be killed
                raise
            assert callable(requeue)
            requeue(signal.SIGUSR2, None)

    @abstractmethod
    def do(self, work: Any) -> None:
        """The work itself. Raises :class:`StoppedError` once it was told to stop."""

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit queues again after the time limit: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class _Runs(_Task):
    """Does one run."""

    def do(self, work: Mapping[str, Any]) -> None:
        from submitit import JobEnvironment

        from kdbench.engine import runner

        job, run = JobEnvironment().job_id, Run(**work)
        if runner.is_first(run.nodes * run.processes):
            journalled(run, self.root, Journal(state_path(self.folder, run.hash), Job(job, "").log, job))
        else:
            execute(run, self.root, runner.Silent())


class _Preparations(_Task):
    """Does what runs share."""

    def do(self, work: Sequence[Mapping[str, Any]]) -> None:
        prepare([Run(**run) for run in work], self.root)


def submit(sweep: Sweep, runs: Sequence[Run], note: Callable[[str], None]) -> list[Job]:
    """Submit the runs, and before them what they share; ``told`` hears of each array.

    Runs wait for the end of what they share, however it ends: a run whose teacher failed tells the reason itself.
    """
    require()
    largest = max_array_size()
    jobs: list[Job] = []
    for shape in dict.fromkeys(map(_shape, runs)):
        members = [run for run in runs if _shape(run) == shape]
        before: list[str] = []
        for chunk in _chunks(shared(members), largest):
            work = [[asdict(run) for run in group] for group in chunk]
            ids = _array(sweep, shape, _Preparations, work, before=())
            before += sorted({_array_of(job) for job in ids})
            jobs += _remember(sweep, [Job(job, PREPARATION) for job in ids])
            note(f"{_named(ids)}: {len(ids)} preparations")
        for runs_of_array in _chunks(members, largest):
            ids = _array(sweep, shape, _Runs, [asdict(run) for run in runs_of_array], before)
            jobs += _remember(sweep, [Job(job, run.hash) for job, run in zip(ids, runs_of_array, strict=True)])
            note(f"{_named(ids)}: {len(ids)} runs")
    return jobs


def _shape(run: Run) -> tuple[int, int, bool]:
    return run.nodes, run.processes, run.gpu


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _named(ids: Sequence[str]) -> str:
    return f"job {_array_of(ids[0])}"


def _array_of(job: str) -> str:
    return job.partition("_")[0]


def _array(
    sweep: Sweep, shape: tuple[int, int, bool], task: type[_Task], work: Sequence[Any], before: Sequence[str]
) -> list[str]:
    """Submit one array; the ids of its tasks."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(sweep.folder / "slurm", max_num_timeout=sweep.slurm.requeues, python=sweep.slurm.python)
    executor.update_parameters(**parameters(sweep.name, sweep.slurm, shape, before))
    try:
        with _outside_of_jobs():
            jobs = executor.map_array(task(sweep.root.resolve(), sweep.folder.resolve()), work)
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise KdbenchError(f"SLURM did not take the jobs: {error}") from error
    return [str(job.job_id) for job in jobs]


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide what a job that we are in tells of itself: sbatch would hand it on to the new jobs, as if it were theirs."""
    kept = {name: value for name, value in os.environ.items() if not _INHERITED.match(name)}
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(kept)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check(asked: Slurm, runs: Iterable[Run]) -> None:
    """Raise :class:`UsageError` for runs that cannot do with what they would get."""
    most = max((run.threads for run in runs), default=1)
    if most > asked.cpus:
        raise UsageError(
            f"trainer.threads={most} is more than slurm.cpus={asked.cpus}: a job computes with the cores it is given."
        )


def parameters(name: str, asked: Slurm, shape: tuple[int, int, bool], before: Sequence[str] = ()) -> dict[str, Any]:
    """What submitit is told of an array, in the names of sbatch's options."""
    nodes, processes, gpu = shape
    own_memory = any(key.replace("_", "-") in ("mem", "mem-per-cpu", "mem-per-gpu") for key in asked.sbatch)
    optional = {
        "mem": None if own_memory else asked.memory,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "gpus_per_node": asked.gpus or (processes if gpu else None),
        "setup": list(asked.setup) or None,
        "dependency": f"afterany:{':'.join(before)}" if before else None,
    }
    return {
        "job_name": f"kdbench-{name}",
        "time": asked.time,
        "nodes": nodes,
        "ntasks_per_node": processes,
        "cpus_per_task": asked.cpus,
        "signal_delay_s": asked.signal,
        "array_parallelism": asked.throttle,
        "wckey": "kdbench",
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **asked.sbatch},
        **{key: value for key, value in optional.items() if value is not None},
    }


def _remember(sweep: Sweep, jobs: list[Job]) -> list[Job]:
    path = sweep.folder / "jobs.json"
    with FileLock(sweep.folder / "jobs.lock"):
        try:
            known = submitted(sweep)
        except DamagedError:
            path.replace(path.with_suffix(".damaged"))
            known = []
        write_atomic(path, json.dumps([[job.id, job.run] for job in [*known, *jobs]]))
    return jobs


def submitted(sweep: Sweep) -> list[Job]:
    """Every task that was ever submitted for a sweep, oldest first. Raises :class:`DamagedError`."""
    path = sweep.folder / "jobs.json"
    try:
        return [Job(str(job), str(run)) for job, run in json.loads(path.read_text())] if path.exists() else []
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(path, error) from None


def require() -> None:
    """Raise :class:`UsageError` where SLURM's or submitit's commands are missing."""
    for command in ("sbatch", "squeue", "scontrol", "srun"):
        if shutil.which(command) is None:
            raise UsageError(f"launcher=slurm needs the command '{command}', which is not here. Use launcher=local.")
    if SLURM.missing():
        raise MissingExtraError("launcher=slurm needs 'submitit'. Run: pip install 'kdbench[slurm]'")


def _answer(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise KdbenchError(f"'{' '.join(words[:2])}' failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def max_array_size() -> int:
    """Most tasks of one array: the cluster's ``MaxArraySize``."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _answer("scontrol", "show", "config"))
    if match is None:
        raise KdbenchError("'scontrol show config' tells no MaxArraySize.")
    return int(match[1])


def queue() -> dict[str, tuple[str, str]]:
    """The user's tasks in SLURM's queue: id -> its state and reason."""
    lines = _answer("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r").splitlines()
    jobs = (line.strip().split("|", 2) for line in lines if line.strip())
    return {job: (state, reason) for job, state, reason in jobs}


def fate(job: str) -> str:
    """What SLURM still knows of a task that left the queue, in words."""
    done = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, timeout=60)
    state = re.search(r"JobState=(\S+)", done.stdout)
    return f"SLURM says {state[1]}" if done.returncode == 0 and state else "SLURM no longer knows the job"


def cancel(jobs: Iterable[Job]) -> list[str]:
    """Cancel those tasks that are still queued or at work; their ids."""
    active = queue()
    ids = [job.id for job in jobs if job.id in active]
    for chunk in _chunks(ids, 500):
        _answer("scancel", *chunk)
    return ids
