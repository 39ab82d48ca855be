"""Task cards: one YAML file each, of ``tasks/`` or the user's own, checked field by field.

A card's place below ``tasks/`` is its name; a card that is asked for by its path has the name of its file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt

from kdbench.errors import CardError, UsageError, shown, unknown
from kdbench.hashing import digest
from kdbench.plan import search as searches
from kdbench.plan.catalog import (
    PACKAGE,
    families,
    folder_of,
    kind_module,
    method,
    named_point,
    offered_methods,
    points,
)
from kdbench.plan.collected import Collected
from kdbench.plan.datasets import dataset, datasets, described, described_as, own, reading_options
from kdbench.plan.marked_yaml import line_of, read_yaml
from kdbench.plan.metrics import named
from kdbench.plan.options import Optimizer, OptionError, Trainer, build, check_sections, merge
from kdbench.plan.overrides import parse_overrides
from kdbench.plan.written import as_text

SCALES = ("tiny", "small", "full")
CHECKS = ("converged", "reference", "teacher", "collapse", "search")
"""What an audit asks of a comparison (:mod:`kdbench.results.audit`)."""


@dataclass(frozen=True)
class Reported:
    """A published number: shown beside measured ones, never mixed with them."""

    arm: str
    metric: str
    value: float
    source: str
    spread: float | None = None
    student: str | None = None


@dataclass(frozen=True)
class Primary:
    """The comparison that a card stands for: what a board shows first."""

    scale: str
    """Scale of its runs."""
    student: dict[str, Any]
    """The options that tell its student, such as ``name: gin``."""
    metric: str
    """What they are judged by."""
    settings: tuple[str, ...] = ()
    """Its protocol: the settings ``section.option=value`` that its runs have beside the scale's."""
    margin: Annotated[float, Gt(0)] | None = None
    """The difference of two arms that is none in practice, in the metric's values: 0.01 of a share is a point."""

    @property
    def words(self) -> list[str]:
        """What asks for its runs on a command line."""
        student = [f"student.{name}={value}" for name, value in self.student.items()]
        return [f"scale={self.scale}", *student, *self.settings]

    def asks_for(self, scale: str, student: object, settings: Iterable[str]) -> bool:
        """Whether it is the comparison of runs of this scale, these options of the student and these settings."""
        if scale != self.scale or not isinstance(student, Mapping):
            return False
        others = {word for word in settings if not word.startswith("student.")}
        return others == set(self.settings) and all(student.get(key) == value for key, value in self.student.items())


@dataclass(frozen=True)
class Card:
    """A task card: one YAML file. ``defaults`` and each scale hold option sections (data, student, …).

    A scale may name a ``dataset`` of its own beside them; ``datasets`` describes the card's own.
    """

    name: str
    path: Path
    title: str
    family: str
    kind: str
    dataset: str
    metric: str
    defaults: dict[str, Any]
    scales: dict[str, dict[str, Any]]
    reported: tuple[Reported, ...] = ()
    notes: str = ""
    own_datasets: Mapping[str, str] = field(default_factory=dict)
    """The data sets of the scales that name one."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What arms have on this task, chosen or searched: hyper-parameters and searched options by method."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """The options that arms search, with the values to try (:mod:`kdbench.plan.search`)."""
    primary: Primary | None = None
    reference: str | None = None
    """The method of role ``reference`` whose score the student alone has to reach."""
    excused: Mapping[str, str] = field(default_factory=dict)
    """Why a check of :data:`CHECKS` that fails is no fault here, in words; ``kd.converged`` for one arm alone."""
    word: str = ""
    """What a user's own card was asked for by; empty for one that is installed."""

    def dataset_of(self, scale: str) -> str:
        """The data set of a scale."""
        return self.own_datasets.get(scale, self.dataset)

    @property
    def default_scale(self) -> str:
        """The smallest scale that the card has."""
        return next(scale for scale in SCALES if scale in self.scales)

    def sha256(self, scale: str) -> str:
        """Digest of what a user's own card says and no option does: its kind, its metric, how its data is read."""
        data = dataset(self.dataset_of(scale))
        reads = described_as(data) if data.beside else data.name
        return digest({"family": self.family, "kind": self.kind, "metric": self.metric, "dataset": reads})


@functools.cache
def task_paths() -> Collected[str, Path]:
    """Task name -> card. A card's place is its name: ``tasks/gnn/cora.yaml`` is ``gnn/cora``.

    A name that two cards have is neither's.
    """
    paths: Collected[str, Path] = Collected()
    for folder in _task_folders(paths):
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            with paths.reading(name):
                paths.check(name)
                if paths.setdefault(name, path) != path:
                    raise CardError(f"{path}:1: there is a task '{name}' already, {paths.pop(name)}.")
    return paths


def _task_folders(paths: Collected[str, Path]) -> Iterator[Path]:
    inside = PACKAGE / "_tasks"
    yield inside if inside.is_dir() else PACKAGE.parent / "tasks"
    for point in points("kdbench.tasks"):
        with paths.reading(named_point(point)):
            yield folder_of(point.value, named_point(point))


