"""Expectations that do not exist for given data: refused with the function and the variance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from tensorprog.functions.base import Elementwise, crowded, derivative, polynomially_bounded, product
from tensorprog.functions.batchnorm import dimensions
from tensorprog.functions.integrate import mean
from tensorprog.functions.lines import look
from tensorprog.functions.signals import tame
from tensorprog.interpret.composite import Vectorial
from tensorprog.interpret.equations import BatchEq, JointEq, MeanEq, OneEq, PairEq
from tensorprog.interpret.existence import fault, missing, of_one, refuse
from tensorprog.interpret.system import Moments, joint_sides
from tensorprog.program import Program

MOST = 8
"""Inputs at which a function with numbers of their own is looked at: those of the largest variances."""
UNSETTLED = 1e-3
"""An error beside E |phi| from which a function is the one whose kernel is no number."""
EARLY = 0.25
"""A deviation for which a function must be defined before any variance is known."""


@dataclass(frozen=True)
class Use:
    """E |phi|^power, taken by some of a program's vectors: numbers are positions of monomials, or -1 - cell for
    scalars of the input. `slopes`: the NTK takes E |phi'|^power too."""

    phi: Elementwise
    power: int
    numbers: tuple[int, ...]
    slopes: bool


@dataclass(frozen=True)
class Scaled:
    """A function of a Gaussian as one of a standard Gaussian: (z, deviation, *numbers)."""

    fn: Elementwise

    def __call__(self, z: Any, deviation: Any, *numbers: Any) -> Any:
        return self.fn(deviation * z, *numbers)


@dataclass(frozen=True)
class Own:
    """A function of its own Gaussians as one of independent standard ones: (*z, mean, factor, *numbers)."""

    fn: Vectorial

    def __call__(self, *arguments: Any) -> Any:
        count = next(k for k, x in enumerate(arguments) if jnp.ndim(x) == 1)
        _, factor, *numbers = arguments[count:]
        return self.fn(factor @ jnp.stack(arguments[:count]), tuple(numbers))


@lru_cache(maxsize=64)
def _uses(m: Moments) -> dict[Use, list[tuple[Any, Any, int]]]:
    """Expectations of functions of one Gaussian that are not known to exist: (cells of variances, numbers, whose)."""
    found: dict[Use, list[tuple[Any, Any, int]]] = {}
    for phi, power, places, numbers, owner, slopes in _met(m):
        if not (polynomially_bounded(phi) or _tame(phi)):
            use = Use(phi, power, tuple(numbers[0].tolist()), slopes)
            found.setdefault(use, []).append((places, numbers, owner))
    return found


@lru_cache(maxsize=128)
def _met(m: Moments, *, factors: bool = False) -> tuple[tuple[Elementwise, int, Any, Any, int, bool], ...]:
    """Functions of one Gaussian with the power that is averaged, cells of variances, numbers, whose they are, whether
    slopes go with them: by numbers that differ, scalars of the inputs all alike. Products of two functions of one
    Gaussian as one, or as their `factors`."""
    found = []
    for phi, power, places, numbers, owner, slopes in _each(m, factors):
        _, kinds = np.unique(np.where(numbers < 0, -1, numbers), axis=0, return_inverse=True)
        for kind in range(kinds.max(initial=-1) + 1):
            own = kinds.reshape(-1) == kind
            found.append((phi, power, places[own], numbers[own], owner, slopes))
    return tuple(found)


def _each(m: Moments, factors: bool) -> Iterator[tuple[Elementwise, int, Any, Any, int, bool]]:
    for system in (m.demand.cross, m.demand.same):
        crossing = system is m.demand.cross
        for e in system.equations:
            if isinstance(e, PairEq):
                _, left, right, *_ = system.owners[int(e.out[0])]
                yield e.phi, 2, e.left, e.phi_numbers, left, crossing
                yield e.psi, 2, e.right, e.psi_numbers, right, crossing
            elif isinstance(e, OneEq):
                both, owner = np.concatenate([e.phi_numbers, e.psi_numbers], -1), system.owners[int(e.out[0])][1]
                parts = ((e.phi, e.phi_numbers), (e.psi, e.psi_numbers))
                for phi, numbers in parts if factors else ((product(e.phi, e.psi), both),):
                    yield phi, 1, e.var, numbers, owner, False
            elif isinstance(e, MeanEq):
                yield e.phi, 1, e.var, e.phi_numbers, system.owners[int(e.out[0])][1], False


