"""Same-input cells as text: a scalar by its name at one input, c1(x), products and numbers written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from tensorprog.interpret.demand import Demand
from tensorprog.interpret.equations import UNIT, Equation, Expectation, Given, LinearEq, ProductEq, ScalarEq
from tensorprog.ir import ScalarFn
from tensorprog.show import Printer


class ScalarNames:
    """Names of the cells that multiply terms of sums."""

    def __init__(
        self,
        demand: Demand,
        printer: Printer,
        defining: dict[int, tuple[Equation, int]],
        coefficient: Callable[[int], float],
        site: Callable[[int, tuple[int, ...], str], str],
    ):
        self.demand, self.printer, self.defining = demand, printer, defining
        self.coefficient, self.site = coefficient, site
        self.places = {
            int(cell): (ref, site) for ref, cells in demand.scalars.known.items() for site, cell in enumerate(cells)
        }

    def name(self, cell: int, side: str) -> str:
        """A cell at the input of one side ("L" or "R"); "" where it is 1."""
        if cell == UNIT:
            return ""
        at = "(x)" if side == "L" else "(x̄)"
        if cell in self.places:
            ref, flat = self.places[cell]
            sites = self.demand.linear.sites(ref)
            return self.expression(ref) + (self.site(flat, sites, side) if sites else "") + at
        equation, i = self.defining[cell]
        match equation:
            case ProductEq(cells=cells):
                return " · ".join(self.name(int(c), side) for c in cells[i])
            case LinearEq(cells=cells, coefs=coefs, factors=factors) if cells.shape[1] == 1:
                number = self.coefficient(int(coefs[i, 0]))
                own = [cells[i, 0], UNIT if factors is None else factors[i, 0]]
                product = " · ".join(text for c in own if (text := self.name(int(c), side)))
                return product if number == 1.0 else f"{number:.6g} {product}".strip()
            case LinearEq() | ScalarEq() | Expectation() | Given():
                kind, u, v, p, q = self.demand.same.owners[cell]
                names = [
                    self.printer.expression(w)
                    + (self.site(s, self.demand.linear.sites(w), side) if self.demand.linear.sites(w) else "")
                    for w, s in ((u, p), (v, q))
                ]
                return f"E {names[0]}{at}" if kind == "mean" else f"E[{names[0]}{at} · {names[1]}{at}]"
            case never:
                assert_never(never)

    def expression(self, ref: int) -> str:
        """A scalar as the listing has it; the coefficients of an affine function are none of the program's."""
        linear = self.demand.linear
        if ref < len(linear.structure.names):
            return self.printer.expression(ref)
        own = linear.instructions[ref]
        assert isinstance(own, ScalarFn), "what is added to a program's scalars are functions of them"
        return self.printer.scalar_call(own.fn, own.scalars)
