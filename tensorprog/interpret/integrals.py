"""Rules of expectations: functions of one Gaussian a side, and of two, their tangents and the bounds on both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.functions import base
from tensorprog.functions.base import Elementwise
from tensorprog.functions.crossing import crossing
from tensorprog.functions.joint import Onto, Partial
from tensorprog.functions.joint import joint as joint_expectation
from tensorprog.interpret.buffers import Array, Buffer, Context, Result, one_input
from tensorprog.interpret.plan import Group
from tensorprog.loops import mapped


def _numbers(
    group: Group, arrays: dict[str, Any], name: str, context: Context, buffer: Buffer, side: str
) -> tuple[Array, ...]:
    """Numbers of a group's functions: 0-d where the whole group shares them, (m,) where equations have their own,
    (m, *pairs) where they are scalars of the input."""
    ids = arrays[name]
    own: tuple[bool, ...] = group.form[-1]  # type: ignore[index]
    if name == "psi_numbers":
        own = own[len(own) - ids.shape[-1] :]
    found = []
    for k in range(ids.shape[-1]):
        if own[k]:
            found.append(one_input(context, buffer, ids[..., k : k + 1], side)[0][:, 0])
        else:
            found.append(context.monomials[ids[0, k] if group.uniform else ids[..., k]])
    return tuple(found)


def _mapped(group: Group, call: Any, arguments: Sequence[Array], *more: Any) -> Any:
    """call(*arguments, *more), mapped over the group's equations where they have numbers of their own, over all of its
    equations and pairs where inputs have."""
    if group.uniform:
        return call(*arguments, *more)
    if not any(group.form[-1]):  # type: ignore[index]
        return jax.vmap(call)(*arguments, *more)
    numbers = [n for own in more for n in own]
    rank = max(n.ndim for n in numbers)  # scalars of the inputs have all axes
    lead = jnp.broadcast_shapes(*(jnp.shape(a)[:rank] for a in jax.tree.leaves((arguments, numbers))))

    def flat(x: Array) -> Array:
        x = x.reshape(*x.shape, *(1,) * (rank - x.ndim))
        return jnp.broadcast_to(x, (*lead, *x.shape[rank:])).reshape(-1, *x.shape[rank:])

    items = jax.tree.map(flat, (*arguments, *more))
    # Series and quadrature choose by values, which only a loop can; closed forms are vectorised.
    functions = [f for f in group.form[1:3] if not isinstance(f, tuple)]  # type: ignore[index]
    closed = all(isinstance(f, Elementwise) and f.form is not None for f in functions)
    found = jax.vmap(call)(*items) if closed else mapped(lambda item: call(*item), items)
    return jax.tree.map(lambda x: x.reshape(lead), found)


def pair(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, phi, psi, _ = group.form  # type: ignore[misc]
    cov = buffer.value[arrays["cov"]]
    given = None
    if context.left is None or context.right is None:
        a, b = buffer.value[arrays["left"]], buffer.value[arrays["right"]]
    else:
        a = context.spread(context.left.value[arrays["left"]], "left")
        b = context.spread(context.right.value[arrays["right"]], "right")
        if group.tables is not None:
            given = (
                _known(context, "left", context.left.sides[group.tables[0]], arrays["left_line"]),
                _known(context, "right", context.right.sides[group.tables[1]], arrays["right_line"]),
            )
        if context.valid is not None:
            cov = jnp.where(context.valid, cov, 0.0)
    itself = jnp.asarray(arrays["left"] == arrays["right"])[:, None] if context.matched else None
    numbers = _both_numbers(group, arrays, context, buffer)
    roads = partial(base.expect_slope, phi, psi), partial(base.expect_error, phi, psi)
    # What one Gaussian is with itself is done below; here it is made harmless.
    apart = cov if itself is None else jnp.where(itself, 0.0, cov)
    moved = [] if buffer.error is None else _perturbed(context, buffer, arrays, (a, b, apart))
    result = _expectation(group, roads, [(a, b, apart), *moved], numbers, buffer, arrays["cov"], given)
    if itself is None:
        return result
    roads = partial(base.expect_one_slope, phi, psi), partial(base.expect_one_error, phi, psi)
    moved = [(a + context.left.error[arrays["left"]],)] if context.left and context.left.error is not None else []
    alike = _expectation(group, roads, [(a,), *moved], numbers, buffer, arrays["cov"])
    return tuple(None if x is None else jnp.where(itself, x, y) for x, y in zip(alike, result, strict=True))  # type: ignore[return-value]


def _both_numbers(
    group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    phi = _numbers(group, arrays, "phi_numbers", context, buffer, "left")
    return phi, _numbers(group, arrays, "psi_numbers", context, buffer, "right")


def _known(context: Context, side: str, table: Any, lines: Any) -> Any:
    """Lines of a table of sides, spread over pairs."""
    return jax.tree.map(lambda x: context.spread(x[lines], side), table)


def one(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, phi, psi, _ = group.form  # type: ignore[misc]
    var = buffer.value[arrays["var"]]
    numbers = _both_numbers(group, arrays, context, buffer)
    moved = [] if buffer.error is None else [(var + buffer.error[arrays["var"]],)]
    roads = partial(base.expect_one_slope, phi, psi), partial(base.expect_one_error, phi, psi)
    return _expectation(group, roads, [(var,), *moved], numbers, buffer, arrays["var"])


def mean(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, phi, _ = group.form  # type: ignore[misc]
    var = buffer.value[arrays["var"]]
    numbers = _numbers(group, arrays, "phi_numbers", context, buffer, "left")
    if buffer.error is None:
        return _mapped(group, partial(base.mean, phi), (var,), numbers), None, None, None
    value, own = _mapped(group, partial(base.mean_error, phi), (var,), numbers)
    moved = _mapped(group, partial(base.mean, phi), (var + buffer.error[arrays["var"]],), numbers)
    return value, None, own + jnp.abs(moved - value), None


def _perturbed(
    context: Context, buffer: Buffer, arrays: dict[str, Any], arguments: tuple[Array, Array, Array]
) -> list[tuple[Array, ...]]:
    """Arguments moved by their own errors, one at a time: variances up, the covariance towards 0."""
    assert buffer.error is not None, "errors are being propagated"
    a, b, cov = arguments
    by = jnp.minimum(buffer.error[arrays["cov"]], jnp.abs(cov))
    if context.left is not None and context.right is not None:
        assert context.left.error is not None and context.right.error is not None, "errors come with errors"
        da = context.spread(context.left.error[arrays["left"]], "left")
        db = context.spread(context.right.error[arrays["right"]], "right")
    else:
        da, db = buffer.error[arrays["left"]], buffer.error[arrays["right"]]
    return [(a, b, cov - jnp.sign(cov) * by), (a + da, b, cov), (a, b + db, cov)]


def _expectation(
    group: Group,
    roads: tuple[Any, Any],
    arguments: Sequence[tuple[Array, ...]],
    numbers: Sequence[tuple[Array, ...]],
    buffer: Buffer,
    cell: Any,
    given: Any = None,
) -> Result:
    """A pair expectation, its tangent E φ′ψ′ · (tangent of the covariance), and bounds on both.

    `roads` give value and slope together, and the value alone; `arguments` are followed by moved ones, whose difference
    in the result is what the arguments' own errors do.
    """
    both, alone = roads
    need = buffer.error is not None
    known = () if given is None else (given,)
    if buffer.tangent is None:
        value, error = _mapped(group, alone, arguments[0], *numbers, *known)
        for other in arguments[1:]:
            error = error + jnp.abs(_mapped(group, alone, other, *numbers)[0] - value)
        return value, None, error if need else None, None

    def call(*everything: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (value, bound), (slope, slope_bound) = both(*everything)
        return (value, slope), (bound(), slope_bound()) if need else (value, slope)

    (value, slope), (error, slope_error) = _mapped(group, call, arguments[0], *numbers, *known)
    tangent = buffer.tangent[cell]
    if buffer.tangent_error is None:
        return value, slope * tangent, None, None
    for other in arguments[1:]:
        (moved, moved_slope), _ = _mapped(group, call, other, *numbers)
        error, slope_error = error + jnp.abs(moved - value), slope_error + jnp.abs(moved_slope - slope)
    tangent_error = jnp.abs(slope) * buffer.tangent_error[cell] + slope_error * jnp.abs(tangent)
    return value, slope * tangent, error, tangent_error


def joint(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, left, right, left_slots, right_slots, count, where, _ = group.form  # type: ignore[misc]
    cells = arrays["joint"]

    def entry(i: int, j: int) -> Array:
        place = where[i][j]
        if context.left is None or context.right is None or place == "own":
            return buffer.value[cells[:, i, j]]
        known = context.left if place == "left" else context.right
        return context.spread(known.value[cells[:, i, j]], place)

    numbers = sum(_both_numbers(group, arrays, context, buffer), ())
    slots = (left_slots, right_slots)
    if right is not None and not set(left_slots) & set(right_slots):
        # Two sides: a series in the canonical correlations between them.
        def block(rows: tuple[int, ...], columns: tuple[int, ...]) -> Array:
            zero = jnp.zeros_like(entry(rows[0], columns[0]))
            padded = [[entry(i, j) for j in columns] + [zero] * (2 - len(columns)) for i in rows]
            padded += [[zero, zero]] * (2 - len(rows))
            return jnp.stack([jnp.stack(row, -1) for row in padded], -2)

        covs = (block(left_slots, left_slots), block(right_slots, right_slots), block(left_slots, right_slots))
        if context.valid is not None:
            covs = (*covs[:2], jnp.where(context.valid[..., None, None], covs[2], 0.0))
        itself = None
        if context.matched and len(left_slots) == len(right_slots):
            ends = [cells[:, slots_[0] : slots_[-1] + 1, slots_[0] : slots_[-1] + 1] for slots_ in slots]
            itself = jnp.asarray(ends[0] == ends[1]).all((1, 2))[:, None]

        def across(f: Any, g: Any, covs: Any, numbers: Any) -> Any:
            found = crossing((f, g), slots, count, covs, numbers)
            if itself is None:
                return found
            # The same Gaussians on both sides: one integral over them.
            size = len(left_slots)
            alike = joint_expectation(
                Onto(f, left_slots, count), Onto(g, right_slots, count), covs[0][..., :size, :size], numbers
            )
            return tuple(jnp.where(itself, a, b) for a, b in zip(alike, found, strict=True))

        expect: Any = across
        arguments: Any = covs
    else:
        shape = (cells.shape[0], *buffer.value.shape[1:])
        table = [[jnp.broadcast_to(entry(i, j), shape) for j in range(count)] for i in range(count)]
        expect = joint_expectation
        arguments = jnp.stack([jnp.stack(row, -1) for row in table], -2)
    value, error = _mapped(group, partial(expect, left, right), (arguments,), numbers)
    if buffer.tangent is None:
        return value, None, error, None
    tangent = tangent_error = jnp.zeros_like(value)
    for i in left_slots:
        for j in right_slots:
            assert right is not None, "a one-sided expectation has no tangent"
            slope, own = _mapped(group, partial(expect, Partial(left, i), Partial(right, j)), (arguments,), numbers)
            moving = buffer.tangent[cells[:, i, j]]
            tangent = tangent + slope * moving
            tangent_error = tangent_error + own * jnp.abs(moving)
            if buffer.tangent_error is not None:
                tangent_error = tangent_error + jnp.abs(slope) * buffer.tangent_error[cells[:, i, j]]
    return value, tangent, error, tangent_error
