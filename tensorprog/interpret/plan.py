"""Planning: equations to levels, levels to groups, groups to loops, cells to rows of one buffer.

Equations of one form at one level of the dependency order are one array equation (a group). Runs of levels that repeat
become one `lax.scan` over index arrays: nothing is looked for but equal forms, so unrolled layers, time steps and time
pairs all roll up by themselves. A cell lives in a row of a buffer from its equation to its last reader; rows are used
again, so a network of a hundred layers needs a handful.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, assert_never

import jax
import numpy as np

from tensorprog.functions import base
from tensorprog.functions.base import Elementwise
from tensorprog.interpret.equations import (
    UNIT,
    Array,
    BatchEq,
    DataEq,
    Equation,
    ImportEq,
    JointEq,
    LeafEq,
    LinearEq,
    MeanEq,
    OneEq,
    PairEq,
    ProductEq,
    ScalarEq,
    System,
)

TRASH = 2
"""The row that filled-up places of a loop write to."""
FIRST_ROW = 3
FEW = 32
"""Rows up to which each is an array of its own."""
MANY, LONG = 256, 16
"""Equations of a group, and terms of each, up to which it is small: filling it up costs nothing."""
PLACES = ("out", "cells", "cov", "var", "calls", "blocks", "joint")
"""Arrays of a group that say where in a buffer it reads and writes."""


def _digest(arrays: dict[str, Array]) -> bytes:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.digest()


@dataclass(frozen=True)
class Group:
    """Equations of one form at one level: `form` is static, `arrays` hold rows and registry positions."""

    form: Hashable
    arrays: dict[str, Array]
    uniform: bool
    tables: tuple[int, int] | None = None

    def __hash__(self) -> int:
        return id(self)

    @property
    def key(self) -> Hashable:
        """What it does, to compare by."""
        return self.form, self.uniform, self.tables, _digest(self.arrays)

    @property
    def size(self) -> tuple[int, int]:
        """How many equations it has, and how long they are, in powers of 4 beyond what is small. Levels of one size
        roll up together, since the shorter ones of a loop are filled up to the longest: not the images of a network
        with those that it pooled them to."""
        length = max(a.size for a in self.arrays.values()) // len(self.arrays["out"])
        powers = (math.log(max(1.0, n / few), 4) for n, few in ((len(self.arrays["out"]), MANY), (length, LONG)))
        many, long = map(math.ceil, powers)
        return many, long

    @property
    def common(self) -> dict[str, Array]:
        """Of arrays stacked over a loop's repeats those that are the same in each; `ids` never are, even in one."""
        return {k: a[0] for k, a in self.arrays.items() if k != "ids" and (a == a[:1]).all()}

    @property
    def itself(self) -> bool:
        """Whether all pairs that are integrated are, of an input with itself, one Gaussian with itself."""
        return bool((self.arrays["left"] == self.arrays["right"]).all())


@dataclass(frozen=True)
class Run:
    """Levels that repeat `repeats` times: for each level of the period, its groups with arrays stacked over repeats."""

    levels: tuple[tuple[Group, ...], ...]
    repeats: int


@dataclass(frozen=True)
class Plan:
    """A system ready to be evaluated: steps in order, the size of its buffer, and the row of each cell kept."""

    steps: tuple[tuple[Group, ...] | Run, ...]
    rows: int
    row_of: Array
    keep: Array

    @cached_property
    def key(self) -> Hashable:
        """What it does, to compare by."""
        steps = []
        for step in self.steps:
            levels, repeats = (step.levels, step.repeats) if isinstance(step, Run) else ((step,), 0)
            steps.append((repeats, tuple(tuple(g.key for g in level) for level in levels)))
        return tuple(steps), self.rows, _digest({"row_of": self.row_of[self.keep]})

    @property
    def fixed(self) -> bool:
        """Whether there are few rows, and loops read and write the same ones in each repeat."""
        looped = [g for step in self.steps if isinstance(step, Run) for level in step.levels for g in level]
        return self.rows <= FEW and all(name in g.common for g in looped for name in PLACES if name in g.arrays)

    def kept(self, cells: Array) -> Array:
        """Positions of cells among the kept ones."""
        place = np.searchsorted(self.keep, cells)
        assert (self.keep[place] == cells).all(), "a cell is kept that somebody reads"
        return place.astype(np.int32)


