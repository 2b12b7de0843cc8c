"""Networks with normalisation: over the width (layer norm, RMS norm), over a batch (batch norm)."""

from __future__ import annotations

import jax

from tensorprog.functions.batchnorm import batch_norm
from tensorprog.ir import Sites
from tensorprog.nets.layers import Fn, check_depth, check_rank, convolution, dense, layer_norm, rms_norm
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import weight
from tensorprog.tracing.sites import mean
from tensorprog.tracing.values import Vector, nonlin


def layernorm_mlp(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """hˡ⁺¹ = Wˡ⁺¹ φ(LN(hˡ)) + bˡ⁺¹, f = v·φ(LN(h^depth))/√n.

    C^{LN} = (C − μμ̄)/(σσ̄), and D the same: the gradient of μ and σ vanishes in the limit (docs/theory.md).
    """
    check_depth(x, depth)
    n = Width("n")
    hidden = x
    for layer in range(1, depth + 1):
        hidden = nonlin(fn, layer_norm(dense(str(layer), n, hidden, var_w, var_b)))
    return weight("v", 1, n, var=var_v) @ hidden


def rmsnorm_mlp(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.silu,
    var_u: Number = 1.0,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A residual stream with RMS norm: x⁰ = U x, xˡ = xˡ⁻¹ + Wˡ φ(Vˡ RMS(xˡ⁻¹) + bˡ), f = v·RMS(x^depth)/√n.

    C^{RMS} = C/√(C(x, x) C(x̄, x̄)), D the same (Zhang and Sennrich 2019, 1910.07467).
    """
    check_depth(x, depth)
    n = Width("n")
    stream = weight("U", n, x.features, var=var_u) @ x
    for layer in range(1, depth + 1):
        inside = nonlin(fn, dense(f"{layer}a", n, rms_norm(stream), var_w, var_b))
        stream = stream + dense(f"{layer}b", n, inside, var_w)
    return weight("v", 1, n, var=var_v) @ rms_norm(stream)


def _batch(x: Vector, rank: int, shape: str) -> None:
    check_rank(
        x, (rank,), "a net with batch norm, which is a function of a whole batch: one input is one batch",
        f"trace it with tp.Input({shape}); data are then (N, {shape}), N batches",
    )  # fmt: skip
    if x.sites[0] < 4:
        x.builder.fail(
            f"batch norm over {x.sites[0]} examples", "its gradient has no second moment for batches below 4",
            "give batches of at least 4 examples",
        )  # fmt: skip


def batchnorm_mlp(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    var_w: Number = 1.0,
    var_v: Number = 1.0,
) -> Vector:
    """hˡ⁺¹ = Wˡ⁺¹ φ(BN(hˡ)), f[i] = v·φ(BN(h^depth))[i]/√n for each example i of a batch; one input is one batch.

    BN(h) = √B (h − mean)/|h − mean| over the batch, for each coordinate, without ε or affine part (a bias before it
    would drop out). For relu and the identity by one- and two-dimensional integrals, for other functions from samples
    (Tensor Programs II, 2006.14548, appendix on batch norm; Yang et al. 2019, 1902.08129). Data (N, B, features) give
    kernels (N1, N2, B, B).
    """
    check_depth(x, depth)
    _batch(x, 1, "batch, features")
    n = Width("n")
    hidden = x
    for layer in range(1, depth + 1):
        hidden = nonlin(fn, nonlin(batch_norm, dense(str(layer), n, hidden, var_w), over=0))
    return weight("v", 1, n, var=var_v) @ hidden


def batchnorm_cnn(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    window: int | Sites = 3,
    var_w: Number = 1.0,
    var_v: Number = 1.0,
) -> Vector:
    """Convolutions with batch norm over examples and sites, f[i] = v·(mean over sites of φ(BN(h^depth)))[i]/√n.

    One input is one batch of images, (N, B, height, width, channels); kernels (N1, N2, B, B). As `batchnorm_mlp`, with
    the Gaussians of all examples at all sites of a channel as the batch.
    """
    check_depth(x, depth)
    _batch(x, 3, "batch, height, width, channels")
    n = Width("n")
    windows = (window, window) if isinstance(window, int) else tuple(window)
    hidden = x
    for layer in range(1, depth + 1):
        h = convolution(str(layer), n, hidden, windows, var_w)
        hidden = nonlin(fn, nonlin(batch_norm, h, over=(0, 1, 2)))
    return weight("v", 1, n, var=var_v) @ mean(hidden, (1, 2))
