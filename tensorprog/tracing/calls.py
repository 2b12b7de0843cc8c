"""Operands that fit together, and calls of a user's functions: taken as they are now, and tried on shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import ProgramError
from tensorprog.functions.frozen import Function, freeze, name_of
from tensorprog.functions.thaw import Derived
from tensorprog.ir import Nonlin, Num, ScalarRef, Sites, VectorType
from tensorprog.show import dimension
from tensorprog.tracing.builder import Builder
from tensorprog.tracing.inspection import bent, fault
from tensorprog.tracing.traced import AnyScalar, AnyVector, Traced


def same_builder(builder: Builder, *values: Traced) -> None:
    """Traced values belong to one trace."""
    if any(value.builder is not builder for value in values):
        builder.fail(
            "a value of another program", "a traced value was kept from another trace",
            "make every value inside the function that is given to tp.trace",
        )  # fmt: skip


def same_space(left: AnyVector, right: AnyVector, operator: str) -> VectorType:
    """The type of an elementwise operation of two vectors."""
    same_kind(left, right, operator)
    return VectorType(broadcast(left, right, text=f"x {operator} y"), left.type.dim, left.type.space)


def same_kind(left: AnyVector, right: AnyVector, operator: str) -> None:
    """Two vectors are both inputs, both readouts, or of one width."""
    builder = left.builder
    same_builder(builder, right)
    a, b = left.type, right.type
    if (a.dim, a.space) != (b.dim, b.space):
        text = f"{builder.text(left.position())} {operator} {builder.text(right.position())}"
        if a.space == b.space == "input":
            why = f"features do not match: {a.dim} on the left, {b.dim} on the right"
            remedy = "read each input through a weight of its own, and add the results"
        elif "input" in (a.space, b.space):
            why = "an input is used as a wide vector: it has a fixed number of features, the other goes to infinity"
            remedy = "read the input through a weight: U @ x with U = tp.weight('U', n, x.features)"
        elif a.space == b.space == "output":
            why = f"the readouts have {dimension(a.dim)} rows on the left, {dimension(b.dim)} on the right"
            remedy = "declare both with the same number of rows"
        elif "output" in (a.space, b.space):
            why, remedy = readout_inside(
                left if a.space == "output" else right, "use the hidden vector it is read from"
            )
        else:
            why = f"widths do not match: {dimension(a.dim)} on the left, {dimension(b.dim)} on the right"
            remedy = "give both the same Width, or put a weight between them"
        builder.fail(text, why, remedy)


def readout_inside(value: AnyVector, remedy: str) -> tuple[str, str]:
    """Why a readout is no wide vector, and what to do; of several rows it may be meant as a hidden layer."""
    rows = value.type.dim
    if rows == 1:
        return "a readout is used inside the network: it is one number, not a wide vector", remedy
    return (
        f"a readout is used inside the network: it is {rows} numbers, however wide the network gets",
        f"for a hidden layer write n = tp.Width('n') and tp.weight('W', n, …), n in place of {rows}; else {remedy}",
    )


def broadcast(*values: Traced, text: str = "an elementwise operation") -> Sites:
    """The sites of an elementwise operation."""
    try:
        return np.broadcast_shapes(*(value.sites for value in values))
    except ValueError:
        shapes = " and ".join(str(value.sites) for value in values)
        values[0].builder.fail(
            text, f"sites of shapes {shapes} do not broadcast", "index or reshape one of the operands"
        )


# ---- functions


def take(builder: Builder, fn: Callable[..., Any], what: str) -> tuple[Function, tuple[Num, ...]]:
    """A function as it is now, and the arrays that it holds as numbers of the program."""
    try:
        frozen, held = freeze(fn)
    except TypeError as error:
        builder.fail(what, str(error), "give a function of numbers that JAX can trace")
    kind = frozen.name.partition("(")[0] + "."
    return frozen, tuple(builder.unnamed_number(value, kind) for value in held)


def result_shape(
    builder: Builder,
    fn: Function,
    numbers: Sequence[Num],
    shapes: Sequence[Sites],
    what: str,
    *,
    coordinates: bool = False,
) -> Sites:
    """The shape of what a function returns for arguments of given shapes; `coordinates`: each is one of a wide vector.

    **Raises:** `ProgramError` for a function that JAX cannot trace, that returns what is no array of real numbers, or
    that does to a coordinate what only whole axes have done to them.
    """
    held = tuple(builder.scalar_sites(num) for num in numbers)
    key = (fn, tuple(shapes), held, coordinates)
    if key not in builder.shapes:
        dtype = jnp.result_type(float)
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        values = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in held)
        try:
            traced = jax.make_jaxpr(lambda args, nums: one_array(fn(*args, numbers=nums)))(arguments, values)
            (result,) = traced.out_avals
        except jax.errors.JAXTypeError as error:
            builder.fail(
                what, f"JAX cannot trace {fn.name}: it asks for the value of its argument ({_first_line(error)})",
                "write jnp.where(z > 0, a, b) instead of if, and jax.numpy instead of numpy or math",
            )  # fmt: skip
        except ProgramError:
            raise
        except Exception as error:
            given = "(" + ", ".join("×".join(map(str, shape)) if shape else "number" for shape in shapes) + ")"
            builder.fail(
                what, f"{fn.name}{given} fails: {type(error).__name__}: {_first_line(error)}",
                "give a JAX function of so many numbers, that returns one number; averages over the width are "
                "tp.moment(fn, x), and functions of whole site axes tp.nonlin(fn, x, over=axes)"
                if not any(shapes) else "give a JAX function of such arrays",
            )  # fmt: skip
        own = not isinstance(fn.root, Derived)  # a backward pass writes what it likes
        found = fault(traced.jaxpr, len(shapes) if coordinates else 0) if own else None
        if coordinates and own and found is None:
            found = bent(fn, len(shapes), held, traced.jaxpr)
        if found is not None:
            builder.fail(what, found.why, found.remedy)
        if jnp.issubdtype(result.dtype, jnp.complexfloating):
            builder.fail(
                what, f"{fn.name} returns complex numbers",
                "return real ones, jnp.real(…), jnp.imag(…) or jnp.abs(…) of these; both parts are two functions",
            )  # fmt: skip
        builder.shapes[key] = result.shape
    return builder.shapes[key]


def one_array(result: Any) -> jax.Array:
    """What a function returned as one array."""
    if not isinstance(result, bool | int | float | complex | jax.Array) and not hasattr(result, "__array__"):
        raise TypeError(f"it returns {type(result).__name__}, not one array")
    if type(result).__module__.startswith("tensorprog."):
        raise TypeError("it uses a traced vector from outside; give that to the function as one more vector")
    return jnp.asarray(result)


def function_name(fn: Any) -> str:
    """How an error calls a function."""
    return name_of(fn) if callable(fn) else repr(fn)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


Call = tuple[Function, tuple[Num, ...], tuple[int, ...], tuple[ScalarRef, ...], Sites, VectorType | None]
"""A function as it is now, its numbers, its vectors and scalars, their common sites, the vectors' type."""


