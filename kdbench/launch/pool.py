"""Runs on this machine, several at a time: worker processes; one that dies takes a single run with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from filelock import FileLock, Timeout

from kdbench.errors import UsageError
from kdbench.launch.display import Bars
from kdbench.launch.endings import Ending
from kdbench.launch.states import busy
from kdbench.launch.sweep import Local, Run

GRACE = 30.0  # seconds that a worker has to end its epoch when it is told to stop
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Ended = Callable[[Run, Ending, int], None]


class _Worker:
    """A process that does runs; started with the first, and again after it died or for other threads."""

    def __init__(self, root: Path, folder: Path | None) -> None:
        self.places = [str(place) for place in (root, folder) if place is not None]
        self.process: subprocess.Popen[str] | None = None
        self.threads = 0

    def do(self, run: Run, hear: Callable[[dict[str, Any]], None]) -> Ending:
        """Do a run; ``hear`` is told what the worker says meanwhile.

        Raises ChildProcessError when the process died, or does not start.
        """
        if self.process is not None and self.threads != run.threads:
            self.end()
        if self.process is None or self.process.poll() is not None:
            self.process, self.threads = self._start(run.threads), run.threads
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError, ValueError):  # it died, or is being ended
            self.process.stdin.write(json.dumps(asdict(run)) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if not line.endswith("\n"):  # it was killed as it spoke
                break
            said: dict[str, Any] = json.loads(line)
            if "ended" in said:
                return Ending(**said["ended"])
            hear(said)
        code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise ChildProcessError(f"its process ended {how}")

    def _start(self, threads: int) -> subprocess.Popen[str]:
        """A process that finds modules where this one does, and that a terminal's Ctrl-C does not reach."""
        places = os.pathsep.join(place or os.getcwd() for place in sys.path)
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "kdbench.launch.job", *self.places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
                env={
                    "OMP_WAIT_POLICY": "PASSIVE",
                    **os.environ,
                    **dict.fromkeys(THREADS, str(threads)),
                    "PYTHONPATH": places,
                },
            )
        except OSError as error:
            raise ChildProcessError(f"its process does not start: {error.strerror}") from error

    def tell_to_stop(self) -> None:
        """Ask the process to end what it trains after its epoch."""
        if self.process is not None:
            self.process.terminate()

    def end(self) -> None:
        """Wait for an idle process to end; one that does not in time is killed."""
        if self.process is None:
            return
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Queue:
    """The runs to do, in order. Workers take from it side by side."""

    def __init__(self, root: Path, runs: Iterable[Run], retries: int) -> None:
        self.root, self.retries = root, retries
        self.waiting = list(runs)
        self.preparing: dict[str, str] = {}
        """Pairing of each run at work that has not begun to train: it may be making what its pairing shares."""
        self.deaths: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def take(self) -> Run | None:
        """The next run, or None at the end.

        A run comes later while another of its pairing makes what they share, for which it would only wait, and last of
        all while another process is at it.
        """
        with self._lock:
            if self._stopped or not self.waiting:
                return None
            held = set(self.preparing.values())
            free = (run for run in self.waiting if run.pairing not in held and not busy(self.root, run))
            held_up = (run for run in self.waiting if run.pairing in held and not busy(self.root, run))
            run = next(free, None) or next(held_up, None) or self.waiting[0]
            self.waiting.remove(run)
            self.preparing[run.hash] = run.pairing
            return run

    def training(self, run: Run) -> None:
        """A run trains or is over: what it shares is made."""
        with self._lock:
            self.preparing.pop(run.hash, None)

    def again(self, run: Run) -> bool:
        """Queue a run whose process died, unless that happened too often."""
        with self._lock:
            self.preparing.pop(run.hash, None)
            self.deaths[run.hash] = self.deaths.get(run.hash, 0) + 1
            if self.deaths[run.hash] > self.retries:
                return False
            self.waiting.append(run)
            return True

    def stop(self) -> None:
        """Give out no more runs."""
        with self._lock:
            self._stopped = True


