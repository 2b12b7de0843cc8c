"""Reference cases' specs as programs: each operation of a layer library in a line or two of ours."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp

NOT_COVERED = {
    "ExpNormalized": "a map of kernels, of no network",
    "Dropout": "an expectation over masks that each input draws anew: the network is no function of its input",
    "GlobalSelfAttention with linear_scaling false": "infinitely many heads, each with random scores",
}
"""Operations of the cases that are no networks of the language, and why."""


def operations(spec: Any) -> frozenset[str]:
    """Names of all operations of a spec, those in branches included, as `NOT_COVERED` and the conventions call them."""
    if isinstance(spec, list):
        return frozenset().union(*map(operations, spec))
    inside = operations([op for branch in spec.get("branches", []) for op in branch])
    unscaled = " with linear_scaling false" if spec.get("linear_scaling") is False else ""
    return inside | {spec["op"] + unscaled}


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


@dataclass(frozen=True)
class Channels:
    """What a layer reads: vectors laid side by side, with each one's share of the channels.

    `count` is how many channels a spec gives them, `flat` whether all sites are channels too (Flatten).
    """

    parts: tuple[tuple[float, Any], ...]
    count: int | None = None
    flat: bool = False

    @property
    def vector(self) -> Any:
        """The one vector, where nothing is laid side by side."""
        ((_, x),) = self.parts
        assert not self.flat, "only a Dense reads flattened sites"
        return x

    def of(self, x: Any) -> Channels:
        """Another vector with as many channels."""
        return Channels(((1.0, x),), self.count)


def network(x: Any, pattern: Any = None, *, spec: list[dict[str, Any]]) -> Any:
    """A spec as a function of a traced input, and of each graph's `pattern`; its last operation has one output."""
    return _Network(pattern).run(Channels(((1.0, x),)), spec, rows=1).vector


