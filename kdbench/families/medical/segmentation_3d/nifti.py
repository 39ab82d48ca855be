"""Images and their labels from NIfTI files, checked: an error names the file, or both where two disagree."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.wrapstruct import WrapStructError
from torch import Tensor

from kdbench.errors import DataError

APART = 0.1  # edges of a voxel by which the places of image and label may differ
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, IndexError, OverflowError, MemoryError, zlib.error, struct.error),
    *(ImageFileError, HeaderDataError, WrapStructError, OrientationError, np.linalg.LinAlgError),
)
"""What nibabel raises for files that are damaged or of another kind."""


@dataclass(frozen=True, eq=False)
class Stored:
    """The voxels of a NIfTI file in the order nearest to right–anterior–superior."""

    path: Path
    values: np.ndarray
    """float32 ``[D, H, W]``, or ``[D, H, W, C]`` of several channels."""
    affine: np.ndarray
    """``[4, 4]``, from voxels to mm."""


def read(path: Path) -> Stored:
    """The file's voxels. Raises :class:`DataError` for one that is damaged or holds other things than real numbers."""
    try:
        image = _unpacked(path)
        kind = image.get_data_dtype()
        if kind.kind not in "iuf":
            raise DataError(f"{path} holds {kind}, not one real number a voxel.")
        turned = nibabel.as_closest_canonical(image)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused as such
            values = np.asarray(turned.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {str(error) or type(error).__name__}.") from None
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim not in (3, 4) or not values.size:
        raise DataError(f"{path} is no volume: its shape is {list(values.shape)}.")
    return Stored(path, values, turned.affine)


def _unpacked(path: Path) -> SpatialImage:
    """The image in a file that is read to its end, where gzip's checksum is: nibabel stops before."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    second = 540 in (int.from_bytes(data[:4], order) for order in ("little", "big"))
    image: SpatialImage = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(data)
    return image


def spacing(path: Path) -> tuple[float, float, float]:
    """Edges of the file's voxels in mm."""
    x, y, z = voxel_sizes(read(path).affine).tolist()
    return x, y, z


def pair(image: Path, label: Path, channels: int, spacing: Sequence[float] | None = None) -> tuple[Stored, Stored]:
    """An image of that many channels and its label: one place in space, voxels of ``spacing`` mm, finite intensities.

    Raises :class:`DataError` naming the file that is not so, or both where they disagree.
    """
    picture, mask = read(image), read(label)
    for one in (picture, mask):
        size = voxel_sizes(one.affine)
        if spacing is not None and not np.allclose(size, spacing, atol=1e-3):
            raise DataError(f"{one.path} has voxels of {size.tolist()} mm, not {list(spacing)}.")
    got = picture.values.shape[3] if picture.values.ndim == 4 else 1
    if got != channels:
        raise DataError(f"{image} has {got} channels, not {channels}.")
    sizes = picture.values.shape[:3], mask.values.shape
    if sizes[0] != sizes[1]:
        raise DataError(f"{image} is of shape {list(sizes[0])}, but its label {label} of {list(sizes[1])}.")
    away = _apart(picture, mask)
    if not away <= APART * voxel_sizes(picture.affine).min():
        raise DataError(f"{image} and its label {label} lie {away:g} mm apart by the affines in their headers.")
    _check_intensities(picture)
    return picture, mask


def _apart(image: Stored, label: Stored) -> float:
    """The largest distance in mm between the same corner of both; NaN for an affine that is not finite."""
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in label.values.shape))])
    moved = corners @ (image.affine - label.affine).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def _check_intensities(image: Stored) -> None:
    if not (good := np.isfinite(image.values)).all():
        where = np.argwhere(~good)
        raise DataError(f"{image.path} has {len(where)} voxels that are not finite, the first at {where[0].tolist()}.")
    for number, channel in enumerate(np.moveaxis(image.values, 3, 0) if image.values.ndim == 4 else [image.values]):
        if channel.min() == channel.max():
            raise DataError(f"{image.path} is {channel.max():g} everywhere in channel {number}.")


def channels_first(image: Stored) -> Tensor:
    """The image as float32 ``[C, D, H, W]``."""
    values = image.values
    return tensor(np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None])


def classes(label: Stored, count: int) -> Tensor:
    """A label map as int64 ``[1, D, H, W]``. Raises :class:`DataError` for others than 0…count - 1, or 0 everywhere."""
    values = label.values
    check_values(label, (values == values.round()) & (values >= 0) & (values < count), f"the classes 0…{count - 1}")
    check_foreground(label, values)
    return tensor(values[None]).long()


def check_values(label: Stored, known: np.ndarray, wanted: str) -> None:
    """Raises :class:`DataError` unless every voxel is ``known`` (bool, of the label's shape)."""
    if not known.all():
        where = np.argwhere(~known)
        value = label.values[tuple(where[0])]
        fault = f"{len(where)} voxels have other values than {wanted}: {value:g} at {where[0].tolist()}"
        raise DataError(f"{label.path}: {fault}.")


def check_foreground(label: Stored, classes: np.ndarray) -> None:
    """Raises :class:`DataError` where every voxel is background, 0."""
    if not classes.any():
        raise DataError(f"{label.path} is background everywhere.")


def tensor(values: np.ndarray) -> Tensor:
    """The values as contiguous float32."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
