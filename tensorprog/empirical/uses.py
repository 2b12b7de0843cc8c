"""What an equation makes of a weight: the derivative in the weight as a sum of products of two factors.

An equation y = W·a (matrix product, convolution, embedding) has, in W's entries [s, α, β],

    ∂f/∂W[s, α, β] = Σ_p left[s, p, α] · right[s, p, β],      left from a,   right = ∂f/∂y

with p the positions that share W (sites, patches, tokens), s what has a weight of its own (groups of a convolution,
heads), α the entries that a is summed over, β those of the output. A `Use` says which entries s, α and β are, and how
∂f/∂y is laid out as `right`; a rule below finds it, or None where the equation is of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorprog.empirical.views import Axis, View, is_entries, is_spread, joined, size


@dataclass(frozen=True, eq=False)
class Use:
    """Where the factors of one use lie in the parameter, and `arrange`: ∂f/∂y to (s, p, β)."""

    parameter: int
    shared: Axis
    left: Axis
    right: Axis
    start: tuple[int, ...]
    outer: tuple[Axis | None, ...]
    arrange: Callable[[Array], Array]

    def left_loop(self) -> Use:
        """The use after its loop: steps are positions, or weights of their own if the loop ran along the weight."""
        *outer, along = self.outer
        tied = along is None
        arrange = lambda c: gathered(jax.vmap(self.arrange)(c), tied)
        shared = self.shared if along is None else joined((along, self.shared))
        return replace(self, shared=shared, outer=tuple(outer), arrange=arrange)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The left factor of an embedding: at each (s, p) one row, by number, and its factor; 0 for none."""

    index: Array
    factor: Array


Left = Array | Rows  # (s, p, α)


def gathered(array: Array, tied: bool) -> Array:
    """Steps of a loop (steps, s, p, ...) as positions (s, steps · p, ...), or as weights (steps · s, p, ...)."""
    steps, s, p, *rest = array.shape
    if tied:
        return array.swapaxes(0, 1).reshape(s, steps * p, *rest)
    return array.reshape(steps * s, p, *rest)


def _laid_out(array: Array, shared: Sequence[int], positions: Sequence[int], entries: Sequence[int]) -> Array:
    """The axes in three groups, each flattened: (s, p, entries)."""
    groups = shared, positions, entries
    shape = [math.prod(array.shape[i] for i in group) for group in groups]
    return array.transpose([i for group in groups for i in group]).reshape(shape)


def _scaled(array: Array, view: View) -> Array:
    return array if view.scale is None else array * view.scale.astype(array.dtype)


def _ordered(view: View, axes: Sequence[int]) -> list[int]:
    """Axes of a view in an order that does not depend on how the user wrote the product."""
    return sorted(axes, key=lambda i: [(atom.axis, -atom.step) for atom in view.axes[i]])


def product(view: View, side: int, other: Array, dimension_numbers: Any) -> tuple[Use, Left] | None:
    """`jax.lax.dot_general` with the view as operand number `side`."""
    contracting, batch = dimension_numbers
    own, others = (contracting[side], batch[side]), (contracting[1 - side], batch[1 - side])
    free = [i for i in range(len(view.axes)) if i not in own[0] and i not in own[1]]
    others_free = [i for i in range(other.ndim) if i not in others[0] and i not in others[1]]
    spread = [n for n, i in enumerate(own[1]) if is_spread(view.axes[i])]
    alike = [n for n in range(len(own[1])) if n not in spread]
    alike = [own[1].index(i) for i in _ordered(view, [own[1][n] for n in alike])]
    if not all(is_entries(view.axes[i]) for i in [*own[0], *free, *(own[1][n] for n in alike)]):
        return None
    summed = _ordered(view, own[0])
    left = _laid_out(
        other,
        [others[1][n] for n in alike],
        [*(others[1][n] for n in spread), *others_free],
        [others[0][list(own[0]).index(i)] for i in summed],
    )
    own_at, other_at = (len(batch[0]), len(batch[0]) + len(free))  # y has its batch axes, then those of its operands
    if side == 1:
        own_at, other_at = len(batch[0]) + len(others_free), len(batch[0])
    out = _ordered(view, free)
    positions = [*spread, *range(other_at, other_at + len(others_free))]
    arrange = lambda c: _laid_out(c, alike, positions, [own_at + free.index(i) for i in out])
    use = _use(view, [own[1][n] for n in alike], summed, out, arrange)
    return use, _scaled(left, view)


def _use(
    view: View, shared: Sequence[int], left: Sequence[int], right: Sequence[int], arrange: Callable[[Array], Array]
) -> Use:
    entries = lambda axes: joined(view.axes[i] for i in axes)
    return Use(view.parameter, entries(shared), entries(left), entries(right), view.start, view.outer, arrange)


