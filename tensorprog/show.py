"""The listing of a program, as a paper would print it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, assert_never

import jax.numpy as jnp
import numpy as np

from tensorprog.errors import Line
from tensorprog.functions.frozen import Function, freeze
from tensorprog.functions.pullback import is_pullback
from tensorprog.gia import backward_products, reached, simple_gia_check
from tensorprog.ir import (
    BiasVector,
    Coef,
    Data,
    DataScalar,
    Dim,
    Gather,
    Inner,
    Input,
    InputVector,
    Leaf,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Num,
    Parameter,
    ScalarFn,
    ScalarRef,
    SiteSum,
    Structure,
    Taken,
    Weight,
)

# How arithmetic prints, of vectors and of scalars; a user's function that is merely called `mul` prints by its name.
_VECTORS: dict[Function, str] = {freeze(operator.mul)[0]: " ⊙ ", freeze(operator.truediv)[0]: " / "}
_SCALARS: dict[Function, str] = {
    freeze(operator.add)[0]: " + ",
    freeze(operator.sub)[0]: " − ",
    freeze(operator.mul)[0]: " ",
    freeze(operator.truediv)[0]: " / ",
}
_SUMS = (" + ", " − ")
_RECIPROCAL = freeze(jnp.reciprocal)[0]
COLUMN, PATCHES, SPREAD, BROADCAST = "column({})", "patches(", "spread(", "{}"
"""How Gathers of mixes, windows, transposed convolutions and broadcast sites print, by which they are known."""
_WIDEST = 64  # a left column wider than this pushes its own line's right column only
_MANY = 6  # operands of a stack that are written out


def dimension(dim: Dim) -> str:
    """A width's name or a fixed number."""
    return str(dim)


def number_text(value: Any) -> str | None:
    """A concrete number in six digits, an array by its shape; None for what has no value yet."""
    array = _concrete(value)
    if array is None:
        return None
    if array.ndim == 0:
        return f"{float(array):.6g}".replace("-", "−", 1) if array < 0 else f"{float(array):.6g}"
    return f"array({' × '.join(str(s) for s in array.shape)})"


def _concrete(value: Any) -> np.ndarray | None:
    try:
        array = np.asarray(value)
    except Exception:  # a tracer, or whatever JAX puts in a tree's place
        return None
    return array if array.dtype.kind in "fiub" or jnp.issubdtype(array.dtype, jnp.floating) else None


def ratio_text(value: float) -> str:
    """A coefficient: 0.25, and 1/3 instead of 0.333333."""
    text = f"{value:.6g}"
    fraction = Fraction(value).limit_denominator(1000)
    is_fraction = float(text) != value and fraction and abs(float(fraction) - value) <= 4e-16 * abs(value)
    return str(fraction) if is_fraction else text


