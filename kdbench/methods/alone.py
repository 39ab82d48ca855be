"""The student without a teacher: the arm that every gain is measured against.

``L = L_task`` with the same seeds, selection and number of epochs as every other arm. ``method.budget=2.5`` trains 2.5
times as long: the control for a method whose step costs 2.5 times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from kdbench.engine.method import Method


@dataclass(frozen=True)
class Hyperparameters:
    budget: Annotated[float, Ge(1)] = 1.0
    """Multiple of the task's epochs."""


class Alone(Method):
    """Adds no loss term."""

    title = "student alone"
    paper = ""
    teacher = "none"
    options: Hyperparameters

    def epochs(self, budget: int) -> int:
        return round(budget * self.options.budget)
