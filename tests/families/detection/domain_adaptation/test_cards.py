"""The full-scale cards: the published setting in options, and a whole run on small files in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.engine.runner import Silent, run
from kdbench.plan import cards, datasets
from kdbench.plan.config import expand, resolve

FULL = sorted(name for name in cards.task_paths() if name.startswith("domain_adaptation/"))


@pytest.mark.parametrize("task", FULL)
def test_full_cards_are_the_published_setting(task: str) -> None:
    config = resolve({"task": task, "scale": "full", "method": "lpld"})
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("sgd", 0.001, 0.9)
    assert (config.optimizer.weight_decay, config.optimizer.schedule) == (1e-4, "constant")
    assert (config.data.short_side, config.data.long_side, config.data.batch_size) == (600, 1333, 1)
    student = config.student
    assert (student.name, student.proposals, student.training_proposals) == ("r50_c4", 300, 2000)
    assert (student.anchors, student.regions, student.anchor_scales) == (256, 512, (8, 16, 32))
    assert (config.teacher.keep, config.teacher.every, config.trainer.max_epochs) == (0.75, None, 10)
    method = config.hyperparameters
    assert (method.threshold, method.overlap, method.foreground, method.background) == (0.7, 0.4, 0.9, 0.99)
    assert (method.weight, method.epsilon, method.weighted) == (0.1, 1e-9, True)


@pytest.mark.slow
def test_a_full_scale_run_on_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_pair: Any) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    write_pair(tmp_path / datasets.dataset("voc_watercolor").folder, "voc_watercolor")

    words = ["task=domain_adaptation/voc_watercolor", "method=lpld", "student.weights=null", "data.short_side=64"]
    words += ["student.source_epochs=1", "trainer.max_epochs=1", "student.proposals=20", "method.empty=background"]
    (config,) = expand([*words, "trainer.accelerator=cpu", "student.training_proposals=50"])
    outcome = run(config, tmp_path / "runs", Silent())
    assert outcome is not None and outcome.record.status == "done" and outcome.record.data is not None
    assert outcome.record.data.sizes.model_dump() == {"train": 3, "val": 3, "test": 3}
    assert outcome.record.metrics is not None and "ap50_person" in outcome.record.metrics.test
    assert torch.tensor(outcome.record.curves["train/loss"]).isfinite().all()
