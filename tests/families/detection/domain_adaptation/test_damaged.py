"""What is wrong with pictures, boxes and their lists: named, when a set is loaded, by file and object."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import DataError
from kdbench.families.detection.domain_adaptation import coco, domains, pictures, voc
from kdbench.families.detection.domain_adaptation.data import Images, Scale
from kdbench.families.detection.domain_adaptation.options import AdaptationData
from kdbench.plan import datasets

WritePair = Callable[[Path, str], None]
Change = Callable[[Path], Any]
SCALE = Scale(60, 80)


def replaced(file: str, old: str, new: str) -> Change:
    """``f(root)`` changes the text of a file."""

    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


def cut(file: str, share: float) -> Change:
    """``f(root)`` keeps the first part of a file."""

    def change(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: int(share * len(data))])

    return change


def renamed(name: str) -> Change:
    """``f(root)`` calls every object of the target's test by another name, as a whole tree may."""

    def change(root: Path) -> None:
        for path in (root / "clipart" / "Annotations").glob("test_*.xml"):
            path.write_text(path.read_text().replace("tvmonitor", name))

    return change


def saved(file: str, picture: Image.Image, kind: str = "PNG", **more: Any) -> Change:
    return lambda root: picture.save(root / file, kind, **more)


XML, JPG = "clipart/Annotations/test_1.xml", "clipart/JPEGImages/test_1.jpg"
LIST = "clipart/ImageSets/Main/test.txt"
TRAINING = "clipart/JPEGImages/train_1.jpg"  # its annotation is never read
FAULTS: dict[str, tuple[Change, str]] = {
    "another spelling": (renamed("TVmonitor"), r"test_0\.xml: object 1 \('TVmonitor'\) is to be called 'tvmonitor'"),
    "another writing": (renamed("tv_monitor"), "is to be called 'tvmonitor'"),
    "an unknown name": (renamed("Hund"), r"test_0\.xml: object 1 \('Hund'\) is of no known class"),
    "no name": (renamed(""), r"object 1 \(''\) is of no known class"),
    "difficult objects alone": (
        lambda root: [
            path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
            for path in (root / "clipart" / "Annotations").glob("test_*.xml")
        ],
        r"test\.txt: none of its 3 images has an object",
    ),
    "difficult or not": (replaced(XML, "<difficult>0", "<difficult>yes"), rf"{XML}: object 1 .*difficult is 'yes'"),
    "an empty box": (replaced(XML, "<xmax>30", "<xmax>11"), rf"{XML}: object 1 \('tvmonitor'\).* has no area"),
    "a turned box": (replaced(XML, "<ymax>40", "<ymax>4"), rf"{XML}: object 1 .* has no area"),
    "a box beyond": (replaced(XML, "<xmax>30", "<xmax>82"), rf"{XML}: object 1 .* leaves the picture of 80 × 60"),
    "a box before": (replaced(XML, "<ymin>21", "<ymin>-3"), rf"{XML}: object 1 .* leaves the picture"),
    "no number": (replaced(XML, "<ymin>21", "<ymin>top"), rf"{XML}: object 1 .*bndbox\.ymin is 'top'"),
    "NaN": (replaced(XML, "<ymin>21", "<ymin>nan"), rf"{XML}: object 1 .*bndbox\.ymin is 'nan'"),
    "no corner": (replaced(XML, "<ymin>21</ymin>", ""), rf"{XML}: object 1 .*bndbox\.ymin is None"),
    "no box": (
        lambda root: replaced(XML, "bndbox", "box")(root) or replaced(XML, "/bndbox", "/box")(root),
        rf"{XML}: object 1 .*has no bndbox",
    ),
    "another size": (replaced(XML, "<width>80", "<width>60"), rf"{XML} is of 60 × 60 pixels, but .*{JPG} has 80 × 60"),
    "half a size": (replaced(XML, "<width>80</width>", ""), rf"{XML}: size\.width is None"),
    "cut XML": (cut(XML, 0.6), rf"{XML} cannot be read as XML"),
    "empty XML": (cut(XML, 0), rf"{XML} cannot be read as XML"),
    "other XML": (lambda root: (root / XML).write_text("<html/>"), rf"{XML} is no annotation.*<html>"),
    "a picture turned in its file": (
        saved(JPG, Image.new("RGB", (60, 80)), "JPEG"),
        rf"{XML} is of 80 × 60 pixels, but .*{JPG} has 60 × 80",
    ),
    "cut picture": (cut(JPG, 0.7), rf"{JPG} cannot be read as a picture: .*truncated"),
    "empty picture": (cut(JPG, 0), rf"{JPG} cannot be read as a picture"),
    "no picture": (lambda root: (root / JPG).write_text("no picture"), rf"{JPG} cannot be read as a picture"),
    "cut PNG": (
        lambda root: saved(TRAINING, Image.effect_noise((80, 60), 9))(root) or cut(TRAINING, 0.7)(root),
        rf"{TRAINING} cannot be read as a picture",
    ),
    "cut training picture": (cut(TRAINING, 0.7), rf"{TRAINING} cannot be read as a picture"),
    "real numbers": (
        saved(TRAINING, Image.fromarray(np.ones((60, 80), np.float32)), "TIFF"),
        rf"{TRAINING} has pixels of 32 bits",
    ),
    "a name twice": (replaced(LIST, "test_1", "test_0"), r"test\.txt:2: test_0 is listed before, in line 1"),
    "an empty list": (cut(LIST, 0), r"test\.txt lists no image"),
    "another encoding": (lambda root: (root / LIST).write_bytes(b"\xff\xfe"), r"test\.txt cannot be read"),
    "an image in two splits": (
        lambda root: (root / LIST).write_text("test_0\ntrain_2\n"),
        r"train\.txt and .*test\.txt share 1 images, such as train_2",
    ),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_pair: WritePair) -> Path:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    domains.load.cache_clear()
    folder = tmp_path / datasets.dataset("voc_clipart").folder
    write_pair(folder, "voc_clipart")
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_in_vocs_layout_is_named_when_it_is_loaded(fault: str, root: Path) -> None:
    change, said = FAULTS[fault]
    change(root)
    with pytest.raises(DataError, match=said):
        domains.load("voc_clipart", AdaptationData())


