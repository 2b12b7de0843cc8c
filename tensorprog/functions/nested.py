"""Values of Gaussian expectations of pairs: Hermite series where it suffices, nested adaptive panels elsewhere.

Several pairs of functions (phi_i, psi_i) of the same Gaussians are taken together: they share panels, nodes and code. A
value and its derivative, which needs phi' psi', so cost little more than the value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.quadrature import (
    HOPELESS,
    WINDOW,
    Functions,
    conditional,
    density,
    empty,
    entries,
    evaluate,
    integrate,
    nodes,
    panel,
    reach,
    refine,
)
from tensorprog.functions.series import TERMS, Side, feature_places, horner, side, standard_middles

_CHUNK = 64  # pairs that go through the nested rule together
_OUTER = np.array([0.0, 2.0, 4.0, 6.0, 8.5, 12.0, 18.0, 26.0])
_LAYERS = np.array([-10.0, -5.0, -2.0, 2.0, 5.0, 10.0])  # around a kink of psi, in units of sqrt(1 - r^2)
_HALVINGS = 40
_FAR = 15.0  # how far the inner rule follows a psi that is 0 within its window; as far as it goes if psi is 0 near 0
_ACCEPTED = {"float64": 1e-13, "float32": 3e-6}  # a series stands where its bound is below this part of the size
_ROUNDING = 32.0  # eps * size, of a sum of positive terms in this many digits


def _digits(x: Array) -> tuple[int, int]:
    """Bits of the exponent, and of half the mantissa."""
    return (11, 25) if x.dtype == jnp.float64 else (8, 11)


def _split(x: Array) -> tuple[Array, Array]:
    """x = high + low, high with half the digits, so that products of halves are exact."""
    exponent, mantissa = _digits(x)
    high = lax.reduce_precision(x, exponent, mantissa)
    return high, x - high


def correlation(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """(r, sqrt(1 - r^2)) with r = c / sqrt(ab) clipped to [-1, 1], the root accurate however near 1 it is.

    ab - c^2 is taken in twice the digits, for 1 - r^2 would lose all of them.
    """
    positive = (a > 0) & (b > 0)
    a, b, c = jnp.where(positive, a, 1.0), jnp.where(positive, b, 1.0), jnp.where(positive, c, 0.0)
    # Powers of two, the square roots without their digits, bring a and b near 1: exact, and no product overflows.
    scale_a, scale_b = (lax.reduce_precision(jnp.sqrt(x), _digits(x)[0], 0) for x in (a, b))
    a, b, c = a / scale_a / scale_a, b / scale_b / scale_b, c / scale_a / scale_b
    (ah, al), (bh, bl), (ch, cl) = _split(a), _split(b), _split(c)
    gap = (ah * bh - ch * ch) + ((ah * bl + al * bh) - 2 * ch * cl) + (al * bl - cl * cl)
    r = jnp.clip(c / (jnp.sqrt(a) * jnp.sqrt(b)), -1.0, 1.0)
    return r, jnp.sqrt(jnp.maximum(gap, 0.0) / (a * b))


class Estimate(NamedTuple):
    """value; size: E |phi psi|, roughly; bound of the truncation error: each with a last axis of pairs of functions."""

    value: Array
    size: Array
    bound: Array


def _series(one: Side, two: Side, r: Array) -> Estimate:
    """Hermite series: E phi psi = sum_k a_k b_k r^k, |remainder| <= |r|^K sqrt(tail_a tail_b).

    The sides' leading axes broadcast against r.
    """
    eps = jnp.finfo(r.dtype).eps
    r = r[..., None]
    first = lambda terms: jnp.moveaxis(terms, -1, 0)
    value = horner(first(one.coefficients), first(two.coefficients), r)
    size = jnp.maximum(jnp.abs(value), horner(first(one.sizes), first(two.sizes), r))
    tails = [jnp.maximum(x.square - (x.coefficients**2).sum(-1), 0.0) + 8 * eps * x.square for x in (one, two)]
    rest = jnp.abs(r) ** TERMS * jnp.sqrt(tails[0] * tails[1])
    scale = jnp.sqrt(one.square * two.square)
    return Estimate(value, size, rest + (2 * eps + one.unresolved + two.unresolved) * scale)


def _outer_edges(one: Side, two: Side, kinks: Array, r: Array, s: Array) -> Array:
    """(pairs, any): phi's edges, psi's seen through y = r x, and layers of width s around psi's kinks."""
    dtype, end = r.dtype, reach(r.dtype)
    visible = (jnp.abs(r) > 0.1)[:, None]
    slope = jnp.where(visible, r[:, None], 1.0)
    seen = jnp.where(visible, two.edges / slope, end)
    # Between places closer than the layers are wide there are none: the panels from place to place are narrow enough.
    kinks = jnp.sort(kinks, axis=-1)
    gaps = jnp.diff(kinks, axis=-1, prepend=-jnp.inf, append=jnp.inf) > 3 * s[:, None]
    kinks = jnp.where(gaps[:, :-1] | gaps[:, 1:], kinks, end)
    middle = jnp.where(kinks < end, kinks / slope, end)
    layers = middle[..., None] + (s[:, None] / slope)[..., None] * jnp.asarray(_LAYERS, dtype)
    layers = jnp.where((visible & (jnp.abs(middle) < end))[..., None], layers, end).reshape(len(r), -1)
    base = np.concatenate([-_OUTER[:0:-1], _OUTER])
    base = jnp.broadcast_to(jnp.asarray(base[np.abs(base) < end], dtype), (len(r), (np.abs(base) < end).sum()))
    edges = jnp.concatenate([base, one.edges, seen, layers], -1)
    return jnp.where(jnp.abs(edges) < end, edges, end)


