"""Bad programs and bad data: each raises a clear error that names the user's line or argument and says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.nets import ZOO

CASES = Path(__file__).parent / "cases"
PROGRAMS = {
    "width_mismatch": "same Width",
    "weight_on_wrong_side": "W @ x",
    "features_mismatch": "x.features",
    "input_as_wide": "through a weight",
    "negative_variance": "at least 0",
    "readout_inside": "hidden vector",
    "if_on_traced": "jnp.where",
    "jnp_on_traced": "tp.nonlin",
}


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, CASES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "remedy"), PROGRAMS.items())
def test_bad_programs_are_told_at_their_line(name: str, remedy: str) -> None:
    lines = (CASES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    here = next(i for i, line in enumerate(lines, 1) if line.endswith("# here"))
    with pytest.raises(tp.ProgramError) as error:
        tp.trace(load(name).net, tp.Input(4))
    assert f"{name}.py:{here}" in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.array([[1.0, np.nan, 0.0, 0.0]]), "NaN"),
        (np.array([[1.0, np.inf, 0.0, 0.0]]), "infinite"),
        (np.ones(4), r"x1\[None\]"),
        (np.ones((2, 3)), "features"),
        (np.ones((0, 4)), "N = 0"),
        (np.array([["a", "b", "c", "d"]]), "not numbers"),
        (np.ones((2, 4), dtype=complex), "complex"),
        ([[1.0, 2.0], [3.0]], "x1"),
    ],
)
@pytest.mark.parametrize("view", [tp.ntk, tp.nngp, tp.kernels])
def test_bad_data_names_the_argument(view: Any, data: Any, words: str) -> None:
    with pytest.raises(tp.ProgramError, match="x1") as error:
        view(ZOO["mlp"], data)
    assert error.match(words)


def test_integers_are_converted() -> None:
    whole = np.array([[1, 2, 3, 4], [0, 1, 0, 1]])
    np.testing.assert_array_equal(tp.ntk(ZOO["mlp"], whole), tp.ntk(ZOO["mlp"], whole.astype(float)))


def test_x2_is_named_too() -> None:
    with pytest.raises(tp.ProgramError, match="x2"):
        tp.ntk(ZOO["mlp"], jnp.ones((2, 4)), jnp.ones((2, 5)))


@pytest.mark.parametrize("width", [0, -3, 2.5, True, {"m": 4}])
def test_bad_widths(width: Any) -> None:
    with pytest.raises(tp.ProgramError, match="width"):
        tp.init(ZOO["mlp"], jax.random.key(0), width)


def test_an_unknown_zoo_name_lists_the_names() -> None:
    with pytest.raises(tp.ProgramError, match="mlp_tied"):
        ZOO["mpl"]


def test_views_of_what_is_no_program() -> None:
    wrong: Any = lambda x: x
    for view in (tp.ntk, tp.check, tp.recursion):
        with pytest.raises(tp.ProgramError, match=r"tp\.trace"):
            view(wrong)
