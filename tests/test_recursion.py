"""`recursion`: its text, and its values against recursions written out in plain numpy."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser

import tensorprog as tp
from tensorprog.interpret.latex import latex
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
    """Mean readout: C and D of every pair of times."""
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


@pytest.mark.slow
def test_report_states_variances_and_bounds() -> None:
    program = net("rnn").program(tp.Input(3, 4))
    x, _ = inputs(3, 4)
    report = tp.recursion(program).report(x)
    assert "variances" in report and "NTK: largest bound" in report


# ---- what is printed is what is evaluated ----------------------------------------------------------------------------

N = tp.Width("n")
erf, relu = jax.scipy.special.erf, jax.nn.relu


def v_relu(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip(c / np.sqrt(a * b), -1, 1))
    return np.sqrt(a * b) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def v_relu_prime(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (np.pi - np.arccos(np.clip(c / np.sqrt(a * b), -1, 1))) / (2 * np.pi)


V = {"erf": v_erf, "erf′": v_erf_prime, "relu": v_relu, "relu′": v_relu_prime}


def places(where: str) -> list[dict[str, int]]:
    """Of "i, j = 0…2; i = 3, j = 1": where each index stands."""
    found = []
    for part in where.split("; "):
        runs: list[tuple[list[str], list[int]]] = []
        for names, numbers in re.findall(r"([ij](?:, j)?) = ([\d…, ]+?)(?=, [ij] =|$)", part):
            ends = [run.split("…") for run in numbers.split(", ")]
            runs.append((names.split(", "), [k for run in ends for k in range(int(run[0]), int(run[-1]) + 1)]))
        flat = [(name, values) for names, values in runs for name in names]
        for chosen in itertools.product(*(values for _, values in flat)):
            found.append(dict(zip((name for name, _ in flat), chosen, strict=True)))
    return found


def at(text: str, place: dict[str, int]) -> str:
    """A family's text at one place."""
    return re.sub(r"\{([ij])([+-]\d+)?\}", lambda m: str(place[m[1]] + int(m[2] or 0)), text) if place else text


