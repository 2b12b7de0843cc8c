"""Estimators as scikit-learn's users expect them, and what they compute against `tp.predict`."""

from __future__ import annotations

import math
import pickle
import warnings
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

import tensorprog as tp
from tensorprog.predict import KernelWarning
from tensorprog.sklearn import NNGPRegressor, NTKClassifier, NTKRegressor, kernel, rank
from tensorprog.sklearn import estimators as estimators_of
from tensorprog.sklearn import programs as programs_of
from tensorprog.sklearn.ranking import left_out, one_hot, profiled_evidence

# scikit-learn's stubs take callables and "raise" for mistakes.
GPR: Any = GaussianProcessRegressor
Search: Any = GridSearchCV
SHALLOW = {"depth": 1}
ESTIMATORS: tuple[Any, ...] = (NTKRegressor, NNGPRegressor, NTKClassifier)


def data(count: int = 30, features: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, features))
    return x, np.sin(2 * x[:, 0]) + x[:, 1]


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:count] / 16, y[:count]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)
def test_scikit_learns_own_checks(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(estimator(keywords=SHALLOW), on_fail=None)
    assert [(r["check_name"], r["exception"]) for r in found if r["status"] == "failed"] == []
    assert sum(r["status"] == "passed" for r in found) > 40


# ------------------------------------------------------------------------------------------- what they compute


def test_regressors_are_the_predictions() -> None:
    (x, y), (new, _) = data(), data(7, seed=1)
    program = tp.nets.net("mlp").program(tp.Input(3), depth=2)
    ktt, kst, kss = tp.kernels(program, x), tp.kernels(program, new, x), tp.kernels(program, new)
    for time in (math.inf, 0.7):
        model = NTKRegressor(program, ridge=0.1, time=time, learning_rate=0.3).fit(x, y)
        wanted = tp.predict.ensemble(ktt, kst, kss, y, time, lr=0.3, ridge=0.1)
        mean, std = model.predict(new, return_std=True)
        np.testing.assert_allclose(mean, wanted.mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(std, np.asarray(wanted.std), rtol=1e-6)
    both = np.stack([y, 5 + 3 * y], 1)
    model = NNGPRegressor("mlp", keywords={"depth": 2}, ridge=0.1, normalize_y=True).fit(x, both)
    standard = (both - both.mean(0)) / both.std(0)
    post = tp.predict.posterior(ktt.nngp, kst.nngp, kss.nngp, standard, 0.1)
    mean, std = model.predict(new, return_std=True)
    np.testing.assert_allclose(mean, post.mean * both.std(0) + both.mean(0), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(std, np.asarray(post.std)[:, None] * both.std(0), rtol=1e-6)
    left = tp.predict.leave_one_out(ktt.nngp, standard, 0.1).mean * both.std(0) + both.mean(0)
    np.testing.assert_allclose(model.leave_one_out_, left, rtol=1e-8, atol=1e-10)
    close = NNGPRegressor(program, ridge=1e-9).fit(x, y)
    np.testing.assert_allclose(close.leave_one_out_, tp.predict.leave_one_out(ktt.nngp, y, 1e-9).mean, rtol=1e-5)


def test_a_rate_of_zero_learns_nothing() -> None:
    x, y = data(8)
    model = NTKRegressor(keywords=SHALLOW, learning_rate=0.0).fit(x, y)
    np.testing.assert_allclose(np.stack([model.predict(x), model.leave_one_out_]), 0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::tensorprog.predict.KernelWarning")
def test_leave_one_out_of_repeated_rows() -> None:
    """Without a ridge the null space of repeated rows is theirs alone: the limit of small ridges."""
    x, y = data(8)
    x, y = np.concatenate([x, x[:1]]), np.concatenate([y, y[:1]])
    none, small = (NTKRegressor(keywords=SHALLOW, ridge=ridge).fit(x, y).leave_one_out_ for ridge in (0.0, 1e-9))
    np.testing.assert_allclose(none, small, atol=1e-5)
    found = [NTKClassifier(keywords=SHALLOW, ridge=ridge).fit(x, y > 0).temperature_ for ridge in (0.0, 1e-9)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_images_from_flat_rows() -> None:
    x, y = digits(60)
    labels = np.array([f"digit {label}" for label in y])
    for name, shape in (("mlp", None), ("rnn", (8, 8)), ("cnn_flatten", (8, 8)), ("cnn_flatten", (8, 8, 1))):
        model = NTKClassifier(name, input_shape=shape, keywords=SHALLOW if name != "rnn" else None).fit(
            x[:40], labels[:40]
        )
        assert model.score(x[40:], labels[40:]) > 0.6, name
        assert set(model.predict(x[40:])) <= set(labels)


def test_probabilities_sum_to_one() -> None:
    x, y = digits(60)
    model = NTKClassifier(keywords=SHALLOW).fit(x[:40], y[:40])
    chances = model.predict_proba(x[40:])
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.classes_[chances.argmax(1)], model.predict(x[40:]))
    assert model.decision_function(x[40:]).shape == (20, 10)


def test_probabilities_are_calibrated() -> None:
    """Labels flipped in a quarter of the cases: held-out likelihood is better than at other temperatures."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = (x[:, 0] > 0) ^ (rng.uniform(size=300) < 0.25)
    model = NTKClassifier(keywords=SHALLOW, ridge=3.0).fit(x[:200], y[:200])

    def loss(factor: float) -> float:
        chance = 1 / (1 + np.exp(-model.decision_function(x[200:]) / (factor * model.temperature_)))
        return float(-np.mean(np.log(np.where(y[200:], chance, 1 - chance))))

    chance = model.predict_proba(x[200:])[:, 1]
    assert loss(1.0) == pytest.approx(-np.mean(np.log(np.where(y[200:], chance, 1 - chance))))
    assert loss(1.0) < min(loss(0.3), loss(3.0)) and loss(1.0) < math.log(2) - 0.05


def test_a_function_of_your_own() -> None:
    def net(x: Any, *, gain: float = 1.0) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(jax.nn.relu, tp.weight("W", n, x.features, var=gain) @ x)
        return tp.weight("v", 1, n) @ h

    x, y = data()
    model = NTKRegressor(net, keywords={"gain": 2.0}).fit(x, y)
    wanted = NTKRegressor(tp.trace(net, tp.Input(3), gain=2.0)).fit(x, y)
    np.testing.assert_allclose(model.predict(x), wanted.predict(x), rtol=1e-10)


@pytest.mark.slow
def test_sampled_kernels_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_of, "nngp", partial(tp.nngp, samples=2048))
    monkeypatch.setattr(programs_of, "KERNELS", programs_of.Cache(2**24))
    x, y = data(6, 6)
    model = NNGPRegressor("gru", input_shape=(3, 2), ridge=1e-6)
    model.fit(x, y)
    mean, std = model.predict(x[::2], return_std=True)
    np.testing.assert_allclose(mean, y[::2], atol=1e-3)
    assert std.max() < 1e-2


@pytest.mark.parametrize("estimator", [NTKRegressor, NNGPRegressor])
def test_predictions_are_of_one_draw(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels that differ in each call, as sampled ones do: training targets are still met, and nothing varies."""
    calls = 0

    def drawn(compute: Any) -> Any:
        def another(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return jax.tree.map(lambda k: (1 + 0.2 * calls) * k, compute(*args))

        return another

    for name in ("kernels", "nngp"):
        monkeypatch.setattr(programs_of, name, drawn(getattr(programs_of, name)))
    monkeypatch.setattr(programs_of, "KERNELS", programs_of.Cache(2**24))
    for module in (programs_of, estimators_of):
        monkeypatch.setattr(module, "is_sampled", lambda program: True)
    x, y = data(8)
    model = estimator(keywords=SHALLOW, ridge=1e-9).fit(x, y)
    mean, std = model.predict(x[::2], return_std=True)
    np.testing.assert_allclose(mean, y[::2], atol=1e-5)
    assert calls == 2 and std.max() < 1e-3


def test_sampled_kernels_are_no_callables() -> None:
    x, _ = data(6, 6)
    k = kernel("gru", input_shape=(3, 2))
    for call in (lambda: k(x), lambda: k.diag(x)):
        with pytest.raises(ValueError, match=r"kernels are sampled, .* take NTKClassifier"):
            call()


def test_kernels_for_scikit_learns_machines() -> None:
    x, y = digits(60)
    k: Any = kernel("mlp", keywords=SHALLOW)
    program = tp.nets.net("mlp").program(tp.Input(64), depth=1)
    np.testing.assert_allclose(k(x[:5], x[5:9]), tp.ntk(program, x[:5], x[5:9]), rtol=1e-10)
    np.testing.assert_allclose(k.diag(x[:5]), np.diag(k(x[:5])), rtol=1e-10)
    assert SVC(kernel=k, C=100).fit(x[:40], y[:40]).score(x[40:], y[40:]) > 0.6
    x, y = data()
    gp: Any = ConstantKernel(1.0) * kernel("mlp", "nngp", keywords=SHALLOW) + WhiteKernel(0.1)
    fitted = GPR(gp, optimizer=None).fit(x, y)
    own = NNGPRegressor(keywords=SHALLOW, ridge=0.1).fit(x, y)
    np.testing.assert_allclose(fitted.predict(x), own.predict(x), rtol=1e-7)
    assert "NNGP(mlp)" in repr(fitted.kernel_)
    tuned = GPR(gp, n_restarts_optimizer=0).fit(x, y)
    assert tuned.log_marginal_likelihood_value_ > fitted.log_marginal_likelihood_value_


# ----------------------------------------------------------------------------------- searching, copying, processes


def test_a_ridge_search_computes_each_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    compute = programs_of.kernels

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return compute(*args)

    monkeypatch.setattr(programs_of, "kernels", counted)
    monkeypatch.setattr(programs_of, "KERNELS", programs_of.Cache(2**24))
    x, y = data()
    pipeline = make_pipeline(StandardScaler(), NTKRegressor(keywords=SHALLOW))
    grid = {"ntkregressor__ridge": [1e-3, 1e-2, 0.1], "ntkregressor__time": [1.0, math.inf]}
    search = Search(pipeline, grid, cv=3, error_score="raise").fit(x, y)
    assert count == 3 * 2 + 1  # three folds, training and test; and the refit
    search.predict(x)
    assert count == 8
    inner = Search(NTKRegressor(keywords=SHALLOW), {"keywords__depth": [1, 2]}, cv=2, error_score="raise").fit(x, y)
    assert inner.best_params_["keywords__depth"] in (1, 2) and count > 8


def test_the_cache_forgets() -> None:
    cache = programs_of.Cache(100)
    for i in range(5):
        cache.get(i, lambda: {"k": np.zeros(6)})
    assert list(cache.found) == [3, 4]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)
def test_copies_and_pickles(estimator: Any) -> None:
    x, y = data()
    y = y > 0 if estimator is NTKClassifier else y
    program = tp.nets.net("mlp").program(tp.Input(3), depth=1)
    for source in ("mlp", program):
        model = estimator(source, ridge=0.2)
        copied: Any = clone(model)
        again = copied.set_params(ridge=0.2).fit(x, y)
        other = pickle.loads(pickle.dumps(again))
        assert other.program_ == again.program_
        np.testing.assert_array_equal(other.predict(x), again.predict(x))


@pytest.mark.slow
def test_two_processes() -> None:
    x, y = data()
    grid = {"ridge": [1e-3, 0.1], "keywords__depth": [1, 2]}
    search = lambda jobs: Search(NTKRegressor(), grid, cv=2, n_jobs=jobs, error_score="raise").fit(x, y)
    one, two = search(1).cv_results_, search(2).cv_results_
    np.testing.assert_allclose(one["mean_test_score"], two["mean_test_score"], rtol=1e-8)


def test_single_precision_outside_changes_nothing() -> None:
    x, y = data()
    wanted = NTKRegressor(keywords=SHALLOW).fit(x, y).predict(x + 0.1)
    with jax.enable_x64(False):
        programs_of.KERNELS.found.clear()
        found = NTKRegressor(keywords=SHALLOW).fit(x, y).predict(x + 0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


# --------------------------------------------------------------------------------------------------------- ranking


def test_ranking() -> None:
    x, y = data(40)
    ticks = []
    found = rank(x, y, programs=["mlp"], depths=(1, 3), variances=(1.0, 2.0), progress=lambda: ticks.append(1))
    assert len(found.candidates) == len(ticks) == 4
    best, likely = found.by_loo[0], found.by_evidence[0]
    assert best.loo == min(c.loo for c in found.candidates) and likely.evidence == max(
        c.evidence for c in found.candidates
    )
    lines = found.table().splitlines()
    assert lines[0].split()[:3] == ["program", "LOO", "RMSE"] and lines[1].startswith(
        f"mlp(depth={best.keywords['depth']}"
    )
    model = NTKRegressor(best.program, keywords=best.keywords, ridge=best.ridge, normalize_y=True).fit(x, 5 + 2 * y)
    gap = (model.leave_one_out_ - (5 + 2 * y)) / 2
    assert best.loo == pytest.approx(np.sqrt(np.mean(gap**2)), rel=1e-6)
    again = rank(x, 5 + 2 * y, programs=["mlp"], depths=(best.keywords["depth"],), variances=(best.keywords["var_w"],))
    assert again.by_loo[0].loo == pytest.approx(2 * best.loo) and again.by_loo[0].ridge == pytest.approx(best.ridge)


def test_what_the_ranking_measures() -> None:
    """Leave-one-out as `tp.predict`; the evidence at its best amplitude, which a search finds too."""
    x, y = data(20)
    k = np.asarray(tp.nngp(tp.nets.net("mlp").program(tp.Input(3), depth=1), x))
    mean = np.trace(k) / 20
    own = tp.predict.leave_one_out(k, y, 0.1 * mean).mean
    assert left_out(k, y[:, None], 0.1, None) == pytest.approx(float(np.sqrt(np.mean((own - y) ** 2))))
    found, noise = profiled_evidence(k, y[:, None], 0.1)
    scales = noise / (0.1 * mean) * np.array([0.97, 1.0, 1.03])
    values = [float(tp.predict.log_marginal_likelihood(s * k, y, s * 0.1 * mean)) / 20 for s in scales]
    assert found == pytest.approx(values[1]) and values[1] > max(values[0], values[2])


def test_ranking_of_classes() -> None:
    x, y = digits(40)
    names = ["mlp", "mlp_two_widths"]
    found = rank(x, y, programs=names, depths=(1,), variances=(1.0,), input_shape=(8, 8), ridges=[1e-3])
    assert {c.program for c in found.candidates} == set(names) and found.measure == "LOO error"
    assert all(0 <= c.loo < 0.6 for c in found.candidates)
    assert next(c for c in found.candidates if c.program == "mlp_two_widths").keywords == {"var_w": 1.0}
    c = found.by_loo[0]
    model = NTKClassifier(c.program, keywords=c.keywords, ridge=c.ridge, input_shape=(8, 8))
    targets = one_hot(y, 10)
    assert c.loo == np.mean(model._learn(x, targets).left_out(targets).argmax(1) != y)


# -------------------------------------------------------------------------------------------------------- mistakes


def test_labels_of_any_kind_and_lonely_classes() -> None:
    x, _ = data(9)
    labels = np.array(["a"] * 5 + ["b"] * 3 + ["c"])
    model = NTKClassifier(keywords=SHALLOW).fit(x, labels)
    np.testing.assert_array_equal(model.predict(x), labels)
    assert np.isfinite(model.predict_proba(x)).all() and model.classes_.tolist() == ["a", "b", "c"]
    assert NTKClassifier(keywords=SHALLOW).fit(x, x[:, 0] > 0).decision_function(x).shape == (9,)
    with pytest.raises(ValueError, match="only one class, 'a'"):
        NTKClassifier(keywords=SHALLOW).fit(x, ["a"] * 9)
    with pytest.raises(ValueError, match="Unknown label type"):
        NTKClassifier(keywords=SHALLOW).fit(x, x[:, 0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"program": "mpl"}, "'mpl' is no net of the zoo"),
        ({"program": 3}, "3 is no program"),
        ({"program": "siamese"}, "siamese reads pairs"),
        ({"program": "batchnorm_mlp"}, "batchnorm_mlp reads batch"),
        ({"program": "rnn"}, r"input_shape: rnn reads images, .* input_shape=\(8, 8\) say"),
        ({"program": "rnn", "input_shape": (2, 2)}, r"input_shape: \(2, 2\) takes 4 features, X has 3"),
        ({"program": "unet", "input_shape": (3, 1)}, "cannot be halved"),
        ({"keywords": {"dept": 2}}, "keywords: 'dept' is none of the program's; its keywords are depth"),
        ({"program": tp.nets.ZOO["mlp"]}, r"\(4,\) takes 4 features, X has 3"),
        ({"program": tp.nets.ZOO["mlp"], "keywords": {"depth": 2}}, "it is traced already"),
        ({"program": tp.nets.ZOO["siamese"]}, "it has 2 inputs"),
        ({"ridge": -1.0}, "ridge: -1.0 is no number of at least 0"),
        ({"ridge": math.nan}, "ridge: nan is no number"),
        ({"ridge": "small"}, "ridge: 'small' is no number"),
        ({"time": -2.0}, "time: -2.0 is no number"),
        ({"learning_rate": math.inf}, "learning_rate: inf is no number"),
    ],
)
def test_mistakes_are_value_errors(given: dict[str, Any], words: str) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=words):
        NTKRegressor(**given).fit(x, y)
    with pytest.raises(tp.ProgramError, match=words):
        NTKRegressor(**given).fit(x, y)


def test_data_that_do_not_fit() -> None:
    x, y = data()
    model = NTKRegressor(keywords=SHALLOW)
    with pytest.raises(NotFittedError):
        model.predict(x)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(x, y[:-1])
    with pytest.raises(ValueError, match="NaN"):
        model.fit(x, np.where(y > 1, np.nan, y))
    with pytest.raises(ValueError, match="features"):
        model.fit(x, y).predict(x[:, :2])
    with pytest.warns(KernelWarning, match="the training kernel is ill-conditioned: condition number"):
        NTKRegressor(keywords=SHALLOW, ridge=0.0).fit(np.repeat(x, 2, 0), np.repeat(y, 2))
    with pytest.raises(ValueError, match="'rbf' is no kernel"):
        kernel("mlp", "rbf")(x)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ridges": [0.0]}, "ridges: 0.0 is not positive"),
        ({"ridges": ()}, "ridges: there are none"),
        ({"depths": ()}, "depths: there are none"),
        ({"variances": np.array([])}, "variances: there are none"),
        ({"programs": []}, "programs: there are none"),
        ({"programs": ["nope"]}, "nope"),
        ({"y": np.full(30, 2.5)}, "y: all targets are 2.5"),
        ({"y": ["a"] * 30, "classify": True}, "y: all targets are a"),
    ],
)
def test_what_cannot_be_ranked(given: dict[str, Any], words: str) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=words):
        rank(x, **{"y": y, **given})


def test_grids_may_be_arrays() -> None:
    x, y = data(12)
    found = rank(x, y, programs=["mlp"], depths=np.array([1]), variances=np.ones(1), ridges=np.logspace(-5, -1, 3))
    assert found.by_loo[0].keywords == {"depth": 1, "var_w": 1.0}
