"""The finite network: parameters, shapes, dtypes, transformations, against plain NumPy."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp

KEY = jax.random.key(3)


def mlp(x, rows=1):
    n, m = tp.Width("n"), tp.Width("m", ratio=0.5)
    h = tp.weight("W", n, x.features, var=2.0) @ x + tp.bias("b", n, var=0.25, mean=0.5)
    s = tp.nonlin(jnp.tanh, tp.weight("V", m, n, var=3.0, scale=0.5) @ tp.nonlin(jnp.tanh, h))
    return tp.weight("v", rows, m) @ s


def by_hand(params, x):
    W, b, V, v = (np.asarray(params[name]) for name in ("W", "b", "V", "v"))
    h = x @ W.T * np.sqrt(2.0 / W.shape[1]) + 0.5 * b + 0.5
    s = np.tanh(np.tanh(h) @ V.T * 0.5 / np.sqrt(V.shape[1]))
    return s @ v.T / np.sqrt(v.shape[1])


def test_parameters():
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, KEY, 400)
    assert {name: value.shape for name, value in params.items()} == {
        "W": (400, 3), "V": (200, 400), "v": (1, 200), "b": (400,),
    }  # fmt: skip
    assert np.std(params["W"]) == pytest.approx(1.0, abs=0.06)
    assert np.std(params["V"]) == pytest.approx(np.sqrt(3.0) / 0.5, rel=0.02)  # var/scale²
    assert {value.dtype for value in params.values()} == {np.dtype("float64")}


def test_parameters_depend_on_their_names_only():
    def more(x):
        tp.weight("Z", 2, x.features)
        return mlp(x)

    one, two = (tp.init(tp.trace(fn, tp.Input(3)), KEY, 5) for fn in (mlp, more))
    np.testing.assert_array_equal(one["W"], two["W"])
    assert not np.array_equal(two["W"][:2, :], two["Z"])


def test_a_variance_of_zero_starts_at_zero():
    def fn(x):
        n = tp.Width("n")
        return (
            tp.weight("W", n, 3, var=0.0) @ x + tp.bias("b", n, var=0.0, scale=1.0) + tp.bias("c", n, var=0.0, mean=2.0)
        )

    program = tp.trace(fn, tp.Input(3))
    params = tp.init(program, KEY, 4)
    assert all(not np.any(value) for value in params.values())
    np.testing.assert_array_equal(tp.apply(program, params, np.ones((1, 3))), np.full((1, 4), 2.0))
    moved = {**params, "b": params["b"] + 0.1}  # scale 1: it learns
    np.testing.assert_allclose(tp.apply(program, moved, np.ones((1, 3))), np.full((1, 4), 2.1))
    gradient = jax.grad(lambda p: tp.apply(p, tp.init(p, KEY, {"n": 4}), np.ones((1, 3))).sum())(program)
    assert all(np.isfinite(value) for value in gradient.numbers.values())


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
@pytest.mark.parametrize("rows", [1, 2])
def test_readouts_are_what_numpy_says(shape, rows):
    program = tp.trace(mlp, tp.Input(*shape), rows=rows)
    params = tp.init(program, KEY, 6)
    x = np.random.default_rng(0).normal(size=(5, *shape))
    y = tp.apply(program, params, x)
    expected = by_hand(params, x)
    assert y.shape == ((5, *shape[:-1]) if rows == 1 else (5, *shape[:-1], 2))
    np.testing.assert_allclose(y, expected[..., 0] if rows == 1 else expected, rtol=1e-12)


def test_other_outputs_and_their_shapes():
    def fn(x, a):
        n = tp.Width("n")
        h = tp.weight("W", n, x.features) @ x
        g = tp.weight("A", n, a.features) @ a
        v = tp.weight("v", 1, n)
        return h, tp.moment(jnp.square, h), v @ tp.sum(h) + v @ g, tp.scalar(jnp.sum, tp.moment(jnp.square, h))

    program = tp.trace(fn, tp.Input(4, 3), tp.Input(2))
    params = tp.init(program, KEY, 7)
    x, a = np.ones((5, 4, 3)), np.ones((5, 2))
    h, c, y, total = tp.apply(program, params, (x, a))
    assert (h.shape, c.shape, y.shape, total.shape) == ((5, 4, 7), (5, 4), (5,), (5,))
    np.testing.assert_allclose(c, (np.asarray(h) ** 2).mean(-1), rtol=1e-12)
    np.testing.assert_allclose(total, c.sum(-1), rtol=1e-12)
    one = tp.trace(lambda x: (tp.weight("v", 1, 3) @ x,), tp.Input(3))
    assert isinstance(tp.apply(one, tp.init(one, KEY, 1), np.ones((1, 3))), tuple)


def test_arithmetic_of_readouts():
    def fn(x):
        v, w, b = tp.weight("v", 1, x.features), tp.weight("w", 1, x.features), tp.bias("b", 1)
        y = 2 * (v @ x) - w @ x + b
        return y, tp.mean(y), tp.sum(y, axis=1), y[0], tp.stack([y[0], y[1]])

    program = tp.trace(fn, tp.Input(2, 4, 3))
    params = tp.init(program, KEY, 1)
    x = np.random.default_rng(0).normal(size=(5, 2, 4, 3))
    y = x @ np.asarray(2 * params["v"] - params["w"])[0] / np.sqrt(3) + np.asarray(params["b"])[0]
    for found, expected in zip(tp.apply(program, params, x), (y, y.mean((1, 2)), y.sum(2), y[:, 0], y), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_biases_with_sites():
    program = tp.trace(lambda x: tp.weight("v", 1, 3) @ x + tp.bias("b", 1, sites=(4,)), tp.Input(4, 3))
    params = tp.init(program, KEY, 1)
    assert params["b"].shape == (4, 1)
    y = tp.apply(program, params, np.zeros((2, 4, 3)))
    np.testing.assert_array_equal(y, np.tile(np.asarray(params["b"])[:, 0], (2, 1)))


def test_weights_with_a_window_or_sites_have_shapes():
    def fn(x):
        n = tp.Width("n")
        tp.weight("C", n, x.features, window=(3, 2))
        tp.weight("L", n, n, window=(3,), sites=(4, 5))
        return tp.weight("v", 1, x.features) @ x

    params = tp.init(tp.trace(fn, tp.Input(3)), KEY, 6)
    assert params["C"].shape == (3, 2, 6, 3) and params["L"].shape == (4, 5, 3, 6, 6)


def test_programs_without_inputs():
    def fn():
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, tp.bias("b", n, sites=(3,)))

    program = tp.trace(fn)
    params = tp.init(program, KEY, 5)
    y = tp.apply(program, params)
    np.testing.assert_allclose(y, np.tanh(params["b"]) @ params["v"][0] / np.sqrt(5), rtol=1e-12)


def test_inside_vectors_by_name():
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, KEY, 6)
    x = np.ones((2, 3))
    np.testing.assert_allclose(
        tp.apply(program, params, x, at="s1"), np.tanh(tp.apply(program, params, x, at="g1")), rtol=1e-12
    )
    with pytest.raises(tp.ProgramError, match="at: the program has no 's9'; its names are g1, s1, g2, s2"):
        tp.apply(program, params, x, at="s9")


def test_the_dtype_follows_the_inputs():
    program = tp.trace(
        lambda x: tp.nonlin(lambda z: z * np.float64(2.0), tp.weight("U", tp.Width("n"), 3) @ x), tp.Input(3)
    )
    params = tp.init(program, KEY, 4)
    for dtype in ("float32", "float64", "float16"):
        assert tp.apply(program, params, np.ones((2, 3), dtype)).dtype == dtype
    assert tp.apply(program, params, np.ones((2, 3), int)).dtype == "float64"
    compared = tp.trace(lambda x: tp.nonlin(lambda z: z > 0, tp.weight("U", tp.Width("n"), 3) @ x), tp.Input(3))
    assert tp.apply(compared, params, np.ones((2, 3), "float32")).dtype == "float32"
    np.testing.assert_allclose(
        tp.apply(program, params, np.ones((2, 3), "float32")), tp.apply(program, params, np.ones((2, 3))), rtol=1e-5
    )


def test_jit_vmap_grad():
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, KEY, 6)
    x = np.random.default_rng(0).normal(size=(4, 3))
    y = tp.apply(program, params, x)
    np.testing.assert_allclose(jax.jit(tp.apply)(program, params, x), y, rtol=1e-12)
    many = jax.vmap(lambda key: tp.apply(program, tp.init(program, key, 6), x))(jax.random.split(KEY, 3))
    assert many.shape == (3, 4) and len(np.unique(np.asarray(many))) == 12
    gradient = jax.grad(lambda p: tp.apply(program, p, x).sum())(params)
    step = 1e-6
    bump = lambda d: {**params, "b": params["b"].at[2].add(d)}
    slope = (tp.apply(program, bump(step), x).sum() - tp.apply(program, bump(-step), x).sum()) / (2 * step)
    np.testing.assert_allclose(gradient["b"][2], slope, rtol=1e-7)


def test_both_kinds_of_keys():
    program = tp.trace(mlp, tp.Input(3))
    new, old = (tp.init(program, key, 4)["W"] for key in (jax.random.key(0), jax.random.PRNGKey(0)))
    np.testing.assert_array_equal(new, old)


def test_widths():
    program = tp.trace(mlp, tp.Input(3))
    assert tp.init(program, KEY, {"n": 4, "m": 9})["V"].shape == (9, 4)
    assert tp.init(program, KEY, np.int64(8))["V"].shape == (4, 8)
    for width, text in (
        (0, "the size of n is 0"),
        (-4, "the size of n is -4"),
        (True, "True is no size"),
        (2.0, "2.0 is no size"),
        ("8", "'8' is no size"),
        ({"n": 4}, "no size for m"),
        ({"n": 4, "m": 0}, "the size of m is 0"),
        ({"n": 4, "m": True}, "the size of m is True"),
        ({"n": 4.0, "m": 2}, "the size of n is 4.0"),
    ):
        with pytest.raises(tp.ProgramError, match=f"width: {text}"):
            tp.init(program, KEY, width)
    with pytest.raises(tp.ProgramError, match="the size of m is 0"):
        tp.init(program.replace({"m.ratio": 0.01}), KEY, 8)


def test_a_traced_ratio_needs_sizes():
    program = tp.trace(mlp, tp.Input(3))
    with pytest.raises(tp.ProgramError, match=r"give \{name: int\}"):
        jax.jit(lambda p: tp.init(p, KEY, 8))(program)


@pytest.mark.parametrize("key", [0, None, "key", np.ones(3)])
def test_what_is_no_key(key):
    with pytest.raises(tp.ProgramError, match="is no random key"):
        tp.init(tp.trace(mlp, tp.Input(3)), key, 4)


def test_parameters_are_checked():
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, KEY, 4)
    x = np.ones((1, 3))
    for wrong, text in (
        ({}, "no W, V, v, b; take them from"),
        ({k: v for k, v in params.items() if k != "V"}, "no V;"),
        ({**params, "W": np.ones((4, 2))}, r"W has shape \(4, 2\), the program's is n = 4 × 3"),
        ({**params, "b": np.ones(5)}, r"b has shape \(5,\), the program's is n = 4"),
        ({**params, "v": np.ones(2)}, r"v has shape \(2,\), the program's is 1 × m = 2"),
        ([1, 2], "list is no mapping"),
    ):
        with pytest.raises(tp.ProgramError, match=f"params: {text}"):
            tp.apply(program, wrong, x)
    tp.apply(program, {**params, "another": np.ones(3)}, x)


def test_data_are_checked():
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, KEY, 4)
    for x, text in ((np.ones(3), r"x\[None\]"), (np.full((1, 3), np.nan), "NaN"), (None, "no data")):
        with pytest.raises(tp.ProgramError, match=f"^x: .*{text}"):
            tp.apply(program, params, x)
