"""Nonlins of Nonlins composed into one function of Gaussians.

A Nonlin's output is F(g¹, …, gᵏ; θ) for Gaussian vectors g: F is an expression over slots (the Gaussians, centred) and
number slots, static and hashable, so that equations with one F are one group and compile once.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, assert_never

import numpy as np

from tensorprog.errors import NotIntegrated
from tensorprog.functions.base import IDENTITY, ONE, Elementwise, elementwise, product, shifted
from tensorprog.functions.frozen import Function, freeze
from tensorprog.functions.separation import Factor, separated
from tensorprog.interpret.linear import Ids, Linear
from tensorprog.ir import Coef, Gather, Inner, Leaf, LinComb, MatMul, Moment, Nonlin, ScalarFn, Sites, SiteSum


@dataclass(frozen=True)
class Slot:
    """The i-th Gaussian."""

    index: int


@dataclass(frozen=True)
class Value:
    """The i-th number."""

    index: int


@dataclass(frozen=True)
class Call:
    """fn(args…), with the numbers that fn captured."""

    fn: Function
    args: tuple[Expr, ...]
    numbers: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Sum:
    """Σ value · expression + Σ value."""

    terms: tuple[tuple[Value | None, Expr], ...]
    constants: tuple[Value, ...] = ()


Expr = Slot | Value | Call | Sum
MOST = 12
"""Gaussians that one function may have: composing it takes it apart into factors later, but unrolls it first."""
SAMPLED = "the recursion has no rule for it; nngp, ntk and second_moment estimate it from samples"
MULTIPLY: Function = freeze(operator.mul)[0]


def evaluate(expr: Expr, gaussians: Sequence[Any], numbers: Sequence[Any]) -> Any:
    """The expression's value at coordinates of its Gaussians."""
    match expr:
        case Slot(index=index):
            return gaussians[index]
        case Value(index=index):
            return numbers[index]
        case Call(fn=fn, args=args, numbers=own):
            values = [evaluate(a, gaussians, numbers) for a in args]
            return fn(*values, numbers=tuple(numbers[v.index] for v in own))
        case Sum(terms=terms, constants=constants):
            parts = [evaluate(e, gaussians, numbers) for _, e in terms]
            scaled = [p if v is None else numbers[v.index] * p for (v, _), p in zip(terms, parts, strict=True)]
            return reduce(operator.add, [*scaled, *(numbers[c.index] for c in constants)])
        case _ as never:
            assert_never(never)


def slots(expr: Expr) -> frozenset[int]:
    """The Gaussians that an expression reads."""
    match expr:
        case Slot(index=index):
            return frozenset({index})
        case Value():
            return frozenset()
        case Call(args=args):
            return frozenset().union(*(slots(a) for a in args))
        case Sum(terms=terms):
            return frozenset().union(*(slots(e) for _, e in terms))
        case _ as never:
            assert_never(never)


def factors(expr: Expr) -> list[Expr]:
    """A product taken apart."""
    if isinstance(expr, Call) and expr.fn == MULTIPLY:
        return [f for argument in expr.args for f in factors(argument)]
    return [expr]


def multiply(parts: Sequence[Expr]) -> Expr | None:
    """The product of expressions; None for the empty product."""
    return reduce(lambda a, b: Call(MULTIPLY, (a, b)), parts) if parts else None


def expanded(expr: Expr, most: int) -> list[Expr]:
    """An expression as a sum of at most so many products, by its own sums and products; else as it is."""
    match expr:
        case Call(fn=fn, args=(left, right)) if fn == MULTIPLY:
            found = [Call(MULTIPLY, (a, b)) for a in expanded(left, most) for b in expanded(right, most)]
        case Sum(terms=terms, constants=constants) if slots(expr) and len(terms) > 1:
            scaled = [e if v is None else Call(MULTIPLY, (v, e)) for v, e in terms]
            found = [*(t for e in scaled for t in expanded(e, most)), *constants]
        case _:
            found = [expr]
    return found if len(found) <= most else [expr]


@dataclass(frozen=True)
class Tree:
    """An expression as a function of Gaussians and then numbers, for functions that no table knows."""

    expr: Expr
    arity: int

    def __call__(self, *arguments: Any) -> Any:
        return evaluate(self.expr, arguments[: self.arity], arguments[self.arity :])


@dataclass(frozen=True)
class Vectorial:
    """An expression as a function of all its Gaussians in one array, and of numbers."""

    expr: Expr

    def __call__(self, z: Any, numbers: Sequence[Any]) -> Any:
        return evaluate(self.expr, z, numbers)


