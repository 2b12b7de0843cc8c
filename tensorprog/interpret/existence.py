"""Whether an expectation exists: asked of functions of standard Gaussians along lines through their space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, NoReturn, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import problem
from tensorprog.functions.frozen import Function
from tensorprog.functions.lines import Line, look
from tensorprog.functions.signals import tame
from tensorprog.gia import reached
from tensorprog.ir import Leaf, MatMul, Moment, Nonlin, ScalarResult, SiteLinear, Structure
from tensorprog.program import Program
from tensorprog.show import Printer

FAR = 12.0
"""How many deviations out a function must be a number: beyond lies a probability of 1e-32."""
ALMOST = 1 - 2e-3
"""The power of a pole counts as what it is measured to be to so much."""
DIRECTIONS, OFFSETS = 8, 5
DEFINED = "take a function that is defined everywhere and stays away from poles: 1 / (|z| + c), or jnp.where"


@dataclass(frozen=True)
class Through:
    """fn of `dimensions` Gaussians along a line: (t, point, direction, *numbers)."""

    fn: Callable[..., Any]
    dimensions: int

    def __call__(self, t: Any, point: Any, direction: Any, *numbers: Any) -> jax.Array:
        return self.fn(*(point[i] + t * direction[i] for i in range(self.dimensions)), *numbers)


@dataclass(frozen=True)
class Asked:
    """E |fn|^power, how it and the function are called, and what is said of places along a line: `at` gives the
    function's arguments at t, `variance` theirs."""

    name: str
    power: int
    what: str
    variance: float
    at: Callable[[float], str]


def of_one(name: str, power: int, variance: float) -> Asked:
    """A function of one centred Gaussian."""
    return Asked(name, power, f"E {name}(z)" + "²" * (power == 2), variance, lambda t: f"z = {t:.4g}")


def fault(line: Line, ask: Asked, deviation: float = 1.0) -> tuple[str, str] | None:
    """Why an expectation is no number for a Gaussian t of the given deviation along the line, and what to do; or
    None."""
    name = ask.name
    if line.undefined is not None and abs(line.undefined[0]) <= FAR * deviation:
        at, value = line.undefined
        return f"{name} is {value:g} at {ask.at(at)}, and a Gaussian reaches every number", DEFINED
    pole = line.steepest()
    if pole is not None and ask.power * pole.power >= ALMOST:
        near = f"{name} grows like |z|^-{pole.power:.2g}, z the distance from a pole at {ask.at(pole.place)}"
        return f"{ask.what} does not exist: {near}", DEFINED
    if ask.power * max(line.rates) * 2 * deviation**2 >= 1 - 1e-9:
        limit = f"z²/{2 * ask.power}var"
        return (
            f"{ask.what} does not exist for z of variance {ask.variance:.4g}: the function grows too fast",
            f"lower the variances or the inputs' norms, or take a function that grows more slowly than exp({limit})",
        )
    return None


def refuse(program: Program, position: int, why: str, remedy: str) -> NoReturn:
    text = Printer(program.structure, program.leaves).expression(position, top=True)
    raise problem(program.structure.line(position), text, why, remedy)


def refuse_missing(
    program: Program, position: int, fn: Callable[..., Any], dimensions: int, numbers: tuple[Any, ...]
) -> None:
    """Refuse a Moment, E fn(z¹, …, *numbers) of independent standard Gaussians, that does not exist; the numbers begin
    with the arguments' mean and with the factor of their covariance.

    **Raises:** `ProgramError` at its line.
    """
    name = program.structure.instructions[position].fn.name  # type: ignore[union-attr]
    text = Printer(program.structure, program.leaves).expression(position, top=True)
    found = missing(fn, dimensions, numbers, name, 1, f"the limit of {text}")
    if found is not None:
        refuse(program, position, *found)


def missing(
    fn: Callable[..., Any], dimensions: int, numbers: tuple[Any, ...], name: str, power: int, what: str
) -> tuple[str, str] | None:
    """Why E |fn(z¹, …, *numbers)|^power of independent standard Gaussians does not exist, and what to do; or None."""
    centre, factor = numbers[:2]
    variance = float((factor**2).sum(1).max(initial=0.0))

    def asked(point: np.ndarray, direction: np.ndarray) -> Asked:
        def at(t: float) -> str:
            own = centre + factor @ (point + t * direction)
            shown = ", ".join(f"{x:.4g}" for x in np.where(np.abs(own) < 1e-9, 0.0, own))
            return f"z = {shown}" if len(own) == 1 else f"({shown})"

        return Asked(name, power, what, variance, at)

    def along(point: np.ndarray, direction: np.ndarray) -> Line:
        return look(Through(fn, dimensions), (point, direction, *numbers))

    if dimensions == 0:
        return None
    if dimensions == 1:
        axis = np.zeros(1), np.ones(1)
        return fault(along(*axis), asked(*axis))
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(DIRECTIONS, dimensions))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen = []
    for k, direction in enumerate(directions):
        point = rng.normal(size=dimensions) * (k >= DIRECTIONS - OFFSETS)
        line = along(point, direction)
        if not point.any():
            # A pole at a point is weaker than one along a line of the plane: it has the whole space around it.
            line = line._replace(
                poles=tuple(p._replace(power=p.power / dimensions) if abs(p.place) < 1e-6 else p for p in line.poles)
            )
        found = fault(line, asked(point, direction))
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
        axis = np.zeros(dimensions), vectors[:, -1]
        return fault(along(*axis)._replace(undefined=None, poles=()), asked(*axis))
    return None


