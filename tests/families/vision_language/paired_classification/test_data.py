"""Paired data: splits that share nothing, views made as the card says, full-size loaders on small files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.cli import present
from kdbench.engine import inputs
from kdbench.errors import DataError, UsageError
from kdbench.families.vision_language.paired_classification import avdigits
from kdbench.families.vision_language.paired_classification import data as pairs
from kdbench.families.vision_language.paired_classification.avdigits import Sources
from kdbench.families.vision_language.paired_classification.data import FeatureFolder, Modality, Pairs
from kdbench.families.vision_language.paired_classification.options import PairData
from kdbench.families.vision_language.paired_classification.task import PairedTask
from kdbench.plan import datasets

PROTOCOLS = ["clean", "held_out_speaker", "paper_like"]


def sources(images: int = 400) -> Sources:
    """Random pictures and clips; every speaker says every digit in takes 0 … 13."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.arange(6), torch.arange(10), torch.arange(14))
    return Sources(
        torch.rand(images, 28, 28, generator=generator),
        torch.arange(images) % 10,
        torch.randn(len(grid), 8000, generator=generator),
        digits=grid[:, 1],
        speakers=grid[:, 0],
        takes=grid[:, 2],
    )


def made(protocol: Any, seed: int = 0, **options: Any) -> tuple[Sources, avdigits.DigitPairs]:
    chosen = PairData(protocol=protocol, pairs=100, validation_pairs=50, **options)
    base = sources()
    return base, avdigits.build(base, chosen, seed, lambda count: pairs.pooled_split(count, seed, chosen))


@pytest.mark.parametrize("protocol", ["clean", "held_out_speaker"])
def test_no_image_recording_or_second_voice_is_in_two_splits(protocol: str) -> None:
    _, digits = made(protocol)
    shown = []
    for group in range(3):
        there = digits.split == group
        recordings = set(digits.recording_of[there].tolist())
        voices = recordings | set(digits.second[list(recordings)].tolist())
        shown.append((set(digits.image_of[there].tolist()), voices))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert shown[a][0].isdisjoint(shown[b][0]) and shown[a][1].isdisjoint(shown[b][1])
    assert [int((digits.split == group).sum()) for group in range(3)] == [100, 50, 80]


def test_a_pair_has_the_number_of_its_image_in_every_run_and_shares_its_recording() -> None:
    shown = {}
    for seed in (0, 1):
        _, drawn = made("clean", seed)
        task = object.__new__(PairedTask)
        views = {"image": SimpleNamespace(index=drawn.image_of), "audio": SimpleNamespace(index=drawn.recording_of)}
        task.pairs = SimpleNamespace(views=views)  # type: ignore[assignment]
        rows = (drawn.split == pairs.TEST).nonzero().flatten()
        shown[seed] = task.items_of("test", rows)
        shared = task.clusters(rows)
        assert torch.equal(shown[seed], drawn.image_of[rows]) and shared is not None
        assert torch.equal(shared, drawn.recording_of[rows]) and len(shared.unique()) < len(rows)
    assert not torch.equal(shown[0], shown[1])


def test_takes_are_those_of_the_card() -> None:
    base, digits = made("clean")
    takes = [set(base.takes[digits.recording_of[digits.split == group]].tolist()) for group in range(3)]
    assert takes[0] <= set(range(10, 50)) and takes[1] <= set(range(5, 10)) and takes[2] <= set(range(5))


@pytest.mark.parametrize(("seed", "speaker", "wanted"), [(2, None, 2), (8, None, 2), (0, 5, 5)])
def test_the_held_out_speaker_is_heard_in_the_test_alone(seed: int, speaker: int | None, wanted: int) -> None:
    base, digits = made("held_out_speaker", seed, speaker=speaker)
    for group in range(3):
        recordings = digits.recording_of[digits.split == group]
        assert set(base.speakers[recordings].tolist()) == ({wanted} if group == 2 else set(range(6)) - {wanted})
        assert wanted not in base.speakers[digits.second[recordings]].tolist()


