"""The language: what each operation means and which are refused, at the user's line, with what to write instead."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import data

import tensorprog as tp
from tensorprog.ir import Coef, LinComb

Body = Callable[[Any], Any]


def network(body: Body) -> Callable[[Any], Any]:
    """A program around `body`, which gets weights W, U, M, v, vectors h and s, and the input x to work with."""

    def fn(x):
        n, m = tp.Width("n"), tp.Width("m", ratio=2.0)
        U, W, M = tp.weight("U", n, x.features), tp.weight("W", n, n), tp.weight("M", m, n)
        h = U @ x
        return body(SimpleNamespace(
            x=x, n=n, m=m, U=U, W=W, M=M, v=tp.weight("v", 1, n), h=h, s=tp.nonlin(jnp.tanh, h)
        ))  # fmt: skip

    return fn


def value(body: Body, *, sites: tuple[int, ...] = (), key: int = 0) -> tuple[np.ndarray, SimpleNamespace]:
    """What a body's finite network computes, and h, s of the same network: arrays (*sites, n)."""
    x = jax.random.normal(jax.random.key(7), (1, *sites, 3))
    programs = [tp.trace(network(b), tp.Input(*sites, 3)) for b in (body, lambda e: (e.h + 0.0, e.s))]
    params = tp.init(programs[0], jax.random.key(key), {"n": 5, "m": 10})
    result, (h, s) = (tp.apply(p, params, x) for p in programs)
    return np.asarray(result[0]), SimpleNamespace(h=np.asarray(h[0]), s=np.asarray(s[0]))


def refused(body: Body, *texts: str, sites: tuple[int, ...] = ()) -> None:
    """The body is refused at its own line (a one-line function), by an error that says all of `texts`."""
    with pytest.raises(tp.ProgramError) as caught:
        tp.trace(network(body), tp.Input(*sites, 3))
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{body.__code__.co_firstlineno}:"), message
    for text in texts:
        assert text in message, message


# ---- operators

