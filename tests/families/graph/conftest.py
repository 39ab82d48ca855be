"""Runs, and small data sets in the layout of published ones, for the graph family's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench import datasets
from kdbench.config import expand
from kdbench.engine.runner import Outcome, run
from kdbench.families.graph import data
from kdbench.hashing import file_digest


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over tiny tensors are 50 times slower when the machine is busy."""
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
    """``do("task=gnn", "method=kd", …)`` does one run on the CPU under ``tmp_path/runs``."""

    def once(*words: str) -> Outcome:
        (config,) = expand([*words, "trainer.accelerator=cpu", "trainer.precision=32-true"])
        outcome = run(config, tmp_path / "runs", Silent())
        assert outcome is not None
        return outcome

    return once


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Mapping[str, bytes]], Path]]:
    """``publish("arxiv", files)`` puts small files where the data set is looked for; their checksums become its own."""
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))

    def written(name: str, files: Mapping[str, bytes]) -> Path:
        info = datasets.dataset(name)
        assert files.keys() == info.files.keys()
        folder = tmp_path / "data" / info.folder
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        told = {file: datasets.File(file_digest(folder / file)) for file in files}
        monkeypatch.setitem(datasets.datasets(), name, replace(info, files=told))
        return folder

    data.load.cache_clear()
    yield written
    data.load.cache_clear()
