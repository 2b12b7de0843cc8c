"""`check`: which limit theorem applies to a program, and if none, why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import require_program
from tensorprog.errors import Line, ProgramError
from tensorprog.functions.base import elementwise, polynomially_bounded
from tensorprog.functions.frozen import Function
from tensorprog.gia import Finding, backward_products, forward_transposes, reached, readout_findings
from tensorprog.interpret.existence import ALMOST
from tensorprog.interpret.growth import Growth, Numbers, jump, measure
from tensorprog.interpret.roads import Responses, Road, expectations, particles, possible
from tensorprog.interpret.system import moments, output_targets
from tensorprog.ir import Data, Input, MatMul, Moment, Nonlin, Structure
from tensorprog.program import Program, is_concrete
from tensorprog.show import Printer
from tensorprog.transform.passes import passes

_DRAWS = 2**16
_ROUNDING = 1e-6


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
    backward pass may take Wᵀ for an independent copy. `transposes`: W and Wᵀ both act forward. `reasons`: everything
    that was found, with the user's line. `notes`: what does no harm but is worth knowing. `response`: where the simple
    check fails, the largest coefficient of a Ż in the backward pass and its standard error, at one Gaussian input of
    norm √d: gradient independence holds when all of them vanish; None where there is nothing to measure. `sampled`: the
    recursion has no rule for some expectation, so that kernels are estimated from samples.
    """

    ok: bool
    gia: bool
    transposes: bool
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]
    response: tuple[float, float] | None = None
    sampled: bool = False

    @property
    def independent(self) -> bool:
        """Whether gradient independence holds: by the simple check, or numerically."""
        return self.gia or (self.response is not None and abs(self.response[0]) <= 4 * self.response[1] + _ROUNDING)

    def __str__(self) -> str:
        lines = [
            f"limit theorem:    {'applies' if self.ok else 'none applies'}",
            f"simple GIA check: {'holds' if self.gia else 'fails'}{self._response()}",
            f"W and Wᵀ forward: {'yes' if self.transposes else 'no'}",
            f"kernels:          {self._kernels()}",
        ]
        lines += [f"- {reason}" for reason in self.reasons]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _response(self) -> str:
        if self.response is None:
            return ""
        value, error = self.response
        what = f"largest Ż coefficient of the backward pass {value:.3g} ± {error:.1g}"
        return f", {'independence holds numerically' if self.independent else 'and independence fails'}: {what}"

    def _kernels(self) -> str:
        if self.transposes:
            return "nngp and ntk refuse it, since a Ż term appears; the limit still exists" + self._unless_ok()
        if not self.gia:
            return 'ntk needs method="backward" (n times the NTK); the limit still exists' + self._unless_ok()
        if self.ok:
            return "nngp and ntk" + (", estimated from samples" if self.sampled else "")
        return "computed where the expectations exist; no theorem covers the program"

    def _unless_ok(self) -> str:
        return "" if self.ok else " only where the expectations do"


def check(program: Program) -> Report:
    """Which limit theorem applies to a program.

    Three questions are kept apart: (a) the Simple GIA Check (Tensor Programs II, Condition 1), (b) whether W and Wᵀ
    both act forward, (c) the Master Theorem's hypotheses: polynomially bounded nonlinearities, whose expectations exist
    at every variance. Functions that the library does not know are judged by their values. Where (a) fails, the Ż of
    the backward pass is computed and its largest coefficient reported: independence may hold all the same.

    **Raises:** `ProgramError` for what is no Program.

    ```python
    >>> import tensorprog as tp
    >>> print(tp.check(tp.nets.ZOO["mlp"]))
    limit theorem:    applies
    simple GIA check: holds
    W and Wᵀ forward: no
    kernels:          nngp and ntk

    ```
    """
    structure = require_program(program, "check").structure
    gia, transposes = readout_findings(structure), forward_transposes(structure)
    hypotheses = list(_hypotheses(program))
    printer = Printer(structure, program.leaves)

    def reason(finding: Finding) -> Reason:
        text = printer.expression(finding.position, top=True)
        name = structure.names[finding.position]
        line = structure.line(finding.position)
        return Reason(finding.condition, line, f"{name} = {text}" if name else text, finding.why, finding.remedy)

    found = (*gia, *transposes, *(finding for finding, _ in hypotheses))
    ok = not any(breaks for _, breaks in hypotheses)
    response = _response(program, {f.position for f in gia}) if ok else None
    sampled = not gia and not transposes and not _integrated(structure)
    return Report(ok, not gia, bool(transposes), tuple(map(reason, found)), tuple(_jumps(program)), response, sampled)


def _integrated(structure: Structure) -> bool:
    """Whether the recursion has a rule for every expectation of the outputs' kernels."""
    if backward_products(structure, structure.outputs):
        return True
    try:
        moments(structure, output_targets(structure))
    except ProgramError:
        return False
    return True


