"""Options of the medical family's tasks; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Len

from kdbench.plan.metrics import CASE_MEAN, Metric, share
from kdbench.plan.options import LATER
from kdbench.plan.own import OrOwn

Voxels = Annotated[int, Gt(0)]
Channels = Annotated[int, Gt(0)]
Network = Annotated[Literal["dynunet", "unetr", "swinunetr"], OrOwn()]


@dataclass(frozen=True)
class VolumeData:
    """Volumes with voxel-wise labels, and the views of them that a network is trained on."""

    train_volumes: Annotated[int, Gt(0)] | None = 16
    """Training volumes, the first of the split; null takes all of them."""
    split: Annotated[Literal["fixed", "drawn"], LATER] = "fixed"
    """fixed: the data set's own split, the same for every seed; drawn: parts of the same sizes, drawn from all of its
    volumes by the run seed."""
    patch: tuple[Voxels, Voxels, Voxels] = (32, 48, 32)
    """Voxels of a training view."""
    window: tuple[Voxels, Voxels, Voxels] | None = None
    """Voxels of an inference window; null takes the patch."""
    overlap: Annotated[float, Interval(ge=0, lt=1)] = 0.25
    """Overlap of neighbouring inference windows."""
    batch_size: Annotated[int, Gt(0)] = 2
    """Training volumes a step."""
    eval_batch_size: Annotated[int, Gt(0)] = 1
    """Whole volumes predicted at once, the smaller ones padded to the largest."""
    views: Literal["centre", "fixed", "random"] = "centre"
    """centre: each volume padded or cropped around its centre, the same at every epoch;
    random: crops around labelled voxels and augmentation, drawn anew for each epoch;
    fixed: a few of such crops of each volume, one an epoch in turn, the same for every seed."""
    crops: Annotated[int, Gt(0)] = 1
    """random: crops of a volume in one step; fixed: crops of a volume in all."""
    negatives: Annotated[float, Ge(0)] = 0.0
    """fixed, random: crops centred on background for one centred on a labelled voxel."""
    flip: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """fixed, random: probability of a flip along each axis."""
    rotate: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """fixed, random: probability of quarter turns in the plane of the first two axes, equally long in the patch."""
    shift: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """fixed, random: probability of an intensity shift by up to 0.1."""
    fold: Annotated[int, Interval(ge=0, le=4)] = 0
    """mmwhs: which fifth of the patients is the test set; the next one is the validation set."""
    modality: Literal["ct", "mr"] = "ct"
    """mmwhs: computed tomography or magnetic resonance."""
    in_memory: bool = True
    """Keep every volume in memory once it is read."""
    shapes: Annotated[int, Gt(7)] = 24
    """Generated volumes: how many; half for training, a quarter each for validation and test."""
    size: Annotated[int, Gt(7)] = 16
    """Generated volumes: voxels of an edge."""
    noise: Annotated[float, Ge(0)] = 1.0
    """Generated volumes: standard deviation of the noise; the two classes are 1 and 2 above the background."""


@dataclass(frozen=True)
class VolumeStudent:
    """A U-shaped network of MONAI.

    One of your own is built as ``Class(channels=…, classes=…, patch=(D, H, W), **options)``. Its ``forward(image)``
    takes float32 ``[b, channels, D, H, W]``, of the patch or the window, and gives logits ``[b, classes, D, H, W]``.
    Deep supervision and DSD read the modules that its attribute ``stages`` names, a mapping: ``encoder``, paths from
    full resolution to the one nearest the bottleneck; ``decoder``, from half resolution to the bottleneck; ``output``,
    the one path of the main logits.
    """

    name: Network = "dynunet"
    """dynunet: residual nnU-Net; unetr: vision transformer as encoder; swinunetr: Swin transformer as encoder; or a
    network of your own, module:Class."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    filters: Annotated[tuple[Channels, ...], Len(3)] = (8, 16, 32, 64)
    """dynunet: channels of each level, full resolution first; each level halves the resolution."""
    feature_size: Annotated[int, Gt(0)] = 12
    """unetr, swinunetr: channels at full resolution (swinunetr: a multiple of 12)."""
    hidden_size: Annotated[int, Gt(0)] = 768
    """unetr: width of the transformer."""
    mlp_dim: Annotated[int, Gt(0)] = 3072
    """unetr: width of the transformer's feed-forward layers."""
    heads: Annotated[int, Gt(0)] = 12
    """unetr: attention heads."""


