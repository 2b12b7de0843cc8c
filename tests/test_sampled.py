"""Kernels as Gram matrices of samples: GRU, LSTM, max pooling, batch norm, and every net that has exact kernels too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from reference import theory

import tensorprog as tp
from tensorprog.interpret.system import parameter_weights
from tensorprog.nets import NETS, net
from tensorprog.sampling.kernels import Sampled, sampled_kernels, sampled_second_moment

ERF = jax.scipy.special.erf
RNG = np.random.default_rng(0)


def gate(t: Any) -> Any:
    return (1 + ERF(t)) / 2


def max_pool(x: Any) -> Any:
    n = tp.Width("n")
    h = tp.nonlin(jnp.max, tp.weight("U", n, x.features) @ x + tp.bias("b", n, var=0.5), over=(0, 1))
    return tp.weight("v", 1, n, var=2.0) @ h


def normed(g: Any) -> Any:
    """Batch norm, and a function that no closed form knows."""
    centred = g - g.mean()
    return jnp.tanh(centred / jnp.sqrt((centred**2).mean() + 1e-3))


def batch_norm(x: Any) -> Any:
    n = tp.Width("n")
    return tp.weight("v", 1, n) @ tp.nonlin(normed, tp.weight("U", n, x.features) @ x, over=(0,))


def layer_norm(x: Any) -> Any:
    n = tp.Width("n")
    g = tp.weight("U", n, x.features) @ x
    h = tp.nonlin(jax.nn.relu, g)
    mean = tp.moment(lambda a: a, h)
    square = tp.moment(lambda a: a**2, h)
    y = tp.nonlin(lambda a, m, s: (a - m) / jnp.sqrt(s - m**2), h, scalars=(mean, square))
    return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, tp.weight("W", n, n) @ y)


def sampled(program: Any, x1: Any, x2: Any = None, **options: Any) -> list[Sampled]:
    """Sampled whether or not the program has exact kernels."""
    weights = parameter_weights(program, "multiplier-std", None)
    tupled = lambda x: x if isinstance(x, tuple) else (x,)
    return sampled_kernels(program, tupled(x1), None if x2 is None else tupled(x2), weights, **options)


def within(found: Any, error: Any, exact: Any, widths: float = 4.5, floor: float = 0.0) -> None:
    """Few replicates make an entry's own error now and then too small: it counts with those of all entries."""
    miss = np.abs(np.asarray(found) - np.asarray(exact))
    allowed = widths * np.hypot(error, np.sqrt(np.mean(np.square(error)))) + floor
    assert (miss <= allowed).all(), f"{(miss / allowed).max() * widths:.2f} standard errors off"


# ---- against what is known


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_gated_networks_have_the_verified_kernels(name: str) -> None:
    entry = theory("gru_lstm_ntk")
    numbers = {f"var_{k}": entry["hp"][f"var{k}"] for k in "wub"}
    program = NETS[name].program(tp.Input(3, 4), fn=ERF, gate=gate, **numbers)
    found = tp.kernels(program, jnp.asarray(entry["X"]), convention="init-std", error=True, samples=2**17)
    exact, error = np.asarray(entry[name]["ntk"]), np.asarray(entry[name]["ntk_sem"])
    within(found.ntk, np.hypot(found.error.ntk, error), exact)
    assert np.max(found.error.ntk / exact) < 0.02
    # The reference gives no error of its NNGP, which is one of the NTK's terms.
    within(found.nngp, np.hypot(found.error.nngp, error / 4), entry[name]["nngp"])


QUICK = (*zoo.QUICK, "rnn_mean", "cnn_flatten")
# Gradients of batch norm over five examples have no variance.
KINDS: dict[str, Any] = dict.fromkeys(("swiglu", "transformer", "cnn_gap", "rnn_mean", "siamese"), pytest.mark.slow)
NETS_HERE = [
    n if n in QUICK[:4] else pytest.param(n, marks=KINDS.get(n, pytest.mark.full))
    for n in zoo.EXACT
    if "batchnorm" not in n
]


