"""The kernel interpreter's promises: derivatives, edges, symmetry, tiles, ties, dependence, conventions."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import QUICK, data, first, rows

import tensorprog as tp
from tensorprog.interpret.system import parameter_weights
from tensorprog.nets import ZOO, net

ERF = jax.scipy.special.erf
SLOW, FULL = pytest.mark.slow, pytest.mark.full
RNG = np.random.default_rng(0)


def one_layer(x: Any, make: Any) -> Any:
    """W x, then make(h), then a readout."""
    n = tp.Width("n")
    return tp.weight("v", 1, n) @ make(tp.weight("W", n, x.features, var=1.3) @ x)


def monte_carlo(make: Any, x: jax.Array, draws: int = 2_000_000) -> tuple[np.ndarray, np.ndarray]:
    """E F(h)F(h̄) for the one-layer program by sampling (h, h̄), with standard errors."""
    cov = 1.3 * np.asarray(x @ x.T) / x.shape[1]
    values, vectors = np.linalg.eigh(cov)
    z = np.random.default_rng(1).normal(size=(draws, len(cov)))
    h = z @ (vectors * np.sqrt(np.maximum(values, 0))).T
    f = np.asarray(make(h))
    products = f[:, :, None] * f[:, None, :]
    return products.mean(0), products.std(0) / np.sqrt(draws)


@pytest.mark.parametrize(
    ("traced", "plain"),
    [
        (lambda h: h + h, lambda h: 2 * h),
        (lambda h: h * h, lambda h: h * h),
        (lambda h: h * tp.nonlin(jax.nn.relu, h), lambda h: h * np.maximum(h, 0)),
        (lambda h: h + tp.nonlin(jax.nn.relu, h), lambda h: h + np.maximum(h, 0)),
        pytest.param(lambda h: tp.nonlin(jnp.tanh, h) - h, lambda h: np.tanh(h) - h, marks=SLOW),
        pytest.param(
            lambda h: tp.nonlin(jnp.tanh, h) + tp.nonlin(jnp.abs, h), lambda h: np.tanh(h) + np.abs(h), marks=FULL
        ),
        (lambda h: tp.nonlin(jnp.tanh, h + tp.nonlin(jax.nn.relu, h)), lambda h: np.tanh(h + np.maximum(h, 0))),
    ],
)
def test_dependent_branches(traced: Any, plain: Any) -> None:
    x = jnp.asarray(RNG.normal(size=(3, 5)))
    program = tp.trace(one_layer, tp.Input(5), make=traced)
    mean, se = monte_carlo(plain, x)
    assert (np.abs(tp.nngp(program, x) - mean) <= 4 * se + 1e-12).all()


def test_dependent_branches_exactly() -> None:
    """h + h, h·h and h·relu(h) against their formulas."""
    x = jnp.asarray(RNG.normal(size=(3, 5)))
    c = 1.3 * np.asarray(x @ x.T) / 5
    a, b = np.diag(c)[:, None], np.diag(c)[None, :]
    r = np.clip(c / np.sqrt(a * b), -1, 1)
    theta = np.arccos(r)
    relu2 = a * b / (2 * np.pi) * (3 * np.sin(theta) * r + (np.pi - theta) * (1 + 2 * r**2))
    for make, expected in (
        (lambda h: h + h, 4 * c),
        (lambda h: h * h, a * b + 2 * c**2),
        (lambda h: h * tp.nonlin(jax.nn.relu, h), relu2),
    ):
        found = tp.nngp(tp.trace(one_layer, tp.Input(5), make=make), x)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.full
def test_functions_of_two_gaussians() -> None:
    """Independent factors apart; dependent ones together: tanh(h)·relu(k), with k independent of h, then not."""
    x = jnp.asarray(RNG.normal(size=(3, 4)))

    def gated(x: Any, shared: bool) -> Any:
        n = tp.Width("n")
        h = tp.weight("W", n, x.features) @ x
        k = tp.weight("V", n, x.features) @ x
        s = tp.nonlin(lambda u, v: jnp.tanh(u) * jnp.sin(v), h, k + h if shared else k)
        return tp.weight("v", 1, n) @ s

    cov = np.asarray(x @ x.T) / 4
    root = np.linalg.cholesky(cov + 1e-14 * np.eye(3))
    z = np.random.default_rng(3).normal(size=(2, 1_000_000, 3))
    h, k = z[0] @ root.T, z[1] @ root.T
    for shared in (False, True):
        f = np.tanh(h) * np.sin(k + h if shared else k)
        products = f[:, :, None] * f[:, None, :]
        se = products.std(0) / 1000
        found = tp.kernels(tp.trace(gated, tp.Input(4), shared=shared), x, error=True)
        assert (np.abs(found.nngp - products.mean(0)) <= 4 * se).all()
        assert np.isfinite(found.ntk).all()
        assert (found.error.nngp < 1e-6).all()


def three(x: Any) -> Any:
    n = tp.Width("n")
    h = [tp.weight(f"W{i}", n, x.features) @ x for i in range(3)]
    return tp.weight("v", 1, n) @ tp.nonlin(lambda a, b, c: jnp.tanh(a + b * c), *h)


def test_a_function_of_three_dependent_gaussians_is_sampled() -> None:
    """No rule integrates it: nngp and ntk estimate it from samples, and the recursion says why it has none."""
    program = tp.trace(three, tp.Input(4))
    x = data(program, 2)
    with pytest.raises(tp.ProgramError, match=r"test_kernel.py:\d+.*\n.*3 Gaussians"):
        tp.recursion(program)
    found = tp.kernels(program, x, samples=2**14, error=True)
    back = tp.kernels(program, x, method="backward", samples=2**14, error=True)
    assert (np.abs(found.nngp - back.nngp) <= 4 * (found.error.nngp + back.error.nngp)).all()
    assert (np.abs(found.ntk - back.ntk) <= 4 * (found.error.ntk + back.error.ntk)).all()
    assert (found.error.ntk < 0.02 * found.ntk.max()).all()


# ------------------------------------------------------------------------------------------------------- edges


FUNCTIONS = [
    jax.nn.relu,
    ERF,
    jnp.sin,
    *(pytest.param(f, marks=FULL) for f in (jnp.abs, jnp.exp, jnp.tanh, jax.nn.elu)),
]
# Nets whose functions go by the general method compile for long; what they add here runs with the slow tests.
ALIKE = ("mlp", "mlp_two_widths", "resnet_mlp")
NETS = [
    pytest.param(name, marks=SLOW) if name in (*ALIKE, "rnn", "transformer") else name
    for name in (*QUICK, "rnn", "transformer")
]
NETS += [pytest.param(name, marks=FULL) for name in ("rnn_mean", "swiglu")]


@pytest.mark.slow
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_values_and_first_derivatives_are_finite_everywhere(fn: Any) -> None:
    program = tp.trace(
        partial(net("mlp").fn, depth=1 if fn is jnp.exp else 2, fn=fn, var_w=0.9, var_b=0.0), tp.Input(3)
    )
    base = jnp.asarray([[1.0, -2.0, 0.5]])
    small = 1e-6 if fn is jnp.exp else 1e-150
    large = 3.0 if fn is jnp.exp else 1e5
    x = jnp.concatenate([base, base, -base, 0 * base, base * small, base[:, ::-1] * large])
    for x2 in (None, x):
        found = tp.kernels(program, x, x2)
        assert np.isfinite(found.nngp).all() and np.isfinite(found.ntk).all()

        def total(p: Any, y: Any, x2: Any = x2) -> jax.Array:
            both = tp.kernels(p, y, x2)
            return both.nngp.sum() + both.ntk.sum()

        grads = jax.grad(total, argnums=(0, 1))(program, x)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", NETS)
def test_symmetric_to_the_last_bit_and_positive(name: str) -> None:
    program = ZOO[name]
    x = data(program, 7)
    again = rows(x, np.r_[0:7, 0:2, 0])
    x = (-again[0], *again[1:]) if isinstance(again, tuple) else again.at[-1].multiply(-1.0)
    k = first(tp.kernels(program, x))
    for kernel in (k.nngp, k.ntk):
        assert (np.asarray(kernel) == np.asarray(kernel).T).all()
        assert np.linalg.eigvalsh(kernel).min() >= -1e-12 * np.abs(kernel).max()


@pytest.mark.parametrize("name", NETS)
def test_tiled_whole_jit_and_two_batches_agree(name: str) -> None:
    program = ZOO[name]
    x = data(program, 70)
    whole = first(tp.ntk(program, x))
    np.testing.assert_allclose(first(tp.ntk(program, rows(x, slice(5)), x)), whole[:5], rtol=1e-7, atol=1e-7)
    traced = first(jax.jit(tp.ntk)(program, rows(x, slice(9))))
    np.testing.assert_allclose(traced, whole[:9, :9], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETS)
def test_float32_is_near_float64(name: str) -> None:
    program = ZOO[name]
    x = data(program, 6)
    low = jax.tree.map(lambda a: a.astype(jnp.float32), x)
    exact, single = first(tp.kernels(program, x)), first(tp.kernels(program, low))
    for a, b in ((exact.nngp, single.nngp), (exact.ntk, single.ntk)):
        assert b.dtype == jnp.float32
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_nothing_compiles_again_for_another_number_of_inputs(compilations: list[str]) -> None:
    program = ZOO["mlp"]
    tp.ntk(program, data(program, 5))
    tp.ntk(program, data(program, 5), data(program, 6, 1))
    numbers = (1, 3, 40, 90)
    found = [(data(program, n), data(program, n + 1)) for n in numbers]
    changed = program.replace({"W1.var": 1.1})
    compilations.clear()
    for x1, x2 in found:
        tp.ntk(program, x1, x2)
        tp.ntk(changed, x1)
    assert not {"panel", "stripe", "jit(panel)", "jit(stripe)"} & set(compilations)


# ------------------------------------------------------------------------------------------------- derivatives


@SLOW
@pytest.mark.parametrize("name", ["mlp", pytest.param("rnn_mean", marks=FULL)])
def test_derivatives_to_second_order(name: str) -> None:
    program = net(name).program(fn=ERF, depth=2) if name == "mlp" else ZOO[name]
    x = data(program, 3)
    x2 = data(program, 2, 1)
    direction = data(program, 3, 2)

    def f(t: Any, s: Any = 0.0) -> jax.Array:
        moved = program.replace({"v.var": 1.0 + s, program.structure.weights[0].name + ".var": 0.9 + t})
        return tp.ntk(moved, x + t * direction, x2).sum()

    h = 1e-4
    first = jax.grad(f)(0.1)
    np.testing.assert_allclose(first, (f(0.1 + h) - f(0.1 - h)) / (2 * h), rtol=1e-6)
    second = jax.grad(jax.grad(f))(0.1)
    np.testing.assert_allclose(second, (jax.grad(f)(0.1 + h) - jax.grad(f)(0.1 - h)) / (2 * h), rtol=1e-5)
    mixed = jax.jvp(lambda t: jax.grad(f, argnums=1)(t, 0.0), (0.1,), (1.0,))[1]
    np.testing.assert_allclose(
        mixed, (jax.grad(f, 1)(0.1 + h, 0.0) - jax.grad(f, 1)(0.1 - h, 0.0)) / (2 * h), rtol=1e-5
    )


@pytest.mark.slow
def test_numbers_given_to_trace_may_be_tracers() -> None:
    x = jnp.asarray(RNG.normal(size=(3, 4)))

    def loss(s: Any) -> jax.Array:
        return tp.ntk(tp.trace(net("mlp").fn, tp.Input(4), var_w=s), x).sum()

    program = tp.trace(net("mlp").fn, tp.Input(4), var_w=1.7)
    by_leaf = jax.grad(lambda p: tp.ntk(p, x).sum())(program).numbers
    np.testing.assert_allclose(jax.grad(loss)(1.7), sum(by_leaf[f"W{i}.var"] for i in (1, 2, 3)), rtol=1e-12)


def test_gradient_in_a_variance_of_zero_is_finite() -> None:
    program = net("mlp").program(var_b=0.0)
    x = data(program, 3)
    grads = jax.grad(lambda p: tp.ntk(p, x).sum())(program)
    assert all(np.isfinite(g) for g in grads.leaves)


# -------------------------------------------------------------------------------- parameters and their conventions


@pytest.mark.parametrize("name", NETS)
def test_the_terms_of_the_parameters_sum_to_the_ntk(name: str) -> None:
    program = ZOO[name]
    x, x2 = data(program, 4), data(program, 3, 1)
    for second in (None, x2):
        parts = first(tp.ntk_by_parameter(program, x, second))
        assert set(parts) == {p.name for p in program.structure.parameters}
        np.testing.assert_allclose(sum(parts.values()), first(tp.ntk(program, x, second)), rtol=1e-11)


def test_conventions() -> None:
    program = net("mlp").program(var_w=1.7, var_b=0.2, var_v=0.6)
    x = data(program, 3)
    parts = tp.ntk_by_parameter(program, x)
    numbers = program.numbers
    papers = sum(part / numbers[f"{name}.var"] for name, part in parts.items())
    np.testing.assert_allclose(tp.ntk(program, x, convention="init-std"), papers, rtol=1e-12)
    fans = {"W1": 4, "W2": 300, "W3": 300, "v": 300, "b1": 1, "b2": 1, "b3": 1}
    standard = sum(fans[name] * part / numbers[f"{name}.var"] for name, part in parts.items())
    np.testing.assert_allclose(tp.ntk(program, x, convention="standard", widths=300), standard, rtol=1e-12)
    with pytest.raises(tp.ProgramError, match="widths"):
        tp.ntk(program, x, convention="standard")
    with pytest.raises(tp.ProgramError, match="convention"):
        tp.ntk(program, x, convention="ntk")


def test_a_bias_that_starts_at_zero_and_learns() -> None:
    """var=0, scale=1: no NNGP term, and the NTK term that finite networks show."""

    def f(x: Any, var: float, scale: float | None) -> Any:
        n = tp.Width("n")
        h = tp.weight("W", n, x.features) @ x + tp.bias("b", n, var=var, scale=scale)
        return tp.weight("v", 1, n) @ tp.nonlin(ERF, h)

    x = jnp.asarray(RNG.normal(size=(3, 4)))
    with_bias, without = (tp.trace(f, tp.Input(4), var=0.0, scale=s) for s in (1.0, None))
    np.testing.assert_array_equal(tp.nngp(with_bias, x), tp.nngp(without, x))
    term = tp.ntk_by_parameter(with_bias, x)["b"]
    c = np.asarray(x @ x.T) / 4
    a, b = np.diag(c)[:, None], np.diag(c)[None, :]
    np.testing.assert_allclose(term, 4 / np.pi / np.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c**2), rtol=1e-12)
    params = tp.init(with_bias, jax.random.key(0), 20_000)
    assert (params["b"] == 0).all()
    finite = tp.empirical.ntk(lambda p, y: tp.apply(with_bias, {**params, "b": p}, y), params["b"], x)
    np.testing.assert_allclose(finite, term, rtol=0.05)


def test_learning_rates_are_weights_and_zero_freezes() -> None:
    program = ZOO["mlp"]
    x = data(program, 3)
    parts = tp.ntk_by_parameter(program, x)
    tuned = program.replace({"W2.lr": 3.0, "b1.lr": 0.0})
    expected = tp.ntk(program, x) + 2 * parts["W2"] - parts["b1"]
    np.testing.assert_allclose(tp.ntk(tuned, x), expected, rtol=1e-12)


def test_jumps_add_nothing_to_the_ntk() -> None:
    """A sign network's NTK is its readout's term alone, as finite networks have it; Price's derivative is not."""
    program = net("mlp").program(fn=jnp.sign)
    x = data(program, 3)
    np.testing.assert_allclose(tp.ntk(program, x), tp.nngp(program, x), rtol=1e-12)


