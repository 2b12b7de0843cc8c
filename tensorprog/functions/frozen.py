"""A user's function as it is at the call: hashable, comparable, and without arrays.

`freeze(fn)` copies everything that could change under a Python function: the cells it closes over, its defaults, the
arguments of a `functools.partial`, and the globals that its code names. What it returns compares by content, so
tracing the same program twice gives equal programs, and nothing is compiled twice. JAX arrays and tracers found among
those values are taken out and handed back as a tuple of numbers: the `Function` itself is static.
"""

import dataclasses
import dis
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.thaw import (
    ArrayBytes,
    Code,
    Derived,
    Identity,
    Instance,
    Items,
    Mapping,
    Method,
    Node,
    Number,
    Opaque,
    Partial,
    Record,
    Reference,
    Ruled,
    Thaw,
    Tree,
    Written,
)

JITTED = type(jax.jit(lambda x: x))
# Code that its user does not edit between two traces: installed packages, and this one wherever it lies.
LIBRARY = (
    *{sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(__file__).parents[1]),
)


@dataclass(frozen=True)
class Function:
    """A frozen function: call it with the numbers that `freeze` took out of it."""

    root: Node
    records: tuple[Record, ...]
    count: int  # how many numbers it takes
    name: str = field(compare=False)

    def __call__(self, *args: Any, numbers: tuple[jax.Array, ...] = ()) -> Any:
        assert len(numbers) == self.count, f"{self.name} takes {self.count} numbers, got {len(numbers)}"
        return self.thaw(numbers)(*args)

    def thaw(self, numbers: tuple[jax.Array, ...] = ()) -> Callable[..., Any]:
        """The Python function again, `numbers` back in their places."""
        if self.count:
            return Thaw(self.records, numbers).value(self.root)
        if "_thawed" not in self.__dict__:
            object.__setattr__(self, "_thawed", Thaw(self.records, ()).value(self.root))
        return self.__dict__["_thawed"]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_thawed"}

    def __str__(self) -> str:
        return self.name


def derived(make: Hashable, fn: Function, name: str) -> Function:
    """make(fn) as a frozen function that holds the same numbers; `make` hashes, and is equal when it does the same."""
    return Function(Derived(make, fn), (), fn.count, name)


def freeze(fn: Callable[..., Any]) -> tuple[Function, tuple[jax.Array, ...]]:
    """The function as it is now, and the JAX arrays it held: with (f, numbers), f(*args, numbers=numbers) is fn(*args).

    Raises TypeError for what is not callable, for a container that contains itself, and for an object that hides a
    traced array where it cannot be seen.
    """
    if isinstance(fn, Function):
        assert fn.count == 0, f"{fn.name} was frozen already, and its numbers are elsewhere"
        return fn, ()
    if not callable(fn):
        raise TypeError(f"expected a function, got {type(fn).__name__}: {fn!r}")
    if isinstance(fn, type):
        raise TypeError(
            f"expected a function, got the class {fn.__name__}: pass an instance, or a function that makes one"
        )
    work = Freeze()
    root = work.value(fn)
    return Function(root, work.finished(), len(work.numbers), name_of(fn)), tuple(work.numbers)


