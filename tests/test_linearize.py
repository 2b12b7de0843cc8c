"""Networks to first and higher order in their parameters, and the training of the linearised one."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorprog as tp


class Params(NamedTuple):
    weights: list[jax.Array]
    bias: dict[str, jax.Array]
    steps: int  # no parameter


def f(params: Params, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ params.weights[0] + params.bias["b"])
    return (h**params.steps) @ params.weights[1]


def draw(seed: int) -> Params:
    keys = jax.random.split(jax.random.key(seed), 3)
    normal = jax.random.normal
    return Params([normal(keys[0], (3, 5)), normal(keys[1], (5, 2))], {"b": normal(keys[2], (5,))}, 2)


X = jax.random.normal(jax.random.key(9), (4, 3))


def moved(start: Params, direction: Params, by: Any) -> Params:
    shift = lambda a, d: a + by * d if isinstance(a, jax.Array) else a
    return jax.tree.map(shift, start, direction)


def test_linear_is_the_first_derivative() -> None:
    start, direction = draw(0), draw(1)
    lin = tp.linearize(f, start)
    np.testing.assert_allclose(lin(start, X), f(start, X), rtol=1e-14)
    step = 1e-5
    slope = (f(moved(start, direction, step), X) - f(moved(start, direction, -step), X)) / (2 * step)
    np.testing.assert_allclose(lin(moved(start, direction, 3.0), X), f(start, X) + 3 * slope, rtol=1e-7)
    np.testing.assert_allclose(jax.jit(lin)(direction, X), lin(direction, X), rtol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_the_remainder_of_an_expansion_has_its_order(degree: int) -> None:
    start, direction = draw(0), draw(1)
    expanded = tp.taylor_expand(f, start, degree)
    sizes = np.array([0.02, 0.04])
    gaps = [np.abs(expanded(moved(start, direction, s), X) - f(moved(start, direction, s), X)).max() for s in sizes]
    assert np.log2(gaps[1] / gaps[0]) == pytest.approx(degree + 1, abs=0.3)


def test_an_expansion_of_a_polynomial_is_itself() -> None:
    cubic = lambda params, x: {"y": x * params["a"] ** 3 + params["b"], "count": jnp.arange(2)}
    start = {"a": jnp.asarray(1.5), "b": jnp.asarray(0.5)}
    new = {"a": jnp.asarray(-0.7), "b": jnp.asarray(2.0)}
    found = tp.taylor_expand(cubic, start, 3)(new, 2.0)
    np.testing.assert_allclose(found["y"], cubic(new, 2.0)["y"], rtol=1e-13)
    assert found["count"].tolist() == [0, 1]
    assert float(tp.taylor_expand(cubic, start, 0)(new, 2.0)["y"]) == float(cubic(start, 2.0)["y"])


def test_the_linearised_net_trained_by_optax_follows_its_ntk() -> None:
    """Exactly: its kernel never changes. Outputs depend on each other, so the kernel is the full one."""
    program = tp.nets.net("mlp").program(tp.Input(3), depth=1)
    params = tp.init(program, jax.random.key(0), width=16)
    net = lambda p, x: jnp.stack([tp.apply(program, p, x), tp.apply(program, p, 2 * x) ** 2], -1)
    x, new = X, X[:2] + 0.3
    y = jax.random.normal(jax.random.key(3), (4, 2))
    theta = tp.empirical.ntk(net, params, jnp.concatenate([x, new]), trace_axes=())
    ktt, kst = theta[:4, :4], theta[4:, :4]
    lin = tp.linearize(net, params)
    slopes = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum((lin(p, x) - y) ** 2)))
    for momentum in (None, 0.8):
        lr = 0.3 * float(tp.predict.max_learning_rate(ktt, momentum=momentum or 0.0))
        optimiser = optax.sgd(lr, momentum)
        state, trained = optimiser.init(params), params
        for _ in range(25):
            updates, state = optimiser.update(slopes(trained), state)
            trained: Any = optax.apply_updates(trained, updates)
        g = tp.predict.gradient_descent(ktt, y, lr, momentum=momentum or 0.0)
        train, test = g(25, net(params, x), kst, net(params, new))
        np.testing.assert_allclose(lin(trained, x), train, atol=1e-9)
        np.testing.assert_allclose(lin(trained, new), test, atol=1e-9)
        assert np.abs(lin(trained, x) - net(params, x)).max() > 0.1


def test_programs_and_models_of_other_libraries() -> None:
    program = tp.nets.ZOO["rnn"]
    params = tp.init(program, jax.random.key(0), width=8)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    np.testing.assert_allclose(tp.linearize(program, params)(params, x), tp.apply(program, params, x), rtol=1e-12)
    model = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(2))
    lin = tp.linearize(lambda m, x: jax.vmap(m)(x), model)
    slopes = eqx.filter_grad(lambda m: lin(m, X).sum())(model)
    wanted = eqx.filter_grad(lambda m: jax.vmap(m)(X).sum())(model)
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_mistakes_are_told() -> None:
    start = draw(0)
    with pytest.raises(tp.ProgramError, match="f: 3 is no function"):
        tp.linearize(3, start)  # pyright: ignore[reportArgumentType]
    for degree in (-1, 1.5, True):
        with pytest.raises(tp.ProgramError, match=r"degree: .* no whole number"):
            tp.taylor_expand(f, start, degree)  # pyright: ignore[reportArgumentType]
    with pytest.raises(tp.ProgramError, match="params: have the structure"):
        tp.linearize(f, start)({"w": X}, X)
    with pytest.raises(tp.ProgramError, match=r"params: have a leaf of shape \(3, 6\)"):
        tp.linearize(f, start)(start._replace(weights=[jnp.ones((3, 6)), start.weights[1]]), X)
