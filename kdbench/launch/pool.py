"""A sweep on this machine: worker processes that do one run after another; one that dies takes a single run with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any

from filelock import FileLock, Timeout

from kdbench.errors import DISK_FULL
from kdbench.launch.states import busy
from kdbench.launch.sweep import Run, Sweep

GRACE = 30.0  # seconds that a worker has to end its epoch when it is told to stop

Ended = Callable[[Run, str | None], None]


class _Worker:
    """A process that does runs; started with the first, and again after it died."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.process: subprocess.Popen[str] | None = None

    def do(self, run: Run) -> str | None:
        """Do a run; why it failed, or None.

        Raises ChildProcessError when the process died, and OSError when the disk is full.
        """
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asdict(run)) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise ChildProcessError(f"its process ended {how}")
        said: dict[str, Any] = json.loads(answer)
        if said["error"] in DISK_FULL:
            raise OSError(said["error"], said["reason"])
        reason: str | None = said["reason"]
        return reason

    def _start(self) -> subprocess.Popen[str]:
        local = self.sweep.local
        threads = local.threads or max(1, len(os.sched_getaffinity(0)) // local.workers)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        given = {} if not local.threads and "OMP_NUM_THREADS" in os.environ else dict.fromkeys(names, str(threads))
        command = [sys.executable, "-m", "kdbench.launch.job", str(self.sweep.root), str(self.sweep.folder)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **given},
        )

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


def launch(sweep: Sweep, runs: Iterable[Run], ended: Ended) -> None:
    """Do the runs; ``ended`` hears of each, with the reason of a failure.

    Ctrl-C stops them with checkpoints; so does a full disk, with which no run gets further, and that is raised.
    A run whose process died is started again ``local.retries`` times. Runs that another process is at come last.
    """
    mine = sweep.folder / "processes" / f"{socket.gethostname()}-{os.getpid()}.lock"
    mine.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(mine):
        _work_off(sweep, deque(runs), ended)
    mine.unlink(missing_ok=True)


def _work_off(sweep: Sweep, waiting: deque[Run], ended: Ended) -> None:
    deaths: dict[str, int] = {}
    lock, answers = threading.Lock(), Queue[tuple[Run, str | None] | OSError | None]()
    stopping = threading.Event()

    def take() -> Run | None:
        with lock:
            for _ in range(len(waiting)):
                if not busy(sweep.root, waiting[0]):
                    break
                waiting.rotate(-1)
            return waiting.popleft() if waiting and not stopping.is_set() else None

    def work(worker: _Worker) -> None:
        while (run := take()) is not None:
            try:
                answers.put((run, worker.do(run)))
            except ChildProcessError as died:
                deaths[run.hash] = deaths.get(run.hash, 0) + 1
                if deaths[run.hash] <= sweep.local.retries:
                    with lock:
                        waiting.append(run)
                else:
                    answers.put((run, f"lost: {died}"))
            except OSError as full:
                answers.put(full)
                return
        answers.put(None)

    workers = [_Worker(sweep) for _ in range(min(sweep.local.workers, len(waiting)))]
    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            answer = answers.get()
            if answer is None:
                left -= 1
            elif isinstance(answer, OSError):
                raise answer
            else:
                ended(*answer)
    except BaseException:
        stopping.set()
        for worker in workers:
            worker.tell_to_stop()
        for worker in workers:
            worker.end()
        raise
    for worker in workers:
        worker.end()


def at_work(folder: Path) -> list[int]:
    """The processes of this machine that are at a sweep, by their numbers."""
    found = []
    for path in (folder / "processes").glob(f"{socket.gethostname()}-*.lock"):
        try:
            with FileLock(path, timeout=0):
                path.unlink()  # its process is gone
        except Timeout:
            found.append(int(path.stem.rpartition("-")[2]))
    return found


def stop(folder: Path) -> list[int]:
    """Tell them to stop, as Ctrl-C would; their numbers."""
    found = at_work(folder)
    for process in found:
        os.kill(process, signal.SIGINT)
    return found
