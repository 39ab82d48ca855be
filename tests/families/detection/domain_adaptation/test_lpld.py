"""LPLD against a transcription of its equations in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.engine.step import Step
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.data import Batch
from kdbench.families.detection.domain_adaptation.methods.lpld import (
    LPLD,
    Hyperparameters,
    decoded,
    distances,
    distillation,
    low_confidence,
)

C = 3
OPTIONS = Hyperparameters()


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def box_of(proposal: np.ndarray, logits: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """``b_i``, one proposal at a time."""
    best = int(np.argmax(logits))
    if best == len(logits) - 1:
        return proposal
    x1, y1, x2, y2 = proposal
    dx, dy, dw, dh = deltas[4 * best : 4 * best + 4] / np.array([10, 10, 5, 5])
    w, h = x2 - x1, y2 - y1
    cx, cy = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
    limit = np.log(1000 / 16)
    w, h = (side * np.exp(np.minimum(d, limit)) for side, d in ((w, dw), (h, dh)))
    return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    wide, high = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    both = wide * high
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def mined(p: np.ndarray, z: np.ndarray, d: np.ndarray, h: np.ndarray, bounds: tuple[float, float, float]) -> list[bool]:
    """``M``, one proposal at a time."""
    overlap, foreground, background = bounds
    chosen = []
    for i in range(len(p)):
        apart = len(h) > 0 and max(iou(box_of(p[i], z[i], d[i]), one) for one in h) <= overlap
        clear = softmax(z[i : i + 1, :-1]).max() >= foreground
        chosen.append(bool(apart and clear and softmax(z[i : i + 1])[0, -1] <= background))
    return chosen


def loss(zs: np.ndarray, zt: np.ndarray, fs: np.ndarray, ft: np.ndarray, weighted: bool = True) -> float:
    """``(1/|M|) Σ_i w_i Σ_c q_ic (log q_ic − log r_ic)`` over regions that were all mined."""
    total = 0.0
    for i in range(len(zs)):
        w = 1 - fs[i] @ ft[i] / (np.linalg.norm(fs[i]) * np.linalg.norm(ft[i])) if weighted else 1.0
        q = [*softmax(zt[i : i + 1, :-1])[0], 1e-9]
        r = softmax(zs[i : i + 1])[0]
        total += w * sum(qc * (np.log(qc) - np.log(rc)) for qc, rc in zip(q, r, strict=True))
    return total / len(zs)


class Regions:
    """Random proposals of which every filter takes some."""

    def __init__(self, seed: int, count: int = 200, classes: int = C) -> None:
        rng = np.random.default_rng(seed)
        corner = rng.uniform(0, 60, size=(count, 2))
        self.p = np.concatenate([corner, corner + rng.uniform(4, 30, size=(count, 2))], axis=1)
        self.z = rng.normal(size=(count, classes + 1)) * 3
        self.z[:, -1] += 2
        self.d = rng.normal(size=(count, 4 * classes)) * 2
        self.h = self.p[:5] + rng.uniform(-2, 2, size=(5, 4))
        self.fs, self.ft = rng.normal(size=(2, count, 7))
        self.zs = rng.normal(size=(count, classes + 1)) * 2

    def tensors(self, *names: str) -> list[torch.Tensor]:
        return [torch.from_numpy(getattr(self, name)) for name in names]


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_decoded_as_the_card_says(seed: int) -> None:
    one = Regions(seed)
    one.d[:40] *= 20  # beyond the clamp of the logarithmic sides, and as far below 0, where there is none
    wanted = np.stack([box_of(*row) for row in zip(one.p, one.z, one.d, strict=True)])
    computed = decoded(*one.tensors("p", "z", "d")).numpy()
    np.testing.assert_allclose(computed, wanted, rtol=1e-12, atol=1e-10)
    assert (computed.min(axis=1) < 0).any(), "some boxes leave the image: they are not clipped"
    background = one.z.argmax(axis=1) == C
    assert background.any() and (computed[background] == one.p[background]).all()


def test_boxes_are_those_of_the_detectors_own_coder(detector: Any) -> None:
    one = Regions(5)
    coder = detector.roi_head.bbox_head.bbox_coder
    best = one.z.argmax(axis=1)
    rows = best < C
    p, d = torch.from_numpy(one.p), torch.from_numpy(one.d).view(-1, C, 4)
    wanted = coder.decode(p[rows], d[torch.arange(len(d)), torch.from_numpy(best).clamp(max=C - 1)][rows])
    torch.testing.assert_close(decoded(*one.tensors("p", "z", "d"))[rows], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bounds", [(0.4, 0.9, 0.99), (0.1, 0.6, 0.5), (0.7, 0.99, 0.9)])
def test_mining_equals_the_card(seed: int, bounds: tuple[float, float, float]) -> None:
    one = Regions(seed)
    options = Hyperparameters(overlap=bounds[0], foreground=bounds[1], background=bounds[2])
    computed = low_confidence(*one.tensors("p", "z", "d", "h"), options).tolist()
    assert computed == mined(one.p, one.z, one.d, one.h, bounds)
    assert 0 < sum(computed) < len(computed)


def test_each_filter_takes_a_region_away() -> None:
    """One region that is kept, and three that fail one filter each."""
    p = torch.tensor([[50.0, 50, 60, 60]] * 4)
    z = torch.tensor([[4.0, 0, 0, 5]] * 4)  # clear among classes, and mostly background
    z[2] = torch.tensor([1.0, 0, 0, 1])  # two classes alike
    z[3] = torch.tensor([4.0, 0, 0, 15])  # hardly anything there
    p[1] = torch.tensor([10.0, 10, 20, 20])  # on the confident label
    confident = torch.tensor([[10.0, 10, 20, 20]])
    assert low_confidence(p, z, torch.zeros(4, 12), confident, OPTIONS).tolist() == [True, False, False, False]


def test_no_confident_label_no_region() -> None:
    one = Regions(0)
    p, z, d = one.tensors("p", "z", "d")
    assert not low_confidence(p, z, d, torch.zeros(0, 4), OPTIONS).any()
    assert low_confidence(p[:0], z[:0], d[:0], torch.ones(1, 4), OPTIONS).shape == (0,)


def test_with_one_class_the_foreground_filter_is_always_true() -> None:
    one = Regions(2, classes=1)
    computed = low_confidence(*one.tensors("p", "z", "d", "h"), OPTIONS).tolist()
    assert computed == mined(one.p, one.z, one.d, one.h, (0.4, 0.0, 0.99)) and any(computed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_equals_the_card(seed: int, weighted: bool) -> None:
    one = Regions(seed, count=17)
    zs, zt, fs, ft = one.tensors("zs", "z", "fs", "ft")
    w = distances(fs, ft) if weighted else torch.ones(len(zs), dtype=torch.float64)
    computed = distillation(zs, zt, w, 1e-9).item()
    assert computed == pytest.approx(loss(one.zs, one.z, one.fs, one.ft, weighted), rel=1e-12)


def test_the_students_gradient_is_that_of_a_weighted_soft_cross_entropy() -> None:
    """``∂L/∂z^S_ic = w_i (r_ic Σ_c q_ic − q_ic) / |M|``; teacher and features get none."""
    one = Regions(7, count=9)
    zs, zt, fs, ft = (tensor.requires_grad_() for tensor in one.tensors("zs", "z", "fs", "ft"))
    w = distances(fs, ft)
    distillation(zs, zt, w, 1e-9).backward()
    q = np.concatenate([softmax(one.z[:, :-1]), np.full((9, 1), 1e-9)], axis=1)
    wanted = w.numpy()[:, None] * (softmax(one.zs) * q.sum(axis=1, keepdims=True) - q) / 9
    assert zs.grad is not None
    np.testing.assert_allclose(zs.grad.numpy(), wanted, rtol=1e-10, atol=1e-15)
    assert zt.grad is None and fs.grad is None and ft.grad is None and not w.requires_grad
    np.testing.assert_allclose(q.sum(axis=1), 1 + 1e-9, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 200.0), (torch.float64, 1000.0)])
def test_a_probability_that_underflows_gives_a_finite_loss(dtype: torch.dtype, gap: float) -> None:
    student = torch.tensor([[0.0, 0, 0, gap]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[gap, 0, 0, 0]], dtype=dtype)  # and q underflows too
    value = distillation(student, teacher, torch.ones(1, dtype=dtype), 1e-9)
    value.backward()
    assert value.item() == pytest.approx(gap, rel=1e-5) and student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_a_step_takes_mass_from_the_students_background() -> None:
    torch.manual_seed(0)
    student = (torch.randn(6, C + 1) + torch.tensor([0.0, 0, 0, 3])).requires_grad_()  # trained to see nothing there
    before = student.detach().softmax(1)[:, -1]
    distillation(student, torch.randn(6, C + 1), torch.ones(6), 1e-9).backward()
    assert student.grad is not None
    assert ((student - student.grad).softmax(1)[:, -1] < before).all()


def test_equal_features_weigh_nothing_and_opposite_ones_two() -> None:
    f = torch.randn(4, 9)
    assert distances(f, f * 3).tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert distances(f, -f).tolist() == pytest.approx([2] * 4, abs=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    one = Regions(3, count=12)
    zs, zt = (tensor.half() for tensor in one.tensors("zs", "z"))
    value = distillation(zs, zt, torch.ones(12), 1e-9)
    exact = loss(zs.double().numpy(), zt.double().numpy(), one.fs, one.ft, False)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(exact, rel=1e-5)


def taught(rows: list[Regions], scores: list[list[float]]) -> dict[str, torch.Tensor]:
    """A teacher's outputs: the given regions, and their confident boxes as detections."""
    names = {"proposals": "p", "logits": "z", "deltas": "d", "features": "ft"}
    outputs = {name: torch.stack([row.tensors(mine)[0] for row in rows]).float() for name, mine in names.items()}
    boxes = torch.stack([row.tensors("h")[0] for row in rows]).float().clamp(0, 64)
    return {
        **outputs,
        "proposed": torch.tensor([len(row.p) for row in rows]),
        "boxes": boxes,
        "scores": torch.tensor(scores),
        "labels": torch.zeros(boxes.shape[:2], dtype=torch.int64),
    }


