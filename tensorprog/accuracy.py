"""Expectations of functions of several Gaussians that the grids do not settle for given data: told, with the line.

Grids of a fixed number of nodes integrate these functions, and `error=True` says how well. Who does not ask is told
where a steep or fast oscillating function is far from settled, and refused where nothing is known: by E F² over each
side's own Gaussians (for the NTK also E (∂F)²) at the inputs' largest variances, where functions vary most, and there
by E F F̄ of inputs near each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.compiling import compiled
from tensorprog.errors import ProgramError, located, warn
from tensorprog.functions.crossing import crossing
from tensorprog.functions.joint import Partial, joint
from tensorprog.interpret.composite import Vectorial
from tensorprog.interpret.system import Moments, joint_sides
from tensorprog.program import Program
from tensorprog.show import Printer

ALLOWED, SLOPES = 3e-3, 5e-2
"""How far the rule may be off, relative to what it integrates: of functions, and of slopes, which may jump."""
UNKNOWN = 1.0
"""How far off, relative to what is integrated, nothing is known of it."""
MOST, APART = 16, 2
"""Covariances at which a function is looked at, and at how many of them also off the diagonal."""
CORRELATIONS = (0.9, 0.999)
"""Of pairs of inputs at which a function is looked at off the diagonal."""


class _Found(NamedTuple):
    """Where a function F is met: covariances (m, k, k) of its own Gaussians, its numbers (m, numbers), whose it is."""

    cov: np.ndarray
    numbers: np.ndarray
    owners: np.ndarray


def warn_unsettled(program: Program, m: Moments, sides: Sequence[Any], *, slopes: bool) -> None:
    """Warn of each function whose expectations may be off by more than is allowed; `sides` have values (blocks, cells,
    n).

    **Warns:** `KernelWarning` with the line, the function, the variance and how far off.

    **Raises:** `ProgramError` with the same where the error may be as large as the value.
    """
    worst: dict[int, tuple[float, float, float]] = {}
    for (fn, _), found in _functions(program, m, sides).items():
        order = np.argsort(-np.trace(found.cov, axis1=-2, axis2=-1), kind="stable")
        order = np.resize(order[:MOST], MOST)  # of one shape, so that it compiles once
        off = np.asarray(_off(fn, slopes, found.cov[order], tuple(found.numbers[order].T)))  # (functions, MOST)
        rank, off, at = _worst(off)
        owner, variance = int(found.owners[order[at]]), float(np.diagonal(found.cov[order[at]]).mean())
        own = rank, variance, off
        worst[owner] = max(worst.get(owner, own), own)
    for owner, (rank, variance, off) in worst.items():
        if rank > 1:
            _tell(program, owner, variance, off)


def _worst(off: np.ndarray) -> tuple[float, float, int]:
    """Of what functions and slopes, rows, are off at covariances: the worst in units of what is allowed, infinite where
    nothing is known, so that a refusal comes before any warning; how far that is off, and where."""
    off = np.where(np.isposinf(off), UNKNOWN, np.nan_to_num(off, nan=0.0))  # values that overflow are told elsewhere
    beyond = off / np.array([ALLOWED, *[SLOPES] * (len(off) - 1)])[:, None]
    rank = np.where(off >= UNKNOWN, np.inf, beyond)
    which, at = np.unravel_index(rank.argmax(), rank.shape)
    return float(rank[which, at]), float(off[which, at]), int(at)


def _tell(program: Program, position: int, variance: float, off: float) -> None:
    structure = program.structure
    line = structure.line(position) or structure.name
    text = Printer(structure, program.leaves).expression(position, top=True)
    steep = "too steep, too narrow, or too fast an oscillation, for the nodes of the rule"
    if off >= UNKNOWN:
        why = f"nothing is known of its expectations, of Gaussians of variance {variance:.3g}: {steep}"
        raise ProgramError(
            located(line, text, why, 'tp.kernels(method="backward") draws instead; or lower the variances')
        )
    told = located(
        line,
        text,
        f"its expectations, of Gaussians of variance {variance:.3g}, may be off by {100 * off:.2g} %: {steep}",
        "tp.kernels(error=True) bounds the kernel's error; lower the variances or the inputs' norms, or compare with "
        'method="backward"',
    )
    warn(told)


def _functions(program: Program, m: Moments, sides: Sequence[Any]) -> dict[Any, _Found]:
    """Both sides of all joint expectations, by the function of its own Gaussians and how many numbers it is handed."""
    found: dict[Any, list[_Found]] = {}
    for side in joint_sides(m.demand):
        for same in sides:
            covs, numbers = side.met(m, program.leaves, same)
            use = _Found(covs, numbers, np.full(len(covs), side.owner))
            found.setdefault((side.alone, numbers.shape[1]), []).append(use)
    return {key: _Found(*map(np.concatenate, zip(*uses, strict=True))) for key, uses in found.items()}


@compiled("fn", "slopes")
def _off(fn: Vectorial, slopes: bool, cov: Any, numbers: Any) -> jax.Array:
    """How far off E F² is at each covariance, relative to it, and E (∂F)² for each slope; at the first few also E F F̄
    of inputs near each other."""
    size = cov.shape[-1]
    functions = [fn, *(Partial(fn, i) for i in range(size))] if slopes else [fn]
    places = tuple(range(size))
    near = jnp.repeat(jnp.asarray(CORRELATIONS, cov.dtype), APART)[:, None, None]
    blocks, own = jax.tree.map(lambda x: jnp.concatenate([x[:APART]] * len(CORRELATIONS)), (cov, numbers))
    blocks = jnp.pad(blocks, ((0, 0), (0, 2 - size), (0, 2 - size)))
    found = []
    for f in functions:
        squares, errors = jax.lax.map(lambda at, f=f: joint(f, f, *at), (cov, numbers))
        off = lambda at, f=f: crossing((f, f), (places, places), size, *at)[1]
        apart = jax.lax.map(off, ((blocks, blocks, near * blocks), own)).reshape(-1, APART).max(0)
        errors = jnp.concatenate([jnp.maximum(errors[:APART], apart), errors[APART:]])
        relative = errors / jnp.where(squares > 0, squares, 1.0)
        found.append(jnp.where((squares > 0) | (errors == 0), relative, UNKNOWN))
    return jnp.stack(found)
