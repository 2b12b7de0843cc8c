"""Adaptive Gauss-Legendre panels for standard normal integrals, batched over rows.

A rule takes the ends of panels and returns their integrals with error estimates; `refine` first walks through prescribed
edges (kinks, layers), then halves the worst panel of each row until the estimates reach rounding. `conditional` is the
inner rule of a nested one: E fn(centre + spread * w) given the centre.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Rows that give the integral and the Legendre coefficients of orders 5, 6, 7 (middle) and 13, 14, 15 (last) on [-1, 1].
_SUMS = np.stack(
    [WEIGHTS]
    + [(2 * n + 1) / 2 * WEIGHTS * np.polynomial.legendre.Legendre.basis(n)(NODES) for n in (5, 6, 7, 13, 14, 15)]
)
_STEP, _END = 3.0, 9.0  # the inner variable's panels: 16 nodes integrate a normal over one to 1e-15


class Panels(NamedTuple):
    """Panels [left, right]: integral, integral of the absolute value, error that halving reduces, error that it does
    not, and the integrand at the nodes (a last axis)."""

    left: Array
    right: Array
    value: Array
    size: Array
    error: Array
    fixed: Array
    samples: Array


Rule = Callable[[Array, Array], tuple[Array, Array, Array, Array, Array]]


def density(z: Array) -> Array:
    return jnp.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def reach(dtype: jnp.dtype) -> float:
    """Where the density is about to underflow: integrals run over [-reach, reach]."""
    return 37.0 if dtype == jnp.float64 else 12.5


def evaluate(fn: Callable, z: Array, numbers: tuple) -> Array:
    """fn at every entry of z, called on 0-d values."""
    return jax.vmap(lambda entry: fn(entry, *numbers))(z.reshape(-1)).reshape(z.shape).astype(z.dtype)


def nodes(left: Array, right: Array) -> Array:
    """The 16 nodes of each panel, on a new last axis."""
    middle, half = (left + right) / 2, (right - left) / 2
    return middle[..., None] + half[..., None] * jnp.asarray(NODES, left.dtype)


def integrate(samples: Array, width: Array) -> Array:
    """Integral over each panel from the values at its nodes."""
    return width / 2 * (samples * jnp.asarray(WEIGHTS, samples.dtype)).sum(-1)


def panel(samples: Array, width: Array) -> tuple[Array, Array, Array]:
    """(integral, integral of |samples|, error estimate) over each panel.

    A Gauss rule of 16 nodes errs by about the Legendre coefficient of order 32. Where coefficients fall geometrically it
    is the last computed ones times the square of their ratio to the middle ones; at a kink or an oscillation the ratio is
    no smaller than 0.2, and the factor 10 keeps the estimate above the error.
    """
    sums = jnp.einsum("...j,kj->...k", samples, jnp.asarray(_SUMS, samples.dtype), precision=lax.Precision.HIGHEST)
    middle = jnp.abs(sums[..., 1:4]).sum(-1)
    noise = 16 * jnp.finfo(samples.dtype).eps * jnp.abs(samples).max(-1)
    last = jnp.maximum(jnp.abs(sums[..., 4:7]).sum(-1) - noise, 0.0)
    error = 10 * last * jnp.minimum(1.0, last / jnp.where(middle > 0, middle, 1.0)) ** 2
    return width / 2 * sums[..., 0], integrate(jnp.abs(samples), width), jnp.where(width > 0, width / 2 * error, 0.0)


def next_edge(edges: Array, position: Array, end: Array) -> Array:
    """The smallest edge beyond position, at most `end`; edges carry one more last axis than position."""
    return jnp.minimum(jnp.min(jnp.where(edges > position[..., None], edges, jnp.inf), axis=-1), end)


class _State(NamedTuple):
    panels: Panels
    position: Array
    count: Array


def refine(rule: Rule, edges: Array, start: Array, end: Array, slots: int, tolerance: float) -> Panels:
    """Panels of [start, end] between edges (rows, any), halved worst first until their error is tolerance * size.

    All rows advance together, two panels a step each: while edges are left, the next two panels; after that the halves
    of the row's worst panel. A finished row waits. Slots that stay empty have no width.
    """
    rows, dtype = edges.shape[0], edges.dtype
    slot = jnp.arange(slots)

    def busy(state: _State) -> Array:
        error, size = state.panels.error.sum(-1), state.panels.size.sum(-1)
        return ((state.position < end) | (error > tolerance * size)) & (state.count + 1 < slots)

    def step(state: _State) -> _State:
        panels, position, count = state
        walking, active = position < end, busy(state)
        worst = jnp.argmax(panels.error, axis=-1)
        take = lambda x: jnp.take_along_axis(x, worst[:, None], -1)[:, 0]  # noqa: E731
        first = next_edge(edges, position, end)
        left = jnp.where(walking, position, take(panels.left))
        right = jnp.where(walking, next_edge(edges, first, end), take(panels.right))
        middle = jnp.where(walking, first, (left + right) / 2)
        lefts, rights = jnp.stack([left, middle], -1), jnp.stack([middle, right], -1)
        new = Panels(lefts, rights, *rule(lefts, rights))
        places = jnp.stack([jnp.where(walking, count, worst), jnp.where(walking, count + 1, count)], -1)
        places = jnp.where(active[:, None], places, slots)
        panels = jax.tree.map(lambda old, n: _put(old, n, slot == places[:, :1], slot == places[:, 1:]), panels, new)
        position = jnp.where(walking & active, right, position)
        return _State(panels, position, count + jnp.where(active, jnp.where(walking, 2, 1), 0))

    # Zeros made from edges, so that they vary over whatever axes a caller maps over.
    empty = jnp.zeros((rows, slots), dtype) + 0 * start[:, None]
    panels = Panels(*[empty] * 6, empty[..., None] * jnp.ones(len(NODES), dtype))
    state = _State(panels, start, jnp.zeros(rows, jnp.int32))
    return lax.while_loop(lambda state: busy(state).any(), step, state).panels


def _put(old: Array, new: Array, here: Array, there: Array) -> Array:
    """old (rows, slots, ...) with new[:, 0] where `here` and new[:, 1] where `there`."""
    more = old.ndim - here.ndim
    here, there = (x.reshape(*x.shape, *(1,) * more) for x in (here, there))
    return jnp.where(here, new[:, :1], jnp.where(there, new[:, 1:], old))


def conditional(fn: Callable, numbers: tuple, centre: Array, spread: Array, edges: Array) -> tuple[Array, Array, Array]:
    """(value, size, error) of E fn(centre + spread * w), w standard normal, split at `edges` of fn's argument.

    centre, spread: (rows, ...), spread > 0; edges: (rows, E) ascending. Each entry walks from edge to edge through the
    panels of length `_STEP` and those of the function's own edges that fall inside [-_END, _END].
    """
    rows, count = edges.shape
    padded = jnp.concatenate([edges, jnp.full((rows, 1), jnp.inf, edges.dtype)], -1)
    row = jnp.arange(rows).reshape(rows, *(1,) * (centre.ndim - 1))

    def own(place):
        return jnp.maximum((padded[row, jnp.minimum(place, count)] - centre) / spread, -_END)

    def step(state):
        position, place, value, size, error = state
        edge = own(place)
        regular = (jnp.floor(position / _STEP) + 1) * _STEP
        right = jnp.minimum(jnp.minimum(jnp.maximum(edge, position), regular), _END)
        w = nodes(position, right)
        samples = evaluate(fn, centre[..., None] + spread[..., None] * w, numbers) * density(w)
        more_value, more_size, more_error = panel(samples, right - position)
        # What lies beyond the window is taken to be as large as the samples next to its ends.
        beyond = jnp.where((position == -_END) & (right > position), jnp.abs(samples[..., 0]), 0.0)
        beyond += jnp.where((right == _END) & (right > position), jnp.abs(samples[..., -1]), 0.0)
        place = jnp.where(edge <= right, place + 1, place)
        return right, place, value + more_value, size + more_size, error + more_error + beyond

    zero = jnp.zeros_like(centre) + 0 * spread
    below = centre - _END * spread
    place = (edges.reshape(rows, *(1,) * (centre.ndim - 1), count) <= below[..., None]).sum(-1)
    state = (zero - _END, place, zero, zero, zero)
    _, _, *result = lax.while_loop(lambda state: (state[0] < _END).any(), step, state)
    return tuple(result)