def text(expr: Expr) -> str:
    """A function's name for listings."""
    match expr:
        case Slot():
            return "z"
        case Value(index=index):
            return f"θ{index + 1}"
        case Call(fn=fn, args=args):
            if fn == MULTIPLY:
                return "·".join(text(a) for a in args)
            inner = ", ".join(text(a) for a in args)
            return fn.name if inner == "z" else f"{fn.name}({inner})"
        case Sum(terms=terms, constants=constants):
            parts = [text(e) if v is None else f"{text(v)} {text(e)}" for v, e in terms]
            return "(" + " + ".join(parts + [text(c) for c in constants]) + ")"
        case _ as never:
            assert_never(never)


def unary(expr: Expr | None, count: int) -> tuple[Elementwise, tuple[int, ...]]:
    """An expression of one Gaussian as an elementwise function, and which of the `count` numbers it takes, in order."""
    if expr is None:
        return ONE, ()
    match expr:
        case Slot():
            return IDENTITY, ()
        case Call(fn=fn, args=(Slot(),), numbers=numbers):
            return elementwise(fn, len(numbers)), tuple(v.index for v in numbers)
        case Call(fn=fn, args=(Sum(terms=((None, Slot()),), constants=constants),), numbers=numbers):
            phi = elementwise(fn, len(numbers))
            for _ in constants:
                phi = shifted(phi)
            return phi, (*(v.index for v in numbers), *(c.index for c in constants))
        case Call(fn=fn, args=(left, right)) if fn == MULTIPLY and slots(left) and slots(right):
            (phi, first), (psi, second) = unary(left, count), unary(right, count)
            return product(phi, psi), first + second
        case _:
            moved = Tree(_renumbered(expr), 1)
            return Elementwise(moved, count, None, text(expr)), tuple(range(count))


def _renumbered(expr: Expr) -> Expr:
    """The same expression with its one Gaussian in slot 0."""
    return remap(expr, dict.fromkeys(slots(expr), 0), 0)


def remap(expr: Expr, gaussians: dict[int, int], offset: int) -> Expr:
    """Slots renamed, numbers moved up by `offset`."""
    match expr:
        case Slot(index=index):
            return Slot(gaussians[index])
        case Value(index=index):
            return Value(index + offset)
        case Call(fn=fn, args=args, numbers=numbers):
            moved = tuple(Value(v.index + offset) for v in numbers)
            return Call(fn, tuple(remap(a, gaussians, offset) for a in args), moved)
        case Sum(terms=terms, constants=constants):
            return Sum(
                tuple((v and Value(v.index + offset), remap(e, gaussians, offset)) for v, e in terms),
                tuple(Value(c.index + offset) for c in constants),
            )
        case _ as never:
            assert_never(never)


@dataclass
class Composite:
    """F for some sites of a Nonlin: the expression, the Gaussians' positions and flat sites, the numbers."""

    expr: Expr
    gaussians: list[tuple[int, np.ndarray]]
    numbers: list[Ids]


class _Mixed(Exception):
    """Sites of one vector that are made by different instructions: they have different functions."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts = parts


class Numbers(Protocol):
    """What stands among a function's numbers but is no number of the program: scalars, and means of Gaussians."""

    linear: Linear

    def coefficient(self, coef: Coef, sites: Sites) -> Ids: ...

    def shift_numbers(self, u: int, sites: np.ndarray) -> list[Ids]: ...


def composites(ask: Numbers, position: int) -> list[tuple[np.ndarray, Composite]]:
    """A Nonlin or a Moment as functions of Gaussians: groups of flat sites, each with its composite."""

    def build(sites: np.ndarray) -> list[tuple[np.ndarray, Composite]]:
        composer = _Composer(ask)
        try:
            expr = composer.expr(position, sites)
        except _Mixed as mixed:
            return [piece for part in mixed.parts for piece in build(sites[part])]
        return [(sites, Composite(expr, composer.gaussians, composer.numbers))]

    return build(np.arange(ask.linear.size(position)))


