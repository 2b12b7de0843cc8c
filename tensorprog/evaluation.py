"""Moments evaluated for all pairs of inputs: by stripes on the host, or as tiles inside a user's transformation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from tensorprog import assembly, settling, stripes, tiles
from tensorprog.accuracy import warn_unsettled
from tensorprog.errors import ProgramError
from tensorprog.existence import check_expectations, check_functions, unsettled
from tensorprog.interpret.buffers import Alone, Buffer, stated
from tensorprog.interpret.system import Moments, Targets, moments
from tensorprog.loops import mapped
from tensorprog.program import Program, is_concrete
from tensorprog.refusals import jumps_at_their_line, mapped_without_check
from tensorprog.stripes import Asked

Array = jax.Array


def evaluate(
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
    """Every target's second moment and what goes with it: (N1, N2, *S_u, *S_v), in the inputs' dtype; of inputs in half
    precision it is computed in single."""
    m = moments(program.structure, targets)
    dtype = x1[0].dtype if x1 else None
    half = dtype is not None and jnp.finfo(dtype).bits < 32
    if half:
        x1, x2 = jax.tree.map(lambda a: a.astype(jnp.float32), (x1, x2))
    with jumps_at_their_line(program, m), mapped_without_check(x1, x2):
        results = _evaluated(program, m, x1, x2, tangent, error, weights, split, progress)
    return [_rounded(program, r, dtype) for r in results] if half else results


def _rounded(program: Program, result: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Quantities in a dtype of fewer digits, whose rounding their bounds have."""
    result, eps = dict(result), float(jnp.finfo(dtype).eps)
    for name, bound in (("value", "error"), ("tangent", "tangent_error")):
        if result[bound] is not None:
            result[bound] = (1 + eps) * (result[bound] + eps * abs(result[name]) + float(jnp.finfo(dtype).tiny))
    found = {name: a if a is None else a.astype(dtype) for name, a in result.items()}
    known = all(is_concrete(a) for a in found.values() if a is not None)
    return finite(program, found) if known else found


