"""Fixtures for every test: one thread, no network, and the real data where it is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KDBENCH_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KDBENCH_WORKERS"] = "1"  # in the test's own process, which has imported torch already


TOGETHER = ("tests/slurm/", "tests/board/browser/")  # one cluster, one browser and one site serve a folder's tests
ALONE = ("tests/launch/test_pool.py", "tests/launch/test_local.py")  # files of long tests, shared out one by one


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests out by files, in the order of :func:`pytest_collection_modifyitems`, and the contract by cards.

    Not by ``xdist_group``: pytest-xdist 3.8 marks groups in a field that pytest 9.2 has no more.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, name = nodeid.partition("::")
            if file.startswith("tests/contract/") and "-" in name:
                return f"{file}[{re.split(r'[[-]', name)[1]}]"
            folder = next((folder for folder in TOGETHER if file.startswith(folder)), file)
            return nodeid if file in ALONE else folder

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--kills 50``: the kill test as long as one likes."""
    parser.addoption("--kills", type=int, default=12, help="how often the kill test kills a run (default: 12)")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no worker is left alone with one at the end: SLURM's, which mostly wait, before all.

    Tests with SLURM or a browser bear the mark of it.
    """
    for item in items:
        for folder, mark in zip(TOGETHER, ("slurm", "browser"), strict=True):
            if item.nodeid.startswith(folder):
                item.add_marker(mark)

    def rank(item: pytest.Item) -> int:
        folders = (*TOGETHER, "tests/contract/")
        first = next((place for place, folder in enumerate(folders) if item.nodeid.startswith(folder)), len(folders))
        return first if item.get_closest_marker("slow") is None else min(first, 1)

    items.sort(key=rank)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; skips where there is none."""
    folder = os.environ.get("KDBENCH_DATA")
    if not folder:
        pytest.skip("KDBENCH_DATA is not set: no real data here")
    return Path(folder)
