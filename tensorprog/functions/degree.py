"""Functions that are polynomials of degree 1 or 2 in their vectors, whatever their scalars: found in what JAX traces.

(z - m)/√v is affine in z, (z - m)² of degree 2. In the limit such a Nonlin is a linear combination with scalar
coefficients, and such a Moment a function of first and second moments: neither needs an integral.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.functions.frozen import Function, derived

Array = jax.Array
_NEVER = 99  # stands for every function that is no polynomial
_LINEAR = {
    "add", "sub", "neg", "add_any", "broadcast_in_dim", "reshape", "squeeze", "copy", "copy_p", "expand_dims",
    "reduce_sum", "real",
}  # fmt: skip
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@lru_cache(maxsize=4096)
def degree(fn: Function, vectors: int, scalars: int, held: tuple[tuple[int, ...], ...]) -> int | None:
    """The degree of fn(z¹, …, θ¹, …) in its vectors z, from the operations it is made of; None where it is none.

    `held`: shapes of the arrays that the function holds. An upper bound: z - z has degree 1.
    """
    dtype = jnp.result_type(float)
    arguments = [jax.ShapeDtypeStruct((), dtype)] * (vectors + scalars)
    numbers = [jax.ShapeDtypeStruct(shape, dtype) for shape in held]

    def call(arguments: Sequence[Array], numbers: Sequence[Array]) -> Array:
        return jnp.asarray(fn(*arguments, numbers=tuple(numbers)))

    try:
        closed = jax.make_jaxpr(call)(arguments, numbers)
    except Exception:  # a function that JAX cannot trace is refused elsewhere, at its line
        return None
    found = _degrees(closed.jaxpr, [1] * vectors + [0] * (scalars + len(held)))
    return None if max(found) >= _NEVER else max(found)


def _degrees(jaxpr: Any, inputs: Sequence[int]) -> list[int]:
    """Degrees of a jaxpr's outputs, from those of its inputs."""
    known: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> int:
        return 0 if hasattr(atom, "val") else known.get(atom, 0)  # literals and constants

    for equation in jaxpr.eqns:
        own = [of(atom) for atom in equation.invars]
        for var, value in zip(equation.outvars, _rule(equation, own), strict=True):
            known[var] = min(value, _NEVER)
    return [of(atom) for atom in jaxpr.outvars]


def _rule(equation: Any, own: list[int]) -> list[int]:
    name, params, count = equation.primitive.name, equation.params, len(equation.outvars)
    if max(own, default=0) == 0:
        return [0] * count
    if name in _LINEAR:
        return [max(own)]
    if name == "mul":
        return [sum(own)]
    if name == "square":
        return [2 * own[0]]
    if name == "integer_pow" and params["y"] >= 0:
        return [params["y"] * own[0]]
    if name == "div" and own[1] == 0:
        return [own[0]]
    if name == "select_n" and own[0] == 0:
        return [max(own[1:])]
    if name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.floating):
        return own
    # A function with a derivative rule of its own is not entered: its slope is not that of a polynomial.
    inner = next((params[key] for key in _CALLS if key in params), None)
    if inner is not None and name in ("jit", "pjit", "closed_call", "core_call"):
        inner = getattr(inner, "jaxpr", inner)
        if len(inner.invars) == len(own):
            return _degrees(inner, own)
    return [_NEVER] * count


# ---- the coefficients, as functions of the scalars


@dataclass(frozen=True)
class Slope:
    """fn(z, θ) affine in z -> (θ -> ∂fn/∂z_k), over whole arrays of scalars."""

    index: int
    vectors: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def slope(*thetas: Array) -> Array:
            zeros = [jnp.zeros_like(thetas[0])] * self.vectors
            at = [*zeros[: self.index], jnp.ones_like(thetas[0]), *zeros[self.index + 1 :]]
            held = lambda *z: jnp.asarray(fn(*z, *thetas), thetas[0].dtype)
            return jax.jvp(held, tuple(zeros), tuple(at))[1]

        return _over_sites(slope)


@dataclass(frozen=True)
class Offset:
    """fn(z, θ) affine in z -> (θ -> fn(0, θ)), over whole arrays of scalars."""

    vectors: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return _over_sites(lambda *thetas: fn(*[jnp.zeros_like(thetas[0])] * self.vectors, *thetas))


def _over_sites(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *thetas: jnp.vectorize(fn)(*jnp.broadcast_arrays(*thetas))


def coefficients(fn: Function, vectors: int) -> tuple[list[Function], Function]:
    """The slopes and the offset of a function that is affine in its vectors, as functions of its scalars."""
    slopes = [derived(Slope(k, vectors), fn, f"∂{fn.name}") for k in range(vectors)]
    return slopes, derived(Offset(vectors), fn, f"{fn.name}(0)")


@dataclass(frozen=True)
class Expected:
    """fn(z, θ) of degree 2 in z -> ((θ, E z, E z zᵀ) -> E fn), the moments as flat arrays."""

    vectors: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def expected(*given: Array) -> Array:
            *thetas, mean, second = given
            held = lambda z: jnp.asarray(fn(*z, *thetas), mean.dtype)
            zero = jnp.zeros_like(mean)
            curved = jax.hessian(held)(zero).reshape(-1)
            return held(zero) + (jax.grad(held)(zero) * mean).sum() + (curved * second).sum() / 2

        return expected


def expected(fn: Function, vectors: int) -> Function:
    """E fn(z; θ) of a function of degree 2 in z, as a function of θ, E z and E z zᵀ."""
    return derived(Expected(vectors), fn, f"E {fn.name}")