ARRAY = np.array([0.5, -2.0, 3.0, 1.0])
OPERATORS: dict[str, tuple[Body, Callable[[Any], Any]]] = {
    "number * v": (lambda e: 2.0 * e.h, lambda e: 2.0 * e.h),
    "v / number": (lambda e: e.h / 3, lambda e: e.h / 3),
    "1 / v": (lambda e: 1 / e.h, lambda e: 1 / e.h),
    "v - 1": (lambda e: e.h - 1, lambda e: e.h - 1),
    "3 - v": (lambda e: 3 - e.h, lambda e: 3 - e.h),
    "-v": (lambda e: -e.h, lambda e: -e.h),
    "v * w": (lambda e: e.h * e.s, lambda e: e.h * e.s),
    "v / w": (lambda e: e.h / e.s, lambda e: e.h / e.s),
    "v + w - v": (lambda e: e.h + e.s - e.h, lambda e: e.s),
    "v - v": (lambda e: e.h - e.h, lambda e: 0 * e.h),
    "sum of a list": (lambda e: sum([e.h, e.s, e.h]), lambda e: 2 * e.h + e.s),
    "np array * v": (lambda e: ARRAY * e.h, lambda e: ARRAY[:, None] * e.h),
    "v * np array": (lambda e: e.h * ARRAY, lambda e: ARRAY[:, None] * e.h),
    "jnp array * v": (lambda e: jnp.asarray(ARRAY) * e.h, lambda e: ARRAY[:, None] * e.h),
    "jnp array - v": (lambda e: jnp.asarray(ARRAY) - e.h, lambda e: ARRAY[:, None] - e.h),
    "np array / v": (lambda e: ARRAY / e.h, lambda e: ARRAY[:, None] / e.h),
    "v / jnp array": (lambda e: e.h / jnp.asarray(ARRAY), lambda e: e.h / ARRAY[:, None]),
    "np scalar * v": (lambda e: np.float32(2.5) * e.h, lambda e: 2.5 * e.h),
    "jnp scalar + v": (lambda e: jnp.float32(2.5) + e.h, lambda e: 2.5 + e.h),
    "int array + v": (lambda e: np.arange(4) + e.h, lambda e: np.arange(4)[:, None] + e.h),
    "mask * v": (lambda e: (ARRAY > 0) * e.h, lambda e: (ARRAY > 0)[:, None] * e.h),
    "sites broadcast": (lambda e: np.ones((2, 1)) * e.h + e.h[0], lambda e: np.stack([e.h] * 2) + e.h[0]),
    "(v + 1) * array": (lambda e: (e.h + 1) * ARRAY, lambda e: (e.h + 1) * ARRAY[:, None]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_mean_what_they_say(name):
    body, expected = OPERATORS[name]
    result, known = value(body, sites=(4,))
    np.testing.assert_allclose(result, expected(known), rtol=1e-12, atol=1e-12)


def test_tracers_reach_the_operators():
    def outputs(a, b):
        program = tp.trace(network(lambda e: e.v @ (a * e.s + e.s * b + e.s / b)), tp.Input(3))
        return tp.apply(program, tp.init(program, jax.random.key(0), {"n": 5, "m": 5}), jnp.ones((2, 3)))

    plain = outputs(2.0, 0.5)
    np.testing.assert_allclose(jax.jit(outputs)(2.0, 0.5), plain)
    np.testing.assert_allclose(jax.jit(outputs)(jnp.float32(2.0), np.float32(0.5)), plain, rtol=1e-6)
    np.testing.assert_allclose(jax.jacobian(outputs)(2.0, 0.5), plain / 4.5)


def test_equal_terms_are_one():
    def last(body):
        structure = tp.trace(network(body), tp.Input(3)).structure
        return structure.instructions[structure.outputs[0]]

    assert last(lambda e: e.h + e.h) == LinComb(((Coef(2.0), 1),))
    assert last(lambda e: e.h + e.s - e.h) == last(lambda e: e.s)
    assert last(lambda e: e.h - e.h) == LinComb(((Coef(0.0), 1),))


def test_the_same_operation_is_computed_once():
    one = tp.trace(network(lambda e: e.v @ tp.nonlin(jnp.sin, e.h)), tp.Input(3))
    two = tp.trace(network(lambda e: e.v @ (tp.nonlin(jnp.sin, e.h) + tp.nonlin(jnp.sin, e.h))), tp.Input(3))
    assert len(two.structure.instructions) == len(one.structure.instructions) + 1


REFUSED_OPERATORS: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: np.ones((3, 3)) @ e.h, ("tp.mix(A, x)",)),
    (lambda e: jnp.ones((3, 3)) @ e.h, ("tp.mix(A, x)",)),
    (lambda e: e.h @ np.ones((3, 3)), ("W @ x",)),
    (lambda e: e.h @ e.W, ("left of @", "W @ x")),
    (lambda e: e.h @ e.s, ("tp.moment",)),
    (lambda e: 2 * e.W, ("2 * (W @ x)",)),
    (lambda e: e.W * 2, ("2 * (W @ x)",)),
    (lambda e: np.float64(2) * e.W, ("2 * (W @ x)",)),
    (lambda e: jnp.ones(()) * e.W, ("2 * (W @ x)",)),
    (lambda e: -e.W, ("2 * (W @ x)",)),
    (lambda e: e.W + e.W, ("2 * (W @ x)",)),
    (lambda e: e.h * e.W, ("2 * (W @ x)",)),
    (lambda e: e.W @ e.W, ("W @ (W @ x)",)),
    (lambda e: np.ones((3, 3)) @ e.W, ("wrong side of @",)),
    (lambda e: e.W @ np.ones(3), ("tp.Input",)),
    (lambda e: e.W[0], ("no entries",)),
    (lambda e: e.U.T, ("U is n × 3", "fixed dimension")),
    (lambda e: e.v.T, ("v is 1 × n", "fixed dimension")),
    (lambda e: e.M @ (e.M @ e.h), ("widths do not match: M is m × n, the vector has width m", "M.T @")),
    (lambda e: e.M.T @ e.h, ("Mᵀ is n × m, the vector has width n", "write M @")),
    (lambda e: e.h + e.M @ e.h, ("widths do not match: n on the left, m on the right",)),
    (lambda e: e.W @ e.x, ("input is used as a wide vector", "x.features")),
    (lambda e: tp.weight("Z", e.n, 4) @ e.x, ("features do not match: Z is n × 4, the input has 3 features",)),
    (lambda e: e.U @ e.h, ("widths do not match: U is n × 3", "that width on the right")),
    (lambda e: e.h + e.x, ("input is used as a wide vector",)),
    (lambda e: e.x + 1, ("an input is data",)),
    (lambda e: e.x * e.x, ("input is used as a wide vector",)),
    (lambda e: tp.nonlin(jnp.tanh, e.x), ("input is used as a wide vector", "U @ x")),
    (lambda e: tp.nonlin(jnp.tanh, e.v @ e.h), ("readout is used inside", "v g1")),
    (lambda e: e.W @ (e.v @ e.h), ("readout is used inside",)),
    (lambda e: e.h + e.v @ e.h, ("readout is used inside",)),
    (lambda e: (e.v @ e.h) * (e.v @ e.s), ("readout is used inside",)),
    (lambda e: e.v @ e.h + tp.weight("w", 2, e.n) @ e.h, ("1 rows on the left, 2 on the right",)),
    (lambda e: np.arange(5.0) * e.h, ("shapes (4,) and (5,) do not broadcast",)),
    (lambda e: 1j * e.h, ("not real",)),
    (lambda e: np.array([None, 1]) * e.h, ("not a number",)),
    (lambda e: math.nan * e.h, ("nan is not finite",)),
    (lambda e: e.h / 0, ("division by zero",)),
    (lambda e: e.h * [1, 2], ("np.array",)),
    (lambda e: "2" * e.h, ("list or text",)),
    (lambda e: None + e.h, ("real numbers and real arrays",)),
    (lambda e: e.h**2, ("tp.nonlin(lambda z: z**2, x)",)),
    (lambda e: 2**e.h, ("tp.nonlin",)),
    (lambda e: e.h % 2, ("tp.nonlin",)),
    (lambda e: abs(e.h), ("tp.nonlin",)),
]


