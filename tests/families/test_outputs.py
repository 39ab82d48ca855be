"""Teachers whose outputs were computed elsewhere, on the tiny cards of every kind that takes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.describe import rows
from kdbench.engine.runner import Outcome, load_task
from kdbench.engine.stages import StageStore
from kdbench.errors import UsageError
from kdbench.hashing import file_digest
from kdbench.plan.config import expand

Do = Callable[..., Outcome]
CARDS = ("gnn", "graph_classification", "hippocampus", "paired_classification")
FIXED = {"hippocampus": ["data.views=fixed", "data.crops=2"]}


def brought(task: str, path: Path, **more: np.ndarray) -> list[str]:
    """Outputs for every row of a tiny card, drawn at random; the words that bring them."""
    listed = rows([task, *FIXED.get(task, [])])
    count = len(listed["rows"])
    logits = np.random.default_rng(0).normal(size=(count, *listed["logits"])).astype(np.float32)
    np.savez(path, ids=np.arange(count), logits=logits, **more)
    return [f"task={task}", "teacher.source=outputs", f"teacher.path={path}", *FIXED.get(task, [])]


@pytest.mark.parametrize("task", CARDS)
def test_plain_kd_learns_from_a_file_as_live_as_cached(task: str, do: Do, tmp_path: Path) -> None:
    words = [*brought(task, tmp_path / "teacher.npz"), "method=kd", "trainer.max_epochs=1"]
    words += ["trainer.check_val_every_n_epoch=1"]
    live, cached = (do(*words, f"teacher.cache={cache}").record for cache in ("false", "true"))
    assert live.metrics == cached.metrics and live.curves == cached.curves
    assert live.teacher is not None and live.teacher.kind == "outputs" and not live.stages
    assert live.teacher.sha256 == file_digest(tmp_path / "teacher.npz")
    scored = live.teacher.metrics.test
    assert scored == {} if task == "hippocampus" else scored["accuracy"] < 0.9


def test_the_teacher_s_scores_are_those_of_its_logits(do: Do, tmp_path: Path) -> None:
    listed = rows(["paired_classification"])
    words = brought("paired_classification", tmp_path / "teacher.npz")
    (config,) = expand([*words, "method=kd"])
    task = load_task(config, StageStore(tmp_path))
    right = task.pairs.y.numpy()  # type: ignore[attr-defined]
    np.savez(tmp_path / "teacher.npz", ids=np.arange(len(right)), logits=9 * np.eye(listed["logits"][0])[right])
    record = do(*words, "method=kd", "trainer.max_epochs=1").record
    assert record.teacher is not None and record.teacher.metrics.test["accuracy"] == 1.0


@pytest.mark.parametrize("control", ["shuffled_teacher", "random_teacher"])
def test_controls_work_on_a_file(control: str, do: Do, tmp_path: Path) -> None:
    words = [*brought("gnn", tmp_path / "teacher.npz"), "method=kd", "trainer.max_epochs=2"]
    assert do(*words, f"control={control}").record.curves != do(*words).record.curves


def test_another_file_makes_the_record_stale(do: Do, tmp_path: Path) -> None:
    words = [*brought("gnn", tmp_path / "teacher.npz"), "method=kd", "trainer.max_epochs=2"]
    assert not do(*words).reused and do(*words).reused
    brought("gnn", tmp_path / "teacher.npz", hop0=np.zeros((600, 2)))
    assert not do(*words).reused


def test_features_are_outputs_too_and_a_method_says_which_it_misses(do: Do, tmp_path: Path) -> None:
    hops = {f"hop{hop}": np.random.default_rng(hop).normal(size=(600, 8)) for hop in range(3)}
    words = ["method=lingugkd", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    assert do(*brought("gnn", tmp_path / "teacher.npz", **hops), *words).record.status == "done"
    with pytest.raises(UsageError, match="hop0"):
        do(*brought("gnn", tmp_path / "logits.npz"), *words)


def test_a_file_that_does_not_fit_is_refused_before_any_work(do: Do, tmp_path: Path) -> None:
    words = brought("gnn", tmp_path / "teacher.npz")
    with pytest.raises(UsageError, match="4 classes, the task has 3"):
        do(*words, "method=kd", "data.classes=3")
    with pytest.raises(UsageError, match="no file can hold outputs"):
        do("task=hippocampus", "method=kd", "teacher.source=outputs", "data.views=random", "teacher.cache=false")
    assert not (tmp_path / "runs" / "stages").exists()