@dataclass(frozen=True)
class Tables:
    """What series and quadrature know of each input by itself, made once an input: by function, the variance cells and
    numbers that it is met with. `rows` finds a line of a function's table."""

    rows: dict[Elementwise, dict[tuple[int, ...], int]]

    @staticmethod
    def of(system: System) -> Tables:
        rows: dict[Elementwise, dict[tuple[int, ...], int]] = {}
        for e in system.equations:
            if isinstance(e, PairEq) and tabulated(e.phi, e.psi, e.phi_numbers, e.psi_numbers):
                for fn, cells, numbers in ((e.phi, e.left, e.phi_numbers), (e.psi, e.right, e.psi_numbers)):
                    table = rows.setdefault(fn, {})
                    for line in np.unique(np.column_stack([cells, numbers]), axis=0).tolist():
                        table.setdefault(tuple(line), len(table))
        return Tables(rows)

    def find(self, fn: Elementwise, cells: Array, numbers: Array) -> Array:
        lines, inverse = np.unique(np.column_stack([cells, numbers]), axis=0, return_inverse=True)
        return np.array([self.rows[fn][tuple(line)] for line in lines.tolist()])[inverse.reshape(-1)]

    def sides(
        self,
        same: Plan,
        values: jax.Array,
        monomials: jax.Array,
        arrays: dict[tuple[int, ...], jax.Array],
        *,
        slope: bool,
    ) -> list[Any]:
        """The tables for n inputs, leading axes (lines, n), in the order of `rows`."""
        found = []
        for fn, lines in self.rows.items():
            cells, *numbers = np.array(list(lines)).T
            variances = values[same.kept(cells)]
            if numbers:
                # What all lines share is not copied for each: an array may be large.
                shared = [bool((ids == ids[0]).all()) for ids in numbers]
                known = [arrays[shape] if shape else monomials for shape in fn.shapes]
                own = [k[ids[0] if one else ids] for k, ids, one in zip(known, numbers, shared, strict=True)]
                line = lambda a, *n, fn=fn: base.sides(fn, a, n, slope=slope)
                found.append(jax.vmap(line, (0, *(None if one else 0 for one in shared)))(variances, *own))
            else:
                found.append(base.sides(fn, variances, slope=slope))
        return found

    def index(self, fn: Elementwise) -> int:
        return list(self.rows).index(fn)


def tabulated(phi: Elementwise, psi: Elementwise, *numbers: Array) -> bool:
    """Whether a pair expectation reads tables; functions with numbers of one input's own have none."""
    return base.general_road(phi, psi) and not any((n < 0).any() for n in numbers)


def own_numbers(*numbers: Array) -> tuple[bool, ...]:
    """Which columns of numbers are cells: they differ from input to input."""
    return tuple(bool((column < 0).any()) for array in numbers for column in array.T)


def form_and_arrays(equation: Equation) -> tuple[Hashable, dict[str, Array]]:
    """What must agree in a group, and what is concatenated."""
    match equation:
        case LinearEq(cells=cells, coefs=coefs, seeds=seeds, factors=None):
            return ("linear",), {"cells": cells, "coefs": coefs, "seeds": seeds}
        case LinearEq(cells=cells, coefs=coefs, seeds=seeds, factors=factors, side=side):
            assert factors is not None, "the case without factors stands above"
            return ("scaled", side), {"cells": cells, "coefs": coefs, "seeds": seeds, "factors": factors}
        case PairEq(phi=phi, psi=psi) as e:
            arrays = {"cov": e.cov, "left": e.left, "right": e.right}
            own = own_numbers(e.phi_numbers, e.psi_numbers)
            return ("pair", phi, psi, own), {**arrays, "phi_numbers": e.phi_numbers, "psi_numbers": e.psi_numbers}
        case OneEq(phi=phi, psi=psi) as e:
            own = own_numbers(e.phi_numbers, e.psi_numbers)
            return ("one", phi, psi, own), {"var": e.var, "phi_numbers": e.phi_numbers, "psi_numbers": e.psi_numbers}
        case MeanEq(phi=phi) as e:
            return ("mean", phi, own_numbers(e.phi_numbers)), {"var": e.var, "phi_numbers": e.phi_numbers}
        case ProductEq(cells=cells):
            return ("product", cells.shape[1]), {"cells": cells}
        case ImportEq(side=side, cells=cells):
            return ("import", side), {"source": cells}
        case LeafEq() as e:
            return ("leaf", e.left, e.right), {"left_sites": e.left_sites, "right_sites": e.right_sites}
        case DataEq(input=index, sites=sites):
            return ("data", index), {"sites": sites}
        case ScalarEq() as e:
            return ("scalar", e.fn, e.arguments, e.held), {"calls": e.cells, "monomials": e.numbers}
        case BatchEq() as e:
            form = ("batch", e.phi, e.psi, e.cov.shape[1:], e.within)
            return form, {"blocks": e.cov, "left_block": e.left, "right_block": e.right}
        case JointEq() as e:
            form = ("joint", e.left, e.right, e.left_slots, e.right_slots, e.count, e.where)
            first = e.numbers.shape[1] - e.right_numbers
            arrays = {"joint": e.cov, "phi_numbers": e.numbers[:, :first], "psi_numbers": e.numbers[:, first:]}
            return (*form, own_numbers(e.numbers)), arrays
        case _ as never:
            assert_never(never)


