"""Two-domain data sets: generated shapes, blood cells of two laboratories, and published pairs in VOC's layout.

:func:`load` gives all that adapting without source data and target labels may see, and the labelled splits of
validation and test; :func:`hidden` gives the labels of the target's training images, for the oracle and for analyses
of finished runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdbench.datasets import dataset, fetch
from kdbench.errors import DataError, unknown
from kdbench.families.detection import shapes, voc
from kdbench.families.detection.data import Annotated, Domains, Images, Scale
from kdbench.families.detection.models import Truth
from kdbench.families.detection.options import AdaptationData
from kdbench.hashing import digest, file_digest, remembered

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
    told = {name: json.loads(path.read_text()) for name, path in paths.items()}
    scale = scale_of(options)
    classes = tuple(one["name"] for one in told["pbc/train.json"]["categories"])
    target = told["pbc/test.json"]
    parts = {part: _upstream(target, part) for part in ("val", "test")}
    return Domains(
        CELLS,
        classes,
        _coco(told["bccd/train.json"], roots["bccd"], scale),
        _coco(told["bccd/test.json"], roots["bccd"], scale),
        _coco_images(told["pbc/train.json"]["images"], roots["pbc"], scale),
        _coco(parts["test"], roots["pbc"], scale),
        _coco(parts["val"], roots["pbc"], scale),
        digest({"files": sha256, "images": fingerprint}),
    )


def hidden_cells(options: AdaptationData) -> Annotated:
    """PBC's training images with their boxes."""
    paths, _ = fetch(CELLS, ["pbc/train.json"])
    path = paths["pbc/train.json"]
    return _coco(json.loads(path.read_text()), path.parent, scale_of(options))


def _upstream(content: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The images that upstream has in its folder ``part``."""
    mine = [image for image in content["images"] if image["orig_file"].startswith(f"{part}/")]
    return {**content, "images": mine}


def _coco_images(entries: Sequence[Mapping[str, Any]], root: Path, scale: Scale) -> Images:
    names = tuple(entry["file_name"] for entry in entries)
    return Images(names, [root / "images" / name for name in names], scale)


def _coco(content: Mapping[str, Any], root: Path, scale: Scale) -> Annotated:
    """COCO's json: boxes are x, y, width, height; categories are numbered in the order of their list."""
    number = {one["id"]: place for place, one in enumerate(content["categories"])}
    rows: dict[int, list[tuple[list[float], int]]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["image_id"] in rows:
            x, y, w, h = entry["bbox"]
            rows[entry["image_id"]].append(([x, y, x + w, y + h], number[entry["category_id"]]))
    truth = [truth_of([box for box, _ in row], [label for _, label in row]) for row in rows.values()]
    return Annotated(_coco_images(content["images"], root, scale), truth)


def truth_of(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Truth:
    """Boxes and labels as tensors, also where there are none."""
    return Truth(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))


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
