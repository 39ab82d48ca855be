"""Comparisons and tables: who is compared with whom, over which seeds, and how it is said."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kdbench import hashing
from kdbench.board.cells import delta_cell
from kdbench.errors import KdbenchError
from kdbench.results.compare import Comparison, Row, compare, to_json
from kdbench.results.record import Record, seal
from kdbench.results.render import footnotes, markdown, table, title, verdicts
from kdbench.results.stats import fieller, holm, paired

Arms = Callable[..., list[Record]]
ALONE, KD, OURS, RANDOM = [36, 38, 35, 39, 37], [40, 43, 39, 41, 42], [41, 42, 40, 44, 41], [36, 37, 36, 38, 38]


@pytest.fixture
def records(arms: Arms) -> list[Record]:
    method = arms("lingugkd", OURS, hyper={"temperature": 0.1})
    control = arms("lingugkd", RANDOM, hyper={"temperature": 0.1}, control="random_teacher", teacher_right=20)
    return [*method, *arms("kd", KD), *arms("alone", ALONE), *control]


def one(records: list[Record], metric: str | None = None) -> Comparison:
    (comparison,) = compare(records, metric)
    return comparison


def row(comparison: Comparison, label: str) -> Row:
    (found,) = [row for row in comparison.rows if row.label == label]
    return found


def shown(comparison: Comparison, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_in_order(records: list[Record]) -> None:
    labels = [row.label for row in one(records).rows]
    assert labels == ["teacher", "alone", "kd", "lingugkd", "lingugkd · random teacher"]


def test_a_control_is_held_against_its_method(records: list[Record]) -> None:
    control = row(one(records), "lingugkd · random teacher")
    real = paired([x / 60 for x in OURS], [x / 60 for x in RANDOM])
    assert control.kind == "control" and control.delta_real == real and control.p_real == real.p
    (line,) = [line for line in verdicts(one(records)) if "random teacher" in line]
    assert line.startswith("lingugkd − lingugkd · random teacher: +7.67 points") and line.endswith("better")


def test_the_title_tells_settings_and_the_teacher_has_no_interval(records: list[Record]) -> None:
    fields = {name: getattr(records[0], name) for name in type(records[0]).model_fields}
    command = "kdbench run task=gnn method=kd seed=1 student.name=gat data.words=100 method.alpha=0.1"
    told = Record.model_construct(**{**fields, "command": command})
    (comparison,) = compare([told])
    assert comparison.settings == ("data.words=100",) and title(comparison).endswith(" · data.words=100")
    teacher = row(one(records), "teacher")
    assert teacher.mean is not None and teacher.interval is None


def test_scores_and_paired_differences(records: list[Record]) -> None:
    comparison = one(records)
    ours, kd = row(comparison, "lingugkd"), row(comparison, "kd")
    assert (ours.n, ours.seeds, ours.failed) == (5, (0, 1, 2, 3, 4), 0)
    assert ours.mean == pytest.approx(sum(OURS) / 300)
    # Two primary contrasts: each interval is at the level 1 − 0.05 / 2.
    assert ours.delta_alone == paired([x / 60 for x in OURS], [x / 60 for x in ALONE], alpha=0.025)
    assert ours.delta_kd == paired([x / 60 for x in OURS], [x / 60 for x in KD], alpha=0.025)
    assert kd.delta_alone == paired([x / 60 for x in KD], [x / 60 for x in ALONE])
    assert kd.delta_kd is None and kd.p_kd is None
    assert row(comparison, "alone").delta_alone is None


def test_holm_runs_over_each_family(records: list[Record]) -> None:
    kd, ours, control = one(records).rows[2:]
    assert [row.kind for row in (kd, ours, control)] == ["baseline", "method", "control"]
    assert kd.delta_alone and kd.p_alone == kd.delta_alone.p
    assert ours.delta_alone and ours.delta_kd
    assert [ours.p_alone, ours.p_kd] == holm([ours.delta_alone.p, ours.delta_kd.p])
    assert control.delta_alone and control.p_alone is control.p_kd is None


def test_gap_and_agreement(records: list[Record]) -> None:
    comparison = one(records)
    ours, alone = row(comparison, "lingugkd"), row(comparison, "alone")
    # The teacher has 54 of 60 right; both rank the examples alike, so they differ where only the teacher is right.
    assert ours.gap_closed == pytest.approx((sum(OURS) - sum(ALONE)) / (5 * 54 - sum(ALONE)))
    assert ours.agreement == pytest.approx(sum(60 - (54 - x) for x in OURS) / 300)
    assert alone.agreement == pytest.approx(sum(60 - (54 - x) for x in ALONE) / 300)
    assert alone.gap_closed is None
    control = row(comparison, "lingugkd · random teacher")
    assert control.agreement == pytest.approx(sum(60 - (x - 20) for x in RANDOM) / 300)


def test_a_fixed_teacher_counts_once(records: list[Record], arms: Arms) -> None:
    teacher = row(one(records), "teacher")
    assert (teacher.n, teacher.mean, teacher.interval, teacher.parameters) == (1, 0.9, None, None)
    several = [
        record for seed, right in enumerate((50, 52)) for record in arms("kd", KD, teacher_right=right)[seed:][:1]
    ]
    assert row(one(several), "teacher").n == 2


def test_only_common_seeds_pair(arms: Arms) -> None:
    comparison = one([*arms("alone", ALONE[:3]), *arms("kd", KD[:4]), *arms("lingugkd", OURS)[2:]])
    ours = row(comparison, "lingugkd")
    assert (ours.n, ours.seeds) == (3, (2, 3, 4))
    assert ours.delta_alone and ours.delta_kd and (ours.delta_alone.n, ours.delta_kd.n) == (1, 2)
    assert ours.delta_alone.p is None and ours.p_alone is None and ours.p_kd is not None


def test_metric_by_name(records: list[Record]) -> None:
    comparison = one(records, "macro_f1")
    first = next(record for record in records if record.method == "alone" and record.seed == 1)
    assert (comparison.metric, comparison.mode, comparison.unit) == ("macro_f1", "max", "%")
    assert first.metrics and first.metrics.test["macro_f1"] != first.metrics.test["accuracy"]
    assert row(one([first], "macro_f1"), "alone").mean == first.metrics.test["macro_f1"]
    absent = row(one(records, "auc"), "kd")
    assert (absent.n, absent.mean, absent.delta_alone) == (0, None, None)


def test_groups_and_teachers_are_compared_apart(arms: Arms) -> None:
    shared = [*arms("alone", ALONE), *arms("kd", KD), *arms("kd", OURS, teacher="sage")]
    first, second, other = compare([*shared, *arms("alone", ALONE, student="mlp")])
    assert (first.teacher, second.teacher, other.teacher) == ("gat, two layers", "sage, two layers", None)
    assert (first.student, second.student, other.student) == ("gcn", "gcn", "mlp")
    assert [len(comparison.rows) for comparison in (first, second, other)] == [3, 3, 1]
    assert row(first, "alone") == replace(row(second, "alone"), agreement=row(first, "alone").agreement)
    assert row(second, "kd").mean == pytest.approx(sum(OURS) / 300)


def test_differing_hyper_parameters_are_named(arms: Arms) -> None:
    settings: list[dict[str, Any]] = [{"temperature": 0.1, "taps": ["a"], "w": 1}, {"temperature": 0.5, "taps": ["a"]}]
    comparison = one([record for hyper in settings for record in arms("lingugkd", OURS, hyper=hyper)])
    assert {row.label for row in comparison.rows[1:]} == {
        "lingugkd (temperature=0.1, w=1)",
        "lingugkd (temperature=0.5)",
    }


def test_baseline_among_several_is_the_one_with_most_seeds_then_best_validation(arms: Arms) -> None:
    def kd(temperature: int, rights: list[int], value: float) -> list[Record]:
        chosen = {"metric": "accuracy", "mode": "max", "epoch": 2, "value": value}
        scores = {"val": {"accuracy": value}, "test": {}}
        return arms("kd", rights, hyper={"temperature": temperature}, selection=chosen, metrics=scores)

    runs = [*kd(1, KD[:2], 0.9), *kd(2, KD, 0.6), *kd(4, KD, 0.7), *kd(8, KD, 0.65)]
    assert one(runs).kd == "kd (temperature=4)"


def test_failed_runs_are_counted_until_one_succeeds(
    arms: Arms, make: Callable[..., Record], make_failed: Callable[..., Record]
) -> None:
    comparison = one([*arms("alone", ALONE), make_failed("kd", 0), make_failed("kd", 1), make("kd", 1)])
    assert (row(comparison, "kd").failed, row(comparison, "kd").seeds) == (1, (1,))
    assert "kd: 1 of 2 runs failed" in shown(comparison)


def test_nothing_measured_is_shown_as_missing(make_failed: Callable[..., Record]) -> None:
    comparison = one([make_failed("kd", 0, teacher=None, data=None)])
    cells = markdown(comparison).splitlines()[4].strip("| ").split(" | ")
    assert cells == ["kd", "0", *["–"] * 12]


def test_the_last_of_repeated_runs_counts(make: Callable[..., Record]) -> None:
    late = make("kd", 0, 50, finished="2026-10-02T10:00:00Z")
    assert row(one([late, make("kd", 0, 40)]), "kd").mean == pytest.approx(50 / 60)


def test_costs_are_means_of_what_was_measured(make: Callable[..., Record], fields: Callable[..., Any]) -> None:
    costs = fields()["costs"]
    runs = [make("kd", 0, costs={**costs, "latency_ms": None}), make("kd", 1, costs={**costs, "train_seconds": 4.5})]
    kd = row(one(runs), "kd")
    assert (kd.latency_ms, kd.train_seconds, kd.parameters, kd.stage_seconds) == (1.25, 4.0, 23063, 0.5)
    assert kd.peak_memory_bytes == 250e6 and kd.flops == 62e6


def test_json_holds_every_number(records: list[Record]) -> None:
    comparison = one(records)
    data = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    ours, delta = row(comparison, "lingugkd"), row(comparison, "lingugkd").delta_kd
    assert data["rows"][3]["mean"] == ours.mean and data["rows"][0]["delta_kd"] is None
    assert delta and data["rows"][3]["delta_kd"]["detectable"] == delta.detectable


def test_table_fits_120_columns_and_loses_nothing(records: list[Record], arms: Arms) -> None:
    long = {"temperature": 0.987654, "layers": [0, 1, 2]}
    costs = {
        **dict.fromkeys(("parameters", "trained_parameters"), 303_000_000),
        **{"flops": 123_456_000_000, "latency_ms": 1234.5, "peak_memory_bytes": 80_000_000_000},
        **{"train_seconds": 86400.0, "stage_seconds": 86400.0},
    }
    stages = [{"name": "teacher", "key": "b" * 64, "seconds": 86400.0, "reused": False}]
    text = shown(one([*records, *arms("lingugkd", KD, hyper=long, costs=costs, stages=stages)]))
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for cell in ("61.67 ± 3.27", "303M", "123456", "1234.50", "86400.0+86400.0", "80000", "<0.001", "lingugkd"):
        assert cell in text, cell


def test_markdown_row(records: list[Record]) -> None:
    line = next(line for line in markdown(one(records)).splitlines() if line.startswith("| kd |"))
    assert line == (
        "| kd | 5 | 68.33 ± 3.27 | +6.67 | 0.002 | – | – | 0.24 | 78.33 | 23.1k | 62 | 1.25 | 3.5+0.5 | 250 |"
    )


def test_title(records: list[Record], make: Callable[..., Record]) -> None:
    assert title(one(records)) == "gnn/cora · small · data cora · student gcn · teacher gat, two layers"
    data = make().data
    assert data
    generated = make("alone", data={**data.model_dump(), "generated": True})
    assert title(one([generated])) == "gnn/cora · small · data cora · student gcn · generated data"


def test_verdicts(arms: Arms) -> None:
    close, far, worse = [40, 44, 38, 42, 41], [50, 54, 49, 52, 52], [30, 34, 29, 31, 33]
    methods = {"close": close, "far": far, "worse": worse, "shift": [x + 1 for x in KD]}
    arm_records = [record for name, rights in methods.items() for record in arms(name, rights)]
    lines = verdicts(one([*arms("alone", ALONE), *arms("kd", KD), *arm_records]))
    text = {line.split(" − ")[0]: line for line in lines}
    assert text["kd"].startswith("kd − alone: +6.67 points [+") and text["kd"].endswith(": better")
    assert text["close"] == (
        "close − kd: +0.00 points [−3.92, +3.92], p = 1.00, 5 pairs: "
        "no detectable difference (could detect 4.96 points)"
    )
    assert text["far"].endswith("p < 0.001, 5 pairs: better") and "+17.33 points" in text["far"]
    assert text["worse"].endswith("p < 0.001, 5 pairs: worse") and "−16.00 points" in text["worse"]
    assert text["shift"] == "shift − kd: +1.67 points in each of 5 paired seeds; no spread: add seeds"


def test_smaller_may_be_better(arms: Arms) -> None:
    def scored(method: str, losses: list[float]) -> list[Record]:
        chosen = {"metric": "loss", "mode": "min", "epoch": 2, "value": 0.5}
        return [
            record
            for seed, loss in enumerate(losses)
            for record in arms(
                method,
                [40] * 5,
                family="unknown",
                selection=chosen,
                metrics={"val": {"loss": 0.5}, "test": {"loss": loss}},
                confusion=None,
            )[seed:][:1]
        ]

    (line,) = verdicts(one([*scored("alone", [0.9, 0.8, 0.95]), *scored("kd", [0.5, 0.42, 0.54])]))
    assert line.startswith("kd − alone: −0.3967 [−0.4") and line.endswith(": better")


def test_one_seed_is_no_test(make: Callable[..., Record]) -> None:
    text = shown(one([make("alone", 0, 36), make("kd", 0, 40)]))
    assert "kd − alone: +6.67 points: one paired seed, no test" in text
    assert "one seed: no interval and no test; add seeds, e.g. seed=0..9" in text
    assert "±" not in text and "p:" not in text


def test_a_teacher_that_is_no_better_is_said(arms: Arms) -> None:
    warning = "the teacher is no better than the student alone"
    assert warning in markdown(one([*arms("alone", ALONE), *arms("kd", KD, teacher_right=30)]))
    assert warning not in markdown(one([*arms("alone", ALONE), *arms("kd", KD)]))


def test_scores_and_runs_stand_in_the_order_of_seeds(records: list[Record]) -> None:
    comparison = one(records[::-1])
    for found in comparison.rows:
        if found.method != "teacher":
            assert len(found.seeds) == len(found.scores) == len(found.runs) == found.n
    ours = row(comparison, "lingugkd")
    assert ours.scores == pytest.approx([x / 60 for x in OURS])
    assert ours.runs == tuple(r.config_hash for r in records if r.method == "lingugkd" and r.control == "none")
    teacher = row(comparison, "teacher")
    assert teacher.scores == (0.9,) * 5 and set(teacher.runs) <= {r.config_hash for r in records if r.teacher}


def test_defaults_are_marked(arms: Arms, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.results import arms as module

    monkeypatch.setattr(module, "defaults", lambda family, method: {"temperature": 1.0})
    runs = [*arms("kd", KD, hyper={"temperature": 1.0}), *arms("kd", KD, hyper={"temperature": 2.0})]
    control = arms("kd", RANDOM, hyper={"temperature": 1.0}, control="random_teacher", teacher_right=20)
    assert [r.label for r in one([*runs, *control]).rows if r.default] == ["kd"]


def test_the_interval_of_the_gap(records: list[Record]) -> None:
    comparison = one(records)
    gains, gaps = [(o - a) / 60 for o, a in zip(OURS, ALONE, strict=True)], [(54 - a) / 60 for a in ALONE]
    assert row(comparison, "lingugkd").gap_interval == pytest.approx(fieller(gains, gaps))
    assert row(comparison, "alone").gap_interval is row(comparison, "teacher").gap_interval is None
    single = one([record for record in records if record.seed == 0])
    assert row(single, "kd").gap_closed is not None and row(single, "kd").gap_interval is None


def test_letters_of_a_table(arms: Arms, make: Callable[..., Record], records: list[Record]) -> None:
    far = [50, 54, 49, 52, 52]
    comparison = one([*records, *arms("far", far), make("single", 0, 40)])
    found = {r.label: r.letters for r in comparison.rows}
    assert found["teacher"] == found["single"] == found["lingugkd · random teacher"] == ""
    assert (found["far"], found["kd"], found["lingugkd"], found["alone"]) == ("a", "b", "b", "c")


MIXED = {
    "processor": ({"cpu": "y"}, ("x", "y")),
    "accelerator": ({"accelerator": "H200"}, ("H200", "none")),
    "threads": ({"threads": 1}, ("1", "2")),
    "data": ({"sha256": "b" * 64}, ("a" * 16, "b" * 16)),
}


@pytest.mark.parametrize("trait", MIXED)
def test_seeds_whose_arms_differ_in_what_pairs_share_are_named(trait: str, make: Callable[..., Record]) -> None:
    changed, values = MIXED[trait]
    whole = make("kd", 2, 42).model_dump()
    part = "data" if trait == "data" else "hardware"
    found = [make("alone", seed, 40) for seed in range(3)]
    assert compare([*found, *(make("kd", seed, 42) for seed in range(3))])[0].mixed == ()
    (mixed,) = compare([*found, make("kd", 0, 42), make("kd", 2, 42, **{part: {**whole[part], **changed}})])
    assert [(m.trait, m.values, m.seeds) for m in mixed.mixed] == [(trait, values, (2,))]
    told = f"arms of seed 2 differ in {trait} ({', '.join(values)}): "
    assert any(note.startswith(told) for note in footnotes(mixed)) and told in markdown(mixed)


def test_the_teacher_is_that_of_the_runs_that_count(make: Callable[..., Record]) -> None:
    """Of a run that is there twice the last that finished counts, with its teacher."""
    late, early = "2026-10-03T10:00:00Z", "2026-10-02T10:00:00Z"
    new = make("kd", 0, 42, teacher_right=57, started=late, finished=late)
    old = make("kd", 0, 40, teacher_right=50, started=early, finished=early)
    for order in ([new, old], [old, new]):
        rows = {row.method: row for row in one([make("alone", 0, 40), *order]).rows}
        assert (rows["teacher"].mean, rows["kd"].mean) == (pytest.approx(57 / 60), pytest.approx(42 / 60))


def test_runs_of_different_code_are_named(make: Callable[..., Record]) -> None:
    def made(method: str, seed: int, **files: str) -> Record:
        digests = {f"kdbench/{name}.py": digit * 16 for name, digit in files.items()}
        code = {"sha256": hashing.digest(digests), "files": digests}
        return make(method, seed, 40, schema_version=2, code=code)

    alike = [made(method, seed, engine="a", **{method: "b"}) for method in ("alone", "kd") for seed in range(3)]
    assert one(alike).mixed == () and one([make("kd", seed, 40) for seed in range(3)]).mixed == ()
    (changed,) = one([*alike, made("kd", 3, engine="a", kd="c")]).mixed
    assert (changed.trait, changed.values, changed.seeds) == ("code", ("kdbench/kd.py",), (3,))
    (unknown,) = one([*alike, make("kd", 4, 40)]).mixed
    assert (unknown.values, unknown.seeds) == (("code that is not known",), (4,))
    assert any("differ in code (kdbench/kd.py)" in note for note in footnotes(one([*alike, made("kd", 3, kd="c")])))


def test_of_many_mixed_seeds_the_first_are_named(make: Callable[..., Record]) -> None:
    hardware = {**make("kd").model_dump()["hardware"], "threads": 1}
    runs = [
        make(name, seed, 40, **more)
        for seed in range(12)
        for name, more in (("alone", {}), ("kd", {"hardware": hardware}))
    ]
    (note,) = [note for note in footnotes(one(runs)) if "threads" in note]
    assert note.startswith("arms of seed 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … differ in threads (1, 2): ")


@pytest.mark.parametrize("shift", [0, 1])
def test_differences_without_spread_are_neither_better_nor_worse(arms: Arms, shift: int) -> None:
    """The scores are float32 means; 1/60 more or none in each seed says nothing about the next one."""

    def rounded(method: str, rights: list[int]) -> list[Record]:
        found = []
        for record in arms(method, rights):
            fields = record.model_dump(exclude={"digest"})
            for split in fields["metrics"].values():
                split.update({name: float(np.float32(value)) for name, value in split.items()})
            found.append(seal(fields))
        return found

    comparison = one([*rounded("alone", KD), *rounded("kd", [x + shift for x in KD])])
    kd = row(comparison, "kd")
    assert kd.delta_alone and kd.delta_alone.flat and kd.p_alone is None and kd.letters == ""
    points = "+1.67" if shift else "+0.00"
    assert verdicts(comparison) == [f"kd − alone: {points} points in each of 5 paired seeds; no spread: add seeds"]
    told = shown(comparison)
    assert "no spread (all paired differences are equal)" in " ".join(told.split()) and "<0.001" not in told
    cell = delta_cell(kd.delta_alone, kd.p_alone, comparison)
    assert (cell.text, cell.state, cell.low, cell.high) == (f"{points} (no spread)", "unclear", None, None)
    assert json.loads(json.dumps(to_json(comparison)))["rows"][2]["delta_alone"]["p"] is None


def test_the_metric_is_the_cards_and_the_direction_the_declared_one(make: Callable[..., Record]) -> None:
    """A record says what it was selected by, but not what it is judged by."""
    by_f1 = {"metric": "macro_f1", "mode": "max", "epoch": 2, "value": 0.75}
    comparison = one([make("alone", 0, 40, selection=by_f1), make("kd", 0, 42, selection=by_f1)])
    assert (comparison.metric, comparison.mode, comparison.unit) == ("accuracy", "max", "%")
    named = one([make("kd", 0, 42, selection=by_f1)], "nosuch")
    assert (named.metric, named.mode, named.unit) == ("nosuch", None, "")


def test_records_of_a_family_that_is_not_installed_tell_their_metric(make: Callable[..., Record]) -> None:
    chosen = {"metric": "accuracy", "mode": "min", "epoch": 2, "value": 0.75}
    comparison = one([make(name, 0, 42, family="unknown", selection=chosen) for name in ("alone", "kd")])
    assert (comparison.metric, comparison.mode, comparison.unit) == ("accuracy", "min", "")
    assert "| alone | 1 | 0.7 |" in markdown(comparison)


@pytest.mark.parametrize("other", [{"mode": "min"}, {"metric": "macro_f1"}])
def test_a_group_selected_in_two_ways_is_refused_by_name(make: Callable[..., Record], other: dict[str, str]) -> None:
    chosen = {"metric": "accuracy", "mode": "max", "epoch": 2, "value": 0.75}
    odd = make("kd", 1, 42, family="unknown", selection={**chosen, **other})
    runs = [make("alone", 0, 42, family="unknown", selection=chosen), odd]
    with pytest.raises(KdbenchError, match=r"gnn/cora, small: .*not comparable.*accuracy \(max\)") as caught:
        compare(runs)
    told = {"metric": "accuracy", "mode": "max", **other}
    assert f"{told['metric']} ({told['mode']}) by kd, seed 1, {odd.config_hash[:16]}" in str(caught.value)