@pytest.mark.parametrize("index", range(len(REFUSED_OPERATORS)))
def test_refused_operators(index):
    body, texts = REFUSED_OPERATORS[index]
    refused(body, *texts, sites=(4,))


def test_weights_between_two_widths():
    def body(e):
        y = e.M @ e.s
        return e.M.T @ y

    result, known = value(body)
    program = tp.trace(network(body), tp.Input(3))
    theta = np.asarray(tp.init(program, jax.random.key(0), {"n": 5, "m": 10})["M"])
    assert theta.shape == (10, 5)
    np.testing.assert_allclose(result, theta.T @ (theta @ known.s) / 5, rtol=1e-12)


# ---- what is no tensor program

FOREIGN: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: jnp.tanh(e.h), ("tp.nonlin(fn, x)", "jnp.tanh(e.h)")),
    (lambda e: np.tanh(e.h), ("tp.nonlin(fn, x)",)),
    (lambda e: jax.nn.relu(e.h), ("tp.nonlin(fn, x)",)),
    (lambda e: jax.scipy.special.erf(e.h), ("tp.nonlin(fn, x)",)),
    (lambda e: jnp.where(e.h, 1.0, 0.0), ("tp.nonlin(fn, x)",)),
    (lambda e: jnp.matmul(e.W, e.h), ("W @ x",)),
    (lambda e: jnp.stack([e.h, e.h]), ("tp.nonlin(fn, x)",)),
    (lambda e: jax.jit(lambda z: z * 2)(e.h), ("tp.nonlin(fn, x)",)),
    (lambda e: math.sin(e.h), ("tp.nonlin(fn, x)",)),
    (lambda e: np.stack([e.h, e.h]), ("tp.stack",)),
    (lambda e: np.mean(e.h), ("tp.mean",)),
    (lambda e: np.array([e.h, e.s]), ("tp.stack",)),
    (lambda e: np.dot(e.W, e.h), ("the weight W",)),
    (lambda e: e.h if e.h else e.s, ("jnp.where",)),
    (lambda e: e.h and e.s, ("jnp.where",)),
    (lambda e: float(e.h), ("tp.nonlin",)),
    (lambda e: int(e.h), ("tp.nonlin",)),
    (lambda e: e.h > 0, ("Nonlin",)),
    (lambda e: e.h == e.s, ("`is`",)),
    (lambda e: e.h in [e.s], ("`is`",)),
    (lambda e: max(e.h, e.s), ("Nonlin",)),
    (lambda e: list(e.h), ("only site axes",)),
    (lambda e: len(e.h), ("site axis",)),
    (lambda e: e.h.shape, ("'shape'", "sites and features")),
    (lambda e: e.h.sum(), ("tp.sum",)),
    (lambda e: operator.setitem(e.h, 0, 1.0), ("tp.stack",)),
]


@pytest.mark.parametrize("index", range(len(FOREIGN)))
def test_what_is_no_tensor_program(index):
    body, texts = FOREIGN[index]
    refused(body, *texts)


def test_errors_that_are_not_about_traced_values_stay_what_they_are():
    with pytest.raises(TypeError, match="unsupported"):
        tp.trace(network(lambda e: 1 + "a"), tp.Input(3))
    with pytest.raises(AttributeError, match="append"):
        tp.trace(network(lambda e: (1).append(e.h)), tp.Input(3))


# ---- indices and sites

