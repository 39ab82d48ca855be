"""From records to tables: one comparison for each task, budget, student and teacher, with one row for each arm."""

from __future__ import annotations

import functools
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import JsonValue

from kdbench import hashing
from kdbench.plan.catalog import methods
from kdbench.plan.metrics import Mode
from kdbench.plan.options import plain
from kdbench.results.headline import Headline, headline
from kdbench.results.mixtures import Mixture, mixtures
from kdbench.results.ranks import letters, pairwise
from kdbench.results.record import Record
from kdbench.results.stats import (
    PairedDifference,
    adjusted,
    agreement,
    average,
    fieller,
    gap_closed,
    mean_interval,
    paired,
    resolution,
)

MOST_ARMS = 1000
"""Arms of one table up to which all pairs are tested for letters."""
COSTS = ("parameters", "flops", "latency_ms", "train_seconds", "stage_seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Row:
    """One arm. Scores and costs are means over the seeds that finished; None means not measured, never zero.

    ``interval`` is the 95 % Student t interval of ``mean``; ``p_alone``, ``p_kd`` are Holm-adjusted over the methods
    compared with that baseline. A control's ``delta_real`` is the same method with its real teacher minus the control,
    and its only p is ``p_real``, Holm-adjusted over the controls. ``method`` is ``teacher`` for the teacher; its ``n``
    counts different teachers.

    ``scores`` and ``runs`` (configuration hashes) stand in the order of ``seeds``; the teacher's are of the runs that
    tell it. ``default`` marks a method with its default hyper-parameters and no control. ``gap_interval`` is the
    95 % interval of ``gap_closed`` (:func:`kdbench.results.stats.fieller`), None where it is not bounded.
    Arms that share one of their ``letters`` are not distinguishable (:func:`kdbench.results.ranks.letters`, paired t
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
    scores: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()
    default: bool = False
    delta_alone: PairedDifference | None = None
    p_alone: float | None = None
    delta_kd: PairedDifference | None = None
    p_kd: float | None = None
    delta_real: PairedDifference | None = None
    p_real: float | None = None
    gap_closed: float | None = None
    gap_interval: tuple[float, float] | None = None
    letters: str = ""
    agreement: float | None = None
    parameters: float | None = None
    flops: float | None = None
    latency_ms: float | None = None
    train_seconds: float | None = None
    stage_seconds: float | None = None
    peak_memory_bytes: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Arms that share all but method, control and seed. ``mode`` is None where the metric's direction is not known.

    ``unit`` is what the metric is shown in (:class:`kdbench.plan.metrics.Metric`), ``settings`` are the options that
    the user set for all arms. ``alone`` and ``kd`` are the labels of the baselines: of several arms of one name the one
    with default hyper-parameters, else the one with most seeds, and of those the one with the best mean validation
    score. ``mixed`` tells in what else than their method arms of one seed differ.
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


@dataclass(frozen=True)
class _Arm:
    label: str
    method: str
    control: str
    runs: Mapping[int, Record]
    failed: int
    scores: Mapping[int, float]
    """Test score by seed, in seed order."""

    @property
    def default(self) -> bool:
        """Whether it is the method as it is, with default hyper-parameters and its real teacher."""
        return self.label == self.method


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
    """A comparison as JSON-able values, with the field names of Comparison, Row and PairedDifference."""
    return asdict(comparison)


def _comparison(records: Sequence[Record], judged: Headline) -> Comparison:
    metric, mode = judged.metric, judged.mode
    arms, student = _arms(records, metric), records[0].config["student"]
    counted = {id(run) for arm in arms for run in arm.runs.values()}
    kd_last = sorted(records, key=lambda run: run.method == "kd")  # a method's own teachers do not bound the gap
    teachers = {run.seed: run for run in kd_last if id(run) in counted and run.teacher and run.control == "none"}
    alone, kd = (_baseline(arms, name, mode) for name in ("alone", "kd"))
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
        rows=(*_teacher_rows(teachers, metric), *_student_rows(arms, alone, kd, teachers, metric, mode)),
    )


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


def _hyper(record: Record) -> dict[str, JsonValue]:
    method = record.config["method"]
    return {k: v for k, v in method.items() if k != "name"} if isinstance(method, dict) else {}


def _arms(records: Sequence[Record], metric: str | None) -> list[_Arm]:
    """The arms in table order. Of several runs of one arm and seed the last that finished well counts."""
    members: dict[tuple[int, str, str, str], list[Record]] = defaultdict(list)
    settings: dict[str, list[dict[str, JsonValue]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.finished):
        rank = {"alone": 0, "kd": 1}.get(record.method, 2)
        hyper = _hyper(record)
        members[rank, record.method, hashing.canonical_json(hyper), record.control].append(record)
        settings[record.method].append(hyper)
    differing = {method: _differing(given) for method, given in settings.items()}
    arms = []
    for key in sorted(members):
        runs = {record.seed: record for record in members[key] if record.status == "done"}
        failed = {record.seed for record in members[key]} - set(runs)
        _, method, _, control = key
        label = _label(members[key][0], differing[method])
        arms.append(_Arm(label, method, control, runs, len(failed), _scores(runs, metric)))
    return arms


def _scores(runs: Mapping[int, Record], metric: str | None) -> dict[int, float]:
    tests = ((seed, run.metrics.test) for seed, run in sorted(runs.items()) if run.metrics)
    return {seed: test[metric] for seed, test in tests if metric in test}


@functools.cache
def _defaults(family: str, method: str) -> Mapping[str, JsonValue] | None:
    """The method's default hyper-parameters; None when it is not installed here."""
    by_family = {info.family: info for info in methods() if info.name == method and info.family in (None, family)}
    info = by_family.get(family, by_family.get(None))
    return plain(info.hyperparameters()) if info else None


def _differing(settings: Sequence[Mapping[str, JsonValue]]) -> frozenset[str]:
    """Names of the hyper-parameters that are not the same in all settings."""
    names = {name for setting in settings for name in setting}
    first = settings[0]
    return frozenset(name for name in names if any(other.get(name) != first.get(name) for other in settings))


def _changed(record: Record, differing: frozenset[str]) -> dict[str, JsonValue]:
    """Hyper-parameters that are not the method's defaults; of an unknown method, those that differ among its runs."""
    own, defaults = _hyper(record), _defaults(record.family, record.method)
    if defaults is None:
        return {name: value for name, value in own.items() if name in differing}
    return {name: value for name, value in own.items() if defaults.get(name) != value}


def _label(record: Record, differing: frozenset[str]) -> str:
    values = ", ".join(
        f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in _changed(record, differing).items()
    )
    return record.method + (f" ({values})" if values else "") + _control(record.control)


def _control(control: str) -> str:
    return "" if control == "none" else f" · {control.replace('_', ' ')}"


def _baseline(arms: Sequence[_Arm], method: str, mode: Mode | None) -> _Arm | None:
    def rank(arm: _Arm) -> tuple[bool, int, float]:
        best = average([run.selection.value for run in arm.runs.values() if run.selection])
        return arm.default, len(arm.runs), -best if mode == "min" else best

    candidates = [arm for arm in arms if arm.method == method and arm.control == "none" and arm.runs]
    return max(candidates, key=rank, default=None)


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
    arms: Sequence[_Arm],
    alone: _Arm | None,
    kd: _Arm | None,
    teachers: Mapping[int, Record],
    metric: str | None,
    mode: Mode | None,
) -> list[Row]:
    real = {arm.label: arm for arm in reversed(arms) if arm.control == "none"}
    upper = {seed: score for seed, run in teachers.items() if (score := _teacher_score(run, metric)) is not None}
    rows = []
    for arm in arms:
        mean, interval = mean_interval(list(arm.scores.values())) if arm.scores else (None, None)
        row = Row(
            label=arm.label,
            method=arm.method,
            control=arm.control,
            n=len(arm.scores),
            seeds=tuple(arm.scores),
            failed=arm.failed,
            mean=mean,
            interval=interval,
            scores=tuple(arm.scores.values()),
            runs=tuple(arm.runs[seed].config_hash for seed in arm.scores),
            default=arm.default,
            agreement=_agreement(arm, teachers),
            **_costs(arm),
            **({} if arm is alone else _differences(arm, real, alone, kd, upper)),
        )
        rows.append(row)
    return _tested(rows, mode)


