"""One run of a sweep in the process that does it, whoever launched that process."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.catalog import require_extra
from kdbench.errors import StoppedError
from kdbench.launch.local import RUN_ERRORS, told
from kdbench.launch.states import Journal, state_path
from kdbench.launch.sweep import Run


def execute(run: Run, root: Path, folder: Path, log: str, job: str | None = None) -> None:
    """Do a run and keep its state file in the sweep's ``folder``. Raises whatever the run died of."""
    from kdbench.engine import runner

    journal = Journal(state_path(folder, run.hash), log, job) if runner.is_first(run.nodes * run.processes) else None
    try:
        config = run.config()
        require_extra(config.family)
        runner.run(config, root, journal or runner.Silent())
    except StoppedError as error:
        if journal:
            journal.end("stopped", str(error))
        raise
    except Exception as error:  # whatever it is, the state file should name it
        if journal:
            journal.end("failed", told(error))
        raise
    if journal:
        journal.end("done")


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
        except RUN_ERRORS as error:
            print(f"{run.command}: {told(error)}", file=sys.stderr)


def on_signal(number: signal.Signals, then: Callable[[], Any] | None = None) -> None:
    """Let a signal end what is trained after its epoch, with a checkpoint."""
    from kdbench.engine import runner

    def handler(signum: int, frame: object) -> None:
        print(f"{signal.Signals(signum).name}: stopping after this epoch", flush=True)
        runner.stop()
        if then:
            then()

    signal.signal(number, handler)


def serve(root: Path, folder: Path) -> None:
    """A worker: a run for each line of JSON on standard input, an answer for each on standard output.

    What a run prints goes to its log. An answer holds the ``reason`` of a failure and the number of a system's
    ``error``, each null where there is none.
    """
    answers = os.fdopen(os.dup(1), "w")
    on_signal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    for line in sys.stdin:
        run = Run(**json.loads(line))
        reason = number = None
        try:
            log = f"logs/{run.hash[:16]}.log"
            _print_to(folder / log)
            execute(run, root, folder, log)
        except Exception as error:  # the parent tells the user
            with suppress(OSError):
                traceback.print_exc()
                sys.stderr.flush()
            reason, number = told(error), getattr(error, "errno", None)
        answers.write(json.dumps({"reason": reason, "error": number}) + "\n")
        answers.flush()


def _print_to(log: Path) -> None:
    """Let all that this process prints go to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
