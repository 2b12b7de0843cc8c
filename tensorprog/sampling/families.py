"""Jointly Gaussian vectors, drawn one block after another over all draws at once.

A family are the linear expressions that share random matrices or biases: g = Σ_p A_p x_p + …, of covariance
Σ_p σ_p² E x_p x̄_p. A block of them is drawn given the blocks before it, Ẑ = left ε_before + right ε, by the Cholesky
factor of the covariances, which grows by the block.

The tangent of g along a random change of the parameters, independent of them and of variance w_p in each, is Gaussian
too, of covariance Σ_p σ_p² E ẋ_p x̄˙_p + w_p E x_p x̄_p, and independent of g: what the NTK is of a network the tangents'
covariance is, without a backward pass (docs/theory.md). So each family is two chains, of values and of tangents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from tensorprog.interpret.products import cholesky
from tensorprog.interpret.spaces import HIGHEST
from tensorprog.sampling.draws import Draws

Array = jax.Array
RIDGE = 3e-4
"""In single precision variances are so much larger than they are: factors of covariances that are singular to rounding
would hold noise that grows from block to block."""
_SIZES, _STEP = 6, 64
"""A factor grows in about so many steps, of at least so many rows."""


@jax.jit
def gram(x: Array, y: Array) -> Array:
    """Σ over the last axis of all pairs of rows."""
    return jnp.matmul(x, y.T, precision=HIGHEST)


@jax.jit
def _placed(whole: Array, part: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice(whole, part, (jnp.zeros_like(start), start))


@jax.jit
def _grown(factor: Array, across: Array, own: Array, start: Array) -> tuple[Array, Array, Array]:
    """(left (K, C), right (K, K), the factor (C, C) with them at row `start`); rows from there on were 0."""
    alive = jnp.diagonal(factor) > 0
    full = factor + jnp.diag(jnp.where(alive, 0.0, 1.0).astype(factor.dtype))
    left = jnp.where(alive[:, None], jax.scipy.linalg.solve_triangular(full, across.T, lower=True), 0.0).T
    if own.dtype != jnp.float64:
        own = own + RIDGE * jnp.diag(jnp.diagonal(own))
    right = cholesky(own - jnp.matmul(left, left.T, precision=HIGHEST), jnp.diagonal(own))
    rows = jax.lax.dynamic_update_slice(left, right, (jnp.zeros_like(start), start))
    return left, right, jax.lax.dynamic_update_slice(factor, rows, (start, jnp.zeros_like(start)))


@partial(jax.jit, static_argnums=(3,))
def _share(left: Array, noise: Array, start: Array, size: int) -> Array:
    """left[:, start : start + size] @ noise."""
    own = jax.lax.dynamic_slice(left, (jnp.zeros_like(start), start), (len(left), size))
    return jnp.matmul(own, noise, precision=HIGHEST)


@jax.jit
def _last(total: Array, right: Array, noise: Array) -> Array:
    return total + jnp.matmul(right, noise, precision=HIGHEST)


@jax.jit
def _joined(x: Array, y: Array) -> Array:
    return jnp.concatenate([x, y])


class Chain:
    """The Cholesky factor L of a growing covariance and the standard rows ε, Ẑ = L ε; ε in panels of doubling size.

    `rows` are expected; the factor's array has a few sizes on the way there, since each is compiled for.
    """

    def __init__(self, dtype: jnp.dtype, rows: int):
        self.dtype, self.step, self.rows = dtype, max(_STEP, -(-rows // _SIZES)), 0
        self.factor = jnp.zeros((0, 0), dtype)
        self.noise: list[Array] = []

    def add(self, across: list[tuple[int, Array]], own: Array, noise: Array) -> Array:
        """A block (K, M′) of covariance `own`, and `across` (start, (K, J)) with the rows that begin there."""
        count, before = len(own), self.rows
        self.rows += count
        if self.rows > len(self.factor):
            size = self.step * -(-self.rows // self.step)
            self.factor = jnp.zeros((size, size), self.dtype).at[:before, :before].set(self.factor[:before, :before])
        moments = jnp.zeros((count, len(self.factor)), self.dtype)
        for start, part in across:
            moments = _placed(moments, part, jnp.asarray(start))
        left, right, self.factor = _grown(self.factor, moments, own, jnp.asarray(before))
        total = jnp.zeros_like(noise)
        start = 0
        for panel in self.noise:
            total = total + _share(left, panel, jnp.asarray(start), len(panel))
            start += len(panel)
        self.noise.append(noise)
        while len(self.noise) > 1 and len(self.noise[-2]) <= len(self.noise[-1]):
            last = self.noise.pop()
            self.noise[-1] = _joined(self.noise[-1], last)
        return _last(total, right, noise)


@dataclass(eq=False)
class Block:
    """What a parameter multiplies in some rows of a family: `values` (R, K) and their tangents, if there are any.

    Products with blocks before are kept, since several parameters may multiply one block.
    """

    values: Array
    tangent: Array | None
    products: dict[int, tuple[Block, Array, Array | None]] = field(default_factory=dict)
    unions: dict[int, tuple[Block, Block]] = field(default_factory=dict)

    def product(self, other: Block) -> tuple[Array, Array | None]:
        """(Σ x x̄, Σ ẋ x̄˙) of all pairs of rows with an earlier block or itself."""
        if id(other) not in self.products:
            tangents = None
            if self.tangent is not None and other.tangent is not None:
                tangents = gram(self.tangent, other.tangent)
            self.products[id(other)] = other, gram(self.values, other.values), tangents
        return self.products[id(other)][1:]

    def union(self, other: Block) -> Block:
        """The rows of this block and then the other's."""
        if id(other) not in self.unions:
            tangent = None
            if self.tangent is not None or other.tangent is not None:
                tangent = _joined(
                    *(jnp.zeros_like(b.values) if b.tangent is None else b.tangent for b in (self, other))
                )
            self.unions[id(other)] = other, Block(_joined(self.values, other.values), tangent)
        return self.unions[id(other)][1]