def card(name: str) -> Card:
    """The card of a task, by its name or the path of a user's own.

    Raises :class:`UsageError` for an unknown name, :class:`CardError` for a faulty card.
    """
    return own_card(name) if is_path(name) else installed(name)


@functools.cache
def installed(name: str) -> Card:
    """The card of an installed task."""
    task_paths().check(name)
    if name not in task_paths():
        raise unknown("task", name, task_paths())
    return read_card(task_paths()[name], name)


def is_path(name: str) -> bool:
    """Whether a task is asked for by the path of its card."""
    return name.endswith((".yaml", ".yml"))


def own_card(word: str) -> Card:
    """A user's own card, by its path. It is read again when its file has changed."""
    path = Path(word)
    if not path.is_file():
        raise UsageError(f"There is no task card '{shown(word)}'.")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", path.stem, re.ASCII):
        raise UsageError(
            f"{shown(word)}: a task has its file's name, of letters, digits, '_' and '-': rename the file."
        )
    if path.stem in task_paths():
        raise UsageError(f"{shown(word)}: there is a task '{path.stem}' already: rename the file.")
    state = path.stat()
    return _own_card(word, str(path.resolve()), state.st_mtime_ns, state.st_size)


@functools.lru_cache(64)
def _own_card(word: str, place: str, *state: int) -> Card:
    return replace(read_card(Path(word), Path(word).stem), word=word)


@functools.cache
def listed() -> Collected[str, Card]:
    """Every card that can be read, its options unchecked."""
    listed_cards: Collected[str, Card] = Collected()
    for name, path in task_paths().items():
        with listed_cards.reading(name):
            listed_cards[name] = read_card(path, name, options=False)
    return listed_cards


TEXTS = ("title", "family", "kind", "dataset", "metric")


def read_card(path: Path, name: str, options: bool = True) -> Card:
    """Parse and check one card; errors name the file, the line and the field.

    Without ``options`` neither they nor the reported numbers nor whether the data suit are checked, which is quicker:
    enough for a list.
    """
    content, lines = read_yaml(path)

    def fail(field: str, message: str) -> CardError:
        return CardError(f"{path}:{line_of(lines, field)}: {message}")

    if not isinstance(content, dict):
        raise fail("", "a card is a mapping of fields.")
    known = {entry.name for entry in fields(Card)} - {"name", "path", "own_datasets", "word"} | {"datasets"}
    for key in content:
        if key not in known:
            raise fail(key, str(unknown("field", key, known)))
    texts: dict[str, str] = {}
    for key in TEXTS:
        text = as_text(content.get(key))
        if text is None:
            raise fail(key, f"field '{key}' must be text." if key in content else f"field '{key}' is missing.")
        texts[key] = text
    if texts["family"] not in families():
        families().check(texts["family"])
        raise fail("family", str(unknown("family", texts["family"], families())))
    scales = content.get("scales")
    if not isinstance(scales, dict) or not scales:
        raise fail("scales", "field 'scales' is missing or empty: give at least one of tiny, small, full.")
    for scale in scales:
        if scale not in SCALES:
            raise fail(f"scales.{scale}", str(unknown("scale", scale, SCALES)))
    place = (texts["family"], path.parent, "datasets.", texts["kind"])
    mine = own(described(content["datasets"], lines, path, *place), path) if "datasets" in content else {}
    of_scales = {
        scale: str(part.pop("dataset"))
        for scale, part in scales.items()
        if isinstance(part, dict) and "dataset" in part
    }
    texts["dataset"] = mine.get(texts["dataset"], texts["dataset"])
    result = Card(
        name=name,
        path=path,
        **texts,
        defaults=content.get("defaults") or {},
        scales={scale: sections or {} for scale, sections in scales.items()},
        reported=_reported(content.get("reported") or [], fail) if options else (),
        notes=" ".join(str(content.get("notes", "")).split()),
        own_datasets={scale: mine.get(name, name) for scale, name in of_scales.items()},
        methods=content.get("methods") or {},
        search=content.get("search") or {},
        primary=_primary(content["primary"], fail) if "primary" in content else None,
        reference=content.get("reference"),
        excused=content.get("excused") or {},
    )
    if options:
        _check_options(result, mine, fail)
    return result