class Printer:
    """Prints parts of one program; `leaves` are the values of its numbers."""

    def __init__(self, structure: Structure, leaves: Sequence[Any]):
        self.structure, self.leaves = structure, leaves

    # ---- numbers and coefficients

    def number(self, num: Num) -> str:
        """A number of the program by value, by name while it has none."""
        return number_text(self.leaves[num.index]) or self.structure.numbers[num.index]

    def scalar(self, ref: ScalarRef) -> str:
        return self.number(ref) if isinstance(ref, Num) else self.expression(ref)

    def coef(self, coef: Coef) -> tuple[str, str]:
        """A coefficient's sign, "" or "−", and its size, "" when that is 1."""
        size, parts = coef.constant, []
        for factor in coef.factors:
            value = _concrete(self.leaves[factor.index]) if isinstance(factor, Num) else None
            if value is not None and value.ndim == 0 and value.dtype.kind == "f":
                size = size * float(value)
            else:
                parts.append(self.scalar_factor(factor))
        if abs(size) != 1.0 or (coef.factors and not parts):
            parts.insert(0, ratio_text(abs(size)))
        return ("−" if size < 0 else ""), " ".join(parts)

    def scalar_factor(self, ref: ScalarRef) -> str:
        """A scalar beside something: a sum or a quotient in parentheses."""
        text = self.scalar(ref)
        return f"({text})" if not isinstance(ref, Num) and self.is_compound(ref) else text

    def is_compound(self, position: int) -> bool:
        """Whether an expression needs parentheses beside a factor: a sum or quotient without a name."""
        if self.structure.names[position] is not None:
            return False
        match self.structure.instructions[position]:
            case LinComb(terms=(), constants=constants):
                return len(constants) > 1
            case LinComb(terms=terms, constants=constants):
                return len(terms) + len(constants) > 1 or not self.term(*terms[0])[1].startswith(("mean(", "pool("))
            case ScalarFn(fn=fn):
                return _SCALARS.get(fn) in (*_SUMS, " / ") or fn == _RECIPROCAL
            case Nonlin(fn=fn, scalars=scalars, over=over):
                return (fn in _VECTORS or fn == _RECIPROCAL) and not scalars and over is None
            case Gather(xs=(x,), text=text) if text == BROADCAST:
                return self.is_compound(x)
            case Leaf() | MatMul() | Gather() | SiteSum() | Moment() | Inner():
                return False
            case never:
                assert_never(never)

    # ---- instructions

    def operand(self, position: int) -> str:
        """An operand: its name, or its expression, in parentheses where that is compound."""
        text = self.expression(position)
        return f"({text})" if self.is_compound(position) else text

    def expression(self, position: int, *, top: bool = False) -> str:
        """An instruction by its name; written out when it has none or is the one that is being defined (`top`)."""
        name = self.structure.names[position]
        if name is not None and not top:
            return name
        match self.structure.instructions[position]:
            case InputVector(input=index) | DataScalar(input=index):
                return self.structure.input_names[index]
            case BiasVector(bias=index):
                return self.structure.biases[index].name
            case MatMul():
                return self.product(position)
            case LinComb(terms=terms, constants=constants):
                return self.sum(terms, constants)
            case Gather(xs=xs, text=text):
                # An index belongs to a name; the functions stack(…), concat(…) have parentheses of their own.
                own = self.expression if text.endswith(")") or text == BROADCAST else self.indexed
                return text.replace("{}", shortened([own(x) for x in xs]))
            case SiteSum(x=x, axes=axes):
                mixed = self.mixed(x)
                if mixed is not None:
                    return mixed
                return f"sum({self.expression(x)}{self.over(x, axes)})"
            case Nonlin(fn=fn, vectors=vectors, scalars=scalars, over=over):
                if fn in _VECTORS and len(vectors) == 2 and not scalars and over is None:
                    return _VECTORS[fn].join(self.operand(v) for v in vectors)
                if fn == _RECIPROCAL and over is None:
                    return f"1 / {self.operand(vectors[0])}"
                if is_pullback(fn):
                    after = "" if over is None else f"; over {axes_text(over)}"
                    return f"{self.operand(vectors[0])} ⊙ {self.call(fn.name, vectors[1:], scalars, after)}"
                return self.call(fn.name, vectors, scalars, "" if over is None else f"; over {axes_text(over)}")
            case Moment(fn=fn, vectors=vectors, scalars=scalars):
                width = self.structure.vector(vectors[0]).dim
                inside = self.call(fn.name, vectors, scalars)
                if is_pullback(fn):
                    inside = f"{self.operand(vectors[0])} ⊙ {self.call(fn.name, vectors[1:], scalars)}"
                elif fn in _VECTORS and len(vectors) == 2 and not scalars:
                    inside = _VECTORS[fn].join(self.operand(v) for v in vectors)
                return f"(1/{width}) Σ {inside}"
            case Inner(x=x, y=y, shared=shared):
                type_ = self.structure.vector(x)
                after = f"; shared {axes_text(range(shared))}" if shared else ""
                return f"⟨{self.expression(x)}, {self.expression(y)}{after}⟩/{type_.dim}"
            case ScalarFn(fn=fn, scalars=scalars):
                return self.scalar_call(fn, scalars)
            case _ as never:
                assert_never(never)

    def product(self, position: int) -> str:
        """W x or Wᵀ x, with a factor where the widths differ and the instruction has an aspect."""
        instruction = self.structure.instructions[position]
        assert isinstance(instruction, MatMul), "product is for MatMuls"
        weight, x = self.structure.weights[instruction.weight], instruction.x
        text = f"{weight.name}{'ᵀ' if instruction.transposed else ''}"
        windows = None if instruction.transposed else self.unnamed_gather(x)
        if windows is not None and weight.window:
            for made, name in ((PATCHES, "conv_local" if weight.sites else "conv"), (SPREAD, "conv_transpose")):
                if windows.text.startswith(made):
                    return windows.text.replace(f"{made}{{}}", f"{name}({text}, {self.expression(windows.xs[0])}")
        rows, cols = (weight.cols, weight.rows) if instruction.transposed else (weight.rows, weight.cols)
        if instruction.aspect and rows != cols:
            ratio = str(rows) if cols == 1 else f"({rows}/{cols})"
            text = f"{'√' if instruction.aspect == 1 else ''}{ratio} {text}"
        operand = self.operand(x)
        return text if operand == "1" and cols == 1 else f"{text} {operand}"

    def unnamed_gather(self, position: int) -> Gather | None:
        instruction = self.structure.instructions[position]
        named = self.structure.names[position] is not None
        return instruction if isinstance(instruction, Gather) and not named else None

    def mixed(self, position: int) -> str | None:
        """mix(A, x), where it is the terms of one that are summed."""
        terms = self.structure.instructions[position]
        if not isinstance(terms, LinComb) or len(terms.terms) != 1 or self.structure.names[position] is not None:
            return None
        coef, x = terms.terms[0]
        column = self.unnamed_gather(x)
        if column is None or column.text != COLUMN or terms.constants:
            return None
        sign, matrix = self.coef(coef)
        return f"mix({sign}{matrix}, {self.expression(column.xs[0])})"

    def sum(self, terms: Sequence[tuple[Coef, int]], constants: Sequence[Coef]) -> str:
        """Σ coef·x + Σ coef."""
        parts = [self.term(coef, x) for coef, x in terms]
        parts += [(sign, size or "1") for sign, size in map(self.coef, constants)]
        (sign, text), *rest = parts
        return sign + text + "".join(f" {sign or '+'} {text}" for sign, text in rest)

    def term(self, coef: Coef, x: int) -> tuple[str, str]:
        """A term's sign and what follows it: 0.5 g1, mean(s1)."""
        summed, text = self.structure.instructions[x], self.operand(x)
        if isinstance(summed, SiteSum) and self.structure.names[x] is None:
            sites = self.structure.vector(summed.x).sites
            size = math.prod(sites[axis] for axis in summed.axes)
            if abs(coef.constant) == 1.0 / size != 1.0:
                coef = Coef(math.copysign(1.0, coef.constant), coef.factors)
                text = f"mean({self.expression(summed.x)}{self.over(summed.x, summed.axes)})"
                windows = self.unnamed_gather(summed.x)
                rank = len(sites) - len(summed.axes)
                if windows is not None and windows.text.startswith(PATCHES) and min(summed.axes) == rank:
                    text = windows.text.replace(f"{PATCHES}{{}}", f"pool({self.expression(windows.xs[0])}")
        sign, factor = self.coef(coef)
        return sign, f"{factor} {text}".strip()

    def over(self, x: int, axes: Sequence[int]) -> str:
        """The axes of a sum, when they are not all."""
        return "" if len(axes) == len(self.structure.vector(x).sites) else f"; over {axes_text(axes)}"

    def indexed(self, position: int) -> str:
        """What an index stands behind: a name, or anything in parentheses."""
        text = self.expression(position)
        return text if " " not in text else f"({text})"

    def scalar_call(self, fn: Function, scalars: Sequence[ScalarRef]) -> str:
        """A function of scalars, arithmetic as arithmetic."""
        if fn == _RECIPROCAL:
            return f"1 / {self.scalar_factor(scalars[0])}"
        infix = _SCALARS.get(fn)
        taken = getattr(fn.root, "value", None)
        if isinstance(taken, Taken):  # an index stands behind a factor, a function has parentheses of its own
            own = self.scalar if taken.text.endswith(")") else self.scalar_factor
            return taken.text.replace("{}", shortened([own(s) for s in scalars]))
        if infix is None or len(scalars) != 2:
            return self.call(fn.name, (), scalars)
        if infix in _SUMS:
            left, right = self.scalar(scalars[0]), self.scalar(scalars[1])
            return f"{left}{infix}{f'({right})' if infix == ' − ' and ' ' in right else right}"
        ordered = sorted(scalars, key=lambda s: isinstance(s, int)) if infix == " " else scalars  # 2 θ, not θ 2
        return infix.join(self.scalar_factor(s) for s in ordered)

    def call(self, name: str, vectors: Sequence[int], scalars: Sequence[ScalarRef], after: str = "") -> str:
        left = ", ".join(self.expression(v) for v in vectors)
        right = ", ".join(self.scalar(s) for s in scalars)
        return f"{name}({'; '.join(part for part in (left, right) if part)}{after})"

    # ---- declarations

    def declaration(self, parameter: Parameter) -> tuple[str, str, str]:
        """A parameter's name, shape and distribution."""
        var = self.number(parameter.var)
        if isinstance(parameter, Weight):
            size = math.prod(parameter.window)
            fan = str(parameter.cols if size == 1 else f"({size} {parameter.cols})")
            if isinstance(parameter.cols, int):
                fan = str(size * parameter.cols)
            shape = " × ".join([*(str(w) for w in parameter.window), str(parameter.rows), str(parameter.cols)])
            law = f"N(0, {var}/{fan})"
        else:
            mean = "0" if parameter.mean is None else self.number(parameter.mean)
            shape, law = str(parameter.dim), f"N({mean}, {var})"
        sites = " × ".join(str(s) for s in parameter.sites)
        return parameter.name, shape, law + (f" at each of {sites} sites" if sites else "") + self.learning(parameter)

    def learning(self, parameter: Parameter) -> str:
        """A scale and a learning rate that are not the default."""
        lr = self.number(parameter.lr)
        scale = "" if parameter.scale is None else f", scale {self.number(parameter.scale)}"
        return scale + ("" if lr == "1" else f", lr {lr}")

    def widths(self) -> str:
        names = []
        for name, ratio in self.structure.widths:
            text = self.number(ratio)
            names.append(name if text == "1" else f"{name} (ratio {text})")
        return ", ".join(names) + " → ∞" if names else ""

    def defined(self) -> list[int]:
        """Positions that the listing gives a line: the named ones that an output needs."""
        needed = reached(self.structure, self.structure.outputs)
        return [p for p in needed if self.structure.names[p] is not None]

    def outputs(self) -> str:
        return ", ".join(self.expression(output) for output in self.structure.outputs)


