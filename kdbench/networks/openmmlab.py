"""mmcv's compiled operators, served by torchvision where mmcv was installed without them.

mmdet's two-stage detectors need non-maximum suppression and RoIAlign of the 78 operators of ``mmcv._ext``. The pure
wheel (mmcv-lite) has none, so a module of that name is put in its place; any other operator raises when it is called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor

from kdbench.errors import MissingExtraError

NAME = "mmcv._ext"


def provide() -> bool:
    """Make ``mmcv._ext`` importable. True when it is ours, False when mmcv brings its own."""
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        sys.modules[NAME] = _Operators(NAME)
    return isinstance(sys.modules.get(NAME), _Operators)


class _Operators(ModuleType):
    """The stand-in for ``mmcv._ext``."""

    def __init__(self, name: str) -> None:
        super().__init__(name, __doc__)
        self.nms, self.roi_align_forward, self.roi_align_backward = nms, roi_align_forward, roi_align_backward

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> Any:
            raise MissingExtraError(
                f"The operator '{name}' is not here: mmcv was installed without its compiled operators, and only nms "
                "and roi_align are served in their place. Install a full build of mmcv for the others."
            )

        return absent


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices that non-maximum suppression keeps, best first. Boxes are [x1, y1, x2, y2]; ``offset`` 1 is refused."""
    if offset:
        raise ValueError("boxes whose last pixel counts (offset=1) are not served")
    kept: Tensor = torchvision.ops.nms(boxes, scores, iou_threshold)
    return kept


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average RoIAlign of ``features`` [b, c, h, w] at ``rois`` [n, 5] (image, box), written into ``output``."""
    _only_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    gradient: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    output: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of :func:`roi_align_forward` with respect to the features, written into ``output``."""
    _only_average(pool_mode)
    size = (aligned_height, aligned_width)
    more = (*output.shape, sampling_ratio, aligned)
    output.copy_(torch.ops.torchvision._roi_align_backward(gradient, rois, spatial_scale, *size, *more))


def _only_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise ValueError("RoIAlign is served with average pooling only")
