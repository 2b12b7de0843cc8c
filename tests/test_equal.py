"""Equal inputs: of x1 and x2, and within one batch, have the kernel of an input with itself, and its derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.program import Program

SLOW = pytest.mark.slow
RNG = np.random.default_rng(0)


def relu_net(x: Any) -> Any:
    """The slope of its function jumps, so that near correlation 1 the NTK loses half the digits."""
    n = tp.Width("n")
    g = tp.weight("W", n, 3, var=1.7) @ x + tp.bias("b", n, var=0.2)
    return tp.weight("v", 1, n, var=0.9) @ tp.nonlin(jax.nn.relu, g)


NET = tp.trace(relu_net, tp.Input(3))
X = np.random.default_rng(1).normal(size=(4, 3))
MIXED = np.concatenate([X[[2, 0]], X[[2]] + 0.5, X[[3, 3]]])
"""Rows of `X` out of order, one twice, and one that `X` has not."""
PAIRS = [(2, 0), (0, 1), (3, 3), (3, 4)]


def both(kernel: Any, *, rtol: float = 0.0) -> None:
    """kernel(x1, x2) of equal rows is that of the rows with themselves."""
    itself, crossing = kernel(X, None), kernel(X, MIXED)
    for own, found in zip(jax.tree.leaves(itself), jax.tree.leaves(crossing), strict=True):
        for i, j in PAIRS:
            np.testing.assert_allclose(found[i, j], own[i, i], rtol=rtol)


def test_equal_rows_have_the_kernel_of_themselves() -> None:
    """To the bit, whatever the precision: an arc cosine near correlation 1 has half the digits."""
    both(lambda a, b: tp.kernels(NET, a, b))
    exact, found = np.asarray(tp.ntk(NET, X)), np.asarray(tp.ntk(NET, X, X[::-1]))
    np.testing.assert_allclose(found[:, ::-1], exact, rtol=1e-14)


@SLOW
def test_bounds_and_single_precision_of_equal_rows() -> None:
    both(lambda a, b: tp.kernels(NET, a, b, error=True))
    narrow = lambda a: None if a is None else jnp.asarray(a, jnp.float32)
    both(lambda a, b: tp.kernels(NET, narrow(a), narrow(b)))


def test_one_batch_given_twice_is_one_batch() -> None:
    for other in (X, X.copy()):
        np.testing.assert_array_equal(tp.ntk(NET, X, other), tp.ntk(NET, X))


def test_rows_that_repeat_within_a_batch() -> None:
    found, itself = np.asarray(tp.ntk(NET, MIXED)), np.asarray(tp.ntk(NET, X))
    np.testing.assert_array_equal(found[3:, 3:], np.full((2, 2), itself[3, 3]))
    np.testing.assert_array_equal(found, found.T)


@SLOW
def test_terms_and_second_moments_of_equal_rows() -> None:
    both(lambda a, b: list(tp.ntk_by_parameter(NET, a, b).values()), rtol=1e-15)
    both(lambda a, b: tp.second_moment(NET, "s1", "s1", a, b))


def test_inside_transformations() -> None:
    """Under the user's jit too, where rows are compared while it runs; and mapped."""
    itself = np.diag(tp.ntk(NET, X))
    inside = jax.jit(jax.vmap(lambda x: tp.ntk(NET, X, x[None])[:, 0]))(jnp.asarray(MIXED))
    np.testing.assert_allclose([inside[j, i] for i, j in PAIRS], [itself[i] for i, _ in PAIRS], rtol=1e-15)


def derivatives(kernel: Any) -> tuple[Any, Any]:
    at = jnp.array([1.7, 0.2])
    return jax.jacfwd(kernel)(at), jax.hessian(kernel)(at)


def with_variances(v: jax.Array) -> Program:
    return NET.replace({"W.var": v[0], "b.var": v[1], "v.var": v[0] ** 2})


