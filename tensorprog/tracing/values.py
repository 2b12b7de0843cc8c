"""Traced values: what a user's function computes with while it is traced.

A traced `Vector` is lazy in its linear part: `+`, `-`, scaling and constants gather in one list of terms, and become one
LinComb when something else reads the vector. That is also what the listing calls g1, g2, …: a maximal linear expression
read by a Nonlin, a Moment or an output.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from tensorprog.errors import problem
from tensorprog.functions.frozen import freeze
from tensorprog.ir import (
    Coef, Dim, Gather, IntArray, LinComb, Nonlin, ScalarFn, ScalarRef, ScalarType, Sites, SiteSum, VectorType,
)
from tensorprog.show import dimension
from tensorprog.tracing.builder import Builder, is_number, user_line



class Traced:
    """What vectors and scalars have in common: operators reach them, JAX and NumPy functions do not."""

    __array_ufunc__ = None
    __hash__ = object.__hash__
    builder: Builder
    sites: Sites

    def describe(self) -> str:
        raise AssertionError("each kind of traced value describes itself")

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        self.builder.fail(
            what, f"{self.describe()} has no value yet: a program is traced once, for every input and width", remedy
        )

    def __bool__(self) -> NoReturn:
        self._refuse(
            "if, while, and, or, not on a traced value",
            "write the choice into the function of a Nonlin, tp.nonlin(lambda z: jnp.where(z > 0, …), x)",
        )

    def __float__(self) -> NoReturn:
        self._refuse("float(…) of a traced value", "use it in the program, or return it as an output")

    def __len__(self) -> int:
        if not self.sites:
            self._refuse("len(…) of a value without sites", "len counts the first site axis")
        return self.sites[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.sites:
            self._refuse("iteration over a value without sites", "only site axes can be iterated over")
        return (self[i] for i in range(self.sites[0]))  # type: ignore[index]

    def __pow__(self, power: object) -> NoReturn:
        self.builder.fail(
            f"{self.describe()} ** {power}", "a power is a nonlinearity", f"write tp.nonlin(lambda z: z**{power}, x)"
        )

    def __lt__(self, other: object) -> NoReturn:
        self._refuse("a comparison of a traced value", "compare inside the function of a Nonlin")

    __gt__ = __le__ = __ge__ = __lt__


class Scalar(Traced):
    """A traced scalar (a Moment, a function of scalars, a number), at each of its sites."""

    def __init__(self, builder: Builder, coef: Coef, sites: Sites):
        self.builder, self.coef, self.sites = builder, coef, sites

    def describe(self) -> str:
        return "a scalar of the program"

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return other * self
        other = _scalar(self.builder, other)
        if other is NotImplemented:
            return NotImplemented
        return Scalar(self.builder, self.coef * other.coef, _broadcast(self.builder, self.sites, other.sites))

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return other + self
        return _scalar_fn(self.builder, _add, self, other)

    def __sub__(self, other: Any) -> Any:
        return self + (-other)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return nonlin(_reciprocal, other) * self
        return self * _reciprocal_of(self.builder, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _reciprocal_of(self.builder, self) * other

    def __neg__(self) -> Scalar:
        return Scalar(self.builder, Coef(-1.0) * self.coef, self.sites)

    __rmul__, __radd__ = __mul__, __add__

    def ref(self) -> ScalarRef:
        """The scalar as one operand."""
        if self.coef.constant == 1.0 and len(self.coef.factors) == 1:
            return self.coef.factors[0]
        factors = self.coef.factors
        if self.coef.constant != 1.0 or not factors:
            factors = (*factors, self.builder.unnamed_number(self.coef.constant))
        frozen, _ = freeze(_prod)
        return self.builder.emit(ScalarFn(frozen, (), factors), ScalarType(self.sites))


class Vector(Traced):
    """A traced vector: a linear expression Σ coef·atom + Σ coef·1 over instructions that are there already."""

    def __init__(
        self,
        builder: Builder,
        type_: VectorType,
        terms: tuple[tuple[Coef, int], ...],
        constants: tuple[Coef, ...] = (),
    ):
        self.builder, self.type, self.terms, self.constants = builder, type_, terms, constants

    @property
    def sites(self) -> Sites:  # type: ignore[override]
        """The shape of the fixed axes before the one wide axis."""
        return self.type.sites

    @property
    def features(self) -> Dim:
        """The size of the vector's own axis: an int for an input, the name of its width otherwise."""
        return self.type.dim

    def describe(self) -> str:
        return {"input": "an input", "wide": "a wide vector", "output": "a readout"}[self.type.space]

    def position(self) -> int:
        """The instruction that holds this vector, written down now if it was not."""
        if len(self.terms) == 1 and not self.constants:
            coef, atom = self.terms[0]
            if coef.is_one and self.builder.types[atom] == self.type:
                return atom
        atom = self.builder.emit(LinComb(self.terms, self.constants), self.type)
        # From here on the sum is one operand, so that a residual stream stays a chain of short sums.
        self.terms, self.constants = ((Coef(), atom),), ()
        return atom

    # ---- linear algebra

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            type_ = _same_space(self.builder, self, other, "+")
            return Vector(self.builder, type_, _merge(self.terms + other.terms), self.constants + other.constants)
        scalar = _scalar(self.builder, other)
        if scalar is NotImplemented:
            return NotImplemented
        sites = _broadcast(self.builder, self.sites, scalar.sites)
        type_ = VectorType(sites, self.type.dim, self.type.space)
        if self.type.space == "input":
            self.builder.fail(
                "x + constant", "an input is data, it enters a program through a weight only",
                "add the constant to the data, or after the weight: U @ x + c",
            )  # fmt: skip
        return Vector(self.builder, type_, self.terms, (*self.constants, scalar.coef))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return nonlin(operator.mul, self, other)
        scalar = _scalar(self.builder, other)
        if scalar is NotImplemented:
            return NotImplemented
        sites = _broadcast(self.builder, self.sites, scalar.sites)
        type_ = VectorType(sites, self.type.dim, self.type.space)
        terms = tuple((scalar.coef * coef, x) for coef, x in self.terms)
        return Vector(self.builder, type_, terms, tuple(scalar.coef * c for c in self.constants))

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return nonlin(operator.truediv, self, other)
        return self * _reciprocal_of(self.builder, other)

    def __rtruediv__(self, other: Any) -> Any:
        return nonlin(_reciprocal, self) * other

    def __neg__(self) -> Vector:
        return self.scaled(-1.0)

    def __sub__(self, other: Any) -> Any:
        return self + (-other)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def __matmul__(self, other: Any) -> NoReturn:
        self.builder.fail(
            "x @ …", f"{self.describe()} stands on the left of @", "write W @ x, a weight on the left of a vector"
        )

    def __rmatmul__(self, other: Any) -> NoReturn:
        self.builder.fail(
            "A @ x with an array", "an array cannot multiply the wide axis: its size goes to infinity",
            "for a fixed matrix over sites write tp.mix(A, x); for a random matrix tp.weight(…) @ x",
        )  # fmt: skip

    def scaled(self, constant: float) -> Vector:
        """The vector times a constant of the structure (not a number of the program)."""
        terms = tuple((Coef(constant) * coef, x) for coef, x in self.terms)
        return Vector(self.builder, self.type, terms, tuple(Coef(constant) * c for c in self.constants))

    # ---- sites

    def __getitem__(self, index: Any) -> Vector:
        return gather([self], lambda source: source[index], f"{{}}[{_index_text(index)}]")


