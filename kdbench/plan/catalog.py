"""What there is to run: families and their methods, found by their place and read without importing torch.

A method file is parsed, not imported: its docstring, its class attributes and its ``Hyperparameters`` dataclass are all
that listing, showing and checking need. Other packages add families, methods and tasks by entry points:

- ``kdbench.families``: ``NAME = package`` with ``family.yaml`` and a package for each kind of its tasks, which holds
  ``task.py``, ``options.py`` and a folder ``methods`` with a file for each method;
- ``kdbench.methods``: ``FAMILY.METHOD = module`` (``METHOD = module`` for every family), one method file;
- ``kdbench.tasks``: ``ANY = package`` whose folder holds cards.

What cannot be read is reported on stderr and left out; its error is raised to whoever asks for it by name.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.errors import CardError, KdbenchError, shown, unknown
from kdbench.plan.collected import Collected

PACKAGE = Path(__file__).parent.parent
ROLES = ("method", "control", "bound", "reference")
Place = tuple[str | None, str | None, str]
"""Family, kind and name of a method; None for every family, and for every kind or those that its class names."""
LIFETIMES = ("none", "frozen", "ema", "co-trained", "several")


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
    controls: bool
    """Whether shuffled or random rows can take its teachers' place: they are frozen, one or several."""
    role: str
    """One of :data:`ROLES`: a control, a bound or a reference stands beside the methods and is none."""

    @property
    def serving(self) -> str:
        """The tasks that it runs on, in words."""
        kinds = " or ".join(kind.replace("_", " ") for kind in self.kinds)
        return f"{self.family or 'any family'} {kinds}".strip()

    def serves(self, family: str, kind: str) -> bool:
        """Whether the method runs on tasks of this family and kind."""
        return self.family in (None, family) and (not self.kinds or kind in self.kinds)


Reader = Callable[[], MethodInfo | None]


@functools.cache
def _all_points() -> Any:
    return entry_points()


def points(group: str) -> Iterable[EntryPoint]:
    """The installed entry points of a group."""
    points: Iterable[EntryPoint] = _all_points().select(group=group)
    return points


@functools.cache
def families() -> Collected[str, str]:
    """Family name -> package: the folders of ``kdbench/families`` and the ``kdbench.families`` entry points."""
    packages: Collected[str, str] = Collected()
    for path in (PACKAGE / "families").glob("*/__init__.py"):
        packages[path.parent.name] = f"kdbench.families.{path.parent.name}"
    for point in points("kdbench.families"):
        with packages.reading(point.name):
            folder_of(point.value, named_point(point))
            if packages.setdefault(point.name, point.value) != point.value:
                raise CardError(
                    f"{named_point(point)}: there is a family of that name already, {packages[point.name]}."
                )
    return packages


@functools.cache
def kinds(family: str) -> tuple[str, ...]:
    """The kinds of a family's tasks: the packages in its own that hold a ``task.py``. Nothing is imported."""
    families().check(family)
    if family not in families():
        raise unknown("family", family, families())
    return tuple(sorted(path.parent.name for path in folder_of(families()[family]).glob("*/task.py")))


def kind_module(family: str, kind: str, module: str) -> ModuleType:
    """Import a module, such as ``task`` or ``options``, of a kind of task."""
    if kind not in kinds(family):
        raise unknown(f"kind of {family} task", kind, kinds(family))
    return imported(f"{families()[family]}.{kind}.{module}")


def imported(module: str) -> ModuleType:
    """A module of a family. Raises :class:`CardError` with file and line for one whose code does not run."""
    try:
        return importlib.import_module(module)
    except KdbenchError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        raise CardError(f"{place[0]}:{place[1]}: importing '{module}' failed: {in_words(error)}.") from error


def leaderboard() -> Path:
    """The folder of the leaderboard's own files: in the installed package, else in the clone."""
    inside = PACKAGE / "_leaderboard"
    return inside if inside.is_dir() else PACKAGE.parent / "leaderboard"


