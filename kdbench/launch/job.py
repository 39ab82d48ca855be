"""Runs in the process that does them, whoever launched that process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, TextIO

from kdbench.errors import StoppedError
from kdbench.launch.endings import Ending, in_one_line
from kdbench.launch.states import Journal, state_path
from kdbench.launch.sweep import Run
from kdbench.plan.family import require_extra

if TYPE_CHECKING:
    from kdbench.engine.runner import Outcome, Reporter

INTERVAL = 0.2  # seconds between two epochs that a worker tells of


def execute(run: Run, root: Path, reporter: Reporter) -> Outcome | None:
    """Do a run, or find it done. Raises whatever it died of."""
    from kdbench.engine import runner

    config = run.config()
    require_extra(config.family)
    return runner.run(config, root, reporter, run.keep_stale)


def journalled(run: Run, root: Path, journal: Journal, reporter: Reporter | None = None) -> Outcome | None:
    """:func:`execute` with the end of it in the run's state file. Raises whatever the run died of."""
    try:
        outcome = execute(run, root, reporter or journal)
    except StoppedError as error:
        journal.end("stopped", str(error))
        raise
    except Exception as error:  # whatever it is, the state file should name it
        journal.end("failed", in_one_line(error))
        raise
    journal.end("done")
    return outcome


def prepare(runs: list[Run], root: Path) -> None:
    """Do what runs share. What fails here fails again in the runs that need it, where it is told.

    Raises :class:`StoppedError` when it was told to stop.
    """
    from kdbench.engine import runner

    for run in runs:
        try:
            config = run.config()
            require_extra(config.family)
            runner.prepare(config, root, runner.Silent())
        except StoppedError:
            raise
        except Exception as error:
            print(f"{run.command}: {in_one_line(error)}", file=sys.stderr)


def on_signal(number: signal.Signals, then: Callable[[], Any] | None = None, quiet: bool = False) -> None:
    """Let a signal end what is trained after its epoch, with a checkpoint."""
    from kdbench.engine import runner

    def handler(signum: int, frame: object) -> None:
        if not quiet:
            print(f"{signal.Signals(signum).name}: stopping after this epoch", flush=True)
        runner.stop()
        if then:
            then()

    signal.signal(number, handler)


class Teller:
    """A worker's reporter: a line of JSON to the parent for what happens, and all of it to the journal of a sweep."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.journal: Journal | None = None
        self._written = 0.0

    def send(self, **message: Any) -> None:
        """Tell the parent; one that is gone hears nothing."""
        with suppress(BrokenPipeError):
            self.stream.write(json.dumps(message) + "\n")
            self.stream.flush()

    def begin(self, journal: Journal | None) -> None:
        """A run begins."""
        self.journal, self._written = journal, 0.0

    def stage(self, name: str) -> None:
        """A stage of the run begins."""
        if self.journal:
            self.journal.stage(name)
        self.send(stage=name)

    def epoch(self, done: int, total: int, value: float | None) -> None:
        """An epoch of the student's training is done; the parent hears of the first, and of a few a second."""
        if self.journal:
            self.journal.epoch(done, total, value)
        if time.monotonic() - self._written > INTERVAL:
            self._written = time.monotonic()
            self.send(epoch=(done, total, value))

    def note(self, text: str) -> None:
        """Something the user should know."""
        if self.journal:
            self.journal.note(text)
        self.send(note=text)


def serve(root: Path, folder: Path | None) -> None:
    """A worker: a run for each line of JSON on standard input; its progress and its :class:`Ending` on standard output.

    With the ``folder`` of a sweep, runs keep their state files there, and what they print goes to their logs; else it
    goes to standard error. Once the parent is gone, what is trained ends after its epoch, with a checkpoint.
    """
    teller = Teller(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    on_signal(signal.SIGTERM, quiet=folder is None)
    for line in iter(_lines().get, None):
        run = Run(**json.loads(line))
        try:
            ending = _ending(run, root, folder, teller)
        except Exception as error:  # the parent tells the user
            ending = Ending.of(error)
            if folder:
                with suppress(OSError):
                    print(ending.trace, file=sys.stderr, flush=True)
        teller.send(ended=asdict(ending))


def _ending(run: Run, root: Path, folder: Path | None, teller: Teller) -> Ending:
    if folder is None:
        teller.begin(None)
        outcome = execute(run, root, teller)
    else:
        log = f"logs/{run.hash[:16]}.log"
        _print_to(folder / log)
        journal = Journal(state_path(folder, run.hash), log)
        teller.begin(journal)
        outcome = journalled(run, root, journal, teller)
    return Ending(reused=outcome is not None and outcome.reused)


def _lines() -> Queue[str | None]:
    """The lines of standard input as they come, and None at its end, which also stops what is at work."""
    from kdbench.engine import runner

    lines = Queue[str | None]()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        runner.stop()
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _print_to(log: Path) -> None:
    """Let all that this process prints go to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
