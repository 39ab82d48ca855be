"""Fixtures for every test: one thread, no network, and the real data where it is."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KDBENCH_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KDBENCH_WORKERS"] = "1"  # in the test's own process, which has imported torch already


TOGETHER = ("tests/slurm/", "tests/board/browser/")  # one cluster, one browser and one site serve a folder's tests
MARKS = dict(zip((*TOGETHER, "tests/contract/"), ("slurm", "browser", "contract"), strict=True))
CARD = re.compile(r"[\[-]")  # before and behind the card in the name of a test of the contract
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
                return f"{file}[{CARD.split(name)[1]}]"
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

    Tests with SLURM, those with a browser, those of real data and the contract bear the mark of it.
    """
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        for folder, mark in MARKS.items():
            if item.nodeid.startswith(folder):
                item.add_marker(mark)

    def rank(item: pytest.Item) -> int:
        return next((place for place, mark in enumerate((*MARKS.values(), "slow")) if item.get_closest_marker(mark)), 9)

    items.sort(key=rank)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what draws random numbers: a test draws the same ones, whatever ran before it."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program to be used as ``sys.executable`` where many processes start: see ``preloaded.py``."""
    spec = importlib.util.spec_from_file_location("preloaded", Path(__file__).parent / "preloaded.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.server(tmp_path_factory.mktemp("preloaded")) as program:
        yield str(program)


@pytest.fixture
def quick_start(preloaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``sys.executable`` be :func:`preloaded`: in the test, in what it starts, and in what they start."""
    monkeypatch.setattr(sys, "executable", preloaded)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; skips where there is none."""
    folder = os.environ.get("KDBENCH_DATA")
    if not folder:
        pytest.skip("KDBENCH_DATA is not set: no real data here")
    return Path(folder)
