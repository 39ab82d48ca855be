"""Torch seeded from one of a run's random streams, for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdbench.axes import AXES, axis

__all__ = ["AXES", "axis", "seeded"]


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Seed torch inside the block and restore its state after it."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(value)
        yield
