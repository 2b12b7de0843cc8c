"""What the two methods cost, and which is the cheaper: `method="auto"`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

#: Forming a Jacobian writes outer products and is bound by memory; a block of examples must be longer than this before
#: it pays against NTK-vector products, which are matrix products throughout. (Measured on CPU.)
SHORTEST_BLOCK = 30


def prefers_jacobian(block: int, uses: float, kept: int) -> bool:
    """Whether contracting Jacobians is the cheaper way.

    A pair of examples costs 2·F multiply-adds by products (F of a forward pass, in units of the number of parameters:
    `uses`), and K by contraction, but then each example of a block of b also costs its Jacobian, 30·F for b pairs:
    2·F > 2·K + 60·F/b, or F·(b - 30) > K·b.
    """
    return uses * (block - SHORTEST_BLOCK) > kept * block


def multiply_adds(f: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of f's matrix products and convolutions, from shapes alone; a `while` loop's body counts once."""
    return _of_jaxpr(jax.make_jaxpr(f)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            filters = equation.invars[1].aval.shape
            channels = filters[params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(filters) // channels
        inner = [sub for value in params.values() for sub in _jaxprs(value)]
        total += params.get("length", 1) * sum(_of_jaxpr(sub) for sub in inner)
    return total


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
