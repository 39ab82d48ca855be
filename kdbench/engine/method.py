"""What a distillation method is: a Lightning callback that names its loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytorch_lightning as pl
from torch import Tensor, nn

from kdbench.engine.stages import Stage
from kdbench.engine.teachers import OUTPUT, Named, Outputs, Teacher

if TYPE_CHECKING:
    from kdbench.engine.module import DistillationModule
    from kdbench.engine.task import Task


@dataclass(frozen=True)
class Shapes:
    """Row shapes of the tapped student features and of the teacher's outputs, for sizing what a method trains."""

    student: Mapping[str, tuple[int, ...]]
    teacher: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "student", Named("tapped student feature", self.student))
        object.__setattr__(self, "teacher", Named(OUTPUT, self.teacher))


@dataclass
class Step:
    """What a method sees of one training step. All tensors are aligned with the rows of the batch."""

    batch: Any
    targets: Any
    output: Outputs
    """The student's outputs (``logits`` and what else the family names)."""
    features: Outputs
    """The tapped student features, by alias."""
    teachers: Mapping[str, Teacher]
    epoch: int
    module: pl.LightningModule
    told: dict[str, Tensor] = field(default_factory=dict)
    """Further values that the method wants logged, by name."""

    @cached_property
    def teacher(self) -> Outputs:
        """The outputs of the only teacher for this batch; computed on first use."""
        (teacher,) = self.teachers.values()
        return teacher(self.batch)


class Method(pl.Callback):
    """Base of every method. A method lives in one file with its ``Hyperparameters`` dataclass.

    Class attributes: ``title``, ``paper`` (link), ``teacher`` (lifetime: none, frozen, ema, co-trained, several),
    ``kinds`` (kinds of task it runs on; empty for all of the family), ``role`` (control or bound for what is run to
    judge methods by and is none itself) and ``skips`` (whether a step may leave parameters without a gradient: several
    processes then look for them at every step). All of Lightning's hooks are available beside those below.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    teacher: ClassVar[Literal["none", "frozen", "ema", "co-trained", "several"]]
    kinds: ClassVar[tuple[str, ...]] = ()
    role: ClassVar[Literal["method", "control", "bound"]] = "method"
    skips: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def name(self) -> str:
        """The name that it is asked for by: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def stages(self, task: Task) -> Sequence[Stage]:
        """Stages to finish before the student is trained, in order; they may need the task's own stages by name.

        The task's teacher is made before them for a method whose lifetime is ``frozen``; another method that wants it
        puts ``task.stages()`` into its own.
        """
        return ()

    def data(self, task: Task) -> pl.LightningDataModule:
        """What the student is trained and validated on: the task's own data, or what the method made of it."""
        return task.data()

    def student(self, task: Task) -> nn.Module:
        """The student to begin with: freshly initialised, or what the method's stages left."""
        return task.student()

    def taps(self, student: nn.Module) -> Mapping[str, str]:
        """Student features to read: alias -> module path."""
        return {}

    def modules(self, shapes: Shapes) -> Mapping[str, nn.Module]:
        """Networks trained beside the student: optimised, checkpointed and moved with it, never deployed."""
        return {}

    def companions(self) -> Sequence[pl.Callback]:
        """Further callbacks that the method is made of."""
        return ()

    def epochs(self, budget: int) -> int:
        """Epochs of the student's training, given the task's budget; 0 for a student that is deployed as it begins."""
        return budget

    def teachers(self, task: Task) -> Mapping[str, Teacher]:
        """Teachers by name. By default the task's frozen teacher, unless the method has none."""
        return {} if self.teacher == "none" else {"teacher": task.teacher()}

    def teacher_facts(self, task: Task, module: DistillationModule) -> dict[str, Any]:
        """What the record says of the teacher beside its hash (see :meth:`Task.teacher_facts`), once all is trained."""
        return task.teacher_facts()

    def loss_terms(self, step: Step) -> Mapping[str, Tensor]:
        """Named loss terms (scalars), added to the task's own."""
        return {}

    def weights(self, step: Step) -> Mapping[str, Tensor | float]:
        """Weight of each term by name, the task's own terms included; 1 where none is given."""
        return {}
