"""Expectations of functions of several Gaussians that few nodes do not settle for given data: told, with the line.

Rules of a fixed number of nodes integrate these functions, and `error=True` says how well. Who does not ask is told
where a steep or fast oscillating function is far from settled, by E F² over each side's own Gaussians (for the NTK also
E (∂F)²) at the inputs' largest variances, where functions vary most.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import KernelWarning
from tensorprog.functions.joint import Onto, Partial, disagreement
from tensorprog.interpret.composite import Vectorial
from tensorprog.interpret.equations import JointEq
from tensorprog.interpret.system import Moments, joint_equations
from tensorprog.program import Program
from tensorprog.show import Printer

ALLOWED = 1e-2
"""How far a coarser rule may be off, relative to what it integrates: the rule itself is closer, by 4 for kinks."""
MOST = 16
"""Covariances at which a function is looked at."""


class _Side(NamedTuple):
    """One side of a joint expectation: F, its Gaussians' places and covariances, numbers, and whose it is."""

    fn: Vectorial
    slots: tuple[int, ...]
    count: int
    cov: np.ndarray
    numbers: np.ndarray
    owner: int


def warn_unsettled(program: Program, m: Moments, same: Any, *, slopes: bool) -> None:
    """Warn of each function whose expectations are off by more than `ALLOWED`; `same` has values (blocks, cells, n).

    **Warns:** `KernelWarning` with the line, the function, the variance and how far off.
    """
    worst: dict[int, tuple[float, float]] = {}
    dtype = same.value.dtype
    for side in _sides(m):
        monomials = np.asarray(m.demand.linear.monomials.values(program.leaves, dtype))
        cov, numbers = _largest(m, same, side, monomials)
        found = np.asarray(_off(side.fn, side.slots, side.count, slopes, cov, numbers))
        found = np.where(np.isfinite(found), found, 0.0)
        at = int(found.argmax())
        off, variance = float(found[at]), float(np.trace(cov[at]) / len(side.slots))
        worst[side.owner] = max(worst.get(side.owner, (0.0, 0.0)), (off, variance))
    for position, (off, variance) in worst.items():
        if off > ALLOWED:
            line = program.structure.line(position)
            where = f"{line.file}:{line.number}" if line is not None else program.structure.name
            instruction = Printer(program.structure, program.leaves).expression(position, top=True)
            warnings.warn(
                f"{where}: {instruction}\n  its expectations, of Gaussians of variance {variance:.3g}, may be off by "
                f"{100 * off:.2g} %: too steep, or too fast an oscillation, for the nodes of the rule\n  "
                "tp.kernels(error=True) bounds the kernel's error; lower the variances or the inputs' norms, or "
                'compare with method="backward"',
                KernelWarning,
                stacklevel=5,
            )


def _sides(m: Moments) -> Iterator[_Side]:
    for owners, equation in joint_equations(m.demand):
        _, *pair = owners[int(equation.out[0])]
        yield from _of(equation, pair[0], pair[1])


def _of(e: JointEq, left: int, right: int) -> Iterator[_Side]:
    for fn, slots, owner in ((e.left, e.left_slots, left), (e.right, e.right_slots, right)):
        if fn is not None:
            places = np.array(slots)
            yield _Side(fn, slots, e.count, e.cov[:, places[:, None], places], e.numbers, owner)


def _largest(m: Moments, same: Any, side: _Side, monomials: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """A function's covariances (MOST, k, k) where they are largest, and its numbers there (MOST,) each."""
    values = np.moveaxis(same.value[:, m.same.kept(side.cov)], -1, 2)  # (blocks, equations, n, k, k)
    covs = values.reshape(-1, *values.shape[-2:])
    order = np.argsort(-np.trace(covs, axis1=-2, axis2=-1), kind="stable")[:MOST]
    order = np.resize(order, MOST)  # of one shape, so that it compiles once

    def column(own: np.ndarray) -> np.ndarray:
        held = np.where(own >= 0, own, 0)
        found = np.broadcast_to(monomials[held][None, :, None], values.shape[:3])
        if (own < 0).any():
            cells = same.value[:, m.same.kept(np.where(own < 0, -1 - own, -1 - own[own < 0][0]))]
            found = np.where((own < 0)[None, :, None], cells, found)
        return found.reshape(-1)[order]

    return covs[order], tuple(column(own) for own in side.numbers.T)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _off(fn: Any, slots: tuple[int, ...], count: int, slopes: bool, cov: Any, numbers: Any) -> jax.Array:
    """How far off E F² is at each covariance, or E (∂F)² where that is more."""
    own = Onto(fn, slots, count)
    functions = [own, *(Partial(own, i) for i in range(len(slots)))] if slopes else [own]
    parts = [jax.lax.map(lambda at, f=f: disagreement(f, *at), (cov, numbers)) for f in functions]
    return jnp.stack(parts).max(0)
