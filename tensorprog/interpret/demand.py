"""Demand: the moment equations that an output's kernel needs, in dependency order.

`second moment of (u, v)` is asked for from the output and recurses, memoised, through what defines u and v.
Asking does not compute: it emits equations. The unit is a *cell*, one number for each pair of inputs (or each
input): the moment of one site of u with one site of v. Only cells that something reads are ever asked for, so a readout
of single sites never builds all pairs, and pooling does.
"""

from __future__ import annotations

import numpy as np

from tensorprog.interpret.composite import Composite, Slot, composites
from tensorprog.interpret.equations import UNIT, ZERO, Array, ImportEq, LeafEq, LinearEq, Seeds, System
from tensorprog.interpret.expectations import Side, expectation_cells
from tensorprog.interpret.linear import Ids, Linear, Term
from tensorprog.ir import BiasVector, Dim, InputVector, MatMul, Nonlin, Structure

Terms = tuple[Array, Array, Array]
"""(cells, coefs, seeds), each (P, K): P moments as sums of K terms."""


class Demand:
    """The moment equations of a program, made as they are asked for."""

    def __init__(self, structure: Structure):
        self.structure = structure
        self.linear = Linear(structure)
        self.same, self.cross = System("same"), System("cross")
        self.seeds = Seeds(self.linear)
        self.functions: dict[int, list[tuple[Array, Composite]]] = {}
        self.imports: dict[tuple[str, int], int] = {}
        self.scale_seed = np.frompyfunc(self.seeds.scaled, 2, 1)
        self.seed_with = np.frompyfunc(self.seeds.with_parameter, 3, 1)

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
            self.expectation(system, table, u, v, pu, pv)
            return
        terms = self.expanded(system, u, v, pu, pv, centred=all(gaussian))
        zero = (terms[1] == 0).all(axis=1) | (terms[0] == ZERO).all(axis=1)
        table[pu[zero], pv[zero]] = ZERO
        if not zero.all():
            keep = ~zero
            out = system.new("moment", u, v, pu[keep], pv[keep])
            table[pu[keep], pv[keep]] = out
            cells, coefs, seeds = (t[keep] for t in terms)
            system.emit(LinearEq(out, cells, coefs, seeds), self.key(system, u, v))

    def key(self, system: System, u: int, v: int) -> int:
        """Where equations stand in the order: by how deep the left vector lies."""
        depth = self.linear.depth
        return min(depth(u), depth(v)) if system is self.same else depth(u)

    def second_moment(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Array:
        """Cells of second moments, also of Gaussians that have a mean: what `moment` leaves out is added."""
        cells = self.moment(system, u, v, pu, pv)
        gaussian = [self.linear.gaussian(w) for w in (u, v)]
        function = [isinstance(self.linear.instructions[w], Nonlin) for w in (u, v)]
        if not (all(gaussian) or (any(gaussian) and any(function))):
            return cells
        c = self.linear.constant(u, pu[:, None]) if gaussian[0] else []
        d = self.linear.constant(v, pv[:, None]) if gaussian[1] else []
        unit = np.ones((len(pu), 1), dtype=np.int64)
        parts = [(cells[:, None], unit, np.zeros_like(unit))]
        if all(gaussian):
            parts += self.constant_parts(system, [], [], c, d, len(pu))
        for constants, w, sites, side in ((d, u, pu, "left"), (c, v, pv, "right")):
            if constants and not self.linear.gaussian(w):
                means = self.imported(system, side, self.mean(w, sites))
                parts += [self.outer(means[:, None], 1, constant, len(pu)) for constant in constants]
        if len(parts) == 1:
            return cells
        terms = joined(parts, len(pu))
        out = system.new("second", u, v, pu, pv)
        system.emit(LinearEq(out, *terms), self.key(system, u, v))
        return out

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
                        parts.append(self.outer(means.reshape(term.sites.shape), term.coef, constant, count))
        for a in c:
            for b in d:
                unit = np.full((count, 1), UNIT)
                parts.append(self.outer(unit, a, b, count))
        return parts

    def outer(self, cells: Array, a: Ids, b: Ids, count: int) -> Terms:
        """Cells (P, r) with coefficients a (P, r) times b (P, r′): terms (P, r·r′)."""
        a = np.broadcast_to(a, cells.shape)
        b = np.broadcast_to(b, (count, np.shape(b)[1] if np.ndim(b) else 1))
        coefs = self.linear.monomials.times(a[:, :, None], b[:, None, :]).reshape(count, -1)
        wide = np.repeat(cells[:, :, None], b.shape[1], axis=2).reshape(count, -1)
        return wide, coefs, np.zeros_like(coefs)

    def pair(self, system: System, a: Term, b: Term) -> Terms:
        """The moment of two terms of linear forms, all pairs of their summed sites."""
        count, r, q = len(a.sites), a.sites.shape[1], b.sites.shape[1]
        pu = np.repeat(a.sites[:, :, None], q, axis=2).reshape(-1)
        pv = np.repeat(b.sites[:, None, :], r, axis=1).reshape(-1)
        terms = self.atoms(system, a, b, pu, pv)
        if terms is None:
            return joined([], count)
        coef = self.linear.monomials.times(
            np.broadcast_to(a.coef, a.sites.shape)[:, :, None], np.broadcast_to(b.coef, b.sites.shape)[:, None, :]
        )
        coef = coef.reshape(-1, 1)
        cells, coefs, seeds = terms
        coefs = self.linear.monomials.times(coefs, coef)
        seeds = np.asarray(self.scale_seed(seeds, coef), dtype=np.int64)
        return cells.reshape(count, -1), coefs.reshape(count, -1), seeds.reshape(count, -1)

    def atoms(self, system: System, a: Term, b: Term, pu: Array, pv: Array) -> Terms | None:
        """The moment of two atoms at pairs of sites; None where independence makes it 0."""
        linear, u, v = self.linear, a.atom, b.atom
        if a.opened and b.opened:
            return self.opened(system, u, v, pu, pv)
        if not a.opened and not b.opened:
            cells = self.moment(system, u, v, pu, pv)
            return cells[:, None], np.ones((len(pu), 1), dtype=np.int64), np.zeros((len(pu), 1), dtype=np.int64)
        closed, opened = (v, u) if a.opened else (u, v)
        if not self.innovation(opened) & linear.sources(closed):
            return None
        if isinstance(linear.instructions[closed], Nonlin):
            cells = self.moment(system, u, v, pu, pv)
            return cells[:, None], np.ones((len(pu), 1), dtype=np.int64), np.zeros((len(pu), 1), dtype=np.int64)
        sites = (pu if closed == u and not a.opened else pv)[:, None]
        forms = linear.form(closed, sites)
        other = Term(opened, (pv if not a.opened else pu)[:, None], 1, opened=True)
        parts = [self.pair(system, t, other) if not a.opened else self.pair(system, other, t) for t in forms]
        return joined(parts, len(pu))

    def innovation(self, position: int) -> frozenset[tuple[str, int]]:
        """The random thing that an opened atom is made of: independent of all that does not contain it."""
        match self.linear.instructions[position]:
            case MatMul(weight=weight):
                return frozenset({("weight", weight)})
            case BiasVector(bias=bias):
                return frozenset({("bias", bias)})
            case _:
                return frozenset()

    def opened(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Terms | None:
        """W x with W x̄: var · (the moment of x, x̄). A bias with itself: var. Anything else: independent."""
        linear = self.linear
        match linear.instructions[u], linear.instructions[v]:
            case InputVector(input=i), InputVector(input=j):
                cells = self.leaf(system, i, j, pu, pv)
                ones = np.ones((len(pu), 1), dtype=np.int64)
                return cells[:, None], ones, np.zeros_like(ones)
            case BiasVector(bias=i), BiasVector(bias=j) if i == j:
                bias = self.structure.biases[i]
                alike = (pu == pv) if bias.sites else np.full(len(pu), True)
                var = linear.monomials.add(1.0, ((bias.var.index, 0, 1),))
                coefs = np.where(alike, var, 0)[:, None]
                parameter = len(self.structure.weights) + i
                seeds = np.where(alike, self.seeds.add([(parameter, linear.monomials.one)]), 0)[:, None]
                return np.full((len(pu), 1), UNIT), coefs, seeds
            case MatMul(weight=w, x=x, transposed=t), MatMul(weight=w2, x=y, transposed=t2) if (w, t) == (w2, t2):
                return self.product_moment(system, w, x, y, t, pu, pv)
            case _:
                return None

    def product_moment(self, system: System, w: int, x: int, y: int, transposed: bool, pu: Array, pv: Array) -> Terms:
        """E (W x)(W x̄) = var · E x x̄ (times rows/cols for Wᵀ); the own term of W is E x x̄."""
        linear, weight = self.linear, self.structure.weights[w]
        rows: Dim = weight.rows
        ratio = linear.ratio(rows, weight.cols) if transposed else linear.monomials.one
        var = linear.monomials.multiply(linear.monomials.add(1.0, ((weight.var.index, 0, 1),)), ratio)
        parts = [
            self.pair(system, a, b)
            for a in linear.form(x, pu[:, None], top=False)
            for b in linear.form(y, pv[:, None], top=False)
        ]
        c, d = (linear.constant(z, p[:, None], top=False) for z, p in ((x, pu), (y, pv)))
        left, right = linear.form(x, pu[:, None], top=False), linear.form(y, pv[:, None], top=False)
        parts += self.constant_parts(system, left, right, c, d, len(pu))
        cells, coefs, seeds = joined(parts, len(pu))
        own = linear.monomials.times(coefs, ratio)
        seeds = np.asarray(self.seed_with(self.scale_seed(seeds, var), w, own), dtype=np.int64)
        return cells, linear.monomials.times(coefs, var), seeds

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
        """Same-input cells of E u at flat sites, for a vector that is not Gaussian."""
        table = self.same.table(("mean", u), (self.linear.size(u),))
        missing = np.unique(sites[table[sites] < 0])
        if len(missing) == 0:
            return table[sites]
        if isinstance(self.linear.instructions[u], Nonlin):
            for where, composite in self.composites(u):
                inside = missing[np.isin(missing, where)]
                if len(inside):
                    at = np.searchsorted(where, inside)
                    table[inside] = self.half(composite, at, u, inside)
        else:
            form = self.linear.form(u, missing[:, None])
            parts = []
            for term in form:
                if not self.linear.gaussian(term.atom):
                    means = self.mean(term.atom, term.sites.reshape(-1)).reshape(term.sites.shape)
                    parts.append(self.outer(means, term.coef, 1, len(missing)))
            for constant in self.linear.constant(u, missing[:, None]):
                parts.append(self.outer(np.full((len(missing), 1), UNIT), 1, constant, len(missing)))
            cells, coefs, seeds = joined(parts, len(missing))
            out = self.same.new("mean", u, u, missing, missing)
            self.same.emit(LinearEq(out, cells, coefs, np.zeros_like(seeds)), self.linear.depth(u))
            table[missing] = out
        return table[sites]

    def half(self, composite: Composite, at: Array, u: int, sites: Array) -> Array:
        """Same-input cells of E F: independent factors apart."""
        left = Side(composite, at)
        return expectation_cells(self, self.same, left, None, ("mean", u, u, sites, sites), self.linear.depth(u))

    # ---- expectations

    def composites(self, u: int) -> list[tuple[Array, Composite]]:
        if u not in self.functions:
            self.functions[u] = composites(self.linear, u)
        return self.functions[u]

    def sides(self, u: int, sites: Array) -> list[tuple[Array, Composite, Array]]:
        """Which of the pairs have which function: (pairs, composite, index into its sites)."""
        if not isinstance(self.linear.instructions[u], Nonlin):
            plain = Composite(Slot(0), [(u, np.arange(self.linear.size(u)))], [])
            return [(np.arange(len(sites)), plain, sites)]
        result = []
        for where, composite in self.composites(u):
            mine = np.flatnonzero(np.isin(sites, where))
            if len(mine):
                result.append((mine, composite, np.searchsorted(where, sites[mine])))
        return result

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


def joined(parts: list[Terms], count: int) -> Terms:
    """Terms of several sums side by side; terms that are 0 everywhere are left out."""
    parts = [p for p in parts if p[0].shape[1]]
    if not parts:
        empty = np.zeros((count, 0), dtype=np.int64)
        return empty, empty, empty
    cells, coefs, seeds = (np.concatenate([p[k] for p in parts], axis=1) for k in range(3))
    keep = ((cells != ZERO) & ((coefs != 0) | (seeds != 0))).any(axis=0)
    return cells[:, keep], coefs[:, keep], seeds[:, keep]