class _Composer:
    def __init__(self, ask: Numbers):
        self.ask, self.linear = ask, ask.linear
        self.gaussians: list[tuple[int, np.ndarray]] = []
        self.numbers: list[Ids] = []

    def number(self, ids: Ids) -> Value:
        self.numbers.append(ids)
        return Value(len(self.numbers) - 1)

    def slot(self, position: int, sites: np.ndarray) -> Expr:
        """A Gaussian: its centred part in a slot, its mean added when it has one."""
        known = (i for i, (other, at) in enumerate(self.gaussians) if other == position and (at == sites).all())
        index = next(known, len(self.gaussians))
        if index == len(self.gaussians):
            self.gaussians.append((position, sites))
        if index >= MOST:
            raise self.linear.refuse(position, f"more than {MOST} Gaussians enter one function", SAMPLED, NotIntegrated)
        means = self.ask.shift_numbers(position, sites)
        if not means:
            return Slot(index)
        values = tuple(self.number(m) for m in means)
        return Sum(((None, Slot(index)),), values)

    def expr(self, position: int, sites: np.ndarray) -> Expr:
        linear = self.linear
        if linear.gaussian(position):
            return self.slot(position, sites)
        shape = linear.sites(position)
        match linear.instructions[position]:
            case Nonlin(over=over) if over is not None:
                why = "a function over a site axis meets a Gaussian at each of those sites"
                raise linear.refuse(position, why, SAMPLED, NotIntegrated)
            case (
                Nonlin(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars)
                | Moment(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars)
            ):
                own = tuple(self.number(linear.number(n, ())) for n in numbers)
                given = tuple(self.value(Coef(1.0, (ref,)), shape, sites) for ref in scalars)
                gaussian = tuple(map(linear.gaussian, vectors))
                held = tuple(linear.structure.number_sites[n.index] for n in numbers)
                products = separated(fn, gaussian, len(scalars), held) if len(vectors) > 1 else None
                if products is None:
                    args = tuple(self.expr(v, linear.broadcast(v, shape)[sites]) for v in vectors)
                    return Call(fn, (*args, *given), own)
                parts = [[self.factor(f, vectors, shape, sites, given, own) for f in term] for term in products]
                return Sum(tuple((None, multiply(part)) for part in parts)) if len(parts) > 1 else multiply(parts[0])
            case LinComb(terms=terms, constants=constants):
                return self.combination(terms, constants, shape, sites)
            case Gather(xs=xs, source=source):
                return self.gathered(xs, source.array.reshape(-1)[sites])
            case SiteSum(x=x, axes=axes):
                below, _ = linear.summed(position, x, axes, sites[:, None], 1)
                parts = [(None, self.expr(x, below[:, k])) for k in range(below.shape[1])]
                return Sum(tuple(parts))
            case Leaf() | MatMul() | Inner() | ScalarFn():
                raise AssertionError(f"instruction {position} is no function of Gaussians")
            case never:
                assert_never(never)

    def factor(
        self,
        factor: Factor,
        vectors: tuple[int, ...],
        shape: Sites,
        sites: np.ndarray,
        scalars: tuple[Value, ...],
        numbers: tuple[Value, ...],
    ) -> Expr:
        """A function of one of the vectors, or of a Gaussian that is a sum of some."""

        def form(weights: Sequence[float]) -> Expr:
            terms = tuple((Coef(w), v) for w, v in zip(weights, vectors, strict=True) if w != 0)
            if len(terms) == 1:
                return self.expr(terms[0][1], self.linear.broadcast(terms[0][1], shape)[sites])
            return self.slot(self.linear.synthetic(LinComb(terms), shape), sites)

        args = tuple(map(form, factor.forms))
        if factor.fn is None:
            return args[0]
        return Call(factor.fn, (*args, *scalars), numbers) if factor.scalars else Call(factor.fn, args)

    def value(self, coef: Coef, shape: Sites, sites: np.ndarray) -> Value:
        ids = self.ask.coefficient(coef, shape)
        return self.number(ids if np.ndim(ids) == 0 else ids[sites])

    def combination(self, terms: Any, constants: Any, shape: Sites, sites: np.ndarray) -> Expr:
        """A sum: its Gaussian terms are one Gaussian together."""
        linear = self.linear
        gaussian = tuple((c, x) for c, x in terms if linear.gaussian(x))
        rest = [(c, x) for c, x in terms if not linear.gaussian(x)]
        parts: list[tuple[Value | None, Expr]] = []
        if gaussian:
            together = LinComb(gaussian)
            parts.append((None, self.slot(linear.synthetic(together, shape), sites)))
        for coef, x in rest:
            value = None if coef.is_one else self.value(coef, shape, sites)
            parts.append((value, self.expr(x, linear.broadcast(x, shape)[sites])))
        return Sum(tuple(parts), tuple(self.value(coef, shape, sites) for coef in constants))

    def gathered(self, xs: tuple[int, ...], source: np.ndarray) -> Expr:
        parts = self.linear.parts(xs, source)
        padded = source < 0
        if padded.all():
            return self.slot(self.linear.nothing(xs[0]), np.zeros_like(source))
        if len(parts) > 1 or padded.any():
            raise _Mixed([mine for _, mine, _ in parts] + ([padded] if padded.any() else []))
        x, _, own = parts[0]
        return self.expr(x, own)
