"""What JAX traces: a jaxpr's equations, evaluated one at a time as they stand. The one file that uses `jax.extend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

__all__ = ["ClosedJaxpr", "Jaxpr", "Literal", "evaluated"]


def evaluated(jaxpr: Jaxpr, equation: Any, values: Sequence[Any]) -> list[jax.Array]:
    """An equation's results, with whatever derivative rules it has: a jaxpr of this one, evaluated."""
    pairs = zip(equation.invars, values, strict=True)
    seen = {atom: value for atom, value in pairs if not isinstance(atom, Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(seen), outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*seen.values())