# --------------------------------------------------------------------------------------- sites, outputs, inputs


def test_a_readout_over_sites_gives_pairs_of_sites() -> None:
    def states(x: Any, last: bool) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.abs, tp.weight("U", n, x.features) @ x + tp.bias("b", n, var=0.3))
        h = tp.nonlin(ERF, tp.weight("W", n, n) @ h)
        f = tp.weight("v", 1, n) @ h
        return f[1] if last else f

    x = jnp.asarray(RNG.normal(size=(4, 3, 2)))
    whole = tp.kernels(tp.trace(states, tp.Input(3, 2), last=False), x)
    one = tp.kernels(tp.trace(states, tp.Input(3, 2), last=True), x)
    assert whole.ntk.shape == (4, 4, 3, 3)
    np.testing.assert_allclose(whole.ntk[:, :, 1, 1], one.ntk, rtol=1e-10)
    np.testing.assert_allclose(whole.nngp[:, :, 1, 1], one.nngp, rtol=1e-10)
    for k in whole[:2]:
        np.testing.assert_array_equal(k, np.transpose(k, (1, 0, 3, 2)))
    parts = tp.ntk_by_parameter(tp.trace(states, tp.Input(3, 2), last=False), x)
    np.testing.assert_allclose(sum(parts.values()), whole.ntk, rtol=1e-10)


