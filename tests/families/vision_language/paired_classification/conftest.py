"""Runs, and small data sets in the layout of published ones, for the vision-language family's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.engine.runner import load_task
from kdbench.engine.stages import StageStore
from kdbench.families.vision_language.paired_classification import data as pairs
from kdbench.families.vision_language.paired_classification.task import PairedTask
from kdbench.plan import datasets
from kdbench.plan.config import expand


@pytest.fixture
def small_task(tmp_path: Path) -> Callable[..., PairedTask]:
    """``small_task("method=kd", …)``: the generated task with 40 training pairs, stages under ``tmp_path/stages``."""

    def build(*words: str) -> PairedTask:
        small = ["data.pairs=40", "data.validation_pairs=24", "data.batch_size=16", "student.channels=2"]
        (config,) = expand(["task=paired_classification", *small, "trainer.accelerator=cpu", *words])
        task = load_task(config, StageStore(tmp_path / "stages"))
        assert isinstance(task, PairedTask)
        return task

    return build


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Mapping[str, Any]], Path]]:
    """``publish("ravdess", {"label_data.npy": write, …})``: each ``write(path)`` makes a file where it is looked for.

    The data set states no checksum of them.
    """
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))

    def written(name: str, files: Mapping[str, Callable[[Path], object]]) -> Path:
        info = datasets.dataset(name)
        folder = tmp_path / "data" / info.folder
        for file, write in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write(folder / file)
        told = dict.fromkeys(info.files, datasets.File())
        monkeypatch.setitem(datasets.datasets(), name, replace(info, files=told))
        return folder

    pairs.load.cache_clear()
    yield written
    pairs.load.cache_clear()
