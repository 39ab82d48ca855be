"""Declared contrasts: which arms meet, in which family, and what their intervals are over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdbench import hashing
from kdbench.plan.metrics import scores
from kdbench.results import arms as arming
from kdbench.results import headline, outcomes, store
from kdbench.results import record as recording
from kdbench.results.claims import sign_flip
from kdbench.results.compare import Comparison, Row, compare
from kdbench.results.crossed import variance
from kdbench.results.record import Record
from kdbench.results.render import footnotes, verdicts

Make = Callable[..., Record]
Arms = Callable[..., list[Record]]
ALONE, KD, OURS = [36, 38, 35, 39, 37], [40, 43, 39, 41, 42], [41, 42, 40, 44, 41]
TRUTH = np.arange(60) % 3


@pytest.fixture
def tested(fields: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Record]:
    """A run whose outcomes lie beside its record: ``tested("kd", seed, right)`` with ``right`` bool ``[60]``."""

    def write(method: str, seed: int, right: np.ndarray, split: str | None = None, kept: bool = True) -> Record:
        predicted = np.where(right, TRUTH, (TRUTH + 1) % 3)
        confusion = np.zeros((3, 3), dtype=int)
        np.add.at(confusion, (TRUTH, predicted), 1)
        made = fields(method, seed)
        made["data"]["split_sha256"] = hashing.digest(["split", split or seed])
        made |= {
            "predictions": "".join(map(str, predicted)),
            "confusion": confusion.tolist(),
            "metrics": {"val": made["metrics"]["val"], "test": scores(confusion.tolist())},
        }
        arrays = {"items": np.arange(60), "targets": TRUTH, "predicted": predicted}
        data, facts = outcomes.packed({f"test/{name}": value for name, value in arrays.items()})
        new = {"schema_version": 4, "protocol": 2, "steps": 30, "reports": {}, "outcomes": facts}
        sealed = recording.seal({**made, **new, "code": {"sha256": hashing.digest({}), "files": {}}})
        path = tmp_path / "runs" / sealed.config_hash[:16] / "record.json"
        if kept:
            hashing.write_atomic(outcomes.sidecar(path), data)
        hashing.write_atomic(path, recording.dumps(sealed))
        return store.read([path])[0]

    return write


def one(records: list[Record]) -> Comparison:
    (comparison,) = compare(records)
    return comparison


def row(comparison: Comparison, label: str) -> Row:
    (single,) = [row for row in comparison.rows if row.label == label]
    return single


def drawn(seeds: int, share: float, seed: int = 0) -> list[np.ndarray]:
    """Which of 60 examples are right: what is hard for one seed is hard for all."""
    draw = np.random.default_rng(seed)
    hard = draw.normal(0, 1, 60)
    return [hard + draw.normal(0, 1, 60) < np.quantile(hard, share) for _ in range(seeds)]


def test_outcomes_give_intervals_over_seeds_and_items(tested: Callable[..., Record]) -> None:
    alone, kd = drawn(5, 0.6), drawn(5, 0.8, seed=1)
    runs = [tested("alone", s, x) for s, x in enumerate(alone)] + [tested("kd", s, x) for s, x in enumerate(kd)]
    comparison = one(runs)
    delta, own = row(comparison, "kd").delta_alone, row(comparison, "kd").estimate
    expected = variance([k.astype(float) - a for k, a in zip(kd, alone, strict=True)], [np.arange(60)] * 5)
    assert delta and expected and expected.shared > 0
    assert (delta.over, delta.units, delta.n) == ("seeds × items", 5, 5)
    assert delta.low == pytest.approx(delta.mean - expected.margin()) and delta.seeds_low is not None
    assert delta.p == pytest.approx(expected.p_value(delta.mean)) and delta.low < delta.seeds_low
    alike = variance([k.astype(float) for k in kd], [np.arange(60)] * 5)
    assert own and alike and own.over == "seeds × items" and own.low == pytest.approx(own.mean - alike.margin())
    assert comparison.protocol == 2 and comparison.splits == 5
    assert any("over seeds × items" in note for note in footnotes(comparison))
    assert not any("hold the test items for fixed" in note for note in footnotes(comparison))


def test_a_run_without_outcomes_leaves_the_seeds(tested: Callable[..., Record]) -> None:
    runs = [tested("alone", s, x) for s, x in enumerate(drawn(5, 0.6))]
    runs += [tested("kd", s, x, kept=s != 3) for s, x in enumerate(drawn(5, 0.8, seed=1))]
    comparison = one(runs)
    delta, own, other = (
        row(comparison, "kd").delta_alone,
        row(comparison, "kd").estimate,
        row(comparison, "alone").estimate,
    )
    assert delta and own and other and (delta.over, own.over, other.over) == ("seeds", "seeds", "seeds × items")
    assert (delta.low, delta.high) == (delta.seeds_low, delta.seeds_high)
    assert any("hold the test items for fixed" in note for note in footnotes(comparison))


def test_seeds_that_share_a_split_count_as_one(tested: Callable[..., Record]) -> None:
    runs = [tested("alone", s, x, split="ab"[s % 2]) for s, x in enumerate(drawn(6, 0.6))]
    runs += [tested("kd", s, x, split="ab"[s % 2]) for s, x in enumerate(drawn(6, 0.8, seed=1))]
    comparison = one(runs)
    delta = row(comparison, "kd").delta_alone
    assert delta and (delta.over, delta.units, delta.n) == ("splits × items", 2, 6)
    assert any("2 splits are the units" in note for note in footnotes(comparison))


def test_one_split_is_said(tested: Callable[..., Record]) -> None:
    runs = [tested("alone", s, x, split="a") for s, x in enumerate(drawn(3, 0.6))]
    comparison = one([*runs, *(tested("kd", s, x, split="a") for s, x in enumerate(drawn(3, 0.8, seed=1)))])
    delta = row(comparison, "kd").delta_alone
    assert delta and (delta.over, delta.units) == ("seeds × items", 3)
    assert any("all seeds share one split" in note for note in footnotes(comparison))


def test_two_protocols_are_never_compared(tested: Callable[..., Record], arms: Arms) -> None:
    new = [tested("kd", s, x) for s, x in enumerate(drawn(3, 0.8))]
    assert [found.protocol for found in compare([*new, *arms("alone", ALONE)])] == [2, 1]


def test_a_method_with_stages_meets_a_student_that_trained_as_long(arms: Arms, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"alone": {"budget": 1.0}}
    monkeypatch.setattr(arming, "defaults", lambda family, method: usual.get(method, {}))
    own = [{"name": "condense", "key": "c" * 64, "seconds": 3.5, "reused": False}]
    costs = {**arms("kd", KD)[0].model_dump()["costs"], "stage_seconds": 3.5}
    longer = [
        record
        for budget, seconds in ((2.0, 7.1), (4.0, 14.0))
        for record in arms(
            "alone",
            [x + 1 for x in OURS[::-1]],
            hyper={"budget": budget},
            costs={**costs, "train_seconds": seconds, "stage_seconds": 0.0},
            stages=[],
        )
    ]
    baselines = [*arms("alone", ALONE, hyper={"budget": 1.0}), *arms("kd", KD), *longer]
    comparison = one([*baselines, *arms("staged", OURS, stages=own, costs=costs), *arms("plain", OURS)])
    staged, plain = row(comparison, "staged"), row(comparison, "plain")
    assert (staged.against_alone, plain.against_alone) == ("alone (budget=2.0)", "alone")
    assert staged.delta_alone and staged.delta_alone.mean == pytest.approx(-1 / 60)
    assert row(comparison, "alone (budget=2.0)").kind == "ablation"
    assert any(note.startswith("Δ alone of staged: against alone (budget=2.0)") for note in footnotes(comparison))


def test_families_have_corrections_of_their_own(arms: Arms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablations, controls, bounds and references do not make a method's p larger."""
    roles = {"top": "bound", "sgc": "reference", "chance": "control"}
    monkeypatch.setattr(
        arming,
        "installed_method",
        lambda family, name: SimpleNamespace(role=roles[name]) if name in roles else None,
    )
    monkeypatch.setattr(arming, "defaults", lambda family, method: {"w": 1} if method == "ours" else {})
    core = [*arms("alone", ALONE), *arms("kd", KD), *arms("ours", OURS, hyper={"w": 1})]
    few = row(one(core), "ours")
    extra = [
        *arms("ours", KD[::-1], hyper={"w": 2}),
        *arms("ours", ALONE[::-1], hyper={"w": 1}, control="random_teacher", teacher_right=20),
        *(record for name in roles for record in arms(name, [50, 51, 49, 52, 50])),
    ]
    comparison = one([*core, *extra])
    kinds = {found.label: found.kind for found in comparison.rows}
    assert kinds == {
        **{"teacher": "teacher", "alone": "baseline", "kd": "baseline", "ours": "method", "ours (w=2)": "ablation"},
        **{"ours · random teacher": "control", "chance": "control", "sgc": "reference", "top": "bound"},
    }
    many = row(comparison, "ours")
    assert (many.p_alone, many.p_kd, many.delta_kd) == (few.p_alone, few.p_kd, few.delta_kd)
    other = row(comparison, "ours (w=2)")
    assert other.delta_default and other.delta_default.mean == pytest.approx((sum(KD) - sum(OURS)) / 300)
    assert other.delta_default.alpha == 0.05 and other.p_default == other.delta_default.p and other.p_kd is None
    assert any(line.startswith("ours (w=2) − ours: ") for line in verdicts(comparison))
    assert any(line.startswith("ours − chance: ") for line in verdicts(comparison))
    control, chance = row(comparison, "ours · random teacher"), row(comparison, "chance")
    assert control.delta_kd and control.p_kd is None and control.delta_kd.alpha == 0.05
    # Its family: two methods less their control, and what the control that is a method does to alone and kd.
    assert chance.p_kd is not None and chance.delta_real and chance.delta_real.alpha == pytest.approx(0.05 / 4)


