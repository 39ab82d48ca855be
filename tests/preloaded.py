"""Python processes that start at once: forked from one that has imported what every run imports.

Importing torch and Lightning takes 6 s of a processor; tests that kill, stop and count processes start a hundred.
``server(folder)`` runs the parent and gives a program to be used as ``sys.executable``. That program hands its
arguments, environment, folder and open files to the parent, which forks a process of its process group that runs the
module or script as Python would. The program passes signals on, ends as that process ends, and takes it along when it
is killed itself.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys
signals = {signals}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
parent = socket.socket(socket.AF_UNIX)
parent.connect({address!r})
said = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), os.getpgrp()]).encode()
socket.send_fds(parent, [len(said).to_bytes(8, "big")], [0, 1, 2])
parent.sendall(said)
child = int.from_bytes(parent.recv(8), "big")
for number in signals:
    signal.signal(number, lambda number, frame: os.kill(child, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
code = os.waitstatus_to_exitcode(int.from_bytes(parent.recv(8), "big"))
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextmanager
def server(folder: Path) -> Iterator[Path]:
    """The program, while the parent is up."""
    program, address = folder / "python", folder / "socket"
    program.write_text(
        PROGRAM.format(python=sys.executable, address=str(address), signals=[int(one) for one in PASSED_ON])
    )
    program.chmod(0o755)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen(64)
    parent = subprocess.Popen(
        [sys.executable, __file__, str(listening.fileno()), str(program)],
        pass_fds=[listening.fileno()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    listening.close()
    try:
        yield program
    finally:
        parent.terminate()
        parent.wait()


def _received(connection: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        part = connection.recv(count - len(said))
        if not part:
            raise EOFError
        said += part
    return said


def _serve(listening: socket.socket, program: str) -> None:
    """Fork a guard for every connection; it forks the process and watches both ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards are reaped by the system
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _guard(connection, program)
        connection.close()


def _guard(connection: socket.socket, program: str) -> None:
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    words, environment, place, group = json.loads(_received(connection, int.from_bytes(head, "big")))
    child = os.fork()
    if child == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        connection.close()
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        with suppress(PermissionError):  # a group of another session, as of a SLURM job
            os.setpgid(0, group)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(place)
        sys.executable = program
        _run(words)
    for file in files:
        os.close(file)
    connection.sendall(child.to_bytes(8, "big"))
    watcher = os.fork()
    if watcher == 0:  # the program says nothing more: what comes is its end
        connection.recv(1)
        os.kill(child, signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.kill(watcher, signal.SIGKILL)
    connection.sendall(status.to_bytes(8, "big"))
    os._exit(0)


def _run(words: list[str]) -> None:
    """What ``python -m module …``, ``python -c code …`` and ``python script …`` do; options before them are dropped."""
    while words[0] in ("-P", "-u", "-B"):
        words = words[1:]
    safe = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in safe if place and place not in sys.path]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    _end(code)


def _end(code: int) -> None:
    """End as Python does: threads joined, exit handlers called, what was printed written."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code)


if __name__ == "__main__":
    import kdbench.engine.runner
    import kdbench.families.graph.graph_classification.task
    import kdbench.families.graph.node_classification.task  # noqa: F401

    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
