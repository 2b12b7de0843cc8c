"""`second_moment` of any two vectors, and kernels of functions of two dependent Gaussians."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
ERF = jax.scipy.special.erf


@pytest.mark.slow
def test_a_gaussian_with_a_mean_and_a_function() -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        return tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x + tp.bias("b", n, mean=2.0, var=0.1))

    program = tp.trace(net, tp.Input(4))
    found = tp.second_moment(program, "g1", "s1", X)
    np.testing.assert_allclose(found, tp.second_moment(program, "s1", "g1", X).T, rtol=1e-12)
    rng = np.random.default_rng(1)
    cov = np.asarray(X @ X.T) / 4 + 0.1
    g = 2.0 + rng.normal(size=(2_000_000, 3)) @ np.linalg.cholesky(cov).T
    np.testing.assert_allclose(found, g.T @ np.maximum(g, 0) / len(g), rtol=5e-3)


def test_w_and_its_transpose_off_the_path_of_the_output() -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        W = tp.weight("W", n, n)
        a = tp.named("a", W @ tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x))
        tp.named("b", W.T @ a)
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, a)

    program = tp.trace(net, tp.Input(4))
    assert tp.second_moment(program, "a", "a", X).shape == (3, 3)
    with pytest.raises(tp.ProgramError, match="both act forward"):
        tp.second_moment(program, "b", "b", X)


@pytest.mark.full
@pytest.mark.slow
def test_the_kernels_of_a_function_of_two_dependent_gaussians() -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        W = tp.weight("W", n, n)
        h = tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x)
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.maximum, W @ h, W @ tp.nonlin(ERF, h))

    program = tp.trace(net, tp.Input(4))
    nngp, ntk = tp.nngp(program, X), tp.ntk(program, X)
    parts = tp.ntk_by_parameter(program, X)
    np.testing.assert_allclose(sum(parts.values()), ntk, rtol=1e-9)
    found = tp.kernels(program, X, method="backward", error=True, samples=2**16)
    assert (np.abs(found.nngp - nngp) <= 4 * found.error.nngp + 1e-4).all()
    assert (np.abs(found.ntk - ntk) <= 4 * found.error.ntk + 1e-3).all()


def test_a_function_of_two_dependent_gaussians() -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        return tp.weight("v", 1, n) @ tp.nonlin(lambda a, b: jnp.tanh(a + 0.5 * b), h, h + tp.bias("b", n))

    program = tp.trace(net, tp.Input(4))
    assert np.isfinite(tp.nngp(program, X)).all()


def test_a_backward_pass_is_refused_by_the_kernel_interpreter() -> None:
    back = tp.backprop(tp.nets.ZOO["mlp"])
    with pytest.raises(tp.ProgramError, match="product of a backward pass"):
        tp.nngp(back, X)
