"""Functions known by their curves over the variance, and on panels: both against quadrature, and against functions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.functions import curved, curves, paneled
from tensorprog.functions.derived import Slope
from tensorprog.functions.kinks import known_features, search

RANGE = (-1.3, 0.7)
"""Of log₂ σ, over three octaves."""


def bent(z):
    return jnp.abs(jnp.tanh(z - 0.3))


def leaping(z):
    return jnp.where(z > 0.2, jnp.cos(z), jnp.tanh(z))


def narrow(z):
    return jnp.exp(-1000 * (z - 0.7) ** 2)


def table(known: curves.Known, kind: Callable, accepted: float = 1e-12) -> jax.Array:
    return jnp.asarray(curves.tables([curves.curve(known, kind)], [RANGE], accepted)[0])


def of(fn: Callable, *numbers: float) -> curves.Known:
    return curves.Known.of((fn, Slope(fn)), numbers)


def integral(fn: Callable[[np.ndarray], np.ndarray], breaks: list[float]) -> float:
    """E fn(z) by 40 Gauss-Legendre nodes on each eighth of a deviation, and from break to break."""
    edges = np.unique([*np.linspace(-12.0, 12.0, 193), *breaks])
    nodes, weights = np.polynomial.legendre.leggauss(40)
    z = (edges[1:] + edges[:-1])[:, None] / 2 + np.diff(edges)[:, None] / 2 * nodes
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * np.diff(edges)[:, None] / 2 * weights
    return float((fn(z.reshape(-1)) * density.reshape(-1)).sum())


@pytest.mark.parametrize(
    ("fn", "kinks"), [(jnp.tanh, []), (bent, [0.3]), (leaping, [0.2]), (narrow, [0.65, 0.7, 0.75])]
)
def test_coefficients_and_means_over_three_octaves(fn, kinks):
    variances = np.array([0.17, 0.25, 0.4, 1.0, 1.0 + 1e-12, 2.2])
    found = curved.sides(table(of(fn), curves.sides), jnp.asarray(variances), slope=True)
    jet = jax.jit(jax.vmap(lambda z: jnp.stack([fn(z), jax.grad(fn)(z)])))
    for k, variance in enumerate(variances):
        s = np.sqrt(variance)
        breaks = [c / s for c in kinks]
        for order in (0, 1):
            value = lambda z, s=s, order=order: np.asarray(jet(jnp.asarray(s * z)))[:, order]
            norm = np.sqrt(integral(lambda z, value=value: value(z) ** 2, breaks))
            for power, hermite in ((0, np.ones_like), (3, lambda z: (z**3 - 3 * z) / np.sqrt(6))):
                true = integral(lambda z, value=value, hermite=hermite: value(z) * hermite(z), breaks)
                assert abs(found.coefficients[k, order, power] - true) < 1e-11 * norm
            assert abs(found.square[k, order] - norm**2) < 1e-11 * norm**2


@pytest.mark.parametrize("near", [0.0, 0.5, 0.97, -0.8, 0.9999])
def test_pairs_of_a_kinked_function_within_their_bound_or_none(near):
    a, b = jnp.asarray([[0.4], [1.0]]), jnp.asarray([[0.5, 2.0]])
    c = near * jnp.sqrt(a * b)
    known = table(of(jax.nn.relu), curves.sides)
    (value, bound), (slope, slope_bound) = curved.pairs(
        curved.sides(known, a, slope=True), curved.sides(known, b, slope=True), a, b, c
    )
    root = np.sqrt(np.asarray(a * b))
    angle = np.arccos(near)
    true = root * (np.sin(angle) + (np.pi - angle) * near) / (2 * np.pi)
    if abs(near) < 0.9:
        assert (np.abs(value - true) <= bound).all()
        assert (np.abs(slope - (np.pi - angle) / (2 * np.pi)) <= slope_bound).all()
        assert (bound < 1e-11 * true + 1e-13).all()
    if near > 0.999:
        assert np.isnan(value).all() and np.isnan(slope).all()


def test_variance_0_and_variances_beyond_the_table():
    found = curved.sides(table(of(jnp.cos), curves.sides), jnp.asarray([0.0, 1.0, 1e3]), slope=True)
    np.testing.assert_array_equal(found.coefficients[0, :, 0], [1.0, 0.0])
    np.testing.assert_array_equal(found.coefficients[0, :, 1:], 0.0)
    assert np.isfinite(found.coefficients[1]).all() and np.isnan(found.coefficients[2]).all()
    stepped = curved.sides(table(of(jnp.sign), curves.sides), jnp.asarray([0.0, 1.0]), slope=False)
    assert np.isnan(stepped.coefficients[0]).all() and np.isfinite(stepped.coefficients[1]).all()


def test_means_and_their_bounds():
    known = table(curves.Known.of((lambda z, c: jnp.abs(z - c), lambda z, c: z**2 + c), (0.3,)), curves.means)
    variances = jnp.asarray([0.2, 1.0, 1.9])
    (bent_mean, bound), (square, square_bound) = curved.means(known, variances, 2)
    for k, s in enumerate(np.sqrt(variances)):
        true = integral(lambda z, s=s: np.abs(s * z - 0.3), [0.3 / s])
        assert abs(bent_mean[k] - true) < min(1e-12, float(bound[k]) + 1e-13)
    assert (np.abs(square - variances - 0.3) <= square_bound).all() and (square_bound < 1e-12).all()


@pytest.mark.parametrize("fn", [lambda z: jnp.log(jnp.abs(z)), lambda z: 1 / z, lambda z: jnp.exp(z * z), jnp.sqrt])
def test_what_has_no_curve(fn):
    with pytest.raises(curves.NoCurve):
        table(of(fn), curves.sides)


@pytest.mark.parametrize("fn", [jnp.tanh, bent, leaping, narrow, lambda z: jnp.tanh(50 * (z - 0.5))])
def test_functions_on_panels(fn):
    panels, features = map(jnp.asarray, paneled.arrays(*([part] for part in paneled.paneled(of(fn), 40.0))))
    z = np.random.default_rng(0).normal(size=3000) * 3
    for order, true in enumerate(np.asarray(of(fn)(z)).T):
        got = jax.vmap(lambda x, k=order: paneled.Paneled(k)(x, panels[0], features[0]))(z)
        assert np.abs(got - true).max() < 2e-14 * (1 + 50 * np.abs(true).max())
    places = paneled.Paneled().features(panels[0], features[0])
    assert np.isfinite(places.below).sum() == len(known_features(fn, ()).below)


def test_the_search_on_the_host_is_that_inside_a_program():
    shifted = lambda z, a: jnp.abs(jnp.tanh(z - a))
    inside = jax.jit(lambda a: search(shifted, (a,), jnp.dtype(float)))(0.3)
    outside = known_features(shifted, (0.3,))
    np.testing.assert_allclose(outside.below, inside.below[np.isfinite(inside.below)], atol=1e-12)
    np.testing.assert_array_equal(outside.scales, inside.scales[np.isfinite(inside.scales)])


# ---- whole programs


def program(fn: Callable, depth: int = 2, moment: bool = False) -> tp.Program:
    n = tp.Width("n")

    def net(x):
        for k in range(depth):
            x = tp.nonlin(fn, tp.weight(f"W{k}", n, x.features, var=1.5) @ x + tp.bias(f"b{k}", n, var=0.1))
        if moment:
            x = x * tp.moment(fn, x)
        return tp.weight("v", 1, n) @ x

    return tp.trace(net, tp.Input(5))


def inputs(dtype: str) -> np.ndarray:
    """Five inputs, two of them equal, two nearly so."""
    x = np.random.default_rng(1).normal(size=(5, 5))
    x[3], x[4] = x[2], x[1] * (1 + 1e-6)
    return x.astype(dtype)


def hidden(fn: Callable) -> Callable:
    """The same function, which nobody knows to have a closed form."""
    return lambda z: fn(z) + 0 * jnp.tanh(z)


@pytest.mark.parametrize(("fn", "moment"), [(jax.scipy.special.erf, False), (jnp.cos, True)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernels_by_curves_are_those_of_closed_forms(fn, moment, dtype):
    x = inputs(dtype)
    own = tp.kernels(program(hidden(fn), moment=moment), x, error=True)
    true = tp.kernels(program(fn, moment=moment), x)
    room = 1e-12 if dtype == "float64" else 1e-5
    for got, closed, bound in ((own.nngp, true.nngp, own.error.nngp), (own.ntk, true.ntk, own.error.ntk)):
        scale = np.abs(closed).max()
        assert (np.abs(got - closed) <= bound + 1e-3 * room * scale).all()
        assert (np.abs(got - closed) <= room * scale).all() and (np.asarray(bound) < 100 * room * scale).all()
    np.testing.assert_array_equal(own.ntk, tp.kernels(program(hidden(fn), moment=moment), x, error=True).ntk)


@pytest.mark.parametrize("fn", [jnp.abs, pytest.param(jax.nn.relu, marks=pytest.mark.slow)])
def test_pairs_near_each_other_are_integrated(fn):
    """Kinks make series slow: inputs 1e-6 apart, and what the rounding of their covariance leaves."""
    x = inputs("float64")
    for two in (None, x[:3]):
        own, true = (tp.kernels(program(f), x, two) for f in (hidden(fn), fn))
        np.testing.assert_allclose(own.nngp, true.nngp, atol=1e-13 * np.abs(true.nngp).max())
        np.testing.assert_allclose(own.ntk, true.ntk, atol=1e-9 * np.abs(true.ntk).max())
        np.testing.assert_allclose(tp.nngp(program(hidden(fn)), x, two), own.nngp, atol=1e-13 * np.abs(true.nngp).max())
        far = np.s_[:4, :1]
        np.testing.assert_allclose(own.ntk[far], true.ntk[far], atol=1e-13 * np.abs(true.ntk).max())


@pytest.mark.slow
def test_bounds_of_pairs_near_each_other():
    x = inputs("float64")
    own, true = tp.kernels(program(hidden(jnp.abs)), x, error=True), tp.kernels(program(jnp.abs), x, error=True)
    for got, closed, *bounds in ((own.nngp, true.nngp, own.error.nngp, true.error.nngp),
                                 (own.ntk, true.ntk, own.error.ntk, true.error.ntk)):  # fmt: skip
        assert (np.abs(got - closed) <= sum(bounds)).all() and bounds[0].max() < 1e-6 * np.abs(closed).max()


def test_functions_share_what_is_compiled():
    """The second function costs its own compilation and no other: programs hold tables, not functions."""
    compiled: list[str] = []

    def heard(event: str, duration_secs: float, **about: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(str(about.get("fun_name")))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(heard)
    x = inputs("float64")[:3]
    tp.ntk(program(jnp.tanh), x)
    programs = {"jit(panel)", "jit(stripe)"}
    assert programs <= set(compiled)
    compiled.clear()
    tp.ntk(program(lambda z: jnp.tanh(z) + 0.1 * jnp.cos(z)), x)
    assert compiled and not programs & set(compiled)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_single(dtype):
    x = jnp.asarray(inputs("float64")[:3], dtype)
    own, true = tp.kernels(program(jnp.tanh, 1), x, error=True), tp.kernels(program(jnp.tanh, 1), x.astype(float))
    for got, closed, bound in ((own.nngp, true.nngp, own.error.nngp), (own.ntk, true.ntk, own.error.ntk)):
        assert got.dtype == bound.dtype == x.dtype
        apart = np.abs(np.asarray(got, float) - closed)
        assert (apart <= np.asarray(bound, float)).all() and apart.max() < 2 * jnp.finfo(dtype).eps * closed.max()


def test_what_half_precision_does_not_reach_is_refused():
    with pytest.raises(tp.ProgramError, match="the range of float16"):
        tp.nngp(program(lambda z: 1e3 * jax.nn.relu(z), 1), inputs("float16"))
