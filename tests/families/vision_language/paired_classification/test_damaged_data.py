"""Damaged pairs: each is refused when it is loaded, by file and place, before anything is trained on it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.cli.main import entry
from kdbench.errors import DataError, UsageError
from kdbench.families.vision_language.paired_classification import avdigits
from kdbench.families.vision_language.paired_classification import data as pairs
from kdbench.families.vision_language.paired_classification.options import PairData

FULL = PairData(pairs=None, validation_pairs=None, batch_size=4)
RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(80, 2048)).astype("f4"), RNG.normal(size=(80, 768)).astype("f4")
LABELS = np.arange(80) % 8


def hole(values: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[row] = value
    return changed


def crisis(**changed: np.ndarray) -> dict[str, Callable[[Path], None]]:
    arrays = {"image": IMAGE, "text": TEXT, "labels": LABELS, **changed}
    return {f"{name}.npy": lambda path, values=values: np.save(path, values) for name, values in arrays.items()}


CRISIS = [
    ({"image": hole(IMAGE, 79, np.nan)}, r"image\.npy, row 79: nan is not a finite number"),
    ({"text": hole(TEXT, 0, np.inf)}, r"text\.npy, row 0: inf"),
    ({"text": hole(TEXT.astype("f8"), 3, 1e300)}, r"text\.npy, row 3: 1e\+300 is not a finite number in float32"),
    ({"image": IMAGE[:, :2047]}, r"image\.npy has the shape \[80, 2047\], not \[any, 2048\]"),
    ({"image": IMAGE[:, :, None]}, r"image\.npy has the shape \[80, 2048, 1\]"),
    ({"image": IMAGE[:79]}, r"image\.npy has 79 rows, .*text\.npy has 80 rows"),
    ({"image": IMAGE.astype(complex)}, r"image\.npy holds complex128, not numbers"),
    ({"image": IMAGE.astype("U6")}, r"image\.npy holds <U6, not numbers"),
    ({"image": np.array([IMAGE], dtype=object)}, r"image\.npy cannot be read: Array can't be memory-mapped"),
    ({"labels": hole(LABELS, 5, 8)}, r"labels\.npy, row 5: label 8 is none of 0…7"),
    ({"labels": hole(LABELS, 5, -1)}, r"labels\.npy, row 5: label -1"),
    ({"labels": LABELS + 1}, r"labels\.npy, row 7: label 8 .*count from 1: count from 0"),
    ({"labels": LABELS + 0.5}, r"labels\.npy, row 0: label 0\.5"),
    ({"labels": hole(LABELS.astype("f8"), 77, np.nan)}, r"labels\.npy, row 77: label nan"),
    (
        {"labels": np.array(["affected_individuals"] * 80)},
        r"labels\.npy holds .*'affected_individuals'.*, not one label",
    ),
    ({"labels": np.eye(8)[LABELS]}, r"labels\.npy holds float64 of shape \[80, 8\]"),
    ({"labels": np.array(3)}, r"has 1 rows"),
]


@pytest.mark.parametrize(("changed", "told"), CRISIS, ids=[told for _, told in CRISIS])
def test_damaged_features_are_refused(publish: Callable[..., Path], changed: dict[str, np.ndarray], told: str) -> None:
    publish("crisismmd", crisis(**changed))
    with pytest.raises(DataError, match=told):
        pairs.load("crisismmd", FULL, 0)


def test_a_class_without_a_training_pair_is_refused(publish: Callable[..., Path]) -> None:
    publish("crisismmd", crisis(labels=np.where(LABELS == 5, 4, LABELS)))
    with pytest.raises(DataError, match=r"the train split has no example of class 5 \(train 0 of 48, val 0 of 16"):
        pairs.load("crisismmd", FULL, 0)
    with pytest.raises(DataError, match=r"no example of class .* \(train 0 of 3.*Take more data\.pairs"):
        pairs.load("crisismmd", PairData(pairs=3), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00"])
def test_a_truncated_file_ends_the_command_before_anything_is_written(
    publish: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = publish("crisismmd", crisis())
    (folder / "text.npy").write_bytes(content)
    runs = tmp_path / "runs"
    assert entry(["run", "task=crisismmd", "method=kd", "trainer.max_epochs=1", "--runs", str(runs)]) == 2
    assert f"{folder}/text.npy cannot be read: " in capsys.readouterr().err
    assert not [path for path in runs.rglob("*") if path.is_file()]


def test_too_few_generated_pairs_for_their_classes() -> None:
    with pytest.raises(UsageError, match=r"paired_views: the train split has no .*data\.pairs or fewer data\.classes"):
        pairs.load("paired_views", PairData(pairs=10, classes=36), 0)


def test_infinite_noise_is_refused() -> None:
    with pytest.raises(UsageError, match=r"paired_views with data\.noise=inf, row 0: .* is not a finite number"):
        pairs.load("paired_views", PairData(noise=(1.0, float("inf"))), 0)


def test_clips_with_a_hole_are_refused() -> None:
    clips = RNG.normal(size=(20, 2, 3, 4, 5)).astype("f2")
    clips[17, 1, 2, 3, 4] = np.nan  # of no training row
    with pytest.raises(DataError, match=r"video_data\.npy, row 17: nan is not a finite number"):
        pairs._scaling(clips, Path("video_data.npy"), (2, 3, 4, 5), np.arange(9))
    with pytest.raises(DataError, match=r"video_data\.npy has the shape .*, not \[any, 15, 3, 224, 224\]"):
        pairs._scaling(clips, Path("video_data.npy"), (15, 3, 224, 224), np.arange(9))


# a file a clip


def clips(publish: Callable[..., Path], lines: str = "a&0\nb&140\n") -> Path:
    files: dict[str, Callable[[Path], object]] = {"VGGS50k_metadata.txt": lambda path: path.write_text(lines)}
    for clip in "ab":
        for name, shape in (
            ("visual_features/{}_vFeature", (10, 7, 7, 512)),
            ("audio_features/{}_aFeature", (10, 128)),
        ):
            files[f"{name.format(clip)}.npy"] = lambda path, shape=shape: np.save(path, np.ones(shape, "f4"))
    return publish("vggsound", files)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("a&0\nb&141\n", r"metadata\.txt:2: 'b&141' is not 'name&class' with a class from 0 to 140"),
        ("a&0\n\nb&-1\n", r"metadata\.txt:3: 'b&-1'"),
        ("a&0\nb&1.5\n", r"metadata\.txt:2: 'b&1\.5'"),
        ("a&0\nb\n", r"metadata\.txt:2: 'b'"),
        ("a&0\n&4\n", r"metadata\.txt:2: '&4'"),
        ("a&0\nb&dog barking\n", r"metadata\.txt:2: 'b&dog barking'"),
        ("a&0\na&1\n", r"metadata\.txt:2: 'a' is listed twice"),
        ("a&0\nc&1\n", r"c_vFeature\.npy is missing\. Put VGGS50k"),
        ("\n", r"metadata\.txt lists no clip"),
    ],
)
def test_a_damaged_list_of_clips_is_refused(publish: Callable[..., Path], lines: str, told: str) -> None:
    clips(publish, lines)
    with pytest.raises(DataError, match=told):
        pairs.read("vggsound", FULL, 0)


def test_a_missing_or_truncated_clip_is_refused_before_training(publish: Callable[..., Path]) -> None:
    path = clips(publish) / "audio_features/b_aFeature.npy"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(DataError, match=r"b_aFeature\.npy has another size than .*a_aFeature\.npy"):
        pairs.read("vggsound", FULL, 0)
    path.unlink()
    with pytest.raises(DataError, match=r"b_aFeature\.npy is missing"):
        pairs.read("vggsound", FULL, 0)


# digits


def idx(values: np.ndarray) -> bytes:
    sizes = np.array([0x800 + values.ndim, *values.shape], ">u4")
    return gzip.compress(sizes.tobytes() + values.astype("u1").tobytes())


TAKES = np.stack(np.meshgrid(np.arange(10), np.arange(6), np.arange(12), indexing="ij"), axis=-1).reshape(-1, 3)
SOUNDS = {
    "audio": RNG.integers(1, 2**15, size=20 * len(TAKES)).astype("i2"),
    "offsets": 20 * np.arange(len(TAKES) + 1),
    "digit": TAKES[:, 0].astype("u1"),
    "speaker": TAKES[:, 1].astype("u1"),
    "index": TAKES[:, 2].astype("u1"),
}
PICTURES, DIGITS = RNG.integers(256, size=(200, 28, 28)), np.arange(200) % 10


def digits(**changed: Any) -> dict[str, Callable[[Path], object]]:
    """200 pictures, and 12 takes of each digit by each speaker; keywords replace a file, or an array of the sounds."""
    sounds = {name: changed.get(name, values) for name, values in SOUNDS.items()}
    images, labels = changed.get("images", idx(PICTURES)), changed.get("labels", idx(DIGITS))
    return {
        "t10k-images-idx3-ubyte.gz": lambda path: path.write_bytes(images),
        "t10k-labels-idx1-ubyte.gz": lambda path: path.write_bytes(labels),
        "fsdd_recordings.npz": lambda path: (
            path.write_bytes(changed["sounds"])
            if "sounds" in changed
            else np.savez(path, **{name: values for name, values in sounds.items() if values is not None})
        ),
    }


def test_sound_digits_are_loaded(publish: Callable[..., Path]) -> None:
    publish("avdigits", digits())
    assert [len(pairs.load("avdigits", FULL, 0).ids(split)) for split in pairs.SPLITS] == [120, 40, 40]


AVDIGITS = [
    ({"labels": idx(DIGITS + 1)}, r"labels-idx1-ubyte\.gz, row 9: digit 10 is none of 0…9.*count from 1"),
    ({"labels": idx(DIGITS[1:])}, r"images-idx3.*has 200 rows, .*labels-idx1.*has 199 rows"),
    ({"labels": idx(PICTURES)}, r"labels-idx1-ubyte\.gz cannot be read: it is no IDX file of bytes in 1 dim"),
    ({"images": idx(DIGITS)}, r"images-idx3-ubyte\.gz cannot be read: it is no IDX file of bytes in 3 dim"),
    ({"images": idx(PICTURES[:, 1:])}, r"images-idx3-ubyte\.gz has the shape \[200, 27, 28\]"),
    ({"images": idx(PICTURES)[:-99]}, r"images-idx3-ubyte\.gz cannot be read"),
    ({"images": gzip.compress(gzip.decompress(idx(PICTURES))[:-99])}, r"images-idx3-ubyte\.gz cannot be read"),
    ({"images": b""}, r"images-idx3-ubyte\.gz cannot be read"),
    ({"images": b"plain"}, r"images-idx3-ubyte\.gz cannot be read: Not a gzipped file"),
    ({"sounds": b""}, r"fsdd_recordings\.npz cannot be read"),
    ({"sounds": b"PK\x03\x04"}, r"fsdd_recordings\.npz cannot be read"),
    ({"digit": None}, r"fsdd_recordings\.npz cannot be read: digit is not a file in the archive"),
    ({"digit": hole(SOUNDS["digit"], 7, 10)}, r"fsdd_recordings\.npz: digit, row 7: digit 10"),
    ({"digit": SOUNDS["digit"] + 0.5}, r"fsdd_recordings\.npz: digit, row 0: digit 0\.5"),
    ({"speaker": hole(SOUNDS["speaker"], 7, 6)}, r"speaker, row 7: speaker 6 is none of 0…5"),
    ({"index": hole(SOUNDS["index"], 7, 50)}, r"index, row 7: index 50 is none of 0…49"),
    ({"index": SOUNDS["index"][1:]}, r"offsets without the last has 720 rows, .*index has 719 rows"),
    ({"audio": SOUNDS["audio"].astype("f4")}, r"audio is float32 of shape \[14400\], not one row of 16-bit samples"),
    ({"audio": SOUNDS["audio"][1:]}, r"fsdd_recordings\.npz: offsets, row 720: offset 14400 is none of 0…14399"),
    ({"offsets": hole(SOUNDS["offsets"], 4, 60)}, r"offsets, row 3: the recording has no sample"),
    ({"offsets": SOUNDS["offsets"] // 2}, "offsets do not go from 0 to the 14400 samples"),
    ({"audio": np.where(np.arange(14400) // 20 == 9, 0, SOUNDS["audio"]).astype("i2")}, "recording 9 is silent"),
    ({"digit": np.where(SOUNDS["digit"] == 3, 2, SOUNDS["digit"])}, "no recording of digit 3 for split 0"),
    ({"speaker": SOUNDS["speaker"] * 0}, "no second voice for speaker 0 in split 0"),
    ({"labels": idx(DIGITS // 2)}, "avdigits: the train split has no example of class 5 .train 0 of 120"),
]


@pytest.mark.parametrize(("changed", "told"), AVDIGITS, ids=[told for _, told in AVDIGITS])
def test_damaged_digits_are_refused(publish: Callable[..., Path], changed: dict[str, Any], told: str) -> None:
    publish("avdigits", digits(**changed))
    with pytest.raises(DataError, match=told):
        pairs.load("avdigits", FULL, 0)


def test_the_published_digits_pass(real_data: Path) -> None:
    folder = real_data / "multimodal/avdigits"
    read = avdigits.read({name: folder / name for name in avdigits.FILES})
    assert len(read.images) == 10_000 and len(read.recordings) == 3000
