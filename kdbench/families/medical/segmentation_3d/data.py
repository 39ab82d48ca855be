"""Data sets of 3-D segmentation: generated ellipsoids, MSD tasks 1 and 4, MM-WHS."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing
from torch import Tensor

from kdbench.engine.seeds import axis
from kdbench.errors import DataError, UsageError, unknown
from kdbench.families.medical.segmentation_3d import nifti
from kdbench.families.medical.segmentation_3d.options import VolumeData
from kdbench.families.medical.segmentation_3d.volumes import VolumeSet
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import dataset, fetch

Read = Callable[[str], tuple[Tensor, Tensor]]
Splits = dict[str, list[str]]

HIPPOCAMPUS_SHA256 = "12502228b10081a4d736c7f865cfd8cc10cb04b90ad2f83c60623cd887325df8"
"""Fingerprint of the 240 files of msd_hippocampus."""
HIPPOCAMPUS = ("background", "anterior", "posterior")
MILLIMETRE = (1.0, 1.0, 1.0)
HEART_SPACING = (1.5, 1.5, 2.0)
HEART = {
    "background": 0,
    "myocardium": 205,
    "left atrium": 420,
    "left ventricle": 500,
    "right atrium": 550,
    "right ventricle": 600,
    "ascending aorta": 820,
    "pulmonary artery": 850,
}
"""Values of the MM-WHS labels."""


@remembered(4)
def load(name: str, options: VolumeData) -> VolumeSet:
    """The data set ``name``. Raises :class:`kdbench.errors.DataError` when its files are not sound."""
    if name not in LOADERS:
        raise unknown("data set of volumes", name, LOADERS)
    return LOADERS[name](options)


def shapes(options: VolumeData) -> VolumeSet:
    """Noisy ellipsoids cut in two classes by a plane through the centre, each scaled and turned at random.

    Background, front and back have means 0, 1 and 2; the noise is normal. Half of the volumes are for training, a
    quarter for validation and a quarter for the test.
    """
    grid = np.stack(np.meshgrid(*[np.arange(options.size)] * 3, indexing="ij"), axis=-1).astype(np.float64)
    rng = np.random.default_rng(axis(0, "shapes"))
    drawn: dict[str, tuple[Tensor, Tensor]] = {}
    for number in range(options.shapes):
        centre = options.size * (0.5 + rng.uniform(-0.1, 0.1, size=3))
        turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        places = (grid - centre) @ turned
        radii = options.size * rng.uniform((0.15, 0.25, 0.15), (0.25, 0.4, 0.25))
        inside = ((places / radii) ** 2).sum(axis=-1) <= 1
        label = np.where(inside, np.where(places[..., 1] < 0, 1, 2), 0)
        image = label + options.noise * rng.normal(size=label.shape)
        drawn[f"shape {number:03d}"] = standardised(nifti.tensor(image)[None]), torch.from_numpy(label)[None]
    names, half, rest = list(drawn), options.shapes // 2, options.shapes // 4
    splits = {"train": names[:half], "val": names[half : half + rest], "test": names[half + rest :]}
    told = [[image.flatten().tolist(), label.flatten().tolist()] for image, label in drawn.values()]
    classes = ("background", "front", "back")
    return _set("shapes", options, 1, classes, MILLIMETRE, "edge", splits, drawn.__getitem__, digest(told))


def msd_hippocampus(options: VolumeData) -> VolumeSet:
    """120 of MSD Task04's 260 labelled volumes with the split that lies beside them; see :func:`clipped`."""
    paths, _ = fetch("msd_hippocampus", ["splits.json"])
    folder = paths["splits.json"].parent
    splits: Splits = json.loads(paths["splits.json"].read_text())
    names = [name for part in splits.values() for name in part]
    files = {name: (folder / f"images/{name}.nii.gz", folder / f"labels/{name}.nii.gz") for name in names}
    sha256 = fingerprint(folder, [str(path.relative_to(folder)) for pair in files.values() for path in pair])
    if sha256 != HIPPOCAMPUS_SHA256:
        raise DataError(
            f"{folder} is not the published selection: the fingerprint of its volumes is {sha256}, not "
            f"{HIPPOCAMPUS_SHA256}. {dataset('msd_hippocampus').how}"
        )

    def read(name: str) -> tuple[Tensor, Tensor]:
        image, label = nifti.pair(*files[name], 1, MILLIMETRE)
        return clipped(nifti.channels_first(image)), nifti.classes(label, len(HIPPOCAMPUS))

    return _set("msd_hippocampus", options, 1, HIPPOCAMPUS, MILLIMETRE, "edge", splits, read, sha256)