def _merge(terms: tuple[tuple[Coef, int], ...]) -> tuple[tuple[Coef, int], ...]:
    """h + h is 2 h: equal terms with constant coefficients are one."""
    merged: dict[tuple[int, tuple[ScalarRef, ...]], float] = {}
    for coef, x in terms:
        merged[x, coef.factors] = merged.get((x, coef.factors), 0.0) + coef.constant
    return tuple((Coef(constant, factors), x) for (x, factors), constant in merged.items())


def _same_space(builder: Builder, left: Vector, right: Vector, operator: str) -> VectorType:
    """The type of an elementwise operation of two vectors."""
    a, b = left.type, right.type
    if (a.dim, a.space) != (b.dim, b.space):
        text = f"{builder.text(left.position())} {operator} {builder.text(right.position())}"
        if "input" in (a.space, b.space):
            why = "an input is used as a wide vector: it has a fixed number of features, the other goes to infinity"
            remedy = "read the input through a weight: U @ x with U = tp.weight('U', n, x.features)"
        elif "output" in (a.space, b.space):
            why = "a readout is used inside the network: it is one number, not a wide vector"
            remedy = "use the hidden vector it was read from, or return the readout"
        else:
            why = f"widths do not match: {dimension(a.dim)} on the left, {dimension(b.dim)} on the right"
            remedy = "give both the same Width, or put a weight between them"
        builder.fail(text, why, remedy)
    return VectorType(_broadcast(builder, a.sites, b.sites), a.dim, a.space)


