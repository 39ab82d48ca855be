"""Readers of two-domain data sets: generated shapes, COCO's json, VOC's layout.

:func:`of_run` gives all that adapting without source data and target labels may see, and the labelled splits of
validation and test; :func:`hidden_of_run` gives the labels of the target's training images, for the oracle and for
analyses of finished runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.errors import DataError
from kdbench.families.detection.domain_adaptation import coco, shapes, splits, voc
from kdbench.families.detection.domain_adaptation.data import Annotated, Domains, Images, Scale
from kdbench.families.detection.domain_adaptation.options import COCO, AdaptationData, Part
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import Dataset, dataset, fetch, folder_of, reading_options


@remembered(4)
def load(name: str, options: AdaptationData) -> Domains:
    """The data set ``name``, split as its files are. Raises :class:`kdbench.errors.DataError` for unsound ones."""
    data = dataset(name)
    return READERS[data.reader].load(data, reading_options(data), options)


@remembered(4)
def hidden(name: str, options: AdaptationData) -> Annotated:
    """The target's training images with their labels. No method without target labels may call this."""
    data = dataset(name)
    return READERS[data.reader].hidden(data, reading_options(data), options)


def of_run(name: str, options: AdaptationData, seed: int) -> Domains:
    """The data set with the split of a run of this seed."""
    if options.split == "fixed":
        return load(name, options)
    return splits.drawn(load(name, options), hidden(name, options), seed)[0]


def hidden_of_run(name: str, options: AdaptationData, seed: int) -> Annotated:
    """The target's training images of such a run with their labels: as :func:`hidden`."""
    if options.split == "fixed":
        return hidden(name, options)
    return splits.drawn(load(name, options), hidden(name, options), seed)[1]


@dataclass(frozen=True)
class Reader:
    """The two ways into a data set."""

    load: Callable[[Dataset, Any, AdaptationData], Domains]
    hidden: Callable[[Dataset, Any, AdaptationData], Annotated]


def scale_of(options: AdaptationData) -> Scale:
    """How large the images become."""
    return Scale(options.short_side, options.long_side)


def from_coco(data: Dataset, how: COCO, options: AdaptationData) -> Domains:
    """Two domains in COCO's json. Raises :class:`DataError` also for an image that two splits have."""
    files = {part: file for part in PARTS if (file := getattr(how, part))}
    paths, sha256 = fetch(data, list(data.files) or list(dict.fromkeys(files.values())))
    listings = {file: coco.read(paths[file]) for file in dict.fromkeys(files.values())}
    images = {paths[file].parent / "images" / one.file_name for file in listings for one in listings[file].images}
    pictures_sha256 = digest([[path.name, file_digest(path)] for path in sorted(images) if path.is_file()])
    if how.sha256 not in (None, pictures_sha256):
        raise DataError(
            f"The images of {data.name} below {folder_of(data)} are not those that its boxes were drawn on (SHA-256 "
            f"{pictures_sha256}, not {how.sha256}). Put the whole folder there again."
        )
    target, scale = how.target_test, scale_of(options)
    classes = listings[target].classes
    for file, listing in listings.items():
        if listing.classes != classes:
            differ = f"{list(listing.classes)}, but {paths[target]} {list(classes)}"
            raise DataError(f"{paths[file]} has the categories {differ}.")

    def part(name: Part) -> Annotated:
        file = files[name]
        return coco.annotated(paths[file], listings[file], scale, how.origins.get(name, ""))

    train = coco.images(paths[how.target_train], listings[how.target_train], scale, how.origins.get("target_train", ""))
    source_train, source_val, target_test = part("source_train"), part("source_val"), part("target_test")
    target_val = part("target_val") if how.target_val else source_val
    labelled = {"source_train": source_train, "source_val": source_val, "target_test": target_test}
    labelled |= {"target_val": target_val} if how.target_val else {}
    _check_apart({"target_train": train, **{name: one.images for name, one in labelled.items()}})
    sha256 = digest({"files": sha256, "images": pictures_sha256})
    return Domains(data.name, classes, source_train, source_val, train, target_val, target_test, sha256)


def _check_apart(parts: Mapping[str, Images]) -> None:
    seen: dict[object, str] = {}
    for name, images in parts.items():
        for path in images.sources:
            if (before := seen.setdefault(path, name)) != name:
                raise DataError(f"{path} is in two splits: {before} and {name}.")


def hidden_in_coco(data: Dataset, how: COCO, options: AdaptationData) -> Annotated:
    """The target's training images with their boxes."""
    paths, _ = fetch(data, [how.target_train])
    path = paths[how.target_train]
    return coco.annotated(path, coco.read(path), scale_of(options), how.origins.get("target_train", ""))


PARTS: tuple[Part, ...] = ("source_train", "source_val", "target_train", "target_val", "target_test")

READERS = {
    "shapes": Reader(
        lambda data, how, options: shapes.load(data.name, options, scale_of(options)),
        lambda data, how, options: shapes.hidden(options, scale_of(options)),
    ),
    "coco": Reader(from_coco, hidden_in_coco),
    "voc": Reader(
        lambda data, how, options: voc.load(data.name, how, folder_of(data), scale_of(options)),
        lambda data, how, options: voc.hidden(how, folder_of(data), scale_of(options)),
    ),
}
