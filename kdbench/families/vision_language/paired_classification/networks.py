"""Networks of paired classification: one for each modality of a data set, and one that fuses both.

Layers and widths are those of the released MST-Distill code (the parameter counts are tested). Every network says what
it ``sees`` (names of modalities, in the order of its arguments) and which layers' outputs a feature mask may weigh
(``masked``, as module paths: the outputs before any activation that follows).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PairNetwork(nn.Module):
    """Base: class logits ``[b, C]`` from one tensor for each of the modalities that it ``sees``."""

    sees: tuple[str, ...]
    masked: ClassVar[tuple[str, ...]]


def pooled(x: Tensor) -> Tensor:
    """``ReLU(maxpool_2(x))``, the same as the pool of the ReLU at a quarter of the work."""
    return F.relu(F.max_pool2d(x, 2))


class ImageTrunk(nn.Module):
    """LeNet-5 up to its 84 features: ``[b, 1, 28, 28] -> [b, 84]``; average pooling, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)

    def features(self, x: Tensor) -> Tensor:
        """The 84 features."""
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x)).flatten(1)
        return F.relu(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class LeNet5(ImageTrunk, PairNetwork):
    """LeNet-5 for 28×28 images."""

    masked = ("conv3", "fc1")

    def __init__(self, sees: str, classes: int) -> None:
        super().__init__()
        self.sees = (sees,)
        self.fc2 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.features(x))
        return logits


class AudioCNN(PairNetwork):
    """Three 3×3 convolutions (c, 2c, 4c channels), each with ReLU and max-pooling, and one linear layer.

    ``size``: height and width of the spectrogram, divisible by 8. (The released code: c = 32, size 112.)
    """

    masked = ("conv2", "conv3")

    def __init__(self, sees: str, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.sees = (sees,)
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)
        self.fc1 = nn.Linear(4 * channels * (size // 8) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = pooled(self.conv1(x).contiguous(memory_format=torch.channels_last))
        x = pooled(self.conv2(x))
        x = pooled(self.conv3(x))
        logits: Tensor = self.fc1(x.flatten(1))
        return logits


class AudioTrunk(nn.Module):
    """Five 3×3 convolutions (c … 16c channels), max-pooling after the first four, then the average: ``-> [b, 16c]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)
        self.conv4 = nn.Conv2d(4 * channels, 8 * channels, 3, padding=1)
        self.conv5 = nn.Conv2d(8 * channels, 16 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = pooled(self.conv1(x).contiguous(memory_format=torch.channels_last))
        for layer in (self.conv2, self.conv3, self.conv4):
            x = pooled(layer(x))
        return F.relu(self.conv5(x)).mean(dim=(2, 3))


class FusionCNN(PairNetwork):
    """CNN-I: both trunks' features side by side (84 + 16c), halved by a linear layer, and a linear head right on it."""

    masked = ("concat", "fc1")

    def __init__(self, sees: tuple[str, str], classes: int, channels: int) -> None:
        super().__init__()
        self.sees = sees
        self.image, self.audio = ImageTrunk(), AudioTrunk(channels)
        width = 84 + 16 * channels
        self.concat = nn.Identity()
        self.fc1 = nn.Linear(width, width // 2)
        self.fc2 = nn.Linear(width // 2, classes)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        both = self.concat(torch.cat([self.image(image), self.audio(audio)], dim=1))
        logits: Tensor = self.fc2(self.fc1(both))
        return logits


class FeatureTrunk(nn.Module):
    """Two linear layers with ReLU, to 1024 and 512 features: ``[b, width] -> [b, 512]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 1024)
        self.fc2 = nn.Linear(1024, 512)

    def features(self, x: Tensor) -> Tensor:
        """The 512 features."""
        return F.relu(self.fc2(F.relu(self.fc1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class FeatureMLP(FeatureTrunk, PairNetwork):
    """MLP-Vb and MLP-Tb: a classifier of encoder features (width 2048 of images, 768 of texts)."""

    masked = ("fc1", "fc2")

    def __init__(self, sees: str, classes: int, width: int) -> None:
        super().__init__(width)
        self.sees = (sees,)
        self.fc3 = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc3(self.features(x))
        return logits


class Classifier(PairNetwork):
    """Three linear layers with ReLU between them on top of one or two branches' features, side by side."""

    masked = ("fc1", "fc2")

    def __init__(
        self, sees: tuple[str, ...], branches: tuple[nn.Module, ...], widths: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        self.sees = sees
        self.branches = nn.ModuleList(branches)
        features, first, second = widths
        self.fc1 = nn.Linear(features, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        x = F.relu(self.fc2(F.relu(self.fc1(torch.cat(features, dim=1)))))
        logits: Tensor = self.fc3(x)
        return logits


class ConvBranch(nn.Module):
    """Three convolutions of width 3 over 1 or 3 dimensions with batch norm, ReLU and max-pooling; then flat.

    ``channels``: input and three outputs. ``pool``: its width; ``last``: whether the third layer is pooled too.
    """

    def __init__(self, dimensions: int, channels: tuple[int, int, int, int], pool: int, last: bool = True) -> None:
        super().__init__()
        conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
        self.convs = nn.ModuleList(conv(a, b, 3, padding=1) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(norm(width) for width in channels[1:])
        self.pool = {1: nn.MaxPool1d, 3: nn.MaxPool3d}[dimensions](pool)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if place < 2 or self.last:
                x = self.pool(x)
        return x.flatten(1)


def digit_networks(sees: tuple[str, ...], classes: int, channels: int, size: int) -> PairNetwork:
    """Image and audio digits: LeNet5, ThreeLayerCNN-A, CNN-I."""
    if len(sees) == 2:
        return FusionCNN((sees[0], sees[1]), classes, channels)
    return LeNet5("image", classes) if sees == ("image",) else AudioCNN("audio", classes, channels, size)


def feature_networks(sees: tuple[str, ...], classes: int, widths: Mapping[str, int]) -> PairNetwork:
    """Encoder features of these widths by modality: MLP-Vb, MLP-Tb, MLP-I."""
    if len(sees) == 1:
        return FeatureMLP(sees[0], classes, widths[sees[0]])
    return Classifier(sees, tuple(FeatureTrunk(widths[name]) for name in sees), (1024, 512, 256), classes)


def clip_networks(sees: tuple[str, ...], classes: int) -> PairNetwork:
    """RAVDESS clips (video ``[3, 15, 224, 224]``, audio ``[15, 156]``): VisualBranchNet, AudioBranchNet, DSCNN-I."""
    branches: dict[str, tuple[nn.Module, int]] = {
        "video": (ConvBranch(3, (3, 6, 12, 24), pool=2), 18816),
        "audio": (ConvBranch(1, (15, 32, 128, 256), pool=3), 1280),
    }
    return _branched(sees, branches, classes)


def event_networks(sees: tuple[str, ...], classes: int) -> PairNetwork:
    """VGGSound features (video ``[512, 10, 7, 7]``, audio ``[10, 128]``): the VGGS branch nets and DSCNN-VGGS-I."""
    branches: dict[str, tuple[nn.Module, int]] = {
        "video": (ConvBranch(3, (512, 256, 128, 64), pool=2, last=False), 128),
        "audio": (ConvBranch(1, (10, 16, 32, 64), pool=3), 256),
    }
    return _branched(sees, branches, classes)


def _branched(sees: tuple[str, ...], branches: dict[str, tuple[nn.Module, int]], classes: int) -> PairNetwork:
    chosen = [branches[name] for name in sees]
    return Classifier(sees, tuple(b for b, _ in chosen), (sum(width for _, width in chosen), 320, 160), classes)
