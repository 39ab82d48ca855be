"""One real SLURM for all tests here; they run one after another, in one process of pytest-xdist."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from local_cluster import LocalCluster, Unavailable, temporary


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
