"""Features much narrower than the Gaussian: found, and integrated with a bound that covers, against NumPy rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog.functions.derived import Product, Slope
from tensorprog.functions.general import mean, pairs
from tensorprog.functions.kinks import features

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def reference(fn, centre, width):
    """E fn(z - centre) on panels graded from width / 4 around the centre, without rounding z there."""
    graded = width / 4 * 1.4 ** np.arange(70)
    edges = np.unique(np.clip([*np.arange(-14, 14.1, 0.5), *-graded, 0.0, *graded], -14, 14))
    half = np.diff(edges)[:, None] / 2
    z = (edges[1:] + edges[:-1])[:, None] / 2 + half * NODES
    return float((fn(z) * np.exp(-((z + centre) ** 2) / 2) / np.sqrt(2 * np.pi) * half * WEIGHTS).sum())


def bump(x):
    return np.cosh(np.minimum(np.abs(x), 300.0)) ** -2


SLOPE = Slope(jnp.tanh)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_tanh_of_large_deviations(dtype):
    deviations = np.array([1.0, 300.0, 1e3, 3e3, 5e3, 1e4, 1e5])
    a = jnp.asarray(deviations**2, dtype)
    fns = (jnp.tanh, SLOPE)
    value, bound = jax.jit(lambda a: pairs(fns, fns, a, a, jnp.stack([a, 0.999 * a])))(a)
    other, other_bound = jax.jit(lambda a: mean(Product(SLOPE, 0, SLOPE), a))(a)
    square = np.array([reference(lambda z, k=k: np.tanh(k * z) ** 2, 0.0, 1 / k) for k in deviations])
    slope = np.array([reference(lambda z, k=k: bump(k * z) ** 2, 0.0, 1 / k) for k in deviations])
    for got, limit, truth in (
        (value[0, :, 0], bound[0, :, 0], square),
        (value[0, :, 1], bound[0, :, 1], slope),
        (other, other_bound, slope),
    ):
        assert (np.abs(got - truth) <= limit + 4e-16 * truth).all()
        assert (limit <= 1e2 * float(jnp.finfo(dtype).eps) * truth).all()
    # A bump of area 2 / deviation, seen twice: the density of two Gaussians at the origin.
    far = 4 / (2 * np.pi * np.sqrt(1 - 0.999**2)) / deviations[-1] ** 2
    np.testing.assert_allclose(value[1, -1, 1], far, rtol=1e-4)


@pytest.mark.slow
def test_steep_passage_away_from_the_origin():
    steepness = 3e3

    def fn(z):
        return jnp.tanh(steepness * (z - 0.7))

    one, fns = jnp.array(1.0), (fn, Slope(fn))
    value, bound = jax.jit(lambda a: pairs(fns, fns, a, a, jnp.array([1.0, 0.9999])))(one)
    square = reference(lambda z: np.tanh(steepness * z) ** 2, 0.7, 1 / steepness)
    slope = reference(lambda z: (steepness * bump(steepness * z)) ** 2, 0.7, 1 / steepness)
    assert (np.abs(value[0] - np.array([square, slope])) <= bound[0]).all()
    assert (bound[0] <= 2e-12 * np.abs(value[0])).all()
    density = np.exp(-(0.7**2) / 1.9999) / (2 * np.pi * np.sqrt(1 - 0.9999**2))
    np.testing.assert_allclose(value[1, 1], 4 * density, rtol=1e-3)


def test_narrow_window():
    def window(z):
        return jnp.where(jnp.abs(z - 1.234) < 0.005, 1.0, 0.0)

    value, bound = jax.jit(lambda a: mean(Product(window, 0, window), a))(jnp.array(1.0))
    half = 0.005 * NODES
    truth = float((np.exp(-((1.234 + half) ** 2) / 2) * WEIGHTS).sum() * 0.005 / np.sqrt(2 * np.pi))
    assert abs(value - truth) <= bound + 1e-13 * truth
    assert bound <= 1e-12


@pytest.mark.slow
def test_numbers_that_make_a_function_steep():
    def fn(z, k):
        return jnp.tanh(k * (z - 0.7))

    k = jnp.array(3e3)
    value, bound = jax.jit(lambda k: mean(Product(Slope(fn), 1, Slope(fn)), jnp.array(1.0), (k, k)))(k)
    truth = reference(lambda z: (3e3 * bump(3e3 * z)) ** 2, 0.7, 1 / 3e3)
    assert abs(value - truth) <= bound <= 2e-12 * truth


@pytest.mark.parametrize(
    ("fn", "steep", "scales"),
    [
        (jax.nn.relu, [], []),
        (jnp.tanh, [], [16.0]),
        (lambda z: jnp.tanh(3e3 * (z - 0.7)), [0.7], [1.0]),
        (lambda z: jnp.where(z > 1.5, 1.0, 0.0), [], [16.0]),
    ],
    ids=["relu", "tanh", "steep", "step"],
)
def test_features(fn, steep, scales):
    found = features(fn, (), jnp.float64)
    np.testing.assert_allclose(found.steep, steep, atol=1e-3)
    np.testing.assert_array_equal(found.scales, scales)