# ---- functions of functions, in programs that are run on nodes or draws


@dataclass(frozen=True)
class Chain:
    """Functions one after another, of deviation times a standard Gaussian: (z, deviation, *numbers).

    The numbers are those of each function in turn.
    """

    functions: tuple[Function, ...]
    last: int
    """How many times the last one takes its argument."""

    def __call__(self, z: Any, deviation: Any, *numbers: Any) -> jax.Array:
        value = deviation * z
        for k, fn in enumerate(self.functions):
            own, numbers = numbers[: fn.count], numbers[fn.count :]
            arguments = [value] * (self.last if k == len(self.functions) - 1 else 1)
            value = jnp.asarray(fn(*arguments, numbers=own), jnp.result_type(value))
        return value


class Watched(NamedTuple):
    """E of functions, |·|^power, of a vector that is no Nonlin: at `position`, whose numbers are leaves' indices."""

    position: int
    vector: int
    chain: Chain
    numbers: tuple[int, ...]
    power: int


@lru_cache(maxsize=256)
def watched(structure: Structure, ends: tuple[int, ...]) -> tuple[Watched, ...]:
    """Expectations that a run on nodes or draws takes of functions of one Gaussian which are not known to be tame."""
    instructions, found = structure.instructions, []
    for position in reached(structure, ends):
        match instructions[position]:
            case Moment(vectors=(v, *rest), scalars=()) as moment if all(w == v for w in rest):
                found.append((position, v, (moment.fn,), moment.numbers, 1, 1 + len(rest)))
            case MatMul(x=v):
                found.append((position, v, (), (), 2, 1))
            case Leaf() | SiteLinear() | Nonlin() | ScalarResult():
                pass
            case never:
                assert_never(never)
    result = []
    for position, v, functions, numbers, power, last in found:
        inner = instructions[v]
        if isinstance(inner, Nonlin) and len(inner.vectors) == 1 and not inner.scalars and inner.over is None:
            v, functions, numbers = inner.vectors[0], (inner.fn, *functions), (*inner.numbers, *numbers)
        alone = all(structure.number_sites[n.index] == () for n in numbers)
        if not functions or isinstance(instructions[v], Nonlin) or not alone:
            continue
        chain = Chain(functions, last)
        if not _chain_is_tame(chain, len(numbers)):
            result.append(Watched(position, v, chain, tuple(n.index for n in numbers), power))
    return tuple(result)


@lru_cache(maxsize=1024)
def _is_tame(fn: Function, count: int, held: tuple[tuple[int, ...], ...]) -> bool:
    return tame(partial(fn, numbers=tuple(map(jnp.ones, held))), *[jnp.ones(())] * count)


@lru_cache(maxsize=1024)
def _chain_is_tame(chain: Chain, count: int) -> bool:
    return tame(chain, *[jnp.ones(())] * (2 + count))


@lru_cache(maxsize=256)
def untamed(structure: Structure, ends: tuple[int, ...]) -> bool:
    """Whether some function may be narrow or grow fast: nodes alone do not tell that they see it."""
    for position in reached(structure, ends):
        instruction = structure.instructions[position]
        if isinstance(instruction, Nonlin | Moment) and getattr(instruction, "over", None) is None:
            count = len(instruction.vectors) + len(instruction.scalars)
            if not _is_tame(instruction.fn, count, tuple(structure.number_sites[n.index] for n in instruction.numbers)):
                return True
    return False


def refuse_watched(program: Program, ends: tuple[int, ...], second: Any) -> None:
    """Refuse what does not exist; `second` are the largest second moments of the watched vectors.

    **Raises:** `ProgramError` at its line.
    """
    for own, moment in zip(watched(program.structure, ends), second, strict=True):
        deviation = math.sqrt(float(np.max(np.asarray(moment))))
        numbers = tuple(np.asarray(program.leaves[n]) for n in own.numbers)
        name = " of ".join(fn.name for fn in reversed(own.chain.functions))
        line = look(own.chain, (deviation, *numbers))
        at = lambda t, deviation=deviation: f"z = {t * deviation:.4g}"
        told = fault(line, Asked(name, own.power, f"E {name}(z)" + "²" * (own.power == 2), deviation**2, at))
        if told is not None:
            refuse(program, own.position, *told)
