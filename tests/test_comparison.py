"""`compare`: limits, errors, rates, table and picture."""

from __future__ import annotations

import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.comparison import fitted_rate
from tensorprog.comparison.matching import expected, matched
from tensorprog.comparison.models import check_same
from tensorprog.nets import ZOO, net


def inputs(program: tp.Program, n: int) -> jax.Array:
    shape = program.structure.inputs[0].shape
    return jnp.asarray(np.random.default_rng(2).normal(size=(n, *shape)))


@pytest.mark.slow
def test_errors_are_those_of_the_finite_networks() -> None:
    program = ZOO["mlp"]
    x = inputs(program, 3)
    found = tp.compare(program, x, widths=(16, 64), seeds=2)
    assert found.errors["ntk"].shape == found.errors["nngp"].shape == (2, 2)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 64), 1)
    params = tp.init(program, key, 64)
    ntk = tp.empirical.ntk(lambda p, y: tp.apply(program, p, y), params, x)
    limit = tp.ntk(program, x)
    np.testing.assert_allclose(
        found.errors["ntk"][1, 1], np.linalg.norm(ntk - limit) / np.linalg.norm(limit), rtol=1e-8
    )
    np.testing.assert_allclose(found.limit["ntk"], limit)


def test_the_rate_is_about_a_half() -> None:
    program = ZOO["mlp"]
    found = tp.compare(program, inputs(program, 3), widths=(32, 512), seeds=12)
    for slope, se in found.rates.values():
        assert abs(slope + 0.5) < 4 * se
    assert found.rate == found.rates["ntk"][0]


def test_fitted_rate_of_exact_powers() -> None:
    widths = (10, 100, 1000)
    slope, se = fitted_rate(widths, np.array([[3 * n**-0.5] * 4 for n in widths]))
    assert abs(slope + 0.5) < 1e-12 and se < 1e-12


def test_the_standard_error_covers_the_slope() -> None:
    # errors like |N(0, 1)|, as those of a net whose fluctuations are one common factor
    widths, rng = np.array([64, 128, 256, 512, 1024, 2048]), np.random.default_rng(0)
    draws = (np.abs(rng.normal(size=(6, 5))) * widths[:, None] ** -0.5 for _ in range(1000))
    fits = (fitted_rate(widths, errors) for errors in draws)
    assert np.mean([abs(slope + 0.5) < 2 * se for slope, se in fits]) > 0.92


def test_the_rate_of_too_few_errors() -> None:
    slope, se = fitted_rate((10, 100), np.array([[1.0], [0.3]]))
    assert abs(slope - np.log10(0.3)) < 1e-12 and np.isnan(se)
    assert all(np.isnan(fitted_rate((10, 100), np.zeros((2, 3)))))


@pytest.mark.slow
def test_widths_key_and_progress() -> None:
    program, calls = ZOO["mlp"], []
    x, count = inputs(program, 2), lambda: calls.append(1)
    one = tp.compare(program, x, widths=(8, 16), seeds=3, progress=count)
    again = tp.compare(program, x, widths=(16, 8, 16), seeds=3, key=jax.random.key(0), progress=count)
    other = tp.compare(program, x, widths=(8,), seeds=3, key=jax.random.key(1))
    assert again.widths == (8, 16) and len(calls) == 12
    for kind in ("nngp", "ntk"):
        np.testing.assert_array_equal(one.errors[kind], again.errors[kind])
        np.testing.assert_array_equal(one.finite[kind], again.finite[kind])
        assert not np.isclose(one.errors[kind][0], other.errors[kind][0]).any()


def test_a_readout_that_starts_at_zero(tmp_path: Any) -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.sin, tp.weight("W", n, x.features) @ x)
        return tp.weight("v", 1, n, var=0.0, scale=1.0) @ h

    program = tp.trace(net, tp.Input(3))
    found = tp.compare(program, inputs(program, 3), widths=(64, 512), seeds=8)
    assert not found.errors["nngp"].any() and 0 < found.errors["ntk"].max() < 0.5
    assert found.table().splitlines()[-1].split()[1:4] == ["—", "±", "—"]
    found.plot(tmp_path / "zero.png")


def test_learning_rates_and_means_converge() -> None:
    """The NTK under the program's own learning rates, the NNGP with the square of the output's mean."""

    def net(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features, lr=0.0) @ x)
        return tp.weight("v", 1, n) @ h + tp.bias("c", 1, mean=2.0) + 3.0

    program = tp.trace(net, tp.Input(3))
    found = tp.compare(program, inputs(program, 3), widths=(4096,), seeds=2)
    assert max(found.errors[kind].max() for kind in ("nngp", "ntk")) < 0.05


