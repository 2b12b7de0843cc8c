"""What the families of closed forms share: sums of terms, their coefficients, and safe roots.

A closed form is a sum of terms of one family, each with a coefficient that is a number known when the program is
traced, or an expression in the function's own numbers (the slope of a leaky relu, a shift). Everything is static and
hashable; arrays come in only when an expectation is taken.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import jax.numpy as jnp
from jax import Array, lax

Numbers = tuple[Array, ...]
Atom = tuple[str, float, int]  # function, k, index: function(k * numbers[index]), "id" being the number itself
ATOMS = {"id": lambda x: x, "sin": jnp.sin, "cos": jnp.cos, "exp": jnp.exp}


@dataclass(frozen=True)
class Coefficient:
    """A sum of products: sum_i weight_i * prod_j atom_ij(numbers)."""

    terms: tuple[tuple[float, tuple[Atom, ...]], ...]

    @classmethod
    def of(cls, value: "float | Coefficient") -> "Coefficient":
        return value if isinstance(value, Coefficient) else cls(((float(value), ()),))

    @classmethod
    def number(cls, index: int, function: str = "id", k: float = 1.0) -> "Coefficient":
        return cls(((1.0, ((function, k, index),)),))

    def __add__(self, other: "float | Coefficient") -> "Coefficient":
        weights: dict[tuple[Atom, ...], float] = {}
        for weight, atoms in self.terms + Coefficient.of(other).terms:
            weights[atoms] = weights.get(atoms, 0.0) + weight
        return Coefficient(tuple((w, atoms) for atoms, w in sorted(weights.items()) if w != 0))

    def __mul__(self, other: "float | Coefficient") -> "Coefficient":
        products = [
            (w * v, tuple(sorted(atoms + more))) for w, atoms in self.terms for v, more in Coefficient.of(other).terms
        ]
        return Coefficient(tuple(products)) + 0.0

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other: "float | Coefficient") -> "Coefficient":
        return self + -1.0 * Coefficient.of(other)

    def __rsub__(self, other: float) -> "Coefficient":
        return Coefficient.of(other) - self

    def moved(self, offset: int) -> "Coefficient":
        """The same expression in numbers that start `offset` places later."""
        return Coefficient(tuple((w, tuple((f, k, i + offset) for f, k, i in atoms)) for w, atoms in self.terms))

    def value(self, numbers: Numbers) -> Any:
        """A Python float where no number enters, so that dtypes follow the variances."""
        total: Any = 0.0
        for weight, atoms in self.terms:
            product: Any = weight
            for function, k, index in atoms:
                product = product * ATOMS[function](k * numbers[index])
            total = total + product
        return total


class Term(Protocol):
    """One basis function of a family."""

    def __call__(self, z: Array) -> Array: ...
    def derivative(self) -> "Iterable[tuple[float, Term]]": ...  # almost everywhere
    def times(self, other: Any) -> "Iterable[tuple[float, Term]] | None": ...
    def norm(self, a: Array) -> Any: ...  # sqrt E T(u)^2


@dataclass(frozen=True)
class Form(ABC):
    """sum_i coefficient_i * term_i(z), with its Gaussian expectations in the subclass of the family."""

    terms: tuple[tuple[Coefficient, Any], ...]
    smooth: ClassVar[bool] = False  # whether every derivative stays in the family without jumps

    @classmethod
    def of(cls, *terms: tuple[float | Coefficient, Any]) -> Self:
        """Like terms collected; terms of coefficient 0 dropped."""
        collected: dict[Any, Coefficient] = {}
        for weight, term in terms:
            collected[term] = Coefficient.of(weight) + collected.get(term, 0.0)
        return cls(tuple((weight, term) for term, weight in collected.items() if weight.terms))

    def __call__(self, z: Array, *numbers: Array) -> Array:
        total = jnp.zeros_like(z)
        for weight, term in self.terms:
            total = total + weight.value(numbers) * term(z)
        return total

    def derivative(self) -> Self:
        return self.of(*((weight * w, t) for weight, term in self.terms for w, t in term.derivative()))

    def product(self, other: "Form", offset: int) -> "Form | None":
        """This times a form of the same family whose numbers come `offset` places later; None where it leaves it."""
        found: list[tuple[Coefficient, Any]] = []
        for weight, term in self.terms:
            for more, factor in other.terms:
                products = term.times(factor)
                if products is None:
                    return None
                found += [(weight * more.moved(offset) * w, t) for w, t in products]
        return self.of(*found)

    def shifted(self, index: int) -> "Form | None":
        """z -> form(z + numbers[index]), where that stays in the family."""
        return None

    @property
    def polynomially_bounded(self) -> bool:
        return True

    def values(self, numbers: Numbers) -> list[tuple[Any, Any]]:
        return [(weight.value(numbers), term) for weight, term in self.terms]

    def scale(self, a: Array, numbers: Numbers) -> Any:
        """A bound of sqrt E form(u)^2: what rounding errors are measured against."""
        total: Any = jnp.zeros_like(a)
        for weight, term in self.values(numbers):
            total = total + jnp.abs(weight) * term.norm(a)
        return total

    @abstractmethod
    def mean(self, a: Array, numbers: Numbers) -> Array:
        """E form(u), u ~ N(0, a)."""

    def square(self, other: Any, a: Array, numbers: Numbers, others: Numbers) -> Array:
        """E form(u) other(u): a pair of one Gaussian with itself, unless a family knows better."""
        return self.pair(other, a, a, a, numbers, others)

    @abstractmethod
    def pair(self, other: Any, a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        """E form(u) other(v) for a form of the same family."""

    def rounding(self, other: Any, a: Array, b: Array, c: Array, numbers: Numbers, others: Numbers) -> Array:
        """A bound of the rounding error of `pair`."""
        eps = jnp.finfo(c.dtype).eps
        return 32 * eps * self.scale(a, numbers) * other.scale(b, others)


# ---- numerics near the edges ----------------------------------------------------------------------------------------


def absolute_moment(p: int) -> float:
    """E |z|^p of a standard normal z: 2^(p/2) Gamma((p+1)/2) / sqrt(pi)."""
    return 2 ** (p / 2) * math.gamma((p + 1) / 2) / math.sqrt(math.pi)


def positive(x: Array) -> Array:
    """Where x is a normal positive number: below, it is taken for 0, as processors that flush denormals do."""
    return x >= jnp.finfo(x.dtype).tiny


def root(x: Array) -> Array:
    """sqrt(x), 0 at and below 0, with derivative 0 there instead of an infinity."""
    return jnp.where(positive(x), jnp.sqrt(jnp.where(positive(x), x, 1.0)), 0.0)


def inverse_root(x: Array) -> Array:
    """1/sqrt(x), 0 at and below 0."""
    return jnp.where(positive(x), lax.rsqrt(jnp.where(positive(x), x, 1.0)), 0.0)


def half_power(x: Array, p: int) -> Array:
    """x^(p/2)."""
    whole = x ** (p // 2) if p > 1 else jnp.ones_like(x)
    return whole * root(x) if p % 2 else whole


def size(c: Array) -> Array:
    """|c| with derivatives that agree with c's own at 0 (jnp.abs has 0 there, which spoils second derivatives)."""
    return jnp.where(c >= 0, c, -c)


def gap(a: Array, b: Array, c: Array) -> Array:
    """ab - c^2, exactly 0 where a = b = |c|, and never negative.

    Written as a (b - |c|) + |c| (a - |c|): the differences are exact where a, b and |c| are close, while ab - c^2
    itself loses every digit there. The derivative is that of ab - c^2 even where rounding made the value negative.
    """
    found = a * (b - size(c)) + size(c) * (a - size(c))
    return found + lax.stop_gradient(jnp.maximum(found, 0.0) - found)
