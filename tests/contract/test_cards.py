"""Every card at every scale whose data is here: its data is read and its student takes a batch. Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.engine.runner import load_task
from kdbench.engine.stages import StageStore
from kdbench.plan import cards
from kdbench.plan.config import resolve
from kdbench.plan.datasets import dataset, inventory


def scales() -> Iterator[Any]:
    for name in cards.task_paths():
        for scale in cards.card(name).scales:
            yield pytest.param(name, scale, id=f"{name}-{scale}")


@pytest.mark.parametrize(("task", "scale"), scales())
def test_its_data_is_read_and_its_student_takes_a_batch(task: str, scale: str, tmp_path: Path) -> None:
    data = dataset(cards.card(task).dataset_of(scale))
    if inventory(data)["state"] not in ("generated", "present"):
        pytest.skip(f"the data set {data.name} is not here (KDBENCH_DATA)")
    config = resolve({"task": task, "scale": scale, "method": "alone", "trainer.accelerator": "cpu"})
    loaded = load_task(config, StageStore(tmp_path))
    assert min(loaded.facts.sizes.values()) > 0
    rows = loaded.rows_of(loaded.example())[:2]
    if loaded.foundation():
        return  # its student is what a stage trains
    with torch.inference_mode():
        outputs = loaded.module(loaded.student()).eval().forward_batch(loaded.batch_of(rows))
    assert all(torch.isfinite(value).all() for value in outputs.values())
