"""Infinite-width kernels: the public functions over `interpret.system` and `tiles`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import tiles
from tensorprog.arrays import is_split
from tensorprog.batch import batch, random_key, require_program
from tensorprog.decomposition import backward_kernels
from tensorprog.errors import bad_argument
from tensorprog.evaluation import evaluate, finite
from tensorprog.gia import backward_products, forward_transposes
from tensorprog.interpret.buffers import stated
from tensorprog.interpret.system import integrated, kernel_structure, output_targets, parameter_weights, refuse
from tensorprog.ir import ScalarType, Structure
from tensorprog.limits import SAMPLES, Options
from tensorprog.program import Program, is_concrete
from tensorprog.sampling.kernels import Sampled, check_samples, sampled_kernels, sampled_second_moment

Array = jax.Array


class Bounds(NamedTuple):
    """Bounds on the errors of both kernels, entry by entry."""

    nngp: Any
    ntk: Any


class Kernels(NamedTuple):
    """The kernels of a program: `nngp` and `ntk`, (N1, N2, *S, *S); `error` bounds both when it was asked for."""

    nngp: Any
    ntk: Any
    error: Any = None


def nngp(
    program: Program,
    x1: Any = None,
    x2: Any = None,
    *,
    progress: bool = False,
    samples: int | None = None,
    key: Any = None,
) -> Any:
    """The NNGP kernel, K(x, x̄) = lim E f(x) f(x̄) over the draws of the parameters.

    x1 (N1, *sites, features), x2 (N2, …) or None for x1 itself (then exactly symmetric); tuples for several inputs.
    Returns (N1, N2, *S, *S) for a readout over sites S, in the inputs' dtype; a tuple for several outputs. For a wide
    vector it is its second moment lim h·h̄/n. Differentiable in x1, x2 and the program's numbers.

    Functions of more than two dependent Gaussians (gated recurrent nets, max pooling, batch norm with most functions)
    are sampled, `samples` draws in all under `key` (by default as many as some tens of seconds allow, and a fixed key):
    then all inputs are drawn together, the kernel is a Gram matrix of samples, positive semi-definite, and an entry
    depends on the whole batch. `kernels(error=True)` gives the standard errors. Draws are in double precision whatever
    the inputs' dtype, but inside a transformation in that of the inputs.

    **Raises:** `ProgramError` for data that do not fit, W and Wᵀ both used forward, expectations that do not exist.

    Source: Tensor Programs I (1910.12478), Theorem 5.4 and Corollary 5.5.
    """
    results, single = _kernels(program, x1, x2, "nngp", progress=progress, samples=samples, key=key)
    return _outputs([r.nngp for r in results], single)


def ntk(
    program: Program,
    x1: Any = None,
    x2: Any = None,
    *,
    convention: str = "multiplier-std",
    widths: Mapping[str, int] | int | None = None,
    progress: bool = False,
    method: str = "differentiate",
    samples: int | None = None,
    key: Any = None,
) -> Any:
    """The neural tangent kernel Θ(x, x̄) = lim ⟨∇f(x), ∇f(x̄)⟩ = Σ_p lr_p f_p T_p, weights shared wherever they are.

    Arguments and shapes as for `nngp`. `convention` fixes f_p: "multiplier-std" (default) trains θ ~ N(0, 1) under the
    multiplier `scale` = √var, f_p = scale²; "init-std" (the papers) trains W·√fan itself, f_p = 1; "standard" trains W,
    f_p = fan, and needs `widths`, as in `init`.

    `method="differentiate"` differentiates the recursion of second moments. `method="backward"` takes the moments of
    the backward program in place, Σ over pairs of uses D · C, by the roads of `limit` (`samples` draws under `key`),
    all inputs together: right also where gradient independence fails. For a Moment output (a mean readout) it returns
    lim n·Θ, n the width of ratio 1, since Θ itself vanishes.

    **Raises:** `ProgramError` as `nngp`, and where the Simple GIA Check fails (`method="differentiate"`); for wide
    outputs (`method="backward"`).

    Source: Tensor Programs II (2006.14548), Theorem 7.2; the differentiated form is derived in docs/theory.md.
    """
    if _is_backward(method):
        found, single = _backward(program, x1, x2, convention, widths, samples, key, error=False)
        return _outputs([k.ntk for k in found], single)
    results, single = _kernels(
        program, x1, x2, "ntk", convention=convention, widths=widths, progress=progress, samples=samples, key=key
    )
    return _outputs([r.ntk for r in results], single)


def kernels(
    program: Program,
    x1: Any = None,
    x2: Any = None,
    *,
    error: bool = False,
    convention: str = "multiplier-std",
    widths: Mapping[str, int] | int | None = None,
    progress: bool = False,
    method: str = "differentiate",
    samples: int | None = None,
    key: Any = None,
) -> Any:
    """Both kernels in one pass, `.nngp` and `.ntk`; `error=True` adds `.error`, bounds `.error.nngp`, `.error.ntk`.

    The bounds cover what quadrature and series leave out and rounding, both carried through the recursion to first
    order. They are 0 or more, infinite where nothing is known, never NaN: kernels that are not finite are refused, and
    inside a transformation, which cannot refuse them, a NaN has an infinite bound. With `method="backward"` they are
    standard errors, and the NNGP of a Moment output is 0, as its variance is in the limit. Arguments and shapes as
    for `ntk`.

    **Raises:** `ProgramError` as `ntk`.
    """
    if _is_backward(method):
        return _outputs(*_backward(program, x1, x2, convention, widths, samples, key, error=error))
    results, single = _kernels(
        program, x1, x2, "ntk", error=error, convention=convention, widths=widths, progress=progress,
        samples=samples, key=key,
    )  # fmt: skip
    return _outputs(results, single)


def second_moment(
    program: Program, u: str, v: str, x1: Any = None, x2: Any = None, *, samples: int | None = None, key: Any = None
) -> Any:
    """lim u(x)·v(x̄)/n for two vectors by their printed names: (N1, N2, *S_u, *S_v).

    Where the recursion has no rule for it, it is an average over `samples` draws under `key`, as in `nngp`.

    **Raises:** `ProgramError` for names that the program does not have, or that are no wide vectors.
    """
    structure = require_program(program, "second_moment").structure
    positions = []
    for argument, name in (("u", u), ("v", v)):
        position = structure.position(name)
        if position is None or isinstance(structure.types[position], ScalarType):
            known = ", ".join(
                n for n, t in zip(structure.names, structure.types, strict=True) if n and not isinstance(t, ScalarType)
            )
            raise bad_argument(argument, f"the program has no vector {name!r}", f"its vectors are {known}")
        positions.append(position)
    refuse(structure, [*forward_transposes(structure, tuple(positions)), *backward_products(structure, positions)])
    arrays = _data(structure, x1, x2)
    _check_draws(samples, key)
    pair = (positions[0], positions[1])
    if not integrated(structure, (pair,)):
        found = sampled_second_moment(program, *arrays, pair, samples, key)
        return found if structure.inputs else found[0, 0]
    return evaluate(program, *arrays, (pair,), tangent=False)[0]["value"]


def ntk_by_parameter(
    program: Program,
    x1: Any = None,
    x2: Any = None,
    *,
    convention: str = "multiplier-std",
    widths: Mapping[str, int] | int | None = None,
    samples: int | None = None,
    key: Any = None,
) -> Any:
    """The NTK's terms lr_p f_p T_p by parameter name; they sum to `ntk`. Arguments as for `ntk`.

    One reverse pass: the cotangent of a cross covariance is its D (docs/theory.md). What must be sampled is sampled
    once for each parameter, `samples` draws under `key`: the terms then sum to `ntk` up to its standard error.

    **Raises:** `ProgramError` as `ntk`.
    """
    structure = kernel_structure(program, "ntk")
    arrays = _data(structure, x1, x2)
    weights = parameter_weights(program, convention, widths)
    names = [p.name for p in structure.parameters]
    _check_draws(samples, key)
    if not integrated(structure, output_targets(structure)):
        alone = [weights * one for one in jnp.eye(len(weights))[: len(names)]]
        own = [sampled_kernels(program, *arrays, w, samples, key) for w in alone]
        terms = [[_sampled(program, kernel, False).ntk for kernel in found] for found in own]
        parts = [dict(zip(names, term, strict=True)) for term in zip(*terms, strict=True)]
        return _outputs(parts, structure.single)
    results = evaluate(program, *arrays, output_targets(structure), tangent=True, weights=weights, split=True)
    parts = [{name: jnp.asarray(r["tangent"][i]) for i, name in enumerate(names)} for r in results]
    return _outputs(parts, structure.single)


# --------------------------------------------------------------------------------------------------- the rest


def _outputs(results: list[Any], single: bool) -> Any:
    return results[0] if single else tuple(results)


def _kernels(
    program: Program,
    x1: Any,
    x2: Any,
    what: str,
    *,
    error: bool = False,
    convention: str = "multiplier-std",
    widths: Mapping[str, int] | int | None = None,
    progress: bool = False,
    samples: int | None = None,
    key: Any = None,
) -> tuple[list[Kernels], bool]:
    structure = kernel_structure(program, what)
    arrays = _data(structure, x1, x2)
    weights = parameter_weights(program, convention, widths)
    _check_draws(samples, key)
    if not integrated(structure, output_targets(structure)):
        draws = sampled_kernels(program, *arrays, weights if what == "ntk" else None, samples, key)
        return [_sampled(program, k, error) for k in draws], structure.single
    results = evaluate(
        program,
        *arrays,
        output_targets(structure),
        tangent=what == "ntk",
        error=error,
        weights=weights,
        progress=progress,
    )
    found = []
    for r in results:
        bounds = Bounds(r["error"], r["tangent_error"]) if error else None
        found.append(Kernels(r["value"], r["tangent"], bounds))
    return found, structure.single


def _sampled(program: Program, found: Sampled, error: bool) -> Kernels:
    """Sampled kernels as the integrated ones are given: checked, without axes of inputs where there are none."""
    own = (found.nngp, found.ntk, found.nngp_error, found.ntk_error)
    if not program.structure.inputs:
        own = tuple(None if k is None else k[0, 0] for k in own)
    return _with_errors(program, own, error)


def _with_errors(program: Program, estimated: tuple[Any, ...], error: bool) -> Kernels:
    """Estimated kernels, with standard errors where these are asked for; what is not finite is refused."""
    nngp, ntk, nngp_error, ntk_error = estimated
    if all(is_concrete(k) for k in (nngp, ntk) if k is not None):
        finite(program, {"value": nngp, "tangent": ntk}, drawn=True)
    if not error:
        return Kernels(nngp, ntk)
    return Kernels(nngp, ntk, Bounds(stated(nngp, nngp_error), None if ntk is None else stated(ntk, ntk_error)))


def _check_draws(samples: Any, key: Any) -> None:
    """What is given for draws, also where nothing turns out to be drawn."""
    check_samples(samples)
    if key is not None:
        random_key(key)


def _is_backward(method: str) -> bool:
    if method not in ("differentiate", "backward"):
        raise bad_argument("method", f"{method!r} is no road to the NTK", "give 'differentiate' or 'backward'")
    return method == "backward"


def _backward(
    program: Program, x1: Any, x2: Any, convention: str, widths: Any, samples: int | None, key: Any, *, error: bool
) -> tuple[list[Kernels], bool]:
    """Both kernels and their standard errors from the moments of the backward program, all inputs together."""
    structure = require_program(program, "ntk").structure
    joined, rows, columns = tiles.distinct(*_data(structure, x1, x2))
    options = Options(SAMPLES if samples is None else samples, key)
    weights = parameter_weights(program, convention, widths)
    found = []
    for output in structure.outputs:
        whole = backward_kernels(program, output, joined, weights, options)
        own = tuple(k[rows][:, columns] if joined else k[0, 0] for k in whole)
        found.append(_with_errors(program, own, error))
    return found, structure.single


def _data(structure: Structure, x1: Any, x2: Any) -> tuple[tuple[Array, ...], tuple[Array, ...] | None]:
    """Both batches in one dtype; None for a second one that is the first, as one array or in all its numbers."""
    first = batch(structure, x1, "x1")
    alone = x2 is None or (x2 is x1 and first)
    second = () if alone else batch(structure, x2, "x2")
    if any(map(is_split, (*first, *second))):
        raise bad_argument(
            "x1", "traced, and split over a mesh with Explicit axes",
            "make the mesh with Auto axes, jax.make_mesh(…, axis_types=(jax.sharding.AxisType.Auto,)), or map over it "
            "by jax.shard_map",
        )  # fmt: skip
    if alone:
        return first, None
    dtype = jnp.result_type(*first, *second)
    one, two = (tuple(a.astype(dtype) for a in x) for x in (first, second))
    return one, None if first and all(map(_same, one, two)) else two


def _same(one: Array, two: Array) -> bool:
    return one is two or (is_concrete(one) and is_concrete(two) and np.array_equal(one, two))
