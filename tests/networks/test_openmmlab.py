"""The stand-in for mmcv's compiled operators."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.errors import MissingExtraError
from kdbench.networks import openmmlab as operators

RNG = np.random.default_rng(4)


@pytest.fixture
def ours() -> Any:
    """The stand-in; skipped where mmcv brings its own operators."""
    if not operators.provide():
        pytest.skip("mmcv was installed with its compiled operators")
    return sys.modules[operators.NAME]


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Non-maximum suppression, box by box."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = []
        for j in kept:
            wide = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            high = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            both = max(0, wide) * max(0, high)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            overlaps.append(both / (sum(areas) - both))
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(int(i))
    return kept


def test_nms_of_mmcv_keeps_what_greedy_suppression_keeps(ours: Any) -> None:
    from mmcv.ops import nms

    corner = RNG.uniform(0, 20, size=(40, 2))
    boxes = np.concatenate([corner, corner + RNG.uniform(3, 12, size=(40, 2))], axis=1).astype(np.float32)
    scores = RNG.uniform(size=40).astype(np.float32)
    _, kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4)
    wanted = greedy(boxes.astype(np.float64), scores, 0.4)
    assert kept.tolist() == wanted and len(wanted) < 40


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_of_mmcv_and_its_gradient_are_torchvisions(ours: Any, samples: int, aligned: bool) -> None:
    from mmcv.ops import RoIAlign

    features = torch.from_numpy(RNG.normal(size=(2, 3, 10, 12))).float()
    rois = torch.tensor([[0, 3, 2, 30, 28], [1, 0, 0, 11, 40], [1, 5, 5, 9, 9]]).float()
    told = []
    for torchvision in (False, True):
        x = features.clone().requires_grad_()
        layer = RoIAlign((4, 5), 0.25, samples, aligned=aligned, use_torchvision=torchvision)
        out = layer(x, rois)
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        told.append((out.detach(), x.grad))
    assert told[0][0].abs().sum() > 0
    for mine, theirs in zip(*told, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_another_operator_raises_when_it_is_called(ours: Any) -> None:
    from mmcv.ops import ModulatedDeformConv2d  # noqa: F401

    with pytest.raises(MissingExtraError, match=r"operator 'soft_?nms' is not here.*full build of mmcv"):
        ours.softnms(torch.zeros(1, 4), torch.zeros(1))


def test_what_torchvision_does_otherwise_is_refused(ours: Any) -> None:
    from mmcv.ops import RoIAlign

    with pytest.raises(ValueError, match="offset"):
        ours.nms(torch.zeros(1, 4), torch.zeros(1), iou_threshold=0.5, offset=1)
    with pytest.raises(ValueError, match="average"):
        RoIAlign(2, 1.0, pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))


def test_real_operators_are_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleType(operators.NAME)
    monkeypatch.setitem(sys.modules, operators.NAME, real)
    assert not operators.provide() and sys.modules[operators.NAME] is real
    monkeypatch.delitem(sys.modules, operators.NAME)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: real if name == operators.NAME else found(name))
    assert not operators.provide() and operators.NAME not in sys.modules