def test_diagonal_demand_never_builds_all_pairs() -> None:
    """A readout of single sites asks for moments of equal sites only."""
    from tensorprog.interpret.system import moments

    def flat(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(ERF, tp.weight("U", n, x.features) @ x)
        f = tp.weight("v", 1, n) @ tp.nonlin(ERF, tp.weight("W", n, n) @ h)
        return f[5]

    program = tp.trace(flat, tp.Input(30, 2))
    output = program.structure.outputs[0]
    assert len(moments(program.structure, ((output, output),)).demand.cross.owners) < 10


def test_several_outputs_and_wide_outputs() -> None:
    def two(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("W", n, x.features) @ x)
        return tp.weight("v", 1, n) @ h, h

    program = tp.trace(two, tp.Input(4))
    x = data(program, 3)
    readout, wide = tp.ntk(program, x)
    parts, wide_parts = tp.ntk_by_parameter(program, x)
    np.testing.assert_allclose(wide, wide_parts["W"], rtol=1e-12)
    np.testing.assert_allclose(readout, wide + tp.nngp(program, x)[0], rtol=1e-12)
    np.testing.assert_allclose(tp.nngp(program, x)[1], tp.second_moment(program, "s1", "s1", x), rtol=1e-12)
    assert set(parts) == {"W", "v"}


def test_several_inputs_come_as_a_tuple() -> None:
    def siamese(x: Any, y: Any) -> Any:
        n = tp.Width("n")
        w = tp.weight("W", n, x.features)
        return tp.weight("v", 1, n) @ (tp.nonlin(ERF, w @ x) + tp.nonlin(ERF, w @ y))

    program = tp.trace(siamese, tp.Input(3), tp.Input(3))
    x, y = (jnp.asarray(RNG.normal(size=(4, 3))) for _ in range(2))
    k = tp.nngp(program, (x, y))
    c = lambda u, v: np.asarray(u @ v.T) / 3

    def v(u: Any, w: Any) -> np.ndarray:
        a, b = np.diag(c(u, u))[:, None], np.diag(c(w, w))[None, :]
        return 2 / np.pi * np.arcsin(c(u, w) / np.sqrt((a + 0.5) * (b + 0.5)))

    np.testing.assert_allclose(k, v(x, x) + v(x, y) + v(y, x) + v(y, y), rtol=1e-12)


def test_a_program_without_inputs() -> None:
    def start() -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.square, tp.bias("z", n, var=2.0, mean=0.5))

    program = tp.trace(start)
    np.testing.assert_allclose(tp.nngp(program), 3 * 2.0**2 + 6 * 2.0 * 0.25 + 0.5**4, rtol=1e-10)


