"""Seconds to plan ten thousand runs, to submit them to SLURM's sbatch, and to tell how they stand.

    python benchmarks/sweeps.py [--json] [--runs N]

Submitting is timed up to sbatch, whose place a command takes that answers at once; reading a status includes a
queue of all runs. No run is started.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.launch import slurm, sweep
from kdbench.launch.status import statuses

SEEDS = 10


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def stand_ins(place: Path) -> None:
    """Commands in the place of SLURM's."""
    counter = f"n=$(($(cat {place}/n 2>/dev/null || echo 0) + 1)); echo $n > {place}/n"
    scripts = {
        "sbatch": f'{counter}; echo "Submitted batch job $n"',
        "scontrol": 'echo "MaxArraySize = 1001"',
        "squeue": f"cat {place}/queue",
        "srun": "true",
    }
    for name, line in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / name).chmod(0o755)
    os.environ["PATH"] = f"{place}{os.pathsep}{os.environ['PATH']}"


def measure(runs: int) -> dict[str, float]:
    """Seconds by what was done."""
    rates = ",".join(f"{0.01 + 0.0001 * step:.4f}" for step in range(runs // SEEDS))
    grids = {
        "plan, seeds": ["task=gnn", "method=lingugkd", f"seed=0..{runs - 1}"],
        "plan, options": ["task=gnn", "method=lingugkd", f"seed=0..{SEEDS - 1}", f"method.temperature={rates}"],
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bin").mkdir()
        stand_ins(Path(folder) / "bin")
        for name, words in grids.items():
            found[name], asked = timed(lambda words=words: sweep.from_words(words, Path(folder)))
            assert len(asked.runs) == runs
        asked.save()
        found["submit"], jobs = timed(lambda: slurm.submit(asked, list(asked.runs.values()), lambda line: None))
        queue = "".join(f"{job.id}|PENDING|Priority\n" for job in jobs)
        (Path(folder) / "bin" / "queue").write_text(queue)
        found["status"], told = timed(lambda: statuses(asked))
        assert len(told) == runs and {one.phase for one in told} == {"pending"}
        found["arrays"] = float(len({job.id.partition("_")[0] for job in jobs}))
    return found


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the sweep")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(chosen.runs)
    if chosen.json:
        print(json.dumps({"runs": chosen.runs, "load_at_start": load, **found}, indent=1))
        return
    print(f"{chosen.runs:,} runs; load at the start {load:.2f}\n\n| what | seconds |\n| --- | ---: |")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.2f} |" if name != "arrays" else f"\nsubmitted as {seconds:.0f} arrays")


if __name__ == "__main__":
    main()