INDICES: dict[str, Any] = {
    "int": 1,
    "negative": -1,
    "slice": slice(1, 3),
    "step": slice(None, None, -2),
    "ellipsis": (Ellipsis, 0),
    "both": (slice(None), 1),
    "new axis": (None, 0),
    "list": [2, 0],
    "array": np.array([[0, 1], [2, 2]]),
    "jax array": jnp.array([0, 2]),
    "mask": np.array([True, False, True]),
    "whole mask": np.arange(6).reshape(3, 2) % 2 == 0,
    "np int": np.int64(2),
    "empty": slice(3, None),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_are_numpys(name):
    index = INDICES[name]
    result, known = value(lambda e: e.h[index], sites=(3, 2))
    place = np.arange(6).reshape(3, 2)[np.asarray(index) if isinstance(index, jax.Array) else index]
    expected = known.h.reshape(6, 5)[place]
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


def test_iteration_and_len_count_the_first_site_axis():
    result, known = value(lambda e: sum(h * (i + 1) for i, h in enumerate(e.h)) * len(e.h), sites=(3, 2))
    np.testing.assert_allclose(result, 3 * (known.h[0] + 2 * known.h[1] + 3 * known.h[2]), rtol=1e-12)


SITES: dict[str, tuple[Body, Callable[[Any], Any]]] = {
    "stack": (lambda e: tp.stack([e.h, e.s]), lambda e: np.stack([e.h, e.s])),
    "stack axis": (lambda e: tp.stack([e.h, e.s], axis=-1), lambda e: np.stack([e.h, e.s], 2)),
    "concat": (lambda e: tp.concat([e.h, e.s], axis=1), lambda e: np.concatenate([e.h, e.s], 1)),
    "reshape": (lambda e: tp.reshape(e.h, (2, -1)), lambda e: e.h.reshape(2, 3, 5)),
    "flatten": (lambda e: tp.reshape(e.h, 6), lambda e: e.h.reshape(6, 5)),
    "sum": (lambda e: tp.sum(e.h), lambda e: e.h.sum((0, 1))),
    "sum axis": (lambda e: tp.sum(e.h, axis=-1), lambda e: e.h.sum(1)),
    "mean": (lambda e: tp.mean(e.h, axis=(0, 1)), lambda e: e.h.mean((0, 1))),
    "mean axis": (lambda e: tp.mean(e.h, 0), lambda e: e.h.mean(0)),
    "stack of sums": (lambda e: tp.stack([e.h + e.s, 2 * e.h]), lambda e: np.stack([e.h + e.s, 2 * e.h])),
}


@pytest.mark.parametrize("name", SITES)
def test_operations_on_sites(name):
    body, expected = SITES[name]
    result, known = value(body, sites=(3, 2))
    np.testing.assert_allclose(result, expected(known), rtol=1e-12, atol=1e-15)


REFUSED_SITES: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: e.h[4], ("g1[4]", "out of bounds")),
    (lambda e: e.h[0, 0], ("g1[0, 0]", "own axis (features, width) cannot be indexed")),
    (lambda e: e.x[:, 0], ("x[:, 0]", "cannot be indexed")),
    (lambda e: e.h[1.0], ("g1[1.0]",)),
    (lambda e: e.h[np.array([True, False])], ("boolean",)),
    (lambda e: tp.stack([e.h, e.h[0]]), ("stack(g1, g1[0])", "(4,), ()")),
    (lambda e: tp.stack([]), ("at least one",)),
    (lambda e: tp.stack([e.h, 1.0]), ("1.0 is no vector",)),
    (lambda e: tp.stack([e.h, e.M @ e.h]), ("widths do not match",)),
    (lambda e: tp.concat([e.h, e.h], axis=1), ("axis 1 is out of bounds",)),
    (lambda e: tp.stack([e.h], axis="a"), ("'a' is no axis",)),
    (lambda e: tp.reshape(e.h, (3,)), ("reshape",)),
    (lambda e: tp.sum(e.h, axis=1), ("axis=1 names a site axis that sites (4,) do not have",)),
    (lambda e: tp.mean(e.h, axis="time"), ("'time'",)),
    (lambda e: tp.mean(e.h[4:]), ("no sites",)),
    (lambda e: tp.mean(3.0), ("3.0 is no vector",)),
    (lambda e: tp.sum(tp.moment(jnp.square, e.h)), ("tp.scalar(jnp.sum, θ)",)),
    (lambda e: tp.moment(jnp.square, e.h)[4], ("θ[4]", "out of bounds", "site axes of the scalar")),
]


@pytest.mark.parametrize("index", range(len(REFUSED_SITES)))
def test_refused_operations_on_sites(index):
    body, texts = REFUSED_SITES[index]
    refused(body, *texts, sites=(4,))


# ---- functions


def test_a_function_is_taken_as_it_is_at_the_call():
    def body(e):
        out = []
        for k in range(1, 4):
            out.append(tp.nonlin(lambda z: k * z, e.h))  # noqa: B023 (this is the point)
        k = 100
        return tp.stack(out)

    result, known = value(body)
    np.testing.assert_allclose(result, np.stack([k * known.h for k in (1, 2, 3)]), rtol=1e-12)


def test_scalars_of_functions_broadcast_over_sites():
    result, known = value(lambda e: tp.nonlin(lambda z, a, b: a * z + b, e.h, scalars=(ARRAY, 2.0)), sites=(4,))
    np.testing.assert_allclose(result, ARRAY[:, None] * known.h + 2.0, rtol=1e-12)


def test_arrays_that_a_function_holds_are_numbers_of_the_program():
    a = jnp.float32(0.3)
    program = tp.trace(network(lambda e: e.v @ tp.nonlin(lambda z: a * z, e.h)), tp.Input(3))
    assert float(program.numbers["lambda.1"]) == pytest.approx(0.3)


