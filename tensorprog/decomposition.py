"""The NTK as moments of the backward program: Θ = Σ over pairs of uses of a parameter, D · C (Tensor Programs II).

The second road to the NTK beside differentiation, and the only one where gradient independence fails. It is an exact
identity at finite width; here its moments are taken in the limit, all inputs together as one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tensorprog.interpret.particles import Limit
from tensorprog.ir import Bias, VectorType, is_readout, rows
from tensorprog.limits import Options, expected
from tensorprog.program import Program
from tensorprog.transform.batching import together
from tensorprog.transform.passes import AVERAGE, Use, passes

Array = jax.Array


Key = tuple[str, bool]
"""A parameter, and whether a use of the pair is transposed: of a readout, its entries."""


@dataclass(frozen=True)
class Terms:
    """Reads T_p of each parameter, (B, B, *S, *S) with the output's sites S.

    A use's gradient is left rightᵀ, so a pair of uses gives (left · left̄)(right · right̄). A weight with a window has a
    matrix for each offset, so the offsets of right agree (the sites too where it has them), and its fan is larger by
    them. With widths of different
    ratios a transposed use counts √(n/m), n/m where the output is an average, and an average's NTK is taken times the
    width of ratio 1.
    """

    uses: tuple[Use, ...]
    sites: int
    power: int

    def __call__(self, limit: Limit) -> dict[Key, Array]:
        terms: dict[Key, Array] = {}
        for use in self.uses:
            for other in self.uses:
                if use.parameter == other.parameter:
                    found = self.term(limit, use, other) * self.factor(limit, use, other)
                    key = use.parameter, use.transposed or other.transposed
                    terms[key] = terms[key] + found if key in terms else found
        return terms

    def term(self, limit: Limit, use: Use, other: Use) -> Array:
        """Σ over the uses' sites; a bias that has sites has entries of its own at each."""
        left, lead = self.moments(limit, use.left, other.left, dy=not use.transposed, dy_bar=not other.transposed)
        if use.right is None or other.right is None:
            found = jnp.einsum("blscms->blcm", left)
        else:
            right, more = self.moments(limit, use.right, other.right, dy=use.transposed, dy_bar=other.transposed)
            lead = lead or more
            found = (left * self.windows(limit, use, left, right)).sum((2, 5))
        batch = found.shape[0]
        return jnp.swapaxes(found, 1, 2).reshape(batch, batch, *lead, *lead)

    def windows(self, limit: Limit, use: Use, left: Array, right: Array) -> Array:
        """E right · right̄ as (B, S, s, B, S′, t), s and t the sites of left: the mean over offsets, 0 between sites."""
        weight = next(w for w in limit.structure.weights if w.name == use.parameter)
        places, offsets = math.prod(weight.sites), math.prod(weight.window)
        if offsets > 1:
            split = (*right.shape[:2], -1, offsets, *right.shape[3:5], right.shape[5] // offsets, offsets)
            right = jnp.einsum("blsocmto->blscmt", right.reshape(split)) / offsets
        if places > 1:
            same = jnp.tile(jnp.eye(places, dtype=right.dtype), tuple(left.shape[a] // places for a in (2, 5)))
            right = right * same[:, None, None, :]
        return right

    def moments(self, limit: Limit, x: int, y: int, *, dy: bool, dy_bar: bool) -> tuple[Array, tuple[int, ...]]:
        """E x ȳ as (B, S, s, B, S′, t), the output's sites 1 for what has none; and the output's sites."""
        values = limit.second_moments(x, y)
        rank = limit.values[x].ndim - 1
        own, other = values.shape[:rank], values.shape[rank:]

        def split(shape: tuple[int, ...], led: bool) -> tuple[int, int, int]:
            count = self.sites if led else 0
            return shape[0], math.prod(shape[1 : 1 + count]), math.prod(shape[1 + count :])

        lead = own[1 : 1 + self.sites] if dy else other[1 : 1 + self.sites] if dy_bar else ()
        return values.reshape(*split(own, dy), *split(other, dy_bar)), lead

    def factor(self, limit: Limit, use: Use, other: Use) -> Array:
        structure = limit.structure
        parameter = next(p for p in structure.parameters if p.name == use.parameter)
        width = rows(parameter)
        transposed = use.transposed + other.transposed
        if transposed and not isinstance(parameter, Bias) and isinstance(width, int):  # the readout's entries
            width, transposed = parameter.cols, 0
        ratios = {name: limit.number(num) for name, num in structure.widths}
        factor = jnp.ones((), limit.dtype)
        if self.power == AVERAGE and isinstance(width, str):
            factor = factor / ratios[width]
        if transposed and not isinstance(parameter, Bias):
            assert isinstance(width, str) and isinstance(parameter.cols, str), "transposes are between widths"
            factor = factor * (ratios[width] / ratios[parameter.cols]) ** (self.power * transposed / 2)
        return factor


def one_row(program: Program) -> Program:
    """The program with one row to every readout: rows are independent, so the kernels are the same."""
    structure = program.structure
    types = tuple(
        replace(t, dim=1) if isinstance(t, VectorType) and t.space == "output" else t for t in structure.types
    )
    weights = tuple(replace(w, rows=1) if isinstance(w.rows, int) else w for w in structure.weights)
    biases = tuple(replace(b, dim=1) if isinstance(b.dim, int) else b for b in structure.biases)
    return Program(replace(structure, types=types, weights=weights, biases=biases), program.leaves)


def backward_kernels(
    program: Program, output: int, arrays: tuple[Array, ...], weights: Array, options: Options
) -> tuple[Array, Array, Array, Array]:
    """(NNGP, NTK, their standard errors) of one output among all given inputs, each (N, N, *S, *S).

    T_p is lim Σ over pairs of uses of D · C, the NTK Σ weight_p T_p; of a Moment, times n. The NNGP is the variances'
    sum over the parameters that the output is read by, 0 for a Moment.

    **Raises:** `ProgramError` for wide outputs.
    """
    structure = program.structure
    made = passes(one_row(program), output)
    size = arrays[0].shape[0] if arrays else 1
    batch = together(made.program, size, tuple(dict.fromkeys(end for use in made.uses for end in use.ends)))
    placed = tuple(
        replace(u, left=batch.places[u.left], right=None if u.right is None else batch.places[u.right])
        for u in made.uses
    )
    read = Terms(placed, len(made.lead), made.power)
    ends = tuple(batch.places.values())
    terms, errors, _ = expected(batch.program, tuple(a[None] for a in arrays), ends, read, options)
    if arrays:
        terms, errors = jax.tree.map(lambda a: a[0], (terms, errors))
    learned = {(p.name, t): w for p, w in zip(structure.parameters, weights, strict=True) for t in (False, True)}
    law = {(p.name, False): jnp.asarray(program.leaves[p.var.index]) for p in structure.parameters if is_readout(p)}
    law = {} if made.power == AVERAGE else law

    def total(values: dict[Key, Array], by: dict[Key, Array]) -> Array:
        zero = jnp.zeros_like(next(iter(values.values())))
        return sum((values[name] * by[name].astype(zero.dtype) for name in by if name in values), zero)

    return total(terms, law), total(terms, learned), total(errors, law), total(errors, learned)
