"""The audit: each of its checks fails where a comparison is unsound, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench import hashing
from kdbench.results import arms
from kdbench.results import audit as auditing
from kdbench.results import record as records
from kdbench.results.arms import collapsed
from kdbench.results.audit import Audit, audit, still_rising
from kdbench.results.record import Record

FLAT = [0.5, 0.7, 0.74, 0.76, 0.75, 0.74, 0.76, 0.75, 0.75, 0.75]
RISING = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
Fields = Callable[..., dict[str, Any]]
Runs = Callable[..., list[Record]]


@pytest.fixture
def runs(fields: Fields) -> Runs:
    """The runs of an arm, one a seed, that were validated after every epoch; the best one was kept."""

    def made(
        method: str, rights: Sequence[int], values: Sequence[float] = FLAT, schedule: str = "constant", **more: Any
    ) -> list[Record]:
        return [_run(fields(method, seed, right, **more), values, schedule) for seed, right in enumerate(rights)]

    return made


def _run(given: dict[str, Any], values: Sequence[float], schedule: str) -> Record:
    config = given["config"]
    config["optimizer"]["schedule"] = schedule
    best = max(values)
    chosen = values.index(best)
    epochs = [float(epoch) for epoch in range(len(values))]
    more = {
        "schema_version": records.SCHEMA_VERSION,
        "protocol": records.PROTOCOL,
        "steps": 30,
        "code": {"sha256": hashing.digest({}), "files": {}},
        "reports": {},
        "search": {"points": 4, "seeds": [1000, 1001], "sha256": "e" * 64},
        "config_hash": hashing.digest(config),
        "group": records.group_of(config),
        "curves": {"epoch": epochs, "val/accuracy": list(values)},
        "selection": {"metric": "accuracy", "mode": "max", "epoch": chosen, "value": best},
        "metrics": {"val": {"accuracy": best, "macro_f1": 0.5}, "test": given["metrics"]["test"]},
    }
    return records.seal({**given, **more})


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The card of the records' task; ``sgc`` is a reference."""
    one = SimpleNamespace(reference="sgc", excused={})
    roles = {"sgc": SimpleNamespace(role="reference")}
    monkeypatch.setattr(auditing, "card_of", lambda task, family: one)
    monkeypatch.setattr(arms, "installed_method", lambda family, name: roles.get(name))
    return one


def only(given: Sequence[Record]) -> Audit:
    (one,) = audit(given)
    return one


@pytest.mark.parametrize(
    ("alone", "sgc", "fault"),
    [
        ([44, 46, 45], [44, 45, 46], None),
        ([44, 46, 45], [45, 46, 46], None),
        ([44, 46, 45], [48, 49, 50], "alone: sgc is above it by 0.0667 over 3 seeds"),
        ([56, 57, 55], [44, 45, 46], "teacher: not above the student alone by 0.0333"),
        ([44, 46, 45], [], "alone: no run of its reference sgc pairs with it on record"),
    ],
)
def test_the_student_alone_reaches_its_reference_and_not_the_teacher(
    runs: Runs, alone: list[int], sgc: list[int], fault: str | None
) -> None:
    one = only([*runs("alone", alone), *runs("kd", [47, 48, 46]), *runs("sgc", sgc, teacher=None)])
    assert one.state == ("unsound" if fault else "sound"), one.faults
    assert one.faults == ((fault,) if fault else ())


def test_an_arm_without_a_search_is_named(runs: Runs) -> None:
    unsearched = [
        records.seal({**one.model_dump(exclude={"digest"}), "search": None}) for one in runs("kd", [47, 48, 46])
    ]
    one = only([*runs("alone", [44, 46, 45]), *unsearched, *runs("sgc", [44, 45, 46], teacher=None)])
    assert one.faults == ("kd: no search on validation data chose its options",)


def test_a_card_without_a_reference_makes_no_comparison_sound(runs: Runs, card: SimpleNamespace) -> None:
    card.reference = None
    one = only([*runs("alone", [44, 45]), *runs("kd", [46, 48])])
    assert one.faults == ("alone: the task's card names no reference",)


def test_an_arm_that_still_rises_is_not_converged(runs: Runs) -> None:
    others = [*runs("alone", [44, 46, 45]), *runs("sgc", [44, 45, 46], teacher=None)]
    one = only([*others, *runs("kd", [47, 48, 46], RISING)])
    assert one.faults == ("kd: 3 of 3 runs still rise at their end",)
    short = only([*others, *runs("kd", [47, 48, 46], RISING[:3])])
    assert short.faults == ("kd: fewer than 4 validations: it cannot be seen to converge",)


def test_a_rate_that_anneals_needs_a_longer_training_on_record(runs: Runs) -> None:
    def of(method: str, rights: list[int], **more: Any) -> list[Record]:
        return runs(method, rights, schedule="cosine", **more)

    given = [*of("alone", [44, 46, 45]), *of("kd", [47, 48, 46]), *of("sgc", [44, 45, 46], teacher=None)]
    assert only(given).faults == (
        "alone: its rate anneals, so that a flat end says nothing, and no longer training of it is on record",
    )
    better, same = ([*given, *of("alone", longer, hyper={"budget": 2})] for longer in ([50, 52, 51], [45, 45, 45]))
    assert only(better).faults == ("alone: alone (budget=2) gains 0.1000 over 3 seeds",)
    assert only(same).state == "sound"


def test_collapsed_runs_are_counted(runs: Runs, fields: Fields) -> None:
    constant = "1" * 60
    confusion = [[0, 20, 0] for _ in range(3)]
    scores = {"accuracy": 1 / 3, "macro_f1": 1 / 6}
    gone = {"predictions": constant, "confusion": confusion, "metrics": {"val": {}, "test": scores}}
    others = [*runs("alone", [44, 46, 45]), *runs("sgc", [44, 45, 46], teacher=None)]
    one = only([*others, *runs("kd", [47, 48, 46], **gone)])
    assert one.faults == ("kd: 3 of 3 runs collapsed",)
    (dead,) = runs("kd", [47])
    assert not collapsed(dead)


def test_an_excuse_of_the_card_is_shown_with_the_fault(runs: Runs, card: SimpleNamespace) -> None:
    given = [*runs("alone", [44, 46, 45]), *runs("kd", [47, 48, 46], RISING), *runs("sgc", [48, 49, 50], teacher=None)]
    card.excused = {"kd.converged": "its schedule is the paper's"}
    half = only(given)
    assert half.state == "unsound" and half.faults[-1].endswith("over 3 seeds")
    card.excused = {"converged": "as published", "reference": "a bag of words is hard to beat"}
    whole = only(given)
    assert whole.state == "excused"
    assert whole.faults[0] == "kd: 3 of 3 runs still rise at their end (excused: as published)"


@pytest.mark.parametrize(
    ("values", "rising"),
    [(RISING, True), (FLAT, False), ([0.75, 0.7, 0.5, 0.5, 0.5], False), ([0.1, 0.2, 0.3], None)],
)
def test_a_curve_rises_where_its_end_gains_more_than_its_noise(
    runs: Runs, values: list[float], rising: bool | None
) -> None:
    (one,) = runs("kd", [47], values)
    assert still_rising(one) is rising


def test_controls_and_methods_alone_are_no_comparison(runs: Runs) -> None:
    assert audit(runs("alone", [44, 45])) == []
