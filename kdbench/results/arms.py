"""The arms of a comparison: runs that share all but their seed, what they are called, and what part they play."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from kdbench import hashing
from kdbench.plan.catalog import installed_method, methods
from kdbench.plan.metrics import Mode, lookup
from kdbench.plan.options import plain
from kdbench.plan.search import chosen
from kdbench.results import outcomes
from kdbench.results.headline import card_of
from kdbench.results.outcomes import Contributions
from kdbench.results.record import Record, searched
from kdbench.results.stats import average

Kind = Literal["teacher", "baseline", "method", "ablation", "control", "bound", "reference"]


@dataclass(frozen=True)
class Arm:
    """The finished runs of one method with one setting, by seed; ``failed`` counts seeds of which none finished."""

    label: str
    method: str
    control: str
    runs: Mapping[int, Record]
    failed: int
    scores: Mapping[int, float]
    """Test score by seed, in seed order."""
    metric: str | None

    @property
    def default(self) -> bool:
        """Whether it is the method as it is, with default hyper-parameters and its real teacher."""
        return self.label == self.method

    @functools.cached_property
    def contributions(self) -> Mapping[int, Contributions]:
        """What each test item adds to the score, by seed; of the runs that left their outcomes."""
        metric = self.metric
        if metric is None:
            return {}
        given = {seed: outcomes.of(self.runs[seed], metric) for seed in self.scores}
        return {seed: one for seed, one in given.items() if one is not None}

    @property
    def splits(self) -> dict[int, str | None]:
        """The digest of the split by seed."""
        return {seed: run.data.split_sha256 if run.data else None for seed, run in self.runs.items()}


def arms_of(records: Sequence[Record], metric: str | None) -> list[Arm]:
    """The arms in table order. Of several runs of one arm and seed the last that finished well counts."""
    members: dict[tuple[int, str, str, str], list[Record]] = defaultdict(list)
    settings: dict[str, list[dict[str, JsonValue]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.finished):
        rank = {"alone": 0, "kd": 1}.get(record.method, 2)
        setting = setting_of(record)
        members[rank, record.method, hashing.canonical_json(setting), record.control].append(record)
        settings[record.method].append(setting)
    differing = {method: _differing(given) for method, given in settings.items()}
    arms = []
    for key in sorted(members):
        runs = {record.seed: record for record in members[key] if record.status == "done"}
        failed = {record.seed for record in members[key]} - set(runs)
        _, method, _, control = key
        label = _label(members[key][0], differing[method])
        arms.append(Arm(label, method, control, runs, len(failed), _scores(runs, metric), metric))
    return arms


def hyperparameters(record: Record) -> dict[str, JsonValue]:
    """The hyper-parameters of a run's method."""
    method = record.config["method"]
    return {k: v for k, v in method.items() if k != "name"} if isinstance(method, dict) else {}


def _scores(runs: Mapping[int, Record], metric: str | None) -> dict[int, float]:
    tests = ((seed, run.metrics.test) for seed, run in sorted(runs.items()) if run.metrics)
    return {seed: test[metric] for seed, test in tests if metric in test}


def setting_of(record: Record) -> dict[str, JsonValue]:
    """What tells arms of one method apart: its hyper-parameters and the options ``section.option`` that arms search."""
    return hyperparameters(record) | {name: _option(record, name) for name in searched(record.config)}


def _option(record: Record, name: str) -> JsonValue:
    section, _, option = name.partition(".")
    options = record.config.get(section)
    return options.get(option) if isinstance(options, dict) else None


@functools.cache
def defaults(family: str, method: str) -> Mapping[str, JsonValue] | None:
    """The method's default hyper-parameters; None when it is not installed here."""
    known = {info.family: info for info in methods() if info.name == method and info.family in (None, family)}
    info = known.get(family, known.get(None))
    return plain(info.hyperparameters()) if info else None


def _usual(record: Record) -> dict[str, JsonValue] | None:
    """The method's own setting: its defaults, and what the task's card chose for it; None for an unknown method."""
    given = defaults(record.family, record.method)
    if given is None:
        return None
    shared = record.config.get("search")
    usual = {**given, **(shared if isinstance(shared, dict) else {})}
    card, student = card_of(record.task, record.family), record.config["student"]
    name = student.get("name") if isinstance(student, dict) else None
    for section, options in chosen(card.methods, record.method, str(name)).items() if card else ():
        usual |= {option if section == "method" else f"{section}.{option}": value for option, value in options.items()}
    return usual


def _differing(settings: Sequence[Mapping[str, JsonValue]]) -> frozenset[str]:
    """Names of the options that are not the same in all settings."""
    names = {name for setting in settings for name in setting}
    first = settings[0]
    return frozenset(name for name in names if any(other.get(name) != first.get(name) for other in settings))


