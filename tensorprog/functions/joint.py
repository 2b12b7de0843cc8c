"""Joint expectations: functions of several dependent Gaussians, by tensor rules.

E F(z) F̄(z) for z ~ N(0, Σ) of up to four coordinates. One and two are summed over an even grid, which oscillating and
kinked functions need: smooth ones converge geometrically all the same, since the Gaussian vanishes at the ends. More
coordinates take Gauss-Hermite nodes. Coarser rules beside the finest estimate the error; on even grids its third does:
with the step goes the error of jumps, which converge most slowly. Frequencies too high for all grids alike go unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.breaks import refuse_jumps
from tensorprog.functions.jaxprs import pushforward

Array = jax.Array
EVEN, COARSER = 360, 3
"""Nodes an axis of an even grid, and the step of the coarser ones that it consists of."""
REACH = 12.0
"""Where an even grid ends, in deviations: the Hermite functions of degree 47, √φ h₄₇, are below 1e-15 there."""
HERMITE = {3: (32, 24), 4: (24, 18)}
"""Gauss-Hermite nodes an axis of the fine and the coarse rule, by the number of Gaussians."""


Motion = tuple[Array, Array, Array]
"""How Gaussians move as their covariance does: what `motion` returns."""


class Rule(NamedTuple):
    """Nodes (m, K) and weights (rules, m): those of the finest first, then of coarser ones."""

    nodes: np.ndarray
    weights: np.ndarray


def even_grid() -> tuple[np.ndarray, np.ndarray]:
    """An axis of the even grid, and N(0, 1)'s weights. It is symmetric, so that jumps at 0 cost nothing; of its three
    coarser grids one is symmetric too, and so another one of any function, even or odd."""
    z = (2 * np.arange(EVEN) + 1 - EVEN) * REACH / EVEN
    weights = np.exp(-(z**2) / 2)
    return z, weights / weights.sum()


def _tensor(axes: list[np.ndarray]) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


@lru_cache(maxsize=4)
def rule(size: int) -> Rule:
    """The rule for so many Gaussians, without nodes that no double precision sum sees."""
    if size in HERMITE:
        sets = []
        for count in HERMITE[size]:
            points, weights = np.polynomial.hermite_e.hermegauss(count)
            sets.append((_tensor([points] * size), _tensor([weights / weights.sum()] * size).prod(-1)))
        (fine, first), (coarse, second) = sets
        nodes = np.concatenate([fine, coarse])
        table = np.stack([np.pad(first, (0, len(second))), np.pad(second, (len(first), 0))])
    else:
        z, weights = even_grid()
        nodes, whole = _tensor([z] * size), _tensor([weights] * size).prod(-1)
        places = _tensor([np.arange(EVEN) % COARSER] * size)
        offsets = product(range(COARSER), repeat=size)
        parts = [np.where((places == offset).all(-1), whole, 0.0) for offset in offsets]
        table = np.stack([whole, *(part / part.sum() for part in parts)])
    keep = table.max(0) > 1e-22
    return Rule(nodes[keep], table[:, keep])


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
        return pushforward(lambda y: self.fn(y, numbers), (z,), (direction,))[1]


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


def joint(left: Callable[..., Any], right: Callable[..., Any] | None, cov: Array, numbers: Any) -> tuple[Array, Array]:
    """(value, error estimate) of E left(z) right(z), z ~ N(0, cov), cov (…, K, K).

    `left` and `right` are static and hashable, fn(z, numbers) with z (K,). Derivatives in cov as in `motion`: they take
    one derivative of the functions, so that these may have kinks, but no jumps.
    """
    return _expectation(Plain(Product(left, right)), cov, spread(numbers, cov.shape[:-2]), ())


def spread(numbers: Any, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Numbers that all covariances share, for each of them."""
    return tuple(jnp.broadcast_to(n, shape) for n in numbers)


def disagreement(fn: Callable[..., Any], cov: Array, numbers: Any) -> Array:
    """How far the rules are apart for E fn(z)², relative to it: (…)."""
    fine, apart, _ = _by_rule(Plain(Product(fn, fn)), cov, (spread(numbers, cov.shape[:-2]), ()))
    return apart / jnp.where(fine > 0, fine, 1.0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _expectation(h: Callable[..., Any], cov: Array, numbers: Any, held: Any) -> tuple[Array, Array]:
    """`numbers` and `held` are trees of arrays, for each covariance; nothing that moves is in `held`."""
    fine, apart, size = _by_rule(h, cov, (numbers, held))
    return fine, apart + 64 * jnp.finfo(cov.dtype).eps * size


@_expectation.defjvp
def _expectation_jvp(h: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    cov, numbers, held = primals
    refuse_jumps(h, cov, (numbers, held))
    value, error = _expectation(h, cov, numbers, held)
    cov, numbers, held, total = moves(cov, motion(cov, tangents[0]), numbers, tangents[1], held)
    slopes, _ = _expectation(Moved(h), cov, numbers, held)
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


def _by_rule(h: Callable[..., Any], cov: Array, given: Any) -> tuple[Array, Array, Array]:
    """(E h, how far coarser rules are from it, E |h|), a few covariances at a time to bound memory."""
    lead, size = cov.shape[:-2], cov.shape[-1]
    nodes, table = rule(size)
    z, weights = jnp.asarray(nodes, cov.dtype), jnp.asarray(table, cov.dtype)
    closer = 1 if size in HERMITE else COARSER

    def one(item: Any) -> tuple[Array, Array, Array]:
        matrix, own = item
        values, vectors = jnp.linalg.eigh(matrix)
        coordinates = matmul(z, (vectors * jnp.sqrt(jnp.maximum(values, 0.0))).T)
        h_values = jax.vmap(lambda y: h(y, own))(coordinates)
        found = matmul(weights, h_values)
        return found[0], jnp.abs(found[1:] - found[0]).max() / closer, weights[0] @ jnp.abs(h_values)

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), (cov, given))
    found = jax.lax.map(one, flat, batch_size=min(16, flat[0].shape[0]))
    value, apart, absolute = (x.reshape(lead) for x in found)
    return value, apart, absolute