def msd_task04(options: VolumeData) -> VolumeSet:
    """MSD Task04, hippocampus: the last 60 of 260 volumes are the test set; minimum 0 and maximum 1 in each volume."""
    return _decathlon("msd_task04", options, 1, HIPPOCAMPUS, held=(30, 60), normalise=minmax)


def msd_task01(options: VolumeData) -> VolumeSet:
    """MSD Task01, brain tumour: 4 modalities, intensities as they are; the last 24 of 484 volumes are the test set."""
    classes = ("background", "edema", "non-enhancing tumour", "enhancing tumour")
    return _decathlon("msd_task01", options, 4, classes, held=(72, 24), normalise=lambda image: image)


def mmwhs(options: VolumeData) -> VolumeSet:
    """MM-WHS, 20 labelled hearts of one modality, resampled to 1.5 × 1.5 × 2 mm, standardised over non-zero voxels.

    CT is clipped to −175…250 HU and scaled to 0…1 before. Of five folds of patients in sorted order,
    ``options.fold`` is the test set and the next one the validation set.
    """
    folder, kind = _folder("mmwhs"), options.modality
    images = sorted(path.relative_to(folder) for path in folder.rglob(f"{kind}_train_*_image.nii*"))
    if len(images) < 5:
        raise DataError(f"{folder} holds {len(images)} files {kind}_train_*_image.nii.gz. {dataset('mmwhs').how}")
    labels = {str(path): str(path).replace("_image.nii", "_label.nii") for path in images}
    folds = [names.tolist() for names in np.array_split(list(labels), 5)]
    test, val = options.fold, (options.fold + 1) % 5
    train = [name for number, names in enumerate(folds) if number not in (test, val) for name in names]
    splits = {"train": train, "val": folds[val], "test": folds[test]}

    def read(name: str) -> tuple[Tensor, Tensor]:
        image, label = nifti.pair(folder / name, folder / labels[name], 1)
        known = np.array(list(HEART.values()))
        nearest = np.abs(label.values[..., None] - known).argmin(axis=-1)
        close = np.abs(known[nearest] - label.values) <= 1  # 421 stands for 420 in one published volume
        nifti.check_values(label, close, str(sorted(HEART.values())))
        nifti.check_foreground(label, nearest)
        scaled = _spaced(image.values, image.affine, "bilinear")
        if kind == "ct":
            scaled = (scaled.clamp(-175, 250) + 175) / 425
        return standardised(scaled, scaled != 0), _spaced(nearest.astype(np.float32), image.affine, "nearest").long()

    sha256 = fingerprint(folder, [*labels, *labels.values()])
    return _set("mmwhs", options, 1, tuple(HEART), HEART_SPACING, "reflect", splits, read, sha256)


def _decathlon(
    name: str,
    options: VolumeData,
    channels: int,
    classes: tuple[str, ...],
    held: tuple[int, int],
    normalise: Callable[[Tensor], Tensor],
) -> VolumeSet:
    """A task of the Medical Segmentation Decathlon as it is published. ``held``: volumes for validation and test."""
    folder = _folder(name)
    index = folder / "dataset.json"
    if not index.is_file():
        raise DataError(f"{index} is not here. {dataset(name).how}")
    pairs = _listed(index, classes)
    splits = released_split(list(pairs), *held)

    def read(case: str) -> tuple[Tensor, Tensor]:
        image, label = nifti.pair(folder / pairs[case][0], folder / pairs[case][1], channels, MILLIMETRE)
        return normalise(nifti.channels_first(image)), nifti.classes(label, len(classes))

    sha256 = fingerprint(folder, ["dataset.json", *(file for pair in pairs.values() for file in pair)])
    return _set(name, options, channels, classes, MILLIMETRE, "edge", splits, read, sha256)


def _listed(index: Path, classes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Files of image and label by the image's name. Raises :class:`DataError` for another list, or other classes."""
    try:
        told = json.loads(index.read_text(encoding="utf-8"))
        files = [(pair["image"], pair["label"]) for pair in told["training"]]
        images, labels = ([Path(pair[place]).name for pair in files] for place in (0, 1))
        named = {int(number): str(name) for number, name in told["labels"].items()} if "labels" in told else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{index} does not list pairs of image and label under 'training', and the classes' names by number under "
            f"'labels': {type(error).__name__}: {error}."
        ) from None
    for names in (images, labels):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{index} lists {twice[0]} more than once.")
    wanted = {number: _spelt(name) for number, name in enumerate(classes)}
    if named is not None and {number: _spelt(name) for number, name in named.items()} != wanted:
        raise DataError(f"{index} calls the labels {named}, but the task's classes are {dict(enumerate(classes))}.")
    return dict(zip(images, files, strict=True))


