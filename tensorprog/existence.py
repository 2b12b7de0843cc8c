"""Expectations that do not exist for given data: refused with the function and the variance."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import problem
from tensorprog.functions.base import Elementwise, crowded, derivative, diverges, polynomially_bounded
from tensorprog.functions.batchnorm import dimensions
from tensorprog.interpret.equations import BatchEq, PairEq
from tensorprog.interpret.growth import NEAR, pole
from tensorprog.interpret.system import Moments
from tensorprog.program import Program
from tensorprog.show import Printer

Key = tuple[Elementwise, tuple[int, ...]]
"""A function and its numbers: positions of monomials, or -1 - cell for scalars of the input."""

MOST = 1024
"""Variances at which a function with numbers from the inputs is looked at: the largest ones."""


@lru_cache(maxsize=64)
def _functions(m: Moments) -> tuple[dict[Key, list[Any]], dict[Key, int]]:
    """Functions that are not known to be harmless: the same-input cells of their variances with their numbers, and
    whose they are."""
    uses: dict[Key, list[Any]] = {}
    owners: dict[Key, int] = {}
    for equation in m.demand.cross.equations:
        if isinstance(equation, PairEq):
            for phi, places, numbers, side in (
                (equation.phi, equation.left, equation.phi_numbers, 0),
                (equation.psi, equation.right, equation.psi_numbers, 1),
            ):
                if not polynomially_bounded(phi):
                    key = (phi, tuple(numbers[0].tolist()))
                    uses.setdefault(key, []).append((places, numbers))
                    _, *pair = m.demand.cross.owners[int(equation.out[0])]
                    owners.setdefault(key, pair[side])
    return uses, owners


def _of_inputs(key: Key) -> bool:
    """Whether some of a function's numbers are scalars of the input."""
    return any(number < 0 for number in key[1])


def _refuse(program: Program, position: int, why: str, remedy: str) -> NoReturn:
    text = Printer(program.structure, program.leaves).expression(position, top=True)
    raise problem(program.structure.line(position), text, why, remedy)


def check_functions(program: Program, m: Moments, *, slopes: bool) -> None:
    """Refuse E φ(u)² that exists at no variance, with `slopes` (for the NTK) also E φ′(u)²: poles, and NaN.

    **Raises:** `ProgramError` at the Nonlin's line, naming the function.
    """
    uses, owners = _functions(m)
    for key in uses:
        if _of_inputs(key):
            continue
        phi, numbers = key
        values = m.function_numbers(program.leaves, jnp.result_type(float), phi, numbers)
        fault = _look(phi, values, slopes) if numbers else _singular(phi, slopes)
        if fault is not None:
            _refuse(program, owners[key], fault, _DEFINED)


def check_expectations(program: Program, m: Moments, same: Any, *, slopes: bool) -> None:
    """Refuse E φ(u)² that is infinite at a variance that the inputs reach; `same` has values (blocks, cells, n).

    **Raises:** `ProgramError` at the Nonlin's line, naming the function and the variance; for batch norm the number of
    different examples that a batch has (at least 2, with `slopes` at least 4).
    """
    _check_batches(program, m, same, slopes=slopes)
    uses, owners = _functions(m)
    if not uses:
        return
    dtype = same.value.dtype
    for key, found in uses.items():
        if _of_inputs(key):
            if any(key[0].shapes):
                continue  # scalars of the inputs beside arrays: not looked at
            _check_scaled(program, m, same, key, slopes=slopes)
            continue
        phi, numbers = key
        values = m.function_numbers(program.leaves, dtype, phi, numbers)
        variance = max(float(np.max(same.value[:, m.same.kept(places)])) for places, _ in found)
        if bool(diverges(phi, jnp.asarray(variance, dtype), values)):
            _refuse(program, owners[key], *_grows(phi, variance))
        if bool(crowded(phi, jnp.asarray(variance, dtype), values)):
            _refuse(program, owners[key], *_crowded(phi, variance))


