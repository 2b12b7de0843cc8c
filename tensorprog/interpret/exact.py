"""The exact road to a limit: a program of linear vectors, whose Moments are integrals in few Gaussians.

The program runs with the Moments' values given, and says of which Gaussians they are; they are integrated one after
another on the host (`functions.integrate`), since later ones may read earlier ones. Each has a bound, and what the
bounds do to the outputs is found by running the program with each value moved by its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.compiling import compiled
from tensorprog.functions.frozen import Function
from tensorprog.functions.integrate import Found, mean
from tensorprog.gia import reached
from tensorprog.interpret.existence import refuse, refuse_missing
from tensorprog.interpret.particles import Law, LinearLimit, gaussians, integrals
from tensorprog.interpret.spaces import Forms
from tensorprog.ir import Moment
from tensorprog.program import Program

Array = jax.Array
MOVED = 16
"""Moments are moved by their errors each on its own, up to so many; of more some go together, by one to two errors and
to either side, so that what depends on their difference moves too."""


@dataclass(frozen=True)
class Placed:
    """A function of Gaussians as one of independent standard ones: (*z, mean, factor, scalars, *numbers)."""

    fn: Function

    def __call__(self, *arguments: Any) -> Array:
        count = len(arguments) - 3 - self.fn.count
        z, (centre, factor, scalars, *numbers) = arguments[:count], arguments[count:]
        own = [
            centre[i] + sum((factor[i, j] * z[j] for j in range(count)), jnp.zeros_like(centre[i]))
            for i in range(centre.shape[0])
        ]
        return jnp.asarray(self.fn(*own, *scalars, numbers=tuple(numbers)), centre.dtype)


class Exact(NamedTuple):
    """What is read of a run, bounds of its errors, and the Moments that were integrated, by position: each (N, S)."""

    value: Any
    error: Any
    found: dict[int, Found]


@compiled("ends", "read", "naive")
def _run(
    program: Program,
    arrays: tuple[Array, ...],
    given: dict[int, Array],
    *,
    ends: tuple[int, ...],
    read: Callable[[Any], Any],
    naive: bool,
) -> tuple[Any, dict[int, Law]]:
    """What `read` takes, and the laws of the Moments that are given; mapped over examples."""
    dtype = jnp.result_type(*(arrays or (float,)))
    positions = reached(program.structure, ends)
    counts = gaussians(program.structure, positions)

    def one(inputs: tuple[Array, ...], own: dict[int, Array]) -> tuple[Any, dict[int, Law]]:
        spaces = {name: Forms(count, dtype) for name, count in counts.items()}
        limit = LinearLimit(program, inputs, spaces, naive, given=own)
        limit.run(positions)
        return read(limit), limit.laws

    return jax.lax.map(lambda item: one(*item), (arrays, given)) if arrays else one((), given)


def exact(
    program: Program, arrays: tuple[Array, ...], ends: tuple[int, ...], read: Callable[[Any], Any], naive: bool
) -> Exact:
    """The limit of a program whose vectors are linear, for numbers and data that are known.

    **Raises:** `ProgramError` at the line of a Moment that does not exist.
    """
    structure = program.structure
    wanted = integrals(structure, reached(structure, ends))
    dtype = jnp.result_type(*(arrays or (float,)))
    lead = arrays[0].shape[:1] if arrays else ()
    given = {p: jnp.zeros((*lead, 2, math.prod(structure.types[p].sites)), dtype) for p in wanted}
    run = partial(_run, program, arrays, ends=ends, read=read, naive=naive)
    found: dict[int, Found] = {}
    for position in wanted:
        law = jax.tree.map(np.asarray, run(given)[1][position])
        found[position] = _moment(program, position, law)
        own = np.stack([found[position].value, found[position].size], -2)
        given = {**given, position: jnp.asarray(own, dtype)}
    value, _ = run(given)
    if not wanted:
        return Exact(value, jax.tree.map(jnp.zeros_like, value), found)
    errors, draw = [], np.random.default_rng(0)
    for group in np.array_split(np.array(wanted), min(len(wanted), MOVED)):
        by = np.ones(1) if len(group) == 1 else draw.uniform(1, 2, len(group)) * draw.choice([-1.0, 1.0], len(group))
        steps = {p: jnp.asarray(b * found[p].error, dtype) for p, b in zip(group.tolist(), by, strict=True)}
        moved = {**given, **{p: given[p].at[..., 0, :].add(step) for p, step in steps.items()}}
        errors.append(jax.tree.map(lambda a, b: jnp.abs(a - b), run(moved)[0], value))
    return Exact(value, jax.tree.map(lambda *e: sum(e), *errors), found)


def _moment(program: Program, position: int, law: Law) -> Found:
    """A Moment at all examples and sites, (N, S) like its law without the last axes."""
    moment = program.structure.instructions[position]
    assert isinstance(moment, Moment), "only Moments are integrated"
    numbers = tuple(np.asarray(program.leaves[n.index]) for n in moment.numbers)
    shape = law.mean.shape[:-1]
    rows = [x.reshape(math.prod(shape), *x.shape[len(shape) :]) for x in law]
    results = []
    for k, (centre, factor, scalars) in enumerate(zip(*rows, strict=True)):
        kept = factor[:, np.abs(factor).max(0) > 0]
        own = (centre, kept, scalars, *numbers)
        found = mean(Placed(moment.fn), kept.shape[1], own)
        settled = found.error <= 1e-9 * found.size
        if k == 0 or not settled:
            refuse_missing(program, position, Placed(moment.fn), kept.shape[1], own)
        if not np.isfinite(found.error):
            variance = float((kept**2).sum(1).max(initial=0.0))
            refuse(
                program, position,
                f"its limit is out of reach of double precision (up to 1e308): {moment.fn.name} overflows before the "
                f"density of its arguments, of variance {variance:.3g}, makes up for it",
                "lower the variances or the scale inside the function",
            )  # fmt: skip
        results.append(found)
    return Found(*(np.array(x).reshape(shape) for x in zip(*results, strict=True)))
