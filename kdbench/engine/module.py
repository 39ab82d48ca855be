"""The one LightningModule under every task family: student, task loss, and the named terms of a method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.engine.method import Method, Step
from kdbench.engine.taps import Taps
from kdbench.engine.teachers import Outputs, Teacher
from kdbench.errors import NonFiniteLossError
from kdbench.metrics import Undefined, defined
from kdbench.options import Optimizer

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class DistillationModule(pl.LightningModule):
    """``L = Σ_k w_k · L_k`` over the task's own terms and the method's, each logged as ``train/<name>``.

    A family defines what a batch, an output, the task's loss and its metrics are; everything else is here.
    """

    def __init__(self, student: nn.Module, optimizer: Optimizer) -> None:
        super().__init__()
        self.student = student
        self.method_modules = nn.ModuleDict()
        self.optimizer_options = optimizer
        self._method: Method | None = None
        self._teachers: Mapping[str, Teacher] = {}
        self._taps: Taps | None = None
        self._told: dict[str, list[Any]] = {}
        self.headline: str | None = None
        """The metric that the fit is judged by, which must be defined."""

    @abstractmethod
    def forward_batch(self, batch: Any) -> Outputs:
        """The student's outputs for a batch, rows aligned with the batch."""

    @abstractmethod
    def targets(self, batch: Any) -> Any:
        """The batch's labels; their ``len`` is the number of examples."""

    @abstractmethod
    def task_terms(self, output: Outputs, targets: Any) -> Mapping[str, Tensor]:
        """The task's own loss terms by name."""

    @abstractmethod
    def evaluate(self, split: str, output: Outputs, targets: Any) -> None:
        """Add an evaluation batch to the metrics of ``split``."""

    @abstractmethod
    def results(self, split: str) -> Mapping[str, float | Undefined]:
        """The metrics of ``split`` over the batches since the last call, which they forget.

        They are those of the family's ``METRICS``; :class:`kdbench.metrics.Undefined` where the labels define no value.
        """

    def scores(self, split: str) -> dict[str, float]:
        """The results that are defined. Raises :class:`UndefinedMetricError` where ``headline`` is not."""
        return defined(self.results(split), self.headline, split)

    def details(self) -> dict[str, Any]:
        """Record fields (``confusion``, ``predictions``) of the last test."""
        return {}

    def rows(self, feature: Tensor, batch: Any) -> Tensor:
        """The rows of a tapped feature that belong to the batch (all of them by default)."""
        return feature

    def attach(self, method: Method, teachers: Mapping[str, Teacher], modules: Mapping[str, nn.Module]) -> None:
        """Give the module its method, its teachers (held, not registered) and the networks that are trained with it."""
        self._method, self._teachers = method, teachers
        self._taps = Taps(self.student, method.taps(self.student))
        self.method_modules.update(modules)

    def observe(self, batch: Any) -> tuple[Outputs, Outputs]:
        """The student's outputs and tapped features for a batch."""
        assert self._taps is not None, "attach() comes first"
        with self._taps as taps:
            output = self.forward_batch(batch)
            return output, {alias: self.rows(value, batch) for alias, value in taps.read().items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self._method is not None, "attach() comes first"
        output, features = self.observe(batch)
        targets = self.targets(batch)
        step = Step(batch, targets, output, features, self._teachers, self.current_epoch, self)
        terms = {**self.task_terms(output, targets), **self._method.loss_terms(step)}
        weights = self._method.weights(step)
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        if not torch.isfinite(total):
            raise NonFiniteLossError(self.global_step, {name: float(term.detach()) for name, term in terms.items()})
        self._tell(
            {"loss": total, **terms, **{f"weight of {name}": w for name, w in weights.items()}, **step.told}, targets
        )
        return total

    def _tell(self, values: Mapping[str, Tensor | float], targets: Any) -> None:
        """Log ``train/<name>``, each the mean over the epoch's examples.

        Summed here and handed to Lightning with the last batch: its own bookkeeping costs milliseconds a step.
        """
        size = len(targets)
        for name, value in values.items():
            sums = self._told.setdefault(f"train/{name}", [0.0, 0])
            sums[0] = sums[0] + torch.as_tensor(value).detach() * size
            sums[1] += size
        if self.trainer.is_last_batch:
            self.log_dict(
                {name: total / examples for name, (total, examples) in self._told.items()},
                on_epoch=True,
                on_step=False,
                batch_size=1,
            )
            self._told.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("val", self.forward_batch(batch), self.targets(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.scores("val").items()})

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("test", self.forward_batch(batch), self.targets(batch))

    def configure_optimizers(self) -> Any:
        options = self.optimizer_options
        more = {"momentum": options.momentum} if options.name == "sgd" else {}
        optimizer = OPTIMIZERS[options.name](
            self.parameters(), lr=options.lr, weight_decay=options.weight_decay, **more
        )
        if options.schedule == "constant":
            return optimizer
        epochs = self.trainer.max_epochs or 1
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)]
