"""Functions of many jumps: all within reach are used, in values and derivatives, or the function is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import tensorprog as tp
from tensorprog.functions.base import crowded, elementwise, expect_one, expect_slope
from tensorprog.functions.derived import Slope
from tensorprog.functions.frozen import freeze
from tensorprog.functions.jumps import jumps

FINE = 1e5  # beyond what a Gaussian here reaches


def quarters(z):
    return jnp.round(4 * z) / 4


def fraction(z):
    return z % 1


def square_wave(z):
    return jnp.sign(jnp.sin(10 * z))


def steps(z):
    return jnp.digitize(z, np.linspace(-1.0, 1.0, 9)).astype(z.dtype)


#: function -> its jumps up to 9, the same in NumPy
FUNCTIONS = {
    quarters: ((np.arange(-36, 36) + 0.5) / 4, lambda z: np.round(4 * z) / 4),
    jnp.floor: (np.arange(-9.0, 10.0), np.floor),
    fraction: (np.arange(-9.0, 10.0), lambda z: z % 1),
    square_wave: (np.arange(-28, 29) * np.pi / 10, lambda z: np.sign(np.sin(10 * z))),
    steps: (np.linspace(-1.0, 1.0, 9), lambda z: np.digitize(z, np.linspace(-1.0, 1.0, 9))),
}


def elementwise_of(fn):
    return elementwise(freeze(fn)[0], 0)


def split(places, deviation):
    """Nodes and weights of N(0, 1) that are split at a function's jumps."""
    edges = np.unique(np.concatenate([[-8.5, 8.5], np.arange(-8, 9), places / deviation]))
    edges = edges[np.abs(edges) <= 8.5]
    z, w = np.polynomial.legendre.leggauss(24)
    middle, half = (edges[1:] + edges[:-1])[:, None] / 2, np.diff(edges)[:, None] / 2
    nodes = (middle + half * z).reshape(-1)
    return nodes, (half * w).reshape(-1) * norm.pdf(nodes)


def square(places, fn, variance):
    z, w = split(places, np.sqrt(variance))
    return (w * fn(np.sqrt(variance) * z) ** 2).sum()


def rarely(fns, *usual):
    """All of them in the full run, the usual ones always."""
    return [pytest.param(fn, id=fn.__name__, marks=() if fn in usual else pytest.mark.full) for fn in fns]


@pytest.mark.parametrize("fn", rarely(FUNCTIONS, quarters))
def test_all_jumps_within_reach(fn):
    phi = elementwise_of(fn)
    places, heights = (np.asarray(x) for x in jumps(phi.fn, (), jnp.float64))
    near = (np.abs(places) < 9.1) & (np.abs(heights[:, 0]) > 1e-9)
    np.testing.assert_allclose(places[near], FUNCTIONS[fn][0], rtol=1e-13, atol=1e-13)


@pytest.mark.full
@pytest.mark.parametrize("fn", rarely([quarters, square_wave], quarters))
def test_second_moment_and_its_derivative(fn):
    phi, (places, plain), a = elementwise_of(fn), FUNCTIONS[fn], 0.7
    value, slope = jax.jit(jax.value_and_grad(lambda a: expect_one(phi, phi, a)))(a)
    np.testing.assert_allclose(value, square(places, plain, a), rtol=1e-12)
    truth = (square(places, plain, a + 1e-4) - square(places, plain, a - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope, truth, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.full)])
def test_kernel_of_a_staircase_and_its_derivative(dtype):
    """x = [1, 1] against [1, −0.3], variance 1.5: given u, v's staircase is a sum of normal probabilities."""
    phi, places = elementwise_of(quarters), (np.arange(-60, 60) + 0.5) / 4

    def truth(v, ratio=0.35):
        a, b, c = v, v * 1.09 / 2, v * ratio
        z, w = split(places, np.sqrt(a))
        beyond = norm.sf((places - c / np.sqrt(a) * z[:, None]) / np.sqrt(b - c * c / a)) - (places < 0)
        return (w * np.round(4 * np.sqrt(a) * z) / 4 * 0.25 * beyond.sum(1)).sum()

    value = lambda v, ratio: expect_slope(phi, phi, v, v * 1.09 / 2, v * ratio)[0][0]
    both = jax.jit(jax.value_and_grad(value))
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    for ratio in (0.35, 0.73):  # the second near correlation 1
        v, ratio_ = jnp.asarray(1.5, dtype), jnp.asarray(ratio, dtype)
        found, slope = both(v, ratio_)
        np.testing.assert_allclose(found, truth(1.5, ratio), rtol=tolerance)
        difference = (truth(1.5 + 1e-4, ratio) - truth(1.5 - 1e-4, ratio)) / 2e-4
        np.testing.assert_allclose(slope, difference, rtol=max(tolerance, 1e-7))


def test_more_jumps_than_are_kept():
    """Steps of 1/50 up to 256 of them, 1/1000 finer than the grid: told, by how far a Gaussian reaches."""
    fine, finer = (elementwise_of(lambda z, n=n: jnp.round(n * z) / n) for n in (50, 1000))
    assert [crowded(fine, v) for v in (0.05, 1.0)] == [False, True]
    assert crowded(finer, 0.01)
    assert not crowded(elementwise_of(quarters), 10.0) and crowded(elementwise_of(quarters), 20.0)


@pytest.mark.full
def test_few_jumps_are_never_too_many():
    assert crowded(elementwise_of(jnp.floor), 1e3)
    assert not any(crowded(elementwise_of(fn), FINE) for fn in (steps, jax.nn.relu6, lambda z: jnp.tanh(1e4 * z)))


@pytest.mark.full
def test_they_are_refused_at_their_line():
    def network(fn):
        def f(x):
            n = tp.Width("n")
            return tp.weight("v", 1, n) @ tp.nonlin(fn, tp.weight("U", n, x.features) @ x)

        return tp.trace(f, tp.Input(2))

    x = np.array([[1.0, 1.0]])
    with pytest.raises(tp.ProgramError, match=r"jumps at more places .* of variance 1\n.*fewer steps"):
        tp.nngp(network(lambda z: jnp.round(50 * z) / 50), x)
    assert tp.nngp(network(lambda z: z), x) == 1.0  # the smooth function that it follows


def clipped(z):
    """Slope −0.25 before a clip at −1, where rounding makes ties, at which JAX's slope is the mean of both sides."""
    return jnp.clip(-0.305 * jnp.cos(0.966 * z - 0.595) - 0.831, -1.0, 1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ties_of_what_is_rounded_do_not_halve_a_jump(dtype):
    places, heights = jumps(Slope(clipped), (), jnp.dtype(dtype))
    near = np.abs(places) < 3
    known = np.array([-0.40219137, 1.63407543])  # where the cosine is 0.169 / 0.305
    np.testing.assert_allclose(places[near], known, rtol=1e-4)
    np.testing.assert_allclose(heights[near, 0], 0.305 * 0.966 * np.sqrt(1 - (0.169 / 0.305) ** 2), rtol=1e-3)
