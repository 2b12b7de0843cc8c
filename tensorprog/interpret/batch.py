"""The rule of batch norm: second moments of a whole block by one integral, or two across inputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from tensorprog.functions import batchnorm
from tensorprog.interpret.buffers import Array, Buffer, Context, Result, one_input
from tensorprog.interpret.plan import Group
from tensorprog.loops import mapped

Pair = tuple[Array, Array]
"""Covariances, and bounds on their errors."""


def batch(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    """Values and tangents of E F(h) F̄(h̄)ᵀ; a block met with itself at one input has an integral of its own."""
    _, phi, psi, (a, b), within = group.form  # type: ignore[misc]
    count = arrays["blocks"].shape[0]
    left, left_error = (_last(x) for x in one_input(context, buffer, arrays["left_block"], "left"))
    right, right_error = (_last(x) for x in one_input(context, buffer, arrays["right_block"], "right"))
    cov = _last(buffer.value[arrays["blocks"]])
    assert left is not None and right is not None and cov is not None, "values are there"
    tangent = None if buffer.tangent is None else _last(buffer.tangent[arrays["blocks"]])
    itself = None
    if context.matched and a == b and phi == psi:
        itself = jnp.asarray(arrays["left_block"] == arrays["right_block"]).all((1, 2))
        itself = itself.reshape(-1, *(1,) * (cov.ndim - 1))
    if context.valid is not None:
        cov = jnp.where(context.valid[..., None, None], cov, 0.0)

    def alone(left: Array) -> tuple[Array, ...]:
        found = batchnorm.same_error(left, phi, psi)
        return found if tangent is None else (*found, *batchnorm.same_tangent_error(left, tangent, phi, psi))

    def across(left: Array, right: Array, cov: Array) -> tuple[Array, ...]:
        found = batchnorm.cross_error(left, right, cov, phi, psi)
        if tangent is None:
            return found
        return (*found, *batchnorm.cross_tangent_error(left, right, cov, tangent, phi, psi))

    def both(left: Array, right: Array, cov: Array) -> tuple[Array, ...]:
        if within:
            return alone(left)
        if itself is None:
            return across(left, right, cov)
        apart = across(left, right, jnp.where(itself, 0.0, cov))
        return tuple(jnp.where(itself, x, y) for x, y in zip(alone(left), apart, strict=True))

    found = list(both(left, right, cov))
    if buffer.error is not None and left_error is not None and right_error is not None:
        own = _last(buffer.error[arrays["blocks"]])
        assert own is not None, "errors come with errors"

        def changes(delta: tuple[Array, Array, Array]) -> list[Array]:
            moved = both(*(x + d for x, d in zip((left, right, cov), delta, strict=True)))
            return [jnp.abs(moved[k] - found[k]) for k in range(0, len(found), 2)]

        # What the arguments' own errors do: a loop, so that the integrals are compiled once.
        changed = mapped(changes, _moves((left, left_error), (right, right_error), (cov, own)))
        for k, change in enumerate(changed):
            found[2 * k + 1] = found[2 * k + 1] + change.sum(0)
    value, error, *slope = (_rows(x, count, a, b) for x in found)
    moving, moving_error = slope if slope else (None, None)
    if moving_error is not None and buffer.tangent_error is not None:
        size = _last(buffer.tangent_error[arrays["blocks"]])
        assert size is not None, "tangents' errors come with tangents"
        # E J T J̄ᵀ is linear in the tangent T, and the rows of J have no larger sum than their reach.
        reach = batchnorm.reach(left, phi) * batchnorm.reach(left if within else right, psi)
        size = size.max((-2, -1), keepdims=True) * reach[..., None, None]
        moving_error = moving_error + _rows(jnp.broadcast_to(size, cov.shape), count, a, b)
    return value, moving, error, moving_error


def _moves(left: Pair, right: Pair, cov: Pair) -> tuple[Array, Array, Array]:
    """What moves one kind of argument by its errors, stacked: each side's variances up and its covariances, and the
    covariances between them.

    All of a kind at once: one at a time would be an integral for each entry. Batch norm does not see what is added to
    all entries alike, so covariances are moved up and down in turn; those between the sides also all towards 0.
    """

    def turns(x: Array) -> Array:
        return (-1.0) ** (jnp.arange(x.shape[-2])[:, None] + jnp.arange(x.shape[-1]))

    def ends(x: Array, error: Array) -> tuple[Array, Array]:
        eye = jnp.eye(x.shape[-1], dtype=bool)
        return jnp.where(eye, error, 0.0), jnp.where(eye, 0.0, error * turns(x))

    between, off = cov
    toward = -jnp.sign(between) * jnp.minimum(off, jnp.abs(between))
    kinds = (ends(*left), ends(*right), (toward, off * turns(between)))
    stacked = []
    for place, own in enumerate(kinds):
        zero = jnp.zeros_like(own[0])
        stacked.append(jnp.stack([delta if k == place else zero for k in range(3) for delta in own]))
    return stacked[0], stacked[1], stacked[2]


def _last(x: Array | None) -> Array | None:
    """(m, A, B, *pairs) -> (m, *pairs, A, B)."""
    return None if x is None else jnp.moveaxis(x, (1, 2), (-2, -1))


def _rows(x: Array, count: int, a: int, b: int) -> Array:
    """(m, *pairs, A, B) -> (m · A · B, *pairs)."""
    return jnp.moveaxis(x, (-2, -1), (1, 2)).reshape(count * a * b, *x.shape[1:-2])
