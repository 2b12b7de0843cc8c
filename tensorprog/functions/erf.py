"""The error function's family: erf, erfc, the normal cdf, gelu, exp(-x^2), and all their derivatives.

It is spanned by x^p exp(-s x^2) and x^p exp(-s x^2) erf(k x), and closed under derivatives. Pair moments of
u ~ N(0, a), v ~ N(0, b), E uv = c:

1. Gaussian factors tilt the measure. E exp(-s u^2 - t v^2) F(u, v) = D^(-1/2) E' F(u, v), D = (1+2sa)(1+2tb) - 4st c^2,
   with new moments a' = (a + 2t (ab - c^2))/D, b' = (b + 2s (ab - c^2))/D, c' = c/D.
2. Stein's rule takes powers off: E u G(u) H(v) = a E G' H + c E G H'; erf' is a Gaussian factor again.
3. E erf(ku) erf(lv) = (2/pi) arcsin(2klc / sqrt((1+2k^2 a)(1+2l^2 b))) (Williams 1997), as an arctangent of c over
   the root of 1 + 2k^2 a + 2l^2 b + 4k^2 l^2 (ab - c^2), which is never 0: smooth for every a, b, |r| <= 1.

gelu's own expectation (Tsuchida, Pearce et al. 2021) and that of its derivative come out of the same three lines.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf

from tensorprog.functions.angles import angle
from tensorprog.functions.forms import Coefficient, Form, Numbers, absolute_moment, gap, half_power


@dataclass(frozen=True, order=True)
class Bell:
    """x^p exp(-s x^2), times erf(k x) unless k is 0."""

    p: int = 0
    s: float = 0.0
    k: float = 0.0

    def __call__(self, z: Array) -> Array:
        value = z**self.p if self.p else jnp.ones_like(z)
        if self.s:
            value = value * jnp.exp(-self.s * z**2)
        return value * erf(self.k * z) if self.k else value

    def derivative(self) -> "Iterable[tuple[float, Bell]]":
        if self.p:
            yield float(self.p), Bell(self.p - 1, self.s, self.k)
        if self.s:
            yield -2 * self.s, Bell(self.p + 1, self.s, self.k)
        if self.k:
            yield 2 * self.k / math.sqrt(math.pi), Bell(self.p, self.s + self.k**2)

    def times(self, other: "Bell") -> "Iterable[tuple[float, Bell]] | None":
        if self.k and other.k:
            return None
        return [(1.0, Bell(self.p + other.p, self.s + other.s, self.k or other.k))]

    @property
    def odd(self) -> bool:
        return (self.p % 2 == 1) != (self.k != 0)

    def norm(self, a: Array) -> Any:
        """sqrt E x^2p exp(-2s x^2): erf is at most 1."""
        spread = 1 / (1 + 4 * self.s * a)
        return math.sqrt(absolute_moment(2 * self.p)) * half_power(a * spread, self.p) * spread**0.25


class Erf(Form):
    """sum_i w_i x^p_i exp(-s_i x^2) erf(k_i x)."""

    smooth = True

    def mean(self, a: Array, numbers: Numbers) -> Array:
        zero, one = jnp.zeros_like(a), Bell()
        total = jnp.zeros_like(a)
        for weight, term in self.values(numbers):
            total = total + weight * bell_pair(term, one, a, zero, zero)
        return total

    def pair(self, other: "Erf", a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        total = jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape, c.shape), c.dtype)
        for weight, term in self.values(numbers):
            for more, factor in other.values(others):
                total = total + weight * more * bell_pair(term, factor, a, b, c)
        return total


def bell_pair(one: Bell, two: Bell, a: Array, b: Array, c: Array) -> Any:
    """E one(u) two(v)."""
    if one.odd != two.odd:
        return 0.0
    if one.s or two.s:
        return _tilted(one, two, a, b, c)
    if one.p:
        return _stein(one, two, a, b, c)
    if two.p:
        return _stein(two, one, b, a, c)
    if not one.k:
        return 1.0
    k, l = 2 * one.k**2, 2 * two.k**2
    rest = 1 + k * a + l * b + k * l * gap(a, b, c)
    return 2 / math.pi * angle(math.copysign(math.sqrt(k * l), one.k * two.k) * c, jnp.sqrt(rest))


def _tilted(one: Bell, two: Bell, a: Array, b: Array, c: Array) -> Any:
    s, t = one.s, two.s
    # With one factor only there is nothing to cancel, and ab - c^2 need not be touched.
    rest = gap(a, b, c)
    spread = 1 / (1 + 2 * s * a + 2 * t * b + (4 * s * t * rest if s and t else 0.0))
    moments = (a + 2 * t * rest) * spread, (b + 2 * s * rest) * spread, c * spread
    return jnp.sqrt(spread) * bell_pair(Bell(one.p, 0.0, one.k), Bell(two.p, 0.0, two.k), *moments)


def _stein(one: Bell, two: Bell, a: Array, b: Array, c: Array) -> Any:
    """E u G(u) H(v) = a E G'(u) H(v) + c E G(u) H'(v)."""
    lower = Bell(one.p - 1, one.s, one.k)
    own = sum((w * bell_pair(term, two, a, b, c) for w, term in lower.derivative()), 0.0)
    cross = sum((w * bell_pair(lower, term, a, b, c) for w, term in two.derivative()), 0.0)
    return a * own + c * cross


def error_function(k: float = 1.0, weight: float = 1.0, constant: float = 0.0) -> Erf:
    """constant + weight * erf(k x)."""
    return Erf.of((constant, Bell()), (weight, Bell(k=k)))


def gelu() -> Erf:
    """x cdf(x) = x/2 + x erf(x / sqrt 2) / 2."""
    return Erf.of((0.5, Bell(1)), (0.5, Bell(1, k=math.sqrt(0.5))))


def bell(s: float = 1.0, weight: float | Coefficient = 1.0) -> Erf:
    """weight * exp(-s x^2)."""
    return Erf.of((weight, Bell(s=s)))
