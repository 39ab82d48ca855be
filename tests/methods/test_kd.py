"""Plain distillation on nodes against Hinton et al.'s equation in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.engine.step import Step
from kdbench.methods.kd import KD, Hyperparameters

RNG = np.random.default_rng(5)
STUDENT, TEACHER = RNG.normal(size=(11, 4)) * 2, RNG.normal(size=(11, 4)) * 2
LABELS = RNG.integers(4, size=11)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def a_step(logits: torch.Tensor, epoch: int = 0) -> Step:
    teachers = {"teacher": lambda batch: {"logits": torch.from_numpy(TEACHER)}}
    targets = torch.from_numpy(LABELS)
    return Step(torch.arange(11), targets, {"logits": logits}, {}, teachers, epoch, 100, nn.Module())  # type: ignore[arg-type]


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 4.0), (0.9, 1.0), (1.0, 0.5), (0.0, 2.0)])
def test_loss_and_gradient_equal_the_paper(alpha: float, temperature: float) -> None:
    logits = torch.from_numpy(STUDENT.copy()).requires_grad_()
    method, step = KD(Hyperparameters(alpha=alpha, temperature=temperature)), a_step(logits)
    terms, weights = method.loss_terms(step), method.weights(step)
    task = nn.functional.cross_entropy(logits, step.targets)
    total = weights["task"] * task + weights["kd"] * terms["kd"]
    total.backward()

    hard, p, q = softmax(STUDENT), softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    onehot = np.eye(4)[LABELS]
    ce = -np.mean(np.sum(onehot * np.log(hard), axis=1))
    kl = np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    assert terms["kd"].item() == pytest.approx(temperature**2 * kl, rel=1e-12)
    assert total.item() == pytest.approx((1 - alpha) * ce + alpha * temperature**2 * kl, rel=1e-12)
    wanted = ((1 - alpha) * (hard - onehot) + alpha * temperature * (q - p)) / 11
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), wanted, rtol=1e-10, atol=1e-15)


def test_a_student_that_equals_the_teacher_loses_nothing() -> None:
    step = a_step(torch.from_numpy(TEACHER))
    assert KD(Hyperparameters()).loss_terms(step)["kd"].item() == pytest.approx(0, abs=1e-12)


def test_alpha_grows_over_the_ramp() -> None:
    method, logits = KD(Hyperparameters(alpha=0.8, ramp_epochs=4)), torch.from_numpy(STUDENT)
    kd = [method.weights(a_step(logits, epoch))["kd"] for epoch in range(6)]
    assert kd == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert all(sum(method.weights(a_step(logits, epoch)).values()) == pytest.approx(1) for epoch in range(6))
