"""Joint expectations: functions of several dependent Gaussians, by tensor Gauss-Hermite rules.

E F(z) F̄(z) for z ~ N(0, Σ) of up to four coordinates. Two rules give the value and the estimate of its error; smooth
functions converge geometrically, functions with kinks only slowly, and the estimate says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
NODES = {1: (128, 96), 2: (180, 150), 3: (32, 24), 4: (24, 18)}
"""Nodes an axis of the fine and the coarse rule, by the number of Gaussians."""


@dataclass(frozen=True)
class Product:
    """left · right, or left alone."""

    left: Callable[..., Any]
    right: Callable[..., Any] | None

    def __call__(self, z: Array, numbers: tuple[Array, ...]) -> Array:
        value = self.left(z, numbers)
        return value if self.right is None else value * self.right(z, numbers)


@dataclass(frozen=True)
class Partial:
    """∂ of a function in one of its Gaussians."""

    fn: Callable[..., Any]
    slot: int

    def __call__(self, z: Array, numbers: tuple[Array, ...]) -> Array:
        direction = jnp.zeros_like(z).at[self.slot].set(1.0)
        return jax.jvp(lambda y: self.fn(y, numbers), (z,), (direction,))[1]


@dataclass(frozen=True)
class Number:
    """∂ of a function in one of its numbers."""

    fn: Callable[..., Any]
    index: int

    def __call__(self, z: Array, numbers: tuple[Array, ...]) -> Array:
        direction = tuple(jnp.ones_like(n) if k == self.index else jnp.zeros_like(n) for k, n in enumerate(numbers))
        return jax.jvp(lambda n: self.fn(z, n), (numbers,), (direction,))[1]


@dataclass(frozen=True)
class Onto:
    """A function of `count` Gaussians as one of those that it reads, in order."""

    fn: Callable[..., Any]
    slots: tuple[int, ...]
    count: int

    def __call__(self, z: Array, numbers: tuple[Array, ...]) -> Array:
        return self.fn(jnp.zeros(self.count, z.dtype).at[jnp.asarray(self.slots)].set(z), numbers)


def joint(left: Callable[..., Any], right: Callable[..., Any] | None, cov: Array, numbers: Any) -> tuple[Array, Array]:
    """(value, error estimate) of E left(z) right(z), z ~ N(0, cov), cov (…, K, K).

    `left` and `right` are static and hashable, fn(z, numbers) with z (K,). Derivatives in cov by Price's theorem,
    ∂E H/∂cov_ij = ½ E ∂_i∂_j H.
    """
    return _expectation(Product(left, right), cov, tuple(numbers))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _expectation(h: Callable[..., Any], cov: Array, numbers: tuple[Array, ...]) -> tuple[Array, Array]:
    size = cov.shape[-1]
    fine, coarse = (_rule(h, cov, numbers, nodes) for nodes in NODES[size])
    return fine[0], jnp.abs(fine[0] - coarse[0]) + 64 * jnp.finfo(cov.dtype).eps * fine[1]


@_expectation.defjvp
def _expectation_jvp(h: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    cov, numbers = primals
    dcov, dnumbers = tangents
    value, error = _expectation(h, cov, numbers)
    size = cov.shape[-1]
    tangent = jnp.zeros_like(value)
    for i in range(size):
        for j in range(i + 1):
            weight = 0.5 * dcov[..., i, i] if i == j else 0.5 * (dcov[..., i, j] + dcov[..., j, i])
            tangent = tangent + weight * _expectation(Partial(Partial(h, i), j), cov, numbers)[0]
    for k, dnumber in enumerate(dnumbers):
        tangent = tangent + dnumber * _expectation(Number(h, k), cov, numbers)[0]
    return (value, error), (tangent, jnp.zeros_like(error))


def _rule(h: Callable[..., Any], cov: Array, numbers: tuple[Array, ...], nodes: int) -> tuple[Array, Array]:
    """(E h, E |h|) by the tensor rule with so many nodes an axis, one covariance at a time to bound memory."""
    size = cov.shape[-1]
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[points] * size, indexing="ij"), -1).reshape(-1, size)
    product = np.prod(np.stack(np.meshgrid(*[weights] * size, indexing="ij"), -1), -1).reshape(-1)
    keep = product > 1e-22
    z, w = jnp.asarray(grid[keep], cov.dtype), jnp.asarray(product[keep], cov.dtype)

    def one(matrix: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(matrix)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
        coordinates = jnp.matmul(z, root.T, precision=jax.lax.Precision.HIGHEST)
        h_values = jax.vmap(lambda y: h(y, numbers))(coordinates)
        return (w * h_values).sum(), (w * jnp.abs(h_values)).sum()

    flat = cov.reshape(-1, size, size)
    value, size_of = jax.lax.map(one, flat, batch_size=min(64, flat.shape[0]))
    return value.reshape(cov.shape[:-2]), size_of.reshape(cov.shape[:-2])
