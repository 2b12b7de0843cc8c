"""`recursion`: a program's kernel recursion, derived, printed as a paper would, and evaluated."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import batch
from tensorprog.compiling import compiled
from tensorprog.functions.base import method
from tensorprog.interpret.buffers import Alone, Buffer, stated
from tensorprog.interpret.equation_text import Writer
from tensorprog.interpret.equations import PairEq
from tensorprog.interpret.families import Family, families
from tensorprog.interpret.latex import latex
from tensorprog.interpret.system import (
    Moments,
    cross_stage,
    kernel_structure,
    moments,
    output_targets,
    parameter_weights,
    same_stage,
)
from tensorprog.program import Program
from tensorprog.show import Printer, number_text

Array = jax.Array
_COLUMN = 70


class Recursion:
    """The kernel recursion of a program: `print` it, `.latex()` it, or evaluate it with `.values(x1, x2)`.

    C(u, v), C(u) short for C(u, u), is lim u(x)·v(x̄)/n, but for two Gaussian vectors (no Nonlin since the last matrix)
    that is centred: their covariance, without the product of their means. The NNGP has that product in it.
    `second_moment` gives the limit itself, M(u, v) where it is more than C(u, v) and a line reads it. D(u, v) is the
    derivative of the NNGP in C(u, v), DM(u, v) that in M(u, v), with jumps left out, so that
    NTK = Σ_p (weight of p) Σ D · (own term of p). V_φ C is E φ(z)φ(z̄) for (z, z̄) centred Gaussians with
    covariance C and the variances that the same equations give at equal inputs; a mean m is part of φ, as in
    V_relu(· + m). In E φ(g(x)) the vector g has its mean.

    Of several outputs the first's are D1, NNGP1, Θ1_p, NTK1; of an output over sites D[i, j], NNGP[i, j], Θ_p[i, j],
    NTK[i, j] belong to its sites i at x and j at x̄. A D that isn't printed is 0.
    """

    def __init__(self, program: Program):
        structure = kernel_structure(program, "recursion")
        self.program = program
        self.targets = output_targets(structure)
        self.moments = moments(structure, self.targets)
        leaves = _concrete(program)
        with jax.ensure_compile_time_eval():  # numbers are printed, also inside a user's transformation
            values = np.asarray(self.moments.demand.linear.monomials.values(leaves, jnp.result_type(float)))
            weights = parameter_weights(Program(structure, leaves), "multiplier-std", None).tolist()
        self.writer = Writer(self.moments, Printer(structure, program.leaves), values, weights)

    def lines(self) -> list[Family]:
        """The recursion's lines, forward, backward, kernels; lines that differ in indices only are one."""
        writer = self.writer
        return [*families(writer.forward()), *families(writer.backward()), *families(writer.kernels())]

    def __str__(self) -> str:
        rows = []
        for line in self.lines():
            left = f"{line.lhs} = {line.rhs}"
            right = "   ".join(part for part in (line.where, line.note) if part)
            rows.append(f"{left:<{_COLUMN}}   {right}" if right else left)
        return "\n".join(rows)

    __repr__ = __str__

    def latex(self) -> str:
        """The recursion as a LaTeX `align*`."""
        rows = []
        for line in self.lines():
            where = rf" && {latex(line.where)}" if line.where else ""
            rows.append(f"{latex(line.lhs)} &= {latex(line.rhs)}{where}")
        return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"

    def values(self, x1: Any = None, x2: Any = None) -> dict[str, Array]:
        """Every C, M, D and NNGP by its printed name: {"C(s1)": (N1, N2), "C(s1, s3)": …, "D(g1)": …, "NNGP": …}.

        "C(g1)" of a Gaussian vector with a mean is its covariance, as printed. Vectors with sites have them as further
        axes, (N1, N2, *S_u, *S_v); D of an output over sites S has (*S, *S) before those. Of several outputs the
        first's are "D1(g1)", "NNGP1". `ntk` gives the NTK.
        """
        structure = self.program.structure
        first = batch(structure, x1, "x1")
        second = first if x2 is None else batch(structure, x2, "x2")
        m = moments(structure, self.targets, everything=True)
        weights = parameter_weights(self.program, "multiplier-std", None)
        value, slopes = _values(m, tuple(self.program.leaves), weights, first, second, alone=x2 is None)
        return self._by_name(m, value, slopes)

    def _by_name(self, m: Moments, value: Array, slopes: tuple[Array, ...]) -> dict[str, Array]:
        names, linear, result = m.demand.structure.names, m.demand.linear, {}
        for key, table in m.demand.cross.tables.items():
            kind, u, v = key if len(key) == 3 else ("", 0, 0)
            if kind not in ("moment", "second") or (kind == "second" and not self._is_more(m, u, v)):
                continue
            if max(u, v) >= len(names) or names[u] is None or names[v] is None:
                continue
            own = names[u] if u == v else f"{names[u]}, {names[v]}"
            cells = table.reshape(-1)
            shape = (*value.shape[1:], *linear.sites(u), *linear.sites(v))
            second = "M" if kind == "second" else ""
            result[f"{second or 'C'}({own})"] = jnp.moveaxis(value[cells], 0, -1).reshape(shape)
            for k, slope in enumerate(slopes):
                letter = f"D{second}" if len(slopes) == 1 else f"D{second}{k + 1}"
                part = jnp.moveaxis(slope[:, cells], (0, 1), (-2, -1))
                sites = (*value.shape[1:], *m.shape(k), *linear.sites(u), *linear.sites(v))
                result[f"{letter}({own})"] = part.reshape(sites)
        for k, cells in enumerate(m.cells):
            name = "NNGP" if len(m.targets) == 1 else f"NNGP{k + 1}"
            result[name] = jnp.moveaxis(value[cells], 0, -1).reshape(*value.shape[1:], *m.shape(k))
        return result

    def _is_more(self, m: Moments, u: int, v: int) -> bool:
        """Whether a second moment that is read has a mean in it that the moment has not."""
        tables = m.demand.cross.tables
        return bool((tables["second", u, v] != tables["moment", u, v]).any())

    def report(self, x1: Any = None, x2: Any = None) -> str:
        """For given data: each function's variances, how its expectations are got, and the kernels' error bounds."""
        structure = self.program.structure
        first = batch(structure, x1, "x1")
        second = first if x2 is None else batch(structure, x2, "x2")
        m = self.moments
        leaves, weights = tuple(self.program.leaves), parameter_weights(self.program, "multiplier-std", None)
        left, right = (_same(m, leaves, x) for x in (first, second))
        rows = []
        for equation in m.demand.cross.equations:
            if not isinstance(equation, PairEq):
                continue
            _, u, v, _, _ = m.demand.cross.owners[int(equation.out[0])]
            a = np.asarray(left.value[m.same.kept(equation.left)])
            b = np.asarray(right.value[m.same.kept(equation.right)])
            names = [structure.names[w] or f"z{w}" for w in (u, v)]
            own = names[0] if u == v else ", ".join(names)
            spread = f"variances {min(a.min(), b.min()):.3g} … {max(a.max(), b.max()):.3g}"
            rows.append(f"C({own}) = V_{equation.phi.name}   {spread}   {method(equation.phi, equation.psi)}")
        found = _bounded(m, leaves, weights, first, second, left, right)
        assert found.error is not None, "errors were asked for"
        for k, cells in enumerate(m.cells):
            kept = m.cross.kept(cells)
            for name, value, error in (
                ("NNGP", found.value[kept], found.error[kept]),
                ("NTK", found.tangent[kept], found.tangent_error[kept]),
            ):
                scale, bound = float(jnp.abs(value).max()), stated(value, error)
                rows.append(f"{name}{k + 1 if len(m.targets) > 1 else ''}: largest bound {float(bound.max()):.2g}, "
                            f"largest entry {scale:.4g}")  # fmt: skip
        return "\n".join(rows)


