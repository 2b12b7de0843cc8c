"""Transformers: attention whose scores are scaled by 1/n, so that they converge."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tensorprog.nets.layers import Fn, attend, check_depth, check_rank, columns, layer_norm
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.run import inner, scalar
from tensorprog.tracing.sites import mean, mix
from tensorprog.tracing.values import Scalar, Vector, nonlin


def transformer(
    x: Vector,
    mask: Scalar | None = None,
    *,
    depth: int = 2,
    fn: Fn = jax.nn.relu,
    causal: bool = False,
    tied: bool = True,
    temperature: Number = 1.0,
    position: bool = False,
    var_u: Number = 1.0,
    var_w: Number = 1.0,
    var_b: Number | None = None,
    var_p: Number = 1.0,
    var_v: Number = 1.0,
) -> Vector:
    """Encoder blocks k = U x, y = k + Σ_j A_ij k_j, z = LN(y), x ← LN(z + W² φ(W¹ z + b¹) + b²), read at the mean.

    A = softmax(k_i·k_j / (n τ)): scores are averages over the width, which converge; with the usual 1/√n they do not.
    `tied`: queries, keys and values are one k. Separate ones have scores that tend to 0, independent queries and keys
    being orthogonal, so A is uniform; y is then x + Σ_j A_ij v_j with values v, after a first embedding.
    `causal`: token i sees j ≤ i. `mask`, `tp.Data(T)`: 1 for tokens that are there, 0 for padding; the mean is theirs.
    `position`: a learned vector for each place is added to the first layer. Biases are left out by `var_b=None`.

    Recursion: Tensor Programs II (2006.14548), §6.3 and appendix; docs/theory.md.
    """
    check_depth(x, depth)
    check_rank(x, (1,), "a transformer", "give tp.Input(tokens, features)")
    tokens = x.sites[0]
    if mask is not None and mask.sites != (tokens,):
        x.builder.fail(
            "transformer(x, mask)", f"the mask has shape {mask.sites}, the input {tokens} tokens",
            f"give tp.Data({tokens}), 1 for tokens that are there and 0 for padding",
        )  # fmt: skip
    n = Width("n")
    hidden = x
    if not tied:
        hidden = weight("E", n, x.features, var=var_u) @ x
    for layer in range(1, depth + 1):
        start = bias("p", n, var=var_p, sites=(tokens,)) if position and layer == 1 else None
        y = _attention(layer, hidden, start, n, tied, causal, mask, temperature, var_u)
        z = layer_norm(y)
        inside = _biased(weight(f"W{layer}a", n, n, var=var_w) @ z, f"b{layer}a", n, var_b)
        outside = _biased(weight(f"W{layer}b", n, n, var=var_w) @ nonlin(fn, inside), f"b{layer}b", n, var_b)
        hidden = layer_norm(z + outside)
    return weight("v", 1, n, var=var_v) @ _average(hidden, mask)


def _attention(
    layer: int, x: Vector, start: Vector | None, n: Width, tied: bool, causal: bool, mask: Scalar | None,
    temperature: Number, var_u: Number,
) -> Vector:  # fmt: skip
    """What is attended to, added to the stream."""

    def linear(name: str) -> Vector:
        return weight(f"{name}{layer}", n, columns(x, n), var=var_u) @ x

    if tied:
        keys = linear("U")
        keys = keys if start is None else keys + start
        return keys + attend(_scores(keys, keys, causal, mask, temperature), keys)
    x = x if start is None else x + start
    queries, keys, values = linear("Q"), linear("K"), linear("V")
    return x + attend(_scores(queries, keys, causal, mask, temperature), values)


def _scores(q: Vector, k: Vector, causal: bool, mask: Scalar | None, temperature: Number) -> Scalar:
    """q·k/(nτ), −∞ for what is not seen."""
    products = inner(q, k) / temperature
    if mask is not None:
        return scalar(partial(_hidden, causal=causal), products, mask)
    return scalar(partial(_hidden, causal=True), products, 1.0) if causal else products


def _hidden(scores: jax.Array, mask: jax.Array, causal: bool) -> jax.Array:
    """Scores of tokens that are seen; a token that sees none (padding) sees itself, so that its softmax is defined."""
    count = scores.shape[-1]
    earlier = jnp.tril(jnp.ones((count, count), bool)) if causal else jnp.ones((count, count), bool)
    seen = earlier & (jnp.broadcast_to(mask, (count,)) > 0)
    return jnp.where(seen | jnp.eye(count, dtype=bool), scores, -jnp.inf)


def _biased(y: Vector, name: str, n: Width, var_b: Number | None) -> Vector:
    return y if var_b is None else y + bias(name, n, var=var_b)


def _average(x: Vector, mask: Scalar | None) -> Vector:
    """The mean token, of those that are there."""
    if mask is None:
        return mean(x)
    return mix(scalar(lambda m: ((m > 0) / jnp.maximum((m > 0).sum(), 1))[None], mask), x)[0]