def _nested(
    phis: Functions, psis: Functions, phi_numbers, psi_numbers, one: Side, two: Side, kinks: Array, r: Array, s: Array
) -> Estimate:
    """E phi(sd_a x) psi(sd_b (r x + s w)) for rows of pairs: an outer rule over x, an inner one over w given x."""
    dtype, end = r.dtype, reach(r.dtype)
    wide = lambda x: x[:, None, None]
    own = jnp.where(two.edges < end, two.deviation[:, None] * two.edges, jnp.inf)
    scale = jnp.where(two.deviation > 0, two.deviation, 1.0)
    thin = wide(jnp.maximum(s, jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps))
    # Where psi lives on a far side only, so does the result: the rules go to its near end, the outer one given y there.
    nearest = jnp.clip(0.0, two.low, two.high)
    room = jnp.where(jnp.abs(nearest) > 6, WINDOW * s + 4, 0.0)
    far = jnp.where(room > 0, max(end, _FAR), _FAR)
    low = jnp.where(room > 0, jnp.minimum(one.low, r * nearest - room), one.low)
    high = jnp.where(room > 0, jnp.maximum(one.high, r * nearest + room), one.high)

    def rule(left, right):
        x = nodes(left, right)
        width = right - left
        mean = wide(r) * x
        start = jnp.clip((wide(two.high) - mean) / thin - 3, -wide(far), -WINDOW)
        stop = jnp.clip((wide(two.low) - mean) / thin + 3, WINDOW, wide(far))
        given = conditional(psis, psi_numbers, wide(two.deviation) * mean, wide(scale) * thin, own, start, stop)
        weight = evaluate(phis, wide(one.deviation) * x, phi_numbers) * density(x)[..., None, :]
        # A panel without width may lie on a pole.
        weight = jnp.where((width > 0)[..., None, None], weight, 0.0)
        samples = weight * jnp.moveaxis(given[..., 0], -1, -2)
        found = panel(samples, width)
        more = integrate(jnp.abs(weight)[..., None, :] * jnp.moveaxis(given[..., 1:], -3, -1), width[..., None])
        # An integrand that is still there at the end of the range has no integral, or none within reach.
        last = jnp.where((right == end)[..., None], samples[..., -1], 0.0)
        last = jnp.where((left == -end)[..., None], samples[..., 0], last)
        fixed = more[..., 1] + jnp.abs(last) / jnp.finfo(dtype).eps
        return jnp.stack([found[..., 0], more[..., 0], found[..., 2], fixed], -1), weight[..., :0]

    edges = _outer_edges(one, two, kinks, r, s)
    slots = edges.shape[1] + 2 + _HALVINGS
    low, high = jnp.maximum(low, -end), jnp.minimum(high, end)
    panels = refine(rule, edges, low, high, slots, 16 * float(jnp.finfo(dtype).eps), empty(r, entries(phis), 0))
    total = panels.measures.sum(1)
    return Estimate(total[..., 0], total[..., 1], total[..., 2] + total[..., 3])


