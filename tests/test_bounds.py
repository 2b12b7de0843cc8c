"""Bounds of kernels: what is stated of every entry, and that it is carried through every rule."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eager import NUMPY
from moved import KINDS, ROUNDED, check_rules, kernels_off
from zoo import data

import tensorprog as tp
from tensorprog.interpret import rules
from tensorprog.interpret.buffers import Alone, Buffer, Context, stated
from tensorprog.interpret.moments import _RULES
from tensorprog.interpret.plan import Group
from tensorprog.interpret.system import moments, output_targets
from tensorprog.kernel import _with_errors

RNG = np.random.default_rng(0)
EPS = np.finfo(np.float32).eps

# ---- in single precision


@pytest.mark.parametrize("kind", ["linear", "scaled"])
@pytest.mark.parametrize("terms", [2, 12])
def test_sums_and_their_bounds_compiled(kind: str, terms: int) -> None:
    """XLA's CPU compiler reads memory that nobody wrote where one kernel has two sums that share a coefficient, and an
    axis has length 1 (`rules._weighted`): bounds were any numbers, others at each call."""
    shape, rows = (64, 64), 4 * terms
    draw: Any = lambda *shape: RNG.normal(size=shape).astype(np.float32)
    full = Buffer(*draw(4, rows, *shape))  # errors below 0 are numbers like others here
    known = Alone(draw(rows, 64), draw(rows, 64), [])
    monomials, seeds = draw(terms), draw(terms)
    pick = lambda: RNG.integers(0, rows, (1, terms))
    own = np.arange(terms)[None]
    arrays = {"cells": pick(), "coefs": own, "seeds": own, "factors": pick()}
    group = Group((kind, "left"), arrays, True)

    def run(full: Buffer, known: Alone, monomials: Any, seeds: Any) -> Any:
        return getattr(rules, kind)(group, arrays, Context(((), ()), monomials, {}, seeds, known, known), full)

    compiled = jax.jit(run)
    found = [compiled(full, known, monomials, seeds) for _ in range(3)]
    with mock.patch.object(rules, "jnp", NUMPY):
        right = run(*jax.tree.map(lambda a: a.astype(np.float64), (full, known, monomials, seeds)))
    for one in found:
        jax.tree.map(np.testing.assert_array_equal, one, found[0])
        for single, double in zip(one, right, strict=True):
            np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)


def sums_of_many(x: Any) -> Any:
    """Ten vectors in one sum, and one whose coefficients are scalars of the input."""
    n = tp.Width("n")
    h = [tp.nonlin(jax.nn.relu, tp.weight(f"U{k}", n, x.features) @ x) for k in range(10)]
    s = sum((0.3 * one for one in h), h[0])
    s = s / tp.scalar(jnp.sqrt, tp.moment(lambda a: a * a, s))
    return tp.weight("v", 1, n) @ tp.nonlin(jax.nn.relu, tp.weight("W", n, n) @ s + tp.bias("b", n))


@pytest.mark.full
@pytest.mark.parametrize("name", ["mlp", "sums of many"])
def test_bounds_in_single_precision_cover_and_repeat(name: str) -> None:
    """The same of whole kernels, one call after the other and inside a transformation."""
    program = tp.nets.net("mlp").program(depth=3) if name == "mlp" else tp.trace(sums_of_many, tp.Input(4))
    x = data(program, 64)
    right = tp.kernels(program, x)
    single = x.astype(jnp.float32)
    found = [tp.kernels(program, single, error=True) for _ in range(3)]
    inside = jax.jit(lambda x: tp.kernels(program, x, error=True))(single)
    for own in (*found, inside):
        for value, bound, true in zip(own[:2], own.error, right[:2], strict=True):
            assert bound.dtype == jnp.float32
            assert (np.abs(value - true) <= bound).all() and (bound <= 3e-4 * np.abs(true).max()).all()
    for own in found:
        jax.tree.map(np.testing.assert_array_equal, own, found[0])


# ---- what is handed out


def test_what_is_not_known_is_infinite() -> None:
    """A bound is a size or ∞: where carrying it met ∞ · 0, and of a value that is NaN, nothing is known."""
    value, error = jnp.asarray([1.0, 2.0, np.nan, 3.0, np.nan]), jnp.asarray([0.1, np.nan, 0.2, np.inf, np.nan])
    for handed in (stated, jax.jit(stated)):
        np.testing.assert_array_equal(handed(value, error), [0.1, np.inf, np.inf, np.inf, np.inf])
        assert handed(value, error).dtype == value.dtype
    with pytest.raises(AssertionError, match="no negative number"):
        stated(jnp.ones(2), jnp.asarray([1e-9, -1e-9]))


def test_estimated_kernels_that_are_not_finite_are_refused() -> None:
    """On the backward road too; inside a transformation, which can't refuse, a NaN has an infinite standard error."""
    program = tp.nets.ZOO["mlp"]
    kernel, nan = jnp.ones((2, 2)), jnp.full((2, 2), np.nan)
    with pytest.raises(tp.ProgramError, match="the kernel is not finite"):
        _with_errors(program, (kernel, nan, kernel, kernel), True)
    found = jax.jit(lambda k: _with_errors(program, (kernel, k, kernel, nan), True))(nan)
    assert np.isinf(found.error.ntk).all() and np.isfinite(found.error.nngp).all()


