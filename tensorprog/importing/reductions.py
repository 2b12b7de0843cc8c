"""Sums over the width become Moments, sums over sites sums of sites; maxima and windows over sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from tensorprog.importing.context import Context
from tensorprog.importing.places import moved
from tensorprog.importing.sizes import Sizes
from tensorprog.importing.values import Atom, Op, Own, Scal, Vec, own_axis
from tensorprog.importing.writing import averaged, plain_vector, write
from tensorprog.tracing.run import scalar
from tensorprog.tracing.sites import sum as site_sum
from tensorprog.tracing.values import nonlin

_WHOLE = {
    "reduce_sum": jnp.sum, "reduce_max": jnp.max, "reduce_min": jnp.min, "reduce_prod": jnp.prod, "argmax": jnp.argmax,
    "reduce_and": jnp.all, "reduce_or": jnp.any,
}  # fmt: skip


def reduced(context: Context, name: str, x: Vec | Scal, axes: Sequence[int], sizes: Sequence[Sizes]) -> Vec | Scal:
    """A reduction over array axes."""
    if isinstance(x, Scal):
        return _scalars(context, name, x, axes, sizes)
    place = own_axis(x.axes)
    if place is not None and place in axes:
        return _over_width(context, name, x, axes, sizes, place)
    if name == "reduce_sum":
        return _site_sum(context, x, axes, sizes)
    return _site_extreme(context, name, x, axes)


def repeats(
    context: Context, axes: Sequence[int], empty: Sequence[bool], sizes: Sequence[Sizes]
) -> tuple[float, float]:
    """c·n^p, how often a value is added that is constant along some axes."""
    c, p = 1.0, 0.0
    for k, missing in zip(axes, empty, strict=True):
        if missing:
            r = context.ratio(sizes[k])
            c, p = (c * float(r), p + 1) if r is not None else (c * sizes[k][0], p)
    return c, p


def _scalars(context: Context, name: str, x: Scal, axes: Sequence[int], sizes: Sequence[Sizes]) -> Scal:
    if name not in _WHOLE:
        context.fail(f"{name} of scalars", "write it with jnp.sum, jnp.max, or functions of whole arrays")
    shape = tuple(d for k, d in enumerate(x.shape) if k not in axes)
    fn = _WHOLE[name]
    made = Scal(shape, None, Op(partial(fn, axis=tuple(axes)), (), [replace_order(x)], name), x.order, x.cause)
    if name == "reduce_sum":
        c, p = repeats(context, axes, [x.shape[k] == 1 for k in axes], sizes)
        if (c, p) != (1.0, 0.0):
            made = Scal(shape, None, Op(jnp.multiply, (), [replace_order(made), c], "mul"), x.order + p, x.cause)
    elif x.order and name not in ("reduce_max", "reduce_min"):
        context.diverges(x, f"what enters {name}")
    return made


def replace_order(x: Any) -> Any:
    """The value at order 0."""
    return x if not x.order else replace(x, order=0.0)


def _over_width(
    context: Context, name: str, x: Vec, axes: Sequence[int], sizes: Sequence[Sizes], place: int
) -> Scal:  # fmt: skip
    if name != "reduce_sum":
        context.fail(
            f"{name} over the width: it has no limit as an average has", "take averages over the width, jnp.mean"
        )
    inside = next(a for a in x.axes[place] if isinstance(a, Own))
    if not inside.is_wide:
        context.fail(
            "an average over the features of an input or over the rows of a readout",
            "normalise the data before the network; outside of the network apply the function to what tp.apply gives",
        )  # fmt: skip
    r = context.ratio(inside.sizes)
    assert r is not None, "a wide axis is a multiple of the width"
    s = averaged(context, replace_order(x))
    # The Moment's sites are those of x; what is summed of them goes in one function of scalars.
    summed, count = [], 0
    shape: list[int] = []
    for k, axis in enumerate(x.axes):
        fixed = [a for a in axis if isinstance(a, int)]
        if k in axes:
            summed += range(count, count + len(fixed))
        else:
            shape.append(math.prod(fixed))
        count += len(fixed)
    if summed:
        s = scalar(partial(jnp.sum, axis=tuple(summed)), s)
    c, p = repeats(context, axes, [not x.axes[k] for k in axes], sizes)
    made = Scal(tuple(shape), s, None, x.order + 1 + p, x.cause or "it is a sum over the width")
    factor = c * float(r)
    if factor == 1.0:
        return made
    return Scal(made.shape, None, Op(jnp.multiply, (), [replace_order(made), factor], "mul"), made.order, made.cause)


def _site_sum(context: Context, x: Vec, axes: Sequence[int], sizes: Sequence[Sizes]) -> Vec:
    v = write(context, x)
    count, summed = 0, []
    kept: list[tuple[Atom, ...]] = []
    for k, axis in enumerate(x.axes):
        fixed = sum(isinstance(a, int) for a in axis)
        if k in axes:
            summed += range(count, count + fixed)
        else:
            kept.append(axis)
        count += fixed
    made = moved(x, tuple(kept), site_sum(v, tuple(summed)) if summed else v)
    c, p = repeats(context, axes, [not x.axes[k] for k in axes], sizes)
    if (c, p) == (1.0, 0.0):
        return made
    return replace(made, v=None, leaf=None, op=Op(None, (), [replace_order(made), c], "mul"), order=made.order + p)


def _site_extreme(context: Context, name: str, x: Vec, axes: Sequence[int]) -> Vec:
    if name not in _WHOLE:
        context.fail(f"{name} over sites", "write jnp.max, jnp.min, jnp.sum or jnp.mean over sites")
    v = plain_vector(context, x)
    count, over = 0, []
    for k, axis in enumerate(x.axes):
        fixed = sum(isinstance(a, int) for a in axis)
        over += range(count, count + fixed) if k in axes else ()
        count += fixed
    kept = tuple(axis for k, axis in enumerate(x.axes) if k not in axes)
    fn = _WHOLE[name]
    return replace(moved(x, kept, nonlin(fn, v, over=tuple(over)) if over else v), leaf=None)
