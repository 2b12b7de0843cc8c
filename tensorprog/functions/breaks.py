"""Jumps of functions of several Gaussians: derivatives of their expectations have terms there that nothing computes.

The expectation of a kinked function has a derivative in covariances that one derivative of the function gives; of a
function that jumps (the slope of a kinked one, which the NTK integrates) it lies on the jumps, which JAX does not see.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import ProgramError

Array = jax.Array
LINES, PIECES = 24, 256
"""Segments that are looked along, and pieces of each."""


class Jumps(ProgramError):
    """The derivative of an expectation lies on jumps; who knows whose function it is says the line."""

    why = (
        "an expectation of a function of several Gaussians that jumps is not differentiated: the derivative lies on "
        "the jumps. The function jumps, or for its NTK and for second derivatives its slope does, as that of "
        "relu(g) * h"
    )
    remedy = "take a smooth function, jax.nn.softplus for relu, or differences of kernels"

    def __init__(self, told: str = f"{why}; {remedy}"):
        super().__init__(told)


def refuse_jumps(fn: Callable[..., Any], cov: Array, given: Any) -> None:
    """Refuse to differentiate E fn(z, given), z of covariance `cov` (…, K, K), where fn jumps.

    **Raises:** `ProgramError` that says what to do instead.
    """
    lead = cov.ndim - 2
    leaves, tree = jax.tree.flatten(given)
    if _jumps(fn, cov.shape[-1], tree, tuple(n.shape[lead:] for n in leaves), jnp.dtype(cov.dtype).name):
        raise Jumps


@lru_cache(maxsize=1024)
def _jumps(fn: Callable[..., Any], size: int, tree: Any, shapes: tuple[tuple[int, ...], ...], dtype: str) -> bool:
    """Whether fn jumps within some segments, which reach about as far as 6: each piece is halved, towards the larger
    change, and a jump is one that stays, beside the function's values around it."""
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(2, LINES, 1, size)) * 3
    given = [rng.uniform(0.5, 1.5, size=shape) for shape in shapes]
    at = np.broadcast_to(np.linspace(0.0, 1.0, PIECES + 1)[None, :, None], (LINES, PIECES + 1, 1))
    halvings = 40 if dtype == "float64" else 14
    with jax.ensure_compile_time_eval():
        numbers = tree.unflatten([jnp.asarray(n, dtype) for n in given])
        first, last = (jnp.asarray(end, dtype) for end in ends)
        along = jax.vmap(jax.vmap(lambda z: jnp.asarray(fn(z, numbers), dtype)))
        value = lambda t: along(first + t * (last - first))

        def halve(_: Any, between: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = between
            middle = (low + high) / 2
            left, centre, right = (value(t) for t in (low, middle, high))
            nearer = (jnp.abs(centre - left) >= jnp.abs(right - centre))[..., None]
            return jnp.where(nearer, low, middle), jnp.where(nearer, middle, high)

        def change(between: tuple[Array, Array]) -> tuple[Array, Array]:
            left, right = (value(t) for t in between)
            return jnp.abs(right - left), jnp.maximum(jnp.abs(left), jnp.abs(right))

        start = jnp.asarray(at[:, :-1], dtype), jnp.asarray(at[:, 1:], dtype)
        half = jax.lax.fori_loop(0, halvings // 2, halve, start)
        (_, around), (before, _), (after, _) = map(
            change, (start, half, jax.lax.fori_loop(0, halvings // 2, halve, half))
        )
        return bool((jnp.isfinite(after) & (after > 0.5 * before) & (after > 1e-4 * around)).any())
