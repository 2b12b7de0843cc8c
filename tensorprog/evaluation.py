"""Moments evaluated for all pairs of inputs: tiles on the host, or inside a user's transformation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from tensorprog import tiles
from tensorprog.accuracy import warn_unsettled
from tensorprog.errors import ProgramError
from tensorprog.existence import check_expectations, check_functions, unsettled
from tensorprog.functions import base
from tensorprog.interpret.buffers import Alone, Buffer, stated
from tensorprog.interpret.equations import BatchEq, JointEq, PairEq
from tensorprog.interpret.system import Moments, Targets, cross_stage, moments, same_stage
from tensorprog.loops import mapped
from tensorprog.program import Program, is_concrete
from tensorprog.refusals import jumps_at_their_line, mapped_without_check

Array = jax.Array


def is_costly(m: Moments) -> bool:
    """Whether some expectation has no closed form."""
    return any(_is_integral(e) for e in m.demand.cross.equations)


def _is_integral(e: Any) -> bool:
    return isinstance(e, JointEq | BatchEq) or (isinstance(e, PairEq) and base.method(e.phi, e.psi) != "closed form")


def _by_pair(e: Any) -> bool:
    """Whether each pair takes an integral of its own: over matrices, or of functions with numbers of the inputs."""
    numbers = [e.numbers] if isinstance(e, JointEq) else [e.phi_numbers, e.psi_numbers] if isinstance(e, PairEq) else []
    return isinstance(e, BatchEq) or (_is_integral(e) and any((n < 0).any() for n in numbers))


def tile_side(m: Moments) -> int:
    """The side of this program's tiles, from the rows of its buffer; small where a pair takes an integral over several
    Gaussians, smaller where that cannot be shared between pairs: pairs that nobody wants cost as much."""
    equations = m.demand.cross.equations
    if any(_by_pair(e) for e in equations):
        return 4
    if any(isinstance(e, JointEq) for e in equations):
        return 8
    return tiles.side(m.cross.rows, small=is_costly(m))


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
    """Every target's second moment and what goes with it: (N1, N2, *S_u, *S_v), by tiles."""
    m = moments(program.structure, targets)
    with jumps_at_their_line(program, m), mapped_without_check(x1, x2):
        return _evaluated(program, m, x1, x2, tangent, error, weights, split, progress)


