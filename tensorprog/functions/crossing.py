"""Pair expectations of functions of two Gaussians a side: a Hermite series in two dimensions, or Mehler's kernel.

E F(g) F̄(ḡ), g and ḡ in ℝ². With g = L z and ḡ = L̄ z̄ whitened, R = E z z̄ᵀ is a contraction, and with its singular value
decomposition R = rot(φ) diag(s₁, s₂) rot(θ) Mehler's formula holds in the rotated coordinates:

    E F F̄ = Σ_{j,k} a′_jk b′_jk s₁ʲ s₂ᵏ,      a′, b′ the Hermite coefficients in those coordinates.

Rotating is free in the complex basis H_pq(z₁ + i z₂), where it multiplies by e^{i(p−q)φ}; between the bases goes one
fixed unitary matrix a degree. Coefficients are made once an input, on an even grid; what is left out from degree D on
is at most |s₁|^D √(tail tail̄). Where that is not small (steep functions, inputs near each other) both functions are
taken on a grid in the rotated coordinates, and Mehler's kernel, one axis after the other, between them: right up to
correlation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.breaks import refuse_jumps
from tensorprog.functions.grids import REACH, SAFETY, apart, chosen, mehler, unseen
from tensorprog.functions.joint import EDGE, OUTSIDE, Moved, Onto, Partial, Plain, matmul, motion, moves, spread

Array = jax.Array
DEGREES = 48
_HIGHEST = jax.lax.Precision.HIGHEST
_ACCEPTED = {"float64": 1e-10, "float32": 1e-5}
"""A series stands where its bound is below this part of the functions' sizes."""


@lru_cache(maxsize=1)
def _unitary() -> np.ndarray:
    """U[d, p, j]: |p, d−p⟩ = Σ_j U |j, d−j⟩ with b± = (a₁ ± i a₂)/√2, padded with zeros."""
    u = np.zeros((DEGREES, DEGREES, DEGREES), dtype=complex)
    u[0, 0, 0] = 1.0
    for d in range(1, DEGREES):
        for p in range(d + 1):
            # One quantum is taken from the fuller of the two, for stability.
            plus = 2 * p >= d
            lower, count, sign = (u[d - 1, p - 1], p, 1j) if plus else (u[d - 1, p], d - p, -1j)
            for j in range(d + 1):
                first = np.sqrt(j) * lower[j - 1] if j else 0.0
                second = np.sqrt(d - j) * lower[j] if j < d else 0.0
                u[d, p, j] = (first + sign * second) / np.sqrt(2 * count)
    return u


def _root(cov: Array) -> Array:
    """The Cholesky factor of 2×2 covariances, zeros where a direction has no variance."""
    a, b, c = cov[..., 0, 0], cov[..., 1, 0], cov[..., 1, 1]
    first = jnp.sqrt(jnp.maximum(a, 0.0))
    slope = jnp.where(first > 0, b / jnp.where(first > 0, first, 1.0), 0.0)
    rest = c - slope**2
    eps = 64 * jnp.finfo(cov.dtype).eps
    last = jnp.sqrt(jnp.where(rest > eps * c, rest, 0.0))
    return jnp.stack([jnp.stack([first, jnp.zeros_like(first)], -1), jnp.stack([slope, last], -1)], -2)


def _inverse(root: Array) -> Array:
    """The pseudo-inverse of the factor."""
    first, slope, last = root[..., 0, 0], root[..., 1, 0], root[..., 1, 1]
    inv = [jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0) for x in (first, last)]
    zero = jnp.zeros_like(first)
    rows = [jnp.stack([inv[0], zero], -1), jnp.stack([-slope * inv[0] * inv[1], inv[1]], -1)]
    return jnp.stack(rows, -2)


def _samples(fn: Callable[..., Any], root: Array, given: Any, nodes: tuple[Array, Array], weights: Array) -> Array:
    """√(weight) F(root z) at each node of a grid (first axis, second axis)."""
    along = jax.vmap(jax.vmap(lambda x, y: fn(matmul(root, jnp.stack([x, y])), given)))
    whole = weights[:, None] * weights
    return jnp.where(whole > 0, jnp.sqrt(whole) * along(*jnp.meshgrid(*nodes, indexing="ij")), 0.0)