def test_the_paper_like_split_shares_recordings_and_no_image() -> None:
    _, digits = made("paper_like")
    parts = [digits.split == group for group in range(3)]
    assert len(set(digits.image_of.tolist())) == len(digits.image_of) == 400
    recordings = [set(digits.recording_of[part].tolist()) for part in parts]
    assert recordings[0] & recordings[2] and [int(part.sum()) for part in parts] == [100, 50, 80]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_views_are_of_one_digit_and_the_second_voice_of_another_speaker(protocol: str) -> None:
    base, digits = made(protocol)
    assert torch.equal(base.digits[digits.recording_of], digits.y)
    assert torch.equal(base.image_digits[digits.image_of], digits.y)
    assert (base.speakers[digits.second] != base.speakers).all()


def test_one_seed_gives_one_pairing_and_another_seed_another() -> None:
    one, again, other = (made("clean", seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one.recording_of, again.recording_of) and torch.equal(one.spectrograms, again.spectrograms)
    assert not torch.equal(one.image_of, other.image_of)


def test_the_second_voice_is_0_to_10_decibels_weaker() -> None:
    base = sources(20)
    groups = torch.zeros_like(base.takes)
    mixed, second = avdigits._mixed(base, groups, groups, torch.Generator().manual_seed(3))
    voice, rest = base.recordings, mixed - base.recordings
    decibels = 10 * torch.log10(voice.square().mean(dim=1) / rest.square().mean(dim=1))
    assert 0 <= decibels.min() < 0.5 and 9.5 < decibels.max() <= 10.001
    torch.testing.assert_close(
        rest / rest.norm(dim=1, keepdim=True),
        (v := base.recordings[second]) / v.norm(dim=1, keepdim=True),
        atol=1e-4,
        rtol=0,
    )


def test_starved_images_are_projections_fitted_on_the_training_images_alone() -> None:
    images = torch.rand(60, 28, 28, generator=torch.Generator().manual_seed(1))
    found = avdigits.starved(images, images[:40], 3)
    basis = images[:40].flatten(1).double().numpy()
    mean = basis.mean(axis=0)
    _, _, rows = np.linalg.svd(basis - mean, full_matrices=False)
    wanted = (images.flatten(1).double().numpy() - mean) @ rows[:3].T @ rows[:3] + mean
    low, high = wanted.min(axis=1, keepdims=True), wanted.max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.flatten(1).numpy(), (wanted - low) / (high - low), atol=1e-4)
    changed = images.clone()
    changed[40:] = 0
    assert torch.equal(avdigits.starved(changed, changed[:40], 3)[:40], found[:40])


def test_log_mel_equals_a_transcription() -> None:
    samples = torch.randn(2, 8000, generator=torch.Generator().manual_seed(2))
    found = avdigits.log_mel(samples)
    assert found.shape == (2, 64, 64) and found.amin() == 0 and found.amax() == 1
    edges = 700 * (10 ** np.linspace(0, np.log10(1 + 4000 / 700), 66) - 1)
    bins = np.linspace(0, 4000, 129)
    rise = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    padded = np.pad(samples.double().numpy(), ((0, 0), (128, 128)), mode="reflect")
    frames = np.stack([padded[:, 125 * t : 125 * t + 256] * window for t in range(64)], axis=1)
    power = np.abs(np.fft.rfft(frames)) ** 2
    wanted = np.log(np.einsum("mf,btf->bmt", filters, power) + 1e-6)
    low, high = wanted.min(axis=(1, 2), keepdims=True), wanted.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.numpy(), (wanted - low) / (high - low), atol=1e-5)


# the real files


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_real_digits(real_data: Path, protocol: Any) -> None:
    options = PairData(protocol=protocol)
    loaded = pairs.load("avdigits", options, 1)
    assert [len(loaded.ids(split)) for split in pairs.SPLITS] == [1000, 1000, 2000]
    image, audio = loaded.views["image"], loaded.views["audio"]
    assert isinstance(image.values, Tensor) and isinstance(audio.values, Tensor)
    assert image.values.shape == (10000, 1, 28, 28) and audio.values.shape == (3000, 1, 64, 64)
    by_split = [audio.index[loaded.ids(split)] for split in pairs.SPLITS]
    apart = all(set(a.tolist()).isdisjoint(b.tolist()) for a, b in combinations(by_split, 2))
    assert apart == (protocol != "paper_like")
    assert loaded.y[loaded.ids("train")].bincount(minlength=10).min() > 60


