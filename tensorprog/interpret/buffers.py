"""What the evaluation of a system works on: values of cells for all pairs, and what is known beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.program import is_concrete

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alone:
    """What is known of each input by itself: same-input cells and bounds, (cells, n), and sides of expectations."""

    value: Array
    error: Array | None
    sides: list[Any]


@dataclass(frozen=True)
class Context:
    """What the equations of one evaluation read besides the buffer; `left` and `right` in the crossing system only.

    `matched` takes each input with itself, (n,) in place of all pairs (n1, n2); `valid` marks pairs that are wanted.
    `plain`: nobody differentiates what comes out, and loops need not keep expectations whole.
    """

    inputs: tuple[tuple[Array, ...], tuple[Array, ...]]
    monomials: Array
    arrays: dict[tuple[int, ...], Array]
    seeds: Array | None = None
    left: Alone | None = None
    right: Alone | None = None
    valid: Array | None = None
    matched: bool = False
    plain: bool = False

    def spread(self, array: Array, side: str) -> Array:
        """Same-input quantities (m, n, …) of one side against pairs (m, n1, n2, …), or matched ones (m, n, …)."""
        if self.matched:
            return array
        return array[:, :, None] if side == "left" else array[:, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """A few rows (*batch) that stand for one array (rows, *batch), read and written at places that are known.

    A compiler computes what is made of such rows in one pass over them. Of one array it gathers numbers, and copies it
    where a loop reads one row and writes the next.
    """

    each: tuple[Array, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.each), *self.each[0].shape

    @property
    def dtype(self) -> Any:
        return self.each[0].dtype

    def __getitem__(self, index: np.ndarray) -> Array:
        chosen = [self.each[k] for k in index.reshape(-1).tolist()]
        found = jnp.stack(chosen) if len(chosen) != 1 else chosen[0][None]
        return found.reshape(*index.shape, *found.shape[1:])

    def written(self, out: np.ndarray, new: Array) -> Rows:
        """The rows with new ones at `out`; of several for one place the last is kept."""
        each = list(self.each)
        for k, row in enumerate(out.tolist()):
            each[row] = new[k]
        return Rows(tuple(each))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Buffer:
    """Values of cells, their tangents (the NTK's), and bounds on the errors of both; None where not asked for.

    Each is an array (rows, *batch), or `Rows` where a plan has few.
    """

    value: Any
    tangent: Any
    error: Any
    tangent_error: Any


Result = tuple[Array, Array | None, Array | None, Array | None]
"""A rule's value, tangent, error and the tangent's error; None where it is 0 or not asked for."""


def stated(value: Any, error: Any) -> Any:
    """A bound or a standard error as users are given it: 0 or more, infinite where nothing is known, never NaN.

    Nothing is known where carrying bounds met ∞ · 0, and of a value that is NaN, which only goes out inside a
    transformation: elsewhere such values are refused.
    """
    xp = np if isinstance(value, np.ndarray) else jnp
    found = xp.where(xp.isnan(value) | xp.isnan(error), xp.inf, error)
    assert not is_concrete(found) or (np.asarray(found) >= 0).all(), "what a value may be off by is no negative number"
    return found


def one_input(context: Context, buffer: Buffer, rows: Any, side: str) -> tuple[Array, Array | None]:
    """Same-input cells (m, K) and their errors, against this system's pairs."""
    known = context.left if side == "left" else context.right
    if known is None:
        return buffer.value[rows], None if buffer.error is None else buffer.error[rows]

    def spread(values: Array) -> Array:
        found = values[rows]  # (m, K, n)
        if context.matched:
            return found
        return found[..., :, None] if side == "left" else found[..., None, :]

    return spread(known.value), None if known.error is None else spread(known.error)