def test_counting_from_0_and_boxes_at_the_border_are_no_faults(root: Path) -> None:
    replaced(XML, "<xmin>11", "<xmin>0")(root)
    replaced(XML, "<xmax>30", "<xmax>80")(root)
    boxes = domains.load("voc_clipart", AdaptationData()).target_test.truth[1].boxes
    assert boxes.tolist() == [[-1, 20, 80, 40]]


def test_others_are_left_out_however_they_are_written(root: Path, write_pair: WritePair) -> None:
    folder = root.parent / "kitti"
    write_pair(folder, "kitti_cityscapes")
    path = folder / "source" / "Annotations" / "train_0.xml"
    path.write_text(path.read_text().replace("dontcare", "DontCare").replace("<name>van", "<name>Van"))
    pair = voc.load("kitti_cityscapes", datasets.reading_options(datasets.dataset("kitti_cityscapes")), folder, SCALE)
    assert pair.source_train.truth[0].labels.tolist() == [0]
    path.write_text(path.read_text().replace("<name>car<", "<name>Car<"))
    with pytest.raises(DataError, match="is to be called 'car'"):
        voc.load("kitti_cityscapes", datasets.reading_options(datasets.dataset("kitti_cityscapes")), folder, SCALE)


def gradient() -> Image.Image:
    """Darker to the left, 80 × 60."""
    return Image.fromarray(np.tile(np.arange(80, dtype=np.uint8) * 3, (60, 1)))


@pytest.mark.parametrize(("orientation", "size"), [(1, (80, 60)), (3, (80, 60)), (6, (60, 80)), (8, (60, 80))])
def test_pictures_are_turned_upright(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("jpg", "png"):
        path = tmp_path / f"x.{kind}"
        gradient().save(path, exif=exif)
        assert pictures.size_of(path) == pictures.read(path).size == size
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    wanted = gradient() if turn[orientation] is None else gradient().transpose(turn[orientation])
    values, _ = Images(("x",), [tmp_path / "x.png"], Scale(60, 80)).read(0)
    assert np.array_equal(values[0].numpy(), np.asarray(wanted))


def test_an_orientation_after_the_pixels_of_a_png_counts_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    gradient().save(stream, "PNG", exif=exif)
    data = stream.getvalue()
    at = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[at : at + 4], "big")
    end = data.index(b"IEND") - 4
    (tmp_path / "x.png").write_bytes(data[:at] + data[at + length : end] + data[at : at + length] + data[end:])
    assert pictures.size_of(tmp_path / "x.png") == pictures.read(tmp_path / "x.png").size == (60, 80)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_read_in_their_range(kind: str, tmp_path: Path) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "x.png", kind)
    pixels = np.asarray(pictures.read(tmp_path / "x.png"))
    assert (pixels == (values >> 8)[..., None]).all() and len(np.unique(pixels)) == 256


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_pictures_are_read_as_before(mode: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(255, size=(9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as wanted:
        assert np.array_equal(pictures.read(tmp_path / "x.png"), wanted.convert("RGB"))


# COCO's json


def listing(**more: Any) -> dict[str, Any]:
    """Two pictures with a box each."""
    entries = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 60} for n in (1, 2)],
        "categories": [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 5, "bbox": [1, 2.5, 30, 40], "iscrowd": 0} for n in (1, 2)
        ],
    }
    return {**entries, **more}


