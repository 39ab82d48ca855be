"""Published pairs of domains in the layout of Pascal VOC: ``JPEGImages``, ``Annotations/*.xml``, ``ImageSets/Main``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

from kdbench.errors import DataError
from kdbench.families.detection.data import Annotated, Domains, Images, Scale
from kdbench.families.detection.models import Truth
from kdbench.hashing import digest, file_digest

STREET = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
WATERCOLOR = ("bicycle", "bird", "car", "cat", "dog", "person")


@dataclass(frozen=True)
class Pair:
    """Where a pair's splits are: ``(folder, image set)`` each. Objects of other classes are left out."""

    classes: tuple[str, ...]
    source_train: Sequence[tuple[str, str]]
    source_val: tuple[str, str]
    target_train: tuple[str, str]
    target_test: tuple[str, str]


_VOC_TRAIN, _VOC_TEST = [("VOC2007", "trainval"), ("VOC2012", "trainval")], ("VOC2007", "test")
PAIRS = {
    "cityscapes_foggy": Pair(STREET, [("source", "train")], ("source", "val"), ("target", "train"), ("target", "val")),
    "sim10k_cityscapes": Pair(
        ("car",), [("source", "train")], ("source", "val"), ("target", "train"), ("target", "val")
    ),
    "kitti_cityscapes": Pair(
        ("car",), [("source", "train")], ("source", "val"), ("target", "train"), ("target", "val")
    ),
    "voc_clipart": Pair(VOC, _VOC_TRAIN, _VOC_TEST, ("clipart", "train"), ("clipart", "test")),
    "voc_watercolor": Pair(WATERCOLOR, _VOC_TRAIN, _VOC_TEST, ("watercolor", "train"), ("watercolor", "test")),
}


def load(name: str, pair: Pair, root: Path, scale: Scale) -> Domains:
    """The pair below ``root``. None has a labelled validation split of its target, so the source's stands in its place:
    a record of how much of the source is forgotten, which chooses nothing.

    Raises :class:`DataError` for a missing image, annotation or image set.
    """
    sources = [_annotated(root / folder, part, pair.classes, scale) for folder, part in pair.source_train]
    names = tuple(name for part in sources for name in part.images.names)
    files = [file for part in sources for file in part.images.sources]
    source = Annotated(Images(names, files, scale), [one for part in sources for one in part.truth])
    source_val = _annotated(root / pair.source_val[0], pair.source_val[1], pair.classes, scale)
    target_test = _annotated(root / pair.target_test[0], pair.target_test[1], pair.classes, scale)
    target_train = _images(root / pair.target_train[0], pair.target_train[1], scale)
    sha256 = _fingerprint(root, [*pair.source_train, pair.source_val, pair.target_train, pair.target_test])
    return Domains(name, pair.classes, source, source_val, target_train, source_val, target_test, sha256)


def hidden(pair: Pair, root: Path, scale: Scale) -> Annotated:
    """The target's training images with their boxes."""
    return _annotated(root / pair.target_train[0], pair.target_train[1], pair.classes, scale)


def _listed(folder: Path, part: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{part}.txt"
    if not path.is_file():
        raise DataError(f"{path} is missing: one image name a line, as in Pascal VOC.")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _images(folder: Path, part: str, scale: Scale) -> Images:
    names = _listed(folder, part)
    paths = [_image(folder, name) for name in names]
    return Images(tuple(f"{folder.name}/{name}" for name in names), paths, scale)


def _image(folder: Path, name: str) -> Path:
    for ending in (".jpg", ".png", ".jpeg"):
        if (path := folder / "JPEGImages" / f"{name}{ending}").is_file():
            return path
    raise DataError(f"{folder / 'JPEGImages' / name} is missing, as .jpg, .png and .jpeg.")


def _annotated(folder: Path, part: str, classes: Sequence[str], scale: Scale) -> Annotated:
    images = _images(folder, part, scale)
    return Annotated(images, [read_xml(_xml(folder, name), classes) for name in _listed(folder, part)])


def _xml(folder: Path, name: str) -> Path:
    path = folder / "Annotations" / f"{name}.xml"
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    return path


def read_xml(path: Path, classes: Sequence[str]) -> Truth:
    """The boxes of one annotation file, without objects that it calls difficult or that are of other classes.

    VOC counts pixels from 1 and includes the last one: [xmin, ymin, xmax, ymax] becomes [xmin - 1, ymin - 1, xmax,
    ymax].
    """
    boxes, labels = list[list[float]](), list[int]()
    for entry in ElementTree.parse(path).iter("object"):
        name, corners = entry.findtext("name", "").strip(), entry.find("bndbox")
        if name not in classes or corners is None or entry.findtext("difficult", "0").strip() == "1":
            continue
        x1, y1, x2, y2 = (float(corners.findtext(key, "nan")) for key in ("xmin", "ymin", "xmax", "ymax"))
        if not (x2 > x1 and y2 > y1):
            raise DataError(f"{path}: the box {x1:g}, {y1:g}, {x2:g}, {y2:g} of a {name} is empty or not a number.")
        boxes.append([x1 - 1, y1 - 1, x2, y2])
        labels.append(list(classes).index(name))
    return Truth(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))


def _fingerprint(root: Path, parts: Sequence[tuple[str, str]]) -> str:
    """Digest of the image sets, of every annotation but the target's training ones, and of the images' sizes in bytes.

    The images themselves are tens of gigabytes; a changed one shows in its size.
    """
    told = []
    for place, (folder, part) in enumerate(parts):
        home, seen = root / folder, place != len(parts) - 2
        for name in _listed(home, part):
            xml = file_digest(_xml(home, name)) if seen else ""
            told.append([folder, part, name, os.path.getsize(_image(home, name)), xml])
    return digest(told)
