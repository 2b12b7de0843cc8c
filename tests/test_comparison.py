"""`compare`: limits, errors, rates, table and picture."""

from __future__ import annotations

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


def test_two_batches_and_sites() -> None:
    def states(x: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)

    program = tp.trace(states, tp.Input(2, 3))
    x = inputs(program, 5)
    found = tp.compare(program, x[:3], x[3:], widths=(64,), seeds=1)
    assert found.limit["ntk"].shape == found.finite["ntk"].shape == (3, 2, 2, 2)
    with pytest.raises(tp.ProgramError, match="two widths"):
        _ = found.rates


def test_table_and_picture(tmp_path: Any) -> None:
    program = ZOO["mlp"]
    found = tp.compare(program, inputs(program, 3), widths=(16, 32), seeds=2)
    lines = found.table().splitlines()
    assert lines[0].startswith("mlp") and lines[2].split()[0] == "16" and lines[-1].strip().startswith("rate")
    assert "±" in lines[2] and str(found) == found.table()
    found.plot(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(tp.ProgramError, match="out"):
        found.plot(tmp_path / "nowhere" / "out.png")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"widths": (0,)}, "widths"),
        ({"widths": (64, 2.5)}, "widths"),
        ({"widths": ()}, "widths"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(tp.ProgramError, match=words):
        tp.compare(ZOO["mlp"], jnp.ones((2, 4)), **keywords)