@pytest.mark.parametrize("change", [{"components": 6}, {"protocol": "paper_like"}, {"pairs": 500}, {"speaker": 2}])
def test_every_option_that_shapes_the_data_is_in_its_fingerprint(change: Any) -> None:
    same = pairs.fingerprint("files", PairData(batch_size=7), 1)
    assert pairs.fingerprint("files", PairData(), 1) == same != pairs.fingerprint("files", PairData(**change), 1)
    assert same != pairs.fingerprint("files", PairData(), 2) and same != pairs.fingerprint("others", PairData(), 1)


def test_the_real_files_are_what_their_source_says(real_data: Path) -> None:
    paths, _ = datasets.fetch(datasets.dataset("avdigits"))
    base = avdigits.read(paths)
    assert base.image_digits.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert base.digits.bincount().tolist() == [300] * 10 and base.speakers.bincount().tolist() == [500] * 6
    assert base.takes.bincount().tolist() == [60] * 50
    assert base.recordings.abs().max() <= 1 and (base.recordings.abs().amax(dim=1) > 0).all()


# generated pairs


def test_generated_pairs_show_their_class_and_nothing_shared() -> None:
    options = PairData(pairs=4000, classes=3, noise=(1.0, 0.5))
    loaded = pairs.read("paired_views", options, 0)
    assert [len(loaded.ids(split)) for split in pairs.SPLITS] == [4000, 1000, 8000]
    assert loaded.y.bincount(minlength=3).min() > 4000
    image, audio = (view.values[:, 0, 0, 0] for view in loaded.views.values())  # type: ignore[index]
    of_class = loaded.y == 1
    assert image[of_class].std() == pytest.approx(1, abs=0.05) and audio[of_class].std() == pytest.approx(0.5, abs=0.03)
    together = torch.corrcoef(torch.stack([image[of_class], audio[of_class]]))[0, 1]
    assert abs(together) < 0.05  # independent given the class
    assert (
        pairs.read("paired_views", options, 0).sha256 == loaded.sha256 != pairs.read("paired_views", options, 1).sha256
    )


# full-size loaders


def test_the_released_codes_split() -> None:
    split = pairs.pooled_split(50, 2, PairData(pairs=None, validation_pairs=None))
    random = np.random.RandomState(19980427)
    order = [random.permutation(50) for _ in range(3)][2]
    assert (split[order[:30]] == 0).all() and (split[order[30:40]] == 1).all() and (split[order[40:]] == 2).all()
    assert torch.equal(split, pairs.pooled_split(50, 22, PairData(pairs=None, validation_pairs=None)))
    few = pairs.pooled_split(50, 2, PairData(pairs=10, validation_pairs=10))
    assert (few[order[:10]] == 0).all() and few.bincount().tolist() == [10, 10, 10, 20]


def test_scaling_of_each_example() -> None:
    x = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert pairs.min_max(x).tolist() == [[[0, 1], [0.5, 0.5]], [[0, 0], [0, 0]]]


def save(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, values)


FULL = PairData(pairs=None, validation_pairs=None, batch_size=4)
RNG = np.random.default_rng(0)


def labelled(count: int, classes: int, seed: int = 0) -> np.ndarray:
    """Classes of which every one is among the training rows of that seed's split."""
    labels = np.arange(count) % classes
    train = pairs.pooled_split(count, seed, FULL) == pairs.TRAIN
    labels[train] = np.arange(int(train.sum())) % classes
    return labels


