"""Declarations: random matrices and initial vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from tensorprog.ir import Bias, BiasVector, Coef, Dim, MatMul, Num, VectorType, Weight
from tensorprog.show import dimension
from tensorprog.tracing.builder import Builder, Number, Width, is_number, is_traced, builder
from tensorprog.tracing.values import Vector



class Matrix:
    """A traced weight: `W @ x` is MatMul, `W.T @ y` MatMul with the transpose."""

    __array_ufunc__ = None

    def __init__(self, builder: Builder, index: int, transposed: bool = False):
        self.builder, self.index, self.transposed = builder, index, transposed

    @property
    def weight(self) -> Weight:
        return self.builder.weights[self.index]

    @property
    def text(self) -> str:
        return self.weight.name + ("ᵀ" if self.transposed else "")

    @property
    def T(self) -> Matrix:
        """The transpose, the same random matrix; only between two widths that go to infinity."""
        weight = self.weight
        if isinstance(weight.rows, int) or isinstance(weight.cols, int):
            self.builder.fail(
                f"{weight.name}.T", f"{weight.name} is {dimension(weight.rows)} × {dimension(weight.cols)}: a transpose "
                "across a fixed dimension is no NETSOR⊤ instruction", "declare another weight for the way back",
            )  # fmt: skip
        if weight.window or weight.sites:
            self.builder.fail(
                f"{weight.name}.T", "a weight with a window or with sites is many matrices", "use tp.conv_transpose"
            )
        return Matrix(self.builder, self.index, not self.transposed)

    def __matmul__(self, x: Any) -> Vector:
        if not isinstance(x, Vector):
            self.builder.fail(
                f"{self.text} @ {type(x).__name__}", "a weight multiplies a vector of the program only",
                "pass data in through tp.trace(fn, tp.Input(…)) and multiply the traced input",
            )  # fmt: skip
        weight = self.weight
        rows, cols = (weight.cols, weight.rows) if self.transposed else (weight.rows, weight.cols)
        if x.type.dim != cols or x.type.space == "output":
            self._mismatch(x, rows, cols)
        if weight.window or weight.sites:
            self.builder.fail(
                f"{self.text} @ x", "a weight with a window or with sites is many matrices",
                "use tp.conv(W, x) or tp.conv_local(W, x)",
            )  # fmt: skip
        type_ = VectorType(x.sites, rows, "output" if isinstance(rows, int) else "wide")
        position = self.builder.emit(MatMul(self.index, x.position(), self.transposed), type_)
        return Vector(self.builder, type_, ((Coef(), position),))

    def _mismatch(self, x: Vector, rows: Dim, cols: Dim) -> NoReturn:
        text = f"{self.text} @ {self.builder.text(x.position())}"
        shape = f"{self.text} is {dimension(rows)} × {dimension(cols)}"
        if x.type.space == "output":
            why, remedy = "a readout is used inside the network: it is one number, not a wide vector", (
                "multiply the hidden vector that it was read from"
            )  # fmt: skip
        elif x.type.space == "input" and isinstance(cols, int):
            why = f"features do not match: {shape}, the input has {x.type.dim} features"
            remedy = f"declare {self.weight.name} with x.features on the right"
        elif x.type.space == "input":
            why = f"an input is used as a wide vector: {shape}, the input has {x.type.dim} features"
            remedy = f"declare a weight with x.features on the right: tp.weight('U', {dimension(rows)}, x.features)"
        else:
            why = f"widths do not match: {shape}, the vector has width {dimension(x.type.dim)}"
            back = f"write {self.weight.name}.T @ … for the transpose, or "
            remedy = (back if x.type.dim == rows else "") + "declare the weight with that width on the right"
        self.builder.fail(text, why, remedy)

    def __rmatmul__(self, other: Any) -> NoReturn:
        self.builder.fail(
            f"… @ {self.text}", "the weight stands on the wrong side of @",
            f"write {self.text} @ x, or {self.weight.name}.T @ x for the transpose",
        )  # fmt: skip

    def __mul__(self, other: Any) -> NoReturn:
        self.builder.fail(
            f"a multiple of {self.text}", "a weight is a random matrix, not a vector",
            f"write 2 * ({self.text} @ x), or give the weight another var",
        )  # fmt: skip

    __rmul__ = __truediv__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__


def _dim(b: Builder, value: Width | int, what: str) -> Dim:
    if isinstance(value, Width):
        return b.width(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0:
        return int(value)
    if isinstance(value, str) and value in b.widths:
        return value
    b.fail(what, f"{value!r} is no dimension", "give a tp.Width, or a positive int for features and outputs")


def _positive(b: Builder, what: str, name: str, value: Number) -> Number:
    """A number that must not be negative; tracers are taken as they are."""
    if not is_number(value):
        b.fail(what, f"{name}={value!r} is not a number", f"give {name} a number or a 0-d array")
    if np.shape(value) != ():
        b.fail(what, f"{name} has shape {np.shape(value)}", f"give {name} one number")
    if not is_traced(value) and not (0 <= float(value) < math.inf):
        b.fail(what, f"{name}={float(value)} is not a finite number ≥ 0", f"give a {name} that is at least 0")
    return value


def weight(
    name: str,
    rows: Width | int,
    cols: Width | int,
    *,
    var: Number = 1.0,
    scale: Number | None = None,
    lr: Number = 1.0,
    window: Sequence[int] = (),
    sites: Sequence[int] = (),
) -> Matrix:
    """Declare a random matrix W ∈ ℝ^{rows × cols} with iid entries N(0, var/fan), fan = cols·∏window.

    Declared once, it is one matrix wherever it is used (tied). An int on the left makes a readout, an int on the right
    reads the features of an input. The trained parameter is θ ~ N(0, var/scale²), W = scale·θ/√fan; `scale` defaults to
    √var. `lr` multiplies its learning rate (0 freezes it).

    **Raises:** `ProgramError` for a name that is taken, a dimension that is none, a negative variance.
    """
    b = builder()
    what = f"weight({name!r}, …)"
    row_dim, col_dim = _dim(b, rows, what), _dim(b, cols, what)
    numbers = {"var": _positive(b, what, "var", var), "lr": _positive(b, what, "lr", lr)}
    if scale is not None:
        numbers["scale"] = _positive(b, what, "scale", scale)
    if name not in b.parameter_lines:
        nums = {key: b.number(f"{name}.{key}", value) for key, value in numbers.items()}
    else:
        nums = {"var": Num(0), "lr": Num(0)}
    b.declare(
        Weight(name, row_dim, col_dim, nums["var"], nums["lr"], nums.get("scale"), tuple(window), tuple(sites))
    )
    return Matrix(b, len(b.weights) - 1)


def bias(
    name: str,
    n: Width | int,
    *,
    var: Number = 1.0,
    mean: Number = 0.0,
    scale: Number | None = None,
    lr: Number = 1.0,
    sites: Sequence[int] = (),
) -> Vector:
    """Declare a random vector b ∈ ℝⁿ with iid entries N(mean, var), shared by the sites that it is added to.

    The trained parameter is θ ~ N(0, var/scale²), b = scale·θ + mean; `var=0.0, scale=1.0` starts at the constant
    `mean` and learns. It is also what a program without inputs starts from.

    **Raises:** `ProgramError` for a name that is taken, a dimension that is none, a negative variance.
    """
    b = builder()
    what = f"bias({name!r}, …)"
    dim = _dim(b, n, what)
    if not is_number(mean) or np.shape(mean) != ():
        b.fail(what, f"mean={mean!r} is not a number", "give mean one number")
    numbers = {"var": _positive(b, what, "var", var), "lr": _positive(b, what, "lr", lr)}
    if is_traced(mean) or float(mean) != 0.0:
        numbers["mean"] = mean
    if scale is not None:
        numbers["scale"] = _positive(b, what, "scale", scale)
    if name not in b.parameter_lines:
        nums = {key: b.number(f"{name}.{key}", value) for key, value in numbers.items()}
    else:
        nums = {"var": Num(0), "lr": Num(0)}
    b.declare(
        Bias(name, dim, nums["var"], nums["lr"], nums.get("mean"), nums.get("scale"), tuple(sites))
    )
    type_ = VectorType(tuple(sites), dim, "output" if isinstance(dim, int) else "wide")
    return Vector(b, type_, ((Coef(), b.emit(BiasVector(len(b.biases) - 1), type_)),))
