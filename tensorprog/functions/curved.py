"""Functions that a compiled program knows by their curves alone: their expectations, values, slopes and bounds.

`curves` finds on the host what a function's Hermite coefficients and means are over a range of variances; here they are
read off at variances that the program has computed, and summed. Nothing knows which function it is. A pair that the
series does not settle is NaN: whoever asked then goes another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from tensorprog.functions.curves import SIZES, lagrange
from tensorprog.functions.nested import Estimate, correlation, stated
from tensorprog.functions.quadrature import HOPELESS

SIDE, MEAN = (-1,), (-2,)
"""In place of the shape of a number: the tables of series, and those of means."""
ACCEPTED = {"float64": 1e-12, "float32": 3e-6}
"""A series stands where its bound is below this part of the size."""
_UNROLLED = 8


@dataclass(frozen=True)
class Curved:
    """In place of a function: its numbers are tables, and nobody calls it."""

    def __call__(self, z: Any, *numbers: Any) -> Any:
        raise AssertionError("a function that is known by its curves is not called")


class Side(NamedTuple):
    """What pairs need to know of m functions at variances, (*variances, m, …): coefficients a_k and those of |φ|, E φ²,
    by how much a relative error of the argument is amplified, the error of the coefficients over √E φ²."""

    coefficients: Array
    sizes: Array
    square: Array
    strain: Array
    unresolved: Array


def _line(table: Array, variance: Array, count: int) -> Array:
    """(*variance.shape, count, columns): lines at variances, of a table (rows, m, 2 + columns); NaN beyond it."""
    shape, variance = variance.shape, variance.reshape(-1)
    left, right = table[:-1:16, 0, 0], table[:-1:16, 0, 1]
    some, none = variance > 0, variance == 0
    x = jnp.log2(jnp.where(some, variance, 1.0))[:, None] / 2
    inside = (x >= left) & (x < right) & some[:, None]  # (n, panels)
    start, end = (jnp.where(inside, edge, 0.0).sum(-1) for edge in (left, right))
    found = inside.any(-1)
    t = jnp.where(found, (2 * x[:, 0] - start - end) / jnp.where(found, end - start, 1.0), 0.0)
    weights = (inside[..., None] * lagrange(t, jnp)[:, None]).reshape(len(variance), -1)
    rows = table[:, :count, 2:].reshape(len(table), -1)
    sound = ~jnp.isnan(rows[-1]).any()
    rows = jnp.concatenate([rows[:-1], jnp.where(sound, rows[-1], 0.0)[None]])
    weights = jnp.concatenate([weights, none.astype(weights.dtype)[:, None]], -1)
    lines = jnp.dot(weights, rows, precision=lax.Precision.HIGHEST)
    return jnp.where((found | (none & sound))[:, None], lines, jnp.nan).reshape(*shape, count, -1)


def sides(table: Array, variance: Array, *, slope: bool) -> Side:
    """Of a function, and with `slope` of its derivative, at variances."""
    found = _line(table, variance, 2 if slope else 1)
    terms = found.shape[-1] - SIZES - 3
    square, strain, unresolved = (found[..., terms + SIZES + k] for k in range(3))
    return Side(found[..., :terms], found[..., terms : terms + SIZES], square, strain, unresolved)


def means(table: Array, variance: Array, count: int) -> list[tuple[Array, Array]]:
    """(value, bound) of E φ for so many functions, each of the variances' shape."""
    eps = jnp.finfo(variance.dtype).eps
    value, size, strain, error = jnp.moveaxis(_line(table, variance, count), -1, 0)
    size = jnp.maximum(size, jnp.abs(value))
    bound = error * size + eps * (40 * size + strain)
    bound = jnp.where(bound <= HOPELESS * size + jnp.finfo(bound.dtype).tiny ** 0.5, bound, jnp.inf)
    return [(value[..., k], bound[..., k]) for k in range(count)]


def pairs(one: Side, two: Side, a: Array, b: Array, c: Array) -> list[tuple[Array, Array]]:
    """(value, bound) of E φ(u) ψ(v), and of E φ′(u) ψ′(v) where the sides have slopes; NaN where the series does not
    settle it. Σ_k a_k b_k r^k, of which the terms that are left out are at most |r|^K √(tail_a tail_b)."""
    r, _ = correlation(a, b, c)
    found = []
    for k in range(one.square.shape[-1]):
        first, second = (Side(*(x[..., k] if x.ndim == side.square.ndim else x[..., k, :] for x in side))
                         for side in (one, two))  # fmt: skip
        estimate = _series(first, second, r)
        settled = estimate.bound <= ACCEPTED[r.dtype.name] * estimate.size
        value, bound = stated(estimate, first, second)
        found.append((jnp.where(settled, value, jnp.nan), bound))
    if len(found) > 1:  # one road for both
        nan = sum(value for value, _ in found) * 0
        found = [(value + nan, bound) for value, bound in found]
    return found


def _series(one: Side, two: Side, r: Array) -> Estimate:
    eps, terms = jnp.finfo(r.dtype).eps, one.coefficients.shape[-1]
    value = _sum(one.coefficients, two.coefficients, r)
    size = jnp.maximum(jnp.abs(value), _sum(one.sizes, two.sizes, r))
    tails = [jnp.maximum(x.square - (x.coefficients**2).sum(-1), 0.0) + 8 * eps * x.square for x in (one, two)]
    rest = jnp.abs(r) ** terms * jnp.sqrt(tails[0] * tails[1])
    scale = jnp.sqrt(one.square * two.square)
    return Estimate(value, size, rest + (2 * eps + one.unresolved + two.unresolved) * scale)


def _sum(first: Array, second: Array, r: Array) -> Array:
    """Σ_k first_k second_k r^k, terms along the last axes of first and second."""

    def step(total: Array, terms: tuple[Array, Array]) -> tuple[Array, None]:
        return total * r + terms[0] * terms[1], None

    of = lambda x: jnp.moveaxis(x, -1, 0)
    start = jnp.zeros(jnp.broadcast_shapes(first.shape[:-1], second.shape[:-1], r.shape), r.dtype) + 0 * r
    return lax.scan(step, start, (of(first), of(second)), reverse=True, unroll=_UNROLLED)[0]