OVER: dict[str, tuple[Body, Callable[[Any], Any]]] = {
    "one axis": (lambda e: tp.nonlin(jnp.cumsum, e.h, over=0), lambda e: np.cumsum(e.h, 0)),
    "last axis": (lambda e: tp.nonlin(jnp.cumsum, e.h, over=-1), lambda e: np.cumsum(e.h, 1)),
    "dropped": (lambda e: tp.nonlin(jnp.max, e.h, over=0), lambda e: e.h.max(0)),
    "both dropped": (lambda e: tp.nonlin(jnp.max, e.h, over=(0, 1)), lambda e: e.h.max((0, 1))),
    "order given": (
        lambda e: tp.nonlin(lambda z: jnp.cumsum(z, axis=0) * z.shape[0], e.h, over=(1, 0)),
        lambda e: 2 * np.cumsum(e.h, 1),
    ),
    "other length": (lambda e: tp.nonlin(lambda z: z[:1] - z[1:], e.h, over=0), lambda e: e.h[:1] - e.h[1:]),
    "scalars first": (
        lambda e: tp.nonlin(lambda z, a: jnp.cumsum(z) + a[-1], e.h, scalars=(np.arange(2.0),), over=0),
        lambda e: np.cumsum(e.h, 0) + np.arange(2.0)[:, None],
    ),
    "two vectors": (lambda e: tp.nonlin(jnp.dot, e.h, e.s, over=0), lambda e: (e.h * e.s).sum(0)),
    "none": (lambda e: tp.nonlin(jnp.sin, e.h, over=()), lambda e: np.sin(e.h)),
}


@pytest.mark.parametrize("name", OVER)
def test_over_shows_a_function_whole_axes(name):
    body, expected = OVER[name]
    result, known = value(body, sites=(3, 2))
    np.testing.assert_allclose(result, expected(known), rtol=1e-12)


def test_moments_and_functions_of_scalars():
    def body(e):
        c = tp.moment(lambda a, b: a * b, e.h, e.s)
        return e.s * tp.scalar(lambda c, d: d * jnp.cumsum(c), c, 2.0) / (1 + 2 * c - c / 4) + (3.0 - c)

    result, known = value(body, sites=(4,))
    c = (known.h * known.s).mean(-1, keepdims=True)
    expected = known.s * 2.0 * np.cumsum(c, 0) / (1 + 2 * c - c / 4) + (3.0 - c)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