def own_cells(system: str, form: Hashable, arrays: dict[str, Array]) -> Array:
    """Cells of its own system that an equation reads."""
    assert isinstance(form, tuple), "a form is a tuple"
    own = [arrays[name].reshape(-1) for name in ("cells", "cov", "var", "calls", "blocks") if name in arrays]
    if system == "same":
        own += [
            arrays[name].reshape(-1)
            for name in ("factors", "left", "right", "left_block", "right_block")
            if name in arrays
        ]
        own += [-1 - a[a < 0] for name, a in arrays.items() if name.endswith("numbers")]
    if form[0] == "joint":
        where = np.array(form[6])
        mask = np.ones_like(where, dtype=bool) if system == "same" else where == "own"
        own.append(arrays["joint"][:, mask].reshape(-1))
    return np.concatenate(own) if own else np.zeros(0, dtype=np.int64)


def levels(system: System) -> list[list[Equation]]:
    """Equations by level: by key, and within a key by what they read."""
    deep = 1 << 32
    place = np.full(len(system.owners), -deep, dtype=np.int64)  # key · 2³² + depth within the key
    result: dict[int, list[Equation]] = {}
    for equation, key in zip(system.equations, system.keys, strict=True):
        form, arrays = form_and_arrays(equation)
        below = own_cells(system.name, form, arrays)
        level = max(key * deep, int(place[below].max(initial=-deep)) + 1)
        place[equation.out] = level
        result.setdefault(level, []).append(equation)
    return [result[level] for level in sorted(result)]


def _merge(equations: Sequence[Equation]) -> list[tuple[Hashable, dict[str, Array]]]:
    """Equations of a level grouped by form, their arrays concatenated."""
    groups: dict[Hashable, list[dict[str, Array]]] = {}
    for equation in equations:
        form, arrays = form_and_arrays(equation)
        groups.setdefault(form, []).append({"out": equation.out, **arrays})
    merged = []
    for form in sorted(groups, key=str):
        members = groups[form]
        names = members[0].keys()
        merged.append((form, {name: _stack([m[name] for m in members]) for name in names}))
    return merged


def _stack(arrays: Sequence[Array]) -> Array:
    """Concatenate; sums of different lengths are filled up with cell 0 and coefficient 0."""
    if arrays[0].ndim == 2:
        longest = max(a.shape[1] for a in arrays)
        arrays = [np.pad(a, ((0, 0), (0, longest - a.shape[1]))) for a in arrays]
    return np.concatenate(arrays)


def _repeats(signatures: Sequence[Hashable], start: int, longest: int = 64) -> tuple[int, int]:
    """The period and the number of repeats of the best run that starts here."""
    best = (1, 1)
    for period in range(1, longest + 1):
        count = 1
        while signatures[start : start + period] == signatures[start + count * period : start + (count + 1) * period]:
            count += 1
            if start + count * period >= len(signatures):
                break
        if count > 1 and count * period > best[0] * best[1]:
            best = (period, count)
    return best


def _rows(
    merged: list[list[tuple[Hashable, dict[str, Array]]]], system: str, keep: Array, cells: int
) -> tuple[Array, int]:
    """A row for each cell, used again after the level of the cell's last reader."""
    last = np.full(cells, -1)
    for index, level in enumerate(merged):
        for form, arrays in level:
            last[own_cells(system, form, arrays)] = index
    last[keep] = len(merged)
    rows = np.zeros(cells, dtype=np.int64)
    rows[UNIT] = 1
    free = np.zeros(0, dtype=np.int64)
    count = FIRST_ROW
    ending: dict[int, list[Array]] = {}
    for index, level in enumerate(merged):
        free = np.concatenate([free, *ending.pop(index - 1, [])])
        out = np.concatenate([arrays["out"] for _, arrays in level])
        fresh = max(0, len(out) - len(free))
        rows[out] = np.concatenate([free[: len(out) - fresh], np.arange(count, count + fresh)])
        free, count = free[len(out) - fresh :], count + fresh
        ends = np.maximum(last[out], index)
        for end in np.unique(ends):
            ending.setdefault(int(end), []).append(rows[out[ends == end]])
    return rows, count


