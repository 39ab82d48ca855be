"""The student without a teacher: the arm that every gain is measured against.

``L = L_task`` under the same budget, seeds and selection as every other arm.
"""

from __future__ import annotations

from kdbench.engine.method import Method


class Alone(Method):
    """Adds no loss term."""

    title = "student alone"
    paper = ""
    teacher = "none"
