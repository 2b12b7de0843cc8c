"""The interpreter of limits: a program run on the limits Z of its vectors' coordinates.

Master Theorem (Tensor Programs III, 2009.10685, Theorem 2.10): Moments converge to expectations over Z. What Z is made
of (`spaces`) decides whether the expectations are exact, by quadrature or by draws; how a matrix acts is the same
(`products`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import NamedTuple, assert_never

import jax
import jax.numpy as jnp

from tensorprog.functions.degree import degree, expected
from tensorprog.functions.frozen import Function, freeze
from tensorprog.interpret.evaluator import Evaluator, safe_sqrt
from tensorprog.interpret.products import Family, cholesky, gaussian_part, response
from tensorprog.interpret.spaces import HIGHEST, Grid, Space
from tensorprog.ir import (
    Bias,
    BiasVector,
    Dim,
    Instruction,
    Leaf,
    MatMul,
    Moment,
    Nonlin,
    ScalarResult,
    SiteLinear,
    Structure,
    VectorType,
    Weight,
)
from tensorprog.program import Program

Array = jax.Array
_PRODUCT = freeze(operator.mul)[0]
MOMENT_NODES = {1: 1025, 2: 129, 3: 49}
"""Nodes to an axis for a Moment of so many linear vectors."""


def gaussians(structure: Structure, positions: list[int]) -> dict[str, int]:
    """How many independent Gaussians a program draws, by width."""
    counts = {name: 0 for name, _ in structure.widths}
    for position in positions:
        type_, instruction = structure.types[position], structure.instructions[position]
        draws = isinstance(instruction, MatMul | BiasVector)
        if draws and isinstance(type_, VectorType) and isinstance(type_.dim, str):
            counts[type_.dim] += math.prod(type_.sites) * _summed(structure, instruction)
    return counts


def _summed(structure: Structure, instruction: Instruction) -> int:
    """How many independent products make one vector: a window's matrices between widths act on Z each on its own."""
    if not isinstance(instruction, MatMul) or instruction.transposed:
        return 1
    weight = structure.weights[instruction.weight]
    return 1 if isinstance(weight.cols, int) else math.prod(weight.window)


