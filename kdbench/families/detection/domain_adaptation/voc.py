"""Pairs of domains in the layout of Pascal VOC: ``JPEGImages``, ``Annotations/*.xml``, ``ImageSets/Main``."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch

from kdbench.errors import DataError
from kdbench.families.detection.domain_adaptation import pictures
from kdbench.families.detection.domain_adaptation.data import Annotated, Domains, Images, Scale
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.options import VOC
from kdbench.hashing import digest, file_digest


def load(name: str, pair: VOC, root: Path, scale: Scale) -> Domains:
    """The pair below ``root``. None has a labelled validation split of its target, so the source's stands in its place:
    a record of how much of the source is forgotten, which chooses nothing.

    Raises :class:`DataError` for what is missing, damaged, or does not go together.
    """
    _check_apart(root, pair)
    sources = [_annotated(root / folder, part, pair, scale) for folder, part in pair.source_train]
    names = tuple(name for part in sources for name in part.images.names)
    files = [file for part in sources for file in part.images.sources]
    source = Annotated(Images(names, files, scale), [one for part in sources for one in part.truth])
    source_val = _annotated(root / pair.source_val[0], pair.source_val[1], pair, scale)
    target_test = _annotated(root / pair.target_test[0], pair.target_test[1], pair, scale)
    paths = _pictures(root / pair.target_train[0], pair.target_train[1])
    for path in paths.values():
        pictures.size_of(path)
    target_train = _images(paths, pair.target_train[0], scale)
    sha256 = _fingerprint(root, pair.splits())
    return Domains(name, pair.classes, source, source_val, target_train, source_val, target_test, sha256)


def hidden(pair: VOC, root: Path, scale: Scale) -> Annotated:
    """The target's training images with their boxes."""
    return _annotated(root / pair.target_train[0], pair.target_train[1], pair, scale)


def _set(folder: Path, part: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{part}.txt"


def _listed(folder: Path, part: str) -> list[str]:
    path = _set(folder, part)
    if not path.is_file():
        raise DataError(f"{path} is missing: one image name a line, as in Pascal VOC.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    names = dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = line.split()[0]
        if name in names:
            raise DataError(f"{path}:{number}: {name} is listed before, in line {names[name]}.")
        names[name] = number
    if not names:
        raise DataError(f"{path} lists no image.")
    return list(names)


def _check_apart(root: Path, pair: VOC) -> None:
    """Raise :class:`DataError` for an image that two splits list."""
    for (folder, one), (other_folder, other) in itertools.combinations(pair.splits(), 2):
        if folder == other_folder:
            shared = sorted(set(_listed(root / folder, one)) & set(_listed(root / folder, other)))
            if shared:
                message = f"{_set(root / folder, one)} and {_set(root / folder, other)} share {len(shared)} images"
                raise DataError(f"{message}, such as {shared[0]}.")


def _pictures(folder: Path, part: str) -> dict[str, Path]:
    """The pictures of a split by name."""
    return {name: _image(folder, name) for name in _listed(folder, part)}


def _images(paths: dict[str, Path], folder: str, scale: Scale) -> Images:
    return Images(tuple(f"{folder}/{name}" for name in paths), list(paths.values()), scale)


def _image(folder: Path, name: str) -> Path:
    for ending in (".jpg", ".png", ".jpeg"):
        if (path := folder / "JPEGImages" / f"{name}{ending}").is_file():
            return path
    raise DataError(f"{folder / 'JPEGImages' / name} is missing, as .jpg, .png and .jpeg.")


def _annotated(folder: Path, part: str, pair: VOC, scale: Scale) -> Annotated:
    paths = _pictures(folder, part)
    truth = [read_xml(_xml(folder, name), path, pair) for name, path in paths.items()]
    if not any(len(one.labels) for one in truth):
        message = f"none of its {len(truth)} images has an object of the classes {', '.join(pair.classes)}"
        raise DataError(f"{_set(folder, part)}: {message}.")
    return Annotated(_images(paths, folder.name, scale), truth)


def _xml(folder: Path, name: str) -> Path:
    path = folder / "Annotations" / f"{name}.xml"
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    return path


def read_xml(path: Path, picture: Path, pair: VOC) -> Truth:
    """The boxes of a picture's annotation file, without objects that it calls difficult or that the pair leaves out.

    VOC counts pixels from 1 and includes the last one: [xmin, ymin, xmax, ymax] becomes [xmin - 1, ymin - 1, xmax,
    ymax]. Raises :class:`DataError` for a picture of another size, and for an object of an unknown class or whose box
    has no area or leaves the picture.
    """
    root, size = _parsed(path), pictures.size_of(picture)
    written = root.find("size")
    if written is not None and (said := tuple(_number(written, key, path) for key in ("width", "height"))) != size:
        raise DataError(f"{path} is of {said[0]:g} × {said[1]:g} pixels, but {picture} has {size[0]} × {size[1]}.")
    boxes, labels = list[list[float]](), list[int]()
    for number, entry in enumerate(root.iter("object"), 1):
        name = (entry.findtext("name") or "").strip()
        where = f"{path}: object {number} ('{name}')"
        label, difficult = _label(name, pair, where), (entry.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise DataError(f"{where}: difficult is '{difficult}', neither 0 nor 1.")
        if label is None or difficult == "1":
            continue
        corners = entry.find("bndbox")
        if corners is None:
            raise DataError(f"{where} has no bndbox.")
        x1, y1, x2, y2 = (_number(corners, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append([x1 - 1, y1 - 1, x2, y2])
        pictures.check_box(where, [x1, y1, x2, y2], *size)
        labels.append(label)
    return Truth(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))


def _parsed(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}.") from None
    if root.tag != "annotation":
        raise DataError(f"{path} is no annotation of Pascal VOC: its root is <{root.tag}>.")
    return root


def _number(parent: ElementTree.Element, key: str, where: object) -> float:
    text = parent.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {parent.tag}.{key} is {text!r}, not a number.")
    return value


def _label(name: str, pair: VOC, where: str) -> int | None:
    """The number of an object's class; None for one that is left out."""
    if name in pair.classes:
        return pair.classes.index(name)
    for known in pair.classes:
        if _plain(known) == _plain(name):
            raise DataError(f"{where} is to be called '{known}', as the classes of the set are.")
    if _plain(name) not in map(_plain, pair.others):
        left_out = f"; left out are {', '.join(pair.others)}" if pair.others else ""
        raise DataError(f"{where} is of no known class. Classes: {', '.join(pair.classes)}{left_out}.")
    return None


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _fingerprint(root: Path, parts: Sequence[tuple[str, str]]) -> str:
    """Digest of the image sets, of every annotation but the target's training ones, and of the images' sizes in bytes.

    The images themselves are tens of gigabytes; a changed one shows in its size.
    """
    entries = []
    for place, (folder, part) in enumerate(parts):
        home, seen = root / folder, place != len(parts) - 2
        for name in _listed(home, part):
            xml = file_digest(_xml(home, name)) if seen else ""
            entries.append([folder, part, name, os.path.getsize(_image(home, name)), xml])
    return digest(entries)