@dataclass
class _Network:
    """A network under construction: parameters are named by their number."""

    pattern: Any

    def __post_init__(self) -> None:
        self.width, self.numbers = tp.Width("n"), count(1)

    def run(self, h: Channels, spec: list[dict[str, Any]], rows: Any = None) -> Channels:
        """A spec applied to h; the last operation has `rows` channels, all others a width."""
        for k, op in enumerate(spec):
            last = k == len(spec) - 1 and rows is not None
            h = self.apply(h, op, rows if last else self.width)
        return h

    def apply(self, h: Channels, op: dict[str, Any], rows: Any) -> Channels:
        match op["op"]:
            case "Dense":
                return Channels(((1.0, self.dense(h, op, rows)),), op.get("width"))
            case "Conv" | "ConvLocal" | "ConvTranspose":
                return h.of(self.convolution(h.vector, op, rows))
            case "GlobalSelfAttention":
                return h.of(self.attention(h, op, rows))
            case "Residual":
                return h.of(_added([self.run(h, branch).vector for branch in op["branches"]]))
            case "Parallel":
                return self.parallel(h, op)
            case "Flatten":
                return replace(h, flat=True)
            case "Aggregate":
                return h.of(tp.mix(tp.scalar(jnp.transpose, self.pattern), h.vector))
            case _:
                return h.of(_without_parameters(h.vector, op))

    def parallel(self, h: Channels, op: dict[str, Any]) -> Channels:
        branches = [self.run(h, branch) for branch in op["branches"]]
        match op["combine"]:
            case "sum":
                return h.of(_added([b.vector for b in branches]))
            case "prod":
                return h.of(branches[0].vector * branches[1].vector)
            case _:
                sizes = [branch[0]["width"] for branch in op["branches"]]
                shares = [size / sum(sizes) for size in sizes]
                return Channels(tuple((share, b.vector) for share, b in zip(shares, branches, strict=True)), sum(sizes))

    def product(self, name: str, h: Channels, rows: Any, std: float) -> Any:
        """W h at each site, or of all sites at once; of channels laid side by side, a sum of one product for each."""
        terms = []
        for k, (share, x) in enumerate(h.parts):
            W = partial(tp.weight, f"{name}.{k}", rows, self.columns(x), var=share * std**2)
            if h.flat:
                terms.append(tp.conv(W(window=x.sites), x, padding="VALID")[(0,) * len(x.sites)])
            else:
                terms.append(W() @ x)
        return _added(terms)

    def columns(self, x: Any) -> Any:
        return x.features if isinstance(x.features, int) else self.width

    def biased(self, y: Any, op: dict[str, Any], rows: Any, sites: Sequence[int] = ()) -> Any:
        if op["b_std"] is None:
            return y
        return y + tp.bias(f"b{next(self.numbers)}", rows, var=op["b_std"] ** 2, sites=sites)

    def dense(self, h: Channels, op: dict[str, Any], rows: Any) -> Any:
        return self.biased(self.product(f"W{next(self.numbers)}", h, rows, op["W_std"]), op, rows)

    def convolution(self, x: Any, op: dict[str, Any], rows: Any) -> Any:
        how: dict[str, Any] = {"strides": op["strides"], "padding": op["padding"]}
        name, var = f"W{next(self.numbers)}", op["W_std"] ** 2
        W = partial(tp.weight, name, rows, self.columns(x), var=var, window=op["filter"])
        if op["op"] == "ConvTranspose":
            return self.biased(tp.conv_transpose(W(), x, **how), op, rows)
        if op["op"] == "Conv":
            return self.biased(tp.conv(W(), x, **how), op, rows)
        reach = op["filter"] if op["padding"] == "VALID" else (1,) * len(x.sites)
        sites = [(size - w) // s + 1 for size, w, s in zip(x.sites, reach, op["strides"], strict=True)]
        return self.biased(tp.conv_local(W(sites=sites), x, **how), op, rows, sites)

    def attention(self, h: Channels, op: dict[str, Any], rows: Any) -> Any:
        """W_out Σ_q φ(QK S)[p, q] W_V x[q]; every head has the same scores, so one stands for all."""
        number, places = next(self.numbers), h.vector.sites
        x = tp.reshape(h.vector, -1)
        plain = placed = Channels(((1.0, x),))
        if op["pos_emb"] != "NONE":
            place = self.places(f"p{number}", places, op)
            placed = Channels(((1.0, x + place),))
            if op["pos_emb"] == "CONCAT":
                assert h.count is not None, "the spec says how many channels stand beside the places"
                share = h.count / (h.count + op["n_chan_pos_emb"])
                placed = Channels(((share, x), (1 - share, place)))
        keys = self.product(f"K{number}", placed, self.width, math.sqrt(op["W_query_std"] * op["W_key_std"]))
        values = self.product(f"V{number}", placed if op["val_pos_emb"] else plain, self.width, op["W_value_std"])
        fn = {"SOFTMAX": jax.nn.softmax, "IDENTITY": lambda s: s, "ABS": jnp.abs, "RELU": jax.nn.relu}[op["mechanism"]]
        attended = tp.mix(tp.scalar(fn, tp.inner(keys, keys)), values)
        out = self.product(f"W{number}", Channels(((1.0, attended),)), rows, op["W_out_std"])
        return tp.reshape(self.biased(out, op, rows), places)

    def places(self, name: str, sites: Sequence[int], op: dict[str, Any]) -> Any:
        """Vectors of covariance R at the sites, from independent ones by a root of R."""
        independent = tp.bias(name, self.width, var=op["W_pos_emb_std"] ** 2, sites=(math.prod(sites),))
        if op["pos_decay"] is None:
            return independent
        at = np.stack([axis.ravel() for axis in np.indices(sites)], -1)
        R = np.exp(-((at[:, None] - at[None]) ** 2).sum(-1))
        return tp.mix(np.linalg.cholesky(R), independent)


def _added(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _without_parameters(x: Any, op: dict[str, Any]) -> Any:
    """Pooling, normalisation and functions of one coordinate."""
    match op["op"]:
        case "AvgPool":
            edges = not op["normalize_edges"]
            return tp.pool(x, op["window"], strides=op["strides"], padding=op["padding"], count_edges=edges)
        case "SumPool":
            return tp.pool(x, op["window"], strides=op["strides"], padding=op["padding"], kind="sum")
        case "GlobalAvgPool":
            return tp.mean(x)
        case "GlobalSumPool":
            return tp.sum(x)
        case "LayerNorm":
            return _layer_norm(x, op["axis"])
        case "Rbf":
            # √2 sin(kz + π/4) = sin kz + cos kz, whose moments have closed forms at any variance.
            wave = math.sqrt(2.0 * op["gamma"]) * x
            return tp.nonlin(jnp.sin, wave) + tp.nonlin(jnp.cos, wave)
        case _:
            return tp.nonlin(nonlinearity(op), x)


def _layer_norm(x: Any, axes: Sequence[int]) -> Any:
    """(x − mean)/√(var + ε) over the channels and, of axes counted with the batch's, the sites among them."""
    rank = len(x.sites) + 2
    sites = tuple(a % rank - 1 for a in axes if a % rank != rank - 1)
    assert len(sites) == len(axes) - 1, "the channels are always among the axes"
    kept = [1 if axis in sites else size for axis, size in enumerate(x.sites)]
    centred = x - tp.moment(jax.nn.identity, tp.reshape(tp.mean(x, sites), kept))
    square = tp.moment(operator.mul, centred, centred)
    return centred * tp.scalar(lambda v: 1 / jnp.sqrt(jnp.mean(v, sites, keepdims=True) + 1e-12), square)