def test_means_and_constants() -> None:
    """A bias with a mean, a constant added to a vector, and a function that is not centred."""

    def f(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.weight("W", n, x.features) @ x + tp.bias("b", n, var=0.2, mean=0.7)
        s = tp.nonlin(jnp.square, h) - 0.3
        return tp.weight("v", 1, n) @ s

    program = tp.trace(f, tp.Input(4))
    x = data(program, 3)
    c = np.asarray(x @ x.T) / 4 + 0.2
    a, b, m = np.diag(c)[:, None], np.diag(c)[None, :], 0.7
    square = a * b + 2 * c**2 + m**2 * (a + b) + 4 * m**2 * c + m**4
    expected = square - 0.3 * (a + m**2) - 0.3 * (b + m**2) + 0.09
    np.testing.assert_allclose(tp.nngp(program, x), expected, rtol=1e-9)


def test_second_moments_by_name() -> None:
    program = net("rnn").program(tp.Input(5, 3), fn=ERF)
    x, x2 = data(program, 4), data(program, 3, 1)
    values = tp.recursion(program).values(x, x2)
    found = tp.second_moment(program, "s5", "s5", x, x2)
    np.testing.assert_allclose(found, values["C(s5)"], rtol=1e-11)
    far = tp.second_moment(program, "s3", "s5", x, x2)
    params = tp.init(program, jax.random.key(0), 3_000)
    wide = [tp.apply(program, params, y, at=name) for y, name in ((x, "s3"), (x2, "s5"))]
    np.testing.assert_allclose(far, wide[0] @ wide[1].T / 3_000, atol=0.06)
    with pytest.raises(tp.ProgramError, match="s9"):
        tp.second_moment(program, "s3", "s9", x)


# ------------------------------------------------------------------------------------------------------ refusals


def test_refusals_name_the_line() -> None:
    def transposed(x: Any) -> Any:
        n = tp.Width("n")
        w = tp.weight("W", n, n)
        h = tp.nonlin(jnp.tanh, w @ tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x))
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, w.T @ h)

    def mean_readout(x: Any) -> Any:
        n = tp.Width("n")
        return tp.moment(jnp.tanh, tp.weight("U", n, x.features) @ x)

    x = jnp.ones((2, 3))
    for fn, text in ((transposed, "transpose"), (mean_readout, "average over the width")):
        with pytest.raises(tp.ProgramError, match=r"test_kernel.py:\d+") as error:
            tp.ntk(tp.trace(fn, tp.Input(3)), x)
        assert text in str(error.value)