@pytest.mark.parametrize("name", NETS_HERE)
def test_sampled_kernels_are_the_exact_ones(name: str) -> None:
    program = tp.nets.ZOO[name]
    x1, x2 = zoo.data(program, 3, 1), zoo.data(program, 2, 2)
    exact = tp.kernels(program, x1, x2)
    several = (exact,) if program.structure.single else exact
    for found, kernels in zip(sampled(program, x1, x2, samples=2**15), several, strict=True):
        within(found.nngp, found.nngp_error, kernels.nngp, floor=1e-9)
        within(found.ntk, found.ntk_error, kernels.ntk, floor=1e-9)
        for kernel, known in ((found.nngp, kernels.nngp), (found.ntk, kernels.ntk)):
            assert np.linalg.norm(kernel - known) < (0.2 if name == "swiglu" else 0.05) * np.linalg.norm(known)


@pytest.mark.slow
def test_second_moments_of_vectors_are_sampled() -> None:
    """Gaussians with each other (exact), with functions, and functions with each other; across two batches."""
    program = tp.nets.net("rnn").program(tp.Input(3, 4))
    x1, x2 = zoo.data(program, 3, 1), zoo.data(program, 2, 2)
    place = {name: k for k, name in enumerate(program.structure.names) if name}
    for u, v, floor in (("g1", "g2", 1e-12), ("g3", "s2", 0.03), ("s1", "s3", 0.03)):
        found = sampled_second_moment(program, (x1,), (x2,), (place[u], place[v]), samples=2**15)
        np.testing.assert_allclose(found, tp.second_moment(program, u, v, x1, x2), atol=floor)


def test_the_second_moment_of_a_gated_state_is_the_kernel_of_its_readout() -> None:
    """The state is no Nonlin but a sum: it is named here."""

    def read(x: Any) -> Any:
        n = tp.Width("n")
        z, a = (tp.weight(k, n, x.features) @ x for k in "za")
        h = tp.named("h", tp.nonlin(lambda z, a, b: jax.nn.sigmoid(z) * jnp.tanh(a + b * z), z, a, tp.bias("b", n)))
        return tp.weight("v", 1, n) @ h

    program, options = tp.trace(read, tp.Input(3)), {"samples": 2**12, "key": jax.random.key(3)}
    x = zoo.data(program, 2, 1)
    np.testing.assert_allclose(
        tp.second_moment(program, "h", "h", x, **options), tp.nngp(program, x, **options), rtol=1e-12
    )


@pytest.mark.slow
def test_sampled_terms_of_parameters_sum_to_the_kernel() -> None:
    options = {"samples": 2**11, "key": jax.random.key(5)}
    parts = tp.ntk_by_parameter(GRU, X, **options)
    found = tp.kernels(GRU, X, error=True, **options)
    within(sum(parts.values()), found.error.ntk, found.ntk)
    np.testing.assert_allclose(parts["v"], found.nngp, rtol=1e-9)  # var_v = 1: no tangent is drawn for it


@pytest.mark.parametrize(
    ("options", "what"),
    [({"samples": 8}, "samples: 8"), ({"samples": True}, "samples"), ({"key": 3.5}, "no random key")],
)
def test_what_is_given_for_draws_is_checked_where_nothing_is_drawn(options: dict[str, Any], what: str) -> None:
    program, x = tp.nets.ZOO["mlp"], jnp.ones((1, 4))
    for call in (
        tp.nngp,
        tp.ntk,
        tp.kernels,
        tp.ntk_by_parameter,
        lambda *a, **o: tp.second_moment(a[0], "s1", "s2", a[1], **o),
    ):
        with pytest.raises(tp.ProgramError, match=what):
            call(program, x, **options)


def wide(x: Any) -> Any:
    n, m = tp.Width("n"), tp.Width("m", ratio=2.0)
    W = tp.weight("W", m, n, var=1.3)
    h = tp.nonlin(jnp.tanh, tp.weight("U", m, x.features) @ x + tp.bias("b", m, mean=0.4, var=0.2))
    g = W.T @ h
    return g, tp.nonlin(jax.nn.relu, g) + 0.5 * g, tp.weight("v", 1, n, lr=0.3) @ (g + 0.3) + tp.bias("c", 1, mean=0.2)


