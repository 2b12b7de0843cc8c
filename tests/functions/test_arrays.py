"""Functions that hold arrays: numbers of the program as a whole, in values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import tensorprog as tp
from tensorprog.functions import general
from tensorprog.functions.base import elementwise, expect_one, expect_slope
from tensorprog.functions.frozen import freeze

X = np.array([[1.0, 1.0], [1.0, -0.3]])
A, B, C = 1.0, 0.545, 0.35  # ⟨x, x̄⟩/2 of these
W = jnp.array([0.5, 0.3])
KNOTS, VALUES = jnp.linspace(-2.0, 2.0, 9), jnp.sin(jnp.linspace(-4.0, 4.0, 9))


def network(body):
    def f(x):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ body(tp.weight("U", n, x.features) @ x)

    return tp.trace(f, tp.Input(2))


def quadratic(w):
    return lambda a: w[0] * a + w[1] * a * a


def function(fn):
    frozen, held = freeze(fn)
    return elementwise(frozen, tuple(h.shape for h in held)), held


def test_values_and_derivatives_in_an_array():
    """E (w₀ z + w₁ z²)² = w₀² a + 3 w₁² a²."""
    phi, _ = function(lambda a: quadratic(W)(a) ** 2)
    square = lambda w, a: general.mean(phi.fn, a, (w,))[0]
    a = 1.7
    value, (dw, da) = jax.jit(jax.value_and_grad(square, (0, 1)))(W, a)
    np.testing.assert_allclose(value, W[0] ** 2 * a + 3 * W[1] ** 2 * a * a, rtol=1e-13)
    np.testing.assert_allclose(dw, [2 * W[0] * a, 6 * W[1] * a * a], rtol=1e-13)
    np.testing.assert_allclose(da, W[0] ** 2 + 6 * W[1] ** 2 * a, rtol=1e-12)


@pytest.mark.full
def test_interpolation_and_its_derivatives():
    """A function with kinks at the knots; E φ is Σ value · (hat's mean), so it is linear in the values."""
    phi, _ = function(lambda a: jnp.interp(a, KNOTS, VALUES))
    knots = np.asarray(KNOTS)
    z = np.linspace(-9, 9, 200_001)  # the knots are among these points
    weights = norm.pdf(z) * (z[1] - z[0])
    hats = np.array([(weights * np.interp(z, knots, one)).sum() for one in np.eye(len(knots))])
    mean = lambda values: general.mean(phi.fn, jnp.asarray(1.0), (KNOTS, values))[0]
    value, slope = jax.jit(jax.value_and_grad(mean))(VALUES)
    np.testing.assert_allclose(slope, hats, atol=1e-8)
    np.testing.assert_allclose(value, hats @ VALUES, atol=1e-8)


@pytest.mark.slow
def test_moments_with_arrays():
    program = network(lambda h: h * tp.moment(lambda a: W[0] * a * a + W[1], h))
    own = np.array([W[0] * A + W[1], W[0] * B + W[1]])
    np.testing.assert_allclose(tp.nngp(program, X), np.outer(own, own) * [[A, C], [C, B]], rtol=1e-13)


@pytest.mark.full
def test_moments_are_differentiated_in_arrays():
    own = np.array([W[0] * A + W[1], W[0] * B + W[1]])
    grad = jax.grad(lambda w: tp.nngp(network(lambda h: h * tp.moment(lambda a: w[0] * a * a + w[1], h)), X)[0, 1])(W)
    np.testing.assert_allclose(grad, [C * (A * own[1] + B * own[0]), C * own.sum()], rtol=1e-12)


def test_large_arrays_are_one_number():
    large = jnp.ones((3000, 3000))
    program = network(lambda h: h * tp.moment(lambda a: a * a * large[0, 1], h))
    found = tp.nngp(program, X)
    np.testing.assert_allclose(found, [[A**3, A * B * C], [A * B * C, B**3]], rtol=1e-13)
    assert (3000, 3000) in program.structure.number_sites
    phi, held = function(lambda a: a * large[0, 1])
    with pytest.raises(tp.ProgramError, match="array of 9000000 numbers"):
        jax.eval_shape(jax.grad(lambda w: expect_one(phi, phi, 1.0, (w,), (w,))), *held)


@pytest.mark.full
def test_kernels_and_their_derivatives():
    """E φ(u)φ(v) = w₀² c + w₁² (ab + 2c²), and the NTK adds c E φ′φ′ = c (w₀² + 4 w₁² c)."""
    nngp = W[0] ** 2 * C + W[1] ** 2 * (A * B + 2 * C * C)
    found = tp.kernels(network(lambda h: tp.nonlin(quadratic(W), h)), X)
    np.testing.assert_allclose(found.nngp[0, 1], nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk[0, 1], nngp + C * (W[0] ** 2 + 4 * W[1] ** 2 * C), rtol=1e-12)
    grad = jax.grad(lambda w: tp.nngp(network(lambda h: tp.nonlin(quadratic(w), h)), X)[0, 1])(W)
    np.testing.assert_allclose(grad, [2 * W[0] * C, 2 * W[1] * (A * B + 2 * C * C)], rtol=1e-11)


@pytest.mark.full
def test_layers_with_arrays_of_their_own():
    """Equal functions with other arrays are one group of equations, also in a loop over layers."""

    def f(x):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        for k in range(4):
            w = jnp.array([0.5 + 0.1 * k, 0.3])
            h = tp.weight(f"W{k}", n, n) @ tp.nonlin(lambda a, w=w: w[0] * a + w[1] * jnp.abs(a), h)
        return tp.weight("v", 1, n) @ h

    a = A
    for k in range(4):
        a = ((0.5 + 0.1 * k) ** 2 + 0.3**2) * a
    np.testing.assert_allclose(tp.nngp(tp.trace(f, tp.Input(2)), X)[0, 0], a, rtol=1e-12)


@pytest.mark.full
def test_functions_of_two_vectors_with_arrays():
    def program(w):
        def f(x):
            n = tp.Width("n")
            a, b = (tp.weight(name, n, x.features) @ x for name in "UV")
            return tp.weight("v", 1, n) @ tp.nonlin(lambda a, b: w[0] * a * b + w[1] * a, a, b)

        return tp.trace(f, tp.Input(2))

    np.testing.assert_allclose(tp.nngp(program(W), X)[0, 1], W[0] ** 2 * C * C + W[1] ** 2 * C, rtol=1e-10)
    grad = jax.grad(lambda w: tp.nngp(program(w), X)[0, 1])(W)
    np.testing.assert_allclose(grad, [2 * W[0] * C * C, 2 * W[1] * C], rtol=1e-9)


@pytest.mark.full
def test_slopes_of_pairs_in_an_array():
    """d/dw of E φ′(u)φ′(v) = w₀² + 4 w₁² c."""
    phi, _ = function(quadratic(W))
    slope = lambda w: expect_slope(phi, phi, A, B, C, (w,), (w,))[1][0]
    np.testing.assert_allclose(jax.jit(jax.grad(slope))(W), [2 * W[0], 8 * W[1] * C], rtol=1e-11)
