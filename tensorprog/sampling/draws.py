"""Draws of standard Gaussians that cost an estimate less than independent ones.

Second moments of functions are averages over the draws; they err by the draws' own moments, the lowest most. So draws
come in antithetic pairs (ε, −ε), whose odd moments vanish, and the rows of ε are made orthonormal over the draws,
E ε εᵀ = 1 exactly, while there are enough draws. Each row is still a standard Gaussian up to O(1/M). In few dimensions
they start from Sobol points.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tensorprog.interpret.spaces import HIGHEST
from tensorprog.interpret.spaces import Draws as Points

Array = jax.Array
SOBOL = 64
"""Sobol points up to so many Gaussians; beyond them they are no better than pseudo-random ones."""
_ROOM = 1.25
"""Rows are made orthonormal while pairs of draws are so many times more; no bias was measured at 1.25."""


@partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key: Array, count: int, points: int, dtype: jnp.dtype) -> Array:
    return jax.random.normal(key, (count, points), dtype)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _signs(key: Array, count: int, points: int, dtype: jnp.dtype) -> Array:
    return jax.random.rademacher(key, (count, points), dtype)


@jax.jit
def without(rows: Array, others: Array) -> Array:
    """What is left of rows (K, M) beside other, orthonormal rows (J, M)."""
    shadow = jnp.matmul(rows, others.T, precision=HIGHEST) / rows.shape[-1]
    return rows - jnp.matmul(shadow, others, precision=HIGHEST)


@jax.jit
def orthonormal(rows: Array) -> Array:
    """Rows (K, M) with E ε εᵀ = 1, by the Cholesky factor of their second moments."""
    factor = jnp.linalg.cholesky(jnp.matmul(rows, rows.T, precision=HIGHEST) / rows.shape[-1])
    return jax.scipy.linalg.solve_triangular(factor, rows, lower=True)


def matched(rows: int, pairs: int) -> bool:
    """Whether so many rows are made orthonormal over so many pairs of draws."""
    return rows * _ROOM <= pairs


class Draws:
    """`points` draws in antithetic pairs: rows hold one of each pair, (K, M/2)."""

    def __init__(self, key: Array, gaussians: int, points: int, dtype: jnp.dtype):
        assert points % 2 == 0, "draws come in pairs"
        self.key, self.points, self.dtype = key, points, dtype
        self.used = 0
        half = points // 2
        sobol = gaussians <= SOBOL and half & (half - 1) == 0
        self.quasi = Points(jax.random.fold_in(key, 2**31 - 1), gaussians, half, dtype) if sobol else None

    def _next(self) -> Array:
        self.used += 1
        return jax.random.fold_in(self.key, self.used)

    def gaussians(self, count: int, earlier: list[Array]) -> Array:
        """So many rows of standard Gaussians, orthonormal to earlier ones; the other of each pair is the negative."""
        if self.quasi is not None:
            return self._matched(self.quasi.fresh(count), earlier)
        return self._matched(_normal(self._next(), count, self.points // 2, self.dtype), earlier)

    def signs(self, count: int, earlier: list[Array]) -> Array:
        """So many rows of random signs, for what enters linearly, orthonormal to earlier ones; alike in each pair.

        Fourth moments of signs are the smallest there are. Signs of their own for the other of each pair would cost
        twice as much, and were no better.
        """
        return self._matched(_signs(self._next(), count, self.points // 2, self.dtype), earlier)

    def _matched(self, rows: Array, earlier: list[Array]) -> Array:
        if not matched(sum(len(e) for e in earlier) + len(rows), rows.shape[-1]):
            return rows
        for others in earlier:
            rows = without(rows, others)
        return orthonormal(rows)