class Reader:
    """Reads printed lines as formulas, every name in them by `values`."""

    def __init__(self, program: tp.Program, x: jax.Array, y: jax.Array):
        recursion = tp.recursion(program)
        everything = {k: np.asarray(v) for k, v in recursion.values(jnp.concatenate([x, y])).items()}
        self.values = {k: v[: len(x), len(x) :] for k, v in everything.items()}
        alone = {k: np.einsum("nn...->n...", v) for k, v in everything.items()}
        self.alone = [{k: v[: len(x)] for k, v in alone.items()}, {k: v[len(x) :] for k, v in alone.items()}]
        self.x, self.y, self.found = np.asarray(x), np.asarray(y), dict[str, Any]()
        self.lines = [
            (at(line.lhs, place), at(line.rhs, place))
            for line in recursion.lines()
            for place in (places(line.where) if line.where else [{}])
        ]

    def look(self, name: str) -> Any:
        """C(g1[0], g1[2]), D2[0, 1](s1), NNGP[0, 1]: the part of `values`."""
        if name in self.found:
            return self.found[name]
        head, target, _, vectors = re.fullmatch(r"([A-Z]+\d*)(\[.*?\])?(\((.*)\))?", name).groups()  # type: ignore[union-attr]
        own = re.findall(r"(\w+)(\[.*?\])?(?:, |$)", vectors or "")
        names = [vector for vector, _ in own]
        key = head + (f"({names[0] if len(set(names)) == 1 else ', '.join(names)})" if names else "")
        sites = (own * 2 if len(own) == 1 else own) if own else []
        index = [int(k) for text in [target or "", *(s for _, s in sites)] for k in re.findall(r"\d+", text)]
        return np.asarray(self.values[key])[(..., *index)]

    def v(self, function: str, name: str) -> np.ndarray:
        own = re.findall(r"(\w+(?:\[.*?\])?)(?:, |\))", name)
        a, b = (self.variance(side, own[-side]) for side in (0, 1))
        return V[function](*outer(a, b), self.look(name))

    def variance(self, side: int, vector: str) -> np.ndarray:
        name, *index = re.findall(r"\w+", vector)
        return self.alone[side][f"C({name})"][(..., *(int(k) for k in index * 2))]

    def leaf(self, left: str, right: str, features: str) -> np.ndarray:
        x, y = (z[(slice(None), *map(int, re.findall(r"\d+", text)))] for z, text in ((self.x, left), (self.y, right)))
        return x @ y.T / int(features)

    def read(self, text: str) -> Any:
        """A right-hand side's value."""
        if sums := re.match(r"(.*)Σ\[(.*?)\] (.*)", text):
            return float(sums[1] or 1) * sum(self.read(at(sums[3], place)) for place in places(sums[2]))
        atoms: list[Any] = []

        def atom(value: Any) -> str:
            atoms.append(value)
            return f"_{len(atoms) - 1}_"

        text = re.sub(r"E erf\(\w+\(x̄?\)\)", lambda m: atom(0.0), text)  # of Gaussians without a mean
        text = re.sub(r"V_(\w+′?) (C\([^()]*\))", lambda m: atom(self.v(m[1], m[2])), text)
        text = re.sub(r"⟨(.*?), (x̄.*?)⟩/(\d+)", lambda m: atom(self.leaf(m[1], m[2], m[3])), text)
        text = re.sub(r"Θ\d*_\w+(\[.*?\])?", lambda m: atom(self.found[m[0]]), text)
        text = re.sub(r"(?:C|D\d*(?:\[[^()]*?\])?)\([^()]*\)", lambda m: atom(self.look(m[0])), text)
        product = re.sub(r"(?<![\w.])([\d.]+) _", r"\1 * _", text).replace("·", "*").replace("−", "-")
        product = re.sub(r"_(\d+)_", r"atoms[\1]", product)
        return eval(product, {"atoms": atoms})

    def check(self, kernel: Any) -> None:
        """Every printed line holds, each left-hand side is printed once, and the printed NTK is the NTK."""
        left = [lhs for lhs, _ in self.lines]
        assert len(left) == len(set(left)), left
        for lhs, rhs in sorted(self.lines, key=lambda line: line[0].startswith("NTK")):
            value = np.broadcast_to(np.asarray(self.read(rhs), float), (len(self.x), len(self.y)))
            if lhs[0] in "CD" or lhs.startswith("NNGP"):
                np.testing.assert_allclose(value, self.look(lhs), rtol=1e-9, atol=1e-12, err_msg=f"{lhs} = {rhs}")
            self.found[lhs] = value
        kernels = kernel if isinstance(kernel, tuple) else (kernel,)
        for k, of_output in enumerate(kernels):
            name = f"NTK{k + 1}" if len(kernels) > 1 else "NTK"
            for index in np.ndindex(of_output.shape[2:]):
                half = [", ".join(map(str, part)) for part in (index[: len(index) // 2], index[len(index) // 2 :])]
                label = f"[{(', ' if len(index) == 2 else '; ').join(half)}]" if index else ""
                np.testing.assert_allclose(self.found[name + label], of_output[(..., *index)], rtol=1e-9, atol=1e-12)
        printed = {name for name in self.found if name[0] == "D"}
        for key in (k for k in self.values if re.match(r"D\d*\((\w+)\)$", k)):
            if not np.asarray(self.values[key]).any():
                continue
            head, vector = key.split("(")
            assert any(re.match(rf"{head}(\[.*\])?\({vector[:-1]}\b", name) for name in printed), key


def gate(x: Any) -> Any:
    h = tp.nonlin(relu, tp.weight("U", N, 5) @ x)
    return tp.weight("v", 1, N) @ (tp.nonlin(erf, tp.weight("W", N, N) @ h) * h)


def gate_and_skip(x: Any, fn: Any = erf, mean: float = 0.4) -> Any:
    h = tp.named("my_h", tp.nonlin(relu, tp.weight("U", N, 5) @ x))
    gated = tp.nonlin(fn, tp.weight("W", N, N) @ h + tp.bias("b", N, mean=mean)) * h
    return tp.weight("v", 1, N) @ (gated + h)


def two_outputs(x: Any) -> Any:
    h = tp.nonlin(relu, tp.weight("U", N, 5) @ x)
    k = tp.nonlin(erf, tp.weight("W", N, N, var=1.3) @ h)
    v = tp.weight("v", 1, N)
    return v @ k, v @ h + tp.weight("w", 1, N) @ h


def over_sites(x: Any) -> Any:
    s = tp.nonlin(relu, tp.weight("U", N, 5) @ x)
    return tp.weight("v", 1, N) @ s


def states(x: Any) -> Any:
    """Outputs over sites that are defined one from another."""
    w, v = tp.weight("W", N, N, var=1.2), tp.weight("v", 1, N)
    s = tp.nonlin(erf, tp.weight("U", N, 5) @ x)
    t = tp.nonlin(erf, w @ s)
    return v @ tp.stack([s, t, tp.nonlin(erf, w @ t)]), tp.named("last", v @ t)


def named_output(x: Any) -> Any:
    return tp.named("y", over_sites(x))


def wide_output(x: Any) -> Any:
    return tp.nonlin(relu, tp.weight("U", N, 5) @ x)


def wide_with_mean(x: Any) -> Any:
    return tp.weight("W", N, N) @ wide_output(x) + tp.bias("b", N, mean=1.5)


PRINTED = {f.__name__: f for f in (gate, two_outputs, over_sites, states, named_output, wide_output, wide_with_mean)}
SITES = {"over_sites": (3,)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "states" else n for n in PRINTED])
def test_printed_lines_hold(name: str) -> None:
    shape = (*SITES.get(name, ()), 5)
    program = tp.trace(PRINTED[name], tp.Input(*shape))
    x, y = inputs(*shape)
    Reader(program, x, y).check(tp.ntk(program, x, y))


def rows(program: tp.Program) -> list[str]:
    return [re.sub(r" {3,}.*", "", row) for row in str(tp.recursion(program)).splitlines()]


def test_reader_finds_wrong_lines() -> None:
    program = tp.trace(gate, tp.Input(5))
    x, y = inputs(5)
    reader = Reader(program, x, y)
    reader.lines = [(lhs, rhs.replace(" · V_relu C(g1) · D", " · D")) for lhs, rhs in reader.lines]
    with pytest.raises(AssertionError, match="D\\(g2\\)"):
        reader.check(tp.ntk(program, x, y))


def test_factors_of_products_keep_the_other_factors() -> None:
    text = rows(tp.trace(gate, tp.Input(5)))
    assert text[3:8] == [
        "C(s3) = V_erf C(g2) · V_relu C(g1)",
        "D(s3) = 1",
        "D(g2) = V_erf′ C(g2) · V_relu C(g1) · D(s3)",
        "D(s1) = D(g2)",
        "D(g1) = V_relu′ C(g1) · D(s1) + V_relu′ C(g1) · V_erf C(g2) · D(s3)",
    ]


def test_means_of_factors() -> None:
    """A mean in a product is the factor's, E exp(g) = exp(Var g / 2), and g2 in it has its mean."""
    text = rows(tp.trace(gate_and_skip, tp.Input(5)))
    assert "C(s2) = V_erf(· + m) C(g2) · V_relu C(g1)" in text
    assert "C(s2, my_h) = E erf(g2(x)) · V_relu C(g1)" in text
    assert "C(my_h, s2) = E erf(g2(x̄)) · V_relu C(g1)" in text
    program = tp.trace(lambda x: gate_and_skip(x, jnp.exp, 0.0), tp.Input(5))
    assert "C(my_h, s2) = E exp(g2(x̄)) · V_relu C(g1)" in rows(program)
    reader = Reader(program, *inputs(5))
    means = [np.exp(reader.variance(side, "g2") / 2) for side in (0, 1)]
    c = reader.look("C(my_h)")
    np.testing.assert_allclose(reader.look("C(s2, my_h)"), means[0][:, None] * c, rtol=1e-9)
    np.testing.assert_allclose(reader.look("C(my_h, s2)"), means[1][None] * c, rtol=1e-9)


def test_outputs_have_lines_of_their_own() -> None:
    assert rows(tp.trace(two_outputs, tp.Input(5)))[4:] == [
        "D1(s2) = 1",
        "D1(g2) = V_erf′ C(g2) · D1(s2)",
        "D1(s1) = 1.3 D1(g2)",
        "D1(g1) = V_relu′ C(g1) · D1(s1)",
        "D2(s1) = 2",
        "D2(g1) = V_relu′ C(g1) · D2(s1)",
        "NNGP1 = C(s2)",
        "NNGP2 = 2 C(s1)",
        "Θ1_U = D1(g1) · ⟨x, x̄⟩/5",
        "Θ1_W = 1.3 D1(g2) · C(s1)",
        "Θ1_v = C(s2)",
        "NTK1 = Θ1_U + Θ1_W + Θ1_v",
        "Θ2_U = D2(g1) · ⟨x, x̄⟩/5",
        "Θ2_v = C(s1)",
        "Θ2_w = C(s1)",
        "NTK2 = Θ2_U + Θ2_v + Θ2_w",
    ]


def test_pairs_of_output_sites_have_lines_of_their_own() -> None:
    text = str(tp.recursion(tp.trace(over_sites, tp.Input(3, 5)))).splitlines()
    assert [" ".join(row.split()) for row in text][2:] == [
        "D[{i}, {j}](s1[{i}], s1[{j}]) = 1 i, j = 0…2",
        "D[{i}, {j}](g1[{i}], g1[{j}]) = V_relu′ C(g1[{i}], g1[{j}]) · D[{i}, {j}](s1[{i}], s1[{j}]) i, j = 0…2",
        "NNGP[{i}, {j}] = C(s1[{i}], s1[{j}]) i, j = 0…2",
        "Θ_U[{i}, {j}] = D[{i}, {j}](g1[{i}], g1[{j}]) · ⟨x[{i}], x̄[{j}]⟩/5 i, j = 0…2",
        "Θ_v[{i}, {j}] = C(s1[{i}], s1[{j}]) i, j = 0…2",
        "NTK[{i}, {j}] = Θ_U[{i}, {j}] + Θ_v[{i}, {j}] i, j = 0…2",
    ]


def test_named_and_wide_outputs_have_a_seed() -> None:
    assert {"D(y) = 1", "D(s1) = D(y)", "Θ_v = D(y) · C(s1)"} <= set(rows(tp.trace(named_output, tp.Input(5))))
    assert {"D(s1) = 1", "NNGP = C(s1)"} <= set(rows(tp.trace(wide_output, tp.Input(5))))


def test_means_are_added_in_the_second_moment_only() -> None:
    program = tp.trace(wide_with_mean, tp.Input(5))
    text = rows(program)
    assert [row for row in text if "(g2)" in row] == [
        "C(g2) = C(s1) + 1", "D(g2) = 1", "D(s1) = D(g2)", "NNGP = C(g2) + 2.25", "Θ_W = D(g2) · C(s1)", "Θ_b = D(g2)",
    ]  # fmt: skip
    x, y = inputs(5)
    values = tp.recursion(program).values(x, y)
    np.testing.assert_allclose(values["NNGP"], values["C(g2)"] + 2.25, rtol=1e-12)
    np.testing.assert_allclose(tp.second_moment(program, "g2", "g2", x, y), values["NNGP"], rtol=1e-12)


def test_recursion_inside_a_transformation() -> None:
    program = tp.trace(wide_with_mean, tp.Input(5))
    x, _ = inputs(5)
    inside = jax.jit(lambda z: tp.recursion(program).values(z)["NNGP"])(x)
    np.testing.assert_allclose(inside, tp.recursion(program).values(x)["NNGP"], rtol=1e-12)
    texts = []
    jax.jit(lambda z: (texts.append(str(tp.recursion(program))), z)[1])(x)
    assert texts == [str(tp.recursion(program))]


def dependent_factors(x: Any) -> Any:
    a = tp.weight("U", N, 5) @ x
    b = a + tp.weight("V", N, 5) @ x
    return tp.weight("v", 1, N) @ (tp.named("a", a) * tp.named("b", b))


@pytest.mark.slow
def test_functions_of_dependent_gaussians() -> None:
    """E a b ā b̄ by Isserlis; its derivative in C(a) is E b b̄."""
    program = tp.trace(dependent_factors, tp.Input(5))
    text = rows(program)
    assert "C(s1) = E[a(x)·b(x) · a(x̄)·b(x̄)]" in text
    assert "D(b) = E[∂(a(x)·b(x))/∂b · ∂(a(x̄)·b(x̄))/∂b] · D(s1)" in text
    assert "D(a, b) = E[∂(a(x)·b(x))/∂a · ∂(a(x̄)·b(x̄))/∂b] · D(s1)" in text
    reader = Reader(program, *inputs(5))
    values = reader.values
    a, b, ab, ba = (values[f"C({name})"] for name in ("a", "b", "a, b", "b, a"))
    left, right = (alone["C(a, b)"] for alone in reader.alone)
    np.testing.assert_allclose(values["C(s1)"], left[:, None] * right + a * b + ab * ba, rtol=1e-9)
    np.testing.assert_allclose(values["D(b)"], a, rtol=1e-9)
    np.testing.assert_allclose(values["D(a, b)"], ba, rtol=1e-9)


def unusual_names(x: Any) -> Any:
    s = tp.named("h_1", tp.nonlin(jax.nn.leaky_relu, tp.weight("φ_in", N, 5) @ x + tp.bias("b", N, mean=0.5, var=1e-7)))
    t = tp.named("my_state", tp.weight("W", N, N) @ s)
    return tp.weight("v", 1, N) @ (tp.nonlin(erf, t) * s + s), t


ODD = [gate, gate_and_skip, two_outputs, states, dependent_factors, wide_with_mean, unusual_names, over_sites]


@pytest.mark.parametrize("fn", ODD, ids=lambda fn: fn.__name__)
def test_latex_is_valid(fn: Any) -> None:
    """Every row is read by matplotlib's TeX, all in ASCII, with no name in italics and no bare underscore."""
    program = tp.trace(fn, tp.Input(*SITES.get(fn.__name__, ()), 5))
    text = tp.recursion(program).latex()
    first, *written, last = text.splitlines()
    assert (first, last) == (r"\begin{align*}", r"\end{align*}") and text.isascii()
    parser = MathTextParser("path")
    for row in written:
        left, right, *where = row.removesuffix(r" \\").split("&")
        parser.parse("$" + " ".join([left, right, *where]) + "$")
        bare = re.sub(r"\\mathrm\{(?:[^{}]|\\_)*\}|\\[A-Za-z]+", "", row)
        assert not re.search(r"[A-Za-z]{2}", bare), bare


def test_latex_of_names() -> None:
    for plain, tex in (
        ("V_leaky_relu(· + m) C(g1)", r"V_{\mathrm{leaky\_relu(\cdot + m)}}\left(C(g_{1})\right)"),
        ("C(my_h, s1[0])", r"C(\mathrm{my\_h}, s_{1}[0])"),
        ("⟨x[0], x̄[{i-1}]⟩/16", r"\frac{\langle x_{0}, \bar x_{i-1}\rangle}{16}"),
        ("D2[0, 1](h_1)", r"D^{(2)}_{0, 1}(h_{1})"),
        ("1e-07 D(g1)", r"1 \times 10^{-7} D(g_{1})"),
        ("Θ2_W_in[{i}, {j}]", r"\Theta^{(2)}_{\mathrm{W\_in};\, i, j}"),
        ("E[∂(φ(g1(x)))/∂g1]", r"\mathrm{E}\,[\partial (\phi(g_{1}(x)))/\partial g_{1}]"),
    ):
        assert latex(plain) == tex
