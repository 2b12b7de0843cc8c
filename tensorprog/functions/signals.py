"""What a function computes on the way: quantities whose zeros and turning points are where it does something.

|x| has a kink where x is 0, 1/x a pole, x > c a jump where x is c, exp(x) a peak where x turns. JAX's trace of a
function names all of these, wherever they lie and however narrow they are; samples of its values do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
MOST = 64
"""Quantities kept of one function."""
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_FIRST = {
    "abs", "sign", "sqrt", "rsqrt", "cbrt", "log", "exp", "exp2", "expm1", "tanh", "logistic", "erf", "erfc", "atan",
    "integer_pow", "pow", "square", "sinh", "cosh", "asinh", "is_finite",
}  # fmt: skip
_DIFFERENCES = {"max", "min", "gt", "ge", "lt", "le", "eq", "ne", "atan2"}


_TAME = {
    "add", "sub", "neg", "mul", "add_any", "max", "min", "abs", "sign", "square", "tanh", "logistic", "erf", "erfc",
    "sin", "cos", "atan", "select_n", "gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not", "floor", "ceil", "round",
    "clamp", "convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy", "copy_p",
    "stop_gradient", "concatenate", "slice", "reduce_sum", "dot_general", "is_finite", "real", "stack", *_CALLS,
}  # fmt: skip


def tame(fn: Callable[..., Any], *arguments: Any) -> bool:
    """Whether every operation of fn is bounded by a power and smooth but for kinks and jumps: then so is fn, its
    derivative is too, and no expectation of them is missing."""
    try:
        return _tame(jax.make_jaxpr(fn)(*arguments).jaxpr)
    except Exception:  # a function that JAX cannot trace like this is refused elsewhere, at its line
        return False


def _tame(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        constant = all(hasattr(atom, "val") for atom in equation.invars)
        power = name == "integer_pow" and params["y"] >= 0
        divided = name == "div" and hasattr(equation.invars[1], "val")
        if not (name in _TAME or power or divided or constant):
            return False
        inner = params.get(_CALLS.get(name, ""))
        if inner is not None and not _tame(getattr(inner, "jaxpr", inner)):
            return False
    return True


def signals(fn: Callable[..., Any]) -> Callable[..., tuple[Array, Array]]:
    """(quantities (J,), value) of a function of 0-d values, in place of its value alone."""

    def run(*arguments: Any) -> tuple[Array, Array]:
        closed = jax.make_jaxpr(fn)(*arguments)
        found: list[Array] = []
        (value,) = _replay(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), found)
        dtype = jnp.result_type(value)
        kept = [jnp.zeros(0, dtype), *(jnp.asarray(x, dtype).reshape(-1) for x in found)]
        return jnp.append(jnp.concatenate(kept)[:MOST], value), value

    return run


def _replay(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], found: list[Array]) -> list[Any]:
    """A jaxpr run again; calls are entered, loops and branches are not."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def of(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        own = [of(atom) for atom in equation.invars]
        found += _risks(equation, own)
        inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
        if inner is not None:
            body, held = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            out = _replay(body, held, own, found)
        else:
            out = equation.primitive.bind(*own, **equation.primitive.get_bind_params(equation.params))
            out = out if equation.primitive.multiple_results else [out]
        known.update(zip(equation.outvars, out, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _risks(equation: Any, own: list[Any]) -> list[Array]:
    """The quantities of one operation."""
    name = equation.primitive.name
    if not own or not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in own[:2]):
        return []
    x = jnp.asarray(own[0])
    if name in _FIRST:
        return [x]
    if name in _DIFFERENCES:
        return [x - jnp.asarray(own[1], x.dtype)]
    match name:
        case "div":
            return [jnp.asarray(own[1])]
        case "log1p":
            return [1 + x]
        case "tan":
            return [jnp.cos(x)]
        case "atanh" | "asin" | "acos" | "erf_inv" | "acosh":
            return [1 - x, 1 + x]
        case "floor" | "ceil":
            return [jnp.sin(math.pi * x)]
        case "round":
            return [jnp.cos(math.pi * x)]
        case "lgamma" | "digamma":
            return [jnp.where(x < 0.5, jnp.sin(math.pi * x), 1.0)]
        case "rem":
            return [jnp.sin(math.pi * x / jnp.asarray(own[1]))]
        case _:
            return []
