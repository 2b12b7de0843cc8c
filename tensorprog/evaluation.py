"""Moments evaluated for all pairs of inputs: tiles on the host, or inside a user's transformation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import tiles
from tensorprog.accuracy import warn_unsettled
from tensorprog.errors import ProgramError, bad_argument, problem
from tensorprog.existence import check_expectations, check_functions
from tensorprog.functions import base
from tensorprog.functions.breaks import Jumps, refuse_jumps
from tensorprog.functions.joint import Partial, Plain
from tensorprog.interpret.buffers import Alone, Buffer
from tensorprog.interpret.composite import Vectorial, remap
from tensorprog.interpret.equations import BatchEq, JointEq, PairEq
from tensorprog.interpret.system import Moments, Targets, cross_stage, joint_equations, moments, same_stage
from tensorprog.loops import mapped
from tensorprog.program import Program, is_concrete
from tensorprog.show import Printer

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
    with _jumps_at_their_line(program, m), _mapped_without_check(x1, x2):
        return _evaluated(program, m, x1, x2, tangent, error, weights, split, progress)


@contextmanager
def _jumps_at_their_line(program: Program, m: Moments) -> Iterator[None]:
    """A derivative rule refuses what jumps, and knows no lines: the program's are looked through for the function."""
    try:
        yield
    except Jumps as refused:
        position = _jumping(m)
        if position is None:
            raise
        text = Printer(program.structure, [None] * len(program.leaves)).expression(position, top=True)
        raise problem(program.structure.line(position), text, refused.why, refused.remedy) from None


@contextmanager
def _mapped_without_check(*inputs: Any) -> Iterator[None]:
    """Inside a `jax.shard_map` that checks over which axes values vary: loops that start from constants do not say."""
    try:
        yield
    except TypeError as error:
        kinds = [jax.typeof(a).sharding.mesh.axis_types for a in jax.tree.leaves(inputs)]
        mapped = any(jax.sharding.AxisType.Manual in kind for kind in kinds)
        if not mapped or not any(word in str(error) for word in ("varying", "manual axis types")):
            raise
        raise bad_argument(
            "jax.shard_map", "series and quadratures loop until they are done, from values that vary over no axis",
            "write jax.shard_map(…, check_vma=False)",
        ) from error  # fmt: skip


def _jumping(m: Moments) -> int | None:
    """The first Nonlin of several Gaussians that jumps, or else one whose slope does."""
    kinked = None
    for owners, e in joint_equations(m.demand):
        _, left, right, *_ = owners[int(e.out[0])]
        for fn, slots, owner in ((e.left, e.left_slots, left), (e.right, e.right_slots, right)):
            if fn is None:
                continue
            alone = Vectorial(remap(fn.expr, {slot: place for place, slot in enumerate(slots)}, 0))
            given = (tuple(jnp.ones(e.numbers.shape[1])), ())
            if _refused(alone, len(slots), given):
                return owner
            if kinked is None and any(_refused(Partial(alone, i), len(slots), given) for i in range(len(slots))):
                kinked = owner
    return kinked


def _refused(fn: Any, size: int, given: Any) -> bool:
    try:
        with jax.ensure_compile_time_eval():
            refuse_jumps(Plain(fn), jnp.eye(size), given)
    except Jumps:
        return True
    return False


def _evaluated(
    program: Program, m: Moments, x1: Any, x2: Any, tangent: bool, error: bool, weights: Any, split: bool,
    progress: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    weights = jnp.zeros(max(1, len(program.structure.parameters))) if weights is None else weights
    leaves = tuple(program.leaves)
    concrete = all(is_concrete(jnp.asarray(a)) for a in jax.tree.leaves((leaves, weights, x1, x2)))
    grid = _Grid(m, leaves, weights, x1, x2, tangent, error, split)
    if concrete:
        check_functions(program, m, slopes=tangent)
        found = grid.on_host(progress)
        sides = (found.left,) if x2 is None else (found.left, found.right)
        for side in sides:
            check_expectations(program, m, side, slopes=tangent)
        if not error:
            warn_unsettled(program, m, sides, slopes=tangent)
        return [finite(program, r) for r in grid.targets(found, np)]
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


def finite(program: Program, result: dict[str, Any]) -> dict[str, Any]:
    """Kernels as they are; NaN and infinite ones are refused.

    **Raises:** `ProgramError` that says which it is.
    """
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
