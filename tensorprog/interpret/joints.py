"""Rules of expectations of functions of several dependent Gaussians, their tangents and the bounds on both."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.crossing import crossing
from tensorprog.functions.joint import Onto, Partial
from tensorprog.functions.joint import joint as joint_expectation
from tensorprog.interpret.buffers import Array, Buffer, Context, Result
from tensorprog.interpret.integrals import both_numbers, over_equations
from tensorprog.interpret.plan import Group
from tensorprog.loops import mapped


def joint(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, left, right, left_slots, right_slots, count, where, _ = group.form  # type: ignore[misc]
    cells = arrays["joint"]
    slots = (left_slots, right_slots)

    def entries(of: str) -> Any:
        """The covariances, or their errors, of the Gaussians: at each i, j a row of equations."""

        def entry(i: int, j: int) -> Array:
            place = where[i][j]
            if context.left is None or context.right is None or place == "own":
                return getattr(buffer, of)[cells[:, i, j]]
            known = context.left if place == "left" else context.right
            return context.spread(getattr(known, of)[cells[:, i, j]], place)

        return entry

    bounds = buffer.error is not None
    if right is not None and count > 1 and (count > 2 or not set(left_slots) & set(right_slots)):
        expect, collect = partial(_across, slots, count), partial(_blocks, slots)
        # Of each equation, so it goes the way of the covariances, whatever maps the call.
        sides = _itself(context, cells, slots)
    else:
        shape = (cells.shape[0], *buffer.value.shape[1:])
        expect, collect, sides = _together, partial(_whole, count, shape), ()
    covariances = collect(entries("value"))
    if context.valid is not None and isinstance(covariances, tuple):
        covariances = (*covariances[:2], jnp.where(context.valid[..., None, None], covariances[2], 0.0))
    both, others = both_numbers(group, arrays, context, buffer)
    numbers = sum(both, ())
    deltas = None if buffer.error is None else _deltas(covariances, collect(entries("error")))

    def integral(f: Any, g: Any) -> tuple[Array, Array]:
        """The expectation and its error, that of the covariances and numbers included."""
        value, error = over_equations(group, partial(expect, bounds, f, g), (covariances, *sides), numbers)
        call = partial(expect, False, f, g)
        if deltas is not None:
            for moved in others:
                error = error + jnp.abs(over_equations(group, call, (covariances, *sides), sum(moved, ()))[0] - value)

            def change(delta: Any) -> Array:
                moved = jax.tree.map(jnp.add, covariances, delta)
                return jnp.abs(over_equations(group, call, (moved, *sides), numbers)[0] - value)

            error = error + mapped(change, deltas).sum(0)  # a loop, compiled once
        return value, error

    value, error = integral(left, right)
    if buffer.tangent is None:
        return value, None, error, None
    tangent = tangent_error = jnp.zeros_like(value)
    for i in left_slots:
        for j in right_slots:
            assert right is not None, "a one-sided expectation has no tangent"
            slope, own = integral(Partial(left, i), Partial(right, j))
            moving = buffer.tangent[cells[:, i, j]]
            tangent = tangent + slope * moving
            tangent_error = tangent_error + own * jnp.abs(moving)
            if buffer.tangent_error is not None:
                tangent_error = tangent_error + jnp.abs(slope) * buffer.tangent_error[cells[:, i, j]]
    return value, tangent, error, tangent_error


def _whole(count: int, shape: tuple[int, ...], entry: Any) -> Array:
    """All Gaussians' covariances, (*shape, count, count)."""
    table = [[jnp.broadcast_to(entry(i, j), shape) for j in range(count)] for i in range(count)]
    return jnp.stack([jnp.stack(row, -1) for row in table], -2)


def _blocks(slots: tuple[tuple[int, ...], tuple[int, ...]], entry: Any) -> tuple[Array, Array, Array]:
    """Covariances of each side and between them, (…, 2, 2) each, with zeros where a side has one Gaussian."""

    def block(rows: tuple[int, ...], columns: tuple[int, ...]) -> Array:
        zero = jnp.zeros_like(entry(rows[0], columns[0]))
        padded = [[entry(i, j) for j in columns] + [zero] * (2 - len(columns)) for i in rows]
        padded += [[zero, zero]] * (2 - len(rows))
        return jnp.stack([jnp.stack(row, -1) for row in padded], -2)

    left, right = slots
    return block(left, left), block(right, right), block(left, right)


def _itself(context: Context, cells: Any, slots: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Array, ...]:
    """Which equations have the same Gaussians on both sides, (equations, 1); nothing where none can."""
    if not context.matched or len(slots[0]) != len(slots[1]):
        return ()
    ends = [cells[:, own[0] : own[-1] + 1, own[0] : own[-1] + 1] for own in slots]
    return (jnp.asarray(ends[0] == ends[1]).all((1, 2))[:, None],)


def _together(bounds: bool, f: Any, g: Any, cov: Array, numbers: Any) -> tuple[Array, Array]:
    """The rule for one side, or for two that read the same Gaussians."""
    return joint_expectation(f, g, cov, numbers, bounds=bounds)


def _across(
    slots: tuple[tuple[int, ...], tuple[int, ...]], count: int, bounds: bool, f: Any, g: Any, covs: Any, *rest: Any
) -> Any:
    """The rule for two sides, which may share Gaussians; `rest` may say `_itself` first."""
    *itself, numbers = rest
    found = crossing((f, g), slots, count, covs, numbers, bounds=bounds)
    if not itself:
        return found
    # The same Gaussians on both sides: one integral over them.
    size = len(slots[0])
    onto = Onto(f, slots[0], count), Onto(g, slots[1], count)
    alike = joint_expectation(*onto, covs[0][..., :size, :size], numbers, bounds=bounds)
    return tuple(jnp.where(itself[0], a, b) for a, b in zip(alike, found, strict=True))


def _deltas(covariances: Any, errors: Any) -> Any:
    """What moves one covariance by its error, stacked: variances up, covariances towards 0."""
    shapes = [a.shape[-2:] for a in jax.tree.leaves(covariances)]
    masks = []
    for which, (rows, columns) in enumerate(shapes):
        between = which == 2  # the block between two sides has no symmetry
        for i in range(rows):
            for j in range(0 if between else i, columns):
                masks.append([np.zeros(shape) for shape in shapes])
                masks[-1][which][i, j] = 1.0
                if not between:
                    masks[-1][which][j, i] = 1.0

    def moved(value: Array, error: Array, mask: np.ndarray, between: bool) -> Array:
        toward = -jnp.sign(value) * jnp.minimum(error, jnp.abs(value))
        own = toward if between else jnp.where(np.eye(value.shape[-1], dtype=bool), error, toward)
        return own * mask.reshape(len(mask), *(1,) * (value.ndim - 2), *mask.shape[1:])

    values, structure = jax.tree.flatten(covariances)
    stacked = [np.stack(own) for own in zip(*masks, strict=True)]
    parts = zip(values, jax.tree.leaves(errors), stacked, strict=True)
    return jax.tree.unflatten(structure, [moved(v, e, m, which == 2) for which, (v, e, m) in enumerate(parts)])
