"""Whether an expectation exists: asked of a function of independent standard Gaussians along lines through its space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np

from tensorprog.errors import problem
from tensorprog.functions.lines import Line, look
from tensorprog.program import Program
from tensorprog.show import Printer

FAR = 12.0
"""How many deviations out a function must be a number: beyond lies a probability of 1e-32."""
LOGARITHM = 0.1
"""Poles of less, as measured, are logarithms: every power of them has a mean."""
ALMOST = 1 - 2e-3
"""A power or a rate counts as what it is measured to be to so much."""
DIRECTIONS, OFFSETS = 8, 5
DEFINED = "take a function that is defined everywhere and stays away from poles: 1 / (|z| + c), or jnp.where"


@dataclass(frozen=True)
class Through:
    """fn of `dimensions` Gaussians along a line: (t, point, direction, *numbers)."""

    fn: Callable[..., Any]
    dimensions: int

    def __call__(self, t: Any, point: Any, direction: Any, *numbers: Any) -> jax.Array:
        return self.fn(*(point[i] + t * direction[i] for i in range(self.dimensions)), *numbers)


def fault(line: Line, name: str, power: int, deviation: float = 1.0, what: str | None = None) -> tuple[str, str] | None:
    """Why E |fn|^power is no number for a Gaussian of the given deviation along the line, and what to do; or None."""
    what = what or (f"E {name}(z)²" if power == 2 else f"E {name}(z)")
    if line.undefined is not None and abs(line.undefined[0]) <= FAR * deviation:
        at, value = line.undefined
        return f"{name}(z) is {value:g} at z = {at:.3g}, and a Gaussian reaches every number", DEFINED
    pole = line.steepest()
    if pole is not None and power * pole.power >= ALMOST:
        why = f"{what} does not exist: {name} grows like |z{_shift(pole.place)}|^-{pole.power:.2g} at {pole.place:.3g}"
        return why, DEFINED
    rate = max(line.rates)
    if power * rate * 2 * deviation**2 >= 1 - 1e-9:
        variance = deviation**2
        limit = "z²/4var" if power == 2 else "z²/2var"
        return (
            f"{what} does not exist for z of variance {variance:.4g}: the function grows too fast",
            f"lower the variances or the inputs' norms, or take a function that grows more slowly than exp({limit})",
        )
    return None


def _shift(place: float) -> str:
    return "" if place == 0 else f" {'-' if place > 0 else '+'} {abs(place):.3g}"


def refuse(program: Program, position: int, why: str, remedy: str) -> NoReturn:
    text = Printer(program.structure, program.leaves).expression(position, top=True)
    raise problem(program.structure.line(position), text, why, remedy)


def refuse_missing(
    program: Program, position: int, fn: Callable[..., Any], dimensions: int, numbers: tuple[Any, ...]
) -> None:
    """Refuse a Moment, E fn(z¹, …, *numbers) of independent standard Gaussians, that does not exist.

    **Raises:** `ProgramError` at its line.
    """
    name = program.structure.instructions[position].fn.name  # type: ignore[union-attr]
    text = Printer(program.structure, program.leaves).expression(position, top=True)
    found = missing(fn, dimensions, numbers, name, 1, f"the expectation {text}")
    if found is not None:
        refuse(program, position, *found)


def missing(
    fn: Callable[..., Any], dimensions: int, numbers: tuple[Any, ...], name: str, power: int, what: str | None = None
) -> tuple[str, str] | None:
    """Why E |fn(z¹, …, *numbers)|^power of independent standard Gaussians does not exist, and what to do; or None."""

    def along(point: np.ndarray, direction: np.ndarray) -> Line:
        return look(Through(fn, dimensions), (point, direction, *numbers))

    if dimensions == 0:
        return None
    if dimensions == 1:
        return fault(along(np.zeros(1), np.ones(1)), name, power, what=what)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(DIRECTIONS, dimensions))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen = []
    for k, direction in enumerate(directions):
        point = rng.normal(size=dimensions) * (k >= DIRECTIONS - OFFSETS)
        line = along(point, direction)
        if not point.any():
            # A pole at a point is weaker than one along a line of the plane: it has the whole space around it.
            line = line._replace(poles=tuple(p._replace(power=p.power / dimensions) if abs(p.place) < 1e-6 else p for p in line.poles))
        found = fault(line, name, power, what=what)
        if found is not None:
            return found
        seen.append(max(line.rates))
    if max(seen) > 0 and np.isfinite(seen).all():
        # Rates are a quadratic form of the direction where log |fn| grows like one: its largest eigenvalue decides.
        places = np.triu_indices(dimensions)
        terms = directions[:, places[0]] * directions[:, places[1]]
        form = np.zeros((dimensions, dimensions))
        form[places] = np.linalg.lstsq(terms, np.array(seen), rcond=None)[0]
        _, vectors = np.linalg.eigh((form + form.T) / 2)
        line = along(np.zeros(dimensions), vectors[:, -1])
        return fault(line._replace(undefined=None, poles=()), name, power, what=what)
    return None
