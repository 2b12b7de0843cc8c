"""What was compiled for one call serves the next: computations are traced at every call, and known by what was traced.

Nobody can know whether a function is what it was: it may read a global, an attribute, the values of an array. Tracing
can, since all of that is in the jaxpr: numbers as its literals, arrays as its constants, which are arguments of what is
compiled. Equal jaxprs are one program; the last ones are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from tensorprog.functions.jaxprs import ClosedJaxpr, Jaxpr, Literal, evaluated
from tensorprog.program import is_concrete

KEPT = 64
"""Programs that are kept."""


class _Unknown(Exception):
    """A jaxpr holds something that cannot be compared."""


@dataclass(frozen=True)
class _Recipe:
    """A traced computation, compared by what it does."""

    key: Hashable
    jaxpr: Jaxpr = field(compare=False)


def run(compute: Callable[..., Any], *arguments: Any, first: Callable[[], None] = lambda: None) -> Any:
    """compute(*arguments), compiled: by what was compiled before if there is such, else `first` is called."""
    if not _known(arguments):
        first()
        return jax.jit(compute)(*arguments)
    traced, shape = jax.make_jaxpr(compute, return_shape=True)(*arguments)
    recipe = _recipe(traced) if _known(traced.consts) else None
    if recipe is None:
        first()
        return jax.jit(compute)(*arguments)
    kept = _kept(recipe)
    if not kept.used:
        first()
        kept.used = True
    return jax.tree.unflatten(jax.tree.structure(shape), kept.call(traced.consts, *jax.tree.leaves(arguments)))


def _known(tree: Any) -> bool:
    return all(map(is_concrete, jax.tree.leaves(tree)))


@dataclass
class _Kept:
    call: Callable[..., list[Any]]
    used: bool = False


@lru_cache(maxsize=KEPT)
def _kept(recipe: _Recipe) -> _Kept:
    return _Kept(jax.jit(partial(evaluated, recipe.jaxpr)))


def _recipe(traced: ClosedJaxpr) -> _Recipe | None:
    try:
        return _Recipe(_of_jaxpr(traced.jaxpr, {}), traced.jaxpr)
    except _Unknown:
        return None


def _of_jaxpr(jaxpr: Jaxpr, seen: dict[int, Hashable]) -> Hashable:
    """What a jaxpr does: its equations, variables by number."""
    if id(jaxpr) in seen:  # functions of JAX's own are traced once
        return seen[id(jaxpr)]
    numbers: dict[Any, int] = {}
    new = lambda variables: tuple((numbers.setdefault(v, len(numbers)), v.aval) for v in variables)

    def atom(a: Any) -> Hashable:
        return (a.aval, _of_array(a.val)) if isinstance(a, Literal) else numbers[a]

    start = new(jaxpr.constvars), new(jaxpr.invars)
    steps = []
    for e in jaxpr.eqns:
        read = tuple(map(atom, e.invars))
        steps.append((e.primitive, read, _of_parameters(e, seen), new(e.outvars)))
    seen[id(jaxpr)] = start, tuple(steps), tuple(map(atom, jaxpr.outvars))
    return seen[id(jaxpr)]


def _of_parameters(equation: Any, seen: dict[int, Hashable]) -> Hashable:
    """An equation's parameters. Derivative rules that are still there are not used any more: of those no account."""
    found = equation.params.items()
    if equation.primitive.name.startswith("custom_"):
        found = [(name, value) for name, value in found if isinstance(value, ClosedJaxpr | Jaxpr)]
    return tuple((name, _of_value(value, seen)) for name, value in sorted(found))


def _of_value(value: Any, seen: dict[int, Hashable]) -> Hashable:
    match value:
        case ClosedJaxpr():
            return _of_jaxpr(value.jaxpr, seen), _of_value(tuple(value.consts), seen)
        case Jaxpr():
            return _of_jaxpr(value, seen)
        case np.ndarray() | jax.Array():
            return _of_array(value)
        case tuple() | list():
            return type(value), tuple(_of_value(v, seen) for v in value)
        case dict():
            return tuple((k, _of_value(v, seen)) for k, v in sorted(value.items()))
        case _:
            try:
                hash(value)
            except TypeError as error:
                raise _Unknown from error
            return value


def _of_array(value: Any) -> Hashable:
    if not is_concrete(value):
        raise _Unknown
    array = np.asarray(value)
    return array.dtype, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
