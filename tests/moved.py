"""Every rule's bound against what its inputs, each off by its own bound, make of what the rule computes.

A rule reads cells, tangents, same-input cells of both sides, and expectations. With everything else as it is, one of
these is moved by its error: to first order the rule's bounds are the sums of what that changes. So a term that is left
out, halved or of the wrong sign shows, whatever the rule computes. Nothing is compiled: rules run on NumPy (`eager`),
and expectations are replaced by polynomials in what they are called with, off by bounds of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from eager import array, rules_on_numpy, uncompiled

from tensorprog import evaluation, kernel
from tensorprog.functions import base
from tensorprog.interpret import batch, joints, moments, rules
from tensorprog.interpret.buffers import Alone, Buffer, Context
from tensorprog.interpret.system import Moments, cross_stage, parameter_weights, same_stage
from tensorprog.program import Program

OFF = 1e-6
"""The size of every error, small enough for first order."""
ROUNDED = ("linear", "scaled", "product", "leaf", "scalar")
"""Rules that bound their own rounding; expectations come with bounds, and the others compute nothing."""
KINDS = ("pair", "one", "mean", "joint", "crossing")
"""Expectations: of one Gaussian a side, of one Gaussian, of several at one input and across inputs."""
OWN_NUMBERS = ("pair", "one", "mean", "joint")
"""Rules whose functions may have numbers of each equation or input."""


class Roads:
    """Expectations as polynomials with bounds. `off` says which values and slopes are moved by their bounds, `known`
    which expectations have any."""

    def __init__(self) -> None:
        self.off = {"value": 0.0, "slope": 0.0}
        self.known: tuple[tuple[str, str], ...] = tuple(product((*KINDS, "batch"), self.off))

    def road(self, kind: str, which: str, *arguments: Any) -> tuple[Any, Any]:
        """Something that depends on every argument, and what it may be off by."""
        first, second = {"value": (-1.0, 0.7), "slope": (-0.6, 1.1)}[which]
        terms = [(first, second)[k % 2] * (k + 1.0) * a * (1 + 0.3 * a) for k, a in enumerate(arguments)]
        bound = OFF * ((kind, which) in self.known) * (0.3 + 0.1 * sum(abs(a) for a in arguments))
        return array(sum(terms) + self.off[which] * bound), array(bound)

    def both(self, kind: str, *arguments: Any) -> Any:
        roads = (self.road(kind, which, *arguments) for which in ("value", "slope"))
        return tuple((v, lambda b=b: b) for v, b in roads)

    def pair(self, a: Any, b: Any, c: Any, first: Any = (), second: Any = (), given: Any = None) -> tuple[Any, ...]:
        # Sides that were made before are of the variances that they were made of, whatever is passed beside them.
        a, b = (a, b) if given is None else (given[0] + 0 * c, given[1] + 0 * c)
        return (a, b, c, *first, *second)

    def expect_slope(self, phi: Any, psi: Any, *rest: Any) -> Any:
        return self.both("pair", *self.pair(*rest))

    def expect_error(self, phi: Any, psi: Any, *rest: Any) -> Any:
        return self.road("pair", "value", *self.pair(*rest))

    def expect_one_slope(self, phi: Any, psi: Any, a: Any, first: Any = (), second: Any = ()) -> Any:
        return self.both("one", a, *first, *second)

    def expect_one_error(self, phi: Any, psi: Any, a: Any, first: Any = (), second: Any = ()) -> Any:
        return self.road("one", "value", a, *first, *second)

    def mean_error(self, phi: Any, a: Any, numbers: Any = ()) -> Any:
        return self.road("mean", "value", a, *numbers)

    def mean(self, phi: Any, a: Any, numbers: Any = ()) -> Any:
        return self.mean_error(phi, a, numbers)[0]

    def sides(self, phi: Any, a: Any, numbers: Any = (), *, slope: bool) -> Any:
        return a

    def several(self, kind: str, f: Any, covs: Any, numbers: Any) -> Any:
        entries = [m[..., i, j] for m in jax.tree.leaves(covs) for i, j in np.ndindex(m.shape[-2:])]
        return self.road(kind, "slope" if isinstance(f, joints.Partial) else "value", *entries, *numbers)

    def joint_expectation(self, f: Any, g: Any, cov: Any, numbers: Any, *, bounds: bool = True) -> Any:
        return self.several("joint", f.fn if isinstance(f, joints.Onto) else f, cov, numbers)

    def crossing(self, functions: Any, slots: Any, count: int, covs: Any, numbers: Any, *, bounds: bool = True) -> Any:
        return self.several("crossing", functions[0], covs, numbers)

    # ---- batch norm: variances count as they are, covariances with turns of sign, those between the sides with both

    reaches = 3.0

    def blocks(self, left: Any, right: Any, cov: Any, tangent: Any = None) -> Any:
        def total(x: Any, between: bool) -> Any:
            i, j = np.indices(x.shape[-2:])
            return (x * ((i == j) + (-1.0) ** (i + j) * (between | (i != j)))).sum((-2, -1), keepdims=True)

        size = np.linspace(0.5, 1.0, cov.shape[-1] * cov.shape[-2]).reshape(cov.shape[-2:])
        sums = (total(left, False), total(right, False), total(cov, True))
        if tangent is None:
            return self.road("batch", "value", *(s * size for s in sums))
        value, bound = self.road("batch", "slope", *(0.02 * s * size for s in sums))
        value = value - self.off["slope"] * bound
        return (0.2 + 0.1 * value) * tangent.sum((-2, -1), keepdims=True) + self.off["slope"] * bound, bound

    def same_error(self, left: Any, phi: Any, psi: Any) -> Any:
        return self.blocks(left, left, left)

    def same_tangent_error(self, left: Any, tangent: Any, phi: Any, psi: Any) -> Any:
        return self.blocks(left, left, left, tangent)

    def cross_error(self, left: Any, right: Any, cov: Any, phi: Any, psi: Any) -> Any:
        return self.blocks(left, right, cov)

    def cross_tangent_error(self, left: Any, right: Any, cov: Any, tangent: Any, phi: Any, psi: Any) -> Any:
        return self.blocks(left, right, cov, tangent)

    def reach(self, left: Any, phi: Any) -> Any:
        return array(np.full(left.shape[:-2], self.reaches))


@dataclass(frozen=True)
class State:
    """What a rule reads, with errors of everything."""

    buffer: Buffer
    left: Alone | None
    right: Alone | None

    def moves(self, rows: Iterable[int], matched: bool) -> Iterator[State]:
        """The same with one row moved by its error, each in turn; matched inputs have one side."""
        own = self.buffer
        for row in rows:
            if 1 < row < len(own.value):
                yield replace(self, buffer=replace(own, value=_moved(own.value, own.error, row)))
                if own.tangent is not None:
                    yield replace(self, buffer=replace(own, tangent=_moved(own.tangent, own.tangent_error, row)))
            for side in ("left", "right"):
                known = getattr(self, side)
                if known is None or row >= len(known.value):
                    continue
                moved = replace(known, value=_moved(known.value, known.error, row))
                if not matched:
                    yield replace(self, **{side: moved})
                elif side == "left":
                    yield replace(self, left=moved, right=moved)

    def only_rounded(self) -> State:
        """In single precision, otherwise exact: what is left of bounds is that of rounding."""
        single = jax.tree.map(lambda a: a.astype(np.float32), (self.buffer, self.left, self.right))
        own, left, right = single
        zero = lambda a: None if a is None else 0 * a
        own = replace(own, error=zero(own.error), tangent_error=zero(own.tangent_error))
        return State(own, *(known and replace(known, error=0 * known.error) for known in (left, right)))

    def exact(self) -> State:
        """Without errors, which are not asked for where something is moved."""
        own = replace(self.buffer, error=None, tangent_error=None)
        return State(own, *(known and replace(known, error=None) for known in (self.left, self.right)))


def _moved(values: Any, errors: Any, row: int) -> Any:
    result = values.copy()
    result[row] += errors[row]
    return result


class Check:
    """Wraps the rules of an evaluation; `seen` are the kinds of equations that were checked, with the system, `rounded`
    those whose values and tangents were seen to be rounded."""

    def __init__(self) -> None:
        self.roads, self.rng, self.where = Roads(), np.random.default_rng(0), ""
        self.seen: set[tuple[Any, ...]] = set()
        self.rounded: set[tuple[str, str]] = set()

    def rule(self, name: str, rule: Callable[..., Any]) -> Callable[..., Any]:
        def checked(group: Any, arrays: Any, context: Context, buffer: Buffer) -> Any:
            state = self.state(context, buffer, positive=name == "scalar", zeros=name == "product")
            place = f"{name}, {self.where}"
            if name in ROUNDED and (name != "scalar" or (name, "value") not in self.rounded):  # that one is compiled
                apart = [rounded(rule, group, arrays, context, state, to) for to in (np.float32, float)]
                self.rounded |= {(name, what) for what in covers_rounding(place, *apart)}

            own = group.form[-1] if name in OWN_NUMBERS else ()
            kind = (name, self.where, group.uniform, group.tables is None, own)
            if kind not in self.seen or name in ("linear", "scaled"):  # whose coefficients differ in sign
                self.seen.add(kind)
                self.moved(place, rule, group, arrays, context, state)
                if name == "batch" and state.buffer.tangent is not None:
                    # Its bound of what tangents are off by is so wide that others are not seen beside it.
                    held = replace(state.buffer, tangent_error=np.zeros_like(state.buffer.tangent))
                    self.moved(f"{place}, tangents exact", rule, group, arrays, context, replace(state, buffer=held))
            return rule(group, arrays, context, buffer)

        return checked

    def moved(self, place: str, rule: Any, group: Any, arrays: Any, context: Context, state: State) -> None:
        """Bounds beside the changes that they are of."""

        def run(s: State, tables: Any = None) -> Any:
            return rule(replace(group, tables=tables), arrays, replace(context, left=s.left, right=s.right), s.buffer)

        rows = np.unique(np.concatenate([a.reshape(-1) for k, a in arrays.items() if k not in ("out", "ids")]))
        value, tangent, error, tangent_error = run(state)
        changed = [run(s.exact())[:2] for s in state.moves(rows, context.matched)]
        for which in self.roads.off:
            self.roads.off[which] = 1.0
            changed.append(run(state.exact())[:2])
            self.roads.off[which] = 0.0
        compare(place, error, value, [c[0] for c in changed])
        if state.buffer.tangent is not None:
            compare(f"{place}, tangent", tangent_error, tangent, [c[1] for c in changed])
        if group.tables is not None:
            tabulated = run(self.tabulated(arrays, state), (0, 1))
            for a, b in zip((error, tangent_error), tabulated[2:], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=f"{place}, with tables")

    def state(self, context: Context, buffer: Buffer, *, positive: bool, zeros: bool) -> State:
        """Any numbers in place of an evaluation's own; the rows of 0 and 1 have no errors."""
        signs = [1.0] if positive else [-1.0, 0.0, 1.0] if zeros else [-1.0, 1.0]

        def numbers(shape: tuple[int, ...]) -> Any:
            sign = self.rng.choice(signs, shape)
            return array(sign * self.rng.uniform(0.5, 1.5, shape))

        def errors(shape: tuple[int, ...]) -> Any:
            return array(OFF * self.rng.uniform(0.5, 1.5, shape))

        made: Any = lambda kind, like: None if like is None else kind(like.shape)
        own = Buffer(*(made(k, a) for k, a in zip((numbers, numbers, errors, errors), _fields(buffer), strict=True)))
        if own.tangent is not None:  # as they are in the first layer
            own.tangent[self.rng.random(own.tangent.shape) < 0.3] = 0.0
        for of, row, number in ((a, r, n) for a in _fields(own) if a is not None for r, n in ((0, 0.0), (1, 1.0))):
            of[row] = number if of is own.value else 0.0
        alone = lambda known: known and Alone(numbers(known.value.shape), errors(known.value.shape), [])
        left = alone(context.left)
        return State(own, left, left if context.matched else alone(context.right))

    def tabulated(self, arrays: Any, state: State) -> State:
        """Sides of the variances that a pair reads."""

        def known(side: str) -> Alone:
            of, lines = getattr(state, side), arrays[f"{side}_line"]
            table = np.zeros((lines.max() + 1, *of.value.shape[1:]))
            table[lines] = of.value[arrays[side]]
            return replace(of, sides=[array(table)] * 2)

        return replace(state, left=known("left"), right=known("right"))


