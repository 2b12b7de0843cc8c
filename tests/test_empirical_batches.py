"""Functions that mix the examples of a batch, or draw: told, and nothing told of those that do neither."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tensorprog import empirical
from tensorprog.errors import KernelWarning

W = np.random.default_rng(0).normal(size=(4, 6))
X = np.random.default_rng(1).normal(size=(3, 4))


def plain(w: Any, x: Any) -> Any:
    return jnp.tanh(x @ w)


def normalised(w: Any, x: Any) -> Any:
    h = x @ w
    return jnp.tanh((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3))


def dropped(w: Any, x: Any) -> Any:
    h = x @ w
    return h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)


def noisy(w: Any, x: Any) -> Any:
    return x @ w + np.random.default_rng().normal(size=(len(x), 6))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (normalised, r"mixes the examples .*use_running_average=True"),
        (dropped, r"mixes the examples .*deterministic=True"),
        (noisy, r"draws random numbers.*deterministic=True"),
    ],
)
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.full)])
def test_what_is_not_a_function_of_one_example(f: Any, words: str, count: int) -> None:
    with pytest.warns(KernelWarning, match=words):
        empirical.ntk(f, W, X[:count], method="jacobian")


@pytest.mark.full
def test_other_kernels_say_it_too() -> None:
    with pytest.warns(KernelWarning, match="mixes"):
        empirical.ntk_vector_product(normalised, W, X, jnp.ones((3, 6)))
    with pytest.warns(KernelWarning, match="mixes"):
        empirical.nngp(normalised, lambda key: jax.random.normal(key, (4, 6)), X, seeds=2)


def test_what_a_head_of_zeros_hides() -> None:
    f = lambda p, x: normalised(p["w"], x) @ p["head"]
    with pytest.warns(KernelWarning, match="mixes"):
        empirical.ntk(f, {"w": W, "head": np.zeros((6, 2))}, X)


def test_nothing_is_told_of_a_function_of_one_example() -> None:
    """Warnings are errors here: rounding of any precision, tokens, trees, repeated examples, traces."""
    for dtype in (np.float64, np.float32, jnp.bfloat16):
        empirical.ntk(plain, jnp.asarray(W, dtype), jnp.asarray(X, dtype))
    table = lambda w, x: w[x].sum(1)
    empirical.ntk(table, jnp.asarray(W), jnp.array([[0, 3]]))
    tree = lambda w, x: plain(w, x["a"]) + x["b"]
    empirical.ntk(tree, W, {"a": X[:1], "b": X[:1, :1]})
    empirical.ntk(plain, W, np.repeat(X[:1], 2, 0))
    jax.jit(lambda x: empirical.ntk(normalised, W, x))(X)


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        h = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(h))


@pytest.mark.full
def test_a_flax_model_in_training_and_as_it_is_used() -> None:
    x = jnp.asarray(X, jnp.float32)
    variables = Block(False).init(jax.random.key(0), x)
    rest = {"batch_stats": variables["batch_stats"]}
    apply = lambda train: lambda p, x: Block(train).apply({"params": p, **rest}, x, mutable=["batch_stats"])[0]
    empirical.ntk(apply(False), variables["params"], x)
    with pytest.warns(KernelWarning, match="use_running_average=True"):
        empirical.ntk(apply(True), variables["params"], x)
