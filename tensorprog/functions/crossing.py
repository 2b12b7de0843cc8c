"""Pair expectations of functions of two Gaussians a side, by a Hermite series in two dimensions.

E F(g) F̄(ḡ), g and ḡ in ℝ². With g = L z and ḡ = L̄ z̄ whitened, R = E z z̄ᵀ is a contraction, and with its singular value
decomposition R = rot(φ) diag(s₁, s₂) rot(θ) Mehler's formula holds in the rotated coordinates:

    E F F̄ = Σ_{j,k} a′_jk b′_jk s₁ʲ s₂ᵏ,      a′, b′ the Hermite coefficients in those coordinates.

Rotating is free in the complex basis H_pq(z₁ + i z₂), where it multiplies by e^{i(p−q)φ}; between the bases goes one
fixed unitary matrix a degree. Coefficients are made once an input, on an even grid; what is left out from degree D on
is at most |s₁|^D √(tail tail̄).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.breaks import refuse_jumps
from tensorprog.functions.joint import COARSER, Moved, Onto, Partial, Plain, even_grid, matmul, motion, moves, spread

Array = jax.Array
DEGREES = 48
_CHUNK = 64


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


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Nodes, and weights · h_k at them (DEGREES, nodes), h_k = He_k/√k!."""
    z, w = even_grid()
    rows = [np.ones_like(z), z]
    for k in range(1, DEGREES - 1):
        rows.append((z * rows[-1] - np.sqrt(k) * rows[-2]) / np.sqrt(k + 1))
    return z, np.stack(rows) * w


def _root(cov: Array) -> tuple[Array, Array, Array]:
    """The Cholesky factor (l11, l21, l22) of 2×2 covariances, zeros where a direction has no variance."""
    a, b, c = cov[..., 0, 0], cov[..., 1, 0], cov[..., 1, 1]
    first = jnp.sqrt(jnp.maximum(a, 0.0))
    slope = jnp.where(first > 0, b / jnp.where(first > 0, first, 1.0), 0.0)
    rest = c - slope**2
    eps = 64 * jnp.finfo(cov.dtype).eps
    return first, slope, jnp.sqrt(jnp.where(rest > eps * c, rest, 0.0))


def _inverse(root: tuple[Array, Array, Array]) -> Array:
    """The pseudo-inverse of the factor."""
    first, slope, last = root
    inv = [jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0) for x in (first, last)]
    zero = jnp.zeros_like(first)
    rows = [jnp.stack([inv[0], zero], -1), jnp.stack([-slope * inv[0] * inv[1], inv[1]], -1)]
    return jnp.stack(rows, -2)


def _coefficients(fn: Callable[..., Any], cov: Array, given: Any) -> tuple[Array, Array, Array]:
    """Of F at each covariance: complex coefficients (…, D, D) by degree and p, E F², and the coefficients' error."""
    lead = cov.shape[:-2]
    z, weighted = _table()
    table = jnp.asarray(weighted, cov.dtype)
    one, two = (jnp.asarray(part, cov.dtype) for part in np.meshgrid(z, z, indexing="ij"))
    degree, index = np.indices((DEGREES, DEGREES))
    inside = index <= degree
    places = np.where(inside, index, 0), np.where(inside, degree - index, 0)

    def series(samples: Array, every: int, i: int, j: int) -> Array:
        """By degree, from every so manyth node of an axis."""
        found = jnp.einsum(
            "jx,xy,ky->jk", table[:, i::every], samples[i::every, j::every], table[:, j::every],
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        return jnp.where(inside, every**2 * found[places], 0.0)

    def at(item: Any) -> tuple[Array, Array, Array]:
        (first, slope, last), own = item
        value = lambda x, y: fn(jnp.stack([first * x, slope * x + last * y]), own)
        samples = jax.vmap(jax.vmap(value))(one, two)
        fine = series(samples, 1, 0, 0)
        apart = [((series(samples, COARSER, *offset) - fine) ** 2).sum() for offset in np.ndindex(COARSER, COARSER)]
        square = table[0] @ samples**2 @ table[0]
        return fine, square, jnp.sqrt(jnp.stack(apart).max()) / COARSER

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), (_root(cov), given))
    fine, square, error = (x.reshape(*lead, *x.shape[1:]) for x in jax.lax.map(at, flat))
    u = jnp.asarray(np.conj(_unitary()), jnp.result_type(cov.dtype, jnp.complex64))
    return jnp.einsum("dpj,...dj->...dp", u, fine.astype(u.dtype)), square, error


def _rotations(r: Array) -> tuple[Array, Array, Array, Array]:
    """R = rot(φ) diag(s₁, s₂) rot(θ) for 2×2 matrices; s₂ may be negative."""
    e, f = (r[..., 0, 0] + r[..., 1, 1]) / 2, (r[..., 0, 0] - r[..., 1, 1]) / 2
    g, h = (r[..., 1, 0] + r[..., 0, 1]) / 2, (r[..., 1, 0] - r[..., 0, 1]) / 2
    q, s = jnp.hypot(e, h), jnp.hypot(f, g)
    one, two = jnp.arctan2(g, f), jnp.arctan2(h, e)
    return (two + one) / 2, jnp.clip(q + s, -1.0, 1.0), jnp.clip(q - s, -1.0, 1.0), (two - one) / 2


