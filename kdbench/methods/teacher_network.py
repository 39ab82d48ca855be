"""The teacher network itself, as a record of its own: what imitation alone could reach at best.

``θ = θ_T``: the frozen teacher that plain KD learns from is deployed as it is. It is validated and tested by the task's
own protocol, and its size, operations and latency are measured as a student's; nothing is trained beyond its stages.

Source: the cumbersome model of Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage
from kdbench.engine.task import Task
from kdbench.engine.teachers import Teacher
from kdbench.errors import UsageError


class TeacherNetwork(Method[Task]):
    """Deploys the teacher without a step."""

    title = "the teacher network, deployed"
    paper = "https://arxiv.org/abs/1503.02531"
    teacher = "frozen"
    controls = False
    role = "bound"
    kinds = ("graph_classification", "segmentation_3d", "paired_classification")

    def stages(self, task: Task) -> Sequence[Stage]:
        if task.brought:
            raise UsageError("teacher.source=outputs brings a teacher's outputs, and no network to deploy.")
        return ()

    def student(self, task: Task) -> nn.Module:
        network = task.teacher_network()
        assert network is not None, "its kinds have one"
        network.load_state_dict(task.live_teacher().network.state_dict())
        return network

    def epochs(self, budget: int) -> int:
        return 0

    def teachers(self, task: Task) -> Mapping[str, Teacher]:
        return {"teacher": task.live_teacher()}