def test_several_rows_are_copies() -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 10, n) @ tp.nonlin(jnp.sin, tp.weight("W", n, x.features) @ x)

    program = tp.trace(net, tp.Input(3))
    found = tp.compare(program, inputs(program, 3), widths=(1024,), seeds=2)
    assert max(found.errors[kind].max() for kind in ("nngp", "ntk")) < 0.1


def test_two_batches_and_sites() -> None:
    def states(x: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.sin, tp.weight("U", n, x.features) @ x)

    program = tp.trace(states, tp.Input(2, 3))
    x = inputs(program, 5)
    found = tp.compare(program, x[:3], x[3:], widths=(64,), seeds=1)
    assert found.limit["ntk"].shape == found.finite["ntk"].shape == (3, 2, 2, 2)
    with pytest.raises(tp.ProgramError, match="two widths"):
        _ = found.rates


def test_programs_that_have_nothing_to_compare() -> None:
    def two(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.sin, tp.weight("W", n, x.features) @ x)
        return tp.weight("v", 1, n) @ h, tp.weight("u", 1, n) @ h

    with pytest.raises(tp.ProgramError, match="several outputs"):
        tp.compare(tp.trace(two, tp.Input(3)), jnp.ones((2, 3)))
    alone = tp.trace(lambda: tp.weight("v", 1, tp.Width("n")) @ tp.bias("b", tp.Width("n")))
    with pytest.raises(tp.ProgramError, match="no inputs"):
        tp.compare(alone, None)
    wrong: Any = two
    with pytest.raises(tp.ProgramError, match=r"tp\.trace"):
        tp.compare(wrong, jnp.ones((2, 3)))


