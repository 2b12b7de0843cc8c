"""Exponentials and waves: exp, expm1, sinh, cosh, sin, cos.

The family is spanned by exp(kx), sin(kx) and cos(kx). For u ~ N(0, a), v ~ N(0, b), E uv = c, with C = k l c,

    E exp(ku) = e^(k^2 a/2),    E cos(ku) = e^(-k^2 a/2),    E sin(ku) = 0
    Cov(exp ku, exp lv) = e^((k^2 a + l^2 b)/2) expm1(C)
    Cov(sin ku, sin lv) = e^(-(k^2 a + l^2 b)/2) sinh C
    Cov(cos ku, cos lv) = e^(-(k^2 a + l^2 b)/2) (cosh C - 1)
    Cov(exp ku, sin lv) = e^((k^2 a - l^2 b)/2) sin C,    Cov(exp ku, cos lv) = e^((k^2 a - l^2 b)/2) (cos C - 1)

all from E exp(ku + lv) = e^((k^2 a + 2klc + l^2 b)/2) with imaginary k, l. Covariances and means are kept apart, so
that exp(x) - 1 and sin x at variance 1e-12 come out with all their digits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from tensorprog.functions.forms import Coefficient, Form, Numbers, size

Kind = Literal["exp", "sin", "cos"]


@dataclass(frozen=True, order=True)
class Wave:
    """exp(kx), sin(kx) or cos(kx)."""

    kind: Kind
    k: float = 1.0

    def __call__(self, z: Array) -> Array:
        return {"exp": jnp.exp, "sin": jnp.sin, "cos": jnp.cos}[self.kind](self.k * z)

    def derivative(self) -> "Iterable[tuple[float, Wave]]":
        if self.k:
            turned: dict[Kind, tuple[float, Kind]] = {"exp": (1.0, "exp"), "sin": (1.0, "cos"), "cos": (-1.0, "sin")}
            sign, kind = turned[self.kind]
            yield sign * self.k, Wave(kind, self.k)

    def times(self, other: "Wave") -> "Iterable[tuple[float, Wave]] | None":
        near, far = self.k - other.k, self.k + other.k
        match self.kind, other.kind:
            case "exp", "exp":
                return [(1.0, Wave("exp", far))]
            case "sin", "sin":
                return [(0.5, Wave("cos", near)), (-0.5, Wave("cos", far))]
            case "cos", "cos":
                return [(0.5, Wave("cos", near)), (0.5, Wave("cos", far))]
            case "sin", "cos":
                return [(0.5, Wave("sin", near)), (0.5, Wave("sin", far))]
            case "cos", "sin":
                return [(-0.5, Wave("sin", near)), (0.5, Wave("sin", far))]
            case "exp", _ if not self.k:
                return [(1.0, other)]
            case _, "exp" if not other.k:
                return [(1.0, self)]
            case _:
                return None

    def mean_less_one(self, a: Array) -> Any:
        """E (wave - wave at 0)."""
        return 0.0 if self.kind == "sin" else jnp.expm1(self.exponent(a))

    def exponent(self, a: Array) -> Array:
        return (0.5 if self.kind == "exp" else -0.5) * self.k**2 * a

    def norm(self, a: Array) -> Any:
        """sqrt E wave^2, exp's as it grows, sin's as it starts from 0."""
        if self.kind == "sin":
            return jnp.sqrt(-0.5 * jnp.expm1(-2 * self.k**2 * a))
        return jnp.exp(self.k**2 * a) if self.kind == "exp" else jnp.ones_like(a)


class Exponential(Form):
    """sum_i w_i exp(k_i x), sin(k_i x) or cos(k_i x)."""

    smooth = True

    @property
    def polynomially_bounded(self) -> bool:
        return all(term.kind != "exp" or term.k == 0 for _, term in self.terms)

    def shifted(self, index: int) -> "Exponential":
        found: list[tuple[Coefficient, Wave]] = []
        for weight, term in self.terms:
            if term.kind == "exp":
                found.append((weight * Coefficient.number(index, "exp", term.k), term))
                continue
            sin, cos = (Coefficient.number(index, name, term.k) for name in ("sin", "cos"))
            found.append((weight * cos, term))
            found += [(weight * sin * (sign / term.k), other) for sign, other in term.derivative()]
        return self.of(*found)

    def mean(self, a: Array, numbers: Numbers) -> Array:
        # At 0 the terms' sum is taken first: exp(x) - 1 has no constant left for rounding to spoil.
        start: Any = sum((w for w, term in self.terms if term.kind != "sin"), Coefficient(())).value(numbers)
        total = jnp.zeros_like(a) + start
        for weight, term in self.values(numbers):
            total = total + weight * term.mean_less_one(a)
        return total

    def pair(self, other: "Exponential", a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        total = self.mean(a, numbers) * other.mean(b, others)
        for weight, term in self.values(numbers):
            for more, factor in other.values(others):
                total = total + weight * more * covariance(term, factor, a, b, c)
        return jnp.broadcast_to(total, jnp.broadcast_shapes(a.shape, b.shape, c.shape))

    def rounding(self, other: "Exponential", a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        """e^x is known to |x| eps."""
        fastest = max([0.0, *(term.k**2 for form in (self, other) for _, term in form.terms)])
        return super().rounding(other, a, b, c, numbers, others) * (1 + fastest * (a + b))


def covariance(one: Wave, two: Wave, a: Array, b: Array, c: Array) -> Any:
    """Cov(one(u), two(v)): the formulas above, with exponents added before they are taken."""
    if (one.kind == "cos" and two.kind != "cos") or (one.kind == "sin" and two.kind == "exp"):
        one, two, a, b = two, one, b, a
    cross = one.k * two.k * c
    level = one.exponent(a) + two.exponent(b)
    # Where a factor is 0 the other must not be infinite.
    level = jnp.minimum(level, np.log(jnp.finfo(c.dtype).max))
    grown = size(cross)
    match one.kind, two.kind:
        case "exp", "exp":
            return jnp.exp(level) * jnp.expm1(cross)
        case "sin", "sin":
            return jnp.where(cross >= 0, -0.5, 0.5) * jnp.exp(level + grown) * jnp.expm1(-2 * grown)
        case "cos", "cos":
            return 0.5 * jnp.exp(level + grown) * jnp.expm1(-grown) ** 2
        case "exp", "sin":
            return jnp.exp(level) * jnp.sin(cross)
        case "exp", "cos":
            return -2 * jnp.exp(level) * jnp.sin(0.5 * cross) ** 2
        case _:
            return 0.0  # sin and cos: opposite parity


def wave(kind: Kind, k: float = 1.0) -> Exponential:
    return Exponential.of((1.0, Wave(kind, k)))
