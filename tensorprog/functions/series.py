"""One input's side of an expectation: panels that resolve a function, and its Hermite coefficients."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.derived import origins
from tensorprog.functions.kinks import features, known_features
from tensorprog.functions.quadrature import (
    NODES,
    WEIGHTS,
    Functions,
    Panels,
    density,
    empty,
    entries,
    nodes,
    panel,
    reach,
    refine,
    rooted,
)

TERMS = 192  # rho^192 < 1e-13 for |rho| < 0.855, whatever the function
SIZE_TERMS = 48  # of |phi|, for the size of the result only
# Panels that resolve TERMS Hermite polynomials.
_BASE = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.25, 8.0, 10.0, 12.0, 15.0, 22.0])
_HALVINGS = 28
_GRADES = 16.0 ** -np.arange(1.0, 5.0)  # edges beside a steep place, in deviations: their panels see how narrow it is
_NARROW = 1 / 16  # scales beyond it, in deviations, are seen by the base panels
_AT_ONCE = 128  # panels projected together on the host
_BLOCK = 4  # panels projected together when they are not among the base ones


class Side(NamedTuple):
    """What pairs need to know of m functions at several inputs (leading axis).

    deviation: sqrt of the variance. edges (inputs, E): kinks, features, halved panels in units of the deviation,;
    `reach` pads. low, high: where phi^2 times the density is not negligible. coefficients (inputs, m, TERMS):
    a_k = E phi(sd z) He_k(z) / sqrt(k!). sizes (inputs, m, SIZE_TERMS): the same of |phi|. square (inputs, m): E phi^2.
    strain: by how much a relative error of the argument is amplified. unresolved: error of a_k over sqrt(square).
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


class Places(NamedTuple):
    """Features of functions in units of their argument, `inf` pads: kinks; steep places; middles that the functions
    change their course around, and the least distance at which they do; edges: such distances and their middles."""

    kinks: Array
    steep: Array
    middles: Array
    least: Array
    edges: tuple[Array, Array]


def feature_places(fns: Functions, numbers: tuple, dtype: jnp.dtype, xp: Any = jnp) -> Places:
    """Features of functions that share their numbers; derived functions have those of their origins. With `xp` NumPy
    numbers are known, and so are the features."""
    # Numbers may be tracers, which compare by identity: two origins are one when their numbers are the same objects.
    found = [origin for fn in fns for origin in origins(fn, numbers)]
    distinct = {(fn, *map(id, own), *map(id, shift)): (fn, own, shift) for fn, own, shift in found}
    parts = []
    for fn, own, shift in distinct.values():
        middle = xp.zeros((), dtype) - sum(shift)
        seen = known_features(fn, own) if xp is np else features(fn, own, dtype)
        finite = xp.isfinite(seen.below)
        kinks = seen.below + xp.where(finite, seen.above - xp.where(finite, seen.below, 0.0), 0.0) / 2
        least = seen.scales[:1]  # ascending
        around = middle + 0 * seen.scales, seen.scales
        parts.append(Places(kinks + middle, seen.steep + middle, middle + 0 * least, least, around))
    return jax.tree.map(lambda *x: xp.concatenate(x), *parts)


def _standard(places: Any, deviation: Any, xp: Any) -> Any:
    """(inputs, places): in units of the deviation; those out of reach and padding at `reach`."""
    end = reach(deviation.dtype)
    safe = xp.where(deviation > 0, deviation, 1.0)[:, None]
    return xp.where(xp.abs(places) < end * safe, xp.where(xp.isfinite(places), places, 0.0) / safe, end)


def _narrow(middles: Any, scales: Any, deviation: Any, xp: Any) -> tuple[Any, Any]:
    """(inputs, scales), twice: middles in units of the deviation, and scales that the base panels would miss."""
    middles, scales = (_standard(xp.where(xp.isfinite(scales), x, xp.inf), deviation, xp) for x in (middles, scales))
    end = reach(deviation.dtype)
    narrow = (scales < _NARROW) & (middles < end)
    return xp.where(narrow, middles, end), xp.where(narrow, scales, 0.0)


