"""Traced values: what a user's function computes with while it is traced.

A traced `Vector` is lazy in its linear part: `+`, `-`, scaling and constants gather in one list of terms, and become
one LinComb when something else reads the vector. That is also what the listing calls g1, g2, …: a maximal linear
expression read by a Nonlin, a Moment or an output.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from tensorprog.functions.frozen import freeze
from tensorprog.ir import Coef, Dim, IntArray, LinComb, ScalarFn, ScalarRef, ScalarType, Sites, Taken, VectorType
from tensorprog.program import is_concrete
from tensorprog.tracing.builder import Builder, failure, is_number
from tensorprog.tracing.calls import broadcast, function_name, nonlin_at, same_builder, same_space
from tensorprog.tracing.indexing import gather_at, index_text, positions
from tensorprog.tracing.traced import AnyScalar, AnyVector, Traced


class Scalar(AnyScalar):
    """A traced scalar (a Moment, a function of scalars, a number) at each of its sites: a product coef·θ·θ′…"""

    def __init__(self, builder: Builder, coef: Coef, sites: Sites):
        self.builder, self.coef, self.sites = builder, coef, sites

    def describe(self) -> str:
        return "a scalar of the program"

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return other * self
        scalar = _scalar(self.builder, other)
        if scalar is None:
            return NotImplemented
        return Scalar(self.builder, self.coef * scalar.coef, broadcast(self, scalar))

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return other + self
        return self if _is_zero(other) else _scalar_fn(self.builder, operator.add, self, other)

    def __sub__(self, other: Any) -> Any:
        return -(other - self) if isinstance(other, Vector) else _scalar_fn(self.builder, operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _scalar_fn(self.builder, operator.sub, other, self)

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return other.elementwise(jnp.reciprocal) * self
        if isinstance(other, Scalar):
            return _scalar_fn(self.builder, operator.truediv, self, other)
        return self * _reciprocal(self.builder, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _scalar_fn(self.builder, operator.truediv, other, self)

    def __neg__(self) -> Scalar:
        return Scalar(self.builder, Coef(-1.0) * self.coef, self.sites)

    __rmul__, __radd__ = __mul__, __add__

    def __matmul__(self, _: object) -> NoReturn:
        self.builder.fail(
            "θ @ …", "a scalar of the program stands beside @", "write θ * x; a matrix over sites tp.mix(θ, x)"
        )

    __rmatmul__ = __matmul__

    def __getitem__(self, index: Any) -> Scalar:
        return self.rearranged(lambda source: source[index], f"{{}}[{index_text(index)}]")

    def rearranged(self, rearrange: Callable[[np.ndarray], Any], text: str) -> Scalar:
        """The scalar at other places of its array: `rearrange` maps an array of positions; `text` prints it."""
        return taken([self], rearrange, text)

    def ref(self) -> ScalarRef:
        """The scalar as one operand."""
        constant, factors = self.coef.constant, self.coef.factors
        if constant != 1.0 or not factors:
            factors = (self.builder.unnamed_number(constant), *factors)
        product = factors[0]
        for factor in factors[1:]:
            sites = np.broadcast_shapes(self.builder.scalar_sites(product), self.builder.scalar_sites(factor))
            product = self.builder.emit(ScalarFn(freeze(operator.mul)[0], (), (product, factor)), ScalarType(sites))
        return product


class Vector(AnyVector):
    """A traced vector: a linear expression Σ coef·atom + Σ coef·1 over instructions that are there already."""

    def __init__(
        self,
        builder: Builder,
        type_: VectorType,
        terms: tuple[tuple[Coef, int], ...],
        constants: tuple[Coef, ...] = (),
    ):
        self.builder, self.type, self.terms, self.constants = builder, type_, terms, constants
        # A LinComb is written down when it is read, but it stands where the user wrote it.
        self.line = None if self.atom() is not None else builder.here()

    @property
    def sites(self) -> Sites:
        """The shape of the fixed axes before the one wide axis."""
        return self.type.sites

    @property
    def features(self) -> Dim:
        """The size of the vector's own axis: an int for an input, the name of its width otherwise."""
        return self.type.dim

    def describe(self) -> str:
        return {"input": "an input", "wide": "a wide vector", "output": "a readout"}[self.type.space]

    def atom(self) -> int | None:
        """The instruction that this vector is, when it is one."""
        if len(self.terms) == 1 and not self.constants:
            coef, atom = self.terms[0]
            if coef.is_one and self.builder.types[atom] == self.type:
                return atom
        return None

    def position(self) -> int:
        """The instruction that holds this vector, written down now if it was not."""
        atom = self.atom()
        if atom is None:
            atom = self.builder.emit(LinComb(self.terms, self.constants), self.type, self.line)
            # From here on the sum is one operand, so that a residual stream stays a chain of short sums.
            self.terms, self.constants = ((Coef(), atom),), ()
        return atom

    # ---- linear algebra

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            type_ = same_space(self, other, "+")
            terms = _merge(self.builder, self.terms + other.terms, type_.sites)
            return Vector(self.builder, type_, terms, self.constants + other.constants)
        return self if _is_zero(other) else self.shifted(other, 1.0)

    def __sub__(self, other: Any) -> Any:
        return self + -other if isinstance(other, Vector) else self.shifted(other, -1.0)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def shifted(self, other: Any, sign: float) -> Any:
        """The vector plus or minus a number or scalar."""
        scalar = _scalar(self.builder, other)
        if scalar is None:
            return NotImplemented
        if self.type.space == "input":
            self.builder.fail(
                "x + constant", "an input is data, it enters a program through a weight only",
                "add the constant to the data, or after the weight: U @ x + c",
            )  # fmt: skip
        type_ = VectorType(broadcast(self, scalar), self.type.dim, self.type.space)
        return Vector(self.builder, type_, self.terms, (*self.constants, Coef(sign) * scalar.coef))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return self.elementwise(operator.mul, other)
        scalar = _scalar(self.builder, other)
        if scalar is None:
            return NotImplemented
        type_ = VectorType(broadcast(self, scalar), self.type.dim, self.type.space)
        terms = tuple((scalar.coef * coef, x) for coef, x in self.terms)
        return Vector(self.builder, type_, terms, tuple(scalar.coef * c for c in self.constants))

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return self.elementwise(operator.truediv, other)
        return self * _reciprocal(self.builder, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.elementwise(jnp.reciprocal) * other

    def __neg__(self) -> Vector:
        return self.scaled(-1.0)

    def __pos__(self) -> Vector:
        return self

    __radd__, __rmul__ = __add__, __mul__

    def __matmul__(self, other: Any) -> NoReturn:
        if isinstance(other, Vector):
            why, remedy = (
                "two vectors stand beside @",
                "for their inner product write tp.moment(lambda a, b: a * b, x, y)",
            )
        else:
            why, remedy = f"{self.describe()} stands on the left of @", "write W @ x, a weight on the left of a vector"
        self.builder.fail("x @ …", why, remedy)

    def __rmatmul__(self, other: Any) -> NoReturn:
        self.builder.fail(
            "A @ x with an array", "an array cannot multiply the wide axis: its size goes to infinity",
            "for a fixed matrix over sites write tp.mix(A, x); for a random matrix tp.weight(…) @ x",
        )  # fmt: skip

    def elementwise(self, fn: Callable[..., Any], *others: Vector) -> Vector:
        """A Nonlin of this vector and others."""
        position, type_ = nonlin_at(self.builder, fn, (self, *others))
        return Vector(self.builder, type_, ((Coef(), position),))

    def scaled(self, constant: float) -> Vector:
        """The vector times a constant of the structure (not a number of the program)."""
        terms = tuple((Coef(constant) * coef, x) for coef, x in self.terms)
        return Vector(self.builder, self.type, terms, tuple(Coef(constant) * c for c in self.constants))

    def __getitem__(self, index: Any) -> Vector:
        return gather([self], lambda source: source[index], f"{{}}[{index_text(index)}]")


def _merge(builder: Builder, terms: tuple[tuple[Coef, int], ...], sites: Sites) -> tuple[tuple[Coef, int], ...]:
    """h + h is 2 h: equal terms with constant coefficients are one; one that cancels goes, if the sites stay."""
    merged: dict[tuple[int, tuple[ScalarRef, ...]], float] = {}
    for coef, x in terms:
        merged[x, coef.factors] = merged.get((x, coef.factors), 0.0) + coef.constant
    kept = {key: constant for key, constant in merged.items() if constant}
    shapes = [s for x, factors in kept for s in (builder.types[x].sites, *map(builder.scalar_sites, factors))]
    if not kept or np.broadcast_shapes(*shapes) != sites:  # the zero also says how many sites there are
        kept = merged
    return tuple((Coef(constant, factors), x) for (x, factors), constant in kept.items())


# ---- scalars


def taken(xs: Sequence[Scalar], rearrange: Callable[..., Any], text: str) -> Scalar:
    """A scalar whose sites are those of `xs`, rearranged, as `gather` makes vectors."""
    builder = xs[0].builder
    same_builder(builder, *xs)
    try:
        source = np.asarray(rearrange(*positions([x.sites for x in xs])))
    except (IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(str(x.sites) for x in xs)
        builder.fail(
            text.replace("{}", ", ".join("θ" for _ in xs)), f"sites of shape {shapes}: {error}",
            "count the site axes of the scalar from 0",
        )  # fmt: skip
    return _scalar_fn(builder, Taken(IntArray.of(source), text), *xs)


def _is_zero(value: Any) -> bool:
    """The 0 that Python's `sum` starts from."""
    return type(value) is int and value == 0


def _scalar(builder: Builder, value: Any) -> Scalar | None:
    """A value as a traced scalar; None when it is none."""
    if isinstance(value, Scalar):
        same_builder(builder, value)
        return value
    if isinstance(value, list | tuple | str):
        builder.fail(
            f"arithmetic with {value!r}", "a traced value meets a list or text", "write np.array([…]) for numbers"
        )
    if not is_number(value):
        return None
    if isinstance(value, int | float) and value in (1, -1):
        return Scalar(builder, Coef(float(value)), ())
    return Scalar(builder, Coef(1.0, (builder.unnamed_number(value),)), np.shape(value))


def _scalar_fn(builder: Builder, fn: Callable[..., Any], *values: Any) -> Any:
    """Arithmetic of scalars."""
    scalars = [scalar for value in values if (scalar := _scalar(builder, value)) is not None]
    if len(scalars) < len(values):
        return NotImplemented
    refs = tuple(s.ref() for s in scalars)
    sites = fn.source.shape if isinstance(fn, Taken) else broadcast(*scalars)
    return Scalar(builder, Coef(1.0, (builder.emit(ScalarFn(freeze(fn)[0], (), refs), ScalarType(sites)),)), sites)


def _reciprocal(builder: Builder, value: Any) -> Any:
    """What to multiply by, to divide by a value."""
    if isinstance(value, Scalar):
        return _scalar_fn(builder, jnp.reciprocal, value)
    if not is_number(value):
        return value  # the product refuses it
    if is_concrete(value) and np.any(np.asarray(value) == 0):
        builder.fail("x / 0", "a division by zero", "divide by a number that is not zero")
    return np.asarray(1.0 / np.asarray(value)) if is_concrete(value) else 1.0 / value


def scalars_of(builder: Builder, values: Any, what: str) -> list[Scalar]:
    """What a call was given as scalars."""
    if isinstance(values, Traced) or not isinstance(values, Sequence | np.ndarray):
        builder.fail(what, f"scalars={values!r} is no tuple", "write scalars=(…,)")
    scalars = []
    for value in values:
        scalar = _scalar(builder, value)
        if scalar is None:
            builder.fail(what, f"{value!r} is no scalar", "give a number, an array over sites, or a Moment")
        scalars.append(scalar)
    return scalars


# ---- functions


def nonlin(
    fn: Callable[..., Any], *vectors: Vector, scalars: Sequence[Any] = (), over: int | Sequence[int] | None = None
) -> Vector:
    """Nonlin: y_α = fn(x¹_α, …, xᵏ_α; θ…), elementwise over the wide axis and over sites.

    `fn` is any JAX function of 0-d values, the coordinates and then `scalars` (numbers, arrays over sites, Moments).
    With `over=axes` it sees those site axes whole, in the order given; a result with as many axes puts them back, a 0-d
    result drops them. The function is taken as it is at the call.

    **Raises:** `ProgramError` for vectors of different widths, inputs or readouts, sites that do not broadcast,
    functions that JAX cannot trace or that return something else.
    """
    first = next((v for v in vectors if isinstance(v, Traced)), None)
    if first is None:
        raise failure(
            f"nonlin({function_name(fn)}, …)", "there is no vector of a program among the arguments",
            "write tp.nonlin(fn, x) with x a traced vector, inside a function given to tp.trace",
        )  # fmt: skip
    given = scalars_of(first.builder, scalars, f"nonlin({function_name(fn)}, …)")
    position, type_ = nonlin_at(first.builder, fn, vectors, given, over)
    return Vector(first.builder, type_, ((Coef(), position),))


def repeated(x: Vector, sites: Sites) -> Vector:
    """A vector broadcast to more sites."""
    return gather([x], lambda source: np.broadcast_to(source, sites), f"repeat({{}}; {' × '.join(map(str, sites))})")


def gather(xs: Sequence[Vector], rearrange: Callable[..., np.ndarray], text: str) -> Vector:
    """A vector whose sites are those of `xs`, rearranged: `rearrange` maps arrays of positions to one array."""
    position, type_ = gather_at(xs, rearrange, text)
    return Vector(xs[0].builder, type_, ((Coef(), position),))