REFUSED_FUNCTIONS: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: tp.nonlin(3, e.h), ("expected a function",)),
    (lambda e: tp.nonlin(jnp.tanh), ("no vector",)),
    (lambda e: tp.nonlin(jnp.add, e.h, 1.0), ("1.0 is no vector", "scalars=(…,)")),
    (lambda e: tp.nonlin(jnp.add, e.h, e.M @ e.h), ("widths do not match",)),
    (lambda e: tp.nonlin(jnp.tanh, e.h, e.h), ("tanh(number, number) fails",)),
    (lambda e: tp.nonlin(lambda z: jnp.stack([z, z]), e.h), ("array of shape (2,)", "over=axes")),
    (lambda e: tp.nonlin(lambda z: (z, z), e.h), ("tuple",)),
    (lambda e: tp.nonlin(lambda z: 1j * z, e.h), ("complex",)),
    (lambda e: tp.nonlin(lambda z: z if z > 0 else 0.0, e.h), ("jnp.where(z > 0, a, b)",)),
    (lambda e: tp.nonlin(np.tanh, e.h), ("jax.numpy instead of numpy",)),
    (lambda e: tp.nonlin(math.tanh, e.h), ("jax.numpy instead of numpy",)),
    (lambda e: tp.nonlin(lambda z: 1 // 0, e.h), ("ZeroDivisionError",)),
    (lambda e: tp.nonlin(lambda z: z * e.h, e.s), ("traced vector from outside",)),
    (lambda e: tp.nonlin(jnp.add, e.h, scalars=2.0), ("scalars=(…,)",)),
    (lambda e: tp.nonlin(jnp.add, e.h, scalars=(e.s,)), ("no scalar",)),
    (lambda e: tp.nonlin(jnp.max, e.h, over=1), ("over=1", "sites (4,)")),
    (lambda e: tp.nonlin(jnp.max, e.h, over=(0, 0)), ("twice",)),
    (lambda e: tp.nonlin(jnp.max, e.h, over="a"), ("over='a'",)),
    (lambda e: tp.nonlin(lambda z: z[:, None], e.h, over=0), ("returns shape (4, 1)",)),
    (lambda e: tp.moment(jnp.square), ("tp.scalar",)),
    (lambda e: tp.moment(jnp.square, e.v @ e.h), ("readout is used inside",)),
    (lambda e: tp.moment(lambda z: jnp.stack([z, z]), e.h), ("array of shape (2,)",)),
    (lambda e: tp.scalar(jnp.sqrt, e.h), ("no scalar",)),
    (lambda e: tp.scalar(lambda c: (c, c), tp.moment(jnp.square, e.h)), ("tuple",)),
]


@pytest.mark.parametrize("index", range(len(REFUSED_FUNCTIONS)))
def test_refused_functions(index):
    body, texts = REFUSED_FUNCTIONS[index]
    refused(body, *texts, sites=(4,))


# ---- names


def names(body: Body, *inputs: tp.Input) -> list[str]:
    structure = tp.trace(network(body), *(inputs or (tp.Input(3),))).structure
    return [name for name in structure.names if name is not None]


def test_names_count_in_order_of_execution():
    assert names(lambda e: e.v @ tp.nonlin(lambda z, c: c * z, e.W @ e.s, scalars=(1.5,))) == ["g1", "s1", "g2", "s2"]
    assert names(lambda e: (tp.moment(jnp.square, e.W @ e.s + e.h), e.W @ e.s)) == ["g1", "s1", "g3", "g2", "c1"]
    assert names(lambda e: e.v @ tp.nonlin(jnp.sin, e.h + e.W @ e.s)) == ["g1", "s1", "g2", "s2"]


def test_a_sum_that_is_read_twice_is_h():
    def body(e):
        stream = e.h + e.W @ e.s
        return e.v @ (stream + e.W @ tp.nonlin(jnp.tanh, e.W @ stream))

    assert "h1" in names(body)


def test_named_overrides_and_is_unique():
    assert names(lambda e: e.v @ tp.nonlin(jnp.tanh, tp.named("pre", e.W @ e.s))) == ["g1", "s1", "pre", "s2"]
    refused(lambda e: (tp.named("a", e.h + 1), tp.named("a", e.s)), "'a' names something else already")
    refused(lambda e: tp.named("W", e.s), "'W' names something else already")
    refused(lambda e: tp.named("a", e.W), "no vector or scalar")
    refused(lambda e: tp.named(3, e.s), "3 is no name")


def test_one_instruction_may_have_two_names():
    def body(e):
        a, b = (tp.named(name, tp.nonlin(jnp.sin, e.h)) for name in ("a", "b"))
        return e.v @ (a + b)

    program = tp.trace(network(body), tp.Input(3))
    params = tp.init(program, jax.random.key(0), {"n": 4, "m": 4})
    a, b = (tp.apply(program, params, jnp.ones((1, 3)), at=name) for name in ("a", "b"))
    np.testing.assert_array_equal(a, b)


# ---- declarations

REFUSED_DECLARATIONS: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: tp.weight("W", e.n, e.n), ("'W' is declared already", "declare it once")),
    (lambda e: tp.bias("W", e.n), ("'W' is declared already",)),
    (lambda e: tp.weight("Z", e.n, e.n, var=-1.0), ("var=-1.0: -1 is negative", "at least 0")),
    (lambda e: tp.weight("Z", e.n, e.n, var=math.inf), ("not finite",)),
    (lambda e: tp.weight("Z", e.n, e.n, var="big"), ("var='big' is not a number",)),
    (lambda e: tp.weight("Z", e.n, e.n, var=True), ("var=True is not a number",)),
    (lambda e: tp.weight("Z", e.n, e.n, var=np.ones(2)), ("var has shape (2,)",)),
    (lambda e: tp.weight("Z", e.n, e.n, lr=-0.1), ("learning rate",)),
    (lambda e: tp.weight("Z", e.n, e.n, scale=0.0), ("scale=0.0: 0 is not positive",)),
    (lambda e: tp.bias("b", e.n, mean=math.nan), ("nan is not finite",)),
    (lambda e: tp.weight("Z", e.n, 0), ("0 is no dimension",)),
    (lambda e: tp.weight("Z", -1, e.n), ("-1 is no dimension",)),
    (lambda e: tp.weight("Z", True, e.n), ("True is no dimension",)),
    (lambda e: tp.weight("Z", 2.0, e.n), ("2.0 is no dimension",)),
    (lambda e: tp.weight("Z", 1, "width"), ("'width' is no dimension",)),
    (lambda e: tp.weight("", 1, e.n), ("'' is no name",)),
    (lambda e: tp.weight(3, 1, e.n), ("3 is no name",)),
    (lambda e: tp.weight("Z", 1, tp.Width("k", ratio=0.0)), ("0 is not positive",)),
    (lambda e: tp.weight("Z", 1, tp.Width("m", ratio=3.0)), ("declared with ratio 2.0 before",)),
    (lambda e: tp.weight("Z", 1, tp.Width(3)), ("3 is no name",)),
    (lambda e: tp.weight("Z", e.n, e.n, window=(0,)), ("window=(0,) is no shape",)),
    (lambda e: tp.bias("b", e.n, sites="a"), ("sites='a' is no shape",)),
    (lambda e: tp.weight("Z", e.n, e.n, window=(3,)) @ e.h, ("tp.conv(W, x)",)),
    (lambda e: tp.weight("Z", e.n, e.n, sites=(3,)) @ tp.stack([e.h] * 2), ("tp.conv_local(W, x)",)),
    (lambda e: tp.weight("Z", e.n, e.n, window=(3,)).T, ("tp.conv_transpose",)),
]


@pytest.mark.parametrize("index", range(len(REFUSED_DECLARATIONS)))
def test_refused_declarations(index):
    body, texts = REFUSED_DECLARATIONS[index]
    refused(body, *texts)


