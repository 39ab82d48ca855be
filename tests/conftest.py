"""Fixtures for every test: one thread, no network, and the real data where it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KDBENCH_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KDBENCH_WORKERS"] = "1"  # in the test's own process, which has imported torch already


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests out one by one, but those with SLURM together: one cluster serves them, one after another.

    Not by ``xdist_group``: pytest-xdist 3.8 marks groups in a field that pytest 9.2 has no more.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if nodeid.startswith("tests/slurm/") else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; skips where there is none."""
    folder = os.environ.get("KDBENCH_DATA")
    if not folder:
        pytest.skip("KDBENCH_DATA is not set: no real data here")
    return Path(folder)
