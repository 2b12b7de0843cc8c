"""Joint expectations: functions of two dependent Gaussians of one input, by even grids.

E F(z) F̄(z) for z ~ N(0, Σ) of one coordinate or two. The finest grid is the value; coarser ones bound its error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.breaks import refuse_jumps
from tensorprog.functions.grids import REACH, apart, chosen, unseen

Array = jax.Array
EDGE, OUTSIDE = 1.0, 50.0
"""How wide the end of a grid is, in deviations, and how much more than there is beyond it at most."""


Motion = tuple[Array, Array, Array]
"""How Gaussians move as their covariance does: what `motion` returns."""


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
class Plain:
    """A function of Gaussians and numbers as one of what expectations are given: (numbers, what is never moved)."""

    fn: Callable[..., Any]

    def __call__(self, z: Array, given: Any) -> Array:
        return self.fn(z, given[0])


@dataclass(frozen=True)
class Moved:
    """∂ of a function as its Gaussians move by M z and its numbers by their tangents, and ½ tr(N ∂∂ᵀ) of it, for
    directions in which the Gaussians do not vary yet; a move is (M, N, tangents of the numbers)."""

    fn: Callable[..., Any]

    def __call__(self, z: Array, given: Any) -> Array:
        numbers, (held, (matrix, fresh, tangents)) = given
        inner = lambda y, own: self.fn(y, (own, held))
        value = jax.jvp(inner, (z, numbers), (matmul(matrix, z), tangents))[1]
        for i in range(z.size):
            value = value + 0.5 * jax.jvp(lambda y, i=i: Partial(self.fn, i)(y, (numbers, held)), (z,), (fresh[i],))[1]
        return value


@dataclass(frozen=True)
class Onto:
    """A function of `count` Gaussians as one of those that it reads, in order; more coordinates are ignored."""

    fn: Callable[..., Any]
    slots: tuple[int, ...]
    count: int

    def __call__(self, z: Array, numbers: tuple[Array, ...]) -> Array:
        return self.fn(jnp.zeros(self.count, z.dtype).at[jnp.asarray(self.slots)].set(z[: len(self.slots)]), numbers)


def joint(
    left: Callable[..., Any], right: Callable[..., Any] | None, cov: Array, numbers: Any, *, bounds: bool = True
) -> tuple[Array, Array]:
    """(value, bound of its error) of E left(z) right(z), z ~ N(0, cov), cov (…, K, K) with K of 1 or 2.

    `left` and `right` are static and hashable, fn(z, numbers) with z (K,). Derivatives in cov as in `motion`: they take
    one derivative of the functions, so that these may have kinks, but no jumps. Without `bounds`, rounding alone.
    """
    return _expectation(Plain(Product(left, right)), bounds, cov, spread(numbers, cov.shape[:-2]), ())


def spread(numbers: Any, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Numbers that all covariances share, for each of them."""
    return tuple(jnp.broadcast_to(n, shape) for n in numbers)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _expectation(h: Callable[..., Any], bounds: bool, cov: Array, numbers: Any, held: Any) -> tuple[Array, Array]:
    """`numbers` and `held` are trees of arrays, for each covariance; nothing that moves is in `held`."""
    lead, size = cov.shape[:-2], cov.shape[-1]
    given = numbers, held

    def one(item: Any) -> tuple[Array, Array]:
        matrix, own = item
        values, vectors = jnp.linalg.eigh(matrix)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))

        at_node = lambda y: h(matmul(root, y), own)

        def on_grid(grid: tuple[Array, Array, Array]) -> tuple[Array, ...]:
            nodes, weights, step = grid
            z = jnp.stack(jnp.meshgrid(*[nodes] * size, indexing="ij"), -1)
            whole = weights if size == 1 else weights[:, None] * weights
            along = at_node
            for _ in range(size):
                along = jax.vmap(along)
            terms = jnp.where(whole > 0, whole * along(z), 0.0)
            sizes = jnp.abs(terms)
            outer = jnp.where((jnp.abs(z) > REACH - EDGE).any(-1), sizes, 0.0).sum()
            highest = z.reshape(-1, size)[jnp.argmax(sizes)]
            return terms.sum(), sizes.sum(), outer, highest, sizes.max() / step**size

        found, sizes, outer, highest, seen = jax.lax.map(on_grid, chosen(bounds, cov.dtype))
        error = apart(found) + OUTSIDE * outer[0] + 64 * jnp.finfo(cov.dtype).eps * sizes[0]
        return found[0], error + unseen(at_node, highest[0], seen.max()) if bounds else error

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), (cov, given))
    value, error = (x.reshape(lead) for x in jax.lax.map(one, flat, batch_size=min(8, flat[0].shape[0])))
    return value, jnp.where(jnp.isfinite(value) & ~jnp.isnan(error), error, jnp.inf)


