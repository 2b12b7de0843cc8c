"""Recurrent networks with tied weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tensorprog.nets.layers import Fn, check_rank
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.sites import mean, stack
from tensorprog.tracing.values import Vector, nonlin


def _check_time(x: Vector) -> None:
    check_rank(x, (1,), f"a recurrent net that reads {x.features} features", "give tp.Input(time, features)")


def _states(x: Vector, n: Width, fn: Fn, var_w: Number, var_u: Number, var_b: Number, suffix: str = "") -> list[Vector]:
    """s¹ = φ(U x¹ + b), sᵗ = φ(W sᵗ⁻¹ + U xᵗ + b), one W, U and b for all times."""
    _check_time(x)
    w = weight(f"W{suffix}", n, n, var=var_w)
    u = weight(f"U{suffix}", n, x.features, var=var_u)
    b = bias(f"b{suffix}", n, var=var_b)
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


def rnn_bidirectional(
    x: Vector,
    *,
    fn: Fn = jnp.tanh,
    var_w: Number = 1.2,
    var_u: Number = 1.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """One RNN forward in time, one backward with weights of its own, read at every time: f = mean_t (v·sᵗ + w·rᵗ)/√n.

    The two are independent, so their kernels add (Schuster and Paliwal 1997).
    """
    _check_time(x)
    n = Width("n")
    forward = _states(x, n, fn, var_w, var_u, var_b)
    backward = _states(x[::-1], n, fn, var_w, var_u, var_b, suffix="r")
    first, second = weight("v", 1, n, var=var_v / 2), weight("w", 1, n, var=var_v / 2)
    return first @ mean(stack(forward)) + second @ mean(stack(backward))


class _Gates:
    """Pre-activations U_k xᵗ + W_k h + b_k of a recurrent net's gates."""

    def __init__(self, x: Vector, n: Width, names: str, var_w: Number, var_u: Number, var_b: Number):
        _check_time(x)
        self.x = x
        self.u = {k: weight(f"U{k}", n, x.features, var=var_u) for k in names}
        self.w = {k: weight(f"W{k}", n, n, var=var_w) for k in names}
        self.b = {k: bias(f"b{k}", n, var=var_b) for k in names}

    def __call__(self, k: str, t: int, h: Vector | None) -> Vector:
        """The pre-activation of gate k at time t; h is None where it is 0."""
        own = self.u[k] @ self.x[t] + self.b[k]
        return own if h is None else own + self.w[k] @ h


def gru(
    x: Vector,
    *,
    fn: Fn = jnp.tanh,
    gate: Fn = jax.nn.sigmoid,
    var_w: Number = 1.2,
    var_u: Number = 1.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A GRU read at its last state: z = σ(g_z), r = σ(g_r), a = U_a x + W_a (r ⊙ h) + b_a, h ← (1 − z) ⊙ h + z ⊙ φ(a).

    hᵗ is a function of 2t Gaussians, whose expectations are estimated from samples (Cho et al. 2014, 1406.1078; kernel:
    Tensor Programs I, 1910.12478, §A.2, and docs/theory.md).
    """
    n = Width("n")
    pre = _Gates(x, n, "zra", var_w, var_u, var_b)
    h = nonlin(gate, pre("z", 0, None)) * nonlin(fn, pre("a", 0, None))
    for t in range(1, x.sites[0]):
        z, r = nonlin(gate, pre("z", t, h)), nonlin(gate, pre("r", t, h))
        h = (h - z * h) + z * nonlin(fn, pre("a", t, r * h))
    return weight("v", 1, n, var=var_v) @ h


def lstm(
    x: Vector,
    *,
    fn: Fn = jnp.tanh,
    gate: Fn = jax.nn.sigmoid,
    var_w: Number = 1.2,
    var_u: Number = 1.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """An LSTM read at its last state: c ← σ(g_f) ⊙ c + σ(g_i) ⊙ φ(g_c), h = σ(g_o) ⊙ φ(c).

    Estimated from samples, as `gru` (Hochreiter and Schmidhuber 1997; kernel: docs/theory.md).
    """
    n = Width("n")
    pre = _Gates(x, n, "ifoc", var_w, var_u, var_b)
    c = nonlin(gate, pre("i", 0, None)) * nonlin(fn, pre("c", 0, None))
    h = nonlin(gate, pre("o", 0, None)) * nonlin(fn, c)
    for t in range(1, x.sites[0]):
        c = nonlin(gate, pre("f", t, h)) * c + nonlin(gate, pre("i", t, h)) * nonlin(fn, pre("c", t, h))
        h = nonlin(gate, pre("o", t, h)) * nonlin(fn, c)
    return weight("v", 1, n, var=var_v) @ h
