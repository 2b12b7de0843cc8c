"""Convolutional networks: plain with three readouts, residual, wide residual, U-Net."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.ir import Sites
from tensorprog.nets.layers import Fn, check_depth, check_rank, convolution
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import weight
from tensorprog.tracing.sites import mean, reshape
from tensorprog.tracing.values import Vector, nonlin
from tensorprog.tracing.windows import conv, conv_transpose, patches, pool


def _images(x: Vector, depth: int) -> None:
    check_depth(x, depth)
    check_rank(x, (1, 2), "a convolutional net", "give tp.Input(length, channels) or tp.Input(height, width, channels)")


def _windows(x: Vector, window: int | Sites) -> Sites:
    """One size for each site axis."""
    return (window,) * len(x.sites) if isinstance(window, int) else tuple(window)


def _trunk(
    x: Vector, n: Width, depth: int, fn: Fn, window: int | Sites, padding: str, var_w: Number, var_b: Number
) -> Vector:
    """h¹ = W¹ ∗ x + b¹, hˡ⁺¹ = Wˡ⁺¹ ∗ φ(hˡ) + bˡ⁺¹; returns φ(h^depth)."""
    _images(x, depth)
    hidden = x
    for layer in range(1, depth + 1):
        h = convolution(str(layer), n, hidden, _windows(x, window), var_w, var_b, padding=padding)
        hidden = nonlin(fn, h)
    return hidden


def cnn_flatten(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    padding: str = "SAME",
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A CNN read by one weight for each site, f = Σ_s v_s·φ(h^depth[s])/√(n|S|).

    Only moments of a site with itself enter: (A C)_{ss} is the mean over a window of C_{s+o, s+o} (Novak et al. 2019,
    1810.05148, §3; docs/theory.md).
    """
    n = Width("n")
    hidden = _trunk(x, n, depth, fn, window, padding, var_w, var_b)
    return conv(weight("v", 1, n, var=var_v, window=hidden.sites), hidden, padding="VALID")[(0,) * len(hidden.sites)]


def cnn_gap(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    padding: str = "SAME",
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A CNN read from the mean of its sites, f = v·(1/|S|) Σ_s φ(h^depth[s])/√n: all pairs of sites enter.

    Recursion: H_{st} = σ_w² mean_o C_{s+o, t+o} + σ_b², C = V_φ(H) (Novak et al. 2019, 1810.05148, §3; Arora et al.
    2019, 1904.11955).
    """
    n = Width("n")
    hidden = _trunk(x, n, depth, fn, window, padding, var_w, var_b)
    return weight("v", 1, n, var=var_v) @ mean(hidden)


def cnn_maxpool(
    x: Vector,
    *,
    depth: int = 2,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    size: int = 2,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A CNN whose every layer ends in max pooling over windows side by side, read from the mean of its sites.

    The maximum of a window is a function of its Gaussians, which has no closed form: its kernels are estimated from
    samples, and state their error.
    """
    _images(x, depth)
    n, hidden = Width("n"), x
    for layer in range(1, depth + 1):
        h = nonlin(fn, convolution(str(layer), n, hidden, _windows(x, window), var_w, var_b))
        inside = patches(h, (size,) * len(h.sites), strides=size)
        flat = reshape(inside, (*inside.sites[: len(h.sites)], size ** len(h.sites)))
        hidden = nonlin(jnp.max, flat, over=len(h.sites))
    return weight("v", 1, n, var=var_v) @ mean(hidden)


def _block(
    name: str, n: Width, x: Vector, fn: Fn, window: int | Sites, var_w: Number, var_b: Number, **first: Any
) -> Vector:
    """W² ∗ φ(W¹ ∗ φ(x) + b¹) + b²; `first` goes to the first convolution."""
    windows = _windows(x, window)
    inside = convolution(f"{name}a", n, nonlin(fn, x), windows, var_w, var_b, **first)
    return convolution(f"{name}b", n, nonlin(fn, inside), windows, var_w, var_b)


def resnet(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    branch: Number = 0.5,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A pre-activation ResNet of `depth` blocks: x ← x + a (W² ∗ φ(W¹ ∗ φ(x) + b¹) + b²), read from mean φ.

    Moments of the stream and of a branch add: C^l = C^{l-1} + a² H(V_φ(H(V_φ(C^{l-1})))) with the convolutions' H
    (He et al. 2016, 1603.05027, for the order of operations).
    """
    _images(x, depth)
    n = Width("n")
    stream = convolution("0", n, x, _windows(x, window), var_w)
    for layer in range(1, depth + 1):
        stream = stream + branch * _block(str(layer), n, stream, fn, window, var_w, var_b)
    return weight("v", 1, n, var=var_v) @ mean(nonlin(fn, stream))


def wide_resnet(
    x: Vector,
    *,
    depth: int = 1,
    groups: int = 3,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    branch: Number = 0.5,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A wide ResNet: `groups` groups of `depth` pre-activation blocks, sites halved, channels doubled between groups.

    The first block of a later group has stride 2 and a projection of its input by a window of one site. Widths drop out
    of both kernels (Zagoruyko and Komodakis 2016, 1605.07146).
    """
    _images(x, depth)
    widths = [Width("n"), *(Width(f"n{k}", ratio=2.0**k) for k in range(1, groups))]
    stream = convolution("0", widths[0], x, _windows(x, window), var_w)
    below = widths[0]
    for group, n in enumerate(widths, start=1):
        for layer in range(1, depth + 1):
            name, halved = f"{group}.{layer}", n != below
            outside = _block(name, n, stream, fn, window, var_w, var_b, cols=below, strides=2 if halved else 1)
            if halved:
                ones = (1,) * len(x.sites)
                stream = convolution(f"{name}p", n, nonlin(fn, stream), ones, 1.0, cols=below, strides=2)
            stream, below = stream + branch * outside, n
    return weight("v", 1, widths[-1], var=var_v) @ mean(nonlin(fn, stream))


def unet(
    x: Vector,
    *,
    depth: int = 1,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A small U-Net: `depth` levels of mean pooling by 2 on the way down, of transposed convolution on the way up.

    A level's own features are laid beside those from below, [h, up]: one weight for each, so their moments add. Read at
    every site, f[s] = v·φ(h)[s]/√n, kernels (N1, N2, *S, *S) (Ronneberger et al. 2015, 1505.04597).
    """
    _images(x, depth)
    if any(size % 2**depth for size in x.sites):
        x.builder.fail(
            f"unet(depth={depth})", f"sites {x.sites} cannot be halved {depth} times",
            f"give sites that {2**depth} divides, or a smaller depth",
        )  # fmt: skip
    n, windows, twos = Width("n"), _windows(x, window), (2,) * len(x.sites)
    hidden, kept = nonlin(fn, convolution("0", n, x, windows, var_w, var_b)), []
    for level in range(1, depth + 1):
        kept.append(hidden)
        below = pool(hidden, twos, strides=2)
        hidden = nonlin(fn, convolution(f"{level}", n, below, windows, var_w, var_b))
    for level in range(depth, 0, -1):
        up = conv_transpose(weight(f"T{level}", n, n, var=var_w, window=twos), hidden, strides=2)
        beside = convolution(f"{level}s", n, kept.pop(), windows, var_w / 2)
        hidden = nonlin(fn, beside + convolution(f"{level}u", n, up, windows, var_w / 2, var_b))
    return weight("v", 1, n, var=var_v) @ hidden
