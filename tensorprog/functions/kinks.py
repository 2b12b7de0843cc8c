"""Where a function of one variable is not smooth, or changes quickly.

Kinks are jumps of its value, slope or curvature, found to the last digit. Steep places are smooth passages, narrow
beside their distance from 0. Scales say how far from 0 the function changes its course: tanh does below 16, not beyond.
Panels measured in deviations of a Gaussian argument do not see a feature much narrower than they are; these tell them.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.quadrature import LAST, NODES

MOST, FEW = 256, 64  # kinks kept of a function without numbers, and with; those nearest to 0
_SURE = 30.0  # a step of the grid that exceeds its neighbours' by so much is suspected first, those near 0 foremost
_STEEP, _FEW_STEEP = 4, 2  # steep places kept of a function without numbers, and with
_STEEPNESS = 16.0  # |z slope| beside the range between z/2 and 2z
_RATIO = 16.0
_SCALES = _RATIO ** np.arange(-5.0, 6.0)
_FEW_SCALES = 4  # the least are kept where numbers decide
_NARROW, _WIDE = 12.0, 50.0  # how far the grid has even steps, of 0.003: with numbers, and without
_CHANCE = 4
_BLOCK, _WIDE_BLOCK = 256, 2048
"""Points looked at in one round: the function is traced once, for the grid and for the halvings."""


def _grid(wide: bool) -> np.ndarray:
    """Points, off round numbers: even steps near 0, `wide` further, 3 % steps from 1e-7 to 1e5 on both sides."""
    graded = np.geomspace(1.03e-7, 1.07e5, 980)
    count = 38 * _BLOCK - 2 * len(graded)
    even, step = np.linspace(-_NARROW - 0.034, _NARROW + 0.071, count, retstep=True)
    if wide:  # the same steps further
        beyond = (17 * _WIDE_BLOCK - 38 * _BLOCK) // 2
        even = even[0] + step * np.arange(-beyond, count + beyond)
    return np.sort(np.concatenate([-graded, even, graded]))


def _probes() -> np.ndarray:
    """(scales, 2, 2, nodes): nodes of [0, s] and of [s / ratio, s], on both sides."""
    low = np.array([0.0, 1 / _RATIO])[:, None]
    unit = (1 + low) / 2 + (1 - low) / 2 * NODES
    return _SCALES[:, None, None, None] * np.array([1.0, -1.0])[:, None, None] * unit


class Features(NamedTuple):
    """Of one function, in units of its argument; `inf` pads.

    below, above: neighbouring floats between which fn, fn' or fn'' jumps, ascending. steep: smooth passages narrow
    beside their distance from 0. scales: s such that fn changes its course between s/16 and s. covered (1,): how far
    from 0 all jumps of fn itself are there, `inf` where none was left out.
    """

    below: Array
    above: Array
    steep: Array
    scales: Array
    covered: Array


def _jet(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Callable:
    """z -> (fn, fn', fn'') stacked; fewer where JAX cannot differentiate (a function with a custom_vjp)."""
    value = lambda z: fn(z, *numbers).astype(dtype)
    slope = lambda z: jax.jvp(value, (z,), (jnp.ones_like(z),))

    def curvature(z):
        (at, first), (_, second) = jax.jvp(slope, (z,), (jnp.ones_like(z),))
        return at, first, second

    for order in (curvature, slope):
        try:
            jax.eval_shape(order, jnp.zeros((), dtype))
            return lambda z: jnp.stack(order(z))
        except TypeError:
            continue
    return lambda z: value(z)[None]


def _suspects(grid: Array, jets: Array, most: int) -> tuple[Array, Array, Array, Array]:
    """(interval, order, step) of the steps of the grid that exceed their neighbours' most, and whether all do by far:
    then they are those nearest to 0."""
    eps = jnp.finfo(grid.dtype).eps
    steps = jnp.abs(jnp.diff(jets, axis=0))
    steps = jnp.where(jnp.isfinite(steps), steps, 0.0)
    beside = jnp.maximum(jnp.roll(steps, 1, 0), jnp.roll(steps, -1, 0))
    floor = 1e3 * eps * jnp.maximum(jnp.abs(jets[1:]), jnp.abs(jets[:-1])) + jnp.finfo(grid.dtype).tiny
    score = jnp.where(steps > floor, steps / (beside + floor), 0.0)
    score = jnp.where(jnp.isfinite(score), score, 0.0)
    near = _SURE * (1 + 1 / (1e-6 + jnp.abs(grid[1:, None])))
    scores, best = lax.top_k(jnp.where(score > _SURE, near, score).reshape(-1), most * jets.shape[1])
    interval, order = best // jets.shape[1], best % jets.shape[1]
    return interval, order, steps[interval, order], scores[-1] > _SURE


def _steepest(grid: Array, jets: Array, points: np.ndarray) -> tuple[Array, Array, Array, Array]:
    """(interval, order, step, steepness): where value or slope change by far quicker than between z/2 and 2z."""
    orders = min(jets.shape[1], 2)
    steps = jnp.abs(jnp.diff(jets[:, :orders], axis=0))
    steps = jnp.where(jnp.isfinite(steps), steps, jnp.inf)
    jets = jnp.where(jnp.isfinite(jets), jets, 0.0)[:, :orders]
    octave = np.floor(np.log2(np.abs(points))).astype(int)
    octave -= octave.min()
    count = octave.max() + 1
    which = octave + count * (points > 0)
    most, least = (
        sign * jax.ops.segment_max(sign * jets, which, 2 * count).reshape(2, count, orders) for sign in (1.0, -1.0)
    )
    beside = lambda x, pad: jnp.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=pad)
    around = lambda x: jnp.stack([x[:, :-2], x[:, 1:-1], x[:, 2:]])
    extent = around(beside(most, -jnp.inf)).max(0) - around(beside(least, jnp.inf)).min(0)
    size = lax.cummax(jnp.maximum(jnp.abs(most), jnp.abs(least)).max(0), axis=0)
    extent, size = extent.reshape(-1, orders)[which[1:]], size[octave[1:]]
    # A function that goes up and down all the time has no place of its own.
    total = jax.ops.segment_sum(steps, which[1:], 2 * count).reshape(2, count, orders)
    total = around(beside(total, 0.0)).sum(0).reshape(-1, orders)[which[1:]]
    distance = jnp.asarray(np.abs(points[1:]) / np.diff(points), grid.dtype)[:, None]
    floor = max(1e-6, 1e3 * float(jnp.finfo(grid.dtype).eps)) * size + jnp.finfo(grid.dtype).tiny
    steepness = jnp.where((steps > floor) & (total < 8 * extent), steps * distance / (extent + floor), 0.0)
    peak = (steepness >= jnp.roll(steepness, 1, 0)) & (steepness > jnp.roll(steepness, -1, 0))
    steepness, best = lax.top_k(jnp.where(peak, steepness, 0.0).reshape(-1), 4 * _STEEP)
    interval, order = best // orders, best % orders
    return interval, order, steps[interval, order], steepness


