"""Predictions: closed forms against brute force, shapes, derivatives, and what wrong arguments are told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm
from scipy.stats import multivariate_normal as gaussian

import tensorprog as tp
from tensorprog import predict

multivariate_normal: Any = gaussian  # its stub takes the covariance for an int
N, STAR, K = 6, 3, 2


def kernel(rng: np.random.Generator, count: int) -> np.ndarray:
    """A kernel of condition number below a hundred or so."""
    a = rng.normal(size=(count, count + 4))
    return a @ a.T / count + 0.1 * np.eye(count)


@pytest.fixture(scope="module")
def blocks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ntk, nngp = kernel(rng, N + STAR), kernel(rng, N + STAR)
    cut = lambda k: (k[:N, :N], k[N:, :N], k[N:, N:])
    found = dict(zip(("ktt", "kst", "kss"), cut(ntk))) | dict(zip(("ntt", "nst", "nss"), cut(nngp)))
    shapes = {"y": (N, K), "f0": (N, K), "g0": (STAR, K)}
    return found | {name: rng.normal(size=shape) for name, shape in shapes.items()}


def close(found: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------- regression


def test_posterior_is_the_conditional_of_a_gaussian(blocks: dict[str, np.ndarray]) -> None:
    b, ridge = blocks, 0.3
    post = predict.posterior(b["ktt"], b["kst"], b["kss"], b["y"], ridge)
    inverse = np.linalg.inv(b["ktt"] + ridge * np.eye(N))
    close(post.mean, b["kst"] @ inverse @ b["y"])
    cov = b["kss"] - b["kst"] @ inverse @ b["kst"].T
    close(post.cov, cov)
    close(post.std, np.sqrt(np.diag(cov)))
    assert float(post.jitter) == 0
    assert post.condition == pytest.approx(np.linalg.cond(b["ktt"] + ridge * np.eye(N), 1), rel=0.5)
    flat = predict.posterior(b["ktt"], b["kst"], None, b["y"][:, 0], ridge)
    assert flat.cov is None and flat.std is None
    close(flat.mean, post.mean[:, 0])


def test_evidence(blocks: dict[str, np.ndarray]) -> None:
    b, ridge = blocks, 0.3
    normal = multivariate_normal(np.zeros(N), b["ktt"] + ridge * np.eye(N))
    wanted = sum(normal.logpdf(column) for column in b["y"].T)
    close(predict.log_marginal_likelihood(b["ktt"], b["y"], ridge), wanted)
    value = lambda s, r: predict.log_marginal_likelihood(s * jnp.asarray(b["ktt"]), b["y"], r)
    slopes = jax.jit(jax.grad(value, (0, 1)))(1.3, 0.2)
    step = 1e-5
    close(slopes[0], (value(1.3 + step, 0.2) - value(1.3 - step, 0.2)) / (2 * step), 1e-7)
    close(slopes[1], (value(1.3, 0.2 + step) - value(1.3, 0.2 - step)) / (2 * step), 1e-7)
    assert np.isfinite(jax.hessian(value, 0)(1.3, 0.2))


def test_leave_one_out_is_n_refits(blocks: dict[str, np.ndarray]) -> None:
    b, ridge = blocks, 0.3
    found = predict.leave_one_out(b["ktt"], b["y"], ridge)
    for i in range(N):
        rest = [j for j in range(N) if j != i]
        own = predict.posterior(
            b["ktt"][np.ix_(rest, rest)], b["ktt"][[i]][:, rest], b["ktt"][[i]][:, [i]], b["y"][rest], ridge
        )
        assert own.cov is not None
        var = float(own.cov[0, 0]) + ridge
        close(found.mean[i], own.mean[0])
        close(found.var[i], var)
        close(found.std[i], math.sqrt(var))
        close(found.log_density[i], sum(multivariate_normal(m, var).logpdf(y) for m, y in zip(own.mean[0], b["y"][i])))


@pytest.mark.slow
def test_evidence_learns_a_programs_variances() -> None:
    """Targets are a draw of the program's own prior; optax climbs to a likelihood above that of the true variances."""
    program = tp.nets.net("mlp").program(tp.Input(3), depth=1, var_w=1.5, var_b=0.3)
    x = np.random.default_rng(1).normal(size=(30, 3))
    prior = np.asarray(tp.nngp(program, x)) + 0.01 * np.eye(30)
    y = np.linalg.cholesky(prior) @ np.random.default_rng(2).normal(size=30)

    def loss(log_variances: dict[str, Any]) -> Any:
        given = program.replace({name: jnp.exp(value) for name, value in log_variances.items()})
        return -predict.log_marginal_likelihood(tp.nngp(given, x), y, 0.01) / len(x)

    logs = {"W1.var": jnp.asarray(-2.0), "b1.var": jnp.asarray(1.0)}
    optimiser = optax.adam(0.3)
    state = optimiser.init(logs)
    step = jax.jit(jax.value_and_grad(loss))
    start = loss(logs)
    for _ in range(80):
        _, slopes = step(logs)
        updates, state = optimiser.update(slopes, state)
        logs: Any = optax.apply_updates(logs, updates)
    truth = loss({"W1.var": jnp.log(1.5), "b1.var": jnp.log(0.3)})
    assert float(loss(logs)) < float(truth) < float(start)


