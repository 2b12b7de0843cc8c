"""Declarations: random matrices and initial vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from tensorprog.ir import Bias, BiasVector, Coef, Dim, MatMul, Num, Sites, VectorType, Weight
from tensorprog.program import is_concrete
from tensorprog.show import BROADCAST, dimension
from tensorprog.tracing.builder import FIRST_STEP, Builder, Number, Width, builder, failure, is_number
from tensorprog.tracing.calls import readout_inside, same_builder
from tensorprog.tracing.traced import Traced
from tensorprog.tracing.values import Scalar, Vector, gather


class Matrix(Traced):
    """A traced weight: `W @ x` is MatMul, `W.T @ y` MatMul with the transpose."""

    sites = ()

    def __init__(self, builder: Builder, index: int, transposed: bool = False):
        self.builder, self.index, self.transposed = builder, index, transposed

    def describe(self) -> str:
        return f"the weight {self.text}"

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
                f"{weight.name}.T",
                f"{weight.name} is {dimension(weight.rows)} × {dimension(weight.cols)}: a transpose across a fixed "
                "dimension is no NETSOR⊤ instruction",
                _way_back(weight),
            )  # fmt: skip
        if weight.window or weight.sites:
            self.builder.fail(
                f"{weight.name}.T", "a weight with a window or with sites is many matrices", "use tp.conv_transpose"
            )
        return Matrix(self.builder, self.index, not self.transposed)

    def __matmul__(self, x: Any) -> Vector:
        if isinstance(x, Matrix):
            self.builder.fail(
                f"{self.text} @ {x.text}", "two weights are multiplied: a program has matrices times vectors only",
                f"write {self.text} @ ({x.text} @ x)",
            )  # fmt: skip
        if isinstance(x, Scalar):
            self.builder.fail(
                f"{self.text} @ {x.describe()}", "a weight multiplies a vector, and this has no features",
                "declare data that has features as tp.Input(*sites, features); tp.Data is scalars, which multiply "
                "vectors: θ * x, tp.mix(θ, x)",
            )  # fmt: skip
        if not isinstance(x, Vector):
            start = x is None or (is_number(x) and is_concrete(x) and not np.any(x))
            self.builder.fail(
                f"{self.text} @ {type(x).__name__}", "a weight multiplies a vector of the program only",
                f"{FIRST_STEP}; tp.bias('s', n) is a start that is drawn or learned" if start else
                "pass data in through tp.trace(fn, tp.Input(…)) and multiply the traced input",
            )  # fmt: skip
        self.check(x)
        if self.weight.window:
            self.builder.fail(
                f"{self.text} @ x", "a weight with a window is many matrices",
                "use tp.conv(W, x), or tp.conv_local(W, x) where it has sites too",
            )  # fmt: skip
        return self._at_sites(x) if self.weight.sites else self.over_windows(x)

    def _at_sites(self, x: Vector) -> Vector:
        """A matrix at each of the weight's sites, which broadcast with the vector's last ones as in NumPy.

        The instruction has the weight's own sites last, so that axes along which one matrix acts go before them.
        """
        own = self.weight.sites
        try:
            sites = np.broadcast_shapes(x.sites, own)
        except ValueError:
            self.builder.fail(
                f"{self.text} @ x",
                f"{self.text} has a matrix at each of its sites {own}, the vector has sites {x.sites}: they do not "
                "broadcast",
                f"write x[…, None] for a site axis of {self.text} that x lacks; declare {self.text} without sites for "
                "one matrix at every site; with a window too it is tp.conv_local(W, x)",
            )  # fmt: skip
        lead = len(sites) - len(own)
        alike = [a for a in range(lead, len(sites)) if own[a - lead] == 1 != sites[a]]
        order = [*range(lead), *alike, *(a for a in range(lead, len(sites)) if a not in alike)]
        apart = tuple(sites[a] for a in order)
        shape = (*apart[: lead + len(alike)], *own)
        moved = gather([x], lambda source: np.broadcast_to(source, sites).transpose(order).reshape(shape), BROADCAST)
        y = self.over_windows(moved)
        return gather([y], lambda source: source.reshape(apart).transpose(np.argsort(order)), BROADCAST)

    def check(self, x: Vector) -> None:
        """The vector has the width or the features that this matrix reads."""
        same_builder(self.builder, x)
        rows, cols = self._dims()
        if x.type.dim != cols or x.type.space == "output":
            self._mismatch(x, rows, cols)

    def over_windows(self, x: Vector) -> Vector:
        """A x for a vector over sites (…, *S, *window), which go to (…, *S)."""
        rows, _ = self._dims()
        sites = x.sites[: len(x.sites) - len(self.weight.window)]
        type_ = VectorType(sites, rows, "output" if isinstance(rows, int) else "wide")
        position = self.builder.emit(MatMul(self.index, x.position(), self.transposed), type_)
        return Vector(self.builder, type_, ((Coef(), position),))

    def _dims(self) -> tuple[Dim, Dim]:
        """Rows and columns as the matrix acts."""
        weight = self.weight
        return (weight.cols, weight.rows) if self.transposed else (weight.rows, weight.cols)

    def _mismatch(self, x: Vector, rows: Dim, cols: Dim) -> NoReturn:
        text = f"{self.text} @ {self.builder.text(x.position())}"
        shape = f"{self.text} is {dimension(rows)} × {dimension(cols)}"
        if x.type.space == "output":
            why, remedy = readout_inside(x, "multiply the hidden vector that it is read from")
        elif x.type.space == "input" and isinstance(cols, int):
            why = f"features do not match: {shape}, the input has {x.type.dim} features"
            remedy = f"declare {self.weight.name} with x.features on the right"
        elif x.type.space == "input":
            why = f"an input is used as a wide vector: {shape}, the input has {x.type.dim} features"
            remedy = f"declare a weight with x.features on the right: tp.weight('U', {dimension(rows)}, x.features)"
        else:
            why = f"widths do not match: {shape}, the vector has width {dimension(x.type.dim)}"
            has_back = x.type.dim == rows and isinstance(cols, str) and isinstance(rows, str)
            back = f"write {self.weight.name}{'' if self.transposed else '.T'} @ … for the transpose, or "
            remedy = (back if has_back else "") + "declare the weight with that width on the right"
        self.builder.fail(text, why, remedy)

    def __rmatmul__(self, other: Any) -> NoReturn:
        self.builder.fail(
            f"… @ {self.text}", "the weight stands on the wrong side of @",
            f"write {self.text} @ x with a vector of the program on the right",
        )  # fmt: skip

    def _multiple(self, *_: object) -> NoReturn:
        self.builder.fail(
            f"arithmetic with {self.text}", "a weight is a random matrix, not a vector",
            f"write 2 * ({self.text} @ x), or give the weight another var",
        )  # fmt: skip

    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__ = __radd__ = __sub__ = __rsub__ = _multiple
    __neg__ = __pow__ = __rpow__ = _multiple

    def __getitem__(self, index: Any) -> NoReturn:
        self.builder.fail(f"{self.text}[{index}]", "a random matrix has no entries yet", "use it as W @ x")


def _way_back(weight: Weight) -> str:
    """What to write for the transpose of a matrix between a width and a fixed number of features."""
    size, name = min(d for d in (weight.rows, weight.cols) if isinstance(d, int)), weight.name
    rows, cols = (d if isinstance(d, int) else "n" for d in (weight.cols, weight.rows))
    return (
        f"keep its {size} vectors as sites, {name} = tp.bias('{name}', n, sites=({size},)): tp.sum(t * {name}) reads "
        f"t, a tp.Data({size}), and tp.moment(lambda e, h: e * h, {name}, h) is the way back; or declare another "
        f"weight for it, tp.weight('{name}2', {rows}, {cols})"
    )


def _dim(b: Builder, value: Any, what: str) -> Dim:
    """A dimension: a Width, the features of a vector, or a positive int."""
    if isinstance(value, Width):
        return b.width(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0:
        return int(value)
    if isinstance(value, str) and value in b.widths:
        return value
    b.fail(what, f"{value!r} is no dimension", "give a tp.Width, or a positive int for features and outputs")


def _sizes(b: Builder, value: Any, name: str, what: str) -> Sites:
    """Sizes of window or site axes."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,)
    if not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in sizes):
        b.fail(what, f"{name}={value!r} is no shape", f"give {name} a tuple of positive ints")
    return tuple(int(s) for s in sizes)


