"""Gaussian expectations of arbitrary functions, with a bound: Hermite series where it suffices, nested panels elsewhere."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.quadrature import conditional, density, evaluate, integrate, nodes, panel, reach, refine
from tensorprog.functions.series import TERMS, Side, horner, kink_places, side, standard_kinks

_CHUNK = 64  # pairs that go through the nested rule together
_OUTER = np.array([0.0, 2.0, 4.0, 6.0, 8.5, 12.0, 18.0, 26.0])
_LAYERS = np.array([-10.0, -5.0, -2.0, 2.0, 5.0, 10.0])  # around a kink of psi, in units of sqrt(1 - r^2)
_HALVINGS = 40
_ACCEPTED = 500.0  # a series stands where its bound is below this, in units of eps * size
_ROUNDING = 32.0  # eps * size, of a sum of positive terms in this many digits

def _split(x: Array) -> tuple[Array, Array]:
    """x = high + low, high with half the digits, so that products of halves are exact."""
    exponent, mantissa = (11, 25) if x.dtype == jnp.float64 else (8, 11)
    high = lax.reduce_precision(x, exponent, mantissa)
    return high, x - high


def correlation(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """(r, sqrt(1 - r^2)) with r = c / sqrt(ab) clipped to [-1, 1], the root accurate however near 1 it is.

    ab - c^2 is taken in twice the digits, for 1 - r^2 would lose all of them.
    """
    positive = (a > 0) & (b > 0)
    a, b, c = jnp.where(positive, a, 1.0), jnp.where(positive, b, 1.0), jnp.where(positive, c, 0.0)
    # Powers of two bring a and b to [1, 4): exact, and no product overflows.
    scale_a, scale_b = (jnp.exp2(jnp.floor(jnp.log2(x) / 2)) for x in (a, b))
    a, b, c = a / scale_a / scale_a, b / scale_b / scale_b, c / scale_a / scale_b
    (ah, al), (bh, bl), (ch, cl) = _split(a), _split(b), _split(c)
    gap = (ah * bh - ch * ch) + ((ah * bl + al * bh) - 2 * ch * cl) + (al * bl - cl * cl)
    r = jnp.clip(c / (jnp.sqrt(a) * jnp.sqrt(b)), -1.0, 1.0)
    return r, jnp.sqrt(jnp.maximum(gap, 0.0) / (a * b))


class Estimate(NamedTuple):
    """value; size: E |phi psi|, roughly; bound of the truncation error."""

    value: Array
    size: Array
    bound: Array


def _series(one: Side, two: Side, r: Array) -> Estimate:
    """Hermite series: E phi psi = sum_k a_k b_k r^k, |remainder| <= |r|^K sqrt(tail_a tail_b).

    The sides' leading axes broadcast against r.
    """
    eps = jnp.finfo(r.dtype).eps
    first = lambda terms: jnp.moveaxis(terms, -1, 0)  # noqa: E731
    value = horner(first(one.coefficients), first(two.coefficients), r)
    size = jnp.maximum(jnp.abs(value), horner(first(one.sizes), first(two.sizes), r))
    tails = [
        jnp.maximum(x.square - (x.coefficients**2).sum(-1), 0.0) + 8 * eps * x.square for x in (one, two)
    ]
    rest = jnp.abs(r) ** TERMS * jnp.sqrt(tails[0] * tails[1])
    scale = jnp.sqrt(one.square * two.square)
    return Estimate(value, size, rest + (2 * eps + one.unresolved + two.unresolved) * scale)


def _outer_edges(one: Side, two: Side, kinks: Array, r: Array, s: Array) -> Array:
    """(pairs, any): phi's edges, psi's seen through y = r x, and layers of width s around psi's kinks."""
    dtype, end = r.dtype, reach(r.dtype)
    visible = (jnp.abs(r) > 0.1)[:, None]
    slope = jnp.where(visible, r[:, None], 1.0)
    seen = jnp.where(visible, two.edges / slope, end)
    middle = kinks / slope
    layers = middle[..., None] + (s[:, None] / slope)[..., None] * jnp.asarray(_LAYERS, dtype)
    layers = jnp.where((visible & (jnp.abs(middle) < end))[..., None], layers, end).reshape(len(r), -1)
    base = np.concatenate([-_OUTER[:0:-1], _OUTER])
    base = jnp.broadcast_to(jnp.asarray(base[np.abs(base) < end], dtype), (len(r), (np.abs(base) < end).sum()))
    edges = jnp.concatenate([base, one.edges, seen, layers], -1)
    return jnp.where(jnp.abs(edges) < end, edges, end)


