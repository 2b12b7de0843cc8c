"""The Simple GIA Check: may Wᵀ of the backward pass be replaced by an independent copy?

Condition 1 of Tensor Programs II: the readout is sampled independently of everything else with mean 0, and is used
nowhere but in the output. Here a readout is a weight with a fixed number of rows, so it is independent and centred by
construction, and tracing refuses it inside the network; what can break the check is an output that is not read by one:
a Moment (a mean readout), a function of scalars, or a Moment added to a readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from tensorprog.ir import (
    BiasVector,
    Inner,
    Leaf,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    ScalarResult,
    ScalarType,
    SiteLinear,
    Structure,
    is_entries,
    is_readout,
    operands,
)


@dataclass(frozen=True)
class Finding:
    """A condition that an instruction breaks."""

    condition: str
    position: int
    why: str
    remedy: str


def reached(structure: Structure, starts: tuple[int, ...]) -> list[int]:
    """Positions that the given ones depend on, themselves included, in order."""
    seen: set[int] = set()
    stack = list(starts)
    while stack:
        position = stack.pop()
        if position not in seen:
            seen.add(position)
            stack.extend(operands(structure.instructions[position]))
    return sorted(seen)


_MEAN_READOUT = (
    "the output is an average over the width, not a readout sampled independently with mean 0",
    "the limit itself still exists: tp.limit gives it, tp.ntk(…, method='backward') n times its NTK; for an NTK of "
    "order 1 read the vector with v = tp.weight('v', 1, n), v @ x",
)


_OWN_READOUT = (
    "the readout reads a vector that its own entries are added to or multiply: Σ v_α x_α/√n grows like √n where "
    "E Z^v Z^x is not 0, and is no sampled readout where it is",
    "declare another readout, or return the mean (1/n) Σ v_α x_α, tp.moment(lambda v, x: v * x, tp.entries(v), x)",
)


def readout_findings(structure: Structure) -> list[Finding]:
    """What breaks the Simple GIA Check; empty when it holds."""
    positions = (p for output in structure.outputs for p in _averages(structure, output))
    found = [Finding("simple GIA check", position, *_MEAN_READOUT) for position in dict.fromkeys(positions)]
    own = (p for p in reached(structure, structure.outputs) if _reads_own_entries(structure, p))
    return found + [Finding("simple GIA check", position, *_OWN_READOUT) for position in own]


def _reads_own_entries(structure: Structure, position: int) -> bool:
    """Whether a readout's entries are in the coordinates of what it reads: behind another matrix they are not."""
    readout = structure.instructions[position]
    if not isinstance(readout, MatMul) or readout.transposed or not is_readout(structure.weights[readout.weight]):
        return False
    seen: set[int] = set()
    stack = [readout.x]
    while stack:
        place = stack.pop()
        if place in seen or isinstance(structure.types[place], ScalarType):
            continue
        seen.add(place)
        instruction = structure.instructions[place]
        if not isinstance(instruction, MatMul):
            stack.extend(operands(instruction))
        elif instruction.weight == readout.weight:
            return True
    return False


def _averages(structure: Structure, output: int) -> list[int]:
    """Where an output is a function of averages over the width: a Moment, or a readout that one is added to."""
    if isinstance(structure.types[output], ScalarType):
        return [output]
    if structure.vector(output).space != "output":
        return []
    return [p for p in reached(structure, (output,)) if _adds_average(structure, p)]


def _adds_average(structure: Structure, position: int) -> bool:
    """Whether scalars of the program are added to a readout; c·(v x) adds none: it is the readout of c·x."""
    type_, instruction = structure.types[position], structure.instructions[position]
    if not isinstance(instruction, LinComb) or isinstance(type_, ScalarType) or type_.space != "output":
        return False
    coefs = list(instruction.constants)
    coefs += [coef for coef, x in instruction.terms if isinstance(structure.instructions[x], BiasVector)]
    return any(
        isinstance(factor, int) and depends_on_average(structure, factor) for coef in coefs for factor in coef.factors
    )


def is_average(structure: Structure, position: int) -> bool:
    """Whether an instruction averages over a width; an inner product of inputs is data."""
    instruction = structure.instructions[position]
    if isinstance(instruction, Inner):
        return structure.vector(instruction.x).space != "input"
    return isinstance(instruction, Moment)


def depends_on_average(structure: Structure, position: int) -> bool:
    """Whether a scalar depends on an average over a width: any other is known from the data and has no gradient."""
    return any(is_average(structure, p) for p in reached(structure, (position,)))


def forward_transposes(structure: Structure, ends: tuple[int, ...] | None = None) -> list[Finding]:
    """Weights that act both as W and as Wᵀ on the way to the given instructions, the outputs by default."""
    # A readout and its entries are no such pair: both findings of what they do together are of the readout.
    plain: dict[int, int] = {}
    transposed: dict[int, int] = {}
    for position in reached(structure, structure.outputs if ends is None else ends):
        match structure.instructions[position]:
            case MatMul() if is_entries(structure, position):
                pass
            case MatMul(weight=weight, transposed=True):
                transposed.setdefault(weight, position)
            case MatMul(weight=weight):
                plain.setdefault(weight, position)
            case Leaf() | SiteLinear() | Nonlin() | ScalarResult():
                pass
            case never:
                assert_never(never)
    return [
        Finding(
            "forward use of W and Wᵀ", max(plain[weight], transposed[weight]),
            f"{structure.weights[weight].name} and its transpose both act forward, so their products are not Gaussian: "
            "a Ż term appears",
            "nngp and ntk refuse it; the limit itself still exists, or declare an independent weight for the way back",
        )
        for weight in sorted(plain.keys() & transposed.keys())
    ]  # fmt: skip


def backward_products(structure: Structure, ends: Sequence[int]) -> list[Finding]:
    """Products of a backward pass, which the kernel interpreter does not take."""
    return [
        Finding(
            "backward pass", position, "it is a product of a backward pass",
            "tp.ntk(program, x, method='backward') is the kernel; for Moments of such vectors write W.T @ … in a "
            "program of its own and take tp.limit",
        )
        for position in reached(structure, tuple(ends))
        if isinstance(instruction := structure.instructions[position], MatMul)
        and instruction.aspect
        and not is_entries(structure, position)
    ]  # fmt: skip


def simple_gia_check(structure: Structure) -> bool:
    """Whether the Simple GIA Check holds."""
    return not readout_findings(structure)
