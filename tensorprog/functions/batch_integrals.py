"""Batch norm's expectations as integrals, for one batch or one pair of batches: the mathematics of `batchnorm`.

h in R^B is one coordinate of a layer over a batch of B examples, N(0, S). With G = 1 - 11^T/B, g = G h and a function
phi that is linear on each side of 0,

    F(h) = phi(sqrt(B) g / |g|) = sqrt(B) phi(g) / |g|.

Dividing by |g| is integrating over Gaussian weights (`tilted`). With S^G = G S G, K(s) = S^G (1 + 2s S^G)^-1,
delta(s) = det(1 + 2s S^G)^(-1/2) and V(K)_kl = E phi(u_k) psi(u_l), u ~ N(0, K),

    E F_k H_l    = B int_0^inf delta V(K)_kl ds
    E F_k Hbar_l = sqrt(B Bbar)/pi int int delta(v^2, w^2) V(K)_kl dv dw          two batches, a weight for each
    E F_k        = sqrt(B/pi) int delta(v^2) E phi(u_k) dv

Yang, *Tensor Programs II* (arXiv 2006.14548), and Yang et al., *A Mean Field Theory of Batch Normalization* (arXiv
1902.08129).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.forms import root
from tensorprog.functions.piecewise import signed_pair
from tensorprog.functions.tilted import integral, root_rule, rounding, square_rule, tilt
from tensorprog.loops import mapped

NODES = {  # of an integral for 1/|g|^2, and of each of the two for 1/(|g| |gbar|)
    jnp.dtype("float64"): (96, 32),
    jnp.dtype("float32"): (64, 20),
}

Sums = tuple[Array, Array]
"""An integral by all nodes, and by every other one: nearly the error of the coarser, whose square is the finer's."""


class Sides(NamedTuple):
    """phi(z) = above * relu(z) + below * relu(-z): what may follow. Python numbers, or scalars that may be traced."""

    above: Any
    below: Any

    @property
    def odd(self) -> Any:
        """phi(z) = odd * z + even * |z|."""
        return (self.above - self.below) / 2

    @property
    def even(self) -> Any:
        return (self.above + self.below) / 2


IDENTITY, RELU, ABS = Sides(1.0, -1.0), Sides(1.0, 0.0), Sides(1.0, 1.0)


# ---- one matrix, or one pair ----------------------------------------------------------------------------------------


def mean_sums(S: Array, phi: Sides) -> Sums:
    """E F, (B,)."""
    H, S, _, values = unit(S)
    rule = root_rule(values, NODES[S.dtype][1])
    tilted = tilt(S, rule.s)
    weights = jnp.exp(rule.log_weight - tilted.log_det / 2)
    # E phi(u) = even E|u| = even sqrt(2 K/pi)
    return _scaled(phi.even * (math.sqrt(2 * len(H)) / math.pi), integral(weights, root(_variances(H, tilted.K))))


def same_sums(S: Array, phi: Sides, psi: Sides) -> Sums:
    """E F_k H_l, (B, B)."""
    H, S, _, values = unit(S)
    rule = square_rule(values, NODES[S.dtype][0])
    tilted = tilt(S, rule.s)
    weights = jnp.exp(rule.log_weight - tilted.log_det / 2)
    return _scaled(len(H), integral(weights, _within(*_entries(H @ tilted.K @ H.T), phi, psi)))


def same_tangent_sums(S: Array, T: Array, phi: Sides, psi: Sides) -> Sums:
    """sum_ij E[d_i F_k d_j H_l] T_ij, (B, B); its derivation is told in `batchnorm.same_tangent`."""
    H, S, scale, values = unit(S)
    T = H.T @ T @ H / scale
    rule = square_rule(values, NODES[S.dtype][0])
    tilted = tilt(S, rule.s)
    weights = jnp.exp(rule.log_weight - tilted.log_det / 2)
    P = rule.s[:, None, None] * tilted.K  # at most 1/2, where s and K are neither large nor small
    TP, PT = T @ P, P @ T
    PTP = PT @ P
    covariance = T - TP - PT + (PTP + PTP.mT) / 2
    moves = _beside(_variances(H, PTP - 2 * TP), _variances(H, PTP - 2 * PT), H @ covariance @ H.T)
    value, moved = jax.jvp(lambda a, b, c: _within(a, b, c, phi, psi), _entries(H @ P @ H.T), moves)
    integrand = moved + value * (jnp.trace(TP, axis1=-2, axis2=-1) / 2)[:, None, None]
    exists = (values > 0).sum() >= 3
    return _scaled(jnp.where(exists, float(len(H)), jnp.nan), integral(weights, integrand))


def cross_sums(S1: Array, S2: Array, X: Array, phi: Sides, psi: Sides) -> Sums:
    """E F_k Hbar_l, (A, B): hbar is N(0, S2 - 2s X^T (1 + 2s S1)^-1 X) once h has its weight, then has its own."""
    H1, S1, scale1, values1 = unit(S1)
    H2, S2, scale2, values2 = unit(S2)
    X = H1.T @ X @ H2 * lax.rsqrt(scale1) * lax.rsqrt(scale2)
    count = NODES[X.dtype][1]
    rule1, rule2 = root_rule(values1, count), root_rule(values2, count)
    first = tilt(S1, rule1.s)
    Y, left = _given(S1, S2, X, rule1.s, first.M)

    def node(item: tuple[Array, ...]) -> Sums:
        """The integral over hbar's weight at one weight of h."""
        log_weight, a, Y, left = item
        second = tilt(left, rule2.s)
        c = Y @ second.M
        a = a - 2 * rule2.s[:, None] * (c * Y).sum(-1)
        weights = jnp.exp(log_weight + rule2.log_weight - second.log_det / 2)
        return integral(weights, _pair(*_beside(a, _variances(H2, second.K), c @ H2.T), phi, psi))

    # One node at a time: all of them at once would leave the processor's cache, and take three times as long.
    fine, coarse = mapped(node, (rule1.log_weight - first.log_det / 2, _variances(H1, first.K), H1 @ Y, left))
    return _scaled(math.sqrt(len(H1) * len(H2)) / math.pi, (fine.sum(0), 2 * coarse[::2].sum(0)))


