"""Wall time of the commands that need no torch, each as a process of its own, against ``python -c pass``.

    python benchmarks/cli.py [--quick] [--json] [--rounds N]

Bytecode is compiled into a temporary folder before anything is measured, as an installation would have it. The rows
"with 60 methods" have as many copies of one method, installed as another package, as are missing to that number.
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

import kdbench
from kdbench.plan.catalog import methods

KDBENCH = str(Path(sys.executable).parent / "kdbench")
BARE = "python -c pass"
COMMANDS = ("--help", "list", "show lingugkd", "show gnn")
MANY = 60
COPIED = Path(kdbench.__file__).parent / "families" / "graph" / "node_classification" / "methods" / "lingugkd.py"
CHECK = "import sys; from kdbench.cli.main import entry; sys.exit(entry(sys.argv[1:]) or 'torch' in sys.modules)"


def main() -> None:
    """Measure every command and check that it leaves torch alone."""
    chosen = options(__doc__, rounds=25, quick_rounds=3)
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        crowded = {**environment, "PYTHONPATH": str(more_methods(Path(bytecode)))}

        def seconds(env: dict[str, str], command: list[str]) -> float:
            start = time.perf_counter()
            subprocess.run(command, env=env, check=True, capture_output=True)
            return time.perf_counter() - start

        commands = {}
        for env, crowd in ((environment, ""), (crowded, f" with {MANY} methods")):
            for words in COMMANDS:
                seconds(env, [sys.executable, "-c", CHECK, *words.split()])
                commands[f"kdbench {words}{crowd}"] = partial(seconds, env, [KDBENCH, *words.split()])
        samples = alternate(
            {BARE: partial(seconds, environment, [sys.executable, "-c", "pass"]), **commands}, chosen.rounds
        )
    report("Commands without torch", [row("wall time", "s", samples, name, BARE) for name in commands], chosen)


def more_methods(folder: Path) -> Path:
    """A folder for ``PYTHONPATH`` with a package of as many methods as are missing to ``MANY``."""
    site = folder / "site"
    package, installed = site / "copies", site / "copies-1.0.dist-info"
    for made in (package, installed):
        made.mkdir(parents=True)
    (package / "__init__.py").touch()
    names = [f"copy{number}" for number in range(MANY - len(methods()))]
    for name in names:
        (package / f"{name}.py").write_text(COPIED.read_text())
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: copies\nVersion: 1.0\n")
    points = "".join(f"graph.{name} = copies.{name}\n" for name in names)
    (installed / "entry_points.txt").write_text(f"[kdbench.methods]\n{points}")
    return site


if __name__ == "__main__":
    main()
