"""The general method: values against closed forms and fine rules, bounds, derivatives, batching, caching."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma, hyp2f1

from tensorprog.functions.derived import Product, Slope, Times
from tensorprog.functions.general import mean, pair
from tensorprog.functions.kinks import kinks
from tensorprog.functions.lines import look
from tensorprog.functions.nested import correlation


def _benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "expectation_bounds.py"
    spec = importlib.util.spec_from_file_location("expectation_bounds", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bounds = _benchmark()


def step(x):
    return jnp.where(x > 0, 1.0, 0.0)


def shifted_step(x):
    return jnp.sign(x - 1.0)


def shifted_relu(x):
    return jax.nn.relu(x - 0.7)


def hard_tanh(x):
    return jnp.clip(x, -1.0, 1.0)


def bump(x):
    return jnp.exp(-x * x)


def cube(x):
    return x**3


def wave(x):
    return jnp.cos(3 * x)


CORRELATIONS = np.array([0, 0.3, 0.8, 0.95, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1])
CORRELATIONS = np.concatenate([CORRELATIONS, -CORRELATIONS[1:]])
VARIANCES = [(1.0, 1.0), (1e-6, 1e4), (100.0, 100.0), (4.0, 0.3)]


def angle(a, b, c):
    r, s = bounds.exact_correlation(a, b, c)
    return r, s, np.arctan2(s, r)


def relu_form(a, b, c):
    r, s, theta = angle(a, b, c)
    if r < -0.99999:  # s - (s - s^3/3 ...) cancels
        return np.sqrt(a * b) / (2 * np.pi) * (s**3 / 3 + 2 * s**5 / 15)
    return np.sqrt(a * b) / (2 * np.pi) * (s + (np.pi - theta) * r)


FORMS = {
    jax.nn.relu: relu_form,
    step: lambda a, b, c: (np.pi - angle(a, b, c)[2]) / (2 * np.pi),
    jax.scipy.special.erf: lambda a, b, c: 2 / np.pi * np.arctan2(c, np.sqrt((a + 0.5) * (b + 0.5) - c * c)),
    bump: lambda a, b, c: ((1 + 2 * a) * (1 + 2 * b) - 4 * c * c) ** -0.5,
    cube: lambda a, b, c: 9 * a * b * c + 6 * c**3,
    jnp.sin: lambda a, b, c: (np.exp(c - (a + b) / 2) - np.exp(-c - (a + b) / 2)) / 2,
}


@pytest.mark.parametrize(
    "fn",
    [fn if fn in (jax.nn.relu, cube) else pytest.param(fn, marks=pytest.mark.slow) for fn in FORMS],
    ids=lambda f: getattr(f, "__name__", "fn"),
)
def test_closed_forms(fn):
    form = FORMS[fn]
    compiled = jax.jit(lambda a, b, c: pair(fn, fn, a, b, c))
    for a, b in VARIANCES:
        if fn is jnp.sin and max(a, b) > 1e3:
            continue
        c = CORRELATIONS * np.sqrt(a * b)
        value, bound = compiled(jnp.array([a]), jnp.array([b]), jnp.asarray(c))
        truth = np.array([form(a, b, x) for x in c.tolist()])
        scale = np.sqrt(form(a, a, a) * form(b, b, b))
        error = np.abs(np.asarray(value) - truth)
        assert error.max() <= 1e-13 * scale
        assert (error <= np.asarray(bound) + 2e-15 * scale).all()
        assert (np.asarray(bound) <= 5e-13 * scale).all()


@pytest.mark.slow
def test_bounds_cover_and_are_tight():
    rows = bounds.measure(100, 1, functions=5)
    ratio, covered, relative = bounds.ratios(rows)
    assert covered.all()
    assert relative.max() < 1e-6
    assert np.median(ratio) <= 10
    assert np.quantile(ratio, 0.99) <= 100


def test_bound_says_what_is_not_resolved():
    # 300 periods within ten deviations: neither the series nor the panels see them all.
    value, bound = jax.jit(lambda c: pair(wave, wave, jnp.array(1e4), jnp.array(1e4), c))(jnp.array([0.0, 9999.9, 1e4]))
    truth = np.array([0.0, (np.exp(9 * (9999.9 - 1e4))) / 2, 0.5])
    assert (np.abs(value - truth) <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fn", [jnp.tanh, jax.nn.relu, shifted_step, jax.nn.softplus], ids=["tanh", "relu", "step", "softplus"]
)
def test_no_variance(fn):
    at = jax.jit(lambda a, b, c: pair(fn, fn, a, b, c))
    value, bound = at(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 2.0, 0.0]), jnp.zeros(3))
    zero = float(fn(jnp.array(0.0)))
    other = [float(mean(fn, jnp.array(x))[0]) for x in (0.0, 2.0, 1.0)]
    np.testing.assert_allclose(value, [zero * x for x in other], rtol=1e-13, atol=1e-15)
    assert np.isfinite(bound).all()
    gradient = jax.jit(jax.grad(lambda x: pair(fn, fn, *x)[0]))
    for point in ([0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, -1.0]):
        assert np.isfinite(gradient(jnp.array(point))).all()


def test_gap_keeps_its_digits():
    a, b = 1.7, 0.31
    c = (1 - 1e-12) * np.sqrt(a * b)
    _, exact = bounds.exact_correlation(a, b, float(c))
    _, s = jax.jit(correlation)(jnp.array(a), jnp.array(b), jnp.array(c))
    np.testing.assert_allclose(s, exact, rtol=1e-9)


def difference(f, x, h=1e-4):
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


@pytest.mark.slow
@pytest.mark.parametrize("fn", [jnp.tanh, shifted_relu, shifted_step], ids=lambda f: getattr(f, "__name__", "tanh"))
def test_derivatives(fn):
    value = jax.jit(lambda x: pair(fn, fn, *x)[0])
    gradient = jax.jit(jax.grad(lambda x: pair(fn, fn, *x)[0]))
    hessian = jax.jit(jax.hessian(lambda x: pair(fn, fn, *x)[0]))
    x = jnp.array([1.3, 0.7, 0.4])
    for i in range(3):
        np.testing.assert_allclose(gradient(x)[i], difference(lambda y, i=i: value(x.at[i].set(y)), x[i]), rtol=1e-8)
        column = difference(lambda y, i=i: gradient(x.at[i].set(y)), x[i])
        np.testing.assert_allclose(hessian(x)[:, i], column, rtol=1e-7, atol=1e-10)
    near = jnp.array([1.3, 0.7, 0.95])  # the nested rule's
    for i in range(3):
        slope = difference(lambda y, i=i: value(near.at[i].set(y)), near[i], 1e-5)
        np.testing.assert_allclose(gradient(near)[i], slope, rtol=1e-6)


@pytest.mark.slow
def test_two_functions_and_their_numbers():
    def ramp(x, place, slope):
        return slope * jnp.maximum(x - place, 0.0) + 0.1 * x

    def f(p, c):
        return pair(ramp, jnp.tanh, jnp.array(1.2), jnp.array(2.0), c, (p[0], p[1]))[0]

    compiled = jax.jit(f)
    p, c = jnp.array([0.4, 1.7]), jnp.array(1.5)
    fixed = pair(lambda x: ramp(x, 0.4, 1.7), jnp.tanh, jnp.array(1.2), jnp.array(2.0), c)[0]
    np.testing.assert_allclose(compiled(p, c), fixed, rtol=1e-13)
    gradient = jax.jit(jax.grad(f))(p, c)
    slopes = [difference(lambda y, i=i: compiled(p.at[i].set(y), c), p[i]) for i in range(2)]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-8)


@pytest.mark.slow
def test_mean_and_its_derivatives():
    for fn, form in ((jax.nn.relu, lambda a: np.sqrt(a / (2 * np.pi))), (bump, lambda a: (1 + 2 * a) ** -0.5)):
        a = jnp.array([1e-6, 0.3, 1.0, 1e4])
        value, bound = jax.jit(lambda a, fn=fn: mean(fn, a))(a)
        np.testing.assert_allclose(value, form(np.asarray(a)), rtol=1e-13)
        assert (np.abs(value - form(np.asarray(a))) <= bound).all()
    slope = jax.jit(jax.grad(lambda a: mean(shifted_step, a)[0]))
    np.testing.assert_allclose(slope(1.3), difference(lambda a: mean(shifted_step, jnp.asarray(a))[0], 1.3), rtol=1e-9)
    curved = jax.jit(jax.grad(jax.grad(lambda a: mean(bump, a)[0])))
    np.testing.assert_allclose(curved(0.5), 3 * 2**-2.5, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(lambda a: mean(bump, a)[0])(0.0), -1.0, rtol=1e-10)


@pytest.mark.slow
def test_unbroadcast_shapes_mixed_correlations_and_vmap():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 2, (2, 5, 1)), rng.uniform(0.5, 2, (2, 1, 4))
    r = rng.choice([0.1, 0.6, 0.99, 1 - 1e-9, 1.0], (2, 5, 4))
    c = r * np.sqrt(a * b)
    value, bound = jax.jit(lambda a, b, c: pair(jax.nn.relu, jax.nn.relu, a, b, c))(*map(jnp.asarray, (a, b, c)))
    truth = np.vectorize(relu_form)(*np.broadcast_arrays(a, b, c))
    assert value.shape == bound.shape == (2, 5, 4)
    np.testing.assert_allclose(value, truth, rtol=1e-13)
    one = lambda a, b, c: pair(jax.nn.relu, jax.nn.relu, a, b, c)[0]
    rows = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))
    mapped = jax.jit(rows)(*map(jnp.asarray, (a[0, :, 0], b[0, 0], c[0])))
    np.testing.assert_allclose(mapped, truth[0], rtol=1e-13)
    scanned = jax.jit(lambda a, b, c: jax.lax.scan(lambda s, x: (s, one(*x)), 0, (a, b, c))[1])
    np.testing.assert_allclose(scanned(*map(jnp.asarray, (a, b, c))), truth, rtol=1e-13)


@pytest.mark.slow
def test_single_precision():
    single = lambda *x: [jnp.asarray(y, jnp.float32) for y in x]
    for fn, form in ((jax.nn.relu, relu_form), (jax.scipy.special.erf, FORMS[jax.scipy.special.erf])):
        c = np.array([0.0, 0.5, 0.9, 0.99, 0.999, -0.7], np.float32)
        value, bound = jax.jit(lambda a, b, c, fn=fn: pair(fn, fn, a, b, c))(*single([1.0], [1.0], c))
        assert value.dtype == bound.dtype == jnp.float32
        truth = np.array([form(1.0, 1.0, float(x)) for x in c])
        np.testing.assert_allclose(value, truth, rtol=0, atol=2e-6)
        assert (np.abs(value - truth) <= bound + 1e-7).all()


def test_equal_callables_compile_once():
    traces = []

    @jax.jit
    def f(c):
        traces.append(None)
        return pair(Slope(jnp.tanh), Times(Slope(jnp.tanh)), jnp.array(1.0), jnp.array(1.0), c)[0]

    for c in (0.3, 0.4):
        f(c)
    assert len(traces) == 1
    assert Slope(jnp.tanh) == Slope(jnp.tanh) and hash(Times(Slope(jnp.tanh))) == hash(Times(Slope(jnp.tanh)))


@pytest.mark.parametrize(
    ("fn", "places"),
    [
        (jax.nn.relu, [0.0]),
        (jax.nn.relu6, [0.0, 6.0]),
        (jax.nn.elu, [0.0]),  # of curvature
        (jax.nn.selu, [0.0]),
        (shifted_step, [1.0]),
        (shifted_relu, [0.7]),
        (hard_tanh, [-1.0, 1.0]),
        (jnp.tanh, []),
        (jax.nn.gelu, []),
        (jnp.sin, []),
        (lambda x: jax.nn.sigmoid(1e5 * (x - 0.3)), []),  # steep, not a jump
        (lambda x: jnp.floor(jnp.clip(x, -3.2, 3.4)), [-3.2, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_kinks_are_found_to_the_last_digit(fn, places):
    below, above = kinks(fn, (), jnp.float64)
    found = np.asarray(below + above) / 2
    near = [x for x in found if abs(x) < 20]
    if places and places[0] == -3.2:  # floor jumps just where clip starts: -3.2 floors to -4
        places = places[1:]
    np.testing.assert_allclose(near, places, rtol=1e-15, atol=1e-18)


@pytest.mark.slow
def test_divergence():
    def steep(x):
        return jnp.exp(x * x)

    # E φ(u)² is infinite from 4 · rate · variance = 1 on: here from 0.25.
    np.testing.assert_allclose(look(steep).rates, 1.0, rtol=1e-9)
    for fn in (jnp.exp, cube, jnp.tanh, lambda x: jnp.exp(3 * x)):
        assert look(fn).rates == (0.0, 0.0)
    # E phi psi may exist where E phi^2 does not: here while (1 - 2a)^2 > 4c^2.
    value, bound = jax.jit(lambda a: pair(steep, steep, a, a, a / 2))(jnp.array([0.1, 0.2, 0.3, 0.6]))
    truth = np.array([((1 - 2 * a) ** 2 - a * a) ** -0.5 for a in (0.1, 0.2, 0.3)])
    assert (np.abs(value[:3] - truth) <= bound[:3]).all()
    np.testing.assert_allclose(value[:2], truth[:2], rtol=1e-12)
    assert bound[3] > 1e6 * abs(value[3]) or np.isinf(bound[3])


@pytest.mark.parametrize("place", [0.0, pytest.param(0.37, marks=pytest.mark.slow)])
def test_poles_whose_square_has_a_mean(place):
    """|z − c|^−0.2 has values wherever nodes fall: also where rounding puts one onto the pole."""

    def fn(z):
        return jnp.abs(z - place) ** -0.2

    c = jnp.array([1.0, 0.99, 0.5, -0.7])
    value, bound = pair(fn, fn, jnp.ones(1), jnp.ones(1), c)
    assert (bound < (1e-6 if place == 0 else 1e-4)).all()  # differences from a place that is not 0 are rounded
    square = lambda z: np.abs(z - place) ** -0.4 * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    assert abs(value[0] - quad(square, -12, place)[0] - quad(square, place, 12)[0]) < 1e-7
    if place == 0:
        across = 2**-0.2 * gamma(0.4) ** 2 / np.pi * hyp2f1(0.1, 0.1, 0.5, np.asarray(c[1:]) ** 2)
        np.testing.assert_allclose(value[1:], across, rtol=1e-7)


def grown(z):
    return jnp.exp(3.6 * z)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squares_of_growing_functions_stay_in_range(dtype):
    """E exp(3.6z)² = exp(25.92): squares leave float32 where the density has made them small."""
    value, bound = mean(Product(grown, 0, grown), jnp.ones(1, dtype))
    np.testing.assert_allclose(value, np.exp(2 * 3.6**2), rtol=1e-5)
    assert bound[0] < 1e-2 * value[0]
