"""Images and boxes of two domains: what a split is, batches, loaders. The readers are in ``domains.py``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.engine.loaders import Loaders, Rows
from kdbench.families.detection.domain_adaptation import pictures
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.hashing import digest

EVALUATED = 8  # images at once
DIVISOR = 32  # of a batch's height and width: the largest stride


@dataclass(frozen=True)
class Scale:
    """How large the images become: the short side ``short`` pixels, unless the long one would exceed ``long``."""

    short: int
    long: int

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing; both at least 1."""
        factor = min(self.short / min(height, width), self.long / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True)
class Images:
    """Images without labels, from files or from arrays uint8 ``[h, w, 3]``."""

    names: tuple[str, ...]
    sources: Sequence[Path | np.ndarray]
    scale: Scale

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> tuple[Tensor, tuple[float, float]]:
        """Image ``row`` as float32 ``[3, h, w]`` of values 0…255, resized; and the factors of its width and height."""
        source = self.sources[row]
        picture = Image.fromarray(source) if isinstance(source, np.ndarray) else pictures.read(source)
        height, width = self.scale.of(picture.height, picture.width)
        factors = width / picture.width, height / picture.height
        if factors != (1, 1):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float(), factors


@dataclass(frozen=True)
class Annotated:
    """Images with their true boxes, in pixels of the image before resizing."""

    images: Images
    truth: Sequence[Truth]

    def __post_init__(self) -> None:
        if len(self.truth) != len(self.images):
            raise ValueError(f"{len(self.images)} images have {len(self.truth)} sets of boxes")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Domains:
    """Two domains with the same classes. The labels of the target's training images are not in here.

    ``target_val`` is what adaptation is validated on, for the record: it chooses nothing.
    """

    name: str
    classes: tuple[str, ...]
    source_train: Annotated
    source_val: Annotated
    target_train: Images
    target_val: Annotated
    target_test: Annotated
    sha256: str

    @functools.cached_property
    def split_sha256(self) -> str:
        """Digest of the names in each split."""
        labelled = (self.source_train, self.source_val, self.target_val, self.target_test)
        return digest([list(self.target_train.names), *(list(part.images.names) for part in labelled)])


@dataclass
class Batch:
    """Images without labels: the weak view."""

    images: Tensor
    """float32 ``[b, 3, H, W]``, values 0…255, padded with 0 to multiples of 32."""
    sizes: Tensor
    """int64 ``[b, 2]``: height and width without the padding."""
    rows: Tensor
    """int64 ``[b]``: place in the split."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class LabelledBatch(Batch):
    """Images with their true boxes."""

    truth: list[Truth]


def collate(split: Images | Annotated, rows: Sequence[int]) -> Batch:
    """The batch that holds these images of a split."""
    images = split.images if isinstance(split, Annotated) else split
    read = [images.read(row) for row in rows]
    sizes = torch.tensor([picture.shape[1:] for picture, _ in read])
    height, width = (-(-int(side) // DIVISOR) * DIVISOR for side in sizes.max(dim=0).values)
    canvas = torch.zeros(len(rows), 3, height, width)
    for place, (picture, _) in zip(canvas, read, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    numbers = torch.tensor(list(rows))
    if isinstance(split, Images):
        return Batch(canvas, sizes, numbers)
    factors = [torch.tensor([x, y, x, y]) for _, (x, y) in read]
    truth = [split.truth[row] for row in rows]
    scaled = [Truth(one.boxes * factor, one.labels) for one, factor in zip(truth, factors, strict=True)]
    return LabelledBatch(canvas, sizes, numbers, scaled)


def loaders(train: Images | Annotated, val: Annotated, test: Annotated | None, batch_size: int, seed: int) -> Loaders:
    """Loaders of batches of images; ``test`` is None for a domain that is trained and validated on, never tested."""
    return Loaders(partial(_rows, {"train": train, "val": val, "test": test}, batch_size), seed)


def _rows(parts: Mapping[str, Images | Annotated | None], batch_size: int, split: str) -> Rows:
    part = parts[split]
    if part is None:
        raise ValueError("the source domain is trained and validated on, never tested")
    return Rows(len(part), partial(_fetch, part), batch_size if split == "train" else EVALUATED)


def _fetch(split: Images | Annotated, rows: Sequence[int], epoch: int) -> Batch:
    return collate(split, rows)