def _changed(record: Record, differing: Collection[str]) -> dict[str, JsonValue]:
    """Options that are not the method's own; of an unknown method, those that differ among its runs."""
    own, usual = setting_of(record), _usual(record)
    if usual is None:
        return {name: value for name, value in own.items() if name in differing}
    return {name: value for name, value in own.items() if usual.get(name) != value}


def _label(record: Record, differing: Collection[str]) -> str:
    values = ", ".join(
        f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in _changed(record, differing).items()
    )
    return record.method + (f" ({values})" if values else "") + _control(record.control)


def _control(control: str) -> str:
    return "" if control == "none" else f" · {control.replace('_', ' ')}"


def baseline(arms: Sequence[Arm], method: str, mode: Mode | None) -> Arm | None:
    """Of several arms of one name the default one, else that with most seeds, and of those the best in validation."""

    def rank(arm: Arm) -> tuple[bool, int, float]:
        best = average([run.selection.value for run in arm.runs.values() if run.selection])
        return arm.default, len(arm.runs), -best if mode == "min" else best

    candidates = [arm for arm in arms if arm.method == method and arm.control == "none" and arm.runs]
    return max(candidates, key=rank, default=None)


def kinds_of(arms: Sequence[Arm], family: str, baselines: Collection[str]) -> list[Kind]:
    """What part each arm plays.

    Shuffled and random teachers are controls; other arms have the role of their method. Of a method, and of ``alone``
    and ``kd``, an arm with other hyper-parameters is an ablation where there is one with the default ones.
    """
    usual = {arm.method for arm in arms if arm.default and arm.scores} | set(baselines)

    def kind(arm: Arm) -> Kind:
        if arm.control != "none":
            return "control"
        if arm.label in baselines:
            return "baseline"
        info = installed_method(family, arm.method)
        role: Kind = info.role if info else "method"  # type: ignore[assignment]
        if role != "method":
            return role
        return "ablation" if arm.method in ("alone", "kd") or (arm.method in usual and not arm.default) else "method"

    return [kind(arm) for arm in arms]


def counterpart(arm: Arm, arms: Sequence[Arm], kinds: Sequence[Kind]) -> Arm | None:
    """The arm that a control controls: the same method with its real teacher, else the one method of the table."""
    if arm.control != "none":
        label = arm.label.removesuffix(_control(arm.control))
        return next((one for one in arms if one.label == label and one.control == "none"), None)
    listed = [one for one, kind in zip(arms, kinds, strict=True) if kind == "method" and one.scores]
    return listed[0] if len(listed) == 1 else None


def longer(arm: Arm, arms: Sequence[Arm], kd: Arm | None) -> Arm | None:
    """The student alone that trained as long as this arm with all its stages, ``alone (budget=…)``.

    None where the arm has no stage that ``kd`` does not have, or no such student was trained; of several the one whose
    training took nearest to as long.
    """
    usual = _stages(kd) if kd else set()
    candidates = [one for one in arms if one.method == "alone" and one.scores and _budget(one) > 1]
    if not _stages(arm) - usual or not candidates:
        return None
    whole = _seconds(arm)
    return min(candidates, key=lambda one: abs(_seconds(one) - whole))


def _stages(arm: Arm) -> set[str]:
    return {stage.name for run in arm.runs.values() for stage in run.stages}


def _budget(arm: Arm) -> float:
    budgets = [hyperparameters(run).get("budget") for run in arm.runs.values()]
    return max((float(value) for value in budgets if isinstance(value, int | float)), default=1.0)


def _seconds(arm: Arm) -> float:
    spent = [run.costs.train_seconds + run.costs.stage_seconds for run in arm.runs.values() if run.costs]
    return average(spent) if spent else 0.0


def collapsed(run: Record) -> bool:
    """Whether a run does no better than a constant: it predicts one class of several, or has a class that scores 0."""
    if run.predictions:
        return len(set(run.predictions)) == 1 and _classes(run) > 1
    if run.confusion and len(run.confusion[0]) > 1:
        predicted = [sum(column) > 0 for column in zip(*run.confusion, strict=True)]
        return sum(predicted) == 1 and _classes(run) > 1
    scores: Mapping[str, float] = run.metrics.test if run.metrics else {}
    return any(value == 0 for name, value in scores.items() if _of_class(run.family, name))


def _classes(run: Record) -> int:
    """How many classes the test examples are of; 2 where the record does not say."""
    return sum(sum(row) > 0 for row in run.confusion) if run.confusion else 2


def _of_class(family: str, metric: str) -> bool:
    declared: Any = lookup(family, metric)
    return bool(declared) and "*" in declared.name