def _broadcast(builder: Builder, *sites: Sites) -> Sites:
    try:
        return np.broadcast_shapes(*sites)
    except ValueError:
        shapes = " and ".join(str(s) for s in sites)
        builder.fail(
            "an elementwise operation", f"site shapes {shapes} do not broadcast", "index or reshape one of the operands"
        )


def _scalar(builder: Builder, value: Any) -> Any:
    """A value as a traced scalar; NotImplemented when it is none."""
    if isinstance(value, Scalar):
        return value
    if not is_number(value):
        return NotImplemented
    shape = np.shape(value)
    if not shape and isinstance(value, int | float) and value in (1, -1):
        return Scalar(builder, Coef(float(value)), ())
    return Scalar(builder, Coef(1.0, (builder.unnamed_number(value),)), shape)


def _add(*values: Any) -> Any:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _prod(*values: Any) -> Any:
    return math.prod(values[1:], start=values[0])


def _reciprocal(value: Any) -> Any:
    return 1.0 / value


def _scalar_fn(builder: Builder, fn: Callable[..., Any], *values: Any) -> Any:
    scalars = [_scalar(builder, value) for value in values]
    if any(s is NotImplemented for s in scalars):
        return NotImplemented
    frozen, _ = freeze(fn)
    refs = tuple(s.ref() for s in scalars)
    sites = _broadcast(builder, *(s.sites for s in scalars))
    position = builder.emit(ScalarFn(frozen, (), refs), ScalarType(sites))
    builder.give_name(position, "c")
    return Scalar(builder, Coef(1.0, (position,)), sites)


def _reciprocal_of(builder: Builder, value: Any) -> Any:
    if isinstance(value, Scalar):
        return _scalar_fn(builder, _reciprocal, value)
    if not is_number(value):
        return NotImplemented
    if not isinstance(value, jax.Array) and np.any(np.asarray(value) == 0):
        builder.fail("x / 0", "a division by zero", "divide by a number that is not zero")
    return 1.0 / value if isinstance(value, jax.Array) else 1.0 / np.asarray(value, dtype=np.float64)


def _index_text(index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)

    def one(part: Any) -> str:
        if isinstance(part, slice):
            ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
            return ":".join(ends) + ("" if part.step is None else f":{part.step}")
        return {Ellipsis: "…", None: "None"}.get(part) or str(part) if part is Ellipsis or part is None else str(part)

    return ", ".join(one(part) for part in parts)