@SLOW
def test_derivatives_in_variances() -> None:
    """First and second ones, which near correlation 1 are off by half, of known inputs and of traced ones."""
    itself = derivatives(lambda v: jnp.diagonal(tp.ntk(with_variances(v), X[:2])))
    assert np.abs(itself[1]).max() > 0.1

    @jax.jit
    def inside(x: jax.Array, y: jax.Array) -> Any:
        return derivatives(lambda v: jnp.diagonal(tp.ntk(with_variances(v), x, y)))

    known = derivatives(lambda v: jnp.diagonal(tp.ntk(with_variances(v), X[:2], X[[1, 0]])[:, ::-1]))
    for found in (known, inside(X[:2], X[:2])):
        for own, there in zip(itself, found, strict=True):
            np.testing.assert_allclose(there, own, rtol=1e-12)


@SLOW
def test_derivatives_in_inputs() -> None:
    """Of two arguments that happen to be equal each has half the derivative of the diagonal; no NaN."""
    x = jnp.asarray(X[:2])
    diagonal = jax.jacrev(lambda x: jnp.diagonal(tp.ntk(NET, x)))(x)
    first = jax.jacrev(lambda x, y: jnp.diagonal(tp.ntk(NET, x, y)))
    np.testing.assert_allclose(first(x, x), diagonal / 2, rtol=1e-6)
    other = jax.jacrev(lambda y: jnp.diagonal(tp.ntk(NET, x, y)))(x)
    np.testing.assert_allclose(other, diagonal / 2, rtol=1e-6)
    both_ways = jax.jacrev(lambda x: jnp.diagonal(tp.ntk(NET, x, x)))(x)
    np.testing.assert_allclose(both_ways, diagonal, rtol=1e-6)


@pytest.mark.parametrize("outer", [pytest.param(jax.jacfwd, marks=SLOW), jax.jacrev])
@pytest.mark.parametrize("inner", [pytest.param(jax.jacfwd, marks=SLOW), jax.jacrev])
def test_mixed_derivatives_in_inputs_and_numbers(outer: Any, inner: Any) -> None:
    """What an input with itself does not know is the kernel's of two: the slope of C = v ⟨x, y⟩ in both is v.

    Reverse mode keeps no rules of what is linear in a direction: first in the numbers, then in the inputs it was 0.
    """

    def linear(x: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ (tp.weight("W", n, 3, var=1.7) @ x)

    net = tp.trace(linear, tp.Input(3))
    x = jnp.asarray(X[0])
    kernel = lambda v, x, y: tp.nngp(net.replace({"W.var": v}), x[None], y[None])[0, 0]
    np.testing.assert_allclose(outer(inner(kernel, 0), 1)(1.7, x, x), x / 3, rtol=1e-12)
    if (outer, inner) != (jax.jacrev, jax.jacrev):
        np.testing.assert_allclose(outer(inner(kernel, 1), 0)(1.7, x, x), x / 3, rtol=1e-12)
        slopes = outer(inner(kernel, 1), 2)(1.7, x, x)
        np.testing.assert_allclose(slopes, 1.7 / 3 * np.eye(3), atol=1e-12)


@SLOW
def test_several_inputs_over_sites() -> None:
    """A pair is of equal inputs where all of them are; kernels of sites come with it."""

    def function(x: Any, y: Any) -> Any:
        n = tp.Width("n")
        g = tp.weight("W", n, 2) @ x + tp.weight("V", n, 3) @ y
        return tp.weight("v", 1, n) @ (tp.nonlin(jax.nn.relu, g))

    net = tp.trace(function, tp.Input(2, 2), tp.Input(3))
    a, b = (RNG.normal(size=shape) for shape in ((3, 2, 2), (3, 3)))
    both_equal, one_equal = (a[[1, 0]], b[[1, 0]]), (a[[1, 0]], b[[2, 0]])
    itself = np.asarray(tp.ntk(net, (a, b)))
    found = np.asarray(tp.ntk(net, (a, b), both_equal))
    np.testing.assert_array_equal(found[1, 0], itself[1, 1])
    np.testing.assert_array_equal(found[0, 1], itself[0, 0])
    found = np.asarray(tp.ntk(net, (a, b), one_equal))
    np.testing.assert_array_equal(found[0, 1], itself[0, 0])
    assert abs(found[1, 0] - itself[1, 1]).max() > 1e-3