def in_words(error: Exception) -> str:
    """An error of other code in words, with its kind."""
    return shown(f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}")


@functools.cache
def _shelf() -> tuple[tuple[Place, ...], dict[Place, list[Reader]], Collected[Place, MethodInfo]]:
    """Every place of a method in order, the readers of those that are still to be read, and what was read."""
    unread: dict[Place, list[Reader]] = {}
    for place, read in _method_sources():
        unread.setdefault(place, []).append(read)
    return tuple(unread), unread, Collected()


def methods_by_place(wanted: Callable[[Place], bool] = lambda place: True) -> Collected[Place, MethodInfo]:
    """What the method files say that were read so far, those at ``wanted`` places among them, by place.

    Each file is read once, and only when it may be asked for: with many methods, reading all is what takes time. A
    place that two have is neither's.
    """
    _, unread, by_place = _shelf()
    for place in [place for place in unread if wanted(place)]:
        for read in unread.pop(place):
            with by_place.reading(place):
                by_place.check(place)
                info = read()
                if info is not None and by_place.setdefault(place, info) is not info:
                    earlier, who = by_place.pop(place), " ".join(filter(None, place[:2])) or "every family"
                    raise CardError(f"{info.path}:1: method '{place[2]}' of {who} is also defined in {earlier.path}.")
    return by_place


def methods(wanted: Callable[[Place], bool] = lambda place: True) -> tuple[MethodInfo, ...]:
    """What every method file says that is at a ``wanted`` place and can be read."""
    by_place = methods_by_place(wanted)
    return tuple(by_place[place] for place in _shelf()[0] if place in by_place and wanted(place))


def offered_methods(family: str, kind: str) -> dict[str, MethodInfo]:
    """The methods that run on this family and kind of task, by name."""
    near = methods(lambda place: place[0] in (None, family) and place[1] in (None, kind))
    return {info.name: info for info in near if info.serves(family, kind)}


def offers(name: str, family: str, kind: str) -> bool:
    """Whether this family and kind of task has a method. Raises :class:`CardError` when its file cannot be read."""
    offered = offered_methods(family, kind)
    _shelf()[2].check((family, kind, name), (family, None, name), (None, None, name))
    return name in offered


def method(name: str, family: str, kind: str) -> MethodInfo:
    """The method of that name for this family and kind of task."""
    offered = offered_methods(family, kind)
    if not offers(name, family, kind):
        others = " and ".join(sorted({info.serving for info in methods() if info.name == name}))
        note = f"It is a method for {others}." if others else None
        raise unknown(f"method for {family} {kind.replace('_', ' ')}", name, offered, note)
    return offered[name]


def installed_method(family: str, name: str) -> MethodInfo | None:
    """The family's method of that name, or the one of every family; None where neither is installed here."""
    by_family = {info.family: info for info in methods() if info.name == name and info.family in (None, family)}
    return by_family.get(family, by_family.get(None))


def _method_sources() -> Iterator[tuple[Place, Reader]]:
    """Place and reader of every method there may be."""
    for path in sorted((PACKAGE / "methods").glob("*.py")):
        yield (None, None, path.stem), partial(read_method, path, None, f"kdbench.methods.{path.stem}")
    for family, package in families().items():
        for path in sorted(folder_of(package).glob("*/methods/*.py")):
            kind, name = path.parent.parent.name, path.stem
            yield (family, kind, name), partial(read_method, path, family, f"{package}.{kind}.methods.{name}", kind)
    for point in points("kdbench.methods"):
        family, _, name = point.name.rpartition(".")
        yield (family or None, None, name), partial(_read_point, point)