def a_step(student: nn.Module, outputs: dict[str, torch.Tensor]) -> Step:
    count = len(outputs["boxes"])
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 64, 64, generator=generator) * 255
    images[:] = images[0]
    batch = Batch(images, torch.full((count, 2), 64), torch.arange(count))
    teachers: Any = {"teacher": lambda batch: outputs}
    return Step(batch, batch.rows, {}, {}, teachers, 0, 1, student)


def regions(seed: int) -> Regions:
    one = Regions(seed)
    one.p = np.clip(one.p, 0, 64)
    one.ft = np.random.default_rng(seed).normal(size=(len(one.p), 16))
    return one


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No augmentation, so that a batch's images stay alike."""
    monkeypatch.setattr("kdbench.families.detection.domain_adaptation.views.strong", lambda images, sizes: images)


CONFIDENT = [0.9, 0.8, 0.71, 0.69, 0.3]


def test_the_methods_term_equals_the_card_on_the_students_own_head(detector: Any, plain: None) -> None:
    one = regions(0)
    step = a_step(detector.train(), taught([one], [CONFIDENT]))
    terms = LPLD(OPTIONS).loss_terms(step)
    assert list(terms) == ["rpn_cls", "rpn_box", "roi_cls", "roi_box", "lpld"]
    chosen = np.array(mined(one.p, one.z, one.d, np.clip(one.h[:3], 0, 64), (0.4, 0.9, 0.99)))
    maps = detector.extract_feat(models.normalised(step.batch.images, step.batch.sizes))
    rois = models.as_rois([torch.from_numpy(one.p[chosen]).float()])
    logits, _, features = models.classify(detector, maps, rois)
    zs, fs = logits.detach().double().numpy(), features.detach().double().numpy()
    assert terms["lpld"].item() == pytest.approx(loss(zs, one.z[chosen], fs, one.ft[chosen]), rel=1e-5)
    assert step.logs["low-confidence labels"].item() == chosen.sum() > 0
    assert step.logs["confident labels"].item() == 3 and step.logs["images without label"].item() == 0
    w = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(fs, one.ft[chosen], strict=True)]
    assert step.logs["feature distance"].item() == pytest.approx(np.mean(w), rel=1e-5)
    assert LPLD(OPTIONS).weights(step) == {"lpld": 0.1}


