"""Infinite-width kernels: the public functions over `interpret.system` and `tiles`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import tiles
from tensorprog.batch import batch, is_concrete, require_program
from tensorprog.decomposition import backward_kernels
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.existence import check_expectations, check_functions
from tensorprog.functions import base
from tensorprog.gia import backward_products, forward_transposes
from tensorprog.interpret.equations import JointEq, PairEq
from tensorprog.interpret.moments import Alone, Buffer
from tensorprog.interpret.system import (
    Moments,
    Targets,
    cross_stage,
    kernel_structure,
    moments,
    parameter_weights,
    refuse,
    same_stage,
)
from tensorprog.ir import ScalarType, Structure
from tensorprog.limits import SAMPLES, Options
from tensorprog.loops import mapped
from tensorprog.program import Program

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


def nngp(program: Program, x1: Any = None, x2: Any = None, *, progress: bool = False) -> Any:
    """The NNGP kernel, K(x, x̄) = lim E f(x) f(x̄) over the draws of the parameters.

    x1 (N1, *sites, features), x2 (N2, …) or None for x1 itself (then exactly symmetric); tuples for several inputs.
    Returns (N1, N2, *S, *S) for a readout over sites S, in the inputs' dtype; a tuple for several outputs. For a wide
    vector it is its second moment lim h·h̄/n. Differentiable in x1, x2 and the program's numbers.

    **Raises:** `ProgramError` for data that do not fit, W and Wᵀ both used forward, Moments and functions of more than
    two dependent Gaussians, expectations that do not exist.

    Source: Tensor Programs I (1910.12478), Theorem 5.4 and Corollary 5.5.
    """
    results, single = _kernels(program, x1, x2, "nngp", progress=progress)
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
        found, single = _backward(program, x1, x2, convention, widths, samples, key)
        return _outputs([k.ntk for k in found], single)
    results, single = _kernels(program, x1, x2, "ntk", convention=convention, widths=widths, progress=progress)
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
    order. With `method="backward"` they are standard errors, and the NNGP of a Moment output is 0, as its variance is
    in the limit. Arguments and shapes as for `ntk`.
    """
    if _is_backward(method):
        found, single = _backward(program, x1, x2, convention, widths, samples, key)
        return _outputs([k if error else k._replace(error=None) for k in found], single)
    results, single = _kernels(
        program, x1, x2, "ntk", error=error, convention=convention, widths=widths, progress=progress
    )
    return _outputs(results, single)


