"""Rules of equations that need no integral: sums, products, imports, inputs, data, functions of scalars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import permutations
from operator import add, mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.ruled import Bare
from tensorprog.interpret.buffers import Array, Buffer, Context, Result, one_input
from tensorprog.interpret.plan import Group

HIGHEST = jax.lax.Precision.HIGHEST
SHORT = 8
"""Terms up to which a sum is written out."""


def _spread(values: Array, rank: int) -> Array:
    """(m, K) coefficients against (m, K, *batch) values of a rank; those with all axes as they are."""
    return values.reshape(*values.shape, *(1,) * (rank - values.ndim))


def _weighted(*terms: tuple[Array, Array]) -> Array:
    """Σ Σ_k coef_k · value_k, over terms of (m, K) or (m, K, *batch) with (m, K, *batch).

    All terms are one sum. XLA's CPU compiler (that of jaxlib 0.10.2) puts several sums that are added into one kernel;
    where they share a coefficient, spread over the batch, and an axis has length 1, it reads memory that nobody wrote.
    """
    if terms[0][1].shape[1] > SHORT and all(coefs.ndim == 2 for coefs, _ in terms):
        return reduce(add, (jnp.einsum("mk,mk...->m...", *term, precision=HIGHEST) for term in terms))
    return reduce(add, (_spread(coefs, own.ndim) * own for coefs, own in terms)).sum(1)


def linear(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    cells = arrays["cells"]
    coefs = context.monomials[arrays["coefs"]]
    return _sum(cells, coefs, arrays["seeds"], context, buffer)


def scaled(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    """A sum whose coefficients are scalars of the input on one side."""
    side = group.form[1]  # type: ignore[index]
    value, error = one_input(context, buffer, arrays["factors"], side)
    coefs = _spread(context.monomials[arrays["coefs"]], value.ndim)
    moved = None if error is None else jnp.abs(coefs) * error
    return _sum(arrays["cells"], coefs * value, arrays["seeds"], context, buffer, moved)


def _sum(cells: Any, coefs: Array, seeds: Any, context: Context, buffer: Buffer, moved: Array | None = None) -> Result:
    """Σ_k coef_k · cell_k with coefficients (m, K) or (m, K, *pairs); `moved` bounds the coefficients' own errors.

    Short sums are written out: compilers put them into the pass over pairs that reads them, and make no array of what
    is summed.
    """
    count = cells.shape[1]
    if not 0 < count <= SHORT:
        return _terms(cells, coefs, seeds, context, buffer, moved)
    column = lambda a, k: None if a is None else a[:, k : k + 1]
    parts = [
        _terms(cells[:, k : k + 1], coefs[:, k : k + 1], seeds[:, k : k + 1], context, buffer, column(moved, k))
        for k in range(count)
    ]
    return tuple(None if own[0] is None else reduce(add, own) for own in zip(*parts, strict=True))  # type: ignore[return-value]


def _terms(
    cells: Any, coefs: Array, seeds: Any, context: Context, buffer: Buffer, moved: Array | None = None
) -> Result:
    """The same in arrays over k."""
    values = buffer.value[cells]
    value = _weighted((coefs, values))
    tangent = error = tangent_error = None
    # Rounding of the sum, and what the coefficients' own errors move.
    off = 4 * jnp.finfo(value.dtype).eps * jnp.abs(coefs) + (0.0 if moved is None else moved)
    if buffer.error is not None:
        error = _weighted((jnp.abs(coefs), buffer.error[cells]), (off, jnp.abs(values)))
    if buffer.tangent is not None and context.seeds is not None:
        own = context.seeds[seeds]
        tangents = buffer.tangent[cells]
        tangent = _weighted((coefs, tangents), (own, values))
        if buffer.tangent_error is not None and buffer.error is not None:
            tangent_error = _weighted(
                (jnp.abs(coefs), buffer.tangent_error[cells]),
                (off, jnp.abs(tangents)),
                (jnp.abs(own), buffer.error[cells] + 4 * jnp.finfo(value.dtype).eps * jnp.abs(values)),
            )
    return value, tangent, error, tangent_error


def product(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    cells = arrays["cells"]
    factors = range(cells.shape[1])
    rows = [cells[:, k] for k in factors]

    def without(*left_out: int) -> Array:
        """The product of the other factors."""
        one = jnp.ones((len(cells), *buffer.value.shape[1:]), buffer.value.dtype)
        return reduce(mul, (buffer.value[rows[k]] for k in factors if k not in left_out), one)

    def moved(by: Array) -> Array:
        """What the factors' changes make, one at a time."""
        return reduce(add, (jnp.abs(by[rows[k]] * without(k)) for k in factors))

    value = without()
    tangent = error = tangent_error = None
    epsilon = 4 * jnp.finfo(value.dtype).eps
    if buffer.error is not None:
        error = moved(buffer.error) + epsilon * jnp.abs(value)
    if buffer.tangent is not None:
        tangent = reduce(add, (buffer.tangent[rows[k]] * without(k) for k in factors))
    if buffer.tangent is not None and buffer.tangent_error is not None and buffer.error is not None:
        tangent_error = moved(buffer.tangent_error) + epsilon * moved(buffer.tangent)
        for k, j in permutations(factors, 2):
            tangent_error += jnp.abs(buffer.tangent[rows[k]] * buffer.error[rows[j]] * without(k, j))
    return value, tangent, error, tangent_error


