"""What `ntk` is going to do, decided from shapes: method, road of each parameter, blocks of examples, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, PyTree

from tensorprog.empirical import cost
from tensorprog.empirical.contraction import Outputs, Sizes, Way, by_jacobian, by_ntvp
from tensorprog.empirical.cost import Blocks, Network
from tensorprog.empirical.cuts import Anatomy, Group, anatomy
from tensorprog.empirical.structured import by_structure

Method = Literal["auto", "structured", "jacobian", "ntvp"]

#: Bytes that the derivatives of one block of examples may take, where `batch_size` does not say otherwise.
MEMORY = 2**28


@dataclass(frozen=True)
class Plan:
    """How an empirical kernel will be computed: `ntk(..., explain=True)`.

    - `method`: "structured", "jacobian" or "ntvp".
    - `costs`: of each method, in multiply-adds, bytes moved counted as the multiply-adds of their time.
    - `roads`: for each parameter, by its path: "gram" (Gram matrices of inputs and cotangents), "gradient" (its
      derivative, formed from these), "gram and gradient" (several uses, some so and some so), "direct" (its
      derivative, no larger than an activation's: biases, gains), "jacobian" (its derivative by `jax.vjp`), "ntvp", or
      "unused".
    - `block`: the most examples of a block. `bytes`: what the derivatives of two blocks, and their products, will take.
    - `structured_share`: the share of the parameters' entries on other roads than "jacobian" and "ntvp".
    """

    method: str
    costs: dict[str, float]
    roads: dict[str, str]
    block: int
    bytes: int
    structured_share: float

    def __str__(self) -> str:
        width = max([len(path) for path in self.roads], default=0)
        costs = ", ".join(f"{name} {value:.2g}" for name, value in sorted(self.costs.items(), key=lambda item: item[1]))
        return "\n".join(
            [
                f"method     {self.method}    ({costs} multiply-adds)",
                f"blocks     of {self.block} examples, {self.bytes / 2**20:.3g} MiB",
                f"structured {100 * self.structured_share:.1f} % of the parameters",
                *(f"  {path:<{width}}  {road}" for path, road in self.roads.items()),
            ]
        )


@dataclass(frozen=True)
class Problem:
    """A kernel to compute: the outputs as a function of (theta, one example), and how many examples there are."""

    outputs: Outputs
    theta: list[Array]
    paths: list[str]
    lr: list[Any]
    sizes: Sizes
    x: PyTree  # shapes of one example
    n1: int
    n2: int | None
    batch_size: int | None


@dataclass(frozen=True)
class Choice:
    """One method for a problem: how it is computed, and what that takes."""

    way: Callable[[list[Array]], Way]  # for theta, which may be traced by then
    limit: int
    bytes: int
    cost: float
    roads: list[str]


def choices(problem: Problem, methods: Sequence[str]) -> dict[str, Choice]:
    """Each of these methods for the problem."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), problem.theta)
    outputs, x = problem.outputs, problem.x
    jaxpr = jax.make_jaxpr(outputs)(shapes, x).jaxpr
    net = Network(
        cost.multiply_adds(jaxpr),
        sum(leaf.size for leaf in problem.theta),
        max(np.dtype(leaf.dtype).itemsize for leaf in problem.theta),
        problem.sizes,
        *cost.activations(jaxpr, set(jaxpr.invars[len(shapes) :])),
    )
    make = {"structured": _structured, "jacobian": _jacobian, "ntvp": _ntvp}
    return {name: make[name](problem, net) for name in methods}


def chosen(problem: Problem, method: str, candidates: Sequence[str]) -> tuple[str, Choice, dict[str, float]]:
    """The cheapest of the candidates, or the method that was asked for; and what each would cost."""
    found = choices(problem, candidates if method == "auto" else [method])
    best = min(found, key=lambda name: found[name].cost)
    return best, found[best], {name: choice.cost for name, choice in found.items()}


def explained(problem: Problem, method: str, candidates: Sequence[str]) -> Plan:
    found = choices(problem, candidates)
    best = min(found, key=lambda name: found[name].cost) if method == "auto" else method
    roads = dict(zip(problem.paths, found[best].roads, strict=True))
    ours = ("gram", "gradient", "direct", "unused", "gram and gradient")
    share = sum(leaf.size for leaf, road in zip(problem.theta, roads.values(), strict=True) if road in ours)
    total = sum(leaf.size for leaf in problem.theta)
    choice = found[best]
    costs = {name: each.cost for name, each in found.items()}
    return Plan(best, costs, roads, choice.limit, choice.bytes, share / total)


def _fits(problem: Problem, taken: Callable[[int], int]) -> int:
    """The most examples of a block, halved until two blocks take no more bytes than they may."""
    longest = max(problem.n1, problem.n2 or 0)
    if problem.batch_size is not None:
        return min(problem.batch_size, longest)
    limit = longest
    while limit > 1 and taken(limit) > 2 * MEMORY:
        limit = math.ceil(limit / 2)
    return limit


def _jacobian(problem: Problem, net: Network) -> Choice:
    each = net.outputs * (net.parameters * net.itemsize + net.widest) + net.activations
    taken = lambda limit: 2 * limit * each
    limit = _fits(problem, taken)
    blocks = Blocks.of(limit, problem.n1, problem.n2)
    way = lambda theta: by_jacobian(problem.outputs, theta, problem.lr, problem.sizes)
    roads = ["jacobian"] * len(problem.theta)
    return Choice(way, limit, taken(limit), cost.jacobian(net, blocks).cost, roads)


def _ntvp(problem: Problem, net: Network) -> Choice:
    each = net.parameters * net.itemsize + net.activations
    taken = lambda limit: 2 * limit * each + 2 * limit**2 * net.widest  # each pair has its own tangents
    limit = _fits(problem, taken)
    blocks = Blocks.of(limit, problem.n1, problem.n2)
    way = lambda theta: by_ntvp(problem.outputs, theta, problem.lr, problem.sizes)
    return Choice(way, limit, taken(limit), cost.ntvp(net, blocks).cost, ["ntvp"] * len(problem.theta))


def _structured(problem: Problem, net: Network) -> Choice:
    whole = {i for i, m in enumerate(problem.lr) if m is not None and np.size(m) != 1}  # such an lr needs each entry
    parts = anatomy(problem.outputs, problem.theta, problem.x, whole)
    plain = sum(problem.theta[i].size for i in parts.plain)

    def roads_at(limit: int) -> dict[Group, str]:
        return cost.roads_of(net, Blocks.of(limit, problem.n1, problem.n2), parts.groups)

    def taken(limit: int) -> int:
        roads = roads_at(limit)
        each = sum(cost.held(net, group, roads[group]) for group in parts.groups)
        each += net.outputs * (plain * net.itemsize + net.widest) + net.activations
        pair = max([cost.gram_bytes(net, group) for group in parts.groups if roads[group] == "gram"], default=0)
        return 2 * limit * each + limit**2 * pair

    limit = _fits(problem, taken)
    blocks, roads = Blocks.of(limit, problem.n1, problem.n2), roads_at(limit)
    way = lambda theta: by_structure(parts, theta, problem.lr, problem.sizes, roads)
    work = cost.structured(net, blocks, parts, roads, plain)
    return Choice(way, limit, taken(limit), work.cost, _road_names(parts, len(problem.theta), roads))


def _road_names(parts: Anatomy, count: int, roads: dict[Group, str]) -> list[str]:
    names = []
    for i in range(count):
        own = sorted({roads[group] for group in parts.groups if group.parameter == i})
        if i in parts.notes:
            names.append("direct" if parts.direct(i) else "jacobian")
        else:
            names.append(" and ".join(reversed(own)) or "unused")
    return names
