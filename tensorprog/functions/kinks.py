"""Where a function of one variable is not smooth, or changes quickly.

Kinks are jumps of its value, slope or curvature, found to the last digit. Steep places are smooth passages, narrow
beside their distance from 0. Scales say how far from 0 the function changes its course: tanh does below 16, not beyond.
Panels measured in deviations of a Gaussian argument do not see a feature much narrower than they are; these tell them.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.derived import origins
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


# ---- what NumPy and JAX call differently


def _of(x: Any) -> Any:
    """The library that an array is of."""
    return np if isinstance(x, np.ndarray) else jnp


def _top(x: Any, count: int) -> tuple[Any, Any]:
    """The largest entries and where they are, descending."""
    if _of(x) is jnp:
        return lax.top_k(x, count)
    best = np.argsort(-x, kind="stable")[:count]
    return x[best], best


def _running_max(x: Any) -> Any:
    return np.maximum.accumulate(x) if _of(x) is np else lax.cummax(x, axis=0)


def _by_segment(kind: str, x: Any, which: np.ndarray, count: int) -> Any:
    """Sums, largest or smallest entries of rows (points, …) that lie in the same segment."""
    if _of(x) is jnp:
        return getattr(jax.ops, f"segment_{kind}")(x, which, count)
    ufunc, start = {"sum": (np.add, 0.0), "max": (np.maximum, -np.inf), "min": (np.minimum, np.inf)}[kind]
    found = np.full((count, *x.shape[1:]), start)
    ufunc.at(found, which, x)
    return found


# ---- the search


def _suspects(grid: Any, jets: Any, most: int) -> tuple[Any, Any, Any, Any]:
    """(interval, order, step) of the steps of the grid that exceed their neighbours' most, and whether all do by far:
    then they are those nearest to 0."""
    xp, eps = _of(jets), np.finfo(grid.dtype).eps
    steps = xp.abs(xp.diff(jets, axis=0))
    steps = xp.where(xp.isfinite(steps), steps, 0.0)
    beside = xp.maximum(xp.roll(steps, 1, 0), xp.roll(steps, -1, 0))
    floor = 1e3 * eps * xp.maximum(xp.abs(jets[1:]), xp.abs(jets[:-1])) + np.finfo(grid.dtype).tiny
    score = xp.where(steps > floor, steps / (beside + floor), 0.0)
    score = xp.where(xp.isfinite(score), score, 0.0)
    near = _SURE * (1 + 1 / (1e-6 + xp.abs(grid[1:, None])))
    scores, best = _top(xp.where(score > _SURE, near, score).reshape(-1), most * jets.shape[1])
    interval, order = best // jets.shape[1], best % jets.shape[1]
    return interval, order, steps[interval, order], scores[-1] > _SURE


def _steepest(grid: Any, jets: Any, points: np.ndarray) -> tuple[Any, Any, Any, Any]:
    """(interval, order, step, steepness): where value or slope change by far quicker than between z/2 and 2z."""
    xp, orders = _of(jets), min(jets.shape[1], 2)
    steps = xp.abs(xp.diff(jets[:, :orders], axis=0))
    steps = xp.where(xp.isfinite(steps), steps, xp.inf)
    jets = xp.where(xp.isfinite(jets), jets, 0.0)[:, :orders]
    octave = np.floor(np.log2(np.abs(points))).astype(int)
    octave -= octave.min()
    count = octave.max() + 1
    which = octave + count * (points > 0)
    most, least = (_by_segment(kind, jets, which, 2 * count).reshape(2, count, orders) for kind in ("max", "min"))
    beside = lambda x, pad: xp.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=pad)
    around = lambda x: xp.stack([x[:, :-2], x[:, 1:-1], x[:, 2:]])
    extent = around(beside(most, -np.inf)).max(0) - around(beside(least, np.inf)).min(0)
    size = _running_max(xp.maximum(xp.abs(most), xp.abs(least)).max(0))
    extent, size = extent.reshape(-1, orders)[which[1:]], size[octave[1:]]
    # A function that goes up and down all the time has no place of its own.
    total = _by_segment("sum", steps, which[1:], 2 * count).reshape(2, count, orders)
    total = around(beside(total, 0.0)).sum(0).reshape(-1, orders)[which[1:]]
    distance = xp.asarray(np.abs(points[1:]) / np.diff(points), grid.dtype)[:, None]
    floor = max(1e-6, 1e3 * float(np.finfo(grid.dtype).eps)) * size + np.finfo(grid.dtype).tiny
    steepness = xp.where((steps > floor) & (total < 8 * extent), steps * distance / (extent + floor), 0.0)
    peak = (steepness >= xp.roll(steepness, 1, 0)) & (steepness > xp.roll(steepness, -1, 0))
    steepness, best = _top(xp.where(peak, steepness, 0.0).reshape(-1), 4 * _STEEP)
    interval, order = best // orders, best % orders
    return interval, order, steps[interval, order], steepness


def _changes(jets: Any) -> Any:
    """(scales,): whether value or slope at the probes is no polynomial on [0, s], and changes on [s/16, s]."""
    xp, eps = _of(jets), float(np.finfo(jets.dtype).eps)
    values = jets[: _probes().size, :2].reshape(*_probes().shape, -1)
    last = xp.abs(xp.einsum("...jm,kj->...km", values, xp.asarray(LAST, jets.dtype))).max(-2)
    size = xp.abs(values).max((2, 3))[:, :, None]
    part = xp.asarray([max(1e-9, 300 * eps), max(1e-5, 300 * eps)], jets.dtype)[:, None]
    return (last > part * size).all(2).any((1, 2))


class _Steps(NamedTuple):
    """Steps that are halved: ends, the jets' entries there, of which order, how large each was at first, how steep
    it is; whether all jumps that are kept stand out by far."""

    low: Any
    high: Any
    at_low: Any
    at_high: Any
    order: Any
    first: Any
    sharp: Any
    sure: Any


def _chosen(grid: Any, jets: Any, places: np.ndarray, most: int) -> _Steps:
    """The steps of the grid that may hold a kink or a steep place."""
    xp = _of(jets)
    (*jumps, sure), steep = _suspects(grid, jets, most), _steepest(grid, jets, places)
    both = zip((*jumps, xp.zeros(len(jumps[0]), grid.dtype)), steep, strict=True)
    interval, order, first, sharp = (xp.concatenate(pair) for pair in both)
    ends = grid[interval], grid[interval + 1], jets[interval, order], jets[interval + 1, order]
    return _Steps(*ends, order, first, sharp, sure)


def _halved(steps: _Steps, middle: Any, seen: Any) -> _Steps:
    """The half of each step in which more happens; `seen` are jets at its middle."""
    xp = _of(seen)
    value = seen[np.arange(len(middle)), steps.order]
    inside = (middle > steps.low) & (middle < steps.high)
    left = inside & (xp.abs(value - steps.at_low) >= xp.abs(steps.at_high - value))
    right = inside & ~left
    low, at_low = (xp.where(right, new, old) for new, old in ((middle, steps.low), (value, steps.at_low)))
    high, at_high = (xp.where(left, new, old) for new, old in ((middle, steps.high), (value, steps.at_high)))
    change = xp.abs(at_high - at_low)
    first = xp.where(change > steps.first, change, steps.first)
    return steps._replace(low=low, high=high, at_low=at_low, at_high=at_high, first=first)


def _decided(steps: _Steps, jets: Any, probed: Any, places: np.ndarray, most: int, even: float) -> Features:
    """Which of the halved steps are jumps, and which steep places."""
    xp, dtype = _of(jets), jets.dtype
    eps, orders = np.finfo(dtype).eps, jets.shape[1]
    low, high = steps.low, steps.high
    last = xp.abs(steps.at_high - steps.at_low)
    # A jump counts against the sizes of all orders up to there and a little on: a library's tanh leaps by 1e-17 where
    # it becomes 1, and its gelu is a staircase of such steps where it vanishes.
    outward = np.argsort(np.abs(places), kind="stable")
    largest = _running_max(xp.where(xp.isfinite(jets), xp.abs(jets), xp.inf).max(-1)[outward])
    within = 1.5 * xp.maximum(xp.abs(low), xp.abs(high)) + 1e-6
    extent = largest[xp.searchsorted(xp.asarray(np.abs(places)[outward], dtype), within, side="right") - 1]
    real = (last >= 0.03 * steps.first) & (last > 1e3 * eps * extent) & (high - low <= 4 * eps * xp.abs(high) + 1e-12)
    # Steep places, steepest first; one that lies near a steeper one is found by its panels.
    rank = xp.argsort(-xp.where(real, 0.0, steps.sharp), stable=True)[: 4 * _STEEP]
    place, out = low[rank], real[rank] | ~(steps.sharp[rank] > _STEEPNESS)
    near = xp.abs(place[:, None] - place) <= 0.02 * xp.abs(place)
    again = (near & ~out & xp.asarray(np.tri(len(rank), k=-1, dtype=bool))).any(-1)
    kept = ~(out | again)
    steep = xp.where(kept, place, xp.inf)[xp.argsort(~kept, stable=True)][:_STEEP]
    scales = xp.sort(xp.where(_changes(probed), xp.asarray(_SCALES, dtype), xp.inf))
    below, above, end = _ascending(xp.where(real, low, xp.inf), xp.where(real, high, xp.inf), most)
    jumps = xp.where(real & (steps.order == 0), xp.abs(low), 0.0)
    left = xp.where(jumps >= end, jumps, xp.inf).min()
    # Beyond the even steps of the grid several jumps are met by chance, among others.
    left = xp.where((jumps > even).sum() > _CHANCE, xp.minimum(left, even), left)
    crowd = real[: most * orders].all() & ~steps.sure  # jumps in all steps of the grid, and who knows how many in each
    return Features(below, above, steep, scales, xp.where(crowd, 0.0, left)[None])


def _sites(wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """The grid, and behind it the probes."""
    places = _grid(wide)
    return places, np.concatenate([places, _probes().reshape(-1)])


def search(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Features:
    """The kinks, (FEW,) each, of a function whose numbers are not known, its steep places and scales.

    The suspected steps of a grid are halved towards the larger change. What is left when the ends are neighbours is a
    jump; a steep smooth passage is none, for its change shrinks with the step.
    """
    places, points = _sites(False)
    grid = jnp.asarray(places, dtype)
    sites = jnp.asarray(np.pad(points, (0, -len(points) % _BLOCK), mode="edge"), dtype)
    at = jax.vmap(_jet(fn, numbers, dtype))
    orders = jax.eval_shape(at, grid[:1]).shape[1]
    blocks, suspects = len(sites) // _BLOCK, FEW * orders + 4 * _STEEP

    def look(turn: Any, state: Any) -> Any:
        jets, steps = state
        middle = steps.low + (steps.high - steps.low) / 2
        points = jnp.where(
            turn < blocks,
            lax.dynamic_slice(sites, (jnp.minimum(turn, blocks - 1) * _BLOCK,), (_BLOCK,)),
            jnp.pad(middle, (0, _BLOCK - suspects)),
        )
        seen = at(points)

        def store(_: Any) -> Any:
            kept = lax.dynamic_update_slice(jets, seen, (turn * _BLOCK, 0))
            chosen = lambda: jax.tree.map(like, _chosen(grid, kept[: len(grid)], places, FEW), steps)
            return kept, lax.cond(turn == blocks - 1, chosen, lambda: steps)

        return lax.cond(turn < blocks, store, lambda _: (jets, _halved(steps, middle, seen[:suspects])), None)

    like = lambda new, old: new.astype(old.dtype)
    zero, whole = jnp.zeros(suspects, dtype), jnp.zeros(suspects, jnp.int32)
    steps = _Steps(zero, zero, zero, zero, whole, zero, zero, jnp.array(False))
    halvings = _halvings(dtype)
    jets, steps = lax.fori_loop(0, blocks + halvings, look, (jnp.zeros((len(sites), orders), dtype), steps))
    return _decided(steps, jets[: len(grid)], jets[len(grid) :], places, FEW, _NARROW)


def _halvings(dtype: Any) -> int:
    return 64 if dtype == np.float64 else 34


@lru_cache(maxsize=128)
def _compiled(fn: Callable, shapes: tuple[tuple[int, ...], ...], dtype: str) -> Any:
    """Value, slope and curvature at `_WIDE_BLOCK` points."""
    own = jnp.dtype(dtype)
    at = lambda z, *numbers: jax.vmap(_jet(fn, numbers, own))(z)
    like = [jax.ShapeDtypeStruct(shape, own) for shape in ((_WIDE_BLOCK,), *shapes)]
    # Compiled ahead: a call would become part of a trace in progress. Also where all else is run without compilation.
    with jax.disable_jit(False):
        return jax.jit(at).lower(*like).compile()


def _ascending(low: Any, high: Any, most: int) -> tuple[Any, Any, Any]:
    """Those nearest to 0, sorted, a kink that shows in two orders once; and how far from 0 the next one lies."""
    xp, place = _of(low), _of(low).argsort(low, stable=True)
    low, high = low[place], high[place]
    near = 1e-7 if low.dtype == np.float64 else 1e-3
    again = xp.concatenate([xp.zeros(1, bool), low[1:] - low[:-1] <= near * xp.abs(low[1:]) + 1e-12])
    low, high = xp.where(again, xp.inf, low), xp.where(again, xp.inf, high)
    outward = xp.argsort(xp.abs(low), stable=True)
    kept = xp.sort(outward[:most])
    return low[kept], high[kept], xp.abs(low[outward[most]])


@lru_cache(maxsize=1024)
def _fixed(fn: Callable, shapes: tuple[tuple[int, ...], ...], data: tuple[bytes, ...], dtype: str) -> Features:
    """The features of a function whose numbers are known, without padding; searched once per function."""
    own = [np.frombuffer(d, dtype).reshape(shape) for d, shape in zip(data, shapes, strict=True)]
    run = _compiled(fn, shapes, dtype)

    def at(points: np.ndarray) -> np.ndarray:
        parts = np.pad(points, (0, -len(points) % _WIDE_BLOCK), mode="edge").reshape(-1, _WIDE_BLOCK)
        return np.concatenate([np.asarray(run(part, *own)) for part in parts])[: len(points)]

    with np.errstate(all="ignore"):
        places, points = _sites(True)
        jets = at(points.astype(dtype))
        grid, count = places.astype(dtype), len(places)
        steps = _chosen(grid, jets[:count], places, MOST)
        for _ in range(_halvings(grid.dtype)):
            middle = steps.low + (steps.high - steps.low) / 2
            steps = _halved(steps, middle, at(middle))
        found = _decided(steps, jets[:count], jets[count:], places, MOST, _WIDE)
    return Features(*(part[np.isfinite(part)] for part in found))


def known_features(fn: Callable, numbers: tuple) -> Features:
    """The features of z -> fn(z, *numbers), numbers known: arrays of NumPy in double precision, without padding."""
    own = [np.asarray(n, np.float64) for n in numbers]
    with jax.enable_x64(True):
        return _fixed(fn, tuple(n.shape for n in own), tuple(n.tobytes() for n in own), "float64")


def features(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Features:
    """The features of z -> fn(z, *numbers): constants without numbers, else found when run, or among the numbers of a
    function that keeps them there (`paneled`)."""
    if listed := getattr(fn, "features", None):
        return listed(*numbers)
    if not numbers:
        return Features(*(jnp.asarray(part, dtype) for part in _fixed(fn, (), (), jnp.dtype(dtype).name)))
    found = search(fn, tuple(lax.stop_gradient(n) for n in numbers), dtype)
    return found._replace(steep=found.steep[:_FEW_STEEP], scales=found.scales[:_FEW_SCALES])


def crowded(phi: Callable, numbers: tuple, deviation: float, dtype: jnp.dtype) -> bool:
    """Whether more jumps lie within reach of a Gaussian, in a dtype, than are kept: what they add to derivatives would
    lack some. Numbers are known."""
    reached = np.sqrt(-2 * np.log(np.finfo(dtype).eps)) * deviation
    return any(
        known_features(fn, own).covered.min(initial=np.inf) < reached + abs(sum(map(float, shift)))
        for fn, own, shift in origins(phi, numbers)
    )


def kinks(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> tuple[Array, Array]:
    """(below, above) of the kinks of z -> fn(z, *numbers)."""
    found = features(fn, numbers, dtype)
    return found.below, found.above
