"""Data of the detection family: generated shapes, blood cells, published pairs, batches; and what is kept from arms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.errors import DataError, UsageError
from kdbench.families.detection.domain_adaptation import coco, domains, voc
from kdbench.families.detection.domain_adaptation.data import (
    Annotated,
    Batch,
    Images,
    LabelledBatch,
    Scale,
    collate,
    loaders,
)
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.options import AdaptationData
from kdbench.plan import datasets

WritePair = Callable[[Path, str], None]
CELLS = "txl_pbc_domains"
TINY = AdaptationData(short_side=64, long_side=64, source_images=8, target_images=6)
SMALL = AdaptationData(short_side=192, long_side=192)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for cached in (domains.load, domains.hidden):
        cached.cache_clear()
    yield
    for cached in (domains.load, domains.hidden):
        cached.cache_clear()


def tensors(thing: Any, seen: set[int] | None = None) -> Iterator[Truth]:
    """Every set of boxes that can be reached from an object."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Truth):
        yield thing
    elif isinstance(thing, dict):
        yield from (one for value in thing.values() for one in tensors(value, seen))
    elif isinstance(thing, list | tuple):
        yield from (one for value in thing for one in tensors(value, seen))
    elif hasattr(thing, "__dict__"):
        yield from tensors(vars(thing), seen)


@pytest.mark.parametrize("name", ["stained_shapes", CELLS])
def test_what_an_arm_trains_on_has_no_boxes(name: str, request: pytest.FixtureRequest) -> None:
    if name == CELLS:
        request.getfixturevalue("real_data")
    options = TINY if name == "stained_shapes" else SMALL
    pair = domains.load(name, options)
    given = loaders(pair.target_train, pair.target_val, pair.target_test, 2, 0)
    assert list(tensors(pair.target_train)) == []
    batch = next(iter(given.train_dataloader()))
    assert type(batch) is Batch and list(tensors(batch)) == []
    labelled = domains.hidden(name, options)
    assert labelled.images.names == pair.target_train.names and len(list(tensors(labelled))) == len(labelled)
    held = {tuple(one.boxes.flatten().tolist()) for one in tensors(pair)}
    assert held.isdisjoint(tuple(one.boxes.flatten().tolist()) for one in labelled.truth if len(one.boxes))


def test_shapes_are_the_same_at_every_reading_and_differ_between_splits() -> None:
    first = domains.load("stained_shapes", TINY)
    domains.load.cache_clear()
    again = domains.load("stained_shapes", TINY)
    assert first.sha256 == again.sha256 and first.split_sha256 == again.split_sha256
    assert domains.load("stained_shapes", replace(TINY, shift=0.1)).sha256 != first.sha256
    parts = [first.source_train, first.source_val, first.target_val, first.target_test]
    images = [np.asarray(one).tobytes() for part in parts for one in part.images.sources]
    images += [np.asarray(one).tobytes() for one in first.target_train.sources]
    assert len(images) == len(set(images)) == 8 + 2 + 3 + 3 + 6
    labels = torch.cat([one.labels for one in first.source_train.truth])
    assert set(labels.tolist()) == {0, 1, 2}
    for one in first.source_train.truth:
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all() and one.boxes.min() >= 0 and one.boxes.max() <= 64


def test_the_target_domain_is_stained() -> None:
    pair = domains.load("stained_shapes", TINY)
    source, target = (
        np.mean([np.asarray(one).mean(axis=(0, 1)) for one in part.images.sources], axis=0)
        for part in (pair.source_train, pair.target_test)
    )
    assert np.abs(source - target).max() > 10