def crisis(**files: np.ndarray) -> dict[str, Callable[[Path], None]]:
    """CrisisMMD's files with 40 random rows, but for those given."""
    image, text = RNG.normal(size=(40, 2048)).astype("f4"), RNG.normal(size=(40, 768)).astype("f4")
    made = {"image": image, "text": text, "labels": labelled(40, 8), **files}
    return {f"{name}.npy": save(values) for name, values in made.items()}


def test_crisismmd(publish: Callable[..., Path], do: Callable[..., Any]) -> None:
    image, text = RNG.normal(size=(40, 2048)).astype("f4"), RNG.normal(size=(40, 768)).astype("f4")
    labels = labelled(40, 8)
    publish("crisismmd", crisis(image=image, text=text, labels=labels))
    loaded = pairs.load("crisismmd", FULL, 0)
    assert [len(loaded.ids(split)) for split in pairs.SPLITS] == [24, 8, 8] and loaded.classes == 8
    rows = torch.tensor([3, 30, 3])
    assert torch.equal(loaded.views["text"].rows(rows), torch.from_numpy(text[rows]))  # unscaled
    assert loaded.labels(rows).tolist() == labels[rows.numpy()].tolist()
    words = ["data.batch_size=8", "trainer.max_epochs=1", "student.modality=text"]
    record = do("task=crisismmd", "method=kd", *words).record
    assert record.data.sizes.train == 24 and record.costs.parameters == 1_316_360
    assert "not stated" not in record.data.licence


def test_a_change_of_the_arrays_changes_the_fingerprint(publish: Callable[..., Path]) -> None:
    folder = publish("crisismmd", crisis())
    before = pairs.read("crisismmd", FULL, 0).sha256
    np.save(folder / "text.npy", np.ones((40, 768)))
    assert pairs.read("crisismmd", FULL, 0).sha256 != before


def test_arrays_of_different_length_are_refused(publish: Callable[..., Path]) -> None:
    publish("crisismmd", crisis(labels=np.arange(39)))
    with pytest.raises(DataError, match=r"text\.npy has 40 rows, .*labels\.npy has 39 rows"):
        pairs.read("crisismmd", FULL, 0)


def test_files_of_ones_own_making_are_listed_as_such(publish: Callable[..., Path]) -> None:
    before = present.inventory([datasets.inventory(datasets.dataset("crisismmd"))])
    assert "missing  text.npy  of your own making" in before and "Make the three arrays yourself" in before
    publish("crisismmd", {name: save(np.zeros((4, 2))) for name in ("image.npy", "text.npy", "labels.npy")})
    after = present.inventory([datasets.inventory(datasets.dataset("crisismmd"))])
    assert "crisismmd (vision_language): present" in after and "missing" not in after


def test_missing_arrays_say_what_to_make(publish: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"lacks image\.npy.*labels\.npy \[n\]"):
        pairs.read("crisismmd", FULL, 0)


def test_clips_are_scaled_by_channel_with_the_training_clips() -> None:
    video, train = RNG.normal(size=(20, 2, 3, 4, 5)), np.arange(0, 20, 2)
    scale = pairs._scaling(video, Path("video_data.npy"), (2, 3, 4, 5), train)
    seen = scale(torch.from_numpy(video).float())
    assert seen.shape == (20, 3, 2, 4, 5)  # channels before frames
    low, high = (getattr(video[train], kind)(axis=(0, 1, 3, 4)) for kind in ("min", "max"))
    wanted = (video - low[:, None, None]) / (high - low)[:, None, None]
    np.testing.assert_allclose(seen.transpose(1, 2).numpy(), wanted, atol=1e-6)


def test_coefficients_are_scaled_one_by_one() -> None:
    audio = RNG.normal(size=(20, 15, 6))
    heard = pairs._scaling(audio, Path("audio_data.npy"), (15, 6), np.arange(2))(torch.from_numpy(audio))
    assert heard.flatten(1).amin(dim=1).tolist() == [0] * 20 and heard.flatten(1).amax(dim=1).tolist() == [1] * 20


VGGSOUND = {"visual_features/clip{}_vFeature.npy": (10, 7, 7, 512), "audio_features/clip{}_aFeature.npy": (10, 128)}


