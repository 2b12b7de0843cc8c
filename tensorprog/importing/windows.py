"""Convolutions and pooling: windows over sites, by one table for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from tensorprog.importing.context import Context
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.places import as_vector, full_vector, transpose
from tensorprog.importing.sizes import Sizes
from tensorprog.importing.values import Atom, Op, Own, Par, Value, Vec
from tensorprog.importing.writing import plain_vector, write
from tensorprog.show import PATCHES, SPREAD
from tensorprog.tracing.sites import reshape
from tensorprog.tracing.sites import sum as site_sum
from tensorprog.tracing.values import Vector, nonlin
from tensorprog.tracing.windows import gathered, reads


def table(size: int, window: int, stride: int, pads: tuple[int, int], dilation: int, spread: int = 1) -> np.ndarray:
    """(windows, window): the site that each place reads, -1 for zeros around the sites and between them."""
    whole = (size - 1) * spread + 1
    count = (whole + sum(pads) - (window - 1) * dilation - 1) // stride + 1
    index = np.arange(count)[:, None] * stride + np.arange(window) * dilation - pads[0]
    inside = (index >= 0) & (index < whole) & (index % spread == 0)
    return np.where(inside, index // spread, -1)


def _text(sizes: Sequence[int], tables: Sequence[np.ndarray], window: Sequence[int], strides: Sequence[int],
          dilation: Sequence[int]) -> str:  # fmt: skip
    """3 × 3, strides 2, SAME: the padding by its name where it has one."""
    named = next(
        (
            p for p in ("SAME", "VALID")
            if all(
                (p == "SAME" or (w - 1) * d + 1 <= n) and np.array_equal(t, reads(n, w, s, p, d))
                for n, t, w, s, d in zip(sizes, tables, window, strides, dilation, strict=True)
            )
        ), None,
    )  # fmt: skip
    parts = [" × ".join(map(str, window))]
    for name, value in (("strides", strides), ("dilation", dilation)):
        if any(v != 1 for v in value):
            parts.append(f"{name} {value[0] if len(set(value)) == 1 else ' × '.join(map(str, value))}")
    return ", ".join([*parts, named or "padded"])


def convolution(
    context: Context, parameters: Parameters, values: Sequence[Value], sizes: Sequence[tuple[Sizes, ...]],
    after: tuple[Sizes, ...], params: dict[str, Any],
) -> Vec:  # fmt: skip
    """conv_general_dilated: a weight with a window, of the patches of a vector."""
    x, kernel = values
    if not isinstance(x, Vec) or not isinstance(kernel, Par):
        context.fail("a convolution that is no parameter over a vector", "filter data before the network")
    numbers = params["dimension_numbers"]
    (xb, xf, *xs), (ko, ki, *ks), (ob, of, *os) = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    window = [sizes[1][k][0] for k in ks]
    trials = (1,) * len(context.trials)
    x = full_vector(context, x, [s if k in xs else trials for k, s in enumerate(sizes[0])])
    x = transpose(context, replace(x, v=plain_vector(context, x), op=None, leaf=None), (xb, *xs, xf))
    assert isinstance(x, Vec)
    if any(isinstance(a, Own) for axis in x.axes[:-1] for a in axis):
        context.fail("a convolution over the width", "give sites to the window and the width to the features")
    if params["batch_group_count"] != 1:
        context.fail("a convolution with groups of examples", "leave batch_group_count at 1")
    tables, text, spread = _conv_tables(context, x, sizes[0], xs, window, params)
    lead = sum(isinstance(a, int) for a in x.axes[0])
    v = write(context, x)
    full = tuple(sizes[0][k][0] for k in xs)
    v = v if v.sites[lead:] == full else reshape(v, (*v.sites[:lead], *full))
    patches = gathered(v, tables, f"{SPREAD if spread else PATCHES}{{}}; {text})")
    patches, keep = _narrow(patches, lead, [len(t) for t in tables], window)
    if context.ratio(_groups(context, params, sizes, xf, ki)) is not None or _is_depthwise(sizes, xf, ki):
        return _depthwise(context, parameters, x, kernel, patches, lead, tables, window, (ko, ki, ks), (ob, of, os))
    if sizes[0][xf] != sizes[1][ki]:
        context.fail("a convolution in groups of channels", "use feature groups of one channel each, or one group")
    cols = _single(context, kernel, ki, "in")
    rows = kernel.axes[ko][0] if kernel.axes[ko] else None
    used = [kernel.axes[k][0] for k in ks if kernel.axes[k]]
    matrix, growth, cause = parameters.matrix(kernel, [], used, rows, cols)
    y = matrix.over_windows(patches) if used else matrix @ patches
    own: tuple[Atom, ...] = () if rows is None else (Own(parameters.atoms[kernel.leaf][rows]),)
    origins = frozenset() if rows is None else frozenset({(kernel.leaf, parameters.sources[kernel.leaf][rows])})
    axes = (x.axes[0], *keep, own)
    made = Vec(axes, y, None, x.order + growth + kernel.order, cause or x.cause, origins, kernel.leaf)
    back = [0] * (len(os) + 2)
    for k, place in enumerate((ob, *os, of)):
        back[place] = k
    turned = transpose(context, made, back)
    assert isinstance(turned, Vec)
    if kernel.coef == 1.0:
        return turned
    return replace(turned, v=None, leaf=None, op=Op(None, (), [turned, kernel.coef], "mul"))


def _groups(context: Context, params: dict[str, Any], sizes: Any, xf: int, ki: int) -> Sizes:
    return tuple(a // b for a, b in zip(sizes[0][xf], sizes[1][ki], strict=True))


def _is_depthwise(sizes: Any, xf: int, ki: int) -> bool:
    return set(sizes[1][ki]) == {1} and set(sizes[0][xf]) != {1}


def _single(context: Context, kernel: Par, axis: int, what: str) -> int:
    if len(kernel.axes[axis]) != 1:
        context.fail(f"a convolution whose {what}put channels are taken apart", "keep channels as one axis")
    return kernel.axes[axis][0]


def _conv_tables(
    context: Context, x: Vec, sizes: tuple[Sizes, ...], xs: Sequence[int], window: Sequence[int], params: dict[str, Any]
) -> tuple[list[np.ndarray], str, bool]:
    strides, pads = params["window_strides"], params["padding"]
    dilation, spread = params["rhs_dilation"], params["lhs_dilation"]
    if any(low < 0 or high < 0 for low, high in pads):
        context.fail("a convolution with negative padding", "cut the sites off before")
    full = [sizes[k][0] for k in xs]
    tables = [table(*each) for each in zip(full, window, strides, pads, dilation, spread, strict=True)]
    if any(s != 1 for s in spread):
        return tables, f"{' × '.join(map(str, window))}, strides {spread[0]}", True
    return tables, _text(full, tables, window, strides, dilation), False


def _narrow(
    v: Vector, lead: int, counts: Sequence[int], window: Sequence[int]
) -> tuple[Vector, list[tuple[Atom, ...]]]:
    """Patches without unit axes, and the axes of the windows."""
    shape = (*v.sites[:lead], *(c for c in counts if c != 1), *(w for w in window if w != 1))
    return v if v.sites == shape else reshape(v, shape), [(c,) if c != 1 else () for c in counts]


def _depthwise(
    context: Context, parameters: Parameters, x: Vec, kernel: Par, patches: Vector, lead: int,
    tables: Sequence[np.ndarray], window: Sequence[int], kernel_axes: Any, out_axes: Any,
) -> Vec:  # fmt: skip
    """One filter for each channel: y_α[s] = Σ_o w_α[o] x_α[s + o], an elementwise product with a vector."""
    (ko, _, ks), (ob, of, os) = kernel_axes, out_axes
    w = as_vector(context, parameters, kernel)
    w = transpose(context, replace(w, v=plain_vector(context, w), op=None), (*ks, ko, kernel_free(kernel, ko, ks)))
    assert isinstance(w, Vec)
    mine = next(a for axis in w.axes for a in axis if isinstance(a, Own))
    theirs = next(a for axis in x.axes for a in axis if isinstance(a, Own))
    if mine != theirs or not mine.is_wide:
        context.fail("a convolution in groups of channels", "use feature groups of one channel each, or one group")
    product = patches * write(context, w)
    used = sum(d != 1 for d in window)
    y = site_sum(product, tuple(range(len(product.sites) - used, len(product.sites)))) if used else product
    keep: list[tuple[Atom, ...]] = [(len(t),) if len(t) != 1 else () for t in tables]
    made = Vec(
        (x.axes[0], *keep, (mine,)), y, None, x.order + w.order, w.cause if w.order else x.cause, x.origins | w.origins
    )
    back = [0] * (len(os) + 2)
    for k, place in enumerate((ob, *os, of)):
        back[place] = k
    turned = transpose(context, made, back)
    assert isinstance(turned, Vec)
    return turned


def kernel_free(kernel: Par, ko: int, ks: Sequence[int]) -> int:
    """The kernel's axis that is neither window nor output channels."""
    return next(k for k in range(len(kernel.axes)) if k != ko and k not in ks)


