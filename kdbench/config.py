"""From a task card, a method and overrides to one frozen, typed :class:`RunConfig`, whose hash names the run.

Order of precedence, lowest first: option defaults, the card's ``defaults``, the card's scale, the user's overrides.
The overrides follow Hydra's grammar (parsed by hydra-core, merged by OmegaConf); ``0..9`` is short for 0,1,…,9.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from kdbench.catalog import Card, MethodInfo, card, family_module, method, offered_methods
from kdbench.errors import UsageError, unknown
from kdbench.hashing import digest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

CONTROLS = ("none", "shuffled_teacher", "random_teacher")
SECTIONS = ("data", "student", "teacher", "optimizer", "trainer")
TOP = ("task", "method", "scale", "control", "seed")


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
    devices: Annotated[int, Gt(0)] = 1
    """Processes (and GPUs) per node."""
    num_nodes: Annotated[int, Gt(0)] = 1
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


@dataclass(frozen=True)
class RunConfig:
    """One run, fully resolved. ``data``, ``student`` and ``teacher`` are option dataclasses of the task's kind."""

    task: str
    scale: str
    family: str
    kind: str
    dataset: str
    metric: str
    method: str
    hyperparameters: Any
    control: str
    seed: int
    data: Any
    student: Any
    teacher: Any
    optimizer: Optimizer
    trainer: Trainer
    settings: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    """The user's ``section.option`` settings that are not the method's own."""
    overrides: tuple[str, ...] = field(default=(), compare=False)
    """All of the user's ``section.option`` settings as words."""

    def to_json(self) -> dict[str, Any]:
        """What the run's numbers depend on, as plain JSON values."""
        sections = {name: None if (s := getattr(self, name)) is None else plain(s) for name in SECTIONS}
        return {
            "task": self.task,
            "scale": self.scale,
            "method": {"name": self.method, **plain(self.hyperparameters)},
            "control": self.control,
            "seed": self.seed,
            **sections,
        }

    @property
    def hash(self) -> str:
        """SHA-256 of :meth:`to_json`: names the run folder."""
        return digest(self.to_json())

    @property
    def command(self) -> str:
        """The line that repeats this run."""
        words = [f"task={self.task}", f"method={self.method}", f"scale={self.scale}", f"seed={self.seed}"]
        if self.control != "none":
            words.append(f"control={self.control}")
        return shlex.join(["kdbench", "run", *words, *self.overrides])


def plain(options: Any) -> dict[str, Any]:
    """An options dataclass as plain JSON values."""
    dumped: dict[str, Any] = _adapter(options.__class__).dump_python(options, mode="json")
    return dumped


@dataclass(frozen=True)
class Override:
    """One ``key=value,value`` of the command line."""

    key: str
    values: tuple[Any, ...]


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar. Raises :class:`UsageError` naming the word that does not parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType, Transformer
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    result = []
    for word in words:
        if "=" not in word.lstrip("="):
            raise UsageError(f"Cannot read '{word}': options are set as key=value.")
        try:
            parsed = parser.parse_override(_expand_ranges(word))
            if parsed.type != OverrideType.CHANGE or parsed.package is not None:
                raise UsageError(
                    f"Cannot use '{word}': options are set as key=value; nothing is added, deleted or moved."
                )
            if parsed.is_sweep_override():
                written = [str(value) for value in parsed.sweep_iterator(transformer=Transformer.encode)]
                values = tuple(parser.parse_override(f"{parsed.key_or_group}={value}").value() for value in written)
            else:
                values = (parsed.value(),)
        except HydraException as error:
            hint = "text with special characters goes in quotes: \"key='a=b'\""
            raise UsageError(f"Cannot read '{word}': {str(error).splitlines()[0]} ({hint}).") from None
        result.append(Override(parsed.key_or_group, values))
    doubled = [o.key for o in result if sum(o.key == other.key for other in result) > 1]
    if doubled:
        raise UsageError(f"'{doubled[0]}' is given twice.")
    return result