def test_blood_cells_have_the_published_counts(real_data: Path) -> None:
    pair = domains.load(CELLS, SMALL)
    labelled = domains.hidden(CELLS, SMALL)
    parts = {"train": pair.source_train, "val": pair.source_val, "target": labelled}
    parts |= {"target val": pair.target_val, "target test": pair.target_test}
    counted = {
        name: torch.cat([one.labels for one in part.truth]).bincount(minlength=3).tolist()
        for name, part in parts.items()
    }
    assert pair.classes == ("WBC", "RBC", "Platelets")
    assert [len(part) for part in parts.values()] == [150, 71, 200, 50, 100]
    assert counted["train"] == [158, 3505, 162] and counted["val"] == [73, 1625, 84]
    assert counted["target"] == [211, 3234, 138]
    assert [a + b for a, b in zip(counted["target val"], counted["target test"], strict=True)] == [163, 2526, 112]


def test_no_blood_cell_image_is_in_two_splits(real_data: Path) -> None:
    pair = domains.load(CELLS, SMALL)
    parts = [pair.source_train.images, pair.source_val.images, pair.target_train]
    parts += [pair.target_val.images, pair.target_test.images]
    names = [name for part in parts for name in part.names]
    assert len(set(names)) == len(names) == 571


def test_boxes_are_scaled_with_their_images(real_data: Path) -> None:
    pair = domains.load(CELLS, SMALL)
    batch = collate(pair.source_train, [0, 3])
    assert isinstance(batch, LabelledBatch) and batch.images.shape == (2, 3, 160, 192)
    assert batch.sizes.tolist() == [[144, 192]] * 2 and not batch.images[:, :, 144:].any()
    wanted = pair.source_train.truth[3].boxes * 192 / 320
    torch.testing.assert_close(batch.truth[1].boxes, wanted)


def test_other_images_than_the_published_ones_are_refused(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "detection" / "txl_pbc_domains"
    shutil.copytree(real_data / "detection" / "txl_pbc_domains", home)
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    path = next(iter(sorted((home / "pbc" / "images").glob("*.jpg"))))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match="not those that its boxes were drawn on"):
        domains.load(CELLS, SMALL)
    (home / "pbc" / "test.json").write_text("{}")
    with pytest.raises(DataError, match="corrupt"):
        domains.load(CELLS, SMALL)


def test_unknown_data_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'stained_shapes'"):
        domains.load("stain_shapes", TINY)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((240, 320), (144, 192)), ((1024, 2048), (96, 192)), ((10, 10), (192, 192)), ((1, 900), (1, 192))],
)
def test_sizes_keep_the_aspect_ratio(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert Scale(192, 192).of(*size) == wanted
    assert Scale(600, 1333).of(1024, 2048) == (600, 1200) and Scale(600, 1333).of(400, 1600) == (333, 1333)


def test_images_and_boxes_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="1 images have 0 sets of boxes"):
        Annotated(Images(("a",), [np.zeros((4, 4, 3), np.uint8)], Scale(4, 4)), [])


def test_the_training_order_depends_on_seed_and_epoch() -> None:
    pair = domains.load("stained_shapes", TINY)

    def order(seed: int, epoch: int) -> list[int]:
        loader = loaders(pair.target_train, pair.target_val, pair.target_test, 2, seed).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [row for batch in loader for row in batch.rows.tolist()]  # type: ignore[attr-defined]

    assert order(0, 0) == order(0, 0) and sorted(order(0, 0)) == list(range(6))
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


PAIRS = [name for name, one in datasets.datasets().items() if one.reader == "voc"]


@pytest.mark.parametrize("name", PAIRS)
def test_published_pairs_are_read_in_vocs_layout(name: str, published: Path, write_pair: WritePair) -> None:
    root = published / datasets.dataset(name).folder
    write_pair(root, name)
    options = AdaptationData(short_side=120, long_side=1333)
    pair = domains.load(name, options)
    assert pair.classes == datasets.reading_options(datasets.dataset(name)).classes
    assert len(pair.source_train) == 3 * len(datasets.reading_options(datasets.dataset(name)).source_train)
    assert [len(part) for part in (pair.source_val, pair.target_train, pair.target_test)] == [3, 3, 3]
    one = pair.source_train.truth[0]
    assert one.boxes.tolist() == [[10, 20, 30, 40]] and one.labels.tolist() == [len(pair.classes) - 1]
    batch = collate(pair.target_test, [0])
    assert isinstance(batch, LabelledBatch) and batch.sizes.tolist() == [[120, 160]]
    assert batch.truth[0].boxes.tolist() == [[20, 40, 60, 80]]
    assert len(domains.hidden(name, options)) == 3


