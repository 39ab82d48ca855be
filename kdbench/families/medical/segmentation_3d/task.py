"""Segmentation of volumes: the LightningModule and the task of the medical family."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.metrics.utils import get_edge_surface_distance
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.engine import outputs
from kdbench.engine.loaders import Loaders
from kdbench.engine.losses import at_least_float32
from kdbench.engine.module import DistillationModule
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import DataFacts, Task
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.families.medical.segmentation_3d import data, networks
from kdbench.families.medical.segmentation_3d.options import VolumeData, VolumeStudent, VolumeTeacher
from kdbench.families.medical.segmentation_3d.volumes import SPLITS, Views, Volumes, VolumeSet, volume_loaders
from kdbench.hashing import write_atomic
from kdbench.plan.config import RunConfig
from kdbench.plan.datasets import dataset
from kdbench.plan.metrics import Undefined
from kdbench.plan.own import module_of

warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)  # MONAI's own call

MEANS = ("dice", "hd95", "surface_distance")
"""Scores that are averaged over classes and then over volumes."""
WINDOWS = 4  # of a volume, predicted at once


class Segmentation(DistillationModule):
    """``L_task = Dice + CE`` of the main logits; whole volumes are predicted by sliding windows.

    Metrics, each averaged over the classes without background and then over the volumes: ``dice``; ``hd95``, the 95th
    percentile of the symmetric Hausdorff distance in mm; ``surface_distance``, the mean symmetric surface distance in
    mm. ``absent`` counts the classes, over all volumes, that label or prediction lack: one that both lack has Dice 1
    and distance 0, one that only one of them lacks has Dice 0 and the volume's diagonal as distance.
    """

    def __init__(self, student: nn.Module, config: RunConfig, volumes: VolumeSet) -> None:
        super().__init__(student, config.optimizer)
        self.volumes = volumes
        self.options: VolumeData = config.data
        self.loss = DiceCELoss(include_background=True, to_onehot_y=True, softmax=True, lambda_dice=1, lambda_ce=1)
        self._scores: dict[str, list[dict[str, list[float]]]] = {split: [] for split in SPLITS}
        self._outcomes: dict[str, dict[str, Tensor]] = {}

    def forward_batch(self, batch: Volumes) -> Outputs:
        if self.training or tuple(batch.image.shape[2:]) == self.options.patch:
            return {"logits": self.student(batch.image)}
        window, padding = window_of(self.options), {"edge": "replicate", "reflect": "reflect"}[self.volumes.pad]
        logits = sliding_window_inference(
            batch.image, window, WINDOWS, self.student, overlap=self.options.overlap, padding_mode=padding
        )
        return {"logits": torch.as_tensor(logits)}

    def targets(self, batch: Volumes) -> Tensor:
        return batch.label

    def task_terms(self, output: Outputs, targets: Tensor) -> Mapping[str, Tensor]:
        return {"task": self.loss(at_least_float32(output["logits"]), targets)}

    def evaluate(self, split: str, output: Outputs, targets: Tensor) -> None:
        predicted = output["logits"].argmax(dim=1, keepdim=True)
        for classes, label in zip(predicted[:, 0], targets[:, 0], strict=True):
            inside = tuple(slice(int(places.max()) + 1) for places in (label >= 0).nonzero().T)
            voxels = label[inside].flatten().bincount(minlength=len(self.volumes.classes))
            by_class = class_scores(classes[inside], label[inside], self.volumes)
            self._scores[split].append({**by_class, "targets": voxels.tolist()})

    def results(self, split: str) -> Mapping[str, float | Undefined]:
        cases, self._scores[split] = self._scores[split], []
        if not cases:
            return dict.fromkeys(MEANS, Undefined("it has no volumes"))
        kept = ("targets", *MEANS)
        self._outcomes[split] = {
            name: torch.tensor([case[name] for case in cases], dtype=torch.float64 if name in MEANS else torch.int64)
            for name in kept
        }
        means = {name: fmean(fmean(case[name]) for case in cases) for name in MEANS}
        return {**means, "absent": sum(sum(case["absent"]) for case in cases)}

    def outcomes(self, split: str) -> Mapping[str, Tensor]:
        """The means' terms by case and class without background; ``targets`` are the voxels of each class."""
        return self._outcomes[split]

    def collapsed(self, scores: Mapping[str, float]) -> bool:
        """Whether as many classes are absent as there are volumes to validate on, as when one is never predicted."""
        return scores["absent"] >= len(self.volumes.cases["val"])