def test_the_features_of_a_vector_are_a_dimension():
    program = tp.trace(network(lambda e: tp.weight("Z", e.h.features, e.h.features) @ e.h), tp.Input(3))
    assert program.structure.weights[-1].rows == "n"


# ---- trace


@pytest.mark.parametrize("shape", [(), (0,), (-1,), (2.5,), ("a",), (True,), (3, 0)])
def test_no_input(shape):
    with pytest.raises(tp.ProgramError, match="Input"):
        tp.Input(*shape)


def test_trace_checks_its_arguments():
    def net(x, *, depth):
        return tp.weight("v", 1, x.features) @ x

    for wrong, text in (
        (lambda: tp.trace(net), "missing a required argument: 'x'"),
        (lambda: tp.trace(net, tp.Input(3)), "'depth'"),
        (lambda: tp.trace(net, tp.Input(3), tp.Input(3), depth=1), "too many positional"),
        (lambda: tp.trace(net, 3, depth=1), "describes no input"),
        (lambda: tp.trace(3), "is no function"),
    ):
        with pytest.raises(tp.ProgramError, match=text):
            wrong()


RETURNS: list[tuple[Body, str]] = [
    (lambda e: None, "return None"),
    (lambda e: e.W, "the weight W"),
    (lambda e: e.x, "the output is an input"),
    (lambda e: (), "returns nothing"),
    (lambda e: {"a": e.h}, "no vector or scalar"),
]


@pytest.mark.parametrize("index", range(len(RETURNS)))
def test_refused_outputs(index):
    body, text = RETURNS[index]
    fn = network(body)
    with pytest.raises(tp.ProgramError, match=text) as caught:
        tp.trace(fn, tp.Input(3))
    assert str(caught.value).startswith(f"{__file__}:{fn.__code__.co_firstlineno}:")


def test_declarations_need_a_trace():
    for wrong in (lambda: tp.weight("W", 1, 3), lambda: tp.bias("b", 3), lambda: tp.moment(jnp.sin)):
        with pytest.raises(tp.ProgramError, match="outside a trace"):
            wrong()


def test_values_stay_in_their_trace():
    kept = []
    tp.trace(network(lambda e: kept.append(e.h) or e.h), tp.Input(3))
    for use in (
        lambda e: e.h + kept[0],
        lambda e: e.W @ kept[0],
        lambda e: tp.nonlin(jnp.add, e.h, kept[0]),
        lambda e: tp.stack([e.h, kept[0]]),
    ):
        refused(use, "another trace")
    with pytest.raises(tp.ProgramError, match="another trace"):
        tp.trace(network(lambda e: kept[0]), tp.Input(3))


def test_a_trace_inside_a_trace():
    def body(e):
        tp.trace(network(lambda e: e.v @ e.h), tp.Input(3))
        return e.v @ e.h

    assert tp.trace(network(body), tp.Input(3)) == tp.trace(network(lambda e: e.v @ e.h), tp.Input(3))


def test_partial_and_callable_objects_are_traced():
    class Net:
        def __call__(self, x, gain):
            return gain * (tp.weight("v", 1, x.features) @ x)

    program = tp.trace(functools.partial(Net(), gain=2.0), tp.Input(3))
    assert program.structure.input_names == ("x",)


# ---- whose line an error names


def helper(h):
    return jnp.tanh(h)  # in the helper


def test_errors_name_the_innermost_line_of_the_user():
    with pytest.raises(tp.ProgramError) as caught:
        tp.trace(network(lambda e: helper(e.h)), tp.Input(3))
    assert f"{__file__}:{helper.__code__.co_firstlineno + 1}: return jnp.tanh(h)" in str(caught.value)


def test_errors_in_notebooks_name_the_cell():
    cell = (
        "def net(x):\n    n = tp.Width('n')\n    W = tp.weight('W', n, n)\n    return W @ x\ntp.trace(net, tp.Input(3))"
    )
    with pytest.raises(tp.ProgramError, match=r"<ipython-input-3-abc>:4: W @ x"):
        exec(compile(cell, "<ipython-input-3-abc>", "exec"), {"tp": tp})


def test_errors_in_architectures_name_the_user_and_the_architecture():
    with pytest.raises(tp.ProgramError) as caught:
        tp.trace(tp.nets.mlp, tp.Input(3), var_w=-1.0)  # the user's line
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(n for n, text in enumerate(source, 1) if text.endswith("# the user's line"))
    assert str(caught.value).startswith(f"{__file__}:{line}: weight('W1', …) (in multilayer.py:")


def test_instructions_stand_where_the_user_wrote_them():
    def net(x):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        pre = 2 * h + 1
        s = tp.nonlin(jnp.tanh, pre)
        return tp.weight("v", 1, n) @ s

    structure = tp.trace(net, tp.Input(3)).structure
    first = net.__code__.co_firstlineno
    lines = {name: structure.line(i) for i, name in enumerate(structure.names) if name}
    numbers = {name: line.number - first for name, line in lines.items() if line is not None}
    assert numbers == {"g1": 3, "s1": 4}