@pytest.mark.slow
def test_wide_outputs_transposes_and_constants() -> None:
    program = tp.trace(wide, tp.Input(2, 3))
    x = jnp.asarray(RNG.normal(size=(2, 2, 3)))
    exact = tp.kernels(program, x)
    for found, known in zip(sampled(program, x, samples=2**15), exact, strict=True):
        assert found.nngp.shape == known.nngp.shape
        within(found.nngp, found.nngp_error, known.nngp, floor=1e-9)
        within(found.ntk, found.ntk_error, known.ntk, floor=1e-9)


def test_max_pooling_against_plain_draws() -> None:
    program = tp.trace(max_pool, tp.Input(2, 2, 3))
    x = RNG.normal(size=(2, 2, 2, 3))
    found = tp.kernels(program, jnp.asarray(x), error=True, samples=2**18)
    flat = x.reshape(8, 3)
    cov = flat @ flat.T / 3 + 0.5
    g = (RNG.normal(size=(2_000_000, 8)) @ np.linalg.cholesky(cov + 1e-12 * np.eye(8)).T).reshape(-1, 2, 4)
    top, place = g.max(-1), np.eye(4)[g.argmax(-1)]
    nngp = 2 * top.T @ top / len(g)
    both = np.einsum("nai,nbj->aibj", place, place) / len(g)
    ntk = nngp + 2 * np.einsum("aibj,aibj->ab", both, cov.reshape(2, 4, 2, 4))
    np.testing.assert_allclose(found.nngp, nngp, rtol=5e-3)
    np.testing.assert_allclose(found.ntk, ntk, rtol=1e-2)
    assert np.linalg.norm(found.error.nngp) < 5e-3 * np.linalg.norm(nngp)