def _evaluated(
    program: Program, m: Moments, x1: Any, x2: Any, tangent: bool, error: bool, weights: Any, split: bool,
    progress: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    weights = jnp.zeros(max(1, len(program.structure.parameters))) if weights is None else weights
    leaves = tuple(program.leaves)
    asked = _Asked(m, tangent, error, split, x2 is None)
    second = x1 if x2 is None else x2
    if not all(is_concrete(jnp.asarray(a)) for a in jax.tree.leaves((leaves, weights, x1, x2))):
        return _traced(asked, leaves, weights, x1, second)
    grid = _Grid(asked, leaves, weights, x1, second, _alike(x1, x2))
    check_functions(program, m, slopes=tangent)
    found = grid.on_host(progress)
    sides = (found.left,) if x2 is None else (found.left, found.right)
    for side in sides:
        check_expectations(program, m, side, slopes=tangent)
    if not error:
        warn_unsettled(program, m, sides, slopes=tangent)
    return [finite(program, checked(program, m, sides, r, slopes=tangent)) for r in grid.targets(found, np)]


@dataclass(frozen=True)
class _Asked:
    """What a call asks for; `alone`: of x1 with itself."""

    m: Moments
    tangent: bool
    error: bool
    split: bool
    alone: bool


def _alike(x1: tuple[Array, ...], x2: tuple[Array, ...] | None) -> Any:
    """Which pairs are of equal inputs, None where none can be; inputs without x2 are equal to themselves."""
    if not x1:
        return np.eye(1, dtype=bool) if x2 is None else None
    second = x1 if x2 is None else x2
    if all(is_concrete(a) for a in (*x1, *second)):
        return tiles.rows_alike(x1, second)
    return tiles.rows_alike_traced(x1, second)


def _traced(asked: _Asked, leaves: Any, weights: Array, x1: tuple[Array, ...], x2: tuple[Array, ...]) -> Any:
    """Inside a transformation. Pairs of equal inputs have the values of an input with itself, and derivatives in the
    program's numbers. Derivatives in the inputs are those of a function of two: at equal ones, half that of the
    diagonal in each, which an input with itself does not know. So the first are of inputs that stand still, and what
    is added is 0 and has the derivatives in the inputs alone."""
    held = jax.lax.stop_gradient((x1, x2))
    grid = _Grid(asked, leaves, weights, *held, alike=_alike(held[0], None if asked.alone else held[1]))
    results = grid.targets(grid.in_jax(), jnp)
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


def _in_numbers(asked: _Asked, scalar: Any, path: tuple[int, ...], numbers: tuple[Array, ...], inputs: Any) -> Any:
    """Kernels of two inputs, whether they are equal or not, differentiated in the numbers of `path`, one after the
    other: each adds its axes behind those of the kernel."""
    if path:
        k = path[-1]
        at = lambda one: _in_numbers(asked, scalar, path[:-1], (*numbers[:k], one, *numbers[k + 1 :]), inputs)
        return jax.jacfwd(at)(numbers[k])
    itself = np.eye(len(inputs[0][0]), dtype=bool) if asked.alone else None
    grid = _Grid(asked, *_scattered(numbers, scalar), *inputs, alike=itself)
    return grid.targets(grid.in_jax(), jnp)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _moves(asked: _Asked, scalar: Any, path: tuple[int, ...], zeros: Any, numbers: Any, inputs: Any) -> Any:
    """0, with the derivatives in the inputs of `_in_numbers`."""
    return zeros


@partial(_moves.defjvp, symbolic_zeros=True)
def _(asked: _Asked, scalar: Any, path: tuple[int, ...], primals: Any, tangents: Any) -> tuple[Any, Any]:
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
    """Tiles with what goes with them: same-input blocks of x1 and x2, crossing tiles (T, …), their block indices."""

    left: Alone
    right: Alone
    diagonal: Buffer | None
    tiles: Buffer
    index: np.ndarray


class _Grid:
    """The tiles of one call. `alike` marks pairs of equal inputs, (N1, N2), None where there are none."""

    def __init__(self, asked: _Asked, leaves: Any, weights: Array, x1: Any, x2: Any, alike: Any):
        self.m, self.leaves, self.weights = asked.m, leaves, weights
        self.tangent, self.error, self.split, self.alone = asked.tangent, asked.error, asked.split, asked.alone
        self.symmetric = self.alone and all(u == v for u, v in self.m.targets)
        self.x1, self.x2, self.alike = x1, x2, alike
        self.n1, self.n2 = (x[0].shape[0] if x else 1 for x in (x1, x2))
        self.side = tile_side(self.m) if x1 else 1

    def blocked(self, size: int) -> tuple[Any, Any, np.ndarray, tuple[int, int]]:
        b1 = tiles.blocks(self.x1, size) if self.x1 else ()
        b2 = b1 if self.alone else tiles.blocks(self.x2, size)
        counts = (-(-self.n1 // size), -(-self.n2 // size))
        return b1, b2, tiles.pairs(*counts, self.symmetric), counts

    def valid(self, i: Any, j: Any, size: int) -> Array:
        """Which pairs of a tile are computed: those that are wanted, and not of equal inputs."""
        inside = tiles.wanted(i, j, size, self.n1, self.n2, self.symmetric)
        if self.alike is None:
            return inside
        xp = np if isinstance(i, int) and isinstance(self.alike, np.ndarray) else jnp
        rows, columns = (xp.minimum(k * size + np.arange(size), n - 1) for k, n in ((i, self.n1), (j, self.n2)))
        return inside & ~xp.asarray(self.alike)[rows[:, None], columns]

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
        itself = None if self.alike is None else [self.diagonal(x, s) for x, s in zip(one, left, strict=True)]
        items = ((one[i], two[j], left[i], right[j], self.valid(i, j, self.side)) for i, j in index.tolist())
        found = tiles.host_map(self.tile, items, progress, len(index))
        return _Found(
            _stacked(left), _stacked(right), None if itself is None else _stacked(itself), _stacked(found), index
        )

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
        diagonal = None if self.alike is None else mapped(lambda pair: self.diagonal(*pair), (b1, left))

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
        result = {name: self.whole(found.index, tile, exact, k, xp) for name, tile, exact in parts}
        for name, bound in (("value", "error"), ("tangent", "tangent_error")):
            if result[bound] is not None:
                result[bound] = stated(result[name], result[bound])
        return result

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
        half = round(len(rows) ** 0.5)
        if self.symmetric:
            whole = tiles.mirrored(whole, np.arange(len(rows)).reshape(half, half).T.reshape(-1), xp)
        if exact is not None:
            itself = xp.moveaxis(exact[:, rows], 1, 0).reshape(len(rows), -1)[:, : self.n1]
            itself = tiles.upper(itself, half) if self.symmetric else itself
            whole = xp.where(self.alike, itself[:, self.first(xp)][:, :, None], whole)
        result = xp.moveaxis(whole, 0, -1).reshape(self.n1, self.n2, *self.m.shape(k))
        return jnp.asarray(result if self.x1 else result[0, 0])

    def first(self, xp: Any) -> Any:
        """The first row of x1 that is equal to each, so that the kernel of equal ones is one number."""
        return xp.argmax(self.alike, axis=1) if self.alone else np.arange(self.n1)


def _fields(buffer: Buffer) -> tuple[Any, Any, Any, Any]:
    return buffer.value, buffer.tangent, buffer.error, buffer.tangent_error


def _stacked(buffers: list[Any]) -> Any:
    return jax.tree.map(lambda *a: np.stack([np.asarray(x) for x in a]), *buffers)


def checked(program: Program, m: Moments, sides: Any, result: dict[str, Any], *, slopes: bool) -> dict[str, Any]:
    """Kernels as they are; where some are NaN, the function whose expectation is known to no digit is named.

    **Raises:** `ProgramError` at its line.
    """
    if any(result[k] is not None and np.isnan(np.asarray(result[k])).any() for k in ("value", "tangent")):
        for side in sides:
            unsettled(program, m, side, slopes=slopes)
    return result


def finite(program: Program, result: dict[str, Any], *, drawn: bool = False) -> dict[str, Any]:
    """Kernels as they are; NaN and infinite ones are refused. `drawn`: nobody has looked whether functions are defined.

    **Raises:** `ProgramError` that says which it is.
    """
    for name in ("value", "tangent"):
        if result[name] is not None and not np.isfinite(np.asarray(result[name])).all():
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
