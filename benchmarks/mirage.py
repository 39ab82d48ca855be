"""Condensing a graph set (colours, mining, building) as the set grows: time and memory, ×10 and ×100 against ×1.

    python benchmarks/mirage.py [--quick] [--json] [--rounds N]

Generated graphs; the thresholds grow along, so that the frequent sets stay about the same. A ratio as large as the
growth means linear. NCI1 is timed too where its file is ($KDBENCH_DATA). Peak memory is that of NumPy and Python
objects (tracemalloc), the graphs themselves left out.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from functools import partial

from common import Row, alternate, options, report, row

from kdbench.families.graph.graph_classification.condense import condense
from kdbench.families.graph.graph_classification.data import Graphs, load
from kdbench.families.graph.graph_classification.options import GraphData
from kdbench.plan.datasets import dataset

BASE, THETA, HOPS = 400, 40, 2


def main() -> None:
    """Measure both, print one table."""
    chosen = options(__doc__, rounds=3, quick_rounds=1)
    factors = (1, 10) if chosen.quick else (1, 10, 100)
    sets = {factor: training_graphs("motifs", BASE * factor) for factor in factors}
    condensing = {f"×{factor}": partial(once, graphs, (THETA * factor,) * 2) for factor, graphs in sets.items()}
    times = alternate({name: partial(seconds, work) for name, work in condensing.items()}, chosen.rounds)
    memory = alternate({name: partial(megabytes, work) for name, work in condensing.items()}, 1)
    rows: list[Row] = []
    for factor, graphs in list(sets.items())[1:]:
        name = f"×{factor}"
        size = {"graphs": len(graphs), "nodes": len(graphs.x), "edges": graphs.edges.shape[1]}
        rows.append(row("time", "s", times, name, "×1", **size, sets=condensing[name]()))
        rows.append(row("peak memory", "MB", memory, name, "×1"))
    if all(dataset("nci1").state(file)[0] == "present" for file in dataset("nci1").files):
        work = partial(once, training_graphs("nci1", BASE), (440, 570))
        samples = alternate({"NCI1": partial(seconds, work), "×1": partial(seconds, condensing["×1"])}, chosen.rounds)
        rows.append(row("time", "s", samples, "NCI1", "×1", sets=work()))
    report("Condensing", rows, chosen)


def training_graphs(name: str, graphs: int) -> Graphs:
    """The training graphs of a set."""
    data = load(name, GraphData(graphs=graphs, split="fixed"), 0)
    return data.graphs.take(data.ids("train"))


def once(graphs: Graphs, theta: tuple[int, int]) -> list[int]:
    """Condense; the number of frequent sets of each class."""
    patterns: list[int] = condense(graphs, HOPS, theta, drop_shared=False).facts["patterns"]
    return patterns


def seconds(work: Callable[[], object]) -> float:
    """Time of the work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def megabytes(work: Callable[[], object]) -> float:
    """Peak of what the work allocates."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


if __name__ == "__main__":
    main()
