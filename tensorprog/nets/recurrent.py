"""Recurrent networks with tied weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.sites import mean, stack
from tensorprog.tracing.values import Vector, nonlin

Fn = Callable[[Any], Any]


def _states(x: Vector, n: Width, fn: Fn, var_w: Number, var_u: Number, var_b: Number) -> list[Vector]:
    """s¹ = φ(U x¹ + b), sᵗ = φ(W sᵗ⁻¹ + U xᵗ + b), one W, U and b for all times."""
    if not x.sites:
        x.builder.fail(f"an RNN that reads {x.features} features", "there is no time", "give tp.Input(time, features)")
    w = weight("W", n, n, var=var_w)
    u = weight("U", n, x.features, var=var_u)
    b = bias("b", n, var=var_b)
    states = [nonlin(fn, u @ x[0] + b)]
    for t in range(1, x.sites[0]):
        states.append(nonlin(fn, w @ states[-1] + u @ x[t] + b))
    return states


def rnn(
    x: Vector,
    *,
    fn: Fn = jnp.tanh,
    var_w: Number = 1.2,
    var_u: Number = 1.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A simple RNN read at its last state: sᵗ = φ(W sᵗ⁻¹ + U xᵗ + b), f = v·s^T/√n.

    Recursion: Tensor Programs II, §5.1 and appendix D (docs/theory.md).
    """
    n = Width("n")
    return weight("v", 1, n, var=var_v) @ _states(x, n, fn, var_w, var_u, var_b)[-1]


def rnn_mean(
    x: Vector,
    *,
    fn: Fn = jnp.tanh,
    var_w: Number = 1.2,
    var_u: Number = 1.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A simple RNN read from its mean state, f = v·(1/T) Σ_t sᵗ/√n: all pairs of times enter the kernels."""
    n = Width("n")
    return weight("v", 1, n, var=var_v) @ mean(stack(_states(x, n, fn, var_w, var_u, var_b)))
