"""Kernels by sampling: replicates, their mean and its standard error.

Everything runs operation by operation while the inputs are known: operations have few shapes, so that little is
compiled, where a compiled run of a long recurrent net takes minutes to compile. Inside a user's `jit` it is one loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from tensorprog.errors import bad_argument
from tensorprog.program import Program, is_concrete
from tensorprog.sampling.draws import Draws, matched
from tensorprog.sampling.plan import Plan, plan
from tensorprog.sampling.run import Run

Array = jax.Array
REPLICATES = 8
WORK = 4e10
"""What the default number of draws costs, in nanoseconds of one core."""
MOST, LEAST = 2**22, 2**13
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
    parameters, None for the NNGP alone. `samples` draws in all, to a power of two; by default as many as take about 20
    seconds on two cores, between 2^13 and 2^22. They come in 8 independent replicates, or 4 where draws are few beside
    the Gaussians of a family, or more of bounded memory. A kernel is the mean of the replicates' Gram matrices, hence
    positive semi-definite; errors are standard errors of these means, widened by Student's factor so that two of them
    hold in 95 of 100 cases.

    **Raises:** `ProgramError` for samples that are no int ≥ 32.
    """
    structure = program.structure
    first = x1[0].shape[0] if x1 else 1
    joined = x1 if x2 is None else tuple(jnp.concatenate(pair) for pair in zip(x1, x2, strict=True))
    size = joined[0].shape[0] if joined else 1
    made = plan(structure, structure.outputs, size)
    dtype = jnp.result_type(*(joined or (float,)))
    replicates, points = division(made, default_samples(samples, made, dtype))
    key = jax.random.key(0) if key is None else key
    one = partial(replicate, program, joined, made, points, weights, dtype)
    keys = jax.random.split(key, replicates)
    if all(is_concrete(jnp.asarray(a)) for a in jax.tree.leaves((program.leaves, joined, weights))):
        runs = [one(k) for k in keys]
        found = jax.tree.map(lambda *a: jnp.stack(a), *runs)
    else:
        found = jax.lax.map(jax.checkpoint(one), keys)
    columns = slice(0, first) if x2 is None else slice(first, None)
    results = []
    for output, (values, tangents) in zip(structure.outputs, found, strict=True):
        summary = partial(_summary, size=size, sites=structure.types[output].sites, first=first, columns=columns)
        nngp, nngp_error = summary(values)
        ntk, ntk_error = (None, None) if tangents is None else summary(tangents)
        results.append(Sampled(nngp, ntk, nngp_error, ntk_error))
    return results


def replicate(
    program: Program, inputs: tuple[Array, ...], made: Plan, points: int, weights: Array | None, dtype: Any, key: Array
) -> list[tuple[Array, Array | None]]:
    """Both kernels of every output from `points` draws."""
    run = Run(program, inputs, made, Draws(key, made.gaussians, points, dtype), weights, dtype)
    halved = lambda k: (k + k.T) / 2
    return [(halved(v), None if t is None else halved(t)) for v, t in run.run(program.structure.outputs)]


def default_samples(samples: int | None, made: Plan, dtype: jnp.dtype) -> int:
    """Draws in all: those that were asked for, else as many as are affordable."""
    if samples is None:
        affordable = WORK / (made.work * dtype.itemsize / 8)
        return 2 ** round(math.log2(min(MOST, max(LEAST, affordable))))
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 32:
        raise bad_argument("samples", f"{samples!r} draws give no kernel and no standard error", "give an int ≥ 32")
    return int(samples)


def division(made: Plan, samples: int) -> tuple[int, int]:
    """(replicates, draws in each), the latter a power of two."""
    widest = max(made.rows.values(), default=0)
    enough = matched(widest, samples // REPLICATES // 2)
    replicates = REPLICATES if enough else REPLICATES // 2
    most = max(64, _NUMBERS // max(1, made.elements + 2 * made.gaussians))
    points = 2 ** round(math.log2(max(8, min(samples / replicates, most))))
    return max(replicates, round(samples / points)), points


def _summary(found: Array, size: int, sites: tuple[int, ...], first: int, columns: slice) -> tuple[Array, Array]:
    """(mean, standard error) of replicates (T, R, R), as (N1, N2, *S, *S)."""
    count = len(found)
    widened = stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    mean = found.mean(0)
    error = jax.lax.stop_gradient(found.std(0, ddof=1)) * (widened / math.sqrt(count))

    def shaped(rows: Array) -> Array:
        s = math.prod(sites)
        pairs = jnp.swapaxes(rows.reshape(size, s, size, s), 1, 2)[:first, columns]
        return pairs.reshape(*pairs.shape[:2], *sites, *sites)

    return shaped(mean), shaped(error)