_QUOTED_OR_RANGE = re.compile(r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|(?<![\w.])(\d+)\.\.(\d+)(?![\w.])""")
LONGEST_RANGE = 10_000


def _expand_ranges(word: str) -> str:
    """``0..9`` outside quotes as ``0,1,…,9``."""

    def written(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        first, last = int(match[1]), int(match[2])
        if not first <= last < first + LONGEST_RANGE:
            raise UsageError(f"Cannot use '{word}': the range {match[0]} holds no value, or more than {LONGEST_RANGE}.")
        return ",".join(map(str, range(first, last + 1)))

    key, equals, value = word.partition("=")
    return key + equals + _QUOTED_OR_RANGE.sub(written, value)


def expand(words: Sequence[str]) -> list[RunConfig]:
    """Every run that the overrides name, seed by seed so that an interrupted grid leaves whole pairs.

    ``task`` and ``method`` are required. An arm that cannot exist (a control for a method without a teacher) is an
    error when it is all that was asked for, and left out of a larger grid.
    """
    overrides = parse_overrides(words)
    keys = {override.key for override in overrides}
    for name in ("task", "method"):
        if name not in keys:
            raise UsageError(f"'{name}=…' is missing. Example: kdbench run task=gnn method=lingugkd")
    ordered = sorted(overrides, key=lambda o: (o.key != "seed", o.key == "control", o.key == "method"))
    configs: dict[str, RunConfig] = {}
    refused: UsageError | None = None
    for values in itertools.product(*(override.values for override in ordered)):
        chosen = dict(zip((o.key for o in ordered), values, strict=True))
        try:
            config = resolve(chosen)
        except ControlError as error:
            refused = error
            continue
        configs.setdefault(config.hash, config)
    if not configs and refused is not None:
        raise refused
    return list(configs.values())


class ControlError(UsageError):
    """A teacher control for a method that has no frozen teacher."""


def resolve(chosen: Mapping[str, Any]) -> RunConfig:
    """One run from one value per key (``task``, ``method``, ``scale``, ``seed``, ``control``, ``section.option``)."""
    task = card(str(chosen["task"]))
    info = method(str(chosen["method"]), task.family, task.kind)
    scale = str(chosen.get("scale", task.default_scale))
    if scale not in task.scales:
        raise unknown(f"scale of {task.name}", scale, task.scales)
    control = str(chosen.get("control", "none"))
    if control not in CONTROLS:
        raise unknown("control", control, CONTROLS)
    if control != "none" and info.teacher != "frozen":
        raise ControlError(f"control={control} needs a method with a frozen teacher; '{info.name}' has {info.teacher}.")
    types = section_types(task)
    mine = _by_section(chosen, types, info)
    merged = merge([*(sections_of(task, scale)), mine])
    built = {
        name: build(types[name], merged.get(name, {}), name)
        for name in SECTIONS
        if name != "teacher" or info.teacher != "none"
    }
    return RunConfig(
        task=task.name,
        scale=scale,
        family=task.family,
        kind=task.kind,
        dataset=task.dataset,
        metric=task.metric,
        method=info.name,
        hyperparameters=build(info.hyperparameters, merged.get("method", {}), "method"),
        control=control,
        seed=build(_Seed, {"seed": chosen.get("seed", 0)}, "").seed,
        teacher=built.pop("teacher", None),
        settings=tuple((k, v) for k, v in chosen.items() if k not in TOP and not k.startswith("method.")),
        overrides=tuple(f"{key}={word(value)}" for key, value in chosen.items() if key not in TOP),
        **built,
    )


def expand_baselines(config: RunConfig) -> list[RunConfig]:
    """The run's ``alone`` and ``kd``: same task, scale, seed and options, no control, default hyper-parameters."""
    offered = offered_methods(config.family, config.kind)
    chosen = {"task": config.task, "scale": config.scale, "seed": config.seed, **dict(config.settings)}
    return [
        resolve({**chosen, "method": name}) for name in ("alone", "kd") if name in offered and name != config.method
    ]


@dataclass(frozen=True)
class _Seed:
    seed: Annotated[int, Ge(0)]


def from_json(content: Mapping[str, Any]) -> RunConfig:
    """The run of a record's ``config``: the inverse of :meth:`RunConfig.to_json`."""
    chosen: dict[str, Any] = {key: content[key] for key in ("task", "scale", "control", "seed")}
    chosen["method"] = content["method"]["name"]
    for name in ("method", *SECTIONS):
        for key, value in (content[name] or {}).items():
            if (name, key) != ("method", "name"):
                chosen[f"{name}.{key}"] = value
    return resolve(chosen)


_PLAIN_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/](?:[\w/:%+@?-]|\.(?!\.))*", re.ASCII | re.IGNORECASE)


def word(value: Any) -> str:
    """A value in the grammar of the overrides: :func:`parse_overrides` reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        from hydra.core.override_parser.types import Quote, QuotedString

        return value if _PLAIN_WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{word(key)}:{word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(word, value)) + "]"
    return str(value)


def _by_section(chosen: Mapping[str, Any], types: Mapping[str, type], info: MethodInfo) -> dict[str, dict[str, Any]]:
    """``section.option`` overrides as nested mappings; an unknown key names the nearest valid one."""
    nested: dict[str, dict[str, Any]] = {}
    options = {**types, "method": info.hyperparameters}
    for key, value in chosen.items():
        if key in TOP:
            continue
        section, dot, option = key.partition(".")
        valid = [f"{name}.{f.name}" for name, kind in options.items() for f in fields(kind)]
        if not dot or section not in options or option not in {f.name for f in fields(options[section])}:
            same = [name for name in valid if name.partition(".")[2] == (option or key)]
            told = str(unknown("option", key, [*valid, *TOP])).partition(" Valid:")[0]
            told = f"Unknown option '{key}'. Did you mean '{same[0]}'?" if same else told
            raise UsageError(f"{told} See 'kdbench show {chosen['task']}' and 'kdbench show {info.name}'.")
        nested.setdefault(section, {})[option] = value
    return nested


def section_types(task: Card) -> dict[str, type]:
    """The option dataclass of each section for this task's kind, from the family's ``options`` module."""
    offered = family_module(task.family, "options").KINDS
    if task.kind not in offered:
        raise unknown(f"kind of {task.family} task", task.kind, offered)
    return {**offered[task.kind], "optimizer": Optimizer, "trainer": Trainer}


def sections_of(task: Card, scale: str) -> Iterator[Mapping[str, Any]]:
    """Option sections, lowest precedence first: the options' own defaults, the card's, its scale's."""
    types = section_types(task).items()
    yield {name: {f.name: f.default for f in fields(kind) if f.default is not MISSING} for name, kind in types}
    yield task.defaults
    yield task.scales[scale]


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
