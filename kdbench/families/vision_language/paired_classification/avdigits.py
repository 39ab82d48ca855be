"""Spoken and handwritten digits paired by digit: an image view starved by PCA, an audio view with a second speaker.

Image: the projection on the first k principal components of the training images (mean added back), each image scaled to
[0, 1]. Audio: the recording padded or cut to 8,000 samples plus a recording by another speaker at 0…10 dB, then

    log( M · |STFT|² + 1e-6 ),   FFT 256, hop 125, centred, last frame dropped, M: 64 HTK mel filters

as a 64×64 picture, scaled to [0, 1] by itself. Given the digit, image and recording are drawn independently.

Protocols. ``clean``: images 60/20/20 %; takes 10–49 of every speaker train, 5–9 validate, 0–4 test. In
``held_out_speaker`` one speaker's recordings are the test's alone. The second speaker's recording is of the
same split (for the speaker held out: takes 0–4 of the others). ``paper_like``: every image is paired, pairs are pooled
and re-split 60/20/20, so that a recording is in several splits.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from kdbench.engine import inputs
from kdbench.engine.seeds import axis
from kdbench.errors import DataError
from kdbench.families.vision_language.paired_classification.options import PairData

TRAIN, VAL, TEST = 0, 1, 2
PARTS = "0 train, 1 validation, 2 test"
SAMPLES, FFT, HOP, MELS = 8000, 256, 125, 64
FLOOR = 1e-6
DIGITS, SPEAKERS, TAKES = 10, 6, 50
FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "fsdd_recordings.npz")


@dataclass(frozen=True)
class Sources:
    """What the files hold."""

    images: Tensor
    """float32 ``[10000, 28, 28]`` in [0, 1]."""
    image_digits: Tensor
    recordings: Tensor
    """float32 ``[3000, 8000]`` in [-1, 1], padded with zeros or cut."""
    digits: Tensor
    speakers: Tensor
    takes: Tensor
    """int64 ``[3000]``: 0…49."""


@dataclass(frozen=True)
class DigitPairs:
    """Both views and who is paired with whom."""

    images: Tensor
    """float32 ``[images, 1, 28, 28]``."""
    spectrograms: Tensor
    """float32 ``[recordings, 1, 64, 64]``."""
    image_of: Tensor
    recording_of: Tensor
    y: Tensor
    split: Tensor
    """int64 ``[n]``, like the three before it: 0 train, 1 validation, 2 test, 3 none."""
    second: Tensor
    """int64 ``[recordings]``: the recording mixed into each."""


def read(paths: Mapping[str, Path]) -> Sources:
    """The files as tensors."""
    pictures, numbered, sounds = (paths[name] for name in FILES)
    images, labels = _idx(pictures, 3), _idx(numbered, 1)
    inputs.numbers(images, pictures, (None, 28, 28))
    inputs.same_length({str(pictures): len(images), str(numbered): len(labels)})
    digits = inputs.integers(labels, numbered, "digit", 0, DIGITS)
    with inputs.reading(sounds), np.load(sounds) as packed:
        audio, offsets = packed["audio"], packed["offsets"]
        bounds = {"digit": DIGITS, "speaker": SPEAKERS, "index": TAKES}
        labelled = [inputs.integers(packed[name], f"{sounds}: {name}", name, 0, bounds[name]) for name in bounds]
    _check_clips(audio, offsets, sounds)
    lengths = dict(zip((f"{sounds}: {name}" for name in bounds), map(len, labelled), strict=True))
    inputs.same_length({f"{sounds}: offsets without the last": len(offsets) - 1, **lengths})
    clips = np.zeros((len(offsets) - 1, SAMPLES), dtype=np.float32)
    for row, (start, end) in enumerate(pairwise(offsets)):
        clip = audio[start : min(end, start + SAMPLES)]
        clips[row, : len(clip)] = clip / 2**15
    return Sources(
        torch.from_numpy(images / np.float32(255)),
        torch.from_numpy(digits),
        torch.from_numpy(clips),
        *map(torch.from_numpy, labelled),
    )


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an IDX file: after 0, 0, 8 and the number of dimensions come these, big-endian, and the values."""
    with inputs.reading(path), gzip.open(path) as stream:
        content = stream.read()
        header = np.frombuffer(content, ">u4", 1 + dimensions)
        if header[0] != 0x800 + dimensions:
            raise ValueError(f"it is no IDX file of bytes in {dimensions} dimensions")
        return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(header[1:].tolist())


def _check_clips(audio: np.ndarray, offsets: np.ndarray, path: Path) -> None:
    """Raise :class:`DataError` unless the recordings lie one after another in 16-bit samples, none empty or silent."""
    if audio.dtype != np.int16 or audio.ndim != 1:
        raise DataError(f"{path}: audio is {audio.dtype} of shape {list(audio.shape)}, not one row of 16-bit samples.")
    offsets = inputs.integers(offsets, f"{path}: offsets", "offset", 0, len(audio) + 1)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(audio):
        raise DataError(f"{path}: offsets do not go from 0 to the {len(audio)} samples of audio.")
    empty = np.diff(offsets) < 1
    if empty.any():
        raise DataError(f"{path}: offsets, row {empty.argmax()}: the recording has no sample.")
    silent = np.maximum.reduceat(audio != 0, offsets[:-1]) == 0
    if silent.any():
        raise DataError(f"{path}: recording {silent.argmax()} is silent.")


