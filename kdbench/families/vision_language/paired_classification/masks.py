"""Feature masks of MST-Distill: a small attention network that weighs a layer's output, and hooks that insert it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from kdbench.engine.taps import Taps
from kdbench.families.vision_language.paired_classification.networks import PairNetwork


class MaskNet(nn.Module):
    """Mask ``m(f)`` in (0, 1) of a feature vector ``f`` ``[b, D]``, or of the channels of a map ``[b, D, H, W]``.

        tokens = reshape(W_e f + b_e)                     [b, D, h]
        m      = sigmoid( w · MHSA(tokens) + c )          [b, D]

    with multi-head self-attention over the D tokens. A map is first reduced to ``[b, D]`` by a depthwise 3×3
    convolution of stride 2, a 1×1 convolution, batch norm, ReLU and global average pooling, and its mask is the same at
    every place; a map of one place is a vector. ``W_e`` alone holds D²·h numbers.
    """

    def __init__(self, shape: tuple[int, ...], width: int, heads: int) -> None:
        super().__init__()
        features = shape[0]
        self.features, self.width = features, width
        self.reduce = nn.Sequential()
        if len(shape) == 3 and shape[1:] != (1, 1):
            self.reduce = nn.Sequential(
                nn.Conv2d(features, features, 3, stride=2, padding=1, groups=features, bias=False),
                nn.Conv2d(features, features, 1, bias=False),
                nn.BatchNorm2d(features),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
            )
        self.embed = nn.Linear(features, features * width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.score = nn.Linear(width, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """The mask ``[b, D]``."""
        vector = self.reduce(feature).flatten(1)
        tokens = self.embed(vector).view(-1, self.features, self.width)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return torch.sigmoid(self.score(attended).squeeze(-1))


def width_of(features: int, heads: int, factor: int, most: int | None) -> int:
    """Token width h: ``⌊D / (factor · heads)⌋ · heads`` as released, at most ``most``, at least ``heads``."""
    width = features // (factor * heads) * heads
    if most is not None:
        width = min(width, most // heads * heads)
    return max(width, heads)


class Masked:
    """While its ``with`` block lasts, the outputs ``f`` of some layers of a network become ``m(f) · f``.

    ``masks``: module path -> mask network. Several act together: a later layer's mask then reads what an earlier
    one has weighed.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, nn.Module]) -> None:
        self._layers = [(network.get_submodule(path), mask) for path, mask in masks.items()]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for layer, mask in self._layers:

            def weigh(_: nn.Module, __: object, feature: Tensor, mask: nn.Module = mask) -> Tensor:
                weights: Tensor = mask(feature)
                return feature * weights.view(*weights.shape, *[1] * (feature.dim() - 2))

            self._handles.append(layer.register_forward_hook(weigh))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class SpecialisedTeacher(PairNetwork):
    """A network seen through masks, by layer. ``forward`` as the network's own; no hook stays behind."""

    def __init__(self, network: PairNetwork, masks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.sees = network.sees
        self.network = network
        self.paths = tuple(masks)
        self.masks = nn.ModuleList(masks.values())

    def forward(self, *inputs: Tensor) -> Tensor:
        with Masked(self.network, dict(zip(self.paths, self.masks, strict=True))):
            logits: Tensor = self.network(*inputs)
        return logits


def mask_networks(
    network: PairNetwork, inputs: list[Tensor], layers: int, width: int | None, factor: int, heads: int
) -> dict[str, MaskNet]:
    """A fresh mask for each of the first ``layers`` maskable layers, by path; ``inputs`` are run to find the sizes."""
    paths = network.masked[:layers]
    with torch.no_grad(), Taps(network, {path: path for path in paths}) as taps:
        network(*inputs)
        shapes = {path: tuple(value.shape[1:]) for path, value in taps.read().items()}
    return {path: MaskNet(shapes[path], width_of(shapes[path][0], heads, factor, width), heads) for path in paths}
