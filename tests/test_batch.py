"""Data as users hand it over."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

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
    (ONE, np.array([[None, 1.0, 2.0]], dtype=object), r"holds None at \[0, 0\]: a value is missing"),
    (ONE, {"a": 1}, "holds an object of type dict"),
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


# -- numbers of every kind -------------------------------------------------------------------------------------------


class Missing:
    """pandas' NA, as its nullable columns hold it: no number, and no Python object that says more."""

    def __repr__(self) -> str:
        return "<NA>"


Missing.__name__ = "NAType"


class Table:
    """A table of pandas, as NumPy sees it: `__array__` gives Python objects where a column may lack values."""

    def __init__(self, *rows: list):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return np.array(self.rows, dtype=object)


class Sparse:
    def toarray(self):
        return GOOD


BIG = np.array([[1_700_000_000_000, 3, -5], [1_700_086_400_000, 2**53, 2**33]])  # milliseconds, beyond 32 bits
KINDS = [
    (BIG, BIG),
    (BIG.tolist(), BIG),
    (np.array([[2**63, 2**64 - 1, 0]], np.uint64), [[2.0**63, 2.0**64, 0.0]]),
    ([[2**70, -(10**30), 1]], [[2.0**70, -1e30, 1.0]]),
    ([[Fraction(1, 3), Decimal("0.5"), True]], [[1 / 3, 0.5, 1.0]]),
    (BIG.astype(">i8"), BIG),
    (GOOD.astype(">f8") / 3, GOOD / 3),
    (GOOD.astype(">f4") / 4, GOOD / 4),
    (GOOD.astype(np.longdouble) / 3, GOOD / 3),
    (Table([1, 2.5, 2**40], [True, np.int8(3), np.float32(0.5)]), [[1.0, 2.5, 2.0**40], [1.0, 3.0, 0.5]]),
    (np.ma.array(GOOD, mask=False), GOOD),
    (memoryview(GOOD), GOOD),
]


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("index", range(len(KINDS)))
def test_numbers_of_every_kind_keep_their_values(index, double):
    given, wanted = KINDS[index]
    with jax.enable_x64(double):
        (array,) = batch(ONE, given)
        wanted = np.asarray(wanted, np.float64).astype(jnp.result_type(float))
        assert array.dtype == (np.float32 if index == 7 else wanted.dtype)
        np.testing.assert_array_equal(array, wanted)


def test_large_integers_of_data_and_kernels_in_single_precision():
    def scaled(x, t):
        return tp.weight("v", 1, x.features) @ (x * 1.0) * tp.scalar(lambda t: t / 1.7e12, t)

    program = tp.trace(scaled, tp.Input(3), tp.Data())
    with jax.enable_x64(False):
        found = tp.ntk(program, (BIG, BIG[:, 0]))
    big = BIG.astype(float)
    exact = big @ big.T / 3 * np.outer(big[:, 0], big[:, 0]) / 1.7e12**2
    np.testing.assert_allclose(found, exact, rtol=1e-5)


FOREIGN = [
    (np.ma.array(GOOD, mask=np.eye(2, 3)), r"has masked entries, the first at \[0, 0\] \(2 such values\); fill or"),
    ([np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])], r"masked entries, the first at \[1\]"),
    ([[1.0, np.ma.masked, 2.0]], "masked entries"),
    (Table([1, Missing(), 2]), r"holds <NA> at \[0, 1\]: a value is missing; remove or impute"),
    (Table([1, "a", 2]), r"holds text at \[0, 1\]"),
    (Table([1, 1j, 2]), "holds complex numbers"),
    (Table([1, np.timedelta64(1, "s"), 2]), "an object of type timedelta64"),
    (Sparse(), r"is sparse \(Sparse\); give x.toarray\(\)"),
    (np.array([["2020-01-01"] * 3], dtype="M8[D]"), r"\(t - t\[0\]\) / np.timedelta64"),
    (np.array([[1, 2, 3]], dtype="m8[s]"), "dates or times"),
    ([[10**400, 1, 2]], r"beyond float64 at \[0, 0\]"),
    (np.zeros((2, 3), dtype=[("a", float)]), "not numbers"),
    ({1.0, 2.0}, "an object of type set"),
    (GOOD.astype("S1"), "text"),
]


