"""Gaussian expectations of arbitrary functions of one variable, each with a bound, and their derivatives.

Values come from `nested`. Derivatives follow from Gaussian integration by parts (Price, Stein), so that nothing
differentiates through searches and loops, and are expectations of the same kind, which have derivatives again:

    d/dc E phi psi = E phi' psi'
    d/da E phi psi = (E u phi'(u) psi(v) - c E phi' psi') / (2a)
    d/dn E phi psi = E (d phi / dn) psi              n one of phi's numbers

JAX's phi' knows nothing of phi's jumps, whose delta functions `jumps` adds. A jump's place is taken as fixed: a number
that moves a jump (not: a kink) has no derivative through it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.errors import ProgramError
from tensorprog.functions import jumps
from tensorprog.functions.derived import Entries, Partial, Repeated, Slope, Times, width
from tensorprog.functions.nested import expectations, sides
from tensorprog.functions.quadrature import HOPELESS, Functions, density, entries, nodes, panel, reach
from tensorprog.functions.series import Side, feature_places, resolve, standard_edges

__all__ = ["mean", "means", "pair", "pairs", "sides"]

_Numbers = tuple[Array, ...]
Given = tuple[Side, Side] | None
ENTRIES = 512
"""Entries of an array in which expectations are differentiated."""


def pairs(
    phis: Functions,
    psis: Functions,
    a: Array,
    b: Array,
    c: Array,
    phi_numbers: _Numbers = (),
    psi_numbers: _Numbers = (),
    given: Given = None,
) -> tuple[Array, Array]:
    """(values, bounds), each (*shape, m): `pair` of several functions that share their numbers, at the price of one.

    `given`: `sides` of phis at a and of psis at b, where they were made before.
    """
    dtype = jnp.result_type(a, b, c)
    a, b, c = (jnp.asarray(x, dtype) for x in (a, b, c))
    rank = max(a.ndim, b.ndim, c.ndim)
    a, b, c = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (a, b, c))
    values, bounds = _pairs(phis, psis, a, b, c, tuple(phi_numbers), tuple(psi_numbers), lax.stop_gradient(given))
    return values, lax.stop_gradient(bounds)


def pair(
    phi: Callable, psi: Callable, a: Array, b: Array, c: Array, phi_numbers: _Numbers = (), psi_numbers: _Numbers = ()
) -> tuple[Array, Array]:
    """E phi(u) psi(v) for zero-mean Gaussian (u, v) with Var u = a, Var v = b, Cov(u, v) = c, and a bound of its error.

    **Arguments:** phi, psi: static, hashable functions `fn(z, *numbers)` of 0-d values that JAX can trace; a, b, c: any
    shapes that broadcast, a and b best left unbroadcast (what depends on one of them is done once for each of its
    entries); numbers: 0-d arrays.

    **Returns:** (value, bound), of the broadcast shape and dtype. |value - E| <= bound, `inf` where the integral
    does not exist or overflows. The value is differentiable, again and again; the bound has no derivative.
    """
    values, bounds = pairs((phi,), (psi,), a, b, c, phi_numbers, psi_numbers)
    return values[..., 0], bounds[..., 0]


def mean(phi: Callable, a: Array, numbers: _Numbers = ()) -> tuple[Array, Array]:
    """E phi(u), u ~ N(0, a), and a bound of its error; as `pair`."""
    values, bounds = means((phi,), a, numbers)
    return values[..., 0], bounds[..., 0]


def means(phis: Functions, a: Array, numbers: _Numbers = ()) -> tuple[Array, Array]:
    """(values, bounds), each (*shape, m): `mean` of several functions that share their numbers."""
    a = jnp.asarray(a)
    values, bounds = (x.reshape(*a.shape, entries(phis)) for x in _means(phis, a.reshape(-1), tuple(numbers)))
    return values, lax.stop_gradient(bounds)


class _Columns:
    """Pairs of functions to integrate together, each kept once."""

    def __init__(self, phis: Functions, psis: Functions):
        self.pairs = list(zip(phis, psis, strict=True))

    def index(self, phi: Callable, psi: Callable) -> int:
        if (phi, psi) not in self.pairs:
            self.pairs.append((phi, psi))
        return self.pairs.index((phi, psi))

    def split(self, values: Array) -> list[Array]:
        """The entries of each pair."""
        return jnp.split(values, np.cumsum([width(phi) for phi, _ in self.pairs])[:-1], -1)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _pairs(
    phis: Functions,
    psis: Functions,
    a: Array,
    b: Array,
    c: Array,
    phi_numbers: _Numbers,
    psi_numbers: _Numbers,
    given: Given,
) -> tuple[Array, Array]:
    """(value, bound), each (*shape, m): E phi_i(u) psi_i(v)."""
    return expectations(phis, psis, a, b, c, phi_numbers, psi_numbers, given)


def _some(tangent) -> bool:
    """Whether a tangent is an array, not JAX's symbolic zero."""
    return isinstance(tangent, jax.Array)


