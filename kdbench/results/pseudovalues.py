"""What each test example adds to a score: values v ``[n]``, one an example, whose mean is the score.

Where the score is a mean over examples they are its terms. Elsewhere they are jackknife pseudo-values, moved so that
their mean is the score θ itself: ``v_i = θ + (n − 1)(θ̄ − θ_(−i))``, with θ_(−i) the score without example i and θ̄ the
mean of these; so ``Var(v) / n`` is the jackknife's estimate of the variance of θ over test examples.

Each function takes the arrays of one split by name, and the metric's name; a metric names its function
(:attr:`kdbench.plan.metrics.Metric.by_item`). KeyError where an array is missing, None where the jackknife is not
defined: without one of the examples there would be no score.

Sources: Efron and Stein, "The jackknife estimate of variance", Ann. Stat. 9 (1981); DeLong, DeLong and
Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics 44 (1988).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO's average precision reads the precision."""
MOST_CLASSES = 100_000


def accuracy(arrays: Arrays, metric: str) -> Array:
    """``v_i`` = 1 where ``predicted`` equals ``targets``, else 0 (both int ``[n]``)."""
    return np.asarray(arrays["predicted"] == arrays["targets"], dtype=float)


def case_mean(arrays: Arrays, metric: str) -> Array:
    """``v_i`` = mean over classes of the array of the metric's name, ``[n, C]``: its score for case i."""
    return np.asarray(arrays[metric].astype(float).mean(axis=1))


def macro_f1(arrays: Arrays, metric: str) -> Array | None:
    """Jackknife of macro F1 (:func:`kdbench.plan.metrics.scores`) of ``predicted`` and ``targets``, int ``[n]``.

    Examples of one cell of the confusion matrix have one value, so that each cell is left out once.
    """
    true, predicted = arrays["targets"].astype(np.int64), arrays["predicted"].astype(np.int64)
    if len(true) < 2:
        return None
    size = int(max(true.max(), predicted.max())) + 1
    if size > MOST_CLASSES or min(true.min(), predicted.min()) < 0:
        raise ValueError(f"classes are not within 0 and {MOST_CLASSES}")
    cells, cell_of = np.unique(true * size + predicted, return_inverse=True)
    t, p = cells // size, cells % size
    same = t == p
    hits = np.bincount(true[true == predicted], minlength=size)
    given = np.bincount(true, minlength=size) + np.bincount(predicted, minlength=size)  # twice the hits, and the errors
    f1, here = _f1(hits, given), given > 0
    less_t, less_p = given[t] - 1 - same, given[p] - 1 - same  # a hit counts as true and as predicted
    summed = f1.sum() - f1[t] + _f1(hits[t] - same, less_t) + np.where(same, 0, _f1(hits[p], less_p) - f1[p])
    classes = here.sum() - (less_t == 0) - (~same & (less_p == 0))
    return _jackknife(float(f1.sum() / here.sum()), (summed / classes)[cell_of])


def _f1(hits: Array, given: Array) -> Array:
    return np.asarray(2 * hits / np.maximum(given, 1))


def auc(arrays: Arrays, metric: str) -> Array | None:
    """Area under the ROC curve of ``logits`` ``[n, C]`` for ``targets`` int ``[n]``; DeLong's components.

    Two classes: the margin ``z_1 − z_0``. More: the mean over classes c of c against the others by the margin
    ``z_c − log Σ_{k≠c} exp z_k``. With V_i the share of the other class that example i is ranked right against,
    ``v_i = θ + (V_i − θ) √(n (n − 1) / (m (m − 1)))`` for the m examples of i's class: ``Var(v) / n`` is DeLong's
    variance. None where a class has fewer than two examples.
    """
    z, targets = arrays["logits"].astype(float), arrays["targets"]
    if z.shape[1] == 2:
        return _area(z[:, 1] - z[:, 0], targets == 1)
    areas = []
    for c in range(z.shape[1]):
        others = np.delete(z, c, axis=1)
        largest = others.max(axis=1)
        margin = z[:, c] - largest - np.log(np.exp(others - largest[:, None]).sum(axis=1))
        areas.append(_area(margin, targets == c))
    known = [area for area in areas if area is not None]
    return np.mean(known, axis=0) if len(known) == len(areas) else None


def _area(margin: Array, positive: Array) -> Array | None:
    n, sizes = len(margin), (int(positive.sum()), int((~positive).sum()))
    if min(sizes) < 2:
        return None
    above, below = np.sort(margin[positive]), np.sort(margin[~positive])
    values = np.empty(n)
    for mine, others, sign in ((positive, below, 1), (~positive, above, -1)):
        won = np.searchsorted(others, margin[mine], "left") + np.searchsorted(others, margin[mine], "right")
        share = won / (2 * len(others))
        values[mine] = share if sign > 0 else 1 - share
    score = float(values[positive].mean())
    scale = [np.sqrt(n * (n - 1) / (size * (size - 1))) for size in sizes]
    return np.asarray(score + (values - score) * np.where(positive, *scale))


def average_precision(arrays: Arrays, metric: str) -> Array | None:
    """Jackknife over images of COCO's average precision at IoU 0.5, of the class that the metric ends with.

    Of class c: ``image of c`` int ``[d]``, each detection's place among the n images, ascending; ``score of c``
    ``[d]``, descending within an image; ``matched of c`` ``[d]``, 1 where it takes a true box; ``targets of c`` int
    ``[n]``, the images' true boxes.
    """
    return _precision(arrays, metric.partition("_")[2])


def mean_average_precision(arrays: Arrays, metric: str) -> Array | None:
    """The mean of :func:`average_precision` over the classes with a true box: those that the metric ends with, joined
    by ``+`` (``map50_cat+dog``), or all of them."""
    every = [name.removeprefix("targets of ") for name in sorted(arrays) if name.startswith("targets of ")]
    asked = metric.partition("_")[2].split("+") if "_" in metric else every
    classes = [name for name in asked if arrays[f"targets of {name}"].any()]
    values = [_precision(arrays, name) for name in classes]
    known = [value for value in values if value is not None]
    return np.mean(known, axis=0) if known and len(known) == len(values) else None


def _precision(arrays: Arrays, name: str) -> Array | None:
    image, score, matched = (arrays[f"{what} of {name}"] for what in ("image", "score", "matched"))
    boxes = arrays[f"targets of {name}"].astype(np.int64)
    total = int(boxes.sum())
    if len(boxes) < 2 or int(boxes.max()) == total:
        return None
    order = np.argsort(-score.astype(float), kind="stable")
    image, matched = image[order].astype(np.int64), matched[order].astype(np.int64)
    without = np.full(len(boxes), whole := _coco(matched, total))
    for left in np.union1d(image, boxes.nonzero()[0]):
        without[left] = _coco(matched[image != left], total - int(boxes[left]))
    return _jackknife(whole, without)


def _coco(matched: Array, boxes: int) -> float:
    """Precision at 101 recalls, averaged, of detections from the surest on; 0 at recalls that are not reached."""
    hits = matched.cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(hits / boxes, RECALLS, "left")].mean())


def _jackknife(score: float, without: Array) -> Array:
    return np.asarray(score + (len(without) - 1) * (without.mean() - without))
