"""The house: imports go down only, only JAX's stable namespaces, files that can be read, names that say something."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tensorprog"

#: The floors, lowest first. A module may import from floors below its own, and from its own folder without cycles.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "loops", "compiling", "arrays"),
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
    ("accuracy", "existence", "limits", "refusals", "importing"),
    ("tiles", "stripes"),
    ("decomposition", "sampling", "assembly"),
    ("settling",),
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


def reading_order() -> list[str]:
    """The modules in the order in which docs/reading.md names their files first."""
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    files = [file for file in dict.fromkeys(re.findall(r"`([\w/]+\.py)`", text)) if (PACKAGE / file).exists()]
    return ["tensorprog." + file.removesuffix(".py").replace("/", ".") for file in files]


def later(order: list[str], graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports of a module that the order names later."""
    place = {name: index for index, name in enumerate(order)}
    return [
        (name, target)
        for name in order
        for target in sorted(graph.get(name, set()))
        if target in place and place[target] > place[name]
    ]


def test_reading_order_names_every_file():
    assert {module.name for module in MODULES if not module.is_folder} <= set(reading_order())


def test_reading_order_is_the_order_of_imports():
    files = [module for module in MODULES if not module.is_folder]
    assert later(reading_order(), {module.name: imports(module, NAMES) for module in files}) == []


def members(module: str, union: str) -> set[str]:
    """The classes of a closed union, as its definition lists them."""
    tree = next(m.tree for m in MODULES if m.name == module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [union]:
            return {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
    raise AssertionError(f"{module} defines no {union}")


def open_matches(tree: ast.AST, union: set[str]) -> list[int]:
    """The lines of matches that tell classes of a union apart and do not end in `assert_never`.

    The type checker finds no case that is missing where the last one takes everything else.
    """
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Match):
            continue
        patterns = [p for case in node.cases for p in ast.walk(case.pattern) if isinstance(p, ast.MatchClass)]
        last = node.cases[-1].body[-1]
        if union & {ast.unparse(p.cls) for p in patterns} and not ast.unparse(last).startswith("assert_never("):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("module", "union"), [("tensorprog.ir", "Instruction"), ("tensorprog.interpret.equations", "Equation")]
)
def test_matches_over_closed_unions_end_in_assert_never(module, union):
    classes = members(module, union)
    assert len(classes) >= 10
    assert {m.name: lines for m in MODULES if (lines := open_matches(m.tree, classes))} == {}


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


def test_what_is_read_too_early_is_found():
    assert later(["a", "b"], {"a": {"b"}, "b": {"a"}}) == [("a", "b")]


@pytest.mark.parametrize(
    ("last", "found"),
    [("case never:\n  assert_never(never)", []), ("case _:\n  pass", [1]), ("case B():\n  pass", [1])],
)
def test_open_matches_are_found(last, found):
    cases = "\n".join(" " + line for line in f"case A(x=1):\n  pass\n{last}".splitlines())
    assert open_matches(ast.parse(f"match y:\n{cases}"), {"A", "B"}) == found


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
