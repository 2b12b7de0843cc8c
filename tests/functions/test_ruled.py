"""Functions with derivative rules of their own: values by the function, slopes by the rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import norm

import tensorprog as tp
from tensorprog.functions.base import elementwise, expect_one_slope, expect_slope
from tensorprog.functions.degree import degree
from tensorprog.functions.frozen import freeze
from tensorprog.functions.ruled import ruled

X = np.array([[1.0, 1.0], [1.0, -0.3]])
A, B, C = 1.0, 0.545, 0.35  # ⟨x, x̄⟩/2 of these


@jax.custom_jvp
def reversed_gradient(x):
    return x


reversed_gradient.defjvp(lambda primals, tangents: (primals[0], -tangents[0]))


@jax.custom_jvp
def tenth_gradient(x):
    return x


tenth_gradient.defjvp(lambda primals, tangents: (primals[0], 0.1 * tangents[0]))


@jax.custom_jvp
def square_with_slope_one(x):
    return x * x


square_with_slope_one.defjvp(lambda primals, tangents: (primals[0] ** 2, tangents[0]))


@jax.custom_vjp
def reversed_backward(x):
    return x


reversed_backward.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_vjp
def straight_through_sign(x):
    return jnp.sign(x)


straight_through_sign.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * (jnp.abs(x) <= 1),))


def stopped_sign(x):
    return x + jax.lax.stop_gradient(jnp.sign(x) - x)


@jax.custom_jvp
def own_relu(x):
    return jnp.maximum(x, 0.0)


own_relu.defjvp(lambda primals, tangents: (own_relu(primals[0]), jnp.where(primals[0] > 0, tangents[0], 0.0)))


def network(body):
    def f(x):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ body(tp.weight("U", n, x.features) @ x)

    return tp.trace(f, tp.Input(2))


def inside_one(a):
    return erf(1 / np.sqrt(2 * a))


#: function -> E φ², its derivative in the variance, and E r² with the rule's slope r, for z of variance a
TRUTHS = {
    reversed_gradient: (lambda a: a, lambda a: 1.0, lambda a: 1.0),
    tenth_gradient: (lambda a: a, lambda a: 1.0, lambda a: 0.01),
    square_with_slope_one: (lambda a: 3 * a * a, lambda a: 6 * a, lambda a: 1.0),
    reversed_backward: (lambda a: a, lambda a: 1.0, lambda a: 1.0),
    straight_through_sign: (lambda a: 1.0, lambda a: 0.0, inside_one),
    stopped_sign: (lambda a: 1.0, lambda a: 0.0, lambda a: 1.0),
}


@pytest.mark.parametrize(
    "fn",
    [pytest.param(fn, marks=pytest.mark.full) for fn in TRUTHS],
    ids=[getattr(fn, "__name__", "fn") for fn in TRUTHS],
)
def test_value_by_the_function_slope_by_the_rule(fn):
    phi = elementwise(freeze(fn)[0], 0)

    def both(a):
        value, slope = expect_one_slope(phi, phi, a)
        return value[0], slope[0]

    a = 1.7
    (value, slope), (dvalue, _) = jax.jit(lambda a: (both(a), jax.jacfwd(both)(a)))(a)
    found = [value, dvalue, slope]
    np.testing.assert_allclose(found, [truth(a) for truth in TRUTHS[fn]], rtol=1e-9, atol=1e-9)


@pytest.mark.full
def test_pairs_and_their_derivatives():
    """E sign sign, E r r̄ and d/dc, of a straight-through sign."""
    phi = elementwise(freeze(straight_through_sign)[0], 0)

    def both(c):
        value, slope = expect_slope(phi, phi, A, B, c)
        return value[0], slope[0]

    (value, slope), (dvalue, dslope) = jax.jit(lambda c: (both(c), jax.jacfwd(both)(c)))(C)
    np.testing.assert_allclose(value, 2 / np.pi * np.arcsin(C / np.sqrt(A * B)), rtol=1e-12)
    np.testing.assert_allclose(dvalue, 2 / np.pi / np.sqrt(A * B - C * C), rtol=1e-10)

    def box(c):  # P(|u| < 1, |v| < 1), one integral of the conditional probability
        z, w = np.polynomial.legendre.leggauss(200)
        spread = np.sqrt(B - c * c / A)
        upper, lower = ((t - c / A * z) / spread for t in (1.0, -1.0))
        return (w * norm.pdf(z, scale=np.sqrt(A)) * (norm.cdf(upper) - norm.cdf(lower))).sum()

    np.testing.assert_allclose(slope, box(C), rtol=1e-11)
    np.testing.assert_allclose(dslope, (box(C + 1e-5) - box(C - 1e-5)) / 2e-5, rtol=1e-8)


def test_rules_that_are_the_derivative_are_kept():
    for fn in (
        jax.nn.softplus,
        lambda z: jax.nn.relu(z) ** 2,
        lambda z: jax.nn.logsumexp(jnp.stack([z, 0.0])),
        own_relu,
    ):
        assert not ruled(elementwise(freeze(fn)[0], 0).fn)
    for fn in TRUTHS:
        assert elementwise(freeze(fn)[0], 0).own is not None


def test_no_closed_form_takes_the_place_of_a_rule():
    relu = jax.custom_jvp(jax.nn.relu)
    relu.defjvp(lambda primals, tangents: (jax.nn.relu(primals[0]), tangents[0]))
    phi = elementwise(freeze(relu)[0], 0)
    assert phi.form is None and phi.own is not None
    for fn in TRUTHS:
        assert degree(freeze(fn)[0], 1, 0, ()) is None, "its slope is no polynomial's"


@pytest.mark.parametrize(
    "fn", [reversed_gradient, pytest.param(reversed_backward, marks=pytest.mark.full)], ids=["custom_jvp", "custom_vjp"]
)
def test_moments_take_the_value(fn):
    """What is affine or quadratic in its vectors is rebuilt from slopes; with a rule they are another function's."""
    once = network(lambda h: h * tp.moment(lambda a: fn(a) + 1.0, h))
    np.testing.assert_allclose(tp.nngp(once, X), [[A, C], [C, B]], rtol=1e-10)


