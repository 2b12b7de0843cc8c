"""The Simple GIA Check: may Wᵀ of the backward pass be replaced by an independent copy?

Condition 1 of Tensor Programs II: the readout is sampled independently of everything else with mean 0, and is used
nowhere but in the output. Here a readout is a weight with a fixed number of rows, so it is independent and centred by
construction; what can break the check is an output that is not read by one: a Moment (a mean readout), a function of
scalars, or a readout that an earlier instruction meets as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensorprog.ir import (




    MatMul,



    ScalarType,

    Structure,
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


def readout_findings(structure: Structure) -> list[Finding]:
    """What breaks the Simple GIA Check; empty when it holds."""
    findings = []
    for output in structure.outputs:
        if isinstance(structure.types[output], ScalarType):
            findings.append(
                Finding(
                    "simple GIA check", output,
                    "the output is an average over the width, not a readout sampled independently with mean 0",
                    "read it with v = tp.weight('v', 1, n); v @ x, or use tp.limit",
                )
            )  # fmt: skip
    return findings


def forward_transposes(structure: Structure) -> list[Finding]:
    """Weights that act both as W and as Wᵀ on the way to the outputs."""
    plain: dict[int, int] = {}
    transposed: dict[int, int] = {}
    for position in reached(structure, structure.outputs):
        match structure.instructions[position]:
            case MatMul(weight=weight, transposed=True):
                transposed.setdefault(weight, position)
            case MatMul(weight=weight):
                plain.setdefault(weight, position)
            case _:
                pass
    return [
        Finding(
            "forward use of W and Wᵀ", max(plain[weight], transposed[weight]),
            f"{structure.weights[weight].name} and its transpose both act forward, so their products are not Gaussian: "
            "a Ż term appears",
            "use tp.limit, or an independent weight for the way back",
        )
        for weight in sorted(plain.keys() & transposed.keys())
    ]  # fmt: skip


def simple_gia_check(structure: Structure) -> bool:
    """Whether the Simple GIA Check holds."""
    return not readout_findings(structure)


