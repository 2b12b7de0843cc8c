"""Programs as values: equal structures compile once, numbers are leaves."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import functools
import pickle
from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp


def net(x, *, var=2.0, gain=0.5, fn=None):
    n = tp.Width("n", ratio=1.0)
    h = tp.weight("W", n, x.features, var=var) @ x + tp.bias("b", n, mean=0.25)
    s = tp.nonlin(fn or (lambda z: jnp.tanh(gain * z)), h)
    return tp.weight("v", 1, n, scale=2.0) @ (gain * s)


def test_equal_programs_are_equal():
    one, two = (tp.trace(net, tp.Input(3)) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one.structure == two.structure
    assert tp.trace(net, tp.Input(3), var=1.0) != one
    assert tp.trace(net, tp.Input(3), var=1.0).structure == one.structure
    assert tp.trace(net, tp.Input(4)).structure != one.structure
    assert tp.trace(net, tp.Input(3), gain=0.25).structure != one.structure  # the lambda holds 0.25
    assert tp.trace(net, tp.Input(3), fn=functools.partial(jax.nn.leaky_relu, negative_slope=0.1)).structure != (
        tp.trace(net, tp.Input(3), fn=functools.partial(jax.nn.leaky_relu, negative_slope=0.2)).structure
    )


def test_lines_are_not_compared():
    def programs(fn):
        return tp.trace(lambda x: tp.nonlin(fn, tp.weight("U", tp.Width("n"), 3) @ x), tp.Input(3))

    one = programs(lambda z: z * 2.0)
    two = programs(lambda z: z * 2.0)
    assert one == two


def test_a_jit_compiles_once_for_all_numbers_and_traces():
    compiled = []

    @jax.jit
    def output(program, x):
        compiled.append(program)
        params = tp.init(program, jax.random.key(0), {"n": 4})
        return tp.apply(program, params, x)

    x = jnp.ones((2, 3))
    first = output(tp.trace(net, tp.Input(3)), x)
    second = output(tp.trace(net, tp.Input(3), var=np.float32(8.0)), x)
    third = output(tp.trace(net, tp.Input(3)).replace({"W.var": jnp.float64(8.0)}), x)
    assert len(compiled) == 1
    assert not np.allclose(first, second) and np.array_equal(second, third)


def test_numbers_by_name():
    program = tp.trace(net, tp.Input(3), var=1.3)
    assert {name: float(value) for name, value in program.numbers.items()} == {
        "n.ratio": 1.0, "W.var": 1.3, "W.lr": 1.0, "b.var": 1.0, "b.lr": 1.0, "b.mean": 0.25,
        "v.var": 1.0, "v.lr": 1.0, "v.scale": 2.0, "coef1": 0.5,
    }  # fmt: skip
    assert all(jnp.issubdtype(np.asarray(value).dtype, np.inexact) for value in program.numbers.values())
    assert tp.trace(net, tp.Input(3), var=2).numbers["W.var"].dtype == np.float64
    assert tp.trace(net, tp.Input(3), var=jnp.int32(2)).numbers["W.var"].dtype == np.float64
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(program)]
    assert paths[:2] == ["['n.ratio']", "['W.var']"]


def test_replace():
    program = tp.trace(net, tp.Input(3))
    changed = program.replace({"W.var": 0.5, "coef1": 3})
    assert float(changed.numbers["W.var"]) == 0.5 and float(changed.numbers["coef1"]) == 3.0
    assert float(program.numbers["W.var"]) == 2.0
    assert changed.structure is program.structure


def test_replace_of_what_was_left_at_its_default():
    def plain(x):
        return tp.weight("v", 1, x.features) @ x + tp.bias("c", 1)

    def given(x):
        return tp.weight("v", 1, x.features, var=4.0, scale=0.5) @ x + tp.bias("c", 1, mean=3.0)

    one = tp.trace(plain, tp.Input(3)).replace({"v.scale": 0.5, "c.mean": 3.0, "v.var": 4.0})
    two = tp.trace(given, tp.Input(3))
    x = jnp.ones((1, 3))
    outputs = [tp.apply(p, tp.init(p, jax.random.key(0), 1), x) for p in (one, two)]
    np.testing.assert_allclose(*outputs)
    assert "scale 0.5" in str(one) and "N(3, 1)" in str(one)
    assert one.structure == tp.trace(plain, tp.Input(3)).replace({"v.scale": 1.0, "c.mean": 0.0}).structure


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"W.vra": 1.0}, "no number 'W.vra'; its numbers are n.ratio, W.var"),
        ({"W.mean": 1.0}, "no number 'W.mean'"),
        ({3: 1.0}, "no number 3"),
        ({"W.var": -1.0}, "-1 is negative"),
        ({"W.var": jnp.float64(-1.0)}, "-1 is negative"),
        ({"b.mean": np.nan}, "not finite"),
        ({"v.scale": 0.0}, "not positive"),
        ({"n.ratio": -2.0}, "not positive"),
        ({"W.var": "big"}, "not a number"),
        ({"W.var": 1j}, "not real"),
        ({"W.var": [1.0, 2.0]}, r"shape \(\), the new value has shape \(2,\)"),
        ([("W.var", 1.0)], "no mapping"),
    ],
)
def test_refused_replacements(numbers, text):
    with pytest.raises(tp.ProgramError, match=text):
        tp.trace(net, tp.Input(3)).replace(numbers)


def test_values_are_not_checked_on_unflattening():
    program = tp.trace(net, tp.Input(3))
    negative = jax.tree.map(lambda leaf: -leaf, program)
    assert isinstance(negative, tp.Program) and float(negative.numbers["W.var"]) == -2.0
    assert jax.tree.structure(program) == jax.tree.structure(negative)
    jax.tree.map(lambda leaf: object(), program)


def test_gradients_in_numbers():
    program = tp.trace(net, tp.Input(3))
    params = tp.init(program, jax.random.key(0), 6)
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    loss = lambda p: (tp.apply(p, params, x) ** 2).sum()
    gradient = jax.grad(loss)(program)
    assert isinstance(gradient, tp.Program)
    step = 1e-6
    for name in ("W.var", "b.mean", "v.scale", "coef1"):
        ends = [loss(program.replace({name: program.numbers[name] + d})) for d in (step, -step)]
        np.testing.assert_allclose(gradient.numbers[name], (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    assert float(gradient.numbers["W.lr"]) == 0.0


def test_gradients_through_numbers_given_to_trace():
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)

    def loss(var, gain):
        program = tp.trace(net, tp.Input(3), var=var, gain=gain)
        return (tp.apply(program, tp.init(program, jax.random.key(0), {"n": 6}), x) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))(2.0, 0.5)
    step = 1e-6
    np.testing.assert_allclose(gradient[0], (loss(2 + step, 0.5) - loss(2 - step, 0.5)) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(gradient[1], (loss(2.0, 0.5 + step) - loss(2.0, 0.5 - step)) / (2 * step), rtol=1e-6)


def test_programs_in_vmap():
    program = tp.trace(net, tp.Input(3))
    params = tp.init(program, jax.random.key(0), 6)
    x = jnp.ones((2, 3))
    variances = jnp.array([0.5, 1.0, 2.0])
    many = jax.vmap(lambda var: tp.apply(program.replace({"W.var": var}), params, x))(variances)
    np.testing.assert_allclose(many[1], tp.apply(program.replace({"W.var": 1.0}), params, x))


def test_programs_do_not_change():
    program = tp.trace(net, tp.Input(3))
    with pytest.raises(AttributeError):
        program.leaves = ()


@pytest.mark.parametrize("name", ["mlp", "rnn", "transformer"])
def test_copies_and_pickles_are_equal(name):
    """Functions that a module has under their name come back as themselves, so nothing compiles anew."""
    program = tp.nets.ZOO[name]
    for copy in (pickle.loads(pickle.dumps(program)), deepcopy(program)):
        assert copy == program and hash(copy.structure) == hash(program.structure)


@pytest.mark.parametrize("name", ["a\nb", "a\t", "", " a", 3])
def test_names_are_of_one_line(name):
    makers = (
        lambda x: tp.weight(name, tp.Width("n"), x.features) @ x,
        lambda x: tp.weight("W", tp.Width(name), x.features) @ x,
        lambda x: tp.named(name, tp.weight("W", tp.Width("n"), x.features) @ x),
        lambda x: tp.bias(name, tp.Width("n")),
    )
    for maker in makers:
        with pytest.raises(tp.ProgramError, match=r"test_program.py:\d+: (.|\n)*is no name"):
            tp.trace(maker, tp.Input(3))


@pytest.mark.parametrize("ratio", [1e30, 1e-30, 0.0, -1.0, np.inf])
def test_ratios_that_are_none(ratio):
    with pytest.raises(tp.ProgramError, match=r"test_program.py:\d+: (.|\n)*ratio(.|\n)*give a ratio from 1e-6"):
        tp.trace(lambda x: tp.weight("W", tp.Width("n", ratio=ratio), x.features) @ x, tp.Input(3))


def test_a_traced_variance_that_is_negative_gives_no_number():
    def net(x, var):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ (tp.weight("W", n, x.features, var=var) @ x)

    x = np.eye(2, 3)
    fixed = tp.trace(net, tp.Input(3), var=1.0)
    made = jax.jit(lambda var: tp.nngp(tp.trace(net, tp.Input(3), var=var), x))
    replaced = jax.jit(lambda var: tp.apply(p := fixed.replace({"W.var": var}), tp.init(p, jax.random.key(0), 4), x))
    for view in (made, replaced):
        assert np.isfinite(view(2.0)).all() and np.isnan(np.diagonal(np.atleast_2d(view(-1.0)))).all()
