"""Scalars in the kernel interpreter: Moments, data and functions of them, as coefficients and as functions' numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.functions.degree import degree
from tensorprog.functions.frozen import freeze
from tensorprog.interpret import moments

RNG = np.random.default_rng(0)
SLOW = pytest.mark.slow


def by_arithmetic(h: Any) -> Any:
    centred = h - tp.moment(jax.nn.identity, h)
    return centred / tp.scalar(jnp.sqrt, tp.moment(operator.mul, centred, centred))


def by_functions(h: Any) -> Any:
    """The same, as users write it: no operation is known by its name."""
    m = tp.moment(lambda z: z, h)
    v = tp.moment(lambda z, m: (z - m) ** 2, h, scalars=(m,))
    return tp.nonlin(lambda z, m, v: (z - m) / jnp.sqrt(v), h, scalars=(m, v))


def normed(x: Any, norm: Callable[[Any], Any], mean: float = 0.0) -> Any:
    n = tp.Width("n")
    h = tp.weight("W1", n, x.features) @ x + tp.bias("b1", n, var=0.1, mean=mean)
    h = tp.weight("W2", n, n, var=2.0) @ norm(tp.nonlin(jax.nn.relu, h)) + tp.bias("b2", n, var=0.1)
    return tp.weight("v", 1, n) @ tp.nonlin(jax.nn.relu, norm(h))


def relu_pair(a: Any, b: Any, c: Any) -> Any:
    r = np.clip(c / np.sqrt(a * b), -1, 1)
    t = np.arccos(r)
    return np.sqrt(a * b) / (2 * np.pi) * (np.sin(t) + (np.pi - t) * r)


def step_pair(a: Any, b: Any, c: Any) -> Any:
    return (np.pi - np.arccos(np.clip(c / np.sqrt(a * b), -1, 1))) / (2 * np.pi)


@pytest.mark.slow
def test_layer_norm_is_its_recursion() -> None:
    """C and D divided by σσ̄, means taken off, written out in numpy; two ways of writing it give the same numbers."""
    x = RNG.normal(size=(4, 3))
    c0 = x @ x.T / 3
    h1 = c0 + 0.1
    a, b = np.diag(h1)[:, None], np.diag(h1)[None, :]
    s = relu_pair(a, b, h1)
    m = np.sqrt(np.diag(h1) / (2 * np.pi))
    centred = s - m[:, None] * m[None, :]
    sd = np.sqrt(np.diag(centred))
    scale = sd[:, None] * sd[None, :]
    h2 = 2 * centred / scale + 0.1
    sd2 = np.sqrt(np.diag(h2))
    g = h2 / (sd2[:, None] * sd2[None, :])
    nngp = relu_pair(1.0, 1.0, g)
    dh2 = step_pair(1.0, 1.0, g) / (sd2[:, None] * sd2[None, :])
    dh1 = 2 * dh2 / scale * step_pair(a, b, h1)
    ntk = nngp + dh2 * (2 * centred / scale + 0.1) + dh1 * (c0 + 0.1)
    for norm in (by_arithmetic, by_functions):
        found = tp.kernels(tp.trace(normed, tp.Input(3), norm=norm), jnp.asarray(x))
        off = ~np.eye(4, dtype=bool)
        np.testing.assert_allclose(np.asarray(found.nngp)[off], nngp[off], rtol=1e-12)
        np.testing.assert_allclose(np.asarray(found.ntk)[off], ntk[off], rtol=1e-12)
        np.testing.assert_allclose(np.diag(found.ntk), np.diag(ntk), rtol=1e-6)


@pytest.mark.full
@SLOW
def test_a_mean_that_moves_with_the_input() -> None:
    """φ(g − c(x)) with a Moment c: numbers of a function that differ from input to input, by both roads."""

    def f(x: Any, fn: Any) -> Any:
        n = tp.Width("n")
        h = tp.weight("W", n, x.features) @ x + tp.bias("b", n, var=0.2, mean=0.3)
        c = tp.moment(jnp.square, h)
        return tp.weight("v", 1, n) @ tp.nonlin(fn, h - c) + tp.weight("u", 1, n) @ tp.nonlin(
            lambda z, t: jnp.tanh(z * t), h, scalars=(c,)
        )

    x = jnp.asarray(RNG.normal(size=(3, 4)))
    for fn in (jax.nn.relu, jnp.tanh):
        program = tp.trace(f, tp.Input(4), fn=fn)
        found = tp.kernels(program, x, error=True)
        exact = tp.kernels(program, x, method="backward", error=True)
        assert (np.abs(found.ntk - exact.ntk) <= 4 * exact.error.ntk + 1e-5).all()
        assert (np.abs(found.nngp - exact.nngp) <= 4 * exact.error.nngp + 1e-5).all()
        assert np.max(found.error.ntk) < 1e-9


def inexact(scale: float) -> dict[str, Any]:
    """Rules of pair expectations that are off by a part of `scale`, and say so."""

    def off(rule: Any) -> Any:
        def call(*arguments: Any) -> Any:
            value, tangent, error, tangent_error = rule(*arguments)
            own = lambda e, v: None if e is None else e + 1.01 * scale * abs(v)
            moved = None if tangent is None else tangent * (1 + scale)
            return value * (1 + scale), moved, own(error, value), own(tangent_error, tangent)

        return call

    return {name: off(rule) for name, rule in moments._RULES.items() if name in ("pair", "one")}


@pytest.mark.full
@SLOW
@pytest.mark.parametrize("what", ["scalar", pytest.param("joint", marks=pytest.mark.full)])
def test_errors_of_scalars_and_of_covariances_are_carried_into_functions(what: str, monkeypatch: Any) -> None:
    """A first layer that is off by 2e-4 shows in the bounds of functions that read it, and they hold."""

    def f(x: Any, name: str) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.scipy.special.erf, tp.weight(name, n, x.features) @ x)
        if what == "scalar":
            c = tp.moment(lambda a, b: a * b, h, h)
            s = tp.nonlin(jax.nn.relu, tp.weight("V", n, x.features) @ x + c)
        else:
            W, V = tp.weight("W", n, n), tp.weight("V", n, x.features)
            s = tp.nonlin(lambda a, b: jnp.tanh(a + 0.3 * b * a), W @ h, W @ h + V @ x)
        return tp.weight("v", 1, n) @ s

    x = jnp.asarray(RNG.normal(size=(2, 3)))
    right = tp.kernels(tp.trace(f, tp.Input(3), name="right"), x, error=True)
    for name, rule in inexact(2e-4).items():
        monkeypatch.setitem(moments._RULES, name, rule)
    off = tp.kernels(tp.trace(f, tp.Input(3), name="off"), x, error=True)
    for kernel in ("nngp", "ntk"):
        miss = np.abs(getattr(off, kernel) - getattr(right, kernel))
        bound = np.asarray(getattr(off.error, kernel))
        assert (miss > 1e-5).any() and (miss <= bound + 1e-12).all() and (bound < 1e-2).all()


def test_scalars_of_sites_are_taken_from_a_mean_over_sites() -> None:
    """mean(s − E s) over sites: the kernel of the means less the product of their own means."""

    def f(x: Any) -> Any:
        n = tp.Width("n")
        s = tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x)
        return tp.weight("v", 1, n) @ tp.mean(s - tp.moment(lambda z: z, s))

    x = RNG.normal(size=(3, 2, 4))
    c = np.einsum("atd,bsd->abts", x, x) / 4
    variances = np.einsum("aatt->at", c)
    pairs = relu_pair(variances[:, None, :, None], variances[None, :, None, :], c)
    means = np.sqrt(variances / (2 * np.pi)).mean(1)
    found = tp.nngp(tp.trace(f, tp.Input(2, 4)), jnp.asarray(x))
    np.testing.assert_allclose(found, pairs.mean((2, 3)) - np.outer(means, means), rtol=1e-12)


def test_attention_by_its_formula() -> None:
    """A = softmax(2C) within an input: C^y = (A + I) C (Ā + I)ᵀ, and an NTK of the values alone: scores give none."""

    def f(x: Any) -> Any:
        n = tp.Width("n")
        k = tp.weight("U", n, x.features) @ x
        scores = tp.scalar(lambda s: jax.nn.softmax(2.0 * s), tp.inner(k, k))
        return tp.weight("v", 1, n) @ tp.mean(k + tp.mix(scores, k))

    x = RNG.normal(size=(3, 5, 4))
    c = np.einsum("atd,bsd->abts", x, x) / 4
    a = jax.nn.softmax(2 * jnp.asarray(np.stack([c[i, i] for i in range(3)])), axis=-1)
    w = (np.asarray(a) + np.eye(5)).mean(1)
    expected = np.einsum("at,abts,bs->ab", w, c, w)
    found = tp.kernels(tp.trace(f, tp.Input(5, 4)), jnp.asarray(x))
    np.testing.assert_allclose(found.nngp, expected, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, 2 * expected, rtol=1e-12)


@SLOW
def test_functions_of_several_gaussians_with_numbers_of_inputs_and_of_the_program() -> None:
    """(A 0.7 g²)² with A of the input: a polynomial in two Gaussians, by an exact rule for all four of a pair."""

    def f(x: Any) -> Any:
        n = tp.Width("n")
        g = tp.weight("U", n, x.features) @ x
        attention = tp.scalar(jax.nn.softmax, tp.inner(g, g))
        mixed = tp.mix(attention, 0.7 * tp.nonlin(jnp.square, g))
        return tp.weight("v", 1, n) @ tp.sum(mixed * mixed)

    x = RNG.normal(size=(3, 2, 4))
    c = np.einsum("atd,bsd->abts", x, x) / 4
    a = np.asarray(jax.nn.softmax(jnp.asarray(np.stack([c[i, i] for i in range(3)])), axis=-1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z = np.stack(np.meshgrid(*[nodes] * 4, indexing="ij"), -1).reshape(-1, 4)
    w = np.stack(np.meshgrid(*[weights / weights.sum()] * 4, indexing="ij"), -1).prod(-1).reshape(-1)
    nngp, slopes = np.zeros((3, 3)), np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        values, vectors = np.linalg.eigh(np.block([[c[i, i], c[i, j]], [c[j, i], c[j, j]]]))
        g = (z @ (vectors * np.sqrt(np.maximum(values, 0))).T).reshape(-1, 2, 2)
        one, two = (0.7 * (g[:, k] ** 2 @ a[n].T) for k, n in enumerate((i, j)))
        nngp[i, j] = w @ ((one**2).sum(-1) * (two**2).sum(-1))
        d_one, d_two = (2.8 * v @ a[n] * g[:, k] for k, (n, v) in enumerate(((i, one), (j, two))))
        slopes[i, j] = np.einsum("z,zt,zs,ts->", w, d_one, d_two, c[i, j])
    found = tp.kernels(tp.trace(f, tp.Input(2, 4)), jnp.asarray(x))
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-9)
    np.testing.assert_allclose(found.ntk - found.nngp, slopes, rtol=1e-9)


def test_data_are_coefficients_numbers_and_masks() -> None:
    """Per-example data: an adjacency in mix, numbers times vectors; integers as well."""

    def f(x: Any, a: Any, t: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("W", n, x.features) @ tp.mix(a, x))
        return tp.weight("v", 1, n) @ (t[0] * h[0] + t[1] * h[1])

    x, a = RNG.normal(size=(3, 2, 4)), RNG.integers(0, 2, size=(3, 2, 2))
    a[:, [0, 1], [0, 1]] = 1
    t = RNG.normal(size=(3, 2))
    mixed = np.einsum("nij,njd->nid", a, x)
    c = np.einsum("nid,mjd->nmij", mixed, mixed) / 4
    variances = np.einsum("nnii->ni", c)
    s = relu_pair(variances[:, None, :, None], variances[None, :, None, :], c)
    expected = np.einsum("ni,nmij,mj->nm", t, s, t)
    program = tp.trace(f, tp.Input(2, 4), tp.Data(2, 2), tp.Data(2))
    found = tp.nngp(program, (jnp.asarray(x), a, jnp.asarray(t)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    other = tp.nngp(program, (jnp.asarray(x[:1]), a[:1], jnp.asarray(t[:1])), (jnp.asarray(x), a, jnp.asarray(t)))
    np.testing.assert_allclose(other, found[:1], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_gradients_go_through_scalars() -> None:
    program = tp.trace(normed, tp.Input(3), norm=by_arithmetic)
    x, y, direction = (jnp.asarray(RNG.normal(size=(3, 3))) for _ in range(3))
    f = lambda t: tp.ntk(program, x + t * direction, y).sum()
    h = 1e-5
    np.testing.assert_allclose(jax.grad(f)(0.1), (f(0.1 + h) - f(0.1 - h)) / (2 * h), rtol=1e-7)
    slope = jax.grad(lambda p: tp.ntk(p, x, y).sum())(program).numbers["b1.var"]
    moved = [tp.ntk(program.replace({"b1.var": 0.1 + s}), x, y).sum() for s in (h, -h)]
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / (2 * h), rtol=1e-7)


def test_the_recursion_prints_scalars_by_name() -> None:
    lines = str(tp.recursion(tp.trace(normed, tp.Input(3), norm=by_arithmetic))).splitlines()
    for line in (
        "C(s1, g2) = C(s1) − c1(x̄) · E s1(x)",
        "C(s1, (1 / c3) g2) = 1 / c3(x̄) · C(s1, g2)",
        "C(g5) = 1 / c6(x) · C(g4, g5)",
        "D(g4, g5) = 1 / c6(x) · D(g5)",
        "Θ_W2 = 2 D(g3) · C((1 / c3) g2, (1 / c3) g2)",
    ):
        assert line in lines


def test_values_of_the_recursion_with_scalars_agree_with_the_kernel() -> None:
    program = tp.trace(normed, tp.Input(3), norm=by_arithmetic)
    x = jnp.asarray(RNG.normal(size=(3, 3)))
    values = tp.recursion(program).values(x)
    np.testing.assert_allclose(values["NNGP"], tp.nngp(program, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda z, m: z - m, 1),
        (lambda z, m: (z - m) / jnp.sqrt(m), 1),
        (lambda z, m: (z - m) ** 2, 2),
        (lambda z, m: jnp.square(z) * m, 2),
        (lambda z, m: jnp.where(m > 0, z, -z), 1),
        (lambda z, m: m + 0 * z, 1),
        (lambda z, m: jnp.sin(m), 0),
        (lambda z, m: z * z * z, 3),
        (lambda z, m: m / z, None),
        (lambda z, m: jnp.abs(z) * m, None),
        (lambda z, m: jnp.where(z > 0, z, z), None),
        (lambda z, m: jnp.floor(z), None),
        (lambda z, m: z.astype(int).astype(float), None),
    ],
)
def test_degrees_are_read_off_the_operations(fn: Any, expected: int | None) -> None:
    assert degree(freeze(fn)[0], 1, 1, ()) == expected


@pytest.mark.full
@pytest.mark.slow
def test_a_name_changes_no_number() -> None:
    """A scaled vector beside the bias that it depends on, whose mean counts once."""

    def f(x: Any, name: str | None) -> Any:
        n = tp.Width("n")
        b = tp.bias("b", n, mean=0.7, var=0.3)
        h = tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x + b)
        u = h / tp.scalar(jnp.sqrt, tp.moment(lambda a: a * a, h))
        return tp.weight("v", 1, n) @ ((u if name is None else tp.named(name, u)) + b)

    x = jnp.asarray(RNG.normal(size=(2, 3)))
    plain, named = (tp.kernels(tp.trace(f, tp.Input(3), name=name), x) for name in (None, "u"))
    np.testing.assert_allclose(named.nngp, plain.nngp, rtol=1e-12)
    np.testing.assert_allclose(named.ntk, plain.ntk, rtol=1e-12)
    program = tp.trace(f, tp.Input(3), name="u")
    finite = tp.empirical.nngp(program, tp.init(program, jax.random.key(0), 100_000), x)
    np.testing.assert_allclose(named.nngp, finite, rtol=0.02)
