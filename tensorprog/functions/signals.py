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


def signals(fn: Callable[..., Any]) -> Callable[..., tuple[Array, Array]]:
    """(quantities (J,), value) of a function of 0-d values, in place of its value alone."""

    def run(*arguments: Any) -> tuple[Array, Array]:
        closed = jax.make_jaxpr(fn)(*arguments)
        found: list[Array] = []
        (value,) = _replay(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), found)
        dtype = jnp.result_type(value)
        kept = [jnp.asarray(x, dtype).reshape(-1)[:MOST] for x in found]
        return jnp.concatenate([*kept, value.reshape(1)])[: MOST + 1], value

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
