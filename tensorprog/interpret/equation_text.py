"""Moment equations as text: the recursion that a paper would print, its forward (C) and backward (D) lines.

Lines are first written with marked indices, ⟦L5⟧ an index on the left side (of x), ⟦R5⟧ on the right (of x̄). Lines that
agree up to their indices are one family and are printed once, with the range.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tensorprog.functions.base import IDENTITY, ONE, Elementwise, method
from tensorprog.interpret.composite import text
from tensorprog.interpret.equations import (
    UNIT,
    ZERO,
    Equation,
    ImportEq,
    JointEq,
    LeafEq,
    LinearEq,
    MeanEq,
    OneEq,
    PairEq,
    ProductEq,
)
from tensorprog.interpret.system import Moments
from tensorprog.show import Printer

_MARK = re.compile(r"⟦([LR])(-?\d+)⟧")


@dataclass(frozen=True)
class Line:
    """lhs = rhs, with marked indices, and how it is got."""

    lhs: str
    rhs: str
    note: str = ""


class Writer:
    """Writes one program's crossing equations."""

    def __init__(self, m: Moments, printer: Printer, values: np.ndarray, weights: Sequence[float]):
        self.m, self.printer, self.values, self.weights = m, printer, values, weights
        self.system = m.demand.cross
        self.defining = {int(c): (e, i) for e in self.system.equations for i, c in enumerate(e.out)}

    # ---- names

    def vector(self, position: int, site: int, side: str) -> str:
        """A vector's name on one side, with its site when it has several."""
        linear = self.m.demand.linear
        known = position < len(linear.structure.names)
        plain = self.printer.expression(position) if known else f"z{position}"
        named = re.sub(r"(?<=[A-Za-z])(\d+)", rf"⟦{side}\1⟧", plain)
        sites = linear.sites(position)
        return named + self.site(site, sites, side) if sites else named

    def site(self, flat: int, sites: tuple[int, ...], side: str) -> str:
        index = np.unravel_index(flat, sites)
        return "[" + ", ".join(f"⟦{side}{int(i)}⟧" for i in index) + "]"

    def input(self, index: int, site: int, side: str) -> str:
        structure = self.m.demand.structure
        name = structure.input_names[index] + ("\u0304" if side == "R" else "")
        sites = structure.inputs[index].sites
        return name + self.site(site, sites, side) if sites else name

    def cell(self, cell: int, letter: str = "C") -> str:
        """A cell's name: C(g1), C(g1, g2), ⟨x, x̄⟩/16, …"""
        if cell in (ZERO, UNIT):
            return str(cell)
        kind, u, v, p, q = self.system.owners[cell]
        match kind:
            case "leaf":
                features = self.m.demand.structure.inputs[u].features
                return f"⟨{self.input(u, p, 'L')}, {self.input(v, q, 'R')}⟩/{features}"
            case "left":
                return f"E {self.vector(u, p, 'L')}(x)"
            case "right":
                return f"E {self.vector(u, p, 'R')}(x̄)"
            case "part" if letter == "C":
                return self.rhs(cell)[0]
            case _:
                left, right = self.vector(u, p, "L"), self.vector(v, q, "R")
                return f"{letter}({left}, {right})"

    # ---- equations

    def coefficient(self, monomial: int) -> float:
        return float(self.values[monomial])

    def combination(self, terms: Sequence[tuple[float, str]]) -> str:
        """Σ coefficient · name; names that differ in indices only are one sum over the index."""
        merged: dict[str, float] = {}
        for coef, name in terms:
            merged[name] = merged.get(name, 0.0) + coef
        groups: dict[tuple[float, str], list[tuple[str, tuple[int, int]]]] = {}
        for name, coef in merged.items():
            base = _base(name)
            groups.setdefault((float(f"{coef:.12g}"), _relative(name, base)), []).append((name, base))
        parts = []
        for (coef, template), members in groups.items():
            if len(members) < 3:
                parts += [scaled(coef, name) for name, _ in members]
            else:
                places = [place for _, place in members]
                parts.append(scaled(coef, f"Σ[{ranges(places)}] {_symbolic(template, _letters(places))}"))
        return " + ".join(parts).replace("+ -", "− ") if parts else "0"

    def rhs(self, cell: int) -> tuple[str, str]:
        """What a cell is, and how it is got."""
        equation, i = self.defining[cell]
        match equation:
            case LinearEq(cells=cells, coefs=coefs):
                terms = [
                    (self.coefficient(int(k)), self.cell(int(c)))
                    for c, k in zip(cells[i], coefs[i], strict=True)
                    if k and c
                ]
                return self.combination(terms), ""
            case PairEq(phi=phi, psi=psi, cov=cov):
                return self.expectation(phi, psi, self.cell(int(cov[i]))), method(phi, psi)
            case ProductEq(cells=cells):
                return " · ".join(self.cell(int(c)) for c in cells[i]), "independent factors"
            case JointEq(left=left, right=right):
                inside = text(left.expr) + (f" · {text(right.expr)}" if right else "")
                return f"E {inside}", "Hermite series in two dimensions"
            case OneEq() | MeanEq() | ImportEq() | LeafEq():
                return self.cell(cell), ""

    def expectation(self, phi: Elementwise, psi: Elementwise, cov: str, prime: str = "") -> str:
        if phi == psi:
            return f"V_{phi.name}{prime} {cov}"
        names = [f.name if f not in (IDENTITY, ONE) else {IDENTITY: "id", ONE: "1"}[f] for f in (phi, psi)]
        return f"V_{names[0]}{prime},{names[1]}{prime} {cov}"

    def forward(self) -> list[Line]:
        """The C lines, in order."""
        lines = []
        for equation in self.system.equations:
            if isinstance(equation, LeafEq | ImportEq):
                continue
            for cell in equation.out.tolist():
                if self.system.owners[cell][0] in ("moment", "second") and not self.is_output(cell):
                    rhs, note = self.rhs(cell)
                    lines.append(Line(self.cell(cell), rhs, note))
        return lines

    def is_output(self, cell: int) -> bool:
        return any(cell in cells for cells in self.m.cells) and self.system.owners[cell][1] in {
            u for u, _ in self.m.targets if self.m.demand.structure.names[u] is None
        }

    def contributions(self) -> dict[int, list[tuple[float, str, int]]]:
        """For each cell: (coefficient, factor, cell) of what its D is made of."""
        found: dict[int, list[tuple[float, str, int]]] = {}
        for equation in self.system.equations:
            for i, out in enumerate(equation.out.tolist()):
                for coef, factor, cell in self._parts(equation, i):
                    found.setdefault(cell, []).append((coef, factor, out))
        return found

    def _parts(self, equation: Equation, i: int) -> Iterator[tuple[float, str, int]]:
        match equation:
            case LinearEq(cells=cells, coefs=coefs):
                for c, k in zip(cells[i].tolist(), coefs[i].tolist(), strict=True):
                    if k and c > UNIT:
                        yield self.coefficient(k), "", c
            case PairEq(phi=phi, psi=psi, cov=cov):
                if cov[i] > UNIT:
                    yield 1.0, self.expectation(phi, psi, self.cell(int(cov[i])), "′"), int(cov[i])
            case ProductEq(cells=cells):
                for k, c in enumerate(cells[i].tolist()):
                    rest = " · ".join(self.cell(o) for j, o in enumerate(cells[i].tolist()) if j != k)
                    yield 1.0, rest, c
            case JointEq(cov=cov, left_slots=left, right_slots=right):
                for a in left:
                    for b in right:
                        yield 1.0, f"E ∂{a + 1}F ∂{b + 1}F̄", int(cov[i, a, b])
            case OneEq() | MeanEq() | ImportEq() | LeafEq():
                return

    def backward(self) -> list[Line]:
        """The D lines, from the output down; D(y) is the derivative of the NNGP in the cross moment of y."""
        contributions = self.contributions()
        lines = []
        for equation in reversed(self.system.equations):
            if isinstance(equation, LeafEq | ImportEq):
                continue
            for cell in equation.out.tolist():
                if self.system.owners[cell][0] not in ("moment", "second") or self.is_output(cell):
                    continue
                terms = []
                for coef, factor, out in contributions.get(cell, []):
                    above = "" if self.is_output(out) else self.cell(out, "D")
                    terms.append((coef, " · ".join(t for t in (factor, above) if t) or "1"))
                if terms:
                    lines.append(Line(self.cell(cell, "D"), self.combination(terms)))
        return lines

    def kernels(self) -> list[Line]:
        """The NNGP, and the NTK's term of each parameter."""
        lines = []
        several = len(self.m.targets) > 1 or any(len(c) > 1 for c in self.m.cells)
        for k, cells in enumerate(self.m.cells):
            name = "NNGP" if len(self.m.targets) == 1 else f"NNGP{k + 1}"
            for cell in cells.tolist()[: 4 if several else 1]:
                rhs = self.rhs(cell)[0] if self.is_output(cell) else self.cell(cell)
                site = "" if len(cells) == 1 else self.cell(cell).removeprefix("C")
                lines.append(Line(name + site, rhs))
        return lines + self.terms()

    def terms(self) -> list[Line]:
        """Θ_p = (the parameter's weight) Σ D · own term, over all its uses."""
        found: dict[int, list[tuple[float, str]]] = {}
        for equation in self.system.equations:
            if not isinstance(equation, LinearEq):
                continue
            for i, out in enumerate(equation.out.tolist()):
                above = "" if self.is_output(out) else self.cell(out, "D")
                for c, s in zip(equation.cells[i].tolist(), equation.seeds[i].tolist(), strict=True):
                    for parameter, monomial in self.m.demand.seeds.entries[s]:
                        name = " · ".join(t for t in (above, "" if c == UNIT else self.cell(c)) if t) or "1"
                        found.setdefault(parameter, []).append((self.coefficient(monomial), name))
        lines = []
        parameters = self.m.demand.structure.parameters
        for index in sorted(found):
            uses = len(found[index])
            terms = [(coef * self.weights[index], name) for coef, name in found[index]]
            note = f"{uses} uses" if uses > 1 else ""
            lines.append(Line(f"Θ_{parameters[index].name}", self.combination(terms), note))
        return [*lines, Line("NTK", " + ".join(line.lhs for line in lines))]


