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
    S, _, values = _unit(S)
    rule = root_rule(values, NODES[S.dtype][1])
    tilted = tilt(S, rule.s)
    weights = jnp.exp(rule.log_weight - tilted.log_det / 2)
    # E phi(u) = even E|u| = even sqrt(2 K/pi)
    return _scaled(phi.even * (math.sqrt(2 * S.shape[-1]) / math.pi), integral(weights, root(diagonal(tilted.K))))


def same_sums(S: Array, phi: Sides, psi: Sides) -> Sums:
    S, _, values = _unit(S)
    rule = square_rule(values, NODES[S.dtype][0])
    tilted = tilt(S, rule.s)
    weights = jnp.exp(rule.log_weight - tilted.log_det / 2)
    return _scaled(S.shape[-1], integral(weights, _pair(*_entries(tilted.K), phi, psi)))


def same_tangent_sums(S: Array, T: Array, phi: Sides, psi: Sides) -> Sums:
    S, unit, values = _unit(S)
    T = centred(T) / unit
    rule = square_rule(values, NODES[S.dtype][0])
    tilted = tilt(S, rule.s)
    weights = jnp.exp(rule.log_weight - tilted.log_det / 2)
    P = rule.s[:, None, None] * tilted.K  # at most 1/2, where s and K are neither large nor small
    TP, PT = T @ P, P @ T
    PTP = PT @ P
    covariance = T - TP - PT + (PTP + PTP.mT) / 2
    first, second = diagonal(PTP - 2 * TP), diagonal(PTP - 2 * PT)
    value, moved = jax.jvp(lambda a, b, c: _pair(a, b, c, phi, psi), _entries(P), _beside(first, second, covariance))
    integrand = moved + value * (jnp.trace(TP, axis1=-2, axis2=-1) / 2)[:, None, None]
    scale = jnp.where((values > 0).sum() >= 3, float(S.shape[-1]), jnp.nan)
    return _scaled(scale, integral(weights, integrand))


def cross_sums(S1: Array, S2: Array, X: Array, phi: Sides, psi: Sides) -> Sums:
    """One batch is weighted after the other: hbar is N(0, S2 - 2s X^T (1 + 2s S1)^-1 X) once h has its weight."""
    S1, unit1, values1 = _unit(S1)
    S2, unit2, values2 = _unit(S2)
    X = centred(X) * lax.rsqrt(unit1) * lax.rsqrt(unit2)
    count = NODES[X.dtype][1]
    rule1, rule2 = root_rule(values1, count), root_rule(values2, count)
    s, t = rule1.s, rule2.s
    first = tilt(S1, s)
    Y, left = _given(S1, S2, X, s, first.M)

    def node(item: tuple[Array, ...]) -> Sums:
        """The integral over t at one s."""
        log_weight, K, Y, left = item
        second = tilt(left, t)
        c = Y @ second.M
        a = diagonal(K) - 2 * t[:, None] * (c * Y).sum(-1)
        weights = jnp.exp(log_weight + rule2.log_weight - second.log_det / 2)
        return integral(weights, _pair(*_beside(a, diagonal(second.K), c), phi, psi))

    # One node at a time: all of them at once would leave the processor's cache, and take three times as long.
    fine, coarse = mapped(node, (rule1.log_weight - first.log_det / 2, first.K, Y, left))
    return _scaled(math.sqrt(X.shape[0] * X.shape[1]) / math.pi, (fine.sum(0), 2 * coarse[::2].sum(0)))


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


# ---- pieces ---------------------------------------------------------------------------------------------------------


def centred(S: Array) -> Array:
    """G S Gbar."""
    S = S - S.mean(-1, keepdims=True)
    return S - S.mean(-2, keepdims=True)


def noise(S: Array) -> Array:
    """(...,): how much of an eigenvalue of G S G may be the rounding of S."""
    eps = float(jnp.finfo(S.dtype).eps)
    return S.shape[-1] * eps * jnp.maximum(diagonal(S).max(-1), diagonal(centred(S)).sum(-1))


def spectrum(S: Array) -> tuple[Array, Array]:
    """Eigenvalues of G S G, 0 where they may be rounding, and eigenvectors. Constants."""
    S = lax.stop_gradient(S)
    values, Q = jnp.linalg.eigh(centred(S))
    return jnp.where(values > noise(S), values, 0.0), Q


def _unit(S: Array) -> tuple[Array, Array, Array]:
    """G S G in units of its mean variance, that unit, and its eigenvalues; nan where all examples are equal.

    Batch norm knows no scale, so derivatives are right with the unit held fixed.
    """
    values, Q = spectrum(S)
    unit = jnp.where((values > 0).any(), values.sum() / values.size, jnp.nan)
    S = centred(S)
    return ((Q * values) @ Q.T + (S - lax.stop_gradient(S))) / unit, unit, values / unit


def _beside(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """(..., A) and (..., B) beside the (..., A, B) that they belong to."""
    return jnp.broadcast_to(a[..., :, None], c.shape), jnp.broadcast_to(b[..., None, :], c.shape), c


def _entries(K: Array) -> tuple[Array, Array, Array]:
    """The two variances and the covariance of each entry of K."""
    return _beside(diagonal(K), diagonal(K), K)


def _pair(a: Array, b: Array, c: Array, phi: Sides, psi: Sides) -> Array:
    """E phi(u) psi(v): odd and even parts do not mix, and E |u||v| is an arc-cosine kernel."""
    odd, even = phi.odd * psi.odd, phi.even * psi.even
    if isinstance(even, float) and even == 0:
        return odd * c
    return odd * c + even * signed_pair(1, 1, a, b, c)


def diagonal(K: Array) -> Array:
    return jnp.diagonal(K, axis1=-2, axis2=-1)


def _scaled(scale: Any, sums: Sums) -> Sums:
    return scale * sums[0], scale * sums[1]
