"""The interpreter of limits against exact numbers, finite networks, and itself by other roads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.interpret.products import solve_lower, solve_upper

SLOW = pytest.mark.slow


def product(a: Any, b: Any) -> Any:
    return a * b


def identity(a: Any) -> Any:
    return a


def traces(ratio: float = 1.0, most: int = 6) -> tuple[Any, ...]:
    """⟨x, (WᵀW)^k x⟩/n: the moments of WᵀW."""
    W = tp.weight("W", tp.Width("n", ratio=ratio), tp.Width("m"))
    x = y = tp.bias("x", tp.Width("m"))
    found = []
    for _ in range(most):
        y = W.T @ (W @ y)
        found.append(tp.moment(product, x, y))
    return tuple(found)


def alternation(var: float = 2.0) -> tuple[Any, ...]:
    n = tp.Width("n")
    W, x = tp.weight("W", n, n, var=var), tp.bias("x", n)
    a = tp.nonlin(jnp.tanh, W @ x)
    b = tp.nonlin(jnp.tanh, W.T @ a)
    c = tp.nonlin(jnp.tanh, W @ b)
    d = W.T @ c
    return tuple(tp.moment(product, *pair) for pair in ((c, c), (c, a), (d, b), (d, d), (d, x)))


def counterexample(x: Any, phi: Any, readout: bool = False) -> Any:
    """y = mean φ(W² x¹), x¹ = W¹ ξ + 1: moments of dx¹ = W²ᵀ φ′(h²)."""
    n = tp.Width("n")
    first = tp.weight("W1", n, x.features) @ x + 1.0
    W = tp.weight("W2", n, n)
    back = W.T @ tp.nonlin(jax.grad(phi), W @ first)
    if readout:
        return tp.weight("v", 1, n) @ tp.nonlin(phi, W @ first)
    return tp.moment(identity, back), tp.moment(jnp.square, back), tp.moment(product, back, first)


# ---- the inside


def test_batches_of_particles_go_without_lapack() -> None:
    """Two batched LAPACK calls of one program wait for each other for ever where there are only two cores."""
    rng = np.random.default_rng(0)
    root = np.tril(rng.normal(size=(3, 4, 4)))
    root[:, 2] = root[:, :, 2] = 0.0  # a vector that depends on earlier ones
    root[:, range(4), range(4)] = [[1.0, 2.0, 0.0, 3.0]] * 3
    right = rng.normal(size=(3, 4, 2)) * np.array([1.0, 1.0, 0.0, 1.0])[:, None]
    for solve, turned in ((solve_lower, root), (solve_upper, root.swapaxes(1, 2))):
        batched = jax.jit(jax.vmap(solve))
        found = batched(jnp.asarray(root), jnp.asarray(right))
        np.testing.assert_allclose(turned @ found, right, atol=1e-12)
        np.testing.assert_array_equal(found[:, 2], 0.0)
        assert "lapack" not in batched.lower(jnp.asarray(root), jnp.asarray(right)).as_text()
    program = tp.trace(alternation)
    values = jax.jit(lambda p: tp.limit(p, samples=2**10, method="particles").value)
    assert "lapack" not in values.lower(program).as_text()


# ---- exact numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratio", "moments"),
    [
        (1.0, [1, 2, 5, 14, 42, 132]),  # Catalan numbers
        (0.5, [1 / 2, 3 / 4, 11 / 8, 45 / 16, 197 / 32]),  # Marchenko-Pastur: Σ Narayana(k, i) ρ^i
        (3.0, [3, 12, 57, 300, 1686]),
    ],
)
def test_moments_of_rectangular_matrices(ratio: float, moments: list[float]) -> None:
    program = tp.trace(traces, ratio=ratio, most=len(moments))
    exact = tp.limit(program)
    assert exact.method == "exact"
    np.testing.assert_allclose(exact.value, moments, rtol=1e-12)
    np.testing.assert_allclose(exact.stderr, 0, atol=1e-9)
    drawn = tp.limit(program, method="particles", samples=2**16)
    assert (np.abs(np.array(drawn.value) - moments) <= 3 * np.array(drawn.stderr)).all()


@pytest.mark.slow
def test_semicircle_law() -> None:
    def symmetric(most: int) -> tuple[Any, ...]:
        n = tp.Width("n")
        W = tp.weight("W", n, n)
        x = y = tp.bias("x", n)
        found = []
        for _ in range(most):
            y = (W @ y + W.T @ y) / np.sqrt(2)
            found.append(tp.moment(product, x, y))
        return tuple(found)

    np.testing.assert_allclose(tp.limit(tp.trace(symmetric, most=8)).value, [0, 1, 0, 2, 0, 5, 0, 14], atol=1e-12)


def test_words_of_a_matrix_and_its_transpose() -> None:
    def words() -> tuple[Any, ...]:
        n = tp.Width("n")
        W, x = tp.weight("W", n, n, var=2.0), tp.bias("x", n, mean=0.5)
        crossed, power = W.T @ (W.T @ (W @ (W @ x))), W @ (W @ (W @ x))
        pairs = ((x, crossed), (x, power), (power, power), (x, x))
        return (*(tp.moment(product, *pair) for pair in pairs), tp.moment(lambda a: a**4, power))

    second = 1.25
    expected = [4 * second, 0, 8 * second, second, 3 * (8 * second) ** 2]
    np.testing.assert_allclose(tp.limit(tp.trace(words)).value, expected, atol=1e-9)


# ---- W and its transpose


def test_alternation_of_a_matrix_and_its_transpose() -> None:
    found = tp.limit(tp.trace(alternation), samples=2**17)
    assert found.method == "particles"
    # Published limits are themselves draws, 4e5 of them: errors of about 1/√(4e5) of the sizes.
    np.testing.assert_allclose(found.value, [0.5897, 0.4815, 1.1262, 2.9388, 0.8912], rtol=3e-3)
    assert np.max(found.stderr) < 1e-2
    naive = tp.limit(tp.trace(alternation), samples=2**14, assume_gia=True)
    assert abs(naive.value[1]) < 0.05 and abs(naive.value[0] - found.value[0]) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("rho", [pytest.param("1.0", marks=pytest.mark.full), "0.5"])
def test_alternation_between_two_widths(rho: str) -> None:
    def program(phi: Any) -> tuple[Any, ...]:
        m = tp.Width("m")
        W = tp.weight("W", tp.Width("n", ratio=float(rho)), m, var=1.5)
        x, found = tp.bias("x", m, mean=0.5), []
        for k in range(5):
            h = W.T @ x if k % 2 else W @ x
            x = tp.nonlin(phi, h)
            if k:
                found.append(tp.moment(jnp.square, h))
        return tuple(found)

    limits = {"1.0": [1.44216, 1.61731, 1.98057, 2.22735], "0.5": [0.55123, 1.52671, 0.74013, 2.12940]}[rho]
    found = tp.limit(tp.trace(program, phi=jnp.tanh), samples=2**17)
    np.testing.assert_allclose(found.value, limits, rtol=2e-3)
    kinked = {"1.0": [2.10937, 4.13309, 9.24515, 23.34483], "0.5": [0.87891, 2.16885, 2.11338, 6.67442]}[rho]
    np.testing.assert_allclose(tp.limit(tp.trace(program, phi=jax.nn.relu), samples=2**17).value, kinked, rtol=5e-3)


def test_finite_networks_converge_to_the_limit() -> None:
    program = tp.trace(alternation)
    found = tp.limit(program, samples=2**16)
    width, seeds = 1024, 24
    keys = jax.random.split(jax.random.key(1), seeds)
    run = jax.jit(jax.vmap(lambda k: jnp.stack(tp.apply(program, tp.init(program, k, width)))))
    finite = np.array(run(keys))
    error = finite.std(0, ddof=1) / np.sqrt(seeds)
    assert (np.abs(finite.mean(0) - np.array(found.value)) <= 4 * error + 0.01).all()


@SLOW
@pytest.mark.parametrize("fn", [alternation, traces])
def test_standard_errors_are_calibrated(fn: Any) -> None:
    program = tp.trace(fn)
    truth = tp.limit(program, method="particles", samples=2**21, key=jax.random.key(10**6)).value
    truth = tp.limit(program).value if fn is traces else truth
    covered = []
    for seed in range(200):
        found = tp.limit(program, method="particles", samples=2**15, key=jax.random.key(seed))
        covered.append(np.abs(np.array(found.value) - np.array(truth)) < 2 * np.array(found.stderr))
    coverage = np.mean(covered, axis=0)
    assert (coverage >= 0.9).all() and (coverage <= 0.98).all(), coverage


# ---- the gradient independence assumption


@pytest.mark.parametrize(
    ("phi", "xi", "true", "naive"),
    [
        (jnp.square, 0.0, (2, 8, 2), (0, 4, 0)),
        pytest.param(jnp.square, 1.0, (2, 16, 4), (0, 8, 0), marks=SLOW),
        (lambda z: jnp.tanh(z + 1), 1.0, (-0.146638, 0.324521, -0.293276), (0, 0.281516, 0)),
        pytest.param(jnp.tanh, 1.0, (0, 0.34951, 0), (0, 0.34951, 0), marks=SLOW),
    ],
)
def test_the_counterexample(phi: Any, xi: float, true: tuple[float, ...], naive: tuple[float, ...]) -> None:
    program = tp.trace(counterexample, tp.Input(1), phi=phi)
    x = jnp.array([[xi], [1.0]])
    found = tp.limit(program, x)
    np.testing.assert_allclose(np.array(found.value)[:, 0], true, atol=3e-4)
    np.testing.assert_allclose(np.array(tp.limit(program, x, assume_gia=True).value)[:, 0], naive, atol=3e-4)
    seeds = jax.random.split(jax.random.key(0), 40)
    run = jax.vmap(lambda k: jnp.stack(tp.apply(program, tp.init(program, k, 1024), x))[:, 0])
    finite = np.array(jax.jit(run)(seeds))
    error = finite.std(0, ddof=1) / np.sqrt(len(seeds))
    assert (np.abs(finite.mean(0) - true) <= 4 * error + 0.005).all()


def test_the_counterexample_with_a_readout_passes_the_check() -> None:
    assert tp.check(tp.trace(counterexample, tp.Input(1), phi=jnp.square, readout=True)).gia


# ---- roads agree, edges


def normalised(x: Any) -> Any:
    """Layer norm in the forward pass: Moments that later Nonlins read."""
    n = tp.Width("n")
    W, U = tp.weight("W", n, n, var=1.5), tp.weight("U", n, x.features)
    h = U @ x
    mean = tp.moment(identity, h)
    variance = tp.moment(lambda z, m: (z - m) ** 2, h, scalars=(mean,))
    s = tp.nonlin(lambda z, m, v: jnp.tanh((z - m) / jnp.sqrt(v + 0.1)), h, scalars=(mean, variance))
    return tp.moment(jnp.square, W @ s)


def test_moments_feed_later_functions() -> None:
    program, x = tp.trace(normalised, tp.Input(3)), jnp.array([[1.0, 2.0, -1.0], [0.1, 0.0, 0.3]])
    by_grid = tp.limit(program, x)
    assert by_grid.method == "quadrature" and by_grid.value.shape == (2,)
    z = np.linspace(-10, 10, 20001)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    q = np.sum(np.asarray(x) ** 2, 1) / 3
    expected = [1.5 * (weight * np.tanh(np.sqrt(v) * z / np.sqrt(v + 0.1)) ** 2).sum() for v in q]
    np.testing.assert_allclose(by_grid.value, expected, rtol=1e-9)
    drawn = tp.limit(program, x, method="particles", samples=2**15)
    assert (np.abs(drawn.value - by_grid.value) <= 4 * drawn.stderr + 1e-6).all()


@pytest.mark.slow
def test_sites_and_several_outputs() -> None:
    def program(x: Any) -> tuple[Any, Any]:
        n = tp.Width("n")
        s = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)
        return tp.moment(jnp.square, s), tp.scalar(jnp.exp, tp.moment(jnp.square, tp.mean(s)))

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    traced = tp.trace(program, tp.Input(3, 4))
    found = tp.limit(traced, x)
    assert [part.value.shape for part in found] == [(2, 3), (2,)] and len(found) == 2
    alone = tp.nngp(tp.trace(lambda x: tp.nonlin(jnp.tanh, tp.weight("U", tp.Width("n"), 4) @ x), tp.Input(3, 4)), x)
    diagonal = np.einsum("aass->as", alone)
    assert (np.abs(found[0].value - diagonal) <= 5 * found[0].stderr + 1e-7).all()
    single = tp.limit(traced, x.astype(jnp.float32), samples=2**12, method="particles")
    assert single[0].value.dtype == jnp.float32
    assert (np.abs(single[0].value - diagonal) <= 5 * single[0].stderr + 1e-5).all()


@pytest.mark.full
@pytest.mark.slow
def test_degenerate_covariances() -> None:
    def program(x: Any, var: float) -> Any:
        n = tp.Width("n")
        W, U = tp.weight("W", n, n, var=var), tp.weight("U", n, x.features)
        h = U @ x  # three sites of two features: a singular covariance, with one site 0
        a = tp.nonlin(jnp.tanh, W @ h)
        b = W.T @ a + W.T @ (2 * a) + W.T @ (0 * a)  # dependent products
        return tp.moment(jnp.square, tp.nonlin(jnp.tanh, W @ b))

    x = jnp.array([[[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]]])
    for var in (0.0, 1.2):
        traced = tp.trace(program, tp.Input(3, 2), var=var)
        found = tp.limit(traced, x, samples=2**14)
        assert np.isfinite(found.value).all()
        slope = jax.grad(lambda p: tp.limit(p, x, samples=2**12).value.sum())(traced).numbers
        assert all(np.isfinite(np.asarray(s)).all() for s in slope.values())
    run = jax.vmap(lambda k: tp.apply(traced, tp.init(traced, k, 512), x)[0])
    finite = np.array(jax.jit(run)(jax.random.split(jax.random.key(0), 40)))
    assert (np.abs(finite.mean(0) - found.value[0]) <= 4 * finite.std(0) / np.sqrt(40) + 0.01).all()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("method", ["quadrature", "particles"])
def test_derivatives_in_numbers_and_inputs(method: str) -> None:
    program = tp.trace(counterexample, tp.Input(1), phi=lambda z: jnp.tanh(z + 1))
    x = jnp.array([[0.7]])

    def value(s: Any, t: Any = 0.0) -> Any:
        moved = program.replace({"W2.var": 1.0 + s, "n.ratio": 1.0})
        return tp.limit(moved, x + t, method=method, samples=2**12).value[1][0]

    h = 1e-5
    np.testing.assert_allclose(jax.grad(value)(0.1), (value(0.1 + h) - value(0.1 - h)) / (2 * h), rtol=1e-5)
    by_x = jax.jit(jax.grad(value, 1))(0.1, 0.2)
    np.testing.assert_allclose(by_x, (value(0.1, 0.2 + h) - value(0.1, 0.2 - h)) / (2 * h), rtol=1e-5)


def test_memory_is_the_chunk_s() -> None:
    from tensorprog.interpret.roads import particles

    structure = tp.trace(alternation).structure
    assert particles(structure, structure.outputs, 10**6, 2**12) == (2**12, 245)
    points, replicates = particles(structure, structure.outputs, 10**6, None)
    assert points * replicates >= 10**6 and replicates >= 32 and points <= 2**15


@pytest.mark.slow
def test_state_evolution_of_message_passing() -> None:
    """AMP's iterates are Gaussian only with its Onsager term, which the calculus adds to A x by itself."""

    def amp(corrected: bool, steps: int = 3) -> tuple[Any, ...]:
        n = tp.Width("n")
        W, signal = tp.weight("W", n, n), tp.bias("x0", n)
        x, before, found = signal, None, []
        for _ in range(steps):
            s = tp.nonlin(jnp.tanh, x)
            slope = tp.moment(lambda z: 1 - jnp.tanh(z) ** 2, x)
            x = (W @ s + W.T @ s) / np.sqrt(2)
            if corrected and before is not None:
                x = x - slope * before
            before = s
            found.append(tp.moment(jnp.square, x))
            found.append(tp.moment(lambda z: z**4, x))
        return tuple(found)

    found = np.array(tp.limit(tp.trace(amp, corrected=True), samples=2**17).value).reshape(3, 2)
    z = np.linspace(-10, 10, 4001)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    variance = 1.0
    for second, fourth in found:
        variance = (weight * np.tanh(np.sqrt(variance) * z) ** 2).sum()  # state evolution
        np.testing.assert_allclose(second, variance, rtol=5e-3)
        np.testing.assert_allclose(fourth, 3 * variance**2, rtol=2e-2)
    plain = np.array(tp.limit(tp.trace(amp, corrected=False), samples=2**15).value).reshape(3, 2)
    assert abs(plain[2, 0] - variance) > 0.1


