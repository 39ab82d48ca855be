"""What a distillation method is: the objective of the student's own training, and the plan around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal

import pytorch_lightning as pl
from torch import nn
from typing_extensions import TypeVar

from kdbench.engine.module import DistillationModule
from kdbench.engine.objective import Objective
from kdbench.engine.stages import Stage
from kdbench.engine.task import Task
from kdbench.engine.teachers import Teacher

TaskT = TypeVar("TaskT", bound=Task, default=Any)


class Method(Objective, Generic[TaskT]):
    """Base of every method. A method lives in one file with its ``Hyperparameters`` dataclass.

    Class attributes beside those of an objective: ``title``, ``paper`` (link), ``teacher`` (lifetime: none, frozen,
    ema, co-trained, several), ``controls`` (true for several teachers that are all frozen and given by
    :meth:`Task.wanted`, so that shuffled or random rows can take their place), ``kinds`` (kinds of task it runs on;
    empty for all of the family) and ``role`` (control, bound or reference for what is run to judge methods by and is
    none itself).
    ``TaskT`` is the task that it is written for.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    teacher: ClassVar[Literal["none", "frozen", "ema", "co-trained", "several"]]
    controls: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ()
    role: ClassVar[Literal["method", "control", "bound", "reference"]] = "method"

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def name(self) -> str:
        """The name that it is asked for by: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def stages(self, task: TaskT) -> Sequence[Stage]:
        """Stages to finish before the student is trained, in order; they may need the task's own stages by name.

        The task's teacher is made before them for a method whose lifetime is ``frozen``; another method that wants it
        puts ``task.stages()`` into its own.
        """
        return ()

    def data(self, task: TaskT) -> pl.LightningDataModule:
        """What the student is trained and validated on: the task's own data, or what the method made of it."""
        return task.data()

    def student(self, task: TaskT) -> nn.Module:
        """The student to begin with: freshly initialised, or what the method's stages left."""
        return task.student()

    def epochs(self, budget: int) -> int:
        """Epochs of the student's training, given the task's budget; 0 for a student that is deployed as it begins."""
        return budget

    def teachers(self, task: TaskT) -> Mapping[str, Teacher]:
        """Teachers by name. By default the task's frozen teacher, unless the method has none."""
        return {} if self.teacher == "none" else {"teacher": task.teacher()}

    def teacher_facts(self, task: TaskT, module: DistillationModule) -> dict[str, Any]:
        """What the record says of the teacher beside its hash (see :meth:`Task.teacher_facts`), once all is trained."""
        return task.teacher_facts()
