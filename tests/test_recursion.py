"""`recursion`: its text, and its values against recursions written out in plain numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog.nets import net


def v_erf(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return 2 / np.pi * np.arcsin(c / np.sqrt((a + 0.5) * (b + 0.5)))


def v_erf_prime(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return 4 / np.pi / np.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c**2)


def inputs(*shape: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.normal(size=(4, *shape))), jnp.asarray(rng.normal(size=(3, *shape)))


def outer(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a[:, None], b[None, :]


def test_mlp_values() -> None:
    """C(g^l) = σ_w² C(s^{l-1}) + σ_b², C(s^l) = V C(g^l); D(s^L) = σ_v², D(g^l) = V' C(g^l) D(s^l)."""
    sw, sb, sv, depth = 1.7, 0.3, 0.8, 4
    program = net("mlp").program(tp.Input(5), fn=jax.scipy.special.erf, depth=depth, var_w=sw, var_b=sb, var_v=sv)
    x, y = inputs(5)
    values = tp.recursion(program).values(x, y)
    xx, yy, xy = (np.asarray(a) / 5 for a in ((x * x).sum(1), (y * y).sum(1), x @ y.T))
    c = {}
    for layer in range(1, depth + 1):
        xx, yy, xy = (sw * m + sb for m in (xx, yy, xy))
        c[layer] = (*outer(xx, yy), xy)
        np.testing.assert_allclose(values[f"C(g{layer})"], xy, rtol=1e-10)
        xx, yy, xy = v_erf(xx, xx, xx), v_erf(yy, yy, yy), v_erf(*c[layer])
        np.testing.assert_allclose(values[f"C(s{layer})"], xy, rtol=1e-10)
    d = np.full_like(xy, sv)
    for layer in range(depth, 0, -1):
        np.testing.assert_allclose(values[f"D(s{layer})"], d, rtol=1e-10)
        d = d * v_erf_prime(*c[layer])
        np.testing.assert_allclose(values[f"D(g{layer})"], d, rtol=1e-10)
        d = sw * d


def test_residual_values() -> None:
    """C(x^l) = C(x^{l-1}) + a² σ_w² V(H^l); D(x^{l-1}) = D(x^l) + σ_w² D(h^l), D(h^l) = a² σ_w² D(x^l) V'(H^l)."""
    a, sw, sb, depth = 0.5, 1.4, 0.2, 3
    program = net("resnet_mlp").program(
        tp.Input(5), fn=jax.scipy.special.erf, depth=depth, branch=a, var_w=sw, var_b=sb
    )
    x, y = inputs(5)
    values = tp.recursion(program).values(x, y)
    xx, yy, xy = (np.asarray(m) / 5 for m in ((x * x).sum(1), (y * y).sum(1), x @ y.T))
    h, streams = {}, {0: xy}
    for layer in range(1, depth + 1):
        h[layer] = (*outer(sw * xx + sb, sw * yy + sb), sw * xy + sb)
        np.testing.assert_allclose(values[f"C(g{layer})"], h[layer][2], rtol=1e-10)
        xx, yy = (m + a**2 * sw * v_erf(sw * m + sb, sw * m + sb, sw * m + sb) for m in (xx, yy))
        xy = xy + a**2 * sw * v_erf(*h[layer])
        streams[layer] = xy
    np.testing.assert_allclose(values["NNGP"], xy, rtol=1e-10)
    d = np.ones_like(xy)
    for layer in range(depth, 0, -1):
        if layer < depth:
            np.testing.assert_allclose(values[f"C(h{layer})"], streams[layer], rtol=1e-10)
            np.testing.assert_allclose(values[f"D(h{layer})"], d, rtol=1e-10)
        dh = a**2 * sw * d * v_erf_prime(*h[layer])
        np.testing.assert_allclose(values[f"D(g{layer})"], dh, rtol=1e-10)
        d = d + sw * dh


def tied_rnn(x: np.ndarray, y: np.ndarray, sw: float, su: float, sb: float) -> dict[Any, np.ndarray]:
    """Forward moments of all pairs of times: C(g_t, g_r), C(s_t, s_r) between x and y."""
    times, d = x.shape[1:]
    found = {}
    for name, one, two in (("xx", x, x), ("yy", y, y), ("xy", x, y)):
        pair = (lambda u, v: (u * v).sum(-1) / d) if name != "xy" else (lambda u, v: u @ v.T / d)
        for t in range(1, times + 1):
            for r in range(1, times + 1):
                g = su * pair(one[:, t - 1], two[:, r - 1]) + sb
                if t > 1 and r > 1:
                    g = g + sw * found[name, "s", t - 1, r - 1]
                found[name, "g", t, r] = g
                if name == "xy":
                    a, b = outer(found["xx", "g", t, t], found["yy", "g", r, r])
                else:
                    same = found if t == r else None
                    a = g if same else _variance(one, t, sw, su, sb)
                    b = g if same else _variance(two, r, sw, su, sb)
                found[name, "s", t, r] = v_erf(a, b, g)
    return found