def standard_edges(places: Places, deviation: Any, xp: Any = jnp) -> Any:
    """(inputs, any): kinks and edges around narrow features of z -> fn(deviation * z); `reach` pads."""
    end = reach(deviation.dtype)
    steep = _standard(places.steep, deviation, xp)
    grades = xp.asarray(np.concatenate([-_GRADES, [0.0], _GRADES]), deviation.dtype)
    graded = xp.where(steep[..., None] < end, steep[..., None] + grades, end).reshape(len(deviation), -1)
    middles, scales = _narrow(*places.edges, deviation, xp)
    own, _ = _narrow(places.middles, places.least, deviation, xp)
    edges = [_standard(places.kinks, deviation, xp), graded, own, middles - scales, middles + scales]
    edges = xp.concatenate(edges, -1)
    return xp.where(xp.abs(edges) < end, edges, end)


def standard_middles(places: Places, deviation: Array) -> Array:
    """(inputs, any): kinks and the middles of narrow features of z -> fn(deviation * z); `reach` pads."""
    middles, _ = _narrow(places.middles, places.least, deviation, jnp)
    return jnp.concatenate([_standard(jnp.concatenate([places.kinks, places.steep]), deviation, jnp), middles], -1)


def resolve(fns: Functions, numbers: tuple, deviation: Array, own: Array) -> Panels:
    """Panels of [-reach, reach] on each of which fn(deviation * z) is a polynomial of degree 15, to rounding in L2.

    What is resolved is phi(sd z) sqrt(density), whose square integrates to E phi^2.
    """
    dtype, inputs = deviation.dtype, len(deviation)
    base = base_edges(dtype)
    end = jnp.full(inputs, reach(dtype), dtype) + 0 * deviation
    edges = jnp.concatenate([jnp.broadcast_to(jnp.asarray(base, dtype), (inputs, len(base))), own], -1)

    def rule(left, right):
        z = nodes(left, right)
        samples = rooted(fns, deviation[:, None, None] * z, jnp.sqrt(density(z)), numbers)
        return jnp.pad(panel(samples, right - left), ((0, 0),) * 3 + ((0, 1),)), samples

    slots = edges.shape[1] + 2 + _HALVINGS
    like = empty(end, entries(fns), len(NODES))
    return refine(rule, edges, -end, end, slots, 8 * float(jnp.finfo(dtype).eps), like)


def base_edges(dtype: jnp.dtype) -> np.ndarray:
    base = np.concatenate([-_BASE[:0:-1], _BASE])
    return base[np.abs(base) < reach(dtype)]


def far_edges() -> np.ndarray:
    """The base edges in double precision, out to `reach`."""
    end = reach(np.dtype(float))
    return np.concatenate([[-end], base_edges(np.dtype(float)), [end]])


def side(fns: Functions, numbers: tuple, variance: Array, places: Places) -> Side:
    """The side of inputs with the given variances (inputs,), of functions with the given features."""
    deviation = jnp.sqrt(variance)
    dtype, end = deviation.dtype, reach(deviation.dtype)
    own = standard_edges(places, deviation)
    panels = resolve(fns, numbers, deviation, own)
    width = panels.width
    masses = width[..., None] / 2 * (panels.samples**2 * jnp.asarray(WEIGHTS, dtype)).sum(-1)
    masses = jnp.where((width > 0)[..., None], masses, 0.0)  # a panel without width may lie on a pole
    square = masses.sum(1)
    eps = float(jnp.finfo(dtype).eps)
    matter = (masses > eps**2 * square[:, None]).any(-1)
    matter = jnp.where(matter.any(-1, keepdims=True), matter, width > 0)
    coefficients, sizes = _project(panels)
    edges = _features(panels, own)
    positive = jnp.where(square > 0, square, 1.0)
    return Side(
        deviation,
        edges,
        jnp.where(matter, panels.left, end).min(-1),
        jnp.where(matter, panels.right, -end).max(-1),
        coefficients,
        sizes,
        square,
        jnp.sqrt((jnp.arange(TERMS, dtype=dtype) * coefficients**2).sum(-1) / positive),
        panels.measures[..., 2].sum(1) / jnp.sqrt(positive),
    )


