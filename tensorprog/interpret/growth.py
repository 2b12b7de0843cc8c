"""How fast a function grows, judged by its values: for functions that no table knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.base import Call
from tensorprog.functions.frozen import Function
from tensorprog.functions.lines import Pole, look

Numbers = tuple[Any, ...]
NONE = Pole(0.0, 0.0)
Values = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Growth:
    """How fast |fn(z)| grows.

    `order`: p where it grows like exp(|z|^p), 0 for growth like a power; `pole`: where it grows like |z - p|^-q, of one
    argument anywhere, of several at 0; `undefined`: a point at moderate distance where it is no number, and what it is
    there.
    """

    order: float = 0.0
    pole: Pole = NONE
    undefined: tuple[float, float] | None = None


def measure(fn: Function, numbers: Numbers, count: int) -> Growth:
    """The growth of a function of `count` arguments along its diagonals, and its poles.

    A guess from values: it sees what a function does at some twenty points a ray. Traced numbers are taken as 1.
    """
    at = _evaluator(fn, numbers)
    rays = [np.array(signs) for signs in itertools.product((1.0, -1.0), repeat=min(count, 3))]
    rays = [np.concatenate([ray, np.ones(count - len(ray))]) for ray in rays]
    undefined = next((found for ray in rays if (found := _undefined(at, ray)) is not None), None)
    if undefined is not None:
        return Growth(undefined=undefined)
    order = max(_order(at, ray) for ray in rays)
    if count > 1:
        return Growth(order, Pole(0.0, max(_pole(at, count, i) for i in range(count))))
    with jax.ensure_compile_time_eval():
        held = tuple(np.asarray(_value(number, jnp.result_type(float))) for number in numbers)
    return Growth(order, look(Call(fn), held).steepest() or NONE)


def jump(fn: Function, numbers: Numbers) -> float | None:
    """Where a function of one variable jumps, if it does: a grid's steepest steps, halved until only jumps are left."""
    at = _evaluator(fn, numbers)
    grid = np.linspace(-8.0, 8.0, 4004)  # an even count: 0 lies inside a step
    with np.errstate(all="ignore"):
        rises = np.abs(np.diff(at(grid[:, None])))
        steepest = np.argsort(np.where(np.isfinite(rises), -rises, 0.0))[:8]
        low, high, rise = grid[steepest], grid[steepest + 1], rises[steepest]
        left, right = at(low[:, None]), at(high[:, None])
        for _ in range(14):
            middle = (low + high) / 2
            value = at(middle[:, None])
            first = np.abs(value - left) > np.abs(right - value)  # the half that rises more
            high, right = np.where(first, middle, high), np.where(first, value, right)
            low, left = np.where(first, low, middle), np.where(first, left, value)
        # A slope has shrunk 10⁴-fold, a pole has grown; halved further, float32 could not tell the ends apart.
        stays = (np.abs(right - left) > 0.3 * rise) & (np.abs(right - left) < 3.0 * rise) & (rise > 1e-3)
    return round(float(low[stays][0]), 5) + 0.0 if stays.any() else None


def _evaluator(fn: Function, numbers: Numbers) -> Values:
    """The function's values at points (m, count), as NumPy arrays; outside any transformation in progress."""

    def at(points: np.ndarray) -> np.ndarray:
        with jax.ensure_compile_time_eval():
            dtype = jnp.result_type(float)
            held = tuple(_value(number, dtype) for number in numbers)
            columns = jnp.asarray(points, dtype).T
            values = jax.vmap(lambda *z: jnp.asarray(fn(*z, numbers=held), dtype))(*columns)
            return np.asarray(values, dtype=np.float64)

    return at


def _value(number: Any, dtype: Any) -> jax.Array:
    try:
        return jnp.asarray(np.asarray(number), dtype)
    except jax.errors.TracerArrayConversionError:
        return jnp.ones(np.shape(number), dtype)


def _undefined(at: Values, ray: np.ndarray) -> tuple[float, float] | None:
    """A point between 1/2 and 3, where Gaussians are, at which the function is NaN or infinite."""
    radii = np.array([0.53, 1.07, 1.61, 2.9])
    values = at(radii[:, None] * ray)
    bad = np.flatnonzero(~np.isfinite(values))
    return (float(radii[bad[0]] * ray[0]), float(values[bad[0]])) if len(bad) else None


def _order(at: Values, ray: np.ndarray) -> float:
    """p from three radii R/4, R/2, R: log|f| doubles 2^p-fold twice in a row; a power's barely moves.

    R is the largest at which the function does not overflow, so exp(x²) is seen as well as exp(x/10).
    """
    radii = 97.0 / 2.0 ** np.arange(12)
    logs = np.log(np.abs(at(radii[:, None] * ray)) + 1.0)
    finite = np.flatnonzero(np.isfinite(logs))
    if not len(finite) or finite[0] + 2 >= len(logs):
        return 2.0
    high, middle, low = logs[finite[0] : finite[0] + 3]
    if high < 3.0 or high < 1.6 * middle or middle < 1.3 * low:
        return 0.0
    return math.log2(high / middle)


def _pole(at: Values, count: int, argument: int) -> float:
    """q where the function grows like |z|^-q as one argument goes to 0, the others being 1."""
    points = np.ones((2, count))
    points[:, argument] = (1e-4, 1e-8)
    far, near = np.abs(at(points))
    if not (np.isfinite(far) and near > 10.0 * far):
        return 0.0
    return math.log(near / far) / math.log(1e4) if np.isfinite(near) and far > 0 else math.inf
