"""Option dataclasses: those of every task, and how one is built from values with every name and type checked."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le

from kdbench.errors import UsageError, shown, unknown
from kdbench.plan.overrides import word
from kdbench.plan.written import WrittenFloat, WrittenInt, as_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter


LATER = "later"
"""Marks an option (``Annotated[…, LATER]``) that came after records without it: see :func:`written`."""


@dataclass(frozen=True)
class Before:
    """Marks an option that came later where records without it were made as with ``value``, and not its default."""

    value: Any


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
    schedule_by: Annotated[Literal["epoch", "step"], LATER] = "epoch"
    """Whether the learning rate changes after each epoch or after each optimiser step."""
    warmup_steps: Annotated[int, Ge(0), LATER] = 0
    """Optimiser steps over which the learning rate grows linearly from almost 0; for schedule_by=step."""

    def __post_init__(self) -> None:
        if self.warmup_steps and self.schedule_by == "epoch":
            raise ValueError("warmup_steps needs schedule_by=step")


@dataclass(frozen=True)
class Trainer:
    """How Lightning trains. Every arm of a task gets the same budget."""

    max_epochs: Annotated[int, Gt(0)] = 100
    """Epochs of the student's training."""
    max_steps: Annotated[Annotated[int, Gt(0)] | None, LATER] = None
    """Optimiser steps after which the student's training ends where its epochs have not; null for no such end."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    devices: Annotated[int, Gt(0), Le(256)] = 1
    """Processes (and GPUs) per node."""
    threads: Annotated[int, Ge(1), Le(1024), LATER] = 1
    """Processor threads of each process: sums are rounded in another order by another number of them."""
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
    restarts: Annotated[int, Ge(0), LATER] = 0
    """Times that a student which has collapsed on the validation data is trained anew from another initialisation."""
    checkpoint_every_n_epochs: Annotated[int, Gt(0)] = 25
    """Epochs between the checkpoints that a killed run goes on from."""
    checkpoint_every_n_steps: Annotated[Annotated[int, Gt(0)] | None, LATER] = None
    """Optimiser steps between further checkpoints, in the middle of a long epoch; a run told to stop stops there."""

    def __post_init__(self) -> None:
        if self.restarts and self.processes > 1:
            raise ValueError("restarts takes one process")

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes

    def in_one_process(self) -> Trainer:
        """The same for a stage: one process of a run does it while the others wait for its result."""
        return replace(self, devices=1, num_nodes=1, strategy="auto", max_steps=None, restarts=0)


UNCHANGING = {
    name: getattr(Trainer(), name) for name in ("accelerator", "checkpoint_every_n_epochs", "checkpoint_every_n_steps")
}
"""Trainer options that change no number of a run, at their defaults."""


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What names the run of a plain configuration: its options, those that change no number at their defaults."""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        return dict(config)
    left_out = later(Trainer)
    kept = {name: UNCHANGING.get(name, value) for name, value in trainer.items()}
    return {**config, "trainer": {k: v for k, v in kept.items() if k not in left_out or v != left_out[k]}}


@functools.cache
def later(options: type[Any]) -> dict[str, Any]:
    """The options of a dataclass that came later (:data:`LATER`, :class:`Before`), as records without them had them."""
    hints = get_type_hints(options, include_extras=True)
    values: dict[str, Any] = {}
    for option in fields(options):
        marks = getattr(hints[option.name], "__metadata__", ())
        if LATER in marks:
            values[option.name] = option.default if option.default_factory is MISSING else option.default_factory()
        for mark in marks:
            if isinstance(mark, Before):
                values[option.name] = mark.value
    return values


def written(options: Any) -> dict[str, Any]:
    """:func:`plain` without the options of :func:`later` that have the values there: what names a run."""
    left_out = later(options.__class__)
    return {name: v for name, v in plain(options).items() if name not in left_out or v != left_out[name]}


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
    references = [(s, key) for s, values in merged.items() for key, value in values.items() if "${" in str(value)]
    if not references:
        return merged
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.create(_native(merged))
        for section, key in references:
            options = OmegaConf.to_container(resolved[section], resolve=True)
            assert isinstance(options, dict)
            merged[section][key] = options[key]
    except (OmegaConfBaseException, RecursionError) as error:
        raise UsageError(f"Cannot resolve the options: {shown(str(error).splitlines()[0])}") from None
    return merged