def vggsound_files(count: int, own: int = 10) -> dict[str, Callable[[Path], object]]:
    """``count`` clips, the features of the first ``own`` full of their number and those of the others clip 0's."""
    lines = "".join(f"clip{row}&{label}\n" for row, label in enumerate(labelled(count, 141)))
    files: dict[str, Callable[[Path], object]] = {"VGGS50k_metadata.txt": lambda path: path.write_text(lines)}
    for row in range(count):
        for name, shape in (
            ("visual_features/clip{}_vFeature", (10, 7, 7, 512)),
            ("audio_features/clip{}_aFeature", (10, 128)),
        ):
            first = Path(name.format(0) + ".npy").name
            files[f"{name.format(row)}.npy"] = (
                save(np.full(shape, row, dtype="f4")) if row < own else lambda path, to=first: path.symlink_to(to)
            )
    return files


def test_vggsound_is_read_file_by_file(publish: Callable[..., Path]) -> None:
    folder = publish("vggsound", vggsound_files(240))
    loaded = pairs.load("vggsound", FULL, 0)
    assert isinstance(loaded.views["video"].values, FeatureFolder) and loaded.classes == 141
    seen = loaded.views["video"].rows(torch.tensor([7, 2]))
    assert seen.shape == (2, 512, 10, 7, 7) and seen[:, 0, 0, 0, 0].tolist() == [7, 2]
    assert loaded.views["audio"].rows(torch.tensor([4])).shape == (1, 10, 128)
    assert loaded.y.tolist() == labelled(240, 141).tolist()
    values = np.zeros((10, 128), dtype="f4")
    values[3, 5] = np.nan
    np.save(folder / "audio_features/clip5_aFeature.npy", values)
    with pytest.raises(DataError, match=r"clip5_aFeature\.npy, row 3: nan is not a finite number"):
        loaded.views["audio"].rows(torch.tensor([5]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files", "modality"),
    [
        ("vggsound", vggsound_files(10), "audio"),
        (
            "ravdess",
            {
                "video_data.npy": save(RNG.random((10, 15, 3, 224, 224), dtype="f4")),
                "audio_data.npy": save(RNG.random((10, 15, 156), dtype="f4")),
                "label_data.npy": save(np.arange(10) % 8),
            },
            "audio",
        ),
    ],
)
def test_mst_distill_builds_its_networks_at_full_scale(
    publish: Callable[..., Path],
    do: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    files: Any,
    modality: str,
) -> None:
    monkeypatch.setattr(inputs, "covered", lambda *told, **more: None)  # ten rows are enough to build networks for
    publish(name, files)
    words = ["data.batch_size=6", "trainer.max_epochs=1", f"student.modality={modality}", "method.mask_width=3"]
    record = do(f"task={name}", "method=mst_distill", "method.mask_layers=1", *words).record
    assert {n for n in record.curves if "share of" in n} == {
        "train/share of multimodal-fc1",
        "train/share of cross_modal-fc1",
    }


def test_a_modality_that_the_data_does_not_have(do: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"student\.modality of paired_views 'text'.*audio, image"):
        do("task=paired_classification", "method=alone", "student.modality=text")


def test_a_view_maps_pairs_to_examples() -> None:
    view = Modality(torch.arange(4.0)[:, None], torch.tensor([3, 3, 0]), lambda x: x * 2)
    assert view.rows(torch.tensor([0, 2])).tolist() == [[6], [0]]
    array = Modality(np.arange(4.0)[:, None], torch.tensor([3, 3, 0]), lambda x: x * 2)
    assert torch.equal(array.rows(torch.tensor([0, 2])), view.rows(torch.tensor([0, 2])).float())


def test_other() -> None:
    view = Modality(torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    both = Pairs("x", {"image": view, "audio": view}, torch.zeros(1), torch.zeros(1), 2, "", lambda sees, _: None)  # type: ignore[arg-type,return-value]
    assert both.other("image") == "audio" and both.other("audio") == "image"
