"""Reference cases' specs as programs: each operation of a layer library in a line or two of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp

import tensorprog as tp

NOT_YET = {"LayerNorm", "Dropout", "ExpNormalized"}
"""Operations that need Moments in the kernel interpreter, or that are no networks of the language."""


def nonlinearity(op: dict[str, Any]) -> Callable[[Any], Any]:
    """The function of an elementwise operation."""
    a, b, c = op.get("a", 1.0), op.get("b", 1.0), op.get("c", 0.0)
    erf = jax.scipy.special.erf
    match op["op"]:
        case "Relu":
            return jax.nn.relu
        case "LeakyRelu":
            return partial(jax.nn.leaky_relu, negative_slope=op["alpha"])
        case "ABRelu":
            return lambda z: a * jnp.minimum(z, 0.0) + b * jnp.maximum(z, 0.0)
        case "Abs":
            return jnp.abs
        case "Sign":
            return jnp.sign
        case "Erf":
            return erf if (a, b, c) == (1.0, 1.0, 0.0) else lambda z: a * erf(b * z) + c
        case "Gelu":
            return partial(jax.nn.gelu, approximate=False)
        case "Sin":
            return jnp.sin if (a, b, c) == (1.0, 1.0, 0.0) else lambda z: a * jnp.sin(b * z + c)
        case "Cos":
            return lambda z: a * jnp.cos(b * z + c)
        case "SigmoidLike":
            return lambda z: 0.5 * erf(z / 2.4020563531719796) + 0.5
        case "Gabor":
            return lambda z: jnp.exp(-(z**2)) * jnp.sin(z)
        case "Gaussian":
            return lambda z: a * jnp.exp(b * z**2)
        case "Exp":
            return lambda z: a * jnp.exp(b * z)
        case "Polynomial":
            return lambda z: sum(k * z**p for p, k in enumerate(op["coef"]))
        case "Monomial":
            return lambda z: z ** op["degree"]
        case "RectifiedMonomial":
            return lambda z: jnp.where(z > 0, z ** op["degree"], 0.0)
        case "Hermite":
            return tp.functions.hermite(op["degree"])
        case "Numerical":
            return {"tanh": jnp.tanh, "swish": jax.nn.silu, "softplus": jax.nn.softplus}[op["fn"]]
        case other:
            raise ValueError(f"no function for {other}")


def network(x: Any, spec: list[dict[str, Any]]) -> Any:
    """A spec as a function of a traced input; the last Dense is the readout."""
    width, numbers = tp.Width("n"), count(1)
    hidden = _run(x, spec[:-1], width, numbers)
    return _dense(hidden, spec[-1], 1, numbers)


def _dense(parts: Any, op: dict[str, Any], rows: Any, numbers: Iterator[int]) -> Any:
    """W h + b; of channels laid side by side, a sum of one product for each."""
    k = next(numbers)
    parts = parts if isinstance(parts, list) else [(1.0, parts)]
    total = None
    for i, (share, h) in enumerate(parts):
        cols = h.features if isinstance(h.features, int) else tp.Width("n")
        term = tp.weight(f"W{k}.{i}", rows, cols, var=share * op["W_std"] ** 2) @ h
        total = term if total is None else total + term
    return total if op["b_std"] is None else total + tp.bias(f"b{k}", rows, var=op["b_std"] ** 2)


def _run(h: Any, spec: list[dict[str, Any]], width: Any, numbers: Iterator[int]) -> Any:
    for op in spec:
        match op["op"]:
            case "Dense":
                h = _dense(h, op, width, numbers)
            case "Residual":
                h = _added([_run(h, branch, width, numbers) for branch in op["branches"]])
            case "Parallel":
                branches = [_run(h, branch, width, numbers) for branch in op["branches"]]
                if op["combine"] == "sum":
                    h = _added(branches)
                elif op["combine"] == "prod":
                    h = branches[0] * branches[1]
                else:
                    sizes = [branch[0]["width"] for branch in op["branches"]]
                    h = [(size / sum(sizes), b) for size, b in zip(sizes, branches, strict=True)]
            case "Rbf":
                # √2 sin(kz + π/4) = sin kz + cos kz, whose moments have closed forms at any variance.
                wave = math.sqrt(2.0 * op["gamma"]) * h
                h = tp.nonlin(jnp.sin, wave) + tp.nonlin(jnp.cos, wave)
            case _:
                h = tp.nonlin(nonlinearity(op), h)
    return h


def _added(branches: list[Any]) -> Any:
    total = branches[0]
    for branch in branches[1:]:
        total = total + branch
    return total
