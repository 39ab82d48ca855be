"""Readers of 3-D segmentation: generated ellipsoids, a folder of NIfTI files, a task of MSD, MM-WHS."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing
from torch import Tensor

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError, UsageError
from kdbench.families.medical.segmentation_3d import nifti
from kdbench.families.medical.segmentation_3d.options import MMWHS, Decathlon, NiftiFolder, Shapes, VolumeData
from kdbench.families.medical.segmentation_3d.volumes import SPLITS, VolumeSet
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import Dataset, dataset, fetch, folder_of, reading_options

Read = Callable[[str], tuple[Tensor, Tensor]]
Splits = dict[str, list[str]]

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
def load(name: str, options: VolumeData, seed: int) -> VolumeSet:
    """The data set ``name``, kept. Raises :class:`kdbench.errors.DataError` when its files are not sound."""
    return read(name, options, seed)


def read(name: str, options: VolumeData, seed: int = 0) -> VolumeSet:
    """The data set ``name``, split for a run seed where the options want it drawn."""
    data = dataset(name)
    return READERS[data.reader](data, reading_options(data), options, seed)


def shapes(data: Dataset, how: Shapes, options: VolumeData, seed: int) -> VolumeSet:
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
    values = [[image.flatten().tolist(), label.flatten().tolist()] for image, label in drawn.values()]
    classes = ("background", "front", "back")
    return _set(data.name, options, seed, 1, classes, MILLIMETRE, "edge", splits, drawn.__getitem__, digest(values))


def nifti_folder(data: Dataset, how: NiftiFolder, options: VolumeData, seed: int) -> VolumeSet:
    """Volumes of one channel number and spacing in ``images`` with labels of the same names in ``labels``."""
    folder = folder_of(data)
    if data.files:
        fetch(data)
    here = {_stem(path.name): path.name for path in sorted((folder / "images").glob("*.nii*"))}
    if how.splits is None:
        splits = drawn_split(list(here), how.validation, how.test)
    else:
        splits = _listed_split(folder / how.splits, here)
    names = [name for part in splits.values() for name in part]
    files = {name: (folder / "images" / here[name], folder / "labels" / here[name]) for name in names}
    sha256 = fingerprint(folder, [str(path.relative_to(folder)) for pair in files.values() for path in pair])
    if how.sha256 not in (None, sha256):
        raise DataError(
            f"{folder} is not the published selection: the fingerprint of its volumes is {sha256}, not "
            f"{how.sha256}. {data.how}"
        )
    spacing = how.spacing or nifti.spacing(files[names[0]][0])
    classes = how.classes or tuple(
        f"class {number}" if number else "background"
        for number in range(1 + max(int(nifti.read(label).values.max()) for _, label in files.values()))
    )

    def read(name: str) -> tuple[Tensor, Tensor]:
        image, label = nifti.pair(*files[name], how.channels, spacing)
        return NORMALISE[how.normalise](nifti.channels_first(image)), nifti.classes(label, len(classes))

    return _set(data.name, options, seed, how.channels, classes, spacing, "edge", splits, read, sha256)


def _stem(file: str) -> str:
    return file.removesuffix(".gz").removesuffix(".nii")


def _listed_split(path: Path, here: Mapping[str, str]) -> Splits:
    """Names of each split from a file. Raises :class:`DataError` for one that is not here, or stands there twice."""
    with inputs.reading(path):
        splits = json.loads(path.read_text(encoding="utf-8"))
    given = splits if isinstance(splits, dict) else {}
    names = {split: part for split in SPLITS if isinstance(part := given.get(split), list) and part}
    if len(names) < len(SPLITS) or not all(isinstance(name, str) for part in names.values() for name in part):
        raise DataError(f"{path} does not list the names of {', '.join(SPLITS)}, some of each.")
    for name, count in Counter(name for part in names.values() for name in part).items():
        if count > 1:
            raise DataError(f"{path} lists {name} more than once.")
        if name not in here:
            raise DataError(f"{path} lists {name}, of which there is no {path.parent / 'images' / name}.nii.gz.")
    return names


def drawn_split(names: Sequence[str], validation: float, test: float) -> Splits:
    """Names in an order that ``random.Random(0)`` draws; the last shares, rounded, at least one each, are held out.

    Raises :class:`DataError` when nothing is left for training.
    """
    order = sorted(names)
    random.Random(0).shuffle(order)
    held = [max(1, round(share * len(order))) for share in (validation, test)]
    if len(order) <= sum(held):
        raise DataError(
            f"There are {len(order)} volumes: {held[0]} for validation and {held[1]} for the test leave none."
        )
    train = len(order) - sum(held)
    return {"train": order[:train], "val": order[train : train + held[0]], "test": order[train + held[0] :]}


def mmwhs(data: Dataset, how: MMWHS, options: VolumeData, seed: int) -> VolumeSet:
    """MM-WHS, 20 labelled hearts of one modality, resampled to 1.5 × 1.5 × 2 mm, standardised over non-zero voxels.

    CT is clipped to −175…250 HU and scaled to 0…1 before. Of five folds of patients in sorted order,
    ``options.fold`` is the test set and the next one the validation set.
    """
    folder, kind = folder_of(data), options.modality
    images = sorted(path.relative_to(folder) for path in folder.rglob(f"{kind}_train_*_image.nii*"))
    if len(images) < 5:
        raise DataError(f"{folder} holds {len(images)} files {kind}_train_*_image.nii.gz. {data.how}")
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
    return _set(data.name, options, seed, 1, tuple(HEART), HEART_SPACING, "reflect", splits, read, sha256)


def decathlon(data: Dataset, how: Decathlon, options: VolumeData, seed: int) -> VolumeSet:
    """A task of the Medical Segmentation Decathlon as it is published."""
    folder, classes = folder_of(data), how.classes
    index = folder / "dataset.json"
    if not index.is_file():
        raise DataError(f"{index} is not here. {data.how}")
    pairs = _listed(index, classes)
    splits = released_split(list(pairs), how.validation, how.test)

    def read(case: str) -> tuple[Tensor, Tensor]:
        image, label = nifti.pair(folder / pairs[case][0], folder / pairs[case][1], how.channels, MILLIMETRE)
        return NORMALISE[how.normalise](nifti.channels_first(image)), nifti.classes(label, len(classes))

    sha256 = fingerprint(folder, ["dataset.json", *(file for pair in pairs.values() for file in pair)])
    return _set(data.name, options, seed, how.channels, classes, MILLIMETRE, "edge", splits, read, sha256)


def _listed(index: Path, classes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Files of image and label by the image's name. Raises :class:`DataError` for another list, or other classes."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        files = [(pair["image"], pair["label"]) for pair in content["training"]]
        images, labels = ([Path(pair[place]).name for pair in files] for place in (0, 1))
        named = {int(number): str(name) for number, name in content["labels"].items()} if "labels" in content else None
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
    seed: int,
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
    names = sorted(name for part in splits.values() for name in part)
    splits = redrawn(splits, seed) if options.split == "drawn" else splits
    cases = {**splits, "train": splits["train"][:wanted]}
    held = functools.cache(read) if options.in_memory else read
    for split, part in cases.items():
        voxels = sum((held(case)[1].flatten().bincount(minlength=len(classes)) for case in part), torch.tensor(0))
        if absent := [classes[number] for number in (voxels == 0).nonzero().flatten()]:
            raise DataError(f"{name}: no label of the {split} split has a voxel of '{absent[0]}': {_few(part)}.")
    return VolumeSet(name, channels, classes, spacing, pad, names, cases, held, sha256)


def redrawn(splits: Mapping[str, Sequence[str]], seed: int) -> Splits:
    """Parts of the same sizes, drawn from the names of all of them by a run seed."""
    names = sorted(name for part in splits.values() for name in part)
    order = iter(np.random.default_rng(axis(seed, "split")).permutation(len(names)).tolist())
    return {split: [names[row] for row in itertools.islice(order, len(part))] for split, part in splits.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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


NORMALISE: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped": clipped,
    "standardised": standardised,
    "minmax": minmax,
    "none": lambda image: image,
}

READERS: dict[str, Callable[[Dataset, Any, VolumeData, int], VolumeSet]] = {
    "shapes": shapes,
    "nifti_folder": nifti_folder,
    "decathlon": decathlon,
    "mmwhs": mmwhs,
}
