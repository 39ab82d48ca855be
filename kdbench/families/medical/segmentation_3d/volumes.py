"""Volumes with labels, their splits and the views of them: one form for every data set of 3-D segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from monai import transforms
from torch import Tensor
from torch.nn import functional as F

from kdbench.engine.loaders import Loaders, Rows
from kdbench.engine.seeds import axis
from kdbench.errors import UsageError
from kdbench.families.medical.segmentation_3d.options import VolumeData
from kdbench.hashing import digest

SPLITS = ("train", "val", "test")


class Volumes(NamedTuple):
    """A batch."""

    image: Tensor
    """float32 ``[b, C, D, H, W]``."""
    label: Tensor
    """int64 ``[b, 1, D, H, W]``; -1 where a whole volume was padded."""
    rows: Tensor
    """int64 ``[b]``: which training view each is, or with random views which volume; of whole ones which of a split."""


@dataclass(frozen=True, eq=False)
class VolumeSet:
    """A data set with one split. Every volume has the same channels and spacing, and a size of its own."""

    name: str
    channels: int
    classes: tuple[str, ...]
    """Names, background first."""
    spacing: tuple[float, float, float]
    """Edges of a voxel in mm."""
    pad: Literal["edge", "reflect"]
    """How a volume smaller than a view is padded."""
    names: Sequence[str]
    """Names of all volumes in order, used or not."""
    cases: Mapping[str, Sequence[str]]
    """Names of the volumes of each split."""
    read: Callable[[str], tuple[Tensor, Tensor]]
    """Image (float32 ``[C, D, H, W]``, normalised) and label (int64 ``[1, D, H, W]``) of a volume."""
    sha256: str

    @cached_property
    def split_sha256(self) -> str:
        """Digest of the split."""
        return digest({split: list(self.cases[split]) for split in SPLITS})


def centred(image: Tensor, label: Tensor, patch: Sequence[int], pad: str) -> tuple[Tensor, Tensor]:
    """Both padded or cropped around their centre to ``patch`` voxels."""
    resize = transforms.ResizeWithPadOrCrop(patch, mode=pad)
    return _plain(resize(image)), _plain(resize(label.float())).long()


def randomised(options: VolumeData, pad: str) -> Callable[[Tensor, Tensor, int], list[tuple[Tensor, Tensor]]]:
    """``f(image, label, seed)`` gives random views of ``options.patch`` voxels: ``options.crops``, or one if fixed.

    Crops around labelled voxels (``options.negatives`` around background for each), flips, quarter turns, and a shift
    of the intensity, all drawn from ``seed``. Raises :class:`UsageError` for turns of a patch that is not square.
    """
    patch, together = options.patch, options.crops if options.views == "random" else 1
    if options.rotate and patch[0] != patch[1]:
        raise UsageError(f"data.rotate turns the first two axes into each other: they differ in patch={list(patch)}.")
    both = ("image", "label")
    compose = transforms.Compose(
        [
            transforms.SpatialPadd(both, patch, mode=pad),
            transforms.RandCropByPosNegLabeld(both, "label", patch, 1, options.negatives, together),
            *(transforms.RandFlipd(both, options.flip, spatial_axis) for spatial_axis in range(3)),
            transforms.RandRotate90d(both, options.rotate, spatial_axes=(0, 1)),
            transforms.RandShiftIntensityd("image", 0.1, prob=options.shift),
        ]
    )

    def views(image: Tensor, label: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
        compose.set_random_state(seed)
        drawn = compose({"image": image, "label": label.float()})
        return [(_plain(view["image"]), _plain(view["label"]).long()) for view in drawn]

    return views


def _plain(value: Any) -> Tensor:
    """A tensor without MONAI's metadata."""
    tensor: Tensor = value.as_tensor() if hasattr(value, "as_tensor") else value
    return tensor.contiguous()


class Views:
    """Training views; an item is asked for by ``(volume, epoch)``.

    Views that come again have a row each: ``volume · n + k`` for view k of n. Fixed crops are the same for all seeds,
    so that one teacher's cache serves them all.
    """

    def __init__(self, volumes: VolumeSet, options: VolumeData, seed: int) -> None:
        self.volumes, self.options, self.seed = volumes, options, seed
        self.names = volumes.cases["train"]
        self.each = options.crops if options.views == "fixed" else 1
        self._draw = None if options.views == "centre" else randomised(options, volumes.pad)
        self._still: dict[int, Volumes] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> int:
        """Number of views that come again."""
        return len(self.names) * self.each

    def __getitem__(self, place: tuple[int, int]) -> Volumes:
        volume, epoch = place
        if self._draw is None or self.options.views == "fixed":
            return self.still(volume * self.each + epoch % self.each)
        drawn = self._draw(*self.volumes.read(self.names[volume]), axis(self.seed, "training", epoch, volume))
        images, labels = zip(*drawn, strict=True)
        return Volumes(torch.stack(images), torch.stack(labels), torch.full((len(drawn),), volume))

    def still(self, row: int) -> Volumes:
        """The view of this row: the centred one, or a fixed crop."""
        if row in self._still:
            return self._still[row]
        volume, number = divmod(row, self.each)
        image, label = self.volumes.read(self.names[volume])
        if self._draw is not None and self.options.views == "fixed":
            (view,) = self._draw(image, label, axis(0, "training", number, volume))
        else:
            view = centred(image, label, self.options.patch, self.volumes.pad)
        kept = Volumes(view[0][None], view[1][None], torch.tensor([row]))
        if self.options.in_memory:
            self._still[row] = kept
        return kept


def padded(batches: Sequence[Volumes]) -> Volumes:
    """One batch of whole volumes, each padded at its ends to the largest: the image by its edge, the label by -1."""
    largest = [max(sizes) for sizes in zip(*(batch.image.shape[2:] for batch in batches), strict=True)]

    def grown(values: Tensor, mode: str, **more: Any) -> Tensor:
        lacking = [wanted - size for size, wanted in zip(values.shape[2:], largest, strict=True)]
        return F.pad(values, [amount for missing in reversed(lacking) for amount in (0, missing)], mode, **more)

    images = [batch._replace(image=grown(batch.image, "replicate")) for batch in batches]
    return joined([batch._replace(label=grown(batch.label, "constant", value=-1)) for batch in images])


def joined(batches: Sequence[Volumes]) -> Volumes:
    """One batch of several."""
    image, label, rows = (torch.cat(values) for values in zip(*batches, strict=True))
    return Volumes(image, label, rows)


def volume_loaders(volumes: VolumeSet, views: Views, seed: int) -> Loaders:
    """Training views; validation and test by whole volumes."""
    return Loaders(partial(_rows, volumes, views), seed)


def _rows(volumes: VolumeSet, views: Views, split: str) -> Rows:
    if split == "train":
        return Rows(len(views), partial(_views, views), views.options.batch_size)
    return Rows(len(volumes.cases[split]), partial(_whole, volumes, split), views.options.eval_batch_size)


def _views(views: Views, rows: Sequence[int], epoch: int) -> Volumes:
    return joined([views[row, epoch] for row in rows])


def _whole(volumes: VolumeSet, split: str, rows: Sequence[int], epoch: int) -> Volumes:
    read = [volumes.read(volumes.cases[split][row]) for row in rows]
    return padded(
        [Volumes(image[None], label[None], torch.tensor([row])) for row, (image, label) in zip(rows, read, strict=True)]
    )
