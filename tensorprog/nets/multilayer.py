"""Multilayer perceptrons: plain, weight-tied, between two widths, residual."""

from __future__ import annotations

import jax

from tensorprog.nets.layers import Fn, check_depth
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.values import Vector, nonlin


def mlp(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """h¹ = W¹x + b¹, hˡ⁺¹ = Wˡ⁺¹ φ(hˡ) + bˡ⁺¹, f = v·φ(h^depth)/√n.

    Recursion: H^l = σ_w² C^{l-1} + σ_b², C^l = V_φ(H^l); D^{h^l} = D^{x^l} V_φ'(H^l), D^{x^{l-1}} = σ_w² D^{h^l}
    (Tensor Programs II, §3).
    """
    check_depth(x, depth)
    n = Width("n")
    h = weight("W1", n, x.features, var=var_w) @ x + bias("b1", n, var=var_b)
    for layer in range(2, depth + 1):
        h = weight(f"W{layer}", n, n, var=var_w) @ nonlin(fn, h) + bias(f"b{layer}", n, var=var_b)
    return weight("v", 1, n, var=var_v) @ nonlin(fn, h)


def mlp_tied(
    x: Vector,
    *,
    depth: int = 4,
    fn: Fn = jax.scipy.special.erf,
    var_w: Number = 1.5,
    var_u: Number = 1.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """One W through all layers: h¹ = Ux + b, hˡ⁺¹ = W φ(hˡ) + b, f = v·φ(h^depth)/√n.

    Layers are correlated: Cov(hˡ, hᵏ) = σ_w² E φ(hˡ⁻¹)φ(hᵏ⁻¹) + σ_b², and the NTK sums over all pairs of uses
    (Tensor Programs II, §5).
    """
    check_depth(x, depth)
    n = Width("n")
    w, b = weight("W", n, n, var=var_w), bias("b", n, var=var_b)
    h = weight("U", n, x.features, var=var_u) @ x + b
    for _ in range(depth - 1):
        h = w @ nonlin(fn, h) + b
    return weight("v", 1, n, var=var_v) @ nonlin(fn, h)


def mlp_two_widths(
    x: Vector,
    *,
    fn: Fn = jax.nn.relu,
    ratio: Number = 0.5,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """Hidden layers of widths n, m, n with m/n → `ratio`: in the limit the ratio drops out of both kernels."""
    n, m = Width("n"), Width("m", ratio=ratio)
    h = weight("W1", n, x.features, var=var_w) @ x + bias("b1", n, var=var_b)
    h = weight("W2", m, n, var=var_w) @ nonlin(fn, h) + bias("b2", m, var=var_b)
    h = weight("W3", n, m, var=var_w) @ nonlin(fn, h) + bias("b3", n, var=var_b)
    return weight("v", 1, n, var=var_v) @ nonlin(fn, h)


def resnet_mlp(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    branch: Number = 0.5,
    var_u: Number = 1.0,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """x⁰ = Ux, xˡ = xˡ⁻¹ + a Wˡ φ(Vˡ xˡ⁻¹ + bˡ), f = v·x^depth/√n; a is `branch`.

    Recursion: C^l = C^{l-1} + a² σ_w² V_φ(H^l), H^l = σ_w² C^{l-1} + σ_b²; D^{l-1} = D^l + σ_w² D^{h^l}
    (docs/theory.md).
    """
    check_depth(x, depth)
    n = Width("n")
    stream = weight("U", n, x.features, var=var_u) @ x
    for layer in range(1, depth + 1):
        inside = weight(f"V{layer}", n, n, var=var_w) @ stream + bias(f"b{layer}", n, var=var_b)
        stream = stream + branch * (weight(f"W{layer}", n, n, var=var_w) @ nonlin(fn, inside))
    return weight("v", 1, n, var=var_v) @ stream


def autoencoder_tied(
    x: Vector,
    *,
    fn: Fn = jax.numpy.tanh,
    ratio: Number = 0.5,
    var_u: Number = 1.0,
    var_w: Number = 1.5,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A hidden autoencoder with tied weights: e = φ(Ux + b), z = φ(W e), d = φ(Wᵀ z), f = v·d/√n; z has width ratio·n.

    W and Wᵀ both act forward, so Wᵀz = Ẑ + ρσ_w² E[φ′] e is not Gaussian: `nngp` and `ntk` refuse it, and
    `ntk(method="backward")`, `kernels(method="backward")` and `limit` take the Ż with it (Tensor Programs III,
    2009.10685, Theorem 2.10).
    """
    n, m = Width("n"), Width("m", ratio=ratio)
    e = nonlin(fn, weight("U", n, x.features, var=var_u) @ x + bias("b", n, var=var_b))
    w = weight("W", m, n, var=var_w)
    decoded = w.T @ nonlin(fn, w @ e)
    return weight("v", 1, n, var=var_v) @ nonlin(fn, decoded)