def _nested(phi, psi, phi_numbers, psi_numbers, one: Side, two: Side, kinks: Array, r: Array, s: Array) -> Estimate:
    """E phi(sd_a x) psi(sd_b (r x + s w)) for rows of pairs: an outer adaptive rule over x, an inner one over w given x."""
    dtype, end = r.dtype, reach(r.dtype)
    wide = lambda x: x[:, None, None]  # noqa: E731
    own = jnp.where(two.edges < end, two.deviation[:, None] * two.edges, jnp.inf)
    scale = jnp.where(two.deviation > 0, two.deviation, 1.0)
    spread = wide(scale * jnp.maximum(s, jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps))

    def rule(left, right):
        x = nodes(left, right)
        width = right - left
        inner, inner_size, inner_error = conditional(psi, psi_numbers, wide(two.deviation * r) * x, spread, own)
        weight = evaluate(phi, wide(one.deviation) * x, phi_numbers) * density(x)
        value, _, error = panel(weight * inner, width)
        size, fixed = (integrate(jnp.abs(weight) * part, width) for part in (inner_size, inner_error))
        return value, size, error, fixed, x

    edges = _outer_edges(one, two, kinks, r, s)
    slots = edges.shape[1] + 2 + _HALVINGS
    panels = refine(rule, edges, one.low, one.high, slots, 16 * float(jnp.finfo(dtype).eps))
    return Estimate(panels.value.sum(-1), panels.size.sum(-1), (panels.error + panels.fixed).sum(-1))


def _sides(phi, psi, a, b, phi_numbers, psi_numbers) -> tuple[Side, Side, Array]:
    """Both sides, flat, and psi's kinks at each b; one computation where phi and psi are the same function."""
    dtype = a.dtype
    same = phi == psi and len(phi_numbers) == len(psi_numbers) and all(map(lambda x, y: x is y, phi_numbers, psi_numbers))
    a, b = a.reshape(-1), b.reshape(-1)
    places = kink_places(psi, psi_numbers, dtype)
    if same:
        both = side(psi, psi_numbers, jnp.concatenate([a, b]), places)
        one, two = jax.tree.map(lambda x: x[: len(a)], both), jax.tree.map(lambda x: x[len(a) :], both)
    else:
        one = side(phi, phi_numbers, a, kink_places(phi, phi_numbers, dtype))
        two = side(psi, psi_numbers, b, places)
    return one, two, standard_kinks(places, two.deviation)


def _expectation(phi, psi, a, b, c, phi_numbers, psi_numbers) -> tuple[Array, Array]:
    """(value, bound), arrays of one dtype and rank."""
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)
    one, two, kinks = _sides(phi, psi, a, b, phi_numbers, psi_numbers)
    r, s = (jnp.broadcast_to(x, shape) for x in correlation(a, b, c))
    shaped = (
        jax.tree.map(lambda x: x.reshape(*like.shape, *x.shape[1:]), part) for part, like in ((one, a), (two, b))
    )
    series = _series(*shaped, r)
    eps = float(jnp.finfo(r.dtype).eps)
    failing = ~(series.bound <= _ACCEPTED * eps * series.size)

    row, column = (np.broadcast_to(np.arange(x.size).reshape(x.shape), shape).reshape(-1) for x in (a, b))
    r, s, failing = r.reshape(-1), s.reshape(-1), failing.reshape(-1)
    chunk = min(_CHUNK, len(row))
    order = jnp.pad(jnp.argsort(~failing, stable=True), (0, -len(row) % chunk))
    count = failing.sum()

    def step(state):
        start, *totals = state
        picked = lax.dynamic_slice(order, (start,), (chunk,))
        i, j = jnp.asarray(row)[picked], jnp.asarray(column)[picked]
        pick = lambda part, index: jax.tree.map(lambda x: x[index], part)  # noqa: E731
        found = _nested(phi, psi, phi_numbers, psi_numbers, pick(one, i), pick(two, j), kinks[j], r[picked], s[picked])
        places = jnp.where(start + jnp.arange(chunk) < count, picked, len(row))
        totals = (old.at[places].set(new, mode="drop") for old, new in zip(totals, found, strict=True))
        return (start + chunk, *totals)

    state = (jnp.zeros_like(count), *(x.reshape(-1) for x in series))
    _, value, size, bound = lax.while_loop(lambda state: state[0] < count, step, state)
    strain = jnp.broadcast_to(one.strain.reshape(a.shape) + two.strain.reshape(b.shape), shape)
    value, size, bound = (x.reshape(shape) for x in (value, size, bound))
    bound = bound + eps * size * (_ROUNDING + 2 * strain)
    return value, jnp.where(jnp.isfinite(value) & ~jnp.isnan(bound), bound, jnp.inf)


def pair(phi, psi, a, b, c, phi_numbers=(), psi_numbers=()):
    a, b, c = jnp.asarray(a), jnp.asarray(b), jnp.asarray(c)
    dtype = jnp.result_type(a, b, c)
    rank = max(a.ndim, b.ndim, c.ndim)
    a, b, c = (x.astype(dtype).reshape((1,) * (rank - x.ndim) + x.shape) for x in (a, b, c))
    return _expectation(phi, psi, a, b, c, phi_numbers, psi_numbers)
