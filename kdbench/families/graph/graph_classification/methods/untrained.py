"""The student as it is initialised: the control for what a network's structure alone can tell.

``θ = θ_0``: nothing is trained, nothing selected. Sums over the nodes' random states differ between graphs of different
sizes and labels, so the area under the ROC curve can lie far from one half, in either direction.

Source: "epoch 0" in the released code and logs of arXiv 2310.09486, which validate before the first optimiser step.
"""

from __future__ import annotations

from kdbench.engine.method import Method


class Untrained(Method):
    """Deploys the student of the run seed without a step."""

    title = "untrained student"
    paper = "https://arxiv.org/abs/2310.09486"
    teacher = "none"
    role = "control"

    def epochs(self, budget: int) -> int:
        return 0
