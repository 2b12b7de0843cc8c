"""Expectations that do not exist for given data: refused with the function and the variance."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tensorprog.errors import problem
from tensorprog.functions.base import Elementwise, diverges, polynomially_bounded
from tensorprog.interpret.equations import PairEq
from tensorprog.interpret.system import Moments
from tensorprog.program import Program
from tensorprog.show import Printer


def check_expectations(program: Program, m: Moments, same: Any) -> None:
    """Refuse E φ(u)² that is infinite at a variance that the inputs reach; `same` has values (blocks, cells, n).

    **Raises:** `ProgramError` at the Nonlin's line, naming the function and the variance.
    """
    seen: dict[tuple[Elementwise, tuple[int, ...]], float] = {}
    owners: dict[tuple[Elementwise, tuple[int, ...]], int] = {}
    for equation in m.demand.cross.equations:
        if isinstance(equation, PairEq):
            for phi, cells, numbers, side in (
                (equation.phi, equation.left, equation.phi_numbers, 0),
                (equation.psi, equation.right, equation.psi_numbers, 1),
            ):
                if polynomially_bounded(phi):
                    continue
                key = (phi, tuple(numbers[0].tolist()))
                largest = float(np.max(same.value[:, m.same.kept(cells)]))
                if largest > seen.get(key, -1.0):
                    seen[key] = largest
                _, *pair = m.demand.cross.owners[int(equation.out[0])]
                owners.setdefault(key, pair[side])
    if not seen:
        return
    dtype = same.value.dtype
    monomials = m.demand.linear.monomials.values(program.leaves, dtype)
    for (phi, numbers), variance in seen.items():
        values = tuple(monomials[i] for i in numbers)
        if bool(diverges(phi, jnp.asarray(variance, dtype), values)):
            position = owners[phi, numbers]
            text = Printer(program.structure, program.leaves).expression(position, top=True)
            raise problem(
                program.structure.line(position), text,
                f"E {phi.name}(z)² does not exist for z of variance {variance:.4g}: the function grows too fast",
                "lower the variances or the inputs' norms, or take a function that grows more slowly than exp(z²/4var)",
            )  # fmt: skip
