"""Plain distillation across modalities and its two controls in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.engine.method import Method
from kdbench.engine.step import Step
from kdbench.families.vision_language.paired_classification.methods import class_mean_kd, kd, label_smoothing
from kdbench.families.vision_language.paired_classification.methods.class_mean_kd import ClassMeanKD, class_means
from kdbench.families.vision_language.paired_classification.methods.kd import KD
from kdbench.families.vision_language.paired_classification.methods.label_smoothing import LabelSmoothing
from kdbench.families.vision_language.paired_classification.task import PairedTask

RNG = np.random.default_rng(5)
STUDENT, TEACHER = RNG.normal(size=(11, 4)) * 2, RNG.normal(size=(11, 4)) * 2
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def a_step(logits: Tensor, epoch: int = 0) -> Step:
    teachers = {"teacher": lambda batch: {"logits": torch.from_numpy(TEACHER)}}
    targets = torch.from_numpy(LABELS)
    return Step(torch.arange(11), targets, {"logits": logits}, {}, teachers, epoch, 100, nn.Module())  # type: ignore[arg-type]


def total(method: Method, logits: Tensor) -> Tensor:
    step = a_step(logits)
    terms = {"task": F.cross_entropy(logits, step.targets), **method.loss_terms(step)}
    weights = method.weights(step)
    assert weights.keys() == terms.keys()
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def ce() -> float:
    return float(-np.log(softmax(STUDENT)[np.arange(11), LABELS]).mean())


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 4.0), (0.9, 1.0), (0.0, 2.0)])
def test_kd_equals_the_card(alpha: float, temperature: float) -> None:
    logits = torch.from_numpy(STUDENT.copy()).requires_grad_()
    loss = total(KD(kd.Hyperparameters(alpha=alpha, temperature=temperature)), logits)
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    kl = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert loss.item() == pytest.approx((1 - alpha) * ce() + alpha * temperature**2 * kl, rel=1e-12)
    loss.backward()
    wanted = (1 - alpha) * (softmax(STUDENT) - np.eye(4)[LABELS]) + alpha * temperature * (q - p)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), wanted / 11, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("method", [KD(kd.Hyperparameters()), ClassMeanKD(class_mean_kd.Hyperparameters())])
def test_alpha_is_halved_after_the_30th_60th_and_90th_of_100_epochs(method: Any) -> None:
    logits = torch.from_numpy(STUDENT)
    told = [method.weights(a_step(logits, epoch)) for epoch in range(100)]
    halvings = [(epoch >= 30) + (epoch >= 60) + (epoch >= 90) for epoch in range(100)]  # epoch 30 is the 31st
    assert [weights["kd"] for weights in told] == [0.5 * 0.5**n for n in halvings]
    assert all(sum(weights.values()) == 1 for weights in told)


def test_alpha_may_be_constant() -> None:
    method = KD(kd.Hyperparameters(halving=0))
    assert {method.weights(a_step(torch.from_numpy(STUDENT), epoch))["kd"] for epoch in range(100)} == {0.5}


def test_label_smoothing_is_the_cross_entropy_to_smoothed_labels() -> None:
    logits, epsilon = torch.from_numpy(STUDENT), 0.2
    smoothed = (1 - epsilon) * np.eye(4)[LABELS] + epsilon / 4
    wanted = -(smoothed * np.log(softmax(STUDENT))).sum(axis=1).mean()
    loss = total(LabelSmoothing(label_smoothing.Hyperparameters(epsilon=epsilon)), logits)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, torch.from_numpy(LABELS), label_smoothing=0.2).item())


def means(temperature: float) -> np.ndarray:
    soft = softmax(TEACHER / temperature)
    return np.stack([soft[c == LABELS].mean(axis=0) for c in range(4)])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_class_mean_kd_equals_its_equation(temperature: float) -> None:
    method = ClassMeanKD(class_mean_kd.Hyperparameters(temperature=temperature))
    method.means = class_means(torch.from_numpy(TEACHER), torch.from_numpy(LABELS), 4, temperature)
    np.testing.assert_allclose(method.means.numpy(), means(temperature), rtol=0, atol=1e-14)
    p, q = means(temperature)[LABELS], softmax(STUDENT / temperature)
    kl = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    loss = total(method, torch.from_numpy(STUDENT))
    assert loss.item() == pytest.approx(0.5 * ce() + 0.5 * temperature**2 * kl, rel=1e-12)


def test_a_class_without_examples_has_even_probabilities() -> None:
    found = class_means(torch.from_numpy(TEACHER), torch.zeros(11, dtype=torch.int64), 4, 1.0)
    assert torch.equal(found[1:], torch.full((3, 4), 0.25, dtype=torch.float64)) and found.sum() == pytest.approx(4)


def test_means_are_over_training_pairs_alone(small_task: Callable[..., PairedTask]) -> None:
    task = small_task("method=class_mean_kd", "trainer.max_epochs=1", "teacher.cache=false")
    for stage in task.stages():
        task.store.ensure(stage)
    method = ClassMeanKD(task.config.hyperparameters)
    method.teachers(task)
    soft = (task.all_logits(task.live_teacher()) / 4).softmax(dim=-1)
    train = task.pairs.ids("train")
    for c in range(4):
        wanted = soft[train[task.pairs.y[train] == c]].mean(dim=0)
        torch.testing.assert_close(method.means[c], wanted)


@pytest.mark.parametrize("source", ["multimodal", "cross_modal"])
@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_teacher_sees_both_views_or_the_other(
    small_task: Callable[..., PairedTask], source: str, modality: str
) -> None:
    words = [f"teacher.source={source}", f"student.modality={modality}", "trainer.max_epochs=1"]
    task = small_task("method=kd", *words)
    (stage,) = task.stages()
    task.store.ensure(stage)
    other = {"image": "audio", "audio": "image"}[modality]
    assert task.student().sees == (modality,)
    network: Any = task.live_teacher().network
    assert network.sees == (("image", "audio") if source == "multimodal" else (other,))
    facts = task.teacher_facts()
    assert facts["kind"] == source and len(facts["predictions"]) == 80
    assert facts["description"] == ("sees image and audio" if source == "multimodal" else f"sees {other}")
