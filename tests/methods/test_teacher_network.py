"""The teacher on record: its own score by the task's protocol, and no training but its stages'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.describe import rows
from kdbench.engine.runner import Outcome, Silent, run
from kdbench.errors import UsageError
from kdbench.plan.config import expand
from kdbench.results.compare import compare
from kdbench.results.store import validate

QUICK = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "trainer.accelerator=cpu"]


@pytest.fixture
def do(tmp_path: Path) -> Callable[..., Outcome]:
    def once(*words: str) -> Outcome:
        (config,) = expand([*words, *QUICK])
        outcome = run(config, tmp_path / "runs", Silent())
        assert outcome is not None
        return outcome

    return once


@pytest.mark.parametrize("task", ["graph_classification", "hippocampus", "paired_classification"])
def test_its_score_is_the_teacher_s_of_plain_kd(task: str, do: Callable[..., Outcome]) -> None:
    words = [f"task={task}", *(["teacher.epochs=2"] if task != "paired_classification" else [])]
    own, taught = do(*words, "method=teacher_network"), do(*words, "method=kd")
    record, kd = own.record, taught.record
    assert validate([own.folder / "record.json"]).problems == []
    assert kd.teacher is not None and record.teacher is not None and record.metrics is not None
    assert record.teacher.sha256 == kd.teacher.sha256 and not any(record.curves.values())
    assert record.metrics.test == pytest.approx(kd.teacher.metrics.test, abs=1e-6)
    assert [stage.name for stage in record.stages] == [stage.name for stage in kd.stages]
    assert record.costs is not None and kd.costs is not None and record.costs.parameters != kd.costs.parameters
    (comparison,) = compare([record, kd])
    rows = {row.method: row for row in comparison.rows}
    assert rows["teacher_network"].scores == pytest.approx(rows["teacher"].scores, abs=1e-6)


@pytest.mark.parametrize("task", ["gnn", "domain_adaptation"])
def test_a_kind_without_a_teacher_network_has_no_such_arm(task: str) -> None:
    with pytest.raises(UsageError, match="teacher_network"):
        expand([f"task={task}", "method=teacher_network"])


def test_there_is_no_control_and_no_network_of_brought_outputs(do: Callable[..., Outcome], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="frozen teachers"):
        expand(["task=graph_classification", "method=teacher_network", "control=random_teacher"])
    count = len(rows(["graph_classification"])["rows"])
    np.savez(tmp_path / "t.npz", ids=np.arange(count), logits=np.zeros((count, 2)))
    with pytest.raises(UsageError, match="no network to deploy"):
        do(
            "task=graph_classification",
            "method=teacher_network",
            "teacher.source=outputs",
            f"teacher.path={tmp_path / 't.npz'}",
        )
