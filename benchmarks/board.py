"""Building the leaderboard from generated records: seconds, peak memory, pages, and the bytes of a first view.

    python benchmarks/board.py [--quick] [--json] [--rounds N] [--records 5000 100000] [--keep FOLDER]

The records are valid and sealed: 50 tasks of 5 families, with students, arms (one of them a control) and seeds; their
scores are drawn from numbered seeds. Making them is not measured. Memory is the sum of the proportional set sizes of
all processes, sampled four times a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kdbench import hashing
from kdbench.axes import axis
from kdbench.board.workers import processors, spread
from kdbench.plan import metrics
from kdbench.results import record

TASKS, FAMILIES, CLASSES, TEST, EPOCHS = 50, 5, 10, 200, 20
METHODS = ("alone", "kd", "attention", "contrast", "hints", "mixture", "relations", "selfkd", "trees")
ARMS = (*((method, "none") for method in METHODS), ("contrast", "shuffled_teacher"))
STARTED = "2026-10-01T10:00:00Z"


class Cell(NamedTuple):
    """One record to make."""

    task: int
    student: int
    arm: int
    seed: int


def cells(count: int) -> list[Cell]:
    """``count`` records, a multiple of 500: 50 tasks, 10 arms, 10 or 20 seeds, and as many students as it takes."""
    seeds = 10 if count <= 20_000 else 20
    students = max(1, count // (TASKS * len(ARMS) * seeds))
    seeds = min(seeds, count // (TASKS * len(ARMS)))
    return [
        Cell(task, student, arm, seed)
        for task in range(TASKS)
        for student in range(students)
        for arm in range(len(ARMS))
        for seed in range(seeds)
    ]


def write(chosen: Sequence[Cell], folder: Path) -> int:
    """Seal and write records at their published places."""
    for cell in chosen:
        made = record.seal(fields(cell))
        path = folder / made.task / made.method / f"{made.config_hash[:16]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.dumps(made), encoding="utf-8")
    return len(chosen)


def fields(cell: Cell) -> dict[str, Any]:
    """Every field of a valid record but its digest."""
    method, control = ARMS[cell.arm]
    free = method in ("alone", "selfkd")
    teacher = None if free else {"source": "trained", "width": 256, "layers": 4}
    config = {
        "task": f"made/task{cell.task:02}",
        "scale": ("tiny", "small", "full")[cell.task % 3],
        "method": {"name": method, **({} if method == "alone" else {"weight": 1.0, "temperature": 4.0})},
        "control": control,
        "seed": cell.seed,
        "data": {"split": "seed", "batch_size": 64},
        "student": {"name": f"student{cell.student}", "width": 64, "layers": 2, "dropout": 0.2},
        "teacher": teacher,
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.0005, "schedule": "cosine"},
        "trainer": {"max_epochs": EPOCHS, "accelerator": "auto", "precision": "32-true"},
    }
    draw = random.Random(hashing.digest(config))
    truth = [index % CLASSES for index in range(TEST)]
    taught = predictions(truth, 0.9, random.Random(f"teacher {cell.task} {cell.seed}"))
    easy = 0.6 + 0.2 * random.Random(f"task {cell.task}").random() + 0.01 * cell.student
    gain = 0.0 if method == "alone" else random.Random(f"{method} {cell.task % FAMILIES}").gauss(0.01, 0.02)
    predicted = predictions(truth, easy + (0.0 if control != "none" else gain), draw, taught if teacher else None)
    scores, val = measured(truth, predicted), round(easy + gain + draw.gauss(0, 0.01), 6)
    curve = [round(val * (1 - 0.5 ** (1 + epoch / 4)), 6) for epoch in range(EPOCHS - 1)]
    return {
        "schema_version": 1,
        "status": "done",
        "family": f"family{cell.task % FAMILIES}",
        "task": config["task"],
        "scale": config["scale"],
        "method": method,
        "control": control,
        "seed": cell.seed,
        "command": f"kdbench run task={config['task']} method={method} seed={cell.seed}",
        "config": config,
        "config_hash": hashing.digest(config),
        "group": record.group_of(config),
        "versions": {name: "1.2.3" for name in ("kdbench", "python", "torch", "torchmetrics", "numpy", "scipy")},
        "git": {"commit": "0" * 40, "dirty": False},
        "hardware": {"cpu": "x", "cores": 2, "threads": 1, "memory_bytes": 8, "accelerator": None, "os": "Linux"},
        "data": {
            "name": f"data{cell.task}",
            "sha256": hashing.digest(["data", cell.task]),
            "split_sha256": hashing.digest(["split", cell.task, cell.seed]),
            "generated": cell.task % 3 == 0,
            "licence": "CC0-1.0",
            "sizes": {"train": 1000, "val": 200, "test": TEST},
        },
        "teacher": teacher
        and {
            "kind": "trained",
            "description": "trained, four layers",
            "sha256": hashing.digest(["teacher", cell.task, cell.seed]),
            "metrics": {"val": {"accuracy": 0.9}, "test": measured(truth, taught)},
            "predictions": taught,
        },
        "stages": [{"name": "teacher", "key": "b" * 64, "seconds": 1.5, "reused": True}] if teacher else [],
        "seeds": {name: axis(cell.seed, name) for name in ("split", "student", "data_order")},
        "selection": {"metric": "accuracy", "mode": "max", "epoch": EPOCHS, "value": val},
        "metrics": {"val": {"accuracy": val}, "test": scores},
        "confusion": confusion(truth, predicted),
        "predictions": predicted,
        "costs": {
            "parameters": 20_000 + 5_000 * cell.student,
            "trained_parameters": 30_000 + 5_000 * cell.student,
            "flops": 10_000_000,
            "latency_ms": round(1 + 0.1 * cell.student + 0.05 * draw.random(), 4),
            "train_seconds": round(10 + cell.arm + draw.random(), 4),
            "stage_seconds": 1.5 if teacher else 0.0,
            "peak_memory_bytes": 250_000_000,
        },
        "curves": {
            "epoch": [float(epoch) for epoch in range(1, EPOCHS + 1)],
            "train/loss": [round(2.3 * 0.9**epoch, 6) for epoch in range(EPOCHS)],
            "val/accuracy": [*curve, val],
            "val/macro_f1": [*curve, val],
        },
        "failure": None,
        "notes": [],
        "started": STARTED,
        "finished": STARTED,
    }


def predictions(truth: Sequence[int], right: float, draw: random.Random, teacher: str | None = None) -> str:
    """One digit an example, right with that probability; where it is wrong, half the time as the teacher says."""
    found = []
    for place, label in enumerate(truth):
        told = teacher[place] if teacher and draw.random() < 0.5 else str(draw.randrange(CLASSES))
        found.append(str(label) if draw.random() < right else told)
    return "".join(found)


def confusion(truth: Sequence[int], predicted: str) -> list[list[int]]:
    """Counts by true and predicted class."""
    matrix = [[0] * CLASSES for _ in range(CLASSES)]
    for label, digit in zip(truth, predicted, strict=True):
        matrix[label][int(digit)] += 1
    return matrix


def measured(truth: Sequence[int], predicted: str) -> dict[str, float]:
    """Accuracy and macro F1."""
    return metrics.scores(confusion(truth, predicted))


def generate(count: int, folder: Path) -> int:
    """Write ``count`` records, or as many as make up whole tables; their number."""
    wanted = cells(count)
    chunks = [wanted[start : start + 500] for start in range(0, len(wanted), 500)]
    return sum(spread(partial(write, folder=folder), chunks, processors()))


def first_view(site: Path) -> int:
    """Gzipped bytes of the overview and all that it loads."""
    loaded = [site / "index.html", *sorted((site / "assets").iterdir())]
    return sum(len(gzip.compress(path.read_bytes(), 6)) for path in loaded)


def family(process: int) -> Iterator[int]:
    """A process and its descendants."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def memory(process: int) -> int:
    """Bytes of memory that a process and its descendants take, shared pages counted once."""
    total = 0
    try:
        for one in family(process):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, ValueError):
        return total
    return total