def _fields(buffer: Buffer) -> tuple[Any, Any, Any, Any]:
    return buffer.value, buffer.tangent, buffer.error, buffer.tangent_error


def compare(place: str, stated: Any, value: Any, moved: list[Any]) -> None:
    """A bound is the sum of all changes: no less to first order, nor many times as much (changes may cancel)."""
    if value is None:
        assert stated is None or not np.any(stated), place
        return
    expected = np.abs(np.stack(moved) - value).sum(0)
    assert stated is not None or not expected.any(), f"{place}: no bound"
    stated = 0.0 if stated is None else stated
    assert (stated >= 0.999 * expected - 1e-13).all(), f"{place}: a bound of {stated} for {expected}"
    assert (stated <= 100 * expected + 1e-13).all(), f"{place}: a bound of {stated} for {expected}"


def rounded(rule: Any, group: Any, arrays: Any, context: Context, state: State, to: Any) -> Any:
    """A rule of numbers that are rounded to single precision, in one precision or the other."""
    single = state.only_rounded()
    cast = lambda *trees: jax.tree.map(lambda a: array(np.asarray(a, np.float32).astype(to)), trees)
    inputs, monomials, seeds = cast(context.inputs, context.monomials, context.seeds)
    buffer, left, right = cast(single.buffer, single.left, single.right)
    context = replace(context, inputs=inputs, monomials=monomials, seeds=seeds, left=left, right=right)
    return rule(replace(group, tables=None), arrays, context, buffer)