def _features(panels: Panels, own: Array) -> Array:
    """(inputs, E), ascending: kinks and the ends of halved panels, `reach` pads; other base edges split nothing."""
    dtype, end = panels.ends.dtype, reach(panels.ends.dtype)
    base = jnp.broadcast_to(jnp.asarray(base_edges(dtype), dtype), (len(own), len(base_edges(dtype))))
    given = jnp.concatenate([base, own], -1)
    halved = ~(panels.ends[..., None] == given[:, None, None]).any(-1).all(-1) & (panels.width > 0)
    touched = ((panels.ends[..., None] == base[:, None, None]).any(2) & halved[..., None]).any(1)
    edges = [own, jnp.where(halved, panels.right, end), jnp.where(touched, base, end)]
    edges = jnp.sort(jnp.concatenate(edges, -1), axis=-1)
    # An end met twice would make an empty panel: harmless, but it takes a place.
    again = jnp.concatenate([jnp.zeros((len(own), 1), bool), edges[:, 1:] == edges[:, :-1]], -1)
    return jnp.sort(jnp.where(again, end, edges), axis=-1)[:, : own.shape[1] + _HALVINGS + 8]


def hermite(z: np.ndarray) -> np.ndarray:
    """(TERMS, nodes): h_k(z) sqrt(density), h_k = He_k / sqrt(k!) orthonormal."""
    rows = [np.zeros_like(z), np.sqrt(np.exp(-z * z / 2) / np.sqrt(2 * np.pi))]
    for k in range(TERMS - 1):
        rows.append((z * rows[-1] - np.sqrt(k) * rows[-2]) / np.sqrt(k + 1))
    return np.stack(rows[1:])


