"""Heads on the stages of a U-shaped network, deep supervision, and the divergence between voxel-wise predictions.

A head at a stage of stride ``s`` with ``C`` channels gives full-size logits of ``K`` classes: a 1×1×1 convolution
``C → K``, then transposed convolutions ``K → K``: for ``s = 1`` one of kernel and stride 1, else one of kernel and
stride 2, applied ``log2 s`` times with the same weights. It has ``C·K + K + 8·K² + K`` parameters (``K²`` in place of
``8·K²`` for ``s = 1``).

Stages are called ``enc1`` (full resolution) … ``encN`` (nearest the bottleneck) and ``dec1`` (half resolution) …
``decM`` (the bottleneck); the main output is none of them.

Source: the released code of DSD, soumbane/DualSelfDistillation at commit 55f8db54.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from kdbench.engine.losses import at_least_float32
from kdbench.engine.step import Step
from kdbench.errors import UsageError
from kdbench.families.medical.segmentation_3d.networks import TOKEN, stages

MAIN = "main"


class Head(nn.Module):
    """Full-size logits from a stage: ``[b, C, d, h, w]`` (tokens: ``[b, d·h·w, C]``) -> ``[b, K, s·d, s·h, s·w]``."""

    def __init__(self, channels: int, classes: int, stride: int) -> None:
        super().__init__()
        kernel = min(stride, 2)
        self.times = max(1, stride.bit_length() - 1)
        self.reduce = nn.Conv3d(channels, classes, 1)
        self.expand = nn.ConvTranspose3d(classes, classes, kernel, stride=kernel)

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.reduce(feature)
        for _ in range(self.times):
            logits = self.expand(logits)
        return logits


def taps(network: nn.Module, encoder: bool) -> dict[str, str]:
    """Module paths of the decoder's stages and the main output, and with ``encoder`` of its stages."""
    named = stages(network)
    places = {f"dec{number}": path for number, path in enumerate(named.decoder, 1)}
    if encoder:
        places |= {f"enc{number}": path for number, path in enumerate(named.encoder, 1)}
    return {**places, MAIN: named.output}


def number(alias: str) -> int:
    """The number of a stage: 10 of ``enc10``."""
    return int(alias[3:])


def _stride(feature: Sequence[int], output: Sequence[int]) -> int:
    """Stride of a stage from shapes without the batch's dimension; tokens have two dimensions left."""
    return TOKEN if len(feature) == 2 else output[-1] // feature[-1]


def _name(alias: str, stride: int, shared: bool) -> str:
    return f"{'' if shared else alias[:3] + '_'}stride{stride}"


def heads(shapes: Mapping[str, tuple[int, ...]], shared: bool) -> dict[str, Head]:
    """The heads for tapped stages of these shapes; ``shared``: one for the encoder's and the decoder's of one stride.

    Raises :class:`UsageError` when two stages of one head have different numbers of channels.
    """
    built: dict[str, Head] = {}
    output = shapes[MAIN]
    for alias, shape in shapes.items():
        if alias == MAIN:
            continue
        stride, channels = _stride(shape, output), shape[-1] if len(shape) == 2 else shape[0]
        head = built.setdefault(_name(alias, stride, shared), Head(channels, output[0], stride))
        if head.reduce.in_channels != channels:
            wanted = head.reduce.in_channels
            raise UsageError(f"Stage {alias} has {channels} channels, and the head of its resolution takes {wanted}.")
    return built


def logits(heads: Mapping[str, Head], step: Step, shared: bool) -> dict[str, Tensor]:
    """The heads' full-size logits of a training step by stage."""
    output = step.features[MAIN].shape[1:]
    predicted = {}
    for alias, feature in step.features.items():
        if alias == MAIN:
            continue
        stride = _stride(feature.shape[1:], output)
        if feature.dim() == 3:
            grid = [edge // TOKEN for edge in output[1:]]
            feature = feature.transpose(1, 2).reshape(len(feature), -1, *grid)
        predicted[alias] = heads[_name(alias, stride, shared)](feature)
    return predicted


def supervised(predicted: Mapping[str, Tensor], label: Tensor) -> dict[str, Tensor]:
    """``Dice(softmax d_j, y) + CE(d_j, y)`` of every decoder head by stage; background included."""
    loss = DiceCELoss(include_background=True, to_onehot_y=True, softmax=True, lambda_dice=1, lambda_ce=1)
    return {alias: loss(at_least_float32(value), label) for alias, value in predicted.items() if alias[:3] == "dec"}


def voxel_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · mean over batch and voxels of Σ_k p_k (log p_k − log q_k)`` of logits ``[b, K, D, H, W]``.

    ``p = softmax(teacher / T)``, ``q = softmax(student / T)``; background included, gradients to both.
    """
    log_q, log_p = ((at_least_float32(value) / temperature).log_softmax(dim=1) for value in (student, teacher))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


@torch.no_grad()
def entropy(predicted: Tensor) -> Tensor:
    """Mean over batch and voxels of ``−Σ_k p_k log p_k`` in nats, ``p = softmax(predicted)``."""
    log_p = at_least_float32(predicted).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()
