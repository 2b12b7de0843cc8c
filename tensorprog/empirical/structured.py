"""Structured derivatives: a block of the NTK without any ∂f/∂W, from the factors of each product.

With ∂f/∂W[s, α, β] = Σ_p left[s, p, α] right[s, p, β] (`uses`), right depending on the output, the term of W is

    Θ[i, j] = Σ_s Σ_{p,q} ⟨left_i[s, p], left_j[s, q]⟩ ⟨right_i[s, p], right_j[s, q]⟩                          ("gram")

two Gram matrices of positions (Novak, Sohl-Dickstein, Schoenholz 2022, §3.3). Where positions are many the derivative
itself is smaller than these, and is formed from the same factors ("gradient"). Which it is is decided for each weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from tensorprog.empirical.contraction import Sizes, Way, basis, by_rows, einsum, scaled
from tensorprog.empirical.cuts import Anatomy, Group
from tensorprog.empirical.uses import Left, Rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """Both factors of a group's uses, of one orientation: left (s, p, α), right (k, e, t, s, p, β)."""

    left: Any
    right: Array


Prepared = dict[bool, Factors] | Array  # by orientation, or the derivative (k, e, t, s, α, β)


def by_structure(
    anatomy: Anatomy, theta: list[Array], lr: Sequence[Any], sizes: Sizes, roads: Mapping[Group, str]
) -> Way:
    """A way in the sense of `contraction`: factors of every weight, and plain derivatives of the other parameters."""
    plain = anatomy.plain

    def prepare(x: PyTree) -> tuple[list[Prepared], list[Array]]:
        def outputs(offsets: list[Array], some: list[Array]) -> tuple[Array, Any]:
            full = list(theta)
            for i, leaf in zip(plain, some, strict=True):
                full[i] = leaf
            return anatomy.replayed(full, x, offsets)

        offsets = [jnp.zeros(cut.shape, cut.dtype) for cut in anatomy.cuts]
        y, pull, lefts = jax.vjp(outputs, offsets, [theta[i] for i in plain], has_aux=True)
        rights, rows = jax.vmap(pull)(basis(sizes, y.dtype))
        factors = [_prepared(anatomy, group, lefts, rights, sizes, roads[group]) for group in anatomy.groups]
        return factors, [row.reshape(*sizes, -1) for row in rows]

    def contract(left: Any, right: Any) -> list[Array]:
        n, m = (jax.tree.leaves(side)[0].shape[0] for side in (left, right))
        kept, diagonal, traced = sizes
        dtype = jnp.result_type(*[leaf.dtype for leaf in theta], jnp.float32)
        terms: list[list[Array]] = [[] for _ in theta]
        for group, a, b in zip(anatomy.groups, left[0], right[0], strict=True):
            term = _contracted(a, b)
            m_ = lr[group.parameter]
            terms[group.parameter].append(term if m_ is None else term * jnp.asarray(m_).astype(term.dtype).reshape(()))
        for i, a, b in zip(plain, left[1], right[1], strict=True):
            terms[i].append(by_rows(scaled(a, lr[i], theta[i].shape), b))
        nothing = jnp.zeros((n, m, diagonal, kept, kept), dtype)
        return [reduce(add, own) / traced if own else nothing for own in terms]

    return jax.vmap(prepare), contract


def _prepared(anatomy: Anatomy, group: Group, lefts: Any, rights: list[Array], sizes: Sizes, road: str) -> Prepared:
    """One example's factors of a group, or the derivative that they make."""
    found: dict[bool, Factors] = {}
    for swapped in (False, True):
        members = [member for member in group.members if member.swapped == swapped]
        if not members:
            continue
        left = [lefts[m.cut][m.use] for m in members]
        uses = [anatomy.cuts[m.cut].uses[m.use] for m in members]
        right = [jax.vmap(use.arrange)(rights[m.cut]) for use, m in zip(uses, members, strict=True)]
        _, alpha, beta = group.sizes
        together = _beside(left, road == "gram" and group.rows, beta if swapped else alpha)
        right = jnp.concatenate(right, axis=2)
        found[swapped] = Factors(together, right.reshape(*sizes, *right.shape[1:]))
    if road == "gram":
        return found
    subscripts = {False: "spi,ketspj->ketsij", True: "spj,ketspi->ketsij"}
    return reduce(add, (einsum(subscripts[swapped], f.left, f.right) for swapped, f in found.items()))


def _beside(lefts: Sequence[Left], rows: bool, size: int) -> Left:
    """The positions of several uses side by side, as rows if all are."""
    if rows:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *lefts)
    dense = [_one_hot(left, size) if isinstance(left, Rows) else left for left in lefts]
    return jnp.concatenate(dense, axis=1)


def _one_hot(rows: Rows, size: int) -> Array:
    return jax.nn.one_hot(rows.index, size, dtype=rows.factor.dtype) * rows.factor[..., None]


def _contracted(a: Prepared, b: Prepared) -> Float[Array, "a b E K K"]:
    if isinstance(a, dict) and isinstance(b, dict):
        return reduce(add, (_pair(x, y, s == r) for s, x in a.items() for r, y in b.items()))
    assert not isinstance(a, dict) and not isinstance(b, dict), "both sides of a group take one road"
    return einsum("aketsij,bletsij->abekl", a, b)


def _pair(a: Factors, b: Factors, alike: bool) -> Float[Array, "a b E K K"]:
    """The term of uses of W with uses of W, or (not `alike`) of Wᵀ, whose left factor goes with the others' right one.

    Products of two Gram matrices, entry by entry, then the sum over positions p, q: no output × output array, since the
    traced outputs are summed within the Gram matrix of the right factors.
    """
    if not alike:
        first = einsum("aspi,bletsqi->etsapblq", a.left, b.right)
        second = einsum("aketspj,bsqj->etsakpbq", a.right, b.left)
        both = first[:, :, :, :, None] * second[:, :, :, :, :, :, :, None]  # e t s a k p b l q
        return both.sum((1, 2, 5, 8)).transpose(1, 3, 0, 2, 4)
    inputs = _gram(a.left, b.left)  # s a p b q
    outputs = einsum("aketspj,bletsqj->esakpblq", a.right, b.right)
    return (inputs[None, :, :, None, :, :, None, :] * outputs).sum((1, 4, 7)).transpose(1, 3, 0, 2, 4)


def _gram(a: Left, b: Left) -> Float[Array, "s a p b q"]:
    if isinstance(a, Rows) and isinstance(b, Rows):
        lay = lambda x, y: (x.swapaxes(0, 1)[..., None, None], y.swapaxes(0, 1)[:, None, None])
        (i, j), (f, g) = lay(a.index, b.index), lay(a.factor, b.factor)
        return (i == j) * (f * g)
    assert not isinstance(a, Rows) and not isinstance(b, Rows), "a group is of rows or of dense factors throughout"
    return einsum("aspi,bsqi->sapbq", a, b)