def import_(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    side = group.form[1]  # type: ignore[index]
    known = context.left if side == "left" else context.right
    assert known is not None, "imports belong to the crossing system"
    shape = (arrays["source"].shape[0], *buffer.value.shape[1:])
    value = jnp.broadcast_to(context.spread(known.value[arrays["source"]], side), shape)
    if buffer.error is None or known.error is None:
        return value, None, None, None
    return value, None, jnp.broadcast_to(context.spread(known.error[arrays["source"]], side), shape), None


def leaf(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, i, j = group.form  # type: ignore[misc]

    def sites(side: int, index: int, name: str) -> Array:
        x = context.inputs[side][index]
        return x.reshape(x.shape[0], -1, x.shape[-1])[:, arrays[name]]

    left, right = sites(0, i, "left_sites"), sites(1, j, "right_sites")
    form = "amd,bmd->mab" if context.left is not None and not context.matched else "amd,amd->ma"
    scale = left.shape[-1]
    value = jnp.einsum(form, left, right, precision=HIGHEST) / scale
    error = None
    if buffer.error is not None:
        sizes = jnp.einsum(form, jnp.abs(left), jnp.abs(right), precision=HIGHEST) / scale
        error = 4 * jnp.finfo(value.dtype).eps * sizes
    return value, None, error, None


def data(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    x = context.inputs[0][group.form[1]]  # type: ignore[index]
    return x.reshape(x.shape[0], -1).T[arrays["sites"]], None, None, None


def scalar(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    """Functions of whole arrays of scalars, one call a row and an input."""
    _, fn, arguments, held = group.form  # type: ignore[misc]
    cells, ids = arrays["calls"], arrays["monomials"]

    own_numbers = ids.shape[-1] - len(held)

    def call(cells: Array, numbers: Array, arrays: Sequence[Array]) -> Array:
        parts, places = {True: cells, False: numbers}, {True: 0, False: 0}

        def take(is_cell: bool, shape: tuple[int, ...]) -> Array:
            start = places[is_cell]
            places[is_cell] = start + math.prod(shape)
            return parts[is_cell][start : places[is_cell]].reshape(shape)

        own = [take(*argument) for argument in arguments]
        return jnp.asarray(fn(*own, numbers=tuple(arrays)), cells.dtype).reshape(-1)

    inputs = jax.vmap(call, in_axes=(1, None, None), out_axes=1)  # cells (K, n), numbers (L,)
    values, numbers = buffer.value[cells], context.monomials[ids[:, :own_numbers]]
    # What calls share is not copied for each.
    which = ids[:, own_numbers:]
    known = [context.arrays[shape] if shape else context.monomials for shape in held]
    shared = [isinstance(ids, np.ndarray) and bool((column == column[0]).all()) for column in which.T]
    kept = [k[column[0] if one else column] for k, column, one in zip(known, which.T, shared, strict=True)]
    value = jax.vmap(inputs, (0, 0, [None if one else 0 for one in shared]))(values, numbers, kept)
    error = None
    if buffer.error is not None:
        slope = jax.vmap(jax.jacfwd(Bare(call)), in_axes=(1, None, None), out_axes=2)
        slopes = jax.vmap(slope, (0, 0, [None if one else 0 for one in shared]))(values, numbers, kept)
        # The arguments' own rounding counts: in a function of them much may cancel.
        off = buffer.error[cells] + 4 * jnp.finfo(value.dtype).eps * jnp.abs(values)
        moved = jnp.einsum("qmkn,qkn->qmn", jnp.abs(slopes), off)
        error = (moved + 16 * jnp.finfo(value.dtype).eps * jnp.abs(value)).reshape(-1, value.shape[-1])
    return value.reshape(-1, value.shape[-1]), None, error, None