def gather(xs: Sequence[Vector], rearrange: Callable[..., np.ndarray], text: str) -> Vector:
    """A vector whose sites are those of `xs`, rearranged: `rearrange` maps arrays of positions to one array."""
    first = xs[0]
    for other in xs[1:]:
        _same_space(first.builder, _without_sites(first), _without_sites(other), "beside")
    sources, offset = [], 0
    for x in xs:
        size = math.prod(x.sites)
        sources.append(np.arange(offset, offset + size).reshape(x.sites))
        offset += size
    try:
        source = np.asarray(rearrange(*sources))
    except (IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(str(x.sites) for x in xs)
        first.builder.fail(text.replace("{}", first.builder.text(first.position())), f"sites of shape {shapes}: {error}", "only site axes are fixed")
    type_ = VectorType(source.shape, first.type.dim, first.type.space)
    positions = tuple(x.position() for x in xs)
    if len(xs) == 1 and source.shape == first.sites and (source == sources[0]).all():
        return first
    position = first.builder.emit(Gather(positions, IntArray.of(source), text), type_)
    return Vector(first.builder, type_, ((Coef(), position),))


def frozen_call(
    builder: Builder, fn: Callable[..., Any], vectors: Sequence[Any], scalars: Sequence[Any], what: str
) -> tuple[Any, tuple[Any, ...], tuple[int, ...], tuple[ScalarRef, ...], Sites, VectorType | None]:
    """What Nonlin, Moment and ScalarFn share: the function as it is now, its numbers, and checked operands."""
    try:
        frozen, captured = freeze(fn)
    except TypeError as error:
        builder.fail(what, str(error), "give a function of numbers that JAX can trace")
    for value in vectors:
        if not isinstance(value, Vector):
            builder.fail(what, f"{value!r} is no vector of the program", "give numbers as scalars=(…,)")
        if value.type.space != "wide":
            why, remedy = {
                "input": (
                    "an input is used as a wide vector: it has a fixed number of features",
                    "read it through a weight first: U @ x with U = tp.weight('U', n, x.features)",
                ),
                "output": (
                    "a readout is used inside the network: it is one number, not a wide vector",
                    "apply the function to the hidden vector, or to the output after apply",
                ),
            }[value.type.space]
            builder.fail(f"{what} of {builder.text(value.position())}", why, remedy)
    type_ = None
    for value in vectors:
        other = _without_sites(value)
        if type_ is not None:
            _same_space(builder, _without_sites(vectors[0]), other, f"beside, in {what}:")
        type_ = value.type
    refs = []
    for value in scalars:
        scalar = _scalar(builder, value)
        if scalar is NotImplemented:
            builder.fail(what, f"{value!r} is no scalar", "give a number, an array over sites, or a Moment")
        refs.append(scalar)
    sites = _broadcast(builder, *(v.sites for v in (*vectors, *refs)))
    numbers = tuple(builder.unnamed_number(value, frozen.name.partition("(")[0] + ".") for value in captured)
    positions = tuple(v.position() for v in vectors)
    for position in positions:
        if not isinstance(builder.instructions[position], Nonlin):
            builder.give_name(position, "g")
    return frozen, numbers, positions, tuple(s.ref() for s in refs), sites, type_


def nonlin(
    fn: Callable[..., Any], *vectors: Vector, scalars: Sequence[Any] = (), over: int | Sequence[int] | None = None
) -> Vector:
    """Nonlin: y_α = fn(x¹_α, …, xᵏ_α; θ…), elementwise over the wide axis and over sites.

    `fn` is any JAX function of 0-d values, the coordinates and then `scalars` (numbers, arrays over sites, Moments). With
    `over=axes` it sees those site axes whole, in the order given; a result with as many axes puts them back, a 0-d result
    drops them. The function is taken as it is at the call.

    **Raises:** `ProgramError` for vectors of different widths, inputs or readouts, sites that do not broadcast.
    """
    if not vectors or not any(isinstance(v, Vector) for v in vectors):
        raise problem(
            user_line(), "nonlin(fn, …)", "there is no vector of a program among the arguments",
            "write tp.nonlin(fn, x) with x a traced vector, inside a function given to tp.trace",
        )  # fmt: skip
    builder = next(v for v in vectors if isinstance(v, Vector)).builder
    what = f"nonlin({getattr(fn, '__name__', 'fn')}, …)"
    frozen, numbers, positions, refs, sites, type_ = frozen_call(builder, fn, vectors, scalars, what)
    assert type_ is not None
    axes = None
    if over is not None:
        axes, sites = _over(builder, frozen, numbers, len(positions) + len(refs), over, sites, what)
    result = VectorType(sites, type_.dim, "wide")
    position = builder.emit(Nonlin(frozen, numbers, positions, refs, axes), result)
    builder.give_name(position, "s")
    return Vector(builder, result, ((Coef(), position),))


def _over(
    builder: Builder, fn: Any, numbers: tuple[Any, ...], count: int, over: int | Sequence[int], sites: Sites, what: str
) -> tuple[tuple[int, ...], Sites]:
    """The axes a function sees whole, and the sites of its result."""
    axes = (over,) if isinstance(over, int) else tuple(over)
    if any(not -len(sites) <= axis < len(sites) for axis in axes):
        builder.fail(what, f"over={over} names a site axis that sites {sites} do not have", "count the site axes from 0")
    axes = tuple(axis % len(sites) for axis in axes)
    seen = jax.ShapeDtypeStruct(tuple(sites[axis] for axis in axes), np.float32)
    values = tuple(jax.ShapeDtypeStruct(np.shape(builder.values[n.index]), np.float32) for n in numbers)
    shape = jax.eval_shape(lambda args, nums: fn(*args, numbers=nums), (seen,) * count, values).shape
    if shape == ():
        return axes, tuple(s for axis, s in enumerate(sites) if axis not in axes)
    if len(shape) != len(axes):
        builder.fail(
            what, f"over {len(axes)} axes the function returns {len(shape)}", "return as many axes, or one number"
        )
    return axes, tuple(shape[axes.index(axis)] if axis in axes else s for axis, s in enumerate(sites))


def _without_sites(x: Vector) -> Vector:
    return Vector(x.builder, VectorType((), x.type.dim, x.type.space), x.terms, x.constants)


def sum_over(x: Vector, axes: tuple[int, ...]) -> Vector:
    """Σ over site axes."""
    sites = tuple(s for i, s in enumerate(x.sites) if i not in axes)
    type_ = VectorType(sites, x.type.dim, x.type.space)
    if not axes:
        return x
    return Vector(x.builder, type_, ((Coef(), x.builder.emit(SiteSum(x.position(), axes), type_)),))