def pooled(context: Context, name: str, x: Vec, sizes: tuple[Sizes, ...], params: dict[str, Any]) -> Vec:
    """Sums and maxima of windows."""
    window, strides, pads = params["window_dimensions"], params["window_strides"], params["padding"]
    dilation, spread = params["window_dilation"], params["base_dilation"]
    active = [k for k, w in enumerate(window) if w != 1 or strides[k] != 1 or pads[k] != (0, 0)]
    if any(isinstance(a, Own) for k in active for a in x.axes[k]):
        context.fail("a window over the width", "pool over sites")
    trials = (1,) * len(context.trials)
    x = full_vector(context, x, [s if k in active else trials for k, s in enumerate(sizes)])
    rest = [k for k in range(len(window)) if k not in active]
    turned = transpose(context, replace(x, v=plain_vector(context, x), op=None, leaf=None), (*rest, *active))
    assert isinstance(turned, Vec), "it was a vector"
    x = turned
    tables = [table(sizes[k][0], window[k], strides[k], pads[k], dilation[k], spread[k]) for k in active]
    if name == "reduce_window_max" and any((t < 0).any() for t in tables):
        context.fail("a maximum over windows that reach over the edge", 'pool with padding="VALID"')
    text = _text([sizes[k][0] for k in active], tables, *([c[k] for k in active] for c in (window, strides, dilation)))
    lead = sum(isinstance(a, int) for axis in x.axes[: len(rest)] for a in axis)
    full = tuple(sizes[k][0] for k in active)
    v = write(context, x)
    v = v if v.sites[lead:] == full else reshape(v, (*v.sites[:lead], *full))
    inside = gathered(v, tables, f"{PATCHES}{{}}; {text})")
    count = len(active)
    if name == "reduce_window_sum":
        y = site_sum(inside, tuple(range(lead + count, lead + 2 * count)))
    else:
        y = nonlin(jnp.max, inside, over=tuple(range(lead + count, lead + 2 * count)))
    shape = tuple(d for k, d in enumerate(y.sites) if k < lead or d != 1)
    y = y if shape == y.sites else reshape(y, shape)
    axes = (*x.axes[: len(rest)], *((len(t),) if len(t) != 1 else () for t in tables))
    order = [*rest, *active]
    turned = transpose(context, replace(x, axes=axes, v=y), [order.index(k) for k in range(len(order))])
    assert isinstance(turned, Vec)
    return turned