def stated(found: Estimate, one: Any, two: Any) -> tuple[Array, Array]:
    """(value, bound): an estimate with the rounding of its sum, infinite where no digit is known. The sides have
    `square` and `strain`."""
    value, size, bound = found
    info = jnp.finfo(value.dtype)
    eps, tiny, scale = float(info.eps), jnp.sqrt(info.tiny), jnp.sqrt(one.square * two.square)
    bound = bound + eps * size * (_ROUNDING + 2 * (one.strain + two.strain))
    known = bound <= HOPELESS * size + eps * scale + tiny
    # Far tails, squares of rounding beside the functions' own sizes, are not looked at; nor what is near underflow.
    bound = bound + eps**2 * scale + tiny
    return value, jnp.where(jnp.isfinite(value) & known, bound, jnp.inf)


def sides(phis: Functions, a: Array, numbers: tuple) -> Side:
    """What `expectations` needs to know of phis at variances a, (*a.shape, ...): made once, it serves many pairs."""
    found = side(phis, numbers, a.reshape(-1), feature_places(phis, numbers, a.dtype))
    return jax.tree.map(lambda x: x.reshape(*a.shape, *x.shape[1:]), found)


def _sides(phis: Functions, psis: Functions, a, b, phi_numbers, psi_numbers, given) -> tuple[Side, Side, Array]:
    """Both sides, flat, and psi's middles at each b; one computation where phis and psis are the same."""
    dtype = a.dtype
    if given is not None:
        one, two = (jax.tree.map(lambda x, like=like: x.reshape(like.size, *x.shape[like.ndim :]), part)
                    for part, like in zip(given, (a, b), strict=True))  # fmt: skip
        return one, two, standard_middles(feature_places(psis, psi_numbers, dtype), two.deviation)
    a, b = a.reshape(-1), b.reshape(-1)
    places = feature_places(psis, psi_numbers, dtype)
    if phis == psis and len(phi_numbers) == len(psi_numbers) and all(map(_is, phi_numbers, psi_numbers)):
        both = side(psis, psi_numbers, jnp.concatenate([a, b]), places)
        one, two = jax.tree.map(lambda x: x[: len(a)], both), jax.tree.map(lambda x: x[len(a) :], both)
    else:
        one = side(phis, phi_numbers, a, feature_places(phis, phi_numbers, dtype))
        two = side(psis, psi_numbers, b, places)
    return one, two, standard_middles(places, two.deviation)


def _is(x, y) -> bool:
    return x is y


def expectations(
    phis: Functions,
    psis: Functions,
    a: Array,
    b: Array,
    c: Array,
    phi_numbers: tuple,
    psi_numbers: tuple,
    given: tuple[Side, Side] | None = None,
) -> tuple[Array, Array]:
    """(value, bound), (*shape, m): E phi_i(u) psi_i(v); a, b, c of one dtype and rank that broadcast to shape.

    `given`: `sides` of phis at a and of psis at b, where they were made before.
    """
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)
    one, two, kinks = _sides(phis, psis, a, b, phi_numbers, psi_numbers, given)
    r, s = (jnp.broadcast_to(x, shape) for x in correlation(a, b, c))
    first, second = (
        jax.tree.map(lambda x, shape=like.shape: x.reshape(*shape, *x.shape[1:]), part)
        for part, like in ((one, a), (two, b))
    )
    series = Estimate(*(jnp.broadcast_to(x, (*shape, entries(phis))) for x in _series(first, second, r)))
    failing = ~(series.bound <= _ACCEPTED[r.dtype.name] * series.size).all(-1).reshape(-1)

    row, column = (np.broadcast_to(np.arange(x.size).reshape(x.shape), shape).reshape(-1) for x in (a, b))
    r, s = r.reshape(-1), s.reshape(-1)
    chunk = min(_CHUNK, len(row))
    order = jnp.pad(jnp.argsort(~failing), (0, -len(row) % chunk))
    count = failing.sum()

    def step(state):
        start, *totals = state
        picked = lax.dynamic_slice(order, (start,), (chunk,))
        i, j = jnp.asarray(row)[picked], jnp.asarray(column)[picked]
        here, there = jax.tree.map(lambda x: x[i], one), jax.tree.map(lambda x: x[j], two)
        found = _nested(phis, psis, phi_numbers, psi_numbers, here, there, kinks[j], r[picked], s[picked])
        places = jnp.where(start + jnp.arange(chunk) < count, picked, len(row))
        totals = (old.at[places].set(new, mode="drop") for old, new in zip(totals, found, strict=True))
        return (start + chunk, *totals)

    state = (jnp.zeros_like(count), *(x.reshape(-1, entries(phis)) for x in series))
    _, value, size, bound = lax.while_loop(lambda state: state[0] < count, step, state)
    return stated(Estimate(*(x.reshape(*shape, entries(phis)) for x in (value, size, bound))), first, second)
