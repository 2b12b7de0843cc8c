"""Adaptive Gauss-Legendre panels for standard normal integrals, batched over rows.

A rule takes the ends of panels and returns their integrals with error estimates; `refine` first walks through
prescribed edges (kinks, layers), then halves the worst panel of each row until the estimates reach rounding.
`conditional` is the inner rule of a nested one: E fn(centre + spread * w) given the centre.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.derived import Product, width

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Rows that give the integral and the Legendre coefficients of orders 5, 6, 7 (middle) and 13, 14, 15 (last) on [-1, 1].
_SUMS = np.stack(
    [WEIGHTS]
    + [(2 * n + 1) / 2 * WEIGHTS * np.polynomial.legendre.Legendre.basis(n)(NODES) for n in (5, 6, 7, 13, 14, 15)]
)
ORDERS, LAST = _SUMS[1:], _SUMS[4:]
_STEP = 3.0  # the inner variable's panels: 16 nodes integrate a normal over one to 1e-15
WINDOW = 9.0  # where they end
HOPELESS = 0.5
"""A bound beyond this part of E |phi psi| says that no digit is known: it is inf."""


class Panels(NamedTuple):
    """Panels [left, right], ends (rows, slots, 2), of m integrands at once. measures (rows, slots, m, 4): the integral,
    that of the absolute value, the error that halving reduces, the error that it does not. samples (rows, slots, m,
    any): whatever the rule keeps."""

    ends: Array
    measures: Array
    samples: Array

    @property
    def left(self) -> Array:
        return self.ends[..., 0]

    @property
    def right(self) -> Array:
        return self.ends[..., 1]

    @property
    def width(self) -> Array:
        return self.ends[..., 1] - self.ends[..., 0]


Functions = tuple[Callable, ...]
Rule = Callable[[Array, Array], tuple[Array, Array]]  # (left, right) -> (measures, samples)


def density(z: Array) -> Array:
    return jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def reach(dtype: jnp.dtype) -> float:
    """Where the density is about to underflow: integrals run over [-reach, reach]."""
    return 37.0 if dtype == jnp.float64 else 12.5


def evaluate(fns: Functions, z: Array, numbers: tuple, apart: Array | float = 0.0) -> Array:
    """(..., m, nodes): the functions, m entries together, at every entry of z (..., nodes), called on 0-d values.

    z is a difference of numbers as large as `apart`, (..., 1): it has their rounding.
    """
    return rooted(fns, z, jnp.ones_like(z), numbers, apart)


def rooted(fns: Functions, z: Array, root: Array, numbers: tuple, apart: Array | float = 0.0) -> Array:
    """`evaluate` times the root of a density, which each factor of a product takes its share of: exp(5z)² leaves the
    range of float32 where the density has long made it small."""

    def at(entry, scale):
        values = (jnp.asarray(_scaled(fn, entry, numbers, scale)) for fn in fns)
        return jnp.concatenate([value.astype(z.dtype).reshape(-1) for value in values])

    found = jax.vmap(at)(z.reshape(-1), root.reshape(-1))
    return _off_poles(jnp.moveaxis(found.reshape(*z.shape, entries(fns)), -1, -2), z, apart)


def _off_poles(samples: Array, z: Array, apart: Array | float) -> Array:
    """Samples (..., m, nodes) at z: a node that rounding has put onto a pole takes what its neighbour has, and panels
    of a few numbers around one take nothing. Where a function overflows, neighbours in wider panels do too."""
    beside = jnp.concatenate([samples[..., 1:2], samples[..., :-1]], -1)
    size = jnp.maximum(jnp.abs(z[..., :1]), apart)
    tiny = jnp.abs(z[..., -1:] - z[..., :1]) <= 256 * jnp.finfo(z.dtype).eps * size
    return jnp.where(jnp.isinf(samples), jnp.where(tiny[..., None, :], 0.0, beside), samples)


def _scaled(fn: Callable, z: Array, numbers: tuple, scale: Array) -> Array:
    if isinstance(fn, Product):
        first, second, share = numbers[: fn.count], numbers[fn.count :], jnp.sqrt(scale)
        return _scaled(fn.first, z, first, share) * _scaled(fn.second, z, second, share)
    return scale * fn(z, *numbers)


def entries(fns: Functions) -> int:
    """How many integrands functions are: one each, but for derivatives in arrays."""
    return sum(map(width, fns))


def nodes(left: Array, right: Array) -> Array:
    """The 16 nodes of each panel, on a new last axis."""
    middle, half = (left + right) / 2, (right - left) / 2
    return middle[..., None] + half[..., None] * jnp.asarray(NODES, left.dtype)


def integrate(samples: Array, width: Array) -> Array:
    """(..., m): integrals over panels of width (...) from samples (..., m, nodes)."""
    return width[..., None] / 2 * (samples * jnp.asarray(WEIGHTS, samples.dtype)).sum(-1)


def panel(samples: Array, width: Array) -> Array:
    """(..., m, 3): integral, integral of |samples| and error estimate, of samples (..., m, nodes) over panels.

    A Gauss rule of 16 nodes errs by about the Legendre coefficient of order 32. Where coefficients fall geometrically
    it is the last computed ones times the square of their ratio to the middle ones; at a kink or an oscillation the
    ratio is no smaller than 0.2, and the factor 10 keeps the estimate above the error.
    """
    sums = jnp.einsum("...j,kj->...k", samples, jnp.asarray(_SUMS, samples.dtype), precision=lax.Precision.HIGHEST)
    size = jnp.abs(samples)
    noise = 16 * jnp.finfo(samples.dtype).eps * size.max(-1)
    middle = jnp.abs(sums[..., 1:4]).sum(-1)
    last = jnp.maximum(jnp.abs(sums[..., 4:7]).sum(-1) - noise, 0.0)
    error = 10 * last * jnp.minimum(1.0, last / jnp.where(middle > 0, middle, 1.0)) ** 2
    half = width[..., None, None] / 2
    found = jnp.stack([sums[..., 0], (size * jnp.asarray(WEIGHTS, samples.dtype)).sum(-1), error], -1)
    return jnp.where(half > 0, half * found, 0.0)


def next_edge(edges: Array, position: Array, end: Array) -> Array:
    """The smallest edge beyond position, at most `end`; edges carry one more last axis than position."""
    return jnp.minimum(jnp.min(jnp.where(edges > position[..., None], edges, jnp.inf), axis=-1), end)


class _State(NamedTuple):
    panels: Panels
    position: Array
    count: Array


def refine(rule: Rule, edges: Array, start: Array, end: Array, slots: int, tolerance: float, like: Panels) -> Panels:
    """Panels of [start, end] between edges (rows, any), halved worst first until each error is tolerance * its size.

    All rows advance together, two panels a step each: while edges are left, the next two panels; after that the halves
    of the row's worst panel. A finished row waits. Slots that stay empty have no width. `like`: one slot's zeros.
    """
    slot = jnp.arange(slots)

    def busy(state: _State) -> Array:
        total = state.panels.measures.sum(1)
        rough = (total[..., 2] > tolerance * total[..., 1]).any(-1)
        return ((state.position < end) | rough) & (state.count + 1 < slots)

    def step(state: _State) -> _State:
        panels, position, count = state
        walking, active = position < end, busy(state)
        size = panels.measures[..., 1].sum(1, keepdims=True)
        worst = jnp.argmax((panels.measures[..., 2] / jnp.where(size > 0, size, 1.0)).max(-1), axis=-1)
        halved = jnp.take_along_axis(panels.ends, worst[:, None, None], 1)[:, 0]
        first = next_edge(edges, position, end)
        left = jnp.where(walking, position, halved[:, 0])
        right = jnp.where(walking, next_edge(edges, first, end), halved[:, 1])
        middle = jnp.where(walking, first, (left + right) / 2)
        new = jnp.stack([left, middle, middle, right], -1).reshape(-1, 2, 2)
        found = Panels(new, *rule(new[..., 0], new[..., 1]))
        places = jnp.stack([jnp.where(walking, count, worst), jnp.where(walking, count + 1, count)], -1)
        places = jnp.where(active[:, None], places, slots)
        panels = jax.tree.map(lambda old, n: _put(old, n, slot == places[:, :1], slot == places[:, 1:]), panels, found)
        position = jnp.where(walking & active, right, position)
        return _State(panels, position, count + jnp.where(active, jnp.where(walking, 2, 1), 0))

    panels = jax.tree.map(lambda x: jnp.repeat(x, slots, 1), like)
    state = _State(panels, start, jnp.zeros(edges.shape[0], jnp.int32))
    return lax.while_loop(lambda state: busy(state).any(), step, state).panels


def empty(start: Array, integrands: int, samples: int) -> Panels:
    """One slot of no width for each row; zeros made from start, so that they vary over axes that a caller maps over."""
    zero = (0 * start)[:, None, None] + jnp.zeros((1, 1, 2), start.dtype)
    return Panels(zero, *(zero[..., None, :1] + jnp.zeros((1, 1, integrands, n), start.dtype) for n in (4, samples)))


def _put(old: Array, new: Array, here: Array, there: Array) -> Array:
    """old (rows, slots, ...) with new[:, 0] where `here` and new[:, 1] where `there`."""
    more = old.ndim - here.ndim
    here, there = (x.reshape(*x.shape, *(1,) * more) for x in (here, there))
    return jnp.where(here, new[:, :1], jnp.where(there, new[:, 1:], old))


def conditional(
    fns: Functions,
    numbers: tuple,
    centre: Array,
    spread: Array,
    edges: Array,
    start: Array | float = -WINDOW,
    end: Array | float = WINDOW,
) -> Array:
    """(..., m, 3): value, size and error of E fn(centre + spread * w), w standard normal.

    centre, spread: (rows, ...), spread > 0; edges: (rows, E) ascending places of the functions' argument to split at.
    Each entry walks from edge to edge through the panels of length `_STEP` and those of the functions' own edges that
    fall inside [start, end], (rows, ...).
    """
    rows, count = edges.shape
    padded = jnp.concatenate([edges, jnp.full((rows, 1), jnp.inf, edges.dtype)], -1)
    row = jnp.arange(rows).reshape(rows, *(1,) * (centre.ndim - 1))
    zero = jnp.zeros_like(centre) + 0 * spread
    start, end = zero + start, zero + end

    def step(state):
        position, place, total = state
        edge = (padded[row, jnp.minimum(place, count)] - centre) / spread
        regular = (jnp.floor(position / _STEP) + 1) * _STEP
        right = jnp.minimum(jnp.minimum(jnp.maximum(edge, position), regular), end)
        w = nodes(position, right)
        z = centre[..., None] + spread[..., None] * w
        samples = evaluate(fns, z, numbers, jnp.abs(centre)[..., None]) * density(w)[..., None, :]
        # What lies beyond the window is taken to be as large as the samples next to its ends.
        some = right > position
        beyond = jnp.where((some & (position == start))[..., None], jnp.abs(samples[..., 0]), 0.0)
        beyond += jnp.where((some & (right == end))[..., None], jnp.abs(samples[..., -1]), 0.0)
        total += panel(samples, right - position) + beyond[..., None] * jnp.asarray([0.0, 0.0, 1.0], centre.dtype)
        return right, jnp.where(edge <= right, place + 1, place), total

    below = centre + start * spread
    place = (edges.reshape(rows, *(1,) * (centre.ndim - 1), count) <= below[..., None]).sum(-1)
    state = (start, place, zero[..., None, None] + jnp.zeros((entries(fns), 3), centre.dtype))
    return lax.while_loop(lambda state: (state[0] < end).any(), step, state)[2]
