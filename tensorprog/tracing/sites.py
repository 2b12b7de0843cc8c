"""Operations on site axes: the fixed axes of a vector (time, height, token, …) before its one wide axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tensorprog.tracing.values import Vector, gather, sum_over


def _axes(x: Vector, axis: int | Sequence[int] | None, what: str) -> tuple[int, ...]:
    """Site axes counted from 0."""
    count = len(x.sites)
    axes = range(count) if axis is None else (axis,) if isinstance(axis, int) else axis
    for a in axes:
        if not -count <= a < count:
            x.builder.fail(f"{what}(…, axis={axis})", f"axis {a} is not among the site axes {x.sites}", "count from 0")
    return tuple(sorted(a % count for a in axes))


def reshape(x: Vector, sites: int | Sequence[int]) -> Vector:
    """The same vectors with another shape of sites."""
    shape = (sites,) if isinstance(sites, int) else tuple(sites)
    return gather([x], lambda source: source.reshape(shape), f"reshape({{}}, {shape})")


def stack(xs: Sequence[Vector], axis: int = 0) -> Vector:
    """Vectors of equal sites along a new site axis."""
    return gather(list(xs), lambda *sources: np.stack(sources, axis), "stack({})" if axis == 0 else f"stack({{}}; {axis})")


def concat(xs: Sequence[Vector], axis: int = 0) -> Vector:
    """Vectors laid end to end along a site axis."""
    text = "concat({})" if axis == 0 else f"concat({{}}; {axis})"
    return gather(list(xs), lambda *sources: np.concatenate(sources, axis), text)


def sum(x: Vector, axis: int | Sequence[int] | None = None) -> Vector:  # noqa: A001 (the field's name)
    """Σ over site axes (all of them by default)."""
    return sum_over(x, _axes(x, axis, "sum"))


def mean(x: Vector, axis: int | Sequence[int] | None = None) -> Vector:
    """The mean over site axes (all of them by default)."""
    axes = _axes(x, axis, "mean")
    return sum_over(x, axes).scaled(1.0 / math.prod(x.sites[a] for a in axes))