def build(sources: Sources, options: PairData, seed: int, pooled_split: Callable[[int], Tensor]) -> DigitPairs:
    """Pairs, split and views for one run seed; ``pooled_split(n)`` splits the pooled pairs of ``paper_like``."""
    generator = torch.Generator().manual_seed(axis(seed, "split"))
    count = len(sources.images)
    group_of_recording, pool = recording_groups(sources, options, seed)
    order = torch.randperm(count, generator=generator)
    if options.protocol == "paper_like":
        split, partners = pooled_split(count), torch.zeros(count, dtype=torch.int64)
        image_of = torch.arange(count)
    else:
        train, val = int(count * 0.6), int(count * 0.8)
        parts = (order[:train][: options.pairs], order[train:val][: options.validation_pairs], order[val:])
        image_of = torch.cat(parts)
        split = torch.cat([torch.full((len(part),), group) for group, part in enumerate(parts)])
        partners = split
    y = sources.image_digits[image_of]
    recording_of = _partners(y, partners, sources.digits, group_of_recording, generator)
    mixed, second = _mixed(sources, pool, group_of_recording, generator)
    images = starved(sources.images, sources.images[image_of[split == TRAIN]], options.components)
    return DigitPairs(images[:, None], log_mel(mixed)[:, None], image_of, recording_of, y, split, second)


def recording_groups(sources: Sources, options: PairData, seed: int) -> tuple[Tensor, Tensor]:
    """For each recording the split that may show it, and the group that second voices are drawn from.

    A second voice for a recording of group g is of ``pool`` g; the two differ only where a speaker is held out.
    """
    if options.protocol == "paper_like":
        return torch.zeros_like(sources.takes), torch.zeros_like(sources.takes)
    by_take = torch.where(sources.takes < 5, TEST, torch.where(sources.takes < 10, VAL, TRAIN))
    if options.protocol == "clean":
        return by_take, by_take
    speaker = seed % SPEAKERS if options.speaker is None else options.speaker
    held_out = sources.speakers == speaker
    group = torch.where(held_out, TEST, torch.where(by_take == TEST, -1, by_take))
    pool = torch.where(held_out, -1, by_take)
    return group, pool


def _partners(y: Tensor, part: Tensor, digits: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """A random recording of the same digit and part for every image, int64 ``[n]``."""
    chosen = torch.empty_like(y)
    for group in sorted(set(part.tolist())):
        for digit in range(DIGITS):
            wanted = ((y == digit) & (part == group)).nonzero().flatten()
            there = ((digits == digit) & (groups == group)).nonzero().flatten()
            if not len(there):
                raise DataError(f"avdigits has no recording of digit {digit} for split {group} ({PARTS}).")
            chosen[wanted] = there[torch.randint(len(there), (len(wanted),), generator=generator)]
    return chosen


def _mixed(sources: Sources, pool: Tensor, groups: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every recording with another speaker's beneath it, ``[recordings, 8000]``, and which one.

    The second voice is weaker by 0…10 dB, uniform, measured over all samples.
    """
    second = torch.empty_like(groups)
    for group in sorted(set(groups.tolist())):
        for speaker in range(SPEAKERS):
            mine = ((groups == group) & (sources.speakers == speaker)).nonzero().flatten()
            wanted = TEST if group == -1 else group
            others = ((pool == wanted) & (sources.speakers != speaker)).nonzero().flatten()
            if not len(others):
                raise DataError(f"avdigits has no second voice for speaker {speaker} in split {group} ({PARTS}).")
            second[mine] = others[torch.randint(len(others), (len(mine),), generator=generator)]
    decibels = 10 * torch.rand(len(second), generator=generator)
    voice, other = sources.recordings, sources.recordings[second]
    power = voice.square().mean(dim=1) / other.square().mean(dim=1).clamp(min=1e-12)
    return voice + other * (power / 10 ** (decibels / 10)).sqrt()[:, None], second


def starved(images: Tensor, fitted: Tensor, components: int) -> Tensor:
    """``images`` ``[n, 28, 28]`` seen through the first principal components of ``fitted``, each scaled to [0, 1]."""
    flat, basis_of = images.flatten(1), fitted.flatten(1).double()
    mean = basis_of.mean(dim=0)
    centred = basis_of - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis = vectors[:, -components:].float()
    kept = (flat - mean.float()) @ basis @ basis.T + mean.float()
    low, high = kept.amin(dim=1, keepdim=True), kept.amax(dim=1, keepdim=True)
    scaled: Tensor = (kept - low) / (high - low).clamp(min=1e-12)
    return scaled.view_as(images)


def log_mel(samples: Tensor) -> Tensor:
    """Log-mel pictures ``[n, 64 mels, 64 frames]`` of ``samples`` ``[n, 8000]``, each scaled to [0, 1]."""
    filters = torch.from_numpy(mel_filter_bank(FFT // 2 + 1, MELS, 0.0, 4000.0, 8000)).float().T
    window, pictures = torch.hann_window(FFT), []
    for some in torch.split(samples, 500):
        spectrum = torch.stft(some, FFT, HOP, window=window, center=True, return_complex=True)[..., :-1]
        mel = torch.log(filters @ spectrum.abs().square() + FLOOR)
        low, high = mel.amin(dim=(1, 2), keepdim=True), mel.amax(dim=(1, 2), keepdim=True)
        pictures.append((mel - low) / (high - low).clamp(min=1e-12))
    return torch.cat(pictures)
