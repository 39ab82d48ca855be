"""One fit of an objective: for the student that is deployed, and for every stage that trains a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from kdbench.engine.callbacks import Curves, Selection
from kdbench.engine.fitting import fit
from kdbench.engine.module import DistillationModule
from kdbench.engine.objective import Objective
from kdbench.engine.seeds import axis, seeded
from kdbench.engine.step import Shapes
from kdbench.engine.teachers import EMATeacher, Teacher
from kdbench.plan.options import Trainer


def assemble(
    module: DistillationModule, objective: Objective, teachers: Mapping[str, Teacher], example: Any, seed: int
) -> None:
    """Give the module its objective and teachers, and the networks trained beside the student, from their own stream.

    The ``example`` batch is run to find the shapes that those are sized by.
    """
    module.attach(objective, teachers)
    module.eval()
    for teacher in teachers.values():
        teacher.to(module.device)
    with torch.no_grad():
        _, features = module.observe(example, module.predict)
        still = [teacher for teacher in teachers.values() if not isinstance(teacher, EMATeacher)]
        outputs = {name: value for teacher in still for name, value in teacher(example).items()}
    shapes = [{name: tuple(value.shape[1:]) for name, value in group.items()} for group in (features, outputs)]
    with seeded(axis(seed, "method")):
        module.networks.update(objective.modules(Shapes(*shapes)))
    module.hold(objective.frozen(module.student))
    module.train()


def distil(
    module: DistillationModule,
    data: pl.LightningDataModule,
    selection: Selection,
    options: Trainer,
    epochs: int,
    seed: int,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
) -> tuple[Curves, torch.device]:
    """Train an assembled module for ``epochs``, from ``folder/last.ckpt`` if there is one; what was logged, and where.

    ``selection`` holds the chosen weights afterwards; without an epoch they are those that the student begins with.
    """
    objective, curves = module.objective, Curves()
    module.headline = selection.metric if objective.judged_by == "metrics" else None
    if not epochs:
        selection.keep(module, 0, float("nan"))
        return curves, torch.device("cpu")
    every = [objective, selection, curves, *callbacks, *objective.companions()]
    return curves, fit(module, data, options, epochs, seed, folder, every)
