"""`trace`: run a function once on traced inputs and keep what it did as a Program."""

from __future__ import annotations

import functools
import inspect
import linecache
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorprog.errors import Line, ProgramError, problem
from tensorprog.gia import depends_on_average, reached
from tensorprog.ir import (
    Coef,
    Data,
    DataScalar,
    Inner,
    Input,
    InputVector,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    ScalarFn,
    ScalarType,
    VectorType,
    verify,
)
from tensorprog.program import Program
from tensorprog.tracing.builder import FIRST_STEP, Builder, builder, current, failure, is_machinery, is_name
from tensorprog.tracing.calls import (
    call,
    function_name,
    one_number,
    readout_inside,
    result_shape,
    same_builder,
    same_kind,
    take,
)
from tensorprog.tracing.traced import Traced
from tensorprog.tracing.values import Scalar, Vector, repeated, scalars_of


def moment(fn: Callable[..., Any], *vectors: Vector, scalars: Sequence[Any] = ()) -> Scalar:
    """Moment: θ = (1/n) Σ_α fn(x¹_α, …, xᵏ_α; θ…) at each site, a scalar of the program.

    **Raises:** `ProgramError` for vectors of different widths, inputs or readouts, sites that do not broadcast,
    functions that JAX cannot trace or that return something else.
    """
    what = f"moment({function_name(fn)}, …)"
    b = builder(what)
    if not vectors:
        b.fail(what, "a Moment averages over a wide axis, and there is no vector", "write tp.scalar for scalars alone")
    frozen, numbers, positions, refs, sites, _ = call(b, fn, vectors, scalars_of(b, scalars, what), what)
    one_number(b, frozen, numbers, len(positions) + len(refs), what)
    position = b.emit(Moment(frozen, numbers, positions, refs), ScalarType(sites))
    b.give_name(position, "c")
    return Scalar(b, Coef(1.0, (position,)), sites)


def inner(x: Vector, y: Vector, *, shared: int = 0) -> Scalar:
    """S[i, j] = (1/n) Σ_α x[i]_α y[j]_α for all pairs of sites, a scalar with sites (*x.sites, *y.sites): scores.

    The first `shared` site axes run together in place of all pairs, S[h, i, j] = (1/n) Σ_α x[h, i]_α y[h, j]_α: heads
    of an attention. They broadcast as in NumPy, so that groups of queries share keys, x (groups, each, tokens) with
    y (groups, 1, tokens). Of two inputs it is over their features, and known without a network.

    **Raises:** `ProgramError` for what are no two vectors of one width, for readouts, and for shared axes that the
    vectors do not have or that do not broadcast.
    """
    what = "inner(x, y)"
    b = builder(what)
    for value in (x, y):
        if not isinstance(value, Vector):
            b.fail(what, f"{value!r} is no vector of the program", "give two traced vectors")
        same_builder(b, value)
    same_kind(x, y, "beside, in inner:")
    if x.type.space == "output":
        b.fail(what, *readout_inside(x, "give hidden vectors"))
    x, y = _heads(x, y, shared)
    positions = x.position(), y.position()
    for position in positions:
        if isinstance(b.instructions[position], MatMul | LinComb) and x.type.space == "wide":
            b.give_name(position, "g")
    sites = (*x.sites, *y.sites[shared:])
    position = b.emit(Inner(*positions, int(shared)), ScalarType(sites))
    b.give_name(position, "c")
    return Scalar(b, Coef(1.0, (position,)), sites)


def _heads(x: Vector, y: Vector, shared: Any) -> tuple[Vector, Vector]:
    """Two vectors whose first `shared` site axes are the same."""
    what, b = f"inner(x, y, shared={shared!r})", x.builder
    rank = min(len(x.sites), len(y.sites))
    if isinstance(shared, bool) or not isinstance(shared, int | np.integer) or not 0 <= shared <= rank:
        b.fail(
            what, f"the vectors have {len(x.sites)} and {len(y.sites)} site axes, {x.sites} and {y.sites}",
            f"give the number of first site axes that run together, from 0 to {rank}",
        )  # fmt: skip
    try:
        together = np.broadcast_shapes(x.sites[:shared], y.sites[:shared])
    except ValueError:
        b.fail(
            what, f"the first {shared} axes of sites {x.sites} and {y.sites} do not broadcast",
            "bring the axes that run together to the front with tp.transpose, in one order",
        )  # fmt: skip
    return repeated(x, (*together, *x.sites[shared:])), repeated(y, (*together, *y.sites[shared:]))


