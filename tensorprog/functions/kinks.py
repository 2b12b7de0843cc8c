"""Where a function of one variable is not smooth: jumps of its value, slope or curvature, to the last digit."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

MOST = 16  # kinks kept of one function; what is left out is caught by the adaptive panels, at their pace
_BLOCK = 256  # points looked at in one round: the function is traced once, for the grid and for the halvings


def _grid() -> np.ndarray:
    """Points, off round numbers: even steps near the origin, 3 % steps from 1e-7 to 1e5 on both sides."""
    graded = np.geomspace(1.03e-7, 1.07e5, 980)
    even = np.linspace(-12.034, 12.071, 14 * _BLOCK - 2 * len(graded))
    return np.sort(np.concatenate([-graded, even, graded]))


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


def _suspects(grid: Array, jets: Array) -> tuple[Array, Array, Array]:
    """(interval, order, step) of the steps of the grid that exceed their neighbours' most."""
    eps = jnp.finfo(grid.dtype).eps
    steps = jnp.abs(jnp.diff(jets, axis=0))
    steps = jnp.where(jnp.isfinite(steps), steps, 0.0)
    beside = jnp.maximum(jnp.roll(steps, 1, 0), jnp.roll(steps, -1, 0))
    floor = 1e3 * eps * jnp.maximum(jnp.abs(jets[1:]), jnp.abs(jets[:-1])) + jnp.finfo(grid.dtype).tiny
    score = jnp.where(steps > floor, steps / (beside + floor), 0.0)
    _, best = lax.top_k(jnp.where(jnp.isfinite(score), score, 0.0).reshape(-1), MOST * jets.shape[1])
    interval, order = best // jets.shape[1], best % jets.shape[1]
    return interval, order, steps[interval, order]


def search(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> tuple[Array, Array]:
    """(below, above), each (MOST,): neighbouring floats between which fn, fn' or fn'' jumps, ascending; `inf` pads.

    The suspected steps of a grid are halved towards the larger change. What is left when the ends are neighbours is a
    jump; a steep smooth passage is none, for its change shrinks with the step.
    """
    grid = jnp.asarray(_grid(), dtype)
    at = jax.vmap(_jet(fn, numbers, dtype))
    orders = jax.eval_shape(at, grid[:1]).shape[1]
    blocks, suspects = len(grid) // _BLOCK, MOST * orders
    halvings = 64 if dtype == jnp.float64 else 34

    def look(turn, state):
        jets, low, high, at_low, at_high, order, first = state
        middle = low + (high - low) / 2
        points = jnp.where(
            turn < blocks,
            lax.dynamic_slice(grid, (jnp.minimum(turn, blocks - 1) * _BLOCK,), (_BLOCK,)),
            jnp.pad(middle, (0, _BLOCK - suspects)),
        )
        seen = at(points)

        def store(_):
            kept = lax.dynamic_update_slice(jets, seen, (turn * _BLOCK, 0))
            interval, order, first = lax.cond(
                turn == blocks - 1,
                lambda: _suspects(grid, kept),
                lambda: (jnp.zeros(suspects, jnp.int32), jnp.zeros(suspects, jnp.int32), jnp.zeros(suspects, dtype)),
            )
            ends = (grid[interval], grid[interval + 1], kept[interval, order], kept[interval + 1, order])
            return (kept, *ends, order, first)

        def halve(_):
            value = seen[jnp.arange(suspects), order]
            inside = (middle > low) & (middle < high)
            left = inside & (jnp.abs(value - at_low) >= jnp.abs(at_high - value))
            right = inside & ~left
            ends = (jnp.where(right, middle, low), jnp.where(left, middle, high))
            values = (jnp.where(right, value, at_low), jnp.where(left, value, at_high))
            return (jets, *ends, *values, order, first)

        return lax.cond(turn < blocks, store, halve, None)

    zero = jnp.zeros(suspects, dtype)
    state = (jnp.zeros((len(grid), orders), dtype), zero, zero, zero, zero, jnp.zeros(suspects, jnp.int32), zero)
    jets, low, high, at_low, at_high, _, first = lax.fori_loop(0, blocks + halvings, look, state)
    eps = jnp.finfo(dtype).eps
    last = jnp.abs(at_high - at_low)
    # A jump counts against the sizes of all orders up to there and a little on: a library's tanh leaps by 1e-17 where
    # it becomes 1, and its gelu is a staircase of such steps where it vanishes.
    within = jnp.abs(grid) <= 1.5 * jnp.maximum(jnp.abs(low), jnp.abs(high))[:, None]
    size = jnp.where(within, jnp.abs(jets).max(-1), 0.0).max(-1)
    real = (last > 0.03 * first) & (last > 1e3 * eps * size) & (high - low <= 4 * eps * jnp.abs(high) + 1e-12)
    return _ascending(jnp.where(real, low, jnp.inf), jnp.where(real, high, jnp.inf))


def _ascending(low: Array, high: Array) -> tuple[Array, Array]:
    """Sorted, the first MOST, a kink that shows in two orders once."""
    place = jnp.argsort(low)
    low, high = low[place], high[place]
    near = 1e-7 if low.dtype == jnp.float64 else 1e-3
    again = jnp.concatenate([jnp.zeros(1, bool), low[1:] - low[:-1] <= near * jnp.abs(low[1:]) + 1e-12])
    low, high = jnp.where(again, jnp.inf, low), jnp.where(again, jnp.inf, high)
    place = jnp.argsort(low)[:MOST]
    return low[place], high[place]


@lru_cache(maxsize=1024)
def _fixed(fn: Callable, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The kinks of a function without numbers, as constants, without padding; searched once per function."""
    # Compiled ahead: a call would become part of a trace in progress.
    found = jax.jit(lambda: search(fn, (), jnp.dtype(dtype))).lower().compile()()
    low, high = (np.asarray(x) for x in found)
    return low[np.isfinite(low)], high[np.isfinite(low)]


def kinks(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> tuple[Array, Array]:
    """(below, above) of the kinks of z -> fn(z, *numbers): constants without numbers, else found when run."""
    if not numbers:
        low, high = _fixed(fn, jnp.dtype(dtype).name)
        return jnp.asarray(low, dtype), jnp.asarray(high, dtype)
    return search(fn, tuple(lax.stop_gradient(n) for n in numbers), dtype)


def places(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> Array:
    """Kinks of fn, ascending, `inf` pads: between the two floats."""
    below, above = kinks(fn, numbers, dtype)
    return jnp.where(jnp.isfinite(below), below + (above - below) / 2, jnp.inf)