class Freeze:
    """One walk over a function and what it holds."""

    def __init__(self) -> None:
        self.numbers: list[jax.Array] = []
        self.records: list[Record | None] = []
        self.places: dict[int, Node] = {}  # id of a function or array -> where it went
        self.kept: list[Any] = []  # keeps those ids from being reused during the walk
        self.open: list[int] = []  # ids of the containers we are inside of

    def finished(self) -> tuple[Record, ...]:
        assert all(record is not None for record in self.records), "a record was opened and never closed"
        return tuple(record for record in self.records if record is not None)

    def value(self, x: Any) -> Node:
        if id(x) in self.places:
            return self.places[id(x)]
        match x:
            case None | bool() | int() | str() | bytes():
                return Opaque((type(x), x), x)
            case float() | complex() if not isinstance(x, np.generic):
                return Opaque((type(x), repr(x)), x)  # repr tells 0.0 from -0.0 and makes nan equal to itself
            case jax.Array():
                return self.array(x)
            case np.ndarray() | np.generic() if not x.dtype.hasobject:
                # Without axes a number, as in `Program`: of an array JAX would keep an outdated dtype.
                kind = "numpy" if isinstance(x, np.ndarray) and x.ndim else "scalar"
                return ArrayBytes(x.tobytes(), x.dtype.str, x.shape, kind)
            case list() | tuple() | set() | frozenset() | dict() | functools.partial():
                return self.container(x)
            case types.MethodType():
                return Method(self.value(x.__func__), self.value(x.__self__))
            case types.FunctionType():
                return self.function(x)
            case jax.custom_jvp() | jax.custom_vjp() if not importable(x):
                return self.ruled(x)
            case _ if isinstance(x, JITTED) and not importable(x):
                # Elementwise code is compiled with the program it is in, so a `jit` of its own says nothing.
                return self.value(inspect.unwrap(x, stop=lambda inner: inner is not x))
            case _:
                return self.object(x)

    def array(self, x: jax.Array) -> Node:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            try:  # masks and indices are part of what the function is, not numbers to differentiate in
                data = np.asarray(x)
                return ArrayBytes(data.tobytes(), data.dtype.str, data.shape, "jax")
            except (TypeError, jax.errors.JAXTypeError):
                pass  # traced, or a random key
        self.numbers.append(x)
        return self.remember(x, Number(len(self.numbers) - 1))

    def remember(self, x: Any, node: Node) -> Node:
        self.kept.append(x)
        self.places[id(x)] = node
        return node

    def container(self, x: Any) -> Node:
        if id(x) in self.open:
            raise TypeError(f"cannot take a function that holds a {type(x).__name__} which contains itself")
        self.open.append(id(x))
        try:
            match x:
                case dict():
                    return Mapping(tuple((self.value(k), self.value(v)) for k, v in x.items()))
                case functools.partial():
                    keywords = tuple((k, self.value(v)) for k, v in sorted(x.keywords.items()))
                    return Partial(self.value(x.func), tuple(map(self.value, x.args)), keywords)
                case set() | frozenset():
                    return Items(type(x), frozenset(map(self.value, x)))
                case _:
                    return Items(type(x), tuple(map(self.value, x)))
        finally:
            self.open.pop()

    def function(self, x: types.FunctionType) -> Node:
        if importable(x):
            return Opaque(Identity(x), x)
        place = self.open_record(x)
        cells = tuple(self.value(cell.cell_contents) if filled(cell) else None for cell in x.__closure__ or ())
        defaults = None if x.__defaults__ is None else tuple(map(self.value, x.__defaults__))
        keywords = x.__kwdefaults__
        keyword_defaults = None if keywords is None else tuple((k, self.value(v)) for k, v in sorted(keywords.items()))
        named = None
        if not x.__code__.co_filename.startswith(LIBRARY):
            names = sorted(set(global_names(x.__code__)) & x.__globals__.keys())
            named = tuple((name, self.value(x.__globals__[name])) for name in names)
        code = Code(code_key(x.__code__), x.__code__)
        self.records[place.index] = Written(code, cells, defaults, keyword_defaults, named, x.__globals__, x.__name__)
        return place

    def ruled(self, x: Any) -> Node:
        names = ("jvp",) if isinstance(x, jax.custom_jvp) else ("fwd", "bwd")
        if any(getattr(x, name, None) is None for name in names):
            raise TypeError(f"{name_of(x)} is a {type(x).__name__} without its derivative rule")
        place = self.open_record(x)
        options = tuple((k, getattr(x, k)) for k in ("nondiff_argnums", "nondiff_argnames") if getattr(x, k, None))
        rules = tuple(self.value(getattr(x, name)) for name in names)
        self.records[place.index] = Ruled(type(x), self.value(x.__wrapped__), rules, options)
        return place

    def open_record(self, x: Any) -> Reference:
        """Take a place before looking inside, so that a function may refer to itself."""
        place = Reference(len(self.records))
        self.records.append(None)
        self.remember(x, place)
        return place

    def object(self, x: Any) -> Node:
        if importable(x) or isinstance(x, type | types.ModuleType | types.BuiltinFunctionType):
            return Opaque(Identity(x), x)
        leaves, structure = jax.tree.flatten(x)
        if not jax.tree_util.treedef_is_leaf(structure):
            return Tree(hashable(structure, x), self.inside(x, leaves))
        if dataclasses.is_dataclass(x) and type(x).__hash__ is None:
            names = [name.name for name in dataclasses.fields(x)]
            fields = self.inside(x, [getattr(x, name) for name in names])
            return Instance(type(x), tuple(zip(names, fields, strict=True)))
        for name, held in getattr(x, "__dict__", {}).items():
            if isinstance(held, jax.Array) and not concrete(held):
                raise TypeError(
                    f"cannot take {type(x).__name__}: its attribute {name!r} is a traced array, which would be lost. "
                    "Register the class as a pytree (jax.tree_util.register_dataclass), or close over the array itself"
                )
        try:
            hash(x)
        except TypeError:
            return Opaque(Identity(x), x)
        return Opaque((type(x), x), x)

    def inside(self, x: Any, values: list[Any]) -> tuple[Node, ...]:
        if id(x) in self.open:
            raise TypeError(f"cannot take a function that holds a {type(x).__name__} which contains itself")
        self.open.append(id(x))
        try:
            return tuple(map(self.value, values))
        finally:
            self.open.pop()


