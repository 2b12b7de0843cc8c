"""Functions with derivative rules of their own (`custom_jvp`, `custom_vjp`, `stop_gradient`): value and slope apart.

The slope that such a rule gives is what networks train with, and what the NTK is made of; it need not be the
derivative of the value (a straight-through sign, a reversed gradient). So a value is computed without the rules
(`Bare`), also where a kernel is differentiated in a variance, and the slope is a function of its own (`own_slope`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tensorprog.functions.derived import Slope
from tensorprog.functions.jaxprs import CALLS, ClosedJaxpr, Jaxpr, Literal, closed, equations, inner, plain

_FORWARD, _REVERSE = ("custom_jvp_call",), ("custom_vjp_call", "custom_vjp_call_jaxpr")
_RULES = {*_FORWARD, *_REVERSE, "stop_gradient"}
_POINTS = np.concatenate([sign * np.geomspace(1.7e-3, 0.93e3, 53) for sign in (1.0, -1.0)])
"""Where a slope is held against differences of the value."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Bare:
    """A function without its own derivative rules: the same values, differentiated by what they are made of."""

    fn: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Array:
        traced = jax.make_jaxpr(lambda *given: jnp.asarray(self.fn(*given)))(*arguments)
        return _run(traced, jax.tree.leaves(arguments))[0]


@dataclass(frozen=True)
class Rule:
    """z -> the slope of fn by reverse mode, for functions that have no other."""

    fn: Callable[..., Any]

    def __call__(self, z: Array, *numbers: Array) -> Array:
        return jax.grad(lambda at: jnp.asarray(self.fn(at, *numbers)).astype(jnp.result_type(z)))(z)


def _run(body: ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, its rules left out."""
    jaxpr = body.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, body.consts, strict=True))
    known |= dict(zip(jaxpr.invars, values, strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
    for equation in jaxpr.eqns:
        found = _equation(jaxpr, equation, [read(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(jaxpr: Jaxpr, equation: Any, values: list[Any]) -> list[Any]:
    name = equation.primitive.name
    bodies = list(inner(equation))
    if name == "stop_gradient":
        return values
    if name in CALLS or (name in _RULES and bodies):
        return _run(bodies[0], values)
    if any(e.primitive.name in _RULES for body in bodies for _, e in equations(body.jaxpr)):
        equation = equation.replace(params={key: _without(value) for key, value in equation.params.items()})
    return plain(jaxpr, equation, values)


def _without(param: Any) -> Any:
    """A parameter of a loop or a conditional, its bodies without rules."""
    if isinstance(param, tuple | list):
        return type(param)(map(_without, param)) if any(isinstance(p, ClosedJaxpr | Jaxpr) for p in param) else param
    if not isinstance(param, ClosedJaxpr | Jaxpr):
        return param
    body = closed(param)
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in body.in_avals]
    made = jax.make_jaxpr(lambda *values: _run(body, values))(*avals)
    return made if isinstance(param, ClosedJaxpr) else made.jaxpr


@lru_cache(maxsize=4096)
def rules(fn: Callable[..., Any], shapes: Shapes = (), size: int | None = None) -> frozenset[str]:
    """The rules that stand in what JAX traces of z -> fn(z, *numbers), numbers of these shapes; with `size` of
    z -> fn(z, numbers), z of so many coordinates."""
    try:
        with jax.enable_x64(True):
            numbers = tuple(jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes)
            z = jax.ShapeDtypeStruct(() if size is None else (size,), np.float64)
            traced = jax.make_jaxpr(fn)(z, *(numbers if size is None else (numbers,)))
    except Exception:  # a function that JAX cannot trace is refused elsewhere, at its line
        return frozenset()
    return frozenset(e.primitive.name for _, e in equations(traced.jaxpr)) & _RULES


@lru_cache(maxsize=4096)
def ruled(fn: Callable[..., Any], shapes: Shapes = (), size: int | None = None) -> bool:
    """Whether a slope of fn, as in `rules`, comes from a rule and is not known to be the value's derivative.

    A rule that only computes the derivative better, as those of JAX's own functions, is kept: differences tell it.
    What has reverse mode alone cannot be kept, for quadrature looks at functions forward.
    """
    found = rules(fn, shapes, size)
    if not found or found.intersection(_REVERSE):
        return bool(found)
    rng = np.random.default_rng(0)
    z = _POINTS if size is None else _POINTS[:, None] * rng.normal(size=(len(_POINTS), size))
    step = 1e-6 * np.maximum(np.abs(z), 1e-2)
    given = tuple(rng.uniform(0.5, 1.5, size=shape) for shape in shapes)

    def compared() -> Array:
        numbers = tuple(map(jnp.asarray, given))
        value = lambda z: jnp.asarray(fn(z, *(numbers if size is None else (numbers,)))).astype(float)
        along = lambda z, step: jax.jvp(value, (z,), (step,))
        at, slopes = jax.vmap(along)(jnp.asarray(z), jnp.asarray(step))
        differences = (jax.vmap(value)(jnp.asarray(z + step)) - jax.vmap(value)(jnp.asarray(z - step))) / 2
        allowed = 1e-4 * (jnp.abs(slopes) + jnp.abs(differences)) + 1e-14 * jnp.abs(at) + 1e-9 * jnp.abs(step).max()
        return (jnp.isfinite(slopes) & jnp.isfinite(differences) & (jnp.abs(slopes - differences) > allowed)).any()

    with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.disable_jit(False):
        return bool(jax.jit(compared).lower().compile()())


def own_slope(fn: Callable[..., Any], shapes: Shapes = ()) -> Callable[..., Any]:
    """The slope that JAX gives fn, its rules included: by reverse mode where it has no other."""
    return Rule(fn) if rules(fn, shapes).intersection(_REVERSE) else Slope(fn)


def bare(fn: Callable[..., Any], shapes: Shapes, size: int) -> Callable[..., Any]:
    """fn(z, numbers) of several coordinates, without rules that are not its derivative."""
    return Bare(fn) if ruled(fn, shapes, size) else fn
