"""Pieces that several architectures share, each a function of traced values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.ir import Sites
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.run import moment, scalar
from tensorprog.tracing.sites import mix
from tensorprog.tracing.values import Scalar, Vector
from tensorprog.tracing.windows import conv

Fn = Callable[[Any], Any]


def check_depth(x: Vector, depth: int) -> None:
    """A depth is an int of at least 1."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        x.builder.fail(f"depth={depth!r}", "a net has a whole number of layers", "give a depth of at least 1")


def check_rank(x: Vector, ranks: Sequence[int], what: str, remedy: str) -> None:
    """The input has as many site axes as a net reads."""
    if len(x.sites) not in ranks:
        x.builder.fail(what, f"the input has site axes {x.sites} and {x.features} features", remedy)


def layer_norm(x: Vector) -> Vector:
    """(x − μ)/σ at each site, μ = E x and σ² = E (x − μ)² over the width; no affine part.

    In the limit μ and σ are constants of the input, so both kernels are divided by σσ̄ (docs/theory.md).
    """
    centred = x - moment(jax.nn.identity, x)
    return centred / scalar(jnp.sqrt, moment(operator.mul, centred, centred))


def rms_norm(x: Vector) -> Vector:
    """x/√(E x²) at each site, over the width; no gains."""
    return x / scalar(jnp.sqrt, moment(operator.mul, x, x))


def attend(scores: Scalar, x: Vector) -> Vector:
    """Σ_j softmax_j(scores)[i, j] x[j]: tokens mixed by their scores."""
    return mix(scalar(jax.nn.softmax, scores), x)


def columns(x: Vector, n: Width) -> Width | int:
    """What a weight that reads x has for columns: the features of an input, else the width."""
    return x.features if isinstance(x.features, int) else n


def dense(name: str, n: Width, x: Vector, var_w: Number, var_b: Number | None = None) -> Vector:
    """W x + b at each site (None: no bias)."""
    y = weight(f"W{name}", n, columns(x, n), var=var_w) @ x
    return y if var_b is None else y + bias(f"b{name}", n, var=var_b)


def convolution(
    name: str,
    n: Width,
    x: Vector,
    window: Sites,
    var_w: Number,
    var_b: Number | None = None,
    *,
    cols: Width | None = None,
    **options: Any,
) -> Vector:
    """W ∗ x + b, one bias for all sites or None; `cols`: the width of x, n by default; `options` of `conv`."""
    y = conv(weight(f"W{name}", n, columns(x, cols or n), var=var_w, window=window), x, **options)
    return y if var_b is None else y + bias(f"b{name}", n, var=var_b)
