"""What there is to run: task cards, families and methods, found by their place and read without importing torch.

A method file is parsed, not imported: its docstring, its class attributes and its ``Hyperparameters`` dataclass are all
that listing, showing and checking need.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from kdbench.errors import CardError, UsageError, unknown

PACKAGE = Path(__file__).parent
SCALES = ("tiny", "small", "full")


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
def families() -> dict[str, str]:
    """Family name -> package: the folders of ``kdbench/families`` and the ``kdbench.families`` entry points."""
    own = {p.parent.name: f"kdbench.families.{p.parent.name}" for p in (PACKAGE / "families").glob("*/__init__.py")}
    return own | {point.name: point.value for point in entry_points(group="kdbench.families")}


def family_module(family: str, module: str = "") -> ModuleType:
    """Import a family's package, or one of its modules."""
    if family not in families():
        raise unknown("family", family, families())
    return importlib.import_module(families()[family] + (f".{module}" if module else ""))


@functools.cache
def methods() -> tuple[MethodInfo, ...]:
    """What every method file says. Raises :class:`CardError` for a file that does not parse."""
    read = (read_method(path, family, module) for family, module, path in _method_files())
    found = [info for info in read if info is not None]
    places: dict[tuple[str | None, str], MethodInfo] = {}
    for info in found:
        earlier = places.setdefault((info.family, info.name), info)
        if earlier is not info:
            raise CardError(f"{info.path}: method '{info.name}' of {info.family} is also defined in {earlier.path}.")
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
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).glob("*.py")):
                yield family, f"{package}.{path.stem}", path
    for point in entry_points(group="kdbench.methods"):
        spec = importlib.util.find_spec(point.value)
        if spec is None or spec.origin is None:
            raise CardError(
                f"Entry point kdbench.methods '{point.name}' names '{point.value}', which is not installed."
            )
        yield point.name.partition(".")[0], point.value, Path(spec.origin)


def read_method(path: Path, family: str | None, module: str) -> MethodInfo | None:
    """Read a method file; None when it defines no subclass of ``Method``."""
    text = path.read_text()
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise CardError(f"{path}:{error.lineno}: {error.msg}") from None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = [node for node in classes if any(ast.unparse(base).split(".")[-1] == "Method" for base in node.bases)]
    if not own:
        return None
    attributes = _literals(own[0])
    missing = {"title", "paper", "teacher"} - attributes.keys()
    if missing:
        raise CardError(f"{path}:{own[0].lineno}: class {own[0].name} lacks {', '.join(sorted(missing))}.")
    options = next((node for node in classes if node.name == "Hyperparameters"), None)
    return MethodInfo(
        name=path.stem,
        family=family,
        module=module,
        path=path,
        doc=ast.get_docstring(tree) or "",
        hyperparameters=_execute(tree, options) if options else _NoHyperparameters,
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


def _execute(tree: ast.Module, options: ast.ClassDef) -> type:
    """Build the options class alone: its field types may only use the standard library and ``annotated_types``."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in _PLAIN_MODULES]
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(ast.Module([*imports, options], []), "<options>", "exec", dont_inherit=True), space)
    built: type = space[options.name]
    return built


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in node.body:
        targets = (
            item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and getattr(item, "value", None) is not None:
                try:
                    found[target.id] = ast.literal_eval(item.value)  # type: ignore[attr-defined]
                except ValueError:
                    continue
    return found


def option_fields(node: ast.ClassDef) -> tuple[Field, ...]:
    """The fields of an options dataclass with the docstring line that follows each."""
    result = []
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            doc = " ".join(str(after.value.value).split()) if told else ""  # type: ignore[union-attr]
            default = ast.unparse(item.value) if item.value else None
            result.append(Field(item.target.id, ast.unparse(item.annotation), default, doc))
    return tuple(result)


def documented_options(options: type) -> tuple[Field, ...]:
    """:func:`option_fields` of an imported options dataclass."""
    module = importlib.import_module(options.__module__)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    return next(option_fields(n) for n in tree.body if isinstance(n, ast.ClassDef) and n.name == options.__name__)


def _task_folders() -> Iterator[Path]:
    inside = PACKAGE / "_tasks"
    yield inside if inside.is_dir() else PACKAGE.parent / "tasks"
    for point in entry_points(group="kdbench.tasks"):
        spec = importlib.util.find_spec(point.value)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder)


@functools.cache
def task_paths() -> dict[str, Path]:
    """Task name -> card. A card's place is its name: ``tasks/gnn/cora.yaml`` is ``gnn/cora``."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in _task_folders()
        for path in sorted(folder.rglob("*.yaml"))
    }


@functools.cache
def card(name: str) -> Card:
    """The card of a task. Raises :class:`UsageError` for an unknown name, :class:`CardError` for a faulty card."""
    if name not in task_paths():
        raise unknown("task", name, task_paths())
    return read_card(task_paths()[name], name)


def read_card(path: Path, name: str) -> Card:
    """Parse and check one card; errors name the file, the line and the field."""
    text = path.read_text()
    try:
        content, lines = _yaml_with_lines(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise CardError(f"{path}:{mark.line + 1 if mark else 1}: {getattr(error, 'problem', error)}") from None

    def fail(field: str, message: str) -> CardError:
        return CardError(f"{path}:{lines.get(field, 1)}: {message}")

    if not isinstance(content, dict):
        raise fail("", "a card is a mapping of fields.")
    known = {field.name for field in fields(Card)} - {"name", "path"}
    for key in content:
        if key not in known:
            raise fail(key, str(unknown("field", key, known)))
    for key in ("title", "family", "kind", "dataset", "metric"):
        if not isinstance(content.get(key), str):
            raise fail(key, f"field '{key}' is missing." if key not in content else f"field '{key}' must be text.")
    scales = content.get("scales")
    if not isinstance(scales, dict) or not scales:
        raise fail("scales", "field 'scales' is missing or empty: give at least one of tiny, small, full.")
    for scale in scales:
        if scale not in SCALES:
            raise fail(f"scales.{scale}", str(unknown("scale", scale, SCALES)))
    if content["family"] not in families():
        raise fail("family", str(unknown("family", content["family"], families())))
    try:
        reported = tuple(Reported(**entry) for entry in content.get("reported", ()))
    except TypeError as error:
        raise fail("reported", f"reported: {error}") from None
    rest = {key: content[key] for key in ("title", "family", "kind", "dataset", "metric")}
    result = Card(
        name=name,
        path=path,
        **rest,
        defaults=content.get("defaults") or {},
        scales={scale: sections or {} for scale, sections in scales.items()},
        reported=reported,
        notes=" ".join(str(content.get("notes", "")).split()),
    )
    _check_sections(result, lines)
    return result


def _check_sections(card: Card, lines: dict[str, int]) -> None:
    from kdbench.config import check_sections  # config reads cards

    for place, sections in [("defaults", card.defaults), *((f"scales.{s}", c) for s, c in card.scales.items())]:
        try:
            check_sections(card, sections)
        except UsageError as error:
            field = getattr(error, "field", "")
            raise CardError(f"{card.path}:{lines.get(f'{place}.{field}', 1)}: {place}.{field}: {error}") from None


def _yaml_with_lines(text: str) -> tuple[Any, dict[str, int]]:
    """The content of a YAML text and the line of every field by its dotted path."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}.{key.value}" if prefix else str(key.value)
                lines[path] = key.start_mark.line + 1
                visit(value, path)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    node = yaml.compose(text, Loader=loader)
    if node is not None:
        visit(node, "")
    return yaml.load(text, Loader=loader), lines
