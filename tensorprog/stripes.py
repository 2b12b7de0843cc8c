"""Stripes: what one compiled call computes, the pairs of two panels of inputs, block after block.

A panel has a fixed number of inputs, so one compilation serves every N. Inside the call a loop goes over the blocks of
pairs that are wanted; how many there are is a number like any other. Blocks are as large as a cache allows, larger on
accelerators, small where pairs take integrals: pairs that nobody wants cost as much. The work on a large block is what
XLA spreads over the cores of a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.compiling import compiled
from tensorprog.functions import base
from tensorprog.interpret.buffers import Alone, Buffer
from tensorprog.interpret.equations import BatchEq, JointEq, PairEq
from tensorprog.interpret.system import Moments, Numbers, Stage, cross_stage, same_stage

Array = jax.Array
BYTES = {False: 4 * 2**20, True: 2**30}
"""Memory that a block's buffer should stay in: about a core's cache; on accelerators, what is there beside the rest."""
LARGEST = {False: 256, True: 2048}
"""The side of a block of pairs without integrals."""
COSTLY, JOINT, BY_PAIR = 32, 8, 4
"""The same where pairs take integrals: that share what is known of each input, over several Gaussians, each its own."""
RESULT = {False: 64 * 2**20, True: 2**30}
"""Memory for what a stripe returns."""


@dataclass(frozen=True)
class Asked:
    """What is asked for: tangents (the NTK), bounds on errors, tangents by parameter."""

    m: Moments | Stage
    tangent: bool
    error: bool
    split: bool


class Shape(NamedTuple):
    """Inputs a side of a block of pairs, and of a stripe."""

    block: int
    panel: int


def is_costly(m: Moments) -> bool:
    """Whether some expectation has no closed form."""
    return any(_is_integral(e) for e in m.systems[1].equations)


def _is_integral(e: Any) -> bool:
    if isinstance(e, PairEq):
        return not e.phi.curved and base.method(e.phi, e.psi) != base.CLOSED
    return isinstance(e, JointEq | BatchEq)


def _by_pair(e: Any) -> bool:
    """Whether each pair takes an integral of its own: over matrices, or of functions with numbers of the inputs."""
    numbers = [e.numbers] if isinstance(e, JointEq) else [e.phi_numbers, e.psi_numbers] if isinstance(e, PairEq) else []
    return isinstance(e, BatchEq) or (_is_integral(e) and any((n < 0).any() for n in numbers))


def accelerated() -> bool:
    """Whether arrays live where thousands of pairs a side are computed at once."""
    return jax.default_backend() != "cpu"


def shape(m: Moments) -> Shape:
    """This program's blocks and panels: powers of two, from the rows of its buffer and the cells that are kept."""
    large = accelerated()
    block = _largest(m, large)
    panel = block * (1 if large else 2 if block > COSTLY else 8)
    while panel > block and len(m.cross.keep) * panel**2 * 8 > RESULT[large]:
        panel //= 2
    return Shape(block, panel)


def at_once(m: Moments, own: Shape) -> int:
    """How many inputs of a panel are taken together for what is known of each by itself: all where that is cheap."""
    fits = m.same.rows * own.panel * 8 <= BYTES[accelerated()]
    return own.panel if fits and not is_costly(m) else own.block


def _largest(m: Moments, large: bool) -> int:
    equations = m.systems[1].equations
    if any(_by_pair(e) for e in equations):
        return BY_PAIR
    if any(isinstance(e, JointEq) for e in equations):
        return JOINT
    side = COSTLY if is_costly(m) else LARGEST[large]
    while side > BY_PAIR and m.cross.rows * side**2 * 8 > BYTES[large]:
        side //= 2
    return side


# ---- one block


def alone(asked: Asked, leaves: Any, x: Any, *, plain: bool = False) -> Alone:
    """What is known of each input by itself."""
    return same_stage(asked.m, leaves, x, slope=asked.tangent, error=asked.error, plain=plain)


def pairs(
    asked: Asked, leaves: Any, weights: Array, x1: Any, x2: Any, left: Alone, right: Alone, valid: Array | None,
    *, matched: bool = False, plain: bool = False,
) -> Buffer:  # fmt: skip
    """A block of pairs: the kept crossing cells; with `split`, tangents (P, cells, n1, n2) by parameter."""
    run = partial(
        cross_stage, asked.m, leaves, x1=x1, x2=x2, left=left, right=right, valid=valid, error=asked.error,
        matched=matched, plain=plain,
    )  # fmt: skip
    if not asked.split:
        return run(weights, tangent=asked.tangent)
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