# ---- mistakes


def test_bad_arguments() -> None:
    program = tp.trace(alternation)
    with pytest.raises(tp.ProgramError, match="samples: 1 draws"):
        tp.limit(program, samples=1)
    with pytest.raises(tp.ProgramError, match="chunk"):
        tp.limit(program, chunk=0)
    with pytest.raises(tp.ProgramError, match="no road to a limit"):
        tp.limit(program, method="guess")
    with pytest.raises(tp.ProgramError, match=r"test_limit.py.*\n.*exact road takes"):
        tp.limit(program, method="exact")
    with pytest.raises(tp.ProgramError, match="out of reach"):
        tp.limit(program, method="quadrature")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda n, s: s, "the output is a vector where a scalar is asked"),
        (lambda n, s: tp.weight("v", 1, n) @ s, "the output is a readout"),
    ],
)
def test_outputs_that_are_no_scalars(make: Any, why: str) -> None:
    def program(x: Any) -> Any:
        n = tp.Width("n")
        return make(n, tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x))

    with pytest.raises(tp.ProgramError, match=why):
        tp.limit(tp.trace(program, tp.Input(2)), jnp.ones((1, 2)))


def test_a_moment_of_different_widths() -> None:
    def program() -> Any:
        return tp.moment(product, tp.bias("x", tp.Width("n")), tp.bias("y", tp.Width("m")))

    with pytest.raises(tp.ProgramError, match="widths do not match"):
        tp.trace(program)


def test_limits_that_do_not_exist() -> None:
    def program() -> Any:
        return tp.moment(lambda z: jnp.log(z), tp.bias("x", tp.Width("n")))

    with pytest.raises(tp.ProgramError, match=r"test_limit.py:\d+[\s\S]*is nan at z = "):
        tp.limit(tp.trace(program))
