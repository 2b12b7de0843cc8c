"""The roads to a limit: exact moments, quadrature, particles; which one a program can take, and how each is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.compiling import compiled
from tensorprog.gia import reached
from tensorprog.interpret.particles import Limit, LinearLimit, gaussians, integrals, linear_obstacle
from tensorprog.interpret.spaces import ALONE_REACH, REACH, Draws, Forms, Grid
from tensorprog.ir import Structure
from tensorprog.program import Program

Array = jax.Array
NODES = {0: 1, 1: 6145, 2: 257, 3: 65}
"""Nodes to an axis of the quadrature in so many Gaussians."""
REPLICATES = 32
COARSER = 0.7
CHUNK = 2**15
_LEAST = 64
_BYTES = 2**28
Read = Callable[[Limit], Any]
"""What is wanted of a finished run: a hashable function that returns arrays."""


@dataclass(frozen=True)
class Road:
    """How a program is run. `method`: "exact", "quadrature" or "particles", the latter by replicates of `points`, one
    after another or all together."""

    method: str
    points: int = 0
    replicates: int = 0
    naive: bool = False
    together: bool = False


def widest(structure: Structure, positions: list[int]) -> int:
    """The most Gaussians that vectors of one width depend on."""
    return max(gaussians(structure, positions).values(), default=0)


def possible(structure: Structure, ends: tuple[int, ...]) -> str:
    """The best road for a program: exact where all is linear, quadrature in few Gaussians, else particles."""
    positions = reached(structure, ends)
    if linear_obstacle(structure, positions) is None:
        return "exact"
    return "quadrature" if widest(structure, positions) <= max(NODES) else "particles"


def particles(structure: Structure, ends: tuple[int, ...], samples: int, chunk: int | None) -> tuple[int, int]:
    """(points, replicates): a power of two of draws at a time, as many as fit, in at least 32 replicates."""
    chunk = held(structure, ends) if chunk is None else chunk
    most = max(_LEAST, min(chunk, samples // REPLICATES))
    points = 2 ** int(math.log2(most))
    return points, max(REPLICATES, -(-samples // points))


def held(structure: Structure, ends: tuple[int, ...]) -> int:
    """How many draws are held at a time."""
    vectors = sum(math.prod(structure.types[p].sites) for p in reached(structure, ends))
    return min(CHUNK, _BYTES // (16 * max(1, vectors)))


def _single(
    program: Program, inputs: tuple[Array, ...], ends: tuple[int, ...], read: Read, road: Road, dtype: Any
) -> tuple[Any, Any]:
    """Values and errors for one example, without draws."""
    structure = program.structure
    positions = reached(structure, ends)
    counts = gaussians(structure, positions)

    def run(coarser: float) -> Any:
        if road.method == "exact":
            spaces = {name: Forms(count, dtype) for name, count in counts.items()}
            limit: Limit = LinearLimit(program, inputs, spaces, road.naive, coarser)
        else:
            nodes = {n: int(NODES[c] * coarser) | 1 for n, c in counts.items()}
            # A coarser grid that ends earlier shows what the finer one may leave out beyond its end, too.
            ends = {n: (ALONE_REACH if c == 1 else REACH) * coarser**0.5 for n, c in counts.items()}
            grids = {n: Grid(c, nodes[n], dtype, ends[n]) for n, c in counts.items()}
            limit = Limit(program, inputs, grids, road.naive)
        limit.run(positions)
        return read(limit)

    fine = run(1.0)
    if road.method == "exact" and not integrals(structure, positions):
        return fine, jax.tree.map(jnp.zeros_like, fine)
    coarse = jax.lax.stop_gradient(run(COARSER))
    return fine, jax.tree.map(lambda a, b: jax.lax.stop_gradient(jnp.abs(a - b)), fine, coarse)


def _replicated(
    program: Program, inputs: tuple[Array, ...], ends: tuple[int, ...], read: Read, road: Road, dtype: Any, key: Array
) -> tuple[Any, Any]:
    """Means over replicates and their standard errors, for one example."""
    structure = program.structure
    positions = reached(structure, ends)
    counts = gaussians(structure, positions)

    @partial(jax.checkpoint, prevent_cse=False)
    def replicate(key: Array) -> Any:
        spaces = {
            name: Draws(jax.random.fold_in(key, k), count, road.points, dtype)
            for k, (name, count) in enumerate(counts.items())
        }
        limit = Limit(program, inputs, spaces, road.naive)
        limit.run(positions)
        return read(limit)

    keys = jax.random.split(key, road.replicates)
    found = jax.vmap(replicate)(keys) if road.together else jax.lax.map(replicate, keys)
    value = jax.tree.map(lambda a: a.mean(0), found)
    error = jax.tree.map(lambda a: jax.lax.stop_gradient(a.std(0, ddof=1) / math.sqrt(road.replicates)), found)
    return value, error


@compiled("ends", "read", "road")
def expectations(
    program: Program, arrays: tuple[Array, ...], key: Array, *, ends: tuple[int, ...], read: Read, road: Road
) -> tuple[Any, Any]:
    """(value, error) of what `read` takes from a run for the given instructions; mapped over examples (N, …).

    The error is a standard error for particles, the change from a coarser quadrature otherwise.
    """
    dtype = jnp.result_type(*(arrays or (float,)))

    def one(inputs: tuple[Array, ...]) -> tuple[Any, Any]:
        if road.method == "particles":
            return _replicated(program, inputs, ends, read, road, dtype, key)
        return _single(program, inputs, ends, read, road, dtype)

    return jax.lax.map(one, arrays) if arrays else one(())


@dataclass(frozen=True)
class Outputs:
    """The values of scalar outputs, what they are averages of in size, the largest second moments of `vectors`."""

    positions: tuple[int, ...]
    vectors: tuple[int, ...] = ()

    def __call__(self, limit: Limit) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        values = tuple(limit.values[p] for p in self.positions)
        sizes = tuple(limit.sizes.get(p, jnp.abs(v)) for p, v in zip(self.positions, values, strict=True))
        dims = (limit.structure.vector(v).dim for v in self.vectors)
        seconds = tuple(
            limit.spaces[dim].mean(limit.values[v] ** 2).max()
            for v, dim in zip(self.vectors, dims, strict=True)
            if isinstance(dim, str)
        )
        return values, sizes, seconds


@dataclass(frozen=True)
class Responses:
    """The coefficients of Ż of the given products (those that have any), flattened to one array."""

    positions: tuple[int, ...]

    def __call__(self, limit: Limit) -> Array:
        found = [limit.coefficients[p].reshape(-1) for p in self.positions if p in limit.coefficients]
        return jnp.concatenate(found) if found else jnp.zeros(1, limit.dtype)


def is_small(value: Any, error: Any, tolerance: float) -> bool:
    """Whether errors are small beside the largest value."""
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(error), strict=True)
    return all(
        np.max(np.asarray(e), initial=0) <= tolerance * np.max(np.abs(np.asarray(v)), initial=1) for v, e in pairs
    )


def is_smaller(one: Any, other: Any) -> bool:
    """Whether the largest of some errors is below that of others."""
    largest = [
        max((float(np.max(np.asarray(e), initial=0)) for e in jax.tree.leaves(x)), default=0.0) for x in (one, other)
    ]
    return largest[0] <= largest[1]
