"""EfficientNet-Lite0 as a detector's backbone: BatchNorm as it is, the finest blocks frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.networks.efficientnet_lite import MEAN, STD, EfficientNetLite0

FROZEN = 4
"""The stem and the blocks up to this stride are not trained, as is the custom with ImageNet weights."""


class Lite0(EfficientNetLite0):
    """Features of images that are normalised by ``mean`` and ``std`` a channel, which are undone first.

    BatchNorm keeps its statistics in training, and its scales and offsets are not trained.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, strides: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(strides)
        scale, offset = torch.tensor(std) / STD, (torch.tensor(mean) - MEAN) / STD
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("offset", offset[:, None, None], persistent=False)
        for part in (self.stem, *self.blocks[: self.ends[FROZEN] + 1]):
            part.requires_grad_(False)
        for norm in self.norms():
            norm.requires_grad_(False)

    def norms(self) -> list[nn.BatchNorm2d]:
        """Its BatchNorm layers."""
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> Lite0:
        super().train(mode)
        for norm in self.norms():
            norm.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x * self.scale + self.offset)