def test_the_term_trains_features_and_classification_but_neither_regions_nor_boxes(detector: Any, plain: None) -> None:
    term = LPLD(OPTIONS).loss_terms(a_step(detector.train(), taught([regions(0)], [CONFIDENT])))["lpld"]
    term.backward()
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in detector.named_parameters()}
    assert grads["roi_head.bbox_head.fc_cls.weight"] and grads["backbone.conv1.weight"]
    assert not any(value for name, value in grads.items() if name.startswith("rpn_head") or "fc_reg" in name)


def test_a_batch_is_the_mean_of_its_images(detector: Any, plain: None) -> None:
    """Also where one of them has no confident label."""
    method, rows = LPLD(OPTIONS), [regions(0), regions(1), regions(2)]
    scores = [CONFIDENT, CONFIDENT, [0.1] * 5]
    detector.train()
    single = [
        method.loss_terms(a_step(detector, taught([r], [s])))["lpld"].item() for r, s in zip(rows, scores, strict=True)
    ]
    both = method.loss_terms(a_step(detector, taught(rows, scores)))["lpld"].item()
    assert single[2] == 0 and min(single[:2]) > 0 and single[0] != single[1]
    assert both == pytest.approx(sum(single) / 3, rel=1e-5)


def test_without_a_region_the_term_is_zero_and_has_a_gradient(detector: Any, plain: None) -> None:
    one = regions(0)
    one.z[:, -1] += 100  # all background
    terms = LPLD(OPTIONS).loss_terms(a_step(detector.train(), taught([one], [CONFIDENT])))
    assert terms["lpld"].item() == 0 and terms["roi_cls"].item() > 0
    terms["lpld"].backward()
    assert not any(p.grad.any() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize("empty", ["skip", "background"])
def test_images_without_confident_label(detector: Any, plain: None, empty: Any) -> None:
    method = LPLD(Hyperparameters(empty=empty))
    step = a_step(detector.train(), taught([regions(0)], [[0.5] * 5]))
    terms = method.loss_terms(step)
    assert terms["lpld"].item() == 0 and step.logs["images without label"].item() == 1
    assert (sum(value.item() for value in terms.values()) > 0) == (empty == "background")
    assert terms["rpn_box"].item() == terms["roi_box"].item() == 0
    sum(terms.values()).backward()  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_teacher_gets_no_gradient_through_the_whole_method(session: Callable[..., Any]) -> None:
    begun = session("method=lpld", "method.threshold=0.3")
    module, teachers = begun.assemble()
    (teacher,) = teachers.values()
    teacher.on_fit_start(None, module)
    for parameter in teacher.network.parameters():
        parameter.requires_grad_()  # as in the released code; cutting is the method's own duty
    module.train()
    step = Step(begun.task.example(), None, {}, {}, teachers, 0, 1, module.student)
    sum(begun.method.loss_terms(step).values()).backward()
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    assert any(p.grad is not None and p.grad.any() for p in module.student.parameters())