def _response(program: Program, failing: set[int]) -> tuple[float, float] | None:
    """The largest coefficient of a Ż in the backward pass of outputs that are averages, and its standard error."""
    structure = program.structure
    if not all(map(is_concrete, program.leaves)):
        return None
    rng = np.random.default_rng(0)
    arrays = tuple(jnp.asarray(_example(rng, i))[None] for i in structure.inputs)
    worst: tuple[float, float] | None = None
    for output in structure.outputs:
        if output not in failing:
            continue
        try:
            made = passes(program, output)
        except ProgramError:  # a readout with an average added has no backward pass of one scale
            continue
        both = made.program.structure
        backward = range(made.start, len(both.instructions))
        products = tuple(p for p in backward if isinstance(both.instructions[p], MatMul))
        if not products:
            continue
        road = Road(possible(both, products), *particles(both, products, _DRAWS, None))
        read = Responses(products)
        value, error = expectations(made.program, arrays, jax.random.key(0), ends=products, read=read, road=road)
        values, errors = np.asarray(value).reshape(-1), np.asarray(error).reshape(-1)
        # Of coefficients that are 0 the most significant one, so that the largest of many errors is no alarm.
        place = int(np.argmax(np.abs(values) / (errors + _ROUNDING)))
        if worst is None or abs(values[place]) > abs(worst[0]):
            worst = float(values[place]), float(errors[place])
    return worst


def _example(rng: np.random.Generator, input_: Input | Data) -> np.ndarray:
    """A Gaussian input of norm √d at each site; data between 0 and 1, which masks and adjacencies are too."""
    if isinstance(input_, Data):
        return rng.uniform(size=input_.shape)
    features = rng.normal(size=input_.shape)
    return features / np.sqrt((features**2).mean(-1, keepdims=True))


def _calls(program: Program) -> Iterator[tuple[int, Function, Numbers, int]]:
    """Nonlins and Moments that an output needs: position, function, its numbers' values, its count of arguments."""
    structure = program.structure
    for position in reached(structure, structure.outputs):
        instruction = structure.instructions[position]
        if isinstance(instruction, Nonlin | Moment) and getattr(instruction, "over", None) is None:
            numbers = tuple(program.leaves[n.index] for n in instruction.numbers)
            yield position, instruction.fn, numbers, len(instruction.vectors) + len(instruction.scalars)


def _hypotheses(program: Program) -> Iterator[tuple[Finding, bool]]:
    """Functions that the Master Theorem does not cover, and whether no other theorem does."""
    structure = program.structure
    needed = (structure.instructions[p] for p in reached(structure, structure.outputs))
    has_transposes = any(isinstance(i, MatMul) and i.transposed for i in needed)
    known: dict[tuple[Function, int], Growth] = {}
    for position, fn, numbers, count in _calls(program):
        if count == 1 and polynomially_bounded(elementwise(fn, len(numbers))):
            continue
        # Functions that hold numbers of the program differ from call to call.
        growth = known.get((fn, count)) if not numbers else None
        if growth is None:
            growth = known[fn, count] = measure(fn, numbers, count)
        told = _judge(fn.name, growth, has_transposes)
        if told is not None:
            why, remedy, breaks = told
            yield Finding("theorem's hypotheses", position, why, remedy), breaks


def _judge(name: str, growth: Growth, has_transposes: bool) -> tuple[str, str, bool] | None:
    """What a function's growth means: why it is outside the theorem, what to do, whether no theorem is left."""
    if growth.undefined is not None:
        at, value = growth.undefined
        why = f"{name}({at:g}) is {value:g}, and a Gaussian reaches every number"
        return why, "take a function that is defined everywhere", True
    if growth.pole.power >= ALMOST / 2:
        place, power = growth.pole
        near = "|z|" if place == 0 else f"|z {'-' if place > 0 else '+'} {abs(place):.3g}|"
        why = f"{name} grows like {near}^-{power:.2g} at {place:.3g}, so E {name}(z)² does not exist"
        return why, f"keep away from {place:.3g}: 1 / (|z| + c), or jnp.where around it", True
    if growth.order == 0.0:
        return None
    why = f"{name} is not polynomially bounded (it grows like exp(|z|^{growth.order:.2g}))"
    if growth.order < 1.95 and not has_transposes:
        why += "; without transposes Tensor Programs I still covers growth below exp(|z|²)"
        return why, "kernels are computed as for any other function", False
    if growth.order < 1.95:
        return why + ", and the theorem with transposes asks for that", "take one that grows like a power", True
    why += ", and its expectations need not exist at every variance"
    return why, "take one that grows more slowly; kernels refuse variances at which the expectations do not exist", True


def _jumps(program: Program) -> Iterator[str]:
    """Functions that jump: their derivative, as finite networks have it, leaves the jump out."""
    seen: set[Function] = set()
    for _, fn, numbers, count in _calls(program):
        if count == 1 and fn not in seen:
            seen.add(fn)
            place = jump(fn, numbers)
            if place is not None:
                yield (
                    f"{fn.name} jumps at {place:.4g}; a finite network's gradient does not see the jump, so it adds "
                    "nothing to the NTK"
                )