def _half_slope(stein: Array, delta: Array, covariance_part: Array, curved: Array, variance: Array) -> Array:
    """d/d variance: Stein's quotient, and half the second derivative's mean where the variance is too small for it."""
    least = jnp.finfo(variance.dtype).eps
    safe = jnp.where(variance > least, variance, 1.0)
    return jnp.where(variance > least, (stein + delta - covariance_part) / (2 * safe), curved / 2)


@partial(_pairs.defjvp, symbolic_zeros=True)
def _pairs_jvp(phis, psis, primals, tangents):
    a, b, c, phi_numbers, psi_numbers, _ = primals
    da, db, dc, d_phi, d_psi, _ = tangents
    columns = _Columns(phis, psis)
    plans = []  # for each (phi, psi): what its tangent is made of
    for phi, psi in zip(phis, psis, strict=True):
        plan = {}
        if _some(da) or _some(db) or _some(dc):
            plan["c"] = columns.index(Slope(phi), Slope(psi))
        if _some(da):
            plan["a"] = columns.index(Times(Slope(phi)), psi), columns.index(Slope(Slope(phi)), psi)
        if _some(db):
            plan["b"] = columns.index(phi, Times(Slope(psi))), columns.index(phi, Slope(Slope(psi)))
        moved = [(columns.index(partial, other), d) for partial, other, d in _moved(phi, psi, d_phi)]
        moved += [(columns.index(other, partial), d) for partial, other, d in _moved(psi, phi, d_psi)]
        plans.append((plan, moved))
    all_phis, all_psis = (tuple(fns) for fns in zip(*columns.pairs, strict=True))
    values, bounds = _pairs(all_phis, all_psis, a, b, c, phi_numbers, psi_numbers, None)
    parts = columns.split(values)
    wide = lambda x: x[..., None]

    def tangent(phi, psi, plan, moved):
        total = jnp.zeros((*values.shape[:-1], width(phi)), values.dtype)
        if "c" in plan:
            price = parts[plan["c"]] + jumps.price(phi, psi, a, b, c, phi_numbers, psi_numbers)
            total = total + (wide(dc) * price if _some(dc) else 0.0)
        if "a" in plan:
            stein, curved = (parts[k] for k in plan["a"])
            delta = jumps.stein(phi, psi, a, b, c, phi_numbers, psi_numbers)
            total = total + wide(da) * _half_slope(stein, delta, wide(c) * price, curved, wide(a))
        if "b" in plan:
            stein, curved = (parts[k] for k in plan["b"])
            delta = jumps.stein(psi, phi, b, a, c, psi_numbers, phi_numbers)
            total = total + wide(db) * _half_slope(stein, delta, wide(c) * price, curved, wide(b))
        for k, d in moved:
            total = total + _along(parts[k], d)
        return total

    out = [tangent(phi, psi, *plan) for phi, psi, plan in zip(phis, psis, plans, strict=True)]
    m = entries(phis)
    value, bound = values[..., :m], bounds[..., :m]
    return (value, bound), (jnp.concatenate(out, -1), jnp.zeros_like(bound))


