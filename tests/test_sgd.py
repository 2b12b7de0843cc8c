"""Training as a program: equal to training with `jax.grad` at finite width, and its limit beside wide networks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import tensorprog as tp
from tensorprog.ir import Bias

SLOW = pytest.mark.slow
ETA, WIDTH = 0.7, 12


def product(a: Any, b: Any) -> Any:
    return a * b


def readout(n: Any, h: Any) -> Any:
    return tp.moment(product, tp.bias("v", n), h)


def two_layers(x: Any) -> Any:
    n = tp.Width("n")
    s = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x + tp.bias("b", n, var=0.0, scale=1.0, lr=0.5))
    return readout(n, s)


def three_layers(x: Any) -> Any:
    n = tp.Width("n")
    s = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)
    return readout(n, tp.nonlin(jnp.tanh, tp.weight("W", n, n) @ s))


def residual(x: Any) -> Any:
    n = tp.Width("n")
    h = tp.weight("U", n, x.features) @ x
    for k in (1, 2):
        h = h + 0.5 * (tp.weight(f"W{k}", n, n, var=1.2) @ tp.nonlin(jnp.tanh, h))
    return readout(n, h)


def layer_norm(x: Any) -> Any:
    n = tp.Width("n")
    h = tp.weight("W", n, n) @ tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)
    mean = tp.moment(lambda z: z, h)
    size = tp.moment(lambda z, m: (z - m) ** 2, h, scalars=(mean,))
    s = tp.nonlin(lambda z, m, v: jnp.tanh((z - m) / jnp.sqrt(v + 0.1)), h, scalars=(mean, size))
    return readout(n, s)


def tied_rnn(x: Any) -> Any:
    n = tp.Width("n")
    W, U, s = tp.weight("W", n, n), tp.weight("U", n, x.features), None
    for t in range(x.sites[0]):
        s = tp.nonlin(jnp.tanh, U @ x[t] if s is None else W @ s + U @ x[t])
    return readout(n, s)


def transposed(x: Any) -> Any:
    n = tp.Width("n")
    W = tp.weight("W", n, n)
    s = tp.nonlin(jnp.tanh, W @ tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x))
    return readout(n, W.T @ s)


def two_widths(x: Any) -> Any:
    n, m = tp.Width("n", ratio=2.0), tp.Width("m")
    s = tp.nonlin(jnp.tanh, tp.weight("U", m, x.features) @ x)
    return readout(n, tp.nonlin(jnp.tanh, tp.weight("W", n, m, var=1.5) @ s))


def cnn(x: Any) -> Any:
    n = tp.Width("n")
    h = tp.nonlin(jnp.tanh, tp.conv(tp.weight("W1", n, x.features, window=(2, 2)), x) + tp.bias("b", n, lr=0.5))
    h = tp.nonlin(jnp.tanh, tp.conv(tp.weight("W2", n, n, window=(2, 1), var=1.3), tp.pool(h, 2), padding="CIRCULAR"))
    return tp.scalar(jnp.sum, readout_of_sites(n, h))


def untied(x: Any) -> Any:
    n = tp.Width("n")
    h = tp.conv_local(tp.weight("L", n, x.features, window=(2,), sites=(2,)), x) + tp.bias("b", n, sites=(2,))
    h = tp.conv_local(tp.weight("K", n, n, window=(3,), sites=(2,)), tp.nonlin(jnp.tanh, h), padding="SAME")
    return tp.scalar(jnp.mean, readout_of_sites(n, tp.nonlin(jnp.tanh, h)))


def readout_of_sites(n: Any, h: Any) -> Any:
    return tp.moment(product, tp.bias("v", n, sites=h.sites), h)


NETS = {
    "two_layers": (two_layers, (3,)),
    "three_layers": (three_layers, (3,)),
    "residual": (residual, (3,)),
    "layer_norm": (layer_norm, (3,)),
    "tied_rnn": (tied_rnn, (3, 2)),
    "transposed": (transposed, (3,)),
    "two_widths": (two_widths, (3,)),
    "cnn": (cnn, (3, 2, 2)),
    "untied": (untied, (3, 2)),
}
Y = np.array([1.0, -1.0])


def loss(f: Any) -> Any:
    return 0.5 * ((f - Y) ** 2).sum()


def problem(name: str) -> tuple[tp.Program, Any, Any]:
    fn, shape = NETS[name]
    rng = np.random.default_rng(0)
    return tp.trace(fn, tp.Input(*shape)), rng.normal(size=(1, 2, *shape)), rng.normal(size=(1, 1, *shape))


def trained(program: tp.Program, params: Any, x: Any, test: Any, steps: int) -> tuple[Any, Any]:
    """The outputs of plain gradient descent: θ −= lr·lr_p·n ∂loss/∂θ, n the width of the parameter's rows."""
    outputs, tests = [tp.apply(program, params, x)], [tp.apply(program, params, test)]
    rows = {p.name: params[p.name].shape[-1 if isinstance(p, Bias) else -2] for p in program.structure.parameters}
    rates = {name: ETA * size * float(program.numbers[f"{name}.lr"]) for name, size in rows.items()}
    for _ in range(steps):
        grads = jax.grad(lambda q: loss(tp.apply(program, q, x)))(params)
        params = {k: params[k] - rates[k] * grads[k] for k in params}
        outputs.append(tp.apply(program, params, x))
        tests.append(tp.apply(program, params, test))
    return jnp.stack(outputs), jnp.stack(tests)


