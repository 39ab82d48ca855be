"""The source detector as it is: what every arm begins with, and what adaptation is measured against.

``θ = argmin L_detection(source)``; no target image is read before the test.
"""

from __future__ import annotations

from kdbench.engine.method import Method


class Alone(Method):
    """Trains nothing."""

    title = "source only: the source detector, not adapted"
    paper = ""
    teacher = "none"

    def epochs(self, budget: int) -> int:
        return 0
