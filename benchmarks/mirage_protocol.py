"""What Mirage's records say under two ways of choosing, against random graphs, and at which size. Nothing is run.

    python benchmarks/mirage_protocol.py FOLDER_OR_RECORD…

Table 1, for every arm: the mean test score of all seeds (kdbench: each seed at its best validation after at least one
optimiser step); the same with the untrained network as one more candidate (the record of ``method=untrained`` with that
seed; it is taken where its validation is as good); and, as in the released logs of arXiv 2310.09486, only the better
half of those seeds by validation score. Table 2: paired differences of Mirage to the other arms without a teacher.
Table 3: size of the training set and score, smallest first.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from kdbench.plan.catalog import method
from kdbench.plan.overrides import word
from kdbench.results import store
from kdbench.results.record import Record
from kdbench.results.stats import estimate, paired, resolution

KIND, METRIC = "graph_classification", "auc"
Arms = Mapping[str, Mapping[int, Record]]


def main() -> None:
    """Read the records, print the three tables."""
    groups: dict[str, dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in store.read(map(Path, sys.argv[1:])):
        if record.status == "done" and record.task.startswith(KIND) and record.control == "none":
            groups[title(record)][label(record)][record.seed] = record
    if not groups:
        sys.exit(f"No finished {KIND} record is there. Usage: python benchmarks/mirage_protocol.py FOLDER…")
    heading = (
        "task, scale, student",
        "arm",
        "seeds",
        "all",
        "all, untrained allowed",
        "better half",
        "untrained in it",
    )
    show("Choice", heading, [row for name, arms in sorted(groups.items()) for row in choices(name, arms)])
    heading = ("task, scale, student", "difference", "seeds", "mean [95 %]", "p")
    show("Differences", heading, [row for name, arms in sorted(groups.items()) for row in differences(name, arms)])
    heading = ("task, scale, student", "arm", "graphs", "bytes", METRIC)
    show("Size", heading, [row for name, arms in sorted(groups.items()) for row in sizes(name, arms)])


def title(record: Record) -> str:
    """What the arms of one comparison share; a digit of their group tells other settings apart."""
    student = record.config["student"]
    name = student["name"] if isinstance(student, dict) else student
    return f"{record.task}, {record.scale}, {name} ({record.group[:4]})"


def label(record: Record) -> str:
    """The method and those hyper-parameters that are not its defaults."""
    chosen, info = record.config["method"], method(record.method, record.family, KIND)
    assert isinstance(chosen, dict)
    defaults = {field.name: field.default for field in fields(info.hyperparameters)}
    told = [f"{name}={word(chosen[name])}" for name, usual in defaults.items() if chosen[name] != usual]
    return " ".join([record.method, *told])


def score(record: Record, split: str) -> float:
    """The record's score of val or test."""
    assert record.metrics is not None
    values: dict[str, float] = getattr(record.metrics, split)
    return values[METRIC]


def choices(name: str, arms: Arms) -> Iterable[Sequence[str]]:
    """One row for each trained arm."""
    start = arms.get("untrained", {})
    for arm, runs in sorted(arms.items()):
        if arm == "untrained":
            yield name, arm, str(len(runs)), spread([score(run, "test") for run in runs.values()]), "–", "–", "–"
            continue
        mine = spread([score(run, "test") for run in runs.values()])
        allowed, half, early = "–", "–", "–"
        if runs.keys() <= start.keys():
            chosen = [max((start[seed], run), key=lambda one: score(one, "val")) for seed, run in runs.items()]
            allowed = spread([score(run, "test") for run in chosen])
            best = sorted(chosen, key=lambda run: score(run, "val"), reverse=True)[: len(chosen) // 2]
            if best:
                half = spread([score(run, "test") for run in best])
                early = f"{sum(run.method == 'untrained' for run in best)} of {len(best)}"
        yield name, arm, str(len(runs)), mine, allowed, half, early


def differences(name: str, arms: Arms) -> Iterable[Sequence[str]]:
    """Mirage minus alone, untrained and the random graphs of the same thresholds."""
    for arm, runs in sorted(arms.items()):
        if not arm.startswith("mirage"):
            continue
        for other, theirs in sorted(arms.items()):
            same_set = other.startswith("random_graphs") and thresholds(theirs) == thresholds(runs)
            both = sorted(runs.keys() & theirs.keys())
            if both and (same_set or other in ("alone", "untrained")):
                found = paired(*([score(one[seed], "test") for seed in both] for one in (runs, theirs)))
                interval = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
                p = "–" if found.p is None else f"{found.p:.2g}"
                yield name, f"{arm} − {other}", str(found.n), f"{found.mean:+.3f}{interval}", p


def thresholds(runs: Mapping[int, Record]) -> object:
    """What says which condensed set an arm goes by."""
    chosen = next(iter(runs.values())).config["method"]
    assert isinstance(chosen, dict)
    return [chosen.get(name) for name in ("theta", "hops", "drop_shared")]


def sizes(name: str, arms: Arms) -> Iterable[Sequence[str]]:
    """One row for each arm that trains on a set of its own; the full data last."""
    found = []
    for arm, runs in arms.items():
        curves = [run.curves for run in runs.values()]
        if all("train/bytes" in one for one in curves):
            graphs, bytes_ = (
                statistics.mean(one[f"train/{what}"][-1] for one in curves) for what in ("graphs", "bytes")
            )
            found.append((bytes_, arm, f"{graphs:,.0f}", f"{bytes_:,.0f}"))
        elif arm == "alone":
            data = next(iter(runs.values())).data
            found.append((float("inf"), arm, f"{data.sizes.train:,}" if data else "–", "all"))
    for _, arm, graphs, told in sorted(found):
        scores = [score(run, "test") for run in arms[arm].values()]
        own = estimate(scores, resolution(scores))
        yield name, arm, graphs, told, f"{own.mean:.3f}" + ("" if own.low is None else f" ± {own.mean - own.low:.3f}")


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def show(name: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    print(f"\n{name}\n")
    for line in (heading, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


if __name__ == "__main__":
    main()
