"""Views of training images: photometric ones that leave every pixel where it is, and the source domain's flips."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from kdbench.families.detection.domain_adaptation.networks import Truth

JITTER = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
STRONG = v2.Compose(
    [
        JITTER,
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
        v2.RandomErasing(p=0.7, scale=(0.05, 0.2), ratio=(0.3, 3.3), value="random"),
        v2.RandomErasing(p=0.5, scale=(0.02, 0.2), ratio=(0.1, 6.0), value="random"),
        v2.RandomErasing(p=0.3, scale=(0.02, 0.2), ratio=(0.05, 8.0), value="random"),
    ]
)


def strong(images: Tensor, sizes: Tensor) -> Tensor:
    """The strong view of each image ``[b, 3, H, W]``, drawn from torch's global stream: boxes stay valid.

    Colour jitter (0.4, 0.4, 0.4, 0.1) with p = 0.8, greyscale with p = 0.2, Gaussian blur of σ ∈ [0.1, 2] with p = 0.5,
    three erased rectangles of random values with p = 0.7, 0.5, 0.3. The padding outside ``sizes`` is left as it is.
    """
    return _each(STRONG, images, sizes)


def jittered(images: Tensor, sizes: Tensor, truth: list[Truth]) -> tuple[Tensor, list[Truth]]:
    """The source domain's view: colour jitter, and a horizontal flip with p = 1/2."""
    images, moved = _each(JITTER, images, sizes), []
    for image, width, one in zip(images, sizes[:, 1].tolist(), truth, strict=True):
        if torch.rand(()) < 0.5:
            image[:, :, :width] = image[:, :, :width].flip(-1)
            x1, y1, x2, y2 = one.boxes.unbind(1)
            one = Truth(torch.stack([width - x2, y1, width - x1, y2], dim=1), one.labels)
        moved.append(one)
    return images, moved


def _each(view: v2.Transform, images: Tensor, sizes: Tensor) -> Tensor:
    result = images.clone()
    for image, (height, width) in zip(result, sizes.tolist(), strict=True):
        image[:, :height, :width] = view(image[:, :height, :width] / 255).clamp(0, 1) * 255
    return result