def call(
    builder: Builder, fn: Callable[..., Any], vectors: Sequence[Any], scalars: Sequence[AnyScalar], what: str
) -> Call:
    """What Nonlin and Moment share: the function as it is now, its numbers, and checked operands."""
    for value in vectors:
        _check_vector(builder, value, what)
    for value in vectors[1:]:
        same_kind(vectors[0], value, f"beside, in {what}:")
    sites = broadcast(*vectors, *scalars, text=what)
    frozen, numbers = take(builder, fn, what)
    positions = tuple(v.position() for v in vectors)
    for position in positions:
        if not isinstance(builder.instructions[position], Nonlin):
            builder.give_name(position, "g")
    type_ = vectors[0].type if vectors else None
    return frozen, numbers, positions, tuple(s.ref() for s in scalars), sites, type_


def _check_vector(builder: Builder, value: Any, what: str) -> None:
    if not isinstance(value, AnyVector):
        builder.fail(what, f"{value!r} is no vector of the program", "give numbers as scalars=(…,)")
    same_builder(builder, value)
    if value.type.space == "input":
        builder.fail(
            f"{what} of {builder.text(value.position())}",
            "an input is used as a wide vector: it has a fixed number of features",
            "read it through a weight first: U @ x with U = tp.weight('U', n, x.features)",
        )  # fmt: skip
    if value.type.space == "output":
        remedy = "apply the function to the hidden vector, or return the readout and apply it to what tp.apply gives"
        builder.fail(f"{what} of {builder.text(value.position())}", *readout_inside(value, remedy))


