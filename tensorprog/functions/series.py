"""One input's side of an expectation: panels that resolve a function, and its Hermite coefficients."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.kinks import kinks
from tensorprog.functions.quadrature import NODES, WEIGHTS, Panels, density, evaluate, nodes, panel, reach, refine

TERMS = 192  # rho^192 < 1e-13 for |rho| < 0.855, whatever the function
SIZE_TERMS = 48  # of |phi|, for the size of the result only
_BASE = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.25, 8.0, 10.0, 12.0, 15.0, 22.0])  # resolves TERMS Hermite polynomials
_HALVINGS = 28
_BLOCK = 14  # panels projected together: blocks without panels are skipped


class Side(NamedTuple):
    """What pairs need to know of one function at several inputs (leading axis).

    deviation: sqrt of the variance. edges (inputs, E): kinks and halved panels in units of the deviation, ascending,
    `reach` pads. low, high: where phi^2 times the density is not negligible. coefficients (inputs, TERMS):
    a_k = E phi(sd z) He_k(z) / sqrt(k!). sizes (inputs, SIZE_TERMS): the same of |phi|. square: E phi^2. strain: by how
    much a relative error of the argument is amplified. unresolved: error of a_k, relative to sqrt(square).
    """

    deviation: Array
    edges: Array
    low: Array
    high: Array
    coefficients: Array
    sizes: Array
    square: Array
    strain: Array
    unresolved: Array


def standard_kinks(place: Array, deviation: Array) -> Array:
    """(inputs, kinks): kinks of z -> fn(deviation * z); those out of reach and padding at `reach`."""
    end = reach(deviation.dtype)
    safe = jnp.where(deviation > 0, deviation, 1.0)[:, None]
    return jnp.where(jnp.abs(place) < end * safe, jnp.where(jnp.isfinite(place), place, 0.0) / safe, end)


def kink_places(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Array:
    """Kinks of fn in its argument, ascending, `inf` pads."""
    below, above = kinks(fn, numbers, dtype)
    return jnp.where(jnp.isfinite(below), below + (above - below) / 2, jnp.inf)


def resolve(fn: Callable, numbers: tuple, deviation: Array, own: Array) -> Panels:
    """Panels of [-reach, reach] on each of which fn(deviation * z) is a polynomial of degree 15, to rounding in L2.

    What is resolved is phi(sd z) sqrt(density), whose square integrates to E phi^2.
    """
    dtype, inputs = deviation.dtype, len(deviation)
    end = jnp.full(inputs, reach(dtype), dtype) + 0 * deviation
    base = jnp.broadcast_to(jnp.asarray(_base_edges(dtype), dtype), (inputs, len(_base_edges(dtype))))
    edges = jnp.concatenate([base, own], -1)

    def rule(left, right):
        z = nodes(left, right)
        samples = evaluate(fn, deviation[:, None, None] * z, numbers) * jnp.sqrt(density(z))
        value, size, error = panel(samples, right - left)
        return value, size, error, jnp.zeros_like(error), samples

    slots = -(-(edges.shape[1] + 2 + _HALVINGS) // _BLOCK) * _BLOCK
    return refine(rule, edges, -end, end, slots, 8 * float(jnp.finfo(dtype).eps))


def _base_edges(dtype: jnp.dtype) -> np.ndarray:
    base = np.concatenate([-_BASE[:0:-1], _BASE])
    return base[np.abs(base) < reach(dtype)]


def side(fn: Callable, numbers: tuple, variance: Array, places: Array) -> Side:
    """The side of inputs with the given variances (inputs,); places: fn's kinks."""
    deviation = jnp.sqrt(variance)
    dtype, end = deviation.dtype, reach(deviation.dtype)
    own = standard_kinks(places, deviation)
    panels = resolve(fn, numbers, deviation, own)
    width = panels.right - panels.left
    masses = width / 2 * (panels.samples**2 * jnp.asarray(WEIGHTS, dtype)).sum(-1)
    square = masses.sum(-1)
    eps = float(jnp.finfo(dtype).eps)
    matter = masses > eps**2 * square[:, None]
    matter = jnp.where(matter.any(-1, keepdims=True), matter, width > 0)
    coefficients, sizes = _project(panels)
    base = jnp.asarray(_base_edges(dtype), dtype)
    edges = jnp.where(jnp.isin(panels.right, base) | (width <= 0), end, panels.right)
    edges = jnp.sort(edges, axis=-1)[:, : own.shape[1] + _HALVINGS]
    orders = jnp.arange(TERMS, dtype=dtype)
    positive = jnp.where(square > 0, square, 1.0)
    return Side(
        deviation,
        edges,
        jnp.where(matter, panels.left, end).min(-1),
        jnp.where(matter, panels.right, -end).max(-1),
        coefficients,
        sizes,
        square,
        jnp.sqrt((orders * coefficients**2).sum(-1) / positive),
        panels.error.sum(-1) / jnp.sqrt(positive),
    )


def _project(panels: Panels) -> tuple[Array, Array]:
    """Coefficients (inputs, TERMS) of phi and (inputs, SIZE_TERMS) of |phi| on the orthonormal h_k = He_k / sqrt(k!).

    sqrt(k+1) h_{k+1} = z h_k - sqrt(k) h_{k-1} is stable upwards; sqrt(density) carried along keeps every term below 1.
    """
    inputs, slots = panels.left.shape
    dtype = panels.left.dtype
    used = (panels.right > panels.left).any(0)
    blocks = jnp.where(used, jnp.arange(slots) // _BLOCK + 1, 0).max()
    orders = jnp.arange(TERMS, dtype=dtype)

    def block(index, totals):
        cut = lambda x: lax.dynamic_slice_in_dim(x, index * _BLOCK, _BLOCK, axis=1)  # noqa: E731
        left, right = cut(panels.left), cut(panels.right)
        z = nodes(left, right).reshape(inputs, -1)
        weights = (right - left)[..., None] / 2 * jnp.asarray(WEIGHTS, dtype)
        values = (weights * cut(panels.samples)).reshape(inputs, -1)

        def step(carry, k):
            before, now = carry
            after = (z * now - jnp.sqrt(k) * before) / jnp.sqrt(k + 1)
            return (now, after), jnp.stack([(now * values).sum(-1), (now * jnp.abs(values)).sum(-1)])

        _, found = lax.scan(step, (jnp.zeros_like(z), jnp.sqrt(density(z))), orders)
        return totals + found

    zero = jnp.zeros((TERMS, 2, inputs), dtype) + 0 * panels.left[:, 0]
    totals = lax.fori_loop(0, blocks, block, zero)
    return totals[:, 0].T, totals[:SIZE_TERMS, 1].T


def horner(first: Array, second: Array, rho: Array) -> Array:
    """sum_k first_k second_k rho^k over a leading axis of terms, each broadcast against rho."""

    def step(total, terms):
        return total * rho + terms[0] * terms[1], None

    return lax.scan(step, jnp.zeros_like(rho), (first, second), reverse=True, unroll=4)[0]