@pytest.mark.parametrize("name", NETS)
def test_finite_training_is_jax_grad_s(name: str) -> None:
    program, x, test = problem(name)
    steps = tp.sgd_step(program, loss, ETA, steps=2, batch=2, test=1)
    params = tp.init(program, jax.random.key(0), width=WIDTH)
    outputs, tests, losses = jax.jit(lambda q: tp.apply(steps, q, (x, test)))(params)
    expected, expected_tests = jax.jit(lambda q: trained(program, q, x[0], test[0], 2))(params)
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tests[0], expected_tests, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(losses[0], [loss(f) for f in expected], rtol=1e-9)


def test_training_of_a_graph_network() -> None:
    """Data take part in a batch: a matrix over sites and a mask for each example."""

    def net(x: Any, adjacency: Any, mask: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ tp.mix(adjacency, x))
        h = tp.nonlin(jnp.tanh, tp.weight("W", n, n) @ tp.mix(adjacency, h)) * mask
        return readout(n, tp.sum(h))

    rng = np.random.default_rng(0)
    program = tp.trace(net, tp.Input(3, 2), tp.Data(3, 3), tp.Data(3))
    x, adjacency = rng.normal(size=(2, 3, 2)), rng.integers(0, 2, (2, 3, 3))
    mask = np.array([[True, True, False], [True, True, True]])
    steps = tp.sgd_step(program, loss, ETA, steps=2, batch=2)
    params = tp.init(program, jax.random.key(0), width=WIDTH)
    run = jax.jit(lambda q: tp.apply(steps, q, (x[None], adjacency[None], mask[None])))
    expected, _ = jax.jit(lambda q: trained(program, q, (x, adjacency, mask), (x, adjacency, mask), 2))(params)
    np.testing.assert_allclose(run(params)[0][0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_program_whose_sites_are_the_batch() -> None:
    def net(x: Any, other: Any) -> Any:
        n = tp.Width("n")
        U, v = tp.weight("U", n, x.features), tp.bias("v", n)
        f = lambda z: tp.moment(product, v, tp.nonlin(jnp.tanh, U @ z))
        return f(x), f(other)

    program = tp.trace(net, tp.Input(2, 3), tp.Input(4, 3))
    rng = np.random.default_rng(0)
    data = rng.normal(size=(1, 2, 3)), rng.normal(size=(1, 4, 3))
    steps = tp.sgd_step(program, [loss, lambda f: (f**4).sum()], [0.5, 0.1], steps=2)
    assert {"step0.lr", "step1.lr"} <= set(steps.numbers)
    params = tp.init(program, jax.random.key(0), width=8)
    outputs, others, losses = tp.apply(steps, params, data)
    assert outputs.shape == (1, 3, 2) and others.shape == (1, 3, 4) and losses.shape == (1, 3)
    grad = jax.grad(lambda q: loss(tp.apply(program, q, data)[0][0]))(params)
    moved = {k: params[k] - 0.5 * 8 * grad[k] for k in params}
    np.testing.assert_allclose(others[0, 1], tp.apply(program, moved, data)[1][0], rtol=1e-9)


@pytest.mark.parametrize("name", ["two_layers", pytest.param("tied_rnn", marks=SLOW)])
def test_the_limit_is_that_of_wide_training(name: str) -> None:
    check_against_wide_training(name)


@SLOW
@pytest.mark.parametrize(
    "name",
    ["transposed"]
    + [
        pytest.param(n, marks=pytest.mark.full)
        for n in ("residual", "three_layers", "layer_norm", "two_widths", "cnn", "untied")
    ],
)
def test_the_limits_of_other_nets(name: str) -> None:
    check_against_wide_training(name)


def check_against_wide_training(name: str) -> None:
    """Outputs after each step within 4 standard errors of the mean over wide networks, plus their bias O(1/n)."""
    program, x, test = problem(name)
    steps = tp.sgd_step(program, loss, ETA, steps=2, batch=2, test=1)
    found = tp.limit(steps, (x, test), samples=2**15)
    width, seeds = 512, 32
    run = lambda key: trained(program, tp.init(program, key, width), x[0], test[0], 2)
    outputs, tests = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), seeds))
    for finite, limit in ((outputs, found.value[0][0]), (tests, found.value[1][0])):
        error = np.array(finite).std(0, ddof=1) / np.sqrt(seeds)
        assert (np.abs(np.array(finite).mean(0) - limit) <= 4 * error + 0.01).all()
    assert abs(float(found.value[0][0][1][0])) > 0.02  # it learns