@pytest.mark.slow
def test_an_expectation_that_does_not_exist_is_refused() -> None:
    program = tp.trace(partial(one_layer, make=lambda h: tp.nonlin(lambda z: jnp.exp(z**2), h)), tp.Input(2))
    assert np.isfinite(tp.nngp(program, jnp.asarray([[0.3, 0.1]]))).all()
    with pytest.raises(tp.ProgramError, match=r"(?s)test_kernel.py.*variance"):
        tp.nngp(program, jnp.asarray([[3.0, 1.0]]))
    with pytest.raises(tp.ProgramError, match="variance"):
        tp.nngp(program, jnp.asarray([[0.3, 0.1]]), jnp.asarray([[3.0, 1.0]]))


WRAPPED = [jax.nn.relu, ERF, jnp.sin, jnp.abs, partial(jax.nn.gelu, approximate=False), jnp.square]


@pytest.mark.parametrize("fn", [pytest.param(fn, marks=SLOW if fn in WRAPPED[:2] else FULL) for fn in WRAPPED])
def test_wrapping_in_a_lambda_changes_nothing(fn: Any) -> None:
    known = net("mlp").program(fn=fn, var_w=0.9)
    wrapped = net("mlp").program(fn=lambda z: fn(z) + 0 * jnp.tanh(z), var_w=0.9)  # tanh hides what is computed
    x = data(known, 4)
    x = jnp.concatenate([x, x[:1] * (1 + 1e-7), -x[:1]])
    for a, b in zip(tp.kernels(known, x)[:2], tp.kernels(wrapped, x)[:2], strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()


@pytest.mark.full
@SLOW
def test_bounds_cover_what_a_lambda_changes() -> None:
    """`error=True`: closed forms and the general method agree within the stated bounds."""
    known, wrapped = net("mlp").program(), net("mlp").program(fn=lambda z: jax.nn.relu(z) + 0 * jnp.tanh(z))
    x = data(known, 5)
    a, b = (tp.kernels(p, x, error=True) for p in (known, wrapped))
    assert (np.abs(a.nngp - b.nngp) <= a.error.nngp + b.error.nngp).all()
    assert (np.abs(a.ntk - b.ntk) <= a.error.ntk + b.error.ntk).all()
    assert (b.error.nngp <= 1e-6 * np.abs(b.nngp).max()).all()


# ------------------------------------------------------------------------------------------ what is returned, and sizes


def test_terms_by_parameter_are_jax_arrays() -> None:
    program = ZOO["mlp"]
    for part in tp.ntk_by_parameter(program, data(program, 3)).values():
        assert isinstance(part, jax.Array) and part.shape == (3, 3)

    def start() -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.sin, tp.bias("z", n))

    for part in tp.ntk_by_parameter(tp.trace(start)).values():
        assert isinstance(part, jax.Array) and part.shape == ()