@pytest.mark.slow
def test_batch_norm_with_a_general_function_against_plain_draws() -> None:
    program = tp.trace(batch_norm, tp.Input(8, 9))
    x = RNG.normal(size=(2, 8, 9))
    found = tp.kernels(program, jnp.asarray(x), error=True, samples=2**19)
    flat = x.reshape(16, 9)
    g = (RNG.normal(size=(400_000, 9)) @ flat.T / 3).reshape(-1, 8)
    s = np.asarray(jax.vmap(normed)(jnp.asarray(g))).reshape(-1, 16)
    nngp = (s.T @ s / (len(g) // 2)).reshape(2, 8, 2, 8).swapaxes(1, 2)
    assert np.linalg.norm(found.nngp - nngp) < 5e-3 * np.linalg.norm(nngp)  # the plain draws' own error
    assert np.linalg.norm(found.error.nngp) < 1.5e-3 * np.linalg.norm(nngp)


@pytest.mark.slow
def test_moments_are_sampled_too() -> None:
    program = tp.trace(layer_norm, tp.Input(3))
    x = RNG.normal(size=(2, 3))
    x *= np.sqrt(3) / np.linalg.norm(x, axis=1, keepdims=True)
    (found,) = sampled(program, jnp.asarray(x), samples=2**16)
    # relu, normalised: mean 1/√(2π), second moment 1/2.
    rho = x @ x.T / 3
    relu = (np.sqrt(1 - np.clip(rho, -1, 1) ** 2) + rho * (np.pi - np.arccos(np.clip(rho, -1, 1)))) / (2 * np.pi)
    mean = 1 / np.sqrt(2 * np.pi)
    inside = (relu - mean**2) / (0.5 - mean**2)

    def rest(y: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, tp.weight("W", n, y.features) @ y)

    data = np.linalg.cholesky(inside + 1e-12 * np.eye(2)) * np.sqrt(2)
    within(found.nngp, found.nngp_error, tp.nngp(tp.trace(rest, tp.Input(2)), jnp.asarray(data)), floor=1e-6)


# ---- what holds of any sampled kernel


X = jnp.asarray(RNG.normal(size=(4, 3, 5)))
GRU = NETS["gru"].program(tp.Input(3, 5))


def test_a_gram_matrix_over_the_whole_batch() -> None:
    whole = tp.kernels(GRU, X, samples=2**12)
    for kernel in (whole.nngp, whole.ntk):
        assert (np.asarray(kernel) == np.asarray(kernel).T).all()
        assert np.linalg.eigvalsh(kernel).min() > -1e-12
    block = tp.kernels(GRU, X[:3], X[3:], samples=2**12)
    np.testing.assert_allclose(block.nngp, whole.nngp[:3, 3:], rtol=1e-12)
    np.testing.assert_allclose(block.ntk, whole.ntk[:3, 3:], rtol=1e-12)


def test_equal_inputs() -> None:
    twice = jnp.concatenate([X[:2], X[:2]])
    kernel = tp.nngp(GRU, twice, samples=2**12)
    np.testing.assert_allclose(kernel[:2, 2:], kernel[:2, :2], rtol=1e-6)


def test_one_key_one_kernel() -> None:
    first = tp.nngp(GRU, X, samples=2**12)
    assert (first == tp.nngp(GRU, X, samples=2**12)).all()
    assert (first == tp.nngp(GRU, X, samples=2**12, key=jax.random.key(0))).all()
    assert (first != tp.nngp(GRU, X, samples=2**12, key=jax.random.key(1))).all()


@pytest.mark.slow
def test_inside_a_jit() -> None:
    eager = tp.kernels(GRU, X, samples=2**11, error=True)
    jitted = jax.jit(lambda x: tp.kernels(GRU, x, samples=2**11, error=True))(X)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.full
@pytest.mark.slow
def test_the_gradient_in_inputs_and_numbers() -> None:
    x = X[:2]

    def total(program: Any, x: Any) -> Any:
        found = tp.kernels(program, x, samples=2**9)
        return found.nngp.sum() + found.ntk.sum()

    by_program, by_x = jax.grad(total, argnums=(0, 1))(GRU, x)
    step = 1e-5
    for name in ("Wz.var", "Ua.var", "br.var", "v.var"):
        near = [total(GRU.replace({name: GRU.numbers[name] + s}), x) for s in (-step, step)]
        np.testing.assert_allclose(by_program.numbers[name], (near[1] - near[0]) / (2 * step), rtol=1e-5, atol=1e-8)
    direction = jnp.asarray(RNG.normal(size=x.shape))
    near = [total(GRU, x + s * direction) for s in (-step, step)]
    np.testing.assert_allclose((by_x * direction).sum(), (near[1] - near[0]) / (2 * step), rtol=1e-5)


@pytest.mark.slow
def test_float32() -> None:
    low = tp.kernels(GRU, X.astype(jnp.float32), samples=2**13, error=True)
    assert low.nngp.dtype == low.ntk.dtype == jnp.float32
    high = tp.kernels(GRU, X, samples=2**16, error=True)
    within(low.nngp, np.hypot(low.error.nngp, high.error.nngp), high.nngp)
    within(low.ntk, np.hypot(low.error.ntk, high.error.ntk), high.ntk)


@pytest.mark.parametrize("samples", [0, 31, 2.0**12, True, "many"])
def test_samples_that_are_none(samples: Any) -> None:
    with pytest.raises(tp.ProgramError, match=r"samples: .* give an int ≥ 32"):
        tp.nngp(GRU, X, samples=samples)


@pytest.mark.slow
def test_a_step_more_does_not_change_what_came_before() -> None:
    """A family grows by blocks whose covariances are those of a joint draw: many steps against few draws."""
    program = NETS["gru"].program(tp.Input(12, 2), var_w=2.0)
    x = jnp.asarray(RNG.normal(size=(6, 12, 2)))
    few = tp.kernels(program, x, samples=2**11, error=True)
    many = tp.kernels(program, x, samples=2**15, error=True, key=jax.random.key(7))
    within(few.nngp, np.hypot(few.error.nngp, many.error.nngp), many.nngp, 6.0)
    within(few.ntk, np.hypot(few.error.ntk, many.error.ntk), many.ntk, 6.0)


CALIBRATED: dict[str, Any] = {
    "gru": lambda: (NETS["gru"].program(tp.Input(4, 3)), (3, 4, 3)),
    "lstm": lambda: (NETS["lstm"].program(tp.Input(4, 3)), (3, 4, 3)),
    "max pooling": lambda: (tp.trace(max_pool, tp.Input(2, 2, 3)), (3, 2, 2, 3)),
    "batch norm": lambda: (tp.trace(batch_norm, tp.Input(6, 9)), (2, 6, 9)),
}


def covered(name: str, samples: int, keys: int, truth: int) -> dict[str, float]:
    """The share of entries within two standard errors of the truth, over keys, a number for each kernel."""
    program, shape = CALIBRATED[name]()
    x = jnp.asarray(np.random.default_rng(3).normal(size=shape))
    known = tp.kernels(program, x, samples=truth, key=jax.random.key(999))
    hits: dict[str, list[Any]] = {"nngp": [], "ntk": []}
    for seed in range(keys):
        found = tp.kernels(program, x, samples=samples, error=True, key=jax.random.key(seed))
        for kernel, own in hits.items():
            miss, error = getattr(found, kernel) - getattr(known, kernel), getattr(found.error, kernel)
            rows = miss.reshape(len(x), len(x), -1)[np.triu_indices(len(x))]
            own.append(np.abs(rows) <= 2 * error.reshape(len(x), len(x), -1)[np.triu_indices(len(x))])
    return {kernel: float(np.mean(own)) for kernel, own in hits.items()}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATED)
def test_two_standard_errors_hold_in_95_of_100(name: str) -> None:
    """Against 256 times as many draws."""
    shares = covered(name, 2**10, 100, 2**18)
    assert all(0.90 <= share <= 0.99 for share in shares.values()), shares


@pytest.mark.slow
def test_standard_errors_of_few_draws_hold() -> None:
    shares = covered("max pooling", 2**8, 30, 2**15)
    assert all(0.88 <= share <= 0.995 for share in shares.values()), shares


# ---- what a reader of the code found


def test_inputs_of_one_feature() -> None:
    """A sliced input of one feature is no constant: the same kernel as of two features, the second one 0."""

    def highest(x):
        n = tp.Width("n")
        u = tp.weight("U", n, x.features)
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.max, tp.stack([u @ x[0], u @ x[1]]), over=0)

    one = jnp.asarray([[[0.5], [1.0]], [[-0.3], [0.7]]])
    two = jnp.concatenate([np.sqrt(2.0) * one, 0.0 * one], axis=-1)
    found = tp.kernels(tp.trace(highest, tp.Input(2, 1)), one, samples=2**14)
    same = tp.kernels(tp.trace(highest, tp.Input(2, 2)), two, samples=2**14)
    np.testing.assert_allclose(found.nngp, same.nngp, rtol=0.05, atol=0.01)
    np.testing.assert_allclose(found.ntk, same.ntk, rtol=0.1, atol=0.02)


