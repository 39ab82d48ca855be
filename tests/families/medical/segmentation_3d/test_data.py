"""Data sets: facts of the real one where it is here, small ones in the layout of those that are not, and views."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from kdbench.engine.runner import Outcome
from kdbench.errors import DataError, UsageError
from kdbench.families.medical.segmentation_3d import data, nifti
from kdbench.families.medical.segmentation_3d.options import VolumeData
from kdbench.families.medical.segmentation_3d.volumes import Views, centred, randomised, volume_loaders
from kdbench.plan import datasets

EVERYTHING = VolumeData(train_volumes=None)


def write(path: Path, values: np.ndarray, zooms: tuple[float, ...] = (1, 1, 1), flip: bool = False) -> None:
    affine = np.diag([-zooms[0] if flip else zooms[0], *zooms[1:], 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    data.load.cache_clear()
    yield tmp_path / "medical"
    data.load.cache_clear()


# generated volumes


def test_shapes_are_the_same_twice_and_keep_to_their_options() -> None:
    options = VolumeData(train_volumes=None, shapes=16, size=12, noise=0.0)
    one, again = data.read("shapes", options), data.read("shapes", options)
    assert one.sha256 == again.sha256 != data.read("shapes", VolumeData(train_volumes=None, shapes=16, size=12)).sha256
    assert [len(one.cases[split]) for split in ("train", "val", "test")] == [8, 4, 4]
    for name in one.cases["train"]:
        image, label = one.read(name)
        assert image.shape == label.shape == (1, 12, 12, 12) and set(label.unique().tolist()) == {0, 1, 2}
        means = [image[label == number].unique() for number in range(3)]
        assert all(len(mean) == 1 for mean in means) and means[0] < means[1] < means[2]


def test_a_drawn_split_is_the_seeds_own_and_as_large_as_the_fixed_one() -> None:
    fixed, *drawn = (
        data.read("shapes", VolumeData(train_volumes=6, shapes=16, size=12, split=split), seed)
        for split, seed in (("fixed", 0), ("drawn", 0), ("drawn", 1), ("drawn", 0))
    )
    assert drawn[0].split_sha256 == drawn[2].split_sha256 and drawn[0].sha256 == fixed.sha256
    assert len({one.split_sha256 for one in (fixed, *drawn)}) == 3
    for one in drawn:
        parts = [set(one.cases[split]) for split in ("train", "val", "test")]
        assert [len(part) for part in parts] == [6, 4, 4] and len(set().union(*parts)) == 14
        assert one.names == fixed.names and set().union(*parts) < set(one.names)
    again = data.read("shapes", VolumeData(train_volumes=6, shapes=16, size=12), 1)
    assert again.split_sha256 == fixed.split_sha256


# the real selection


def test_hippocampus_is_the_published_selection(real_data: Path) -> None:
    volumes = data.read("msd_hippocampus", EVERYTHING)
    names = [name for split in ("train", "val", "test") for name in volumes.cases[split]]
    assert [len(volumes.cases[split]) for split in ("train", "val", "test")] == [80, 16, 24]
    assert len(set(names)) == 120 and names == sorted(names)
    assert volumes.sha256 == datasets.reading_options(datasets.dataset("msd_hippocampus")).sha256
    for name in (names[0], names[60], names[119]):
        image, label = volumes.read(name)
        assert image.shape == label.shape and label.unique().tolist() == [0, 1, 2]
        assert image.mean().item() == pytest.approx(0, abs=1e-5) and image.std().item() == pytest.approx(1, rel=1e-3)
        assert image.abs().max() < 8
        assert all(31 <= size <= 58 or 27 <= size <= 44 for size in image.shape[1:])


def test_training_volumes_are_the_first_of_the_split(real_data: Path) -> None:
    few, every = data.read("msd_hippocampus", VolumeData(train_volumes=16)), data.read("msd_hippocampus", EVERYTHING)
    assert few.cases["train"] == every.cases["train"][:16] and few.cases["test"] == every.cases["test"]
    assert few.split_sha256 != every.split_sha256 and few.sha256 == every.sha256
    with pytest.raises(UsageError, match=r"80 training volumes: data\.train_volumes=81"):
        data.read("msd_hippocampus", VolumeData(train_volumes=81))


def test_a_changed_or_missing_volume_is_noticed(real_data: Path, home: Path) -> None:
    copy = home / "msd_hippocampus"
    shutil.copytree(real_data / "medical/msd_hippocampus", copy)
    data.read("msd_hippocampus", EVERYTHING)
    shutil.copy(copy / "images/hippocampus_001.nii.gz", copy / "images/hippocampus_003.nii.gz")
    with pytest.raises(DataError, match="not the published selection"):
        data.read("msd_hippocampus", EVERYTHING)
    (copy / "labels/hippocampus_003.nii.gz").unlink()
    with pytest.raises(DataError, match=r"lacks labels/hippocampus_003\.nii\.gz"):
        data.read("msd_hippocampus", EVERYTHING)
    (copy / "splits.json").write_text("{}")
    with pytest.raises(DataError, match="is corrupt"):
        data.read("msd_hippocampus", EVERYTHING)


@pytest.mark.parametrize("name", ["msd_hippocampus", "msd_task01", "msd_task04", "mmwhs"])
def test_missing_data_is_named_with_what_to_do(name: str, home: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}.*medical/.*KDBENCH_DATA"):
        data.load(name, EVERYTHING, 0)
    assert datasets.inventory(datasets.dataset(name))["state"] == "missing"


# Decathlon folders


def decathlon(folder: Path, count: int, channels: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    pairs, images = [], []
    for number in range(count):
        shape = (10, 11, 12) if channels == 1 else (10, 11, 12, channels)
        images.append(rng.normal(size=shape).astype(np.float32) * 100 + number)
        label = rng.integers(3 if channels == 1 else 4, size=(10, 11, 12)).astype(np.uint8)
        pair = {"image": f"./imagesTr/case_{number:03d}.nii.gz", "label": f"./labelsTr/case_{number:03d}.nii.gz"}
        write(folder / pair["image"], images[-1])
        write(folder / pair["label"], label)
        pairs.append(pair)
    (folder / "dataset.json").write_text(json.dumps({"training": pairs[::-1]}))
    return images


def test_a_decathlon_folder_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = decathlon(home / "Task04_Hippocampus", 8)
    with pytest.raises(DataError, match="8 volumes: 30 for validation and 60 for the test"):
        data.load("msd_task04", EVERYTHING, 0)
    real = data.released_split
    monkeypatch.setattr(data, "released_split", lambda names, val, test: real(names, 2, 3))
    volumes = data.load("msd_task04", EVERYTHING, 0)
    assert list(volumes.cases["test"]) == [f"case_{number:03d}.nii.gz" for number in (5, 6, 7)]
    assert datasets.inventory(datasets.dataset("msd_task04"))["state"] == "present"
    image, label = volumes.read("case_004.nii.gz")
    low, high = images[4].min(), images[4].max()
    np.testing.assert_allclose(image[0].numpy(), (images[4] - low) / (high - low), atol=1e-6)
    assert image.shape == label.shape == (1, 10, 11, 12) and label.dtype == torch.int64


def test_four_modalities_become_channels_as_they_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = decathlon(home / "Task01_BrainTumour", 4, channels=4)
    real = data.released_split
    monkeypatch.setattr(data, "released_split", lambda names, val, test: real(names, 1, 1))
    volumes = data.load("msd_task01", VolumeData(train_volumes=None, in_memory=False), 0)
    image, _ = volumes.read("case_001.nii.gz")
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(images[1], -1, 0))
    assert volumes.channels == 4 and len(volumes.classes) == 4
    assert volumes.read("case_001.nii.gz")[0] is not image


def test_the_released_split_is_sorted_then_shuffled_with_seed_0() -> None:
    import random

    names = [f"v{number:03d}" for number in range(260)]
    split = data.released_split(names[::-1], 30, 60)
    rest = names[:200]
    random.Random(0).shuffle(rest)
    assert split == {"train": rest[:170], "val": rest[170:], "test": names[200:]}


def changed(path: str, change: Callable[[np.ndarray], Any], shift: float = 0.0) -> Callable[[Path], None]:
    """``f(folder)`` writes a volume again with other voxels, ``shift`` mm from where it was."""

    def write_again(folder: Path) -> None:
        image = nibabel.load(folder / path)
        values, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine.copy()
        affine[0, 3] += shift
        nibabel.save(nibabel.Nifti1Image(np.asarray(change(values)), affine), folder / path)

    return write_again


def listed(**more: Any) -> Callable[[Path], None]:
    """``f(folder)`` changes entries of dataset.json."""

    def write_again(folder: Path) -> None:
        index = folder / "dataset.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), **more}))

    return write_again


def at(place: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def put(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return put


def cut(path: str, share: float) -> Callable[[Path], None]:
    """``f(folder)`` keeps the first part of a file."""

    def truncate(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: int(share * len(data))])

    return truncate


def flipped(path: str) -> Callable[[Path], None]:
    """``f(folder)`` flips a bit in the middle of a file."""

    def flip(folder: Path) -> None:
        data = bytearray((folder / path).read_bytes())
        data[len(data) // 2] ^= 4
        (folder / path).write_bytes(data)

    return flip


def flattened(folder: Path) -> None:
    """The header of a label places all of it in one plane."""
    data = bytearray(gzip.decompress((folder / LABEL).read_bytes()))
    data[280:296] = bytes(16)  # srow_x
    (folder / LABEL).write_bytes(gzip.compress(data))


IMAGE, LABEL = "imagesTr/case_001.nii.gz", "labelsTr/case_001.nii.gz"
PAIRS = [{"image": f"imagesTr/case_00{n}.nii.gz", "label": f"labelsTr/case_00{n}.nii.gz"} for n in (0, 1, 1)]
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a list of other things": (lambda folder: (folder / "dataset.json").write_text("{}"), "does not list pairs"),
    "a cut list": (cut("dataset.json", 0.5), r"dataset\.json does not list pairs"),
    "a list of texts": (listed(training=["a", "b"]), "does not list pairs"),
    "a pair without a label": (listed(training=[{"image": "a"}]), "does not list pairs.*label"),
    "a pair twice": (listed(training=PAIRS), r"dataset\.json lists case_001\.nii\.gz more than once"),
    "other classes": (
        listed(labels={"0": "background", "1": "Liver", "2": "Posterior"}),
        r"dataset\.json calls the labels .*Liver.*, but the task's classes are .*anterior",
    ),
    "classes in another order": (
        listed(labels={"0": "background", "2": "Anterior", "1": "Posterior"}),
        "calls the labels",
    ),
    "a class too many": (listed(labels={"0": "background", "1": "Anterior", "2": "Posterior", "3": "x"}), "calls"),
    "a missing image": (lambda folder: (folder / IMAGE).unlink(), f"lacks ./{IMAGE}"),
    "a missing label": (lambda folder: (folder / LABEL).unlink(), f"lacks ./{LABEL}"),
    "other voxels": (lambda folder: write(folder / IMAGE, np.ones((10, 11, 12)), (1, 1, 2)), f"{IMAGE}.*2.0] mm"),
    "no NIfTI": (lambda folder: (folder / IMAGE).write_bytes(b"no"), f"{IMAGE} cannot be read"),
    "an empty file": (lambda folder: (folder / IMAGE).write_bytes(b""), f"{IMAGE} cannot be read"),
    "a cut image": (cut(IMAGE, 0.5), f"{IMAGE} cannot be read"),
    "a cut label": (cut(LABEL, 0.9), f"{LABEL} cannot be read"),
    "a flipped bit": (flipped(IMAGE), f"{IMAGE} cannot be read"),
    "a place without extent": (flattened, f"{LABEL} cannot be read"),
    "NaN": (changed(IMAGE, at((2, 3, 4), np.nan)), rf"{IMAGE} has 1 voxels.*not finite, the first at \[2, 3, 4\]"),
    "infinity": (changed(IMAGE, at((0, 0, 0), -np.inf)), f"{IMAGE} has 1 voxels.*not finite"),
    "a constant image": (changed(IMAGE, np.zeros_like), f"{IMAGE} is 0 everywhere"),
    "channels": (changed(IMAGE, lambda values: np.stack([values] * 2, axis=-1)), f"{IMAGE} has 2 channels, not 1"),
    "a plane": (changed(IMAGE, lambda values: values[:, :, 0]), IMAGE),
    "another shape": (
        changed(LABEL, lambda values: values[:, :, :9]),
        rf"{IMAGE} is of shape \[10, 11, 12\], but its label .*{LABEL} of \[10, 11, 9\]",
    ),
    "another place": (
        changed(LABEL, lambda values: values, shift=8),
        f"{IMAGE} and its label .*{LABEL} lie 8 mm apart",
    ),
    "halves": (changed(LABEL, lambda values: values + 0.5), f"{LABEL}: 1320 voxels.*classes 0…2"),
    "counted from 1": (changed(LABEL, lambda values: values + 1), rf"{LABEL}: .*classes 0…2: 3 at \["),
    "counted from -1": (changed(LABEL, lambda values: values - 1), rf"{LABEL}: .*classes 0…2: -1 at \["),
    "a NaN label": (changed(LABEL, at((0, 0, 1), np.nan)), rf"{LABEL}: 1 voxels .*nan at \[0, 0, 1\]"),
    "background": (changed(LABEL, np.zeros_like), f"{LABEL} is background everywhere"),
    "a class that a split lacks": (changed(LABEL, lambda values: values.clip(max=1)), r"has a voxel of 'posterior'"),
    "no background": (changed(LABEL, lambda values: values.clip(min=1)), r"has a voxel of 'background'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_decathlon_folder_is_named_when_it_is_loaded(
    fault: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decathlon(home / "Task04_Hippocampus", 3)
    change, said = FAULTS[fault]
    change(home / "Task04_Hippocampus")
    real = data.released_split
    monkeypatch.setattr(data, "released_split", lambda names, val, test: real(names, 1, 1))
    with pytest.raises(DataError, match=said):
        data.load("msd_task04", EVERYTHING, 0)


def test_published_spellings_of_the_classes_are_known(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decathlon(home / "Task01_BrainTumour", 3, channels=4)
    names = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    listed(labels={str(number): name for number, name in enumerate(names)})(home / "Task01_BrainTumour")
    real = data.released_split
    monkeypatch.setattr(data, "released_split", lambda names, val, test: real(names, 1, 1))
    assert data.load("msd_task01", EVERYTHING, 0).channels == 4


# hearts


def hearts(folder: Path, count: int = 10) -> None:
    values = np.array([0, 205, 420, 500, 550, 600, 820, 850])
    for number in range(count):
        label = np.zeros((24, 12, 12))
        label[4:20, 2:10, 2:10] = values.repeat(2)[:, None, None]
        image = np.where(label > 0, label / 5, -300).astype(np.float32)
        name = f"ct_train/ct_train_{1001 + number}"
        write(folder / f"{name}_image.nii.gz", image, (0.75, 0.75, 1.0))
        write(folder / f"{name}_label.nii.gz", label.astype(np.int16), (0.75, 0.75, 1.0))


def test_hearts_are_resampled_scaled_and_folded(home: Path) -> None:
    hearts(home / "mmwhs")
    volumes = data.load("mmwhs", VolumeData(train_volumes=None, fold=1), 0)
    assert [len(volumes.cases[split]) for split in ("train", "val", "test")] == [6, 2, 2]
    assert [name[-17:-13] for name in volumes.cases["test"]] == ["1003", "1004"], "the second fifth"
    assert [name[-17:-13] for name in volumes.cases["val"]] == ["1005", "1006"]
    image, label = volumes.read(volumes.cases["train"][1])
    assert image.shape == label.shape and all(abs(a - b) <= 1 for a, b in zip(image.shape[1:], (12, 6, 6), strict=True))
    assert set(label.unique().tolist()) <= set(range(8)) and len(label.unique()) > 3
    outside = image[label == 0]
    assert (outside == 0).float().mean() > 0.5, "clipped to −175 and thus 0, which is not standardised"
    inside = image[image != 0]
    assert inside.mean().item() == pytest.approx(0, abs=1e-5)
    with pytest.raises(DataError, match="holds 0 files mr_train"):
        data.load("mmwhs", VolumeData(modality="mr"), 0)


def test_voxels_are_turned_to_right_anterior_superior(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    for flip in (False, True):
        write(tmp_path / "image.nii.gz", values, flip=flip)
        found = nifti.read(tmp_path / "image.nii.gz")
        np.testing.assert_array_equal(found.values, values[::-1] if flip else values)


def test_an_unknown_heart_label_is_named_and_421_is_420(home: Path) -> None:
    hearts(home / "mmwhs", 5)
    path = home / "mmwhs/ct_train/ct_train_1001_label.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj)
    wanted = data.read("mmwhs", EVERYTHING).read("ct_train/ct_train_1001_image.nii.gz")[1]
    for value, known in ((421, True), (430, False), (np.nan, False)):
        write(path, np.where(label == 420, value, label).astype(np.float32), (0.75, 0.75, 1.0))
        if known:
            assert torch.equal(data.read("mmwhs", EVERYTHING).read("ct_train/ct_train_1001_image.nii.gz")[1], wanted)
        else:
            with pytest.raises(DataError, match=r"ct_train_1001_label\.nii\.gz: .* other values than \[0, 205"):
                data.read("mmwhs", EVERYTHING)


# normalisation and views


def test_clipping_keeps_outliers_from_setting_the_scale() -> None:
    image = torch.randn(1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    spoilt = image.clone()
    spoilt[0, 0, 0, :5] = 1e6
    assert (data.clipped(spoilt)[0, 1:] - data.clipped(image)[0, 1:]).abs().max() < 0.1
    scaled = data.clipped(image * 1e4 + 77)
    torch.testing.assert_close(scaled, data.clipped(image), rtol=1e-3, atol=1e-3)


def test_centred_views_pad_by_the_edge_and_crop_around_the_centre() -> None:
    image = torch.arange(6 * 10 * 4.0).reshape(1, 6, 10, 4)
    view, label = centred(image, image.long(), (8, 6, 4), "edge")
    assert view.shape == (1, 8, 6, 4) and torch.equal(view.long(), label)
    assert torch.equal(view[:, 1:7], image[:, :, 2:8]) and torch.equal(view[:, 0], view[:, 1])


def test_random_views_depend_on_their_seed_alone_and_hold_labelled_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    image, label = torch.randn(1, 20, 20, 20, generator=generator), torch.zeros(1, 20, 20, 20, dtype=torch.int64)
    label[0, 3, 15, 9] = 1
    options = VolumeData(views="random", patch=(8, 8, 8), crops=3, rotate=1.0, shift=1.0, flip=0.5)
    views = randomised(options, "edge")
    first, again, other = (views(image, label, seed) for seed in (1, 1, 2))
    assert len(first) == 3 and all(part.shape == (1, 8, 8, 8) for view in first for part in view)
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not all(torch.equal(x[0], y[0]) for x, y in zip(first, other, strict=True))
    assert all(int(view[1].sum()) == 1 for view in (*first, *other))
    for view, where in first:
        assert torch.isclose((image - view[where == 1]).abs().min(), torch.tensor(0.0), atol=0.11)
    with pytest.raises(UsageError, match=r"data\.rotate.*patch=\[8, 6, 8\]"):
        randomised(VolumeData(patch=(8, 6, 8), rotate=0.1), "edge")


def test_training_order_and_views_depend_on_seed_and_epoch() -> None:
    options = VolumeData(None, patch=(8, 8, 8), shapes=16, size=12, views="random", batch_size=3)
    volumes = data.read("shapes", options)

    def epoch(seed: int, number: int) -> list[Any]:
        loader = volume_loaders(volumes, Views(volumes, options, seed), seed).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return list(loader)

    first, again, later, other = epoch(0, 0), epoch(0, 0), epoch(0, 1), epoch(1, 0)
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    for one in (later, other):
        assert not all(torch.equal(x.image, y.image) for x, y in zip(first, one, strict=True))
    assert sorted(torch.cat([batch.rows for batch in first]).tolist()) == list(range(8))
    assert [len(batch.rows) for batch in first] == [3, 3, 2]


def test_fixed_views_come_again_in_turn_and_have_a_row_each() -> None:
    options = VolumeData(None, patch=(8, 8, 8), shapes=16, size=12, views="fixed", crops=3)
    volumes = data.read("shapes", options)
    views, other = Views(volumes, options, 0), Views(volumes, options, 1)
    epochs = [views[2, epoch] for epoch in range(6)]
    assert [int(view.rows) for view in epochs] == [6, 7, 8, 6, 7, 8] and views.rows == 24
    assert torch.equal(epochs[0].image, epochs[3].image) and not torch.equal(epochs[0].image, epochs[1].image)
    assert torch.equal(epochs[1].image, other[2, 1].image) and torch.equal(epochs[1].label, views.still(7).label)


@pytest.mark.parametrize("name", ["heart", "brain_tumour"])
def test_full_scale_runs_from_end_to_end(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, do: Callable[..., Outcome]
) -> None:
    if name == "heart":
        hearts(home / "mmwhs", 5)
    else:
        decathlon(home / "Task01_BrainTumour", 4, channels=4)
        real = data.released_split
        monkeypatch.setattr(data, "released_split", lambda names, val, test: real(names, 1, 1))
    words = ["data.patch=[8,8,8]", "student.filters=[2,3,4]", "trainer.max_epochs=1"]
    record = do(f"task={name}", "method=dsd", *words).record
    assert record.metrics is not None and record.data is not None
    assert record.data.generated is False and set(record.metrics.test) == {"dice", "hd95", "surface_distance", "absent"}