def test_the_targets_training_annotations_may_be_missing(published: Path, write_pair: WritePair) -> None:
    """Nothing but the oracle opens them."""
    root = published / datasets.dataset("voc_watercolor").folder
    write_pair(root, "voc_watercolor")
    for path in (root / "watercolor" / "Annotations").glob("train_*.xml"):
        path.unlink()
    options = AdaptationData()
    assert len(domains.load("voc_watercolor", options).target_train) == 3
    with pytest.raises(DataError, match=r"train_0\.xml is missing"):
        domains.hidden("voc_watercolor", options)


def test_a_changed_annotation_changes_the_fingerprint(published: Path, write_pair: WritePair) -> None:
    root = published / datasets.dataset("voc_clipart").folder
    write_pair(root, "voc_clipart")
    before = domains.load("voc_clipart", AdaptationData()).sha256
    path = root / "clipart" / "Annotations" / "test_1.xml"
    path.write_text(path.read_text().replace(">30<", ">31<"))
    domains.load.cache_clear()
    assert domains.load("voc_clipart", AdaptationData()).sha256 != before


def test_what_is_wrong_in_vocs_layout_is_named(published: Path, write_pair: WritePair) -> None:
    with pytest.raises(DataError, match=r"'voc_clipart' is not here .*beside one another"):
        domains.load("voc_clipart", AdaptationData())
    root = published / datasets.dataset("voc_clipart").folder
    write_pair(root, "voc_clipart")
    (root / "VOC2007" / "JPEGImages" / "test_0.jpg").unlink()
    with pytest.raises(DataError, match="test_0 is missing, as"):
        domains.load("voc_clipart", AdaptationData())
    (root / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").unlink()
    with pytest.raises(DataError, match=r"trainval\.txt is missing"):
        domains.load("voc_clipart", AdaptationData())


def test_an_image_without_objects_has_empty_boxes(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<annotation><filename>x</filename></annotation>")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    one = voc.read_xml(
        tmp_path / "x.xml", tmp_path / "x.png", datasets.reading_options(datasets.dataset("voc_clipart"))
    )
    assert one.boxes.shape == (0, 4) and one.labels.shape == (0,)
    assert coco.truth_of([], []).boxes.shape == (0, 4)


def test_the_training_labels_are_not_read_from_the_blood_cells_file(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same domains come out when the annotations of pbc/train.json are another's."""
    wanted = domains.load(CELLS, SMALL)
    domains.load.cache_clear()
    paths, _ = datasets.fetch(datasets.dataset(CELLS))
    content = json.loads(paths["pbc/train.json"].read_text())
    del content["annotations"]
    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: json.dumps(content) if self == paths["pbc/train.json"] else read(self, *a, **k),
    )
    loaded = domains.load(CELLS, SMALL)
    assert loaded.sha256 == wanted.sha256 and loaded.target_train.names == wanted.target_train.names
    with pytest.raises(DataError, match=r"pbc/train\.json: 'annotations' is missing"):
        domains.hidden(CELLS, SMALL)


def test_the_inventory_knows_sets_without_listed_files(published: Path, write_pair: WritePair) -> None:
    info = datasets.dataset("voc_clipart")
    assert datasets.inventory(info)["state"] == "missing"
    write_pair(published / info.folder, "voc_clipart")
    assert datasets.inventory(info)["state"] == "present"
    assert datasets.inventory(datasets.dataset("stained_shapes"))["state"] == "generated"
