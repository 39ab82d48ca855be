"""The log of a search: the best mean of the sound points, sealed, and named by the runs that it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import DataError
from kdbench.plan import cards
from kdbench.plan.config import RunConfig, expand
from kdbench.results import searches
from kdbench.results.record import group_of
from kdbench.results.searches import Point, Search, best, budget, log_path
from kdbench.results.select import matching

CARD = """
search: {optimizer.lr: [0.01, 0.003], kd: {alpha: [0.3, 0.7]}}
methods: {kd: {alpha: 0.3, optimizer.lr: 0.003}}
"""


def run_of(folder: Path, *words: str) -> RunConfig:
    path = folder / "searched.yaml"
    path.write_text(cards.task_paths()["gnn"].read_text() + CARD)
    (config,) = expand([f"task={path}", *words])
    return config


def fields(config: RunConfig) -> dict[str, Any]:
    def point(lr: float, alpha: float, *scores: float | None) -> dict[str, Any]:
        return {"options": {"optimizer.lr": lr, "method.alpha": alpha}, "scores": list(scores)}

    return {
        "task": config.task,
        "scale": config.scale,
        "method": config.method,
        "student": "gcn",
        "settings": [],
        "group": group_of(config.to_json()),
        "teacher": config.to_json()["teacher"],
        "metric": "accuracy",
        "mode": "max",
        "seeds": [1000, 1001],
        "points": [point(0.01, 0.3, 0.5, 0.6), point(0.01, 0.7, 0.9, None), point(0.003, 0.3, 0.7, 0.5)],
        "chosen": {"optimizer.lr": 0.003, "method.alpha": 0.3},
        "code": ["0" * 64],
    }


def points(*scores: list[float | None]) -> list[Point]:
    return [Point(options={"optimizer.lr": place}, scores=given) for place, given in enumerate(scores)]


def test_runs_of_a_search_stand_in_no_table_unless_their_seeds_are_given(make: Any) -> None:
    records = [make("kd", seed) for seed in (0, 1000, 1001)]
    assert [one.seed for one in matching(records, ["method=kd"])] == [0]
    assert [one.seed for one in matching(records, ["seed=1000,1001"])] == [1000, 1001]


def test_the_best_mean_is_chosen_the_first_of_several_and_none_with_a_failed_run() -> None:
    tried = points([0.5, 0.5], [0.6, 0.4], [0.9, None])
    assert best(tried, "max") is tried[0]
    assert best(points([0.5, 0.5], [0.2, 0.3]), "min").options == {"optimizer.lr": 1}
    with pytest.raises(ValueError, match="every point"):
        best(points([None, 0.9]), "max")


def test_a_log_is_read_back_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    log = Search.seal(fields(run_of(tmp_path, "method=kd")))
    path = tmp_path / "kd.json"
    path.write_text(log.text)
    assert Search.read(path) == log
    content = json.loads(path.read_text())
    content["points"][0]["scores"][0] = 0.55
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"kd\.json: digest: "):
        Search.read(path)
    content["points"][0]["scores"][0] = 0.95
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the point of the best mean"):
        Search.read(path)


def test_a_run_names_the_published_log_that_chose_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "published", lambda: tmp_path / "search")
    config = run_of(tmp_path, "method=kd", "seed=4")
    assert budget(config) is None
    log = Search.seal(fields(config))
    path = log_path(tmp_path / "search", config.task, "kd")
    path.parent.mkdir(parents=True)
    path.write_text(log.text)
    named = {"points": 3, "seeds": [1000, 1001], "sha256": log.digest}
    assert budget(config) == named
    assert budget(run_of(tmp_path, "method=kd", "control=shuffled_teacher", "method.temperature=2")) == named
    for words in (
        ["method=kd", "optimizer.lr=0.01"],
        ["method=kd", "method.alpha=0.7"],
        ["method=kd", "student.name=gat"],
        ["method=kd", "teacher.source=minilm"],
        ["method=alone"],
    ):
        assert budget(run_of(tmp_path, *words)) is None, words
