"""From records to tables: one comparison for each task, budget, student and teacher, with one row for each arm."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
from pydantic import JsonValue

from kdbench import hashing
from kdbench.plan.metrics import Mode
from kdbench.results.arms import Arm, Kind, arms_of, baseline, collapsed, kinds_of
from kdbench.results.contrasts import Against, Contrast, all_pairs, contrasts, mean
from kdbench.results.headline import Headline, headline
from kdbench.results.measured import of_record
from kdbench.results.mixtures import Mixture, mixtures
from kdbench.results.ranks import letters
from kdbench.results.record import Record
from kdbench.results.stats import Estimate, agreement, average, fieller, gap_closed, resolution

MOST_ARMS = 1000
"""Arms of one table up to which all pairs are tested for letters."""
COSTS = ("parameters", "flops", "latency_ms", "train_seconds", "stage_seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Row:
    """One arm. Scores and costs are means over the seeds that finished; None means not measured, never zero.

    ``kind`` is the part it plays (:func:`kdbench.results.arms.kinds_of`). ``estimate`` is its mean with its 95 %
    ``interval``. Each ``delta_…`` is a declared contrast (:mod:`kdbench.results.contrasts`), whose interval is at the
    level that its family of tests leaves, and each ``p_…`` its Holm-adjusted p. ``delta_alone`` is against the student
    ``against_alone``, which trained as long where there is one such; a control's ``delta_real`` is the arm that it
    ``controls`` less itself, and an ablation's ``delta_default`` is against the method's own setting. ``method`` is
    ``teacher`` for the teacher; its ``n`` counts different teachers.

    ``scores`` and ``runs`` (configuration hashes) stand in the order of ``seeds``; the teacher's are of the runs that
    tell it. ``default`` marks a method with its default hyper-parameters and no control. ``gap_interval`` is the
    95 % interval of ``gap_closed`` (:func:`kdbench.results.stats.fieller`), None where it is not bounded.
    ``collapsed`` is the share of runs that do no better than a constant (:func:`kdbench.results.arms.collapsed`).
    Arms that share one of their ``letters`` are not distinguishable (:func:`kdbench.results.ranks.letters`, paired
    tests with Holm over all pairs); only arms without control that pair at least two seeds with another have any.
    """

    label: str
    method: str
    control: str
    n: int
    seeds: tuple[int, ...]
    failed: int
    mean: float | None
    interval: tuple[float, float] | None
    kind: Kind = "method"
    estimate: Estimate | None = None
    scores: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()
    default: bool = False
    against_alone: str | None = None
    controls: str | None = None
    delta_alone: Estimate | None = None
    p_alone: float | None = None
    delta_kd: Estimate | None = None
    p_kd: float | None = None
    delta_real: Estimate | None = None
    p_real: float | None = None
    delta_default: Estimate | None = None
    p_default: float | None = None
    gap_closed: float | None = None
    gap_interval: tuple[float, float] | None = None
    collapsed: float | None = None
    letters: str = ""
    agreement: float | None = None
    parameters: float | None = None
    flops: float | None = None
    latency_ms: float | None = None
    step_ms: float | None = None
    train_seconds: float | None = None
    stage_seconds: float | None = None
    peak_memory_bytes: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Arms that share all but method, control and seed. ``mode`` is None where the metric's direction is not known.

    ``unit`` is what the metric is shown in (:class:`kdbench.plan.metrics.Metric`), ``settings`` are the options that
    the user set for all arms. ``alone`` and ``kd`` are the labels of the baselines: of several arms of one name the one
    with default hyper-parameters, else the one with most seeds, and of those the one with the best mean validation
    score. ``mixed`` tells in what else than their method arms of one seed differ. ``splits`` is how many splits the
    seeds drew, and ``margin`` the difference that the task's card calls none, in the metric's values.
    """

    group: str
    family: str
    task: str
    scale: str
    data: str | None
    generated: bool | None
    student: str | None
    teacher: str | None
    settings: tuple[str, ...]
    metric: str | None
    mode: Mode | None
    unit: str
    alone: str | None
    kd: str | None
    mixed: tuple[Mixture, ...]
    rows: tuple[Row, ...]
    protocol: int = 1
    splits: int | None = None
    margin: float | None = None