def convolution(view: View, side: int, image: Array, params: dict[str, Any]) -> tuple[Use, Left] | None:
    """`jax.lax.conv_general_dilated` with the view as its filters: a product with patches."""
    if side != 1 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out_axis, in_axis, *window_axes = numbers.rhs_spec
    view = view.transposed([out_axis, in_axis, *window_axes])  # (out, in, *window)
    parted = view.reshaped([groups, view.shape[0] // groups, *view.shape[1:]])
    if parted is None or not all(is_entries(axis) for axis in parted.axes):
        return None
    image = image.transpose(numbers.lhs_spec)  # (N, groups · in, *space)
    patches = _patches(image, view.shape[2:], params)  # (*window, N, groups · in, *out space)
    n, space = len(window_axes), patches.shape[len(window_axes) + 2 :]
    patches = patches.reshape(*view.shape[2:], image.shape[0], groups, view.shape[1], *space)
    summed = _ordered(parted, range(2, len(parted.axes)))  # axes of `parted`: 2 is in, 3... the window
    place = {2: n + 2} | {3 + i: i for i in range(n)}
    left = _laid_out(patches, [n + 1], [n, *range(n + 3, n + 3 + len(space))], [place[i] for i in summed])

    def arrange(c: Array) -> Array:
        c = c.transpose(numbers.out_spec)  # (N, out, *space)
        c = c.reshape(c.shape[0], groups, -1, *space)
        return _laid_out(c, [1], [0, *range(3, c.ndim)], [2])

    return _use(parted, [0], summed, [1], arrange), _scaled(left, view)


def _patches(image: Array, window: Sequence[int], params: dict[str, Any]) -> Array:
    """What each place of the window sees, (*window, N, channels, *out): strided slices of the padded image."""
    padding = zip(params["padding"], params["lhs_dilation"], strict=True)
    config = [(0, 0, 0), (0, 0, 0), *((lo, hi, dilation - 1) for (lo, hi), dilation in padding)]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), config)
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    counts = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(image.shape[2:], window, dilations, strides, strict=True)
    ]

    def seen(place: Sequence[int]) -> Array:
        starts = [i * d for i, d in zip(place, dilations, strict=True)]
        limits = [lo + (n - 1) * s + 1 for lo, n, s in zip(starts, counts, strides, strict=True)]
        return jax.lax.slice(image, [0, 0, *starts], [*image.shape[:2], *limits], [1, 1, *strides])

    places = [seen(place) for place in _places(window)]
    return jnp.stack(places).reshape(*window, *places[0].shape)


def _places(window: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for n in window:
        places = [(*place, i) for place in places for i in range(n)]
    return places


def gather(view: View, indices: Array, params: dict[str, Any]) -> tuple[Use, Left] | None:
    """`jax.lax.gather` of whole rows along one axis of the view: an embedding."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    indexed = [int(i) for i in numbers.start_index_map]
    cut = [i for i, n in enumerate(sizes) if n != view.shape[i]] or indexed[:1]
    filled = params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    # where axes are taken whole their index is clipped to 0, but may send a row to be filled
    if len(cut) != 1 or cut[0] not in indexed or (filled and len(indexed) > 1) or numbers.operand_batching_dims:
        return None
    (axis,) = cut
    if sizes[axis] != 1:
        return None
    kept = [i for i in range(len(view.axes)) if i not in numbers.collapsed_slice_dims]
    place = dict(zip(kept, (int(i) for i in numbers.offset_dims), strict=True))
    at = indices[..., indexed.index(axis)].reshape(1, -1)
    inside = (at >= 0) & (at < view.shape[axis]) if filled else jnp.ones(at.shape, bool)  # else it is clipped
    return _rows(view, axis, at, place, inside)


def dynamic_slice(view: View, starts: Sequence[Array], sizes: Sequence[int]) -> tuple[Use, Left] | None:
    """`jax.lax.dynamic_slice` of one row along one axis of the view."""
    cut = [i for i, n in enumerate(sizes) if n != view.shape[i]]
    if len(cut) != 1 or sizes[cut[0]] != 1 or sum(n > 1 for n in sizes) > 1:
        return None  # what is no row is rather a layer's weight, chosen by a loop: no activation
    at = jnp.asarray(starts[cut[0]]).reshape(1, 1)
    return _rows(view, cut[0], at, {i: i for i in range(len(view.axes))}, jnp.ones((1, 1), bool))


def _rows(view: View, axis: int, at: Array, place: dict[int, int], inside: Array) -> tuple[Use, Left] | None:
    if not all(is_entries(a) for a in view.axes):
        return None
    entries = _ordered(view, [i for i in range(len(view.axes)) if i != axis])

    def arrange(c: Array) -> Array:
        positions = [i for i in range(c.ndim) if i not in place.values()]
        single = [place[axis]] if axis in place else []
        return _laid_out(c, single, positions, [place[i] for i in entries])

    index = jnp.clip(at, 0, size(view.axes[axis]) - 1)
    scale = jnp.ones((), jnp.float32) if view.scale is None else view.scale
    return _use(view, [], [axis], entries, arrange), Rows(index, inside * scale)
