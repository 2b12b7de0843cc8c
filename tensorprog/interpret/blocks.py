"""Batch norm: which vectors are a batch norm of a Gaussian, over which sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from tensorprog.functions.base import elementwise
from tensorprog.functions.batch_integrals import Sides
from tensorprog.functions.batchnorm import IDENTITY, normalises, sides
from tensorprog.interpret.linear import Linear
from tensorprog.ir import Leaf, MatMul, Nonlin, ScalarResult, SiteLinear


@dataclass(frozen=True)
class Block:
    """φ(batch norm of h): `sites` (blocks, B), the flat sites of h that are normalised together."""

    h: int
    phi: Sides
    sites: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """The block of each flat site."""
        found = np.zeros(self.sites.size, dtype=np.int64)
        found[self.sites] = np.arange(len(self.sites))[:, None]
        return found


def block(linear: Linear, position: int, known: Mapping[int, Block | None]) -> Block | None:
    """A vector as a batch norm of a Gaussian, by itself or under a function that is linear on each side of 0.

    None for anything else: such functions are sampled.
    """
    match linear.instructions[position]:
        case Nonlin(fn=fn, vectors=(h,), scalars=(), over=over) if over is not None and normalises(fn):
            if not linear.gaussian(h) or linear.moving(h):
                return None
            shape = linear.sites(h)
            order = (*(a for a in range(len(shape)) if a not in over), *over)
            whole = np.arange(linear.size(h)).reshape(shape).transpose(order)
            sites = whole.reshape(-1, math.prod(shape[a] for a in over))
            return Block(h, IDENTITY, sites) if _mean_drops_out(linear, h, sites) else None
        case Nonlin(fn=fn, numbers=(), vectors=(below,), scalars=(), over=None):
            inner = known[below] if below in known else block(linear, below, known)
            phi = sides(elementwise(fn, 0).form)
            if inner is None or phi is None or inner.phi != IDENTITY or linear.sites(below) != linear.sites(position):
                return None
            return Block(inner.h, phi, inner.sites)
        case Leaf() | MatMul() | SiteLinear() | Nonlin() | ScalarResult():
            return None
        case never:
            assert_never(never)


def _mean_drops_out(linear: Linear, h: int, sites: np.ndarray) -> bool:
    """Whether the mean of h is one number for each batch."""
    constants = [np.broadcast_to(c, (sites.size, 1))[:, 0] for c in linear.constant(h, np.arange(sites.size)[:, None])]
    return all((c[sites] == c[sites][:, :1]).all() for c in constants)