def window_of(options: VolumeData) -> tuple[int, int, int]:
    """Voxels of an inference window."""
    return options.window or options.patch


def scores(predicted: Tensor, label: Tensor, volumes: VolumeSet) -> dict[str, float]:
    """The metrics of one volume (see :class:`Segmentation`). ``predicted``, ``label``: classes, int64 ``[D, H, W]``."""
    by_class = class_scores(predicted, label, volumes)
    return {**{name: fmean(by_class[name]) for name in MEANS}, "absent": sum(by_class["absent"])}


def class_scores(predicted: Tensor, label: Tensor, volumes: VolumeSet) -> dict[str, list[float]]:
    """The same for each class without background; ``absent`` is 1 for one that label or prediction lacks."""
    diagonal = float(torch.tensor([n * mm for n, mm in zip(label.shape, volumes.spacing, strict=True)]).norm())
    of_class: dict[str, list[float]] = {"dice": [], "hd95": [], "surface_distance": [], "absent": []}
    for number in range(1, len(volumes.classes)):
        pair = [classes == number for classes in (predicted, label)]
        here = [bool(mask.any()) for mask in pair]
        of_class["absent"].append(not all(here))
        if all(here):
            _, both, _ = get_edge_surface_distance(*pair, spacing=volumes.spacing, symmetric=True)
            of_class["dice"].append(float(compute_dice(*(mask[None, None].double() for mask in pair))))
            of_class["hd95"].append(max(float(distances.quantile(0.95)) for distances in both))
            of_class["surface_distance"].append(float(torch.cat(list(both)).mean()))
            continue
        of_class["dice"].append(float(not any(here)))
        for name in ("hd95", "surface_distance"):
            of_class[name].append(diagonal if any(here) else 0.0)
    return of_class


