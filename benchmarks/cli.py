"""Wall time of the commands that need no torch, each as a process of its own, against ``python -c pass``.

    python benchmarks/cli.py [--quick] [--json] [--rounds N]

Bytecode is compiled into a temporary folder before anything is measured, as an installation would have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common import alternate, options, report, row

KDBENCH = str(Path(sys.executable).parent / "kdbench")
BARE = "python -c pass"
COMMANDS = ("--help", "list", "show lingugkd", "show gnn")
CHECK = "import sys; from kdbench.cli.main import entry; sys.exit(entry(sys.argv[1:]) or 'torch' in sys.modules)"


def main() -> None:
    """Measure every command and check that it leaves torch alone."""
    chosen = options(__doc__, rounds=25, quick_rounds=3)
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        run = partial(subprocess.run, env=environment, check=True, capture_output=True)
        for words in COMMANDS:
            run([sys.executable, "-c", CHECK, *words.split()])

        def seconds(command: list[str]) -> float:
            start = time.perf_counter()
            run(command)
            return time.perf_counter() - start

        commands = {f"kdbench {words}": partial(seconds, [KDBENCH, *words.split()]) for words in COMMANDS}
        samples = alternate({BARE: partial(seconds, [sys.executable, "-c", "pass"]), **commands}, chosen.rounds)
    report("Commands without torch", [row("wall time", "s", samples, name, BARE) for name in commands], chosen)


if __name__ == "__main__":
    main()