def _differences(
    arm: _Arm, real: Mapping[str, _Arm], alone: _Arm | None, kd: _Arm | None, teachers: Mapping[int, float]
) -> dict[str, Any]:
    """The fields of a row that hold its arm against others."""
    own, base = arm.scores, alone.scores if alone else {}
    named = real.get(arm.label.removesuffix(_control(arm.control))) if arm.control != "none" else None
    common = [seed for seed in own if seed in base]
    closed = gap_closed(
        [own[seed] for seed in common], [base[seed] for seed in common], [teachers.get(seed) for seed in common]
    )
    interval = None
    if closed is not None:
        gains = [own[seed] - base[seed] for seed in common]
        gaps = [teachers[seed] - base[seed] for seed in common]
        scores = ([known[seed] for seed in common] for known in (own, base, teachers))
        interval = fieller(gains, gaps, finest=resolution(*scores))
    return {
        "delta_alone": _delta(own, base),
        "delta_kd": _delta(own, kd.scores) if kd and arm is not kd else None,
        "delta_real": _delta(named.scores, own) if named else None,
        "gap_closed": closed,
        "gap_interval": interval,
    }


def _delta(own: Mapping[int, float], base: Mapping[int, float]) -> PairedDifference | None:
    common = [seed for seed in own if seed in base]
    return paired([own[seed] for seed in common], [base[seed] for seed in common]) if common else None


