"""The source detector on target images of the source's colours: a reference that trains nothing.

    x'_c = (x_c − μ^T_c) · σ^S_c / σ^T_c + μ^S_c

for each channel c of a pixel x, with mean μ and deviation σ over all pixels of the source's (S) and of the target's (T)
training images. Six numbers of the source and unlabelled target images are all that it needs; what adaptation gives
beyond it is more than a change of stain and light.

Source: Reinhard et al., "Color Transfer between Images", IEEE CG&A 21(5), 2001, doi 10.1109/38.946629, here a set of
images to a set of images and in RGB, not image to image in lαβ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.method import Method
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.data import Images
from kdbench.families.detection.domain_adaptation.task import AdaptationTask


class Recoloured(nn.Module):
    """A detector before which each channel of a normalised image becomes ``scale · x + offset``."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: Any, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.network, self.rpn_head, self.roi_head = network, network.rpn_head, network.roi_head
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("offset", offset[:, None, None])

    def extract_feat(self, images: Tensor) -> tuple[Tensor, ...]:
        """The detector's feature maps of images ``[b, 3, H, W]``."""
        maps: tuple[Tensor, ...] = self.network.extract_feat(images * self.scale + self.offset)
        return maps


def colours(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``[3]`` a channel over all pixels, of normalised images."""
    count, total, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for row in range(len(images)):
        picture = images.read(row)[0]
        sizes = torch.tensor([picture.shape[1:]])
        pixels = models.normalised(picture[None], sizes)[0].flatten(1).double()
        count, total, squares = count + pixels.shape[1], total + pixels.sum(1), squares + pixels.square().sum(1)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).sqrt().float()


class Reinhard(Method[AdaptationTask]):
    """Trains nothing."""

    title = "reference: the source detector on target images of the source's colours"
    paper = "https://doi.org/10.1109/38.946629"
    teacher = "none"
    role = "reference"

    def epochs(self, budget: int) -> int:
        return 0

    def student(self, task: AdaptationTask) -> nn.Module:
        source_mean, source_std = colours(task.domains.source_train.images)
        mean, std = colours(task.domains.target_train)
        scale = source_std / std.clamp(min=1e-6)
        return Recoloured(task.student(), scale, source_mean - scale * mean)
