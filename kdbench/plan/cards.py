"""Task cards: one YAML file of ``tasks/`` each, checked field by field. A card's place is its name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdbench.errors import CardError, UsageError, shown, unknown
from kdbench.plan.catalog import PACKAGE, families, folder_of, kind_module, points, told
from kdbench.plan.datasets import datasets
from kdbench.plan.found import Found
from kdbench.plan.marked_yaml import line_of, read_yaml
from kdbench.plan.metrics import named
from kdbench.plan.options import Optimizer, OptionError, Trainer, build, check_sections, merge
from kdbench.plan.written import as_text

SCALES = ("tiny", "small", "full")


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
class Card:
    """A task card: one YAML file of ``tasks/``. ``defaults`` and each scale hold option sections (data, student, …).

    A scale may name a ``dataset`` of its own beside them.
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

    def dataset_of(self, scale: str) -> str:
        """The data set of a scale."""
        return self.own_datasets.get(scale, self.dataset)

    @property
    def default_scale(self) -> str:
        """The smallest scale that the card has."""
        return next(scale for scale in SCALES if scale in self.scales)


@functools.cache
def task_paths() -> Found[str, Path]:
    """Task name -> card. A card's place is its name: ``tasks/gnn/cora.yaml`` is ``gnn/cora``.

    A name that two cards have is neither's.
    """
    found: Found[str, Path] = Found()
    for folder in _task_folders(found):
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            with found.reading(name):
                found.check(name)
                if found.setdefault(name, path) != path:
                    raise CardError(f"{path}:1: there is a task '{name}' already, {found.pop(name)}.")
    return found


def _task_folders(found: Found[str, Path]) -> Iterator[Path]:
    inside = PACKAGE / "_tasks"
    yield inside if inside.is_dir() else PACKAGE.parent / "tasks"
    for point in points("kdbench.tasks"):
        with found.reading(told(point)):
            yield folder_of(point.value, told(point))


@functools.cache
def card(name: str) -> Card:
    """The card of a task. Raises :class:`UsageError` for an unknown name, :class:`CardError` for a faulty card."""
    task_paths().check(name)
    if name not in task_paths():
        raise unknown("task", name, task_paths())
    return read_card(task_paths()[name], name)


@functools.cache
def listed() -> Found[str, Card]:
    """Every card that can be read, its options unchecked."""
    found: Found[str, Card] = Found()
    for name, path in task_paths().items():
        with found.reading(name):
            found[name] = read_card(path, name, options=False)
    return found


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
    known = {entry.name for entry in fields(Card)} - {"name", "path", "own_datasets"}
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
    own = {
        scale: str(part.pop("dataset"))
        for scale, part in scales.items()
        if isinstance(part, dict) and "dataset" in part
    }
    result = Card(
        name=name,
        path=path,
        **texts,
        defaults=content.get("defaults") or {},
        scales={scale: sections or {} for scale, sections in scales.items()},
        reported=_reported(content.get("reported") or [], fail) if options else (),
        notes=" ".join(str(content.get("notes", "")).split()),
        own_datasets=own,
    )
    if options:
        _check_options(result, fail)
    return result


def _reported(entries: Any, fail: Callable[[str, str], CardError]) -> tuple[Reported, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise fail("reported", "field 'reported' must be a list of mappings.")
    try:
        return tuple(build(Reported, entry, f"reported.{place}") for place, entry in enumerate(entries))
    except OptionError as error:
        raise fail(error.field, str(error)) from None


def _check_options(card: Card, fail: Callable[[str, str], CardError]) -> None:
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
            _check_data(card, name)
    for place, sections in (("defaults", card.defaults), *((f"scales.{s}", c) for s, c in card.scales.items())):
        with reading(place):
            check_sections(types, sections)
    for scale in card.scales:
        with reading(f"scales.{scale}"):
            merged = merge(sections_of(card, scale))
            for section, options in types.items():
                build(options, merged.get(section, {}), section)


def _check_data(card: Card, name: str) -> None:
    """Raise :class:`UsageError` for a data set that tasks of this family and kind do not read."""
    datasets().check(card.family)
    suited = [one.name for one in datasets().values() if one.family == card.family and one.kind in ("", card.kind)]
    if name not in suited:
        other = datasets().get(name)
        note = f"It is a data set for {other.family} {other.kind.replace('_', ' ')}".rstrip() + "." if other else None
        raise unknown("dataset", name, suited, note)


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
