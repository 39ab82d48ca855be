"""Paired views of labelled examples: what all data sets of the kind look like, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError, unknown
from kdbench.families.vision_language.paired_classification import avdigits
from kdbench.families.vision_language.paired_classification import networks as pair_networks
from kdbench.families.vision_language.paired_classification.networks import PairNetwork
from kdbench.families.vision_language.paired_classification.options import (
    AVDigits,
    PairData,
    PairedArrays,
    PairedViews,
    PairStudent,
    VGGSound,
)
from kdbench.hashing import digest, file_digest, remembered
from kdbench.plan.datasets import Dataset, dataset, fetch, reading_options
from kdbench.plan.options import plain

TRAIN, VAL, TEST, UNUSED = 0, 1, 2, 3
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}
PERMUTATION_SEED, PERMUTATIONS = 19980427, 20  # of the released code


class Rows(Protocol):
    """Examples that are read by number: a NumPy array, a memory map, a folder of files."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """The examples of these numbers, ``[b, *]``."""


@dataclass(frozen=True)
class Modality:
    """One view: pair r shows ``prepare(values[index[r]])``. Tensors move to the device once, arrays batch by batch."""

    values: Tensor | Rows
    index: Tensor
    """int64 ``[n]``: the example that each pair shows."""
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def rows(self, rows: Tensor) -> Tensor:
        """The view of pairs ``rows`` (int64 ``[b]``), float32 on their device."""
        if not isinstance(self.values, Tensor):
            wanted = self.index[rows.cpu()].numpy()
            read = torch.from_numpy(np.ascontiguousarray(self.values[wanted], dtype=np.float32))
            return self.prepare(read).to(rows.device)
        if rows.device not in self._moved:
            self._moved[rows.device] = self.values.to(rows.device), self.index.to(rows.device)
        values, index = self._moved[rows.device]
        return self.prepare(values[index[rows]])


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs with one split."""

    name: str
    views: Mapping[str, Modality]
    """The two modalities by name, in the order that a fusion network takes them."""
    y: Tensor
    """Classes, int64 ``[n]``."""
    split: Tensor
    """int64 ``[n]``: 0 train, 1 validation, 2 test, 3 none."""
    classes: int
    sha256: str
    network: Callable[[tuple[str, ...], PairStudent], PairNetwork]
    """Builds the data set's network for the modalities it is to see."""

    def ids(self, split: str) -> Tensor:
        """Pairs of a split, int64 ascending."""
        return (self.split == SPLITS[split]).nonzero().flatten()

    @property
    def split_sha256(self) -> str:
        """Digest of the split and of what is paired with what."""
        shown = {name: view.index.tolist() for name, view in self.views.items()}
        return digest({"split": self.split.tolist(), **shown})

    def labels(self, rows: Tensor) -> Tensor:
        """Classes of pairs ``rows``, on their device."""
        return self.y.to(rows.device)[rows]

    def inputs(self, network: PairNetwork, rows: Tensor) -> list[Tensor]:
        """What ``network`` sees of pairs ``rows``."""
        return [self.views[name].rows(rows) for name in network.sees]

    def other(self, modality: str) -> str:
        """The modality that the student does not see. Raises :class:`UsageError` for one that is not of this data."""
        if modality not in self.views:
            raise unknown(f"student.modality of {self.name}", modality, self.views)
        return next(name for name in self.views if name != modality)


@remembered(2)
def load(name: str, options: PairData, seed: int) -> Pairs:
    """The pairs of a data set for one run seed. Raises :class:`DataError` when its files are missing or not sound."""
    data = dataset(name)
    pairs = read(name, options, seed)
    hint = " Take more data.pairs or fewer data.classes." if data.generated else " Take more data.pairs."
    inputs.covered(pairs.y.numpy(), pairs.split.numpy(), pairs.classes, data.name, hint=hint if options.pairs else "")
    return pairs


def read(name: str, options: PairData, seed: int) -> Pairs:
    """The data set ``name``, before any check of the whole."""
    data = dataset(name)
    return READERS[data.reader](data, reading_options(data), options, seed)


def pooled_split(count: int, seed: int, options: PairData) -> Tensor:
    """The released code's split: 60/20/20 % of permutation ``seed mod 20`` of 20, from NumPy's generator.

    ``options.pairs`` and ``options.validation_pairs`` keep the first of each part; the rest is unused.
    """
    random = np.random.RandomState(PERMUTATION_SEED)
    order = torch.from_numpy([random.permutation(count) for _ in range(seed % PERMUTATIONS + 1)][-1])
    train, val = int(count * 0.6), int(count * 0.8)
    split = torch.full((count,), UNUSED)
    split[order[:train][: options.pairs]] = TRAIN
    split[order[train:val][: options.validation_pairs]] = VAL
    split[order[val:]] = TEST
    return split


