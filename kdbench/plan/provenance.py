"""What made a run: the code that its numbers depend on, and the files that it read, by content.

The code is the import closure of the method, the task's kind and the engine inside kdbench, or inside the package that
brings them. What only plans, shows or compares runs does not count: what it decides stands in the run's configuration.
Each file is digested as Python parses it, so that comments, docstrings and layout do not count either.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kdbench.hashing import file_digest, write_atomic
from kdbench.plan.catalog import families, method
from kdbench.plan.config import RunConfig
from kdbench.plan.datasets import roots
from kdbench.plan.own import modules, search_working_folder

ENGINE = "kdbench.engine.runner"
PLANNING = ("board", "cli", "describe", "errors", "hashing", "launch", "plan", "results")
"""Parts of kdbench that change no number of a run whose configuration is given, but for the metrics in ``plan``."""
METRICS = "kdbench.plan.metrics"
SIGNS = 16  # hexadecimal digits of a file's digest


@dataclass(frozen=True)
class Made:
    """What a run is made of, as digests by path: code from its package on, the files that it read by their place."""

    code: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, read: Mapping[Path, str]) -> Made:
        """Of a run with this configuration that read these files."""
        return cls(code_of(config), {_portable(path): digest for path, digest in sorted(read.items())})

    @classmethod
    def load(cls, folder: Path) -> Made | None:
        """What a run's folder tells; None where it tells nothing that can be read."""
        try:
            return cls(**json.loads((folder / "made.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def differences(self, now: Made) -> list[str]:
        """What is not as it was, in words."""
        return changes(self.code, now.code) + changes(self.inputs, now.inputs)

    def save(self, folder: Path) -> None:
        """Leave it in a run's folder."""
        write_atomic(folder / "made.json", json.dumps(asdict(self), indent=1) + "\n")


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The paths whose digests differ, in words."""
    changed = [f"{path} changed" for path in before if path in now and before[path] != now[path]]
    added = [f"{path} is new" for path in now if path not in before]
    return changed + added + [f"{path} is gone" for path in before if path not in now]


def _portable(path: Path) -> str:
    """A path, below the folders of data by their name: they differ between machines. A relative one is kept so.

    Then it names another file in another working folder, as it does in the command.
    """
    whole = path.resolve()
    for name, root in roots().items():
        if whole.is_relative_to(root.resolve()):
            return f"{name}/{whole.relative_to(root.resolve()).as_posix()}"
    return path.as_posix()


def here(name: str) -> Path:
    """Where a file of ``inputs`` is."""
    first, _, rest = name.partition("/")
    return roots()[first] / rest if first in roots() else Path(name)


def code_of(config: RunConfig) -> dict[str, str]:
    """The code that a run's numbers depend on: path -> digest."""
    own = method(config.method, config.family, config.kind).module
    networks = modules(config.student, config.teacher)
    return closure((own, f"{families()[config.family]}.{config.kind}.task", ENGINE, *networks))


@functools.cache
def closure(modules: tuple[str, ...]) -> dict[str, str]:
    """``modules`` and all that they import of their own packages: path from the package on -> digest of the code.

    A module of the working folder may be all over it: what it imports of that folder counts.

    A module that is imported and does not exist stands there as ``missing``.
    """
    packages = {module.partition(".")[0] for module in modules} | {"kdbench"}
    here = any(_is_here(package) for package in packages - {"kdbench"})
    waiting, seen, digests = list(modules), set[str](), dict[str, str]()
    while waiting:
        name = waiting.pop()
        package, _, rest = name.partition(".")
        plans = package == "kdbench" and rest.partition(".")[0] in ("", *PLANNING) and name != METRICS
        if name in seen or plans or not (package in packages or (here and _is_here(package))):
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])
        place = _place(name)
        if place is None or place.is_file():
            digest, imported = ("missing", ()) if place is None else _parsed(place, name)
            digests[_label(name, place)] = digest
            waiting += imported
    return dict(sorted(digests.items()))


def closure_digest(modules: Iterable[str]) -> str:
    """SHA-256 over the :func:`closure` of modules."""
    return hashlib.sha256(json.dumps(closure(tuple(sorted(set(modules))))).encode()).hexdigest()


def _label(name: str, place: Path | None) -> str:
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if place is not None and place.name == "__init__.py" else f"{path}.py"


@functools.cache
def _top(package: str) -> Path | None:
    """The file or folder of a top-level module or package, which is not imported."""
    search_working_folder()
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]) if folders else Path(str(spec.origin))


def _is_here(package: str) -> bool:
    """Whether a top-level module or package lies in the working folder."""
    top = _top(package) if package else None
    return top is not None and top.resolve().parent == Path.cwd()


@functools.cache
def _place(name: str) -> Path | None:
    """The file of a module, or the folder of a package without ``__init__.py``; None where there is none."""
    package, *rest = name.split(".")
    top = _top(package)
    if top is None or (rest and top.is_file()):
        return None
    path = top.joinpath(*rest)
    files = (path, path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), path if path.is_dir() else None)


@functools.cache
def _parsed(path: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """The digest of a file's code, and the modules that it imports."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError):
        return file_digest(path)[:SIGNS], ()
    hasher = hashlib.sha256()
    for word in _words(tree):
        hasher.update(word.encode("utf-8", "surrogatepass"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return hasher.hexdigest()[:SIGNS], tuple(_imports(tree, package))


def _words(node: object) -> Iterator[str]:
    """A syntax tree as text, without positions, documentation and what only a type checker reads.

    Empty fields are left out: newer Pythons have more of them.
    """
    if isinstance(node, list):
        yield "["
        for item in node:
            if not _silent(item):
                yield from _words(item)
        yield "]"
    elif isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for key, value in ast.iter_fields(node):
            if value is not None and value != [] and key not in ("ctx", "kind", "type_comment"):
                yield f" {key}="
                yield from _words(value)
        yield ")"
    else:
        yield f"{type(node).__name__}:{node!r}"


def _silent(node: object) -> bool:
    """Whether a statement does nothing: text that stands alone, or what only a type checker reads."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    typing = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return typing and isinstance(node, ast.If) and not node.orelse


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if _silent(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.rsplit(".", child.level - 1)[0] if child.level else ""
            module = ".".join(part for part in (above, child.module) if part)
            yield module
            inside = (f"{module}.{alias.name}" for alias in child.names)
            yield from (one for one in inside if _place(one) is not None)
        else:
            yield from _imports(child, package)