# ---------------------------------------------------------------------------------------------- training curves


def descent(
    b: dict[str, np.ndarray], steps: int, lr: float, ridge: float, beta: float, nesterov: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent on features: f = f_0 + Φw, loss ½‖f − y‖² + (r/2)‖w‖², with optax's momentum."""
    phi = np.linalg.cholesky(np.block([[b["ktt"], b["kst"].T], [b["kst"], b["kss"]]]))
    w = m = np.zeros((N + STAR, K))
    for _ in range(steps):
        slope = phi[:N].T @ (b["f0"] + phi[:N] @ w - b["y"]) + ridge * w
        m = beta * m + slope
        w = w - lr * (beta * m + slope if nesterov else m)
    return b["f0"] + phi[:N] @ w, b["g0"] + phi[N:] @ w


@pytest.mark.parametrize(("beta", "nesterov"), [(0.0, False), (0.6, False), (0.6, True)])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_gradient_descent_is_its_steps(
    blocks: dict[str, np.ndarray], beta: float, nesterov: bool, ridge: float
) -> None:
    b, lr = blocks, 0.1
    g = predict.gradient_descent(b["ktt"], b["y"], lr, momentum=beta, nesterov=nesterov, ridge=ridge)
    steps = np.array([0, 1, 2, 7])
    train, test = g(steps, b["f0"], b["kst"], b["g0"])
    for i, n in enumerate(steps):
        wanted = descent(b, int(n), lr, ridge, beta, nesterov)
        close(train[i], wanted[0])
        close(test[i], wanted[1])
    jitted = jax.jit(lambda n: g(n, b["f0"], b["kst"], b["g0"]))(jnp.asarray(7))
    close(jitted[0], train[-1])
    close(jitted[1], test[-1])


def test_gradient_flow_is_the_matrix_exponential(blocks: dict[str, np.ndarray]) -> None:
    b, lr = blocks, 0.7
    g = predict.gradient_flow(b["ktt"], b["y"], lr=lr)
    times = np.array([0.0, 0.3, 2.0, np.inf])
    train, test = g(times, b["f0"], b["kst"], b["g0"])
    gap = b["f0"] - b["y"]
    for i, t in enumerate(times):
        left = expm(-lr * t * b["ktt"]) if np.isfinite(t) else np.zeros((N, N))
        close(train[i], b["y"] + left @ gap)
        close(test[i], b["g0"] - b["kst"] @ np.linalg.solve(b["ktt"], (np.eye(N) - left) @ gap))
    alone, nothing = g(2.0)
    assert nothing is None
    close(alone, b["y"] - expm(-2 * lr * b["ktt"]) @ b["y"])


def test_numbers_of_any_kind(blocks: dict[str, np.ndarray]) -> None:
    """Ints for floats, lists for arrays, half precision for single: none of them needs a text."""
    ktt, y = blocks["ktt"], blocks["y"][:, 0]
    train, _ = predict.gradient_flow(ktt, y)(1.0, 0, None, 0)
    loss = lambda f, y: 0.5 * jnp.sum((f - y) ** 2)
    close(predict.flow(loss, ktt, y.tolist())(1.0, None, None, 0)[0], train, 1e-5)
    close(jax.jit(lambda f: predict.gradient_flow(ktt, y)(1.0, 0.0, None, f)[0])(0.0), train)
    steps, _ = predict.gradient_descent(ktt, y, 0.1)([3, 2**31 - 1])
    close(steps[1], y, 1e-6)
    for dtype in (jnp.float16, jnp.bfloat16):
        mean = predict.posterior(jnp.asarray(ktt, dtype), ktt, None, y, 1.0).mean
        assert mean.dtype == jnp.float32
        close(mean, predict.posterior(ktt, ktt, None, y, 1.0).mean, 0.1)


def test_a_rate_of_zero_freezes(blocks: dict[str, np.ndarray]) -> None:
    ktt, kst, y, f0, g0 = (blocks[name] for name in ("ktt", "kst", "y", "f0", "g0"))
    times = jnp.asarray([1.0, math.inf])
    train, test = predict.gradient_flow(ktt, y, lr=0.0)(times, f0, kst, g0)
    close(train, np.stack([f0] * 2))
    close(test, np.stack([g0] * 2))
    prior = predict.ensemble(*pairs(blocks), y, lr=0.0)
    close(prior.mean, 0 * g0)
    close(prior.cov, blocks["nss"])
    close(predict.last_layer(*pairs(blocks), y, lr=0.0).cov, blocks["nss"])
    assert np.isfinite(jax.grad(lambda lr: predict.gradient_flow(ktt, y, lr)(math.inf)[0].sum())(0.5))


def test_steps_become_a_flow(blocks: dict[str, np.ndarray]) -> None:
    """lr/M steps of n·M; with momentum β the time runs 1/(1 − β) as fast."""
    b = blocks
    train, test = predict.gradient_flow(b["ktt"], b["y"])(1.5, b["f0"], b["kst"], b["g0"])
    for beta, nesterov in ((0.0, False), (0.5, True)):
        g = predict.gradient_descent(b["ktt"], b["y"], 1e-6 * (1 - beta), momentum=beta, nesterov=nesterov)
        close(g(1_500_000, b["f0"], b["kst"], b["g0"])[0], train, 1e-4)
        close(g(1_500_000, b["f0"], b["kst"], b["g0"])[1], test, 1e-4)


def test_a_ridge_pulls_to_the_start(blocks: dict[str, np.ndarray]) -> None:
    b, ridge = blocks, 0.4
    train, test = predict.gradient_flow(b["ktt"], b["y"], ridge=ridge)(math.inf, b["f0"], b["kst"], b["g0"])
    weights = np.linalg.solve(b["ktt"] + ridge * np.eye(N), b["y"] - b["f0"])
    close(train, b["f0"] + b["ktt"] @ weights)
    close(test, b["g0"] + b["kst"] @ weights)


@pytest.mark.parametrize(("beta", "nesterov"), [(0.0, False), (0.6, False), (0.6, True)])
def test_the_largest_learning_rate_is_the_edge(blocks: dict[str, np.ndarray], beta: float, nesterov: bool) -> None:
    b = blocks
    edge = float(predict.max_learning_rate(b["ktt"], momentum=beta, nesterov=nesterov))
    run = lambda lr: predict.gradient_descent(b["ktt"], b["y"], lr, momentum=beta, nesterov=nesterov)(4000)[0]
    close(run(0.99 * edge), b["y"], 1e-6)
    with pytest.warns(predict.KernelWarning, match="largest stable learning rate"):
        assert np.abs(run(1.01 * edge)).max() > 1e3


def test_flow_of_the_squared_loss_is_the_closed_form(blocks: dict[str, np.ndarray]) -> None:
    b = blocks
    times = np.array([1.5, 0.0, 0.4])  # in no order
    squared = lambda f, y: 0.5 * jnp.sum((f - y) ** 2)
    train, test = predict.flow(squared, b["ktt"], b["y"], 0.7)(times, b["f0"], b["kst"], b["g0"])
    wanted = predict.gradient_flow(b["ktt"], b["y"], 0.7)(times, b["f0"], b["kst"], b["g0"])
    close(train, wanted[0], 1e-5)
    close(test, wanted[1], 1e-5)


@pytest.mark.slow
def test_flow_of_the_cross_entropy_is_many_small_steps(blocks: dict[str, np.ndarray]) -> None:
    b, labels = blocks, np.array([0, 1, 1, 0, 1, 0])
    loss = lambda f, y: optax.softmax_cross_entropy_with_integer_labels(f, y).sum()
    g = predict.flow(loss, b["ktt"], labels, 0.5)
    train, test = jax.jit(lambda t: g(t, b["f0"], b["kst"], b["g0"]))(2.0)
    f, a, steps = jnp.asarray(b["f0"]), jnp.zeros((N, K)), 4000
    slope = jax.jit(jax.grad(loss))
    for _ in range(steps):  # midpoint rule
        middle = f - 0.5 * (1.0 / steps) * b["ktt"] @ slope(f, labels) * 0.5
        a = a + (1.0 / steps) * slope(middle, labels)
        f = b["f0"] - b["ktt"] @ a
    close(train, f, 1e-2)
    close(test, b["g0"] - b["kst"] @ a, 1e-2)
    stiff = predict.flow(loss, b["ktt"], labels, 0.5, solver=diffrax.Kvaerno5())(2.0, b["f0"])[0]
    close(stiff, train, 1e-4)


# ---------------------------------------------------------------------------------------------------- ensembles


def pairs(b: dict[str, np.ndarray]) -> tuple[tp.Kernels, tp.Kernels, tp.Kernels]:
    return tp.Kernels(b["ntt"], b["ktt"]), tp.Kernels(b["nst"], b["kst"]), tp.Kernels(b["nss"], b["kss"])


def test_ensemble_is_the_law_of_trained_draws(blocks: dict[str, np.ndarray]) -> None:
    """Outputs before training are a draw of the NNGP, and each is moved by gradient flow: a linear map of that draw."""
    b, lr = blocks, 0.7
    times = np.array([0.0, 0.8, np.inf])
    post = predict.ensemble(*pairs(b), b["y"], times, lr=lr)
    assert post.cov is not None and post.std is not None
    for i, t in enumerate(times):
        left = expm(-lr * t * b["ktt"]) if np.isfinite(t) else np.zeros((N, N))
        a = b["kst"] @ np.linalg.solve(b["ktt"], np.eye(N) - left)
        whole = np.block([[b["ntt"], b["nst"].T], [b["nst"], b["nss"]]])
        move = np.hstack([-a, np.eye(STAR)])
        close(post.mean[i], a @ b["y"])
        close(post.cov[i], move @ whole @ move.T)
        close(post.std[i], np.sqrt(np.diag(move @ whole @ move.T)))
    close(post.cov[0], b["nss"])
    itself = predict.ensemble(pairs(b)[0], pairs(b)[0], pairs(b)[0], b["y"])
    close(itself.mean, b["y"], 1e-8)
    close(itself.cov, np.zeros((N, N)), 1e-8)


def test_a_trained_last_layer_is_the_posterior(blocks: dict[str, np.ndarray]) -> None:
    b = blocks
    found = predict.last_layer(*pairs(b), b["y"])
    wanted = predict.posterior(b["ntt"], b["nst"], b["nss"], b["y"])
    close(found.mean, wanted.mean)
    close(found.cov, wanted.cov)
    close(predict.last_layer(b["ntt"], b["nst"], b["nss"], b["y"], 0.0).cov, b["nss"])


# ------------------------------------------------------------------------------------- shapes, dtypes, transformations


def test_kernels_over_outputs_that_depend_on_each_other(blocks: dict[str, np.ndarray]) -> None:
    """(N, N, S, S) is the kernel of N·S outputs; leaving one out leaves an example out."""
    rng = np.random.default_rng(3)
    s, whole = 2, kernel(rng, (4 + 2) * 2)
    cut = lambda k: k.reshape(k.shape[0] // s, s, k.shape[1] // s, s).swapaxes(1, 2)
    ktt, kst, kss = whole[:8, :8], whole[8:, :8], whole[8:, 8:]
    y = rng.normal(size=(4, s))
    flat = predict.posterior(ktt, kst, kss, y.reshape(-1), 0.1)
    post = predict.posterior(cut(ktt), cut(kst), cut(kss), y, 0.1)
    assert flat.cov is not None and flat.std is not None
    close(post.mean, flat.mean.reshape(2, s))
    close(post.cov, cut(np.asarray(flat.cov)))
    close(post.std, flat.std.reshape(2, s))
    train, test = predict.gradient_flow(cut(ktt), y)(0.5, 0.0, cut(kst))
    wanted = predict.gradient_flow(ktt, y.reshape(-1))(0.5, 0.0, kst)
    close(train, wanted[0].reshape(4, s))
    close(test, wanted[1].reshape(2, s))
    found = predict.leave_one_out(cut(ktt), y, 0.1)
    rest = predict.posterior(ktt[2:, 2:], ktt[:2, 2:], ktt[:2, :2], y.reshape(-1)[2:], 0.1)
    assert rest.cov is not None
    cov = np.asarray(rest.cov) + 0.1 * np.eye(s)
    close(found.mean[0], rest.mean)
    close(found.var[0], np.diag(cov))
    close(found.log_density[0], multivariate_normal(np.asarray(rest.mean), cov).logpdf(y[0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_the_kernels(blocks: dict[str, np.ndarray], dtype: type) -> None:
    b = {name: value.astype(dtype) for name, value in blocks.items()}
    y = blocks["y"]  # float64
    found = [
        predict.posterior(b["ktt"], b["kst"], b["kss"], y, 0.1)[:3],
        predict.leave_one_out(b["ktt"], y, 0.1)[:3],
        predict.log_marginal_likelihood(b["ktt"], y, 0.1),
        predict.gradient_flow(b["ktt"], y)(1.0, 0.0, b["kst"]),
        predict.gradient_descent(b["ktt"], y, 0.01, momentum=0.5)(9, 0.0, b["kst"]),
        predict.ensemble(*pairs(b), y, 1.0)[:3],
        predict.max_learning_rate(b["ktt"]),
        predict.flow(lambda f, y: ((f - y) ** 2).sum(), b["ktt"], y, rtol=1e-4, atol=1e-4)(0.1, 0.0, b["kst"]),
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(dtype)}
    close(found[0][0], predict.posterior(blocks["ktt"], blocks["kst"], None, y, 0.1).mean, 1e-4)


CURVES: dict[str, Callable[..., Any]] = {
    "flow": lambda k, cross: predict.gradient_flow(k, jnp.arange(4.0), 0.3)(1.2, 0.0, cross),
    "end": lambda k, cross: predict.gradient_flow(k, jnp.arange(4.0), 0.3, ridge=0.1)(math.inf, 0.0, cross),
    "steps": lambda k, cross: predict.gradient_descent(k, jnp.arange(4.0), 0.3, momentum=0.5)(6, 0.0, cross),
}


@pytest.mark.slow
@pytest.mark.parametrize("curve", CURVES)
def test_derivatives_where_eigenvalues_coincide(curve: str) -> None:
    """A kernel with a double eigenvalue has no derivative of its eigenvectors; curves have one all the same."""
    rng = np.random.default_rng(4)
    base, cross = np.diag([1.0, 1.0, 1.0 + 1e-9, 2.5]), rng.normal(size=(2, 4))
    direction = rng.normal(size=(4, 4))
    direction += direction.T

    def along(s: Any) -> Any:
        train, test = CURVES[curve](base + s * direction, cross)
        return jnp.concatenate([train, test])

    step = 1e-5
    wanted = (along(step) - along(-step)) / (2 * step)
    close(jax.jacfwd(along)(0.0), wanted, 1e-7)
    close(jax.jit(jax.jacrev(along))(0.0), wanted, 1e-7)
    with pytest.raises(tp.ProgramError, match="second derivatives"):
        jax.jacfwd(jax.jacfwd(along))(0.0)


def test_derivatives_in_time_rate_and_targets(blocks: dict[str, np.ndarray]) -> None:
    b = blocks
    value = lambda t, lr, y: predict.gradient_flow(b["ktt"], y, lr)(t, b["f0"], b["kst"], b["g0"])[1].sum()
    slopes = jax.grad(value, (0, 1, 2))(0.8, 0.5, jnp.asarray(b["y"]))
    step = 1e-6
    close(slopes[0], (value(0.8 + step, 0.5, b["y"]) - value(0.8 - step, 0.5, b["y"])) / (2 * step), 1e-7)
    close(slopes[1], (value(0.8, 0.5 + step, b["y"]) - value(0.8, 0.5 - step, b["y"])) / (2 * step), 1e-7)
    close(jnp.sum(slopes[2]), value(0.8, 0.5, b["y"] + 1) - value(0.8, 0.5, b["y"]))
    assert np.isfinite(jax.grad(value)(math.inf, 0.5, jnp.asarray(b["y"])))


def test_inside_jit_nothing_is_checked_and_nothing_differs(blocks: dict[str, np.ndarray]) -> None:
    b = blocks
    post = jax.jit(predict.posterior)(b["ktt"], b["kst"], b["kss"], b["y"], 0.1)
    wanted = predict.posterior(b["ktt"], b["kst"], b["kss"], b["y"], 0.1)
    close(post.mean, wanted.mean)
    close(post.cov, wanted.cov)
    assert post.condition is None
    assert np.isfinite(jax.jit(predict.leave_one_out)(b["ktt"], b["y"], 0.1).mean).all()


# ------------------------------------------------------------------------------------------- conditions, mistakes


def test_a_singular_kernel_takes_a_jitter_and_says_so(blocks: dict[str, np.ndarray]) -> None:
    row = np.arange(1.0, 4.0)
    ktt = np.outer(row, row)
    with pytest.warns(predict.KernelWarning, match=r"condition number .* a jitter of .* was added"):
        post = predict.posterior(ktt, ktt[:1], ktt[:1, :1], row)
    assert 0 < float(post.jitter) < 1e-6
    assert post.condition is not None and post.condition > 1e10
    close(post.mean, row[:1], 1e-5)
    with pytest.warns(predict.KernelWarning, match="condition number"):
        g = predict.gradient_flow(ktt, 2 * row)
    train, test = g(math.inf, 0.0, ktt[:1])
    close(train, 2 * row)
    close(test, 2 * row[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict.gradient_flow(ktt, row, ridge=1e-3)
        predict.posterior(ktt, ktt[:1], None, row, 1e-3)


def mistakes(b: dict[str, np.ndarray]) -> list[tuple[Callable[[], Any], str]]:
    ktt, kst, kss, y = b["ktt"], b["kst"], b["kss"], b["y"]
    bad = ktt.copy()
    bad[1, 2] = np.nan
    both = tp.Kernels(ktt, ktt)
    return [
        (lambda: predict.posterior(ktt, kst, kss, y[:-1]), "y: has 5 targets, and ktt is of 6 inputs"),
        (lambda: predict.posterior(ktt, kst, kss, np.full(N, np.nan)), r"y: NaN or infinite at \[0\]"),
        (lambda: predict.posterior(ktt, kst, kss, ["a"] * N), "y: holds text, not numbers"),
        (lambda: predict.posterior(bad, kst, kss, y), r"ktt: NaN or infinite at \[1, 2\]"),
        (lambda: predict.posterior(kst, kst, kss, y), r"ktt: has shape \(3, 6\)"),
        (lambda: predict.posterior(ktt + np.triu(ktt, 1), kst, kss, y), "ktt: is not symmetric"),
        (lambda: predict.posterior(-ktt, kst, kss, y), "ktt: its eigenvalues go from"),
        (lambda: predict.posterior(ktt, kst.T, kss, y), "kst: .* transpose it"),
        (lambda: predict.posterior(ktt, kst[:, :-1], kss, y), r"kst: has shape \(3, 5\), and \(N\*, 6\)"),
        (lambda: predict.posterior(ktt, kst, kss[:2, :2], y), r"kss: has shape \(2, 2\), and \(3, 3\)"),
        (lambda: predict.posterior(both, kst, kss, y), "ktt: holds two kernels; give one of them, .ntk or .nngp"),
        (lambda: predict.posterior((ktt, ktt), kst, kss, y), "ktt: is a tuple of 2"),
        (lambda: predict.posterior(ktt, kst, kss, y, -0.1), "ridge: -0.1 is not"),
        (lambda: predict.posterior(ktt, kst, kss, y, math.nan), "ridge: nan is not"),
        (lambda: predict.posterior(ktt, kst, kss, y, np.ones(N)), r"ridge: has shape \(6,\)"),
        (lambda: predict.leave_one_out(ktt, 1.0), "y: is one number"),
        (lambda: predict.leave_one_out(np.zeros((0, 0)), []), "ktt: is of no inputs"),
        (lambda: predict.log_marginal_likelihood(ktt * 1j, y), "ktt: holds complex numbers"),
        (lambda: predict.gradient_flow(ktt, y)(-1.0), "t: -1 is not a time of at least 0"),
        (lambda: predict.gradient_flow(ktt, y, -1.0), "lr: -1 is not"),
        (lambda: predict.gradient_flow(-ktt, y), "ktt: its eigenvalues go from"),
        (lambda: predict.gradient_flow(ktt, y)(1.0, b["f0"][:-1]), r"f0_train: has shape \(5, 2\), and \(6, 2\)"),
        (lambda: predict.gradient_flow(ktt, y)(1.0, 0.0, None, b["g0"]), "f0_test: there is no kst"),
        (lambda: predict.gradient_descent(ktt, y)(1.5), "steps: 1.5 is no whole number"),
        (lambda: predict.gradient_descent(ktt, y)(-1), "steps: -1 is no whole number"),
        (lambda: predict.gradient_descent(ktt, y)(1 - 2**32), "steps: -4294967295 is no whole number"),
        (lambda: predict.gradient_flow(ktt, y)(1.0, f0_test=None), "f0_test: there is no kst"),
        (lambda: predict.gradient_descent(ktt, y)(2**31), "steps: 2147483648 is more than 2147483647"),
        (lambda: predict.gradient_descent(ktt, y)([1, 2**32 + 1]), "steps: .* is more than"),
        (lambda: predict.gradient_descent(ktt, y)(2**70), "steps: .* is more than"),
        (lambda: predict.gradient_descent(ktt, y, momentum=np.ones(2)), r"momentum: has shape \(2,\)"),
        (lambda: predict.max_learning_rate(ktt, momentum=[0.5]), r"momentum: has shape \(1,\)"),
        (lambda: predict.gradient_flow(ktt, y)(1.0, 0, None, 7), "f0_test: there is no kst"),
        (lambda: predict.flow(lambda f, y: ((f - y) ** 2).sum(), ktt, y)(1.0, f0_test=7.0), "f0_test: there is no kst"),
        (lambda: predict.flow(lambda f, y: f.sum(), ktt, np.arange(N))(1.0, 0.0), "f0_train: is one number"),
        (lambda: predict.gradient_descent(ktt, y, momentum=1.0), "momentum: 1.0 is not in"),
        (lambda: predict.ensemble(ktt, kst, kss, y), "ktt: is one kernel, .* tp.kernels"),
        (lambda: predict.ensemble(*pairs(b), y, -1.0), "t: -1 is not"),
        (lambda: predict.flow(None, ktt, y), "loss: None is no function"),  # pyright: ignore[reportArgumentType]
        (lambda: predict.flow(lambda f, y: f - y, ktt, y)(1.0), "loss: returns float64 of shape"),
        (lambda: predict.flow(lambda f, y: f.sum(), ktt, y)(math.inf), "t: inf is not a finite time"),
        (lambda: predict.flow(lambda f, y: f.sum(), ktt, np.arange(N))(1.0), "f0_train: is left out"),
        (lambda: predict.flow(lambda f, y: (f**2).sum(), ktt, y, max_steps=10)(1e5, b["f0"]), "t: the solver"),
        (lambda: predict.posterior(np.zeros((2, 2, 3, 3)), kst, kss, np.zeros((2, 2))), r"y: has shape \(2, 2\)"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::tensorprog.predict.KernelWarning")
def test_mistakes_are_told(blocks: dict[str, np.ndarray]) -> None:
    for call, words in mistakes(blocks):
        with pytest.raises(tp.ProgramError, match=words):
            call()


# ------------------------------------------------------------------------------------------------------- networks


@pytest.mark.slow
def test_finite_networks_follow() -> None:
    """Width 1024, gradient descent to half the loss: near the curve of its own NTK from its own start."""
    program = tp.nets.net("mlp").program(tp.Input(3), depth=2)
    rng = np.random.default_rng(5)
    x, new, y = rng.normal(size=(6, 3)), rng.normal(size=(2, 3)), rng.normal(size=6)
    params = tp.init(program, jax.random.key(0), width=1024)
    theta = tp.empirical.ntk(program, params, np.concatenate([x, new]))
    lr = 0.2 * float(predict.max_learning_rate(theta[:6, :6]))
    loss = lambda p: 0.5 * jnp.sum((tp.apply(program, p, x) - y) ** 2)
    step = jax.jit(lambda p: jax.tree.map(lambda a, s: a - lr * s, p, jax.grad(loss)(p)))
    trained = params
    for _ in range(20):
        trained = step(trained)
    g = predict.gradient_descent(theta[:6, :6], y, lr)
    train, test = g(20, tp.apply(program, params, x), theta[6:, :6], tp.apply(program, params, new))
    moved = np.linalg.norm(tp.apply(program, trained, x) - tp.apply(program, params, x))
    assert np.linalg.norm(tp.apply(program, trained, x) - train) < 0.05 * moved
    assert np.linalg.norm(tp.apply(program, trained, new) - test) < 0.1 * moved
