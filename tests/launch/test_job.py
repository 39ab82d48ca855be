"""What runs share is done before them: a failure is left to the runs to tell, but a stop ends the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.engine import runner
from kdbench.errors import KdbenchError, StoppedError
from kdbench.launch.job import prepare
from kdbench.launch.sweep import from_words
from kdbench.plan.config import RunConfig


@pytest.mark.parametrize(("error", "asked"), [(StoppedError, 1), (KdbenchError, 2)])
def test_a_stop_ends_the_preparation_and_a_failure_does_not(
    error: type[KdbenchError], asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fail(config: RunConfig, root: Path, reporter: runner.Reporter) -> None:
        seen.append(config.seed)
        raise error("told")

    monkeypatch.setattr(runner, "prepare", fail)
    runs = list(from_words(["task=gnn", "method=kd", "seed=0..1"], tmp_path).runs.values())
    if error is StoppedError:
        with pytest.raises(StoppedError):
            prepare(runs, tmp_path)
    else:
        prepare(runs, tmp_path)
    assert len(seen) == asked
