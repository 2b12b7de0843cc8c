"""A kernel block by block: blocks of one fixed size, the upper triangle where there is no second batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def blocked(prepare: Any, contract: Any, x1: PyTree, x2: PyTree | None, limit: int) -> Float[Array, "N1 N2 E K K"]:
    """The kernel, block by block of at most `limit` examples; the blocks below the diagonal only if there is an x2."""
    rows = examples(x1, limit)
    columns = rows if x2 is None else examples(x2, limit)

    def row(args: tuple[Any, PyTree]) -> Array:
        i, x = args
        left = prepare(x)

        def cell(args: tuple[Any, PyTree]) -> Array:
            return contract(left, prepare(args[1]))

        if x2 is not None:
            return _each(cell, columns)
        diagonal = contract(left, left)
        if length(columns) == 1:
            return diagonal[None]
        upper = lambda args: jax.lax.cond(args[0] > i, cell, lambda _: diagonal, args)  # below: any, mirrored later
        return _each(upper, columns)

    blocks = _each(row, rows)  # (rows, columns, a, b, E, K, K)
    r, c, a, b, *outputs = blocks.shape
    whole = blocks.swapaxes(1, 2).reshape(r * a, c * b, *outputs)[: length(x1), : length(x1 if x2 is None else x2)]
    return mirror(whole) if x2 is None else whole


def examples(x: PyTree, limit: int) -> PyTree:
    """Leaves (N, ...) to (blocks, size, ...), of equal size, the last one filled up with copies of the last example."""
    n = length(x)
    count = math.ceil(n / limit)
    size = math.ceil(n / count)
    index = np.minimum(np.arange(count * size), n - 1).reshape(count, size)
    return jax.tree.map(lambda leaf: leaf[index], x)


def _each(f: Callable[[tuple[Any, PyTree]], Array], blocks: PyTree) -> Array:
    """f of each (number, block), one after the other; a derivative computes a block again instead of keeping it."""
    if length(blocks) == 1:
        return f((0, jax.tree.map(lambda leaf: leaf[0], blocks)))[None]
    return jax.lax.map(jax.checkpoint(f, prevent_cse=False), (jnp.arange(length(blocks)), blocks))


def length(x: PyTree) -> int:
    """The number of examples, or of blocks."""
    return jax.tree.leaves(x)[0].shape[0]


def mirror(k: Float[Array, "N N *E K K"]) -> Float[Array, "N N *E K K"]:
    """K[j, i, ..., t, s] = K[i, j, ..., s, t], bit for bit."""
    i, j = (np.arange(k.shape[0]).reshape(shape + (1,) * (k.ndim - 2)) for shape in ((-1, 1), (1, -1)))
    s, t = np.ogrid[: k.shape[-1], : k.shape[-1]]
    return jnp.where((i < j) | ((i == j) & (s <= t)), k, k.swapaxes(0, 1).swapaxes(-1, -2))
