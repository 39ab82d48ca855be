"""The teacher cache: rows a second against one file a row, and training with it against asking the teacher each step.

    python benchmarks/teacher_cache.py [--quick] [--json] [--rounds N]

Reading: the same float32 rows from the cache, from one .npy or .pt file a row, and from a tensor in memory (the
ceiling), all in the page cache; in random batches and in one pass in order. Training: steps a second with the teacher
cached and live; both must end with the same weights, bit for bit, or the script fails.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Row, alternate, options, report, row
from torch import Tensor
from training import (
    Batch,
    Rows,
    Silent,
    Trained,
    VectorModule,
    VectorSession,
    VectorTask,
    by_engine,
    mlp,
    same_weights,
    vector_config,
)

from kdbench.engine.cache import CacheKey, TeacherCache
from kdbench.engine.runner import Session
from kdbench.engine.teachers import CachedTeacher, FrozenTeacher, Teacher
from kdbench.plan.config import expand

CACHE, MEMORY, LIVE = "teacher cache", "tensor in memory", "live teacher"
BATCH, CLASSES, INPUTS = 128, 10, 256
FILE_ROWS = 2_000

Reader = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure reading, then training."""
    chosen = options(__doc__, rounds=9, quick_rounds=2)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for width in (64, 256, 1024):
            rows += reading(width, 4_000 if chosen.quick else 50_000, chosen.rounds, root / str(width))
        steps = 10 if chosen.quick else 50
        rows += training(f"MLP student, 12-block teacher, batches of {BATCH}", vectors(steps, root), chosen.rounds)
        for method in ("kd", "lingugkd"):
            cases = graph(method, 10 if chosen.quick else 40, root)
            rows += training(f"{method}, 2,277 nodes, full batch", cases, chosen.rounds)
    report("Teacher cache", rows, chosen)


def reading(width: int, size: int, rounds: int, root: Path) -> list[Row]:
    """Rows a second of every reader. A file reader gets the first ``FILE_ROWS`` rows, which is enough to time it."""
    values = torch.randn(size, width, generator=torch.Generator().manual_seed(width))
    key = CacheKey(teacher="random", outputs=("values",), data="random", rows=size)
    cache = TeacherCache.ensure(root, key, ({"values": chunk} for chunk in values.split(4096)))
    for number, value in enumerate(values[:FILE_ROWS]):
        np.save(root / f"{number}.npy", value.numpy())
        torch.save(value.clone(), root / f"{number}.pt")

    def npy(rows: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([np.load(root / f"{number}.npy") for number in rows.tolist()]))

    def pt(rows: Tensor) -> Tensor:
        return torch.stack([torch.load(root / f"{number}.pt") for number in rows.tolist()])

    readers: dict[str, tuple[Reader, int]] = {
        CACHE: (lambda rows: cache.read(rows)["values"], size),
        MEMORY: (lambda rows: values.index_select(0, rows), size),
        "a .npy file a row": (npy, FILE_ROWS),
        "a .pt file a row": (pt, FILE_ROWS),
    }
    for reader, there in readers.values():
        some = torch.randint(there, (64,))
        assert torch.equal(reader(some), values[some])
    result = []
    for order, draw in (("random batches", torch.randperm), ("pass in order", torch.arange)):
        contestants = {name: partial(rate, reader, draw(there)) for name, (reader, there) in readers.items()}
        rates = alternate(contestants, rounds)
        case = f"{order}, {size:,} rows of {width} float32"
        result += [row(case, "rows/s", rates, CACHE, name) for name in readers if name != CACHE]
    return result


def rate(reader: Reader, order: Tensor) -> float:
    """Rows a second over ``order``, a batch at a time, for at least a fifth of a second."""
    passes, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 0.2:
        for rows in order.split(256):
            reader(rows)
        passes += 1
    return passes * len(order) / seconds


def training(case: str, contestants: Mapping[str, Callable[[], Trained]], rounds: int) -> list[Row]:
    """Steps a second of the cached run against the live one's, weights compared."""
    trainings = alternate(contestants, rounds)
    steps = same_weights(trainings, LIVE)
    speeds = {name: [1 / statistics.fmean(t.steps) for t in results] for name, results in trainings.items()}
    return [row(f"training, {case}", "steps/s", speeds, CACHE, LIVE, equal_weights_after_steps=steps)]


def vectors(steps: int, root: Path) -> dict[str, Callable[[], Trained]]:
    """A student of 3 blocks of width 256 under a teacher of 12 blocks of width 1024."""
    data, config = Rows(BATCH * steps, INPUTS, CLASSES), vector_config(epochs=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, network = mlp(INPUTS, 256, 3, CLASSES), mlp(INPUTS, 1024, 12, CLASSES)
    live = FrozenTeacher(network, lambda network, batch: {"logits": network(batch[0])})
    key = CacheKey(teacher=live.sha256, outputs=("logits",), data="random", rows=len(data))
    chunks = (live(data.batch(rows)) for rows in torch.arange(len(data)).split(BATCH))
    cached = CachedTeacher(TeacherCache.ensure(root, key, chunks), rows_of, live.sha256)

    def train(teacher: Teacher) -> Trained:
        student = copy.deepcopy(first)
        session = VectorSession(config, VectorTask(data, BATCH), root)
        module = VectorModule(student, config.optimizer)
        module.attach(session.method, {"teacher": teacher})
        return by_engine(session, module, student[0], Path(tempfile.mkdtemp(dir=root)))

    return {LIVE: partial(train, live), CACHE: partial(train, cached)}


def rows_of(batch: Batch) -> Tensor:
    """Row numbers of a batch."""
    return batch[2]["rows"]


def graph(method: str, epochs: int, root: Path) -> dict[str, Callable[[], Trained]]:
    """The graph family's teacher, which propagates its features over the graph at every step unless it is cached."""
    size = ["data.nodes=2277", "data.classes=7", "data.degree=4.58", "data.words=null", "student.width=256"]
    trainer = [f"trainer.max_epochs={epochs}", f"trainer.check_val_every_n_epoch={epochs}", "trainer.accelerator=cpu"]
    contestants: dict[str, Callable[[], Trained]] = {}
    for name, cached in ((LIVE, "false"), (CACHE, "true")):
        (config,) = expand(["task=gnn", f"method={method}", *size, *trainer, f"teacher.cache={cached}"])
        session = Session(config, root, root, Silent())
        for stage in session.task.stages():
            session.store.ensure(stage)
        contestants[name] = partial(graph_training, session, root)
    return contestants


def graph_training(session: Session, root: Path) -> Trained:
    """Train once from the session's own initialisation."""
    module, _ = session.assemble()
    first = module.get_submodule("student.states.0")
    return by_engine(session, module, first, Path(tempfile.mkdtemp(dir=root)))


if __name__ == "__main__":
    main()
