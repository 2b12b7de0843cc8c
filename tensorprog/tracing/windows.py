"""Windows over site axes: padding, patches, pooling, and convolutions, which are products with patches.

A window acts on the last site axes, as many as it has itself; axes before those are kept, like a batch. What a place of
a window reads is a table for each axis (windows × places), so that all of this is one Gather, and -1 in a table is the
zero vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorprog.ir import Sites
from tensorprog.show import PATCHES, SPREAD
from tensorprog.tracing.builder import Builder, failure
from tensorprog.tracing.declare import Matrix
from tensorprog.tracing.sites import sum as site_sum
from tensorprog.tracing.sites import vector_of
from tensorprog.tracing.values import Vector, gather

Sizes = int | Sequence[int]
"""One size for every axis of a window, or one for each."""

PADDINGS = ("SAME", "VALID", "CIRCULAR")


# ---- which sites a window reads


def reads(size: int, window: int, stride: int, padding: str, dilation: int) -> np.ndarray:
    """(windows, window): the site that each place reads, -1 for the zero around them; padding as XLA has it."""
    reach = (window - 1) * dilation + 1
    count, before = (size - reach) // stride + 1, 0
    if padding != "VALID":
        count = -(-size // stride)
        before = max((count - 1) * stride + reach - size, 0) // 2
    index = np.arange(count)[:, None] * stride + np.arange(window) * dilation - before
    if padding == "CIRCULAR":
        return index % size
    return np.where((index >= 0) & (index < size), index, -1)


def reads_spread(size: int, window: int, stride: int, padding: str) -> np.ndarray:
    """The same for sites with stride − 1 zeros between them, padded as `jax.lax.conv_transpose` does, in steps of 1."""
    total, before = window + stride - 2, window - 1
    if padding == "VALID":
        total += max(window - stride, 0)
    elif stride <= window - 1:
        before = -(-total // 2)
    count = (size - 1) * stride + 1 + total - window + 1
    index = np.arange(count)[:, None] + np.arange(window) - before
    inside = (index % stride == 0) & (index >= 0) & (index < size * stride)
    return np.where(inside, index // stride, -1)


def gathered(x: Vector, tables: Sequence[np.ndarray], text: str) -> Vector:
    """x over sites (*lead, *windows, *window), by one table for each of the last axes."""
    lead = len(x.sites) - len(tables)

    def rearrange(source: np.ndarray) -> np.ndarray:
        for k, table in enumerate(tables):
            axis = lead + 2 * k  # each axis before this one has become two
            outside = (table < 0).reshape(*table.shape, *(1,) * (source.ndim - axis - 1))
            source = np.where(outside, -1, np.take(source, table, axis))
        pairs = range(lead, lead + 2 * len(tables), 2)
        return source.transpose(*range(lead), *pairs, *(axis + 1 for axis in pairs))

    return gather([x], rearrange, text)


# ---- arguments


def _sizes(b: Builder, value: Any, name: str, count: int, what: str) -> Sites:
    """A positive int for each of `count` axes, from one for all of them or a tuple."""
    given = (
        tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else (value,) * count
    )
    if not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in given):
        b.fail(
            what, f"{name}={value!r} is not made of positive ints", f"give {name} a positive int, or one for each axis"
        )
    if len(given) != count:
        axes = "1 axis" if count == 1 else f"{count} axes"
        b.fail(
            what, f"{name}={value!r} has {len(given)} entries, the window {axes}", f"give {name} one int, or {count}"
        )
    return tuple(int(s) for s in given)


def _window(x: Vector, value: Any, what: str) -> Sites:
    """A window that x has site axes for."""
    count = len(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else 1
    window = _sizes(x.builder, value, "window", count, what)
    if not window or len(window) > len(x.sites):
        x.builder.fail(
            what, f"a window of shape {window} over site axes {x.sites}: it has {len(window)} axes, x {len(x.sites)}",
            "give the window an entry for each of the last site axes of x, at least one",
        )  # fmt: skip
    return window


def _one_of(b: Builder, value: Any, name: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        b.fail(what, f"{name}={value!r} is not known", f"give {name} one of {', '.join(map(repr, known))}")


def _tables(
    x: Vector, window: Sites, strides: Any, padding: Any, dilation: Any, what: str
) -> tuple[list[np.ndarray], str]:
    """The tables of a window over the last axes of x, and how they print."""
    b, count = x.builder, len(window)
    steps, holes = _sizes(b, strides, "strides", count, what), _sizes(b, dilation, "dilation", count, what)
    _one_of(b, padding, "padding", PADDINGS, what)
    sizes = x.sites[len(x.sites) - count :]
    reach = tuple((w - 1) * hole + 1 for w, hole in zip(window, holes, strict=True))
    if padding == "VALID" and any(r > size for r, size in zip(reach, sizes, strict=True)):
        over = f"a window of shape {window}" + (f" with dilation {holes}, {reach} sites," if reach != window else "")
        b.fail(what, f"{over} does not fit into sites {sizes}", 'give a smaller window, or padding="SAME"')
    tables = [
        reads(size, w, step, padding, hole) for size, w, step, hole in zip(sizes, window, steps, holes, strict=True)
    ]
    return tables, _text(window, padding, strides=steps, dilation=holes)


def _text(window: Sites, padding: str, **options: Sites) -> str:
    """3 × 3, strides 2, SAME."""
    parts = [" × ".join(map(str, window))]
    for name, value in options.items():
        if any(v != 1 for v in value):
            parts.append(f"{name} {value[0] if len(set(value)) == 1 else ' × '.join(map(str, value))}")
    return ", ".join([*parts, padding])


def _nothing_left(x: Vector, window: Sites, strides: Any, padding: str, what: str) -> None:
    """Windows that are there to cover the sites do cover them."""
    steps = _sizes(x.builder, strides, "strides", len(window), what)
    sizes = x.sites[len(x.sites) - len(window) :]
    for size, w, step in zip(sizes, window, steps, strict=True):
        rest = (size - w) % step if padding == "VALID" else size % step if padding == "CIRCULAR" else 0
        if rest and padding == "VALID":
            x.builder.fail(
                what, f"windows of {w} in steps of {step} leave the last {rest} of {size} sites out",
                f'crop x[…, : {size - rest}] where that is meant, or give padding="SAME"',
            )  # fmt: skip
        if rest:
            x.builder.fail(
                what, f"steps of {step} do not go around {size} sites evenly",
                'give strides that divide the sites, or padding="SAME"',
            )  # fmt: skip


# ---- operations


def pad(x: Vector, widths: int | Sequence[Any]) -> Vector:
    """Zero vectors around the sites: as `numpy.pad`, one width, (before, after), or such a pair for each site axis.

    **Raises:** `ProgramError` for widths that are no ints, negative, or not one pair for each axis.
    """
    x = vector_of(x, "pad(x, …)")
    what, rank = f"pad(x, {widths!r})", len(x.sites)
    try:
        array = np.asarray(widths)
    except ValueError:  # pairs and single widths mixed
        array = np.zeros(0)
    if array.dtype.kind not in "iu" or (array < 0).any():
        x.builder.fail(
            what, "widths are numbers of sites, ints from 0 on",
            "give an int, (before, after), or a pair for each site axis; to drop sites write x[1:-1]",
        )  # fmt: skip
    if not rank or array.ndim > 2 or array.shape[-1:] not in ((), (1,), (2,)) or array.shape[:-1] not in (
        (), (1,), (rank,)
    ):  # fmt: skip
        x.builder.fail(
            what, f"widths of shape {array.shape} for {rank} site axes {x.sites}",
            "give an int, (before, after), or a pair for each site axis",
        )  # fmt: skip
    pairs = np.broadcast_to(array, (rank, 2))
    told = [(int(pair[0]), int(pair[1])) for pair in pairs]
    text = str(told[0][0]) if len({*told}) == 1 and told[0][0] == told[0][1] else ", ".join(map(str, told))
    return gather([x], lambda source: np.pad(source, told, constant_values=-1), f"pad({{}}; {text})")


def patches(x: Vector, window: Sizes, strides: Sizes | None = None, padding: str = "VALID") -> Vector:
    """The windows of x: its last site axes become those of the windows, and the window's own axes come behind.

    Sites (*lead, *S) go to (*lead, *windows, *window), a window at every site unless `strides` says otherwise. Padding
    "SAME" and "VALID" are XLA's, with zero vectors; "CIRCULAR" has the windows of "SAME" around a ring.

    **Raises:** `ProgramError` for windows of other ranks or larger than the sites, strides that are no positive ints
    or leave sites out, an unknown padding.
    """
    x = vector_of(x, "patches(x, …)")
    what = f"patches(x, {window!r})"
    shape = _window(x, window, what)
    tables, text = _tables(x, shape, 1 if strides is None else strides, padding, 1, what)
    _nothing_left(x, shape, 1 if strides is None else strides, padding, what)
    return gathered(x, tables, f"{PATCHES}{{}}; {text})")


def pool(
    x: Vector,
    window: Sizes,
    strides: Sizes | None = None,
    padding: str = "VALID",
    kind: str = "mean",
    count_edges: bool = True,
) -> Vector:
    """The mean or the sum (`kind`) of each window of the last site axes.

    Strides are 1 by default, as in JAX's libraries: give `strides=window` for windows side by side. The mean divides by
    ∏window, padding included; with `count_edges=False` by the number of real sites.

    **Raises:** `ProgramError` as `patches`, and for a kind that is none.
    """
    x = vector_of(x, "pool(x, …)")
    what = f"pool(x, {window!r})"
    _one_of(x.builder, kind, "kind", ("mean", "sum"), what)
    shape = _window(x, window, what)
    tables, text = _tables(x, shape, 1 if strides is None else strides, padding, 1, what)
    _nothing_left(x, shape, 1 if strides is None else strides, padding, what)
    inside = gathered(x, tables, f"{PATCHES}{{}}; {text})")
    rank = len(inside.sites)
    total = site_sum(inside, tuple(range(rank - len(shape), rank)))
    if kind == "sum":
        return total
    real = np.ones(())
    for table in tables:
        real = np.multiply.outer(real, (table >= 0).sum(1))
    if count_edges or (real == math.prod(shape)).all():
        return total.scaled(1.0 / math.prod(shape))
    return total * (1.0 / real)


def conv(W: Matrix, x: Vector, strides: Sizes = 1, padding: str = "SAME", dilation: Sizes = 1) -> Vector:
    """A convolution, y[s] = Σ_o W[o] x[strides·s + dilation·o − before], without a flip; W has a window.

    It acts on the last site axes, as many as the window has. Padding "SAME" and "VALID" are XLA's, with zero vectors;
    "CIRCULAR" has the windows of "SAME" around a ring. A readout by a window of all sites is
    `tp.conv(v, x, padding="VALID")[0, 0]` with `v = tp.weight("v", 1, n, window=x.sites)`.

    **Raises:** `ProgramError` for a weight without a window or with sites, vectors of another width, windows of other
    ranks or larger than the sites, strides and dilations that are no positive ints, an unknown padding.
    """
    W, x, what = _operands(W, x, "conv")
    if W.weight.sites:
        W.builder.fail(what, f"{W.text} has a matrix for each of its sites", f"write tp.conv_local({W.text}, x)")
    tables, text = _tables(x, W.weight.window, strides, padding, dilation, what)
    return W.over_windows(gathered(x, tables, f"{PATCHES}{{}}; {text})"))


def conv_transpose(W: Matrix, x: Vector, strides: Sizes = 1, padding: str = "SAME") -> Vector:
    """A transposed convolution, exactly `jax.lax.conv_transpose` without a flip: x with zeros between its sites.

    It acts on the last site axes; n sites become n·stride under "SAME", n·stride + max(window − stride, 0) under
    "VALID".

    **Raises:** `ProgramError` as `conv`.
    """
    W, x, what = _operands(W, x, "conv_transpose")
    weight = W.weight
    if weight.sites:
        W.builder.fail(what, f"{W.text} has a matrix for each of its sites", "declare it without sites")
    steps = _sizes(x.builder, strides, "strides", len(weight.window), what)
    _one_of(x.builder, padding, "padding", PADDINGS[:2], what)
    sizes = x.sites[len(x.sites) - len(weight.window) :]
    tables = [reads_spread(*each, padding) for each in zip(sizes, weight.window, steps, strict=True)]
    text = _text(weight.window, padding, strides=steps)
    return W.over_windows(gathered(x, tables, f"{SPREAD}{{}}; {text})"))


def conv_local(W: Matrix, x: Vector, strides: Sizes = 1, padding: str = "VALID") -> Vector:
    """A locally connected layer: a convolution with a matrix of its own at each site, y[s] = Σ_o W[s, o] x[…].

    W is declared with `window` and, as `sites`, the sites of the result.

    **Raises:** `ProgramError` as `conv`, and for sites that are not those of the result.
    """
    W, x, what = _operands(W, x, "conv_local")
    weight = W.weight
    tables, text = _tables(x, weight.window, strides, padding, 1, what)
    out = tuple(len(table) for table in tables)
    if weight.sites != out:
        has = f"has sites {weight.sites}" if weight.sites else "has no sites"
        remedy = f"declare {W.text} with sites={out}" + ("" if weight.sites else f", or write tp.conv({W.text}, x)")
        W.builder.fail(what, f"{W.text} {has}, the result has {out}", remedy)
    return W.over_windows(gathered(x, tables, f"{PATCHES}{{}}; {text})"))


def _operands(W: Any, x: Any, name: str) -> tuple[Matrix, Vector, str]:
    """A weight with a window, and a vector that it reads over as many site axes."""
    if not isinstance(W, Matrix):
        raise failure(
            f"{name}(W, x)", f"{W!r} is no weight of the program",
            f"declare W = tp.weight('W', n, x.features, window=(…)) and write tp.{name}(W, x)",
        )  # fmt: skip
    what = f"{name}({W.text}, x)"
    x = vector_of(x, what)
    W.check(x)
    if not W.weight.window:
        W.builder.fail(
            what, f"{W.text} has no window", f"declare {W.text} with window=(…), or write {W.text} @ x for each site"
        )
    _window(x, W.weight.window, what)
    return W, x, what
