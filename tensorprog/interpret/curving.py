"""Moment equations whose functions are known by their curves: a program of arrays alone, which no function is part of.

Equations of functions of one Gaussian without a closed form are rewritten: in place of a function stands a table, found
on the host for the variances that the inputs reach. These are known when the same-input system has run, which needs
the tables: so it runs until nothing new is met.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from tensorprog.functions import base, curved, curves, paneled
from tensorprog.functions.base import CLOSED, IN_MEANS, IN_PAIRS, IN_PANELS, Elementwise
from tensorprog.functions.quadrature import reach
from tensorprog.interpret.buffers import Alone
from tensorprog.interpret.equations import Equation, MeanEq, OneEq, PairEq, System
from tensorprog.interpret.system import Moments, planned

ROUNDS = 40
"""How often the same-input system runs before its variances are all met."""
MOST = 24
"""Functions that a program knows by their curves."""
STEP = 1 / 16
"""To what part of an octave ranges are rounded, so that equal calls take equal tables."""
Range = tuple[float, float]
Arrays = dict[tuple[int, ...], np.ndarray]
"""Tables in place of arrays of numbers."""


@dataclass(eq=False)
class Wanted:
    """A curve: of φ and φ′, or with `means` of products φψ and φ′ψ′; the numbers of all, and at which same-input cells
    its variances are."""

    functions: tuple[Elementwise, ...]
    of: tuple[tuple[Elementwise, tuple[int, ...]], ...]
    means: bool
    cells: list[np.ndarray] = field(default_factory=list)

    def curve(self, m: Moments, leaves: Any) -> curves.Curve:
        dtype = jnp.result_type(float)
        numbers = [n for phi, ids in self.of if ids for n in m.function_numbers(leaves, dtype, phi, ids)]
        known = curves.Known.of(tuple(f.fn for f in self.functions), numbers)
        return curves.curve(known, curves.means if self.means else curves.sides)

    def met(self, m: Moments, sides: Iterable[Alone]) -> Range | None:
        """The range of log₂ σ; `sides` have values (blocks, cells, n)."""
        kept = m.same.kept(np.unique(np.concatenate(self.cells)))
        found = np.concatenate([np.asarray(side.value)[:, kept].reshape(-1) for side in sides])
        found = found[np.isfinite(found) & (found > 0)]
        if not len(found):
            return None
        ends = np.log2([found.min(), found.max()]) / 2 / STEP
        return float(np.floor(ends[0] - 0.01) * STEP), float(np.ceil(ends[1] + 0.01) * STEP)


@dataclass(eq=False)
class Curving:
    """Moments whose functions are tables. `ranges` are those of the last call, where the next one begins."""

    original: Moments
    moments: Moments
    careful: Moments
    wanted: dict[tuple[int, ...], list[Wanted]]
    ranges: dict[int, Range] = field(default_factory=dict)
    last: tuple[Any, Arrays] = (None, {})  # tables, with what they are of

    @property
    def unread(self) -> set[tuple[int, ...]]:
        """The kinds of tables that no pair of `careful` reads."""
        means = any(isinstance(e, OneEq | MeanEq) for e in self.careful.systems[1].equations)
        return {curved.SIDE} if means else {curved.SIDE, curved.MEAN}

    def tables(self, leaves: Any, dtype: Any) -> Arrays:
        """**Raises:** `NoCurve`."""
        own = {kind: [w.curve(self.original, leaves) for w in wanted] for kind, wanted in self.wanted.items()}
        ranges = {kind: [self.ranges.get(id(w), (0.0, 0.0)) for w in wanted] for kind, wanted in self.wanted.items()}
        key = own, ranges, dtype
        if self.last[0] != key:
            accepted = curved.ACCEPTED[np.dtype(dtype).name]
            found = {kind: curves.tables(own[kind], ranges[kind], accepted).astype(dtype) for kind in own}
            # Pairs of one Gaussian read a table of means, and there may be no such pair.
            self.last = key, {curved.MEAN: np.zeros((1, 17, 1, 6), dtype), **found}
        return self.last[1]

    def panels(self, leaves: Any, dtype: Any) -> Arrays:
        """Numbers of the functions of `careful`, whose pairs are integrated, as far as the last variances reach.

        **Raises:** `NoCurve`.
        """
        wanted = self.wanted[curved.SIDE]
        far = [reach(np.dtype(dtype)) * 2 ** (self.ranges[id(w)][1] + STEP) for w in wanted]
        found = [paneled.paneled(w.curve(self.original, leaves).known, x) for w, x in zip(wanted, far, strict=True)]
        arrays = paneled.arrays(*map(list, zip(*found, strict=True)))
        return dict(zip(paneled.SHAPES, (a.astype(dtype) for a in arrays), strict=True))

    def settled(self, sides: Sequence[Alone]) -> bool:
        """Whether the tables are of just the variances that are met; if not, the next ones will be."""
        before, self.ranges = self.ranges, {}
        for w in (w for own in self.wanted.values() for w in own):
            met = w.met(self.moments, sides)
            self.ranges[id(w)] = before.get(id(w), (0.0, 0.0)) if met is None else met
        return before == self.ranges


class _Rewriting:
    """Equations with curves in place of functions. `panels`: pairs have the functions themselves, on panels."""

    def __init__(self) -> None:
        self.panels = False
        self.known: dict[Any, tuple[int, Wanted]] = {}
        self.wanted: dict[tuple[int, ...], list[Wanted]] = {curved.SIDE: [], curved.MEAN: []}

    def system(self, system: System, *, slope: bool) -> System:
        return replace(system, equations=[self.equation(e, slope=slope) for e in system.equations])

    def equation(self, e: Equation, *, slope: bool) -> Equation:
        """The equation with curves, if its functions have no closed form, nor numbers of the input's own."""
        if isinstance(e, PairEq) and _is_open(e.phi, e.psi) and _fixed(e.phi_numbers, e.psi_numbers):
            return self.pair(e, slope=slope)
        if isinstance(e, OneEq) and _is_open(e.phi, e.psi) and _fixed(e.phi_numbers, e.psi_numbers):
            own = (e.phi, e.psi), (e.phi_numbers, e.psi_numbers)
            places = self.places(*own, e.var, slope=slope, means=True)[:, None]
            return OneEq(e.out, IN_MEANS, IN_MEANS, e.var, places, places)
        if isinstance(e, MeanEq) and e.phi.form is None and _fixed(e.phi_numbers):
            places = self.places((e.phi,), (e.phi_numbers,), e.var, slope=False, means=True)[:, None]
            return MeanEq(e.out, IN_MEANS, e.var, places)
        return e

    def pair(self, e: PairEq, *, slope: bool) -> PairEq:
        left = self.places((e.phi,), (e.phi_numbers,), e.left, slope=slope)
        right = self.places((e.psi,), (e.psi_numbers,), e.right, slope=slope)
        second, fn = (left, right), IN_PANELS
        if not self.panels:
            alike = e.left == e.right  # one Gaussian, where an input meets itself
            both, fn = np.zeros_like(left), IN_PAIRS
            numbers = e.phi_numbers[alike], e.psi_numbers[alike]
            both[alike] = self.places((e.phi, e.psi), numbers, e.left[alike], slope=slope, means=True)
            second = both, both
        numbers = [np.stack(own, 1) for own in zip((left, right), second, strict=True)]
        return PairEq(e.out, fn, fn, e.cov, e.left, e.right, *numbers)

    def places(
        self, phis: tuple[Elementwise, ...], numbers: tuple[np.ndarray, ...], cells: np.ndarray, *, slope: bool,
        means: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """(equations,): which table each equation reads."""
        found = np.zeros(len(cells), dtype=np.int64)
        distinct, inverse = np.unique(np.column_stack(numbers), axis=0, return_inverse=True)
        counts = np.cumsum([n.shape[1] for n in numbers])[:-1]
        for k, row in enumerate(distinct):
            ids = [tuple(part.tolist()) for part in np.split(row, counts)]
            place, wanted = self.one(tuple(zip(phis, ids, strict=True)), slope=slope, means=means)
            own = inverse.reshape(-1) == k
            found[own] = place
            wanted.cells.append(cells[own])
        return found

    def one(self, of: tuple[tuple[Elementwise, tuple[int, ...]], ...], *, slope: bool, means: bool) -> Any:
        """The place of a curve among those of its kind, and the curve; one with slopes serves who needs none."""
        for kept in (True, slope):
            if (of, kept, means) in self.known:
                return self.known[of, kept, means]
        phis = [phi for phi, _ in of]
        orders = [phis, [base.derivative(phi) for phi in phis]] if slope else [phis]
        functions = tuple(base.product(*own) if len(own) == 2 else own[0] for own in orders)
        own = self.wanted[curved.MEAN if means else curved.SIDE]
        own.append(Wanted(functions, of, means))
        self.known[of, slope, means] = len(own) - 1, own[-1]
        return self.known[of, slope, means]


def _is_open(phi: Elementwise, psi: Elementwise) -> bool:
    return base.method(phi, psi) != CLOSED


def _fixed(*numbers: np.ndarray) -> bool:
    """Whether no number is one of the input's own."""
    return all((n >= 0).all() for n in numbers)


@lru_cache(maxsize=256)
def curving(m: Moments, slope: bool) -> Curving | None:
    """The same moments with functions that are known by their curves; None where there are none, or too many.

    With `slope` also what the NTK needs, in the crossing system.
    """
    rewriting = _Rewriting()
    cross = rewriting.system(m.systems[1], slope=slope)
    systems = rewriting.system(m.systems[0], slope=False), cross
    wanted = {kind: own for kind, own in rewriting.wanted.items() if own}
    every = [w for own in wanted.values() for w in own]
    if not every or len(every) > MOST:
        return None
    cells = [np.unique(np.concatenate(w.cells)) for w in every]
    whole = lambda systems: planned(m.demand, m.targets, m.cells, systems, m.cross.keep, cells)
    rewriting.panels = True
    careful = systems[0], rewriting.system(m.systems[1], slope=slope)
    return Curving(m, whole(systems), whole(careful), wanted)
