"""Piecewise polynomials with a break at 0: relu, leaky relu, abs, sign, step, and every polynomial.

The family is spanned by x^p and x^p sign(x), whose parities keep terms that cancel apart: relu = x/2 + x sign(x)/2,
step = 1/2 + sign(x)/2. It is closed under sums, products and derivatives (a jump's derivative is 0 almost everywhere).

Pair moments, u ~ N(0, a), v ~ N(0, b), E uv = c, by Price's and Stein's rules for g_p(x) = x^p sign(x),
g_p' = p g_(p-1), g_0' = 2 delta (the arc-cosine kernels of Cho and Saul 2009, with any two degrees):

    E phi(u) psi(v)      = sum_k c^k/k! E phi^(k)(u) E psi^(k)(v)          where phi or psi is a polynomial
    S_pq = E g_p(u) g_q(v) = (p-1) a S_(p-2,q) + q c S_(p-1,q-1)           and delta terms where p = 1 or q = 0
    S_00 = (2/pi) arcsin r,  S_11 = (2/pi) sqrt(ab) (sqrt(1-r^2) + r arcsin r)
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tensorprog.functions.angles import angle
from tensorprog.functions.forms import (
    Coefficient,
    Form,
    Numbers,
    absolute_moment,
    gap,
    half_power,
    inverse_root,
    positive,
    size,
)

DENSITY = 1 / math.sqrt(2 * math.pi)  # of a standard normal at 0


@dataclass(frozen=True, order=True)
class Power:
    """x^p, or x^p sign(x)."""

    p: int
    signed: bool = False

    def __call__(self, z: Array) -> Array:
        power = z**self.p if self.p else jnp.ones_like(z)
        return power * jnp.sign(z) if self.signed else power

    def derivative(self) -> Iterable[tuple[float, "Power"]]:
        return [(float(self.p), Power(self.p - 1, self.signed))] if self.p else []

    def times(self, other: "Power") -> Iterable[tuple[float, "Power"]]:
        return [(1.0, Power(self.p + other.p, self.signed != other.signed))]

    @property
    def even(self) -> bool:
        return (self.p % 2 == 0) != self.signed

    def mean(self, a: Array) -> Any:
        return absolute_moment(self.p) * half_power(a, self.p) if self.even else 0.0

    def norm(self, a: Array) -> Any:
        return math.sqrt(absolute_moment(2 * self.p)) * half_power(a, self.p)


class Piecewise(Form):
    """sum_p (alpha_p + beta_p sign(x)) x^p."""

    @property
    def degree(self) -> int | None:
        """The degree where this is a polynomial, else None."""
        return None if any(term.signed for _, term in self.terms) else max([0, *(t.p for _, t in self.terms)])

    def shifted(self, index: int) -> "Piecewise | None":
        """(x + m)^p by the binomial theorem; a break would move away from 0."""
        if self.degree is None:
            return None
        found: list[tuple[Coefficient, Power]] = []
        for weight, term in self.terms:
            power = Coefficient.of(1.0)  # m^k
            for k in range(term.p + 1):
                found.append((weight * power * math.comb(term.p, k), Power(term.p - k)))
                power = power * Coefficient.number(index)
        return self.of(*found)

    def mean(self, a: Array, numbers: Numbers) -> Array:
        return sum((weight * term.mean(a) for weight, term in self.values(numbers)), jnp.zeros_like(a))

    def square(self, other: "Piecewise", a: Array, numbers: Numbers, others: Numbers) -> Array:
        # The pair moment at r = 1 has the same value, but derivatives in a that are clipped.
        product = self.product(other, len(numbers))
        assert product is not None, "piecewise polynomials are closed under products"
        return product.mean(a, numbers + others)

    def pair(self, other: "Piecewise", a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        (plain, signed), (plain_b, signed_b) = _split(self.values(numbers)), _split(other.values(others))
        total = jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape, c.shape), c.dtype)
        for k in range(min(max(plain, default=-1), max(plain_b, default=-1)) + 1):
            means = _mean_derivative(plain, k, a) * _mean_derivative(plain_b, k, b)
            total = total + c**k * (means / float(math.factorial(k)))  # 21! is no 64-bit integer
        for p, w in plain.items():
            for q, v in signed_b.items():
                total = total + w * v * _mixed(p, q, a, b, c)
        for p, w in signed.items():
            for q, v in plain_b.items():
                total = total + w * v * _mixed(q, p, b, a, c)
        for p, w in signed.items():
            for q, v in signed_b.items():
                if (p + q) % 2 == 0:
                    total = total + w * v * signed_pair(p, q, a, b, c)
        return total

    def rounding(self, other: "Piecewise", a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        """Two jumps cost more: the angle between nearly parallel u and v is known to eps/sqrt(1-r^2), or sqrt(eps)."""
        bound = super().rounding(other, a, b, c, numbers, others)
        jumps = [_split(form.values(held))[1].get(0) for form, held in ((self, numbers), (other, others))]
        if jumps[0] is None or jumps[1] is None:
            return bound
        eps = jnp.finfo(c.dtype).eps
        _, s = correlation(a, b, c)
        exact = (a == b) & (size(c) == a)  # a gap of 0 is then no rounding
        angle = jnp.where(exact, 0.0, eps / jnp.maximum(s, jnp.sqrt(eps)))
        return bound + 4 * jnp.abs(jumps[0] * jumps[1]) * angle


def polynomial(*coefficients: float | Coefficient) -> Piecewise:
    """coefficients[p] x^p, lowest degree first."""
    return Piecewise.of(*((weight, Power(p)) for p, weight in enumerate(coefficients)))


def kinked(below: float | Coefficient, above: float | Coefficient, p: int = 1) -> Piecewise:
    """below * x^p for x < 0, above * x^p for x > 0."""
    low, high = Coefficient.of(below), Coefficient.of(above)
    return Piecewise.of((0.5 * (high + low), Power(p)), (0.5 * (high - low), Power(p, signed=True)))


def _split(values: list[tuple[Any, Power]]) -> tuple[dict[int, Any], dict[int, Any]]:
    plain = {term.p: weight for weight, term in values if not term.signed}
    return plain, {term.p: weight for weight, term in values if term.signed}


def _mean_derivative(plain: dict[int, Any], k: int, a: Array) -> Array:
    """E of the k-th derivative of a polynomial."""
    total = jnp.zeros_like(a)
    for p, weight in plain.items():
        if p >= k:
            total = total + weight * float(math.perm(p, k)) * Power(p - k).mean(a)
    return total


@cache
def _hermite_moment(q: int, k: int) -> float:
    """E g_q(z) He_k(z) of a standard normal z."""
    powers = np.polynomial.hermite_e.herme2poly([0.0] * k + [1.0])
    return sum(float(h) * absolute_moment(q + j) for j, h in enumerate(powers) if (q + j) % 2)


def _mixed(p: int, q: int, a: Array, b: Array, c: Array) -> Array:
    """E u^p g_q(v) = sum_k (c/sqrt b)^k / k! E (u^p)^(k) E g_q(v) He_k(v / sqrt b)."""
    total = jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape, c.shape), c.dtype)
    for k in range(p % 2, p + 1, 2):
        if (q + k) % 2 == 0:
            continue
        # (c/sqrt b)^k b^(q/2) without a division where none is needed, so that derivatives at b = 0 are right.
        power = c ** min(k, q) * half_power(b, max(q - k, 0)) * (c * inverse_root(b)) ** max(k - q, 0)
        weight = math.perm(p, k) / math.factorial(k) * absolute_moment(p - k) * _hermite_moment(q, k)
        total = total + weight * half_power(a, p - k) * power
    return total


def correlation(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """r = c/sqrt(ab) and sqrt(1-r^2), 1 and 0 for a = b = c; 0 and 1 where one variance is 0, 1 and 0 where both."""
    inverse_a, inverse_b = inverse_root(a), inverse_root(b)
    # a and b are divided just as c is, so that what was equal stays equal.
    unit_a = jnp.where(positive(a), a * inverse_a * inverse_a, 1.0)
    unit_b = jnp.where(positive(b), b * inverse_b * inverse_b, 1.0)
    r = jnp.where(positive(a) | positive(b), c * inverse_a * inverse_b, 1.0)
    square = gap(unit_a, unit_b, r)
    # A derivative of up to 1/eps is passed on, not an infinity.
    steep = square > jnp.finfo(c.dtype).eps ** 2
    s = jnp.where(steep, jnp.sqrt(jnp.where(steep, square, 1.0)), jax.lax.stop_gradient(jnp.sqrt(square)))
    return jnp.clip(r, -1.0, 1.0), s


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def signed_pair(p: int, q: int, a: Array, b: Array, c: Array) -> Array:
    """S_pq = E u^p sign(u) v^q sign(v), for p + q even (it is 0 for odd)."""
    r, s = correlation(a, b, c)
    arcsine = angle(r, s)
    known: dict[tuple[int, int], Any] = {(0, 0): 2 / math.pi * arcsine}

    def standard(p: int, q: int) -> Any:
        """S_pq at a = b = 1: Stein's rule on the side of higher degree."""
        p, q = max(p, q), min(p, q)
        if (p, q) not in known:
            found = (p - 1) * standard(p - 2, q) if p > 1 else 2 * DENSITY * absolute_moment(q) * s**q
            if q:
                found = found + q * r * standard(p - 1, q - 1)
            else:
                found = found + 2 * DENSITY * absolute_moment(p - 1) * r * s ** (p - 1)
            known[p, q] = found
        return known[p, q]

    return half_power(a, p) * half_power(b, q) * standard(p, q)


