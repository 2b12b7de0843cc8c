"""A program's moments, ready to be computed: demanded, planned, and evaluated for tiles of inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import require_program
from tensorprog.errors import NotIntegrated, ProgramError, bad_argument, problem
from tensorprog.functions.base import Elementwise, polynomially_bounded
from tensorprog.gia import Finding, backward_products, forward_transposes, readout_findings
from tensorprog.interpret.buffers import Alone, Buffer, Context
from tensorprog.interpret.composite import Vectorial, remap
from tensorprog.interpret.demand import Demand
from tensorprog.interpret.equations import (
    UNIT,
    ZERO,
    BatchEq,
    Expectation,
    Given,
    ImportEq,
    JointEq,
    LinearEq,
    MeanEq,
    OneEq,
    PairEq,
    ProductEq,
    ScalarEq,
    System,
)
from tensorprog.interpret.moments import evaluate
from tensorprog.interpret.plan import Plan, Tables, plan
from tensorprog.interpret.sizes import sizes
from tensorprog.ir import Bias, Parameter, Sites, Structure, fan
from tensorprog.program import Program, is_concrete
from tensorprog.show import Printer

Array = jax.Array
Targets = tuple[tuple[int, int], ...]
"""Pairs of vectors (u, v) whose second moments are wanted."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The plans for some targets of a structure; compared by identity, made once for equal structures.

    `systems`: the same-input and the crossing equations as they are planned, in which functions may be known by their
    curves; those of `demand` have the functions themselves.
    """

    demand: Demand
    targets: Targets
    systems: tuple[System, System]
    same: Plan
    cross: Plan
    cells: tuple[np.ndarray, ...]
    tables: Tables

    def shape(self, target: int) -> Sites:
        u, v = self.targets[target]
        linear = self.demand.linear
        return (*linear.sites(u), *linear.sites(v))

    def numbers(self, leaves: Any, same: Any, ids: np.ndarray) -> np.ndarray:
        """Values of functions' numbers `ids` (uses, count) for the inputs of a side, (blocks, uses, n, count): of the
        program, or scalars of the input. `same` has values (blocks, cells, n)."""
        values = np.asarray(same.value)
        monomials = self.demand.linear.monomials.values(tuple(map(np.asarray, leaves)), values.dtype, np)
        known = np.broadcast_to(
            monomials[np.maximum(ids, 0)][None, :, None], (len(values), len(ids), values.shape[-1], ids.shape[1])
        )
        if not (ids < 0).any():
            return known
        cells = np.where(ids < 0, -1 - ids, -1 - ids.min())  # where it is no scalar, any
        return np.where((ids < 0)[None, :, None], np.moveaxis(values[:, self.same.kept(cells)], -1, 2), known)

    def function_numbers(self, leaves: Any, dtype: Any, phi: Elementwise, ids: Sequence[int]) -> tuple[Array, ...]:
        """Values of a function's numbers, none of them scalars of an input."""
        linear = self.demand.linear
        monomials, arrays = linear.monomials.values(leaves, dtype), linear.array_values(leaves, dtype)
        return tuple((arrays[shape] if shape else monomials)[i] for shape, i in zip(phi.shapes, ids, strict=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """A program's numbers as its equations read them: monomials, arrays that functions hold, and the parameters' own
    terms where these are known before."""

    monomials: Array
    arrays: dict[tuple[int, ...], Array]
    seeds: Array | None = None

    @staticmethod
    def of(m: Moments | Stage, leaves: Any, dtype: Any) -> Numbers:
        """Of a program's leaves; numbers that were made before as they are."""
        if isinstance(leaves, Numbers):
            return leaves
        assert isinstance(m, Moments), "plans alone come with numbers"
        linear = m.demand.linear
        return Numbers(linear.monomials.values(leaves, dtype), linear.array_values(leaves, dtype))

    @staticmethod
    def known(m: Moments, leaves: Any, weights: Any, dtype: Any) -> Numbers:
        """Of leaves and weights that are known, by NumPy: nothing is compiled for them."""
        linear = m.demand.linear
        leaves = [np.asarray(leaf) for leaf in leaves]
        monomials = linear.monomials.values(leaves, dtype, np)
        return Numbers(
            monomials, linear.array_values(leaves, dtype, np), seeds(m, monomials, np.asarray(weights, dtype))
        )


def kernel_structure(program: object, caller: str) -> Structure:
    """The structure of a program that the kernel interpreter takes.

    **Raises:** `ProgramError` at the line of what it does not take.
    """
    structure = require_program(program, caller).structure
    backward = backward_products(structure, structure.outputs)
    refuse(structure, [*backward, *forward_transposes(structure), *readout_findings(structure)])
    return structure


def refuse(structure: Structure, findings: list[Finding]) -> None:
    """Raise the first finding, if there is one, at the user's line."""
    if findings:
        first = findings[0]
        printer = Printer(structure, [None] * len(structure.numbers))
        text = printer.expression(first.position, top=structure.names[first.position] is None)
        raise problem(structure.line(first.position), text, first.why, first.remedy)


@contextmanager
def deep_recursion(instructions: int) -> Iterator[None]:
    """Demand recurses once for each instruction on the way down: a deep network needs more than Python's default."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 1000 + 60 * instructions))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@lru_cache(maxsize=256)
def moments(structure: Structure, targets: Targets, *, everything: bool = False) -> Moments:
    """Demand and plan; with `everything` all crossing cells are kept, for `recursion`."""
    demand = Demand(structure)
    cells = []
    with deep_recursion(len(structure.instructions)):
        for u, v in targets:
            pu, pv = (p.reshape(-1) for p in np.indices((demand.linear.size(u), demand.linear.size(v))))
            cells.append(demand.second_moment(demand.cross, u, v, pu, pv))
        while everything and _complete(demand):
            pass
    kept = np.arange(len(demand.cross.owners)) if everything else np.concatenate(cells)
    return planned(demand, targets, tuple(cells), (demand.same, demand.cross), kept)


def planned(
    demand: Demand,
    targets: Targets,
    cells: tuple[np.ndarray, ...],
    systems: tuple[System, System],
    kept: np.ndarray,
    more: Sequence[np.ndarray] = (),
) -> Moments:
    """Plans of two systems of the demand's cells, of which `kept` are the crossing ones; `more` same-input cells that
    somebody looks at."""
    exported = [np.array([ZERO, UNIT]), *(_exported(e) for e in demand.cross.equations), *more]
    # `accuracy` and `existence` look at these.
    exported += [_exported(e) for e in demand.same.equations if isinstance(e, JointEq) or _open(e)]
    same = plan(systems[0], np.concatenate(exported))
    tables = Tables.of(systems[1])
    return Moments(demand, targets, systems, same, plan(systems[1], kept, same, tables), cells, tables)


@dataclass(frozen=True, eq=False)
class Stage:
    """What a compiled program is made of: plans, without whose they are. Equal ones are one program, whatever the
    networks and the functions that their tables stand for."""

    same: Plan
    cross: Plan
    tables: Tables

    @cached_property
    def key(self) -> Any:
        rows = tuple((fn, tuple(lines)) for fn, lines in self.tables.rows.items())
        return self.same.key, self.cross.key, rows

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.key == other.key

    @staticmethod
    @lru_cache(maxsize=256)
    def of(m: Moments) -> Stage:
        return Stage(m.same, m.cross, m.tables)


def output_targets(structure: Structure) -> Targets:
    """Each output with itself: what kernels are made of."""
    return tuple((o, o) for o in structure.outputs)


@lru_cache(maxsize=256)
def integrated(structure: Structure, targets: Targets) -> bool:
    """Whether the recursion has a rule for every expectation; where it has none, they are sampled."""
    try:
        moments(structure, targets)
    except NotIntegrated:
        return False
    return True


def _complete(demand: Demand) -> bool:
    """Ask for all pairs of sites of every crossing moment that there is; whether there were new ones."""
    before = len(demand.cross.owners)
    asked = {"moment": demand.moment, "second": demand.second_moment}
    for key in [k for k in demand.cross.tables if k[0] in asked]:
        kind, u, v = key
        pu, pv = (p.reshape(-1) for p in np.indices((demand.linear.size(u), demand.linear.size(v))))
        asked[kind](demand.cross, u, v, pu, pv)
    return len(demand.cross.owners) > before


class JointSide(NamedTuple):
    """A side of an expectation of several Gaussians: the function as it stands in the equation, the same of its own
    Gaussians alone, which of the equation's they are, and the vector that it is of."""

    equation: JointEq
    fn: Vectorial
    alone: Vectorial
    slots: tuple[int, ...]
    owner: int

    def met(self, m: Moments, leaves: Any, same: Any) -> tuple[np.ndarray, np.ndarray]:
        """Covariances (uses, k, k) of its Gaussians at all inputs, and its numbers (uses, numbers) there; `same` has
        values (blocks, cells, n)."""
        cells = np.asarray(same.value)[:, m.same.kept(self.equation.own(self.slots))]  # (blocks, equations, k, k, n)
        covs = np.moveaxis(cells, -1, 2).reshape(-1, len(self.slots), len(self.slots))
        numbers = m.numbers(leaves, same, self.equation.numbers)
        return covs, numbers.reshape(len(covs), self.equation.numbers.shape[1])


def joint_sides(demand: Demand) -> Iterator[JointSide]:
    """Both sides of all expectations of functions of several Gaussians."""
    for system in (demand.same, demand.cross):
        for e in system.equations:
            if isinstance(e, JointEq):
                _, left, right, *_ = system.owners[int(e.out[0])]
                for fn, slots, owner in ((e.left, e.left_slots, left), (e.right, e.right_slots, right)):
                    if fn is not None:
                        moved = remap(fn.expr, {slot: place for place, slot in enumerate(slots)}, 0)
                        yield JointSide(e, fn, Vectorial(moved, fn.shapes), slots, owner)


def _open(equation: Any) -> bool:
    """Whether an equation's expectation, of one Gaussian a function, is not known to exist at every variance."""
    phis = [phi for name in ("phi", "psi") if isinstance(phi := getattr(equation, name, None), Elementwise)]
    return isinstance(equation, PairEq | OneEq | MeanEq) and not all(map(polynomially_bounded, phis))


def _exported(equation: Any) -> np.ndarray:
    """Same-input cells that a crossing equation reads; of a joint expectation those of each side by itself."""
    numbers = [
        n for name in ("phi_numbers", "psi_numbers", "numbers") if (n := getattr(equation, name, None)) is not None
    ]
    own = [-1 - n[n < 0] for n in numbers]
    match equation:
        case PairEq(left=left, right=right):
            return np.concatenate([left, right, *own])
        case OneEq(var=var) | MeanEq(var=var):
            return np.concatenate([var, *own])
        case BatchEq(left=left, right=right):
            return np.concatenate([left.reshape(-1), right.reshape(-1)])
        case ImportEq(cells=cells):
            return cells
        case LinearEq(factors=factors) if factors is not None:
            return factors.reshape(-1)
        case JointEq() as e:
            return np.concatenate([*(e.own(slots).reshape(-1) for slots in (e.left_slots, e.right_slots)), *own])
        case LinearEq() | ProductEq() | ScalarEq() | Given() | Expectation():
            return np.zeros(0, dtype=np.int64)
        case never:
            assert_never(never)


def seeds(m: Moments | Stage, monomials: Any, weights: Any) -> Any:
    """Values of the parameters' own terms; `weights` is (P,) or (P, *batch)."""
    assert isinstance(m, Moments), "plans alone come with seeds"
    entries = m.demand.seeds.entries
    longest = max(1, max(len(entry) for entry in entries))
    padded = [[*entry, *[(0, 0)] * (longest - len(entry))] for entry in entries]
    which = np.array(padded, dtype=np.int32)  # monomial 0 is the number 0
    factors = monomials[which[..., 1]]
    chosen = weights[which[..., 0]]
    return (factors.reshape(*factors.shape, *(1,) * (chosen.ndim - 2)) * chosen).sum(1)


def same_stage(
    m: Moments | Stage, leaves: Any, x: tuple[Array, ...], *, slope: bool, error: bool, plain: bool = False
) -> Alone:
    """The same-input system; `slope` makes what the NTK needs as well, `plain` is for what nobody differentiates."""
    dtype = _dtype(x)
    numbers = Numbers.of(m, leaves, dtype)
    context = Context((x, x), numbers.monomials, numbers.arrays, plain=plain)
    found = evaluate(m.same, context, (x[0].shape[0] if x else 1,), tangent=False, error=error)
    # Derivatives of expectations are expectations: nothing differentiates through the tables, nor the searches in them.
    known = jax.lax.stop_gradient((found.value, numbers.monomials, numbers.arrays))
    return Alone(found.value, found.error, m.tables.sides(m.same, *known, slope=slope))


def cross_stage(
    m: Moments | Stage,
    leaves: Any,
    weights: Array,
    x1: tuple[Array, ...],
    x2: tuple[Array, ...],
    left: Alone,
    right: Alone,
    valid: Array | None,
    *,
    tangent: bool,
    error: bool,
    matched: bool = False,
    plain: bool = False,
    deltas: Array | None = None,
) -> Buffer:
    """The crossing system's kept cells, (cells, n1, n2) for all pairs; `matched`: (cells, n), each with itself;
    `plain`: nobody differentiates them."""
    dtype = _dtype(x1)
    numbers = Numbers.of(m, leaves, dtype)
    own = numbers.seeds if numbers.seeds is not None else seeds(m, numbers.monomials, weights.astype(dtype))
    seeded = own if tangent else None
    context = Context((x1, x2), numbers.monomials, numbers.arrays, seeded, left, right, valid, matched, plain)
    n1, n2 = (x[0].shape[0] if x else 1 for x in (x1, x2))
    batch = (n1,) if matched else (n1, n2)
    return evaluate(m.cross, context, batch, tangent=tangent, error=error, deltas=deltas)


def _dtype(x: tuple[Array, ...]) -> Any:
    return x[0].dtype if x else jnp.result_type(float)


def parameter_weights(program: Program, convention: str, widths: Mapping[str, int] | int | None) -> Any:
    """f_p · lr_p for each parameter: scale² (multiplier-std), 1 (init-std), the fan (standard).

    **Raises:** `ProgramError` for an unknown convention, or "standard" without widths or with some that are no sizes.
    """
    structure, leaves = program.structure, program.leaves
    xp = np if all(map(is_concrete, leaves)) else jnp  # nothing is compiled for numbers that are known

    def factor(parameter: Parameter) -> Any:
        match convention:
            case "multiplier-std":
                if parameter.scale is None:
                    return xp.asarray(leaves[parameter.var.index])
                return xp.asarray(leaves[parameter.scale.index]) ** 2
            case "init-std":
                return 1.0
            case "standard":
                if isinstance(parameter, Bias):
                    return 1.0
                cols = 1 if isinstance(parameter.cols, int) else _size(program, widths, parameter.cols)
                return 1.0 * fan(parameter) * cols
            case _:
                raise bad_argument(
                    "convention",
                    f"{convention!r} is none",
                    "give 'multiplier-std' (the NTK parameterization, the default), 'init-std' (the papers') or "
                    "'standard', with widths=",
                )

    values = [factor(p) * xp.asarray(leaves[p.lr.index]) for p in structure.parameters]
    return xp.stack([xp.asarray(v, jnp.result_type(float)) for v in values]) if values else xp.zeros(1)


def _size(program: Program, widths: Mapping[str, int] | int | None, name: str) -> Any:
    if widths is None:
        raise ProgramError(
            f"convention='standard': its NTK grows with the width; give widths={{{name!r}: …}} or widths=…"
        )
    return sizes(program, widths, argument="widths", traced=True)[name]