def second_moment(program: Program, u: str, v: str, x1: Any = None, x2: Any = None) -> Any:
    """lim u(x)·v(x̄)/n for two vectors by their printed names: (N1, N2, *S_u, *S_v).

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
    return _evaluate(program, *arrays, ((positions[0], positions[1]),), tangent=False)[0]["value"]


def ntk_by_parameter(
    program: Program,
    x1: Any = None,
    x2: Any = None,
    *,
    convention: str = "multiplier-std",
    widths: Mapping[str, int] | int | None = None,
) -> Any:
    """The NTK's terms lr_p f_p T_p by parameter name; they sum to `ntk`. Arguments as for `ntk`.

    One reverse pass: the cotangent of a cross covariance is its D (docs/theory.md).
    """
    structure = kernel_structure(program, "ntk")
    arrays = _data(structure, x1, x2)
    weights = parameter_weights(program, convention, widths)
    results = _evaluate(program, *arrays, _targets(structure), tangent=True, weights=weights, split=True)
    names = [p.name for p in structure.parameters]
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
) -> tuple[list[Kernels], bool]:
    structure = kernel_structure(program, what)
    arrays = _data(structure, x1, x2)
    weights = parameter_weights(program, convention, widths)
    results = _evaluate(
        program, *arrays, _targets(structure), tangent=what == "ntk", error=error, weights=weights, progress=progress
    )
    found = []
    for r in results:
        bounds = Bounds(r["error"], r["tangent_error"]) if error else None
        found.append(Kernels(r["value"], r["tangent"], bounds))
    return found, structure.single


def _is_backward(method: str) -> bool:
    if method not in ("differentiate", "backward"):
        raise bad_argument("method", f"{method!r} is no road to the NTK", "give 'differentiate' or 'backward'")
    return method == "backward"


def _backward(
    program: Program, x1: Any, x2: Any, convention: str, widths: Any, samples: int | None, key: Any
) -> tuple[list[Kernels], bool]:
    """Both kernels and their standard errors from the moments of the backward program, all inputs together."""
    structure = require_program(program, "ntk").structure
    first, second = _data(structure, x1, x2)
    n1 = first[0].shape[0] if first else 1
    joined = first if second is None else tuple(jnp.concatenate(pair) for pair in zip(first, second, strict=True))
    columns = slice(0, n1) if second is None else slice(n1, None)
    options = Options(SAMPLES if samples is None else samples, key)
    weights = parameter_weights(program, convention, widths)
    found = []
    for output in structure.outputs:
        whole = backward_kernels(program, output, joined, weights, options)
        nngp, ntk, nngp_error, ntk_error = (k[:n1, columns] if first else k[0, 0] for k in whole)
        found.append(Kernels(nngp, ntk, Bounds(nngp_error, ntk_error)))
    return found, structure.single


def _targets(structure: Structure) -> Targets:
    return tuple((o, o) for o in structure.outputs)


def _data(structure: Structure, x1: Any, x2: Any) -> tuple[tuple[Array, ...], tuple[Array, ...] | None]:
    first = batch(structure, x1, "x1")
    if x2 is None:
        return first, None
    second = batch(structure, x2, "x2")
    dtype = jnp.result_type(*first, *second)
    return tuple(a.astype(dtype) for a in first), tuple(a.astype(dtype) for a in second)


def tile_side(m: Moments) -> int:
    """The side of this program's tiles, from the rows of its buffer."""
    costly = any(
        isinstance(e, JointEq) or (isinstance(e, PairEq) and base.method(e.phi, e.psi) != "closed form")
        for e in m.demand.cross.equations
    )
    return tiles.side(m.cross.rows, small=costly)


_alone = jax.jit(same_stage, static_argnums=0, static_argnames=("slope", "error"))


@partial(jax.jit, static_argnums=0, static_argnames=("tangent", "error", "split", "matched"))
def _tile(
    m: Moments, leaves: Any, weights: Array, x1: Any, x2: Any, left: Alone, right: Alone, valid: Array | None,
    *, tangent: bool, error: bool, split: bool, matched: bool = False,
) -> Buffer:  # fmt: skip
    """One tile of pairs: the kept crossing cells; with `split`, tangents (P, cells, t, t) by parameter."""
    run = partial(
        cross_stage, m, leaves, x1=x1, x2=x2, left=left, right=right, valid=valid, error=error, matched=matched
    )
    if not split:
        return run(weights, tangent=tangent)
    n1, n2 = (x[0].shape[0] if x else 1 for x in (x1, x2))
    return _by_parameter(lambda w: run(w, tangent=True), weights, (n1,) if matched else (n1, n2))


def _by_parameter(run: Any, weights: Array, shape: tuple[int, ...]) -> Buffer:
    """Tangents by parameter in one reverse pass a cell: they are linear in the weights, here one for each pair."""
    spread = jnp.broadcast_to(weights.reshape(-1, *(1,) * len(shape)), (len(weights), *shape))
    tangents, pullback, buffer = jax.vjp(lambda w: (lambda b: (b.tangent, b))(run(w)), spread, has_aux=True)

    def one(cell: Array) -> Array:
        cotangent = jnp.zeros_like(tangents).at[cell].set(1.0)
        return pullback(cotangent)[0] * spread

    parts = jax.lax.map(one, jnp.arange(tangents.shape[0]))
    return Buffer(buffer.value, jnp.swapaxes(parts, 0, 1), None, None)


