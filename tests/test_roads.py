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


def data(program: tp.Program) -> jax.Array:
    shape = program.structure.inputs[0].shape
    return jnp.asarray(np.random.default_rng(7).normal(size=(3, *shape)))


RATED = ("mlp", "mlp_tied", "mlp_two_widths", "resnet_mlp", "rnn", "rnn_mean", "layernorm_mlp", "dropout_mlp")
"""Nets whose finite networks are quick; `python benchmarks/rates.py` tests them all, docs/rates.md has its table."""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nngp", "ntk"])
@pytest.mark.parametrize("name", RATED)
def test_finite_networks_converge_to_the_limit(name: str, what: str) -> None:
    program = ZOO[name]
    x = data(program)
    found = rates.rate(
        getattr(tp, what)(program, x), rates.samples(program, x, what, 300 if name == "resnet_mlp" else 100)
    )
    assert found.holds(), str(found)


@pytest.mark.slow
def test_the_untied_limit_fails_against_tied_networks() -> None:
    """Weight sharing changes the NTK of the mean readout: the rate test tells the two limits apart."""
    program = ZOO["rnn_mean"]
    x = data(program)
    networks = rates.samples(program, x, "ntk")
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