@signed_pair.defjvp
def _signed_pair_jvp(p: int, q: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Price's rule, dS/dc = E g_p'(u) g_q'(v), dS/da = 1/2 E g_p''(u) g_q(v): finite at |r| = 1, as arcsin's is not."""
    a, b, c = primals
    in_c = _in_c(p, q, a, b, c)
    in_a, in_b = _in_a(p, q, a, b, c, in_c), _in_a(q, p, b, a, c, in_c)
    return signed_pair(p, q, a, b, c), in_a * tangents[0] + in_b * tangents[1] + in_c * tangents[2]


def _in_c(p: int, q: int, a: Array, b: Array, c: Array) -> Array:
    if p and q:
        return p * q * signed_pair(p - 1, q - 1, a, b, c)
    if q:
        return q * _at_zero(q - 1, a, b, c)
    if p:
        return p * _at_zero(p - 1, b, a, c)
    # The density of (u, v) at (0, 0), four times; infinite at |r| = 1, where it is cut at 1/sqrt(eps).
    _, s = correlation(a, b, c)
    cut = math.sqrt(jnp.finfo(c.dtype).eps)
    return _capped(2 / math.pi * inverse_root(a) * inverse_root(b) / jnp.maximum(s, cut))


def _capped(x: Array) -> Array:
    """No overflow at variances near the smallest number."""
    most = float(jnp.finfo(x.dtype).max) ** 0.75
    return jnp.clip(x, -most, most)


def _in_a(p: int, q: int, a: Array, b: Array, c: Array, in_c: Array) -> Array:
    if p >= 2:
        return 0.5 * p * (p - 1) * signed_pair(p - 2, q, a, b, c)
    if p == 1:
        return 0.5 * _at_zero(q, a, b, c)
    # S_0q does not change with the scale of u: 2a dS/da + c dS/dc = 0.
    return _capped(-0.5 * c * inverse_root(a) ** 2 * in_c)


def _at_zero(q: int, a: Array, b: Array, c: Array) -> Array:
    """E 2 delta(u) g_q(v), q odd: given u = 0, v has variance b (1 - r^2)."""
    _, s = correlation(a, b, c)
    return 2 * DENSITY * absolute_moment(q) * inverse_root(a) * half_power(b, q) * s**q
