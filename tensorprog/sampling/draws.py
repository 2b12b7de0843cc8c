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
_ROOM = 2
"""Rows are made orthonormal while there are so many times more draws than rows."""


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


class Draws:
    """`points` draws in antithetic pairs; rows of half as many, whose other half is their negative."""

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
        """So many rows (count, M/2), orthonormal to earlier ones."""
        half = self.points // 2
        rows = _normal(self._next(), count, half, self.dtype) if self.quasi is None else self.quasi.fresh(count)
        return self._matched(rows, earlier)

    def signs(self, count: int, earlier: list[Array]) -> Array:
        """So many rows (count, M) of random signs, for what enters linearly; orthonormal to earlier ones."""
        return self._matched(_signs(self._next(), count, self.points, self.dtype), earlier)

    def _matched(self, rows: Array, earlier: list[Array]) -> Array:
        taken = sum(len(e) for e in earlier) + len(rows)
        if taken * _ROOM > rows.shape[-1]:
            return rows
        for others in earlier:
            rows = without(rows, others)
        return orthonormal(rows)
