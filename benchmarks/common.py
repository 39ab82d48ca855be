"""What the benchmarks share: contestants that take turns in one process, ratios of pairs, one table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch

from kdbench.engine import costs

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of ``samples``."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}–{_short(self.high)})"


@dataclass(frozen=True)
class Row:
    """One comparison. ``ratio`` is over pairs: the i-th sample of ``this`` by the i-th of ``against``."""

    case: str
    this: str
    against: str
    unit: str
    value: Spread
    baseline: Spread
    ratio: Spread
    notes: Mapping[str, Any] = field(default_factory=dict)


def row(case: str, unit: str, samples: Mapping[str, Sequence[float]], this: str, against: str, **notes: Any) -> Row:
    """Compare two contestants of one case."""
    pairs = [a / b for a, b in zip(samples[this], samples[against], strict=True)]
    spreads = (Spread.of(samples[this]), Spread.of(samples[against]), Spread.of(pairs))
    return Row(case, this, against, unit, *spreads, notes)


def alternate(contestants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Let every contestant run once a round, in turned order every other round; a round before them is not measured."""
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for turn in range(-1, rounds):
        for name in list(contestants)[:: 1 if turn % 2 else -1]:
            result = contestants[name]()
            if turn >= 0:
                results[name].append(result)
    return results


def options(doc: str | None, rounds: int, quick_rounds: int) -> argparse.Namespace:
    """Parse the common options; ``rounds`` becomes ``quick_rounds`` with ``--quick``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, help=f"measured rounds (default {rounds}, quick {quick_rounds})")
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (quick_rounds if chosen.quick else rounds)
    chosen.load = os.getloadavg()[0]
    return chosen


def report(title: str, rows: Sequence[Row], chosen: argparse.Namespace) -> None:
    """Print the rows as a Markdown table, or all of it as JSON."""
    hardware, versions = costs.hardware(torch.device("cpu")), costs.versions()
    if chosen.json:
        facts = {"quick": chosen.quick, "rounds": chosen.rounds, "load_at_start": chosen.load}
        told = {"title": title, **facts, "hardware": hardware, "versions": versions, "rows": [asdict(r) for r in rows]}
        print(json.dumps(told, indent=1))
        return
    lines = [["case", "this", "against", "unit", "this", "against", "this ÷ against"]]
    lines += [[r.case, r.this, r.against, r.unit, str(r.value), str(r.baseline), str(r.ratio)] for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n{title}: median (min–max) of {chosen.rounds} rounds{', quick' if chosen.quick else ''}\n")
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    for one in rows:
        if one.notes:
            print(f"{one.case}, {one.this}: " + ", ".join(f"{name} {value}" for name, value in one.notes.items()))
    print(
        f"\n{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} torch threads; load at the start "
        f"{chosen.load:.2f}; torch {versions['torch']}, Lightning {versions['pytorch-lightning']}"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