def compare(records: Iterable[Record], metric: str | None = None) -> list[Comparison]:
    """One comparison for each group, protocol and teacher, by the metric of the card unless ``metric`` names another.

    Runs without a teacher (``alone``, self-distillation) stand in every comparison of their group. Raises
    :class:`KdbenchError` for a group whose runs were selected by different metrics, or in different directions.
    """
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.group, record.protocol].append(record)
    comparisons = []
    for group in groups.values():
        judged = headline(group, metric)
        taught = [(hashing.canonical_json(r.config["teacher"]), r) for r in group if r.config["teacher"] is not None]
        free = [r for r in group if r.config["teacher"] is None]
        for teacher in dict.fromkeys(key for key, _ in taught) or [None]:
            comparisons.append(_comparison([*free, *(r for key, r in taught if key == teacher)], judged))
    return comparisons


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON-able values, with the field names of Comparison, Row and Estimate."""
    return asdict(comparison)


def _comparison(records: Sequence[Record], judged: Headline) -> Comparison:
    metric, mode = judged.metric, judged.mode
    arms, student = arms_of(records, metric), records[0].config["student"]
    counted = {id(run) for arm in arms for run in arm.runs.values()}
    kd_last = sorted(records, key=lambda run: run.method == "kd")  # a method's own teachers do not bound the gap
    teachers = {run.seed: run for run in kd_last if id(run) in counted and run.teacher and run.control == "none"}
    alone, kd = (baseline(arms, name, mode) for name in ("alone", "kd"))
    data = next((record.data for record in records if record.data), None)
    return Comparison(
        group=records[0].group,
        family=records[0].family,
        task=records[0].task,
        scale=records[0].scale,
        data=data.name if data else None,
        generated=data.generated if data else None,
        student=_name(student),
        teacher=next((run.teacher.description for run in teachers.values() if run.teacher), None),
        settings=_settings(records[0].command),
        metric=metric,
        mode=mode,
        unit=judged.unit,
        alone=alone.label if alone else None,
        kd=kd.label if kd else None,
        mixed=mixtures(arm.runs for arm in arms),
        rows=(*_teacher_rows(teachers, metric), *_student_rows(arms, records[0].family, alone, kd, teachers, judged)),
        protocol=records[0].protocol,
        splits=_splits(arms),
        margin=judged.margin,
    )


def _splits(arms: Sequence[Arm]) -> int | None:
    """How many splits the seeds drew; None where a run does not tell."""
    known = {split for arm in arms for split in arm.splits.values()}
    return None if None in known or not known else len(known)


def _settings(command: str) -> tuple[str, ...]:
    """The ``section.option=value`` words of a command that all arms share, but for the student's name.

    A command whose quotes do not match has none.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ()
    keys = ((word, word.partition("=")[0]) for word in words)
    return tuple(word for word, key in keys if "." in key and not key.startswith(("method.", "student.name")))


def _name(student: JsonValue) -> str | None:
    name = student.get("name") if isinstance(student, dict) else None
    return name if isinstance(name, str) else None


def _teacher_score(run: Record | None, metric: str | None) -> float | None:
    return run.teacher.metrics.test.get(metric) if run and run.teacher and metric else None


def _teacher_rows(teachers: Mapping[int, Record], metric: str | None) -> list[Row]:
    """At most one row, without an interval: several seeds share a teacher, so their scores are no sample of it."""
    scored = [(seed, run, _teacher_score(run, metric)) for seed, run in sorted(teachers.items())]
    different = {(run.teacher.sha256, score): score for _, run, score in scored if run.teacher and score is not None}
    if not different:
        return []
    known = [(seed, run, score) for seed, run, score in scored if score is not None]
    return [
        Row(
            label="teacher",
            method="teacher",
            control="none",
            kind="teacher",
            n=len(different),
            seeds=tuple(seed for seed, _, _ in known),
            failed=0,
            mean=average(list(different.values())),
            interval=None,
            scores=tuple(score for _, _, score in known),
            runs=tuple(run.config_hash for _, run, _ in known),
        )
    ]


def _student_rows(
    arms: Sequence[Arm],
    family: str,
    alone: Arm | None,
    kd: Arm | None,
    teachers: Mapping[int, Record],
    judged: Headline,
) -> list[Row]:
    kinds = kinds_of(arms, family, [arm.label for arm in (alone, kd) if arm])
    declared = contrasts(arms, kinds, alone, kd, judged.margin)
    upper = {seed: score for seed, run in teachers.items() if (score := _teacher_score(run, judged.metric)) is not None}
    rows = []
    for arm, kind in zip(arms, kinds, strict=True):
        own = mean(arm) if arm.scores else None
        row = Row(
            label=arm.label,
            method=arm.method,
            control=arm.control,
            n=len(arm.scores),
            seeds=tuple(arm.scores),
            failed=arm.failed,
            mean=own.mean if own else None,
            interval=None if own is None or own.low is None or own.high is None else (own.low, own.high),
            kind=kind,
            estimate=own,
            scores=tuple(arm.scores.values()),
            runs=tuple(arm.runs[seed].config_hash for seed in arm.scores),
            default=arm.default,
            collapsed=average([float(collapsed(arm.runs[seed])) for seed in arm.scores]) if own else None,
            agreement=_agreement(arm, teachers),
            **_costs(arm),
            **_differences(arm, declared),
            **({} if arm is alone else _gap(arm, alone, upper)),
        )
        rows.append(row)
    return [replace(row, letters=shared) for row, shared in zip(rows, _letters(arms, judged.mode), strict=True)]


