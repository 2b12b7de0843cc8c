"""Products of vectors: gated linear units, and dropout as a product with a random mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from tensorprog.nets.layers import Fn, check_depth, dense
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.values import Vector, nonlin


def swiglu(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.silu,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """Gated layers hˡ⁺¹ = φ(Wˡ hˡ + bˡ) ⊙ Vˡ hˡ, f = v·h^{depth+1}/√n; φ is silu, W and V independent.

    Independent factors: C^{l+1} = V_φ(σ_w² C^l + σ_b²) · σ_w² C^l (Shazeer 2020, 2002.05202).
    """
    check_depth(x, depth)
    n = Width("n")
    hidden = x
    for layer in range(1, depth + 1):
        gate = nonlin(fn, dense(f"{layer}g", n, hidden, var_w, var_b))
        hidden = gate * dense(f"{layer}v", n, hidden, var_w)
    return weight("v", 1, n, var=var_v) @ hidden


def dropout_mlp(
    x: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    keep: float = 0.8,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """hˡ⁺¹ = Wˡ⁺¹ (mˡ ⊙ φ(hˡ)) + bˡ⁺¹ with a mask mˡ of entries 1/p with probability p = `keep`, else 0.

    The mask is drawn with the parameters, one for all inputs: E m m̄ = 1/p multiplies every second moment, as in the
    sub-network that one step of training sees. Layer libraries take the expectation over masks of one input's own
    instead, which multiplies its kernel with itself by 1/p and no other entry; such a network is no function of its
    input (Srivastava et al. 2014).
    """
    check_depth(x, depth)
    if not isinstance(keep, int | float) or not 0 < keep <= 1:
        x.builder.fail(f"dropout_mlp(keep={keep!r})", "it is no probability", "give 0 < keep ≤ 1")
    n, threshold = Width("n"), float(ndtri(1 - keep)) if keep < 1 else -jnp.inf
    hidden = x
    for layer in range(1, depth + 1):
        hidden = nonlin(fn, dense(str(layer), n, hidden, var_w, var_b))
        draw = bias(f"m{layer}", n, var=1.0, lr=0.0)
        hidden = nonlin(lambda z: jnp.where(z > threshold, 1 / keep, 0.0), draw) * hidden
    return weight("v", 1, n, var=var_v) @ hidden
