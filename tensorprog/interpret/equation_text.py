"""Moment equations as text: the recursion that a paper would print, its forward (C) and backward (D) lines.

Backward lines are written for one target at a time: an output, or one pair of an output's sites.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import assert_never

import numpy as np

from tensorprog.functions.base import IDENTITY, ONE, Elementwise, method
from tensorprog.interpret.composite import MULTIPLY, Call, Expr, Slot, Sum, Value
from tensorprog.interpret.equations import (
    UNIT,
    ZERO,
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
from tensorprog.interpret.families import Line, base_of, letters, ranges, relative, symbolic, term
from tensorprog.interpret.scalar_text import ScalarNames
from tensorprog.interpret.system import Moments
from tensorprog.ir import Input
from tensorprog.show import Printer

_PROPER = ("moment", "second")
_SHIFT = "(· + m)"


@dataclass(frozen=True)
class Target:
    """What is differentiated: one cell of the NNGP, and how its output and sites are told from the others."""

    number: str
    sites: str
    cell: int

    def name(self, letter: str, parameter: str = "") -> str:
        """D, D2, D[0, 1]; NNGP; Θ_W, Θ2_W[0, 1]."""
        return f"{letter}{self.number}{parameter and '_' + parameter}{self.sites}"


class Writer:
    """Writes one program's crossing equations."""

    def __init__(self, m: Moments, printer: Printer, values: np.ndarray, weights: Sequence[float]):
        self.m, self.printer, self.values, self.weights = m, printer, values, weights
        self.system = m.demand.cross
        self.defining = {int(c): (e, i) for e in self.system.equations for i, c in enumerate(e.out)}
        self.alone = {int(c): (e, i) for e in m.demand.same.equations for i, c in enumerate(e.out)}
        self.over_sites = any(len(cells) > 1 for cells in m.cells)
        self.scalars = ScalarNames(m.demand, printer, self.alone, self.coefficient, self.site)

    # ---- names

    def vector(self, position: int, site: int, side: str) -> str:
        """A vector's name on one side, with its site when it has several."""
        linear = self.m.demand.linear
        known = position < len(linear.structure.names)
        plain = self.printer.expression(position) if known else f"z{position}"
        if not known and plain in linear.structure.names:
            plain = f"{plain}_"
        named = re.sub(r"(?<=[A-Za-z])(\d+)", rf"⟦{side}\1⟧", plain)
        sites = linear.sites(position)
        return named + self.site(site, sites, side) if sites else named

    def site(self, flat: int, sites: tuple[int, ...], side: str) -> str:
        return f"[{self.index(flat, sites, side)}]"

    def index(self, flat: int, sites: tuple[int, ...], side: str) -> str:
        mark = side.lower() if self.over_sites else side
        return ", ".join(f"⟦{mark}{int(i)}⟧" for i in np.unravel_index(flat, sites))

    def input(self, index: int, site: int, side: str) -> str:
        structure = self.m.demand.structure
        name = structure.input_names[index] + ("\u0304" if side == "R" else "")
        sites = structure.inputs[index].sites
        return name + self.site(site, sites, side) if sites else name

    def cell(self, cell: int, target: Target | None = None) -> str:
        """A cell's name: C(g1), C(g1, g2), M(g1) for a second moment that is more than the covariance, ⟨x, x̄⟩/16, …;
        with a target that of its derivative. A factor of a product has none, and is written out."""
        if cell in (ZERO, UNIT):
            return str(cell)
        kind, u, v, p, q = self.system.owners[cell]
        match kind:
            case "leaf":
                read = self.m.demand.structure.inputs[u]
                features = read.features if isinstance(read, Input) else 1
                return f"⟨{self.input(u, p, 'L')}, {self.input(v, q, 'R')}⟩/{features}"
            case "left" | "right":
                equation, i = self.defining[cell]
                assert isinstance(equation, ImportEq), "the other system's cells are imported"
                return self.mean(int(equation.cells[i]), kind[0].upper())
            case "part":
                return self.rhs(cell)[0]
            case _:
                letter = "M" if kind == "second" else "C"
                if target is not None:
                    letter = target.name("DM" if kind == "second" else "D")
                return f"{letter}({self.vector(u, p, 'L')}, {self.vector(v, q, 'R')})"

    def at(self, position: int, site: int, side: str) -> str:
        """A coordinate of a vector at the input of one side."""
        return f"{self.vector(position, site, side)}({'x' if side == 'L' else 'x̄'})"

    def mean(self, cell: int, side: str) -> str:
        """A cell of the same-input system, as the mean that it is."""
        kind, u, _, p, _ = self.m.demand.same.owners[cell]
        if kind == "mean":
            return f"E {self.at(u, p, side)}"
        equation, i = self.alone[cell]
        match equation:
            case MeanEq(phi=phi, var=var):
                return f"E {applied(phi, self.owner(int(var[i]), side))}"
            case OneEq(phi=phi, psi=psi, var=var):
                z = self.owner(int(var[i]), side)
                return f"E[{applied(phi, z)} · {applied(psi, z)}]"
            case PairEq(phi=phi, psi=psi, left=left, right=right):
                a, b = (self.owner(int(cells[i]), side) for cells in (left, right))
                return f"E[{applied(phi, a)} · {applied(psi, b)}]"
            case JointEq():
                return f"E[{' · '.join(self.sides(equation, i, side))}]"
            case LinearEq() | ProductEq() | ImportEq() | LeafEq() | DataEq() | ScalarEq() | BatchEq():
                raise AssertionError("a factor of a product is an expectation")
            case never:
                assert_never(never)

    def owner(self, cell: int, side: str, system: System | None = None) -> str:
        """The coordinate whose variance a cell is."""
        _, u, _, p, _ = (system or self.m.demand.same).owners[cell]
        return self.at(u, p, side)

    def sides(self, equation: JointEq, i: int, alone: str = "") -> list[str]:
        """Both functions of a joint expectation, of their Gaussians; `alone`: at the input of one side."""
        names = {}
        for k in range(equation.count):
            system = self.system if not alone and equation.where[k][k] == "own" else None
            side = alone or ("L" if k in equation.left_slots else "R")
            names[k] = self.owner(int(equation.cov[i, k, k]), side, system)
        number = lambda index: f"{self.coefficient(int(equation.numbers[i, index])):.6g}"
        return [written(f.expr, names, number) for f in (equation.left, equation.right) if f is not None]

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
            base = base_of(term(name))
            groups.setdefault((float(f"{coef:.12g}"), relative(term(name), base)), []).append((name, base))
        parts = []
        for (coef, template), members in groups.items():
            if len(members) < 3:
                parts += [scaled(coef, name) for name, _ in members]
            else:
                places = [place for _, place in members]
                parts.append(scaled(coef, f"Σ[{ranges(places)}] {symbolic(template, letters(places))}"))
        return " + ".join(parts).replace("+ -", "− ") if parts else "0"

    def rhs(self, cell: int) -> tuple[str, str]:
        """What a cell is, and how it is got."""
        equation, i = self.defining[cell]
        match equation:
            case LinearEq(cells=cells, coefs=coefs):
                factors = self.factors(equation, i)
                terms = [
                    (self.coefficient(int(k)), times(f, self.cell(int(c))))
                    for c, k, f in zip(cells[i], coefs[i], factors, strict=True)
                    if k and c
                ]
                return self.combination(terms), ""
            case PairEq(phi=phi, psi=psi, cov=cov):
                return self.expectation(phi, psi, self.cell(int(cov[i]))), method(phi, psi)
            case ProductEq(cells=cells):
                return " · ".join(self.cell(int(c)) for c in cells[i]), "independent factors"
            case JointEq():
                return f"E[{' · '.join(self.sides(equation, i))}]", "Hermite series in two dimensions"
            case BatchEq(cov=cov):
                _, u, v, p, q = self.system.owners[cell]
                names = self.vector(u, p, "L"), self.vector(v, q, "R")
                first = self.cell(int(cov.reshape(-1)[i // cov[0].size * cov[0].size]))
                return f"E[{names[0]} · {names[1]}] given {first}, …", "integrals over a batch"
            case OneEq() | MeanEq() | ImportEq() | LeafEq() | DataEq() | ScalarEq():
                return self.cell(cell), ""
            case never:
                assert_never(never)

    def factors(self, equation: LinearEq, i: int) -> list[str]:
        """The scalars that multiply a sum's terms, "" where there is none."""
        if equation.factors is None:
            return [""] * equation.cells.shape[1]
        return [self.scalars.name(int(f), equation.side[0].upper()) for f in equation.factors[i]]

    def expectation(self, phi: Elementwise, psi: Elementwise, cov: str, prime: str = "") -> str:
        if phi == psi:
            return f"V_{named(phi, prime)} {cov}"
        return f"V_{named(phi, prime)},{named(psi, prime)} {cov}"

    # ---- targets

    @cached_property
    def targets(self) -> list[Target]:
        """The cells of the NNGP, all outputs' and all pairs of their sites."""
        result = []
        for k, cells in enumerate(self.m.cells):
            u, v = self.m.targets[k]
            shapes = [self.m.demand.linear.sites(w) for w in (u, v)]
            places = np.indices((self.m.demand.linear.size(u), self.m.demand.linear.size(v))).reshape(2, -1)
            for cell, p, q in zip(cells.tolist(), *places.tolist(), strict=True):
                between = "; " if max(map(len, shapes)) > 1 else ", "
                pair = between.join(self.index(w, s, side) for w, s, side in zip((p, q), shapes, "LR", strict=True))
                sites = f"[{pair}]" if len(cells) > 1 else ""
                result.append(Target(str(k + 1) if len(self.m.cells) > 1 else "", sites, cell))
        return result

    @cached_property
    def elided(self) -> frozenset[int]:
        """Cells of the NNGP that have no line: outputs without a name that nothing else reads, and what adds means."""
        names = self.m.demand.structure.names
        read = {c for parts in self.parts.values() for _, _, c in parts}
        cells = {t.cell for t in self.targets if t.cell > UNIT} - read
        return frozenset(
            c for c in cells if self.system.owners[c][0] == "second" or names[self.system.owners[c][1]] is None
        )

    # ---- lines

    def forward(self) -> list[Line]:
        """The C lines, in order."""
        lines = []
        for equation in self.system.equations:
            if isinstance(equation, LeafEq | ImportEq):
                continue
            for cell in equation.out.tolist():
                if self.system.owners[cell][0] in _PROPER and cell not in self.elided:
                    rhs, note = self.rhs(cell)
                    lines.append(Line(self.cell(cell), rhs, note))
        return lines

    @cached_property
    def parts(self) -> dict[int, list[tuple[float, str, int]]]:
        """What moves a cell, by the cell in order of definition: (coefficient, factor, the other cell)."""
        return {c: list(self._parts(e, i)) for e in self.system.equations for i, c in enumerate(e.out.tolist())}

    def _parts(self, equation: Equation, i: int) -> Iterator[tuple[float, str, int]]:
        match equation:
            case LinearEq(cells=cells, coefs=coefs):
                for c, k, f in zip(cells[i].tolist(), coefs[i].tolist(), self.factors(equation, i), strict=True):
                    if k and c > UNIT:
                        yield self.coefficient(k), f, c
            case PairEq(phi=phi, psi=psi, cov=cov):
                if cov[i] > UNIT:
                    yield 1.0, self.expectation(phi, psi, self.cell(int(cov[i])), "′"), int(cov[i])
            case ProductEq(cells=cells):
                for k, c in enumerate(cells[i].tolist()):
                    rest = " · ".join(self.cell(o) for j, o in enumerate(cells[i].tolist()) if j != k)
                    yield 1.0, rest, c
            case BatchEq(cov=cov):
                _, u, v, p, q = self.system.owners[int(equation.out[i])]
                f, g = self.vector(u, p, "L"), self.vector(v, q, "R")
                for c in cov[i // cov[0].size].reshape(-1).tolist():
                    if c > UNIT:
                        _, h, k, s, t = self.system.owners[c]
                        yield 1.0, f"E[∂{f}/∂{self.vector(h, s, 'L')} · ∂{g}/∂{self.vector(k, t, 'R')}]", c
            case JointEq(cov=cov, left_slots=left, right_slots=right):
                for a in left:
                    for b in right:
                        if cov[i, a, b] > UNIT:
                            yield 1.0, self.slope(equation, i, int(cov[i, a, b])), int(cov[i, a, b])
            case OneEq() | MeanEq() | ImportEq() | LeafEq() | DataEq() | ScalarEq():
                return
            case never:
                assert_never(never)

    def slope(self, equation: JointEq, i: int, cov: int) -> str:
        """E ∂F ∂F̄, the derivatives in the two Gaussians whose covariance a cell is."""
        _, u, v, p, q = self.system.owners[cov]
        by = self.vector(u, p, "L"), self.vector(v, q, "R")
        return f"E[{' · '.join(f'∂({f})/∂{z}' for f, z in zip(self.sides(equation, i), by, strict=True))}]"

    # ---- backward

    @cached_property
    def order(self) -> dict[int, tuple[int, int]]:
        """Where a cell is defined: its equation, its place there."""
        return {c: (k, i) for k, e in enumerate(self.system.equations) for i, c in enumerate(e.out.tolist())}

    @cached_property
    def products(self) -> dict[int, tuple[str, int]]:
        """For each factor of a product: the other factors, and the product."""
        return {
            c: (rest, out)
            for out, (e, _) in self.defining.items() if isinstance(e, ProductEq)
            for _, rest, c in self.parts[out]
        }  # fmt: skip

    def reached(self, target: Target) -> list[int]:
        """The cells that a target depends on, in order of definition."""
        found: set[int] = set()
        waiting = [target.cell] if target.cell > UNIT else []
        while waiting:
            cell = waiting.pop()
            if cell not in found:
                found.add(cell)
                waiting += [c for _, _, c in self.parts[cell]]
        return sorted(found, key=self.order.__getitem__)

    def above(self, cell: int, target: Target) -> str:
        """The target's derivative in a cell: "" where it is 1, of a factor by the product's."""
        if cell == target.cell and cell in self.elided:
            return ""
        if cell in self.products:
            rest, whole = self.products[cell]
            return times(rest, self.above(whole, target))
        return self.cell(cell, target)

    def backward(self) -> list[Line]:
        """The D lines of each target, from the output down: the derivatives of the target in each cross moment."""
        lines = []
        for target in self.targets:
            reached = self.reached(target)
            found: dict[int, list[tuple[float, str]]] = {c: [] for c in reached}
            if reached and target.cell not in self.elided:
                found[target.cell].append((1.0, "1"))
            for out in reached:
                above = self.above(out, target)
                for coef, factor, cell in self.parts[out]:
                    found[cell].append((coef, times(factor, above) or "1"))
            for cell in sorted(reached, key=lambda c: (-self.order[c][0], self.order[c][1])):
                if self.system.owners[cell][0] in _PROPER and cell not in self.elided:
                    lines.append(Line(self.cell(cell, target), self.combination(found[cell])))
        return lines

    # ---- kernels

    def kernels(self) -> list[Line]:
        """The NNGP, and the NTK's term of each parameter, for each target."""
        lines = []
        for target in self.targets:
            cell = target.cell
            lines.append(Line(target.name("NNGP"), self.rhs(cell)[0] if cell in self.elided else self.cell(cell)))
        return lines + [line for target in self.targets for line in self.terms(target)]

    def terms(self, target: Target) -> list[Line]:
        """Θ_p = (the parameter's weight) Σ D · own term, over all its uses; the NTK is their sum."""
        found: dict[int, list[tuple[float, str]]] = {}
        for out in self.reached(target):
            equation, i = self.defining[out]
            if not isinstance(equation, LinearEq):
                continue
            above = self.above(out, target)
            for c, s in zip(equation.cells[i].tolist(), equation.seeds[i].tolist(), strict=True):
                for parameter, monomial in self.m.demand.seeds.entries[s]:
                    if monomial == 0:
                        continue
                    name = times(above, "" if c == UNIT else self.cell(c)) or "1"
                    found.setdefault(parameter, []).append((self.coefficient(monomial), name))
        lines = []
        parameters = self.m.demand.structure.parameters
        for index in sorted(found):
            uses = len(found[index])
            terms = [(coef * self.weights[index], name) for coef, name in found[index]]
            note = f"{uses} uses" if uses > 1 else ""
            lines.append(Line(target.name("Θ", parameters[index].name), self.combination(terms), note))
        return [*lines, Line(target.name("NTK"), " + ".join(line.lhs for line in lines) or "0")]


# ---------------------------------------------------------------------------------------------------------- pieces


def scaled(coef: float, name: str) -> str:
    """coef · name; a bare constant by itself."""
    if name == "1":
        return f"{coef:.6g}"
    return {1.0: name, -1.0: f"-{name}"}.get(coef, f"{coef:.6g} {name}")


def times(*factors: str) -> str:
    """A product, "" being 1."""
    return " · ".join(f for f in factors if f)


def named(phi: Elementwise, prime: str = "") -> str:
    """A function's name; a product's derivative in parentheses."""
    if phi in (IDENTITY, ONE):
        return ("id" if phi == IDENTITY else "1") + prime
    return f"({phi.name}){prime}" if prime and is_product(phi.name) else phi.name + prime


def is_product(name: str) -> bool:
    return "·" in name.replace(_SHIFT, "")


def applied(phi: Elementwise, z: str) -> str:
    """A function of a Gaussian, which has its mean: what shifts a centred one by it is left out."""
    if phi == IDENTITY:
        return z
    name = phi.name.replace(_SHIFT, "")
    return f"({name})({z})" if is_product(name) else f"{name}({z})"


def written(expr: Expr, names: Mapping[int, str], number: Callable[[int], str]) -> str:
    """An expression with its Gaussians by name; a Gaussian's name includes its mean, which the expression adds."""

    def inner(expr: Expr) -> str:
        match expr:
            case Slot(index=index) | Sum(terms=((None, Slot(index=index)),)):
                return names[index]
            case Value(index=index):
                return number(index)
            case Call(fn=fn, args=args):
                if fn == MULTIPLY:
                    return "·".join(inner(a) for a in args)
                return f"{fn.name}({', '.join(inner(a) for a in args)})"
            case Sum(terms=terms, constants=constants):
                parts = [inner(e) if v is None else f"{inner(v)} {inner(e)}" for v, e in terms]
                return "(" + " + ".join([*parts, *(inner(c) for c in constants)]) + ")"
            case _ as never:
                assert_never(never)

    return inner(expr)
