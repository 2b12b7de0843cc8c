"""Evaluation: the planned equations as JAX arrays.

The buffer is (rows, *pairs), one row a cell. The kernel's directional derivative (the NTK) is a second buffer that goes
through the same equations: linear equations add the parameters' own terms, an expectation multiplies by E ∂F ∂F̄, which
is again an expectation. Same-input quantities have no tangent (docs/theory.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions import base
from tensorprog.functions.base import Elementwise
from tensorprog.functions.crossing import crossing
from tensorprog.functions.joint import Onto, Partial, joint
from tensorprog.interpret.plan import Group, Plan, Run
from tensorprog.loops import mapped, whole

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alone:
    """What is known of each input by itself: same-input cells and bounds, (cells, n), and sides of expectations."""

    value: Array
    error: Array | None
    sides: list[Any]


@dataclass(frozen=True)
class Context:
    """What the equations of one evaluation read besides the buffer; `left` and `right` in the crossing system only.

    `matched` takes each input with itself, (n,) in place of all pairs (n1, n2); `valid` marks pairs that are wanted.
    """

    inputs: tuple[tuple[Array, ...], tuple[Array, ...]]
    monomials: Array
    seeds: Array | None = None
    left: Alone | None = None
    right: Alone | None = None
    valid: Array | None = None
    matched: bool = False

    def spread(self, array: Array, side: str) -> Array:
        """Same-input quantities (m, n, …) of one side against pairs (m, n1, n2, …), or matched ones (m, n, …)."""
        if self.matched:
            return array
        return array[:, :, None] if side == "left" else array[:, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Buffer:
    """Values of cells, their tangents (the NTK's), and bounds on the errors of both; None where not asked for."""

    value: Array
    tangent: Array | None
    error: Array | None
    tangent_error: Array | None


def evaluate(
    plan: Plan, context: Context, batch: tuple[int, ...], *, tangent: bool, error: bool, deltas: Array | None = None
) -> Buffer:
    """Run the plan; the result holds the kept cells' rows. `deltas` (cells, *batch) are added to tangents by cell."""
    dtype = context.monomials.dtype
    zeros = jnp.zeros((plan.rows, *batch), dtype)
    buffer = Buffer(
        zeros.at[1].set(1.0), zeros if tangent else None, zeros if error else None, zeros if error and tangent else None
    )
    for step in plan.steps:
        if isinstance(step, Run):
            buffer = _loop(step, context, buffer, deltas)
        else:
            for group in step:
                buffer = _group(group, group.arrays, context, buffer, deltas)
    rows = plan.row_of[plan.keep].astype(np.int32)
    return jax.tree.map(lambda a: a[rows], buffer)


def _loop(run: Run, context: Context, buffer: Buffer, deltas: Array | None) -> Buffer:
    stacked = [[{k: jnp.asarray(a) for k, a in g.arrays.items()} for g in level] for level in run.levels]

    def body(carry: Buffer, arrays: Any) -> tuple[Buffer, None]:
        for level, level_arrays in zip(run.levels, arrays, strict=True):
            for group, group_arrays in zip(level, level_arrays, strict=True):
                carry = _group(group, group_arrays, context, carry, deltas, looped=True)
        return carry, None

    return jax.lax.scan(body, buffer, stacked)[0]


def _group(
    group: Group,
    arrays: dict[str, Any],
    context: Context,
    buffer: Buffer,
    deltas: Array | None,
    *,
    looped: bool = False,
) -> Buffer:
    """One array equation: new values of the rows `out`."""
    assert isinstance(group.form, tuple), "a form is a tuple"
    rule = _RULES[group.form[0]]
    out = arrays["out"]
    shape = (out.shape[0], *buffer.value.shape[1:])

    like = jax.tree.map(lambda old: jax.ShapeDtypeStruct(shape, old.dtype), buffer)

    def compute(buffer: Buffer) -> Buffer:
        value, tangent, error, tangent_error = rule(group, arrays, context, buffer)
        # A rule may give less than is asked for (zeros then), or more (bounds that nobody carries on).
        found = (value, tangent, error, tangent_error)
        asked = (like.value, like.tangent, like.error, like.tangent_error)
        full = lambda old, new: jnp.zeros(shape, old.dtype) if new is None else jnp.broadcast_to(new, shape)
        return Buffer(*(None if a is None else full(a, f) for a, f in zip(asked, found, strict=True)))  # type: ignore[arg-type]

    integrated = looped and group.form[0] in _INTEGRATED
    new = whole(out[0] >= 0, compute, buffer, like) if integrated else compute(buffer)
    if deltas is not None and new.tangent is not None:
        new = replace(new, tangent=new.tangent + deltas[arrays["ids"]])
    return jax.tree.map(lambda old, rows: old.at[out].set(rows), buffer, new)


Result = tuple[Array, Array | None, Array | None, Array | None]


def _spread(values: Array, like: Array) -> Array:
    """(m, K) coefficients against (m, K, *batch) values."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


def _weighted(coefs: Array, values: Array) -> Array:
    """Σ_k coef_k · value_k: (m, K) or (m, K, *batch) with (m, K, *batch)."""
    if coefs.ndim == 2 and values.shape[1] > 8:
        return jnp.einsum("mk,mk...->m...", coefs, values, precision=HIGHEST)
    return (_spread(coefs, values) * values).sum(1)


def _linear(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    cells = arrays["cells"]
    coefs = context.monomials[arrays["coefs"]]
    return _sum(cells, coefs, arrays["seeds"], context, buffer)


def _scaled(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    """A sum whose coefficients are scalars of the input on one side."""
    side = group.form[1]  # type: ignore[index]
    value, error = _own(context, buffer, arrays["factors"], side)
    coefs = _spread(context.monomials[arrays["coefs"]], value)
    moved = None if error is None else jnp.abs(coefs) * error
    return _sum(arrays["cells"], coefs * value, arrays["seeds"], context, buffer, moved)


def _own(context: Context, buffer: Buffer, rows: Any, side: str) -> tuple[Array, Array | None]:
    """Same-input cells (m, K) and their errors, against this system's pairs."""
    known = context.left if side == "left" else context.right
    if known is None:
        return buffer.value[rows], None if buffer.error is None else buffer.error[rows]

    def spread(values: Array) -> Array:
        found = values[rows]  # (m, K, n)
        if context.matched:
            return found
        return found[..., :, None] if side == "left" else found[..., None, :]

    return spread(known.value), None if known.error is None else spread(known.error)


def _sum(cells: Any, coefs: Array, seeds: Any, context: Context, buffer: Buffer, moved: Array | None = None) -> Result:
    """Σ_k coef_k · cell_k with coefficients (m, K) or (m, K, *pairs); `moved` bounds the coefficients' own errors."""
    values = buffer.value[cells]
    value = _weighted(coefs, values)
    tangent = error = tangent_error = None
    epsilon = 4 * jnp.finfo(value.dtype).eps
    if buffer.error is not None:
        error = _weighted(jnp.abs(coefs), buffer.error[cells]) + epsilon * _weighted(jnp.abs(coefs), jnp.abs(values))
        if moved is not None:
            error = error + _weighted(moved, jnp.abs(values))
    if buffer.tangent is not None and context.seeds is not None:
        own = context.seeds[seeds]
        tangents = buffer.tangent[cells]
        tangent = _weighted(coefs, tangents) + _weighted(own, values)
        if buffer.tangent_error is not None and buffer.error is not None:
            sizes = _weighted(jnp.abs(coefs), jnp.abs(tangents)) + _weighted(jnp.abs(own), jnp.abs(values))
            tangent_error = _weighted(jnp.abs(coefs), buffer.tangent_error[cells])
            tangent_error += _weighted(jnp.abs(own), buffer.error[cells]) + epsilon * sizes
            if moved is not None:
                tangent_error = tangent_error + _weighted(moved, jnp.abs(tangents))
    return value, tangent, error, tangent_error


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
            found.append(_own(context, buffer, ids[..., k : k + 1], side)[0][:, 0])
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
    closed = all(isinstance(f, Elementwise) and f.form is not None for f in group.form[1:3])  # type: ignore[index]
    found = jax.vmap(call)(*items) if closed else mapped(lambda item: call(*item), items)
    return jax.tree.map(lambda x: x.reshape(lead), found)


def _pair(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
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


def _one(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, phi, psi, _ = group.form  # type: ignore[misc]
    var = buffer.value[arrays["var"]]
    numbers = _both_numbers(group, arrays, context, buffer)
    moved = [] if buffer.error is None else [(var + buffer.error[arrays["var"]],)]
    roads = partial(base.expect_one_slope, phi, psi), partial(base.expect_one_error, phi, psi)
    return _expectation(group, roads, [(var,), *moved], numbers, buffer, arrays["var"])


def _mean(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
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


def _product(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    cells = arrays["cells"]
    count = cells.shape[1]
    values = buffer.value[cells]
    value = values.prod(1)
    rest = [jnp.stack([values[:, j] for j in range(count) if j != k], 1).prod(1) for k in range(count)]

    def derivative(of: Array | None) -> Array | None:
        return None if of is None else sum((of[cells[:, k]] * rest[k] for k in range(count)), jnp.zeros_like(value))

    error = tangent_error = None
    if buffer.error is not None:
        error = sum((buffer.error[cells[:, k]] * jnp.abs(rest[k]) for k in range(count)), jnp.zeros_like(value))
        if buffer.tangent_error is not None and buffer.tangent is not None:
            relative = error / jnp.maximum(jnp.abs(value), jnp.finfo(value.dtype).tiny)
            sizes = [buffer.tangent_error[cells[:, k]] * jnp.abs(rest[k]) for k in range(count)]
            moving = [jnp.abs(buffer.tangent[cells[:, k]] * rest[k]) * relative for k in range(count)]
            tangent_error = sum([*sizes, *moving], jnp.zeros_like(value))
    return value, derivative(buffer.tangent), error, tangent_error


def _import(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    side = group.form[1]  # type: ignore[index]
    known = context.left if side == "left" else context.right
    assert known is not None, "imports belong to the crossing system"
    shape = (arrays["source"].shape[0], *buffer.value.shape[1:])
    value = jnp.broadcast_to(context.spread(known.value[arrays["source"]], side), shape)
    if buffer.error is None or known.error is None:
        return value, None, None, None
    return value, None, jnp.broadcast_to(context.spread(known.error[arrays["source"]], side), shape), None


def _leaf(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, i, j = group.form  # type: ignore[misc]

    def sites(side: int, index: int, name: str) -> Array:
        x = context.inputs[side][index]
        return x.reshape(x.shape[0], -1, x.shape[-1])[:, arrays[name]]

    left, right = sites(0, i, "left_sites"), sites(1, j, "right_sites")
    form = "amd,bmd->mab" if context.left is not None and not context.matched else "amd,amd->ma"
    scale = left.shape[-1]
    value = jnp.einsum(form, left, right, precision=HIGHEST) / scale
    error = None
    if buffer.error is not None:
        sizes = jnp.einsum(form, jnp.abs(left), jnp.abs(right), precision=HIGHEST) / scale
        error = 4 * jnp.finfo(value.dtype).eps * sizes
    return value, None, error, None


def _joint(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
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
            alike = joint(Onto(f, left_slots, count), Onto(g, right_slots, count), covs[0][..., :size, :size], numbers)
            return tuple(jnp.where(itself, a, b) for a, b in zip(alike, found, strict=True))

        expect: Any = across
        arguments: Any = covs
    else:
        shape = (cells.shape[0], *buffer.value.shape[1:])
        table = [[jnp.broadcast_to(entry(i, j), shape) for j in range(count)] for i in range(count)]
        expect = joint
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


def _data(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    x = context.inputs[0][group.form[1]]  # type: ignore[index]
    return x.reshape(x.shape[0], -1).T[arrays["sites"]], None, None, None


def _scalar(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    """Functions of whole arrays of scalars, one call a row and an input."""
    _, fn, arguments, held = group.form  # type: ignore[misc]
    cells, ids = arrays["calls"], arrays["monomials"]

    def call(cells: Array, numbers: Array) -> Array:
        parts, places = {True: cells, False: numbers}, {True: 0, False: 0}

        def take(is_cell: bool, shape: tuple[int, ...]) -> Array:
            start = places[is_cell]
            places[is_cell] = start + math.prod(shape)
            return parts[is_cell][start : places[is_cell]].reshape(shape)

        own = [take(*argument) for argument in arguments]
        found = fn(*own, numbers=tuple(take(False, shape) for shape in held))
        return jnp.asarray(found, cells.dtype).reshape(-1)

    inputs = jax.vmap(call, in_axes=(1, None), out_axes=1)  # cells (K, n), numbers (L,)
    values, numbers = buffer.value[cells], context.monomials[ids]
    value = jax.vmap(inputs)(values, numbers)
    error = None
    if buffer.error is not None:
        slopes = jax.vmap(jax.vmap(jax.jacfwd(call), in_axes=(1, None), out_axes=2))(values, numbers)
        moved = jnp.einsum("qmkn,qkn->qmn", jnp.abs(slopes), buffer.error[cells])
        error = (moved + 16 * jnp.finfo(value.dtype).eps * jnp.abs(value)).reshape(-1, value.shape[-1])
    return value.reshape(-1, value.shape[-1]), None, error, None


_RULES = {
    "linear": _linear,
    "scaled": _scaled,
    "data": _data,
    "scalar": _scalar,
    "pair": _pair,
    "one": _one,
    "mean": _mean,
    "product": _product,
    "import": _import,
    "leaf": _leaf,
    "joint": _joint,
}
_INTEGRATED = ("pair", "one", "mean", "joint")
