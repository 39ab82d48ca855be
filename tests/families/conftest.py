"""Runs for the families' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdbench.engine.runner import Outcome, Silent, run
from kdbench.plan.config import expand


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over tiny tensors are 50 times slower when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def do(tmp_path: Path) -> Callable[..., Outcome]:
    """``do("task=gnn", "method=kd", …)`` does one run on the CPU under ``tmp_path/runs``."""

    def once(*words: str) -> Outcome:
        (config,) = expand([*words, "trainer.accelerator=cpu", "trainer.precision=32-true"])
        outcome = run(config, tmp_path / "runs", Silent())
        assert outcome is not None
        return outcome

    return once
