"""Moments as sums of terms: cells, coefficients, the parameters' own weights, factors."""

from __future__ import annotations

import numpy as np

from tensorprog.interpret.equations import UNIT, ZERO, Array, LinearEq
from tensorprog.interpret.linear import Ids, Monomials

Terms = tuple[Array, Array, Array, Array]
"""(cells, coefs, seeds, factors), each (P, K): P moments as sums of K terms. Factors are same-input cells."""


def whole(cells: Array, factors: Array | None = None) -> Terms:
    """One term for each moment: a cell, or a cell times another."""
    ones = np.ones((len(cells), 1), dtype=np.int64)
    return cells[:, None], ones, np.zeros_like(ones), ones if factors is None else factors[:, None]


def joined(parts: list[Terms], count: int) -> Terms:
    """Terms of several sums side by side; terms that are 0 everywhere are left out."""
    parts = [p for p in parts if p[0].shape[1]]
    if not parts:
        empty = np.zeros((count, 0), dtype=np.int64)
        return empty, empty, empty, empty
    cells, coefs, seeds, factors = (np.concatenate([p[k] for p in parts], axis=1) for k in range(4))
    keep = ((cells != ZERO) & (factors != ZERO) & ((coefs != 0) | (seeds != 0))).any(axis=0)
    return cells[:, keep], coefs[:, keep], seeds[:, keep], factors[:, keep]


def linear_equation(out: Array, terms: tuple[Array, ...], side: str = "left") -> LinearEq:
    """The equation of such sums, its factors of the input on one side; factors that are all 1 are none."""
    cells, coefs, seeds, factors = terms
    return LinearEq(out, cells, coefs, seeds, None if (factors == UNIT).all() else factors, side)


def outer(monomials: Monomials, cells: Array, a: Ids, b: Ids) -> Terms:
    """Cells (P, r) with coefficients a (P, r) times b (P, r′): terms (P, r·r′)."""
    a = np.broadcast_to(a, cells.shape)
    b = np.broadcast_to(b, (len(cells), np.shape(b)[1] if np.ndim(b) else 1))
    coefs = monomials.times(a[:, :, None], b[:, None, :]).reshape(len(cells), -1)
    wide = np.repeat(cells[:, :, None], b.shape[1], axis=2).reshape(len(cells), -1)
    return wide, coefs, np.zeros_like(coefs), np.full_like(wide, UNIT)
