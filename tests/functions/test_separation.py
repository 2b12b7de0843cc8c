"""Functions of several vectors as sums of products: the same values, of as few Gaussians at once as there can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog.functions.frozen import freeze
from tensorprog.functions.separation import separated

SCALE = jnp.asarray(1.7)


@jax.custom_jvp
def reversed_gradient(a: Any, b: Any) -> Any:
    return a * b


reversed_gradient.defjvp(lambda primals, tangents: (primals[0] * primals[1], -primals[1] * tangents[0]))

TAKEN_APART: tuple[tuple[Callable[..., Any], int, int], ...] = (
    (lambda a, b: a * jnp.sin(6 * b), 1, 2),
    (lambda a, b: jax.nn.relu(a) * jax.nn.relu(b), 1, 2),
    (lambda a, b: jnp.tanh(50 * (a - 1)) * b, 1, 2),
    (lambda a, b: jax.nn.silu(a) * b, 1, 2),
    (lambda a, b: -a * b - 2 * b, 2, 3),
    (lambda a, b: SCALE * a * jnp.tanh(SCALE * b) + 3.0, 2, 3),
    (lambda a, b: a**2 / (1 + b**2), 1, 2),
    (lambda a, b: jnp.abs(a * b) ** 3, 1, 2),
    (lambda a, b: (1 + a * b) ** 2, 4, 7),
    (lambda a, b: jnp.exp(-1000 * ((a - 1) ** 2 + (b - 2) ** 2)), 1, 2),
    (lambda a, b: jnp.exp(a + b) * a, 1, 2),
    (lambda a, b: jnp.cos(a**2 + b**2), 2, 4),
    (lambda a, b: jnp.sin(a**2 + jnp.tanh(b)), 2, 4),
    (lambda a, b: jnp.exp(-((a - b) ** 2)), 1, 1),
    (lambda a, b: jnp.tanh(a + 0.5 * b), 1, 1),
    (lambda a, b: jnp.where(a > 0, b, jnp.cos(b)), 2, 4),
    (lambda a, b: jnp.where(a > 0, b * jnp.log(a), 0.0), 1, 2),
    (lambda a, b, c: a * jax.nn.sigmoid(b) * jnp.tanh(c), 1, 3),
    (lambda a, b, c: jnp.tanh(a + b) * jax.nn.relu(c), 1, 2),
)
"""Functions, how many products they are, and of how many factors in all."""


@pytest.mark.parametrize(("fn", "products", "factors"), TAKEN_APART)
def test_products_add_up_to_the_function(fn: Any, products: int, factors: int) -> None:
    frozen, numbers = freeze(fn)
    count = fn.__code__.co_argcount
    found = separated(frozen, (True,) * count, 0, tuple(n.shape for n in numbers))
    assert found is not None
    assert (len(found), sum(map(len, found))) == (products, factors)
    for at in np.random.default_rng(0).normal(size=(4, count)):
        check_the_sum(fn, found, numbers, at)


def check_the_sum(fn: Any, found: Any, numbers: Any, at: Any) -> None:
    """The products add up to fn at one point; what is not taken apart is itself."""
    if found is not None:
        total = 0.0
        for term in found:
            value = 1.0
            for factor in term:
                forms = [jnp.asarray(np.dot(weights, at)) for weights in factor.forms]
                own = numbers if factor.scalars else ()
                value = value * (forms[0] if factor.fn is None else factor.fn(*forms, numbers=own))
            total = total + value
        np.testing.assert_allclose(total, fn(*map(jnp.asarray, at)), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: jnp.abs(a) * jnp.maximum(a, b),
        lambda a, b: a * jnp.tanh(a + b),
        lambda a, b: jnp.hypot(a, b),
        lambda a, b: jnp.cos(a * b),
        lambda a, b: jnp.exp(-(a**2) - a * b - b**2),
        reversed_gradient,
    ],
)
def test_what_does_not_separate_stays_whole(fn: Any) -> None:
    frozen, numbers = freeze(fn)
    assert separated(frozen, (True, True), 0, tuple(n.shape for n in numbers)) is None


def test_sums_are_one_gaussian_of_gaussian_vectors_only() -> None:
    tanh = freeze(lambda a, b: jnp.tanh(a + b))[0]
    assert separated(tanh, (True, False), 0, ()) is None


def test_parts_compare_and_keep_derivatives() -> None:
    """Equal when built twice, so that programs compile once; slopes are those of the function's own rules."""
    build = lambda: separated(freeze(lambda a, b: jax.nn.relu(a) * jnp.sin(3 * b))[0], (True, True), 0, ())
    assert build() == build()
    (term,) = build() or ((),)
    relu, sine = (f.fn for f in term)
    assert sine is not None
    assert relu is not None
    assert jax.grad(relu)(0.0) == 0.0  # jnp.maximum has ½ there
    np.testing.assert_allclose(jax.grad(sine)(0.2), 3 * np.cos(0.6), rtol=1e-12)


def test_casts_round_and_branches_may_be_nothing() -> None:
    """A cast to integers is no part of a product, nor of a sum; no branch that is kept leaves the constant 0."""
    z = np.random.default_rng(0).normal(size=(2, 50)) * 3
    for fn in (
        lambda a, b: a.astype(int) * jnp.tanh(b),
        lambda a, b: (a + b).astype(int) * 1.0,
        lambda a, b: (a * b).astype(int) * jnp.cos(b),
        lambda a, b: a.astype(bool) * b,
        lambda a, b: jnp.where(a.astype(bool), b, a.astype(int)),
        lambda a, b: a.astype(jnp.float16) * b,
        lambda a, b: jnp.where(a > b, 0.0, 0.0),
    ):
        found = separated(freeze(fn)[0], (True, True), 0, ())
        for at in z.T:
            check_the_sum(fn, found, (), at)