def nothing(rows: int, like: Block) -> Block:
    """Rows that a parameter does not enter."""
    return Block(jnp.zeros((rows, like.values.shape[1]), like.values.dtype), None)


@dataclass(frozen=True)
class Law:
    """A parameter's: variance and NTK weight of one product E x x̄, which is `norm` Σ x x̄."""

    variance: Array
    weight: Array
    norm: float

    def covariances(self, products: tuple[Array, Array | None]) -> tuple[Array, Array]:
        """What it adds to the covariances of values and of tangents."""
        values, tangents = products[0] * self.norm, products[1]
        learned = self.weight * values
        if tangents is not None:
            learned = learned + self.variance * self.norm * tangents
        return self.variance * values, learned


@dataclass(eq=False)
class Panel:
    """Some rows of a family, by parameter; `count` blocks."""

    start: int
    rows: int
    count: int
    parts: dict[int, Block]

    def joined(self, other: Panel) -> Panel:
        parts = {}
        for key in self.parts | other.parts:
            left, right = self.parts.get(key), other.parts.get(key)
            left = nothing(self.rows, other.parts[key]) if left is None else left
            right = nothing(other.rows, self.parts[key]) if right is None else right
            parts[key] = left.union(right)
        return Panel(self.start, self.rows + other.rows, self.count + other.count, parts)


class Family:
    """Jointly Gaussian blocks and their tangents."""

    def __init__(self, laws: Mapping[int, Law], draws: Draws, rows: int, tangents: bool):
        self.laws, self.draws = laws, draws
        self.values = Chain(draws.dtype, rows)
        self.tangents = Chain(draws.dtype, rows) if tangents else None
        self.panels: list[Panel] = []
        self.rows = 0

    def covariances(self, parts: Mapping[int, Block], others: Mapping[int, Block]) -> tuple[Array, Array] | None:
        found = [self.laws[p].covariances(parts[p].product(others[p])) for p in parts if p in others]
        if not found:
            return None
        return sum((v for v, _ in found[1:]), found[0][0]), sum((t for _, t in found[1:]), found[0][1])

    def draw(self, parts: dict[int, Block]) -> tuple[Array, Array | None]:
        """Draws (R, M) of Σ_p A_p x_p given all earlier ones, and of its tangent."""
        own = self.covariances(parts, parts)
        assert own is not None, "a Gaussian vector has a part"
        rows = len(own[0])
        across = [(panel.start, self.covariances(parts, panel.parts)) for panel in self.panels]
        known = [(start, found) for start, found in across if found is not None]
        noise = self.draws.gaussians(rows, self.values.noise)
        half = self.values.add([(start, found[0]) for start, found in known], own[0], noise)
        values, tangent = jnp.concatenate([half, -half], axis=1), None
        if self.tangents is not None:
            noise = self.draws.signs(rows, self.tangents.noise)
            half = self.tangents.add([(start, found[1]) for start, found in known], own[1], noise)
            tangent = jnp.concatenate([half, half], axis=1)
        self.panels.append(Panel(self.rows, rows, 1, parts))
        self.rows += rows
        while len(self.panels) > 1 and self.panels[-2].count <= self.panels[-1].count:
            last = self.panels.pop()
            self.panels[-1] = self.panels[-1].joined(last)
        return values, tangent
