"""Building a network of a user's own, and trying it on one batch before any work is done for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.engine.seeds import axis, seeded
from kdbench.engine.taps import Taps
from kdbench.engine.teachers import Outputs
from kdbench.errors import KdbenchError, UsageError, shown, unknown
from kdbench.plan.own import module_of, search_working_folder

if TYPE_CHECKING:
    from kdbench.engine.objective import Objective
    from kdbench.engine.task import Task


def build(name: str, section: str, options: Mapping[str, Any], **dictated: Any) -> nn.Module:
    """``Class(**dictated, **options)`` of ``module:Class``: what the data dictate, and the user's options.

    ``section`` (student, teacher) names the option in messages. Raises :class:`UsageError` for what cannot be built.
    """
    where = f"{section}.name={name}"
    kind = _class(name, where)
    if both := sorted(options.keys() & dictated.keys()):
        raise UsageError(f"{section}.options: the data dictate {', '.join(both)}.")
    try:
        network = kind(**dictated, **options)
    except KdbenchError:
        raise
    except Exception as error:
        given = ", ".join([*dictated, *options])
        raise UsageError(f"{where} cannot be built with {given}: {_words(error)}.") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"{where} gives a {type(network).__name__}, not a torch.nn.Module.")
    return network


def _class(name: str, where: str) -> Any:
    module_name, _, class_name = name.partition(":")
    search_working_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{where}: importing it failed: {_words(error)}.") from error
        raise UsageError(
            f"{where}: there is no module '{module_name}', neither installed nor in {Path.cwd()}."
        ) from None
    except Exception as error:
        raise UsageError(f"{where}: importing it failed: {_words(error)}.") from error
    if not callable(getattr(module, class_name, None)):
        names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise unknown(f"network of {module_name}", class_name, names)
    return getattr(module, class_name)


def try_networks(task: Task, objective: Objective, taught: bool) -> None:
    """Run networks of the user's own on one batch of the task, and look for what the method reads of the student.

    ``taught``: whether the run has a frozen teacher. Raises :class:`UsageError` where one breaks the contract of its
    kind (see ``kdbench show TASK``); a network that is ours is not tried.
    """
    if module_of(getattr(task.config.student, "name", "")):
        where = f"student.name={task.config.student.name}"
        with seeded(axis(task.config.seed, "student")):
            student = task.fresh_student()
        module = task.module(student).eval()
        _check(task, lambda: module.predict(task.example()), where)
        student.train()
        try:
            Taps(student, objective.taps(student))
        except (UsageError, AttributeError) as error:
            raise UsageError(f"{where} lacks what '{objective.name}' reads of it: {_words(error)}.") from error
    if taught and module_of(getattr(task.config.teacher, "name", "")):
        teacher = task.teacher_network()
        if teacher is not None:
            frozen = task.frozen(teacher)
            _check(task, lambda: frozen(task.example()), f"teacher.name={task.config.teacher.name}")


def _check(task: Task, forward: Callable[[], Outputs], where: str) -> None:
    see = f"'kdbench show {task.config.task}' says what a network of this kind takes and gives"
    try:
        with torch.no_grad():
            output = forward()
    except KdbenchError:
        raise
    except Exception as error:
        raise UsageError(f"{where} fails on a batch of {task.config.task}: {_words(error)}; {see}.") from error
    if task.logits_shape is None:
        return
    logits, wanted = output["logits"], (len(task.rows_of(task.example())), *task.logits_shape)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise UsageError(f"{where} gives a {type(logits).__name__}, not floating-point logits; {see}.")
    if tuple(logits.shape) != wanted:
        raise UsageError(f"{where} gives logits {list(logits.shape)} for a batch, not {list(wanted)}; {see}.")


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file of a teacher's weights. Raises :class:`UsageError` for one that does not fit."""
    if not path.is_file():
        raise UsageError(f"teacher.weights={path}: there is no such file.")
    try:
        network.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise UsageError(f"teacher.weights={path} is not a safetensors file: {error}.") from None
    except RuntimeError as error:
        raise UsageError(f"teacher.weights={path} does not fit the teacher: {_words(error)}.") from None


def _words(error: Exception) -> str:
    """An error of the user's code in words, in one line."""
    kind = "" if isinstance(error, KdbenchError) else f"{type(error).__name__}: "
    return shown(f"{kind}{' '.join(str(error).split())}".rstrip("."))