@dataclass(frozen=True)
class VolumeTeacher:
    """A wider network, trained on the same volumes with the same optimiser as the student alone.

    One of your own keeps to the student's contract.
    """

    name: Network = "dynunet"
    """dynunet, unetr, swinunetr or module:Class, as for the student."""
    options: Annotated[dict[str, Any], LATER] = field(default_factory=dict)
    """Of a network of your own: what it is built with beside what the data dictate, as {option: value}."""
    weights: Annotated[str | None, LATER] = None
    """A safetensors file of the network's weights, which takes the place of its training."""
    filters: Annotated[tuple[Channels, ...], Len(3)] = (16, 32, 64, 128)
    """dynunet: channels of each level, full resolution first."""
    feature_size: Annotated[int, Gt(0)] = 24
    """unetr, swinunetr: channels at full resolution (swinunetr: a multiple of 12)."""
    hidden_size: Annotated[int, Gt(0)] = 768
    """unetr: width of the transformer."""
    mlp_dim: Annotated[int, Gt(0)] = 3072
    """unetr: width of the transformer's feed-forward layers."""
    heads: Annotated[int, Gt(0)] = 12
    """unetr: attention heads."""
    epochs: Annotated[int, Gt(0)] = 20
    """Epochs of the teacher's training."""
    seed: Annotated[int, Ge(0)] | None = None
    """Seed of the teacher's training; null takes the run's, so that each run seed has a teacher of its own."""
    source: Annotated[Literal["trained", "outputs"], LATER] = "trained"
    """trained: as above; outputs: logits computed elsewhere, read from ``path``."""
    path: Annotated[str | None, LATER] = None
    """outputs: a .npz or .safetensors file with 'ids' (see 'kdbench data rows'), 'logits' and further outputs."""
    cache: bool = True
    """Read the teacher's outputs from the cache instead of computing them at every step; the numbers are the same.
    Random views cannot be cached."""


Normalisation = Literal["clipped", "minmax", "standardised", "none"]


@dataclass(frozen=True)
class Shapes:
    """Generated volumes: their options are those of the data."""


@dataclass(frozen=True)
class NiftiFolder:
    """Volumes ``images/NAME.nii.gz`` and their labels ``labels/NAME.nii.gz`` (or ``.nii``), of one spacing."""

    classes: tuple[str, ...] = ()
    """Names of the labels' values 0, 1, …, background first; without them as many as the labels have."""
    channels: Channels = 1
    """Channels of an image."""
    spacing: tuple[float, float, float] | None = None
    """Edges of a voxel in mm; null takes the first image's. All volumes have the same."""
    normalise: Normalisation = "clipped"
    """clipped: each image to its 0.5 and 99.5 percentiles, then mean 0 and deviation 1; standardised: the latter;
    minmax: minimum 0 and maximum 1; none: as it is."""
    splits: str | None = None
    """JSON file beside the folders with the names of train, val and test; null draws them, the same for every seed."""
    validation: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of the volumes that are drawn for validation."""
    test: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of the volumes that are drawn for the test."""
    sha256: str | None = None
    """Fingerprint that the volumes must have."""


@dataclass(frozen=True)
class Decathlon:
    """A task of the Medical Segmentation Decathlon as it is published, with voxels of 1 mm."""

    classes: tuple[str, ...]
    """Names of the labels' values 0, 1, …, as its dataset.json has them."""
    validation: Annotated[int, Gt(0)]
    """Volumes for validation."""
    test: Annotated[int, Gt(0)]
    """Volumes for the test, the last by name."""
    channels: Channels = 1
    """Channels of an image."""
    normalise: Normalisation = "minmax"
    """As for a folder of volumes."""


@dataclass(frozen=True)
class MMWHS:
    """The hearts of the MM-WHS challenge."""


READERS = {"shapes": Shapes, "nifti_folder": NiftiFolder, "decathlon": Decathlon, "mmwhs": MMWHS}

SECTIONS = {"data": VolumeData, "student": VolumeStudent, "teacher": VolumeTeacher}

METRICS = (
    share("dice", "overlap of a class with its label, averaged over classes and volumes", CASE_MEAN),
    Metric("hd95", "min", 0, None, "mm", "95th percentile of the symmetric Hausdorff distance", CASE_MEAN),
    Metric("surface_distance", "min", 0, None, "mm", "mean symmetric surface distance", CASE_MEAN),
    Metric("absent", "min", 0, doc="classes, over all volumes, that label or prediction lack"),
)
