"""A recursion's text read back: one name a cell, one line a name, and every line holds with the values of its names."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import distinct
from zoo import data

import tensorprog as tp
from tensorprog.functions import base
from tensorprog.interpret.equation_text import Writer
from tensorprog.interpret.equations import BatchEq, ImportEq, JointEq, LinearEq, PairEq
from tensorprog.interpret.families import short
from tensorprog.interpret.recursion import _values
from tensorprog.interpret.system import moments, parameter_weights, same_stage
from tensorprog.nets.layers import layer_norm, rms_norm

N = tp.Width("n")
erf = jax.scipy.special.erf


def plain(marked: str) -> str:
    """Text without its marks."""
    return short(re.sub(r"⟦[LRlr](-?\d+)⟧", r"\1", marked))


def places(where: str) -> list[dict[str, int]]:
    """Of "i, j = 0…2; i = 3, j = 1": where each index stands."""
    found = []
    for part in where.split("; "):
        values: dict[str, list[int]] = {}
        for names, numbers in re.findall(r"([ij](?:, j)?) = ([-\d…, ]+?)(?=, [ij] =|$)", part):
            ends = [run.split("…") for run in numbers.split(", ")]
            own = [k for run in ends for k in range(int(run[0]), int(run[-1]) + 1)]
            values |= dict.fromkeys(names.split(", "), own)
        found += [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return found


def at(text: str, place: dict[str, int]) -> str:
    """A family's text at one place."""
    return short(re.sub(r"\{([ij])([+-]\d+)?\}", lambda m: str(place[m[1]] + int(m[2] or 0)), text)) if place else text


