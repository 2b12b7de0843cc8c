"""Expectations as equations: products of independent factors are taken apart before anything is integrated.

E F(g) F̄(ḡ), F and F̄ products of factors: Gaussians are connected when a factor reads both or their covariance is not
0 by structure; each connected component is an expectation of its own, the result their product. A component with one
Gaussian a side is a pair expectation; with two a side a joint one; with more it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tensorprog.errors import NotIntegrated
from tensorprog.interpret.composite import (
    SAMPLED,
    Composite,
    Expr,
    Slot,
    Vectorial,
    expanded,
    factors,
    multiply,
    remap,
    slots,
    unary,
)
from tensorprog.interpret.equations import ZERO, Array, JointEq, MeanEq, OneEq, PairEq, ProductEq, System
from tensorprog.interpret.linear import Ids, Linear
from tensorprog.interpret.terms import joined, linear_equation
from tensorprog.interpret.terms import whole as one_term

MOST = 64
"""Products that an expectation is taken apart into."""
Label = tuple[str, int, int, Array, Array]
"""Whose moments the cells are: kind, u, v, sites of u, sites of v."""


class Asker(Protocol):
    """What expectations ask for in turn."""

    linear: Linear
    same: System

    def moment(self, system: System, u: int, v: int, pu: Array, pv: Array) -> Array: ...

    def imported(self, system: System, side: str, cells: Array) -> Array: ...


@dataclass
class Side:
    """One side of an expectation: a composite, at which of its sites for each pair."""

    composite: Composite
    at: Array

    def gaussian(self, index: int) -> tuple[int, Array]:
        position, sites = self.composite.gaussians[index]
        return position, sites[self.at]

    def numbers(self) -> list[Ids]:
        return [ids if np.ndim(ids) == 0 else ids[self.at] for ids in self.composite.numbers]

    def restricted(self, pairs: Array) -> Side:
        return Side(self.composite, self.at[pairs])

    def products(self) -> list[Side]:
        """The side as a sum of products, each of the Gaussians that it reads."""
        parts = expanded(self.composite.expr, MOST)
        if len(parts) == 1 or not all(map(slots, parts)):
            return [self]
        return [self.alone(part) for part in parts]

    def alone(self, expr: Expr) -> Side:
        read = sorted(slots(expr))
        moved = remap(expr, {slot: place for place, slot in enumerate(read)}, 0)
        gaussians = [self.composite.gaussians[slot] for slot in read]
        return Side(Composite(moved, gaussians, self.composite.numbers), self.at)


@dataclass
class Node:
    """A Gaussian of an expectation. In the same-input system one that both sides read is one node."""

    position: int
    sites: Array
    on_left: bool
    on_right: bool


def expectation_cells(ask: Asker, system: System, left: Side, right: Side | None, label: Label, key: int) -> Array:
    """Cells of E F(left) F̄(right), or of E F(left), with the equations that define them."""
    cells = np.zeros(len(left.at), dtype=np.int64)
    kind, u, v, pu, pv = label
    for pairs, shared in _patterns(ask, system, left, right):
        own = kind, u, v, pu[pairs], pv[pairs]
        sides = left.restricted(pairs), right and right.restricted(pairs)
        part = _Expectation(ask, system, *sides, shared, own, key)
        cells[pairs] = part.cells() if part.together() == 1 else _as_sum(ask, system, sides, own, key, part)
    return cells


def _as_sum(
    ask: Asker, system: System, sides: tuple[Side, Side | None], label: Label, key: int, whole: _Expectation
) -> Array:
    """The expectation's cells; as a sum of products where these take fewer Gaussians at once."""
    left, right = sides
    products = [(a, b) for a in left.products() for b in ([None] if right is None else right.products())]
    if not 1 < len(products) <= MOST:
        return whole.cells()
    part = ("part", *label[1:])
    parts = []
    for a, b in products:
        ((_, shared),) = _patterns(ask, system, a, b)  # of one pattern, as the whole is
        parts.append(_Expectation(ask, system, a, b, shared, part, key))
    if max(p.together() for p in parts) >= whole.together():
        return whole.cells()
    terms = joined([one_term(p.cells()) for p in parts], len(left.at))
    if not terms[0].shape[1]:
        return np.full(len(left.at), ZERO)
    out = whole.new(label, system)
    system.emit(linear_equation(out, terms), key)
    return out


