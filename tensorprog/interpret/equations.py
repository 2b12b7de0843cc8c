"""Moment equations over cells: what a kernel is made of, before anything is computed.

A *cell* is one number for each pair of inputs (or each input): the moment of one site of a vector u with one site of a
vector v. Two systems of equations share these kinds: `same`, both vectors at one input (variances), and `cross`, u at
one input and v at another. Gaussian vectors' cells hold covariances; other vectors' cells second moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorprog.functions.base import Elementwise
from tensorprog.functions.batch_integrals import Sides
from tensorprog.functions.frozen import Function
from tensorprog.interpret.composite import Vectorial
from tensorprog.interpret.linear import Linear

ZERO, UNIT = 0, 1
"""Cells that hold the constants 0 and 1 in every system."""

Array = np.ndarray


class Expectation:
    """An equation whose value is an expectation of functions of Gaussians."""


class Given:
    """An equation whose cells are known: inputs, data, or cells of the same-input system."""


@dataclass
class LinearEq:
    """out = Σ_k coef_k · factor_k · cell_k; the NTK's tangent also gets Σ_k seed_k · cell_k, the parameters' own terms.

    Factors are same-input cells of scalars (Moments, data) at the input on one side; None where all are 1.
    """

    out: Array
    cells: Array
    coefs: Array
    seeds: Array
    factors: Array | None = None
    side: str = "left"


@dataclass
class PairEq(Expectation):
    """out = E φ(u) ψ(v), Var u and Var v cells of the same-input system, Cov(u, v) a cell of this one.

    Numbers of functions, here and below, are positions of monomials, or -1 - cell for a cell of the same-input system:
    of the left input for φ, of the right one for ψ.
    """

    out: Array
    phi: Elementwise
    psi: Elementwise
    cov: Array
    left: Array
    right: Array
    phi_numbers: Array
    psi_numbers: Array


@dataclass
class OneEq(Expectation):
    """out = E φ(u) ψ(u): one Gaussian at one input."""

    out: Array
    phi: Elementwise
    psi: Elementwise
    var: Array
    phi_numbers: Array
    psi_numbers: Array


@dataclass
class MeanEq(Expectation):
    """out = E φ(u)."""

    out: Array
    phi: Elementwise
    var: Array
    phi_numbers: Array


@dataclass
class ProductEq:
    """out = Π_k cell_k, of independent factors."""

    out: Array
    cells: Array


@dataclass
class ImportEq(Given):
    """out = a cell of the same-input system, at the left or the right input."""

    out: Array
    side: str
    cells: Array


@dataclass
class LeafEq(Given):
    """out = ⟨x[p], x̄[q]⟩/d of inputs."""

    out: Array
    left: int
    right: int
    left_sites: Array
    right_sites: Array


@dataclass
class DataEq(Given):
    """out = an element of an input's data, in the same-input system."""

    out: Array
    input: int
    sites: Array


@dataclass
class ScalarEq:
    """out = all elements of fn(θ¹, …), in the same-input system, one row of `cells` and `numbers` a call.

    `arguments`: by scalar, whether its elements are cells (else numbers of the program), and its shape; the function's
    own numbers come last, `held` their shapes.
    """

    out: Array
    fn: Function
    arguments: tuple[tuple[bool, tuple[int, ...]], ...]
    held: tuple[tuple[int, ...], ...]
    cells: Array
    numbers: Array


@dataclass
class JointEq(Expectation):
    """out = E F(z) F̄(z) for up to four dependent Gaussians z with covariance cells `cov` (m, K, K).

    Entry (i, j) of `cov` is a cell of this system where one slot is F's and the other F̄'s (`crossing`), else a cell of
    the same-input system at F's input (`left`) or F̄'s.
    """

    out: Array
    left: Vectorial
    right: Vectorial | None
    left_slots: tuple[int, ...]
    right_slots: tuple[int, ...]
    count: int
    cov: Array
    where: tuple[tuple[str, ...], ...]
    numbers: Array
    right_numbers: int = 0
    """How many of the numbers, the last ones, are those of F̄."""

    def own(self, slots: tuple[int, ...]) -> Array:
        """Covariance cells (m, k, k) of one side's Gaussians among themselves."""
        places = np.array(slots, dtype=np.int64)
        return self.cov[:, places[:, None], places]


@dataclass
class BatchEq(Expectation):
    """out = E F(h) F̄(h̄)ᵀ for two blocks of sites, all pairs of them: F is batch norm and then φ, F̄ with ψ.

    `cov` (m, A, B) are cells of this system, `left` (m, A, A) and `right` (m, B, B) of the same-input one. `within`:
    both blocks are one and the same.
    """

    out: Array
    phi: Sides
    psi: Sides
    cov: Array
    left: Array
    right: Array
    within: bool


Equation = LinearEq | PairEq | OneEq | MeanEq | ProductEq | ImportEq | LeafEq | DataEq | ScalarEq | JointEq | BatchEq


@dataclass
class System:
    """Equations over cells. `owners` says whose moment a cell is, `keys` orders the equations."""

    name: str
    equations: list[Equation] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    owners: list[tuple[str, int, int, int, int]] = field(default_factory=lambda: [("0", 0, 0, 0, 0), ("1", 0, 0, 0, 0)])
    tables: dict[Any, Array] = field(default_factory=dict)

    def new(self, kind: str, u: int, v: int, pu: Array, pv: Array) -> Array:
        start = len(self.owners)
        self.owners += [(kind, u, v, int(a), int(b)) for a, b in zip(pu, pv, strict=True)]
        return np.arange(start, start + len(pu))

    def emit(self, equation: Equation, key: int) -> None:
        self.equations.append(equation)
        self.keys.append(key)

    def table(self, key: Any, shape: tuple[int, ...]) -> Array:
        if key not in self.tables:
            self.tables[key] = np.full(shape, -1, dtype=np.int64)
        return self.tables[key]


class Seeds:
    """A registry of Σ monomial · (parameter's weight in the NTK); position 0 is the empty sum."""

    def __init__(self, linear: Linear):
        self.linear = linear
        self.entries: list[tuple[tuple[int, int], ...]] = []
        self.known: dict[Any, int] = {}
        self.add(())

    def add(self, entry: Sequence[tuple[int, int]]) -> int:
        key = tuple(sorted(entry))
        if key not in self.known:
            self.known[key] = len(self.entries)
            self.entries.append(key)
        return self.known[key]

    def scaled(self, seed: int, monomial: int) -> int:
        if seed == 0 or monomial == 1:
            return seed
        return self.add([(p, self.linear.monomials.multiply(m, monomial)) for p, m in self.entries[seed]])

    def with_parameter(self, seed: int, parameter: int, monomial: int) -> int:
        return self.add([*self.entries[seed], (parameter, monomial)])
