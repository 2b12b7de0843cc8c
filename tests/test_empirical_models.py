"""Flax and Equinox models through f(params, x): same kernel as by Jacobians, nearly all by structured derivatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensorprog import empirical


@dataclass
class Model:
    """f and its parameters, and a batch of inputs."""

    f: Callable[[Any, Any], jax.Array]
    params: Any
    x: jax.Array


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)  # as the models' parameters


def tokens(*shape):
    return jax.random.randint(jax.random.key(9), shape, 0, 11)


def linen(module: nn.Module, x: jax.Array) -> Model:
    """Its params; running means and variances are constants."""
    variables = jax.jit(module.init)(jax.random.key(0), x)
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return Model(lambda p, x: module.apply({"params": p, **rest}, x), variables["params"], x)  # pyright: ignore


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(nn.gelu(nn.Dense(16)(x)))


class Block(nn.Module):
    """A residual block in inference mode, after a convolution that changes the channels."""

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)
        x = nn.Conv(8, (3, 3), strides=2)(x)
        y = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(8, (3, 3), use_bias=False)(y))
        return nn.Dense(3)(nn.relu(x + y).mean((1, 2)))


class Transformer(nn.Module):
    """Token and position embeddings, one block, a readout of the mean."""

    @nn.compact
    def __call__(self, x):
        positions = self.param("positions", nn.initializers.normal(0.1), (6, 16))
        h = nn.Embed(11, 16)(x) + positions
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h))
        h = h + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(h))))
        return nn.Dense(3)(nn.LayerNorm()(h).mean(1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.GRUCell(12))(x)[:, -1])  # pyright: ignore[reportCallIssue, reportArgumentType]


def of_nnx(model: Any, x: jax.Array) -> Model:
    """nnx: the model taken apart, its parameters given back at each call."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return Model(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), params, x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.readout = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        return self.readout((x + nnx.relu(self.norm(self.second(x)))).mean((1, 2)))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.readout = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        h = self.embed(x)
        return self.readout(self.norm(h + self.attention(h)).mean(1))


def of_equinox(model: Any, x: jax.Array) -> Model:
    """Equinox models are written for one example."""
    params, static = eqx.partition(model, eqx.is_array)
    return Model(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, x)


class Sequence(eqx.Module):
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.cell, self.readout = eqx.nn.GRUCell(4, 12, key=a), eqx.nn.Linear(12, 3, key=b)

    def __call__(self, x):
        return self.readout(jax.lax.scan(lambda h, row: (self.cell(row, h), None), jnp.zeros(12), x)[0])


def perceptron() -> eqx.nn.MLP:
    return eqx.nn.MLP(5, 3, width_size=16, depth=2, key=jax.random.key(0))


MODELS: dict[str, Callable[[], Model]] = {
    "linen MLP": lambda: linen(Perceptron(), normal(1, 4, 5)),
    "linen ResNet block": lambda: linen(Block(), normal(2, 3, 6, 6, 3)),
    "linen transformer": lambda: linen(Transformer(), tokens(3, 6)),
    "linen GRU": lambda: linen(Recurrent(), normal(3, 3, 5, 4)),
    "nnx ResNet block": lambda: of_nnx(NnxBlock(nnx.Rngs(0)), normal(4, 3, 5, 5, 3)),
    "nnx transformer": lambda: of_nnx(NnxTransformer(nnx.Rngs(0)), tokens(3, 6)),
    "nnx RNN": lambda: of_nnx(nnx.RNN(nnx.SimpleCell(4, 12, rngs=nnx.Rngs(0))), normal(5, 3, 5, 4)),
    "equinox MLP": lambda: of_equinox(perceptron(), normal(6, 4, 5)),
    "equinox MLP as its own parameters": lambda: Model(lambda m, x: jax.vmap(m)(x), perceptron(), normal(6, 4, 5)),
    "equinox GRU": lambda: of_equinox(Sequence(jax.random.key(0)), normal(7, 3, 5, 4)),
}


MORE = {"nnx ResNet block", "nnx transformer", "equinox GRU"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full if n in MORE else ()) for n in MODELS])
def test_models_go_by_structure(name):
    model = MODELS[name]()
    found = empirical.ntk(model.f, model.params, model.x, explain=True)
    assert found.method == "structured"
    assert found.structured_share >= 0.9, str(found)
    both = lambda p: [empirical.ntk(model.f, p, model.x, method=method) for method in ("structured", "jacobian")]
    params, rest = eqx.partition(model.params, eqx.is_inexact_array)
    unoptimised = {"xla_backend_optimization_level": 0}  # compiles in half the time
    ours, theirs = jax.jit(lambda p: both(eqx.combine(p, rest)), compiler_options=unoptimised)(params)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