@pytest.mark.full
def test_moments_of_degree_two_take_the_value():
    twice = network(lambda h: h * tp.moment(lambda a: reversed_gradient(a) * a, h))
    np.testing.assert_allclose(tp.nngp(twice, X), [[A**3, A * B * C], [A * B * C, B**3]], rtol=1e-10)


@pytest.mark.full
def test_functions_of_a_vector_and_a_scalar():
    program = network(
        lambda h: tp.nonlin(lambda a, t: reversed_gradient(a) * t, h, scalars=(tp.moment(jnp.square, h),))
    )
    np.testing.assert_allclose(tp.nngp(program, X), [[A**3, A * B * C], [A * B * C, B**3]], rtol=1e-10)


def finite(program, width, seeds):
    kernels = [
        tp.empirical.ntk(program, tp.init(program, jax.random.key(seed), width=width), X, method="jacobian")
        for seed in range(seeds)
    ]
    return np.mean(kernels, 0)


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(straight_through_sign, marks=pytest.mark.full, id="sign"),
        pytest.param(tenth_gradient, marks=pytest.mark.full, id="tenth"),
    ],
)
def test_ntk_is_that_of_wide_networks(fn):
    """Two layers, so that the slope's rule meets itself; a wide network's gradients are JAX's."""

    def f(x):
        n = tp.Width("n")
        h = tp.nonlin(fn, tp.weight("U", n, x.features) @ x)
        return tp.weight("v", 1, n) @ tp.nonlin(fn, tp.weight("W", n, n) @ h)

    program = tp.trace(f, tp.Input(2))
    np.testing.assert_allclose(finite(program, 512, 16), tp.ntk(program, X), rtol=0.05)


def test_reverse_mode_serves_where_there_is_no_forward_mode():
    program = network(lambda h: tp.nonlin(straight_through_sign, h))
    params = tp.init(program, jax.random.key(0), width=16)
    kernels = [tp.empirical.ntk(program, params, X, method=m) for m in ("jacobian", "ntvp")]
    np.testing.assert_allclose(kernels[1], kernels[0], rtol=1e-12)
    moved = jax.tree.map(lambda p: p + 0.1, params)
    direction = jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)
    f = lambda p: tp.apply(program, p, X)
    rows = jax.jacrev(f)(params)
    expected = f(params) + sum((rows[k] * direction[k]).sum(tuple(range(1, rows[k].ndim))) for k in rows)
    np.testing.assert_allclose(tp.linearize(program, params)(moved, X), expected, rtol=1e-12)


@pytest.mark.full
def test_functions_of_two_vectors():
    @jax.custom_vjp
    def product(a, b):
        return a * b

    product.defvjp(lambda a, b: (a * b, (a, b)), lambda kept, g: (-g * kept[1], -g * kept[0]))

    def f(x):
        n = tp.Width("n")
        a, b = (tp.weight(name, n, x.features) @ x for name in "UW")
        return tp.weight("v", 1, n) @ tp.nonlin(product, a, b)

    found = tp.kernels(tp.trace(f, tp.Input(2)), X)
    np.testing.assert_allclose(found.nngp, [[A * A, C * C], [C * C, B * B]], rtol=1e-9)
    np.testing.assert_allclose(found.ntk, [[3 * A * A, 3 * C * C], [3 * C * C, 3 * B * B]], rtol=1e-9)