def _project(panels: Panels) -> tuple[Array, Array]:
    """Coefficients (inputs, m, TERMS) of phi and (inputs, m, SIZE_TERMS) of |phi|.

    Panels that are whole base panels, most of them, lie alike for all inputs: one matrix product with a table. The
    others run the recurrence at their own nodes, a few panels at a time, as many times as the input with most needs.
    """
    dtype = panels.left.dtype
    base = base_edges(dtype)
    ends = jnp.asarray(base, dtype)
    alike = (panels.left[..., None] == ends[:-1]) & (panels.right[..., None] == ends[1:])  # (inputs, slots, base)
    slot = jnp.argmax(alike, axis=1)
    picked = jnp.take_along_axis(panels.samples, slot[..., None, None], 1)
    picked = jnp.where(alike.any(1)[..., None, None], picked, 0.0)  # (inputs, base, m, nodes)
    z = np.asarray(nodes_of(base))
    weights = (np.diff(base)[:, None] / 2 * WEIGHTS).reshape(-1)
    table = jnp.asarray((hermite(z.reshape(-1)) * weights).reshape(TERMS, *z.shape), dtype)
    product = lambda samples, rows: jnp.einsum("ibmj,kbj->imk", samples, rows, precision=lax.Precision.HIGHEST)
    coefficients, sizes = product(picked, table), product(jnp.abs(picked), table[:SIZE_TERMS])

    other = (panels.width > 0) & ~alike.any(-1)
    order = jnp.argsort(~other, axis=-1)
    order = jnp.pad(order, ((0, 0), (0, -order.shape[1] % _BLOCK)), mode="edge")
    blocks = -(-other.sum(-1).max() // _BLOCK)

    def block(index, totals):
        chosen = lax.dynamic_slice_in_dim(order, index * _BLOCK, _BLOCK, axis=1)
        real = jnp.take_along_axis(other, chosen, 1) & (index * _BLOCK + jnp.arange(_BLOCK) < other.shape[1])
        ends = jnp.take_along_axis(panels.ends, chosen[..., None], 1)
        left, right = ends[..., 0], ends[..., 1]
        samples = jnp.take_along_axis(panels.samples, chosen[..., None, None], 1)
        width = jnp.where(real, right - left, 0.0)[..., None, None]
        values = jnp.where(width > 0, width / 2 * jnp.asarray(WEIGHTS, dtype) * samples, 0.0)
        values = jnp.moveaxis(values, 2, 1).reshape(*samples.shape[:1], samples.shape[2], -1)
        z = nodes(left, right).reshape(len(left), -1)
        return totals + _recurrence(z, values)

    shape = (TERMS, 2, *coefficients.shape[:2])
    more = lax.fori_loop(0, blocks, block, jnp.zeros(shape, dtype) + 0 * coefficients[..., 0])
    more = jnp.moveaxis(more, 0, -1)
    return coefficients + more[0], sizes + more[1, ..., :SIZE_TERMS]


def nodes_of(edges: np.ndarray) -> np.ndarray:
    """(panels, nodes) of the panels between edges, as constants."""
    return nodes_between(edges[:-1], edges[1:])


def nodes_between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(panels, nodes) of panels with these ends, as constants."""
    return (left + right)[:, None] / 2 + (right - left)[:, None] / 2 * NODES


def _recurrence(z: Array, values: Array) -> Array:
    """(TERMS, 2, inputs, m): sums of values (inputs, m, nodes), and of |values|, times h_k sqrt(density) at z.

    sqrt(k+1) h_{k+1} = z h_k - sqrt(k) h_{k-1} is stable upwards; sqrt(density) carried along keeps every term below 1.
    """
    both = jnp.stack([values, jnp.abs(values)])

    def step(carry, k):
        before, now = carry
        after = (z * now - jnp.sqrt(k) * before) / jnp.sqrt(k + 1)
        return (now, after), (now[:, None] * both).sum(-1)

    return lax.scan(step, (jnp.zeros_like(z), jnp.sqrt(density(z))), jnp.arange(TERMS, dtype=z.dtype))[1]


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    """The edges of panels that most functions need no more than, out to `reach`, and (panels, nodes, TERMS): Hermite
    functions at their nodes times weights."""
    base = far_edges()
    z = nodes_of(base)
    weights = np.diff(base)[:, None] / 2 * WEIGHTS
    return base, np.moveaxis(hermite(z.reshape(-1)).reshape(TERMS, *z.shape) * weights, 0, -1)


def hermite_sums(
    row: np.ndarray, left: np.ndarray, right: np.ndarray, samples: np.ndarray, rows: int, sizes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, m, TERMS) and (rows, m, sizes): `_project` on the host, of samples (panels, m, nodes) on panels that are
    each of a row."""
    base, table = _table()
    place = np.minimum(np.searchsorted(base, left), len(base) - 2)
    alike = (base[place] == left) & (base[place + 1] == right)
    picked = np.zeros((rows, samples.shape[1], *table.shape[:2]))
    picked[row[alike], :, place[alike]] = samples[alike]
    whole = np.tensordot(picked, table, 2)
    absolute = np.tensordot(np.abs(picked), table[..., :sizes], 2)
    others = np.flatnonzero(~alike)
    for part in np.split(others, range(_AT_ONCE, len(others), _AT_ONCE)):
        z, half = nodes_between(left[part], right[part]), (right - left)[part, None] / 2
        own = np.moveaxis(hermite(z.reshape(-1)).reshape(TERMS, *z.shape) * (half * WEIGHTS), 0, -1)
        np.add.at(whole, row[part], samples[part] @ own)
        np.add.at(absolute, row[part], np.abs(samples[part]) @ own[..., :sizes])
    return whole, absolute


def horner(first: Array, second: Array, rho: Array) -> Array:
    """sum_k first_k second_k rho^k over a leading axis of terms, each broadcast against rho."""

    def step(total, terms):
        return total * rho + terms[0] * terms[1], None

    start = jnp.zeros(jnp.broadcast_shapes(first.shape[1:], second.shape[1:], rho.shape), rho.dtype) + 0 * rho
    return lax.scan(step, start, (first, second), reverse=True)[0]
