"""Data as users hand it over."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.batch import batch


def structure(*inputs: tp.Input):
    def fn(*xs):
        return sum(tp.weight(f"v{i}", 1, x.features) @ (tp.sum(x) if x.sites else x) for i, x in enumerate(xs))

    return tp.trace(fn, *inputs).structure


ONE, SITES, TWO = structure(tp.Input(3)), structure(tp.Input(4, 3)), structure(tp.Input(3), tp.Input(2, 5))
GOOD = np.ones((2, 3))
BAD = np.array([[1.0, 2.0, 3.0], [1.0, np.nan, np.inf]])

REFUSED = [
    (ONE, np.ones(3), r"x1: has shape \(3,\), the program's input is \(N, 3\); add the batch axis: x1\[None\]"),
    (SITES, np.ones((4, 3)), r"x1\[None\]"),
    (SITES, np.ones((2, 12)), r"has shape \(2, 12\), the program's input is \(N, 4, 3\)"),
    (ONE, np.ones((2, 2, 3)), r"give an array \(N, 3\)"),
    (ONE, 3.0, r"has shape \(\)"),
    (ONE, np.ones((2, 4)), "features do not match"),
    (SITES, np.ones((2, 5, 3)), "sites do not match"),
    (ONE, np.ones((0, 3)), "N = 0"),
    (ONE, [], r"has shape \(0,\)"),
    (ONE, None, r"no data.*\(N, 3\)"),
    (ONE, BAD, r"NaN or infinite at \[1, 1\] \(2 such values\)"),
    (ONE, jnp.asarray(BAD), r"NaN or infinite at \[1, 1\]"),
    (ONE, [["a", "b", "c"]], "holds text, not numbers"),
    (ONE, np.array([["a", 1.0, None]], dtype=object), "holds text"),
    (ONE, np.array([[None, 1.0, 2.0]], dtype=object), "holds object"),
    (ONE, {"a": 1}, "holds object"),
    (ONE, np.array([["2020-01-01"] * 3], dtype="M8[D]"), "holds datetime64"),
    (ONE, jax.random.split(jax.random.key(0), 3)[None], "not numbers"),
    (ONE, [[1.0, 2.0, 3.0], [1.0, 2.0]], "not an array"),
    (ONE, np.ones((2, 3)) * 1j, "complex"),
    (ONE, jnp.ones((2, 3)) * 1j, "complex"),
    (ONE, (GOOD, GOOD), "2 arrays for 1 input"),
    (TWO, GOOD, "1 arrays for 2 inputs; give a tuple"),
    (TWO, (GOOD, np.ones((3, 2, 5))), "different numbers of examples"),
    (TWO, (GOOD, np.ones((2, 5))), r"\(N, 2, 5\)"),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_refused(index):
    program, x, text = REFUSED[index]
    with pytest.raises(tp.ProgramError, match=text):
        batch(program, x)


def test_errors_name_the_argument():
    with pytest.raises(tp.ProgramError, match=r"^x2: "):
        batch(ONE, np.ones(3), "x2")


@pytest.mark.parametrize(
    "x", [GOOD, GOOD.tolist(), GOOD.astype(int), GOOD > 0, jnp.ones((2, 3), int), (GOOD,), [[1, 1, 1], [1, 1, 1]]]
)
def test_numbers_become_floating(x):
    (array,) = batch(ONE, x)
    assert array.dtype == jnp.result_type(float)
    np.testing.assert_array_equal(array, GOOD)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_follows_the_inputs(dtype):
    assert batch(ONE, jnp.ones((2, 3), dtype))[0].dtype == dtype


def test_several_inputs():
    first, second = GOOD.astype(np.float32), np.ones((2, 2, 5), int)
    for pair in ((first, second), [first, second]):
        arrays = batch(TWO, pair)
        assert [a.shape for a in arrays] == [(2, 3), (2, 2, 5)]
        assert {a.dtype for a in arrays} == {np.dtype("float32")}


def test_programs_without_inputs():
    empty = tp.trace(
        lambda: tp.weight("v", 1, "n") @ tp.bias("b", tp.Width("n")) if False else tp.bias("b", tp.Width("n"))
    )
    assert batch(empty.structure, None) == ()
    with pytest.raises(tp.ProgramError, match="no inputs; leave it out"):
        batch(empty.structure, GOOD)


def test_traced_data_are_not_looked_at():
    assert jax.jit(lambda x: batch(ONE, x)[0])(BAD).shape == (2, 3)
    with pytest.raises(tp.ProgramError, match="features"):
        jax.jit(lambda x: batch(ONE, x)[0])(np.ones((2, 4)))


def test_what_is_no_program():
    for call in (lambda: tp.check(3), lambda: tp.apply(ONE, {}, GOOD), lambda: tp.init("mlp", jax.random.key(0), 3)):
        with pytest.raises(tp.ProgramError, match=r"is no Program; make one with tp\.trace"):
            call()
