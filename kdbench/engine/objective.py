"""What happens in one fit: a Lightning callback that names the loss terms and all that they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
from torch import Tensor, nn

from kdbench.engine.step import Shapes, Step
from kdbench.engine.teachers import Teacher


class Objective(pl.Callback):
    """The task's own loss terms, and nothing beside them; a subclass adds to them or takes their place.

    All of Lightning's hooks are available beside those below. Networks that are trained beside the student are best
    kept as attributes, where :meth:`modules` makes them.
    """

    supervised: ClassVar[bool] = True
    """Whether the task's own loss terms are part of the loss."""
    judged_by: ClassVar[Literal["metrics", "loss"]] = "metrics"
    """What a validation computes: the task's metrics, or the loss itself, as ``val/loss``."""
    skips: ClassVar[bool] = False
    """Whether a step may leave parameters without a gradient: several processes then look for them at every step."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        """Student features to read: alias -> module path."""
        return {}

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        """Networks trained beside the student: optimised, checkpointed and moved with it, never deployed."""
        return {}

    def frozen(self, student: nn.Module) -> Iterable[nn.Module]:
        """Parts of the student, or all of it, that stay in eval mode and get no gradient: running statistics too."""
        return ()

    def parameter_groups(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[Mapping[str, Any]]:
        """torch's parameter groups of all that is trained, given by name (``student.…``, ``networks.…``)."""
        return [{"params": list(parameters.values())}]

    def companions(self) -> Sequence[pl.Callback]:
        """Further callbacks that it is made of."""
        return ()

    def inputs(self, batch: Any, teachers: Mapping[str, Teacher], student: nn.Module) -> Any:
        """The batch that the step is about: as loaded, or what teachers or the student itself make of it."""
        return batch

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        """Named loss terms (scalars), added to the task's own."""
        return {}

    def weights(self, step: Step) -> Mapping[str, Tensor | float]:
        """Weight of each term by name, the task's own terms included; 1 where none is given."""
        return {}


def decay_groups(parameters: Iterable[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Two parameter groups: weights of two dimensions or more, and biases, norms and scales without weight decay.

    ``options`` (``lr`` say) hold for both.
    """
    every = list(parameters)
    weights, others = ([one for one in every if (one.dim() > 1) == wide] for wide in (True, False))
    return [{"params": weights, **options}, {"params": others, **options, "weight_decay": 0.0}]