def two_widths(x: Any) -> Any:
    n, m = tp.Width("n"), tp.Width("m", ratio=2.0)
    h = tp.nonlin(jnp.sin, tp.weight("W1", m, x.features) @ x)
    h = tp.nonlin(jnp.sin, tp.weight("W2", n, m) @ h)
    return tp.weight("v", 1, n) @ h


def test_widths_of_the_standard_convention_are_those_of_init() -> None:
    program = tp.trace(two_widths, tp.Input(4))
    x = data(program, 2)
    params = tp.init(program, jax.random.key(0), 64)
    assert params["W2"].shape == (64, 128)
    parts = tp.ntk_by_parameter(program, x)
    expected = 4 * parts["W1"] + 128 * parts["W2"] + 64 * parts["v"]
    standard: Any = partial(tp.ntk, convention="standard")
    same = partial(np.testing.assert_allclose, desired=expected, rtol=1e-12)
    for widths in (64, np.int64(64), {"n": 64, "m": np.int64(128)}):
        same(standard(program, x, widths=widths))
    weights = partial(parameter_weights, convention="standard", widths=64)
    np.testing.assert_array_equal(jax.jit(weights)(program), weights(program))


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        (0, "the size of m is 0"),
        (True, "True is no size"),
        (64.0, r"64\.0 is no size"),
        ("64", "'64' is no size"),
        ({"n": 64}, "no size for m"),
        ({"n": 64, "m": -1}, "the size of m is -1"),
        ({"n": 64, "m": 2.5}, r"the size of m is 2\.5"),
    ],
)
def test_wrong_widths_are_named(widths: Any, words: str) -> None:
    program = tp.trace(two_widths, tp.Input(4))
    with pytest.raises(tp.ProgramError, match=f"widths: {words}"):
        tp.ntk(program, jnp.ones((1, 4)), convention="standard", widths=widths)
    if not isinstance(widths, dict):
        with pytest.raises(tp.ProgramError, match=r"widths: .*(is no size|the size of)"):
            jax.jit(lambda p: tp.ntk(p, jnp.ones((1, 4)), convention="standard", widths=widths))(program)


