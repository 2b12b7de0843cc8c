"""The program under construction while a user's function runs on traced values."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import jaxlib
import numpy as np

from tensorprog.errors import Line, problem
from tensorprog.gia import reached
from tensorprog.ir import (
    Bias,
    Data,
    Input,
    Instruction,
    LinComb,
    Lines,
    Num,
    ScalarRef,
    Sites,
    Structure,
    Type,
    Weight,
    operands,
)
from tensorprog.program import as_leaf, is_concrete, refusal
from tensorprog.show import expression

FIRST_STEP = (
    "start a recurrence from its first step: s = tp.nonlin(fn, U @ x[0]), and W @ s from the second on, for W @ 0 is 0"
)
"""What to write instead of a state of zeros."""

Number = Any
"""A Python or NumPy number, a JAX array or a tracer."""

current: contextvars.ContextVar[Builder | None] = contextvars.ContextVar("trace in progress", default=None)
_told: contextvars.ContextVar[Line | None] = contextvars.ContextVar("the line that source(…) says", default=None)


@dataclass(frozen=True)
class Width:
    """A dimension that goes to infinity, `ratio` times the others; widths compare by name."""

    name: str
    ratio: Number = 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Width) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


# ---- whose line it is

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
_MACHINERY = (
    f"{Path(__file__).parent}{os.sep}",
    *(f"{Path(m.__file__ or '').parent}{os.sep}" for m in (jax, jaxlib, np)),
)
_STANDARD = tuple(f"{sysconfig.get_path(kind)}{os.sep}" for kind in ("stdlib", "platstdlib"))


@functools.lru_cache(maxsize=4096)
def is_machinery(file: str) -> bool:
    """Whether a source file is the tracer's own, JAX's, NumPy's or Python's: nobody's line of a program."""
    if file.startswith((*_MACHINERY, "<frozen")):
        return True
    return file.startswith(_STANDARD) and "site-packages" not in file and "dist-packages" not in file


def user_line(*, outside_package: bool = False) -> Line | None:
    """The line that `source` says, else the innermost one on the stack that is somebody's program.

    The architectures of `nets` may count.
    """
    told = _told.get()
    if told is not None:
        return told
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_machinery(file) and not (outside_package and file.startswith(_PACKAGE)):
            return Line(file, frame.f_lineno)
        frame = frame.f_back
    return None


@contextlib.contextmanager
def source(file: str | os.PathLike[str], line: int) -> Iterator[None]:
    """Within it, instructions and declarations are written for a line of another file, and errors name that line.

    For code that writes programs from something else (a configuration, a graph, a function of another library), whose
    users know that something's lines and not the code's. The innermost one holds.

    **Raises:** `ProgramError` outside a trace, and for what is no place in a file.

    ```python
    >>> import tensorprog as tp
    >>> def net(x):
    ...     for number, (name, rows) in enumerate([("U", tp.Width("n")), ("v", 1)], start=1):
    ...         with tp.source("layers.toml", number):
    ...             x = tp.weight(name, rows, x.features) @ x
    ...     return x
    >>> program = tp.trace(net, tp.Input(3))
    >>> str(program.structure.line(program.structure.outputs[0]))
    'layers.toml:2'

    ```
    """
    b = builder(f"source({str(file)!r}, {line!r})")
    if not isinstance(file, str | os.PathLike) or isinstance(line, bool) or not isinstance(line, int) or line < 1:
        b.fail(f"source({file!r}, {line!r})", "that is no place in a file", "give a file's name and a line, from 1 on")
    token = _told.set(Line(os.fspath(file), line))
    try:
        yield
    finally:
        _told.reset(token)


def failure(instruction: str, why: str, remedy: str) -> Exception:
    """A ProgramError at the user's line; where an architecture of `nets` stands between, its line is named too."""
    in_progress = current.get()
    if in_progress is not None and in_progress.at is not None:  # what is written is not what stands on the stack
        return problem(in_progress.at, instruction, why, remedy)
    user, inner = user_line(outside_package=True), user_line()
    if user is not None and inner is not None and inner != user:
        instruction = f"{instruction} (in {inner})"
    return problem(user or inner, instruction, why, remedy)


def is_name(value: object) -> bool:
    """Whether a value can name something in a listing: printable text of one line, not blank."""
    return isinstance(value, str) and value.isprintable() and bool(value) and value.strip() == value


def is_number(value: object) -> bool:
    """Whether a value can stand as a scalar or an array of scalars: numbers, NumPy and JAX arrays, tracers."""
    return isinstance(value, int | float | complex | np.generic | np.ndarray | jax.Array)