def check(runs: Iterable[Run]) -> None:
    """Raise :class:`UsageError` for runs of several processes: those start each other by the command line of a run."""
    if several := next((run for run in runs if run.nodes * run.processes > 1), None):
        words = several.command.removeprefix("kdbench run ")
        raise UsageError(
            f"launcher=local does runs of one process, not '{words}'. 'kdbench run' does it, or launcher=slurm."
        )


def launch(root: Path, runs: Iterable[Run], local: Local, bars: Bars, ended: Ended, folder: Path | None = None) -> None:
    """Do the runs; ``ended`` hears how each ended, and which worker did it.

    State files and logs go to the ``folder`` of a sweep; without one, what runs print goes to standard error.

    Ctrl-C stops them with checkpoints; so does a full disk, with which no run gets further, and that is raised.
    A run whose process died is started again ``local.retries`` times.
    """
    queue = _Queue(root, runs, local.retries)
    calls: Queue[Callable[[], None] | None] = Queue()  # what the workers' threads have for this one

    def hear(number: int, run: Run, said: dict[str, Any]) -> None:
        if "epoch" in said:
            queue.training(run)
            done, total, value = said["epoch"]
            calls.put(partial(bars.epoch, done, total, value, number))
        elif "stage" in said:
            calls.put(partial(bars.stage, said["stage"], number))
        else:
            calls.put(partial(bars.note, said["note"]))

    def work_off(number: int, worker: _Worker) -> None:
        while (run := queue.take()) is not None:
            calls.put(partial(bars.begin, run, number))
            try:
                ending = worker.do(run, partial(hear, number, run))
            except ChildProcessError as died:
                if queue.again(run):
                    continue
                ending = Ending(reason=f"lost: {died}")
            queue.training(run)
            calls.put(partial(_end, ended, run, ending, number))

    def work(number: int, worker: _Worker) -> None:
        try:
            work_off(number, worker)
        except BaseException as error:
            calls.put(partial(_raise, error))
        calls.put(None)

    crew = [_Worker(root, folder) for _ in range(min(local.workers, len(queue.waiting)))]
    for number, worker in enumerate(crew):
        threading.Thread(target=work, args=(number, worker), daemon=True).start()
    try:
        left = len(crew)
        while left:
            tell = calls.get()
            if tell is None:
                left -= 1
            else:
                tell()
    except BaseException as error:
        queue.stop()
        if isinstance(error, KeyboardInterrupt):
            bars.note("Stopping: each run ends its epoch and writes a checkpoint.")
        for worker in crew:
            worker.tell_to_stop()
        raise
    finally:
        for worker in crew:
            worker.end()


def _raise(error: BaseException) -> None:
    raise error


def _end(ended: Ended, run: Run, ending: Ending, worker: int) -> None:
    ending.check_disk()
    ended(run, ending, worker)


@contextmanager
def announced(folder: Path) -> Iterator[None]:
    """Let other commands know by a lock in the sweep's folder that this process is at it."""
    mine = folder / "processes" / f"{socket.gethostname()}-{os.getpid()}.lock"
    mine.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(mine):
        yield
    mine.unlink(missing_ok=True)


def at_work(folder: Path) -> list[int]:
    """The processes of this machine that are at a sweep, by their numbers."""
    processes = []
    for path in (folder / "processes").glob(f"{socket.gethostname()}-*.lock"):
        try:
            with FileLock(path, timeout=0):
                path.unlink()  # its process is gone
        except Timeout:
            processes.append(int(path.stem.rpartition("-")[2]))
    return processes


def stop(folder: Path) -> list[int]:
    """Tell them to stop, as Ctrl-C would; their numbers."""
    processes = at_work(folder)
    for process in processes:
        os.kill(process, signal.SIGINT)
    return processes
