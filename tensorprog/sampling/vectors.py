"""Vectors of a batch of inputs while they are sampled: a Gaussian part that is not drawn yet, a constant, and draws.

Arrays are (B, *sites, K), B the examples or 1 for what depends on none. A Gaussian part is Σ_p A_p x_p, known by the
x_p; site operations act on them and it stays exact until a function reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from tensorprog.ir import Sites
from tensorprog.sampling.families import Block

Array = jax.Array


@dataclass(eq=False)
class Atom:
    """Numbers along the last axis (draws, features) and their tangents: (B, *sites, K), or None for tangents of 0."""

    values: Array
    tangent: Array | None = None
    blocks: dict[tuple[int, ...], Block] = field(default_factory=dict)

    def map(self, fn: Callable[[Array], Array]) -> Atom:
        """A linear map of both."""
        return Atom(fn(self.values), None if self.tangent is None else fn(self.tangent))

    def __add__(self, other: Atom) -> Atom:
        if self.tangent is None or other.tangent is None:
            tangent = other.tangent if self.tangent is None else self.tangent
        else:
            tangent = self.tangent + other.tangent
        return Atom(self.values + other.values, tangent)

    def block(self, shape: tuple[int, ...]) -> Block:
        """The rows, broadcast to (B, *sites)."""
        if shape not in self.blocks:
            flat = self.map(lambda a: jnp.broadcast_to(a, (*shape, a.shape[-1])).reshape(-1, a.shape[-1]))
            self.blocks[shape] = Block(flat.values, flat.tangent)
        return self.blocks[shape]


@dataclass(eq=False)
class Vector:
    """Σ_p A_p x_p + constant + drawn, over sites; `parts` maps a parameter's place to its x."""

    sites: Sites
    parts: dict[int, Atom] = field(default_factory=dict)
    constant: Array | None = None
    drawn: Atom | None = None
    whole: Atom | None = None

    @property
    def lead(self) -> int:
        """1, or the number of examples."""
        arrays = [a.values for a in self.parts.values()]
        arrays += [a for a in (self.constant, self.drawn and self.drawn.values) if a is not None]
        return max((len(a) for a in arrays), default=1)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.lead, *self.sites)

    def map(self, fn: Callable[[Array], Array], sites: Sites) -> Vector:
        """A linear map of the sites; fn sees (B, *sites, K)."""
        constant = None if self.constant is None else fn(self.constant[..., None])[..., 0]
        drawn = None if self.drawn is None else self.drawn.map(fn)
        return Vector(sites, {p: a.map(fn) for p, a in self.parts.items()}, constant, drawn)

    def __add__(self, other: Vector) -> Vector:
        """The sum; sites broadcast."""
        rank = max(len(self.sites), len(other.sites))
        left, right = self.ranked(rank), other.ranked(rank)
        parts = dict(left.parts)
        for p, atom in right.parts.items():
            parts[p] = parts[p] + atom if p in parts else atom
        constant = right.constant if left.constant is None else left.constant
        if left.constant is not None and right.constant is not None:
            constant = left.constant + right.constant
        drawn = right.drawn if left.drawn is None else left.drawn
        if left.drawn is not None and right.drawn is not None:
            drawn = left.drawn + right.drawn
        return Vector(jnp.broadcast_shapes(left.sites, right.sites), parts, constant, drawn)

    def ranked(self, rank: int) -> Vector:
        """With so many site axes, new ones of size 1 in front."""
        if len(self.sites) == rank:
            return self
        extra = (1,) * (rank - len(self.sites))
        made = self.map(lambda a: a.reshape(a.shape[0], *extra, *a.shape[1:]), (*extra, *self.sites))
        return made

    def full(self) -> Vector:
        """All of it of its own sites and examples, where parts stand for more by broadcasting."""
        return self.map(lambda a: jnp.broadcast_to(a, (*self.shape, a.shape[-1])), self.sites)


def drawn(atom: Atom, sites: Sites) -> Vector:
    """A vector that has been drawn."""
    return Vector(sites, drawn=atom, whole=atom)


def at_sites(x: Vector, sites: Sites) -> Vector:
    """The same vector; `sites` are those it stands for by broadcasting."""
    return replace(x, sites=sites)