def _reported(entries: Any, fail: Callable[[str, str], CardError]) -> tuple[Reported, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise fail("reported", "field 'reported' must be a list of mappings.")
    try:
        return tuple(build(Reported, entry, f"reported.{place}") for place, entry in enumerate(entries))
    except OptionError as error:
        raise fail(error.field, str(error)) from None


def _primary(entry: Any, fail: Callable[[str, str], CardError]) -> Primary:
    try:
        if not isinstance(entry, dict):
            raise OptionError("primary", "field 'primary' must be a mapping.")
        primary: Primary = build(Primary, entry, "primary")
        return primary
    except OptionError as error:
        raise fail(error.field, str(error)) from None


def _check_options(card: Card, mine: Mapping[str, str], fail: Callable[[str, str], CardError]) -> None:
    """Check every option of every section as it is written, and each scale as a whole."""

    @contextmanager
    def reading(place: str) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            field = f"{place}.{error.field}" if isinstance(error, OptionError) and error.field else place
            raise error if isinstance(error, CardError) else fail(field, f"{shown(field)}: {error}") from None

    with reading("kind"):
        types = section_types(card)
    with reading("metric"):
        named(card.family, card.kind, card.metric)
    for place, name in (("dataset", card.dataset), *((f"scales.{s}.dataset", d) for s, d in card.own_datasets.items())):
        with reading(place):
            _check_data(card, name, mine)
    for name, address in mine.items():
        with reading(f"datasets.{name}"):
            reading_options(dataset(address))
    for place, sections in (("defaults", card.defaults), *((f"scales.{s}", c) for s, c in card.scales.items())):
        with reading(place):
            check_sections(types, sections)
    for scale in card.scales:
        with reading(f"scales.{scale}"):
            merged = merge(sections_of(card, scale))
            for section, options in types.items():
                build(options, merged.get(section, {}), section)
    for place in ("search", "methods"):
        with reading(place):
            _check_search(card, place, types)
    if card.reference is not None:
        with reading("reference"):
            _check_reference(card, card.reference)
    with reading("excused"):
        _check_excused(card)
    if card.primary:
        with reading("primary"):
            _check_primary(card, card.primary)


def _check_search(card: Card, place: str, types: Mapping[str, type]) -> None:
    """Raise :class:`OptionError` for what a card may not search, or say of a method."""

    def hyperparameters(name: str) -> type:
        try:
            return method(name, card.family, card.kind).hyperparameters
        except UsageError as error:
            raise OptionError(name, str(error)) from None

    if place == "search":
        searches.check(card.search, types, hyperparameters)
    else:
        searches.check_chosen(card.methods, card.search, types, hyperparameters)


def _check_reference(card: Card, name: Any) -> None:
    """Raise :class:`UsageError` for a reference that is none of the kind's."""
    offered = offered_methods(card.family, card.kind)
    if not isinstance(name, str) or name not in offered or offered[name].role != "reference":
        known = [info.name for info in offered.values() if info.role == "reference"]
        raise unknown(f"reference for {card.family} {card.kind.replace('_', ' ')}", str(name), known)


def _check_excused(card: Card) -> None:
    """Raise :class:`UsageError` for an excuse of a check that there is not, or without words."""
    if not isinstance(card.excused, Mapping):
        raise OptionError("", "this is a mapping of checks to the reasons why they may fail.")
    for name, why in card.excused.items():
        if (check := str(name).rpartition(".")[2]) not in CHECKS:
            raise OptionError(str(name), str(unknown("check", check, CHECKS)))
        if not isinstance(why, str) or not why.strip():
            raise OptionError(str(name), "an excuse is said in words.")


def _check_primary(card: Card, primary: Primary) -> None:
    """Raise :class:`UsageError` for a scale, student, metric or setting that the card does not have."""
    if primary.scale not in card.scales:
        raise OptionError("scale", str(unknown("scale", primary.scale, card.scales)))
    try:
        named(card.family, card.kind, primary.metric)
    except UsageError as error:
        raise OptionError("metric", str(error)) from None
    types = section_types(card)
    settings = [(f"student.{name}", value) for name, value in primary.student.items()]
    for key, value in [*settings, *_settings(primary.settings)]:
        section, _, option = key.partition(".")
        if section not in types:
            raise OptionError("settings", str(unknown("section", section, types)))
        build(types[section], {option: value}, section)


def _settings(words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for override in parse_overrides(words):
        if len(override.values) != 1:
            raise OptionError("settings", f"{override.key} takes one value.")
        yield override.key, override.values[0]


def _check_data(card: Card, name: str, mine: Mapping[str, str]) -> None:
    """Raise :class:`UsageError` for a data set that is not the card's own and that its kind of task does not read."""
    if name in mine.values():
        return
    datasets().check(card.family)
    suited = [one.name for one in datasets().values() if one.family == card.family and one.kind in ("", card.kind)]
    if name not in suited:
        other = datasets().get(name)
        note = f"It is a data set for {other.family} {other.kind.replace('_', ' ')}".rstrip() + "." if other else None
        raise unknown("dataset", name, [*suited, *mine], note)
    if datasets()[name].beside:
        reading_options(datasets()[name])


def section_types(task: Card) -> dict[str, type]:
    """The option dataclass of each section for this task's kind, from the kind's ``options`` module."""
    module = kind_module(task.family, task.kind, "options")
    own: Mapping[str, type] | None = getattr(module, "SECTIONS", None)
    if own is None:
        raise CardError(f"{module.__file__}:1: SECTIONS is missing: give the options of data, student and teacher.")
    return {**own, "optimizer": Optimizer, "trainer": Trainer}


def sections_of(task: Card, scale: str) -> Iterator[Mapping[str, Any]]:
    """Option sections, lowest precedence first: the options' own defaults, the card's, its scale's."""
    types = section_types(task).items()
    yield {name: {f.name: f.default for f in fields(kind) if f.default is not MISSING} for name, kind in types}
    yield task.defaults
    yield task.scales[scale]
