"""Splits drawn from a run's seed: every image of a domain may be trained on, validated on or tested on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdbench.engine.seeds import axis
from kdbench.errors import DataError
from kdbench.families.detection.domain_adaptation.data import Annotated, Domains, Images

SOURCE_SHARES = (3, 1)
"""Training and validation."""
TARGET_SHARES = (3, 1, 3)
"""Training, validation and test."""


def drawn(pair: Domains, labelled: Annotated, seed: int) -> tuple[Domains, Annotated]:
    """The pair with the split of a seed, and the target's training images with their labels, for the oracle alone.

    ``labelled`` are the training images of the pair with their labels. A target that is validated on source images is
    here validated on its own. Raises :class:`DataError` for a part without a box.
    """
    of_target = [labelled, *([] if pair.target_val is pair.source_val else [pair.target_val]), pair.target_test]
    generator = torch.Generator().manual_seed(axis(seed, "split"))
    source_train, source_val = _parts([pair.source_train, pair.source_val], SOURCE_SHARES, generator)
    target_train, target_val, target_test = _parts(of_target, TARGET_SHARES, generator)
    labelled_parts = (source_train, source_val, target_val, target_test)
    for name, part in zip(("source_train", "source_val", "target_val", "target_test"), labelled_parts, strict=True):
        if not any(len(one.labels) for one in part.truth):
            raise DataError(f"{pair.name}: the {len(part)} images that seed {seed} draws for {name} have no box.")
    mine = Domains(
        pair.name, pair.classes, source_train, source_val, target_train.images, target_val, target_test, pair.sha256
    )
    return mine, target_train


def _parts(pools: Sequence[Annotated], shares: Sequence[int], generator: torch.Generator) -> list[Annotated]:
    """All images of the pools, drawn into parts in the ratio of ``shares``; the last takes what rounding leaves."""
    names = [name for pool in pools for name in pool.images.names]
    sources = [source for pool in pools for source in pool.images.sources]
    truth = [one for pool in pools for one in pool.truth]
    order = torch.randperm(len(names), generator=generator).tolist()
    parts, begin = list[Annotated](), 0
    for number in range(1, len(shares) + 1):
        end = len(order) * sum(shares[:number]) // sum(shares)
        rows = order[begin:end]
        images = Images(tuple(names[row] for row in rows), [sources[row] for row in rows], pools[0].images.scale)
        parts.append(Annotated(images, [truth[row] for row in rows]))
        begin = end
    return parts
