"""Option dataclasses: those of every task, and how one is built from values with every name and type checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from kdbench.errors import UsageError, unknown
from kdbench.overrides import word

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Optimizer:
    """How the student and what the method trains are optimised."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser of torch.optim."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    """Weight decay (decoupled for adamw)."""
    momentum: Annotated[float, Ge(0)] = 0.9
    """Momentum; read by sgd alone."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the epochs."""


@dataclass(frozen=True)
class Trainer:
    """How Lightning trains. Every arm of a task gets the same budget."""

    max_epochs: Annotated[int, Gt(0)] = 100
    """Epochs of the student's training."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    devices: Annotated[int, Gt(0), Le(256)] = 1
    """Processes (and GPUs) per node."""
    num_nodes: Annotated[int, Gt(0), Le(1000)] = 1
    """Nodes."""
    strategy: Literal["auto", "ddp", "ddp_spawn"] = "auto"
    """Lightning strategy."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Arithmetic of the student's forward pass."""
    accumulate_grad_batches: Annotated[int, Gt(0)] = 1
    """Batches per optimiser step."""
    gradient_clip_val: Annotated[float, Ge(0)] = 0.0
    """Gradient norm bound; 0 for none."""
    check_val_every_n_epoch: Annotated[int, Gt(0)] = 1
    """Epochs between validations; the best validation chooses the weights."""
    checkpoint_every_n_epochs: Annotated[int, Gt(0)] = 25
    """Epochs between the checkpoints that a killed run goes on from."""

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes

    def in_one_process(self) -> Trainer:
        """The same for a stage: one process of a run does it while the others wait for its result."""
        return replace(self, devices=1, num_nodes=1, strategy="auto")


def plain(options: Any) -> dict[str, Any]:
    """An options dataclass as plain JSON values."""
    dumped: dict[str, Any] = _adapter(options.__class__).dump_python(options, mode="json")
    return dumped


def merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge sections of options, the last layer wins; OmegaConf resolves interpolations (``${student.width}``)."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.items():
            merged.setdefault(section, {}).update(values)
    if not any(isinstance(v, str) and "${" in v for values in merged.values() for v in values.values()):
        return merged
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"Cannot resolve the options: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    return {str(section): values for section, values in resolved.items()}


def build(options: type, values: Mapping[str, Any], section: str) -> Any:
    """An options dataclass from values, every name and type checked; a number is taken for a text where one is due."""
    from pydantic import ValidationError

    names = [f.name for f in fields(options)]
    for name in values:
        if name not in names:
            raise OptionError(f"{section}.{name}", str(unknown("option", name, names)))

    def fault(place: Iterable[str | int], given: Any, said: str) -> OptionError:
        where = ".".join([section, *map(str, place)]).strip(".")
        return OptionError(where, f"{where}={word(given)}: {said}.")

    try:
        built = _adapter(options).validate_python(values)
    except ValidationError as error:
        faults = error.errors()
        numbers = {e["loc"][0]: str(e["input"]) for e in faults if e["loc"] and type(e["input"]) in (int, float)}
        try:
            built = _adapter(options).validate_python({**values, **numbers})
        except ValidationError:
            first = faults[0]
            if first["type"] == "missing":
                place = ".".join([section, *map(str, first["loc"])])
                raise OptionError(place, f"{place} is missing.") from None
            raise fault(first["loc"], first["input"], first["msg"].replace("Input should", "should", 1)) from None
    for name, given in values.items():
        taken = getattr(built, name)
        if isinstance(taken, bool) and not isinstance(given, bool):
            raise fault([name], given, "should be true or false")
        if isinstance(given, bool) and not isinstance(taken, bool):
            raise fault([name], given, "should not be true or false")
        if isinstance(taken, float) and not math.isfinite(taken):
            raise fault([name], given, "should be a finite number")
        if isinstance(taken, str) and not {"\n", "\r"}.isdisjoint(taken):
            raise fault([name], given, "should be one line")
    return built


@functools.cache
def _adapter(options: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(options)


class OptionError(UsageError):
    """An option with a wrong name or value; ``field`` is its dotted place."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


def check_sections(types: Mapping[str, type], sections: Any) -> None:
    """Check a card's option sections one value at a time, so that a fault names its field."""
    if not isinstance(sections, Mapping):
        raise OptionError("", "a scale, like the defaults, is a mapping of sections.")
    for section, values in sections.items():
        if section not in types:
            raise OptionError(str(section), str(unknown("section", str(section), types)))
        if not isinstance(values, Mapping):
            raise OptionError(section, "a section is a mapping of options.")
        for key, value in values.items():
            if not (isinstance(value, str) and "${" in value):
                build(types[section], {key: value}, section)