class SegmentationTask(Task[VolumeData, VolumeStudent, VolumeTeacher]):
    """3-D segmentation for the engine."""

    chunk = 4

    def __init__(self, config: RunConfig[VolumeData, VolumeStudent, VolumeTeacher], store: StageStore) -> None:
        super().__init__(config, store)
        self.cacheable = self.config.data.views != "random"
        self.volumes = data.load(config.dataset, config.data, config.seed)
        self.views = self.views_of(config.seed)

    @cached_property
    def facts(self) -> DataFacts:
        volumes, info = self.volumes, dataset(self.config.dataset)
        sizes = {split: len(volumes.cases[split]) for split in SPLITS}
        groups = torch.zeros(self.views.rows, dtype=torch.int64)
        described = (volumes.name, volumes.sha256, volumes.split_sha256, info.generated, info.licence, sizes)
        views = self.views
        names = [f"{name} view {number}" for name in views.names for number in range(views.each)]
        return DataFacts(*described, len(groups), groups, names)

    def balance(self) -> dict[str, dict[str, int]]:
        """Volumes whose label has the class."""
        volumes = self.volumes
        held = {
            split: [set(volumes.read(case)[1].flatten().tolist()) for case in volumes.cases[split]] for split in SPLITS
        }
        return {
            split: {name: sum(number in one for one in labels) for number, name in enumerate(volumes.classes)}
            for split, labels in held.items()
        }

    def views_of(self, seed: int) -> Views:
        """Training views drawn from ``seed``."""
        return Views(self.volumes, self.config.data, seed)

    def data(self) -> Loaders:
        return volume_loaders(self.volumes, self.views, self.config.seed)

    def network(self, options: VolumeStudent | VolumeTeacher) -> nn.Module:
        """A freshly initialised network for this data."""
        volumes, here = self.volumes, self.config.data
        return networks.build(options, volumes.channels, len(volumes.classes), here.patch, window_of(here))

    def student(self) -> nn.Module:
        return self.network(self.config.student)

    def teacher_network(self) -> nn.Module:
        return self.network(self.config.teacher)

    def module(self, student: nn.Module) -> Segmentation:
        return Segmentation(student, self.config, self.volumes)

    def example(self) -> Volumes:
        size = min(self.config.data.batch_size, len(self.views))
        return self.batch_of(torch.arange(size))

    def batch_of(self, rows: Tensor) -> Volumes:
        parts = [self.views.still(row) for row in rows.tolist()]
        image, label, numbers = (torch.cat(values) for values in zip(*parts, strict=True))
        return Volumes(image, label, numbers)

    def rows_of(self, batch: Volumes) -> Tensor:
        return batch.rows

    def items_of(self, split: str, batch: Volumes) -> Tensor:
        """Places among the names of all volumes in order."""
        place = {name: row for row, name in enumerate(self.volumes.names)}
        return torch.tensor([place[self.volumes.cases[split][row]] for row in batch.rows.tolist()])

    @property
    def logits_shape(self) -> tuple[int, ...]:
        return (len(self.volumes.classes), *self.config.data.patch)

    def stages(self) -> Sequence[Stage]:
        if self.brought:
            return ()
        options = self.config.teacher
        apart = ("epochs", "seed", "cache", "source", "path", "weights")
        network = {name: value for name, value in asdict(options).items() if name not in apart}
        inputs = {
            "network": network,
            "data": asdict(self.config.data),
            "sha256": self.volumes.sha256,
            "split": self.volumes.split_sha256,
        }
        seed = self.config.seed if options.seed is None else options.seed
        loaders = volume_loaders(self.volumes, self.views_of(seed), seed)  # of its own seed, whichever run trains it
        return [self.teacher_stage("segmentation-teacher", inputs, options.epochs, seed, loaders)]

    def frozen(self, network: nn.Module) -> FrozenTeacher:
        return FrozenTeacher(network, one_by_one)

    def live_teacher(self) -> FrozenTeacher:
        if self.brought:
            return self.brought
        network = self.teacher_network()
        network.load_state_dict(load_file(self.folder("segmentation-teacher") / "weights.safetensors"))
        return self.frozen(network)

    def teacher_facts(self) -> dict[str, Any]:
        if self.brought:  # for training views alone: no whole volume to score
            metrics: dict[str, Any] = {"val": {}, "test": {}}
            return {"kind": "outputs", "description": outputs.DESCRIPTION, "metrics": metrics, "predictions": None}
        options, path = self.config.teacher, self.folder("segmentation-teacher") / "scores.json"
        if not path.exists():
            module = self.module(self.live_teacher().network)
            write_atomic(path, json.dumps({split: self.score(module, split) for split in ("val", "test")}))
        size = list(options.filters) if options.name == "dynunet" else options.feature_size
        size_told = "" if module_of(options.name) else f" of {size} channels"
        how = "weights from a file" if options.weights else "trained on the same volumes"
        description = f"{options.name}{size_told}, {how}"
        metrics = json.loads(path.read_text())
        return {"kind": "frozen", "description": description, "metrics": metrics, "predictions": None}


def one_by_one(network: nn.Module, batch: Volumes) -> Outputs:
    """The teacher's logits, one volume at a time so that they do not depend on what else the batch holds."""
    return {"logits": torch.cat([network(image[None]) for image in batch.image])}


TASK = SegmentationTask
