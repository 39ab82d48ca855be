"""Fixtures for every test: one thread, no network, and the real data where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KDBENCH_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; skips where there is none."""
    folder = os.environ.get("KDBENCH_DATA")
    if not folder:
        pytest.skip("KDBENCH_DATA is not set: no real data here")
    return Path(folder)
