"""Scalars in moment equations: Moments, data and functions of them are cells of the same-input system.

A scalar is a number for each input, so it is what a variance is: a cell that depends on one input. Where it multiplies
a vector, the vector's moments are Σ coef · factor · cell with such a factor; where a function takes it, it stands among
the function's numbers. Scalars have no tangent: in the limit their gradients vanish (docs/theory.md).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Protocol, assert_never

import jax
import numpy as np

from tensorprog.functions.degree import degree, expected
from tensorprog.functions.frozen import Function, freeze
from tensorprog.interpret.composite import Composite
from tensorprog.interpret.equations import UNIT, ZERO, Array, DataEq, LinearEq, ProductEq, ScalarEq, System
from tensorprog.interpret.linear import Ids, Linear
from tensorprog.ir import (
    BiasVector,
    Coef,
    DataScalar,
    Gather,
    Inner,
    InputVector,
    Leaf,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Num,
    ScalarFn,
    ScalarResult,
    SiteLinear,
    Sites,
    SiteSum,
    Structure,
)

_PRODUCT = freeze(operator.mul)[0]


class Asker(Protocol):
    """What scalars ask for in turn."""

    structure: Structure
    linear: Linear
    same: System

    def second_moment(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Array: ...

    def mean(self, u: int, sites: Array) -> Array: ...

    def composites(self, u: int) -> list[tuple[Array, Composite]]: ...

    def half(self, composite: Composite, at: Array, u: int, sites: Array) -> Array: ...


@dataclass(frozen=True)
class Scaled:
    """coef · factor · atom at given sites, all (P, r), summed over r; without an atom: coef · factor · 1."""

    atom: int | None
    sites: Array
    coef: Ids
    factor: Array


class Scalars:
    """Same-input cells of a program's scalars, made as they are asked for, all sites of one at a time."""

    def __init__(self, ask: Asker):
        self.ask = ask
        self.known: dict[int, Array] = {}
        self.products: dict[tuple[int, int], int] = {}
        self.scaled: dict[tuple[int, int], int] = {}

    def cells(self, ref: int) -> Array:
        """A scalar's cells, one for each of its flat sites."""
        if ref not in self.known:
            self.known[ref] = self._defined(ref)
        return self.known[ref]

    def over(self, ref: int, sites: Sites) -> Array:
        """The same, broadcast over more sites."""
        own = self.cells(ref).reshape(self.ask.linear.sites(ref))
        return np.broadcast_to(own, sites).reshape(-1)

    def factor(self, coef: Coef, sites: Sites) -> Array:
        """Cells of the product of a coefficient's scalars, one for each flat site."""
        product = np.full(math.prod(sites), UNIT)
        for ref in coef.factors:
            if not isinstance(ref, Num):
                product = self.times(product, self.over(ref, sites))
        return product

    def numbers(self, coef: Coef, sites: Sites) -> Ids:
        """A whole coefficient as numbers of a function: positions of monomials, or -1 - cell where it has scalars."""
        linear = self.ask.linear
        ids = linear.coef(coef, sites)
        if all(isinstance(ref, Num) for ref in coef.factors):
            return ids
        ids = np.broadcast_to(ids, (math.prod(sites),))
        return -1 - self.times_monomial(ids, self.factor(coef, sites))

    # ---- arithmetic of cells

    def times(self, left: Array, right: Array) -> Array:
        """Cells of products of cells."""
        left, right = np.broadcast_arrays(left, right)
        result = np.where(left == UNIT, right, np.where(right == UNIT, left, -1))
        result = np.where((left == ZERO) | (right == ZERO), ZERO, result)
        open_ = np.flatnonzero(result.reshape(-1) < 0)
        if len(open_):
            pairs = np.sort(np.stack([left.reshape(-1)[open_], right.reshape(-1)[open_]], axis=1), axis=1)
            fresh = [tuple(p) for p in np.unique(pairs, axis=0).tolist() if tuple(p) not in self.products]
            if fresh:
                out = self._new("product", 0, len(fresh))
                self.products.update(zip(fresh, out.tolist(), strict=True))
                self.ask.same.emit(ProductEq(out, np.array(fresh)), self._key(np.array(fresh)))
            flat = result.reshape(-1)
            flat[open_] = [self.products[tuple(p)] for p in pairs.tolist()]
            result = flat.reshape(result.shape)
        return result

    def times_monomial(self, ids: Array, cells: Array) -> Array:
        """Cells of monomials times cells."""
        pairs = np.stack([ids.reshape(-1), cells.reshape(-1)], axis=1)
        fresh = [tuple(p) for p in np.unique(pairs, axis=0).tolist() if p[0] != 1 and tuple(p) not in self.scaled]
        if fresh:
            out = self._new("product", 0, len(fresh))
            self.scaled.update(zip(fresh, out.tolist(), strict=True))
            coefs, own = (np.array(column)[:, None] for column in zip(*fresh, strict=True))
            self.ask.same.emit(LinearEq(out, own, coefs, np.zeros_like(coefs)), self._key(own))
        return np.array([c if i == 1 else self.scaled[i, c] for i, c in pairs.tolist()]).reshape(ids.shape)

    def _new(self, kind: str, position: int, count: int) -> Array:
        sites = np.arange(count)
        return self.ask.same.new(kind, position, position, sites, sites)

    def _key(self, cells: Array) -> int:
        """Products of cells stand with the deepest scalar so far: a scalar reads nothing that is made later."""
        return max((self.ask.linear.depth(ref) for ref in self.known), default=0)

    # ---- definitions

    def _defined(self, ref: int) -> Array:
        ask, linear = self.ask, self.ask.linear
        size = linear.size(ref)
        match linear.instructions[ref]:
            case DataScalar(input=index):
                out = self._new("scalar", ref, size)
                ask.same.emit(DataEq(out, index, np.arange(size)), -1)
                return out
            case Inner(x=x, y=y, shared=shared):
                together = math.prod(linear.sites(x)[:shared])
                pu = np.arange(linear.size(x)).reshape(together, -1, 1)
                pv = np.arange(linear.size(y)).reshape(together, 1, -1)
                pu, pv = np.broadcast_arrays(pu, pv)
                return ask.second_moment(ask.same, x, y, pu.reshape(-1), pv.reshape(-1))
            case Moment(fn=fn, vectors=(x, y), scalars=()) if fn == _PRODUCT:
                own = (linear.broadcast(v, linear.sites(ref)) for v in (x, y))
                return ask.second_moment(ask.same, x, y, *own)
            case Moment(fn=fn, vectors=vectors, scalars=(), numbers=()) as instruction if (
                self._degree(instruction) <= 1
            ):
                return self._affine(ref, fn, vectors)
            case Moment() as instruction if self._degree(instruction) <= 2:
                return self._polynomial(ref, instruction)
            case Moment():
                cells = np.zeros(size, dtype=np.int64)
                for where, composite in ask.composites(ref):
                    cells[where] = ask.half(composite, np.arange(len(where)), ref, where)
                return cells
            case ScalarFn() as instruction:
                return self._function(ref, instruction)
            case InputVector() | BiasVector() | MatMul() | SiteLinear() | Nonlin():
                raise AssertionError(f"instruction {ref} is no scalar")
            case never:
                assert_never(never)

    def _degree(self, moment: Moment) -> float:
        held = tuple(self.ask.structure.number_sites[n.index] for n in moment.numbers)
        found = degree(moment.fn, len(moment.vectors), len(moment.scalars), held)
        return math.inf if found is None else found

    def _affine(self, ref: int, fn: Function, vectors: tuple[int, ...]) -> Array:
        """A Moment that is Σ slope · E z + offset: where the means are 0 by structure, so is it."""
        linear = self.ask.linear
        sites = linear.sites(ref)
        at = np.zeros(len(vectors))
        with jax.ensure_compile_time_eval():
            offset, *ends = (float(fn(*(at + e))) for e in (0 * at, *np.eye(len(vectors))))
        slopes = [end - offset for end in ends]
        cells = [self.ask.mean(v, linear.broadcast(v, sites)) for v in vectors]
        kept = [(c, linear.monomials.add(w, ())) for c, w in zip(cells, slopes, strict=True) if w and (c != ZERO).any()]
        if offset:
            kept.append((np.full(math.prod(sites), UNIT), linear.monomials.add(offset, ())))
        if not kept:
            return np.full(math.prod(sites), ZERO)
        if len(kept) == 1 and kept[0][1] == linear.monomials.one:
            return kept[0][0]
        own = np.stack([c for c, _ in kept], axis=1)
        coefs = np.broadcast_to(np.array([w for _, w in kept]), own.shape)
        out = self._new("scalar", ref, len(own))
        self.ask.same.emit(LinearEq(out, own, coefs, np.zeros_like(coefs)), linear.depth(ref))
        return out

    def _polynomial(self, ref: int, moment: Moment) -> Array:
        """A Moment of degree 2 in its vectors: a function of their means and second moments, one call a site."""
        ask, linear = self.ask, self.ask.linear
        sites = linear.sites(ref)
        at = [linear.broadcast(v, sites) for v in moment.vectors]
        pairs = list(zip(moment.vectors, at, strict=True))
        means = [ask.mean(v, own) for v, own in pairs]
        seconds = [ask.second_moment(ask.same, u, v, p, q) for u, p in pairs for v, q in pairs]
        thetas = [self.over(s, sites) for s in moment.scalars if not isinstance(s, Num)]
        numbers = [linear.number(s, sites) for s in moment.scalars if isinstance(s, Num)]
        arguments = [(not isinstance(s, Num), ()) for s in moment.scalars]
        count = len(moment.vectors)
        arguments += [(True, (count,)), (True, (count * count,))]
        held = tuple(self.ask.structure.number_sites[n.index] for n in moment.numbers)
        numbers += [linear.held(num)[0] for num in moment.numbers]
        size = math.prod(sites)
        rows = [np.broadcast_to(n, (size,)) for n in numbers]
        out = self._new("scalar", ref, size)
        cells = np.stack([*thetas, *means, *seconds], axis=1)
        own = np.stack(rows, axis=1) if rows else np.zeros((size, 0), dtype=np.int64)
        fn = expected(moment.fn, count)
        ask.same.emit(ScalarEq(out, fn, tuple(arguments), held, cells, own), linear.depth(ref))
        return out

    def _function(self, ref: int, instruction: ScalarFn) -> Array:
        linear = self.ask.linear
        structure = self.ask.structure
        arguments, cells, numbers = [], [], []
        for scalar in instruction.scalars:
            is_cell = not isinstance(scalar, Num)
            shape = structure.number_sites[scalar.index] if isinstance(scalar, Num) else linear.sites(scalar)
            arguments.append((is_cell, shape))
            if isinstance(scalar, Num):
                numbers.append(np.broadcast_to(linear.number(scalar, shape), (math.prod(shape),)))
            else:
                cells.append(self.cells(scalar))
        held = tuple(structure.number_sites[n.index] for n in instruction.numbers)
        numbers += [np.array([linear.held(num)[0]]) for num in instruction.numbers]
        row = lambda parts: np.concatenate([*parts, np.zeros(0, dtype=np.int64)])[None]
        out = self._new("scalar", ref, linear.size(ref))
        equation = ScalarEq(out, instruction.fn, tuple(arguments), held, row(cells), row(numbers))
        self.ask.same.emit(equation, linear.depth(ref))
        return out


