"""Metrics as families declare them: direction, range and unit, in one place for training, records, tables and board.

The ``options.py`` of a kind of task holds ``METRICS``: what their evaluation gives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from kdbench.errors import CardError, UndefinedMetricError, unknown
from kdbench.plan.catalog import families, kind_module, kinds

Mode = Literal["min", "max"]
PERCENT = "%"

_VALUES = "kdbench.results.pseudovalues"
ACCURACY, MACRO_F1, AUC, CASE_MEAN = (f"{_VALUES}:{name}" for name in ("accuracy", "macro_f1", "auc", "case_mean"))
AP, MEAN_AP = (f"{_VALUES}:{name}" for name in ("average_precision", "mean_average_precision"))
"""What several kinds give as :attr:`Metric.by_item`."""


@dataclass(frozen=True)
class Metric:
    """What a score means. ``name`` may hold ``*`` for the name of a class or a network: ``ap50_*``.

    ``low`` and ``high`` bound its values, None where nothing does. A score of unit ``%`` is a share, which people are
    shown in percent, and its differences in points; any other unit is that of the values themselves.

    ``by_item`` (``module:function``) names what gives the value of each test example, of which the score is the mean,
    from a run's per-item outcomes: see :mod:`kdbench.results.pseudovalues`. Without one, intervals cover seeds alone.
    """

    name: str
    mode: Mode = "max"
    low: float | None = None
    high: float | None = None
    unit: str = ""
    doc: str = ""
    by_item: str = ""

    def holds(self, value: float) -> bool:
        """Whether a value is within the range."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def range(self) -> str:
        """The range in words."""
        if self.high is None:
            return "any number" if self.low is None else f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low is None else f"within {self.low:g} and {self.high:g}"


def share(name: str, doc: str = "", by_item: str = "") -> Metric:
    """A metric in [0, 1] that is shown in percent; larger is better."""
    return Metric(name, "max", 0, 1, PERCENT, doc, by_item)


@dataclass(frozen=True)
class Undefined:
    """What an evaluation gives in the place of a score that its examples do not define."""

    why: str


def defined(scores: Mapping[str, float | Undefined], headline: str | None, split: str) -> dict[str, float]:
    """The scores that have a value. Raises :class:`UndefinedMetricError` where the ``headline`` metric has none.

    A score that is not finite has none. Whether a metric is defined may depend on a split's labels, but on nothing that
    changes in training: a metric has a value at every validation, or at none.
    """
    values, missing = {}, {}
    for name, value in scores.items():
        if isinstance(value, Undefined):
            missing[name] = value.why
        elif not math.isfinite(value):
            missing[name] = f"it is {value}"
        else:
            values[name] = value
    if headline is not None and headline not in values:
        raise UndefinedMetricError(headline, split, missing.get(headline, "the evaluation does not compute it"))
    return values


def scores(confusion: list[list[int]]) -> dict[str, float]:
    """Accuracy and macro F1 in [0, 1] of a non-empty confusion matrix C (rows: true class).

    Accuracy = Σ C_ii / Σ C_ij;  F1_i = 2 C_ii / (Σ_j C_ij + Σ_j C_ji), averaged over the classes with at least one true
    or predicted example, as torchmetrics does for ``average="macro"``. Raises ZeroDivisionError for an empty matrix.
    """
    true, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    hits = [row[index] for index, row in enumerate(confusion)]
    f1 = [2 * hit / (t + p) for hit, t, p in zip(hits, true, predicted, strict=True) if t + p]
    return {"accuracy": sum(hits) / sum(true), "macro_f1": sum(f1) / len(f1)}


def of_kind(family: str, kind: str) -> Sequence[Metric]:
    """The metrics of a kind of task. Raises :class:`CardError` for a kind that declares none."""
    options = kind_module(family, kind, "options")
    declared: Sequence[Metric] = getattr(options, "METRICS", ())
    if not declared:
        raise CardError(f"{options.__file__}:1: METRICS is missing: give the metrics of this kind of task.")
    return declared


def named(family: str, kind: str, name: str) -> Metric:
    """A metric that a card names. Raises :class:`UsageError` for one that its kind of task does not have."""
    declared = of_kind(family, kind)
    metric = _named(declared, name)
    if metric is None:
        raise unknown(f"metric of {kind.replace('_', ' ')}", name, [metric.name for metric in declared])
    return metric


@functools.cache
def lookup(family: str, name: str) -> Metric | None:
    """The metric of that name in any kind of the family; None where the family is not installed or has none such."""
    if family not in families():
        return None
    every = (_named(of_kind(family, kind), name) for kind in kinds(family))
    return next((metric for metric in every if metric), None)


def unit(family: str, name: str | None) -> str:
    """The unit in which people are shown a metric's values; empty where it has none or is not known."""
    metric = lookup(family, name) if name is not None else None
    return metric.unit if metric else ""


def _named(metrics: Sequence[Metric], name: str) -> Metric | None:
    exact = (metric for metric in metrics if metric.name == name)
    return next(exact, next((metric for metric in metrics if fnmatchcase(name, metric.name)), None))