def layers(x: Any, sizes: Any, *, between: Callable[[Any], Any] = lambda h: h) -> Any:
    """A program written from a list, each entry on a line of its own in a file that the list came from."""
    for number, (name, rows) in enumerate(sizes, start=10):
        with tp.source("layers.toml", number):
            x = between(tp.weight(name, rows, x.features) @ x + 1.0)
    return x


def test_lines_can_be_those_of_another_file():
    tanh = lambda h: tp.nonlin(jnp.tanh, h) if h.type.space == "wide" else h
    n = tp.Width("n")
    program = tp.trace(layers, tp.Input(3), sizes=[("U", n), ("W", n), ("v", 1)], between=tanh)
    structure = program.structure
    named = {name: str(structure.line(i)) for i, name in enumerate(structure.names) if name}
    assert named == {"g1": "layers.toml:10", "s1": "layers.toml:10", "g2": "layers.toml:11", "s2": "layers.toml:11"}
    assert str(structure.line(structure.outputs[0])) == "layers.toml:12"
    assert str(structure.lines.parameter("W")) == "layers.toml:11"
    written = {str(line) for line in tp.backprop(program).structure.lines.instructions}
    assert {"layers.toml:11", "layers.toml:12"} <= written, "a backward pass keeps them"
    plain = tp.trace(lambda x: layers(x, [("U", n), ("W", n), ("v", 1)], between=tanh), tp.Input(3))
    assert plain.structure.instructions == structure.instructions


@pytest.mark.parametrize(
    ("sizes", "between", "text"),
    [
        ([("U", tp.Width("n")), ("U", 1)], lambda h: h, "layers.toml:11: weight('U', …) 'U' is declared already"),
        ([("U", tp.Width("n"))], lambda h: tp.nonlin(lambda z: z[0], h), "layers.toml:10: nonlin("),
        ([("U", 0)], lambda h: h, "layers.toml:10: weight('U', …) 0 is no dimension"),
    ],
)  # fmt: skip
def test_errors_name_the_line_of_the_other_file(sizes, between, text):
    with pytest.raises(tp.ProgramError) as caught:
        tp.trace(layers, tp.Input(3), sizes=sizes, between=between)
    assert " ".join(str(caught.value).split()).startswith(text), str(caught.value)


def test_the_innermost_line_holds_and_ends_with_its_block():
    def net(x):
        with contextlib.suppress(ValueError), tp.source("c", 3):
            raise ValueError
        with tp.source("a", 1):
            with tp.source("b", 2):
                h = tp.named("inner", tp.weight("U", tp.Width("n"), 3) @ x)
            y = tp.named("outer", 2 * h)
        return tp.named("after", y + 1)

    structure = tp.trace(net, tp.Input(3)).structure
    lines = {name: structure.line(i) for i, name in enumerate(structure.names) if name}
    assert (str(lines["inner"]), str(lines["outer"])) == ("b:2", "a:1")
    after = lines["after"]
    assert after is not None and after.file == __file__


@pytest.mark.parametrize(("file", "line"), [(3, 3), ("a", 0), ("a", "3"), ("a", True)])
def test_what_is_no_place_in_a_file(file, line):
    def net(x):
        with tp.source(file, line):
            return x

    with pytest.raises(tp.ProgramError, match=r"no place in a file\s+give a file's name and a line, from 1"):
        tp.trace(net, tp.Input(3))


def test_a_line_is_said_inside_a_trace():
    with pytest.raises(tp.ProgramError, match="outside a trace"), tp.source("a", 1):
        pass


# ---- architectures


@pytest.mark.parametrize("name", list(tp.nets.ZOO))
def test_zoo(name):
    program = tp.nets.ZOO[name]
    assert tp.check(program).ok and tp.check(program).gia
    params = tp.init(program, jax.random.key(0), 8)
    found = tp.apply(program, params, data(program, 2))
    outputs = program.structure.outputs
    shapes = [(2, *program.structure.types[o].sites) for o in outputs]
    assert [y.shape for y in (found if isinstance(found, tuple) else (found,))] == shapes
    assert tp.nets.net(name).program() == program


def test_zoo_is_a_mapping():
    assert "rnn" in tp.nets.ZOO and "attention" not in tp.nets.ZOO and len(tp.nets.ZOO) == len(list(tp.nets.ZOO))


def test_zoo_refuses():
    for wrong, text in (
        (lambda: tp.nets.ZOO["mpl"], "'mpl' is no architecture of the zoo; its names are mlp"),
        (lambda: tp.nets.net("mlp").program(depth=0), "depth=0"),
        (lambda: tp.nets.net("rnn").program(tp.Input(4)), r"tp.Input\(time, features\)"),
    ):
        with pytest.raises(tp.ProgramError, match=text):
            wrong()