def crossing(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    slots: tuple[tuple[int, ...], tuple[int, ...]],
    count: int,
    covs: tuple[Array, Array, Array],
    numbers: Any,
) -> tuple[Array, Array]:
    """(value, error estimate) of E F(z) F̄(z) with F reading `slots[0]` of `count` Gaussians, F̄ `slots[1]`.

    `covs`: of F's Gaussians (…, 2, 2), of F̄'s, and between them, which broadcast; for one Gaussian a side the second
    row and column are 0. Derivatives in the covariances take one derivative of each function: these may have kinks.
    """
    rank = max(cov.ndim for cov in covs)
    a, b, c = (cov.reshape(*(1,) * (rank - cov.ndim), *cov.shape) for cov in covs)
    own = tuple(Plain(Onto(f, places, count)) for f, places in zip(functions, slots, strict=True))
    return _crossing(own, (a, b, c), (spread(numbers, a.shape[:-2]), spread(numbers, b.shape[:-2])), ((), ()))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _crossing(functions: Any, covs: Any, numbers: Any, held: Any) -> tuple[Array, Array]:
    """`numbers` and `held` of each side: trees of arrays, for each of its covariances; all covariances of one rank."""
    a, b, c = covs
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)[:-2]
    given = zip(numbers, held, strict=True)
    left, right = (_coefficients(*side) for side in zip(functions, (a, b), given, strict=True))
    inverse_a, inverse_b = _inverse(_root(a)), _inverse(_root(b))
    r = jnp.einsum("...ij,...jk,...lk->...il", inverse_a, c, inverse_b, precision=jax.lax.Precision.HIGHEST)
    phi, s1, s2, theta = (jnp.broadcast_to(x, shape).reshape(-1) for x in _rotations(r))
    rows = [jnp.broadcast_to(jnp.arange(x.size).reshape(x.shape), shape).reshape(-1) for x in (left[1], right[1])]
    first, second = (x[0].reshape(-1, DEGREES, DEGREES) for x in (left, right))
    u = jnp.asarray(_unitary(), first.dtype)
    spin = jnp.asarray(2 * np.arange(DEGREES)[None, :] - np.arange(DEGREES)[:, None], c.dtype)  # p − q by degree and p
    degree, index = np.indices((DEGREES, DEGREES))

    def one(args: tuple[Array, ...]) -> Array:
        i, j, phi, s1, s2, theta = args
        mine = jnp.einsum("dp,dpj->dj", first[i] * jnp.exp(1j * spin * phi), u).real
        other = jnp.einsum("dp,dpj->dj", second[j] * jnp.exp(-1j * spin * theta), u).real
        powers = [jnp.concatenate([jnp.ones(1, s.dtype), jnp.cumprod(jnp.full(DEGREES - 1, s))]) for s in (s1, s2)]
        weights = powers[0][index] * powers[1][np.maximum(degree - index, 0)]
        return jnp.where(index <= degree, mine * other * weights, 0.0).sum()

    items = (rows[0], rows[1], phi, s1, s2, theta)
    value = jax.lax.map(one, items, batch_size=min(_CHUNK, len(rows[0]))).reshape(shape)
    eps = jnp.finfo(c.dtype).eps
    size = [jnp.sqrt(square) for _, square, _ in (left, right)]
    kept = [(jnp.abs(x) ** 2).sum((-1, -2)) for x, _, _ in (left, right)]
    tails = [jnp.maximum(x[1] - k, 0.0) + 8 * eps * x[1] for x, k in zip((left, right), kept, strict=True)]
    largest = jnp.abs(s1).reshape(shape)
    error = largest**DEGREES * jnp.sqrt(tails[0] * tails[1]) + left[2] * size[1] + right[2] * size[0]
    return value, error + 256 * eps * size[0] * size[1]


@_crossing.defjvp
def _crossing_jvp(functions: Any, primals: Any, tangents: Any) -> Any:
    """Each side moves by M z with its own covariance; between them what is left, dC − MC − CM̄ᵀ, gives E ∂F ∂F̄."""
    (covs, numbers, held), (dcovs, dnumbers, _) = primals, tangents
    for fn, cov, *given in zip(functions, covs[:2], numbers, held, strict=True):
        refuse_jumps(fn, cov, tuple(given))
    value, error = _crossing(functions, covs, numbers, held)
    tangent = jnp.zeros_like(value)
    motions = [motion(cov, dcov) for cov, dcov in zip(covs[:2], dcovs[:2], strict=True)]
    for side in (0, 1):
        cov, own, fixed, total = moves(covs[side], motions[side], numbers[side], dnumbers[side], held[side])
        moved = _replaced(functions, side, Moved(functions[side]))
        rest = jax.tree.map(lambda x: x[None], (covs, numbers, held))
        given = (_replaced(old, side, new) for old, new in zip(rest, (cov, own, fixed), strict=True))
        tangent = tangent + total(_crossing(moved, *given)[0])
    (mine, *_), (other, *_) = motions
    between = dcovs[2] - matmul(mine, covs[2]) - matmul(covs[2], jnp.swapaxes(other, -1, -2))
    for i in range(_reads(functions[0])):
        for j in range(_reads(functions[1])):
            slopes = Partial(functions[0], i), Partial(functions[1], j)
            tangent = tangent + between[..., i, j] * _crossing(slopes, covs, numbers, held)[0]
    return (value, error), (tangent, jnp.zeros_like(error))


def _replaced(items: tuple[Any, ...], place: int, new: Any) -> tuple[Any, ...]:
    return *items[:place], new, *items[place + 1 :]


def _reads(fn: Any) -> int:
    """How many coordinates a side reads: those of the function under its derivatives."""
    while not isinstance(fn, Onto):
        fn = fn.fn
    return len(fn.slots)
