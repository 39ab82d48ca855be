"""Splits drawn from the seed of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.errors import DataError
from kdbench.families.detection.domain_adaptation import domains
from kdbench.families.detection.domain_adaptation.data import Annotated, Domains, Images, Scale
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.options import AdaptationData
from kdbench.families.detection.domain_adaptation.splits import drawn
from kdbench.plan.config import expand

CELLS = "txl_pbc_domains"
SEEDED = AdaptationData(short_side=64, long_side=64, source_images=8, target_images=6, split="seed")


def part(name: str, count: int, boxes: int = 1) -> Annotated:
    """Images whose one box and whose pixels say which they are."""
    numbers = [sum(map(ord, name)) * 100 + row for row in range(count)]
    images = Images(
        tuple(f"{name}{row}" for row in range(count)),
        [np.full((4, 4, 3), number % 256, dtype=np.uint8) for number in numbers],
        Scale(4, 4),
    )
    truth = [Truth(torch.full((boxes, 4), float(number)), torch.zeros(boxes, dtype=torch.int64)) for number in numbers]
    return Annotated(images, truth)


def pair(validated_on_source: bool = False, boxes: int = 1) -> tuple[Domains, Annotated]:
    source_train, source_val, labelled = part("s", 9), part("t", 3), part("u", 5)
    target_val = source_val if validated_on_source else part("v", 3)
    parts = (source_train, source_val, labelled.images, target_val, part("w", 6, boxes))
    return Domains("x", ("a",), *parts, sha256="0"), labelled


def names(*parts: Images | Annotated) -> list[str]:
    return [name for one in parts for name in (one.images if isinstance(one, Annotated) else one).names]


def test_a_split_is_drawn_of_all_images_of_a_domain_each_with_its_boxes() -> None:
    before, labelled = pair()
    after, mine = drawn(before, labelled, 7)
    assert sorted(names(after.source_train, after.source_val)) == sorted(names(before.source_train, before.source_val))
    targets = names(after.target_train, after.target_val, after.target_test)
    assert sorted(targets) == sorted(names(labelled, before.target_val, before.target_test))
    assert [len(one) for one in (after.source_train, after.source_val)] == [9, 3]
    assert [len(one) for one in (after.target_train, after.target_val, after.target_test)] == [6, 2, 6]
    assert mine.images.names == after.target_train.names and isinstance(after.target_train, Images)
    for one in (after.source_train, after.source_val, mine, after.target_val, after.target_test):
        for name, source, truth in zip(one.images.names, one.images.sources, one.truth, strict=True):
            number = ord(name[0]) * 100 + int(name[1:])
            assert truth.boxes.flatten().tolist() == [number] * 4
            assert isinstance(source, np.ndarray) and (source == number % 256).all()


def test_a_seed_draws_one_split_and_another_seed_another() -> None:
    before, labelled = pair()
    one, again, other = (drawn(before, labelled, seed)[0].split_sha256 for seed in (1, 1, 2))
    assert one == again != other


def test_a_target_that_is_validated_on_the_source_is_then_validated_on_its_own_images() -> None:
    before, labelled = pair(validated_on_source=True)
    after, _ = drawn(before, labelled, 0)
    assert {name[0] for name in names(after.target_train, after.target_val, after.target_test)} == {"u", "w"}
    assert sorted(names(after.source_train, after.source_val)) == sorted(names(before.source_train, before.source_val))


def test_a_part_without_a_box_is_refused() -> None:
    before, labelled = pair(boxes=0)
    empty = replace(labelled, truth=[Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * len(labelled))
    bare = replace(before, target_val=replace(before.target_val, truth=empty.truth[:3]))
    with pytest.raises(DataError, match="x: the 2 images that seed 3 draws for target_val have no box"):
        drawn(bare, empty, 3)


def test_a_run_takes_the_split_that_its_options_say() -> None:
    fixed = replace(SEEDED, split="fixed")
    assert domains.of_run("stained_shapes", fixed, 5) == domains.load("stained_shapes", fixed)
    mine = domains.of_run("stained_shapes", SEEDED, 5)
    assert mine.split_sha256 != domains.of_run("stained_shapes", SEEDED, 6).split_sha256
    assert domains.hidden_of_run("stained_shapes", SEEDED, 5).images.names == mine.target_train.names


def test_a_record_of_the_fixed_split_keeps_its_hash() -> None:
    (fixed,) = expand(["task=domain_adaptation", "method=alone"])
    (same,) = expand(["task=domain_adaptation", "method=alone", "data.split=fixed"])
    (other,) = expand(["task=domain_adaptation", "method=alone", "data.split=seed"])
    assert "split" not in fixed.to_json()["data"] and fixed.hash == same.hash != other.hash


def test_no_blood_cell_image_is_in_two_drawn_splits(real_data: Path) -> None:
    options = AdaptationData(short_side=192, long_side=192, split="seed")
    for seed in (0, 1):
        one = domains.of_run(CELLS, options, seed)
        parts = (one.source_train, one.source_val, one.target_train, one.target_val, one.target_test)
        assert [len(part) for part in parts] == [165, 56, 150, 50, 150]
        assert len(set(names(*parts))) == 571