@_expectation.defjvp
def _expectation_jvp(h: Callable[..., Any], bounds: bool, primals: Any, tangents: Any) -> Any:
    cov, numbers, held = primals
    refuse_jumps(h, cov, (numbers, held))
    value, error = _expectation(h, bounds, cov, numbers, held)
    cov, numbers, held, total = moves(cov, motion(cov, tangents[0]), numbers, tangents[1], held)
    slopes, _ = _expectation(Moved(h), False, cov, numbers, held)
    return (value, error), (total(slopes), jnp.zeros_like(error))


def moves(cov: Array, moved: Motion, numbers: Any, dnumbers: Any, held: Any) -> tuple[Array, Any, Any, Any]:
    """Covariances, numbers and `held` of a function's derivatives in all directions there are, along a new first axis,
    and what adds these up: known slopes times tangents, as reverse mode needs.

    The directions: the entries of M, those of N, the numbers.
    """
    size, count = cov.shape[-1], len(numbers)
    units, none = np.eye(size**2).reshape(-1, size, size), np.zeros((count, size, size))
    matrices = np.concatenate([units, 0 * units, none])
    # Second derivatives see the symmetric part of N only.
    fresh = np.concatenate([0 * units, (units + np.swapaxes(units, 1, 2)) / 2, none])
    tangents = np.concatenate([np.zeros((2 * size**2, count)), np.eye(count)])
    moving, spreading, singular = moved
    sizes = [m.reshape(*m.shape[:-2], size**2) for m in (moving, spreading)]
    along = jnp.moveaxis(jnp.concatenate([*sizes, *(d[..., None] for d in dnumbers)], -1), -1, 0)
    spread_only = jnp.asarray(fresh.any((1, 2))).reshape(-1, *(1,) * (cov.ndim - 2))

    def over(x: Array) -> Array:
        return jnp.broadcast_to(x, (len(tangents), *x.shape))

    def unit(table: np.ndarray) -> Array:
        shaped = jnp.asarray(table, cov.dtype).reshape(len(table), *(1,) * (cov.ndim - 2), *table.shape[1:])
        return jnp.broadcast_to(shaped, (len(table), *cov.shape[:-2], *table.shape[1:]))

    def total(slopes: Array) -> Array:
        # Second derivatives that nobody needs may be infinite.
        return (along * jnp.where(spread_only & ~singular, 0.0, slopes)).sum(0)

    move = unit(matrices), unit(fresh), tuple(unit(column) for column in tangents.T)
    return over(cov), jax.tree.map(over, numbers), (jax.tree.map(over, held), move), total


def motion(cov: Array, dcov: Array) -> Motion:
    """(M, N, whether N is any): Gaussians whose covariance Σ moves by dΣ move by M z and spread by N where Σ is
    singular, MΣ + ΣMᵀ + N = dΣ.

    M = (1 − ½ P) dΣ Σ⁺ and N = Q dΣ Q, P and Q the projections on Σ's range and beside it, for Gaussians in units of
    their deviations. In N's directions dE H = ½ tr(N E ∂∂ᵀH), Price's theorem, in the others one integration by parts
    saves a derivative: E (∂H)ᵀ M z. Directions of correlations below eps^⅝ count as none: nothing is left out for
    smooth functions, and the kinks of Gaussians that are equal to five digits.
    """
    deviations = jnp.sqrt(jnp.diagonal(cov, axis1=-2, axis2=-1))
    unit = jax.lax.stop_gradient(jnp.where(deviations > 0, deviations, 1.0))
    rows, columns = unit[..., :, None], unit[..., None, :]
    scaled, dscaled = cov / (rows * columns), dcov / (rows * columns)
    pseudo = _pseudo_inverse(scaled)
    projection = matmul(scaled, pseudo)
    beside = jnp.eye(cov.shape[-1], dtype=cov.dtype) - projection
    singular = jnp.trace(beside, axis1=-2, axis2=-1) > 0.5
    moving = matmul(dscaled, pseudo)
    spreading = matmul(matmul(beside, dscaled), jnp.swapaxes(beside, -1, -2))
    matrix = (moving - 0.5 * matmul(projection, moving)) * rows / columns
    return matrix, jnp.where(singular[..., None, None], spreading * rows * columns, 0.0), singular


def matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def _pseudo_inverse(cov: Array) -> Array:
    """Σ⁺ of correlations, with directions below eps^⅝ as none."""
    values, vectors = jnp.linalg.eigh(cov)
    kept = values > jnp.finfo(cov.dtype).eps ** 0.625
    inverse = jnp.where(kept, 1.0 / jnp.where(kept, values, 1.0), 0.0)
    return matmul(vectors * inverse[..., None, :], jnp.swapaxes(vectors, -1, -2))


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(primals: Any, tangents: Any) -> Any:
    (cov,), (dcov,) = primals, tangents
    pseudo = _pseudo_inverse(cov)
    beside = jnp.eye(cov.shape[-1], dtype=cov.dtype) - matmul(cov, pseudo)
    turned = matmul(matmul(matmul(pseudo, pseudo), dcov), beside)
    moved = -matmul(matmul(pseudo, dcov), pseudo) + turned + jnp.swapaxes(turned, -1, -2)
    return pseudo, moved
