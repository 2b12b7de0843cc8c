"""The house: imports go down only, only JAX's stable namespaces, files that can be read, names that say something."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tensorprog"

#: The floors, lowest first. A module may import from floors below its own, and from its own folder without cycles.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "loops", "arrays"),
    ("functions",),
    ("ir",),
    ("gia",),
    ("show",),
    ("program",),
    ("batch", "data"),
    ("tracing",),
    ("nets",),
    ("transform",),
    ("interpret",),
    ("accuracy", "existence", "limits"),
    ("tiles", "decomposition", "sampling"),
    ("evaluation",),
    ("kernel", "empirical", "planning"),
    ("predict", "taylor"),
    ("plot",),
    ("comparison", "sklearn"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

BANNED = ("jax._src", "jax.core", "jax.interpreters", "jax.experimental")
ONE_FILE = ("jax.extend", "jax.export")
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
LONGEST = 450


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, its syntax tree and its length."""

    name: str
    tree: ast.Module
    lines: int
    is_folder: bool = False

    @property
    def place(self) -> str:
        """What the table of floors calls it: the part after the package, the folder for a file in a folder."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else "__init__"


def read(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    source = path.read_text(encoding="utf-8")
    is_folder = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_folder else parts)
    return Module(name, ast.parse(source), source.count("\n"), is_folder)


MODULES = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = {module.name for module in MODULES}


def imports(module: Module, names: set[str]) -> set[str]:
    """The modules of `names` that a module imports, inside functions and for type checking too."""
    found = set()
    package = module.name.split(".") if module.is_folder else module.name.split(".")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & names
            if not inner <= names:  # something that the module itself defines
                found.add(base)
    return found & names - {module.name}


def dotted(tree: ast.AST) -> set[str]:
    """Every dotted name that a file imports from or reads, aliases spelt out: `import jax.numpy as jnp` too."""
    aliases, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.add(alias.name)
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found.add(f"{node.module}.{alias.name}")
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in aliases:
            found.add(".".join([aliases[node.id], *reversed(parts)]))
    return found


def inside(name: str, namespaces: tuple[str, ...]) -> bool:
    return any(name == space or name.startswith(f"{space}.") for space in namespaces)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of the graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, set())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def wrong_way(module: Module, imported: set[str]) -> list[str]:
    """The imports that do not go down: up, or across to a neighbour on the same floor."""
    place = module.place

    def is_wrong(target: str) -> bool:
        other = Module(target, ast.Module([], []), 0).place
        return other != place and FLOOR.get(other, len(FLOORS)) >= FLOOR[place]

    return sorted(target for target in imported if is_wrong(target))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_has_a_floor(module):
    assert module.place in FLOOR, (
        f"give {module.place} a floor in this file's table, and a paragraph in docs/reading.md"
    )


@pytest.mark.parametrize("module", [m for m in MODULES if m.place in FLOOR], ids=lambda module: module.name)
def test_imports_go_down_only(module):
    assert wrong_way(module, imports(module, NAMES)) == []


def test_no_cycles():
    # A folder's __init__ stands for its files to those outside; between files of one folder only files count.
    folders = {module.name for module in MODULES if module.is_folder}
    graph = {module.name: imports(module, NAMES) - folders for module in MODULES if module.name not in folders}
    assert cycle(graph) == []


def sources() -> list[Path]:
    return [
        path
        for folder in ("tensorprog", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "cases" not in path.relative_to(ROOT).parts
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_stable_namespaces_of_jax(path):
    used = dotted(ast.parse(path.read_text(encoding="utf-8")))
    assert sorted(name for name in used if inside(name, BANNED)) == []


def test_what_may_change_is_used_in_one_file_only():
    users = [module.name for module in MODULES if any(inside(name, ONE_FILE) for name in dotted(module.tree))]
    assert len(users) <= 1, users


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_files_can_be_read(module):
    assert module.lines <= LONGEST, f"{module.name} has {module.lines} lines: split it by concept"
    assert ast.get_docstring(module.tree), f"{module.name} does not say what it is"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_something(path):
    assert not NAMELESS & set(path.relative_to(ROOT).with_suffix("").parts)


def test_reading_order_names_every_file():
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    files = [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]
    assert [file for file in files if f"`{file}`" not in text] == []


# -- the checks themselves ---------------------------------------------------------------------------------------------


def module(name: str, source: str, is_folder: bool = False) -> Module:
    return Module(name, ast.parse(source), source.count("\n"), is_folder)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tensorprog.kernel", {"tensorprog.kernel"}),
        ("import tensorprog.kernel as k", {"tensorprog.kernel"}),
        ("from tensorprog import kernel", {"tensorprog.kernel"}),
        ("from tensorprog import ntk", {"tensorprog"}),
        ("from tensorprog.kernel import ntk", {"tensorprog.kernel"}),
        ("from . import base", {"tensorprog.functions.base"}),
        ("from .base import expect", {"tensorprog.functions.base"}),
        ("from ..kernel import ntk", {"tensorprog.kernel"}),
        ("def f():\n    from tensorprog.kernel import ntk", {"tensorprog.kernel"}),
        ("import jax, numpy", set()),
    ],
)
def test_imports_are_found(source, found):
    names = {"tensorprog", "tensorprog.kernel", "tensorprog.functions.base", "tensorprog.functions.erf"}
    assert imports(module("tensorprog.functions.erf", source), names) == found


def test_wrong_ways_are_found():
    wrong = lambda name, target: wrong_way(module(name, ""), {target})
    assert wrong("tensorprog.functions.erf", "tensorprog.kernel")
    assert wrong("tensorprog.kernel", "tensorprog.empirical")
    assert wrong("tensorprog.ir", "tensorprog")
    assert not wrong("tensorprog.kernel", "tensorprog.ir")
    assert not wrong("tensorprog.functions.erf", "tensorprog.functions.base")


def test_cycles_are_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import jax._src.core",
        "from jax.experimental import pallas",
        "from jax import core",
        "import jax\njax.core.Tracer",
        "import jax as j\nisinstance(x, j.interpreters.ad.JVPTracer)",
        "from jax import experimental as e\ne.checkify",
    ],
)
def test_bans_are_found(source):
    assert any(inside(name, BANNED) for name in dotted(ast.parse(source)))


def test_stable_names_are_let_through():
    source = "import jax, jax.numpy as jnp\nfrom jax.typing import ArrayLike\njax.nn.relu(jnp.ones(3)); jax.coreless"
    assert not any(inside(name, BANNED + ONE_FILE) for name in dotted(ast.parse(source)))
