"""The listing of a program, as a paper would print it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import jax
import numpy as np

from tensorprog.errors import Line
from tensorprog.gia import reached, simple_gia_check
from tensorprog.ir import (
    BiasVector,
    Coef,
    Dim,
    Gather,
    InputVector,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Num,
    Parameter,
    ScalarFn,
    ScalarRef,
    ScalarType,
    SiteSum,
    Structure,
    Weight,
)

_COLUMN = 56
_INFIX = {"mul": " ⊙ ", "truediv": " / "}


def dimension(dim: Dim) -> str:
    """A width's name or a fixed number."""
    return str(dim)


def number_text(value: Any) -> str | None:
    """A concrete number in four digits; None for a tracer."""
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None
    return f"{float(array):.6g}" if array.ndim == 0 else f"array{list(array.shape)}".replace("[", "(").replace("]", ")")


class Printer:
    """Prints parts of one program; `leaves` are the values of its numbers."""

    def __init__(self, structure: Structure, leaves: Sequence[Any]):
        self.structure, self.leaves = structure, leaves

    def number(self, num: Num) -> str:
        return number_text(self.leaves[num.index]) or self.structure.numbers[num.index]

    def scalar(self, ref: ScalarRef) -> str:
        return self.number(ref) if isinstance(ref, Num) else self.expression(ref)

    def coef(self, coef: Coef) -> str:
        """The coefficient without its sign when it is ±1 alone."""
        parts = [self.scalar(f) for f in coef.factors]
        if abs(coef.constant) != 1.0 or not parts:
            parts.insert(0, f"{abs(coef.constant):.6g}")
        return ("−" if coef.constant < 0 else "") + " ".join(parts)

    def term(self, coef: Coef, x: int) -> str:
        factor = "" if abs(coef.constant) == 1.0 and not coef.factors else self.coef(coef).lstrip("−") + " "
        return ("−" if coef.constant < 0 else "") + factor + self.operand(x)

    def operand(self, position: int) -> str:
        """An operand: its name, or its expression, in parentheses when it is a sum."""
        text = self.expression(position)
        is_sum = isinstance(self.structure.instructions[position], LinComb) and self.structure.names[position] is None
        return f"({text})" if is_sum else text

    def expression(self, position: int, *, top: bool = False) -> str:
        """An instruction by its name; written out when it has none or is the one that is being defined (`top`)."""
        name = self.structure.names[position]
        if name is not None and not top:
            return name
        match self.structure.instructions[position]:
            case InputVector(input=index):
                return self.structure.input_names[index]
            case BiasVector(bias=index):
                return self.structure.biases[index].name
            case MatMul(weight=weight, x=x, transposed=transposed):
                return f"{self.structure.weights[weight].name}{'ᵀ' if transposed else ''} {self.operand(x)}"
            case LinComb(terms=terms, constants=constants):
                parts = [self.term(coef, x) for coef, x in terms] + [self.coef(coef) for coef in constants]
                return " + ".join(parts).replace("+ −", "− ")
            case Gather(xs=xs, text=text):
                return text.replace("{}", ", ".join(self.operand(x) for x in xs))
            case SiteSum(x=x, axes=axes):
                over = "" if len(axes) == len(self.structure.vector(x).sites) else f", axis={axes}"
                return f"sum({self.expression(x)}{over})"
            case Nonlin(fn=fn, vectors=vectors, scalars=scalars):
                if fn.name in _INFIX and len(vectors) == 2 and not scalars:
                    return _INFIX[fn.name].join(self.operand(v) for v in vectors)
                return self.call(fn.name, vectors, scalars)
            case Moment(fn=fn, vectors=vectors, scalars=scalars):
                width = self.structure.vector(vectors[0]).dim
                return f"(1/{width}) Σ {self.call(fn.name, vectors, scalars)}"
            case ScalarFn(fn=fn, scalars=scalars):
                return self.call(fn.name, (), scalars)
            case _ as never:
                assert_never(never)

    def call(self, name: str, vectors: Sequence[int], scalars: Sequence[ScalarRef]) -> str:
        left = ", ".join(self.expression(v) for v in vectors)
        right = ", ".join(self.scalar(s) for s in scalars)
        return f"{name}({'; '.join(part for part in (left, right) if part)})"

    def declaration(self, parameter: Parameter) -> str:
        var = self.number(parameter.var)
        sites = " × ".join(str(s) for s in parameter.sites)
        at = f" at each of {sites} sites" if sites else ""
        if isinstance(parameter, Weight):
            fan = " · ".join([str(parameter.cols), *(str(w) for w in parameter.window)])
            fan = f"({fan})" if parameter.window else fan
            shape = " × ".join([*(str(w) for w in parameter.window), str(parameter.rows), str(parameter.cols)])
            return f"{parameter.name}  {shape:<10}  N(0, {var}/{fan}){at}{self.learning(parameter)}"
        mean = "0" if parameter.mean is None else self.number(parameter.mean)
        return f"{parameter.name}  {parameter.dim!s:<10}  N({mean}, {var}){at}{self.learning(parameter)}"

    def learning(self, parameter: Parameter) -> str:
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


def expression(structure: Structure, leaves: Sequence[Any], position: int) -> str:
    """One instruction as the listing prints it."""
    return Printer(structure, leaves).expression(position, top=structure.names[position] is None)


def _columns(left: str, right: str) -> str:
    return f"{left:<{_COLUMN}}{right}".rstrip()


def listing(structure: Structure, leaves: Sequence[Any]) -> str:
    """The whole program: declarations with their distributions, one instruction a line, outputs."""
    printer = Printer(structure, leaves)
    arguments = ", ".join(
        f"{name}: {' × '.join(str(s) for s in input_.shape)}"
        for name, input_ in zip(structure.input_names, structure.inputs, strict=True)
    )
    lines = [_columns(f"{structure.name}({arguments})", printer.widths())]
    declarations = ["  " + printer.declaration(parameter) for parameter in structure.parameters]
    lines += [_columns(a, b) for a, b in zip(declarations[::2], [*declarations[1::2], ""], strict=False)]
    shown: Line | None = None
    for position in printer.defined():
        line = structure.line(position)
        text = f"  {structure.names[position]} = {printer.expression(position, top=True)}"
        lines.append(_columns(text, str(line) if line is not None and line != shown else ""))
        shown = line
    holds = "holds" if simple_gia_check(structure) else "fails"
    kernel_output = not any(isinstance(structure.types[o], ScalarType) for o in structure.outputs)
    verdict = f"GIA check: {holds}" if kernel_output or holds == "fails" else ""
    lines.append(_columns(f"  return {printer.outputs()}", verdict))
    return "\n".join(lines)