def _outer(samples: Array, nodes: Array) -> Array:
    """How much of a function's square lies at the end of the grid."""
    end = jnp.abs(nodes) > REACH - EDGE
    return jnp.where(end[:, None] | end, samples**2, 0.0).sum()


def _hermite(nodes: Array, weights: Array) -> Array:
    """√(weight) h_k at the nodes (DEGREES, nodes), h_k = He_k/√k!."""
    rows = [jnp.sqrt(weights), jnp.sqrt(weights) * nodes]
    for k in range(1, DEGREES - 1):
        rows.append((nodes * rows[-1] - math.sqrt(k) * rows[-2]) / math.sqrt(k + 1))
    return jnp.stack(rows)


def _coefficients(fn: Callable[..., Any], bounds: bool, cov: Array, given: Any) -> tuple[Array, Array, Array, Array]:
    """Of F at each covariance: complex coefficients (…, D, D) by degree and p, E F², the coefficients' error, and the
    root of what of E F² lies between the nodes."""
    lead = cov.shape[:-2]
    degree, index = np.indices((DEGREES, DEGREES))
    inside = index <= degree
    places = np.where(inside, index, 0), np.where(inside, degree - index, 0)

    def at(item: Any) -> tuple[Array, Array, Array, Array]:
        root, own = item

        def on_grid(grid: tuple[Array, Array, Array]) -> tuple[Array, ...]:
            nodes, weights, step = grid
            samples = _samples(fn, root, own, (nodes, nodes), weights)
            place = jnp.unravel_index(jnp.argmax(jnp.abs(samples)), samples.shape)
            table = _hermite(nodes, weights)
            by_axis = matmul(matmul(table, samples), table.T)
            square = (samples**2).sum() + OUTSIDE * _outer(samples, nodes)
            highest = nodes[jnp.stack(place)], (samples**2).max() / step**2
            return jnp.where(inside, by_axis[places], 0.0), square, *highest

        found, squares, highest, seen = jax.lax.map(on_grid, chosen(bounds, cov.dtype))
        off = SAFETY * jnp.sqrt(((found - found[0]) ** 2).sum((-1, -2)).max())
        if not bounds:
            return found[0], squares[0], off, jnp.zeros_like(off)
        between = unseen(lambda z: fn(matmul(root, z), own) ** 2, highest[0], seen.max())
        return found[0], squares[0] + between, off, jnp.sqrt(between)

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), (_root(cov), given))
    fine, *rest = (x.reshape(*lead, *x.shape[1:]) for x in jax.lax.map(at, flat))
    u = jnp.asarray(np.conj(_unitary()), jnp.result_type(cov.dtype, jnp.complex64))
    return jnp.einsum("dpj,...dj->...dp", u, fine.astype(u.dtype)), *rest


def _rotations(r: Array) -> tuple[Array, Array, Array, Array]:
    """R = rot(φ) diag(s₁, s₂) rot(θ) for 2×2 matrices; s₂ may be negative."""
    e, f = (r[..., 0, 0] + r[..., 1, 1]) / 2, (r[..., 0, 0] - r[..., 1, 1]) / 2
    g, h = (r[..., 1, 0] + r[..., 0, 1]) / 2, (r[..., 1, 0] - r[..., 0, 1]) / 2
    q, s = jnp.hypot(e, h), jnp.hypot(f, g)
    # Of equal singular values any rotation is one: none, so that kinks along the axes stay there.
    one, two = jnp.where(s > 64 * jnp.finfo(s.dtype).eps, jnp.arctan2(g, f), 0.0), jnp.arctan2(h, e)
    return (two + one) / 2, jnp.clip(q + s, -1.0, 1.0), jnp.clip(q - s, -1.0, 1.0), (two - one) / 2


