"""What a kernel will cost, said before it is computed: equations, tiles, memory."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from tensorprog.interpret.plan import Group, Plan, Run
from tensorprog.interpret.system import Moments, integrated, kernel_structure, moments, output_targets
from tensorprog.program import Program
from tensorprog.sampling.kernels import default_samples, division
from tensorprog.sampling.plan import plan
from tensorprog.stripes import Shape, at_once, is_costly, shape

_COMPILER = {False: 120e6, True: 400e6}
"""What compiling takes beside the arrays, as measured: more for functions that go by series and quadrature."""
_COPIES = 3
"""Buffers that live at one time: a loop's old and new one, and what is being gathered."""
_STRIPES = 3
"""Stripes that live at one time: one at work, the one before, and what is copied of it."""


@dataclass(frozen=True)
class KernelPlan:
    """How the kernels of N inputs will be computed, and the memory that the process will have used at its peak."""

    how: str
    inputs: int
    arrays: float
    process: float
    integrated: bool = False

    @property
    def memory(self) -> float:
        """Bytes: the process as it is now, the compiler, the arrays."""
        return self.process + _COMPILER[self.integrated] + self.arrays

    def __str__(self) -> str:
        return (
            f"{self.how}\nmemory for {self.inputs} inputs: about {self.memory / 1e9:.2g} GB "
            f"({self.arrays / 1e9:.2g} GB of arrays, the rest Python, JAX and its compiler)"
        )


def kernel_plan(program: Program, inputs: int, *, itemsize: int = 8, tangent: bool = True) -> KernelPlan:
    """The plan for the kernels of so many inputs with themselves; `tangent` for the NTK.

    **Raises:** `ProgramError` for programs that the kernel interpreter does not take.
    """
    structure = kernel_structure(program, "kernel --plan")
    if not integrated(structure, output_targets(structure)):
        return _sampled(program, inputs, tangent)
    m = moments(structure, output_targets(structure))
    own = shape(m)
    blocks = -(-inputs // own.block)
    count = blocks * (blocks + 1) // 2 if all(u == v for u, v in m.targets) else blocks**2
    how = (
        f"moment equations: {len(m.demand.cross.owners) - 2} for each pair of inputs, "
        f"{len(m.demand.same.owners) - 2} for each input; {count} blocks of {own.block} × {own.block} pairs"
    )
    arrays = _arrays(m, inputs, own, itemsize, tangent)
    return KernelPlan(how, inputs, arrays, _process(), is_costly(m))


def _sampled(program: Program, inputs: int, tangent: bool) -> KernelPlan:
    """Draws of every vector that is read, covariances of the families, the kernels of each replicate, in float64."""
    structure = program.structure
    made = plan(structure, structure.outputs, inputs)
    replicates, points = division(made, default_samples(None, made))
    kinds = 2 if tangent else 1
    draws = points * (made.elements + 2 * made.gaussians) * kinds
    squares = sum(3 * rows**2 for rows in made.rows.values()) * kinds
    sites = sum(math.prod(structure.types[o].sites) for o in structure.outputs)
    kernels = replicates * (inputs * sites) ** 2 * kinds
    how = f"sampled: {made.gaussians} Gaussians for all inputs together, {replicates} replicates of {points} draws each"
    return KernelPlan(how, inputs, 8 * (draws + squares + kernels), _process())


def _arrays(m: Moments, inputs: int, own: Shape, itemsize: int, tangent: bool) -> float:
    """Bytes of a block at work, of a stripe, of what is known of each input, and of the result."""
    kinds = 2 if tangent else 1
    work = (_COPIES * m.cross.rows + _widest(m.cross)) * own.block**2 * itemsize * kinds
    alone = (_COPIES * m.same.rows + _widest(m.same)) * at_once(m, own) * itemsize
    known = len(m.same.keep) * inputs * itemsize
    kept = len(m.cross.keep) * (_STRIPES * own.panel**2 + inputs**2) * itemsize * kinds
    return work + alone + known + kept


def _widest(plan: Plan) -> int:
    """The most cells that one group reads at once."""
    groups: list[Group] = []
    for step in plan.steps:
        groups += [g for level in step.levels for g in level] if isinstance(step, Run) else list(step)
    return max(map(_reads, groups), default=0)


def _reads(group: Group) -> int:
    """Cells that a group reads; arrays of a loop have an axis of repeats in front."""
    out = group.arrays["out"]
    cells = group.arrays.get("cells", group.arrays.get("cov", out))
    return math.prod(cells.shape[out.ndim - 1 :])


def _process() -> float:
    """The most memory that this process has had so far, 0.3 GB where the system does not say."""
    try:
        import resource
    except ImportError:
        return 3e8
    unit = 1 if sys.platform == "darwin" else 1024
    return float(np.int64(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit)
