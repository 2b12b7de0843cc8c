"""`second_moment` of any two vectors, and kernels of functions of two dependent Gaussians."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.accuracy import ALLOWED, SLOPES, UNKNOWN, _worst
from tensorprog.functions.breaks import refuse_jumps
from tensorprog.functions.joint import Partial

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


def two_sites(x: Any, whole: Any, parts: Any) -> Any:
    """Functions of both sites, or of their sum and difference: one Gaussian each."""
    n = tp.Width("n")
    g = tp.weight("U", n, x.features) @ x
    f = parts(g[0] + g[1], g[0] - g[1]) if whole is None else tp.nonlin(whole, g[0], g[1])
    return tp.weight("v", 1, n) @ f


def along(program: tp.Program, kernel: Any, singular: bool) -> Any:
    """A kernel on a line of inputs; `singular`: where it starts both sites of the first are the same."""
    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=(2, 3, 2, 2))
    if singular:
        x[0, 1] = x[0, 0]
    return lambda t: kernel(program, jnp.asarray(x) + t * jnp.asarray(direction))


SINE = (
    tp.trace(two_sites, tp.Input(2, 2), whole=lambda a, b: jnp.sin(a + b), parts=None),
    tp.trace(two_sites, tp.Input(2, 2), whole=None, parts=lambda s, d: tp.nonlin(jnp.sin, s)),
)
"""sin(g + h) of two Gaussians, and of one."""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [tp.nngp, pytest.param(tp.ntk, marks=pytest.mark.full)])
@pytest.mark.parametrize("singular", [pytest.param(False, marks=pytest.mark.full), True])
def test_derivatives_of_smooth_functions_of_two_gaussians(kernel: Any, singular: bool) -> None:
    found, known = (along(p, kernel, singular) for p in SINE)
    np.testing.assert_allclose(found(0.0), known(0.0), rtol=1e-9)
    slopes = jax.jacfwd(known)(0.0)
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(found)(0.0), slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("singular", [False, True])
def test_second_derivatives_of_functions_of_two_gaussians(singular: bool) -> None:
    found, known = (jax.jacfwd(jax.jacrev(along(p, tp.nngp, singular)))(0.0) for p in SINE)
    np.testing.assert_allclose(found, known, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("singular", [False, True])
def test_derivatives_of_kinked_functions_of_two_gaussians(singular: bool) -> None:
    """2 max(g, h) = g + h + |g − h|. Its slopes jump, and derivatives of the NTK lie on the jumps: refused."""
    both = tp.trace(two_sites, tp.Input(2, 2), whole=lambda a, b: 2 * jnp.maximum(a, b), parts=None)
    one = tp.trace(two_sites, tp.Input(2, 2), whole=None, parts=lambda s, d: s + tp.nonlin(jnp.abs, d))
    found, known = (along(p, tp.nngp, singular) for p in (both, one))
    np.testing.assert_allclose(found(0.0), known(0.0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jacfwd(found)(0.0), jax.jacfwd(known)(0.0), rtol=3e-3, atol=3e-3)
    with pytest.raises(
        tp.ProgramError, match=r"(?s)test_second_moment.py:\d+: .*jumps is not differentiated.*softplus"
    ):
        jax.jacfwd(along(both, tp.ntk, singular))(0.0)


def steep(x: Any) -> Any:
    n = tp.Width("n")
    g = tp.weight("U", n, x.features) @ x
    return tp.weight("v", 1, n) @ tp.nonlin(jnp.cos, tp.sum(g * g))


def steep_moment(x: np.ndarray) -> float:
    """E cos²(g₁² + g₂²) = ½ + ½ Re Π (1 − 4iλ)^-½, λ the eigenvalues of the covariance."""
    return float(0.5 + 0.5 * np.prod((1 - 4j * np.linalg.eigvalsh(x @ x.T / 2)) ** -0.5).real)


STEEP = np.random.default_rng(0).normal(size=(2, 2))


def test_who_does_not_ask_for_errors_is_told_of_large_ones() -> None:
    """At large variances a function oscillates between the nodes."""
    program = tp.trace(steep, tp.Input(2, 2))
    assert abs(tp.nngp(program, jnp.asarray(STEEP[None]))[0, 0] - steep_moment(STEEP)) < 1e-12
    with pytest.warns(
        tp.predict.KernelWarning, match=r"test_second_moment.py:\d+: cos\(g.*\n.*off by.*\n.*error=True"
    ) as told:
        warnings.simplefilter("always")
        found = tp.nngp(program, jnp.asarray(15 * STEEP[None]))[0, 0]
    assert len(told) == 1
    assert abs(found - steep_moment(15 * STEEP)) > 1e-8, "the case is what it is said to be"
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("off", "told"),
    [
        ([[0.1, 0.0], [0.0, 1.2]], (np.inf, 1.2, 1)),
        ([[0.1, 0.0], [np.inf, 0.0]], (np.inf, UNKNOWN, 0)),
        ([[0.0, 2 * ALLOWED], [1.5 * SLOPES, np.nan]], (2.0, 2 * ALLOWED, 1)),
    ],
)
def test_what_is_told_of_many_errors(off: Any, told: Any) -> None:
    """A refusal before any warning, and of what nothing is known; NaN is told elsewhere."""
    np.testing.assert_allclose(_worst(np.array(off)), told)


@pytest.mark.slow
def test_slopes_of_kinked_functions_of_two_gaussians() -> None:
    """2 max(g, h) = g + h + |g − h|, with g and h of one variance: its NTK has slopes that jump."""
    x = np.random.default_rng(0).normal(size=(2, 2, 2))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    both = tp.trace(two_sites, tp.Input(2, 2), whole=lambda a, b: 2 * jnp.maximum(a, b), parts=None)
    one = tp.trace(two_sites, tp.Input(2, 2), whole=None, parts=lambda s, d: s + tp.nonlin(jnp.abs, d))
    found, known = (tp.kernels(p, jnp.asarray(x)) for p in (both, one))
    np.testing.assert_allclose(found.nngp, known.nngp, rtol=1e-3)
    np.testing.assert_allclose(found.ntk, known.ntk, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_which_functions_jump(dtype: str) -> None:
    smooth = (
        lambda z, given: jnp.exp(z[0] + z[1]),
        lambda z, given: jnp.cos(50 * z[0] * z[1]),
        lambda z, given: jnp.tanh(1000 * z[0]) * z[1],
        lambda z, given: jnp.sin(z[0] ** 3) * jnp.sin(z[1] ** 3),
        lambda z, given: jax.nn.relu(z[0]) * z[1],
        lambda z, given: jnp.abs(z[0]) ** 0.5,
    )
    jumping = (
        lambda z, given: jnp.sign(z[0]) * z[1],
        lambda z, given: jnp.exp(z[0] ** 2) * z[1] + (z[0] > 0),
        lambda z, given: jnp.floor(z[0] + z[1]),
        Partial(lambda z, given: jax.nn.relu(z[0]) * z[1], 0),
    )
    cov = jnp.eye(2, dtype=dtype)
    for fn in smooth:
        refuse_jumps(fn, cov, ())
    for fn in jumping:
        with pytest.raises(tp.ProgramError, match="jumps is not differentiated"):
            refuse_jumps(fn, cov, ())


@pytest.mark.full
@pytest.mark.slow
def test_bounds_hold_where_a_function_oscillates_between_the_nodes() -> None:
    program = tp.trace(steep, tp.Input(2, 2))
    for scale in (1.0, 3.0, 5.0, 6.0, 7.0, 8.0):  # further out no node sees the oscillation, and bounds hold by chance
        found = tp.kernels(program, jnp.asarray(scale * STEEP[None]), error=True)
        assert abs(found.nngp[0, 0] - steep_moment(scale * STEEP)) <= found.error.nngp[0, 0]


def two_vectors(x: Any, fn: Any, var: float) -> Any:
    n = tp.Width("n")
    a, b = tp.weight("A", n, x.features) @ x, tp.weight("B", n, x.features, var=var) @ x
    return tp.weight("v", 1, n) @ tp.nonlin(fn, a, b)


def near(t: float) -> np.ndarray:
    """Two inputs whose first Gaussians have correlation cos t, and the variances of their weights."""
    return np.sqrt(2) * np.array([[1.0, 0.0], [np.cos(t), np.sin(t)]])


@pytest.mark.full
def test_an_oscillating_product_of_inputs_near_each_other() -> None:
    """a·sin(6b): both kernels are 2-term products of closed forms, with most of them beyond any series' reach."""
    r, q = np.cos(0.1) ** np.array([0, 1]), 72.0
    sines, cosines = ((np.exp(-q * (1 - r)) + sign * np.exp(-q * (1 + r))) / 2 for sign in (-1, 1))
    program = tp.trace(two_vectors, tp.Input(2), fn=lambda a, b: a * jnp.sin(6 * b), var=2.0)
    found = tp.kernels(program, near(0.1), error=True)
    for kernel, truth in (("nngp", r * sines), ("ntk", 2 * r * sines + q * r**2 * cosines)):
        np.testing.assert_allclose(getattr(found, kernel)[0], truth, rtol=1e-11)
        off = np.abs(getattr(found, kernel)[0] - truth)
        assert (off <= getattr(found.error, kernel)[0] + 1e-13 * truth).all()
        assert (getattr(found.error, kernel)[0] <= 1e-10 * truth).all()


