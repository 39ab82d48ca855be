"""The engine on one GPU, in under four minutes: every kind of task in both precisions, cache, kill and resume, memory.

    python benchmarks/gpu_check.py [--accelerator gpu|cpu] [--json] [--only TEXT]

Every case trains on generated data of ``scale=tiny`` with the teacher's cache written on the accelerator. What is held:

- the headline metric on validation in 32-true lies within TOLERANCE of the same run on the CPU, in bf16-mixed within
  ROUGH: sums are rounded in another order, so that trained weights differ and a few examples change sides;
- a run that is killed after an epoch and gone on with ends like one that was not: within the same tolerance, and it is
  said whether bit for bit;
- every row of the teacher's cache lies within CACHE of the one written on the CPU, relative to the largest.

``--accelerator cpu`` does all of it on the processor, bf16 included, where runs must equal bit for bit: it tries the
script itself. The exit status is 1 where something does not hold. The cost of the engine's steps on the GPU stands
below, from ``engine_overhead.py``'s networks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kdbench.engine import costs
from kdbench.engine.runner import Session, Silent, run
from kdbench.plan.config import RunConfig, expand

EPOCHS = 4
TOLERANCE, ROUGH, CACHE = 0.1, 0.2, 1e-3
CASES = (
    ("gnn", "lingugkd"),
    ("graph_classification", "kd"),
    ("hippocampus", "kd"),
    ("hippocampus", "dsd"),
    ("domain_adaptation", "lpld"),
    ("paired_classification", "mst_distill"),
)


@dataclass(frozen=True)
class Outcome:
    """One case in one precision beside its run on the CPU."""

    case: str
    precision: str
    metric: str
    value: float
    on_cpu: float
    cpu_seconds: float
    seconds: float
    resumed: str
    cache: str
    peak_megabytes: float | None
    faults: list[str]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours handles it."""


class Kills(Silent):
    """Kills the run after its second epoch."""

    def epoch(self, done: int, total: int, value: float | None) -> None:
        if done == EPOCHS // 2:
            raise Killed


def configure(task: str, method: str, accelerator: str, precision: str) -> RunConfig:
    """A tiny run with a checkpoint after each epoch."""
    trainer = {
        "max_epochs": EPOCHS,
        "check_val_every_n_epoch": 1,
        "checkpoint_every_n_epochs": 1,
        "accelerator": accelerator,
        "precision": precision,
    }
    (config,) = expand(
        [f"task={task}", f"method={method}", "scale=tiny", *(f"trainer.{k}={v}" for k, v in trainer.items())]
    )
    return config


def value_of(outcome: Any, metric: str) -> float:
    """The headline metric on validation."""
    return float(outcome.record.metrics.val[metric])


def checked(task: str, method: str, accelerator: str, root: Path) -> Iterator[Outcome]:
    """The case in both precisions."""
    config = configure(task, method, "cpu", "32-true")
    start = time.perf_counter()
    reference = run(config, root / "cpu", Silent())
    cpu_seconds, wanted = time.perf_counter() - start, value_of(reference, config.metric)
    for precision, tolerance in (("32-true", TOLERANCE), ("bf16-mixed", ROUGH)):
        config, place = configure(task, method, accelerator, precision), root / f"device-{precision}"
        start = time.perf_counter()
        whole = run(config, place, Silent())
        seconds, value = time.perf_counter() - start, value_of(whole, config.metric)
        assert whole is not None
        faults = []
        if abs(value - wanted) > tolerance and (accelerator != "cpu" or precision == "32-true"):
            faults.append(f"{config.metric} {value:.4f}, on the CPU {wanted:.4f}: more than {tolerance} apart")
        resumed, wrong = resume(config, root / f"resumed-{precision}", value, tolerance, exact=accelerator == "cpu")
        faults += wrong
        cache, wrong = compare_caches(config, place, root / "cpu") if precision == "32-true" else ("", [])
        faults += wrong
        peak = whole.record.costs.peak_memory_bytes if whole.record.costs else None
        megabytes = None if peak is None else round(peak / 1e6, 1)
        named = f"{task}, {method}", precision, config.metric
        yield Outcome(*named, value, wanted, cpu_seconds, seconds, resumed, cache, megabytes, faults)


def resume(config: RunConfig, root: Path, wanted: float, tolerance: float, exact: bool) -> tuple[str, list[str]]:
    """What a killed run comes to when it is gone on with."""
    try:
        run(config, root, Kills())
    except Killed:
        pass
    else:
        return "was not killed", ["the run was not killed"]
    value = value_of(run(config, root, Silent()), config.metric)
    if value == wanted:
        return "equal", []
    fault = exact or abs(value - wanted) > tolerance
    return f"{value - wanted:+.4f}", [f"resumed: {value:.4f}, uninterrupted: {wanted:.4f}"] if fault else []


def compare_caches(config: RunConfig, place: Path, cpu: Path) -> tuple[str, list[str]]:
    """The largest difference of the teacher's cached outputs to those of the same teacher on the CPU."""
    session = Session(config, place, place, Silent())
    if session.method.teacher != "frozen" or not session.task.cacheable:
        return "", []
    for stage in session.stages():
        session.store.ensure(stage)
    rows = torch.arange(session.task.facts.rows)
    live, worst = session.task.live_teacher(), 0.0
    read = session.task.cache.read(rows)
    for name, value in live(session.task.batch_of(rows)).items():
        scale = float(value.abs().max()) or 1.0
        worst = max(worst, float((read[name] - value).abs().max()) / scale)
    return f"{worst:.1e}", [f"the cache is off by {worst:.1e}"] if worst > CACHE else []


def main() -> None:
    """Check every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--only", default="", help="cases whose 'task, method' holds this text")
    chosen = parser.parse_args()
    if chosen.accelerator == "gpu" and not torch.cuda.is_available():
        sys.exit("No GPU is here: --accelerator cpu tries the script.")
    start, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as root:
        for number, (task, method) in enumerate(CASES):
            if chosen.only in f"{task}, {method}":
                outcomes += checked(task, method, chosen.accelerator, Path(root) / str(number))
    device = torch.device("cuda" if chosen.accelerator == "gpu" else "cpu")
    facts = {"hardware": costs.hardware(device), "versions": costs.versions(), "seconds": time.perf_counter() - start}
    if chosen.json:
        print(json.dumps({**facts, "outcomes": [asdict(one) for one in outcomes]}, indent=1))
    else:
        show(outcomes, facts)
    sys.exit(any(one.faults for one in outcomes))


def show(outcomes: list[Outcome], facts: dict[str, Any]) -> None:
    """The outcomes as a Markdown table, faults below it."""
    print("| case | precision | metric | here | on CPU | seconds here | on CPU | resumed | cache | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in outcomes:
        numbers = f"{one.value:.4f} | {one.on_cpu:.4f} | {one.seconds:.1f} | {one.cpu_seconds:.1f}"
        print(
            f"| {one.case} | {one.precision} | {one.metric} | {numbers} | {one.resumed} | {one.cache} | "
            f"{one.peak_megabytes or ''} |"
        )
    for one in outcomes:
        for fault in one.faults:
            print(f"DOES NOT HOLD: {one.case}, {one.precision}: {fault}")
    hardware = facts["hardware"]
    print(
        f"\n{hardware['accelerator']}; {hardware['cpu']}; torch {facts['versions']['torch']}; {facts['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