def _changes(jets: Array) -> Array:
    """(scales,): whether value or slope at the probes is no polynomial on [0, s], and changes on [s/16, s]."""
    eps = float(jnp.finfo(jets.dtype).eps)
    values = jets[: _probes().size, :2].reshape(*_probes().shape, -1)
    last = jnp.abs(jnp.einsum("...jm,kj->...km", values, jnp.asarray(LAST, jets.dtype))).max(-2)
    size = jnp.abs(values).max((2, 3))[:, :, None]
    part = jnp.asarray([max(1e-9, 300 * eps), max(1e-5, 300 * eps)], jets.dtype)[:, None]
    return (last > part * size).all(2).any((1, 2))


def search(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Features:
    """The kinks of a function, (MOST,) each or with numbers (FEW,), its steep places and scales.

    The suspected steps of a grid are halved towards the larger change. What is left when the ends are neighbours is a
    jump; a steep smooth passage is none, for its change shrinks with the step.
    """
    most, size = (FEW, _BLOCK) if numbers else (MOST, _WIDE_BLOCK)
    places = _grid(not numbers)
    grid = jnp.asarray(places, dtype)
    probes = _probes().reshape(-1)
    sites = jnp.concatenate([grid, jnp.asarray(np.pad(probes, (0, -len(probes) % size), mode="edge"), dtype)])
    at = jax.vmap(_jet(fn, numbers, dtype))
    orders = jax.eval_shape(at, grid[:1]).shape[1]
    blocks, suspects = len(sites) // size, most * orders + 4 * _STEEP
    halvings = 64 if dtype == jnp.float64 else 34

    zero = jnp.zeros(suspects, dtype)
    none = (jnp.zeros(suspects, jnp.int32), jnp.zeros(suspects, jnp.int32), zero, zero, jnp.array(False))

    def chosen(jets):
        (*jumps, sure), steep = _suspects(grid, jets[: len(grid)], most), _steepest(grid, jets[: len(grid)], places)
        both = zip((*jumps, jnp.zeros(most * orders, dtype)), steep, strict=True)
        found = (jnp.concatenate(pair).astype(like.dtype) for pair, like in zip(both, none[:-1], strict=True))
        return (*found, sure)

    def look(turn, state):
        jets, low, high, at_low, at_high, order, first, sharp, sure = state
        middle = low + (high - low) / 2
        points = jnp.where(
            turn < blocks,
            lax.dynamic_slice(sites, (jnp.minimum(turn, blocks - 1) * size,), (size,)),
            jnp.pad(middle, (0, size - suspects)),
        )
        seen = at(points)

        def store(_):
            kept = lax.dynamic_update_slice(jets, seen, (turn * size, 0))
            interval, order, first, sharp, sure = lax.cond(turn == blocks - 1, lambda: chosen(kept), lambda: none)
            ends = (grid[interval], grid[interval + 1], kept[interval, order], kept[interval + 1, order])
            return (kept, *ends, order, first, sharp, sure)

        def halve(_):
            value = seen[jnp.arange(suspects), order]
            inside = (middle > low) & (middle < high)
            left = inside & (jnp.abs(value - at_low) >= jnp.abs(at_high - value))
            right = inside & ~left
            ends = (jnp.where(right, middle, low), jnp.where(left, middle, high))
            values = (jnp.where(right, value, at_low), jnp.where(left, value, at_high))
            change = jnp.abs(values[1] - values[0])
            return (jets, *ends, *values, order, jnp.where(change > first, change, first), sharp, sure)

        return lax.cond(turn < blocks, store, halve, None)

    state = (jnp.zeros((len(sites), orders), dtype), zero, zero, zero, zero, *none[1:])
    jets, low, high, at_low, at_high, order, first, sharp, sure = lax.fori_loop(0, blocks + halvings, look, state)
    probed, jets = jets[len(grid) :], jets[: len(grid)]
    eps = jnp.finfo(dtype).eps
    last = jnp.abs(at_high - at_low)
    # A jump counts against the sizes of all orders up to there and a little on: a library's tanh leaps by 1e-17 where
    # it becomes 1, and its gelu is a staircase of such steps where it vanishes.
    outward = np.argsort(np.abs(places), kind="stable")
    largest = lax.cummax(jnp.where(jnp.isfinite(jets), jnp.abs(jets), jnp.inf).max(-1)[outward])
    within = 1.5 * jnp.maximum(jnp.abs(low), jnp.abs(high)) + 1e-6
    extent = largest[jnp.searchsorted(jnp.asarray(np.abs(places)[outward], dtype), within, side="right") - 1]
    real = (last >= 0.03 * first) & (last > 1e3 * eps * extent) & (high - low <= 4 * eps * jnp.abs(high) + 1e-12)
    # Steep places, steepest first; one that lies near a steeper one is found by its panels.
    rank = jnp.argsort(-jnp.where(real, 0.0, sharp))[: 4 * _STEEP]
    place, out = low[rank], real[rank] | ~(sharp[rank] > _STEEPNESS)
    near = jnp.abs(place[:, None] - place) <= 0.02 * jnp.abs(place)
    again = (near & ~out & jnp.asarray(np.tri(len(rank), k=-1, dtype=bool))).any(-1)
    kept = ~(out | again)
    steep = jnp.where(kept, place, jnp.inf)[jnp.argsort(~kept)][:_STEEP]
    scales = jnp.sort(jnp.where(_changes(probed), jnp.asarray(_SCALES, dtype), jnp.inf))
    below, above, end = _ascending(jnp.where(real, low, jnp.inf), jnp.where(real, high, jnp.inf), most)
    jumps = jnp.where(real & (order == 0), jnp.abs(low), 0.0)
    left = jnp.where(jumps >= end, jumps, jnp.inf).min()
    # Beyond the even steps of the grid several jumps are met by chance, among others.
    even = _WIDE if not numbers else _NARROW
    left = jnp.where((jumps > even).sum() > _CHANCE, jnp.minimum(left, even), left)
    crowd = real[: most * orders].all() & ~sure  # jumps in all steps of the grid, and who knows how many in each
    return Features(below, above, steep, scales, jnp.where(crowd, 0.0, left)[None])


def _ascending(low: Array, high: Array, most: int) -> tuple[Array, Array, Array]:
    """Those nearest to 0, sorted, a kink that shows in two orders once; and how far from 0 the next one lies."""
    place = jnp.argsort(low)
    low, high = low[place], high[place]
    near = 1e-7 if low.dtype == jnp.float64 else 1e-3
    again = jnp.concatenate([jnp.zeros(1, bool), low[1:] - low[:-1] <= near * jnp.abs(low[1:]) + 1e-12])
    low, high = jnp.where(again, jnp.inf, low), jnp.where(again, jnp.inf, high)
    outward = jnp.argsort(jnp.abs(low))
    kept = jnp.sort(outward[:most])
    return low[kept], high[kept], jnp.abs(low[outward[most]])


@lru_cache(maxsize=1024)
def _fixed(fn: Callable, dtype: str) -> tuple[np.ndarray, ...]:
    """The features of a function without numbers, as constants, without padding; searched once per function."""
    # Compiled ahead: a call would become part of a trace in progress. Also where all else is run without compilation.
    with jax.disable_jit(False):
        found = jax.jit(lambda: search(fn, (), jnp.dtype(dtype))).lower().compile()()
    return tuple(part[np.isfinite(part)] for part in map(np.asarray, found))


def features(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Features:
    """The features of z -> fn(z, *numbers): constants without numbers, else found when run."""
    if not numbers:
        return Features(*(jnp.asarray(part, dtype) for part in _fixed(fn, jnp.dtype(dtype).name)))
    found = search(fn, tuple(lax.stop_gradient(n) for n in numbers), dtype)
    return found._replace(steep=found.steep[:_FEW_STEEP], scales=found.scales[:_FEW_SCALES])


def crowded(fn: Callable, numbers: tuple, deviation: Array) -> Array:
    """Whether more jumps lie within reach of a Gaussian than are kept: what they add to derivatives would lack some."""
    reached = np.sqrt(-2 * np.log(np.finfo(deviation.dtype).eps)) * deviation
    return jnp.min(features(fn, numbers, deviation.dtype).covered, initial=jnp.inf) < reached


def kinks(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> tuple[Array, Array]:
    """(below, above) of the kinks of z -> fn(z, *numbers)."""
    found = features(fn, numbers, dtype)
    return found.below, found.above
