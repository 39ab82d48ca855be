"""U-shaped networks of MONAI, and where their stages are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from monai.networks.nets import UNETR, DynUNet, SwinUNETR
from torch import nn

from kdbench.engine import own
from kdbench.errors import UsageError
from kdbench.families.medical.segmentation_3d.options import VolumeStudent, VolumeTeacher
from kdbench.plan.own import module_of

TOKEN = 16  # voxels of the edge of a UNETR token


@dataclass(frozen=True)
class Stages:
    """Module paths of a U-shaped network's stages. The main output is none of them."""

    encoder: tuple[str, ...]
    """Full resolution first, the one nearest the bottleneck last."""
    decoder: tuple[str, ...]
    """The one nearest the output (half resolution) first, the bottleneck last."""
    output: str
    """The main logits."""


def stages(network: nn.Module) -> Stages:
    """The stages of a DynUNet, UNETR or SwinUNETR, or those that another network names in its ``stages``.

    Raises :class:`UsageError` for one that does not.
    """
    if isinstance(network, DynUNet):
        downs = len(network.downsamples)
        encoder = ("input_block", *(f"downsamples.{i}" for i in range(downs)))
        decoder = (*(f"upsamples.{i}" for i in reversed(range(downs))), "bottleneck")
        return Stages(encoder, decoder, "output_block")
    encoder = tuple(f"encoder{i}" for i in range(1, 5))
    if isinstance(network, UNETR):
        return Stages(encoder, ("decoder3", "decoder4", "decoder5", "vit.norm"), "out")
    if isinstance(network, SwinUNETR):
        return Stages(encoder, ("decoder2", "decoder3", "decoder4", "decoder5"), "out")
    named = getattr(network, "stages", None)
    if not isinstance(named, Mapping) or named.keys() != {"encoder", "decoder", "output"}:
        name = type(network).__name__
        raise UsageError(f"{name} has no known stages: no attribute 'stages' names its encoder, decoder and output.")
    return Stages(tuple(named["encoder"]), tuple(named["decoder"]), named["output"])


def build(
    options: VolumeStudent | VolumeTeacher, channels: int, classes: int, patch: Sequence[int], window: Sequence[int]
) -> nn.Module:
    """A freshly initialised network: ``[b, channels, D, H, W]`` -> logits ``[b, classes, D, H, W]``.

    Raises :class:`UsageError` for a patch or window that the network cannot take.
    """
    if module_of(options.name):
        section = "student" if isinstance(options, VolumeStudent) else "teacher"
        dictated = {"channels": channels, "classes": classes, "patch": tuple(patch)}
        return own.build(options.name, section, options.options, **dictated)
    levels = len(options.filters)
    unit = {"dynunet": 2 ** (levels - 1), "unetr": TOKEN, "swinunetr": 32}[options.name]
    for name, shape in (("patch", patch), ("window", window)):
        if any(edge % unit for edge in shape):
            raise UsageError(f"{options.name} takes multiples of {unit} voxels: data.{name}={list(shape)} does not do.")
    if options.name != "unetr" and all(edge == unit for edge in patch):
        raise UsageError(f"{options.name} would normalise a single voxel: take more than data.patch={list(patch)}.")
    network: nn.Module
    common = {"in_channels": channels, "out_channels": classes, "norm_name": "instance"}
    if options.name == "dynunet":
        network = DynUNet(
            **common,
            spatial_dims=3,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=list(options.filters),
            res_block=True,
        )
    elif options.name == "swinunetr":
        if options.feature_size % 12:
            raise UsageError(f"swinunetr takes multiples of 12 features, not feature_size={options.feature_size}.")
        network = SwinUNETR(**common, feature_size=options.feature_size)
    else:
        if tuple(patch) != tuple(window):
            raise UsageError("unetr is made for one size of view: leave out data.window.")
        if options.hidden_size % options.heads:
            raise UsageError(f"unetr: hidden_size={options.hidden_size} is no multiple of heads={options.heads}.")
        network = UNETR(
            **common,
            img_size=tuple(patch),
            feature_size=options.feature_size,
            hidden_size=options.hidden_size,
            mlp_dim=options.mlp_dim,
            num_heads=options.heads,
        )
    return network.to(memory_format=torch.channels_last_3d)  # a quarter faster, on processors too
