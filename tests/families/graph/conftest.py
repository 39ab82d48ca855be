"""Runs, and small data sets in the layout of published ones, for the graph family's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.families.graph.node_classification import data
from kdbench.hashing import file_digest
from kdbench.plan import datasets


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Mapping[str, bytes]], Path]]:
    """``publish("arxiv", files)`` puts small files where the data set is looked for; their checksums become its own."""
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))

    def written(name: str, files: Mapping[str, bytes]) -> Path:
        info = datasets.dataset(name)
        assert files.keys() == info.files.keys()
        folder = tmp_path / "data" / info.folder
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        listed = {file: datasets.File(file_digest(folder / file)) for file in files}
        monkeypatch.setitem(datasets.datasets(), name, replace(info, files=listed))
        return folder

    data.load.cache_clear()
    yield written
    data.load.cache_clear()