def build(records: Path, site: Path) -> dict[str, Any]:
    """Build the site as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "kdbench.cli",
        "leaderboard",
        "build",
        str(records),
        "-o",
        str(site),
        "--json",
    ]
    start, peak, before = time.perf_counter(), 0, _processor_seconds()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.25)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
    assert process.returncode == 0, told
    return {"seconds": seconds, "cpu_seconds": _processor_seconds() - before, "peak_bytes": peak, **told}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Generate, build, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quick", action="store_true", help="500 records once: does it run?")
    parser.add_argument("--rounds", type=int, default=1, help="builds of each size; the quickest is told")
    parser.add_argument("--records", type=int, nargs="+", default=[5_000, 100_000], help="numbers of records")
    parser.add_argument("--keep", type=Path, help="folder for records and sites, which stay there")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for wanted in [500] if chosen.quick else chosen.records:
            folder = (chosen.keep or Path(temporary)) / str(wanted)
            made = generate(wanted, folder / "records")
            load = os.getloadavg()[0]
            found = [build(folder / "records", folder / "site") for _ in range(chosen.rounds)]
            best = min(found, key=lambda one: one["seconds"])
            assert best["records"] == made
            site = folder / "site"
            largest = max((path.stat().st_size for path in site.glob("task/*.html")), default=0)
            rows.append(
                {
                    "records": made,
                    "seconds": round(best["seconds"], 1),
                    "cpu_seconds": round(best["cpu_seconds"], 1),
                    "peak_mb": round(best["peak_bytes"] / 1e6),
                    "pages": best["pages"],
                    "first_view_gzip_kb": round(first_view(site) / 1e3, 1),
                    "largest_task_page_kb": round(largest / 1e3),
                    "load_at_start": round(load, 2),
                }
            )
    if chosen.json:
        print(json.dumps({"processors": processors(), "rows": rows}, indent=1))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + " ---: |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:,}" for value in row.values()) + " |")
    print(f"\n{processors()} processors")


if __name__ == "__main__":
    main()