def hashable(structure: Any, owner: Any) -> Hashable:
    try:
        hash(structure)
    except TypeError as error:
        raise TypeError(f"cannot take {type(owner).__name__}: its static fields do not hash ({error})") from None
    return structure


def concrete(x: jax.Array) -> bool:
    try:
        np.asarray(x)
    except jax.errors.JAXTypeError:
        return False
    except TypeError:
        return True  # a random key
    return True


def filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def importable(x: Any) -> bool:
    """Whether x belongs to an installed package under its own name: then it is the same in every trace, and stays."""
    module = sys.modules.get(getattr(x, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    if module is None or (path is not None and not path.startswith(LIBRARY)) or module.__name__ == "__main__":
        return False
    found: Any = module
    for part in (getattr(x, "__qualname__", None) or getattr(x, "__name__", None) or "?").split("."):
        found = getattr(found, part, None)
    return found is x


def global_names(code: types.CodeType) -> Iterator[str]:
    """The globals that code names, itself or in functions and comprehensions written inside it.

    `co_names` would not do: it holds attribute names too, and a global that happens to share one is not read.
    """
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_names(constant)


def code_key(code: types.CodeType) -> Hashable:
    """What code does: everything but its file, lines and name."""
    return (
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags,
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, getattr(code, "co_exceptiontable", b""),
        tuple(constant_key(constant) for constant in code.co_consts),
    )  # fmt: skip


def constant_key(constant: Any) -> Hashable:
    match constant:
        case types.CodeType():
            return code_key(constant)
        case tuple() | frozenset():
            return (type(constant), type(constant)(constant_key(item) for item in constant))
        case _:  # the type tells 1 from 1.0 and True, repr 0.0 from -0.0
            return (type(constant), repr(constant))


def is_gradient(fn: types.FunctionType) -> bool:
    """Whether a function is a `jax.grad`, which has the name of what it differentiates."""
    held = [cell.cell_contents for cell in fn.__closure__ or () if filled(cell)]
    return any(getattr(getattr(inner, "__code__", None), "co_name", "") == "grad_f" for inner in held)


def name_of(fn: Any) -> str:
    """How a listing prints a function: `tanh`, `leaky_relu(negative_slope=0.2)`, `lambda`."""
    match fn:
        case Function():
            return fn.name
        case functools.partial():
            given = [short(arg) for arg in fn.args] + [f"{key}={short(value)}" for key, value in fn.keywords.items()]
            return f"{name_of(fn.func)}({', '.join(given)})"
        case types.MethodType():
            owner = fn.__self__ if isinstance(fn.__self__, type) else type(fn.__self__)
            return f"{owner.__name__}.{fn.__name__}"
        case types.FunctionType(__wrapped__=inner) if is_gradient(fn):
            return f"grad({name_of(inner)})"
        case _:
            name = getattr(fn, "__name__", None) or getattr(fn, "name", None) or type(fn).__name__
            return "lambda" if name == "<lambda>" else str(name)


def short(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}" if value.shape or not concrete_number(value) else f"{value:.6g}"
    if callable(value):
        return name_of(value)
    text = repr(value)
    return text if len(text) <= 24 else text[:21] + "..."


def concrete_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) or concrete(value)