class Printed:
    """A program's recursion as printed, and the values (N1, N2) of all names in it."""

    def __init__(self, program: tp.Program, x: Any, y: Any):
        self.recursion = tp.recursion(program)
        x, y = (z if isinstance(z, tuple) else (z,) for z in (x, y))
        self.x, self.y, self.leaves = x, y, tuple(program.leaves)
        self.shape = (len(x[0]), len(y[0]))
        self.known: dict[str, list[np.ndarray]] = {}
        self.cells(program)
        self.atoms()

    def add(self, name: str, value: Any) -> None:
        self.known.setdefault(plain(name), []).append(np.broadcast_to(np.asarray(value, float), self.shape))

    def cells(self, program: tp.Program) -> None:
        """C, M, D, NNGP of all cells; two cells of one name are two values."""
        weights = parameter_weights(program, "multiplier-std", None)
        m = moments(program.structure, self.recursion.targets, everything=True)
        value, slopes = _values(m, self.leaves, weights, self.x, self.y, alone=False)
        own = self.recursion.writer
        writer = Writer(m, own.printer, own.values, own.weights)
        proper = [c for c, owner in enumerate(writer.system.owners) if owner[0] in ("moment", "second")]
        places = {t.cell: (k, i) for k, cells in enumerate(m.cells) for i, t in enumerate(
            [t for t in writer.targets if t.number == (str(k + 1) if len(m.cells) > 1 else "")])}  # fmt: skip
        for cell in proper:
            self.add(writer.cell(cell), value[cell])
            for target in writer.targets:
                k, i = places[target.cell]
                self.add(writer.cell(cell, target), slopes[k][i, cell])
        for target in writer.targets:
            self.add(target.name("NNGP"), value[target.cell])

    def atoms(self) -> None:
        """Inputs' products, scalars, means and expectations, all by the equations' own rules."""
        writer, m = self.recursion.writer, self.recursion.moments
        same = [same_stage(m, self.leaves, x, slope=False, error=False) for x in (self.x, self.y)]

        def alone(cell: int, side: str) -> np.ndarray:
            values = np.asarray(same["LR".index(side)].value)[m.same.kept(np.array([cell]))[0]]
            return values[:, None] if side == "L" else values[None]

        for cell, owner in enumerate(writer.system.owners):
            if owner[0] == "leaf":
                _, i, j, p, q = owner
                flat = [np.asarray(z[k]).reshape(len(z[k]), -1, z[k].shape[-1]) for z, k in ((self.x, i), (self.y, j))]
                self.add(writer.cell(cell), flat[0][:, p] @ flat[1][:, q].T / flat[0].shape[-1])
        for equation in writer.system.equations:
            for i, cell in enumerate(equation.out.tolist()):
                match equation:
                    case LinearEq(factors=factors) if factors is not None:
                        side = equation.side[0].upper()
                        for c in factors[i].tolist():
                            if text := writer.scalars.name(c, side):
                                self.add(text, alone(c, side))
                    case ImportEq():
                        side = equation.side[0].upper()
                        self.add(writer.cell(cell), alone(int(equation.cells[i]), side))
                    case PairEq(phi=phi, psi=psi):
                        self.expectation(equation, i, phi, psi, alone)
                    case _:
                        pass

    def expectation(self, equation: PairEq, i: int, phi: Any, psi: Any, alone: Any) -> None:
        writer = self.recursion.writer

        def numbers(ids: np.ndarray, side: str) -> tuple[Any, ...]:
            return tuple(alone(-1 - int(k), side) if k < 0 else writer.values[k] for k in ids)

        cov = writer.cell(int(equation.cov[i]))
        (c,) = {v.tobytes(): v for v in self.known.get(plain(cov), [np.full(self.shape, float(cov == "1"))])}.values()
        a, b = alone(int(equation.left[i]), "L"), alone(int(equation.right[i]), "R")
        own = numbers(equation.phi_numbers[i], "L"), numbers(equation.psi_numbers[i], "R")
        for prime, f, g in (("", phi, psi), ("′", base.derivative(phi), base.derivative(psi))):
            self.add(writer.expectation(phi, psi, cov, prime), base.expect(f, g, a, b, c, *own))

    def lines(self) -> list[tuple[str, str]]:
        return [
            (at(line.lhs, place), at(line.rhs, place))
            for line in self.recursion.lines()
            for place in (places(line.where) if line.where else [{}])
        ]

    def read(self, text: str) -> Any:
        """The value of a right-hand side; None where an expectation in it goes by no name."""
        expand = lambda m: " + ".join(f"{m[1]}{at(m[3], place)}" for place in places(m[2]))
        text = re.sub(r"((?:-?[\d.e+-]+ )?)Σ\[([^\]]*)\] (.*?)(?= \+ (?![^(]*\))| − (?![^(]*\))|$)", expand, text)
        found: list[np.ndarray] = []

        def atom(m: re.Match[str]) -> str:
            values = self.known[m[0]]
            assert all(np.allclose(v, values[0], rtol=1e-9, atol=1e-12) for v in values), f"{m[0]} has two values"
            found.append(values[0])
            return f"§{len(found) - 1}§"

        # Longest first: C(g1) is in V_relu C(g1).
        names = "|".join(re.escape(name) for name in sorted(self.known, key=len, reverse=True))
        text = re.sub(rf"(?<![\w′])(?:{names})(?![\w(])", atom, text)
        if "E[" in text or "E " in text:
            return None
        text = re.sub(r"(\d) §", r"\1 * §", text).replace(" · ", " * ").replace("−", "-")
        return eval(re.sub(r"§(\d+)§", r"found[\1]", text), {"found": found})

    def check(self, ntk: Any) -> int:
        """Every line holds, and the printed NTK is the NTK; returns how many lines were read."""
        lines, read = self.lines(), 0
        left = [lhs for lhs, _ in lines]
        assert len(left) == len(set(left)), sorted(name for name in set(left) if left.count(name) > 1)
        for lhs, rhs in sorted(lines, key=lambda line: line[0].startswith("NTK")):
            value = self.read(rhs)
            if value is None:
                continue
            read += 1
            if lhs.startswith(("Θ", "NTK")):
                self.add(lhs, value)
            elif lhs in self.known:
                scale = max(1e-9, *(np.abs(v).max() for v in self.known[lhs]))
                for own in self.known[lhs]:
                    np.testing.assert_allclose(value, own, rtol=1e-7, atol=1e-9 * scale, err_msg=f"{lhs} = {rhs}")
            else:
                raise AssertionError(f"{lhs} goes by no name")
        self.check_kernel(ntk)
        assert read == len(lines) or "E[" in str(self.recursion), "what has a value is read"
        return read

    def check_kernel(self, ntk: Any) -> None:
        kernels = ntk if isinstance(ntk, tuple) else (ntk,)
        for target in self.recursion.writer.targets:
            own = np.asarray(kernels[int(target.number or 1) - 1])
            index = tuple(int(k) for k in re.findall(r"\d+", plain(target.sites)))
            if target.name("NTK") in self.known:
                (value,) = self.known[plain(target.name("NTK"))]
                np.testing.assert_allclose(value, own[(..., *index)], rtol=1e-7, atol=1e-9 * np.abs(own).max())


