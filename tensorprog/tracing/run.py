"""`trace`: run a function once on traced inputs and keep what it did as a Program."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from tensorprog.errors import Line, ProgramError, problem
from tensorprog.ir import Coef, Input, InputVector, Moment, Nonlin, ScalarFn, ScalarType, VectorType, verify
from tensorprog.program import Program
from tensorprog.tracing.builder import Builder, builder, current, is_number, is_package_frame, user_line
from tensorprog.tracing.values import Scalar, Vector, frozen_call


def moment(fn: Callable[..., Any], *vectors: Vector, scalars: Sequence[Any] = ()) -> Scalar:
    """Moment: θ = (1/n) Σ_α fn(x¹_α, …, xᵏ_α; θ…) at each site, a scalar of the program.

    **Raises:** `ProgramError` for vectors of different widths, inputs or readouts, sites that do not broadcast.
    """
    b = builder()
    what = f"moment({getattr(fn, '__name__', 'fn')}, …)"
    if not vectors:
        b.fail(what, "a Moment averages over a wide axis, and there is no vector", "write tp.scalar for scalars alone")
    frozen, numbers, positions, refs, sites, _ = frozen_call(b, fn, vectors, scalars, what)
    position = b.emit(Moment(frozen, numbers, positions, refs), ScalarType(sites))
    b.give_name(position, "c")
    return Scalar(b, Coef(1.0, (position,)), sites)


def scalar(fn: Callable[..., Any], *scalars: Any) -> Scalar:
    """A function of scalars, which sees their whole arrays: softmax over scores, a norm's reciprocal …"""
    import jax

    b = builder()
    what = f"scalar({getattr(fn, '__name__', 'fn')}, …)"
    frozen, numbers, _, refs, _, _ = frozen_call(b, fn, (), scalars, what)
    shapes = [jax.ShapeDtypeStruct(b.scalar_sites(ref), float) for ref in refs]
    values = [jax.ShapeDtypeStruct(b.scalar_sites(num), float) for num in numbers]
    shape = jax.eval_shape(lambda args, nums: frozen(*args, numbers=nums), shapes, values).shape
    position = b.emit(ScalarFn(frozen, numbers, refs), ScalarType(shape))
    b.give_name(position, "c")
    return Scalar(b, Coef(1.0, (position,)), shape)


def named(name: str, x: Any) -> Any:
    """The same vector or scalar under a name of the user's, in listings, `at=` and `values`."""
    if not isinstance(x, Vector | Scalar):
        raise problem(user_line(), f"named({name!r}, …)", "only a traced vector or scalar has a name", "give one")
    b = x.builder
    position = x.position() if isinstance(x, Vector) else x.ref()
    if name in b.names and not (isinstance(position, int) and b.names[position] == name):
        b.fail(f"named({name!r}, …)", f"{name!r} names another instruction already", "give each its own name")
    if isinstance(position, int):
        b.names[position] = name
    return x


def trace(fn: Callable[..., Any], *inputs: Input, **keywords: Any) -> Program:
    """Trace a function written for ONE input into a Program.

    `fn` gets one traced vector for each `Input(*sites, features)`, and the keywords untouched; it returns one value or a
    tuple of values: readouts, wide vectors, or scalars. Numbers among the keywords may be JAX tracers.

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
        if not isinstance(value, Input):
            raise ProgramError(f"trace: {value!r} describes no input; write tp.Input(*sites, features)")
        if not value.shape or min(value.shape) < 1:
            raise ProgramError(f"trace: tp.Input{value.shape} has an empty axis; give sites and features of at least 1")
    b = Builder(getattr(fn, "__name__", "program").replace("<lambda>", "program"), inputs, _names(fn, len(inputs)))
    token = current.set(b)
    try:
        arguments = []
        for index, value in enumerate(inputs):
            type_ = VectorType(value.sites, value.features, "input")
            arguments.append(Vector(b, type_, ((Coef(), b.emit(InputVector(index), type_)),)))
        result = fn(*arguments, **keywords)
    except TypeError as error:
        raise _at_user_line(error, b) from error
    finally:
        current.reset(token)
    single = not isinstance(result, tuple | list)
    outputs = tuple(_output(b, fn, value) for value in ((result,) if single else result))
    b.name_shared_sums(outputs)
    structure = b.structure(outputs, single)
    verify(structure)
    return Program(structure, tuple(b.values))


def _names(fn: Callable[..., Any], count: int) -> list[str]:
    """The names of the inputs: the function's own parameters."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return names + [f"x{i + 1}" for i in range(len(names), count)]


def _output(b: Builder, fn: Callable[..., Any], value: Any) -> int:
    """The position of one output."""
    code = getattr(fn, "__code__", None)
    line = Line(code.co_filename, code.co_firstlineno) if code is not None else None
    if isinstance(value, Scalar):
        ref = value.ref()
        if isinstance(ref, int):
            return ref
    if not isinstance(value, Vector):
        raise problem(
            line, f"return {value!r}", f"{b.name} returns what is no vector or scalar of the program",
            "return a readout v @ x, a wide vector, a Moment, or a tuple of them",
        )  # fmt: skip
    if value.type.space == "input":
        raise problem(line, "return x", "the output is an input", "read the input through a weight first")
    position = value.position()
    if value.type.space == "wide" and not isinstance(b.instructions[position], Nonlin):
        b.give_name(position, "g")
    return position


def _at_user_line(error: TypeError, b: Builder) -> Exception:
    """JAX's and NumPy's TypeError about a traced value, told at the user's line; any other error as it is."""
    if not any(kind in str(error) for kind in ("Vector", "Scalar", "Matrix", "tensorprog")):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_package_frame(f.filename)]
    site = "site-packages"
    own = [f for f in frames if site not in f.filename]
    frame = own[-1] if own else None
    line = Line(frame.filename, frame.lineno or 0) if frame else None
    return problem(
        line, (frame.line if frame and frame.line else "a function applied to a traced value"),
        "a JAX or NumPy function is applied to a traced vector, which has no coordinates yet",
        "write tp.nonlin(fn, x) for an elementwise function, W @ x for a product, tp.sum for a sum over sites",
    )  # fmt: skip