def plan(system: System, keep: Array, exported: Plan | None = None, tables: Tables | None = None) -> Plan:
    """Plan a system. `keep` are the cells wanted at the end; the crossing system reads the kept cells of the same-input
    plan `exported`, and `tables`."""
    keep = np.unique(keep).astype(np.int64)
    merged = [_merge(level) for level in levels(system)]
    rows, count = _rows(merged, system.name, keep, len(system.owners))
    ready = [tuple(_resolve(f, a, system.name, rows, exported, tables) for f, a in level) for level in merged]
    signatures = [tuple((g.form, g.uniform, g.size) for g in level) for level in ready]
    steps: list[tuple[Group, ...] | Run] = []
    start = 0
    while start < len(ready):
        period, repeats = _repeats(signatures, start)
        if repeats * period > 3 and repeats > 1:
            steps.append(_roll(ready[start : start + period * repeats], period, repeats))
        else:
            period, repeats = 1, 1
            steps.append(ready[start])
        start += period * repeats
    return Plan(tuple(steps), count, rows, keep)


def _resolve(
    form: Hashable, arrays: dict[str, Array], system: str, rows: Array, exported: Plan | None, tables: Tables | None
) -> Group:
    """Cells to rows of this system's buffer, or to positions among the same-input system's kept cells."""
    assert isinstance(form, tuple), "a form is a tuple"
    alone = (lambda cells: rows[cells]) if exported is None else exported.kept
    result = {"ids": arrays["out"], **arrays}
    for name in ("out", "cells", "cov", "var", "calls", "blocks"):
        if name in arrays:
            result[name] = rows[arrays[name]]
    for name in ("left", "right", "factors", "left_block", "right_block"):
        if name in arrays:
            result[name] = alone(arrays[name])
    numbers = {name: a for name, a in arrays.items() if name.endswith("numbers")}
    for name, a in numbers.items():
        result[name] = np.where(a < 0, alone(np.where(a < 0, -1 - a, 0)), a)
    if form[0] == "pair" and tables is not None and tabulated(form[1], form[2], *numbers.values()):
        result["left_line"] = tables.find(form[1], arrays["left"], arrays["phi_numbers"])
        result["right_line"] = tables.find(form[2], arrays["right"], arrays["psi_numbers"])
    if form[0] == "import":
        assert exported is not None, "imports are read from the same-input system"
        result["source"] = exported.kept(arrays["source"])
    if form[0] == "joint":
        result["joint"] = _resolve_joint(form[6], arrays["joint"], rows, exported)
    uniform = all((a == a[:1]).all() and (a >= 0).all() for a in numbers.values())
    which = (tables.index(form[1]), tables.index(form[2])) if tables and "left_line" in result else None
    return Group(form, {name: a.astype(np.int32) for name, a in result.items()}, uniform, which)


def _resolve_joint(where: tuple[tuple[str, ...], ...], cov: Array, rows: Array, exported: Plan | None) -> Array:
    if exported is None:
        return rows[cov]
    result = np.zeros_like(cov)
    for i, row in enumerate(where):
        for j, place in enumerate(row):
            result[:, i, j] = rows[cov[:, i, j]] if place == "own" else exported.kept(cov[:, i, j])
    return result


def _roll(ready: list[tuple[Group, ...]], period: int, repeats: int) -> Run:
    """Stack the arrays of equal levels over the repeats, shorter ones filled up."""
    rolled = []
    for offset in range(period):
        level = []
        for position in range(len(ready[offset])):
            members = [ready[offset + period * r][position] for r in range(repeats)]
            names = members[0].arrays.keys()
            stacked = {name: _filled([m.arrays[name] for m in members], name) for name in names}
            level.append(replace(members[0], arrays=stacked))
        rolled.append(tuple(level))
    return Run(tuple(rolled), repeats)


def _filled(arrays: list[Array], name: str) -> Array:
    """One array over repeats: sums filled up with zeros, equations with ones that are harmless and write to no cell."""
    shape = tuple(max(a.shape[axis] for a in arrays) for axis in range(arrays[0].ndim))
    result = []
    for array in arrays:
        if array.ndim == 2 and name in ("cells", "coefs", "seeds", "factors"):
            array = np.pad(array, ((0, 0), (0, shape[1] - array.shape[1])))
        missing = shape[0] - array.shape[0]
        if missing:
            # A copy of the last equation is harmless: it computes what is computed anyway, into the trash row.
            fill = np.repeat(array[-1:], missing, axis=0)
            array = np.concatenate([array, np.full_like(fill, TRASH) if name == "out" else fill])
        result.append(array)
    return np.stack(result)
