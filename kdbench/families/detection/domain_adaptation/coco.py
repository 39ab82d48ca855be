"""COCO's json: images, categories and boxes, checked; an error names the file and the entry."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Annotated as Checked
from typing import Literal

import torch
from annotated_types import Gt, Len
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from kdbench.errors import DataError
from kdbench.families.detection.domain_adaptation import pictures
from kdbench.families.detection.domain_adaptation.data import Annotated, Images, Scale
from kdbench.families.detection.domain_adaptation.networks import Truth


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


class Picture(_Entry):
    """An image; ``orig_file`` is where it comes from."""

    id: int
    file_name: str
    width: Checked[int, Gt(0)]
    height: Checked[int, Gt(0)]
    orig_file: str = ""


class Category(_Entry):
    """A class."""

    id: int
    name: str


class Box(_Entry):
    """An object; ``bbox`` is x, y, width, height in pixels. Crowds are not supported."""

    id: int
    image_id: int
    category_id: int
    bbox: Checked[list[FiniteFloat], Len(4, 4)]
    iscrowd: Literal[0] = 0


class Listing(_Entry):
    """A file's images, categories and boxes."""

    images: list[Picture]
    categories: list[Category]
    annotations: list[Box] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The categories' names, numbered in this order."""
        return tuple(one.name for one in self.categories)


def read(path: Path) -> Listing:
    """What the file lists. Raises :class:`DataError` for wrong types, repeated ids and names."""
    try:
        listing = Listing.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{path}: {place}: {first['msg']}, not {str(first['input'])[:60]!r}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    _check_unique(path, "image id", (one.id for one in listing.images))
    _check_unique(path, "file name", (one.file_name for one in listing.images))
    _check_unique(path, "category id", (one.id for one in listing.categories))
    _check_unique(path, "category name", listing.classes)
    _check_unique(path, "annotation id", (one.id for one in listing.annotations or ()))
    return listing


def _check_unique(path: Path, what: str, values: Iterable[Hashable]) -> None:
    seen = set[Hashable]()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: the {what} {value!r} is given twice.")
        seen.add(value)


def images(path: Path, listing: Listing, scale: Scale, folder: str = "") -> Images:
    """The images whose ``orig_file`` begins with ``folder``. Raises :class:`DataError` for one of another size."""
    mine = [one for one in listing.images if one.orig_file.startswith(folder)]
    files = [path.parent / "images" / one.file_name for one in mine]
    for one, file in zip(mine, files, strict=True):
        if (size := pictures.size_of(file)) != (one.width, one.height):
            sizes = f"{size[0]} × {size[1]} pixels, but {path} says {one.width} × {one.height}"
            raise DataError(f"{file} has {sizes}.")
    return Images(tuple(one.file_name for one in mine), files, scale)


def annotated(path: Path, listing: Listing, scale: Scale, folder: str = "") -> Annotated:
    """The same images with their boxes. Raises :class:`DataError` for unknown ids, wrong boxes, or no box at all."""
    if listing.annotations is None:
        raise DataError(f"{path}: 'annotations' is missing.")
    number = {one.id: place for place, one in enumerate(listing.categories)}
    sizes = {one.id: (one.width, one.height) for one in listing.images}
    rows: dict[int, list[tuple[list[float], int]]] = {one.id: [] for one in listing.images}
    for entry in listing.annotations:
        where = f"{path}: annotation {entry.id}"
        for what, wanted, known in (("image", entry.image_id, rows), ("category", entry.category_id, number)):
            if wanted not in known:
                raise DataError(f"{where} is of {what} {wanted}, which is not listed.")
        x, y, w, h = entry.bbox
        box = [x, y, x + w, y + h]
        pictures.check_box(where, box, *sizes[entry.image_id])
        rows[entry.image_id].append((box, number[entry.category_id]))
    mine = [rows[one.id] for one in listing.images if one.orig_file.startswith(folder)]
    if not any(mine):
        raise DataError(f"{path}: none of the {len(mine)} images{f' of {folder}' if folder else ''} has a box.")
    truth = [truth_of([box for box, _ in row], [label for _, label in row]) for row in mine]
    return Annotated(images(path, listing, scale, folder), truth)


def truth_of(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Truth:
    """Boxes and labels as tensors, also where there are none."""
    return Truth(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))