@SLOW
def test_the_mup_curve_with_and_without_z_dot() -> None:
    stored = reference.theory("muP_training_tanh_2hidden")
    program = tp.trace(three_layers, tp.Input(1))
    y = np.array(stored["y"])
    losses = [lambda f, i=i: 0.5 * (f[i] - y[i]) ** 2 for i in stored["order"]]
    steps = tp.sgd_step(program, losses, stored["eta"], steps=4, batch=2)
    x = np.array(stored["xi"])[None, :, None]
    found = tp.limit(steps, x, samples=2**17)
    np.testing.assert_allclose(found.value[0][0], stored["limit"], atol=2e-3)
    naive = tp.limit(steps, x, samples=2**17, assume_gia=True)
    np.testing.assert_allclose(naive.value[0][0], stored["no_zdot"], atol=2e-3)


def test_linear_networks_train_like_finite_ones() -> None:
    """The limit of a linear one-hidden-layer µP net is an ordinary linear network of width d + 1."""

    def net(x: Any) -> Any:
        n = tp.Width("n")
        return readout(n, tp.weight("U", n, x.features, var=2.0) @ x)

    x = np.array([[1.0, 0.5], [-0.3, 0.8]])
    steps = tp.sgd_step(tp.trace(net, tp.Input(2)), loss, 0.2, steps=3, batch=2)
    found = tp.limit(steps, x[None], samples=2**14)
    U, V, expected = np.array([[1.0, 0, 0], [0, 1.0, 0]]).T, np.array([0.0, 0, 1.0]), []
    for _ in range(4):
        f = x @ U.T @ V
        expected.append(f)
        chi = f - Y
        U, V = U - 0.2 * np.einsum("b,i,bj->ij", chi, V, x), V - 0.2 * (chi @ (x @ U.T))
    np.testing.assert_allclose(found.value[0][0], expected, atol=5 * float(np.max(found.stderr[0])) + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"loss": lambda f, g: f}, "no function of the output"),
        ({"loss": lambda f: f}, "not one number"),
        ({"loss": 3.0}, "is no function"),
        ({"loss": [loss]}, "1 losses for 2 steps"),
        ({"lr": [0.1]}, "1 learning rates for 2 steps"),
        ({"lr": -1.0}, "negative"),
        ({"steps": 0}, "no number of steps"),
        ({"batch": 0}, "no number of batch"),
        ({"batch": None, "test": 2}, "what its inputs are"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], why: str) -> None:
    given = {"loss": loss, "lr": 0.1, "steps": 2, "batch": 2, "test": 0} | arguments
    with pytest.raises(tp.ProgramError, match=why):
        tp.sgd_step(tp.trace(two_layers, tp.Input(3)), given.pop("loss"), given.pop("lr"), **given)


def test_a_readout_is_refused() -> None:
    with pytest.raises(tp.ProgramError, match="the output is no Moment"):
        tp.sgd_step(tp.nets.ZOO["mlp"], loss, 0.1, batch=2)
