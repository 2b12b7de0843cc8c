"""Every closed form of the table against quadrature and simulation, at its edges, and as something to differentiate."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog.functions import base, cdf, hermite, rbf, rectified, step
from tensorprog.functions.base import IDENTITY, ONE, Elementwise, derivative, elementwise, expect, expect_one, mean
from tensorprog.functions.frozen import freeze
from tensorprog.functions.piecewise import Piecewise, kinked, polynomial
from tensorprog.functions.table import TABLE, recognise, shown


def made(fn: Callable[..., Any]) -> Elementwise:
    function, numbers = freeze(fn)
    return elementwise(function, len(numbers))


def expect_same(fn: Callable[..., Any], a: Any, b: Any, c: Any) -> jax.Array:
    return expect(made(fn), made(fn), a, b, c)


GELU = made(functools.partial(jax.nn.gelu, approximate=False))
ENTRIES = [made(fn) for fn in shown()]
DERIVATIVES = [derivative(entry) for entry in ENTRIES]
ALL = list({phi.form: phi for phi in reversed(ENTRIES + DERIVATIVES)}.values())[::-1]  # one function a form
each = pytest.mark.parametrize("phi", ALL, ids=[str(phi) for phi in ALL])
some = [phi if k % 3 == 0 else pytest.param(phi, marks=pytest.mark.full) for k, phi in enumerate(ALL)]
POINTS = [
    (a, b, r) for a, b in ((1.0, 1.0), (3.0, 0.4), (1e-6, 0.7)) for r in (0.0, 0.4, -0.7, 0.999, -0.999, 1 - 1e-6)
]


def grows(phi: Elementwise) -> bool:
    return base.polynomially_bounded(phi) is False


def jumps(phi: Elementwise) -> bool:
    return isinstance(phi.form, Piecewise) and any(term.signed and term.p == 0 for _, term in phi.form.terms)


# ---- an independent reference ---------------------------------------------------------------------------------------

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
OUTER = np.array([0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1, 2, 3, 4.5, 6, 8, 11, 15])
OUTER = np.concatenate([-OUTER[:0:-1], OUTER])
INNER = np.linspace(0, 1, 7)


def panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre between neighbouring edges along the last axis, times the normal density."""
    half, middle = np.diff(edges)[..., None] / 2, ((edges[..., 1:] + edges[..., :-1]) / 2)[..., None]
    z = (middle + half * NODES).reshape(*edges.shape[:-1], -1)
    weights = np.broadcast_to(half * WEIGHTS, (*half.shape[:-1], len(NODES))).reshape(z.shape)
    return z, weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


