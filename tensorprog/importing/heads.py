"""Attention whose scores are divided by the head's size d, not by √d: what the libraries' layers take in its place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def attention_over_d(query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, **_: Any) -> Any:
    """softmax(q·k/d) v over arrays (…, tokens, heads, d): `attention_fn` of Flax's linen and nnx.

    With queries and keys of independent weights q·k/d converges as d → ∞, to 0 at initialisation; q·k/√d is random in
    the limit, and no average. Dropout is left out.
    """
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1]
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), value)


def process_heads_over_d(query_heads: Any, key_heads: Any, value_heads: Any) -> tuple[Any, Any, Any]:
    """Queries times 1/√d, so that Equinox's q·k/√d is q·k/d: `process_heads` of a call of its attention."""
    return query_heads / query_heads.shape[-1] ** 0.5, key_heads, value_heads
