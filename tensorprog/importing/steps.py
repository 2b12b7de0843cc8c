"""Which rule lowers which primitive: one small function for each, over the operations on arrays of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, assert_never

import numpy as np

from tensorprog.importing.context import Context
from tensorprog.importing.elementwise import elementwise
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.places import (
    as_vector,
    full_vector,
    indexed,
    inserted,
    joined_sites,
    part_of_own,
    reshaped,
    transpose,
)
from tensorprog.importing.products import Side, dot
from tensorprog.importing.reductions import reduced
from tensorprog.importing.rules import ruled
from tensorprog.importing.sizes import Sizes
from tensorprog.importing.values import Known, Own, Par, Scal, Value, Vec, sites
from tensorprog.importing.windows import convolution, pooled
from tensorprog.importing.writing import write, write_scalar
from tensorprog.tracing.values import gather


class Reading:
    """One equation at all widths, as rules read it."""

    def __init__(
        self, context: Context, parameters: Parameters, equations: Sequence[Any], sizes: list[tuple[Sizes, ...]],
        after: tuple[Sizes, ...], label: str | None, jaxpr: Any,
    ):  # fmt: skip
        self.context, self.parameters, self.equations, self.label = context, parameters, equations, label
        self.sizes, self.after, self.jaxpr = sizes, after, jaxpr
        self.params = equations[0].params
        self.name = equations[0].primitive.name

    def elementwise(self, values: list[Value]) -> Value:
        shape = [s[0] for s in self.after]
        return elementwise(
            self.context,
            self.parameters,
            self.equations[0].primitive,
            self.name,
            self.params,
            values,
            shape,
            self.label,
        )


# ---- rules


def sliced(context: Context, parameters: Parameters, x: Value, places: Sequence[slice]) -> Value:
    match x:
        case Vec():
            return indexed(context, x, places)
        case Scal():
            whole = all(p == slice(None) for p in places)
            if whole:
                return x
            kept = [slice(None) if d == 1 else p for d, p in zip(x.shape, places, strict=True)]
            shape = tuple(len(range(d)[p]) for d, p in zip(x.shape, kept, strict=True))
            s = write_scalar(context, x)
            want = tuple(d for d in shape if d != 1)
            s = s.rearranged(lambda a: a.reshape(x.shape)[tuple(kept)].reshape(want), "{}[…]")
            return replace(x, shape=shape, s=s, op=None)
        case Par():
            return _sliced_parameter(context, parameters, x, places)
        case Known():
            raise AssertionError("numbers are evaluated")
        case never:
            assert_never(never)


def _sliced_parameter(context: Context, parameters: Parameters, x: Par, places: Sequence[slice]) -> Value:
    own = [a for axis in x.axes for a in axis if isinstance(parameters.atom(x, a), Own)]
    axes: list[tuple[int, ...]] = []
    picked = list(x.picked)
    for axis, place in zip(x.axes, places, strict=True):
        if place == slice(None) or not axis:
            axes.append(axis)
            continue
        size = parameters.atoms[x.leaf][axis[0]][0]
        chosen = range(size)[place]
        if len(axis) == 1 and len(chosen) == size:
            axes.append(axis)
        elif len(axis) == 1 and len(chosen) == 1 and axis[0] not in own and len(own) > 1:
            picked.append((axis[0], chosen[0]))
            axes.append(())
        elif len(own) <= 1:
            return indexed(context, as_vector(context, parameters, x), places)
        else:
            context.fail(
                f"{parameters.name(x)} is cut along its axes", "cut what it makes, W @ x, into equal parts instead"
            )
    return replace(x, axes=tuple(axes), picked=tuple(picked))


def without(context: Context, x: Value, axes: Sequence[int]) -> Value:
    """The array without unit axes."""
    match x:
        case Vec():
            if any(x.axes[k] for k in axes):
                context.fail("an axis of size 1 that is the features of an input", "read it through a weight first")
            return replace(
                x, axes=tuple(a for k, a in enumerate(x.axes) if k not in axes), v=write(context, x), op=None
            )
        case Scal():
            shape = tuple(d for k, d in enumerate(x.shape) if k not in axes)
            return replace(x, shape=shape, s=write_scalar(context, x), op=None)
        case Par():
            return replace(x, axes=tuple(a for k, a in enumerate(x.axes) if k not in axes))
        case Known():
            return Known(tuple(np.squeeze(np.asarray(a), tuple(axes)) for a in x.arrays))
        case never:
            assert_never(never)


def expanded(context: Context, x: Value) -> Value:
    """The array with a unit axis in front."""
    if isinstance(x, Known):
        return Known(tuple(np.asarray(a)[None] for a in x.arrays))
    rank = len(x.shape) if isinstance(x, Scal) else len(x.axes)
    return inserted(context, x, [0] * (rank + 1), range(1, rank + 1))


def _broadcast(step: Reading, values: list[Value]) -> Value:
    return inserted(step.context, values[0], step.params["shape"], step.params["broadcast_dimensions"])


def _reshape(step: Reading, values: list[Value]) -> Value:
    if step.params.get("dimensions") is not None:
        step.context.fail("a reshape with an order of dimensions", "transpose first")
    x = values[0]
    unit = lambda sizes: set(sizes) == {1}
    old, new = [s for s in step.sizes[0] if not unit(s)], [s for s in step.after if not unit(s)]
    if old == new and not isinstance(x, Scal):  # unit axes come and go
        kept = [k for k, s in enumerate(step.sizes[0]) if not unit(s)]
        gone = [k for k, s in enumerate(step.sizes[0]) if unit(s)]
        if not (isinstance(x, Vec) and any(x.axes[k] for k in gone)):
            squeezed = without(step.context, x, gone)
            places = [k for k, s in enumerate(step.after) if not unit(s)]
            assert len(places) == len(kept)
            return inserted(step.context, squeezed, [s[0] for s in step.after], places)
    return reshaped(step.context, step.parameters, x, list(step.sizes[0]), list(step.after))


def _transpose(step: Reading, values: list[Value]) -> Value:
    return transpose(step.context, values[0], step.params["permutation"])


def _squeeze(step: Reading, values: list[Value]) -> Value:
    return without(step.context, values[0], [k % len(step.sizes[0]) for k in step.params["dimensions"]])


def _expand(step: Reading, values: list[Value]) -> Value:
    rank = len(step.after)
    new = [k % rank for k in step.params["dimensions"]]
    return inserted(step.context, values[0], [s[0] for s in step.after], [k for k in range(rank) if k not in new])


def _slice(step: Reading, values: list[Value]) -> Value:
    each = [e.params for e in step.equations]
    rank = len(step.sizes[0])
    strides = step.params["strides"] or (1,) * rank
    places: list[slice] = []
    x = values[0]
    cut: tuple[int, Sizes, Sizes] | None = None
    for k in range(rank):
        start = tuple(p["start_indices"][k] for p in each)
        stop = tuple(p["limit_indices"][k] for p in each)
        if set(start) == {0} and stop == step.sizes[0][k] and strides[k] == 1:
            places.append(slice(None))
        elif len(set(step.sizes[0][k])) > 1:
            cut = (k, start, stop)
            places.append(slice(None))
        else:
            places.append(slice(start[0], stop[0], strides[k]))
    if cut is not None:
        x = as_vector(step.context, step.parameters, x) if isinstance(x, Par) else x
        if not isinstance(x, Vec) or strides[cut[0]] != 1:
            step.context.fail("an array is cut along the width", "cut it into equal parts, jnp.split(x, k, axis=-1)")
        x = part_of_own(step.context, x, *cut)
    return sliced(step.context, step.parameters, x, places)


def _split(step: Reading, values: list[Value]) -> list[Value]:
    axis = step.params["axis"]
    sizes = list(zip(*(e.params["sizes"] for e in step.equations), strict=True))
    rank, start = len(step.sizes[0]), (0,) * len(step.equations)
    found: list[Value] = []
    for size in sizes:
        stop = tuple(a + b for a, b in zip(start, size, strict=True))
        x = values[0]
        if len(set(step.sizes[0][axis])) > 1:
            x = as_vector(step.context, step.parameters, x) if isinstance(x, Par) else x
            assert isinstance(x, Vec), "scalars have no axis that grows"
            found.append(part_of_own(step.context, x, axis, start, stop))
        else:
            places = [slice(None)] * rank
            places[axis] = slice(start[0], stop[0])
            found.append(sliced(step.context, step.parameters, x, places))
        start = stop
    return found


def _rev(step: Reading, values: list[Value]) -> Value:
    places = [slice(None, None, -1) if k in step.params["dimensions"] else slice(None) for k in range(len(step.after))]
    return sliced(step.context, step.parameters, values[0], places)


def _concatenate(step: Reading, values: list[Value]) -> Value:
    return concatenated(step.context, step.parameters, values, step.sizes, step.params["dimension"])


def concatenated(
    context: Context, parameters: Parameters, values: list[Value], sizes: Sequence[Any], axis: int
) -> Value:
    given = [as_vector(context, parameters, v) if isinstance(v, Par) else v for v in values]
    if any(isinstance(v, Vec) for v in given):
        like = next(v for v in given if isinstance(v, Vec))
        zero = lambda v: isinstance(v, Known) and context.is_zero(v)
        full: list[Vec] = []
        for v, own in zip(given, sizes, strict=True):
            if not isinstance(v, Vec) and not zero(v):
                context.fail("vectors and numbers are laid end to end", "add numbers after the product with a weight")
            full.append(v if isinstance(v, Vec) else _zeros(context, like, own))
        return joined_sites(context, full, sizes, axis)
    context.fail("scalars are laid end to end", "give data as one tp.Data")


def _zeros(context: Context, like: Vec, sizes: Sequence[Sizes]) -> Vec:
    """Zero vectors of the type of another."""
    axes = tuple(
        like.axes[k] if any(isinstance(a, Own) for a in like.axes[k]) else (s[0],) if set(s) != {1} else ()
        for k, s in enumerate(sizes)
    )
    full = full_vector(context, like, [(1,) * len(context.trials)] * len(sizes))
    v = gather([write(context, full)], lambda source: np.full(sites(axes), -1), "zeros({})")
    return replace(full, axes=axes, v=v, op=None)


def _pad(step: Reading, values: list[Value]) -> Value:
    x = values[0]
    config = step.params["padding_config"]
    x = as_vector(step.context, step.parameters, x) if isinstance(x, Par) else x
    if (
        not step.context.is_zero(values[1])
        or not isinstance(x, Vec)
        or any(low < 0 or high < 0 for low, high, _ in config)
    ):
        step.context.fail("a padding that is not of zeros around vectors", "pad vectors with zeros")
    x = full_vector(
        step.context, x, [s if c != (0, 0, 0) else (1,) * len(s) for s, c in zip(step.sizes[0], config, strict=True)]
    )
    axes, wide = [], []
    tables: list[np.ndarray] = []
    for axis, (low, high, inside), size in zip(x.axes, config, step.sizes[0], strict=True):
        if (low, high, inside) == (0, 0, 0):
            axes.append(axis)
            tables += [np.arange(a) for a in axis if isinstance(a, int)]
            continue
        if any(isinstance(a, Own) for a in axis):
            step.context.fail("the width is padded", "pad sites only")
        table = np.full(low + (size[0] - 1) * (inside + 1) + 1 + high, -1)
        table[low + np.arange(size[0]) * (inside + 1)] = np.arange(size[0])
        tables.append(table)
        axes.append((len(table),))
        wide.append(axis == ())
    before = tuple(
        d
        for axis, c in zip(x.axes, config, strict=True)
        for d in ([a for a in axis if isinstance(a, int)] or ([1] if c != (0, 0, 0) else []))
    )

    def rearrange(source: np.ndarray) -> np.ndarray:
        source = source.reshape(before)
        for k, table in enumerate(tables):
            outside = (table < 0).reshape(-1, *(1,) * (source.ndim - k - 1))
            source = np.where(outside, -1, np.take(source, table, k))
        return source

    v = gather([write(step.context, x)], rearrange, "pad({})")
    return replace(x, axes=tuple(axes), v=v, op=None)


def _dot(step: Reading, values: list[Value]) -> Value:
    (lc, rc), (lb, rb) = step.params["dimension_numbers"]
    left = Side(values[0], step.sizes[0], tuple(lc), tuple(lb))
    right = Side(values[1], step.sizes[1], tuple(rc), tuple(rb))
    return dot(step.context, step.parameters, left, right, step.params)


def _reduce(step: Reading, values: list[Value]) -> Value:
    x = values[0]
    x = as_vector(step.context, step.parameters, x) if isinstance(x, Par) else x
    assert not isinstance(x, Known), "numbers are evaluated"
    return reduced(step.context, step.name, x, tuple(step.params["axes"]), step.sizes[0])


def _custom(step: Reading, values: list[Value]) -> Value:
    return ruled(step.context, step.parameters, step.jaxpr, step.equations[0], values, [s[0] for s in step.after])


def _convolution(step: Reading, values: list[Value]) -> Value:
    return convolution(step.context, step.parameters, values, step.sizes, step.after, step.params)


def _pool(step: Reading, values: list[Value]) -> Value:
    x = values[0]
    if not isinstance(x, Vec):
        step.context.fail("windows over data", "prepare the data before the network")
    return pooled(step.context, step.name, x, step.sizes[0], step.params)


RULES: dict[str, Callable[[Reading, list[Value]], Any]] = {
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "transpose": _transpose, "squeeze": _squeeze,
    "expand_dims": _expand, "slice": _slice, "split": _split, "rev": _rev, "concatenate": _concatenate, "pad": _pad,
    "dot_general": _dot, "custom_jvp_call": _custom, "conv_general_dilated": _convolution,
    "reduce_window_sum": _pool, "reduce_window_max": _pool,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), _reduce),
}  # fmt: skip
