"""The one LightningModule under every task family: student, task loss, and the named terms of an objective."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from kdbench.engine.distributed import in_all, of_all
from kdbench.engine.loaders import Composite
from kdbench.engine.objective import Objective
from kdbench.engine.step import Step
from kdbench.engine.taps import Taps
from kdbench.engine.teachers import Named, Outputs, Teacher
from kdbench.errors import KdbenchError, NonFiniteLossError, UnknownNameError, UsageError, unknown
from kdbench.plan.metrics import Undefined, defined
from kdbench.plan.options import Optimizer

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class DistillationModule(pl.LightningModule, ABC):
    """``L = Σ_k w_k · L_k`` over the task's own terms and the objective's, each logged as ``train/<name>``.

    A family defines what a batch, an output, the task's loss and its metrics are; everything else is here.
    """

    def __init__(self, student: nn.Module, optimizer: Optimizer) -> None:
        super().__init__()
        self.student = student
        self.networks = nn.ModuleDict()
        """What the objective trains beside the student."""
        self.optimizer_options = optimizer
        self._objective: Objective | None = None
        self._frozen: list[nn.Module] = []
        self._teachers: Mapping[str, Teacher] = {}
        self._taps: Taps | None = None
        self._sums: dict[str, tuple[float, int]] = {}
        self._losses: list[tuple[float, int]] = []
        self.headline: str | None = None
        """The metric that the fit is judged by, which must be defined."""

    @abstractmethod
    def forward_batch(self, batch: Any) -> Outputs:
        """The student's outputs for a training batch, rows aligned with the batch."""

    def predict(self, batch: Any) -> Outputs:
        """The student's outputs for a batch that it is validated, tested or measured on."""
        return self.forward_batch(batch)

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

        They are the kind's ``METRICS``; :class:`kdbench.plan.metrics.Undefined` where the labels define no value.
        """

    def scores(self, split: str) -> dict[str, float]:
        """The results that are defined. Raises :class:`UndefinedMetricError` where ``headline`` is not."""
        return defined(self.results(split), self.headline, split)

    def collapsed(self, scores: Mapping[str, float]) -> bool:
        """Whether validation scores are those of a student that some class is lost to; by default nothing is known."""
        return False

    def details(self) -> dict[str, Any]:
        """Record fields (``confusion``, ``predictions``) of the last test."""
        return {}

    def outcomes(self, split: str) -> Mapping[str, Tensor]:
        """What the last :meth:`results` of a split were made of: tensors by name, a row for each example.

        The names are those of :mod:`kdbench.results.outcomes`, ``targets`` among them. Nothing for a kind that keeps
        nothing: intervals over its runs cover seeds alone.
        """
        return {}

    def rows(self, feature: Tensor, batch: Any) -> Tensor:
        """The rows of a tapped feature that belong to the batch (all of them by default)."""
        return feature

    @property
    def objective(self) -> Objective:
        """What the module is trained for."""
        assert self._objective is not None, "attach() comes first"
        return self._objective

    def attach(self, objective: Objective, teachers: Mapping[str, Teacher]) -> None:
        """Give the module what it is trained for, and its teachers (held, not registered)."""
        self._objective, self._teachers = objective, Named("teacher", teachers)
        self._taps = Taps(self.student, objective.taps(self.student))

    def hold(self, parts: Iterable[nn.Module]) -> None:
        """Keep parts of the student in eval mode and without gradients."""
        self._frozen = [part.eval().requires_grad_(False) for part in parts]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def observe(self, batch: Any, forward: Callable[[Any], Outputs]) -> tuple[Outputs, Outputs]:
        """The student's outputs, as ``forward`` gives them, and its tapped features for a batch."""
        assert self._taps is not None, "attach() comes first"
        with self._taps as taps:
            output = forward(batch)
            return output, {alias: self.rows(value, batch) for alias, value in taps.read().items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total, terms, logs, targets = self._loss(batch)
        value = total.item()
        self._check_finite(value, terms)
        self._add_to_logs({"loss": value, **terms, **logs}, targets, batch_idx)
        return total

    def _loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor | float], Any]:
        """The loss of a batch, its terms, what else is logged, and the batch's labels."""
        objective, beside = self.objective, {}
        if isinstance(batch, Composite):
            batch, beside = batch.main, batch.beside
        batch = objective.inputs(batch, self._teachers, self.student)
        output, features = self.observe(batch, self.forward_batch)
        targets = self.targets(batch)
        named = Named("student output", output), Named("tapped student feature", features)
        epochs = self.trainer.max_epochs or 1
        step = Step(batch, targets, *named, self._teachers, self.current_epoch, epochs, self.student, beside)
        try:
            own = self.task_terms(output, targets) if objective.supervised else {}
            added, weights = objective.loss_terms(step), objective.weights(step)
        except UnknownNameError as error:
            raise KdbenchError(f"Method '{objective.name}': {error}") from error
        if both := own.keys() & added.keys():
            raise KdbenchError(f"Method '{objective.name}' names a loss term '{min(both)}', which the task has too.")
        terms = {**own, **added}
        logs = {**{f"weight of {name}": w for name, w in weights.items()}, **step.logs}
        return self._total(terms, weights), terms, logs, targets

    def _total(self, terms: Mapping[str, Tensor], weights: Mapping[str, Tensor | float]) -> Tensor:
        """The weighted sum of the terms; :class:`KdbenchError` names the method and the term at fault."""
        if not weights.keys() <= terms.keys():
            wrong = next(name for name in weights if name not in terms)
            raise KdbenchError(f"Method '{self.objective.name}', weights: {unknown('loss term', wrong, terms)}")
        try:
            weighted = [weights[name] * term if name in weights else term for name, term in terms.items()]
            if len(weighted) == 2 and all(_is_scalar(term) for term in weighted):
                one, other = weighted
                if one.device == other.device:
                    return one + other  # the same sum at half the cost
            each = torch.stack(weighted)
        except (RuntimeError, TypeError) as error:
            raise self._misshapen(terms, weights) or error from None
        if each.dim() != 1:
            raise self._misshapen(terms, weights) or AssertionError(each.shape)
        return each.sum()

    def _misshapen(self, terms: Mapping[str, Tensor], weights: Mapping[str, Tensor | float]) -> KdbenchError | None:
        """The error for terms or weights that are no scalars, or no terms at all; None if they are as is due."""
        if not terms:
            return KdbenchError(f"Method '{self.objective.name}': neither it nor the task names a loss term.")
        scalars = [("the loss term", name, term) for name, term in terms.items()]
        scalars += [("the weight of", name, w) for name, w in weights.items() if not isinstance(w, int | float)]
        faults = [f"{what} '{name}' is {_shape(value)}" for what, name, value in scalars if not _is_scalar(value)]
        if not faults:
            apart = {name: term.device for name, term in terms.items() if term.device != self.device}
            faults = [f"the loss term '{name}' is on {device}, not on {self.device}" for name, device in apart.items()]
        message = f"Method '{self.objective.name}': {', '.join(faults)}; a scalar tensor is due."
        return KdbenchError(message) if faults else None

    def _check_finite(self, total: float, terms: Mapping[str, Tensor]) -> None:
        """:class:`NonFiniteLossError`, the same in all processes, where one of them has such a loss."""
        finite, several = math.isfinite(total), self.trainer.world_size > 1
        if in_all(torch.tensor(finite, device=self.device)) if several else finite:
            return
        mine = None if finite else {name: float(term.detach()) for name, term in terms.items()}
        of_each = of_all(mine) if several else [mine]
        first = next(values for values in of_each if values is not None)
        raise NonFiniteLossError(self.global_step, first)

    def _add_to_logs(self, values: Mapping[str, Tensor | float], targets: Any, batch_idx: int) -> None:
        """With the epoch's last batch, publish each as ``train/<name>``: the mean over examples in all processes.

        Summed in double precision. The loss has been waited for, so reading the other values waits for nothing.
        """
        size, sums = len(targets), self._sums
        for name, value in values.items():
            logged, number = f"train/{name}", value.item() if isinstance(value, Tensor) else value
            total, examples = sums.get(logged, (0.0, 0))
            sums[logged] = total + number * size, examples + size
        if self._ends_epoch(batch_idx):
            if self.trainer.world_size > 1:
                sums = _summed(of_all(sums))
            self._publish({name: total / examples for name, (total, examples) in sums.items()})
            self._sums = {}

    def _publish(self, values: Mapping[str, float]) -> None:
        """Give callbacks the values of an epoch. Lightning's ``log_dict``, to the same end, takes 0.4 ms for each."""
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

    def _ends_epoch(self, batch_idx: int) -> bool:
        """Whether no batch of the epoch comes after this one: it is the last, or takes the last step of the budget."""
        trainer = self.trainer
        steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        return trainer.is_last_batch or (steps and trainer.global_step + 1 == trainer.max_steps)

    def on_fit_start(self) -> None:
        for teacher in self._teachers.values():
            teacher.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["logged"] = [self._sums] if self.trainer.world_size == 1 else of_all(self._sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = dict(checkpoint["logged"][self.trainer.global_rank])

    def judge(self, split: str, batch: Any, batch_idx: int) -> None:
        """Add the student's outputs for a batch to the metrics of ``split``.

        :class:`KdbenchError` names the first row with a NaN or infinite output: it would be scored as some class.
        """
        output = self.predict(batch)
        for name, value in output.items():
            row = _first_bad_row(value)
            if row is not None:
                raise KdbenchError(
                    f"The student's output '{name}' for the {split} split is not finite: row {row} of batch "
                    f"{batch_idx} (both from 0). Either the data hold such values, or the training came to them."
                )
        self.evaluate(split, output, self.targets(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.objective.judged_by == "metrics":
            return self.judge("val", batch, batch_idx)
        total, _, _, targets = self._loss(batch)
        self._losses.append((float(total), len(targets)))

    def on_validation_epoch_end(self) -> None:
        if self.objective.judged_by == "metrics":
            values = self.scores("val")
        else:
            losses, self._losses = self._losses, []
            values = {"loss": sum(loss * size for loss, size in losses) / sum(size for _, size in losses)}
        self._publish({f"val/{name}": value for name, value in values.items()})

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The objective's parameter groups, which must hold all that is trained once."""
        trained = {name: value for name, value in self.named_parameters() if value.requires_grad}
        groups = [{**group, "params": list(group["params"])} for group in self.objective.parameter_groups(trained)]
        held = [id(parameter) for group in groups for parameter in group["params"]]
        if missing := [name for name, value in trained.items() if held.count(id(value)) != 1]:
            raise KdbenchError(
                f"Method '{self.objective.name}': its parameter groups must hold each trained parameter once; "
                f"'{missing[0]}' is not."
            )
        return groups

    def configure_optimizers(self) -> Any:
        options = self.optimizer_options
        more = {"momentum": options.momentum} if options.name == "sgd" else {}
        optimizer = OPTIMIZERS[options.name](
            self._parameter_groups(), lr=options.lr, weight_decay=options.weight_decay, **more
        )
        if options.schedule_by == "step":
            scheduler = step_schedule(optimizer, options, self._steps())
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        if options.schedule == "constant":
            return optimizer
        epochs = self.trainer.max_epochs or 1
        return [optimizer], [CosineAnnealingLR(optimizer, T_max=epochs)]

    def _steps(self) -> int:
        """Optimiser steps of the whole fit.

        Lightning's own estimate takes the training loader before a checkpoint's place in the epoch is given to it.
        """
        trainer: Any = self.trainer
        batches = len(trainer.datamodule.train_dataloader())
        steps: int = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
        return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def step_schedule(optimizer: torch.optim.Optimizer, options: Optimizer, steps: int) -> LRScheduler:
    """The learning rate of each of ``steps`` optimiser steps: lr · i/(w + 1) for i = 1 … w, then the schedule.

    Raises :class:`UsageError` where the warm-up leaves no step.
    """
    warmup, rest = options.warmup_steps, steps - options.warmup_steps
    if rest < 1:
        raise UsageError(f"optimizer.warmup_steps={warmup}: the training has {steps} optimiser steps in all.")
    if options.schedule == "cosine":
        main: LRScheduler = CosineAnnealingLR(optimizer, T_max=rest)
    else:
        main = ConstantLR(optimizer, factor=1.0, total_iters=0)
    if not warmup:
        return main
    first = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [first, main], milestones=[warmup])


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def _shape(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _first_bad_row(value: Any) -> int | None:
    """The first row of an output (one tensor, or one a row) that holds NaN or an infinity."""
    if not isinstance(value, Tensor):
        return next((row for row, part in enumerate(value) if _first_bad_row(part) is not None), None)
    if not value.is_floating_point() or torch.isfinite(value.sum()):
        return None
    bad = ~torch.isfinite(value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)).all(dim=1)
    return int(bad.nonzero()[0]) if bad.any() else None


def _summed(parts: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """The sums over parts, of which one may not have all names."""
    totals: dict[str, tuple[float, int]] = {}
    for part in parts:
        for name, (total, examples) in part.items():
            before = totals.get(name, (0.0, 0))
            totals[name] = before[0] + total, before[1] + examples
    return totals
