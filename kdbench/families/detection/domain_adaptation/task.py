"""Source-free adaptive detection: the LightningModule, the source detector that every arm begins with, the task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from kdbench.engine.loaders import Loaders
from kdbench.engine.module import DistillationModule
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import DataFacts, Task
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.families.detection.domain_adaptation import domains, matching, views
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.data import Batch, Domains, LabelledBatch, collate, loaders
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.options import LITE0, AdaptationData, Detector, MeanTeacher
from kdbench.networks import efficientnet_lite
from kdbench.plan.config import RunConfig
from kdbench.plan.datasets import dataset
from kdbench.plan.metrics import Undefined
from kdbench.plan.options import Optimizer, plain
from kdbench.plan.own import modules

SOURCE = "source-detector"
NAMED = "map50_"
"""What metrics over classes that they name begin with."""


class AdaptiveDetection(DistillationModule):
    """Detection losses where a batch has boxes, none where it has not; detections where it is evaluated.

    ``flips`` chooses the source domain's view of labelled images instead of the strong one.
    """

    def __init__(self, student: nn.Module, optimizer: Optimizer, classes: Sequence[str], flips: bool) -> None:
        super().__init__(student, optimizer)
        self.classes, self.flips = tuple(classes), flips
        self.metrics = nn.ModuleDict({"val_": _precision(), "test_": _precision()})
        self._judged: dict[str, tuple[list[Tensor], ...]] = {}

    def predict(self, batch: Batch) -> Outputs:
        return models.predict(self.student, batch.images, batch.sizes)

    def forward_batch(self, batch: Batch) -> Outputs:
        if not isinstance(batch, LabelledBatch):
            return {}
        if self.flips:
            images, truth = views.jittered(batch.images, batch.sizes, batch.truth)
        else:
            images, truth = views.strong(batch.images, batch.sizes), batch.truth
        return batch_losses(self.student, images, batch.sizes, truth)

    def targets(self, batch: Batch) -> list[Truth] | Tensor:
        return batch.truth if isinstance(batch, LabelledBatch) else batch.rows

    def task_terms(self, output: Outputs, targets: Any) -> Mapping[str, Tensor]:
        return {name: value for name, value in output.items() if name in models.LOSSES}

    def evaluate(self, split: str, output: Outputs, targets: Sequence[Truth]) -> None:
        keys = ("boxes", "scores", "labels")
        rows = [dict(zip(keys, row, strict=True)) for row in zip(*(output[key] for key in keys), strict=True)]
        detections = [{key: value[row["scores"] > 0] for key, value in row.items()} for row in rows]
        self._metric(split).update(detections, [{"boxes": one.boxes, "labels": one.labels} for one in targets])

    def results(self, split: str) -> dict[str, float | Undefined]:
        metric = self._metric(split)
        values = metric.compute()
        lists = ("detection_box", "detection_scores", "detection_labels", "groundtruth_box", "groundtruth_labels")
        self._judged[split] = tuple(list(getattr(metric, name)) for name in lists)
        metric.reset()
        mine = scores(values, self.classes)
        if self.headline is not None and self.headline.startswith(NAMED):
            mine[self.headline] = mean_of_classes(self.headline, mine, self.classes)
        return mine

    def outcomes(self, split: str) -> Mapping[str, Tensor]:
        boxes, scores, labels, real, kinds = self._judged[split]
        return matching.outcomes((boxes, scores, labels), (real, kinds), self.classes, models.DETECTIONS)

    def _metric(self, split: str) -> MeanAveragePrecision:
        metric = self.metrics[f"{split}_"]
        assert isinstance(metric, MeanAveragePrecision)
        return metric


def _precision() -> MeanAveragePrecision:
    metric = MeanAveragePrecision(
        rec_thresholds=np.linspace(0, 1, 101).tolist(),  # COCO's; torchmetrics rounds them to float32
        max_detection_thresholds=[1, 10, models.DETECTIONS],
        extended_summary=True,
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False
    return metric


def scores(values: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float | Undefined]:
    """``map50`` (mean AP at IoU 0.5), ``map`` (IoU 0.5…0.95), ``ar100``, and ``ap50``, ``ar100`` of each class.

    ``values``: what torchmetrics' MeanAveragePrecision computes with ``extended_summary``. Classes without a true box
    have no entry and count in no mean; torchmetrics' −1 of a split without any true box is no score.
    """
    means = {"map50": float(values["map_50"]), "map": float(values["map"]), "ar100": float(values["mar_100"])}
    nothing = Undefined(f"no image has a box of {', '.join(classes)}")
    named = {name: nothing if value < 0 else value for name, value in means.items()}
    for place, number in enumerate(values["classes"].flatten().tolist()):
        precision = values["precision"][0, :, place, 0, -1]  # [recall thresholds] at IoU 0.5, all sizes
        recall = values["recall"][:, place, 0, -1]  # [IoU thresholds]
        if (precision > -1).any():
            named[f"ap50_{classes[number]}"] = float(precision[precision > -1].mean())
            named[f"ar100_{classes[number]}"] = float(recall[recall > -1].mean())
    return named


def mean_of_classes(metric: str, named: Mapping[str, float | Undefined], classes: Sequence[str]) -> float | Undefined:
    """``map50_A+B``: the mean of ``ap50_A`` and ``ap50_B``, without those that have no true box."""
    asked = metric.removeprefix(NAMED).split("+")
    if unknown := [name for name in asked if name not in classes]:
        return Undefined(f"there is no class {unknown[0]}, but {', '.join(classes)}")
    values = [value for name in asked if isinstance(value := named.get(f"ap50_{name}"), float)]
    return sum(values) / len(values) if values else Undefined(f"no image has a box of {', '.join(asked)}")


def batch_losses(network: Any, images: Tensor, sizes: Tensor, truth: Sequence[Truth]) -> dict[str, Tensor]:
    """:func:`models.losses` of a batch of images."""
    maps = network.extract_feat(models.normalised(images, sizes))
    return models.losses(network, maps, models.samples(images, sizes), truth)


class AdaptationTask(Task[AdaptationData, Detector, MeanTeacher]):
    """Source-free adaptation for the engine. No method is given labels of target training images, but the oracle."""

    cacheable = False
    selects: ClassVar[Literal["best", "last"]] = "last"

    def __init__(self, config: RunConfig[AdaptationData, Detector, MeanTeacher], store: StageStore) -> None:
        super().__init__(config, store)
        self.domains: Domains = domains.of_run(config.dataset, config.data, config.seed)

    @cached_property
    def facts(self) -> DataFacts:
        pair, info = self.domains, dataset(self.config.dataset)
        sizes = {"train": len(pair.target_train), "val": len(pair.target_val), "test": len(pair.target_test)}
        groups = torch.zeros(sizes["train"], dtype=torch.int64)
        sha256 = (pair.sha256, pair.split_sha256)
        return DataFacts(pair.name, *sha256, info.generated, info.licence, sizes, sizes["train"], groups)

    def balance(self) -> dict[str, dict[str, int]]:
        """True boxes; those of the target's training images are hidden."""
        here = self.domains
        parts = {"source train": here.source_train, "source val": here.source_val}
        parts |= {"val": here.target_val, "test": here.target_test}
        labels = {name: torch.cat([one.labels for one in part.truth]) for name, part in parts.items()}
        return {
            name: dict(zip(here.classes, of.bincount(minlength=len(here.classes)).tolist(), strict=True))
            for name, of in labels.items()
        }

    def data(self) -> Loaders:
        pair = self.domains
        return loaders(
            pair.target_train, pair.target_val, pair.target_test, self.config.data.batch_size, self.config.seed
        )

    def labelled(self) -> Loaders:
        """The same loaders with the target's training labels: for the oracle alone."""
        pair, config = self.domains, self.config
        labelled = domains.hidden_of_run(config.dataset, config.data, config.seed)
        return loaders(labelled, pair.target_val, pair.target_test, config.data.batch_size, config.seed)

    def foundation(self) -> Sequence[Stage]:
        return [SourceTask(self.config, self.store).stage()]

    def network(self) -> nn.Module:
        """A freshly initialised detector."""
        return models.build(self.config.student, len(self.domains.classes))

    def fresh_student(self) -> nn.Module:
        return self.network()

    def student(self) -> nn.Module:
        """The detector of the source domain."""
        network = self.network()
        network.load_state_dict(load_file(self.folder(SOURCE) / "weights.safetensors"))
        return network

    def module(self, student: nn.Module) -> AdaptiveDetection:
        return AdaptiveDetection(student, self.config.optimizer, self.domains.classes, flips=False)

    def example(self) -> Batch:
        return collate(
            self.domains.target_train, range(min(self.config.data.batch_size, len(self.domains.target_train)))
        )

    def batch_of(self, rows: Tensor) -> Batch:
        return collate(self.domains.target_train, rows.tolist())

    def rows_of(self, batch: Batch) -> Tensor:
        return batch.rows

    def items_of(self, split: str, batch: Batch) -> Tensor:
        """Places among the names of all target images in order."""
        here = self.domains
        parts = {"val": here.target_val.images, "test": here.target_test.images}
        every = {name for images in (here.target_train, *parts.values()) for name in images.names}
        place = {name: row for row, name in enumerate(sorted(every))}
        return torch.tensor([place[parts[split].names[row]] for row in batch.rows.tolist()])

    def steps(self) -> int:
        """Optimiser steps of an epoch; its last batches make one even if they are fewer than are accumulated."""
        trainer = self.config.trainer
        rows = math.ceil(len(self.domains.target_train) / trainer.processes)
        return math.ceil(math.ceil(rows / self.config.data.batch_size) / trainer.accumulate_grad_batches)

    def stages(self) -> Sequence[Stage]:
        return ()

    def live_teacher(self) -> FrozenTeacher:
        return FrozenTeacher(self.student(), forward)

    def teacher_facts(self) -> dict[str, Any]:
        description = "Faster R-CNN trained on the source domain"
        return {"kind": "frozen", "description": description, "metrics": {"val": {}, "test": {}}, "predictions": None}


