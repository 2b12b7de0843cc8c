"""Expectations of one function as curves over the variance of its Gaussian, found on the host once a function.

Hermite coefficients a_k(q) = E φ(√q z) He_k(z)/√k! and means E φ(√q z) are analytic in log q whatever φ is: the heat
equation is smooth at every q > 0. So a few variances an octave give all of them, and what a compiled program needs to
know of φ is an array of numbers. It holds no user's function, no search for kinks and no adaptive panels, and functions
that differ share it.

Everything here is NumPy in double precision but the user's function, which is compiled alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.quadrature import ORDERS, WEIGHTS
from tensorprog.functions.series import (
    TERMS,
    far_edges,
    feature_places,
    hermite_sums,
    nodes_between,
    standard_edges,
)

Array = np.ndarray
SIZES = 8
"""Coefficients of |φ| that are kept, for the size of what is summed."""
LADDER = (32, 64, 96, TERMS)
"""Numbers of terms of a series that programs are compiled for."""
PANELS = (4, 16, 64, 256)
"""Numbers of panels of log σ that programs are compiled for."""
OFF = 3e-14
"""How far a curve may be off, relative to √E φ² or E |φ|, before its panel is halved."""
REFUSED = 1e-9
"""How far off it is no curve at all."""
_HALVINGS, _CUTS = 24, 4
_MOST = 400
"""Panels that one variance may take, of z; a function that needs more goes another way."""
_POINTS = (1024, 16384)
_EPS = float(np.finfo(float).eps)
KNOTS = np.cos(np.pi * (np.arange(16) + 0.5) / 16)[::-1].copy()
"""Chebyshev's nodes, at which a curve is known in each panel."""
_TRIED = np.array([-0.913, -0.297, 0.411])


class NoCurve(Exception):
    """A function whose expectations are not smooth, not known or not there: poles, fast growth, too many kinks."""


# ---- the function


@lru_cache(maxsize=128)
def _compiled(fns: tuple[Callable, ...], shapes: tuple[tuple[int, ...], ...], points: int) -> Any:
    def at(z: Any, *numbers: Any) -> Any:
        return jnp.stack([jnp.asarray(fn(z, *numbers), jnp.float64).reshape(()) for fn in fns])

    like = [jax.ShapeDtypeStruct((points,), jnp.float64), *(jax.ShapeDtypeStruct(s, jnp.float64) for s in shapes)]
    with jax.disable_jit(False):
        return jax.jit(jax.vmap(at, (0, *[None] * len(shapes)))).lower(*like).compile()


@dataclass(frozen=True)
class Known:
    """Functions of one variable that share their numbers, which are known; compared by content."""

    fns: tuple[Callable, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    data: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, fns: tuple[Callable, ...], numbers: Sequence[Any]) -> Known:
        own = [np.asarray(n, np.float64) for n in numbers]
        return cls(fns, tuple(n.shape for n in own), tuple(n.tobytes() for n in own))

    @property
    def numbers(self) -> tuple[Array, ...]:
        return tuple(np.frombuffer(d).reshape(s) for d, s in zip(self.data, self.shapes, strict=True))

    def __call__(self, z: Array) -> Array:
        """(points, m)."""
        size = _POINTS[0] if z.size <= _POINTS[0] else _POINTS[1]
        with jax.enable_x64(True), np.errstate(all="ignore"):
            run = _compiled(self.fns, self.shapes, size)
            parts = np.pad(z, (0, -z.size % size), mode="edge").reshape(-1, size)
            return np.concatenate([np.asarray(run(part, *self.numbers)) for part in parts])[: z.size]


# ---- panels of z, at many deviations


class _Pieces(NamedTuple):
    """Panels: the deviation that each is of, its ends, samples (panels, m, nodes) of φ(σz) times a power of the
    density, the part of their error that halving reduces."""

    row: Array
    left: Array
    right: Array
    samples: Array
    error: Array

    @property
    def half(self) -> Array:
        return (self.right - self.left)[:, None] / 2


def _pieces(known: Known, power: float, row: Array, left: Array, right: Array, deviation: Array) -> _Pieces:
    z = nodes_between(left, right)
    values = known((deviation[row, None] * z).reshape(-1)).reshape(*z.shape, -1)
    with np.errstate(all="ignore"):
        density = (np.exp(-z * z / 2) / np.sqrt(2 * np.pi)) ** power
        samples = np.where(density[..., None] > 0, values * density[..., None], 0.0)
    if not np.isfinite(samples).all():
        raise NoCurve("it is infinite or undefined somewhere")
    samples = np.moveaxis(samples, -1, 1)
    sums = np.abs(samples @ ORDERS.T)
    largest = np.abs(samples).max(-1)
    last = np.maximum(sums[..., 3:].sum(-1) - 16 * _EPS * largest, 0.0)
    middle = sums[..., :3].sum(-1)
    error = 10 * last * np.minimum(1.0, last / np.where(middle > 0, middle, 1.0)) ** 2
    return _Pieces(row, left, right, samples, (right - left)[:, None] / 2 * error)


