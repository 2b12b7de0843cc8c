"""Gaussians weighted by exp(-s |g|^2), and the rules that integrate over s: what divides expectations by |g|.

    1/|g|^2 = int_0^inf exp(-s |g|^2) ds,        1/|g| = pi^(-1/2) int_R exp(-v^2 |g|^2) dv

Under the weight g ~ N(0, A) becomes N(0, K) with K = A (1 + 2sA)^-1, times det(1 + 2sA)^(-1/2). Every integrand is
analytic in s off the negative numbers, and singular on them between the -1/(2 lambda) of A's eigenvalues. In log s the
strip of analyticity is as wide at all scales, so the trapezoid rule there converges geometrically whatever the spread
of the eigenvalues. Both ends, where the integrand is a power of s, are cut short by maps that turn doubly exponential
above the largest and below the smallest eigenvalue.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

_STEEP = 0.25  # where the maps begin to bend at the ends: more shortens the range and narrows the strip
_START = 1.5  # how far above the largest eigenvalue the rule for 1/|g|^2 begins to bend
_NEWTON = 6  # steps that find the last node, to far below a step of the rule


class Tilted(NamedTuple):
    """At each node s: M = (1 + 2sA)^-1, K = A M, both (nodes, B, B), and log det(1 + 2sA), (nodes,)."""

    M: Array
    K: Array
    log_det: Array


@jax.custom_jvp
def tilt(A: Array, s: Array) -> Tilted:
    """N(0, A) weighted by exp(-s |g|^2). **Arguments:** A: (B, B), positive semi-definite; s: (nodes,), constants."""
    values, Q = jnp.linalg.eigh(A)
    values = jnp.where(values > rounding(values), values, 0.0)  # s may be large enough to make much of rounding
    shrink = 1 / (1 + 2 * s[:, None] * values)
    M, K = ((Q * f[:, None, :]) @ Q.T for f in (shrink, values * shrink))
    return Tilted(M, (K + K.mT) / 2, jnp.log1p(2 * s[:, None] * values).sum(-1))


@tilt.defjvp
def _tilt_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Tilted, Tilted]:
    """In terms of M, which has derivatives of all orders where eigenvectors have none (equal eigenvalues)."""
    (A, s), (dA, _) = primals, tangents
    out = tilt(A, s)
    dK = out.M @ dA @ out.M
    return out, Tilted(-2 * s[:, None, None] * dK, dK, 2 * s * (out.M * dA).sum((-2, -1)))


def rounding(values: Array) -> Array:
    """(..., 1): below it, eigenvalues (..., B) may be rounding."""
    return values.shape[-1] * float(jnp.finfo(values.dtype).eps) * jnp.max(values, -1, keepdims=True)


# ---- the rules ------------------------------------------------------------------------------------------------------
#
# Places are measured as x = log(2 s lambda_max): the integrand leaves its value at s = 0 around x = 0, is a pure power
# of s beyond x = log(lambda_max / lambda_min), and negligible beyond `reach`.


class Rule(NamedTuple):
    """Nodes s of an integral over s, and the logarithms of their weights, both (nodes,)."""

    s: Array
    log_weight: Array


def square_rule(values: Array, count: int) -> Rule:
    """For int_0^inf f(s) ds: x = y - e^(-y) + k e^y - 1.5, y equally spaced.

    **Arguments:** values: A's eigenvalues, (B,), 0 where they are rounding; count: how many nodes.
    """
    place = _places(values)
    k = _STEEP / 2 * jnp.exp(-place.spread - _START)
    last = _solve(lambda y: (y + k * jnp.exp(y), 1 + k * jnp.exp(y)), jnp.log, place.reach + _START, k)
    first = -math.log(place.digits)
    step = (last - first) / (count - 1)
    y = first + step * jnp.arange(count, dtype=values.dtype)
    log_s = y - jnp.exp(-y) + k * jnp.exp(y) - _START - jnp.log(2 * place.largest)
    slope = 1 + jnp.exp(-y) + k * jnp.exp(y)
    return Rule(jnp.exp(log_s), jnp.log(slope * step) + log_s)


def root_rule(values: Array, count: int) -> Rule:
    """For int_R f(v^2) dv, at s = v^2: v sqrt(2 lambda_max) = sinh(z + k sinh z), z equally spaced.

    Everything is even in z, so half of the nodes do, and the end at s = 0 costs nothing. Of two weights, both need the
    whole reach in three dimensions and for equal batches only, where rounding has long taken over; that tail is 1e-8.
    """
    place = _places(values)
    full = place.spread + 1.4 * place.digits
    reach = jnp.where((values > 0).sum() >= 3, jnp.minimum(place.reach, full), place.reach)
    k = _STEEP / jnp.cosh(place.spread / 2 + math.log(2.0))
    target = reach / 2 + math.log(2.0)
    last = _solve(lambda z: (z + k * jnp.sinh(z), 1 + k * jnp.cosh(z)), jnp.arcsinh, target, k)
    step = last / (count - 1)
    z = step * jnp.arange(count, dtype=values.dtype)
    inner, slope = z + k * jnp.sinh(z), 1 + k * jnp.cosh(z)
    both = jnp.where(z > 0, 2.0, 1.0).astype(values.dtype)
    log_weight = jnp.log(both * step * slope * jnp.cosh(inner)) - 0.5 * jnp.log(2 * place.largest)
    return Rule(jnp.sinh(inner) ** 2 / (2 * place.largest), log_weight)


def integral(weights: Array, integrand: Array) -> tuple[Array, Array]:
    """The sum of weights (nodes,) times integrand (nodes, ...), and that of the coarser rule of every other node."""
    fine, coarse = (
        jnp.tensordot(weights[::step], integrand[::step], 1, precision=lax.Precision.HIGHEST) for step in (1, 2)
    )
    return fine, 2 * coarse


class _Places(NamedTuple):
    largest: Array  # eigenvalue
    spread: Array  # the x of the smallest eigenvalue
    reach: Array  # the x from which on the integrand is less than exp(-digits) of its largest value
    digits: float


def _places(values: Array) -> _Places:
    digits = 28.0 if values.dtype == jnp.float64 else 15.0
    largest = jnp.maximum(values.max(), float(jnp.finfo(values.dtype).tiny))
    ratio = values / largest
    some = ratio > 0
    x = jnp.arange(0.0, 5 * digits, 0.5, dtype=values.dtype)
    log_det = jnp.logaddexp(0.0, x[:, None] + jnp.log(ratio)).sum(-1)
    # Moments divided by |g|^2 have integrands of the size of s det^(-1/2), and exist from three dimensions on. Below,
    # only values do: their integrands have one more factor K ~ 1/s.
    size = jnp.where(some.sum() >= 3, x, 0.0) - log_det / 2
    reach = jnp.max(jnp.where(size >= size.max() - digits, x, 0.0)) + 0.5
    spread = -jnp.log(jnp.min(jnp.where(some, ratio, 1.0)))
    return _Places(largest, jnp.minimum(spread, reach), reach, digits)


def _solve(
    fn: Callable[[Array], tuple[Array, Array]], inverse: Callable[[Array], Array], target: Any, k: Array
) -> Array:
    """y with fn(y)[0] = target, where fn(y) is y plus k times something convex whose inverse is known, and its slope:
    Newton's method from above, where it stays."""
    y = jnp.minimum(target, inverse(target / k))
    for _ in range(_NEWTON):
        value, slope = fn(y)
        y = y - (value - target) / slope
    return y
