"""Options of the vision-language family's tasks; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from kdbench.plan.metrics import ACCURACY, MACRO_F1, share
from kdbench.plan.options import LATER
from kdbench.plan.own import OrOwn


@dataclass(frozen=True)
class PairData:
    """Two views of one labelled example, split by the run seed."""

    protocol: Literal["clean", "held_out_speaker", "paper_like"] = "clean"
    """avdigits: no image and no recording in two splits; the same with one speaker in the test split alone; or, as in
    the paper, pairs pooled and re-split 60/20/20 so that a recording is in several splits."""
    speaker: Annotated[int, Interval(ge=0, le=5)] | None = None
    """avdigits: the speaker held out; null takes the run seed modulo 6."""
    components: Annotated[int, Interval(ge=1, le=784)] = 4
    """avdigits: principal components of the training images that the image view keeps (4: hard, 8: easy)."""
    pairs: Annotated[int, Gt(9)] | None = 1000
    """Training pairs; null takes all there are."""
    validation_pairs: Annotated[int, Gt(9)] | None = 1000
    """Validation pairs; null takes all there are."""
    batch_size: Annotated[int, Gt(1)] = 64
    """Pairs a step."""
    classes: Annotated[int, Interval(ge=2, le=36)] = 4
    """Generated pairs: number of classes."""
    noise: tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)]] = (12.0, 4.0)
    """Generated pairs: standard deviation of the noise on the first and the second view, whose classes' means have
    deviation 1."""


@dataclass(frozen=True)
class PairStudent:
    """The network of one modality; the other modality's network and the fusion network are the teachers.

    One of your own is built as ``Class(sees=…, shapes=…, classes=…, **options)``: the names of the modalities that it
    is to see, and the shape of an example of each. Its ``forward(*views)`` takes one tensor ``[b, *shape]`` for each,
    and gives logits ``[b, classes]``.
    """

    name: Annotated[Literal["data_set"], OrOwn(), LATER] = "data_set"
    """data_set: the network that comes with the data set; or a network of your own, module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    modality: Literal["image", "audio", "text", "video"] = "image"
    """The one view that the student sees."""
    channels: Annotated[int, Gt(1)] = 8
    """avdigits: channels of the first convolution of every network that hears; 32 in the released code."""


@dataclass(frozen=True)
class PairTeacher:
    """The frozen teacher of plain distillation, and the two networks that MST-Distill's teachers are made of.

    A network of your own keeps to the student's contract; it is built for the view or the views of either teacher.
    MST-Distill masks the outputs of the modules that its attribute ``masked`` names, two paths.
    """

    name: Annotated[Literal["data_set"], OrOwn(), LATER] = "data_set"
    """data_set: the network that comes with the data set; or a network of your own, module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    weights: Annotated[str | None, LATER] = None
    """A safetensors file of the network's weights, which takes the place of its training."""
    source: Literal["multimodal", "cross_modal", "outputs"] = "multimodal"
    """multimodal: the network that sees both views; cross_modal: that of the view the student does not see;
    outputs: logits computed elsewhere, read from ``path``."""
    path: Annotated[str | None, LATER] = None
    """outputs: a .npz or .safetensors file with 'ids' (see 'kdbench data rows'), 'logits' and further outputs."""
    cache: bool = True
    """Read teachers' outputs from the cache instead of computing them at every step; the numbers are the same."""


Modality = Literal["image", "audio", "text", "video"]


@dataclass(frozen=True)
class PairedViews:
    """Generated pairs: their options are those of the data."""


@dataclass(frozen=True)
class AVDigits:
    """Spoken and handwritten digits: the rest is options of the data."""


@dataclass(frozen=True)
class VGGSound:
    """Features of clips, a file each."""


@dataclass(frozen=True)
class PairedArrays:
    """Two arrays ``.npy`` of equal length, an example a row, and the classes of the rows."""

    views: dict[Modality, str]
    """File of each of the two modalities, in the order that a fusion network takes them."""
    labels: str = "labels.npy"
    """File of the classes, from 0 on."""
    classes: Annotated[int, Gt(1)] | None = None
    """Number of classes; null takes one more than the largest label."""
    shapes: dict[Modality, tuple[Annotated[int, Gt(0)], ...]] | None = None
    """Shape that an example of each view must have; null takes that of the file."""
    networks: Literal["features", "clips"] = "features"
    """features: linear layers on vectors; clips: convolutions on video [15, 3, 224, 224] and audio [15, 156]."""


READERS = {"paired_views": PairedViews, "avdigits": AVDigits, "vggsound": VGGSound, "paired_arrays": PairedArrays}

SECTIONS = {"data": PairData, "student": PairStudent, "teacher": PairTeacher}

METRICS = (
    share("accuracy", "share of examples whose largest logit is that of their class", ACCURACY),
    share("macro_f1", "F1 of each class that is true or predicted somewhere, averaged", MACRO_F1),
    share("accuracy of *", "accuracy of one of several teachers"),
)
