"""Every net of the zoo by finite networks: the rate test for NNGP and NTK, and what it must not let through."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rates
import reference

import tensorprog as tp
from tensorprog.nets import ZOO, net

RATED = ("mlp", "mlp_tied", "mlp_two_widths", "rnn", "rnn_mean", "layernorm_mlp")
"""Nets whose finite networks are quick; the others are `full` tests, and `python benchmarks/rates.py` has them all."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in RATED else pytest.mark.full) for n in ZOO]
)
def test_finite_networks_converge_to_the_limit(name: str) -> None:
    for found in rates.measure(name):
        assert found.rate.holds(), f"{found.kind}, output {found.output}: {found.rate}"


@pytest.mark.slow
def test_the_untied_limit_fails_against_tied_networks() -> None:
    """Weight sharing changes the NTK of the mean readout: the rate test tells the two limits apart."""
    program, x = rates.small("rnn_mean")
    networks = rates.networks(program, x)[0]["ntk"]
    assert rates.rate(tp.ntk(program, x), networks).holds()

    def apart(x):
        n = tp.Width("n")
        u, b = tp.weight("U", n, x.features), tp.bias("b", n, var=0.1)
        states = [tp.nonlin(jnp.tanh, u @ x[0] + b)]
        for t in range(1, x.sites[0]):
            w = tp.weight(f"W{t}", n, n, var=1.2)
            states.append(tp.nonlin(jnp.tanh, w @ states[-1] + u @ x[t] + b))
        return tp.weight("v", 1, n) @ tp.mean(tp.stack(states))

    wrong = rates.rate(tp.ntk(tp.trace(apart, tp.Input(3, 4)), x), networks)
    assert not wrong.holds(), str(wrong)


def test_the_rate_test_sees_a_limit_that_is_two_per_cent_wrong() -> None:
    """On made-up kernels K + n^-1/2 noise: right limits pass, wrong ones do not."""
    rng = np.random.default_rng(0)
    limit = np.eye(3) + 1.0
    networks = {n: limit + rng.normal(size=(s, 3, 3)) * n**-0.5 for n, s in ((64, 60), (256, 40), (1024, 100))}
    assert rates.rate(limit, networks).holds()
    assert not rates.rate(1.04 * limit, networks).holds()


def test_the_error_of_an_estimated_limit_is_taken_out() -> None:
    """A limit that is 1.5 % off passes when that is its stated standard error, and only then."""
    rng = np.random.default_rng(0)
    limit = np.eye(3) + 1.0
    networks = {n: limit + rng.normal(size=(s, 3, 3)) * n**-0.5 for n, s in ((64, 60), (256, 40), (1024, 400))}
    error = 0.015 * np.abs(limit) * rng.choice([-1, 1], size=(3, 3))
    assert not rates.rate(limit + error, networks).holds()
    assert rates.rate(limit + error, networks, np.abs(error)).holds()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siamese", "gcn", "unet"])
def test_networks_are_drawn_for_tuples_of_inputs_several_outputs_and_sites(name: str) -> None:
    """Their shapes are the limits', seeds differ, and wider networks are nearer."""
    program, x = rates.small(name)
    drawn = rates.networks(program, x, (16, 256), (30, 30), 30)
    limits = rates.limits(program, x)
    assert len(drawn) == len(limits)
    for output, limit in zip(drawn, limits, strict=True):
        for kind in rates.KINDS:
            kernel = np.asarray(limit[kind][0])
            narrow, wide = (output[kind][width] for width in (16, 256))
            assert narrow.shape == (30, *kernel.shape)
            assert rates.spread(wide) < 0.6 * rates.spread(narrow)
            assert np.linalg.norm(wide.mean(0) - kernel) < 0.35 * np.linalg.norm(kernel)


def test_seeds_grow_with_the_spread_and_no_further_than_allowed() -> None:
    program, x = rates.small("mlp")
    drawn = rates.networks(program, x, (8, 16), (4, 5), 9)[0]["ntk"]
    assert [len(drawn[width]) for width in (8, 16)] == [4, 9]
    assert len(np.unique(drawn[16][:, 0, 0])) == 9