def covers_rounding(place: str, single: Any, double: Any) -> set[str]:
    """What was rounded at all, and is covered."""
    found = set()
    for k, name in ((0, "value"), (1, "tangent")):
        apart = 0.0 if double[k] is None else np.abs(single[k] - double[k])
        if np.any(apart):
            assert (apart <= single[k + 2]).all(), f"{place}: rounding of the {name}"
            found.add(name)
    return found


@contextmanager
def replaced(roads: Roads) -> Iterator[None]:
    """Rules on NumPy, expectations replaced."""
    one = ("expect_slope", "expect_error", "expect_one_slope", "expect_one_error", "mean_error", "mean", "sides")
    several = ("joint_expectation", "crossing")
    with ExitStack() as stack:
        stack.enter_context(rules_on_numpy())
        for module, own in ((base, one), (joints, several)):
            for name in own:
                stack.enter_context(mock.patch.object(module, name, getattr(roads, name)))
        stack.enter_context(mock.patch.object(batch, "batchnorm", roads))
        yield


def check_rules(program: Program, m: Moments, x: Any) -> Check:
    """Check every equation of a program's two systems."""
    check = Check()
    kinds = {name: check.rule(name, rule) for name, rule in moments._RULES.items()}
    kinds["scalar"] = check.rule("scalar", _compiled(rules.scalar))
    with replaced(check.roads), mock.patch.dict(moments._RULES, kinds):
        leaves, inputs = program.leaves, tuple(array(a) for a in x)
        weights = array(np.asarray(parameter_weights(program, "multiplier-std", None)))
        check.where = "same"
        known = same_stage(m, leaves, inputs, slope=True, error=True)
        first, one = jax.tree.map(lambda a: a[:1], inputs), jax.tree.map(lambda a: a[:, :1], known)
        for check.where, x1, left, matched in (("cross", first, one, False), ("matched", inputs, known, True)):
            cross_stage(m, leaves, weights, x1, inputs, left, known, None, tangent=True, error=True, matched=matched)
    return check


def kernels_off(program: Program, x: Any, kind: str, which: str) -> tuple[Any, Any]:
    """Both kernels with their bounds where only values or slopes of one kind of expectation have any, and how far they
    are off where these are."""
    roads = Roads()
    roads.known = ((kind, which),)
    with replaced(roads), ExitStack() as stack:
        for place, name, new in (
            *uncompiled(),
            (evaluation, "check_functions", lambda *_, **__: None),
            (evaluation, "check_expectations", lambda *_, **__: None),
            (kernel, "batch", lambda structure, x, name: (array(x),)),
        ):
            stack.enter_context(mock.patch.object(place, name, new))
        found = kernel.kernels(program, x, error=True)
        roads.off[which] = 1.0
        moved = kernel.kernels(program, x, error=True)
    return found, tuple(np.abs(a - b) for a, b in zip(moved[:2], found[:2], strict=True))


def _compiled(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that stays JAX's: it differentiates users' functions."""

    def run(*given: Any) -> Any:
        with mock.patch.object(rules, "jnp", jnp), mock.patch.object(rules, "jax", jax):
            return tuple(None if a is None else array(a) for a in rule(*given))

    return run