@functools.cache
def vectorised(fn: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
    run = jax.jit(jax.vmap(fn))
    return lambda z: np.asarray(run(jnp.asarray(z).ravel())).reshape(z.shape)


def quadrature(phi, psi, a: float, b: float, r: float) -> float:
    """Two nested rules, over u and over v given u, split where u or v changes sign."""
    phi, psi = vectorised(phi), vectorised(psi)
    x, outer = panels(OUTER)
    if abs(r) == 1:
        return float((outer * phi(math.sqrt(a) * x) * psi(r * math.sqrt(b) * x)).sum())
    s = math.sqrt((1 - r) * (1 + r))
    kink = np.clip(-r * x / s, -15, 15)[:, None]
    edges = np.concatenate([-15 + (kink + 15) * INNER[:-1], kink + (15 - kink) * INNER], -1)
    w, inner = panels(edges)
    given = (inner * psi(math.sqrt(b) * (r * x[:, None] + s * w))).sum(-1)
    return float((outer * phi(math.sqrt(a) * x) * given).sum())


def scale(phi, psi, a: float, b: float) -> float:
    return math.sqrt(quadrature(phi, phi, a, a, 1.0) * quadrature(psi, psi, b, b, 1.0))


def users(phi: Elementwise) -> Callable[..., Any]:
    """The function as the user wrote it, differentiated by JAX: nothing of the closed form."""
    for entry, dphi in zip(ENTRIES, DERIVATIVES, strict=True):
        if phi == entry:
            return entry.fn
        if phi == dphi:
            return jax.grad(entry.fn)
    raise AssertionError(phi)


users = functools.cache(users)


# ---- values ---------------------------------------------------------------------------------------------------------


@each
def test_pair_is_quadrature(phi):
    f = users(phi)
    a, b, r = (jnp.asarray(column) for column in zip(*POINTS, strict=True))
    values, bounds = base.expect_error(phi, phi, a, b, r * jnp.sqrt(a * b))
    for point, value, bound in zip(POINTS, values, bounds, strict=True):
        tolerance = 1e-12 * scale(f, f, *point[:2])
        assert abs(value - quadrature(f, f, *point)) <= tolerance + bound, point
        assert bound <= 1e3 * tolerance + (1e-9 if jumps(phi) else 0), point


@each
def test_mean_and_one_gaussian_are_quadrature(phi):
    f = users(phi)
    for a in (1e-6, 0.7, 3.0):
        size = scale(f, f, a, a)
        np.testing.assert_allclose(expect_one(phi, phi, a), size, rtol=1e-12)
        expected = quadrature(f, lambda z: jnp.ones_like(z), a, a, 1.0)
        np.testing.assert_allclose(mean(phi, a), expected, rtol=0, atol=1e-12 * math.sqrt(size))


@each
def test_pair_is_simulation(phi):
    f, (a, b, r) = vectorised(users(phi)), (0.8, 0.5, 0.6)
    x, w = np.random.default_rng(0).standard_normal((2, 2**20))
    draws = f(math.sqrt(a) * x) * f(math.sqrt(b) * (r * x + 0.8 * w))
    value = expect(phi, phi, a, b, r * math.sqrt(a * b))
    assert abs(value - draws.mean()) <= 4 * draws.std() / 2**10 + 1e-12


FAMILIES = [
    [made(jax.nn.relu), derivative(made(jax.nn.relu)), made(jnp.abs), made(functools.partial(jax.lax.integer_pow, y=3)),
     made(functools.partial(jax.nn.leaky_relu, negative_slope=0.2)), made(rectified(2)), made(hermite(4)), IDENTITY],
    [made(jax.lax.erf), made(cdf), GELU, derivative(GELU), made(rbf), made(jnp.square), made(hermite(3))],
    [made(jnp.exp), made(jnp.sin), made(jnp.cos), made(jnp.expm1), made(jnp.sinh), made(jnp.square), made(hermite(3))],
]  # fmt: skip
CROSS = [pair for family in FAMILIES for pair in itertools.permutations(family, 2)]


@pytest.mark.parametrize("phi, psi", CROSS, ids=[f"{phi}-{psi}" for phi, psi in CROSS])
def test_cross_pairs_are_quadrature(phi, psi):
    assert base.method(phi, psi) == base.CLOSED
    for a, b, r in ((1.3, 0.6, 0.7), (0.4, 2.0, -0.95), (0.9, 0.9, 1.0)):
        value = expect(phi, psi, a, b, r * math.sqrt(a * b))
        size = scale(phi.fn, psi.fn, a, b)
        assert abs(value - quadrature(phi.fn, psi.fn, a, b, r)) <= 2e-12 * size
    np.testing.assert_allclose(expect_one(phi, psi, 0.9), value, rtol=1e-12, atol=1e-14)


def test_known_values():
    """The published kernels themselves, in case form and reference share a mistake."""
    a, b, c = 1.3, 0.7, 0.4
    r = c / math.sqrt(a * b)
    angle = math.acos(r)
    relu = math.sqrt(a * b) / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * r)
    np.testing.assert_allclose(expect_same(jax.nn.relu, a, b, c), relu, rtol=1e-14)
    np.testing.assert_allclose(expect_same(step, a, b, c), (math.pi - angle) / (2 * math.pi), rtol=1e-14)
    erf = 2 / math.pi * math.asin(c / math.sqrt((a + 0.5) * (b + 0.5)))
    np.testing.assert_allclose(expect_same(jax.lax.erf, a, b, c), erf, rtol=1e-14)
    root = math.sqrt((1 + a) * (1 + b) - c**2)
    normal = 0.25 + math.asin(c / math.sqrt((1 + a) * (1 + b))) / (2 * math.pi)
    gelu = c * normal + (a * b - c**2 + c**2 / (1 + a) + c**2 / (1 + b)) / (2 * math.pi * root)
    np.testing.assert_allclose(expect(GELU, GELU, a, b, c), gelu, rtol=1e-14)
    np.testing.assert_allclose(expect_same(jnp.sin, a, b, c), math.exp(-1) * math.sinh(c), rtol=1e-14)
    np.testing.assert_allclose(expect_same(rbf, a, b, c), ((1 + 2 * a) * (1 + 2 * b) - 4 * c**2) ** -0.5)