def _check_scaled(program: Program, m: Moments, same: Any, key: Key, *, slopes: bool) -> None:
    """The same for a function whose numbers are scalars of the input, where it has the largest variances."""
    uses, owners = _functions(m)
    phi, _ = key
    for places, numbers in uses[key]:
        variances, values = _largest(program, m, same, places, numbers)
        fault = _look(phi, tuple(float(v[0]) for v in values), slopes)
        if fault is not None:
            _refuse(program, owners[key], fault, _DEFINED)
        infinite = np.asarray(jax.vmap(partial(diverges, phi))(variances, values))
        if infinite.any():
            _refuse(program, owners[key], *_grows(phi, float(variances[infinite.argmax()])))


_DEFINED = "take a function that is defined everywhere and stays away from poles: 1 / (|z| + c), or jnp.where"


def _grows(phi: Elementwise, variance: float) -> tuple[str, str]:
    return (
        f"E {phi.name}(z)² does not exist for z of variance {variance:.4g}: the function grows too fast",
        "lower the variances or the inputs' norms, or take a function that grows more slowly than exp(z²/4var)",
    )


def _crowded(phi: Elementwise, variance: float) -> tuple[str, str]:
    return (
        f"{phi.name} jumps at more places than integrals are split at, within reach of z of variance {variance:.4g}",
        "take the smooth function that it follows (z for round(50 z)/50), one with fewer steps, or lower variances",
    )


def _largest(program: Program, m: Moments, same: Any, places: Any, numbers: Any) -> tuple[Any, tuple[Any, ...]]:
    """The largest variances, and a function's numbers where they are: program numbers or scalars of the input."""
    variances = np.asarray(same.value[:, m.same.kept(places)]).reshape(-1)  # of (blocks, uses, n)
    order = np.argsort(-variances, kind="stable")[:MOST]
    values = m.numbers(program.leaves, same, numbers).reshape(len(variances), -1)[order]
    return jnp.asarray(variances[order]), tuple(jnp.asarray(column) for column in values.T)


def _check_batches(program: Program, m: Moments, same: Any, *, slopes: bool) -> None:
    """Batch norm of a batch whose examples are too much alike."""
    needed = 3 if slopes else 1
    for equation in m.demand.cross.equations:
        if not isinstance(equation, BatchEq):
            continue
        covariances = jnp.asarray(np.moveaxis(same.value[:, m.same.kept(equation.left)], -1, 1))
        found = int(jnp.min(dimensions(covariances)))
        if found < needed:
            _refuse(
                program, m.demand.cross.owners[int(equation.out[0])][1],
                f"a batch has {found + 1} examples that differ, and batch norm needs {needed + 1}"
                + (" for its gradients to have second moments" if slopes else ""),
                "give larger batches, without copies of one example",
            )  # fmt: skip


@lru_cache(maxsize=1024)
def _singular(phi: Elementwise, slopes: bool) -> str | None:
    return _look(phi, (), slopes)


def _look(phi: Elementwise, numbers: tuple[Any, ...], slopes: bool) -> str | None:
    """Why E φ² (with `slopes`: or E φ'²) is no number at any variance: φ is NaN somewhere, or has a pole at 0."""
    moderate = np.array([0.53, 1.07, 1.61, 2.9])
    points = np.concatenate([moderate, -moderate, NEAR, -NEAR])
    for fn in (phi, derivative(phi)) if slopes else (phi,):
        values = np.asarray(jax.vmap(lambda z, fn=fn: fn(z, *numbers))(jnp.asarray(points)), dtype=float)
        bad = np.flatnonzero(np.isnan(values[:8]))
        if len(bad):
            return f"{fn.name}(z) is {values[bad[0]]:g} at z = {points[bad[0]]:g}, and a Gaussian reaches every number"
        found = pole(values[8:].reshape(2, -1))
        if found > 0.499:
            return f"E {fn.name}(z)² does not exist: {fn.name} grows like |z|^-{found:.2g} at 0"
    return None