def fingerprint(files: str, options: PairData, seed: int) -> str:
    """SHA-256 over the files' fingerprint, the options that shape the data, and the seed that splits it."""
    shaping = {name: value for name, value in plain(options).items() if name != "batch_size"}
    return digest({"files": files, "options": shaping, "seed": seed})


def digit_pairs(data: Dataset, how: AVDigits, options: PairData, seed: int) -> Pairs:
    """Spoken and handwritten digits (see ``avdigits.py``)."""
    paths, files = fetch(data)
    made = avdigits.build(avdigits.read(paths), options, seed, lambda count: pooled_split(count, seed, options))
    views = {
        "image": Modality(made.images, made.image_of),
        "audio": Modality(made.spectrograms, made.recording_of),
    }
    return Pairs(
        data.name, views, made.y, made.split, 10, fingerprint(files, options, seed), _digits(10, avdigits.MELS)
    )


def _digits(classes: int, size: int) -> Callable[[tuple[str, ...], PairStudent], PairNetwork]:
    return lambda sees, student: pair_networks.digit_networks(sees, classes, student.channels, size)


def generated_pairs(data: Dataset, how: PairedViews, options: PairData, seed: int) -> Pairs:
    """Noisy views of class means: 28×28 'images' and 16×16 'spectrograms', independent given the class.

    A class's mean has 4×4 patches of standard normal values; ``options.noise`` is added pixel by pixel. As many
    validation and twice as many test pairs as training pairs.
    """
    random = torch.Generator().manual_seed(axis(seed, "pairs"))
    means = torch.Generator().manual_seed(axis(0, "pairs"))
    train = options.pairs or 1000
    val = options.validation_pairs or train
    sizes = torch.tensor([train, val, 2 * train])
    y = torch.randint(options.classes, (int(sizes.sum()),), generator=random)
    views = {}
    for name, side, noise in zip(("image", "audio"), (28, 16), options.noise, strict=True):
        patches = torch.randn(options.classes, 1, side // 4, side // 4, generator=means)
        mean = patches.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        values = mean[y] + noise * torch.randn(len(y), 1, side, side, generator=random)
        inputs.numbers(values.numpy(), f"{data.name} with data.noise={noise:g}", (len(y), 1, side, side))
        views[name] = Modality(values, torch.arange(len(y)))
    split = torch.repeat_interleave(torch.tensor([TRAIN, VAL, TEST]), sizes)
    sha256 = fingerprint("generated", options, seed)
    return Pairs(data.name, views, y, split, options.classes, sha256, _digits(options.classes, 16))


def paired_arrays(data: Dataset, how: PairedArrays, options: PairData, seed: int) -> Pairs:
    """Two memory-mapped arrays of equal length and their labels, split by :func:`pooled_split`."""
    if len(how.views) != 2:
        raise DataError(f"{data.name} has {len(how.views)} views, not two: {', '.join(how.views) or 'none'}.")
    paths, files = fetch(data, [*how.views.values(), how.labels])
    arrays = {path: inputs.load_array(path, mapped=True) for path in paths.values()}
    inputs.same_length({str(path): len(np.atleast_1d(array)) for path, array in arrays.items()})
    *viewed, (listed, labels) = arrays.items()
    y = torch.from_numpy(inputs.integers(labels, listed, "label", 0, how.classes or len(labels)))
    classes = how.classes or int(y.max()) + 1
    split, everyone = pooled_split(len(y), seed, options), torch.arange(len(y))
    train = (split == TRAIN).nonzero().flatten().numpy()
    shapes = {name: array.shape[1:] for name, (_, array) in zip(how.views, viewed, strict=True)} | (how.shapes or {})
    views: dict[str, Modality] = {
        name: Modality(array, everyone, _scaling(array, path, shapes[name], train))
        for name, (path, array) in zip(how.views, viewed, strict=True)
    }
    sha256 = fingerprint(files, options, seed)

    def network(sees: tuple[str, ...], student: PairStudent) -> PairNetwork:
        if how.networks == "clips":
            return pair_networks.clip_networks(sees, classes)
        return pair_networks.feature_networks(sees, classes, {name: shapes[name][0] for name in how.views})

    for name, path in zip(how.views, paths.values(), strict=False):
        if how.networks == "features" and len(shapes[name]) != 1:
            raise DataError(f"{path} has examples of the shape {list(shapes[name])}: networks=features takes vectors.")
    return Pairs(data.name, views, y, split, classes, sha256, network)


def _scaling(values: np.ndarray, path: Path, shape: tuple[int, ...], train: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Min-max scaling to [0, 1]: none for features, per example for 2-D arrays, per channel for clips of frames.

    Clips ``[n, frames, channels, h, w]`` come out as ``[b, channels, frames, h, w]``; their range is that of the
    training rows. Raises :class:`DataError` for values of another shape, or that are not finite.
    """
    inputs.shaped(values, path, (None, *shape))
    if values.ndim < 5:
        inputs.numbers(values, path, (None, *shape))
        return min_max if values.ndim == 3 else lambda x: x
    low, high = torch.empty(2, len(values), values.shape[2])
    for row in range(len(values)):
        clip = torch.from_numpy(np.asarray(values[row], dtype=np.float32)).transpose(0, 1).flatten(1)
        low[row], high[row] = clip.amin(dim=1), clip.amax(dim=1)
    inputs.numbers(torch.stack([low, high], dim=1).numpy(), path, (len(values), 2, values.shape[2]))
    across = (1, 1, -1, 1, 1)
    low, high = low[train].amin(dim=0).view(across), high[train].amax(dim=0).view(across)
    return lambda x: ((x - low) / (high - low).clamp(min=1e-12)).transpose(1, 2)


def min_max(x: Tensor) -> Tensor:
    """Each example of ``x`` ``[b, *]`` scaled to [0, 1]; a constant one to 0."""
    flat = x.flatten(1)
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    shape = (-1, *[1] * (x.dim() - 1))
    return (x - low.view(shape)) / (high - low).clamp(min=1e-12).view(shape)


class FeatureFolder:
    """One NumPy file an example, ``<folder>/<name><ending>``, read and checked on demand.

    Raises :class:`DataError` at once for a file that is missing (``origin`` says how it is got) or of another size
    than the first.
    """

    def __init__(self, folder: Path, names: list[str], ending: str, shape: tuple[int, ...], origin: str) -> None:
        self.folder, self.names, self.ending, self.shape = folder, names, ending, shape
        with inputs.reading(folder):
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
        for name in names:
            path = self._path(name)
            if path.name not in sizes:
                raise DataError(f"{path} is missing. {origin}")
            if sizes[path.name] != sizes[self._path(names[0]).name]:
                raise DataError(f"{path} has another size than {self._path(names[0])}.")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{self.ending}"

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        paths = [self._path(self.names[row]) for row in rows]
        return np.stack([inputs.numbers(inputs.load_array(path), path, self.shape) for path in paths])


def vggsound(data: Dataset, how: VGGSound, options: PairData, seed: int) -> Pairs:
    """VGGSound-50k: visual features ``[10, 7, 7, 512]`` and audio features ``[10, 128]`` of each clip; 141 events.

    ``VGGS50k_metadata.txt`` has a line ``name&class`` for each clip; the features are already scaled. The fingerprint
    covers that file, and the bytes of the first clip's features.
    """
    paths, _ = fetch(data)
    (index,) = paths.values()
    names, y = _listed(index, 141)
    folders = {
        "video": FeatureFolder(index.parent / "visual_features", names, "_vFeature.npy", (10, 7, 7, 512), data.how),
        "audio": FeatureFolder(index.parent / "audio_features", names, "_aFeature.npy", (10, 128), data.how),
    }
    first = {name: digest(folder[np.arange(1)].tolist()) for name, folder in folders.items()}
    files = digest({"index": file_digest(index), **first})
    everyone = torch.arange(len(y))
    views = {
        "video": Modality(folders["video"], everyone, lambda x: x.permute(0, 4, 1, 2, 3)),
        "audio": Modality(folders["audio"], everyone),
    }
    split = pooled_split(len(y), seed, options)
    sha256 = fingerprint(files, options, seed)
    return Pairs(data.name, views, y, split, 141, sha256, lambda sees, _: pair_networks.event_networks(sees, 141))


def _listed(index: Path, classes: int) -> tuple[list[str], Tensor]:
    """Names and classes (int64 ``[n]``) from lines ``name&class``."""
    names: dict[str, int] = {}
    with inputs.reading(index):
        lines = index.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().partition("&")
        if not name or not label.isdecimal() or int(label) >= classes:
            raise DataError(
                f"{index}:{number}: {line[:60]!r} is not 'name&class' with a class from 0 to {classes - 1}."
            )
        if name in names:
            raise DataError(f"{index}:{number}: {name[:60]!r} is listed twice.")
        names[name] = int(label)
    if not names:
        raise DataError(f"{index} lists no clip.")
    return list(names), torch.tensor(list(names.values()))


READERS: dict[str, Callable[[Dataset, Any, PairData, int], Pairs]] = {
    "paired_views": generated_pairs,
    "avdigits": digit_pairs,
    "vggsound": vggsound,
    "paired_arrays": paired_arrays,
}
