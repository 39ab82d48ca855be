"""Two-domain data sets: generated shapes, blood cells of two laboratories, and published pairs in VOC's layout.

:func:`load` gives all that adapting without source data and target labels may see, and the labelled splits of
validation and test; :func:`hidden` gives the labels of the target's training images, for the oracle and for analyses
of finished runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import DataError, unknown
from kdbench.families.detection.domain_adaptation import coco, shapes, voc
from kdbench.families.detection.domain_adaptation.data import Annotated, Domains, Scale
from kdbench.families.detection.domain_adaptation.options import AdaptationData
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import dataset, fetch

CELLS = "txl_pbc_domains"
CELL_IMAGES = "ee347885e71ebe512cca01388a0c51c04df8fb7e2e2803cb307209a235020d5d"


@remembered(4)
def load(name: str, options: AdaptationData) -> Domains:
    """The data set ``name``. Raises :class:`kdbench.errors.DataError` when its files are not sound."""
    return _reader(name).load(options)


@remembered(4)
def hidden(name: str, options: AdaptationData) -> Annotated:
    """The target's training images with their labels. No method without target labels may call this."""
    return _reader(name).hidden(options)


@dataclass(frozen=True)
class Reader:
    """The two ways into a data set."""

    load: Callable[[AdaptationData], Domains]
    hidden: Callable[[AdaptationData], Annotated]


def _reader(name: str) -> Reader:
    if name not in READERS:
        raise unknown("detection data set", name, READERS)
    return READERS[name]


def scale_of(options: AdaptationData) -> Scale:
    """How large the images become."""
    return Scale(options.short_side, options.long_side)


def cells(options: AdaptationData) -> Domains:
    """Blood cells: source BCCD, target PBC.

    Source: 150 training images, 71 for validation. Target: 200 training images; of the 150 labelled ones the 50 that
    upstream calls test are the validation part, which chooses nothing, and its 100 validation images are the test.
    """
    paths, sha256 = fetch(CELLS)
    roots = {domain: paths[f"{domain}/train.json"].parent for domain in ("bccd", "pbc")}
    fingerprint = _image_digest(roots.values())
    if fingerprint != CELL_IMAGES:
        raise DataError(
            f"The images of {CELLS} below {roots['bccd'].parent} are not those that its boxes were drawn on (SHA-256 "
            f"{fingerprint}, not {CELL_IMAGES}). Put the whole folder there again."
        )
    told = {name: coco.read(path) for name, path in paths.items()}
    scale, target = scale_of(options), "pbc/test.json"
    classes = told[target].classes
    for name, listing in told.items():
        if listing.classes != classes:
            differ = f"{list(listing.classes)}, but {paths[target]} {list(classes)}"
            raise DataError(f"{paths[name]} has the categories {differ}.")

    def part(name: str, folder: str = "") -> Annotated:
        return coco.annotated(paths[name], told[name], scale, folder)

    return Domains(
        CELLS,
        classes,
        part("bccd/train.json"),
        part("bccd/test.json"),
        coco.images(paths["pbc/train.json"], told["pbc/train.json"], scale),
        part(target, "test/"),
        part(target, "val/"),
        digest({"files": sha256, "images": fingerprint}),
    )


def hidden_cells(options: AdaptationData) -> Annotated:
    """PBC's training images with their boxes."""
    paths, _ = fetch(CELLS, ["pbc/train.json"])
    path = paths["pbc/train.json"]
    return coco.annotated(path, coco.read(path), scale_of(options))


def _image_digest(roots: Any) -> str:
    paths = sorted(path for root in roots for path in (root / "images").glob("*.jpg"))
    return digest([[path.name, file_digest(path)] for path in paths])


def _published(name: str) -> Reader:
    pair = voc.PAIRS[name]

    def folder() -> Path:
        places = dataset(name).places()
        for place in places:
            if place.is_dir():
                return place
        raise DataError(
            f"Data set '{name}' is not in {' or '.join(map(str, places))}. {dataset(name).how} Set KDBENCH_DATA to the "
            f"folder that holds {dataset(name).folder}."
        )

    return Reader(
        lambda options: voc.load(name, pair, folder(), scale_of(options)),
        lambda options: voc.hidden(pair, folder(), scale_of(options)),
    )


READERS = {
    "stained_shapes": Reader(
        lambda options: shapes.load(options, scale_of(options)),
        lambda options: shapes.hidden(options, scale_of(options)),
    ),
    CELLS: Reader(cells, hidden_cells),
    **{name: _published(name) for name in voc.PAIRS},
}