class Limit(Evaluator):
    """A program's vectors as random variables of a space: (*sites, M).

    `naive` leaves every Ż out (the gradient independence assumption). `coefficients` are those of Ż, by the position of
    the product that has it, `sizes` the means of |fn| of Moments.
    """

    def __init__(self, program: Program, inputs: tuple[Array, ...], spaces: Mapping[str, Space], naive: bool = False):
        super().__init__(program, inputs, next(iter(spaces.values())).one.dtype)
        self.spaces, self.naive = spaces, naive
        self.families: dict[tuple[int, bool], Family] = {}
        self.coefficients: dict[int, Array] = {}
        self.sizes: dict[int, Array] = {}
        self.position = -1

    def second_moments(self, x: int, y: int) -> Array:
        """E Z^x Z^y of all pairs of sites of two vectors, (*S_x, *S_y); of readouts Σ over their rows."""
        type_, left, right = self.structure.vector(x), self.values[x], self.values[y]
        if type_.space == "output":
            return jnp.tensordot(left, right, (-1, -1), precision=HIGHEST)
        return self.inner(left, right, type_, 0)

    def run(self, positions: list[int]) -> dict[int, Array]:
        for self.position in positions:
            self.values[self.position] = self.instruction(self.position)
        return self.values

    def mean(self, values: Array, dim: Dim) -> Array:
        assert isinstance(dim, str), "averages are over widths"
        self.sizes[self.position] = self.spaces[dim].mean(jnp.abs(values))
        return self.spaces[dim].mean(values)

    # ---- vectors

    def ones(self, dim: Dim) -> Array:
        return jnp.ones(dim, self.dtype) if isinstance(dim, int) else self.spaces[dim].one

    def inner(self, x: Array, y: Array, type_: VectorType, shared: int) -> Array:
        if not isinstance(type_.dim, str):
            return super().inner(x, y, type_, shared)
        together = math.prod(x.shape[:shared])
        flat = (a.reshape(together, math.prod(a.shape[shared:-1]), a.shape[-1]) for a in (x, y))
        pairs = jax.vmap(self.spaces[type_.dim].inner)(*flat)
        return pairs.reshape(*x.shape[:-1], *y.shape[shared:-1])

    def bias(self, bias: Bias) -> Array:
        assert isinstance(bias.dim, str), "a readout's bias is no vector of a limit"
        space = self.spaces[bias.dim]
        deviation = safe_sqrt(self.number(bias.var))
        return (deviation * space.fresh(math.prod(bias.sites))).reshape(*bias.sites, -1)

    def ratio(self, rows: str, cols: str) -> Array:
        numbers = dict(self.structure.widths)
        return self.number(numbers[rows]) / self.number(numbers[cols])

    def matmul(self, instruction: MatMul, x: Array) -> Array:
        weight, transposed = self.structure.weights[instruction.weight], instruction.transposed
        rows, cols = (weight.cols, weight.rows) if transposed else (weight.rows, weight.cols)
        assert isinstance(rows, str), "a readout's value has no limit but its law"
        space, flat = self.spaces[rows], self.by_matrix(weight, transposed, x)
        key = (instruction.weight, transposed)
        before = self.families.get(key)
        earlier = flat[:, :0] if before is None else before.x
        # σ² is the variance of an entry times its fan, of which a window's offsets are a part.
        sigma = safe_sqrt(self.number(weight.var)) / math.sqrt(math.prod(weight.window))
        if isinstance(cols, int):
            # Entries of variance σ²/d of a weight that reads d features, σ² of √n vᵀ.
            size = 1.0 if transposed else float(cols)
            across, own = (jnp.einsum("pim,pjm->pij", flat, y, precision=HIGHEST) / size for y in (earlier, flat))
            z = sigma * gaussian_part(self.families, key, flat, (across, own), space)
            return self.by_site(weight, transposed, z, x)
        inside = self.spaces[cols]
        moments = jax.vmap(inside.inner)(flat, earlier), jax.vmap(inside.inner)(flat, flat)
        rho = self.ratio(rows, cols)  # of the matrix that acts, W (n × m) or Wᵀ (m × n)
        # q, the variance of its entries times its columns: σ² for W, σ² n/m for Wᵀ.
        spread = sigma / safe_sqrt(rho) if transposed else sigma
        z = spread * gaussian_part(self.families, key, flat, moments, space)
        dual = self.families.get((instruction.weight, not transposed))
        if dual is not None and not self.naive:
            # q / √q′, q′ the transpose's.
            coefficients = (sigma / (rho if transposed else safe_sqrt(rho))) * response(dual, flat, inside)
            self.coefficients[self.position] = coefficients
            z = z + jnp.einsum("pjk,pjm->pkm", coefficients, dual.x, precision=HIGHEST)
        return self.by_site(weight, transposed, z * rho ** (instruction.aspect / 2), x)

    def by_matrix(self, weight: Weight, transposed: bool, x: Array) -> Array:
        """What each of a weight's matrices multiplies, (P, K, M); P runs over its own sites, then window offsets.

        Features that an input has at all offsets are read by one matrix of so many more columns.
        """
        sites, window = math.prod(weight.sites), math.prod(weight.window)
        if transposed:
            flat = jnp.moveaxis(x.reshape(-1, sites, x.shape[-1]), 0, 1)
            return jnp.repeat(flat, window, axis=0)
        if isinstance(weight.cols, int):
            return jnp.moveaxis(x.reshape(-1, sites, window * x.shape[-1]), 0, 1)
        return jnp.moveaxis(x.reshape(-1, sites * window, x.shape[-1]), 0, 1)

    def by_site(self, weight: Weight, transposed: bool, z: Array, x: Array) -> Array:
        """The products (P, K, M) of a weight's matrices as a vector over sites: offsets summed, or side by side."""
        window = 0 if transposed else len(weight.window)
        sites = (*x.shape[: x.ndim - 1 - window], *(weight.window if transposed else ()))
        if not transposed:
            z = z.reshape(math.prod(weight.sites), -1, *z.shape[1:]).sum(1)
        return jnp.moveaxis(z, 0, 1).reshape(*sites, -1)


class Law(NamedTuple):
    """What a Moment's function is called with, at each flat site: Gaussians of `mean` (S, K) and covariance
    `factor` factorᵀ (S, K, K), scalars (S, L)."""

    mean: Array
    factor: Array
    scalars: Array


