"""Wall time from an empty folder to the first table, ``kdbench run task=gnn method=lingugkd``, against its imports.

    python benchmarks/first_table.py [--quick] [--json] [--rounds N]

Every round starts without runs, stages, caches or downloaded data; the run must leave three records.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import alternate, options, report, row

KDBENCH = str(Path(sys.executable).parent / "kdbench")
TABLE, IMPORTS = "kdbench run task=gnn method=lingugkd", "python -c 'import kdbench.engine.runner'"


def first_table() -> float:
    """Seconds of the command in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        home = {k: v for k, v in os.environ.items() if not k.startswith("KDBENCH_")} | {"KDBENCH_CACHE": folder}
        start = time.perf_counter()
        done = subprocess.run(TABLE.replace("kdbench", KDBENCH, 1).split(), cwd=folder, env=home, capture_output=True)
        seconds = time.perf_counter() - start
        records = len(list(Path(folder).glob("runs/**/record.json")))
        assert done.returncode == 0 and records == 3, f"{records} records\n{done.stderr.decode()}"
        return seconds


def imports() -> float:
    """Seconds to import what a run needs."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import kdbench.engine.runner"], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turn."""
    chosen = options(__doc__, rounds=3, quick_rounds=1)
    samples = alternate({TABLE: first_table, IMPORTS: imports}, chosen.rounds)
    report("First table", [row("wall time", "s", samples, TABLE, IMPORTS)], chosen)


if __name__ == "__main__":
    main()
