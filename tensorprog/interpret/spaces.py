"""What stands for a coordinate's limit Z in the interpreter of limits, one space for each width.

A random variable is a row of numbers whose weighted products are expectations, E XY = Σ w X Y:

- `Draws`: M draws of every Gaussian, w = 1/M;
- `Grid`: the nodes of a product quadrature, one axis for each independent Gaussian;
- `Forms`: the coefficients of a linear form in independent standard Gaussians (the first belongs to 1), w = 1. Then
  expectations are exact, and functions of the variables are not defined.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
REACH = 12.0
"""Quadrature goes so many standard deviations out: what is beyond has probability 1e-32."""
ALONE_REACH = 36.0
"""The same where there is but one Gaussian: that of e^{30z} too."""
_SOBOL = 64
_BITS = 30  # of SciPy's Sobol points


class Space(ABC):
    """Rows of numbers that stand for random variables of one width."""

    one: Array
    """The constant 1."""

    @abstractmethod
    def fresh(self, count: int) -> Array:
        """So many standard Gaussians (count, M), independent of each other and of all before."""

    @abstractmethod
    def inner(self, x: Array, y: Array) -> Array:
        """E x_i y_j, (I, J)."""

    @abstractmethod
    def mean(self, values: Array) -> Array:
        """E over the last axis."""


@lru_cache(maxsize=16)
def _sobol(dimensions: int, points: int) -> np.ndarray:
    """The first points of a Sobol sequence as integers of 30 bits, (dimensions, points)."""
    unit = qmc.Sobol(dimensions, scramble=False, bits=_BITS).random_base2(round(math.log2(points)))
    return np.round(unit.T * 2**_BITS).astype(np.uint32)


class Draws(Space):
    """M quasi-random draws: Sobol points under a random digital shift; pseudo-random ones after the first Gaussians.

    The shift makes every point uniform, so that a replicate's error has mean 0 up to terms of order 1/M; `points` is a
    power of two, where the points are balanced.
    """

    def __init__(self, key: Array, gaussians: int, points: int, dtype: jnp.dtype):
        self.key, self.points, self.dtype = key, points, dtype
        self.base = jnp.asarray(_sobol(max(1, min(gaussians, _SOBOL)), points))
        self.used = 0
        self.one = jnp.ones(points, dtype)

    def fresh(self, count: int) -> Array:
        start, self.used = self.used, self.used + count
        key = jax.random.fold_in(self.key, start)
        quasi = self.base[start : start + count]
        rest = count - len(quasi)
        parts = [self._normal(quasi, key)] if len(quasi) else []
        if rest:
            parts.append(jax.random.normal(jax.random.fold_in(key, 1), (rest, self.points), self.dtype))
        return jnp.concatenate(parts)

    def _normal(self, quasi: Array, key: Array) -> Array:
        shift, below = jax.random.split(key)
        shift = jax.random.bits(shift, (len(quasi), 1), jnp.uint32) >> (32 - _BITS)
        fine = jax.random.uniform(below, quasi.shape, self.dtype, minval=jnp.finfo(self.dtype).tiny)
        unit = ((quasi ^ shift).astype(self.dtype) + fine) / 2**_BITS
        eps = jnp.finfo(self.dtype).epsneg
        return jax.scipy.special.ndtri(jnp.clip(unit, jnp.finfo(self.dtype).tiny, 1 - eps)).astype(self.dtype)

    def inner(self, x: Array, y: Array) -> Array:
        return jnp.matmul(x, y.T, precision=HIGHEST) / self.points

    def mean(self, values: Array) -> Array:
        return values.mean(-1)


class Grid(Space):
    """The trapezoidal rule in each Gaussian, `nodes` to an axis: to rounding for smooth functions.

    For analytic functions its error falls exponentially with the nodes, at a kink like their square.
    """

    def __init__(self, gaussians: int, nodes: int, dtype: jnp.dtype, reach: float = REACH):
        z = np.linspace(-reach, reach, nodes)
        w = np.exp(-(z**2) / 2)
        w /= w.sum()
        axes = np.meshgrid(*[z] * gaussians, indexing="ij")
        self.nodes = jnp.asarray(np.stack([a.reshape(-1) for a in axes]) if axes else np.zeros((0, 1)), dtype)
        weights = np.ones(1)
        for _ in range(gaussians):
            weights = np.multiply.outer(weights, w).reshape(-1)
        self.weights = jnp.asarray(weights, dtype)
        self.one = jnp.ones(len(weights), dtype)
        self.used = 0

    def fresh(self, count: int) -> Array:
        start, self.used = self.used, self.used + count
        assert self.used <= len(self.nodes), "the grid has an axis for each Gaussian"
        return self.nodes[start : self.used]

    def inner(self, x: Array, y: Array) -> Array:
        return jnp.matmul(x * self.weights, y.T, precision=HIGHEST)

    def mean(self, values: Array) -> Array:
        return jnp.matmul(values, self.weights, precision=HIGHEST)


class Forms(Space):
    """Coefficients of 1 and of each Gaussian."""

    def __init__(self, gaussians: int, dtype: jnp.dtype):
        self.basis = jnp.eye(gaussians + 1, dtype=dtype)
        self.one = self.basis[0]
        self.used = 1

    def fresh(self, count: int) -> Array:
        start, self.used = self.used, self.used + count
        assert self.used <= len(self.basis), "there is a coefficient for each Gaussian"
        return self.basis[start : self.used]

    def inner(self, x: Array, y: Array) -> Array:
        return jnp.matmul(x, y.T, precision=HIGHEST)

    def mean(self, values: Array) -> Array:
        return values[..., 0]
