"""Runs and small detectors for the detection family's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.engine.runner import Outcome, Session, Silent, run
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.options import Detector
from kdbench.plan.config import expand
from kdbench.plan.datasets import dataset, reading_options

CLASSES = 3


QUICK = ("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "trainer.accelerator=cpu")


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs, so that the source detector of a seed is trained once for these tests."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def do(runs: Path) -> Callable[..., Outcome]:
    """``do("method=kd", …)`` does one short run on generated shapes."""

    def once(*words: str) -> Outcome:
        (config,) = expand(["task=domain_adaptation", *QUICK, *words])
        outcome = run(config, runs, Silent())
        assert outcome is not None
        return outcome

    return once


@pytest.fixture
def session(runs: Path, tmp_path: Path) -> Callable[..., Session]:
    """``session("method=lpld", …)``: the parts of a run, its stages finished."""

    def begin(*words: str) -> Session:
        (config,) = expand(["task=domain_adaptation", *QUICK, *words])
        begun = Session(config, runs, tmp_path, Silent())
        for stage in begun.stages():
            begun.store.ensure(stage)
        return begun

    return begin


def small(**more: Any) -> Detector:
    """Options of a detector for 64-pixel images."""
    options = {
        "name": "r18_fpn",
        "base_channels": 8,
        "levels": 2,
        "neck_channels": 16,
        "head_channels": 16,
        "anchor_scales": (2,),
        "anchors": 32,
        "regions": 16,
        "proposals": 30,
        "training_proposals": 40,
    }
    return Detector(**{**options, **more})


@pytest.fixture(name="small")
def options_of_a_small_detector() -> Callable[..., Detector]:
    """``small(weights=…)``: options of a detector for 64-pixel images."""
    return small


@pytest.fixture
def detector() -> Any:
    """A small detector with random weights."""
    torch.manual_seed(3)
    return models.build(small(), CLASSES)


XML = (
    """<annotation><filename>{name}</filename><size><width>80</width><height>60</height></size>{objects}</annotation>"""
)
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


def write_voc(folder: Path, part: str, names: list[str], objects: list[tuple[Any, ...]], ending: str = ".jpg") -> None:
    """A split in VOC's layout; every image has the same objects (class, difficult, xmin, ymin, xmax, ymax)."""
    for sub in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}  1\n" for name in names) + "\n")
    for name in names:
        rng = np.random.default_rng(sum(map(ord, folder.name + name)))
        Image.fromarray(rng.integers(255, size=(60, 80, 3), dtype=np.uint8)).save(
            folder / "JPEGImages" / f"{name}{ending}"
        )
        text = "".join(OBJECT.format(*one) for one in objects)
        (folder / "Annotations" / f"{name}.xml").write_text(XML.format(name=name, objects=text))


def write_pair(root: Path, name: str) -> None:
    """All splits of a published pair, three images each."""
    pair = reading_options(dataset(name))
    label = pair.classes[-1]
    objects = [(label, 0, 11, 21, 30, 40), (label, 1, 1, 1, 9, 9), *((one, 0, 1, 1, 9, 9) for one in pair.others)]
    for folder, part in {*pair.source_train, pair.source_val, pair.target_train, pair.target_test}:
        names = [f"{part}_{number}" for number in range(3)]
        write_voc(root / folder, part, names, objects, ".png" if "Cityscapes" in folder else ".jpg")


@pytest.fixture(name="write_pair")
def writer_of_pairs() -> Callable[[Path, str], None]:
    """``write_pair(root, name)`` writes a published pair in VOC's layout, three images a split."""
    return write_pair