# The stored limits are Gauss-Hermite sums of 64 nodes, up to 2e-6 (erf) and 5e-5 (tanh) off; exact ones are below.
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("erf_last", 1e-5),
        ("erf_avg", 1e-5),
        pytest.param("tanh_last", 1e-4, marks=pytest.mark.slow),
        pytest.param("tanh_avg", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_tied_rnn_of_the_theory(case: str, tolerance: float) -> None:
    """The tied RNN's NTK and NNGP to the digits that an independent recursion gives (init-std convention)."""
    entry = reference.theory("rnn_ntk_T3")
    var_w, var_u, var_b, var_v = entry["cases"][case]["hp"]
    fn = jax.scipy.special.erf if case.startswith("erf") else jnp.tanh
    program = net("rnn_mean" if case.endswith("avg") else "rnn").program(
        tp.Input(3, 4), fn=fn, var_w=var_w, var_u=var_u, var_b=var_b, var_v=var_v
    )
    x = jnp.asarray([entry["inputs"]["X"], entry["inputs"]["Xb"]])
    ntk, nngp = tp.ntk(program, x, convention="init-std"), tp.nngp(program, x)
    for pair, (i, j) in {"00": (0, 0), "01": (0, 1), "11": (1, 1)}.items():
        expected = entry["cases"][case]["limit"][pair]
        np.testing.assert_allclose(ntk[i, j], expected["ntk"], rtol=tolerance)
        np.testing.assert_allclose(nngp[i, j], expected["nngp"], rtol=tolerance)


def gauss_hermite(fn: Callable[[np.ndarray], np.ndarray], a: float, b: float, c: float) -> float:
    """E fn(u) fn(v) by 200 × 200 nodes."""
    z, w = np.polynomial.hermite_e.hermegauss(200)
    w, r = w / w.sum(), c / np.sqrt(a * b)
    v = np.sqrt(b) * (r * z[:, None] + np.sqrt(max(1 - r * r, 0.0)) * z)
    return float((w[:, None] * w * fn(np.sqrt(a) * z)[:, None] * fn(v)).sum())


@pytest.mark.slow
def test_tied_tanh_rnn_by_a_plain_recursion() -> None:
    """Forward and backward recursion of the last state (init-std), written out, its integrals converged to 1e-8."""
    entry = reference.theory("rnn_ntk_T3")
    var_w, var_u, var_b, var_v = entry["cases"]["tanh_last"]["hp"]
    x, y = (np.array(entry["inputs"][name]) for name in ("X", "Xb"))
    forward, moments = [], []
    xx = yy = xy = 0.0
    for u, v in zip(x, y, strict=True):
        added = [var_u * p @ q / x.shape[1] + var_b for p, q in ((u, u), (v, v), (u, v))]
        a, b, c = (own + var_w * before for own, before in zip(added, (xx, yy, xy), strict=True))
        xx, yy, xy = (gauss_hermite(np.tanh, *g) for g in ((a, a, a), (b, b, b), (a, b, c)))
        forward.append((a, b, c))
        moments.append(xy)
    d, ntk = var_v, xy
    for t in reversed(range(len(x))):
        d *= gauss_hermite(lambda z: 1 / np.cosh(z) ** 2, *forward[t])
        ntk += d * ((moments[t - 1] if t else 0.0) + x[t] @ y[t] / x.shape[1] + 1)
        d *= var_w
    program = net("rnn").program(tp.Input(3, 4), var_w=var_w, var_u=var_u, var_b=var_b, var_v=var_v)
    found = tp.ntk(program, jnp.asarray(x)[None], jnp.asarray(y)[None], convention="init-std")
    np.testing.assert_allclose(found[0, 0], ntk, rtol=1e-8)


@pytest.mark.parametrize("name", [n for n in reference.papers() if n.startswith("rnn_ntk")])
@pytest.mark.parametrize("fn", ["erf", "relu"])
def test_rnns_of_the_papers(name: str, fn: str) -> None:
    entry, arrays = reference.paper(name)
    hyper = {key.replace("var", "var_"): value for key, value in entry["hyper"].items()}
    length, features = arrays["inputs"].shape[1:]
    which = net("rnn_mean" if name.endswith("avgpool") else "rnn")
    activation = jax.scipy.special.erf if fn == "erf" else jax.nn.relu
    program = which.program(tp.Input(length, features), fn=activation, **hyper)
    x = jnp.asarray(arrays["inputs"])
    prefix = "exact" if fn == "erf" else "exact_relu"
    np.testing.assert_allclose(tp.ntk(program, x, convention="init-std"), arrays[f"{prefix}_ntk"], rtol=1e-8)
    np.testing.assert_allclose(tp.nngp(program, x), arrays[f"{prefix}_nngp"], rtol=1e-8)
