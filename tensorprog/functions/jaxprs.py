"""What JAX has traced of a function, looked through and run again; forward mode of functions that have none.

The one file that uses `jax.extend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

__all__ = ["ClosedJaxpr", "Jaxpr", "Literal", "closed", "equations", "evaluated", "inner", "plain", "pushforward"]

CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "xla_call"}
"""Equations that are their bodies, without rules of their own."""


def plain(jaxpr: Jaxpr, equation: Any, values: Sequence[Any]) -> list[jax.Array]:
    """One equation as it stands, with whatever derivative rules it has: a jaxpr of this one, evaluated."""
    seen = {atom: value for atom, value in zip(equation.invars, values, strict=True) if not isinstance(atom, Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(seen), outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*seen.values())


def evaluated(jaxpr: Jaxpr, consts: Sequence[Any], *values: Any) -> list[Any]:
    """A jaxpr with its constants, evaluated."""
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*values)


def closed(body: Any) -> ClosedJaxpr:
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def inner(equation: Any) -> Iterator[ClosedJaxpr]:
    """The bodies of an equation: of a call, of a loop, the branches of a conditional."""
    for value in equation.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                yield closed(body)


def equations(jaxpr: Jaxpr) -> Iterator[tuple[Jaxpr, Any]]:
    """All equations with the jaxpr that each is in, those of bodies included, outer ones first."""
    for equation in jaxpr.eqns:
        yield jaxpr, equation
        for body in inner(equation):
            yield from equations(body.jaxpr)


def pushforward(fn: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`jax.jvp`, also of functions that have reverse mode alone: the transpose of their reverse pass."""
    try:
        return jax.jvp(fn, tuple(primals), tuple(tangents))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
    value, pull = jax.vjp(fn, *primals)
    return value, jax.linear_transpose(pull, value)(tuple(tangents))[0]
