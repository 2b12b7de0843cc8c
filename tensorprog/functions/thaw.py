"""What a frozen function is made of, and how it becomes a Python function again.

A frozen function is a small graph: a root value and a list of records, one a Python function reached from it. Values
are trees of the node classes below; a function inside a value is a `Reference` to its record, which is what lets
functions that call themselves or each other be frozen and rebuilt. `frozen.freeze` makes these, `Thaw` takes them back.
"""

import functools
import importlib
import types
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, eq=False)
class Identity:
    """Compares what it holds by `is`. What a module has under its own name is pickled by that name."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        # The function inside a `jax.custom_jvp` is not what its module has under that name, so pickle, which looks
        # inside, would not find it.
        module, name = getattr(self.value, "__module__", None), getattr(self.value, "__qualname__", None)
        name = name or getattr(self.value, "__name__", None)
        if module and name and _attribute(module, name) is self.value:
            return _named, (module, name)
        return Identity, (self.value,)


def _attribute(module: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return None


def _named(module: str, name: str) -> Identity:
    return Identity(_attribute(module, name))


@dataclass(frozen=True)
class Opaque:
    """Anything taken as it is: compared by `==` and type when it is hashable, else by identity."""

    key: Hashable
    value: Any = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opaque, (self.key,) if isinstance(self.key, Identity) else (self.key, self.value)


def _opaque(key: Any, value: Any = None) -> Opaque:
    return Opaque(key, key.value if isinstance(key, Identity) else value)


@dataclass(frozen=True)
class Number:
    """The place of a JAX array."""

    index: int


@dataclass(frozen=True)
class ArrayBytes:
    """An array that is no number: NumPy's, or a concrete JAX array of integers or booleans."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]
    kind: str  # "numpy", "scalar" (np.float64(1.0) and the like) or "jax"


@dataclass(frozen=True)
class Items:
    """A list, tuple, named tuple, set or frozenset."""

    type: type
    items: "tuple[Node, ...] | frozenset[Node]"


@dataclass(frozen=True)
class Mapping:
    """A dict."""

    items: "tuple[tuple[Node, Node], ...]"


@dataclass(frozen=True)
class Partial:
    """A `functools.partial`."""

    fn: "Node"
    args: "tuple[Node, ...]"
    keywords: "tuple[tuple[str, Node], ...]"


@dataclass(frozen=True)
class Method:
    """A bound method."""

    fn: "Node"
    owner: "Node"


@dataclass(frozen=True)
class Tree:
    """An object registered as a JAX pytree (an Equinox module): its leaves, and the rest."""

    structure: Hashable
    leaves: "tuple[Node, ...]"


@dataclass(frozen=True)
class Instance:
    """A dataclass instance that does not hash: its fields as they were."""

    type: type
    fields: "tuple[tuple[str, Node], ...]"


@dataclass(frozen=True)
class Derived:
    """A function made from a frozen one, its derivative say: make(fn)."""

    make: Hashable
    of: Any  # a frozen.Function

    def value(self, numbers: tuple[jax.Array, ...]) -> Any:
        assert callable(self.make), "what makes the function is called with it"
        return self.make(self.of.thaw(numbers))


@dataclass(frozen=True)
class Reference:
    """The record of a function, by place."""

    index: int


Node = Opaque | Number | ArrayBytes | Items | Mapping | Partial | Method | Tree | Instance | Derived | Reference


@dataclass(frozen=True)
class Code:
    """A code object, compared by what it does and not by its line numbers or name."""

    key: Hashable
    code: types.CodeType = field(compare=False, repr=False)


@dataclass(frozen=True)
class Written:
    """A Python function: code, and everything the code reads that could change."""

    code: Code
    cells: "tuple[Node | None, ...]"  # None: a cell not filled yet
    defaults: "tuple[Node, ...] | None"
    keyword_defaults: "tuple[tuple[str, Node], ...] | None"
    globals: "tuple[tuple[str, Node], ...] | None"  # None: library code, which keeps its module's own
    module: dict[str, Any] = field(compare=False, repr=False)
    name: str = field(compare=False)


@dataclass(frozen=True)
class Ruled:
    """A function with its own derivative rule: `jax.custom_jvp` (one rule) or `jax.custom_vjp` (two)."""

    type: type
    fn: Node
    rules: "tuple[Node, ...]"
    options: tuple[tuple[str, Hashable], ...]


Record = Written | Ruled


class Thaw:
    """One rebuilding: shells of all functions first, then what they hold, which may be each other."""

    def __init__(self, records: tuple[Record, ...], numbers: tuple[jax.Array, ...]) -> None:
        self.records, self.numbers = records, numbers
        self.shells: dict[int, Any] = {}
        for index in range(len(records)):
            self.shell(index)
        for index, record in enumerate(records):
            self.fill(self.shells[index], record)

    def shell(self, index: int) -> Any:
        if index not in self.shells:
            match self.records[index]:
                case Written() as record:
                    space = record.module if record.globals is None else fresh_globals(record.module)
                    cells = tuple(types.CellType() for _ in record.cells)
                    self.shells[index] = types.FunctionType(record.code.code, space, record.name, None, cells)
                case Ruled(type, fn, _, options):
                    self.shells[index] = type(self.value(fn), **dict(options))
        return self.shells[index]

    def fill(self, shell: Any, record: Record) -> None:
        match record:
            case Written():
                for cell, node in zip(shell.__closure__ or (), record.cells, strict=True):
                    if node is not None:
                        cell.cell_contents = self.value(node)
                if record.defaults is not None:
                    shell.__defaults__ = tuple(map(self.value, record.defaults))
                if record.keyword_defaults is not None:
                    shell.__kwdefaults__ = {k: self.value(node) for k, node in record.keyword_defaults}
                if record.globals is not None:
                    shell.__globals__.update((name, self.value(node)) for name, node in record.globals)
            case Ruled(_, _, rules, _):
                define = shell.defjvp if isinstance(shell, jax.custom_jvp) else shell.defvjp
                define(*map(self.value, rules))

    def value(self, node: Node) -> Any:
        match node:
            case Opaque(_, value):
                return value
            case Number(index):
                return self.numbers[index]
            case ArrayBytes(data, dtype, shape, kind):
                array = np.frombuffer(data, dtype).reshape(shape).copy()
                return array if kind == "numpy" else array[()] if kind == "scalar" else jnp.asarray(array)
            case Items(kind, items):
                values = map(self.value, items)
                return kind(*values) if hasattr(kind, "_fields") else kind(values)
            case Mapping(items):
                return {self.value(k): self.value(v) for k, v in items}
            case Partial(fn, args, keywords):
                return functools.partial(
                    self.value(fn), *map(self.value, args), **{k: self.value(v) for k, v in keywords}
                )
            case Method(fn, owner):
                return types.MethodType(self.value(fn), self.value(owner))
            case Tree(structure, leaves):
                return jax.tree.unflatten(structure, [self.value(leaf) for leaf in leaves])
            case Instance(kind, fields):
                made = object.__new__(kind)
                for name, held in fields:
                    object.__setattr__(made, name, self.value(held))
                return made
            case Derived():
                return node.value(self.numbers)
            case Reference(index):
                return self.shell(index)


def fresh_globals(module: dict[str, Any]) -> dict[str, Any]:
    """A module's namespace with only what running code and relative imports in it need."""
    names = ("__name__", "__package__", "__spec__", "__builtins__")
    return {name: module[name] for name in names if name in module}