def _agreement(arm: _Arm, teachers: Mapping[int, Record]) -> float | None:
    """Mean agreement with the teacher that a run was given, or without one, with the comparison's of the same seed."""
    shares = []
    for seed, run in arm.runs.items():
        source = run if run.teacher else teachers.get(seed)
        teacher = source.teacher.predictions if source and source.teacher else None
        if run.predictions and teacher and len(run.predictions) == len(teacher):
            shares.append(agreement(run.predictions, teacher))
    return average(shares) if shares else None


def _costs(arm: _Arm) -> dict[str, Any]:
    costs = [run.costs for run in arm.runs.values() if run.costs]
    known = {name: [v for cost in costs if (v := getattr(cost, name)) is not None] for name in COSTS}
    return {name: average(values) if values else None for name, values in known.items()}


def _tested(rows: Sequence[Row], mode: Mode | None) -> list[Row]:
    """The rows with letters and Holm-adjusted p: over the methods for each baseline, and over the controls."""
    real = [row.control == "none" for row in rows]
    p_alone = adjusted(row.delta_alone if mine else None for row, mine in zip(rows, real, strict=True))
    p_kd = adjusted(row.delta_kd if mine else None for row, mine in zip(rows, real, strict=True))
    p_real = adjusted(row.delta_real for row in rows)
    tested = zip(rows, p_alone, p_kd, p_real, _letters(rows, mode), strict=True)
    return [replace(row, p_alone=a, p_kd=k, p_real=r, letters=shared) for row, a, k, r, shared in tested]


def _letters(rows: Sequence[Row], mode: Mode | None) -> list[str]:
    """The letters of each row, from the best mean on; none in a table of more than ``MOST_ARMS``."""
    given = [""] * len(rows)
    some = [index for index, row in enumerate(rows) if row.control == "none" and row.n > 1]
    if len(some) > MOST_ARMS:
        return given
    p = pairwise([dict(zip(rows[index].seeds, rows[index].scores, strict=True)) for index in some])
    tested = np.flatnonzero(~np.isnan(p).all(axis=1))
    means = np.array([rows[some[position]].mean for position in tested], dtype=float)
    order = np.argsort(means if mode == "min" else -means, kind="stable")
    for position, shared in zip(tested, letters(p[np.ix_(tested, tested)], order.tolist()), strict=True):
        given[some[position]] = shared
    return given
