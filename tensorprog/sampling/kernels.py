"""Kernels by sampling: replicates, their mean and its standard error.

Everything runs operation by operation while the inputs are known: operations have few shapes, so that little is
compiled, where a compiled run of a long recurrent net takes minutes to compile. Inside a user's `jit` it is one loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from tensorprog import tiles
from tensorprog.errors import bad_argument
from tensorprog.ir import Sites
from tensorprog.program import Program, is_concrete
from tensorprog.sampling.draws import Draws, matched
from tensorprog.sampling.plan import Plan, plan
from tensorprog.sampling.run import Run

Array = jax.Array
REPLICATES = 8
WORK = 6e10
"""What the default number of draws costs for the NNGP, in nanoseconds of one core: some 30 seconds on two."""
MOST, LEAST = 2**23, 2**13
_NUMBERS = 2**27
"""How many numbers are held at a time."""


@dataclass(frozen=True)
class Sampled:
    """Kernels of one output with their standard errors, (N1, N2, *S, *S); the NTK None where it was not asked for."""

    nngp: Array
    ntk: Array | None
    nngp_error: Array
    ntk_error: Array | None


def sampled_kernels(
    program: Program,
    x1: tuple[Array, ...],
    x2: tuple[Array, ...] | None,
    weights: Array | None,
    samples: int | None = None,
    key: Any = None,
) -> list[Sampled]:
    """Kernels of each output as Gram matrices of samples of its limit, all inputs drawn together.

    x1 (N1, *sites, features) for each input, x2 or None for x1 itself. `weights` are the NTK's weights of the
    parameters, None for the NNGP alone. `samples` draws in all, to a power of two; by default as many as take about 30
    seconds on two cores for the NNGP, between 2^13 and 2^23 (the NTK takes 2-3 times as long). They come in 8
    independent replicates, or 4 where draws are few beside the Gaussians of a family, or more of bounded memory. A
    kernel is the mean of the replicates' Gram matrices, hence positive semi-definite; errors are standard errors of
    these means, widened by Student's factor so that two of them hold in 95 of 100 cases.

    **Raises:** `ProgramError` for samples that are no int ≥ 32.
    """
    structure = program.structure
    outputs = structure.outputs

    def read(run: Run) -> list[tuple[Array, Array | None]]:
        return [_symmetric(run.second_moments(output, output)) for output in outputs]

    found, summary = _replicates(program, x1, x2, outputs, read, weights, samples, key)
    results = []
    for output, (values, tangents) in zip(outputs, found, strict=True):
        sites = structure.types[output].sites
        nngp, nngp_error = summary(values, sites, sites)
        ntk, ntk_error = (None, None) if tangents is None else summary(tangents, sites, sites)
        results.append(Sampled(nngp, ntk, nngp_error, ntk_error))
    return results


def sampled_second_moment(
    program: Program,
    x1: tuple[Array, ...],
    x2: tuple[Array, ...] | None,
    pair: tuple[int, int],
    samples: int | None = None,
    key: Any = None,
) -> Array:
    """lim u·v̄/n of two vectors (u, v) = `pair`, (N1, N2, *S_u, *S_v), from draws as for `sampled_kernels`."""
    read = lambda run: run.second_moments(*pair)[0]
    found, summary = _replicates(program, x1, x2, pair, read, None, samples, key)
    return summary(found, *(program.structure.types[p].sites for p in pair))[0]


def _replicates(
    program: Program,
    x1: tuple[Array, ...],
    x2: tuple[Array, ...] | None,
    ends: tuple[int, ...],
    read: Callable[[Run], Any],
    weights: Array | None,
    samples: int | None,
    key: Any,
) -> tuple[Any, Callable[..., tuple[Array, Array]]]:
    """What `read` takes from each replicate's run, stacked; and how it is summed up, for sites of both vectors.

    Outside transformations in double precision whatever the inputs' dtype: covariances of states are singular to
    rounding. (A compiled function keeps the precision that JAX was set to where it is compiled.)
    """
    joined, rows, columns = tiles.distinct(x1, x2)
    size = joined[0].shape[0] if joined else 1
    made = plan(program.structure, ends, size)
    dtype = jnp.result_type(*(joined or (float,)))
    concrete = all(is_concrete(jnp.asarray(a)) for a in jax.tree.leaves((program.leaves, joined, weights)))
    with jax.enable_x64(True) if concrete else nullcontext():
        cast = partial(jax.tree.map, lambda a: jnp.asarray(a, float if concrete else dtype))
        found = _drawn(program, cast(joined), cast(weights), made, ends, read, samples, key, concrete)
        found = jax.tree.map(lambda a: a.astype(dtype), found)
    return found, partial(_summary, size=size, rows=rows, columns=columns)


def _drawn(
    program: Program,
    joined: tuple[Array, ...],
    weights: Array | None,
    made: Plan,
    ends: tuple[int, ...],
    read: Callable[[Run], Any],
    samples: int | None,
    key: Any,
    concrete: bool,
) -> Any:
    """What `read` takes from each replicate's run, stacked, in the dtype of the inputs."""
    dtype = jnp.result_type(*(joined or (float,)))
    replicates, points = division(made, default_samples(samples, made))
    keys = jax.random.split(jax.random.key(0) if key is None else key, replicates)

    def one(key: Array) -> Any:
        run = Run(program, joined, made, Draws(key, made.gaussians, points, dtype), weights, dtype)
        run.run(ends)
        return read(run)

    if concrete:
        return jax.tree.map(lambda *a: jnp.stack(a), *map(one, keys))
    return jax.lax.map(jax.checkpoint(one), keys)