@pytest.mark.parametrize("k, l", list(itertools.product(range(8), repeat=2)))
def test_hermite_polynomials_are_orthonormal(k, l):
    np.testing.assert_allclose(expect(made(hermite(k)), made(hermite(l)), 1.0, 1.0, 0.6), (k == l) * 0.6**k, atol=1e-13)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", some, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_everywhere_with_first_derivatives(phi, dtype):
    variances = [0.0, 1e-310, 1e-300 if dtype == "float64" else 1e-37, 1e-12, 0.3, 1.0]
    variances += [] if grows(phi) else [1e12 if dtype == "float64" else 1e3]  # beyond, the expectation itself overflows
    eps = np.finfo(dtype).eps
    correlations = [0.0, 0.5, 1.0, -1.0, 1 + 2 * eps, 1 - eps, -1 - 2 * eps, 1 - 1e-4]
    grid = np.array(
        [(a, b, r * math.sqrt(a) * math.sqrt(b)) for a in variances for b in variances for r in correlations]
    )
    a, b, c = (jnp.asarray(column, dtype) for column in grid.T)
    pair = lambda a, b, c: expect(phi, phi, a, b, c)
    over = lambda function: jax.jit(jax.vmap(function))
    found = [
        pair(a, b, c),
        *over(jax.grad(pair, (0, 1, 2)))(a, b, c),
        *over(jax.jacfwd(pair, (0, 1, 2)))(a, b, c),
        *over(jax.value_and_grad(lambda a: expect_one(phi, phi, a)))(a),
        *over(jax.value_and_grad(lambda a: mean(phi, a)))(a),
        base.expect_error(phi, phi, a, b, c)[1],
    ]
    for array in found:
        assert array.dtype == dtype
        bad = ~np.isfinite(array)
        assert not bad.any(), grid[bad][:3]


@each
def test_equal_arguments_are_one_gaussian(phi):
    a = jnp.array([0.0, 1e-12, 0.1, 0.3, 1.0, 7.0, *([] if grows(phi) else [1e6])])
    np.testing.assert_allclose(expect(phi, phi, a, a, a), expect_one(phi, phi, a), rtol=1e-12, atol=0)


@each
def test_opposite_arguments_are_one_gaussian(phi):
    """E phi(u) phi(-u), by quadrature on one axis."""
    f = users(phi)
    value = expect(phi, phi, 0.8, 0.8, -0.8)
    assert abs(value - quadrature(f, f, 0.8, 0.8, -1.0)) <= 1e-12 * scale(f, f, 0.8, 0.8)


@each
def test_small_variances_keep_their_digits(phi):
    """At variance 1e-12 a smooth function is its first terms: phi(0)^2 + phi'(0)^2 c + O(1e-24)."""
    if isinstance(phi.form, Piecewise) and phi.degree is None:
        exact, unit = expect(phi, phi, 1e-12, 1e-12, 0.3e-12), expect(phi, phi, 1.0, 1.0, 0.3)
        if len({term.p for _, term in phi.form.terms}) == 1:  # homogeneous: relu and its kind
            np.testing.assert_allclose(exact, unit * 1e-12 ** phi.form.terms[0][1].p, rtol=1e-12)
        return
    f = users(phi)
    at_0, slope, curvature = f(0.0), jax.grad(f)(0.0), jax.grad(jax.grad(f))(0.0)
    expected = (at_0 + 0.5e-12 * curvature) ** 2 + slope**2 * 0.3e-12
    np.testing.assert_allclose(expect(phi, phi, 1e-12, 1e-12, 0.3e-12), expected, rtol=1e-10, atol=1e-22)


