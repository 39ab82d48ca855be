"""Runs for the medical family's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdbench.config import expand
from kdbench.engine.runner import Outcome, run


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over tiny tensors are slow when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Silent:
    """A reporter that says nothing."""

    def stage(self, name: str) -> None: ...

    def epoch(self, done: int, total: int, value: float | None) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture
def do(tmp_path: Path) -> Callable[..., Outcome]:
    """``do("task=hippocampus", "method=kd", …)`` does one run on the CPU under ``tmp_path/runs``."""

    def once(*words: str) -> Outcome:
        (config,) = expand([*words, "trainer.accelerator=cpu", "trainer.precision=32-true"])
        outcome = run(config, tmp_path / "runs", Silent())
        assert outcome is not None
        return outcome

    return once