def check(program: tp.Program, x: Any, y: Any) -> int:
    return Printed(program, x, y).check(tp.ntk(program, x, y))


def read_twice(norm: Any, x: Any) -> Any:
    """Two weights read one normalised vector."""
    h = norm(tp.weight("U", N, 5, var=1.3) @ x)
    s, t = tp.nonlin(erf, tp.weight("W", N, N) @ h), tp.nonlin(erf, tp.weight("Q", N, N, var=3.0) @ h)
    return tp.weight("v", 1, N) @ (s + t)


def shifted(g: Any) -> Any:
    """Its second moment is more than its covariance, and both are read."""
    return layer_norm(g) + 0.5 * g + 0.7


def affine(x: Any) -> Any:
    """One function that is affine given its scalars, which are none of the program's."""
    m = tp.moment(lambda a: a * a, x)
    return tp.nonlin(lambda a, m: (a - m) / jnp.sqrt(m + 1.0), x, scalars=(m,))


NORMS = {"layer norm": layer_norm, "rms norm": rms_norm, "affine": affine}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in NORMS])
def test_vectors_that_two_weights_read(name: str) -> None:
    program = tp.trace(lambda x: read_twice(NORMS[name], x), tp.Input(5))
    x, y = (np.random.default_rng(k).normal(size=(2, 5)) for k in (0, 1))
    text = str(tp.recursion(program))
    assert not any(row.split(" = ")[0] == row.split(" = ")[-1] for row in text.splitlines())
    check(program, x, y)


@pytest.mark.full
def test_second_moments_have_a_name_of_their_own() -> None:
    program = tp.trace(lambda x: read_twice(shifted, x), tp.Input(5))
    x, y = (np.random.default_rng(k).normal(size=(2, 5)) for k in (0, 1))
    assert "M(" in str(tp.recursion(program)) and "DM(" in str(tp.recursion(program))
    check(program, x, y)


def both(program: tp.Program) -> int:
    x, y = (data(program, 2, seed) for seed in (0, 1))
    return check(program, x, y)


@pytest.mark.parametrize(
    "number", [pytest.param(k, marks=pytest.mark.slow if k < 3 else pytest.mark.full) for k in range(12)]
)
def test_random_programs(number: int) -> None:
    program = distinct(12)[number].program
    try:
        recursion = tp.recursion(program)
    except tp.ProgramError:
        return
    if any(isinstance(e, JointEq | BatchEq) for e in recursion.moments.demand.cross.equations):
        str(recursion)
        return
    assert both(program) > 3


SHORT = ("mlp", "mlp_tied", "mlp_two_widths", "resnet_mlp", "layernorm_mlp", "rmsnorm_mlp", "siamese", "rnn", "swiglu")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.full) for n in SHORT],
)
def test_zoo(name: str) -> None:
    assert both(tp.nets.ZOO[name]) > 8