def _evaluated(
    program: Program, m: Moments, x1: Any, x2: Any, tangent: bool, error: bool, weights: Any, split: bool,
    progress: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    weights = np.zeros(max(1, len(program.structure.parameters))) if weights is None else weights
    leaves = tuple(program.leaves)
    asked = Asked(m, tangent, error, split)
    # Inside `jax.jit` what is computed of known arrays is traced as well, as any array made here tells.
    if not all(map(is_concrete, jax.tree.leaves((leaves, weights, x1, x2, jax.device_put(0.0))))):
        return _traced(_Traced(asked, x2 is None), leaves, weights, x1, x1 if x2 is None else x2)
    check_functions(program, m, slopes=tangent)
    m, results, sides = settling.evaluated(asked, leaves, weights, x1, x2, progress)
    for side in sides:
        check_expectations(program, m, side, slopes=tangent)
    if not error:
        warn_unsettled(program, m, sides, slopes=tangent)
    results = [finite(program, checked(program, m, sides, r, slopes=tangent)) for r in results]
    return [{name: a if a is None else jax.device_put(a) for name, a in r.items()} for r in results]


@dataclass(frozen=True)
class _Traced:
    """What a call inside a transformation asks for; `alone`: of x1 with itself."""

    asked: Asked
    alone: bool


def _alike(x1: tuple[Array, ...], x2: tuple[Array, ...] | None) -> Any:
    """Which pairs are of equal inputs, None where none can be; inputs without x2 are equal to themselves."""
    if not x1:
        return np.eye(1, dtype=bool) if x2 is None else None
    second = x1 if x2 is None else x2
    if all(is_concrete(a) for a in (*x1, *second)):
        return tiles.rows_alike(x1, second)
    return tiles.rows_alike_traced(x1, second)


def _traced(asked: _Traced, leaves: Any, weights: Array, x1: tuple[Array, ...], x2: tuple[Array, ...]) -> Any:
    """Inside a transformation. Pairs of equal inputs have the values of an input with itself, and derivatives in the
    program's numbers. Derivatives in the inputs are those of a function of two: at equal ones, half that of the
    diagonal in each, which an input with itself does not know. So the first are of inputs that stand still, and what
    is added is 0 and has the derivatives in the inputs alone."""
    held = jax.lax.stop_gradient((x1, x2))
    grid = _Grid(asked, leaves, weights, *held, alike=_alike(held[0], None if asked.alone else held[1]))
    results = grid.targets(grid.in_jax())
    if all(is_concrete(a) for a in (*x1, *x2)):
        return results
    zeros = jax.tree.map(jnp.zeros_like, results)
    scalar = tuple(not jnp.ndim(a) for a in leaves)
    moves = _moves(asked, scalar, (), zeros, _gathered(leaves, scalar, weights), (x1, x2))
    return jax.tree.map(jnp.add, results, moves)


def _gathered(leaves: tuple[Any, ...], scalar: tuple[bool, ...], weights: Array) -> tuple[Array, ...]:
    """The program's numbers: a vector of those that are scalars and of the weights, then the arrays."""
    scalars = [jnp.asarray(a)[None] for a, one in zip(leaves, scalar, strict=True) if one]
    return jnp.concatenate([*scalars, weights]), *(jnp.asarray(a) for a in leaves if jnp.ndim(a))


def _scattered(numbers: tuple[Array, ...], scalar: tuple[bool, ...]) -> tuple[tuple[Array, ...], Array]:
    """The program's leaves, and the weights."""
    vector, *arrays = numbers
    count, rest = sum(scalar), iter(arrays)
    scalars = iter(vector[k] for k in range(count))
    return tuple(next(scalars if one else rest) for one in scalar), vector[count:]


def _in_numbers(asked: _Traced, scalar: Any, path: tuple[int, ...], numbers: tuple[Array, ...], inputs: Any) -> Any:
    """Kernels of two inputs, whether they are equal or not, differentiated in the numbers of `path`, one after the
    other: each adds its axes behind those of the kernel."""
    if path:
        k = path[-1]
        at = lambda one: _in_numbers(asked, scalar, path[:-1], (*numbers[:k], one, *numbers[k + 1 :]), inputs)
        return jax.jacfwd(at)(numbers[k])
    itself = np.eye(len(inputs[0][0]), dtype=bool) if asked.alone else None
    grid = _Grid(asked, *_scattered(numbers, scalar), *inputs, alike=itself)
    return grid.targets(grid.in_jax())


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _moves(asked: _Traced, scalar: Any, path: tuple[int, ...], zeros: Any, numbers: Any, inputs: Any) -> Any:
    """0, with the derivatives in the inputs of `_in_numbers`."""
    return zeros


@partial(_moves.defjvp, symbolic_zeros=True)
def _(asked: _Traced, scalar: Any, path: tuple[int, ...], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Of a derivative in the numbers the coefficients are 0 that move with the inputs, and not the product with the
    direction: reverse mode keeps what is linear in a direction as it is here, without rules of its own."""
    zeros, numbers, inputs = primals
    change = zeros
    if _changes(tangents[2]):
        fn = partial(_in_numbers, asked, scalar, path, numbers)
        change = jax.jvp(fn, (inputs,), (_filled(inputs, tangents[2]),))[1]
    for k, direction in enumerate(tangents[1]):
        if not _is_zero(direction):
            still = jax.tree.map(lambda z, d=direction: jnp.zeros((*z.shape, *d.shape), z.dtype), zeros)
            slopes = _moves(asked, scalar, (*path, k), still, numbers, inputs)
            along = jax.tree.map(lambda c, d=direction: jnp.tensordot(c, d.astype(c.dtype), d.ndim), slopes)
            change = jax.tree.map(jnp.add, change, along)
    return zeros, change


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _changes(tangents: Any) -> bool:
    return not all(map(_is_zero, jax.tree.leaves(tangents, is_leaf=_is_zero)))


def _filled(values: Any, tangents: Any) -> Any:
    """Tangents with zeros in place of those that JAX knows to be zero."""
    return jax.tree.map(lambda t, x: jnp.zeros_like(x) if _is_zero(t) else t, tangents, values, is_leaf=_is_zero)


class _Found(NamedTuple):
    """Crossing tiles (T, …), inputs with themselves (blocks, …), the tiles' block indices."""

    diagonal: Buffer | None
    tiles: Buffer
    index: np.ndarray


class _Grid:
    """The tiles of one call inside a transformation. `alike` marks pairs of equal inputs, (N1, N2), None where there
    are none."""

    def __init__(self, asked: _Traced, leaves: Any, weights: Array, x1: Any, x2: Any, alike: Any):
        assert isinstance(asked.asked.m, Moments), "whose moments they are"
        self.asked, self.m, self.leaves, self.weights = asked.asked, asked.asked.m, leaves, weights
        self.alone = asked.alone
        self.symmetric = self.alone and all(u == v for u, v in self.m.targets)
        self.x1, self.x2, self.alike = x1, x2, alike
        self.n1, self.n2 = (x[0].shape[0] if x else 1 for x in (x1, x2))
        self.side = min(stripes.shape(self.m).block, 4 * -(-max(self.n1, self.n2) // 4)) if x1 else 1

    def valid(self, i: Any, j: Any) -> Array:
        """Which pairs of a tile are computed: those that are wanted, and not of equal inputs."""
        inside = tiles.wanted(i, j, self.side, self.n1, self.n2, self.symmetric)
        if self.alike is None:
            return inside
        place = lambda k, n: jnp.minimum(k * self.side + np.arange(self.side), n - 1)
        return inside & ~jnp.asarray(self.alike)[place(i, self.n1)[:, None], place(j, self.n2)]

    def same(self, x: Any) -> Alone:
        return stripes.alone(self.asked, self.leaves, x)

    def diagonal(self, x: Any, alone: Alone) -> Buffer:
        """Each input with itself."""
        return self.tile(x, x, alone, alone, None, matched=True)

    def tile(
        self, x1: Any, x2: Any, left: Alone, right: Alone, valid: Array | None, *, matched: bool = False
    ) -> Buffer:
        return stripes.pairs(self.asked, self.leaves, self.weights, x1, x2, left, right, valid, matched=matched)

    def in_jax(self) -> _Found:
        if not self.x1:
            left = self.same(())
            tile = self.tile((), (), left, left, self.valid(0, 0))
            found = jax.tree.map(lambda a: a[None], (self.diagonal((), left), tile))
            return _Found(*found, index=tiles.pairs(1, 1, self.symmetric))
        counts = (-(-self.n1 // self.side), -(-self.n2 // self.side))
        b1 = tiles.blocks(self.x1, self.side)
        b2 = b1 if self.alone else tiles.blocks(self.x2, self.side)
        index = tiles.pairs(*counts, self.symmetric)
        left = mapped(self.same, b1)
        right = left if self.alone else mapped(self.same, b2)
        diagonal = None if self.alike is None else mapped(lambda pair: self.diagonal(*pair), (b1, left))

        def one(ij: Array) -> Buffer:
            i, j = ij

            def pick(tree: Any, k: Array) -> Any:
                return jax.tree.map(lambda a: a[k], tree)

            return self.tile(pick(b1, i), pick(b2, j), pick(left, i), pick(right, j), self.valid(i, j))

        return _Found(diagonal, mapped(one, jnp.asarray(index)), index)

    def targets(self, found: _Found) -> list[dict[str, Any]]:
        return [self.target(found, k) for k in range(len(self.m.targets))]

    def target(self, found: _Found, k: int) -> dict[str, Any]:
        diagonal = (None,) * 4 if found.diagonal is None else assembly.fields(found.diagonal)
        parts = zip(assembly.NAMES, assembly.fields(found.tiles), diagonal, strict=True)
        result = {name: self.whole(found.index, tile, exact, k) for name, tile, exact in parts}
        for name, bound in (("value", "error"), ("tangent", "tangent_error")):
            if result[bound] is not None:
                result[bound] = stated(result[name], result[bound])
        return result

    def whole(self, index: np.ndarray, tile: Any, exact: Any, k: int) -> Any:
        """One quantity of a target, (N1, N2, *S_u, *S_v), or (P, N1, N2, …) when split by parameter."""
        if tile is None:
            return None
        if tile.ndim == 5:
            parameters = range(tile.shape[1])
            return jnp.stack(
                [self.whole(index, tile[:, p], None if exact is None else exact[:, p], k) for p in parameters]
            )
        rows = self.m.cross.kept(self.m.cells[k])
        counts = tuple(-(-n // tile.shape[-1]) for n in (self.n1, self.n2))
        whole = tiles.assemble(tile[:, rows], index, counts, (self.n1, self.n2))
        half = round(len(rows) ** 0.5)
        if self.symmetric:
            whole = tiles.mirrored(whole, np.arange(len(rows)).reshape(half, half).T.reshape(-1), jnp)
        if exact is not None:
            itself = jnp.moveaxis(exact[:, rows], 1, 0).reshape(len(rows), -1)[:, : self.n1]
            itself = tiles.upper(itself, half) if self.symmetric else itself
            # Of equal inputs the first row, so that their kernel is one number.
            first = jnp.argmax(self.alike, axis=1) if self.alone else np.arange(self.n1)
            whole = jnp.where(self.alike, itself[:, first][:, :, None], whole)
        result = jnp.moveaxis(whole, 0, -1).reshape(self.n1, self.n2, *self.m.shape(k))
        return result if self.x1 else result[0, 0]


def checked(program: Program, m: Moments, sides: Any, result: dict[str, Any], *, slopes: bool) -> dict[str, Any]:
    """Kernels as they are; where some are NaN, the function whose expectation is known to no digit is named.

    **Raises:** `ProgramError` at its line.
    """
    asked = (np.asarray(a) for a in (result["value"], result["tangent"]) if a is not None)
    if any(not _all_finite(a) and np.isnan(a).any() for a in asked):
        for side in sides:
            unsettled(program, m, side, slopes=slopes)
    return result


def finite(program: Program, result: dict[str, Any], *, drawn: bool = False) -> dict[str, Any]:
    """Kernels as they are; NaN and infinite ones are refused. `drawn`: nobody has looked whether functions are defined.

    **Raises:** `ProgramError` that says which it is.
    """
    for name in ("value", "tangent"):
        if result[name] is not None and not _all_finite(np.asarray(result[name])):
            dtype = np.asarray(result[name]).dtype
            most = f"{dtype} (up to {float(np.finfo(dtype).max):.0e})"
            wider = {2: ", or give float32 inputs", 4: ", or use float64 (jax_enable_x64)"}.get(dtype.itemsize, "")
            wider += "; or a function is undefined there (log below 0): take one that is defined everywhere" * drawn
            raise ProgramError(
                f"{program.structure.name}: the kernel is not finite for these inputs: variances or their products "
                f"leave the range of {most}; scale the inputs to norms of about √features, or lower the weights' "
                f"variances{wider}"
            )
    return result


def _all_finite(a: np.ndarray) -> bool:
    """Whether all entries are; the sum of such is mostly finite, and takes no memory."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(a.sum()) or np.isfinite(a).all())