def _evaluate(
    program: Program,
    x1: tuple[Array, ...],
    x2: tuple[Array, ...] | None,
    targets: Targets,
    *,
    tangent: bool,
    error: bool = False,
    weights: Array | None = None,
    split: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Every target's second moment and what goes with it: (N1, N2, *S_u, *S_v), by tiles."""
    m = moments(program.structure, targets)
    weights = jnp.zeros(max(1, len(program.structure.parameters))) if weights is None else weights
    leaves = tuple(program.leaves)
    concrete = all(is_concrete(jnp.asarray(a)) for a in jax.tree.leaves((leaves, weights, x1, x2)))
    grid = _Grid(m, leaves, weights, x1, x2, tangent, error, split)
    if concrete:
        check_functions(program, m, slopes=tangent)
        found = grid.on_host(progress)
        for side in (found.left,) if x2 is None else (found.left, found.right):
            check_expectations(program, m, side)
        return [_finite(program, r) for r in grid.targets(found, np)]
    return grid.targets(grid.in_jax(), jnp)


class _Found(NamedTuple):
    """Tiles with what goes with them: same-input blocks of x1 and x2, crossing tiles (T, …), their block indices."""

    left: Alone
    right: Alone
    diagonal: Buffer | None
    tiles: Buffer
    index: np.ndarray


class _Grid:
    """The tiles of one call."""

    def __init__(
        self, m: Moments, leaves: Any, weights: Array, x1: Any, x2: Any, tangent: bool, error: bool, split: bool
    ):
        self.m, self.leaves, self.weights = m, leaves, weights
        self.tangent, self.error, self.split = tangent, error, split
        self.alone = x2 is None
        self.symmetric = self.alone and all(u == v for u, v in m.targets)
        self.x1 = x1
        self.x2 = x1 if x2 is None else x2
        self.n1 = x1[0].shape[0] if x1 else 1
        self.n2 = self.x2[0].shape[0] if self.x2 else 1
        self.side = tile_side(m) if x1 else 1

    def blocked(self, size: int) -> tuple[Any, Any, np.ndarray, tuple[int, int]]:
        b1 = tiles.blocks(self.x1, size) if self.x1 else ()
        b2 = b1 if self.alone else tiles.blocks(self.x2, size)
        counts = (-(-self.n1 // size), -(-self.n2 // size))
        return b1, b2, tiles.pairs(*counts, self.symmetric), counts

    def valid(self, i: Any, j: Any, size: int) -> Array:
        inside = tiles.wanted(i, j, size, self.n1, self.n2, self.symmetric)
        if self.alone and not self.symmetric:
            inside &= (i * size + jnp.arange(size))[:, None] != (j * size + jnp.arange(size))[None, :]
        return inside

    def same(self, x: Any) -> Alone:
        return _alone(self.m, self.leaves, x, slope=self.tangent, error=self.error)

    def diagonal(self, x: Any, alone: Alone) -> Buffer:
        """Each input with itself."""
        return self.tile(x, x, alone, alone, None, matched=True)

    def tile(
        self, x1: Any, x2: Any, left: Alone, right: Alone, valid: Array | None, *, matched: bool = False
    ) -> Buffer:
        return _tile(
            self.m, self.leaves, self.weights, x1, x2, left, right, valid,
            tangent=self.tangent, error=self.error, split=self.split, matched=matched,
        )  # fmt: skip

    def on_host(self, progress: bool) -> _Found:
        b1, b2, index, counts = self.blocked(self.side)
        one = [tuple(a[i] for a in b1) for i in range(counts[0])]
        two = one if self.alone else [tuple(a[i] for a in b2) for i in range(counts[1])]
        left = [self.same(x) for x in one]
        right = left if self.alone else [self.same(x) for x in two]
        diagonal = [self.diagonal(x, s) for x, s in zip(one, left, strict=True)] if self.alone else None
        items = ((one[i], two[j], left[i], right[j], self.valid(i, j, self.side)) for i, j in index.tolist())
        found = tiles.host_map(self.tile, items, progress, len(index))
        return _Found(_stacked(left), _stacked(right), _stacked(diagonal) if diagonal else None, _stacked(found), index)

    def in_jax(self) -> _Found:
        size = min(self.side, 4 * -(-max(self.n1, self.n2) // 4))
        b1, b2, index, _ = self.blocked(size)
        if not b1:
            left = self.same(())
            tile = self.tile((), (), left, left, self.valid(0, 0, 1))
            one_block = jax.tree.map(lambda a: a[None], (left, self.diagonal((), left), tile))
            return _Found(one_block[0], one_block[0], one_block[1], one_block[2], index)
        left = mapped(self.same, b1)
        right = left if self.alone else mapped(self.same, b2)
        diagonal = mapped(lambda pair: self.diagonal(*pair), (b1, left)) if self.alone else None

        def one(ij: Array) -> Buffer:
            i, j = ij

            def pick(tree: Any, k: Array) -> Any:
                return jax.tree.map(lambda a: a[k], tree)

            return self.tile(pick(b1, i), pick(b2, j), pick(left, i), pick(right, j), self.valid(i, j, size))

        return _Found(left, right, diagonal, mapped(one, jnp.asarray(index)), index)

    def targets(self, found: _Found, xp: Any) -> list[dict[str, Any]]:
        return [self.target(found, k, xp) for k in range(len(self.m.targets))]

    def target(self, found: _Found, k: int, xp: Any) -> dict[str, Any]:
        names = ("value", "tangent", "error", "tangent_error")
        diagonal = (None,) * 4 if found.diagonal is None else _fields(found.diagonal)
        parts = zip(names, _fields(found.tiles), diagonal, strict=True)
        return {name: self.whole(found.index, tile, exact, k, xp) for name, tile, exact in parts}

    def whole(self, index: np.ndarray, tile: Any, exact: Any, k: int, xp: Any) -> Any:
        """One quantity of a target, (N1, N2, *S_u, *S_v), or (P, N1, N2, …) when split by parameter."""
        if tile is None:
            return None
        if tile.ndim == 5:
            parameters = range(tile.shape[1])
            return xp.stack(
                [self.whole(index, tile[:, p], None if exact is None else exact[:, p], k, xp) for p in parameters]
            )
        rows = self.m.cross.kept(self.m.cells[k])
        counts = tuple(-(-n // tile.shape[-1]) for n in (self.n1, self.n2))
        whole = tiles.assemble(tile[:, rows], index, counts, (self.n1, self.n2), xp)
        if exact is not None:
            diagonal = xp.moveaxis(exact[:, rows], 1, 0).reshape(len(rows), -1)[:, : self.n1]
            if self.symmetric:
                half = round(len(rows) ** 0.5)
                swap = np.arange(len(rows)).reshape(half, half).T.reshape(-1)
                whole = tiles.mirrored(whole, swap, tiles.upper(diagonal, half), xp)
            else:
                whole = xp.where(np.eye(self.n1, dtype=bool), diagonal[:, :, None], whole)
        result = xp.moveaxis(whole, 0, -1).reshape(self.n1, self.n2, *self.m.shape(k))
        return jnp.asarray(result if self.x1 else result[0, 0])


def _fields(buffer: Buffer) -> tuple[Any, Any, Any, Any]:
    return buffer.value, buffer.tangent, buffer.error, buffer.tangent_error


def _stacked(buffers: list[Any]) -> Any:
    return jax.tree.map(lambda *a: np.stack([np.asarray(x) for x in a]), *buffers)


def _finite(program: Program, result: dict[str, Any]) -> dict[str, Any]:
    for name in ("value", "tangent"):
        if result[name] is not None and not np.isfinite(np.asarray(result[name])).all():
            why = (
                "a function of it, or an input, is not a number there; look for functions undefined below 0"
                if np.isnan(np.asarray(result[name])).any()
                else f"its variances overflow {jnp.asarray(result[name]).dtype}; "
                "scale the inputs or the variances down, or use float64"
            )
            raise ProgramError(f"{program.structure.name}: the kernel is not finite for these inputs, {why}")
    return result