def _spelt(name: str) -> str:
    return name.casefold().replace("tumour", "tumor")


def released_split(names: Sequence[str], val: int, test: int) -> Splits:
    """DSD's split of a Decathlon task: sorted; the last ``test``; of the others, shuffled, the last ``val``.

    The shuffle is that of ``random.Random(0)``. Raises :class:`DataError` when nothing is left for training.
    """
    if len(names) <= val + test:
        raise DataError(f"There are {len(names)} volumes: {val} for validation and {test} for the test leave none.")
    kept = sorted(names)
    rest, held = kept[:-test], kept[-test:]
    random.Random(0).shuffle(rest)
    return {"train": rest[:-val], "val": rest[-val:], "test": held}


def _set(
    name: str,
    options: VolumeData,
    channels: int,
    classes: tuple[str, ...],
    spacing: tuple[float, float, float],
    pad: Literal["edge", "reflect"],
    splits: Splits,
    read: Read,
    sha256: str,
) -> VolumeSet:
    """A set with as many training volumes as the options ask for, every one of its volumes read once.

    So what is wrong with a volume shows before any training: it costs what one epoch reads, and nothing where volumes
    are kept in memory. Raises :class:`DataError` also for a class that no volume of a split has.
    """
    wanted = options.train_volumes or len(splits["train"])
    if wanted > len(splits["train"]):
        raise UsageError(
            f"{name} has {len(splits['train'])} training volumes: data.train_volumes={wanted} is too many."
        )
    cases = {**splits, "train": splits["train"][:wanted]}
    held = functools.cache(read) if options.in_memory else read
    for split, names in cases.items():
        voxels = sum((held(case)[1].flatten().bincount(minlength=len(classes)) for case in names), torch.tensor(0))
        if absent := [classes[number] for number in (voxels == 0).nonzero().flatten()]:
            raise DataError(f"{name}: no label of the {split} split has a voxel of '{absent[0]}': {_few(names)}.")
    return VolumeSet(name, channels, classes, spacing, pad, cases, held, sha256)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _folder(name: str) -> Path:
    """The folder of a data set that the user puts in place."""
    found = [place for place in dataset(name).places() if place.is_dir()]
    if not found:
        where = " or ".join(str(place) for place in dataset(name).places())
        raise DataError(f"Data set '{name}' is not here (looked in {where}). {dataset(name).how}")
    return found[0]


def fingerprint(folder: Path, files: Sequence[str]) -> str:
    """Digest of the files' names and bytes. Raises :class:`DataError` for a missing one."""
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {missing[0]} and {len(missing) - 1} more of its {len(files)} files.")
    return digest({file: file_digest(folder / file) for file in files})


def _spaced(values: np.ndarray, affine: np.ndarray, mode: str) -> Tensor:
    """A volume ``[D, H, W]`` resampled to the spacing of the heart data, ``[1, D, H, W]``."""
    placed = MetaTensor(nifti.tensor(values)[None], affine=affine)
    resampled: Tensor = Spacing(HEART_SPACING, mode=mode)(placed).as_tensor()
    return resampled.contiguous()


def clipped(image: Tensor) -> Tensor:
    """Each volume clipped to its 0.5 and 99.5 percentiles, then standardised: scanners' scales differ by 10⁴."""
    low, high = np.percentile(image.numpy(), (0.5, 99.5))
    return standardised(image.clamp(float(low), float(high)))


def standardised(image: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean 0 and standard deviation 1 over the voxels ``where`` (all by default), which alone are changed."""
    inside = torch.ones_like(image, dtype=torch.bool) if where is None else where
    values = image[inside].double()
    scaled = (image - values.mean()) / values.std(correction=0).clamp(min=1e-8)
    return torch.where(inside, scaled, image).float()


def minmax(image: Tensor) -> Tensor:
    """Minimum 0 and maximum 1."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-8)


LOADERS: dict[str, Callable[[VolumeData], VolumeSet]] = {
    "shapes": shapes,
    "msd_hippocampus": msd_hippocampus,
    "msd_task04": msd_task04,
    "msd_task01": msd_task01,
    "mmwhs": mmwhs,
}