def test_kernels_that_are_not_finite_are_refused() -> None:
    def undefined(x):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(
            lambda z: jnp.max(jnp.log(z)), tp.weight("U", n, x.features) @ x, over=0
        )

    with pytest.raises(tp.ProgramError, match="not finite"):
        tp.nngp(tp.trace(undefined, tp.Input(2, 3)), jnp.ones((1, 2, 3)), samples=2**10)


def test_without_inputs_a_kernel_is_one_number() -> None:
    def drawn():
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.max, tp.bias("b", n, sites=(3,)), over=0)

    assert tp.nngp(tp.trace(drawn), samples=2**10).shape == ()


@pytest.mark.slow
def test_single_precision_is_as_good() -> None:
    """Sequences of few features: covariances of many inputs are singular to rounding, and more so in float32."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 4, 2))
    program = net("gru").program(tp.Input(4, 2))
    double = tp.kernels(program, x, samples=2**11, error=True)
    single = tp.kernels(program, x.astype(np.float32), samples=2**11)
    assert single.ntk.dtype == np.float32
    np.testing.assert_allclose(single.ntk, double.ntk, rtol=1e-4, atol=1e-4)
    compiled = jax.jit(lambda x: tp.kernels(program, x, samples=2**11))(x.astype(np.float32))
    error = np.linalg.norm(double.error.nngp)
    assert np.linalg.norm(compiled.nngp - double.nngp) < 2 * error < 0.2 * np.linalg.norm(double.nngp)
