"""`check`: which limit theorem applies to a program, and if none, why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import require_program
from tensorprog.errors import Line
from tensorprog.functions.base import elementwise, polynomially_bounded
from tensorprog.functions.frozen import Function
from tensorprog.gia import Finding, forward_transposes, reached, readout_findings
from tensorprog.ir import MatMul, Moment, Nonlin, Structure
from tensorprog.program import Program
from tensorprog.show import Printer


@dataclass(frozen=True)
class Reason:
    """A condition that an instruction breaks: the user's line, the instruction, why, and what follows."""

    condition: str
    line: Line | None
    instruction: str
    why: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.line}: " if self.line is not None else ""
        return f"{where}{self.instruction}\n    {self.condition}: {self.why}\n    {self.remedy}"


@dataclass(frozen=True)
class Report:
    """What `check` found.

    `ok`: a limit theorem applies (the Master Theorem's hypotheses hold). `gia`: the Simple GIA Check holds, so the
    backward pass may take Wᵀ for an independent copy. `transposes`: W and Wᵀ both act forward. `reasons`: everything that
    was found, with the user's line. `notes`: what does no harm but is worth knowing.
    """

    ok: bool
    gia: bool
    transposes: bool
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"limit theorem:    {'applies' if self.ok else 'none applies'}",
            f"simple GIA check: {'holds' if self.gia else 'fails'}",
            f"W and Wᵀ forward: {'yes' if self.transposes else 'no'}",
            f"kernels:          {self._kernels()}",
        ]
        lines += [f"- {reason}" for reason in self.reasons]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _kernels(self) -> str:
        if self.transposes:
            return "refused by the kernel interpreter (nngp, ntk); the limit exists and has a Ż term"
        if not self.gia:
            return "ntk refused by the kernel interpreter: gradient independence is not assured"
        return "nngp and ntk by the kernel interpreter" if self.ok else "no theorem says that finite networks converge"


def check(program: Program) -> Report:
    """Which limit theorem applies to a program.

    Three questions are kept apart: (a) the Simple GIA Check (Tensor Programs II, Condition 1), (b) whether W and Wᵀ both
    act forward, (c) the Master Theorem's hypotheses: polynomially bounded nonlinearities, whose expectations exist at
    every variance.

    **Raises:** `ProgramError` for what is no Program.
    """
    structure = require_program(program, "check").structure
    gia, transposes = readout_findings(structure), forward_transposes(structure)
    hypotheses = list(_growth(program, has_transposes=_uses_transposes(structure)))
    breaking = [f for f, breaks in hypotheses if breaks]
    printer = Printer(structure, program.leaves)

    def reason(finding: Finding) -> Reason:
        text = printer.expression(finding.position, top=True)
        name = structure.names[finding.position]
        line = structure.line(finding.position)
        return Reason(finding.condition, line, f"{name} = {text}" if name else text, finding.why, finding.remedy)

    found = [*gia, *transposes, *(f for f, _ in hypotheses)]
    return Report(not breaking, not gia, bool(transposes), tuple(reason(f) for f in found), tuple(_jumps(program)))


def _uses_transposes(structure: Structure) -> bool:
    return any(isinstance(i, MatMul) and i.transposed for i in structure.instructions)


def _functions(program: Program) -> Iterator[tuple[int, Function, tuple[jax.Array, ...], int]]:
    """Nonlins and Moments that an output needs, with the values of their numbers and their number of arguments."""
    structure = program.structure
    for position in reached(structure, structure.outputs):
        instruction = structure.instructions[position]
        if isinstance(instruction, Nonlin | Moment) and getattr(instruction, "over", None) is None:
            numbers = tuple(jnp.asarray(program.leaves[n.index]) for n in instruction.numbers)
            yield position, instruction.fn, numbers, len(instruction.vectors) + len(instruction.scalars)


def _growth(program: Program, *, has_transposes: bool) -> Iterator[tuple[Finding, bool]]:
    """Functions that are not polynomially bounded, and whether no theorem is left."""
    for position, fn, numbers, count in _functions(program):
        known = polynomially_bounded(elementwise(fn, len(numbers))) if count == 1 else None
        order = 0.0 if known else _order(fn, numbers, count)
        if order == 0.0:
            continue
        controlled = order < 1.99 and not has_transposes
        why = f"{fn.name} is not polynomially bounded (it grows like exp(|z|^{order:.2g}))"
        if controlled:
            why += "; without transposes Tensor Programs I still covers growth below exp(|z|²)"
        else:
            why += ", and its expectations need not exist at every variance"
        remedy = "kernels are computed where the expectations exist" if controlled else "take one that grows more slowly"
        yield Finding("theorem's hypotheses", position, why, remedy), not controlled


def _order(fn: Function, numbers: tuple[jax.Array, ...], count: int) -> float:
    """p when |fn(z)| grows like exp(|z|^p) along some ray, 0 when it grows like a power: a guess from values."""
    worst = 0.0
    try:
        with jax.ensure_compile_time_eval():
            for sign in (1.0, -1.0):
                logs = []
                for radius in (8.0, 16.0):
                    value = fn(*(jnp.asarray(sign * radius, jnp.result_type(float)),) * count, numbers=numbers)
                    logs.append(float(jnp.log(jnp.abs(value) + 1.0)))
                if not all(np.isfinite(logs)):
                    return 2.0
                if logs[0] > 4.0 and logs[1] > 1.6 * logs[0]:
                    worst = max(worst, float(np.log2(logs[1] / logs[0])))
    except (TypeError, jax.errors.ConcretizationTypeError):
        return 0.0
    return worst


def _jumps(program: Program) -> Iterator[str]:
    """Functions that jump: their derivative, as finite networks have it, leaves the jump out."""
    seen: set[str] = set()
    for _, fn, _, _ in _functions(program):
        if fn.name in {"sign", "heaviside", "step"} and fn.name not in seen:
            seen.add(fn.name)
            yield f"{fn.name} jumps; a finite network's gradient does not see the jump, so it adds nothing to the NTK"
