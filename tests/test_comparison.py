"""`compare`: limits, errors, rates, table and picture."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.comparison import fitted_rate
from tensorprog.nets import ZOO


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