@lru_cache(maxsize=1024)
def _tame(phi: Elementwise) -> bool:
    return tame(phi, jnp.ones(()), *(jnp.ones(shape) for shape in phi.shapes))


def _of_inputs(use: Use) -> bool:
    """Whether some of a function's numbers are scalars of the input."""
    return any(number < 0 for number in use.numbers)


def check_functions(program: Program, m: Moments, *, slopes: bool) -> None:
    """Refuse E φ(u)² (of Moments: E φ(u)) that exists at no variance, with `slopes` (for the NTK) also E φ′(u)².

    **Raises:** `ProgramError` at the line of the Nonlin or Moment, naming the function.
    """
    for use, found in _uses(m).items():
        if not _of_inputs(use):
            values = m.function_numbers(program.leaves, jnp.result_type(float), use.phi, use.numbers)
            _check(program, found[0][2], use, values, None, slopes=slopes)


def _check(
    program: Program, owner: int, use: Use, values: tuple[Any, ...], variance: float | None, *, slopes: bool
) -> None:
    for fn in (use.phi, derivative(use.phi)) if slopes and use.slopes else (use.phi,):
        line = look(fn, values)
        if variance is None:  # of the growth only what no variance allows
            line = line._replace(rates=tuple(r if np.isinf(r) else 0.0 for r in line.rates))
        deviation = EARLY if variance is None else float(np.sqrt(variance))
        told = fault(line, of_one(fn.name, use.power, variance or 1.0), deviation)
        if told is not None:
            refuse(program, owner, *told)


def check_expectations(program: Program, m: Moments, same: Any, *, slopes: bool) -> None:
    """Refuse expectations that do not exist at variances that the inputs reach; `same` has values (blocks, cells, n).

    **Raises:** `ProgramError` at the Nonlin's line, naming the function and the variance; for batch norm the number of
    different examples that a batch has (at least 2, with `slopes` at least 4).
    """
    _check_batches(program, m, same, slopes=slopes)
    for use, found in _uses(m).items():
        for places, numbers, owner in found:
            variances = np.asarray(same.value[:, m.same.kept(places)]).reshape(-1)  # of (blocks, uses, n)
            values = _numbers(program, m, same, use.phi, numbers)
            order = np.argsort(-variances, kind="stable")[: MOST if _of_inputs(use) else 1]
            for k in order:
                if (own := values(int(k))) is not None:
                    _check(program, owner, use, own, float(variances[k]), slopes=slopes)
    _check_jumps(program, m, same)
    _check_joint(program, m, same)