def crossing(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    slots: tuple[tuple[int, ...], tuple[int, ...]],
    count: int,
    covs: tuple[Array, Array, Array],
    numbers: Any,
    *,
    bounds: bool = True,
) -> tuple[Array, Array]:
    """(value, bound of its error) of E F(z) F̄(z) with F reading `slots[0]` of `count` Gaussians, F̄ `slots[1]`.

    `covs`: of F's Gaussians (…, 2, 2), of F̄'s, and between them, which broadcast; for one Gaussian a side the second
    row and column are 0. Derivatives in the covariances take one derivative of each function: these may have kinks.
    Without `bounds` the finest grid is not checked by others.
    """
    rank = max(cov.ndim for cov in covs)
    a, b, c = (cov.reshape(*(1,) * (rank - cov.ndim), *cov.shape) for cov in covs)
    own = tuple(Plain(Onto(f, places, count)) for f, places in zip(functions, slots, strict=True))
    return _crossing(own, bounds, (a, b, c), (spread(numbers, a.shape[:-2]), spread(numbers, b.shape[:-2])), ((), ()))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _crossing(functions: Any, bounds: bool, covs: Any, numbers: Any, held: Any) -> tuple[Array, Array]:
    """`numbers` and `held` of each side: trees of arrays, for each of its covariances; all covariances of one rank."""
    a, b, c = covs
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)[:-2]
    given = tuple(zip(numbers, held, strict=True))
    sides = [_coefficients(f, bounds, cov, own) for f, cov, own in zip(functions, (a, b), given, strict=True)]
    roots = _root(a), _root(b)
    r = jnp.einsum("...ij,...jk,...lk->...il", _inverse(roots[0]), c, _inverse(roots[1]), precision=_HIGHEST)
    angles = tuple(jnp.broadcast_to(x, shape).reshape(-1) for x in _rotations(r))
    rows = [jnp.broadcast_to(jnp.arange(x[1].size).reshape(x[1].shape), shape).reshape(-1) for x in sides]
    flat = lambda x: x.reshape(-1, *x.shape[a.ndim - 2 :])
    tables = [x[0].reshape(-1, DEGREES, DEGREES) for x in sides]
    squares, off, between = ([x[k].reshape(-1)[i] for x, i in zip(sides, rows, strict=True)] for k in (1, 2, 3))
    kept = [(jnp.abs(x) ** 2).sum((-1, -2))[i] for x, i in zip(tables, rows, strict=True)]
    eps = jnp.finfo(c.dtype).eps
    tails = [jnp.maximum(x - k, 0.0) + 8 * eps * x for x, k in zip(squares, kept, strict=True)]
    size = jnp.sqrt(squares[0] * squares[1])
    left_out = jnp.abs(angles[1]) ** DEGREES * jnp.sqrt(tails[0] * tails[1])
    left_out = left_out + off[0] * jnp.sqrt(squares[1]) + off[1] * jnp.sqrt(squares[0]) + 256 * eps * size

    def near(item: Any) -> tuple[Array, Array]:
        i, j, own, *_ = item
        parts = zip((i, j), roots, given, strict=True)
        ends = [jax.tree.map(lambda x, k=k: flat(x)[k], own) for k, *own in parts]
        return _on_grids(functions, bounds, ends, own)

    def one(item: Any) -> tuple[Array, Array]:
        i, j, own, bound, enough = item
        series = lambda _: (_sum((tables[0][i], tables[1][j]), own), bound)
        return jax.lax.cond(enough, series, near, item)

    enough = left_out <= _ACCEPTED[c.dtype.name] * size
    value, error = jax.lax.map(one, (*rows, angles, left_out, enough))
    error = error + between[0] * jnp.sqrt(squares[1]) + between[1] * jnp.sqrt(squares[0])
    error = jnp.where(jnp.isfinite(value) & ~jnp.isnan(error), error, jnp.inf)
    return value.reshape(shape), error.reshape(shape)