class LinearLimit(Limit):
    """The limit of a program whose vectors are linear forms in Gaussians: only its Moments see functions.

    Moments without a closed form are `given` by position with their sizes, (2, S), and their `laws` kept for who
    integrates them; without `given`, on a grid of fixed nodes, `coarser` ones for an estimate of its error.
    """

    def __init__(
        self,
        program: Program,
        inputs: tuple[Array, ...],
        spaces: Mapping[str, Space],
        naive: bool = False,
        coarser: float = 1.0,
        given: Mapping[int, Array] | None = None,
    ):
        super().__init__(program, inputs, spaces, naive)
        self.coarser, self.given = coarser, given
        self.laws: dict[int, Law] = {}

    def nonlin(self, nonlin: Nonlin) -> Array:
        raise AssertionError("a program with Nonlins is not linear")

    def moment(self, moment: Moment) -> Array:
        """E fn of jointly Gaussian variables."""
        forms = jnp.broadcast_arrays(*(self.values[v] for v in moment.vectors))
        sites = jnp.broadcast_shapes(forms[0].shape[:-1], *(self.scalar(s).shape for s in moment.scalars))
        flat = [jnp.broadcast_to(f, (*sites, f.shape[-1])).reshape(-1, f.shape[-1]) for f in forms]
        scalars = [jnp.broadcast_to(self.scalar(s), sites).reshape(-1) for s in moment.scalars]
        numbers = tuple(self.number(n) for n in moment.numbers)
        if is_product(moment.fn) and len(flat) == 2 and not scalars:
            return (flat[0] * flat[1]).sum(-1).reshape(sites)
        if polynomial(self.structure, moment):
            call = expected(moment.fn, len(flat))

            def by_moments(own: Array, thetas: list[Array]) -> Array:
                second = jnp.matmul(own, own.T, precision=HIGHEST).reshape(-1)
                return jnp.asarray(call(*thetas, own[:, 0], second, numbers=numbers), self.dtype)

            return jax.vmap(by_moments)(jnp.stack(flat, 1), scalars).reshape(sites)
        law = jax.vmap(self.law)(jnp.stack(flat, 1), scalars)
        if self.given is not None:
            self.laws[self.position] = law
            value, size = self.given[self.position]
            self.sizes[self.position] = size.reshape(sites)
            return value.reshape(sites)
        nodes = int(MOMENT_NODES[len(flat)] * self.coarser) | 1
        grid = Grid(len(flat), nodes, self.dtype)

        def one(law: Law) -> Array:
            values = law.mean[:, None] + jnp.matmul(law.factor, grid.nodes, precision=HIGHEST)
            at = jax.vmap(lambda *z: jnp.asarray(moment.fn(*z, *law.scalars, numbers=numbers), self.dtype))
            return grid.mean(at(*values))

        return jax.lax.map(one, law).reshape(sites)

    def law(self, own: Array, scalars: list[Array]) -> Law:
        centred = own[:, 1:]
        covariance = jnp.matmul(centred, centred.T, precision=HIGHEST)
        held = jnp.stack(scalars) if scalars else jnp.zeros(0, self.dtype)
        return Law(own[:, 0], cholesky(covariance, jnp.diagonal(covariance)), held)


def polynomial(structure: Structure, moment: Moment) -> bool:
    """Whether a Moment's function is of degree 2 at most: means and second moments give it."""
    held = tuple(structure.number_sites[n.index] for n in moment.numbers)
    found = degree(moment.fn, len(moment.vectors), len(moment.scalars), held)
    return found is not None and found <= 2


def integrals(structure: Structure, positions: list[int]) -> tuple[int, ...]:
    """Moments of linear vectors that have no closed form."""
    found = []
    for position in positions:
        instruction = structure.instructions[position]
        if isinstance(instruction, Moment):
            product = is_product(instruction.fn) and len(instruction.vectors) == 2 and not instruction.scalars
            if not product and not polynomial(structure, instruction):
                found.append(position)
    return tuple(found)


def is_product(fn: Function) -> bool:
    """Whether a function multiplies its two arguments."""
    return fn == _PRODUCT


def linear_obstacle(structure: Structure, positions: list[int]) -> int | None:
    """The first instruction that makes a program not linear, or a Moment of too many vectors; None when exact."""
    for position in positions:
        match structure.instructions[position]:
            case Nonlin():
                return position
            case Moment(fn=fn, vectors=vectors) if len(vectors) > len(MOMENT_NODES) and not is_product(fn):
                return position
            case Leaf() | MatMul() | SiteLinear() | ScalarResult():
                pass
            case never:
                assert_never(never)
    return None
