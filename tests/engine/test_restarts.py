"""A student that has collapsed on the validation data is trained anew from another initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdbench.engine.module import DistillationModule
from kdbench.engine.runner import Outcome, Silent, run
from kdbench.errors import UsageError
from kdbench.plan.config import expand

WORDS = ("task=paired_classification", "scale=tiny", "data.pairs=40", "data.validation_pairs=40", "seed=3")
SHORT = ("trainer.max_epochs=3", "trainer.accelerator=cpu", "trainer.checkpoint_every_n_epochs=1")


class Killed(BaseException):
    """Stands for kill -9."""


class Dying(Silent):
    """Kills the run after so many epochs, of all attempts together."""

    def __init__(self, after: int) -> None:
        self.left = after

    def epoch(self, done: int, total: int, value: float | None) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.fixture
def collapses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The validation accuracies that were asked about; every student counts as collapsed."""
    asked: list[float] = []

    def collapsed(self: DistillationModule, scores: Mapping[str, float]) -> bool:
        asked.append(scores["accuracy"])
        return True

    monkeypatch.setattr(DistillationModule, "collapsed", collapsed)
    return asked


def do(root: Path, *words: str, reporter: Silent | None = None) -> Outcome:
    (config,) = expand([*WORDS, *SHORT, "method=alone", *words])
    outcome = run(config, root, reporter or Silent())
    assert outcome is not None
    return outcome


def test_a_collapsed_student_begins_anew_and_the_record_says_so(tmp_path: Path, collapses: list[float]) -> None:
    first, third = do(tmp_path), do(tmp_path, "trainer.restarts=2")
    assert len(collapses) == 1 + 3 and collapses[0] == collapses[1]
    assert [note.split(";")[0] for note in third.record.notes] == [
        "Collapsed from initialisation 0",
        "Collapsed from initialisation 1",
        "Collapsed from initialisation 2, the last.",
    ]
    assert first.record.notes == ["Collapsed from initialisation 0, the last."]
    weights = [load_file(one.folder / "student.safetensors") for one in (first, third)]
    assert any(not value.equal(weights[1][name]) for name, value in weights[0].items())
    assert first.record.costs and third.record.costs and third.record.steps == first.record.steps
    assert third.record.costs.train_seconds > first.record.costs.train_seconds
    assert not list(third.folder.glob("restart-*")) and not (third.folder / "last.ckpt").exists()


def test_a_student_that_did_not_collapse_is_the_same_with_restarts(tmp_path: Path) -> None:
    plain, guarded = do(tmp_path), do(tmp_path, "trainer.restarts=2")
    assert plain.record.curves == guarded.record.curves and guarded.record.notes == []
    assert plain.record.config_hash != guarded.record.config_hash


@pytest.mark.parametrize("after", [2, 5])
def test_a_run_killed_in_any_attempt_goes_on(after: int, tmp_path: Path, collapses: list[float]) -> None:
    whole = do(tmp_path / "whole", "trainer.restarts=1")
    with pytest.raises(Killed):
        do(tmp_path / "cut", "trainer.restarts=1", reporter=Dying(after))
    cut = do(tmp_path / "cut", "trainer.restarts=1")
    assert cut.record.curves == whole.record.curves and cut.record.notes == whole.record.notes
    one, other = (load_file(o.folder / "student.safetensors") for o in (whole, cut))
    assert all(value.equal(other[name]) for name, value in one.items())


def test_restarts_are_of_one_process() -> None:
    with pytest.raises(UsageError, match="restarts takes one process"):
        expand([*WORDS, "method=alone", "trainer.restarts=1", "trainer.devices=2"])
