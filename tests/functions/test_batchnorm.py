"""Batch norm's expectations against simulation, the papers, exact cases and each other; the function itself."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from tensorprog.functions import batch_integrals, batch_norm
from tensorprog.functions import batchnorm as bn
from tensorprog.functions.base import elementwise
from tensorprog.functions.frozen import freeze

LEAKY = bn.Sides(1.0, -0.2)
# Everything is linear in the products of odd and of even parts: one function without and one with both stand for all.
pytestmark = pytest.mark.slow
each = pytest.mark.parametrize("phi", [bn.IDENTITY, LEAKY], ids=["identity", "leaky"])

same = jax.jit(bn.same, static_argnums=(1, 2))
cross = jax.jit(bn.cross, static_argnums=(3, 4))
same_tangent = jax.jit(bn.same_tangent, static_argnums=(2, 3))
cross_tangent = jax.jit(bn.cross_tangent, static_argnums=(4, 5))


def full(case: Any) -> Any:
    return pytest.param(case, marks=pytest.mark.full)


def covariances(A: int, B: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S1, S2, X of two batches that are correlated, with means that are not 0 over the batch."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(A + B, 2 * (A + B))) + 0.5
    S = h @ h.T / h.shape[1]
    return S[:A, :A], S[A:, A:], S[:A, A:]


def with_spectrum(A: int, B: int, values: Any, correlation: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """S1, S2, X with the same eigenvalues in random bases, canonical correlations up to the one given."""
    rng = np.random.default_rng(seed)
    bases = [np.linalg.qr(np.c_[np.ones(n), rng.normal(size=(n, n - 1))])[0][:, 1:] for n in (A, B)]
    L1, L2 = (basis * np.sqrt(values(n - 1)) for basis, n in zip(bases, (A, B)))
    U, V = (np.linalg.qr(rng.normal(size=(n - 1, n - 1)))[0] for n in (A, B))
    k = min(A, B) - 1
    shrink = correlation * (rng.uniform(0.5, 1.0, k) if correlation < 1 else np.ones(k))
    return L1 @ L1.T, L2 @ L2.T, L1 @ (U[:, :k] * shrink) @ V[:, :k].T @ L2.T


def normalised(h: jax.Array, phi: bn.Sides) -> jax.Array:
    """F(h), of the definition."""
    x = batch_norm(h)
    return phi.above * jax.nn.relu(x) + phi.below * jax.nn.relu(-x)


class Simulation:
    """Averages over draws of N(0, S), with their standard errors."""

    def __init__(self, S: np.ndarray, draws: int, seed: int = 1) -> None:
        self.root = np.linalg.cholesky(S)
        self.draws, self.key = draws, jax.random.key(seed)

    def agrees(self, fn: Any, exact: Any) -> None:
        """fn(h), of one draw, has the expectation `exact` within 4 standard errors."""
        blocks, size = 20, self.draws // 20

        @jax.jit
        def block(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = jax.vmap(fn)(jax.random.normal(key, (size, len(self.root))) @ self.root.T)
            return values.sum(0), (values**2).sum(0)

        sums = [block(key) for key in jax.random.split(self.key, blocks)]
        first, second = (np.mean([pair[k] for pair in sums], axis=0) / size for k in (0, 1))
        error = np.sqrt((second - first**2) / (blocks * size))
        assert first.shape == exact.shape
        assert (np.abs(first - exact) <= 4 * error + 1e-12).all(), np.abs((first - exact) / error).max()


def square(x: jax.Array) -> jax.Array:
    return jnp.outer(x, x)


def joint(S1: np.ndarray, S2: np.ndarray, X: np.ndarray) -> np.ndarray:
    return np.block([[S1, X], [X.T, S2]])


def close(a: Any, b: Any, tolerance: float) -> bool:
    return float(np.abs(np.asarray(a) - b).max()) <= tolerance * float(np.abs(np.asarray(b)).max())


# ---- against simulation ---------------------------------------------------------------------------------------------


@each
def test_moments_are_those_of_draws(phi):
    S1, S2, X = covariances(6, 4)
    simulation = Simulation(joint(S1, S2, X), 1_000_000)
    f, h = lambda z: normalised(z[:6], phi), lambda z: normalised(z[6:], phi)
    simulation.agrees(f, bn.mean(S1, phi))
    simulation.agrees(lambda z: square(f(z)), same(S1, phi))
    simulation.agrees(lambda z: jnp.outer(f(z), h(z)), cross(S1, S2, X, phi))
    simulation.agrees(lambda z: jnp.outer(h(z), f(z)), cross(S2, S1, X.T, phi))


@pytest.mark.full
def test_moments_of_two_functions_are_those_of_draws():
    S1, S2, X = covariances(6, 4)
    simulation = Simulation(joint(S1, S2, X), 1_000_000)
    f = lambda z: normalised(z[:6], bn.RELU)
    simulation.agrees(lambda z: jnp.outer(f(z), normalised(z[:6], LEAKY)), same(S1, bn.RELU, LEAKY))
    simulation.agrees(lambda z: jnp.outer(f(z), normalised(z[6:], LEAKY)), cross(S1, S2, X, bn.RELU, LEAKY))


@each
def test_tangents_are_those_of_draws(phi):
    S1, S2, X = covariances(6, 7)
    rng = np.random.default_rng(2)
    simulation = Simulation(joint(S1, S2, X), 400_000)
    first = jax.jacfwd(lambda h: normalised(h, phi))
    second = jax.jacfwd(lambda h: normalised(h, LEAKY))
    T = rng.normal(size=(6, 6))
    simulation.agrees(lambda z: first(z[:6]) @ T @ second(z[:6]).T, same_tangent(S1, T, phi, LEAKY))
    T = rng.normal(size=(6, 7))
    simulation.agrees(lambda z: first(z[:6]) @ T @ second(z[6:]).T, cross_tangent(S1, S2, X, T, phi, LEAKY))


# ---- against the papers ---------------------------------------------------------------------------------------------


def network(inputs: np.ndarray, sizes: tuple[int, int], depth: int, phi: bn.Sides) -> tuple[Any, Any]:
    """NNGP and NTK of a deep network with batch norm before each phi: ([1, 1], [2, 2], [1, 2]) blocks of each."""
    gram = inputs @ inputs.T / inputs.shape[1]
    i = sizes[0]
    C = gram[:i, :i], gram[i:, i:], gram[:i, i:]  # of what the layer's weights read
    T = tuple(np.zeros_like(block) for block in C)  # how much C moves when the weights before do
    for _ in range(depth):
        S, moved = C, tuple(t + c for t, c in zip(T, C))  # this layer's weights: a term of their own
        C = same(S[0], phi), same(S[1], phi), cross(*S, phi)
        T = same_tangent(S[0], moved[0], phi), same_tangent(S[1], moved[1], phi), cross_tangent(*S, moved[2], phi)
    return C, tuple(t + c for t, c in zip(T, C))


@pytest.mark.parametrize("name", ["depth1", "depth2", "linear_depth1"])
def test_kernels_are_the_papers(name):
    entry, arrays = reference.paper(f"batchnorm_ntk/iid/{name}")
    phi = bn.IDENTITY if name.startswith("linear") else bn.RELU
    sizes = arrays["exact_ntkx"].shape
    nngp, ntk = network(arrays["inputs"], sizes, entry.get("depth", 1), phi)
    for block, value, slope in zip("12x", nngp, ntk):
        tolerance = 1e-7 if block == "x" else 1e-12  # the reference's double integral is 2e-8 too small
        assert close(value, arrays[f"exact_nngp{block}"], tolerance)
        assert close(slope, arrays[f"exact_ntk{block}"], tolerance)


def test_nngp_of_two_layers_is_the_papers():
    _, arrays = reference.paper("batchnorm_nngp/depth2_8x8")
    for depth, name in ((1, "exact_depth1"), (2, "exact")):
        (first, second, mixed), _ = network(arrays["inputs"], (8, 8), depth, bn.RELU)
        assert close(first, arrays[name][:8, :8], 1e-12)
        assert close(second, arrays[name][8:, 8:], 1e-12)
        assert close(mixed, arrays[name][:8, 8:], 1e-7)


# ---- exact cases, and each other ------------------------------------------------------------------------------------


def test_independent_examples():
    """E x x^T of the identity is B/(B - 1) G, and E J J^T = B/(B - 1) (B - 2)/(B - 3) G, J the Jacobian."""
    for B in (4, 5, 9):
        G = np.eye(B) - 1 / B
        assert close(same(3.0 * np.eye(B), bn.IDENTITY), B / (B - 1) * G, 1e-11)
        slope = B / (B - 1) * (B - 2) / (B - 3)
        assert close(same_tangent(3.0 * np.eye(B), 3.0 * np.eye(B), bn.IDENTITY), slope * G, 1e-9)


@pytest.mark.full
@pytest.mark.parametrize("B", [2, 4, 7])
def test_the_whole_batch_has_variance_one(B):
    S, _, _ = covariances(B, B)
    assert float(jnp.trace(same(S, bn.IDENTITY))) == pytest.approx(B, rel=1e-11)
    assert float(jnp.trace(same(S, bn.ABS))) == pytest.approx(B, rel=1e-11)
    # sum_l E relu(x_k) x_l = 0, as the mean over the batch is 0
    assert float(np.abs(same(S, bn.RELU, bn.IDENTITY).sum(1)).max()) < 1e-11


@pytest.mark.full
@pytest.mark.parametrize("r", [-1.0, -0.3, 0.0, 0.9, 1 - 1e-6, 1.0])
def test_two_examples_are_a_sign(r):
    value = cross(np.eye(2), np.eye(2), r * np.eye(2), bn.IDENTITY)
    arcsine = 2 / math.pi * math.asin(r)
    assert close(value, arcsine * np.array([[1.0, -1.0], [-1.0, 1.0]]), 2e-6) or (
        r == 0 and np.abs(value).max() < 1e-12
    )


@pytest.mark.full
@each
def test_one_batch_against_itself(phi):
    S, _, _ = covariances(6, 2)
    T = np.random.default_rng(3).normal(size=(6, 6))
    assert close(cross(S, S, S, phi), same(S, phi), 1e-11)
    assert close(cross_tangent(S, S, S, T, phi), same_tangent(S, T, phi), 1e-7)
    order = np.array([3, 1, 0, 5, 4, 2])
    assert close(cross(S, S[order][:, order], S[:, order], phi), same(S, phi)[:, order], 1e-11)


@pytest.mark.full
def test_scale_does_not_matter():
    S1, S2, X = covariances(6, 4)
    T = np.random.default_rng(4).normal(size=(6, 4))
    for a, b in ((1e-6, 1e-6), (1e6, 1e6), (1e-6, 1e6)):
        assert close(same(a * S1, LEAKY), same(S1, LEAKY), 1e-12)
        assert close(bn.mean(a * S1, LEAKY), bn.mean(S1, LEAKY), 1e-12)
        scaled, root = (a * S1, b * S2, math.sqrt(a * b) * X), math.sqrt(a * b)
        assert close(cross(*scaled, LEAKY), cross(S1, S2, X, LEAKY), 1e-11)
        assert close(cross_tangent(*scaled, root * T, LEAKY), cross_tangent(S1, S2, X, T, LEAKY), 1e-11)
        assert close(same_tangent(a * S1, a * S1, LEAKY), same_tangent(S1, S1, LEAKY), 1e-11)


@pytest.mark.full
def test_linear_in_the_tangent():
    S1, S2, X = covariances(6, 4)
    T, R = np.random.default_rng(5).normal(size=(2, 6, 4))
    moved = lambda T: cross_tangent(S1, S2, X, T, LEAKY)
    assert close(moved(2 * T + R), 2 * moved(T) + moved(R), 1e-12)


# ---- where they exist -----------------------------------------------------------------------------------------------


def test_equal_examples():
    """A repeated example takes one dimension away, and nothing else."""
    S1, S2, X = covariances(6, 5)
    pick = np.array([0, 1, 2, 3, 4, 5, 5])
    S, Y = S1[np.ix_(pick, pick)], X[pick]
    assert int(bn.dimensions(S)) == 5
    value = same(S, bn.RELU)
    assert np.array_equal(np.isnan(value), np.zeros((7, 7), bool))
    assert close(value[5], value[6], 1e-12)
    simulation = Simulation(S1, 1_000_000)
    simulation.agrees(lambda h: square(normalised(h[pick], bn.RELU)), value)
    slope = jax.jacfwd(lambda h: normalised(h[pick], bn.RELU))
    simulation.agrees(lambda h: slope(h) @ S1 @ slope(h).T, same_tangent(S, S, bn.RELU))
    moved = S + 1e-11 * np.diag(np.arange(7.0))
    assert close(cross(moved, S2, Y, bn.RELU), cross(S, S2, Y, bn.RELU), 1e-7)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_batch_norm_of_equal_examples_is_not_a_number(dtype):
    S = jnp.asarray(np.full((4, 4), 0.3), dtype)
    other = jnp.asarray(covariances(4, 4)[0], dtype)
    assert int(bn.dimensions(S)) == 0
    assert np.isnan(same(S, bn.RELU)).all()
    assert np.isnan(bn.mean(S, bn.RELU)).all()
    assert np.isnan(cross(S, other, 0 * S, bn.RELU)).all()
    assert np.isnan(cross(other, S, 0 * S, bn.RELU)).all()
    assert all(np.isnan(bound).all() for bound in bn.same_error(S, bn.RELU))


def test_gradients_need_four_different_examples():
    S, _, _ = covariances(4, 4)
    for pick, dimensions in (([0, 1, 2, 3], 3), ([0, 1, 2, 2], 2), ([0, 1, 2], 2), ([0, 1], 1)):
        R = S[np.ix_(pick, pick)]
        assert int(bn.dimensions(R)) == dimensions
        assert np.isfinite(same(R, bn.RELU)).all()
        assert np.isfinite(same_tangent(R, R, bn.RELU)).all() == (dimensions >= 3)
        assert np.isfinite(cross_tangent(R, S, S[pick], S[pick], bn.RELU)).all() == (dimensions >= 3)


# ---- derivatives ----------------------------------------------------------------------------------------------------


def weigh(value: jax.Array) -> jax.Array:
    return (value * jnp.sin(1.0 + jnp.arange(value.size)).reshape(value.shape)).sum()


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    ["mean", "same", "same_tangent", *(full(n) for n in ("cross", "cross_tangent"))],
)
def test_derivatives(name):
    S1, S2, X = map(jnp.asarray, covariances(5, 4))
    T = jnp.asarray(np.random.default_rng(6).normal(size=(5, 4)))
    fn, given = {
        "mean": (lambda S: bn.mean(S, LEAKY), (S1,)),
        "same": (lambda S: bn.same(S, LEAKY), (S1,)),
        "same_tangent": (lambda S, T: bn.same_tangent(S, T, LEAKY), (S1, T @ T.T + S1)),
        "cross": (lambda S1, S2, X: bn.cross(S1, S2, X, LEAKY), (S1, S2, X)),
        "cross_tangent": (lambda S1, S2, X, T: bn.cross_tangent(S1, S2, X, T, LEAKY), (S1, S2, X, T)),
    }[name]
    rng = np.random.default_rng(7)
    ways = tuple(rng.normal(size=x.shape) for x in given)
    ways = tuple(d + d.T if len(d) == len(d.T) else d for d in ways)
    loss = jax.jit(lambda *given: weigh(fn(*given)))
    gradient = jax.jit(jax.grad(lambda *given: weigh(fn(*given)), argnums=tuple(range(len(given)))))
    move = lambda step: tuple(x + step * d for x, d in zip(given, ways))
    difference = lambda fn, step: (fn(*move(step)) - fn(*move(-step))) / (2 * step)
    along = sum(float((g * d).sum()) for g, d in zip(gradient(*given), ways))
    _, forward = jax.jvp(loss, given, ways)
    assert along == pytest.approx(float(forward), rel=1e-9)
    assert along == pytest.approx(float(difference(loss, 1e-5)), rel=1e-6)
    slope = lambda *given: sum((g * d).sum() for g, d in zip(gradient(*given), ways))
    _, second = jax.jvp(slope, given, ways)
    assert float(second) == pytest.approx(float(difference(slope, 1e-5)), rel=1e-5)


@pytest.mark.full
def test_derivative_of_a_repeated_example_is_finite():
    S, _, _ = covariances(5, 2)
    pick = [0, 1, 2, 3, 4, 4]
    S = jnp.asarray(S[np.ix_(pick, pick)])
    assert np.isfinite(jax.grad(lambda S: weigh(bn.same(S, LEAKY)))(S)).all()
    assert np.isfinite(jax.grad(lambda S: weigh(bn.cross(S, S, S, LEAKY)))(S)).all()


@pytest.mark.full
def test_derivative_in_the_slopes():
    S, _, _ = covariances(5, 2)
    loss = lambda below: weigh(bn.same(S, bn.Sides(1.0, below)))
    difference = (loss(-0.2 + 1e-6) - loss(-0.2 - 1e-6)) / 2e-6
    assert float(jax.grad(loss)(-0.2)) == pytest.approx(float(difference), rel=1e-7)


# ---- batches, dtypes, bounds ----------------------------------------------------------------------------------------


@pytest.mark.full
def test_all_pairs_at_once():
    given = [covariances(6, 4, seed) for seed in range(3)]
    S1, S2 = (np.stack([one[k] for one in given]) for k in (0, 1))
    X = np.stack([[0.1 * i * given[j][2] for j in range(3)] for i in range(3)])
    values = cross(S1[:, None], S2, X, LEAKY)
    slopes = cross_tangent(S1[:, None], S2, X, X + 0.1, LEAKY)
    assert values.shape == slopes.shape == (3, 3, 6, 4)
    assert close(values[2, 1], cross(S1[2], S2[1], X[2, 1], LEAKY), 1e-13)
    assert close(slopes[2, 1], cross_tangent(S1[2], S2[1], X[2, 1], X[2, 1] + 0.1, LEAKY), 1e-12)
    assert close(same(S1, LEAKY)[1], same(S1[1], LEAKY), 1e-13)
    found, bound = bn.cross_error(S1[:, None], S2, X, LEAKY)
    assert close(found, values, 1e-13) and bound.shape == values.shape


@pytest.mark.full
def test_compiled_or_not():
    S1, S2, X = covariances(6, 4)
    assert close(bn.same(S1, LEAKY), same(S1, LEAKY), 1e-13)
    assert close(bn.cross(S1, S2, X, LEAKY), cross(S1, S2, X, LEAKY), 1e-13)


def test_float32():
    S1, S2, X = covariances(6, 4)
    T = np.random.default_rng(8).normal(size=(6, 4))
    single = lambda fn, *given: fn(*(np.float32(x) for x in given), LEAKY)
    double = lambda fn, *given: fn(*(np.float64(np.float32(x)) for x in given), LEAKY)
    for fn, given in ((same, (S1,)), (cross, (S1, S2, X)), (cross_tangent, (S1, S2, X, T)), (same_tangent, (S1, S1))):
        assert single(fn, *given).dtype == jnp.float32
        assert close(single(fn, *given), double(fn, *given), 2e-5)


SPECTRA = {
    "flat": np.ones,
    "geometric": lambda n: 1e-4 ** np.linspace(0, 1, n),
    "one large": lambda n: np.r_[1.0, np.full(n - 1, 1e-6)],
    "one small": lambda n: np.r_[np.ones(n - 1), 1e-8],
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sizes", [(4, 4), *(full(n) for n in ((8, 8), (5, 3), (2, 2)))])
def test_bounds_cover(sizes, dtype, monkeypatch):
    """For all spectra, and batches that are apart, nearly the same and the same but for their bases."""
    phi = bn.Sides(1.0, 0.3)
    spectra = list(SPECTRA.values())[: 4 if dtype == "float64" else 3]  # the last is below float32's rounding
    cases = [with_spectrum(sizes[0], sizes[1], spectrum, r) for spectrum in spectra for r in (0.5, 1 - 1e-6, 1.0)]
    S1, S2, X = (np.stack(matrices).astype(dtype) for matrices in zip(*cases))
    T, R = (np.random.default_rng(9).normal(size=(sizes[0], n)).astype(dtype) for n in reversed(sizes))

    def all_of_them(*given: Any) -> list[tuple[Any, Any]]:
        @jax.jit
        def work(*given: Any) -> Any:
            S1, S2, X, T, R = given
            moments = [bn.mean_error(S1, phi), bn.same_error(S1, phi), bn.cross_error(S1, S2, X, phi)]
            return [*moments, bn.same_tangent_error(S1, R, phi), bn.cross_tangent_error(S1, S2, X, T, phi)]

        return work(*given)

    found = all_of_them(S1, S2, X, T, R)
    monkeypatch.setitem(batch_integrals.NODES, jnp.dtype("float64"), (200, 64))
    exact = all_of_them(*map(np.float64, (S1, S2, X, T, R)))
    assert sum(np.isfinite(value).all(axis=(-1, -2)).any() for value, _ in found) >= (5 if min(sizes) >= 4 else 3)
    for (value, bound), (truth, _) in zip(found, exact, strict=True):
        defined = np.isfinite(value)
        assert (np.abs(value - truth)[defined] <= bound[defined]).all()
        assert np.isnan(bound[~defined]).all()
        if dtype == "float64":
            assert (defined == np.isfinite(truth)).all()
            size = np.abs(truth).reshape(len(cases), -1).max(1)
            within = np.abs(value - truth).reshape(len(cases), -1).max(1) <= 1e-8 * size
            ordinary = np.arange(len(cases)) % 3 == 0  # batches that are apart
            ordinary[6:] = False  # spectra over eight decades
            assert (within | np.isnan(size))[ordinary].all()


# ---- the function ---------------------------------------------------------------------------------------------------


def test_batch_norm_over_any_axes():
    z = np.random.default_rng(10).normal(size=(4, 3, 2)) + 7.0
    x = batch_norm(z)
    assert x.shape == z.shape
    assert close(x, (z - z.mean()) / z.std(), 1e-12)
    assert close(batch_norm(z, eps=0.1), (z - z.mean()) / np.sqrt(z.var() + 0.1), 1e-12)
    assert batch_norm(jnp.arange(3)).dtype == jnp.float64
    assert batch_norm(jnp.float32(z)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_batch_norm_of_equal_numbers(dtype):
    z = jnp.full(3, 0.1, dtype)
    assert np.array_equal(batch_norm(z), np.zeros(3))
    assert np.array_equal(jax.jacrev(batch_norm)(z), np.zeros((3, 3)))
    G = np.eye(3) - 1 / 3
    assert close(jax.jacfwd(functools.partial(batch_norm, eps=1e-4))(z), 100.0 * G, 1e-5)
    assert np.abs(batch_norm(z.at[0].add(1e-3))).max() > 1


def test_batch_norm_is_recognised():
    assert batch_norm is bn.batch_norm
    function, numbers = freeze(batch_norm)
    assert numbers == () and bn.normalises(function) and function.name == "batch_norm"
    assert function == freeze(bn.BatchNorm())[0]
    assert bn.normalises(freeze(functools.partial(batch_norm, eps=0.0))[0])
    assert not bn.normalises(freeze(functools.partial(batch_norm, eps=1e-5))[0])
    assert not bn.normalises(freeze(jax.nn.relu)[0])


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (jax.nn.relu, (1.0, 0.0)),
        (jnp.positive, (1.0, -1.0)),
        (jnp.negative, (-1.0, 1.0)),
        (jnp.abs, (1.0, 1.0)),
        (functools.partial(jax.nn.leaky_relu, negative_slope=0.2), (1.0, -0.2)),
        (jnp.square, None),
        (jnp.sign, None),
        (jax.scipy.special.erf, None),
        (jnp.tanh, None),
    ],
)
def test_sides_of_closed_forms(fn, expected):
    function, numbers = freeze(fn)
    found = bn.sides(elementwise(function, len(numbers)).form, numbers)
    assert found == (None if expected is None else pytest.approx(expected))
    if found is not None:
        z = jnp.array([-2.0, 0.5])
        assert close(found.above * jax.nn.relu(z) + found.below * jax.nn.relu(-z), fn(z), 1e-14)


def test_no_tangent_reaches_further_than_is_stated() -> None:
    """Sums over entries of what a tangent's entries are multiplied by, each taken alone."""
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(2, 5, 6))
    S1, S2, X = (jnp.asarray(a @ b.T / 6) for a, b in ((h, h), (g, g), (h, g)))
    units = jnp.eye(25).reshape(25, 5, 5)
    sums = np.abs(cross_tangent(S1, S2, X, units, LEAKY, LEAKY)).sum(0)
    most = bn.reach(S1, LEAKY) * bn.reach(S2, LEAKY)
    assert (sums <= most).all() and most < 10 * sums.max()
