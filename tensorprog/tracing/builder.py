"""The program under construction while a user's function runs on traced values."""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np

from tensorprog.errors import Line, problem
from tensorprog.gia import reached
from tensorprog.ir import (
    Bias, Input, Instruction, Lines, LinComb, Num, Parameter, ScalarRef, Sites, Structure, Type, Weight, operands,
)
from tensorprog.show import expression

Number = Any
"""A Python or NumPy number, a JAX array or a tracer."""

_HERE = os.path.dirname(os.path.abspath(__file__))
current: contextvars.ContextVar[Builder | None] = contextvars.ContextVar("trace in progress", default=None)


@dataclass(frozen=True)
class Width:
    """A dimension that goes to infinity, `ratio` times the others; widths compare by name."""

    name: str
    ratio: Number = 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Width) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def user_line() -> Line | None:
    """The innermost line on the stack that is not the tracer's own (architectures in `nets` count as the user's)."""
    frame = sys._getframe(1)
    while frame is not None and is_package_frame(frame.f_code.co_filename):
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno) if frame is not None else None


def is_package_frame(file: str) -> bool:
    """Whether a source file is the tracer's own."""
    return os.path.dirname(file) == _HERE


def is_number(value: object) -> bool:
    """Whether a value can stand as a scalar or an array of scalars: numbers, NumPy and JAX arrays, tracers."""
    return isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)


class Builder:
    """The program under construction: instructions, declarations, numbers and names so far."""

    def __init__(self, name: str, inputs: Sequence[Input], input_names: Sequence[str]):
        self.name = name
        self.inputs = tuple(inputs)
        self.input_names = tuple(input_names)
        self.instructions: list[Instruction] = []
        self.types: list[Type] = []
        self.lines: list[Line | None] = []
        self.names: list[str | None] = []
        self.known: dict[Instruction, int] = {}
        self.numbers: list[str] = []
        self.values: list[Number] = []
        self.widths: dict[str, tuple[Num, Number]] = {}
        self.weights: list[Weight] = []
        self.biases: list[Bias] = []
        self.parameter_lines: dict[str, Line | None] = {}

    # ---- numbers and instructions

    def number(self, name: str, value: Number) -> Num:
        """A new number of the program; a Python number is kept in double precision until an input's dtype is known."""
        if not isinstance(value, jax.Array):
            value = np.asarray(value, dtype=np.float64)
        elif not jax.numpy.issubdtype(value.dtype, jax.numpy.inexact):
            value = value.astype(float)
        self.numbers.append(name)
        self.values.append(value)
        return Num(len(self.values) - 1)

    def unnamed_number(self, value: Number, kind: str = "coef") -> Num:
        count = sum(name.startswith(kind) for name in self.numbers)
        return self.number(f"{kind}{count + 1}", value)

    def emit(self, instruction: Instruction, type_: Type) -> int:
        """The position of an instruction; one that is there already is not computed twice."""
        position = self.known.get(instruction)
        if position is None:
            position = self.known[instruction] = len(self.instructions)
            self.instructions.append(instruction)
            self.types.append(type_)
            self.lines.append(user_line())
            self.names.append(None)
        return position

    def give_name(self, position: int, prefix: str) -> None:
        """The next free name g1, g2, … for an instruction that has none."""
        if self.names[position] is None:
            taken = set(self.names)
            count = sum(isinstance(n, str) and n[:1] == prefix and n[1:].isdigit() for n in self.names) + 1
            while f"{prefix}{count}" in taken:
                count += 1
            self.names[position] = f"{prefix}{count}"

    def scalar_sites(self, ref: ScalarRef) -> Sites:
        """The sites of a scalar operand."""
        return np.shape(self.values[ref.index]) if isinstance(ref, Num) else self.types[ref].sites

    # ---- declarations

    def width(self, width: Width) -> str:
        if width.name not in self.widths:
            self.widths[width.name] = (self.number(f"{width.name}.ratio", width.ratio), width.ratio)
            return width.name
        known = self.widths[width.name][1]
        if not is_traced(known) and not is_traced(width.ratio) and float(known) != float(width.ratio):
            self.fail(
                f"Width({width.name!r}, ratio={width.ratio})",
                f"the width {width.name} was declared with ratio {known} before",
                "give one ratio for a name, or another name",
            )
        return width.name

    def declare(self, parameter: Parameter) -> None:
        if parameter.name in self.parameter_lines:
            first = self.parameter_lines[parameter.name]
            self.fail(
                f"{'weight' if isinstance(parameter, Weight) else 'bias'}({parameter.name!r}, …)",
                f"{parameter.name!r} is declared already ({first}); each declaration is a new independent parameter",
                "to share it, declare it once and use the value twice; else give it another name",
            )
        self.parameter_lines[parameter.name] = user_line()
        if isinstance(parameter, Weight):
            self.weights.append(parameter)
        else:
            self.biases.append(parameter)

    def fail(self, instruction: str, why: str, remedy: str) -> NoReturn:
        raise problem(user_line(), instruction, why, remedy)

    # ---- the result

    def name_shared_sums(self, outputs: tuple[int, ...]) -> None:
        """A sum that is read more than once (a residual stream) gets a name h1, h2, … of its own."""
        readers: dict[int, int] = {}
        for position in reached(self.structure(outputs, True), outputs):
            for operand in operands(self.instructions[position]):
                readers[operand] = readers.get(operand, 0) + 1
        for position, count in sorted(readers.items()):
            if count > 1 and isinstance(self.instructions[position], LinComb):
                self.give_name(position, "h")

    def structure(self, outputs: tuple[int, ...], single: bool) -> Structure:
        return Structure(
            name=self.name,
            inputs=self.inputs,
            input_names=self.input_names,
            widths=tuple((name, num) for name, (num, _) in self.widths.items()),
            weights=tuple(self.weights),
            biases=tuple(self.biases),
            instructions=tuple(self.instructions),
            types=tuple(self.types),
            names=tuple(self.names),
            outputs=outputs,
            single=single,
            numbers=tuple(self.numbers),
            number_sites=tuple(np.shape(value) for value in self.values),
            lines=Lines(tuple(self.lines), tuple(self.parameter_lines.items())),
        )

    def text(self, position: int) -> str:
        """An instruction as the listing would print it."""
        return expression(self.structure((), True), self.values, position)


def builder() -> Builder:
    """The trace in progress."""
    in_progress = current.get()
    if in_progress is None:
        raise problem(
            user_line(), "a declaration outside a trace", "there is no program to declare it in",
            "write it inside the function that is given to tp.trace",
        )  # fmt: skip
    return in_progress


def is_traced(value: object) -> bool:
    """Whether a number has no value yet, because a JAX transformation is tracing it."""
    if not isinstance(value, jax.Array):
        return False
    try:
        np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return True
    return False