class Builder:
    """The program under construction: instructions, declarations, numbers and names so far."""

    def __init__(self, name: str, inputs: Sequence[Input | Data], input_names: Sequence[str]):
        self.name = name
        self.inputs = tuple(inputs)
        self.input_names = tuple(input_names)
        self.instructions: list[Instruction] = []
        self.types: list[Type] = []
        self.lines: list[Line | None] = []
        self.names: list[str | None] = []
        self.known: dict[tuple[Instruction, Type], int] = {}
        self.named: set[int] = set()  # positions whose names are the user's
        self.shapes: dict[Any, Sites] = {}  # what calls of functions return, by function and argument shapes
        self.numbers: list[str] = []
        self.values: list[Number] = []
        self.widths: dict[str, tuple[Num, Number]] = {}
        self.weights: list[Weight] = []
        self.biases: list[Bias] = []
        self.parameter_lines: dict[str, Line | None] = {}
        self.at: Line | None = None  # the user's line while a program is written by a transform

    @staticmethod
    def like(
        structure: Structure, values: Sequence[Number], inputs: Sequence[Input | Data], names: Sequence[str]
    ) -> Builder:
        """A builder with a program's declarations and numbers, other inputs, and no instruction yet."""
        b = Builder(structure.name, inputs, names)
        b.numbers, b.values = list(structure.numbers), list(values)
        b.widths = {name: (num, values[num.index]) for name, num in structure.widths}
        b.weights, b.biases = list(structure.weights), list(structure.biases)
        b.parameter_lines = dict(structure.lines.parameters)
        return b

    def here(self) -> Line | None:
        """The line that an instruction is written for."""
        return self.at or user_line()

    # ---- numbers and instructions

    def number(self, name: str, value: Number, instruction: str | None = None) -> Num:
        """A new number of the program, checked when it has a value."""
        why = refusal(name, value)
        if why is not None:
            kind = name.rpartition(".")[2]
            given = f"{kind}={value!r}: " if instruction else ""
            self.fail(instruction or "an operation with a number", given + why, f"give {_WANTED.get(kind, _FINITE)}")
        self.numbers.append(name)
        self.values.append(as_leaf(value, name))
        return Num(len(self.values) - 1)

    def unnamed_number(self, value: Number, kind: str = "coef") -> Num:
        """A coefficient, coef1, coef2, …, or an array that a function holds, lambda.1, …"""
        count = sum(name.startswith(kind) and name[len(kind) :].isdigit() for name in self.numbers)
        return self.number(f"{kind}{count + 1}", value)

    def emit(self, instruction: Instruction, type_: Type, line: Line | None = None) -> int:
        """The position of an instruction; one that is there already is not computed twice."""
        position = self.known.get((instruction, type_))
        if position is None:
            position = self.known[instruction, type_] = len(self.instructions)
            self.instructions.append(instruction)
            self.types.append(type_)
            self.lines.append(line or self.here())
            self.names.append(None)
        return position

    def give_name(self, position: int, prefix: str) -> None:
        """The next free name g1, g2, … for an instruction that has none."""
        if self.names[position] is None:
            taken = {*self.names, *self.parameter_lines, *self.input_names}
            count = sum(isinstance(n, str) and n[:1] == prefix and n[1:].isdigit() for n in self.names) + 1
            while f"{prefix}{count}" in taken:
                count += 1
            self.names[position] = f"{prefix}{count}"

    def scalar_sites(self, ref: ScalarRef) -> Sites:
        """The sites of a scalar operand."""
        return np.shape(self.values[ref.index]) if isinstance(ref, Num) else self.types[ref].sites

    # ---- declarations

    def width(self, width: Width) -> str:
        """The name of a width, declared at its first use."""
        what = f"Width({width.name!r}, ratio={width.ratio})"
        if not is_name(width.name):
            self.fail(what, f"{width.name!r} is no name", "give a width a name of one line, tp.Width('n')")
        if width.name not in self.widths:
            if np.shape(width.ratio) != ():
                self.fail(what, f"ratio has shape {np.shape(width.ratio)}", "give one number")
            self.widths[width.name] = (self.number(f"{width.name}.ratio", width.ratio, what), width.ratio)
            return width.name
        known = self.widths[width.name][1]
        if is_concrete(known) and is_concrete(width.ratio) and float(known) != float(width.ratio):
            self.fail(
                what, f"the width {width.name} was declared with ratio {known} before",
                "give one ratio for a name, or another name",
            )  # fmt: skip
        return width.name

    def claim(self, name: str, what: str) -> None:
        """Take a parameter's name, which must be free."""
        if not is_name(name):
            self.fail(what, f"{name!r} is no name", "give each parameter a name of its own, of one line")
        if name in self.parameter_lines:
            first = self.parameter_lines[name]
            self.fail(
                what, f"{name!r} is declared already ({first}); each declaration is a new independent parameter",
                "to share it, declare it once and use the value twice; else give it another name",
            )  # fmt: skip
        if name in self.names:
            self.fail(what, f"{name!r} is the name of a vector or scalar", "give it another name")
        self.parameter_lines[name] = self.here()

    def fail(self, instruction: str, why: str, remedy: str) -> NoReturn:
        raise failure(instruction, why, remedy)

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


_FINITE = "a finite real number, or a real array over sites"
_WANTED = {
    "var": "a variance that is at least 0",
    "lr": "a learning rate that is at least 0",
    "scale": "a positive scale; with var=0.0, scale=1.0 a parameter starts at 0 and learns",
    "ratio": "a ratio from 1e-6 to 1e6, or let another tp.Width stand for what is beyond any proportion",
    "mean": "one finite number",
}


def builder(what: str = "a declaration") -> Builder:
    """The trace in progress."""
    in_progress = current.get()
    if in_progress is None:
        raise failure(
            f"{what} outside a trace", "there is no program to put it in",
            "write it inside the function that is given to tp.trace",
        )  # fmt: skip
    return in_progress