def _given(S1: Array, S2: Array, X: Array, s: Array, M: Array) -> tuple[Array, Array]:
    """Y = M X and S2 - 2s X^T M X, M = (1 + 2s S1)^-1, (nodes, ., B), to full precision for large s.

    Where both batches hold the same examples the difference is as small as 1/s. What hbar has beyond h,
    S2 - X^T S1^-1 X, is taken apart from what the weight leaves of h itself, X^T S1^-1 M X; both are positive
    semi-definite. M is 1 where S1 has nothing, and so has X but for rounding. Derivatives are the plain formulas'.
    """
    Y = M @ X
    left = S2 - 2 * s[:, None, None] * (X.mT @ Y)
    left = (left + left.mT) / 2
    S1, S2, X = (lax.stop_gradient(x) for x in (S1, S2, X))
    values, Q = jnp.linalg.eigh(S1)
    some = (values > rounding(values))[:, None]
    values = jnp.where(some, values[:, None], 1.0)
    X = jnp.where(some, Q.T @ X, 0.0)
    kept = X / (1 + 2 * s[:, None, None] * values)
    beyond, P = jnp.linalg.eigh(S2 - X.T @ (X / values))
    exact = (P * jnp.maximum(beyond, 0.0)) @ P.T + (X / values).T @ kept
    return Q @ kept + (Y - lax.stop_gradient(Y)), exact + (left - lax.stop_gradient(left))


# ---- covariances of g -----------------------------------------------------------------------------------------------


def basis(B: int, dtype: Any) -> Array:
    """H (B, B-1), with H H^T = G: orthonormal coordinates of what has mean 0 over the batch.

    In them nothing is left of the batch's mean. In G S G its rounding would be, where the weights leave even less.
    """
    k = np.arange(1, max(B, 2))
    H = np.where(np.arange(B)[:, None] < k, 1.0, 0.0) - np.where(np.arange(B)[:, None] == k, k, 0.0)
    return jnp.asarray(H / np.sqrt(k * (k + 1.0)) * (B > 1), dtype)


def noise(S: Array) -> Array:
    """(...,): how much of an eigenvalue of G S G may be the rounding of S."""
    eps = float(jnp.finfo(S.dtype).eps)
    variances = jnp.diagonal(S, axis1=-2, axis2=-1)
    return S.shape[-1] * eps * jnp.maximum(variances.max(-1), variances.sum(-1) - S.sum((-2, -1)) / S.shape[-1])


def spectrum(S: Array) -> tuple[Array, Array]:
    """Eigenvalues of H^T S H, 0 where they may be rounding, and eigenvectors. Constants."""
    S = lax.stop_gradient(S)
    H = basis(len(S), S.dtype)
    values, Q = jnp.linalg.eigh(H.T @ S @ H)
    return jnp.where(values > noise(S), values, 0.0), Q


def unit(S: Array) -> tuple[Array, Array, Array, Array]:
    """H; H^T S H over its mean variance; that variance, nan where all examples are equal; the eigenvalues over it.

    Batch norm knows no scale, so derivatives are right with the unit held fixed.
    """
    H = basis(len(S), S.dtype)
    values, Q = spectrum(S)
    scale = jnp.where((values > 0).any(), values.sum() / len(S), jnp.nan)
    inner = H.T @ S @ H
    return H, ((Q * values) @ Q.T + (inner - lax.stop_gradient(inner))) / scale, scale, values / scale


# ---- moments of u and v ---------------------------------------------------------------------------------------------


def _variances(H: Array, K: Array) -> Array:
    """The diagonal of H K H^T."""
    return ((H @ K) * H).sum(-1)


def _beside(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """(..., A) and (..., B) beside the (..., A, B) that they belong to."""
    return jnp.broadcast_to(a[..., :, None], c.shape), jnp.broadcast_to(b[..., None, :], c.shape), c


def _entries(K: Array) -> tuple[Array, Array, Array]:
    """The two variances and the covariance of each entry of K."""
    diagonal = jnp.diagonal(K, axis1=-2, axis2=-1)
    return _beside(diagonal, diagonal, K)


def _pair(a: Array, b: Array, c: Array, phi: Sides, psi: Sides) -> Array:
    """E phi(u) psi(v): odd and even parts do not mix, and E |u||v| is an arc-cosine kernel."""
    odd, even = phi.odd * psi.odd, phi.even * psi.even
    if isinstance(even, float) and even == 0:
        return odd * c
    return odd * c + even * signed_pair(1, 1, a, b, c)


def _within(a: Array, b: Array, c: Array, phi: Sides, psi: Sides) -> Array:
    """`_pair` of one Gaussian vector; u = v on the diagonal, where no angle should be differentiated."""
    one = jnp.eye(c.shape[-1], dtype=bool)
    apart = _pair(jnp.where(one, 1.0, a), jnp.where(one, 1.0, b), jnp.where(one, 0.0, c), phi, psi)
    return jnp.where(one, (phi.odd * psi.odd + phi.even * psi.even) * c, apart)


def _scaled(scale: Any, sums: Sums) -> Sums:
    return scale * sums[0], scale * sums[1]