def test_ten_pairs_over_seeds_flip_signs(arms: Arms) -> None:
    alone, kd = ALONE * 2, [x + y for x, y in zip(ALONE * 2, [1, 2, 0, 3, 1, 2, -1, 1, 4, 2], strict=True)]
    delta = row(one([*arms("alone", alone), *arms("kd", kd)]), "kd").delta_alone
    assert delta and delta.over == "seeds"
    assert delta.p == pytest.approx(sign_flip([k / 60 - a / 60 for k, a in zip(kd, alone, strict=True)]))


def test_equivalence_is_claimed_by_two_one_sided_tests_alone(arms: Arms, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [*arms("alone", ALONE), *arms("kd", [x + y for x, y in zip(ALONE, [1, -1, 0, 1, -1], strict=True)])]
    assert not any("equivalent" in line for line in verdicts(one(runs)))
    for margin, claimed in ((0.05, True), (0.005, False)):
        primary = SimpleNamespace(metric="accuracy", margin=margin)
        task = SimpleNamespace(metric="accuracy", primary=primary, methods={})
        monkeypatch.setattr(headline, "card_of", lambda name, family, task=task: task)
        (line,) = verdicts(one(runs))
        assert ("equivalent within ±5.00 points" in line) == claimed
        assert ("no detectable difference" in line) != claimed


def test_collapsed_runs_are_counted_apart(tested: Callable[..., Record]) -> None:
    """A third of 60 examples of three classes is right where all are called the first."""
    constant = TRUTH == 0

    def collapse(record: Record) -> Record:
        fields = record.model_dump(exclude={"digest", "outcomes"})
        fields |= {"predictions": "0" * 60, "confusion": [[20, 0, 0]] * 3}
        fields["metrics"]["test"] = scores(fields["confusion"])
        return recording.seal(fields)

    runs = [tested("alone", s, x) for s, x in enumerate(drawn(4, 0.6))]
    comparison = one([*runs[:3], collapse(tested("alone", 3, constant))])
    assert row(comparison, "alone").collapsed == 0.25
    assert "alone: 1 of 4 runs do no better than a constant" in footnotes(comparison)