def scaled_form(
    scalars: Scalars, position: int, sites: Array, coef: Ids = 1, factor: Array | None = None, *, top: bool = True
) -> list[Scaled]:
    """A vector whose terms scalars multiply, in terms of the next vectors below, at flat sites (P, r)."""
    linear = scalars.ask.linear
    factor = np.full(sites.shape, UNIT) if factor is None else factor
    if not top and (linear.boundary(position) or not linear.scaled(position)):
        return [Scaled(position, sites, coef, factor)]

    def below(x: int, sites: Array, coef: Ids, factor: Array) -> list[Scaled]:
        return scaled_form(scalars, x, sites, coef, factor, top=False)

    match linear.instructions[position]:
        case LinComb(terms=terms, constants=constants):
            shape = linear.sites(position)
            result = []
            for own, x in (*terms, *((c, None) for c in constants)):
                ids = linear.coef(own, shape)
                ids = linear.monomials.times(coef, ids if np.ndim(ids) == 0 else ids[sites])
                product = scalars.times(factor, scalars.factor(own, shape)[sites])
                if x is None:
                    result.append(Scaled(None, sites, ids, product))
                else:
                    result += below(x, linear.broadcast(x, shape)[sites], ids, product)
            return result
        case Gather(xs=xs, source=source):
            result = []
            for x, mine, own in linear.parts(xs, source.array.reshape(-1)[sites]):
                result += below(x, own, np.where(mine, coef, linear.monomials.zero), factor)
            return result
        case SiteSum(x=x, axes=axes):
            inside, wide = linear.summed(position, x, axes, sites, coef)
            return below(x, inside, wide, np.repeat(factor, inside.shape[1] // sites.shape[1], axis=1))
        case Leaf() | MatMul() | Nonlin() | ScalarResult():
            raise AssertionError(f"instruction {position} is not scaled")
        case never:
            assert_never(never)