def _native(value: Any) -> Any:
    """A value as OmegaConf takes it: a number that has its own way of writing as that text."""
    if isinstance(value, Mapping):
        return {key: _native(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_native(item) for item in value]
    return str(value) if isinstance(value, WrittenInt | WrittenFloat) else value


def build(options: type, values: Mapping[str, Any], section: str) -> Any:
    """An options dataclass from values, every name and type checked; a text takes a number as it was written."""
    names = [f.name for f in fields(options)]
    for name in values:
        if name not in names:
            raise OptionError(f"{section}.{name}", str(unknown("option", str(name), names)))

    def fault(place: Iterable[str | int], given: Any, said: str) -> OptionError:
        where = ".".join([section, *map(str, place)]).strip(".")
        return OptionError(where, f"{shown(where)}={shown(word(given))}: {said}.")

    built = _validated(options, values, section, fault)
    for name, given in values.items():
        _check([name], given, getattr(built, name), fault)
    return replace(built, **{name: _unsigned(getattr(built, name)) for name in values})


Fault = Callable[[Sequence[str | int], Any, str], "OptionError"]


def _validated(options: type, values: Mapping[str, Any], section: str, fault: Fault) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(options).validate_python(values)
    except ValidationError as error:
        faults = error.errors()
    taken: Any = values
    for one in faults:
        text = as_text(one["input"])
        taken = taken if text is None else _placed(taken, one["loc"], text)
    try:
        return _adapter(options).validate_python(taken)
    except ValidationError:
        first = faults[0]
    if first["type"] == "missing":
        place = ".".join([section, *map(str, first["loc"])])
        raise OptionError(place, f"{place} is missing.")
    said = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    raise fault(first["loc"], first["input"], said)


def _placed(value: Any, place: Sequence[str | int], text: str) -> Any:
    """A copy of nested values with a text at one place; the same where there is no such place."""
    if not place:
        return text
    first, rest = place[0], place[1:]
    if isinstance(value, Mapping) and first in value:
        return {**value, first: _placed(value[first], rest, text)}
    if isinstance(value, list) and isinstance(first, int):
        return [*value[:first], _placed(value[first], rest, text), *value[first + 1 :]]
    return value


def _check(place: list[str | int], given: Any, taken: Any, fault: Fault) -> None:
    """Refuse what pydantic lets pass: truth values for numbers, numbers without end, text of several lines."""
    if isinstance(taken, bool) and not isinstance(given, bool):
        raise fault(place, given, "should be true or false")
    if isinstance(given, bool) and not isinstance(taken, bool):
        raise fault(place, given, "should not be true or false")
    if isinstance(taken, float) and not math.isfinite(taken):
        raise fault(place, given, "should be a finite number")
    if isinstance(taken, int) and abs(taken) >= 1 << 63:
        raise fault(place, given, "should be less than 2^63")
    if isinstance(taken, str) and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in taken):
        raise fault(place, given, "should be one line of text")
    if isinstance(taken, Mapping):
        for key, item in taken.items():
            _check(place, key, key, fault)
            _check([*place, key], given[key], item, fault)
    elif isinstance(taken, tuple):
        for index, item in enumerate(taken):
            _check([*place, index], given[index], item, fault)


def _unsigned(value: Any) -> Any:
    """A value whose zeros are positive: -0.0 and 0 are one setting."""
    if isinstance(value, tuple):
        return tuple(map(_unsigned, value))
    return value + 0.0 if isinstance(value, float) else value


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
    """Check a card's option sections, each by itself; a fault names its field."""
    if not isinstance(sections, Mapping):
        raise OptionError("", "a scale, like the defaults, is a mapping of sections.")
    for section, values in sections.items():
        if section not in types:
            raise OptionError(str(section), str(unknown("section", str(section), types)))
        if not isinstance(values, Mapping):
            raise OptionError(section, "a section is a mapping of options.")
        plain_values = {key: value for key, value in values.items() if not (isinstance(value, str) and "${" in value)}
        build(types[section], plain_values, section)
