"""One real SLURM for all tests here; they run in one process of pytest-xdist, one after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import LocalCluster, Unavailable, temporary


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def running() -> Iterator[LocalCluster]:
    """The cluster. Where SLURM is missing or forbidden its tests skip, but never in CI."""
    try:
        with temporary() as cluster:
            yield cluster
    except Unavailable as error:
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(f"no SLURM here: {error}")
        raise


@pytest.fixture
def cluster(running: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster, idle before the test and after it."""
    yield running
    running.command("scancel", "--me")
    for name, state in running.states().items():
        if state.startswith("down") or state.endswith("*"):
            running.node_down(name, with_jobs=True)
            running.node_up(name)
    running.wait(running.shape.names, ("idle",))
