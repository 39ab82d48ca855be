"""Several processes at one run: a request that comes to nothing removes its folder under the others' feet."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from kdbench.engine import runner
from kdbench.plan.config import RunConfig, expand

ROUNDS, TOGETHER = 25, 3


def ask(config: RunConfig, root: Path, barrier: Barrier, told: Queue[str]) -> None:
    for number in range(ROUNDS):
        barrier.wait()
        try:
            runner.run(config, root / str(number), runner.Silent())
        except Exception as error:
            told.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_the_same_bad_request_at_once_is_told_to_each_and_leaves_nothing(tmp_path: Path) -> None:
    (config,) = expand(["task=gnn", "method=kd", "teacher.source=cached"])
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(TOGETHER), context.Queue()
    processes = [context.Process(target=ask, args=(config, tmp_path, barrier, told)) for _ in range(TOGETHER)]
    for process in processes:
        process.start()
    said = [told.get(timeout=250) for _ in range(ROUNDS * TOGETHER)]
    for process in processes:
        process.join(60)
    assert all(line.startswith("UsageError: No language-model features") for line in said), set(said)
    assert not list(tmp_path.glob("*/gnn"))
