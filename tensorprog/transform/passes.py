"""`backprop`: a program's backward pass as a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np

from tensorprog.batch import require_program
from tensorprog.errors import problem
from tensorprog.gia import reached
from tensorprog.ir import (
    BiasVector,
    Coef,
    DataScalar,
    Gather,
    InputVector,
    LinComb,
    MatMul,
    Nonlin,
    ScalarResult,
    ScalarType,
    SiteLinear,
    Sites,
    SiteSum,
    Structure,
    VectorType,
    operands,
    verify,
)
from tensorprog.program import Program
from tensorprog.tracing.builder import Builder
from tensorprog.tracing.run import read_inputs
from tensorprog.tracing.values import Scalar, Vector
from tensorprog.transform.backward import AVERAGE, READOUT, Backward
from tensorprog.transform.replay import Replay


@dataclass(frozen=True)
class Use:
    """One use of a parameter, with its gradient as vectors: left rightᵀ for a weight, left for a bias (no right).

    For y = W z they are dy and z, for y = Wᵀ z (`transposed`) z and dy.
    """

    parameter: str
    left: int
    right: int | None
    transposed: bool = False

    @property
    def ends(self) -> tuple[int, ...]:
        return (self.left,) if self.right is None else (self.left, self.right)


@dataclass(frozen=True)
class Pass:
    """Forward and backward pass of one output in one program; `lead`, the output's sites, stand before those of dy."""

    program: Program
    uses: tuple[Use, ...]
    lead: Sites
    power: int
    start: int  # where the backward pass begins


def power_of(structure: Structure, output: int) -> int:
    """Whether an output is a readout or an average.

    **Raises:** `ProgramError` for outputs that have no gradient of one scale: wide vectors, readouts of several rows.
    """
    type_, line = structure.types[output], structure.line(output)
    name = structure.names[output] or "return"
    if isinstance(type_, ScalarType):
        return AVERAGE
    if type_.space == "wide":
        raise problem(
            line, name, "the output is a wide vector, whose gradient is a matrix",
            "return a readout v @ x, or a Moment",
        )  # fmt: skip
    if type_.dim != 1:
        raise problem(
            line, name, f"the readout has {type_.dim} rows, and a gradient of each",
            "declare the readout with one row: the rows are independent and alike",
        )  # fmt: skip
    return READOUT


def seed(builder: Builder, sites: Sites, power: int) -> Scalar | Vector:
    """The cotangent of an output of given sites in itself: 1, or the identity over sites."""
    one = Coef()
    if sites:
        size = int(np.prod(sites))
        one = Coef(1.0, (builder.unnamed_number(np.eye(size).reshape(*sites, *sites), "identity"),))
    if power == AVERAGE:
        return Scalar(builder, one, (*sites, *sites))
    return Vector(builder, VectorType((*sites, *sites), 1, "output"), (), (one,))


@dataclass(frozen=True)
class _Written:
    """Both passes of one output, written into a builder: values and cotangents by the program's own positions."""

    builder: Builder
    needed: list[int]
    values: dict[int, Any]
    found: dict[int, Any]
    lead: Sites
    power: int
    start: int

    def program(self, ends: Sequence[int]) -> Program:
        made = self.builder.structure(tuple(dict.fromkeys(ends)), False)
        verify(made)
        return Program(made, tuple(self.builder.values))


def _written(program: Program, output: int) -> _Written:
    structure = program.structure
    power, lead = power_of(structure, output), structure.types[output].sites
    builder = Builder.like(structure, program.leaves, structure.inputs, structure.input_names)
    replay = Replay(structure, builder, read_inputs(builder))
    needed = reached(structure, (output,))
    values = replay.run(needed)
    start = len(builder.instructions)
    found = Backward(replay, {output: seed(builder, lead, power)}, power, lead).run()
    return _Written(builder, needed, values, found, lead, power, start)


def passes(program: Program, output: int) -> Pass:
    """The forward and the backward pass of one output; the made program's outputs are the ends of all uses."""
    both = _written(program, output)
    uses = tuple(_uses(program.structure, both.needed, both.values, both.found))
    made = both.program([end for use in uses for end in use.ends])
    return Pass(made, uses, both.lead, both.power, both.start)


def _uses(structure: Structure, needed: list[int], values: dict[int, Any], found: dict[int, Any]) -> Iterator[Use]:
    """The uses of every parameter, where they are in a program that holds both passes."""
    for position in needed:
        if position not in found:
            continue
        dy = found[position]
        match structure.instructions[position]:
            case MatMul(weight=weight, x=x, transposed=transposed):
                left, right = (values[x], dy) if transposed else (dy, values[x])
                yield Use(structure.weights[weight].name, left.position(), right.position(), transposed)
            case BiasVector(bias=bias):
                yield Use(structure.biases[bias].name, dy.position(), None)
            case InputVector() | DataScalar() | SiteLinear() | Nonlin() | ScalarResult():
                pass
            case never:
                assert_never(never)


def backprop(program: Program) -> Program:
    """The backward pass as another program, with the same inputs and parameters.

    Its outputs are d<name> = √n ∂f/∂y for each wide vector y that a parameter enters (g1, g2, … of the listing), in
    program order, n ∂f/∂y where the output f is a Moment: coordinates of order 1 either way. An output over sites S
    puts S before the sites of each. Its `apply` is `jax.grad` of `apply`, to rounding.

    **Raises:** `ProgramError` for several outputs, wide vectors and readouts of several rows.

    Source: Tensor Programs II (2006.14548), section 5.

    ```python
    >>> import tensorprog as tp
    >>> "ds1 = W2ᵀ dg2" in str(tp.backprop(tp.nets.ZOO["mlp"]))
    True

    ```
    """
    structure = require_program(program, "backprop").structure
    if len(structure.outputs) != 1:
        raise problem(
            structure.line(structure.outputs[0]), f"a program of {len(structure.outputs)} outputs",
            "a backward pass starts from one output", "trace a function that returns one of them",
        )  # fmt: skip
    both = _written(program, structure.outputs[0])
    entered = [y for y in _entered(structure, both.needed) if y in both.found]
    return both.program([_under_name(both.builder, both.found[y], f"d{structure.names[y]}") for y in entered])


def _entered(structure: Structure, needed: list[int]) -> list[int]:
    """Named wide vectors that a parameter enters: g1 = W x + b."""
    entered: set[int] = set()
    for position in needed:
        match structure.instructions[position]:
            case MatMul() | BiasVector():
                entered.add(position)
            case (LinComb() | Gather() | SiteSum()) as linear:
                if any(x in entered and structure.names[x] is None for x in operands(linear)):
                    entered.add(position)
            case InputVector() | DataScalar() | Nonlin() | ScalarResult():
                pass
            case never:
                assert_never(never)

    def listed(position: int) -> bool:
        type_ = structure.types[position]
        return isinstance(type_, VectorType) and type_.space == "wide" and structure.names[position] is not None

    return [p for p in sorted(entered) if listed(p)]


def _under_name(builder: Builder, x: Vector, name: str) -> int:
    """The position of a vector under a name of its own; a vector that has another name already is written once more."""
    position = x.position()
    if builder.names[position] is None and name not in builder.names:
        builder.names[position] = name
    while builder.names[position] != name:
        again = builder.emit(LinComb(((Coef(), position),)), x.type)
        if builder.names[again] is None:
            builder.names[again] = name
        position = again
    return position
