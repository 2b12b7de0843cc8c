"""Evaluation: the planned equations as JAX arrays.

The buffer is (rows, *pairs), one row a cell. The kernel's directional derivative (the NTK) is a second buffer that goes
through the same equations: linear equations add the parameters' own terms, an expectation multiplies by E ∂F ∂F̄, which
is again an expectation. Same-input quantities have no tangent (docs/theory.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.interpret import batch, integrals, joints, rules
from tensorprog.interpret.buffers import Array, Buffer, Context, Rows
from tensorprog.interpret.equations import UNIT
from tensorprog.interpret.plan import Group, Plan, Run
from tensorprog.loops import whole

_INTEGRATED = {
    "pair": integrals.pair,
    "one": integrals.one,
    "mean": integrals.mean,
    "joint": joints.joint,
    "batch": batch.batch,
}
_RULES = {
    "linear": rules.linear,
    "scaled": rules.scaled,
    "product": rules.product,
    "import": rules.import_,
    "leaf": rules.leaf,
    "data": rules.data,
    "scalar": rules.scalar,
    **_INTEGRATED,
}


def evaluate(
    plan: Plan, context: Context, batch: tuple[int, ...], *, tangent: bool, error: bool, deltas: Array | None = None
) -> Buffer:
    """Run the plan; the result holds the kept cells' rows. `deltas` (cells, *batch) are added to tangents by cell."""
    zeros, ones = _constant(plan, batch, context.monomials.dtype)
    buffer = Buffer(ones, zeros if tangent else None, zeros if error else None, zeros if error and tangent else None)
    for step in plan.steps:
        if isinstance(step, Run):
            buffer = _loop(step, context, buffer, deltas)
        else:
            for group in step:
                buffer = _group(group, group.arrays, context, buffer, deltas)
    rows = plan.row_of[plan.keep].astype(np.int32)
    return Buffer(*(None if a is None else a[rows] for a in _fields(buffer)))


def _constant(plan: Plan, batch: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    """A buffer of zeros, and one whose row `UNIT` is 1."""
    if plan.fixed:
        zero, one = jnp.zeros(batch, dtype), jnp.ones(batch, dtype)
        zeros, ones = (Rows(tuple(u if k == UNIT else zero for k in range(plan.rows))) for u in (zero, one))
        return zeros, ones
    unit = (np.arange(plan.rows) == UNIT).reshape(-1, *(1,) * len(batch))
    shape = (plan.rows, *batch)
    return jnp.zeros(shape, dtype), jnp.broadcast_to(jnp.asarray(unit, dtype), shape)


def _loop(run: Run, context: Context, buffer: Buffer, deltas: Array | None) -> Buffer:
    """What all repeats have in common stays known, so that rows that are read and written are slices."""
    known = [[g.common for g in level] for level in run.levels]
    stacked = [
        [{k: jnp.asarray(a) for k, a in g.arrays.items() if k not in own} for g, own in zip(*level, strict=True)]
        for level in zip(run.levels, known, strict=True)
    ]

    def body(carry: Buffer, arrays: Any) -> tuple[Buffer, None]:
        for level in zip(run.levels, known, arrays, strict=True):
            for group, own, its in zip(*level, strict=True):
                carry = _group(group, {**own, **its}, context, carry, deltas, looped=True)
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
    asked = [None if a is None else jax.ShapeDtypeStruct(shape, a.dtype) for a in _fields(buffer)]
    like = Buffer(*asked)

    def compute(buffer: Buffer) -> Buffer:
        # A rule may give less than is asked for (zeros then), or more (bounds that nobody carries on).
        found = rule(group, arrays, context, buffer)
        full = lambda a, new: jnp.zeros(shape, a.dtype) if new is None else jnp.broadcast_to(new, shape)
        return Buffer(*(None if a is None else full(a, f) for a, f in zip(asked, found, strict=True)))

    integrated = looped and not context.plain and group.form[0] in _INTEGRATED
    new = whole(arrays["ids"][0] >= 0, compute, buffer, like) if integrated else compute(buffer)
    if deltas is not None and new.tangent is not None:
        new = replace(new, tangent=new.tangent + deltas[arrays["ids"]])
    pairs = zip(_fields(buffer), _fields(new), strict=True)
    return Buffer(*(None if old is None else _written(old, out, rows) for old, rows in pairs))


def _written(old: Any, out: Any, rows: Array) -> Any:
    """A buffer with new rows; those that are known to run on are one slice, which takes no loop over them."""
    if isinstance(old, Rows):
        return old.written(out, rows)
    if isinstance(out, np.ndarray) and (np.diff(out) == 1).all():
        return jax.lax.dynamic_update_slice_in_dim(old, rows, int(out[0]), 0)
    return old.at[out].set(rows)


def _fields(buffer: Buffer) -> tuple[Any, Any, Any, Any]:
    return buffer.value, buffer.tangent, buffer.error, buffer.tangent_error
