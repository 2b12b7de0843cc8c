"""What each method costs in multiply-adds and bytes moved, from shapes alone.

One figure is made of both: a machine that does `BALANCE` multiply-adds in the time of one byte finds a job bound by
whichever is more, and sums of jobs by about their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tensorprog.empirical.contraction import Sizes
from tensorprog.empirical.cuts import Anatomy, Group

#: Multiply-adds in the time that one byte takes from memory: two CPU cores do about 30 · 10⁹ of float32 beside 10 · 10⁹
#: bytes a second, a GPU at full float32 precision 20 · 10¹² beside 2 · 10¹².
BALANCE = {"cpu": 3.0, "gpu": 10.0, "tpu": 50.0}

#: Outer products and small batched products reach a part of the speed of one large product. (Measured.)
OUTER = 4.0


@dataclass(frozen=True)
class Work:
    """Multiply-adds and bytes moved."""

    madds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.madds + other.madds, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.madds * times, self.bytes * times)

    @property
    def cost(self) -> float:
        return self.madds + BALANCE.get(jax.default_backend(), BALANCE["gpu"]) * self.bytes


@dataclass(frozen=True)
class Blocks:
    """How many blocks of examples are prepared, and how many pairs of blocks contracted: see `blocks.blocked`."""

    size: int
    prepared: int
    cells: int

    @staticmethod
    def of(limit: int, n1: int, n2: int | None) -> Blocks:
        rows = math.ceil(n1 / limit)
        if n2 is None:
            cells = rows * (rows + 1) // 2
            return Blocks(math.ceil(n1 / rows), cells, cells)
        columns = math.ceil(n2 / limit)
        return Blocks(max(math.ceil(n1 / rows), math.ceil(n2 / columns)), rows * (1 + columns), rows * columns)

    @property
    def examples(self) -> int:
        return self.prepared * self.size

    @property
    def pairs(self) -> int:
        return self.cells * self.size**2


@dataclass(frozen=True)
class Network:
    """What the costs depend on: multiply-adds of a forward pass, parameters, bytes of a number, outputs."""

    forward: int
    parameters: int
    itemsize: int
    sizes: Sizes
    activations: int = 0  # bytes of one example's, all of them
    widest: int = 0  # and of the largest

    @property
    def outputs(self) -> int:
        return math.prod(self.sizes)

    @property
    def products(self) -> int:
        """Pairs of outputs whose product counts."""
        kept, diagonal, traced = self.sizes
        return kept**2 * diagonal * traced


def jacobian(net: Network, blocks: Blocks) -> Work:
    """Each example's Jacobian is made by outer products, written, and read once a block."""
    size = net.outputs * net.parameters * net.itemsize
    example = Work(net.forward * (1 + net.outputs * (1 + OUTER)), 3 * size)
    return example * blocks.examples + Work(net.products * net.parameters) * blocks.pairs


def ntvp(net: Network, blocks: Blocks) -> Work:
    """For each right example and output a direction of the parameters, and along it a derivative of each left one."""
    columns = net.outputs * blocks.cells * blocks.size
    direction = Work(net.forward * (2 + OUTER), 2 * net.parameters * net.itemsize)
    return direction * columns + Work(2 * net.forward) * (net.outputs * blocks.pairs)


def structured(net: Network, blocks: Blocks, anatomy: Anatomy, roads: Mapping[Group, str], plain: int) -> Work:
    """A forward pass, one backward pass to the pre-activations for each output, and each weight's contraction."""
    work = Work(net.forward * (1 + net.outputs)) * blocks.examples
    if plain:
        uses = net.forward / net.parameters
        work += jacobian(Network(round(uses * plain), plain, net.itemsize, net.sizes), blocks)
    return sum((contraction(net, blocks, group, roads[group]) for group in anatomy.groups), work)


def contraction(net: Network, blocks: Blocks, group: Group, road: str) -> Work:
    """The work of one group of uses on one of its roads."""
    s, alpha, beta = group.sizes
    p, q = group.positions(False), group.positions(True)
    kept, diagonal, _ = net.sizes
    if road == "gradient":
        formed = net.outputs * s * alpha * beta
        example = Work((p + q) * formed, 3 * formed * net.itemsize)
        return example * blocks.examples + Work(net.products * s * alpha * beta) * blocks.pairs
    first = 0 if group.rows else alpha
    alike = p**2 * (first + net.products * beta) + q**2 * (beta + net.products * alpha)
    crossed = 2 * p * q * net.outputs * (alpha + beta)
    entries = s * (p + q) ** 2 * (1 + kept**2 * diagonal)
    return Work(s * (alike + crossed), 2 * entries * net.itemsize) * blocks.pairs + (
        Work(0, 2 * held(net, group, road)) * blocks.examples
    )


def held(net: Network, group: Group, road: str) -> int:
    """Bytes of one example's factors, and of the derivative that they make."""
    s, alpha, beta = group.sizes
    p, q = group.positions(False), group.positions(True)
    first = 2 if group.rows else alpha
    formed = net.outputs * s * alpha * beta * net.itemsize if road == "gradient" else 0
    return formed + s * (p * (first + net.outputs * beta) + q * (beta + net.outputs * alpha)) * net.itemsize


def gram_bytes(net: Network, group: Group) -> int:
    """Bytes of one pair's Gram matrices."""
    kept, diagonal, traced = net.sizes
    p, q = group.positions(False), group.positions(True)
    crossed = 2 * p * q * diagonal * traced * kept * (2 + kept) if p and q else 0
    return group.sizes[0] * ((p**2 + q**2) * (1 + diagonal * kept**2) + crossed) * net.itemsize


def roads_of(net: Network, blocks: Blocks, groups: Sequence[Group]) -> dict[Group, str]:
    """The cheaper road for each group."""
    return {
        group: min(("gram", "gradient"), key=lambda road: contraction(net, blocks, group, road).cost)
        for group in groups
    }


def multiply_adds(jaxpr: Any) -> int:
    """Of the matrix products and convolutions of a jaxpr, from shapes alone; a `while` loop's body counts once."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            filters = equation.invars[1].aval.shape
            channels = filters[params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(filters) // channels
        inner = [sub for value in params.values() for sub in _jaxprs(value)]
        total += params.get("length", 1) * sum(multiply_adds(sub) for sub in inner)
    return total


def activations(jaxpr: Any, active: set[Any]) -> tuple[int, int]:
    """Bytes of all that depends on the variables in `active`, and of the largest; loops counted by their steps."""
    total = widest = 0
    active = set(active)
    for equation in jaxpr.eqns:
        if not any(not hasattr(atom, "val") and atom in active for atom in equation.invars):
            continue
        active |= set(equation.outvars)
        found = [_bytes(var.aval) for var in equation.outvars]
        for inner in (sub for value in equation.params.values() for sub in _jaxprs(value)):
            all_, largest = activations(inner, set(inner.invars))
            found.append(equation.params.get("length", 1) * all_)
            widest = max(widest, largest)
        total += sum(found[len(equation.outvars) :] or found)
        widest = max([widest, *found[: len(equation.outvars)]])
    return total, widest


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