def forward(network: nn.Module, batch: Batch) -> Outputs:
    """A detector's predictions for a batch."""
    return models.predict(network, batch.images, batch.sizes)


class SourceTask(AdaptationTask):
    """Supervised detection on the source domain with its own optimiser; the best of its validation is taken."""

    selects: ClassVar[Literal["best", "last"]] = "best"

    def __init__(self, config: RunConfig[AdaptationData, Detector, MeanTeacher], store: StageStore) -> None:
        own = config.shared.student
        optimizer = Optimizer(own.source_optimizer, own.source_lr, weight_decay=1e-4, schedule="cosine")
        trainer = replace(
            config.trainer,
            check_val_every_n_epoch=max(1, own.source_epochs // own.source_validations),
            accumulate_grad_batches=1,
        )
        super().__init__(replace(config.shared, optimizer=optimizer, trainer=trainer), store)

    def data(self) -> Loaders:
        pair = self.domains
        return loaders(pair.source_train, pair.source_val, None, self.config.data.source_batch_size, self.config.seed)

    def module(self, student: nn.Module) -> AdaptiveDetection:
        return AdaptiveDetection(student, self.config.optimizer, self.domains.classes, flips=True)

    def stage(self) -> Stage:
        """The stage that every arm of a seed begins with."""
        inputs = {
            "data": [self.domains.sha256, self.domains.split_sha256],
            "views": {**plain(self.config.data), "batch_size": None},
            "detector": plain(self.config.student),
        }
        epochs = self.config.student.source_epochs
        code = modules(self.config.student)
        stage = self.supervised(SOURCE, self.network, inputs, epochs, self.config.seed, code=code)
        return stage if self.config.student.weights != LITE0 else replace(stage, run=_with_provenance(stage.run))


def _with_provenance(run: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    """A stage's work whose report also says which file the backbone began with."""
    return lambda *given: {**run(*given), "backbone": efficientnet_lite.provenance()}


TASK = AdaptationTask