def _patterns(
    ask: Asker, system: System, left: Side, right: Side | None
) -> list[tuple[Array, tuple[tuple[int, int], ...]]]:
    """Groups of pairs by which Gaussians of the two sides are one and the same (at one input only)."""
    everything = np.arange(len(left.at))
    if right is None or system is not ask.same:
        return [(everything, ())]
    alike = []
    for i in range(len(left.composite.gaussians)):
        for j in range(len(right.composite.gaussians)):
            (a, p), (b, q) = left.gaussian(i), right.gaussian(j)
            if a == b and (p == q).any():
                alike.append(((i, j), p == q))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for pair in everything:
        pattern = tuple(which for which, equal in alike if equal[pair])
        groups.setdefault(pattern, []).append(int(pair))
    return [(np.array(pairs), pattern) for pattern, pairs in groups.items()]


class _Expectation:
    """One expectation for pairs of one pattern."""

    def __init__(
        self,
        ask: Asker,
        system: System,
        left: Side,
        right: Side | None,
        shared: tuple[tuple[int, int], ...],
        label: Label,
        key: int,
    ):
        self.ask, self.system, self.label, self.key = ask, system, label, key
        self.numbers = left.numbers()
        self.on_left = offset = len(self.numbers)
        count = len(left.composite.gaussians)
        self.nodes = [Node(*left.gaussian(i), True, False) for i in range(count)]
        self.left = _factors(left.composite.expr, {i: i for i in range(count)}, 0)
        self.right: list[Expr] = []
        if right is not None:
            self.numbers += right.numbers()
            place = {}
            for j in range(len(right.composite.gaussians)):
                twin = next((i for i, k in shared if k == j), None)
                if twin is None:
                    self.nodes.append(Node(*right.gaussian(j), False, True))
                else:
                    self.nodes[twin].on_right = True
                place[j] = len(self.nodes) - 1 if twin is None else twin
            self.right = _factors(right.composite.expr, place, offset)

    def cov(self, a: int, b: int) -> Array:
        """Covariance cells of two nodes: same-input ones on one side, this system's across."""
        left, right = self.nodes[a], self.nodes[b]
        crossing = (left.on_left and right.on_right) or (left.on_right and right.on_left)
        if crossing and not left.on_left:
            left, right = right, left
        system = self.system if crossing else self.ask.same
        return self.ask.moment(system, left.position, right.position, left.sites, right.sites)

    def components(self) -> list[set[int]]:
        """Nodes that have to be integrated together."""
        parts = [set(slots(f)) for f in (*self.left, *self.right) if slots(f)]
        count = len(self.nodes)
        parts += [{a, b} for a in range(count) for b in range(a) if (self.cov(a, b) != ZERO).any()]
        merged: list[set[int]] = []
        for part in parts:
            touching = [m for m in merged if m & part]
            merged = [m for m in merged if not m & part] + [part.union(*touching)]
        return merged

    def together(self) -> int:
        """The most Gaussians that are integrated together on one side."""
        most = 1
        for nodes in self.components():
            for side in (self.left, self.right):
                most = max(most, len(nodes & frozenset().union(*(slots(f) for f in side))))
        return most

    def cells(self) -> Array:
        found = self.components()
        if any(self.centred(nodes) for nodes in found):
            return np.full(len(self.label[3]), ZERO)
        whole = len(found) == 1
        parts = [self.component(nodes, self.label if whole else ("part", *self.label[1:])) for nodes in found]
        if whole:
            return parts[0]
        out = self.new(self.label, self.system)
        self.system.emit(ProductEq(out, np.stack(parts, axis=1)), self.key)
        return out

    def centred(self, nodes: set[int]) -> bool:
        """Whether a component is one Gaussian alone, whose mean is 0."""
        reading = [f for f in (*self.left, *self.right) if slots(f) & nodes]
        return len(reading) == 1 and isinstance(reading[0], Slot)

    def new(self, label: Label, system: System) -> Array:
        return system.new(*label)

    def component(self, nodes: set[int], label: Label) -> Array:
        """Cells of one component's expectation."""
        left = [f for f in self.left if slots(f) & nodes]
        right = [f for f in self.right if slots(f) & nodes]
        if not left or not right:
            side = "left" if left else "right"
            cells = self.integrate(self.ask.same, sorted(nodes), left or right, [], label)
            return self.ask.imported(self.system, side, cells)
        return self.integrate(self.system, sorted(nodes), left, right, label)

    def integrate(self, system: System, nodes: list[int], left: list[Expr], right: list[Expr], label: Label) -> Array:
        count = len(self.numbers)
        read_left = sorted(set().union(*(slots(f) for f in left)))
        read_right = sorted(set().union(*(slots(f) for f in right)))
        if len(read_left) > 2 or len(read_right) > 2:
            raise self.refuse(max(len(read_left), len(read_right)))
        if len(read_left) == 1 and len(read_right) <= 1:
            phi, first = unary(multiply(left), count)
            psi, second = unary(multiply(right), count)
            out = self.new(label, system)
            a, phi_numbers, psi_numbers = read_left[0], self.stacked(first), self.stacked(second)
            if not right:
                system.emit(MeanEq(out, phi, self.variance(a), phi_numbers), self.key)
            elif read_right[0] == a:
                system.emit(OneEq(out, phi, psi, self.variance(a), phi_numbers, psi_numbers), self.key)
            else:
                b = read_right[0]
                variances = self.variance(a), self.variance(b)
                system.emit(PairEq(out, phi, psi, self.cov(a, b), *variances, phi_numbers, psi_numbers), self.key)
            return out
        return self.joint(system, nodes, left, right, (read_left, read_right), label)

    def joint(
        self,
        system: System,
        nodes: list[int],
        left: list[Expr],
        right: list[Expr],
        read: tuple[list[int], list[int]],
        label: Label,
    ) -> Array:
        place = {node: i for i, node in enumerate(nodes)}
        whole_left, whole_right = multiply(left), multiply(right)
        assert whole_left is not None, "a joint expectation has a left side"
        cov = np.stack([np.stack([self.cov(a, b) for b in nodes], axis=-1) for a in nodes], axis=-2)
        where = tuple(tuple(self.where(system, a, b) for b in nodes) for a in nodes)
        slots_of = [tuple(place[node] for node in side) for side in read]
        out = self.new(label, system)
        right_side = None if whole_right is None else Vectorial(remap(whole_right, place, 0))
        numbers = self.stacked(tuple(range(len(self.numbers))))
        left_side = Vectorial(remap(whole_left, place, 0))
        own = len(self.numbers) - self.on_left
        equation = JointEq(out, left_side, right_side, slots_of[0], slots_of[1], len(nodes), cov, where, numbers, own)
        system.emit(equation, self.key)
        return out

    def where(self, system: System, a: int, b: int) -> str:
        """Which system a covariance cell of a joint expectation belongs to: this one, or same-input left or right."""
        left, right = self.nodes[a], self.nodes[b]
        if system is self.ask.same or (left.on_left and right.on_right) or (left.on_right and right.on_left):
            return "own"
        return "left" if left.on_left else "right"

    def variance(self, node: int) -> Array:
        position, sites = self.nodes[node].position, self.nodes[node].sites
        return self.ask.moment(self.ask.same, position, position, sites, sites)

    def stacked(self, which: tuple[int, ...]) -> Array:
        """Registry positions of numbers, (m, count)."""
        count = len(self.label[3])
        columns = [np.broadcast_to(self.numbers[i], (count,)) for i in which]
        return np.stack(columns, axis=1).astype(np.int64) if columns else np.zeros((count, 0), dtype=np.int64)

    def refuse(self, count: int) -> Exception:
        why = f"it depends on {count} Gaussians that are not independent; up to two a side are integrated"
        return self.ask.linear.refuse(self.label[1], why, SAMPLED, NotIntegrated)


def _factors(expr: Expr, place: dict[int, int], offset: int) -> list[Expr]:
    """The factors of one side, each with a Gaussian in it: bare numbers go with the first."""
    found = factors(remap(expr, place, offset))
    bare = [f for f in found if not slots(f)]
    reading = [f for f in found if slots(f)]
    first = multiply([*bare, reading[0]])
    assert first is not None, "an expectation has a Gaussian"
    return [first, *reading[1:]]
