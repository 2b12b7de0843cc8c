"""Networks with batch norm: a whole batch is one input, by integrals where there are some, else from samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import tensorprog as tp
from tensorprog.interpret.system import parameter_weights
from tensorprog.nets import net
from tensorprog.sampling.kernels import sampled_kernels

SLOW = pytest.mark.slow


def batches(count: int, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, *shape)))


def sampled(program: tp.Program, x: Any, samples: int) -> Any:
    weights = parameter_weights(program, "multiplier-std", None)
    return sampled_kernels(program, (x,), None, weights, samples, jax.random.key(1))[0]


@SLOW
@pytest.mark.parametrize(
    "keywords",
    [
        {"depth": 1},
        {"depth": 1, "fn": jax.nn.identity},
        pytest.param({"depth": 2, "fn": jax.nn.leaky_relu}, marks=pytest.mark.full),
    ],
    ids=["relu", "linear", "leaky"],
)
def test_integrals_agree_with_samples(keywords: Any) -> None:
    x = batches(2, (6, 3))
    program = net("batchnorm_mlp").program(tp.Input(6, 3), **keywords)
    exact, drawn = tp.kernels(program, x, error=True), sampled(program, x, 2**16)
    for value, found, error in (
        (exact.nngp, drawn.nngp, drawn.nngp_error),
        (exact.ntk, drawn.ntk, drawn.ntk_error),
    ):
        # Of 8 replicates an entry's own error is now and then too small: it counts with those of all entries.
        deviation = np.asarray(np.abs(value - found) / np.hypot(error, np.sqrt(np.mean(np.square(error)))))
        assert deviation.max() < 5 and np.sqrt((deviation**2).mean()) < 2.5  # entries are not independent
    assert np.max(exact.error.ntk) < 1e-4 * np.max(exact.ntk)


@pytest.mark.slow
def test_kernels_know_no_scale_and_no_mean_of_the_batch() -> None:
    """BN(a h + b) = BN(h): the variances of what comes before drop out, and so does a bias that the batch shares."""
    x = batches(2, (5, 3))

    def with_bias(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.weight("W", n, x.features, var=3.0) @ x + tp.bias("b", n, var=0.7, mean=0.2)
        s = tp.nonlin(jax.nn.relu, tp.nonlin(tp.functions.batch_norm, h, over=0))
        return tp.weight("v", 1, n) @ s

    plain = net("batchnorm_mlp").program(tp.Input(5, 3), depth=1)
    found = tp.nngp(tp.trace(with_bias, tp.Input(5, 3)), 7.0 * x)
    np.testing.assert_allclose(found, tp.nngp(plain, x), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_symmetric_and_two_batches_agree_with_one() -> None:
    program, x = net("batchnorm_mlp").program(tp.Input(5, 3), depth=1), batches(3, (5, 3))
    whole = tp.ntk(program, x)
    assert (np.asarray(whole) == np.asarray(whole).transpose(1, 0, 3, 2)).all()
    np.testing.assert_allclose(tp.ntk(program, x[:2], x)[0, 1:], whole[0, 1:], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "batch", "fn"),
    [
        pytest.param("depth1", 7, jax.nn.relu, marks=SLOW),
        ("linear_depth1", 5, jax.nn.identity),
        pytest.param("depth2", 7, jax.nn.relu, marks=SLOW),
        pytest.param("depth2", 5, jax.nn.relu, marks=SLOW),
    ],
)
def test_kernels_of_the_papers_within_a_batch(name: str, batch: int, fn: Any) -> None:
    entry, arrays = reference.paper(f"batchnorm_ntk/iid/{name}")
    which = "1" if batch == entry["B1"] else "2"
    inputs = arrays["inputs"][: entry["B1"]] if which == "1" else arrays["inputs"][entry["B1"] :]
    program = net("batchnorm_mlp").program(tp.Input(*inputs.shape), depth=entry["depth"], fn=fn)
    found = tp.kernels(program, jnp.asarray(inputs)[None], convention="init-std")
    np.testing.assert_allclose(found.nngp[0, 0], arrays[f"exact_nngp{which}"], rtol=1e-6)
    np.testing.assert_allclose(found.ntk[0, 0], arrays[f"exact_ntk{which}"], rtol=1e-6)


@SLOW
def test_nngp_of_the_papers_across_batches() -> None:
    _, arrays = reference.paper("batchnorm_nngp/depth2_8x8")
    x = jnp.asarray(arrays["inputs"]).reshape(2, 8, -1)
    found = tp.nngp(net("batchnorm_mlp").program(tp.Input(*x.shape[1:]), depth=2), x)
    np.testing.assert_allclose(np.asarray(found).transpose(0, 2, 1, 3).reshape(16, 16), arrays["exact"], rtol=1e-6)


@pytest.mark.slow
def test_one_input_at_a_time_is_refused() -> None:
    with pytest.raises(tp.ProgramError, match="whole batch"):
        net("batchnorm_mlp").program(tp.Input(4))
    with pytest.raises(tp.ProgramError, match="at least 4 examples"):
        net("batchnorm_mlp").program(tp.Input(3, 4))
    program = net("batchnorm_mlp").program(tp.Input(4, 3), depth=1)
    copies = jnp.ones((2, 4, 3)) * jnp.asarray([1.0, 2.0, 2.0, 3.0])[:, None]
    with pytest.raises(tp.ProgramError, match=r"examples that differ, and batch norm needs 4"):
        tp.ntk(program, copies)
