"""`compare_training`: networks are trained as they should be, predictions are those of their kernels, rates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.comparison.expected import Ensemble
from tensorprog.comparison.paths import Task
from tensorprog.nets import ZOO, net


def problem(count: int = 6, tests: int = 4) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count + tests, 3))
    return x[:count], np.sin(2 * x[:count, 0]), x[count:]


SMALL = net("mlp").program(tp.Input(3), depth=1)


@pytest.fixture(scope="module")
def found() -> tp.TrainingComparison:
    x, y, x_test = problem()
    return tp.compare_training(SMALL, x, y, x_test, widths=(32, 128, 512), seeds=4)


def test_networks_are_trained_by_gradient_descent(found: tp.TrainingComparison) -> None:
    x, y, x_test = problem()
    path = found.paths[128][1]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 128), 1)
    params = tp.init(SMALL, key, 128)
    loss = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum((tp.apply(SMALL, p, x) - y) ** 2)))
    for _ in range(path.steps[2]):
        params = jax.tree.map(lambda p, g: p - found.lr * g, params, loss(params))
    np.testing.assert_allclose(path.outputs[2], tp.apply(SMALL, params, np.concatenate([x, x_test])), rtol=1e-9)


def test_every_network_loses_nine_tenths_of_its_loss(found: tp.TrainingComparison) -> None:
    assert (found.left <= 0.1).all()
    for paths in found.paths.values():
        for path in paths:
            assert path.loss[-2] > 0.1 * path.loss[0] and path.steps[0] == 0


def test_predictions_start_at_the_networks_own_outputs(found: tp.TrainingComparison) -> None:
    x, y, x_test = problem()
    path = found.paths[512][0]
    theta = np.asarray(tp.ntk(SMALL, np.concatenate([x, x_test]), x))
    expected = (np.eye(len(x)) - found.lr * theta[:6]) @ (path.outputs[0, :6] - y) + y
    first = tp.predict.gradient_descent(theta[:6], y, found.lr)(1, path.outputs[0, :6])[0]
    np.testing.assert_allclose(first, expected, rtol=1e-9)
    np.testing.assert_allclose(path.limit[0], path.outputs[0], rtol=1e-9)
    steps = path.steps[3]
    train, test = tp.predict.gradient_descent(theta[:6], y, found.lr)(
        steps, path.outputs[0, :6], theta[6:], path.outputs[0, 6:]
    )
    np.testing.assert_allclose(path.limit[3], np.concatenate([train, test]), rtol=1e-9)


def test_the_own_prediction_is_the_linearised_network_in_training(found: tp.TrainingComparison) -> None:
    x, y, x_test = problem()
    path = found.paths[32][0]
    params = tp.init(SMALL, jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 32), 0), 32)
    lin = tp.linearize(lambda p, x: tp.apply(SMALL, p, x), params)
    slope = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum((lin(p, x) - y) ** 2)))
    trained = params
    for _ in range(path.steps[1]):
        trained = jax.tree.map(lambda p, g: p - found.lr * g, trained, slope(trained))
    np.testing.assert_allclose(path.own[1], lin(trained, np.concatenate([x, x_test])), rtol=1e-8)


def test_deviations_fall_with_the_width(found: tp.TrainingComparison) -> None:
    rates = found.rates
    assert abs(rates["gap"][0] + 0.5) < 0.3 + 2 * rates["gap"][1]
    for kind, expected in (("nonlinear", -1), ("kernel", -1), ("moved", -0.5)):  # one layer: ‖θ_0‖ grows like √n
        slope, se = rates[kind]
        assert abs(slope - expected) < 0.15 + 3 * se, kind
    assert found.deviations["nonlinear"][-1].mean() < found.deviations["gap"][-1].mean() < 0.2


def test_the_band_is_the_law_over_networks() -> None:
    """Mean and spread of many wide networks after training, and their mean loss; the outputs have a mean of 2."""

    def shifted(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("W", n, x.features, var=2.0) @ x)
        return tp.weight("v", 1, n) @ h + 2.0

    x, y, x_test = problem()
    many = tp.compare_training(tp.trace(shifted, tp.Input(3)), x, y, x_test, widths=(1024,), seeds=60)
    common = min(len(p.steps) for p in many.paths[1024])
    drawn = np.stack([p.outputs[:common] for p in many.paths[1024]])
    mean, std = many.band.mean[:common], many.band.std[:common]
    np.testing.assert_allclose(mean[0], 2.0, atol=1e-9)
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * std / np.sqrt(60) + 0.03).all()
    ratios = drawn.std(0) / std  # 60 networks: ± 9 % each, and entries of one network go together
    assert abs(np.median(ratios) - 1) < 0.15
    loss = np.mean([p.loss[:common] for p in many.paths[1024]], 0)
    np.testing.assert_allclose(loss / loss[0], many.band.loss[:common], rtol=0.2)
    assert 0.9 < many.inside[1024] < 0.99


def test_the_band_of_small_steps_is_that_of_gradient_flow() -> None:
    x, y, x_test = problem()
    both = tp.kernels(SMALL, np.concatenate([x, x_test]))
    task = Task((jnp.concatenate([x, x_test]),), len(x), jnp.asarray(y))
    ensemble = Ensemble(np.asarray(both.nngp), np.asarray(both.ntk)[:, :6], np.zeros(10), task)
    lr = ensemble.rate(None) * 1e-4
    band = ensemble.band(lr, [0, 20_000])
    cut = lambda rows, columns: tp.Kernels(both.nngp[rows, columns], both.ntk[rows, columns])
    train, test = slice(0, 6), slice(6, None)
    flow = tp.predict.ensemble(cut(train, train), cut(test, train), cut(test, test), y, np.array([0.0, 20_000 * lr]))
    np.testing.assert_allclose(band.mean[:, 6:], flow.mean, atol=1e-4)
    np.testing.assert_allclose(band.std[:, 6:], np.asarray(flow.std), rtol=1e-3)


def test_table_and_picture(found: tp.TrainingComparison, tmp_path: Any) -> None:
    lines = found.table().splitlines()
    assert lines[0].startswith("mlp: 6 training and 4 test inputs") and str(found) == found.table()
    assert [line.split()[0] for line in lines[2:]] == ["width", "32", "128", "512", "rate"]
    found.plot(tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_rows_learning_rates_and_no_test_inputs() -> None:
    def two(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.tanh, tp.weight("W", n, x.features, lr=0.0) @ x)
        return tp.weight("v", 2, n, lr=2.0) @ h

    x, y, _ = problem()
    program = tp.trace(two, tp.Input(3))
    found = tp.compare_training(program, x, np.stack([y, -y], 1), widths=(64, 256), seeds=2)
    assert found.paths[64][0].outputs.shape[1:] == (6, 2) and found.band.std.shape == found.band.mean.shape
    # only the readout learns: the network is its own linearisation, and its kernel stays
    assert found.deviations["nonlinear"].max() < 1e-8 and found.deviations["kernel"].max() == 0
    assert 0 < found.deviations["gap"].max() < 0.5


@pytest.mark.slow
def test_readouts_over_sites() -> None:
    def sites(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.tanh, tp.weight("W", n, x.features) @ x)
        return tp.weight("v", 1, n) @ h

    x = np.random.default_rng(1).normal(size=(4, 2, 3))
    found = tp.compare_training(tp.trace(sites, tp.Input(2, 3)), x[:3], x[:3, :, 0], x[3:], widths=(512,), seeds=1)
    assert found.paths[512][0].outputs.shape[1:] == (4, 2) and found.band.std.shape[1:] == (4, 2)
    assert found.deviations["nonlinear"].max() < found.deviations["gap"].max() < 0.3
    assert found.table().splitlines()[-1].split()[0] == "512"


@pytest.mark.slow
def test_rows_of_a_readout_over_sites() -> None:
    def rows(x: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 3, n) @ tp.nonlin(jnp.tanh, tp.weight("W", n, x.features) @ x)

    x = np.random.default_rng(1).normal(size=(4, 2, 3))
    found = tp.compare_training(tp.trace(rows, tp.Input(2, 3)), x[:3], x[:3], x[3:], widths=(512,), seeds=1)
    assert found.paths[512][0].limit.shape[1:] == (4, 2, 3)
    assert found.deviations["gap"].max() < 0.4


@pytest.mark.slow
def test_several_inputs_in_single_precision_and_numbers_of_jax() -> None:
    def graph(x: Any, a: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("W", n, x.features) @ tp.mix(a, x))
        return tp.weight("v", 1, n) @ tp.mean(h)

    rng = np.random.default_rng(3)
    x, a = rng.normal(size=(6, 3, 2)).astype(np.float32), rng.uniform(size=(6, 3, 3)) > 0.4
    program = tp.trace(graph, tp.Input(3, 2), tp.Data(3, 3))
    lr = 0.3 * tp.predict.max_learning_rate(tp.ntk(program, (x[:4], a[:4])))
    found = tp.compare_training(
        program, (x[:4], a[:4]), x[:4, 0, 0], (x[4:], a[4:]), widths=(128,), seeds=1, lr=lr, fall=np.float32(0.5)
    )
    assert found.paths[128][0].outputs.dtype == np.float32 and found.lr == float(lr)
    assert 0.2 < found.left[0, 0] <= 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": np.ones(5)}, r"y: has shape \(5,\), and the outputs at x are \(6,\)"),
        ({"y": np.full(6, np.nan)}, "y: NaN or infinite at"),
        ({"y": ["odd"] * 6}, "y: holds text, not numbers"),
        ({"x_test": np.ones((2, 4))}, "x_test: .*features"),
        ({"x": np.full((6, 3), np.inf)}, "x: NaN or infinite"),
        ({"lr": -1.0}, "lr: -1 is no learning rate"),
        ({"lr": 1e3}, "lr: 1000 diverges"),
        ({"lr": "fast"}, "lr: 'fast' is no number"),
        ({"fall": 1.5}, "fall: 1.5"),
        ({"fall": True}, "fall: True is no number"),
        ({"fall": 0.999999, "max_steps": 3}, r"fall: in the limit .* after 3 steps"),
        ({"widths": (0,)}, "widths"),
        ({"seeds": 0}, "seeds"),
        ({"key": 3.5}, "key"),
    ],
)
def test_bad_arguments(change: dict[str, Any], words: str) -> None:
    x, y, x_test = problem()
    with pytest.raises(tp.ProgramError, match=words):
        tp.compare_training(SMALL, **{"x": x, "y": y, "x_test": x_test, "widths": (8,), "seeds": 1, **change})


def test_targets_that_cannot_be_learnt() -> None:
    """The same input with two targets: half of the loss never goes."""
    x = np.ones((2, 3))
    with pytest.raises(tp.ProgramError, match=r"fall: in the limit \d+ % of the loss are left"):
        tp.compare_training(SMALL, x, np.array([1.0, -1.0]), widths=(8,), seeds=1)


def test_nothing_to_learn() -> None:
    def silent(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jnp.tanh, tp.weight("W", n, x.features) @ x)
        return tp.weight("v", 1, n, var=0.0, scale=1.0) @ h

    with pytest.raises(tp.ProgramError, match="y: the outputs are these before training"):
        tp.compare_training(tp.trace(silent, tp.Input(3)), np.eye(3), np.zeros(3), widths=(8,), seeds=1)


@pytest.mark.slow
def test_tied_recurrent_net() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(8, 3, 4)).astype(np.float32)
    found = tp.compare_training(ZOO["rnn"], x[:5], x[:5, 0, 0], x[5:], widths=(32, 128, 512), seeds=4)
    assert (found.left <= 0.1).all()
    assert abs(found.rates["gap"][0] + 0.5) < 0.3 + 2 * found.rates["gap"][1]
    assert found.rates["moved"][0] < -0.8 and found.rates["nonlinear"][0] < -0.6