# ---- one compiled call


@compiled("asked", "size", "diagonal")
def panel(
    asked: Asked, size: int, leaves: Any, weights: Array, x: Any, count: Any, *, diagonal: bool
) -> tuple[Alone, Buffer | None]:
    """What is known of each input of a panel, and the pairs of each with itself, in `count` blocks of a size; inputs
    beyond those are 0."""

    def block(k: Any) -> tuple[Alone, Buffer | None]:
        own = _cut(x, (k,), size, (0,))
        known = alone(asked, leaves, own, plain=not asked.split)
        itself = (own, own, known, known, None)
        return known, pairs(asked, leaves, weights, *itself, matched=True, plain=not asked.split) if diagonal else None

    whole = x[0].shape[0] if x else 1
    # Of what is known of inputs they are the second axis, of pairs the last.
    axes = lambda found: (jax.tree.map(lambda a: (1,), found[0]), jax.tree.map(lambda a: (a.ndim - 1,), found[1]))
    return _looped(
        lambda places: block(*places), np.arange(whole // size, dtype=np.int32)[:, None], count, size, whole, axes
    )


@compiled("asked")
def sided(asked: Asked, numbers: Numbers, known: Alone) -> Alone:
    """The same inputs with the sides of other functions."""
    found = asked.m.tables.sides(asked.m.same, known.value, numbers.monomials, numbers.arrays, slope=asked.tangent)
    return Alone(known.value, known.error, found)


@compiled("asked", "size")
def stripe(
    asked: Asked, size: int, leaves: Any, weights: Array, x1: Any, x2: Any, left: Alone, right: Alone,
    valid: Array | None, places: Array, count: Any,
) -> Buffer:  # fmt: skip
    """The pairs of two panels, (…, panel, panel), in the first `count` blocks at `places`; elsewhere 0."""

    def block(place: Any) -> Buffer:
        rows, columns = ((_cut(x, (k,), size, (0,)), _cut(known, (k,), size, (1,))) for x, known, k in sides(place))
        mask = _cut(valid, tuple(place), size, (0, 1))
        return pairs(asked, leaves, weights, rows[0], columns[0], rows[1], columns[1], mask, plain=not asked.split)

    sides = lambda place: zip((x1, x2), (left, right), place, strict=True)
    whole = x1[0].shape[0] if x1 else 1
    axes = lambda found: jax.tree.map(lambda a: (a.ndim - 2, a.ndim - 1), found)
    return _looped(block, places, count, size, whole, axes)


def _cut(tree: Any, place: tuple[Any, ...], size: int, axes: tuple[int, ...]) -> Any:
    """A block of arrays along some axes; arrays of one block as they are."""

    def cut(a: Array) -> Array:
        for k, axis in zip(place, axes, strict=True):
            a = a if a.shape[axis] == size else jax.lax.dynamic_slice_in_dim(a, k * size, size, axis)
        return a

    return jax.tree.map(cut, tree)


def _looped(
    block: Callable[[Any], Any], places: Any, count: Any, size: int, whole: int, axes: Callable[[Any], Any]
) -> Any:
    """Blocks at the first `count` places, each where it belongs in arrays that are `whole` along its axes."""
    if whole == size:
        return block(places[0])
    like = jax.eval_shape(block, jnp.asarray(places)[0])
    shapes, tree = jax.tree.flatten(like)
    along = tree.flatten_up_to(axes(like))
    longer = lambda a, own: [whole if axis in own else n for axis, n in enumerate(a.shape)]
    start = [jnp.zeros(longer(a, own), a.dtype) for a, own in zip(shapes, along, strict=True)]

    def put(into: Array, part: Array, own: tuple[int, ...], place: Any) -> Array:
        corner = [place[own.index(axis)] * size if axis in own else np.int32(0) for axis in range(part.ndim)]
        return jax.lax.dynamic_update_slice(into, part, corner)

    def step(k: Any, found: list[Array]) -> list[Array]:
        place = jnp.asarray(places)[k]
        parts = jax.tree.leaves(block(place))
        return [put(*own, place) for own in zip(found, parts, along, strict=True)]

    return tree.unflatten(jax.lax.fori_loop(0, count, step, start))