def scaled(coef: float, name: str) -> str:
    """coef · name; a bare constant by itself."""
    if name == "1":
        return f"{coef:.6g}"
    return name if coef == 1 else f"{coef:.6g} {name}"


# --------------------------------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Family:
    """Lines that agree up to their indices: a template with i (left) and j (right), and where they run."""

    lhs: str
    rhs: str
    note: str
    where: str


def families(lines: Sequence[Line]) -> list[Family]:
    """Lines gathered into families, in order of their first lines."""
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for line in lines:
        base = _base(line.lhs)
        key = (_relative(line.lhs, base), _relative(line.rhs, base), line.note)
        found.setdefault(key, []).append(base)
    result = []
    for (lhs, rhs, note), places in found.items():
        if len(places) < 3:
            for place in places:
                one = [_absolute(text, place) for text in (lhs, rhs)]
                result.append(Family(one[0], one[1], note, ""))
            continue
        written = [_symbolic(text, _letters(places)) for text in (lhs, rhs)]
        result.append(Family(written[0], written[1], note, ranges(places)))
    return result


def _base(lhs: str) -> tuple[int, int]:
    """The first index on each side of a line."""
    first = {"L": 0, "R": 0}
    for side, index in reversed(_MARK.findall(lhs)):
        first[side] = int(index)
    return first["L"], first["R"]


