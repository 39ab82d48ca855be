"""From a task card, a method and overrides to one frozen, typed :class:`RunConfig`, whose hash names the run.

Order of precedence, lowest first: option defaults, the card's ``defaults``, the card's scale, what the card says of the
method (:mod:`kdbench.plan.search`), the user's overrides.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol

from annotated_types import Ge
from typing_extensions import TypeVar

from kdbench.errors import UsageError, nearest, unknown
from kdbench.hashing import digest
from kdbench.plan import search as searches
from kdbench.plan.cards import Card, card, section_types, sections_of
from kdbench.plan.catalog import MethodInfo, method, offers
from kdbench.plan.options import UNCHANGING, Optimizer, Trainer, build, identity, later, merge, plain, written
from kdbench.plan.overrides import check_size, parse_overrides, word

CONTROLS = ("none", "shuffled_teacher", "random_teacher")
SECTIONS = ("data", "student", "teacher", "optimizer", "trainer")
TOP = ("task", "method", "scale", "control", "seed")

DataT = TypeVar("DataT", default=Any)
StudentT = TypeVar("StudentT", default=Any)
TeacherT = TypeVar("TeacherT", default=Any)


@dataclass(frozen=True)
class RunConfig(Generic[DataT, StudentT, TeacherT]):
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
    data: DataT
    student: StudentT
    teacher: TeacherT
    optimizer: Optimizer
    trainer: Trainer
    card: str = field(default="", compare=False)
    """The path of a user's own card, as it was given; empty for an installed task."""
    card_sha256: str = ""
    """What that card says beside the options (:meth:`Card.sha256`)."""
    search: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The options ``section.option`` that arms search, with the values that what they share is trained with."""
    settings: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    """The user's ``section.option`` settings that are not the method's own."""
    overrides: tuple[str, ...] = field(default=(), compare=False)
    """All of the user's ``section.option`` settings as words."""

    def to_json(self) -> dict[str, Any]:
        """The run's configuration as plain JSON values (:func:`written`); ``card`` where the task is a user's own."""
        sections = {name: None if (s := getattr(self, name)) is None else written(s) for name in SECTIONS}
        return {
            "task": self.task,
            **({"card": self.card_sha256} if self.card_sha256 else {}),
            "scale": self.scale,
            "method": {"name": self.method, **written(self.hyperparameters)},
            "control": self.control,
            "seed": self.seed,
            **sections,
            **({"search": dict(self.search)} if self.search else {}),
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the :func:`identity` of :meth:`to_json`: names the run folder."""
        return digest(identity(self.to_json()))

    @cached_property
    def shared(self) -> RunConfig[DataT, StudentT, TeacherT]:
        """The run as what arms share sees it (a teacher, a pretrained student): none of its searched options chosen."""
        sections: dict[str, Any] = {}
        for key, value in self.search.items():
            section, _, option = key.partition(".")
            sections[section] = replace(sections.get(section, getattr(self, section)), **{option: value})
        return replace(self, search={}, **sections)

    @property
    def asked(self) -> str:
        """What the task was asked for by: its name, or the path of its card."""
        return self.card or self.task

    @property
    def command(self) -> str:
        """The line that repeats this run."""
        words = [f"task={word(self.asked)}", f"method={self.method}", f"scale={self.scale}", f"seed={self.seed}"]
        if self.control != "none":
            words.append(f"control={self.control}")
        return shlex.join(["kdbench", "run", *words, *self.overrides])

    @property
    def pairing(self) -> str:
        """Task, scale, seed and the user's settings but method and teacher: runs that share it may share stages."""
        kept = [f"{key}={word(value)}" for key, value in sorted(self.settings) if not key.startswith("teacher.")]
        return " ".join([f"{self.task} {self.scale} seed={self.seed}", *kept])


class NamedRun(Protocol):
    """What names a run."""

    @property
    def task(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def hash(self) -> str: ...


def run_folder(root: Path, run: NamedRun) -> Path:
    """``<root>/<task>/<method>/<first 16 digits of the config hash>``."""
    return root / run.task / run.method / run.hash[:16]


def expand(words: Sequence[str]) -> list[RunConfig]:
    """Every run that the overrides name, seed by seed so that an interrupted grid leaves whole pairs.

    ``task`` and ``method`` are required. An arm that cannot exist (a control for a method without a teacher) is an
    error when it is all that was asked for, and left out of a larger grid.
    """
    overrides = parse_overrides(words)
    check_size(overrides)
    keys = {override.key for override in overrides}
    for name in ("task", "method"):
        if name not in keys:
            raise UsageError(f"'{name}=…' is missing. Example: kdbench run task=gnn method=lingugkd")
    for override in overrides:
        section, _, option = override.key.partition(".")
        if section == "trainer" and option in UNCHANGING and len(override.values) > 1:
            raise UsageError(f"'{override.key}' takes one value: it does not make another run.")
    ordered = sorted(overrides, key=lambda o: (o.key != "seed", o.key == "control", o.key == "method"))
    configs: dict[str, RunConfig] = {}
    resolved: dict[tuple[str, ...], RunConfig | ControlError] = {}  # but for the seed, which changes nothing else
    refused: UsageError | None = None
    asked: dict[str, str] = {}  # by the task's name
    for values in itertools.product(*(override.values for override in ordered)):
        chosen = dict(zip((o.key for o in ordered), values, strict=True))
        seed = _checked_seed(chosen.pop("seed", 0))
        key = tuple(map(repr, chosen.values()))
        if key not in resolved:
            try:
                resolved[key] = resolve({**chosen, "seed": seed})
            except ControlError as error:
                resolved[key] = error
        config = resolved[key]
        if isinstance(config, ControlError):
            refused = config
            continue
        if (before := asked.setdefault(config.task, config.asked)) != config.asked:
            raise UsageError(f"{before} and {config.asked} are both task '{config.task}': rename one of the files.")
        config = replace(config, seed=seed)
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
    if control != "none" and not info.controls:
        raise ControlError(f"control={control} needs a method with frozen teachers; '{info.name}' has {info.teacher}.")
    types = section_types(task)
    mine = _by_section(chosen, types, info)
    given = [*sections_of(task, scale), mine]
    student = next((layer["student"]["name"] for layer in reversed(given) if "name" in layer.get("student", {})), "")
    merged = merge([*given[:-1], searches.chosen(task.methods, info.name, str(student)), mine])
    built = {
        name: build(types[name], merged.get(name, {}), name)
        for name in SECTIONS
        if name != "teacher" or info.teacher != "none"
    }
    hyperparameters = build(info.hyperparameters, merged.get("method", {}), "method")
    asked = {key: _taken(key, value, {**built, "method": hyperparameters}) for key, value in chosen.items()}
    return RunConfig(
        task=task.name,
        scale=scale,
        family=task.family,
        kind=task.kind,
        dataset=task.dataset_of(scale),
        metric=task.metric,
        method=info.name,
        hyperparameters=hyperparameters,
        control=control,
        seed=_checked_seed(chosen.get("seed", 0)),
        card=task.word,
        card_sha256=task.sha256(scale) if task.word else "",
        search=_shared_values(task, scale, types),
        teacher=built.pop("teacher", None),
        settings=tuple((k, v) for k, v in asked.items() if k not in TOP and not k.startswith("method.")),
        overrides=tuple(f"{key}={word(value)}" for key, value in asked.items() if key not in TOP),
        **built,
    )


def _shared_values(task: Card, scale: str, types: Mapping[str, type]) -> dict[str, Any]:
    """The searched options as the card has them for what its arms share."""
    names = searches.shared(task.search)
    merged = merge(sections_of(task, scale)) if names else {}
    values = {}
    for section, _, option in (name.partition(".") for name in names):
        built = build(types[section], {option: merged[section][option]}, section)
        values[f"{section}.{option}"] = plain(built)[option]
    return values


def _taken(key: str, given: Any, sections: Mapping[str, Any]) -> Any:
    """A setting as its option took it (``1e-3`` and ``0.001`` are one); as given where the run has no such section."""
    section, _, option = key.partition(".")
    return getattr(sections[section], option) if option and section in sections else given


def expand_baselines(config: RunConfig) -> list[RunConfig]:
    """The run's ``alone`` and ``kd``: same task, scale, seed and options, no control, default hyper-parameters."""
    chosen = {"task": config.asked, "scale": config.scale, "seed": config.seed, **dict(config.settings)}
    names = [n for n in ("alone", "kd") if n != config.method and offers(n, config.family, config.kind)]
    return [resolve({**chosen, "method": name}) for name in names]


@dataclass(frozen=True)
class _Seed:
    seed: Annotated[int, Ge(0)]


def _checked_seed(given: Any) -> int:
    seed: int = build(_Seed, {"seed": given}, "").seed
    return seed


def from_json(content: Mapping[str, Any], path: str = "") -> RunConfig:
    """The run of a record's ``config``: the inverse of :meth:`RunConfig.to_json`. ``path``: that of a user's card.

    A record from before its card had a ``search`` has none.
    """
    chosen: dict[str, Any] = {key: content[key] for key in ("task", "scale", "control", "seed")}
    chosen["task"] = path or chosen["task"]
    task = card(str(chosen["task"]))
    options = {
        **section_types(task),
        "method": method(content["method"]["name"], task.family, task.kind).hyperparameters,
    }
    chosen["method"] = content["method"]["name"]
    for name, kind in options.items():
        chosen |= {f"{name}.{key}": value for key, value in later(kind).items()} if content[name] else {}
    for name in ("method", *SECTIONS):
        for key, value in (content[name] or {}).items():
            if (name, key) != ("method", "name"):
                chosen[f"{name}.{key}"] = value
    run = resolve(chosen)
    return run if "search" in content else replace(run, search={})


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
            message = _unknown_option(key, valid)
            raise UsageError(f"{message} See 'kdbench show {chosen['task']}' and 'kdbench show {info.name}'.")
        nested.setdefault(section, {})[option] = value
    return nested


def _unknown_option(key: str, valid: Sequence[str]) -> UsageError:
    """Names the option of that name in another section, or the nearest one of its own section."""
    section, _, option = key.partition(".")
    same = next((name for name in valid if name.partition(".")[2] == (option or key)), None)
    own = {name.partition(".")[2]: name for name in valid if option and name.startswith(f"{section}.")}
    near = same or (own.get(nearest(option, own) or "") if own else nearest(key, [*valid, *TOP]))
    return unknown("option", key, own.values() or TOP, f"Did you mean '{near}'?" if near else "")
