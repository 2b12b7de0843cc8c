"""Demand: the moment equations that an output's kernel needs, in dependency order.

`second moment of (u, v)` is asked for from the output and recurses, memoised, through what defines u and v.
Asking does not compute: it emits equations. The unit is a *cell*, one number for each pair of inputs (or each
input): the moment of one site of u with one site of v. Only cells that something reads are ever asked for, so a readout
of single sites never builds all pairs, and pooling does.
"""

from __future__ import annotations

import math
from functools import partial
from typing import assert_never

import numpy as np

from tensorprog.interpret.blocks import Block, block
from tensorprog.interpret.composite import Composite, Slot, composites
from tensorprog.interpret.equations import UNIT, ZERO, Array, BatchEq, ImportEq, LeafEq, Seeds, System
from tensorprog.interpret.expectations import Side, expectation_cells
from tensorprog.interpret.linear import Ids, Linear, Term, elementwise
from tensorprog.interpret.scalars import Scalars, scaled_form
from tensorprog.interpret.terms import Terms, joined, linear_equation, outer, whole
from tensorprog.ir import (
    BiasVector,
    Coef,
    InputVector,
    Leaf,
    MatMul,
    Nonlin,
    ScalarResult,
    SiteLinear,
    Sites,
    Structure,
)


class Demand:
    """The moment equations of a program, made as they are asked for."""

    def __init__(self, structure: Structure):
        self.structure = structure
        self.linear = Linear(structure)
        self.same, self.cross = System("same"), System("cross")
        self.seeds = Seeds(self.linear)
        self.outer = partial(outer, self.linear.monomials)
        self.functions: dict[int, list[tuple[Array, Composite]]] = {}
        self.imports: dict[tuple[str, int], int] = {}
        self.scalars = Scalars(self)
        self.batches: dict[int, Block | None] = {}

    # ---- moments

    def moment(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Array:
        """Cells of the moments of u at sites pu with v at sites pv: covariances of Gaussians, else second moments."""
        if system is self.same:
            swap = (v < u) | ((u == v) & (pv < pu))
            if np.ndim(swap) == 0:
                swap = np.full(len(pu), bool(swap))
            if swap.any():
                pu, pv = np.where(swap, pv, pu), np.where(swap, pu, pv)
                u, v = min(u, v), max(u, v)
        table = system.table(("moment", u, v), (self.linear.size(u), self.linear.size(v)))
        missing = np.unique(np.stack([pu, pv])[:, table[pu, pv] < 0], axis=1)
        if missing.shape[1]:
            self.define(system, table, u, v, missing[0], missing[1])
        return table[pu, pv]

    def define(self, system: System, table: Array, u: int, v: int, pu: Array, pv: Array) -> None:
        """Emit the equations of moments that are not there yet."""
        nonlinear = [isinstance(self.linear.instructions[w], Nonlin) for w in (u, v)]
        gaussian = [self.linear.gaussian(w) for w in (u, v)]
        if all(nonlinear) or (any(nonlinear) and any(gaussian)):
            blocks = [self.blocks(w) for w in (u, v)]
            if blocks[0] is not None and blocks[1] is not None:
                self.normalised(system, table, (u, v), (blocks[0], blocks[1]), (pu, pv))
            else:
                self.expectation(system, table, u, v, pu, pv)
            return
        if self.linear.scaled(u) or self.linear.scaled(v):
            terms = self.one_sided(system, u, v, pu, pv, centred=all(gaussian))
        else:
            terms = self.expanded(system, u, v, pu, pv, centred=all(gaussian))
        keep = ((terms[0] != ZERO) & ((terms[1] != 0) | (terms[2] != 0))).any(axis=1)
        table[pu[~keep], pv[~keep]] = ZERO
        if keep.any():
            out = system.new("moment", u, v, pu[keep], pv[keep])
            table[pu[keep], pv[keep]] = out
            side = "left" if self.linear.scaled(u) else "right"
            system.emit(linear_equation(out, tuple(t[keep] for t in terms), side), self.key(system, u, v))

    def key(self, system: System, u: int, v: int) -> int:
        """Where equations stand in the order: by how deep the left vector lies."""
        depth = self.linear.depth
        return min(depth(u), depth(v)) if system is self.same else depth(u)

    def second_moment(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Array:
        """Cells of second moments, also of Gaussians that have a mean: what `moment` leaves out is added."""
        cells = self.moment(system, u, v, pu, pv)
        gaussian = [self.linear.gaussian(w) for w in (u, v)]
        function = [self.linear.nonlinear(w) for w in (u, v)]
        if not (all(gaussian) or (any(gaussian) and any(function))):
            return cells
        table = system.table(("second", u, v), (self.linear.size(u), self.linear.size(v)))
        missing = np.unique(np.stack([pu, pv])[:, table[pu, pv] < 0], axis=1)
        if missing.shape[1]:
            self.add_means(system, table, u, v, missing[0], missing[1])
        return table[pu, pv]

    def add_means(self, system: System, table: Array, u: int, v: int, pu: Array, pv: Array) -> None:
        """Emit the equations of second moments that are not there yet; where no mean is added they are the moments."""
        parts = [whole(self.moment(system, u, v, pu, pv))]
        gaussian = [self.linear.gaussian(w) for w in (u, v)]
        if not any(self.linear.moving(w) for w in (u, v)):
            c = self.linear.constant(u, pu[:, None]) if gaussian[0] else []
            d = self.linear.constant(v, pv[:, None]) if gaussian[1] else []
            if all(gaussian):
                parts += self.constant_parts(system, [], [], c, d, len(pu))
            for constants, w, sites, side in ((d, u, pu, "left"), (c, v, pv, "right")):
                if constants and not self.linear.gaussian(w):
                    means = self.imported(system, side, self.mean(w, sites))
                    parts += [self.outer(means[:, None], 1, constant) for constant in constants]
        else:
            left = self.imported(system, "left", self.mean(u, pu))
            parts.append(whole(left, self.mean(v, pv)))
        terms = joined(parts, len(pu))
        real = (terms[0] != ZERO) & (terms[1] != 0) & (terms[3] != ZERO)
        table[pu, pv] = self.moment(system, u, v, pu, pv)
        added = real.sum(1) > (table[pu, pv] != ZERO)
        if added.any():
            out = system.new("second", u, v, pu[added], pv[added])
            table[pu[added], pv[added]] = out
            system.emit(linear_equation(out, tuple(t[added] for t in terms), "right"), self.key(system, u, v))

    def one_sided(self, system: System, u: int, v: int, pu: Array, pv: Array, *, centred: bool) -> Terms:
        """The moment of a vector whose terms scalars multiply, u where it is one, else v, with the other left whole.

        One side at a time: attention over T places costs T terms for each of T² moments, twice, and not T⁴.
        """
        swap = not self.linear.scaled(u)
        one, other, sites, others = (v, u, pv, pu) if swap else (u, v, pu, pv)
        side = "left" if swap else "right"
        moment = self.moment if centred else self.second_moment
        parts = []
        for term in scaled_form(self.scalars, one, sites[:, None]):
            many = np.repeat(others[:, None], term.sites.shape[1], axis=1).reshape(-1)
            below = term.sites.reshape(-1)
            if term.atom is None:
                if centred:
                    continue
                cells = self.imported(system, side, self.mean(other, others))[:, None]
            elif swap:
                cells = moment(system, other, term.atom, many, below).reshape(term.sites.shape)
            else:
                cells = moment(system, term.atom, other, below, many).reshape(term.sites.shape)
            # A constant has one cell where its factor is summed over sites.
            cells, coefs, factors = np.broadcast_arrays(cells, term.coef, term.factor)
            parts.append((np.where(factors == ZERO, ZERO, cells), coefs, np.zeros_like(cells), factors))
        return joined(parts, len(pu))

    def expanded(self, system: System, u: int, v: int, pu: Array, pv: Array, *, centred: bool) -> Terms:
        """The moment of two vectors by bilinearity over their linear forms."""
        nonlinear = [isinstance(self.linear.instructions[w], Nonlin) for w in (u, v)]
        left = self.linear.form(u, pu[:, None])
        right = self.linear.form(v, pv[:, None])
        parts = [self.pair(system, a, b) for a in left for b in right]
        if not centred:
            left_constants = [] if nonlinear[0] else self.linear.constant(u, pu[:, None])
            right_constants = [] if nonlinear[1] else self.linear.constant(v, pv[:, None])
            parts += self.constant_parts(system, left, right, left_constants, right_constants, len(pu))
        return joined(parts, len(pu))

    def constant_parts(
        self, system: System, left: list[Term], right: list[Term], c: list[Ids], d: list[Ids], count: int
    ) -> list[Terms]:
        """Constants of one side meet means and constants of the other."""
        parts = []
        for terms, constants, side in ((left, d, "left"), (right, c, "right")):
            for term in terms:
                if constants and not self.linear.gaussian(term.atom):
                    means = self.imported(system, side, self.mean(term.atom, term.sites.reshape(-1)))
                    for constant in constants:
                        parts.append(self.outer(means.reshape(term.sites.shape), term.coef, constant))
        for a in c:
            for b in d:
                unit = np.full((count, np.shape(a)[1] if np.ndim(a) else 1), UNIT)
                parts.append(self.outer(unit, a, b))
        return parts

    def pair(self, system: System, a: Term, b: Term) -> Terms:
        """The moment of two terms of linear forms, all pairs of their summed sites."""
        count, r, q = len(a.sites), a.sites.shape[1], b.sites.shape[1]
        pu = np.repeat(a.sites[:, :, None], q, axis=2).reshape(-1)
        pv = np.repeat(b.sites[:, None, :], r, axis=1).reshape(-1)
        coef = self.linear.monomials.times(
            np.broadcast_to(a.coef, a.sites.shape)[:, :, None], np.broadcast_to(b.coef, b.sites.shape)[:, None, :]
        ).reshape(-1)
        live = coef != 0  # where a place is padded, nobody asks for a moment
        terms = self.atoms(system, a, b, pu[live], pv[live]) if live.any() else None
        if terms is None:
            return joined([], count)
        cells, coefs, seeds, factors = terms
        coefs = self.linear.monomials.times(coefs, coef[live, None])
        seeds = elementwise(self.seeds.scaled, seeds, coef[live, None])

        def spread(own: Array, empty: int) -> Array:
            whole = np.full((len(live), own.shape[1]), empty)
            whole[live] = own
            return whole.reshape(count, -1)

        return spread(cells, ZERO), spread(coefs, 0), spread(seeds, 0), spread(factors, UNIT)

    def atoms(self, system: System, a: Term, b: Term, pu: Array, pv: Array) -> Terms | None:
        """The moment of two atoms at pairs of sites; None where independence makes it 0."""
        linear, u, v = self.linear, a.atom, b.atom
        if a.opened and b.opened:
            return self.opened(system, u, v, pu, pv)
        if not a.opened and not b.opened:
            return self.centred(system, u, v, pu, pv)
        closed, opened = (v, u) if a.opened else (u, v)
        if not linear.innovation(opened) & linear.sources(closed):
            return None
        if linear.nonlinear(closed) or linear.scaled(closed):
            return self.centred(system, u, v, pu, pv)
        sites = (pu if closed == u and not a.opened else pv)[:, None]
        forms = linear.form(closed, sites)
        other = Term(opened, (pv if not a.opened else pu)[:, None], 1, opened=True)
        parts = [self.pair(system, t, other) if not a.opened else self.pair(system, other, t) for t in forms]
        return joined(parts, len(pu))

    def centred(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Terms:
        """The moment of two vectors where a Gaussian has its mean taken off; constants meet means in `constant_parts`.

        `moment` has it taken off beside Gaussians and Nonlins; beside sums with Nonlins in them it is taken off here.
        """
        parts = [whole(self.moment(system, u, v, pu, pv))]
        for one, other, sites, at, side in ((u, v, pu, pv, "left"), (v, u, pv, pu, "right")):
            if self.linear.gaussian(one) or self.linear.nonlinear(one) or not self.linear.gaussian(other):
                continue
            minus = self.linear.monomials.add(-1.0, ())
            for constant in self.linear.constant(other, at[:, None]):
                means = self.imported(system, side, self.mean(one, sites))
                parts.append(self.outer(means[:, None], minus, constant))
        return joined(parts, len(pu)) if len(parts) > 1 else parts[0]

    def opened(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Terms | None:
        """W x with W x̄: var · (the moment of x, x̄). A bias with itself: var. Anything else: independent."""
        linear = self.linear
        other = linear.instructions[v]
        match linear.instructions[u]:
            case InputVector(input=i) if isinstance(other, InputVector):
                return whole(self.leaf(system, i, other.input, pu, pv))
            case BiasVector(bias=i) as one if one == other:
                bias = self.structure.biases[i]
                alike = (pu == pv) if bias.sites else np.full(len(pu), True)
                var = linear.monomials.add(1.0, ((bias.var.index, 0, 1),))
                coefs = np.where(alike, var, 0)[:, None]
                parameter = len(self.structure.weights) + i
                seeds = np.where(alike, self.seeds.add([(parameter, linear.monomials.one)]), 0)[:, None]
                unit = np.full((len(pu), 1), UNIT)
                return unit, coefs, seeds, unit
            case MatMul(weight=w, x=x, transposed=t) if isinstance(other, MatMul) and other.weight == w:
                if other.transposed != t:  # what reads both is refused, or passes the Simple GIA Check
                    return None
                return self.product_moment(system, w, x, other.x, t, pu, pv)
            case Leaf() | MatMul() | SiteLinear() | Nonlin() | ScalarResult():
                return None
            case never:
                assert_never(never)

    def product_moment(self, system: System, w: int, x: int, y: int, transposed: bool, pu: Array, pv: Array) -> Terms:
        """E (W x)(W x̄) = var · E x x̄ (times rows/cols for Wᵀ); the own term of W is E x x̄.

        With a window the mean over its offsets, each a matrix of its own; with sites 0 between different ones.
        """
        linear, weight = self.linear, self.structure.weights[w]
        entries = transposed and isinstance(weight.rows, int)
        assert entries or not (transposed and (weight.window or weight.sites)), "such transposes are of backward passes"
        ratio = linear.ratio(weight.rows, weight.cols) if transposed and not entries else linear.monomials.one
        offsets, own_sites = math.prod(weight.window), math.prod(weight.sites)
        ratio = linear.monomials.multiply(linear.monomials.add(1.0 / offsets, ()), ratio)
        var = linear.monomials.multiply(linear.monomials.add(1.0, ((weight.var.index, 0, 1),)), ratio)
        if entries:  # one matrix for each of the vector's own places
            own_sites, left, right = own_sites * offsets, pu // offsets, pv // offsets
        else:  # all offsets at once, so that moments below are asked for, and defined, together
            left, right = ((p[:, None] * offsets + np.arange(offsets)).reshape(-1) for p in (pu, pv))
        if linear.moving(x) or linear.moving(y):
            parts = [whole(self.second_moment(system, x, y, left, right))]
        else:
            forms = [linear.form(z, p[:, None], top=False) for z, p in ((x, left), (y, right))]
            constants = [linear.constant(z, p[:, None], top=False) for z, p in ((x, left), (y, right))]
            parts = [self.pair(system, a, b) for a in forms[0] for b in forms[1]]
            parts += self.constant_parts(system, forms[0], forms[1], constants[0], constants[1], len(left))
        cells, coefs, seeds, factors = (t.reshape(len(pu), -1) for t in joined(parts, len(left)))
        if own_sites > 1:
            alike = (pu % own_sites == pv % own_sites)[:, None]
            coefs, seeds = np.where(alike, coefs, 0), np.where(alike, seeds, 0)
        own = linear.monomials.times(coefs, ratio)
        scaled = elementwise(self.seeds.scaled, seeds, np.asarray(var))
        seeds = elementwise(lambda seed, monomial: self.seeds.with_parameter(seed, w, monomial), scaled, own)
        return cells, linear.monomials.times(coefs, var), seeds, factors

    def leaf(self, system: System, i: int, j: int, pu: Array, pv: Array) -> Array:
        """Inner products of the inputs' features."""
        sizes = [int(np.prod(self.structure.inputs[k].sites, dtype=int)) for k in (i, j)]
        if system is self.same:
            swap = (j < i) | ((i == j) & (pv < pu))
            pu, pv = np.where(swap, pv, pu), np.where(swap, pu, pv)
            i, j = min(i, j), max(i, j)
        table = system.table(("leaf", i, j), (sizes[0], sizes[1]))
        missing = np.unique(np.stack([pu, pv])[:, table[pu, pv] < 0], axis=1)
        if missing.shape[1]:
            out = system.new("leaf", i, j, missing[0], missing[1])
            table[missing[0], missing[1]] = out
            system.emit(LeafEq(out, i, j, missing[0], missing[1]), -1)
        return table[pu, pv]

    # ---- means and imports

    def imported(self, system: System, side: str, cells: Array) -> Array:
        """Same-input cells as cells of a system."""
        if system is self.same:
            return cells
        result = np.where(cells == ZERO, ZERO, np.where(cells == UNIT, UNIT, -1))
        fresh = [int(c) for c in np.unique(cells[result < 0]) if (side, int(c)) not in self.imports]
        if fresh:
            owners = np.array([self.same.owners[c][3] for c in fresh])
            out = system.new(side, self.same.owners[fresh[0]][1], 0, owners, owners)
            self.imports.update({(side, c): int(o) for c, o in zip(fresh, out, strict=True)})
            system.emit(ImportEq(out, side, np.array(fresh)), -1)
        return np.array([self.imports.get((side, int(c)), int(c)) for c in cells])

    def mean(self, u: int, sites: Array) -> Array:
        """Same-input cells of E u at flat sites."""
        table = self.same.table(("mean", u), (self.linear.size(u),))
        missing = np.unique(sites[table[sites] < 0])
        if len(missing) == 0:
            return table[sites]
        if self.linear.nonlinear(u):
            for where, composite in self.composites(u):
                inside = missing[np.isin(missing, where)]
                if len(inside):
                    at = np.searchsorted(where, inside)
                    table[inside] = self.half(composite, at, u, inside)
            return table[sites]
        terms = self.mean_terms(u, missing)
        keep = ((terms[0] != ZERO) & (terms[1] != 0)).any(axis=1)
        table[missing[~keep]] = ZERO
        if keep.any():
            out = self.same.new("mean", u, u, missing[keep], missing[keep])
            self.same.emit(linear_equation(out, tuple(t[keep] for t in terms)), self.linear.depth(u))
            table[missing[keep]] = out
        return table[sites]

    def mean_terms(self, u: int, sites: Array) -> Terms:
        """E u of a vector that is linear in others."""
        parts = []
        if self.linear.scaled(u) or self.linear.moving(u):
            for term in scaled_form(self.scalars, u, sites[:, None]):
                unit = np.full(term.sites.shape, UNIT)
                cells = unit if term.atom is None else self.mean(term.atom, term.sites.reshape(-1))
                cells = np.where(term.factor == ZERO, ZERO, cells.reshape(term.sites.shape))
                parts.append((cells, np.broadcast_to(term.coef, cells.shape), np.zeros_like(cells), term.factor))
            return joined(parts, len(sites))
        for term in self.linear.form(u, sites[:, None]):
            if not self.linear.gaussian(term.atom):
                means = self.mean(term.atom, term.sites.reshape(-1)).reshape(term.sites.shape)
                parts.append(self.outer(means, term.coef, 1))
        for constant in self.linear.constant(u, sites[:, None]):
            parts.append(self.outer(np.full((len(sites), 1), UNIT), 1, constant))
        return joined(parts, len(sites))

    def half(self, composite: Composite, at: Array, u: int, sites: Array) -> Array:
        """Same-input cells of E F: independent factors apart."""
        left = Side(composite, at)
        return expectation_cells(self, self.same, left, None, ("mean", u, u, sites, sites), self.linear.depth(u))

    # ---- numbers of functions

    def coefficient(self, coef: Coef, sites: Sites) -> Ids:
        """A coefficient among a function's numbers."""
        return self.scalars.numbers(coef, sites)

    def shift_numbers(self, u: int, sites: Array) -> list[Ids]:
        """The mean of a Gaussian among a function's numbers: monomials, or one cell where it depends on the input."""
        if not self.linear.moving(u):
            found = self.linear.constant(u, sites[:, None])
            return [own for m in found for own in ([m] if np.ndim(m) == 0 else m.T)]
        cells = self.mean(u, sites)
        return [] if (cells == ZERO).all() else [-1 - cells]

    # ---- expectations

    def composites(self, u: int) -> list[tuple[Array, Composite]]:
        if u not in self.functions:
            self.functions[u] = composites(self, u)
        return self.functions[u]

    def sides(self, u: int, sites: Array) -> list[tuple[Array, Composite, Array]]:
        """Which of the pairs have which function: (pairs, composite, index into its sites)."""
        if not isinstance(self.linear.instructions[u], Nonlin):
            plain = Composite(Slot(0), [(u, np.arange(self.linear.size(u)))], [], [])
            return [(np.arange(len(sites)), plain, sites)]
        result = []
        for where, composite in self.composites(u):
            mine = np.flatnonzero(np.isin(sites, where))
            if len(mine):
                result.append((mine, composite, np.searchsorted(where, sites[mine])))
        return result

    def blocks(self, u: int) -> Block | None:
        """A vector that is batch norm of a Gaussian; asked for once."""
        if u not in self.batches:
            self.batches[u] = block(self.linear, u, self.batches)
        return self.batches[u]

    def normalised(
        self, system: System, table: Array, pair: tuple[int, int], blocks: tuple[Block, Block], at: tuple[Array, Array]
    ) -> None:
        """Whole blocks of E F(h) F̄(h̄)ᵀ, those that the pairs of sites lie in."""
        (u, v), (left, right) = pair, blocks
        rest = np.unique(np.stack([b.place[p] for b, p in zip(blocks, at, strict=True)]), axis=1)
        alike = (rest[0] == rest[1]) if system is self.same and left.h == right.h else np.zeros(rest.shape[1], bool)
        for within in (False, True):
            chosen = alike == within
            if not chosen.any():
                continue
            su, sv = left.sites[rest[0][chosen]], right.sites[rest[1][chosen]]

            def cells(system: System, h: int, k: int, p: Array, q: Array) -> Array:
                p, q = np.broadcast_arrays(p[:, :, None], q[:, None, :])
                return self.moment(system, h, k, p.reshape(-1), q.reshape(-1)).reshape(p.shape)

            pu, pv = (np.broadcast_to(s, (*su.shape, sv.shape[1])) for s in (su[:, :, None], sv[:, None, :]))
            out = system.new("moment", u, v, pu.reshape(-1), pv.reshape(-1))
            table[pu.reshape(-1), pv.reshape(-1)] = out
            own = cells(self.same, left.h, left.h, su, su), cells(self.same, right.h, right.h, sv, sv)
            across = cells(system, left.h, right.h, su, sv)
            system.emit(BatchEq(out, left.phi, right.phi, across, *own, within), self.key(system, u, v))

    def expectation(self, system: System, table: Array, u: int, v: int, pu: Array, pv: Array) -> None:
        """E F(g) F̄(ḡ) for Nonlins u and v, or for one and a Gaussian."""
        for left_pairs, f, left_at in self.sides(u, pu):
            for right_pairs, g, right_at in self.sides(v, pv):
                both, i, j = np.intersect1d(left_pairs, right_pairs, assume_unique=True, return_indices=True)
                if len(both):
                    label = ("moment", u, v, pu[both], pv[both])
                    left, right = Side(f, left_at[i]), Side(g, right_at[j])
                    cells = expectation_cells(self, system, left, right, label, self.key(system, u, v))
                    table[pu[both], pv[both]] = cells
