"""What a function of coordinates cannot do, found in what JAX traces of it: reduce one number, call back Python.

A function that averages, sorts or accumulates its argument means a whole axis, and sees one number: what it does is
then nothing at all, silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.jaxprs import CALLS, Jaxpr, Literal, equations, inner

_REDUCTIONS = {
    "reduce_sum": "sum or mean", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod", "reduce_and": "all",
    "reduce_or": "any", "reduce_xor": "xor", "argmax": "argmax", "argmin": "argmin", "sort": "sort", "cumsum": "cumsum",
    "cumprod": "cumprod", "cummax": "cummax", "cummin": "cummin", "cumlogsumexp": "cumlogsumexp", "top_k": "top_k",
}  # fmt: skip
_RESHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev", "slice"}
_JOINING = {"concatenate", "stack"}
_CALLBACKS = {"pure_callback", "io_callback"}
_BODIES = {*CALLS, "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


@dataclass(frozen=True)
class Fault:
    """Why a function is refused, and what to write instead."""

    why: str
    remedy: str


def fault(jaxpr: Jaxpr, count: int) -> Fault | None:
    """What a function of so many coordinates, its first arguments, cannot do; None where it may be taken."""
    called = _callback(jaxpr)
    if called is not None:
        return called
    name = _reduces(jaxpr, [i < count for i in range(len(jaxpr.invars))])[0]
    return None if name is None else Fault(
        f"it sees one coordinate, a 0-d value, and takes its {_REDUCTIONS[name]}: of one number that says nothing",
        "for averages over the width give a Moment, m = tp.moment(lambda a: a, x) and "
        "tp.nonlin(lambda a, m: a - m, x, scalars=(m,)); for whole site axes say tp.nonlin(fn, x, over=axes)",
    )  # fmt: skip


def bent(fn: Callable[..., Any], count: int, shapes: Sequence[tuple[int, ...]], jaxpr: Jaxpr) -> Fault | None:
    """A reverse rule that is not linear in the cotangent: what it does depends on the width, and no slope says it.

    Tried at cotangents 1 and 1e-3, where fn(*coordinates, numbers=numbers) has such a rule at all.
    """
    if not any(equation.primitive.name.startswith("custom_vjp_call") for _, equation in equations(jaxpr)):
        return None
    rng = np.random.default_rng(0)
    draws = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.result_type(float))
    with jax.ensure_compile_time_eval():
        points, numbers = [draws(32) for _ in range(count)], tuple(map(draws, shapes))

        def pulled(size: float, *z: jax.Array) -> Any:
            value, pull = jax.vjp(lambda *z: jnp.asarray(fn(*z, numbers=numbers), z[0].dtype), *z)
            return pull(jnp.full_like(value, size))

        whole, small = (jax.vmap(partial(pulled, size))(*points) for size in (1.0, 1e-3))
        alike = all(np.allclose(a, 1e3 * b, rtol=1e-2, equal_nan=True) for a, b in zip(whole, small, strict=True))
    return None if alike else Fault(
        "its derivative rule is not linear in the cotangent, so that no slope stands for it in a wide network",
        "scale in the rule instead of clipping, and clip gradients where parameters are updated",
    )  # fmt: skip


def _reduces(jaxpr: Jaxpr, lone: Sequence[bool]) -> tuple[str | None, list[bool]]:
    """The first reduction of a coordinate alone, and which outputs are one: 0-d, or only reshaped from 0-d.

    `lone` says which inputs are. Of a coordinate beside others, or times a captured array, any reduction is meant.
    """
    known = dict(zip(jaxpr.invars, lone, strict=True))
    of = lambda atom: not isinstance(atom, Literal) and known.get(atom, False)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        own = [of(atom) for atom in equation.invars]
        results = [False] * len(equation.outvars)
        if any(own):
            if name in _REDUCTIONS and own[0]:
                return name, []
            bodies = list(inner(equation))
            if name in _BODIES and bodies and len(bodies[0].jaxpr.invars) == len(own):
                found, results = _reduces(bodies[0].jaxpr, own)
                if found is not None:
                    return found, []
            elif name in _RESHAPES or (
                name not in _JOINING
                and all(mine or not _shape(atom) for mine, atom in zip(own, equation.invars, strict=True))
            ):
                results = [math.prod(_shape(var)) == 1 for var in equation.outvars]
        known |= dict(zip(equation.outvars, results, strict=True))
    return None, [of(atom) for atom in jaxpr.outvars]


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _callback(jaxpr: Jaxpr) -> Fault | None:
    """A callback: also under a derivative rule of its own, for integrals are compiled ahead and see every function."""
    for _, equation in equations(jaxpr):
        if equation.primitive.name in _CALLBACKS:
            return Fault(
                f"it calls back Python (jax.{equation.primitive.name}), which integrals of the function cannot",
                "write it with jax.numpy; a table of values is lambda z: jnp.interp(z, points, values), of jnp arrays",
            )
    return None
