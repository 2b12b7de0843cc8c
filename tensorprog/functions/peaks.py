"""Narrow peaks between the nodes of a grid: climbed to, measured, and integrated on a grid of their own size.

On a grid of fixed steps a peak that is narrower than a step is a number far below any rounding, however large its
integral is; draws miss it too. But a function that has one mostly rises towards it everywhere, if only from 1e-200.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter

Array = np.ndarray
CLIMBED, MOST = 80, 8
NODES, SIDE = (41, 31), 9.0
"""Nodes an axis of the two grids on a peak, and where they end, in widths."""


class Peak(NamedTuple):
    """E f restricted to a box: its value, an error, E |f|, the box's middle and half sides."""

    value: float
    error: float
    size: float
    middle: Array
    half: Array

    def holds(self, points: Array) -> Array:
        """Which of points (dimensions, m) lie in the box."""
        return np.asarray((np.abs(points - self.middle[:, None]) <= self.half[:, None]).all(0))


def peaks(fn: Callable[[Array], Array], heights: Array, nodes: Array) -> list[Peak]:
    """The narrow peaks of |f(z)| φ(z) beside the nodes of an even grid, by log |f| φ there; fn takes points
    (dimensions, m). Where boxes meet, the one that holds most."""
    step = float(nodes[1] - nodes[0])
    highest = (heights == maximum_filter(heights, 3)) & np.isfinite(heights)
    order = np.argsort(-heights[highest])[:MOST]
    found: list[Peak] = []
    for start in nodes[np.argwhere(highest)[order]]:
        top = _climbed(fn, start, step / 2)
        half = SIDE * _widths(fn, top)
        if half.min() < SIDE * step and not any((np.abs(top - p.middle) < 1e-3 * half).all() for p in found):
            (value, whole, edge), (coarse, _, _) = (_grid(fn, top, half, count) for count in NODES)
            rounding = 16 * np.finfo(float).eps * whole
            found.append(Peak(value, 3 * abs(value - coarse) + 100 * edge + rounding, whole, top, half))
    kept: list[Peak] = []
    for own in sorted(found, key=lambda p: -p.size):
        if all((np.abs(own.middle - p.middle) > own.half + p.half).any() for p in kept):
            kept.append(own)
    return kept


def _height(fn: Callable[[Array], Array], points: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.fmax(np.log(np.abs(fn(points))) - (points**2).sum(0) / 2, -np.inf)


def _climbed(fn: Callable[[Array], Array], start: Array, length: float) -> Array:
    size = len(start)
    towards = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * size, indexing="ij"), -1).reshape(-1, size).T
    top = start
    for _ in range(CLIMBED):
        tried = top[:, None] + length * towards
        best = tried[:, _height(fn, tried).argmax()]
        top, length = best, length / 2 if (best == top).all() else length
    return top


def _widths(fn: Callable[[Array], Array], top: Array) -> Array:
    """How far from the top |f| φ falls by exp(½), along each axis; of a Gaussian its deviation."""
    far = np.geomspace(1e-8, 4.0, 240)
    found = []
    for axis in np.eye(len(top)):
        level = _height(fn, top[:, None] + axis[:, None] * np.concatenate([[0.0], far, -far])[None])
        with np.errstate(invalid="ignore"):
            low = (level[0] - level[1:].reshape(2, -1) > 0.5).any(0)
        found.append(far[low.argmax()] if low.any() else far[-1])
    return np.array(found)


def _grid(fn: Callable[[Array], Array], middle: Array, half: Array, nodes: int) -> tuple[float, float, float]:
    """The trapezoidal rule on a box: E f, E |f|, and what the nodes at its edge hold."""
    unit = np.linspace(-1.0, 1.0, nodes)
    points = np.stack([a.reshape(-1) for a in np.meshgrid(*[unit] * len(middle), indexing="ij")])
    z = middle[:, None] + half[:, None] * points
    weights = np.exp(-(z**2).sum(0) / 2) * np.prod(half * (unit[1] - unit[0]) / np.sqrt(2 * np.pi))
    values = weights * fn(z)
    sizes = np.abs(values)
    return float(values.sum()), float(sizes.sum()), float(sizes[(np.abs(points) == 1.0).any(0)].sum())
