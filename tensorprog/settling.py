"""Kernels by functions' curves, and with care where these do not settle a pair.

Three programs, none of which knows a function: the inputs by themselves, run until the tables are of the variances
that they meet; all pairs by series, NaN where a series leaves out too much; those pairs once more, integrated, with
the functions on panels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from tensorprog import stripes
from tensorprog.assembly import Grid, fields, places
from tensorprog.functions.curves import NoCurve
from tensorprog.interpret.buffers import Alone, Buffer
from tensorprog.interpret.curving import ROUNDS, curving
from tensorprog.interpret.system import Moments, Stage
from tensorprog.stripes import COSTLY, Asked


def evaluated(
    asked: Asked, leaves: Any, weights: Any, x1: Any, x2: Any, progress: bool
) -> tuple[Moments, list[dict[str, Any]], tuple[Alone, ...]]:
    """Every target's quantities, what is known of the inputs of each side, and the moments whose cells that has."""
    assert isinstance(asked.m, Moments), "whose moments they are"
    curves = curving(asked.m, asked.tangent)
    if curves is not None:
        try:
            grid = ByCurves(curves, asked, leaves, weights, x1, x2)
            return grid.m, *grid.run(progress)
        except NoCurve:
            curves.ranges.clear()
    grid = Grid(asked, leaves, weights, x1, x2)
    return asked.m, *grid.run(progress)


class ByCurves(Grid):
    """All pairs, by curves. Raises `NoCurve` where some function has none, or a kernel is known in no such way."""

    def __init__(self, curves: Any, asked: Asked, leaves: Any, weights: Any, x1: Any, x2: Any):
        super().__init__(replace(asked, m=curves.moments), leaves, weights, x1, x2)
        self.curves = curves
        self.again = replace(asked, m=curves.careful if asked.split else Stage.of(curves.careful))
        self.panelled: Any = None
        self.redone: dict[int, Alone] = {}

    def panels(self) -> tuple[list[Any], list[Any]]:
        for _ in range(ROUNDS):
            self.numbers = self.known_numbers(self.curves.tables(self.leaves, self.dtype))
            left, right = super().panels()
            sides = [self.known(left, self.n1), *(() if self.alone else (self.known(right, self.n2),))]
            if self.curves.settled(sides):
                if any(np.isnan(side.value).any() for side in sides):
                    break
                return left, right
        raise NoCurve("a variance is known in another way")

    def settled(self, i: int, j: int, found: Buffer | None, left: Alone, right: Alone) -> Buffer | None:
        """Pairs that are NaN are integrated, in their places."""
        if found is None:
            return None
        lost = self.lost(found)
        if not lost.any():
            return found
        lost &= self.wanted(i, j)
        filled, count = places(lost, block := min(self.block, COSTLY))
        if not count:
            return found
        if self.panelled is None:
            arrays = self.numbers.arrays | self.curves.panels(self.leaves, self.dtype)
            # Without the tables that no pair reads, since another function's have other shapes.
            self.panelled = replace(
                self.numbers, arrays={k: a for k, a in arrays.items() if k not in self.curves.unread}
            )
        again = stripes.stripe(
            self.again, block, self.panelled, self.weights, self.one[i], self.two[j], self.with_care(left),
            self.with_care(right), lost, filled, count,
        )  # fmt: skip
        if (self.lost(again) & lost).any():
            raise NoCurve("a pair is known in another way")
        return jax.tree.map(lambda old, new: np.where(lost, new, old), found, again)

    def lost(self, found: Buffer) -> np.ndarray:
        """(panel, panel): of which pairs some value or tangent is NaN."""
        parts = [np.isnan(np.asarray(a)) for a in fields(found)[:2] if a is not None]
        return np.any([part.any(tuple(range(part.ndim - 2))) for part in parts], 0)

    def with_care(self, known: Alone) -> Alone:
        """The same inputs with what the integrals need to know of their functions, made once for each panel."""
        if id(known) not in self.redone:
            self.redone[id(known)] = stripes.sided(self.again, self.panelled, known)
        return self.redone[id(known)]