def _differences(arm: Arm, declared: Mapping[tuple[str, Against], Contrast]) -> dict[str, Any]:
    """The fields of a row that hold its arm against others."""
    fields: dict[str, Any] = {}
    for against in get_args(Against):
        if one := declared.get((arm.label, against)):
            fields |= {f"delta_{against}": one.estimate, f"p_{against}": one.p}
            fields |= {"against_alone": one.second} if against == "alone" else {}
            fields |= {"controls": one.first} if against == "real" else {}
    return fields


def _gap(arm: Arm, alone: Arm | None, teachers: Mapping[int, float]) -> dict[str, Any]:
    """The share of the gap between the student alone and the teacher that the arm closes."""
    own, base = arm.scores, alone.scores if alone else {}
    common = [seed for seed in own if seed in base]
    closed = gap_closed(
        [own[seed] for seed in common], [base[seed] for seed in common], [teachers.get(seed) for seed in common]
    )
    if closed is None:
        return {}
    gains = [own[seed] - base[seed] for seed in common]
    gaps = [teachers[seed] - base[seed] for seed in common]
    scores = ([known[seed] for seed in common] for known in (own, base, teachers))
    return {"gap_closed": closed, "gap_interval": fieller(gains, gaps, finest=resolution(*scores))}


def _agreement(arm: Arm, teachers: Mapping[int, Record]) -> float | None:
    """Mean agreement with the teacher that a run was given, or without one, with the comparison's of the same seed."""
    shares = []
    for seed, run in arm.runs.items():
        source = run if run.teacher else teachers.get(seed)
        teacher = source.teacher.predictions if source and source.teacher else None
        if run.predictions and teacher and len(run.predictions) == len(teacher):
            shares.append(agreement(run.predictions, teacher))
    return average(shares) if shares else None


def _costs(arm: Arm) -> dict[str, Any]:
    """What the arm costs: by the records of protocol 1, later by the measurement of the arm alone, as far as it goes.

    Training takes a measured step as often as the runs stepped.
    """
    first = next(iter(arm.runs.values()), None)
    if first is not None and first.protocol > 1:
        return _measured(arm, first)
    costs = [run.costs for run in arm.runs.values() if run.costs]
    known = {name: [v for cost in costs if (v := getattr(cost, name)) is not None] for name in COSTS}
    return {name: average(values) if values else None for name, values in known.items()}


def _measured(arm: Arm, first: Record) -> dict[str, Any]:
    parameters = {"parameters": float(first.costs.parameters)} if first.costs else {}
    measured = of_record(first)
    if measured is None:
        return parameters
    trainer = first.config["trainer"]
    gathered = trainer.get("accumulate_grad_batches") if isinstance(trainer, dict) else None
    steps = average([run.steps or 0 for run in arm.runs.values()])
    step = measured.step.median if measured.step else None
    return {
        **parameters,
        "flops": measured.flops_per_example,
        "latency_ms": measured.forward_one.median,
        "step_ms": step,
        "train_seconds": 1e-3 * (step or 0.0) * steps * (gathered if isinstance(gathered, int) else 1),
        "stage_seconds": measured.stage_seconds,
        "peak_memory_bytes": measured.memory_bytes,
    }


def _letters(arms: Sequence[Arm], mode: Mode | None) -> list[str]:
    """The letters of each arm, from the best mean on; none in a table of more than ``MOST_ARMS``."""
    given = [""] * len(arms)
    some = [index for index, arm in enumerate(arms) if arm.control == "none" and len(arm.scores) > 1]
    if len(some) > MOST_ARMS:
        return given
    p = all_pairs([arms[index] for index in some])
    tested = np.flatnonzero(~np.isnan(p).all(axis=1))
    means = np.array([average(list(arms[some[position]].scores.values())) for position in tested], dtype=float)
    order = np.argsort(means if mode == "min" else -means, kind="stable")
    for position, shared in zip(tested, letters(p[np.ix_(tested, tested)], order.tolist()), strict=True):
        given[some[position]] = shared
    return given