def _sum(tables: tuple[Array, Array], angles: tuple[Array, ...]) -> Array:
    """Mehler's formula, from both sides' coefficients."""
    phi, s1, s2, theta = angles
    u = jnp.asarray(_unitary(), tables[0].dtype)
    spin = jnp.asarray(2 * np.arange(DEGREES)[None, :] - np.arange(DEGREES)[:, None], phi.dtype)  # p − q
    degree, index = np.indices((DEGREES, DEGREES))
    mine = jnp.einsum("dp,dpj->dj", tables[0] * jnp.exp(1j * spin * phi), u).real
    other = jnp.einsum("dp,dpj->dj", tables[1] * jnp.exp(-1j * spin * theta), u).real
    powers = [jnp.concatenate([jnp.ones(1, s.dtype), jnp.cumprod(jnp.full(DEGREES - 1, s))]) for s in (s1, s2)]
    weights = powers[0][index] * powers[1][np.maximum(degree - index, 0)]
    return jnp.where(index <= degree, mine * other * weights, 0.0).sum()


def _on_grids(functions: Any, bounds: bool, ends: Sequence[Any], angles: tuple[Array, ...]) -> tuple[Array, Array]:
    """(value, bound) by Mehler's kernel between samples of both functions in the rotated coordinates."""
    phi, s1, s2, theta = angles
    (first, own), (second, others) = ends

    def on_grid(grid: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        nodes, weights, step = grid
        left = _samples(functions[0], matmul(first, _turn(phi)), own, (nodes, nodes), weights)
        mirrored = nodes * jnp.where(s1 < 0, -1.0, 1.0), nodes * jnp.where(s2 < 0, -1.0, 1.0)
        right = _samples(functions[1], matmul(second, _turn(theta).T), others, mirrored, weights)
        smooth = matmul(matmul(mehler(jnp.abs(s1), step, nodes), right), mehler(jnp.abs(s2), step, nodes))
        squares = (left**2).sum(), (right**2).sum()
        size = jnp.sqrt(squares[0] * squares[1])
        outer = jnp.sqrt(_outer(left, nodes) * squares[1]) + jnp.sqrt(_outer(right, nodes) * squares[0])
        return (left * smooth).sum(), OUTSIDE * outer + 256 * jnp.finfo(size.dtype).eps * size

    found, sizes = jax.lax.map(on_grid, chosen(bounds, phi.dtype))
    return found[0], apart(found) + sizes[0]


def _turn(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


@_crossing.defjvp
def _crossing_jvp(functions: Any, bounds: bool, primals: Any, tangents: Any) -> Any:
    """Each side moves by M z with its own covariance; between them what is left, dC − MC − CM̄ᵀ, gives E ∂F ∂F̄."""
    (covs, numbers, held), (dcovs, dnumbers, _) = primals, tangents
    for fn, cov, *given in zip(functions, covs[:2], numbers, held, strict=True):
        refuse_jumps(fn, cov, tuple(given))
    value, error = _crossing(functions, bounds, covs, numbers, held)
    tangent = jnp.zeros_like(value)
    motions = [motion(cov, dcov) for cov, dcov in zip(covs[:2], dcovs[:2], strict=True)]
    for side in (0, 1):
        cov, own, fixed, total = moves(covs[side], motions[side], numbers[side], dnumbers[side], held[side])
        moved = _replaced(functions, side, Moved(functions[side]))
        rest = jax.tree.map(lambda x: x[None], (covs, numbers, held))
        given = (_replaced(old, side, new) for old, new in zip(rest, (cov, own, fixed), strict=True))
        tangent = tangent + total(_crossing(moved, False, *given)[0])
    (mine, *_), (other, *_) = motions
    between = dcovs[2] - matmul(mine, covs[2]) - matmul(covs[2], jnp.swapaxes(other, -1, -2))
    for i in range(_reads(functions[0])):
        for j in range(_reads(functions[1])):
            slopes = Partial(functions[0], i), Partial(functions[1], j)
            tangent = tangent + between[..., i, j] * _crossing(slopes, False, covs, numbers, held)[0]
    return (value, error), (tangent, jnp.zeros_like(error))


def _replaced(items: tuple[Any, ...], place: int, new: Any) -> tuple[Any, ...]:
    return *items[:place], new, *items[place + 1 :]


def _reads(fn: Any) -> int:
    """How many coordinates a side reads: those of the function under its derivatives."""
    while not isinstance(fn, Onto):
        fn = fn.fn
    return len(fn.slots)
