"""What training under squared loss does to one eigenvalue of the kernel: gains and decays, as functions of time.

With loss ½‖f − y‖² + (r/2)‖θ − θ_0‖² and kernel Θ, an eigendirection of eigenvalue λ is pulled at the rate s = λ + r.
If e is what training has left of its distance to the fixed point (e^{−ηst} for gradient flow, a polynomial in ηs for
steps), then

    gain(λ) = (1 − e)/s                 f_t(·) = f_0(·) − K(·, X) gain(Θ) (f_0 − y)
    decay(λ) = (r + λe)/s               f_t(X) − y = decay(Θ) (f_0(X) − y)

Directions with s below the cutoff, which are rounding, do not move: gain 0, decay 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.program import is_concrete

Array = jax.Array

#: Bits of a number of steps that is not known while tracing.
BITS = 31


def flow_gain(values: Array, time: Array, lr: Array, ridge: Array, cutoff: Array) -> Array:
    return _gain(values, _by_flow, (time, lr), ridge, cutoff)


def flow_decay(values: Array, time: Array, lr: Array, ridge: Array, cutoff: Array) -> Array:
    return _decay(values, _by_flow, (time, lr), ridge, cutoff)


def steps_gain(
    values: Array, bits: Array, lr: Array, momentum: Array, nesterov: Array, ridge: Array, cutoff: Array
) -> Array:
    return _gain(values, _by_steps, (bits, lr, momentum, nesterov), ridge, cutoff)


def steps_decay(
    values: Array, bits: Array, lr: Array, momentum: Array, nesterov: Array, ridge: Array, cutoff: Array
) -> Array:
    return _decay(values, _by_steps, (bits, lr, momentum, nesterov), ridge, cutoff)


def _gain(values: Array, run: Any, numbers: tuple[Any, ...], ridge: Array, cutoff: Array) -> Array:
    moves, rate = _rate(values, ridge, cutoff)
    return jnp.where(moves, run(rate, *numbers)[1], 0.0)


def _decay(values: Array, run: Any, numbers: tuple[Any, ...], ridge: Array, cutoff: Array) -> Array:
    moves, rate = _rate(values, ridge, cutoff)
    return jnp.where(moves, (ridge + values * run(rate, *numbers)[0]) / rate, 1.0)


def _rate(values: Array, ridge: Array, cutoff: Array) -> tuple[Array, Array]:
    """Which directions move, and s where they do."""
    moves = values + ridge > cutoff
    return moves, jnp.where(moves, values + ridge, 1.0)


def _by_flow(rate: Array, time: Array, lr: Array) -> tuple[Array, Array]:
    """e = e^{−ηst} and (1 − e)/s, (*T, N); at t = ∞ 0 and 1/s, whose derivatives in t are 0. Nothing moves at η = 0."""
    never = jnp.isinf(time)[..., None]
    exponent = lr * jnp.where(never, 0.0, time[..., None]) * rate
    ends = never & (lr > 0)
    return jnp.where(ends, 0.0, jnp.exp(-exponent)), jnp.where(ends, 1.0, -jnp.expm1(-exponent)) / rate


def _by_steps(rate: Array, bits: Array, lr: Array, momentum: Array, nesterov: Array) -> tuple[Array, Array]:
    """The same after n steps of gradient descent with momentum; bits (B, *T) of n, lowest first.

    A direction's distance u, velocity m = sμ and gain g: μ ← βμ + u, then u ← u − ηs·μ and g ← g + ημ; with Nesterov's
    momentum βμ + u (the new μ) in place of μ. That is a matrix of 3 × 3, whose power is taken by squaring. Following g
    beside u keeps it exact where s is small and 1 − u would be rounding.
    """
    a, b = 1 + nesterov * momentum, momentum * (1 + nesterov * (momentum - 1))  # the step is a u + b μ
    full = lambda value: jnp.broadcast_to(value, rate.shape)
    rows = (
        (1 - lr * rate * a, -lr * rate * b, full(0.0)),
        (full(1.0), full(momentum), full(0.0)),
        (full(lr * a), full(lr * b), full(1.0)),
    )
    step = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    state = jnp.broadcast_to(jnp.asarray([1.0, 0.0, 0.0], rate.dtype), (*bits.shape[1:], *rate.shape, 3))
    for bit in bits:
        moved = jnp.einsum("nij,...nj->...ni", step, state, precision="highest")
        state = jnp.where(bit[..., None, None] > 0, moved, state)
        step = jnp.einsum("nij,njk->nik", step, step, precision="highest")
    return state[..., 0], state[..., 2]


def bits_of(steps: Array) -> Array:
    """The bits of numbers of steps (*T,) as zeros and ones (B, *T), lowest first, as floating numbers."""
    count = max(1, int(np.max(np.asarray(steps), initial=0)).bit_length()) if is_concrete(steps) else BITS
    shifts = jnp.arange(count).reshape(-1, *(1,) * steps.ndim)
    return ((steps >> shifts) & 1).astype(float)