def scalar(fn: Callable[..., Any], *scalars: Any) -> Scalar:
    """A function of scalars, which sees their whole arrays: softmax over scores, a norm's reciprocal …

    **Raises:** `ProgramError` for what is no scalar, functions that JAX cannot trace or that return something else.
    """
    what = f"scalar({function_name(fn)}, …)"
    b = builder(what)
    given = scalars_of(b, scalars, what)
    frozen, numbers = take(b, fn, what)
    refs = tuple(s.ref() for s in given)
    shape = result_shape(b, frozen, numbers, [s.sites for s in given], what)
    position = b.emit(ScalarFn(frozen, numbers, refs), ScalarType(shape))
    b.give_name(position, "c")
    return Scalar(b, Coef(1.0, (position,)), shape)


def named(name: str, x: Any) -> Any:
    """The same vector or scalar under a name of the user's, in listings, `at=` and `values`.

    **Raises:** `ProgramError` for a name that is taken, and for what has no name.
    """
    what = f"named({name!r}, …)"
    if not isinstance(x, Vector | Scalar):
        raise failure(what, f"{x!r} is no vector or scalar of the program", "give the result of an operation a name")
    b = x.builder
    if not is_name(name):
        b.fail(what, f"{name!r} is no name", "give text of one line, 'hidden' say")
    position = x.position() if isinstance(x, Vector) else x.ref()
    assert isinstance(position, int), "a scalar that the user holds is an instruction"
    if name in b.names or name in b.parameter_lines or name in b.input_names:
        if b.names[position] == name:
            return x
        b.fail(what, f"{name!r} names something else already", "give each its own name")
    if position in b.named and isinstance(x, Vector):  # computed once, named twice
        position = b.emit(LinComb(((Coef(), position),)), x.type)
        x = Vector(b, x.type, ((Coef(), position),))
    b.names[position] = name
    b.named.add(position)
    return x


def trace(fn: Callable[..., Any], /, *inputs: Input | Data, **keywords: Any) -> Program:
    """Trace a function written for ONE input into a Program.

    `fn` gets one traced vector for each `Input(*sites, features)`, one traced scalar for each `Data(*shape)`, and the
    keywords untouched; it returns one value or a tuple of values: readouts, wide vectors, or scalars. Numbers among the
    keywords may be JAX tracers.

    **Raises:** `ProgramError` at the user's line for what is no tensor program.

    ```python
    >>> import tensorprog as tp, jax
    >>> def mlp(x):
    ...     n = tp.Width("n")
    ...     h = tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x)
    ...     return tp.weight("v", 1, n) @ h
    >>> program = tp.trace(mlp, tp.Input(3))

    ```
    """
    if not callable(fn):
        raise ProgramError(f"trace: {fn!r} is no function; give a function of traced inputs, and tp.Input(…) for each")
    for value in inputs:
        if not isinstance(value, Input | Data):
            raise ProgramError(
                f"trace: {value!r} describes no input; write tp.Input(*sites, features), or tp.Data(*shape) for scalars"
            )
    names = _names(fn, inputs, keywords)
    b = Builder(function_name(fn).partition("(")[0].replace("lambda", "program"), inputs, names)
    token = current.set(b)
    try:
        result = fn(*read_inputs(b), **keywords)
    except (TypeError, AttributeError) as error:
        told = _at_user_line(error)
        if told is None:
            raise
        raise told from error
    finally:
        current.reset(token)
    single = not isinstance(result, tuple | list)
    line = _first_line(fn)
    outputs = tuple(_output(b, line, value) for value in ((result,) if single else result))
    if not outputs:
        raise problem(
            line, "return ()", f"{b.name} returns nothing", "return a readout v @ x, a wide vector or a Moment"
        )
    b.name_shared_sums(outputs)
    structure = b.structure(outputs, single)
    verify(structure)
    return Program(structure, tuple(b.values))


def read_inputs(b: Builder) -> list[Any]:
    """The inputs of a builder: a vector for each Input, a scalar for each Data."""

    def read(index: int, value: Input | Data) -> Any:
        if isinstance(value, Data):
            place = b.emit(DataScalar(index), ScalarType(value.sites))
            return Scalar(b, Coef(1.0, (place,)), value.sites)
        type_ = VectorType(value.sites, value.features, "input")
        return Vector(b, type_, ((Coef(), b.emit(InputVector(index), type_)),))

    return [read(index, value) for index, value in enumerate(b.inputs)]