@each
def test_float32_is_near_float64(phi):
    a, b, c = np.array([(a, b, r * math.sqrt(a * b)) for a, b, r in POINTS if abs(r) < 0.9999], np.float32).T
    single = expect(phi, phi, jnp.asarray(a), jnp.asarray(b), jnp.asarray(c))
    a, b, c = a.astype("float64"), b.astype("float64"), c.astype("float64")
    double, bound = base.expect_error(phi, phi, a, b, c)
    size = jnp.sqrt(expect_one(phi, phi, a) * expect_one(phi, phi, b))
    assert single.dtype == jnp.float32
    # The correlation itself is known to eps/(1 - r^2) where a function jumps.
    assert (jnp.abs(single - double) <= (3e-6 if jumps(phi) else 2e-6) * size + bound).all()


# ---- derivatives ----------------------------------------------------------------------------------------------------


def finite_difference(function, points, axis, h=1e-3):
    move = lambda h: function(*(x + h * (i == axis) for i, x in enumerate(points)))
    return (8 * (move(h) - move(-h)) - (move(2 * h) - move(-2 * h))) / (12 * h)


@pytest.mark.parametrize("phi", some, ids=str)
def test_gradients_are_finite_differences(phi):
    pair = jax.jit(lambda a, b, c: expect(phi, phi, a, b, c))
    points = [jnp.array(column) for column in ([1.1, 0.5, 0.9], [0.6, 1.7, 0.9], [0.5, -0.8, 0.0])]
    for function in (pair, jax.grad(pair, 2)):
        reverse = jax.jit(jax.vmap(jax.grad(function, (0, 1, 2))))
        forward = jax.jit(jax.vmap(jax.jacfwd(function, (0, 1, 2))))(*points)
        for axis, found in enumerate(reverse(*points)):
            expected = finite_difference(jax.jit(jax.vmap(function)), points, axis)
            np.testing.assert_allclose(found, expected, rtol=3e-8, atol=3e-8)
            np.testing.assert_allclose(found, forward[axis], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("phi", some, ids=str)
def test_second_derivatives_are_finite_up_to_the_edge(phi):
    pair = lambda a, b, c: expect(phi, phi, a, b, c)
    a, b, c = jnp.array([(1, 1, 1), (1, 1, -1), (0.5, 2, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0.3), (0, 0, 0)]).T
    for second in (jax.hessian(pair, (0, 1, 2)), jax.jacrev(jax.grad(pair, (0, 1, 2)), (0, 1, 2))):
        for entry in jax.tree.leaves(jax.jit(jax.vmap(second))(a, b, c)):
            assert np.isfinite(entry).all()


@each
def test_price(phi):
    """dE phi psi/dc = E phi' psi' where phi is continuous: the NTK's road is the derivative of the NNGP's."""
    if jumps(phi):
        return
    a, b, c = jnp.array([(1.1, 0.6, 0.5), (0.9, 0.9, 0.9), (0.9, 0.9, -0.9)]).T
    found = jax.jit(jax.vmap(jax.grad(lambda a, b, c: expect(phi, phi, a, b, c), 2)))(a, b, c)
    np.testing.assert_allclose(found, expect(derivative(phi), derivative(phi), a, b, c), rtol=1e-10, atol=1e-13)


def test_slope_is_differentiable():
    def kernel(slope, a, b, c):
        function, numbers = freeze(functools.partial(jax.nn.leaky_relu, negative_slope=slope))
        phi = elementwise(function, len(numbers))
        assert phi.form is not None
        return expect(phi, phi, a, b, c, numbers, numbers)

    a, b, c, slope = 1.1, 0.6, 0.5, 0.2
    fixed = made(functools.partial(jax.nn.leaky_relu, negative_slope=0.2))
    np.testing.assert_allclose(kernel(slope, a, b, c), expect(fixed, fixed, a, b, c), rtol=1e-14)
    # leaky = s c + (1 - s)^2 V_relu
    relu = expect_same(jax.nn.relu, a, b, c)
    np.testing.assert_allclose(jax.grad(kernel)(slope, a, b, c), c - 2 * (1 - slope) * relu, rtol=1e-13)
    np.testing.assert_allclose(jax.jacfwd(jax.grad(kernel))(slope, a, b, c), 2 * relu, rtol=1e-13)


# ---- algebra --------------------------------------------------------------------------------------------------------

Z = jnp.array([-2.3, -1.0, -0.2, 0.1, 0.7, 1.9])


def same_function(phi: Elementwise, fn: Callable[..., Any], *numbers) -> None:
    expected = jax.vmap(fn)(Z)
    np.testing.assert_allclose(jax.vmap(lambda z: phi.fn(z, *numbers))(Z), expected, rtol=1e-12, atol=1e-12)
    if phi.form is not None:
        np.testing.assert_allclose(phi.form(Z, *numbers), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("phi", ENTRIES + DERIVATIVES, ids=str)
def test_form_is_the_function(phi):
    same_function(phi, users(phi))
    same_function(derivative(phi), jax.grad(users(phi)))


@pytest.mark.parametrize("phi, psi", CROSS[:12] + CROSS[60:72] + CROSS[100:112], ids=str)
def test_product(phi, psi):
    both = base.product(phi, psi)
    same_function(both, lambda z: phi.fn(z) * psi.fn(z))
    np.testing.assert_allclose(expect_one(phi, psi, 0.7), quadrature(phi.fn, psi.fn, 0.7, 0.7, 1.0), atol=1e-12)


def test_products_stay_in_the_family():
    relu = made(jax.nn.relu)
    assert base.product(IDENTITY, relu).form == kinked(0.0, 1.0, 2)
    assert base.product(IDENTITY, IDENTITY).form == polynomial(0.0, 0.0, 1.0)
    assert derivative(base.product(relu, relu)).form == kinked(0.0, 2.0, 1)
    assert derivative(IDENTITY) == ONE
    assert base.product(ONE, relu) == relu


def test_products_take_both_functions_numbers():
    leaky = made(functools.partial(jax.nn.leaky_relu, negative_slope=jnp.asarray(0.3)))
    both = base.product(leaky, leaky)
    expected = lambda z: jax.nn.leaky_relu(z, 0.3) * jax.nn.leaky_relu(z, 0.5)
    same_function(both, expected, 0.3, 0.5)
    value = expect_one(leaky, leaky, 1.3, (jnp.asarray(0.3),), (jnp.asarray(0.5),))
    np.testing.assert_allclose(value, quadrature(expected, lambda z: jnp.ones_like(z), 1.3, 1.3, 1.0), rtol=1e-12)


@pytest.mark.parametrize(
    "phi", [IDENTITY, made(hermite(4)), made(jnp.sin), made(jnp.cos), made(jnp.exp), made(jnp.sinh)], ids=str
)
def test_shifted_keeps_its_form(phi):
    moved = base.shifted(phi)
    assert moved.form is not None and moved.count == 1
    same_function(moved, lambda z: phi.fn(z + 0.4), 0.4)
    value = mean(moved, 0.8, (jnp.asarray(0.4),))
    np.testing.assert_allclose(value, quadrature(lambda z: phi.fn(z + 0.4), lambda z: jnp.ones_like(z), 0.8, 0.8, 1.0))


def test_shifted_without_form():
    same_function(base.shifted(made(jax.nn.relu)), lambda z: jax.nn.relu(z - 0.3), -0.3)
    assert base.shifted(made(jax.nn.relu)).form is None


# ---- recognition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_every_name_is_recognised_wherever_it_is_kept(name):
    examples = TABLE[name].shown()
    for fn in {*examples, *(() if isinstance(examples[0], functools.partial) else TABLE[name].callables)}:
        assert made(fn).form is not None, fn
        assert made(jax.jit(fn)).form is not None, "a jit around it says nothing"


NOT_IN_THE_TABLE = {
    "a lambda around one": lambda z: jax.nn.relu(z),
    "gelu's default is the tanh formula": jax.nn.gelu,
    "a threshold elsewhere": functools.partial(jnp.maximum, 1.0),
    "2^x is not x^2": functools.partial(jnp.power, 2.0),
    "a slope in the place of x": functools.partial(jax.nn.leaky_relu, 0.2),
    "a cdf elsewhere": functools.partial(jax.scipy.stats.norm.cdf, loc=1.0),
    "tanh": jnp.tanh,
}


@pytest.mark.parametrize("fn", NOT_IN_THE_TABLE.values(), ids=NOT_IN_THE_TABLE)
def test_what_only_looks_like_a_member_is_not_in_the_table(fn):
    """What is recognised of these is recognised by what they compute (`test_recognition.py`)."""
    assert recognise(freeze(fn)[0]) is None


def test_growth():
    assert base.polynomially_bounded(made(jnp.sin)) is True
    assert base.polynomially_bounded(made(jnp.exp)) is False
    assert base.polynomially_bounded(made(jnp.tanh)) is None


def test_shapes_broadcast():
    a, b, c = jnp.ones((2, 3, 1)), jnp.ones((2, 1, 4)), jnp.full((2, 3, 4), 0.3)
    for phi, psi in (
        (made(jnp.sin), made(jnp.sin)),
        (ONE, IDENTITY),
        (ONE, ONE),
        (IDENTITY, made(jnp.cos)),
        (made(step), ONE),
    ):
        assert expect(phi, psi, a, b, c).shape == (2, 3, 4)
        assert all(x.shape == (2, 3, 4) for x in base.expect_error(phi, psi, a, b, c))
    assert mean(ONE, a).shape == expect_one(ONE, ONE, a).shape == (2, 3, 1)


# ---- one closed side, or none: the other roads through the door -----------------------------------------------------

ROADS = {
    "id-tanh": (IDENTITY, jnp.tanh),
    "silu-hermite": (jax.nn.silu, hermite(3)),
    "step-1": (step, ONE),
    "relu-erf": (jax.nn.relu, jax.lax.erf),
    "sign-silu": (jnp.sign, jax.nn.silu),
}


@pytest.mark.slow
@pytest.mark.parametrize("phi, psi", ROADS.values(), ids=ROADS)
def test_other_roads_are_quadrature(phi, psi):
    phi, psi = (fn if isinstance(fn, Elementwise) else made(fn) for fn in (phi, psi))
    a, b, r = 1.3, 0.6, jnp.array([0.3, 0.999, -0.7, 1.0])
    size = scale(phi.fn, psi.fn, a, b)
    values, bounds = base.expect_error(phi, psi, a, b, r * math.sqrt(a * b))
    for correlation, value, bound in zip(r, values, bounds, strict=True):
        assert abs(value - quadrature(phi.fn, psi.fn, a, b, float(correlation))) <= 1e-12 * size + bound
        assert bound <= 1e-8 * size
    # As one Gaussian, and differentiated in the covariance: Price, where both are continuous.
    np.testing.assert_allclose(expect_one(phi, psi, 0.8), quadrature(phi.fn, psi.fn, 0.8, 0.8, 1.0), atol=1e-10)
    if phi.form is None or not jumps(phi):
        slope = jax.grad(lambda c: expect(phi, psi, a, b, c))(0.4)
        expected = expect(derivative(phi), derivative(psi), a, b, 0.4)
        np.testing.assert_allclose(slope, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_reductions_at_variance_0():
    pair = lambda a, b, c: expect(made(hermite(2)), made(jnp.tanh), a, b, c)
    value, slopes = jax.value_and_grad(pair, (0, 1, 2))(1.0, 0.0, 0.0)
    assert value == 0 and np.isfinite(slopes).all()


def test_methods():
    tanh, relu = made(jnp.tanh), made(jax.nn.relu)
    assert base.method(relu, relu) == base.method(ONE, relu) == base.method(made(jnp.sin), IDENTITY) == base.CLOSED
    assert base.method(IDENTITY, tanh) == base.method(tanh, ONE) == base.REDUCED
    assert base.method(tanh, tanh) == base.method(relu, made(jnp.sin)) == base.GENERAL
