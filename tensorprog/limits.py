"""`limit`: the infinite-width limit of every scalar that a program computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from tensorprog.batch import batch, random_key, require_program
from tensorprog.errors import ProgramError, bad_argument, located, problem, warn
from tensorprog.functions.integrate import Found
from tensorprog.gia import reached
from tensorprog.interpret.buffers import stated
from tensorprog.interpret.exact import exact
from tensorprog.interpret.existence import refuse_watched, untamed, watched
from tensorprog.interpret.particles import integrals, linear_obstacle
from tensorprog.interpret.roads import (
    NODES,
    Outputs,
    Read,
    Road,
    expectations,
    held,
    is_small,
    is_smaller,
    particles,
    possible,
    widest,
)
from tensorprog.ir import Moment, ScalarType, Structure
from tensorprog.program import Program, is_concrete
from tensorprog.show import expression

METHODS = ("auto", "exact", "quadrature", "particles")
SAMPLES = 2**18
SEEN = 2**14
"""Draws that nodes are compared with."""
_GOOD = 1e-3


@partial(jax.tree_util.register_dataclass, data_fields=["value", "stderr"], meta_fields=["method"])
@dataclass(frozen=True)
class Limit:
    """The limit of a program's outputs.

    `value`: an array (N, *S) for an output over sites S, without N where the program has no inputs; a tuple for several
    outputs. `stderr`: like `value`, the standard error (particles) or a bound of the error (quadrature; below 1e-9 or
    the dtype's rounding where exact), infinite where nothing is known, as of a NaN inside a transformation. `method`:
    the road taken, "exact", "quadrature" or "particles". A Limit of several outputs is indexed and iterated over like a
    tuple of their Limits.
    """

    value: Any
    stderr: Any
    method: str

    def __len__(self) -> int:
        return len(self._several())

    def __getitem__(self, index: int) -> Limit:
        return Limit(self._several()[index], self.stderr[index], self.method)

    def __iter__(self) -> Iterator[Limit]:
        return (self[i] for i in range(len(self)))

    def _several(self) -> tuple[Any, ...]:
        if not isinstance(self.value, tuple):
            raise TypeError("this Limit is of one output: read .value")
        return self.value


def limit(
    program: Program,
    x: Any = None,
    *,
    samples: int = SAMPLES,
    key: Any = None,
    method: str = "auto",
    assume_gia: bool = False,
    chunk: int | None = None,
) -> Limit:
    """The limit of each scalar output as the widths go to infinity: (1/n) Σ ψ(x_α) → E ψ(Z^x), any NETSOR⊤+ program.

    Z follows the rules of the Z-calculus: Z^{Wx} = Ẑ + Ż, with the Ż that products with W and Wᵀ cause. Three roads:
    "exact" where every vector is linear in Gaussians, by adaptive panels in the arguments of a Moment's function, to
    1e-9 or the dtype's rounding; where less is known (and inside a transformation, on nodes that are fixed) the word is
    "quadrature", as where the vectors of a width depend on at most three Gaussians; "particles", draws of every Z,
    whose standard error comes from 32 or more independent replicates. "auto" takes the first that the program and the
    accuracy (1e-3) allow.

    **Arguments:** x: (N, *sites, features), a tuple for several inputs, nothing for a program without inputs. samples:
    draws in all, in replicates of up to `chunk`, which bounds the memory. key: a random key; a fixed one by default.
    assume_gia: leave every Ż out, which is the gradient independence assumption in a backward pass, for comparison.

    **Returns:** a `Limit`, `.value`, `.stderr`, `.method`. Differentiable in the program's numbers and in x; the dtype
    is the inputs' (the default float dtype without any).

    **Raises:** `ProgramError` for outputs that are no scalars, data that do not fit, samples < 2, a road that the
    program cannot take, limits that do not exist or are not finite.

    Source: Tensor Programs III (2009.10685), Theorem 2.10; the particle form in docs/theory.md.

    ```python
    >>> import tensorprog as tp
    >>> def trace_of_square():                              # tr (WᵀW)² / n, whose limit is 2
    ...     n = tp.Width("n")
    ...     W, x = tp.weight("W", n, n), tp.bias("x", n)
    ...     return tp.moment(lambda a, b: a * b, x, W.T @ (W @ (W.T @ (W @ x))))
    >>> float(tp.limit(tp.trace(trace_of_square)).value.round(12))
    2.0

    ```
    """
    structure = require_program(program, "limit").structure
    _check_outputs(program)
    arrays = batch(structure, x, "x")
    options = Options(samples, key, method, chunk, assume_gia)
    ends = structure.outputs
    read = Outputs(ends, tuple(own.vector for own in watched(structure, ends)))
    found, errors, taken = expected(program, arrays, ends, read, options)
    (value, sizes, seconds), error = found, errors[0]
    if all(map(is_concrete, (*value, *program.leaves))):
        if linear_obstacle(structure, reached(structure, ends)) is not None:
            refuse_watched(program, ends, seconds)
        _check_finite(program, value)
        _warn_unsettled(program, value, error, sizes)
    if structure.single:
        value, error = value[0], error[0]
    return Limit(value, error, taken)


@dataclass(frozen=True)
class Options:
    """How a limit is to be taken; the arguments of `limit`."""

    samples: int = SAMPLES
    key: Any = None
    method: str = "auto"
    chunk: int | None = None
    naive: bool = False


def expected(
    program: Program, arrays: tuple[jax.Array, ...], ends: tuple[int, ...], read: Read, options: Options
) -> tuple[Any, Any, str]:
    """(value, error, method) of what `read` takes from the limit of the instructions `ends`.

    Where quadrature turns out coarse (kinks in three dimensions), "auto" goes on to particles.
    """
    _check_numbers(options.samples, options.chunk)
    key = jax.random.key(0) if options.key is None else random_key(options.key)
    take = partial(expectations, program, arrays, key, ends=ends, read=read)
    road = choose(program.structure, ends, options)
    known = all(map(is_concrete, jax.tree.leaves((program.leaves, arrays))))
    if road.method == "exact" and known:
        value, error, found = exact(program, arrays, ends, read, options.naive)
        word = "exact" if _settled(value, error, found) else "quadrature"
    else:
        value, error = take(road=road)
        integrated = road.method == "exact" and integrals(program.structure, reached(program.structure, ends))
        word = "quadrature" if integrated else road.method
    if options.method != "auto" or word != "quadrature" or not known:
        return value, jax.tree.map(stated, value, error), word
    # Of outputs their values count, not what is only told of them.
    mean, off = (x[0] if isinstance(read, Outputs) else x for x in (value, error))
    coarse = not is_small(mean, off, _GOOD)
    blind = not coarse and road.method != "exact" and untamed(program.structure, ends)
    blind = blind and _missed(take, program.structure, ends, options, read, value)
    if coarse or blind:
        road = choose(program.structure, ends, replace(options, method="particles"))
        drawn, spread = take(road=road)
        if blind or not is_smaller(off, spread[0] if isinstance(read, Outputs) else spread):
            return drawn, jax.tree.map(stated, drawn, spread), road.method
    return value, jax.tree.map(stated, value, error), word


def choose(structure: Structure, ends: tuple[int, ...], options: Options) -> Road:
    """The road of a method's name.

    **Raises:** `ProgramError` for a name that is none, and for a road that the program cannot take.
    """
    method = options.method
    if method not in METHODS:
        raise bad_argument("method", f"{method!r} is no road to a limit", f"give one of {', '.join(METHODS)}")
    positions = reached(structure, ends)
    name = possible(structure, ends) if method == "auto" else method
    if name == "exact":
        obstacle = linear_obstacle(structure, positions)
        if obstacle is not None:
            raise problem(
                structure.line(obstacle), structure.names[obstacle] or "a Nonlin",
                "the exact road takes vectors that are linear in Gaussians, and Moments of up to three of them",
                'leave method="auto", which goes by quadrature or particles',
            )  # fmt: skip
    if name == "quadrature" and widest(structure, positions) > max(NODES):
        count = widest(structure, positions)
        raise bad_argument(
            "method", f"quadrature in {count} Gaussians of one width is out of reach (at most {max(NODES)})",
            'take method="particles"',
        )  # fmt: skip
    if name != "particles":
        return Road(name, naive=options.naive)
    points, replicates = particles(structure, ends, options.samples, options.chunk)
    together = points * replicates <= (held(structure, ends) if options.chunk is None else options.chunk)
    return Road(name, points, replicates, options.naive, together)


def _missed(take: Any, structure: Structure, ends: tuple[int, ...], options: Options, read: Read, value: Any) -> bool:
    """Whether some draws see more than nodes did: functions may be narrower than the nodes lie. Less is no sign, since
    draws do not reach where fast growing functions have their mass."""
    few = replace(options, method="particles", samples=min(options.samples, SEEN))
    drawn, spread = take(road=choose(structure, ends, few))
    sized = [jax.tree.leaves(x[1] if isinstance(read, Outputs) else x) for x in (value, drawn, spread)]
    seen, found, errors = ([np.abs(np.asarray(leaf)) for leaf in leaves] for leaves in sized)
    return any(bool((f - v > 6 * e + _GOOD * v).any()) for v, f, e in zip(seen, found, errors, strict=True))


def _settled(value: Any, error: Any, found: Mapping[int, Found]) -> bool:
    """Whether values are known to 1e-9, or to the rounding of what was summed."""
    dtypes = {np.asarray(v).dtype for v in jax.tree.leaves(value)}
    rounding = 128 * max((float(np.finfo(d).eps) for d in dtypes), default=0.0)
    each = lambda f: f.error <= np.maximum(1e-9 * np.abs(f.value), rounding * f.size)
    if not all(np.all(each(f)) for f in found.values()):
        return False
    size = max((float(np.max(f.size, initial=0.0)) for f in found.values()), default=0.0)
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(error), strict=True)
    return all(
        (np.asarray(e) <= np.maximum(1e-9 * np.abs(np.asarray(v)), rounding * max(size, 1e-300))).all()
        for v, e in pairs
    )


def _check_outputs(program: Program) -> None:
    structure = program.structure
    for output in structure.outputs:
        type_ = structure.types[output]
        if isinstance(type_, ScalarType):
            continue
        text = expression(structure, program.leaves, output)
        if type_.space == "wide":
            why, remedy = "the output is a vector where a scalar is asked", (
                "return its Moments, tp.moment(fn, x); its second moments are tp.nngp(program, x)"
            )  # fmt: skip
        else:
            why, remedy = "the output is a readout, whose limit is a Gaussian and no number", (
                "its covariance is tp.nngp(program, x); an average is tp.moment(lambda v, h: v * h, v, h)"
            )  # fmt: skip
        raise problem(structure.line(output), text, why, remedy)


def _check_numbers(samples: Any, chunk: Any) -> None:
    for name, value, least in (("samples", samples, 2), ("chunk", chunk, 2)):
        if name == "chunk" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise bad_argument(name, f"{value!r} draws give no limit and no standard error", f"give an int ≥ {least}")


def _warn_unsettled(program: Program, values: Any, errors: Any, sizes: Any) -> None:
    """Warn of outputs whose error is as large as they are, beside what they are an average of."""
    structure = program.structure
    for output, *own in zip(structure.outputs, values, errors, sizes, strict=True):
        value, error, size = (np.abs(np.asarray(x)) for x in own)
        bad = (error > 0.5 * value) & (error > 0.05 * size)
        # Of a function of Moments nobody knows how much cancels in it.
        if bad.any() and isinstance(structure.instructions[output], Moment):
            at = np.flatnonzero(bad.reshape(-1))[0]
            told = located(
                structure.line(output) or structure.name,
                expression(structure, program.leaves, output),
                f"its limit is {value.reshape(-1)[at]:.3g} ± {error.reshape(-1)[at]:.2g}: what it averages lies where "
                "neither nodes nor draws reach, or too close together",
                "take a function that varies and grows more slowly, lower the variances, or give more samples",
            )  # fmt: skip
            warn(told)


def _check_finite(program: Program, value: tuple[Any, ...]) -> None:
    structure = program.structure
    for output, array in zip(structure.outputs, value, strict=True):
        if not np.isfinite(np.asarray(array)).all():
            raise ProgramError(
                f"limit: {structure.names[output] or 'an output'} is not finite: a function overflows or is undefined "
                "where its Gaussian goes, or the expectation does not exist; tp.check(program) judges each function"
            )