def _one_number(b: Builder, what: str, name: str, value: Any) -> Number:
    if not is_number(value) or isinstance(value, bool):
        b.fail(what, f"{name}={value!r} is not a number", f"give {name} a number or a 0-d array")
    if np.shape(value) != ():
        b.fail(what, f"{name} has shape {np.shape(value)}", f"give {name} one number")
    return value


def _number(b: Builder, what: str, name: str, kind: str, value: Any) -> Num:
    return b.number(f"{name}.{kind}", _one_number(b, what, kind, value), what)


def entries(v: Matrix) -> Vector:
    """The entries of a readout as a vector, √n vᵀ ∈ ℝⁿ: v = √n ∂f/∂x of f = v @ x, with coordinates N(0, var).

    A parameter that is both read from (v @ x = Σ v_α x_α/√n) and a vector of the network (a bias, a gate, the start of
    a gradient) is declared once, as the readout. Its sites are those of v, then the window of v.

    **Raises:** `ProgramError` for what is no readout of one row. Kernels refuse a readout of a vector that its own
    entries are added to or multiply: it grows like √n where their product has a mean.

    ```python
    >>> import jax, jax.numpy as jnp, tensorprog as tp
    >>> def slope(x):                                    # √n ∂f/∂(U x) of f = v @ tanh(U x)
    ...     n = tp.Width("n")
    ...     h = tp.weight("U", n, x.features) @ x
    ...     return tp.entries(tp.weight("v", 1, n)) * tp.nonlin(jax.grad(jnp.tanh), h)
    >>> tp.trace(slope, tp.Input(3)) == tp.trace(slope, tp.Input(3))
    True

    ```
    """
    if not isinstance(v, Matrix):
        raise failure(
            "entries(v)", f"{v!r} is no weight of the program",
            "declare v = tp.weight('v', 1, n), and write tp.entries(v); what tp.bias declares is a vector already",
        )  # fmt: skip
    weight, b = v.weight, v.builder
    if v.transposed or not isinstance(weight.rows, int) or isinstance(weight.cols, int):
        shape = f"{weight.name} is {dimension(weight.rows)} × {dimension(weight.cols)}"
        b.fail(f"entries({v.text})", f"{shape}: no readout of a width", "give a readout, v = tp.weight('v', 1, n)")
    if weight.rows != 1:
        sites = (*weight.sites, weight.rows)
        b.fail(
            f"entries({v.text})", f"{weight.name} has {weight.rows} rows, and a vector of each",
            f"declare one row at each of so many sites, v = tp.weight({weight.name!r}, 1, n, sites={sites}); its "
            "outputs are v @ x[..., None]",
        )  # fmt: skip
    one = Vector(b, VectorType((), 1, "output"), (), (Coef(),))
    ones = gather([one], lambda source: np.broadcast_to(source, weight.sites), BROADCAST)
    type_ = VectorType((*weight.sites, *weight.window), weight.cols, "wide")
    position = b.emit(MatMul(v.index, ones.position(), transposed=True, aspect=1), type_)
    return Vector(b, type_, ((Coef(), position),))