# ---- carried through every rule


def everything(x: Any, a: Any) -> Any:
    """Every kind of equation but that of batch norm, in every system that it is met in."""
    n = tp.Width("n")
    W, V = tp.weight("W", n, n), tp.weight("V", n, n)
    h = tp.weight("U", n, x.features) @ tp.mix(a, x) + tp.bias("b", n, var=0.2, mean=0.3)
    s = tp.nonlin(jax.nn.relu, h) - 0.5 * tp.nonlin(jnp.tanh, h)
    c = tp.moment(lambda z: z * jnp.sin(z), h)
    m = tp.moment(lambda p, q, c: jnp.sin(p) * q + c, h, W @ s, scalars=(c,))
    w = tp.nonlin(jax.nn.relu, h - c)
    t = tp.scalar(lambda c, m: c * c - c * m, c, m) * tp.moment(lambda a, b: a * b, w, w)
    c = tp.moment(lambda z, t: jnp.sin(t * z), h, scalars=(t,))
    g = W @ (tp.mix(tp.inner(s, s), s) * t - c)
    u = tp.nonlin(lambda z, k: jnp.tanh(z * k), g, scalars=(t,))
    v = tp.nonlin(lambda p, q, k: jnp.maximum(p, k * q), g, V @ u, scalars=(t,))
    r = tp.nonlin(lambda z: jnp.tanh(2 * z), W @ v)
    return tp.weight("v", 1, n) @ (r[0] + u[1] * c[0])


def test_the_bound_of_every_rule_is_what_its_inputs_errors_change() -> None:
    """Each input of each kind of equation moved by its error (`moved`)."""
    program = tp.trace(everything, tp.Input(2, 3), tp.Data(2, 2))
    x = tuple(RNG.normal(size=(3, *i.shape)) for i in program.structure.inputs)
    check = check_rules(program, moments(program.structure, output_targets(program.structure)), x)
    one_input = {"linear", "scaled", "product", "leaf", "data", "scalar", "pair", "one", "mean", "joint"}
    crossing = {"linear", "scaled", "product", "leaf", "import", "pair", "joint"}
    for where, kinds in (("same", one_input), ("cross", crossing), ("matched", crossing)):
        assert {kind[0] for kind in check.seen if kind[1] == where} == kinds
    assert one_input | crossing == set(_RULES) - {"batch"}  # which comes below
    assert check.rounded >= {(name, "value") for name in ROUNDED} | {(name, "tangent") for name in ROUNDED[:3]}


def normalised(x: Any) -> Any:
    n = tp.Width("n")
    norm = lambda h: tp.nonlin(tp.functions.batch_norm, h, over=0)
    W = tp.weight("W", n, n)
    s = tp.nonlin(jax.nn.relu, norm(tp.weight("U", n, x.features) @ x))
    return tp.weight("v", 1, n) @ tp.nonlin(jax.nn.relu, norm(W @ s))


def test_the_bound_of_batch_norm_is_what_its_inputs_errors_change() -> None:
    program = tp.trace(normalised, tp.Input(4, 3))
    check = check_rules(
        program, moments(program.structure, output_targets(program.structure)), [RNG.normal(size=(2, 4, 3))]
    )
    assert {kind[1] for kind in check.seen if kind[0] == "batch"} == {"same", "cross", "matched"}


def chained(x: Any) -> Any:
    """Expectations of every kind below others."""
    n = tp.Width("n")
    W, V = tp.weight("W", n, n), tp.weight("V", n, n)
    h = tp.weight("U", n, x.features) @ x
    s = tp.nonlin(jnp.tanh, h)
    c = tp.moment(lambda z: z * jnp.sin(z), h) * tp.moment(lambda p, q: jnp.tanh(p * q + p), h, W @ s)
    u = tp.nonlin(lambda p, q: jnp.maximum(p, 0.3 * q), W @ (s * c), V @ s)
    return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, W @ u)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_reach_the_kernels(kind: str) -> None:
    """What is off at one place of a program shows in the kernels' bounds, as much as it moves the kernels."""
    program = tp.trace(chained, tp.Input(3))
    x = np.abs(RNG.normal(size=(3, 3)))
    for which in ("value", "slope") if kind in ("pair", "crossing") else ("value",):
        found, off = kernels_off(program, x, kind, which)
        for value, bound, own in zip(found[:2], found.error, off, strict=True):
            rounding = 1e-13 * np.abs(value).max()
            assert (own <= 1.001 * bound + rounding).all() and (bound <= 30 * own.max() + rounding).all()
        assert own.max() > 1e3 * rounding