def _moved(phi: Callable, psi: Callable, tangents) -> Iterator[tuple[Callable, Callable, Array]]:
    """phi's derivatives in its numbers, psi beside each, and the numbers' tangents, where there are any."""
    for k, d in enumerate(tangents):
        if _some(d):
            partial = _partial(phi, k, d)
            yield partial, Repeated(psi, d.size) if d.ndim else psi, d


def _partial(phi: Callable, k: int, number: Array) -> Callable:
    """phi's derivative in a number; of an array's entries each is an expectation."""
    if number.size > ENTRIES:
        raise ProgramError(
            f"an expectation is not differentiated in an array of {number.size} numbers that its function holds: each "
            f"is an integral of its own, and {ENTRIES} are taken; hold a shorter array, or keep this one constant by "
            "jax.lax.stop_gradient or as a NumPy array"
        )
    return Entries(phi, k, number.size) if number.ndim else Partial(phi, k)


def _along(parts: Array, d: Array) -> Array:
    """Derivatives in the entries of a number, times its tangent."""
    d = d.astype(parts.dtype)
    return (parts.reshape(*parts.shape[:-1], -1, d.size) * d.reshape(-1)).sum(-1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _means(phis: Functions, a: Array, numbers: _Numbers) -> tuple[Array, Array]:
    """(value, bound), each (inputs, m): E phi_i(u), a: (inputs,)."""
    deviation = jnp.sqrt(a)
    own = standard_edges(feature_places(phis, numbers, a.dtype), deviation)
    panels = resolve(phis, numbers, deviation, own)
    z = nodes(panels.left, panels.right)
    samples = panels.samples * jnp.sqrt(density(z))[..., None, :]
    value, size, error = jnp.moveaxis(panel(samples, panels.width).sum(1), -1, 0)
    far = jnp.abs(samples[..., 0]) + jnp.abs(samples[..., -1])
    outermost = (jnp.abs(panels.left) == reach(a.dtype)) | (jnp.abs(panels.right) == reach(a.dtype))
    beyond = jnp.where((outermost & (panels.width > 0))[..., None], far, 0.0).sum(1)
    # The argument's own rounding: where a function is steep, it outweighs that of the sum.
    strain = jnp.abs(jnp.diff(samples)) * jnp.abs(z[..., None, 1:])
    strain = jnp.where((panels.width > 0)[..., None], strain.sum(-1), 0.0).sum(1)
    bound = error + beyond + jnp.finfo(a.dtype).eps * (40 * size + strain)
    return value, jnp.where(
        jnp.isfinite(value) & (bound <= HOPELESS * size + jnp.finfo(a.dtype).tiny ** 0.5), bound, jnp.inf
    )


@partial(_means.defjvp, symbolic_zeros=True)
def _means_jvp(phis, primals, tangents):
    a, numbers = primals
    da, d_numbers = tangents
    more: list[Callable] = list(phis)
    if _some(da):
        more += [Times(Slope(phi)) for phi in phis] + [Slope(Slope(phi)) for phi in phis]
    moving = [(k, d) for k, d in enumerate(d_numbers) if _some(d)]
    more += [_partial(phi, k, d) for k, d in moving for phi in phis]
    values, bounds = _means(tuple(more), a, numbers)
    m = entries(phis)
    sizes = [m] * (3 if _some(da) else 1) + [m * d.size for _, d in moving]
    value, *rest = jnp.split(values, np.cumsum(sizes)[:-1], -1)
    tangent = jnp.zeros_like(value)
    if _some(da):
        stein, curved, *rest = rest
        delta = jnp.concatenate([jumps.stein_mean(phi, a, numbers) for phi in phis], -1)
        tangent = tangent + da[:, None] * _half_slope(stein, delta, jnp.zeros_like(stein), curved, a[:, None])
    for part, (_, d) in zip(rest, moving, strict=True):
        tangent = tangent + _along(part, d)
    bound = bounds[:, :m]
    return (value, bound), (tangent, jnp.zeros_like(bound))
