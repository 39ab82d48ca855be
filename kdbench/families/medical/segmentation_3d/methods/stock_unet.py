"""MONAI's residual UNet trained on the labels alone: a stock network of the field that the student has to reach.

``L = L_task = Dice + CE``, with the task's views, batches, optimiser, epochs and selection on validation. The network
is :class:`monai.networks.nets.UNet` with two residual units a level, instance norm and PReLU, MONAI's own defaults, and
strides of 2: with channels (8, 16, 32, 64) about as large as the DynUNet student of the hippocampus.

Source: Kerfoot et al., "Left-Ventricle Quantification Using Residual U-Net", STACOM 2018; the network of MONAI's
tutorials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Gt, Len
from monai.networks.nets import UNet
from safetensors.torch import load_file
from torch import nn

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage
from kdbench.families.medical.segmentation_3d.task import SegmentationTask

STAGE = "stock-unet"


@dataclass(frozen=True)
class Hyperparameters:
    channels: Annotated[tuple[Annotated[int, Gt(0)], ...], Len(2)] = (8, 16, 32, 64)
    """Channels of each level; each but the last halves the resolution."""
    units: Annotated[int, Gt(0)] = 2
    """Residual units of a level."""


class StockUNet(Method[SegmentationTask]):
    """Deploys the network that its stage trained."""

    title = "MONAI's residual UNet, trained plainly (reference)"
    paper = "https://doi.org/10.1007/978-3-030-12029-0_40"
    teacher = "none"
    role = "reference"
    options: Hyperparameters

    def network(self, task: SegmentationTask) -> nn.Module:
        """A fresh network for this data."""
        channels, volumes = self.options.channels, task.volumes
        strides = (2,) * (len(channels) - 1)
        network: nn.Module = UNet(
            3, volumes.channels, len(volumes.classes), channels, strides, num_res_units=self.options.units
        )
        return network

    def stages(self, task: SegmentationTask) -> Sequence[Stage]:
        inputs = {
            "network": asdict(self.options),
            "data": asdict(task.config.data),
            "sha256": task.volumes.sha256,
            "split": task.volumes.split_sha256,
        }
        epochs, seed = task.config.trainer.max_epochs, task.config.seed

        def build() -> nn.Module:
            return self.network(task)

        return [task.supervised(STAGE, build, inputs, epochs, seed)]

    def student(self, task: SegmentationTask) -> nn.Module:
        network = self.network(task)
        network.load_state_dict(load_file(task.folder(STAGE) / "weights.safetensors"))
        return network

    def epochs(self, budget: int) -> int:
        return 0