def recursion(program: Program) -> Recursion:
    """The kernel recursion of a program, printed as a paper would and evaluated by `.values(x1, x2)`.

    **Raises:** `ProgramError` for programs that the kernel interpreter does not take.

    Source: docs/theory.md; Tensor Programs II (2006.14548), §3 and appendix.
    """
    return Recursion(program)


def _concrete(program: Program) -> tuple[Any, ...]:
    """The numbers, 1 in place of tracers: they are for printing only."""
    leaves = []
    for leaf in program.leaves:
        leaves.append(leaf if number_text(leaf) is not None else np.ones(np.shape(leaf)))
    return tuple(leaves)


@compiled("m")
def _same(m: Moments, leaves: Any, x: Any) -> Alone:
    return same_stage(m, leaves, x, slope=True, error=True)


@compiled("m")
def _bounded(m: Moments, leaves: Any, weights: Array, x1: Any, x2: Any, left: Alone, right: Alone) -> Buffer:
    return cross_stage(m, leaves, weights, x1, x2, left, right, None, tangent=True, error=True)


@compiled("m", "alone")
def _values(
    m: Moments, leaves: Any, weights: Array, x1: Any, x2: Any, *, alone: bool
) -> tuple[Array, tuple[Array, ...]]:
    """All crossing cells (cells, n1, n2), and for each target its D, (target cells, cells, n1, n2)."""
    left, right = (same_stage(m, leaves, x, slope=True, error=False) for x in (x1, x2))
    n1, n2 = (x[0].shape[0] if x else 1 for x in (x1, x2))

    def tangents(deltas: Array, matched: bool = False) -> tuple[Array, Array]:
        found = cross_stage(
            m, leaves, weights, x1, x2, left, right, None, tangent=True, error=False, matched=matched, deltas=deltas
        )
        assert found.tangent is not None, "tangents were asked for"
        return found.tangent, found.value

    def slopes(matched: bool) -> tuple[Array, list[Array]]:
        """Values of all cells, and the reverse pass of each target."""
        batch = (n1,) if matched else (n1, n2)
        zeros = jnp.zeros((len(m.demand.cross.owners), *batch), left.value.dtype)
        tangent, pullback, value = jax.vjp(partial(tangents, matched=matched), zeros, has_aux=True)

        def slope(row: Array) -> Array:
            return pullback(jnp.zeros_like(tangent).at[row].set(1.0))[0]

        return value, [jax.lax.map(slope, jnp.asarray(m.cross.kept(c))) for c in m.cells]

    value, found = slopes(matched=False)
    if alone:
        eye = jnp.eye(n1, dtype=bool)
        exact, exact_slopes = slopes(matched=True)
        value = jnp.where(eye, exact[..., None], value)
        found = [jnp.where(eye, e[..., None], f) for e, f in zip(exact_slopes, found, strict=True)]
    return value, tuple(found)