def with_entry(key: str, **more: Any) -> dict[str, Any]:
    """The listing with other values in the second entry of ``key``."""
    entries = listing()
    entries[key][1] = {**entries[key][1], **more}
    return entries


ANNOTATION = r"x\.json: annotation 2"
LISTINGS: dict[str, tuple[Any, str]] = {
    "an unknown image": (with_entry("annotations", image_id=3), f"{ANNOTATION} is of image 3, which is not listed"),
    "an unknown category": (with_entry("annotations", category_id=2), f"{ANNOTATION} is of category 2"),
    "an image id twice": (with_entry("images", id=1), r"x\.json: the image id 1 is given twice"),
    "a file twice": (with_entry("images", file_name="1.png"), "the file name '1.png' is given twice"),
    "a category id twice": (with_entry("categories", id=1), "the category id 1 is given twice"),
    "a category twice": (with_entry("categories", name="a"), "the category name 'a' is given twice"),
    "an annotation twice": (with_entry("annotations", id=1), "the annotation id 1 is given twice"),
    "an id that is a text": (with_entry("annotations", image_id="2"), r"x\.json: annotations\.1\.image_id: .*not '2'"),
    "an id that is a fraction": (with_entry("images", id=1.5), r"images\.1\.id"),
    "a name that is a number": (with_entry("categories", name=7), r"categories\.1\.name"),
    "three numbers": (with_entry("annotations", bbox=[1, 2, 3]), r"annotations\.1\.bbox"),
    "NaN": (with_entry("annotations", bbox=[1, 2, 3, float("nan")]), r"annotations\.1\.bbox\.3: .*finite"),
    "a text in a box": (with_entry("annotations", bbox=[1, 2, 3, "4"]), r"annotations\.1\.bbox\.3"),
    "a crowd": (with_entry("annotations", iscrowd=1), r"annotations\.1\.iscrowd"),
    "no width": (with_entry("annotations", bbox=[1, 2, 0, 4]), f"{ANNOTATION}: its box .* has no area"),
    "a box beyond": (with_entry("annotations", bbox=[60, 2, 30, 4]), f"{ANNOTATION}: its box .* leaves the picture"),
    "a box before": (with_entry("annotations", bbox=[-6, 2, 30, 4]), f"{ANNOTATION}: its box .* leaves the picture"),
    "another size": (with_entry("images", width=60, height=80), r"2\.png has 80 × 60 .*x\.json says 60 × 80"),
    "no images": ({"categories": [], "annotations": []}, r"x\.json: images: Field required"),
    "no annotations": ({key: listing()[key] for key in ("images", "categories")}, "'annotations' is missing"),
    "no box": (listing(annotations=[]), "none of the 2 images has a box"),
    "a list": ([1, 2], r"x\.json: the whole: "),
    "a missing picture": (with_entry("images", file_name="3.png"), r"3\.png cannot be read as a picture"),
}


@pytest.mark.parametrize("fault", LISTINGS)
def test_what_is_wrong_in_cocos_json_is_named(fault: str, tmp_path: Path) -> None:
    content, said = LISTINGS[fault]
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        gradient().save(tmp_path / "images" / f"{number}.png")
    path = tmp_path / "x.json"
    path.write_text(json.dumps(listing()))
    sound = coco.annotated(path, coco.read(path), SCALE)
    assert sound.truth[1].boxes.tolist() == [[1, 2.5, 31, 42.5]] and sound.truth[1].labels.tolist() == [1]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        coco.annotated(path, coco.read(path), SCALE)


@pytest.mark.parametrize("content", [b"", b"{", b'{"images": [', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json cannot be read"):
        coco.read(tmp_path / "x.json")