@pytest.mark.parametrize("index", range(len(FOREIGN)))
def test_what_is_no_number_is_refused_in_words(index):
    given, text = FOREIGN[index]
    with pytest.raises(tp.ProgramError, match=text):
        batch(ONE, given)


def test_numbers_beyond_the_dtype():
    with jax.enable_x64(False):
        with pytest.raises(tp.ProgramError, match=r"beyond float32, at \[0, 1\] \(1 such values\).*jax_enable_x64"):
            batch(ONE, [[1.0, 1e300, 2.0]])
        with pytest.raises(tp.ProgramError, match=r"all 0 in float32; scale them up, or.*jax_enable_x64"):
            batch(ONE, GOOD * 1e-60)
        with pytest.raises(tp.ProgramError, match="beyond float32"):
            batch(ONE, [[2**200, 1, 2]])
    assert batch(ONE, GOOD * 1e-60)[0].dtype == np.float64
    data = tp.trace(lambda x, s: tp.weight("v", 1, x.features) @ x * s, tp.Input(3), tp.Data()).structure
    with pytest.raises(tp.ProgramError, match=r"beyond float16, at .*give float64"):
        batch(data, (GOOD.astype(np.float16), np.array([1.0, 1e6])))


def test_numbers_of_the_program_and_targets_are_looked_at_alike():
    program = tp.trace(lambda x: tp.weight("v", 1, x.features) @ x, tp.Input(3))
    assert float(program.replace({"v.var": 2**70}).numbers["v.var"]) == 2.0**70
    assert float(program.replace({"v.var": np.longdouble(0.5)}).numbers["v.var"]) == 0.5
    with pytest.raises(tp.ProgramError, match="not a number"):
        program.replace({"v.var": np.timedelta64(1, "s")})
    with pytest.raises(tp.ProgramError, match="not a number"):
        tp.trace(lambda x: np.ma.array([1.0, 2.0], mask=[1, 0]) * x, tp.Input(3))
    with jax.enable_x64(False):
        mean = tp.predict.posterior(np.eye(2), np.eye(2), None, BIG[:, 0], 0.0).mean
        np.testing.assert_allclose(mean, BIG[:, 0], rtol=1e-6)
        with pytest.raises(tp.ProgramError, match="y: holds numbers beyond float32"):
            tp.predict.posterior(np.eye(2), np.eye(2), None, [1e300, 1.0], 0.0)
        with pytest.raises(TypeError, match="integers beyond JAX's int32"):
            tp.empirical.ntk(lambda p, x: p * x, jnp.ones(1), BIG)
    with pytest.raises(tp.ProgramError, match="y: has masked entries"):
        tp.predict.posterior(np.eye(2), np.eye(2), None, np.ma.array([1.0, 2.0], mask=[1, 0]), 0.0)
    with pytest.raises(TypeError, match="has masked entries"):
        tp.empirical.ntk(lambda p, x: p * x, jnp.ones(1), np.ma.array(GOOD, mask=True))


def test_tables_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([1, 2], dtype="Int64"), "b": [0.5, 1.5], "c": [2**40, 3]})
    (array,) = batch(ONE, frame)
    np.testing.assert_array_equal(array, [[1.0, 0.5, 2.0**40], [2.0, 1.5, 3.0]])
    frame["a"] = pandas.array([1, None], dtype="Int64")
    with pytest.raises(tp.ProgramError, match=r"holds <NA> at \[1, 0\]"):
        batch(ONE, frame)
    frame["a"] = pandas.date_range("2020-01-01", periods=2)
    with pytest.raises(tp.ProgramError, match="object of type Timestamp"):
        batch(ONE, frame)
