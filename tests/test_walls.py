"""The walls of the house, read from the sources: who may import whom, and what may be imported when a module loads."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.plan.family import extra_of, extras

PACKAGE = Path(__file__).parent.parent / "kdbench"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FAMILIES = sorted(path.parent.name for path in PACKAGE.glob("families/*/__init__.py"))
HEAVY = {
    "torch",
    "torchvision",
    "torchmetrics",
    "pytorch_lightning",
    "lightning_fabric",
    "torch_geometric",
    "transformers",
}

BASE = {"torch", "pytorch_lightning", "torchmetrics", "numpy", "scipy", "safetensors", "annotated_types", "pydantic"}
EXTRAS = extras()
SWITCHED = {"graph": set(EXTRAS["minilm"].modules) | set(EXTRAS["quantize"].modules)}  # by an option, with an extra


def statements(node: ast.AST, at_load: bool) -> Iterator[ast.stmt]:
    """Import statements below a node; ``at_load`` leaves out bodies of functions and of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (at_load and (function or typing)):
            yield from statements(child, at_load)


@functools.cache
def imports(module: str, at_load: bool = False) -> frozenset[str]:
    """Modules that a module imports: dotted names, longest that exist for our own."""
    path = MODULES[module]
    names = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), at_load):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in full}
    return frozenset(names)


@functools.cache
def loaded(module: str) -> frozenset[str]:
    """All modules that loading a module loads, its packages' ``__init__`` included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        waiting += [parent for parent in parents if parent in MODULES]
        waiting += imports(name, at_load=True) if name in MODULES else []
    return frozenset(found)


def below(package: str) -> list[str]:
    found = [module for module in MODULES if module == package or module.startswith(f"{package}.")]
    assert found, package
    return found


def heavy(module: str) -> set[str]:
    return {name.partition(".")[0] for name in loaded(module)} & HEAVY


def test_the_reader_of_imports_sees_what_there_is() -> None:
    assert "kdbench.engine.method" in imports("kdbench.methods.kd")
    assert "torch" in imports("kdbench.describe") and "torch" not in imports("kdbench.describe", at_load=True)
    assert {"torch", "kdbench.engine", "kdbench.plan.config"} <= loaded("kdbench.engine.runner")
    assert heavy("kdbench.engine.runner") and FAMILIES


FLOORS = (
    ("errors", "hashing", "axes"),
    ("plan",),
    ("results",),
    ("engine",),
    ("networks",),
    ("methods", "families"),
    ("describe", "launch"),
    ("board",),
    ("cli",),
)
"""The rooms from the ground up: each may know those on the floors below it."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "kdbench"])
def test_no_room_knows_one_above_it_or_beside_it(module: str) -> None:
    """So there is no circle among rooms either. The ground floor's may know each other."""
    room = module.split(".")[1]
    known = {name.split(".")[1] for name in imports(module) if name.startswith("kdbench.")} - {room, "__version__"}
    assert not {other for other in known if FLOOR[other] >= max(FLOOR[room], 1)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_knows_no_other_family(family: str) -> None:
    for module in below(f"kdbench.families.{family}"):
        others = [name for name in imports(module) if name.startswith("kdbench.families.")]
        assert all(name.split(".")[2] == family for name in others), module
        assert not [name for name in imports(module) if name.startswith("kdbench.results")]


@pytest.mark.parametrize("module", [name for name in MODULES if name.endswith(".options")])
def test_options_load_without_torch(module: str) -> None:
    assert not heavy(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_imports_only_what_its_extra_installs(family: str) -> None:
    mine = {name.partition(".")[0] for module in below(f"kdbench.families.{family}") for name in imports(module)}
    optional = {module for extra in EXTRAS.values() for module in extra.modules}
    known = BASE | {"kdbench"} | set(sys.stdlib_module_names)
    assert mine - optional <= known, "neither a base dependency nor in an extra"
    assert mine & optional <= set(EXTRAS[extra_of(family)].modules) | SWITCHED.get(family, set())


@pytest.mark.parametrize("module", below("kdbench.results"))
def test_results_import_neither_torch_nor_what_imports_it(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(module)} & HEAVY
    assert not heavy(module)


@pytest.mark.parametrize("module", below("kdbench.board"))
def test_the_board_reads_records_only(module: str) -> None:
    assert not heavy(module)
    assert not {name.partition(".")[0] for name in imports(module)} & HEAVY
    assert not [name for name in imports(module) if name.startswith(("kdbench.engine", "kdbench.families"))]


@pytest.mark.parametrize("module", below("kdbench.launch"))
def test_launchers_know_runs_and_no_methods(module: str) -> None:
    assert not heavy(module)
    assert not [name for name in imports(module) if name.startswith("kdbench.families")]
    engine = {name for name in imports(module) if name.startswith("kdbench.engine")}
    assert engine <= {"kdbench.engine.runner"}


@pytest.mark.parametrize("module", [*below("kdbench.cli"), *below("kdbench.plan"), *below("kdbench.describe")])
def test_what_the_command_line_loads_is_light(module: str) -> None:
    assert not heavy(module)