def _numbers(program: Program, m: Moments, same: Any, phi: Elementwise, numbers: Any) -> Callable[[int], Any]:
    """A function's numbers at each of its variances, of (blocks, uses, inputs) laid end to end; None where scalars of
    the input stand beside arrays, which are not looked at."""
    if not any(phi.shapes):
        whole = m.numbers(program.leaves, same, numbers)
        rows = whole.reshape(np.prod(whole.shape[:-1], dtype=int), whole.shape[-1])
        return lambda k: tuple(map(float, rows[k]))

    def held(k: int) -> tuple[Any, ...] | None:
        own = numbers[k // same.value.shape[-1] % len(numbers)]
        known = jnp.result_type(float)
        return None if (own < 0).any() else m.function_numbers(program.leaves, known, phi, own.tolist())

    return held


def _check_jumps(program: Program, m: Moments, same: Any) -> None:
    """Functions with more jumps within reach than integrals are split at."""
    widest: dict[tuple[Elementwise, tuple[int, ...]], tuple[float, Any, int]] = {}
    for phi, _, places, numbers, owner, _ in _met(m, factors=True):
        if phi.form is None:
            variances = np.asarray(same.value[:, m.same.kept(places)]).reshape(-1)
            k = int(variances.argmax())
            values = _numbers(program, m, same, phi, numbers)(k)
            known = widest.get(key := (phi, tuple(numbers[0].tolist())))
            if values is not None and (known is None or variances[k] > known[0]):
                widest[key] = float(variances[k]), values, owner
    for (phi, _), (variance, values, owner) in widest.items():
        if crowded(phi, variance, values):
            why = f"{phi.name} jumps at more places than integrals are split at, within reach of z of variance "
            remedy = "take the smooth function that it follows (z for round(50 z)/50), one with fewer steps, or lower "
            refuse(program, owner, f"{why}{variance:.4g}", f"{remedy}variances")


def unsettled(program: Program, m: Moments, same: Any, *, slopes: bool) -> None:
    """Refuse the function whose expectation no rule settles, if there is one.

    **Raises:** `ProgramError` at its line.
    """
    for phi, power, places, numbers, owner, crossing in _met(m):
        variances = np.asarray(same.value[:, m.same.kept(places)]).reshape(-1)
        if polynomially_bounded(phi) or not np.isfinite(variances).all():
            continue
        k = int(variances.argmax())
        values = _numbers(program, m, same, phi, numbers)(k)
        if values is None:
            continue
        for fn in (phi, derivative(phi)) if slopes and crossing else (phi,):
            whole = product(fn, fn) if power == 2 else fn
            own = values * power
            found = mean(Scaled(whole), 1, (np.sqrt(variances[k]), *own))
            if not found.error <= UNSETTLED * found.size:
                refuse(
                    program, owner,
                    f"an expectation of {fn.name}, of a Gaussian of variance {variances[k]:.3g}, is known to no digit: "
                    "it varies too fast or grows too far for any rule",
                    "take a function that varies more slowly, or lower the variances or the inputs' norms",
                )  # fmt: skip


def _check_joint(program: Program, m: Moments, same: Any) -> None:
    """Functions F of several Gaussians, E F², where these vary most."""
    for side in joint_sides(m.demand):
        e, fn, alone, slots, owner = side
        if _tame_joint(fn, e):
            continue
        covs, numbers = side.met(m, program.leaves, same)
        k = int(np.trace(covs, axis1=1, axis2=2).argmax())
        values, vectors = np.linalg.eigh(covs[k])
        kept = values > 1e-9 * values.max()
        factor = vectors[:, kept] * np.sqrt(values[kept])
        own = (np.zeros(len(slots)), factor, *map(float, numbers[k]))
        name = getattr(program.structure.instructions[owner], "fn", None)
        power = 1 if e.right is None else 2
        what = "its expectation" if power == 1 else "its second moment"
        told = missing(Own(alone), int(kept.sum()), own, getattr(name, "name", "the function"), power, what)
        if told is not None:
            refuse(program, owner, *told)


@lru_cache(maxsize=1024)
def _joint_is_tame(fn: Vectorial, count: int, numbers: int) -> bool:
    return tame(fn, jnp.ones(count), tuple([jnp.ones(())] * numbers))


def _tame_joint(fn: Vectorial, e: JointEq) -> bool:
    return _joint_is_tame(fn, e.count, e.numbers.shape[1])


def _check_batches(program: Program, m: Moments, same: Any, *, slopes: bool) -> None:
    """Batch norm of a batch whose examples are too much alike."""
    needed = 3 if slopes else 1
    for equation in m.demand.cross.equations:
        if not isinstance(equation, BatchEq):
            continue
        covariances = jnp.asarray(np.moveaxis(same.value[:, m.same.kept(equation.left)], -1, 1))
        found = int(jnp.min(dimensions(covariances)))
        if found < needed:
            refuse(
                program, m.demand.cross.owners[int(equation.out[0])][1],
                f"a batch has {found + 1} examples that differ, and batch norm needs {needed + 1}"
                + (" for its gradients to have second moments" if slopes else ""),
                "give larger batches, without copies of one example",
            )  # fmt: skip