def axes_text(axes: Sequence[int]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def shortened(parts: Sequence[str]) -> str:
    """The operands of a long stack: the first two, …, the last."""
    return ", ".join(parts if len(parts) <= _MANY else [*parts[:2], "…", parts[-1]])


def expression(structure: Structure, leaves: Sequence[Any], position: int) -> str:
    """One instruction as the listing prints it."""
    return Printer(structure, leaves).expression(position, top=structure.names[position] is None)


def listing(structure: Structure, leaves: Sequence[Any]) -> str:
    """The whole program: declarations with their distributions, one instruction a line, outputs."""
    printer = Printer(structure, leaves)
    arguments = ", ".join(map(_argument, structure.input_names, structure.inputs))
    rows = [(f"{structure.name}({arguments})", printer.widths()), *_declarations(printer)]
    shown: Line | None = None
    for position in printer.defined():
        line = structure.line(position)
        text = f"  {structure.names[position]} = {printer.expression(position, top=True)}"
        rows.append((text, str(line) if line is not None and line != shown else ""))
        shown = line
    verdict = f"GIA check: {'holds' if simple_gia_check(structure) else 'fails'}"
    if backward_products(structure, structure.outputs):
        verdict = ""  # a backward pass: the check is about the program that it is of
    rows.append((f"  return {printer.outputs()}", verdict))
    column = max((len(left) for left, _ in rows if len(left) <= _WIDEST), default=0) + 4
    return "\n".join(f"{left:<{column - 2}}  {right}".rstrip() for left, right in rows)


def _argument(name: str, input_: Input | Data) -> str:
    """An input with the shape of one example."""
    shape = " × ".join(map(str, input_.shape))
    return f"{name}: {f'data {shape}'.strip() if isinstance(input_, Data) else shape}"


def _declarations(printer: Printer) -> list[tuple[str, str]]:
    """Two parameters a line, their names, shapes and distributions below each other."""
    order = [name for name, _ in printer.structure.lines.parameters]  # as the user declared them
    parameters = sorted(printer.structure.parameters, key=lambda p: order.index(p.name))
    rows = [printer.declaration(parameter) for parameter in parameters]
    name, shape = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    cells = [f"{row[0]:<{name}}  {row[1]:<{shape}}  {row[2]}" for row in rows]
    return [(f"  {left}", right) for left, right in zip(cells[::2], [*cells[1::2], ""], strict=False)]