def weight(
    name: str,
    rows: Width | Dim,
    cols: Width | Dim,
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

    With `sites` it is a matrix at each of them (untied), and `W @ x` broadcasts them with the last site axes of x as
    NumPy does: sites (heads, 1) act on x over (heads, tokens) by a matrix for each head, sites (heads,) on x[:, None]
    over (tokens, 1).

    **Raises:** `ProgramError` for a name that is taken, a dimension that is none, a negative variance.
    """
    what = f"weight({name!r}, …)"
    b = builder(what)
    row_dim, col_dim = _dim(b, rows, what), _dim(b, cols, what)
    shapes = _sizes(b, window, "window", what), _sizes(b, sites, "sites", what)
    b.claim(name, what)
    var_num, lr_num = (_number(b, what, name, kind, value) for kind, value in (("var", var), ("lr", lr)))
    scale_num = None if scale is None else _number(b, what, name, "scale", scale)
    b.weights.append(Weight(name, row_dim, col_dim, var_num, lr_num, scale_num, *shapes))
    return Matrix(b, len(b.weights) - 1)


def bias(
    name: str,
    n: Width | Dim,
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
    what = f"bias({name!r}, …)"
    b = builder(what)
    dim = _dim(b, n, what)
    shape = _sizes(b, sites, "sites", what)
    b.claim(name, what)
    var_num, lr_num = (_number(b, what, name, kind, value) for kind, value in (("var", var), ("lr", lr)))
    centred = is_concrete(_one_number(b, what, "mean", mean)) and float(mean) == 0.0
    mean_num = None if centred else _number(b, what, name, "mean", mean)
    scale_num = None if scale is None else _number(b, what, name, "scale", scale)
    b.biases.append(Bias(name, dim, var_num, lr_num, mean_num, scale_num, shape))
    type_ = VectorType(shape, dim, "output" if isinstance(dim, int) else "wide")
    return Vector(b, type_, ((Coef(), b.emit(BiasVector(len(b.biases) - 1), type_)),))