def _read_point(point: EntryPoint) -> MethodInfo | None:
    family, _, name = point.name.rpartition(".")
    path = Path(str(_spec(point.value, named_point(point)).origin))
    if name != path.stem:
        raise CardError(f"{named_point(point)}: a method has the name of its file, '{path.stem}'.")
    if family and family not in families():
        raise CardError(f"{named_point(point)}: {unknown('family', family, families())}")
    info = read_method(path, family or None, point.value)
    if info is None:
        raise CardError(f"{named_point(point)}: {path} defines no subclass of Method.")
    return info


def named_point(point: EntryPoint) -> str:
    """An entry point in words."""
    return f"Entry point {point.group} '{point.name} = {point.value}'"


def _spec(module: str, who: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:  # what the packages around it do while they are imported
        raise CardError(f"{who}: importing what is around '{module}' failed: {in_words(error)}.") from error
    if spec is None:
        raise CardError(f"{who}: there is no module '{module}'.")
    return spec


def folder_of(package: str, who: str = "kdbench") -> Path:
    """Where a package lies; it is not imported. ``who`` wants it, should it be missing."""
    places = _spec(package, who).submodule_search_locations
    if not places:
        raise CardError(f"{who}: '{package}' is a module, not a package.")
    return Path(next(iter(places)))


def _name(base: ast.expr) -> str:
    """Name of a base class, without its module and its type arguments."""
    return ast.unparse(base).partition("[")[0].split(".")[-1]


def read_method(path: Path, family: str | None, module: str, kind: str | None = None) -> MethodInfo | None:
    """Read a method file; None when it defines no subclass of ``Method``. Errors name the file and the line.

    A method serves the ``kind`` of task that its place says, else those that its class names.
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise CardError(f"{path}:{error.lineno or 1}: {error.msg}.") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise CardError(f"{path}:1: it cannot be read: {in_words(error)}.") from None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = [node for node in classes if any(_name(base) == "Method" for base in node.bases)]
    if not own:
        return None
    if len(own) > 1:
        raise CardError(f"{path}:{own[1].lineno}: one file holds one method; {own[0].name} is here already.")
    attributes, where = _literals(own[0]), f"{path}:{own[0].lineno}: class {own[0].name}"
    missing = {"title", "paper", "teacher"} - attributes.keys()
    if missing:
        raise CardError(f"{where} lacks {', '.join(sorted(missing))}.")
    for name in ("title", "paper", "teacher"):
        if not isinstance(attributes[name], str):
            raise CardError(f"{where}: '{name}' is text.")
    kinds = attributes.get("kinds", ())
    if not isinstance(kinds, tuple | list) or not all(isinstance(kind, str) for kind in kinds):
        raise CardError(f"{where}: 'kinds' is a tuple of names, such as ('node_classification',).")
    if attributes["teacher"] not in LIFETIMES:
        raise CardError(f"{where}: {unknown('teacher', str(attributes['teacher']), LIFETIMES)}")
    role = attributes.get("role", "method")
    if role not in ROLES:
        raise CardError(f"{where}: {unknown('role', str(role), ROLES)}")
    controls = attributes.get("controls", attributes["teacher"] == "frozen")
    if not isinstance(controls, bool) or (controls and attributes["teacher"] not in ("frozen", "several")):
        raise CardError(f"{where}: 'controls' is true for several teachers that are all frozen.")
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
        kinds=(kind,) if kind else tuple(kinds),
        controls=controls,
        role=role,
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
    except Exception as error:
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
    values: dict[str, Any] = {}
    for item in node.body:
        if not isinstance(item, ast.Assign | ast.AnnAssign) or item.value is None:
            continue
        for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
            if isinstance(target, ast.Name):
                try:
                    values[target.id] = ast.literal_eval(item.value)
                except (ValueError, TypeError):
                    continue
    return values


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
    return _documented(str(importlib.import_module(options.__module__).__file__))[options.__name__]


@functools.cache
def _documented(file: str) -> dict[str, tuple[Field, ...]]:
    """:func:`option_fields` of every class of a file."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: option_fields(node) for node in tree.body if isinstance(node, ast.ClassDef)}
