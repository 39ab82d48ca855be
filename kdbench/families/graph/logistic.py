"""Multinomial logistic regression, its strength chosen on validation: the head of teachers and of references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

STRENGTHS = (1.0, 10.0, 100.0)
ITERATIONS = 500

Score = Callable[[Tensor, Tensor], float]
"""What logits ``[b, C]`` are worth for classes int64 ``[b]``; higher is better."""


@dataclass(frozen=True)
class Logistic:
    """A fitted model: ``z = x W^T + b``."""

    weight: Tensor
    """float32 ``[C, f]``."""
    bias: Tensor
    """float32 ``[C]``; -10,000 for a class without a training example."""
    strength: float
    """Inverse C of the L2 penalty that was chosen."""
    value: float
    """Its score on validation."""


def fit(
    x: Any, y: np.ndarray, train: np.ndarray, val: np.ndarray, classes: int, score: Score, strengths: Sequence[float]
) -> Logistic:
    """The best of the strengths C on the rows ``val``, each fitted to the rows ``train``; the first of equals.

    ``x``: ``[n, f]``, dense or a sparse matrix of SciPy; ``y``: int64 ``[n]``, two classes at least among ``train``.
    """
    from sklearn.linear_model import LogisticRegression

    targets, best = torch.from_numpy(y[val]), None
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=1e-4).fit(x[train], y[train])
        weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -1e4)
        binary = len(model.classes_) == 2
        weight[model.classes_] = _halves(model.coef_) if binary else model.coef_
        bias[model.classes_] = _halves(model.intercept_) if binary else model.intercept_
        value = score(torch.from_numpy(x[val] @ weight.T + bias), targets)
        if best is None or value > best.value:
            best = Logistic(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), strength, value)
    assert best is not None, "there are strengths"
    return best


def _halves(values: np.ndarray) -> np.ndarray:
    """Of two classes scikit-learn keeps one difference: half of it on either side."""
    half = np.atleast_1d(values) / 2
    return np.concatenate([-half, half])