def _symmetric(kernels: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
    """Both kernels of one output, whose rounding may differ across the diagonal."""
    halved = lambda k: (k + k.T) / 2
    nngp, ntk = kernels
    return halved(nngp), None if ntk is None else halved(ntk)


def default_samples(samples: int | None, made: Plan) -> int:
    """Draws in all: those that were asked for, else as many as are affordable, 2^k or 1.5 · 2^k."""
    check_samples(samples)
    if samples is not None:
        return int(samples)
    affordable = min(MOST, max(LEAST, WORK / made.work))
    below = 2 ** math.floor(math.log2(affordable))
    return min((below, 3 * below // 2, 2 * below), key=lambda count: abs(math.log(count / affordable)))


def check_samples(samples: int | None) -> None:
    """**Raises:** `ProgramError` for samples that are no int ≥ 32."""
    known = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    if samples is not None and (not known or samples < 32):
        raise bad_argument("samples", f"{samples!r} draws give no kernel and no standard error", "give an int ≥ 32")


def division(made: Plan, samples: int) -> tuple[int, int]:
    """(replicates, draws in each), the latter a power of two."""
    widest = max(made.rows.values(), default=0)
    power = lambda most: 2 ** math.floor(math.log2(max(8, most)))
    enough = matched(widest, power(samples / REPLICATES) // 2)
    replicates = REPLICATES if enough else REPLICATES // 2
    most = max(64, _NUMBERS // max(1, made.elements + 2 * made.gaussians))
    points = power(min(samples / replicates, most))
    return max(replicates, round(samples / points)), points


def _summary(
    found: Array, left: Sites, right: Sites, *, size: int, rows: np.ndarray, columns: np.ndarray
) -> tuple[Array, Array]:
    """(mean, standard error) of replicates (T, R, R̄), as (N1, N2, *S, *S̄)."""
    count = len(found)
    widened = stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    mean = found.mean(0)
    error = jax.lax.stop_gradient(found.std(0, ddof=1)) * (widened / math.sqrt(count))

    def shaped(gram: Array) -> Array:
        whole = jnp.swapaxes(gram.reshape(size, math.prod(left), size, math.prod(right)), 1, 2)
        pairs = whole[rows[:, None], columns]
        return pairs.reshape(*pairs.shape[:2], *left, *right)

    return shaped(mean), shaped(error)
