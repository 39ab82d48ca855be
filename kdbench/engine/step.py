"""What an objective sees: one training step, and the row shapes that its networks are sized by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from kdbench.engine.teachers import OUTPUT, Named, Outputs, Teacher


@dataclass(frozen=True)
class Shapes:
    """Row shapes of the tapped student features and of the teacher's outputs, for sizing what an objective trains."""

    student: Mapping[str, tuple[int, ...]]
    teacher: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "student", Named("tapped student feature", self.student))
        object.__setattr__(self, "teacher", Named(OUTPUT, self.teacher))


@dataclass
class Step:
    """One training step. All tensors are aligned with the rows of the batch."""

    batch: Any
    targets: Any
    output: Outputs
    """The student's outputs (``logits`` and what else the family names)."""
    features: Outputs
    """The tapped student features, by alias."""
    teachers: Mapping[str, Teacher]
    epoch: int
    epochs: int
    """Epochs of the whole fit."""
    student: nn.Module
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Batches of the other loaders of a composite, by name."""
    logs: dict[str, Tensor] = field(default_factory=dict)
    """Further values that the objective wants logged, by name."""

    @cached_property
    def teacher(self) -> Outputs:
        """The outputs of the only teacher for this batch; computed on first use."""
        (teacher,) = self.teachers.values()
        return teacher(self.batch)
