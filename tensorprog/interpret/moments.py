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
from tensorprog.interpret.buffers import Array, Buffer, Context
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