def _resolved(known: Known, power: float, deviation: Array) -> _Pieces:
    """Panels of [-reach, reach] on which each function times the density's power is a polynomial, to rounding."""
    places = feature_places(known.fns, known.numbers, np.dtype(float), np)
    own = standard_edges(places, deviation, np)
    base = far_edges()
    edges = np.sort(np.concatenate([np.broadcast_to(base, (len(deviation), len(base))), own], 1), 1)
    row, piece = np.nonzero(np.diff(edges) > 0)
    found = _pieces(known, power, row, edges[row, piece], edges[row, piece + 1], deviation)
    for _ in range(_HALVINGS):
        size = np.zeros((len(deviation), found.samples.shape[1]))
        np.add.at(size, found.row, found.half * (np.abs(found.samples) @ WEIGHTS))
        rough = (found.error > 0.25 * _EPS * size[found.row]).any(1)
        if not rough.any():
            return found
        if len(found.row) + rough.sum() > _MOST * len(deviation):
            raise NoCurve("it varies too fast")
        middle = (found.left[rough] + found.right[rough]) / 2
        ends = np.concatenate([found.left[rough], middle]), np.concatenate([middle, found.right[rough]])
        new = _pieces(known, power, np.tile(found.row[rough], 2), *ends, deviation)
        found = _Pieces(*(np.concatenate([old[~rough], more]) for old, more in zip(found, new, strict=True)))
    raise NoCurve("it has a pole, or something like it")


def _by_row(pieces: _Pieces, values: Array, rows: int) -> Array:
    """Sums of values (panels, …) over the panels of each deviation."""
    total = np.zeros((rows, *values.shape[1:]))
    np.add.at(total, pieces.row, values)
    return total


# ---- what is kept of a function at each deviation


def sides(known: Known, deviation: Array) -> Array:
    """(rows, m, TERMS + SIZES + 3): coefficients of φ, of |φ|; E φ², by how much a relative error of the argument is
    amplified, and the error of all coefficients over √E φ²."""
    pieces = _resolved(known, 0.5, deviation)
    rows = len(deviation)
    square = _by_row(pieces, pieces.half * (pieces.samples**2 @ WEIGHTS), rows)
    error = _by_row(pieces, pieces.error, rows)
    coefficients, sizes = hermite_sums(pieces.row, pieces.left, pieces.right, pieces.samples, rows, SIZES)
    positive = np.where(square > 0, square, 1.0)
    strain = np.sqrt((np.arange(TERMS) * coefficients**2).sum(-1) / positive)
    rest = np.stack([square, strain, error / np.sqrt(positive)], -1)
    return np.concatenate([coefficients, sizes, rest], -1)


def means(known: Known, deviation: Array) -> Array:
    """(rows, m, 4): E φ, E |φ|, the strain of the argument's rounding, the error over E |φ|."""
    pieces = _resolved(known, 1.0, deviation)
    rows = len(deviation)
    value, size = (_by_row(pieces, pieces.half * (x @ WEIGHTS), rows) for x in (pieces.samples, np.abs(pieces.samples)))
    z = nodes_between(pieces.left, pieces.right)
    strain = (np.abs(np.diff(pieces.samples)) * np.abs(z[:, None, 1:])).sum(-1)
    error = _by_row(pieces, pieces.error, rows) / np.where(size > 0, size, 1.0)
    return np.stack([value, size, _by_row(pieces, strain, rows), error], -1)


def _off(kind: Callable, got: Array, true: Array) -> Array:
    """(rows, m): how far an interpolated line is off, relative to what it is of."""
    if kind is sides:
        square = np.maximum(true[..., TERMS + SIZES], np.finfo(float).tiny)
        apart = np.sqrt(((got - true)[..., :TERMS] ** 2).sum(-1) / square)
        return np.maximum(apart, np.abs(got - true)[..., TERMS + SIZES] / square)
    size = np.maximum(true[..., 1], np.finfo(float).tiny)
    return np.abs(got - true)[..., 0] / size


def lagrange(t: Any, xp: Any) -> Any:
    """(…, 16): the polynomials that are 1 at one of KNOTS and 0 at the others."""
    apart = KNOTS[:, None] - KNOTS + np.eye(16)
    other = t[..., None, None] - xp.asarray(KNOTS, t.dtype)  # (…, 1, 16)
    factors = xp.where(np.eye(16, dtype=bool), 1.0, other / xp.asarray(apart, t.dtype))
    return factors.prod(-1)


class _Panel(NamedTuple):
    left: float
    right: float
    lines: Array


