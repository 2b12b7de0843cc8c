"""Products of one random matrix, in the limit: Z^{Ax} = Ẑ + Ż (docs/theory.md).

All Ẑ of one matrix are jointly Gaussian with covariance q E Z^x Z^x̄. They are drawn one block after another from the
Cholesky factor of the second moments: Ẑ = √q L ε with standard Gaussians ε, so that a block is conditioned on the
blocks before it. Where a vector depends linearly on earlier ones the pivot is 0, and so is its column.

The Ż of A x is q Σ a_i Z^{y_i} over earlier products Aᵀ y_i; by Stein's lemma Λ a = E Ẑ^{Aᵀy} Z^x with Λ = q' E Z^y Z^ȳ
= q' L Lᵀ, and E Ẑ Z^x = √q' L β with β = E ε Z^x: then Lᵀ a = β / √q'. No function is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tensorprog.interpret.spaces import Space

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass
class Family:
    """The products of one weight so far: `x` (P, J, M) or features, `noise` ε (P, J, M') and `factor` L (P, J, J).

    P counts the weight's independent matrices: one for each window offset and site.
    """

    x: Array
    noise: Array
    factor: Array


def cholesky(moments: Array, sizes: Array) -> Array:
    """L with L Lᵀ = moments (K, K), positive semi-definite; pivots below rounding of `sizes` (K,) are 0."""
    tolerance = (1e-9 if moments.dtype == jnp.float64 else 1e-4) * sizes
    places = jnp.arange(len(moments))

    def column(j: Array, factor: Array) -> Array:
        rest = moments[:, j] - jnp.matmul(factor, factor[j], precision=HIGHEST)
        alive = rest[j] > tolerance[j]
        root = jnp.sqrt(jnp.where(alive, rest[j], 1.0))
        return factor.at[:, j].set(jnp.where(alive & (places >= j), rest / root, 0.0))

    return jax.lax.fori_loop(0, len(moments), column, jnp.zeros_like(moments))


def extended(factor: Array, across: Array, own: Array) -> Array:
    """The factor (J, J) of earlier moments grown by a block: `across` (K, J) moments with them, `own` (K, K)."""
    left = solve_lower(factor, across.T).T
    right = cholesky(own - jnp.matmul(left, left.T, precision=HIGHEST), jnp.diagonal(own))
    top = jnp.concatenate([factor, jnp.zeros((len(factor), len(own)), own.dtype)], axis=1)
    return jnp.concatenate([top, jnp.concatenate([left, right], axis=1)])


def solve_lower(factor: Array, right: Array) -> Array:
    """The solution of L b = right, 0 at pivots of 0."""
    return _substituted(factor, right, jnp.arange(len(factor)))


def solve_upper(factor: Array, right: Array) -> Array:
    """The solution of Lᵀ a = right, 0 at pivots of 0."""
    return _substituted(factor.T, right, jnp.arange(len(factor))[::-1])


def _substituted(triangle: Array, right: Array, order: Array) -> Array:
    """Substitution, a row at a time.

    Not by LAPACK: all of this is done for many replicates at once, and batches of LAPACK's factorisations and solves
    share one pool of threads with the operations that wait for them. On two cores two of them wait for ever.
    """

    def row(found: Array, i: Array) -> tuple[Array, None]:
        pivot = triangle[i, i]
        rest = right[i] - jnp.matmul(triangle[i], found, precision=HIGHEST)
        return found.at[i].set(jnp.where(pivot > 0, rest / jnp.where(pivot > 0, pivot, 1.0), 0.0)), None

    return jax.lax.scan(row, jnp.zeros_like(right), order)[0]


def gaussian_part(
    families: dict[tuple[int, bool], Family],
    key: tuple[int, bool],
    x: Array,
    moments: tuple[Array, Array],
    space: Space,
) -> Array:
    """Ẑ/√q of a block of products (P, K, M'), recorded in its family; `moments` are (with earlier ones, own)."""
    before = families.get(key)
    across, own = moments
    count, size = own.shape[:2]
    noise = space.fresh(count * size).reshape(count, size, -1)
    if before is None:
        families[key] = Family(x, noise, jax.vmap(lambda m: cholesky(m, jnp.diagonal(m)))(own))
    else:
        x, noise = jnp.concatenate([before.x, x], 1), jnp.concatenate([before.noise, noise], 1)
        families[key] = Family(x, noise, jax.vmap(extended)(before.factor, across, own))
    family = families[key]
    return jnp.matmul(family.factor[:, -size:], family.noise, precision=HIGHEST)


def response(transposed: Family, x: Array, space: Space) -> Array:
    """√q' a for each x (P, K, M): (P, J, K), from earlier products of the transpose, whose noise lives where x does."""

    def one(factor: Array, noise: Array, x: Array) -> Array:
        # The regression's own normal equations, in place of the identity that E ε εᵀ is: less noise with few draws.
        normal = space.inner(noise, noise)
        root = cholesky(normal, jnp.diagonal(normal))
        fitted = solve_upper(root, solve_lower(root, space.inner(noise, x)))
        return solve_upper(factor, fitted)

    return jax.vmap(one)(transposed.factor, transposed.noise, x)