def _relative(text: str, base: tuple[int, int]) -> str:
    return _MARK.sub(lambda m: f"⟦{m[1]}{int(m[2]) - base['LR'.index(m[1])]}⟧", text)


def _absolute(text: str, base: tuple[int, int]) -> str:
    return short(_MARK.sub(lambda m: str(int(m[2]) + base["LR".index(m[1])]), text))


def _symbolic(text: str, names: tuple[str, str]) -> str:
    def one(m: re.Match[str]) -> str:
        offset, name = int(m[2]), names["LR".index(m[1])]
        return "{" + (name if offset == 0 else f"{name}{offset:+d}") + "}"

    return short(_MARK.sub(one, text))


def short(text: str) -> str:
    """C(g1, g1) is written C(g1)."""
    return re.sub(r"([CDΘ]|NNGP)\(([^(),]+), \2\)", r"\1(\2)", text)


def _letters(places: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Index names of the two sides: one letter where both indices always agree."""
    return ("i", "i") if all(a == b for a, b in places) else ("i", "j")


def ranges(places: Sequence[tuple[int, int]]) -> str:
    """Index ranges: rows with the same columns together."""
    if all(a == b for a, b in places):
        return f"i = {_runs(sorted({a for a, _ in places}))}"
    by_row: dict[int, list[int]] = {}
    for a, b in places:
        by_row.setdefault(a, []).append(b)
    rows: dict[tuple[int, ...], list[int]] = {}
    for a, columns in by_row.items():
        rows.setdefault(tuple(sorted(columns)), []).append(a)
    parts = []
    for columns, own in rows.items():
        first, second = _runs(sorted(own)), _runs(list(columns))
        parts.append(f"i, j = {first}" if first == second else f"i = {first}, j = {second}")
    return "; ".join(parts)


def _runs(values: Sequence[int]) -> str:
    """1, 2, 3, 5 as 1…3, 5."""
    parts, start = [], 0
    for k in range(1, len(values) + 1):
        if k == len(values) or values[k] != values[k - 1] + 1:
            first, last = values[start], values[k - 1]
            parts.append(str(first) if first == last else f"{first}…{last}")
            start = k
    return ", ".join(parts)