@pytest.mark.parametrize("t", [1.0, 0.02, 0.0])
def test_a_kinked_product_of_inputs_near_each_other(t: float) -> None:
    """relu(a)·relu(b) is a product of arc-cosine kernels, for x2 given or not."""
    program = tp.trace(two_vectors, tp.Input(2), fn=lambda a, b: jax.nn.relu(a) * jax.nn.relu(b), var=1.0)
    r = np.cos(t)
    flat = (np.pi - t) / (2 * np.pi)
    value = (np.sin(t) + (np.pi - t) * r) / (2 * np.pi)
    x = near(t)
    found, across = tp.kernels(program, x), tp.kernels(program, x[:1], x[1:])
    for kernels in (found.nngp[0, 1], found.ntk[0, 1]), (across.nngp[0, 0], across.ntk[0, 0]):
        np.testing.assert_allclose(kernels, (value**2, value**2 + 2 * r * flat * value), rtol=1e-7)


@pytest.mark.slow
def test_what_no_node_sees_is_refused_and_the_remedy_works() -> None:
    program = tp.trace(two_vectors, tp.Input(2), fn=lambda a, b: jnp.exp(-5000 * (a**2 + a * b + b**2)), var=1.0)
    with pytest.raises(tp.ProgramError, match=r'(?s)test_second_moment.py:\d+: lambda.*nothing is known.*"backward"'):
        tp.nngp(program, near(0.5)[:1])
    assert np.isfinite(tp.kernels(program, near(0.5)[:1], method="backward", samples=2**10).ntk).all()
