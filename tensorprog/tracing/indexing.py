"""Rearranging sites: indices, slices, stack, concat, reshape, each as one Gather."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorprog.ir import Gather, IntArray, Sites, VectorType
from tensorprog.tracing.calls import same_builder, same_kind
from tensorprog.tracing.traced import AnyVector, Traced


def gather_at(xs: Sequence[AnyVector], rearrange: Callable[..., np.ndarray], text: str) -> tuple[int, VectorType]:
    """The instruction of vectors whose sites are those of `xs` rearranged, and its type.

    `rearrange` maps arrays of positions, one for each of `xs`, to one array; `text` prints it, "{}" for the operands.
    """
    first = xs[0]
    builder = first.builder
    same_builder(builder, *xs)
    for other in xs[1:]:
        same_kind(first, other, "beside")
    sources = positions([x.sites for x in xs])
    try:
        source = np.asarray(rearrange(*sources))
    except (IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(str(x.sites) for x in xs)
        operands = ", ".join(builder.text(x.position()) for x in xs)
        builder.fail(
            text.replace("{}", operands), f"sites of shape {shapes}: {error}",
            "indices and axes count the site axes; the vector's own axis (features, width) cannot be indexed",
        )  # fmt: skip
    type_ = VectorType(source.shape, first.type.dim, first.type.space)
    if len(xs) == 1 and source.shape == first.sites and (source == sources[0]).all():
        return first.position(), type_
    return builder.emit(Gather(tuple(x.position() for x in xs), IntArray.of(source), text), type_), type_


def positions(shapes: Sequence[Sites]) -> list[np.ndarray]:
    """The places of several arrays of sites laid end to end."""
    ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    return [np.arange(start, end).reshape(shape) for start, end, shape in zip(ends, ends[1:], shapes, strict=False)]


def index_text(index: Any) -> str:
    """An index as a listing prints it."""
    return ", ".join(_part(part) for part in (index if isinstance(index, tuple) else (index,)))


def _part(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        return ":".join(ends) + ("" if part.step is None else f":{part.step}")
    if part is Ellipsis:
        return "…"
    if isinstance(part, Traced) or part is None:
        return repr(part)
    array = np.asarray(part)
    if array.ndim == 0:
        return str(array)
    return str(array.tolist()) if array.size <= 8 else f"array of shape {array.shape}"