def test_a_jitted_kernel_follows_the_precision_that_is_switched_on():
    slope = np.asarray(0.5)  # an array without axes in a function, as among the program's numbers

    def mlp(x):
        n = tp.Width("n")
        h = tp.nonlin(lambda z: jax.nn.leaky_relu(z, slope), tp.weight("W", n, x.features, var=np.asarray(1.5)) @ x)
        return tp.weight("v", 1, n) @ (np.asarray(2.0) * h)

    program, x = tp.trace(mlp, tp.Input(3)), np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]])
    params = jax.tree.map(np.asarray, tp.init(program, jax.random.key(0), 4))

    def smooth(x):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(lambda z: jnp.tanh(slope * z), tp.weight("W", n, x.features) @ x)

    general = tp.trace(smooth, tp.Input(3))
    views = (
        lambda x: tp.ntk(program, x),
        lambda x: tp.apply(jax.tree.map(np.asarray, program), params, x),
        lambda x: tp.empirical.ntk(program, params, x),
        lambda x: tp.nngp(general, x),
    )
    for view in views:
        jitted = jax.jit(view)
        for double in (False, True):
            with jax.enable_x64(double):
                dtype = "float64" if double else "float32"
                lowered = jitted.lower(x)
                assert lowered.out_info.dtype == dtype
                assert f"f{dtype[5:]}>" in lowered.as_text().split("->")[1]


def test_a_compiled_kernel_is_right_at_both_precisions():
    program = tp.nets.net("mlp").program(tp.Input(3), depth=1)
    x = np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]])
    exact = tp.ntk(program, x)
    jitted = jax.jit(lambda x: tp.ntk(program, x))
    for double in (False, True):
        with jax.enable_x64(double):
            np.testing.assert_allclose(jitted(x), exact, rtol=1e-12 if double else 1e-5)