def _names(fn: Callable[..., Any], inputs: Sequence[Input | Data], keywords: dict[str, Any]) -> list[str]:
    """The names of the inputs: the function's own parameters.

    **Raises:** `ProgramError` for inputs and keywords that the function does not take.
    """
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return [f"x{i + 1}" for i in range(len(inputs))]
    try:
        signature.bind(*inputs, **keywords)
    except TypeError as error:
        raise ProgramError(
            f"trace: {function_name(fn)}{signature} does not take what it was given: {error}; give a tp.Input for each "
            "input, in order, and the rest as keywords"
        ) from None
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(inputs)]
    return names + [f"x{i + 1}" for i in range(len(names), len(inputs))]


def _first_line(fn: Callable[..., Any]) -> Line | None:
    """Where a function begins."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(inspect.unwrap(fn), "__code__", None) or getattr(type(fn).__call__, "__code__", None)
    return Line(code.co_filename, code.co_firstlineno) if code is not None else None


def _output(b: Builder, line: Line | None, value: Any) -> int:
    """The position of one output."""
    if not isinstance(value, Vector | Scalar):
        raise problem(
            line, f"return {value!r}", f"{b.name} returns what is no vector or scalar of the program",
            "return a readout v @ x, a wide vector, a Moment, or a tuple of them",
        )  # fmt: skip
    same_builder(b, value)
    if isinstance(value, Scalar):
        ref = value.ref()
        assert isinstance(ref, int), "a scalar that the user holds is an instruction"
        if _is_data(b, ref):
            raise problem(
                line, f"return {b.text(ref)}", "the output is data, or a function of data alone",
                "return what the network makes of it: a readout v @ x, a wide vector or a Moment",
            )  # fmt: skip
        b.give_name(ref, "c")
        return ref
    if value.type.space == "input":
        raise problem(line, "return x", "the output is an input", "read the input through a weight first")
    position = value.position()
    if value.type.space == "wide" and not isinstance(b.instructions[position], Nonlin):
        b.give_name(position, "g")
    return position


def _is_data(b: Builder, position: int) -> bool:
    """Whether a scalar is known from the data, without any network."""
    structure = b.structure((), True)
    found = [structure.instructions[p] for p in reached(structure, (position,))]
    return any(isinstance(i, DataScalar | InputVector) for i in found) and not depends_on_average(structure, position)


def _at_user_line(error: TypeError | AttributeError) -> ProgramError | None:
    """JAX's, NumPy's or Python's error about a traced value, told at the user's line; None for any other error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_machinery(f.filename)]
    frame = frames[-1] if frames else None
    line = Line(frame.filename, frame.lineno or 0) if frame else None
    source = linecache.getline(frame.filename, frame.lineno or 0).strip() if frame else ""
    if isinstance(error, AttributeError):
        if not isinstance(error.obj, Traced):
            return None
        return problem(
            line, source, f"{error.obj.describe()} has no attribute {error.name!r}",
            "vectors have sites and features, scalars (tp.Data among them) sites, weights T; data with features is "
            "tp.Input(*sites, features); functions of vectors are tp.nonlin, tp.moment, tp.sum, …",
        )  # fmt: skip
    text = str(error)
    if "Width" in text:
        return problem(
            line, source, f"a tp.Width is taken for a number, and it has none: it goes to infinity ({_first(text)})",
            f"weights divide by √width themselves, averages over it are tp.moment, a random vector is tp.bias('s', n), "
            f"another size tp.Width('m', ratio=2); zeros of that size are not needed: {FIRST_STEP}",
        )  # fmt: skip
    if not any(kind in text for kind in ("Vector", "Scalar", "Matrix", "tensorprog.tracing")):
        return None
    if "unsupported operand" in text or "bad operand" in text or "can't multiply" in text:
        return problem(
            line, source, f"arithmetic that a program does not have: {text}",
            "+ − * / take vectors, scalars of the program, real numbers and real arrays",
        )  # fmt: skip
    return problem(
        line, source or "a function applied to a traced value",
        "a JAX or NumPy function is applied to a traced value, which has no coordinates yet",
        "return the readout and apply the function to what tp.apply gives; inside the network write tp.nonlin(fn, h)"
        if _holds_readout(error) else
        "write tp.nonlin(fn, x) for an elementwise function, tp.nonlin(fn, x, over=0) for one of a whole site axis, "
        "tp.scalar(fn, s) for one of scalars or data, W @ x for a product, tp.sum for a sum over sites",
    )  # fmt: skip


def _holds_readout(error: Exception) -> bool:
    """Whether it was a readout that a function was applied to: some function on the way holds it."""
    steps = [frame.f_locals.values() for frame, _ in traceback.walk_tb(error.__traceback__)][2:]  # below `trace`, fn
    return any(isinstance(v, Vector) and v.type.space == "output" for values in steps for v in values)


def _first(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".")