def one_number(builder: Builder, fn: Function, numbers: Sequence[Num], count: int, what: str) -> None:
    """A function of `count` coordinates returns one number."""
    shape = result_shape(builder, fn, numbers, [()] * count, what, coordinates=True)
    if shape != ():
        builder.fail(
            what, f"{fn.name} sees one coordinate and returns an array of shape {shape}",
            "return one number; over=axes shows it whole site axes",
        )  # fmt: skip


def nonlin_at(
    builder: Builder,
    fn: Callable[..., Any],
    vectors: Sequence[Any],
    scalars: Sequence[AnyScalar] = (),
    over: int | Sequence[int] | None = None,
) -> tuple[int, VectorType]:
    """The instruction of a Nonlin and its type."""
    what = f"nonlin({function_name(fn)}, …)"
    frozen, numbers, positions, refs, sites, type_ = call(builder, fn, vectors, scalars, what)
    assert type_ is not None, "a Nonlin has a vector"
    count = len(positions) + len(refs)
    axes = None if over is None else site_axes(builder, what, "over", over, sites)
    if axes:
        sites = _over(builder, frozen, numbers, count, axes, sites, what)
    else:
        one_number(builder, frozen, numbers, count, what)
    result = VectorType(sites, type_.dim, "wide")
    position = builder.emit(Nonlin(frozen, numbers, positions, refs, axes or None), result)
    builder.give_name(position, "s")
    return position, result


def site_axes(builder: Builder, what: str, name: str, given: Any, sites: Sites) -> tuple[int, ...]:
    """Site axes counted from 0, in the order given: one, or several in a tuple, list, range or array."""
    several = isinstance(given, Sequence | np.ndarray) and np.ndim(given) == 1
    axes: list[Any] = list(given) if several else [given]
    known = lambda a: isinstance(a, int | np.integer) and not isinstance(a, bool) and -len(sites) <= a < len(sites)
    if not all(map(known, axes)):
        builder.fail(
            what, f"{name}={given!r} names a site axis that sites {sites} do not have",
            "give ints, and count the site axes from 0",
        )  # fmt: skip
    places = tuple(int(a) % len(sites) for a in axes)
    if len(set(places)) < len(places):
        builder.fail(what, f"{name}={given!r} names an axis twice", "name each axis once")
    return places


def _over(
    builder: Builder, fn: Function, numbers: Sequence[Num], count: int, axes: tuple[int, ...], sites: Sites, what: str
) -> Sites:
    """The sites of the result of a function that sees `axes` whole."""
    seen = tuple(sites[axis] for axis in axes)
    shape = result_shape(builder, fn, numbers, [seen] * count, what)
    if shape == ():
        return tuple(s for axis, s in enumerate(sites) if axis not in axes)
    if len(shape) != len(axes):
        builder.fail(
            what, f"over site axes of shape {seen} {fn.name} returns shape {shape}",
            f"return an array with {len(axes)} axes, or one number",
        )  # fmt: skip
    return tuple(shape[axes.index(axis)] if axis in axes else s for axis, s in enumerate(sites))