def _variance(x: np.ndarray, t: int, sw: float, su: float, sb: float) -> np.ndarray:
    """Var g_t at each input."""
    g = su * (x[:, 0] ** 2).mean(-1) + sb
    for k in range(1, t):
        g = su * (x[:, k] ** 2).mean(-1) + sb + sw * v_erf(g, g, g)
    return g


def test_tied_rnn_values_for_all_pairs_of_times() -> None:
    """THEORY §7.1, mean readout: C and D of every pair of times."""
    sw, su, sb, times = 1.5, 1.2, 0.3, 4
    program = net("rnn_mean").program(
        tp.Input(times, 3), fn=jax.scipy.special.erf, var_w=sw, var_u=su, var_b=sb, var_v=1.0
    )
    x, y = (np.asarray(a) for a in inputs(times, 3))
    values = tp.recursion(program).values(x, y)
    found = tied_rnn(x, y, sw, su, sb)

    def name(letter: str, kind: str, t: int, r: int) -> str:
        return f"{letter}({kind}{t})" if t == r else f"{letter}({kind}{t}, {kind}{r})"

    d = {}
    for t in range(times, 0, -1):
        for r in range(times, 0, -1):
            for kind in "gs":
                np.testing.assert_allclose(values[name("C", kind, t, r)], found["xy", kind, t, r], rtol=1e-10)
            ds = np.full((4, 3), 1 / times**2)
            if t < times and r < times:
                ds = ds + sw * d[t + 1, r + 1]
            np.testing.assert_allclose(values[name("D", "s", t, r)], ds, rtol=1e-10)
            a, b = outer(found["xx", "g", t, t], found["yy", "g", r, r])
            d[t, r] = ds * v_erf_prime(a, b, found["xy", "g", t, r])
            np.testing.assert_allclose(values[name("D", "g", t, r)], d[t, r], rtol=1e-10)


def test_kernels_are_made_of_the_values() -> None:
    """NTK = Σ_p Σ D · own term, and x2=None gives the same-input values on the diagonal."""
    program = net("mlp").program(tp.Input(5), var_b=0.2)
    x, _ = inputs(5)
    values = tp.recursion(program).values(x)
    xx = np.asarray(x @ x.T) / 5
    terms = [2.0 * values["D(g1)"] * xx, values["C(s3)"]]
    terms += [2.0 * values[f"D(g{k + 1})"] * values[f"C(s{k})"] for k in (1, 2)]
    terms += [0.2 * values[f"D(g{k})"] for k in (1, 2, 3)]
    np.testing.assert_allclose(sum(terms), tp.ntk(program, x), rtol=1e-12)
    np.testing.assert_allclose(values["NNGP"], tp.nngp(program, x), rtol=1e-12)


def test_text_reads_like_the_papers() -> None:
    text = str(tp.recursion(net("rnn").program(tp.Input(8, 16), var_w=1.2)))
    for line in (
        "C(g1) = ⟨x[0], x̄[0]⟩/16 + 0.1",
        "C(s{i}) = V_tanh C(g{i})",
        "C(g{i}) = 1.2 C(s{i-1}) + ⟨x[{i-1}], x̄[{i-1}]⟩/16 + 0.1",
        "D(s8) = 1",
        "D(g{i}) = V_tanh′ C(g{i}) · D(s{i})",
        "D(s{i}) = 1.2 D(g{i+1})",
        "NNGP = C(s8)",
        "Θ_W = 1.2 Σ[i = 2…8] D(g{i}) · C(s{i-1})",
        "NTK = Θ_v + Θ_W + Θ_U + Θ_b",
    ):
        assert any(row.startswith(line) for row in text.splitlines()), line
    assert r"C(g_{i}) &= 1.2 C(s_{i-1})" in tp.recursion(net("rnn").program(tp.Input(8, 16))).latex()


def test_report_states_variances_and_bounds() -> None:
    program = net("rnn").program(tp.Input(3, 4))
    x, _ = inputs(3, 4)
    report = tp.recursion(program).report(x)
    assert "variances" in report and "NTK: largest bound" in report