def test_a_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    program = ZOO["mlp"]
    found = tp.compare(program, inputs(program, 2), widths=(8,), seeds=1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(tp.ProgramError, match=r"pip install 'tensorprog\[plot\]'"):
        found.plot()


def test_table_and_picture(tmp_path: Any) -> None:
    program = ZOO["mlp"]
    found = tp.compare(program, inputs(program, 3), widths=(16, 32), seeds=2)
    lines = found.table().splitlines()
    assert lines[0].startswith("mlp") and lines[2].split()[0] == "16" and lines[-1].strip().startswith("rate")
    assert "±" in lines[2] and str(found) == found.table()
    found.plot(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(tp.ProgramError, match=r"path: .*nowhere"):
        found.plot(tmp_path / "nowhere" / "out.png")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"widths": (0,)}, "widths"),
        ({"widths": (64, 2.5)}, "widths"),
        ({"widths": ()}, "widths"),
        ({"widths": "64"}, "widths"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": True}, "seeds"),
        ({"x1": jnp.ones((0, 4))}, "N = 0"),
        ({"x1": jnp.full((2, 4), jnp.nan)}, "x1: NaN"),
        ({"x2": jnp.ones((2, 5))}, "x2: .*features"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(tp.ProgramError, match=words):
        tp.compare(ZOO["mlp"], **{"x1": jnp.ones((2, 4)), **keywords})


# -- a network of the user's own ---------------------------------------------------------------------------------------

OWN = net("mlp").program(tp.Input(5), depth=2)


class Dense(nn.Module):
    """The zoo's MLP of two layers in Flax, in standard parametrization, with a head of three."""

    width: int
    var_b: float = 0.1
    fn: Any = nn.relu
    bias: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        normal = lambda var: nn.initializers.variance_scaling(var, "fan_in", "normal")
        for _ in range(2):
            bias = self.bias or nn.initializers.normal(self.var_b**0.5)
            x = self.fn(nn.Dense(self.width, kernel_init=normal(2.0), bias_init=bias)(x))
        return nn.Dense(3, use_bias=False, kernel_init=normal(1.0))(x)


def flax(**keywords: Any) -> Any:
    def finite(width: int, key: Any) -> Any:
        model = Dense(width, **keywords)
        return model.apply, model.init(key, jnp.ones((1, 5)))

    return finite


def test_a_flax_model_converges_to_the_programs_limit() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    found = tp.compare(OWN, x, finite=flax(), convention="standard", widths=(32, 512), seeds=8)
    assert found.checked.startswith("finite is the program") and found.checked in found.table()
    assert set(found.errors) == {"ntk"} and found.errors["ntk"].shape == (2, 8)
    slope, se = found.rates["ntk"]
    assert abs(slope + 0.5) < 4 * se and found.rate == slope
    limit = tp.ntk(OWN, x, convention="standard", widths=512)
    np.testing.assert_allclose(found.limit["ntk"], limit, rtol=1e-5)


@pytest.mark.parametrize(
    ("finite", "convention", "words"),
    [
        (flax(), "multiplier-std", r"finite: at width 32 its NTK is .* times the program's.*convention='standard'"),
        (flax(var_b=0.05), "standard", r"Dense_0'\]\['bias'\] is the program's b1, .* 0\.[45]\d* times"),
        (
            flax(bias=nn.initializers.constant(0.1**0.5)),
            "standard",
            r"Dense_0'\]\['bias'\] .* its entries have mean 0\.31",
        ),
        (flax(fn=jnp.tanh), "standard", r"finite: at width 32 .* times the program's"),
        (lambda width, key: None, "standard", r"returns NoneType, not \(f, params\)"),
        (
            lambda width, key: (lambda p, x: x[:, None], {}),
            "standard",
            r"f returns shape \(4, 1, 5\), and the program's",
        ),
        ("Dense", "standard", "finite: 'Dense' is no function"),
        (None, "standard", "convention: the program's own networks"),
        (flax(), "papers", "convention: 'papers' is none"),
    ],
)
def test_a_model_that_is_another_network(finite: Any, convention: str, words: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    with pytest.raises(tp.ProgramError, match=words):
        tp.compare(OWN, x, finite=finite, convention=convention, widths=(32, 64), seeds=1)


def test_a_model_is_not_compared_with_a_program_of_other_learning_rates() -> None:
    with pytest.raises(
        tp.ProgramError, match=r"trains W1 with the multiplier 0, .*program\.replace\(\{'W1\.lr': 1\.0\}\)"
    ):
        tp.compare(OWN.replace({"W1.lr": 0.0}), jnp.ones((2, 5)), finite=flax(), convention="standard", widths=(32,))


@pytest.mark.slow
def test_deep_networks_are_matched_in_any_order_and_zeros_hide_nothing() -> None:
    program = net("mlp").program(tp.Input(5), depth=5, var_b=0.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    own = tp.init(program, jax.random.key(0), 16)
    ours = expected(program, 16, "multiplier-std")
    names = {"W2": "W3", "W3": "W2", "W4": "W4", "W5": "W5"}
    f = lambda p, x: tp.apply(program, {name: p[names.get(name, name)] for name in own}, x)
    found = matched(program, ours, f, own, x)
    assert found is not None and found.paths["W2"] == "['W3']" and found.paths["W3"] == "['W2']"
    silent = {**own, "v": jnp.zeros_like(own["v"])}  # a head that starts at 0
    assert matched(program, ours, lambda p, x: jnp.tanh(f(p, x)), silent, x) is None
    assert matched(program, ours, f, silent, x) is not None


def test_arrays_of_one_random_key_are_seen() -> None:
    deep = net("mlp").program(tp.Input(5), depth=3)

    def finite(width: int, key: Any) -> Any:
        own = tp.init(deep, key, width)
        return (lambda p, x: tp.apply(deep, p, x)), {**own, "W3": own["W2"]}

    with pytest.raises(tp.ProgramError, match=r"W2'\] is the program's W2, and has correlation 1 with \['W3'\]"):
        tp.compare(deep, jnp.ones((2, 5), jnp.float32), finite=finite, widths=(32,), seeds=1)


def test_zero_biases_that_learn_are_compared_by_means_too() -> None:
    program = net("mlp").program(tp.Input(5), depth=1, var_b=0.0)

    def finite(width: int, key: Any) -> Any:
        own = tp.init(program, key, width)
        first = (2 / 5) ** 0.5 * own["W1"]  # weight and bias of variance σ² in one array, and a head of variance 1/n

        def f(params: Any, x: Any) -> Any:
            h = jax.nn.relu(x @ params["first"][:, :-1].T + params["first"][:, -1])
            return (h @ params["head"].T)[:, 0]

        return f, {"first": jnp.concatenate([first, 0 * first[:, :1]], 1), "head": own["v"] * width**-0.5}

    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    found = tp.compare(program, x, finite=finite, convention="standard", widths=(64,), seeds=2)
    assert "means of 256" in found.checked and found.errors["ntk"].max() < 0.6


@pytest.mark.slow
def test_a_model_whose_arrays_are_others_is_compared_by_means() -> None:
    """Both layers' weights and biases in one array each: no array is a parameter of the program."""

    def finite(width: int, key: Any) -> Any:
        own = tp.init(OWN, key, width)
        params = {"in": jnp.concatenate([own["W1"], own["b1"][:, None]], 1), "rest": (own["W2"], own["b2"], own["v"])}

        def f(params: Any, x: Any) -> Any:
            w2, b2, v = params["rest"]
            w1, b1 = params["in"][:, :-1], params["in"][:, -1]
            return tp.apply(OWN, {"W1": w1, "b1": b1, "W2": w2, "b2": b2, "v": v}, x)

        return f, params

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    found = tp.compare(OWN, x, finite=finite, widths=(64, 256), seeds=4)
    assert "means of 256" in found.checked
    assert found.errors["ntk"][-1].mean() < 0.4


class Convolutional(nn.Module):
    """The zoo's CNN of one layer with a flattened readout, in Flax."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        normal = lambda var: nn.initializers.variance_scaling(var, "fan_in", "normal")
        bias = nn.initializers.normal(0.1**0.5)
        h = nn.relu(nn.Conv(self.width, (3,), kernel_init=normal(2.0), bias_init=bias)(x))
        return nn.Dense(1, use_bias=False, kernel_init=normal(1.0))(h.reshape(len(h), -1))[:, 0]


def test_a_flattened_readout_is_found() -> None:
    program = net("cnn_flatten").program(tp.Input(4, 2), depth=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    params = Convolutional(16).init(jax.random.key(0), x)
    ours = expected(program, 16, "standard")
    found = matched(program, ours, Convolutional(16).apply, params, x)
    assert found is not None and "Dense_0" in found.paths["v"] and "Conv_0" in found.paths["W1"]
    other: Any = lambda p, x: 2.0 * jnp.asarray(Convolutional(16).apply(p, x))
    assert matched(program, ours, other, params, x) is None


@pytest.mark.slow
def test_a_convolution_of_another_layout() -> None:
    """(out, in, *window), as Equinox has it; two batches, a picture of one kernel."""
    program = net("cnn_flatten").program(tp.Input(4, 2), depth=1, var_b=0.5)

    def finite(width: int, key: Any) -> Any:
        own = tp.init(program, key, width)
        scale = {"W1": (2 / 6) ** 0.5, "b1": 0.5**0.5, "v": (4 * width) ** -0.5}
        kernel = scale["W1"] * jnp.moveaxis(own["W1"], 0, -1)
        params = {"kernel": kernel, "bias": scale["b1"] * own["b1"], "head": scale["v"] * jnp.moveaxis(own["v"], 0, -1)}

        def f(params: Any, x: Any) -> Any:
            h = jax.lax.conv_general_dilated(
                jnp.moveaxis(x, -1, 1), params["kernel"], (1,), "SAME", dimension_numbers=("NCH", "OIH", "NHC")
            )
            return jnp.einsum("nsc,rcs->n", jax.nn.relu(h + params["bias"]), params["head"])

        return f, params

    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 2)), jnp.float32)
    found = tp.compare(program, x[:3], x[3:], finite=finite, convention="standard", widths=(32, 512), seeds=6)
    assert found.checked.startswith("finite is the program")
    assert found.limit["ntk"].shape == (3, 2) and found.errors["ntk"][-1].mean() < 0.2
    found.plot()


class WithBias(nn.Module):
    """`Dense`, whose readout has a bias that starts at 0 and is trained."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        normal = lambda var: nn.initializers.variance_scaling(var, "fan_in", "normal")
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width, kernel_init=normal(2.0), bias_init=nn.initializers.normal(0.1**0.5))(x))
        return nn.Dense(3, kernel_init=normal(1.0))(x)


def biased(width: int, key: Any) -> Any:
    return WithBias(width).apply, WithBias(width).init(key, jnp.ones((1, 5)))


def test_parameters_without_a_counterpart_are_named() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    with pytest.raises(tp.ProgramError, match=r"Dense_2'\]\['bias'\], which has no counterpart.*tp\.bias\('c', 1"):
        check_same(biased, OWN, 32, "standard", (x,))


@pytest.mark.slow
def test_a_parameter_that_was_added_is_compared() -> None:
    """The remedy taken, the two are the same; then the other model lacks it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)

    def function(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("W1", n, 5, var=2.0) @ x + tp.bias("b1", n, var=0.1))
        h = tp.nonlin(jax.nn.relu, tp.weight("W2", n, n, var=2.0) @ h + tp.bias("b2", n, var=0.1))
        return tp.weight("v", 1, n) @ h + tp.bias("c", 1, var=0.0, scale=1.0)

    remedied = tp.trace(function, tp.Input(5))
    assert check_same(biased, remedied, 32, "standard", (x,)).startswith("finite is the program")
    with pytest.raises(tp.ProgramError, match=r"it is the program but for c, which has no counterpart in the model"):
        check_same(flax(), remedied, 32, "standard", (x,))


def test_a_rate_far_from_a_half_is_remarked_on() -> None:
    spread = 1 + 0.1 * np.random.default_rng(0).normal(size=(3, 8))
    widths = (64, 256, 1024)
    found = lambda rate: tp.Comparison(
        "net", widths, {"ntk": np.array(widths)[:, None] ** rate * spread}, {"ntk": np.ones(1)}, {"ntk": np.ones(1)}
    )
    assert not found(-0.5).remarks
    (remark,) = found(-0.966).remarks
    assert "standard errors from −1/2" in remark and "program lacks" in remark and remark in str(found(-0.966))
    assert "another limit" in found(-0.1).remarks[0]