@dataclass(eq=False)
class Curve:
    """Lines of one kind of some functions: panels of log₂ σ by octave, found where they are first asked for."""

    known: Known
    kind: Callable[[Known, Array], Array]
    octaves: dict[int, list[_Panel]] = field(default_factory=dict)
    zero: Array | None = None

    def panels(self, low: float, high: float) -> list[_Panel]:
        """The panels of all octaves from low to high, log₂ of deviations.

        **Raises:** `NoCurve`.
        """
        found: list[_Panel] = []
        for octave in range(int(np.floor(low)), int(np.floor(high)) + 1):
            if octave not in self.octaves:
                self.octaves[octave] = self._found(float(octave), octave + 1.0, _CUTS)
            found += self.octaves[octave]
        return found

    def _found(self, left: float, right: float, cuts: int) -> list[_Panel]:
        places = np.concatenate([KNOTS, _TRIED])
        lines = self.kind(self.known, 2 ** ((left + right) / 2 + (right - left) / 2 * places))
        own, true = lines[:16], lines[16:]
        got = np.tensordot(lagrange(_TRIED, np), own, 1)
        off = _off(self.kind, got, true).max(0)
        if (off > OFF).any() and cuts:
            middle = (left + right) / 2
            return self._found(left, middle, cuts - 1) + self._found(middle, right, cuts - 1)
        own[..., -1] += 2 * off
        if not (own[..., -1] < REFUSED).all():
            raise NoCurve("its expectations are not known well enough")
        return [_Panel(left, right, own)]

    def at_zero(self) -> Array:
        """The line of variance 0; NaN where a function is not continuous there."""
        if self.zero is None:
            beside = self.known(np.array([0.0, 1e-9, -1e-9]))
            value = beside[0]
            line = np.zeros((len(value), TERMS + SIZES + 3 if self.kind is sides else 4))
            line[:, 0] = value
            if self.kind is sides:
                line[:, TERMS], line[:, TERMS + SIZES] = np.abs(value), value**2
            else:
                line[:, 1] = np.abs(value)
            apart = np.abs(beside[1:] - value).max(0)
            line[~(apart <= 1e-6 * (np.abs(value) + 1))] = np.nan
            self.zero = line
        return self.zero


@lru_cache(maxsize=512)
def curve(known: Known, kind: Callable[[Known, Array], Array]) -> Curve:
    """The curve of these functions, one object for equal ones."""
    return Curve(known, kind)


# ---- as arrays of one shape


def tables(curves: Sequence[Curve], ranges: Sequence[tuple[float, float]], accepted: float) -> Array:
    """(curves, 16 panels + 1, m, 2 + columns): curves over their ranges of log₂ σ as arrays of one shape.

    A row is a knot: the ends of its panel and its line; the last row is the line of variance 0. Functions that a curve
    lacks are 0. Of series only as many terms as leave out no more than `accepted`, where so many suffice.

    **Raises:** `NoCurve`.
    """
    panels = [c.panels(*r) for c, r in zip(curves, ranges, strict=True)]
    most = max(map(len, panels))
    if most > PANELS[-1]:
        raise NoCurve("it needs too many panels")
    count = next(p for p in PANELS if p >= most)
    functions = max(len(c.known.fns) for c in curves)
    terms = 0
    if curves[0].kind is sides:
        terms = max(_terms(own, *r, accepted) for own, r in zip(panels, ranges, strict=True))
    found = []
    for c, own in zip(curves, panels, strict=True):
        lines = np.concatenate([*(p.lines for p in own), c.at_zero()[None]])
        if terms:
            lines = np.concatenate([lines[..., :terms], lines[..., TERMS:]], -1)
        whole = np.zeros((16 * count + 1, functions, 2 + lines.shape[-1]))
        whole[..., :2] = np.inf
        whole[: 16 * len(own), :, :2] = np.repeat([(p.left, p.right) for p in own], 16, 0)[:, None]
        whole[: 16 * len(own), : lines.shape[1], 2:] = lines[:-1]
        whole[-1, : lines.shape[1], 2:] = lines[-1]
        found.append(whole)
    return np.stack(found)


def _terms(panels: Sequence[_Panel], low: float, high: float, accepted: float) -> int:
    """How many terms leave out no more than `accepted` of E φ² at the knots around the range."""
    knots = np.concatenate([(p.left + p.right) / 2 + (p.right - p.left) / 2 * KNOTS for p in panels])
    first, last = np.searchsorted(knots, low) - 1, np.searchsorted(knots, high)
    lines = np.concatenate([p.lines for p in panels])[max(first, 0) : last + 1]
    squares, whole = lines[..., :TERMS] ** 2, lines[..., TERMS + SIZES]
    beyond = np.maximum(whole - squares.sum(-1), 0.0)
    for terms in LADDER:
        tail = beyond + squares[..., terms:].sum(-1)
        if (tail <= accepted / 4 * whole).all():
            return terms
    return LADDER[-1]
