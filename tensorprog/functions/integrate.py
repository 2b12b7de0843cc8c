"""Expectations of functions of one to three standard Gaussians for numbers that are known, each with a bound.

NumPy decides where, a compiled function only evaluates: so nothing is compiled but the user's function, once. Pieces
end where the function does something (`signals`), and each is integrated in a variable that stands still at both ends,
z = e + w S(t) with S of order 6: kinks, logarithms and |z|^-½ at an end are then as smooth as anything. Panels are
halved where their Legendre coefficients say that they are too long. Beyond the last point that can be computed, a
growing integrand's logarithm goes on as a parabola.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erfcx, ndtri
from scipy.stats import qmc

from tensorprog.functions.peaks import peaks
from tensorprog.functions.quadrature import NODES, ORDERS, WEIGHTS
from tensorprog.functions.signals import signals

Array = np.ndarray
Lines = Callable[[Array], tuple[Array, Array]]
"""z (rows, m) -> what is computed on the way (rows, m, J), and values (rows, m)."""
END = 52.0
"""Deviations out: there the root of the density is about to underflow."""
POINTS = (512, 16384)
"""Points at which the compiled function is called, however many are wanted."""
_BASE = np.array([0.0, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 11.0, 15.0, 20.0, 27.0, 36.0])
_PARTS, _ROUNDS, _HALVINGS = 16, 17, 40
_CUBE, _CUBE_REACH = (61, 47), 12.0
EPS = float(np.finfo(np.float64).eps)


class Found(NamedTuple):
    """E fn, a bound of its error, E |fn|: (rows,), or numbers."""

    value: Any
    error: Any
    size: Any


class Effort(NamedTuple):
    """Grid points on which places are looked for, places kept, panels that a row may take."""

    grid: int
    places: int
    panels: int


ALONE, OUTER, INNER = Effort(1537, 192, 800), Effort(769, 16, 120), Effort(257, 12, 100)


# ---- the function


@lru_cache(maxsize=128)
def _compiled(fn: Callable[..., Any], dimensions: int, shapes: tuple[tuple[int, ...], ...], points: int) -> Any:
    run = jax.vmap(signals(fn), in_axes=(*[0] * dimensions, *[None] * len(shapes)))
    axes = [jax.ShapeDtypeStruct((points,), jnp.float64)] * dimensions
    numbers = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes]
    # Compiled ahead: a call would become part of a trace in progress.
    with jax.disable_jit(False):
        return jax.jit(run).lower(*axes, *numbers).compile()


class Known:
    """fn(z¹, …, *numbers) with its numbers known, at many points at once, in double precision."""

    def __init__(self, fn: Callable[..., Any], dimensions: int, numbers: tuple[Any, ...]):
        self.fn, self.dimensions = fn, dimensions
        self.numbers = tuple(np.asarray(n, np.float64) for n in numbers)

    def __call__(self, points: Array) -> tuple[Array, Array]:
        """(quantities (m, J), values (m,)) at points (dimensions, m)."""
        count = points.shape[1]
        size = POINTS[0] if count <= POINTS[0] else POINTS[1]
        if count == 0:
            return np.zeros((0, 1)), np.zeros(0)
        with jax.enable_x64(True), np.errstate(all="ignore"):
            if self.dimensions == 0:
                value = np.asarray(self.fn(*self.numbers), np.float64)
                return np.zeros((1, 0)), np.full(count, value)
            run = _compiled(self.fn, self.dimensions, tuple(n.shape for n in self.numbers), size)
            flat = np.pad(points, ((0, 0), (0, -count % size)), mode="edge").reshape(self.dimensions, -1, size)
            parts = [run(*flat[:, k], *self.numbers) for k in range(flat.shape[1])]
            return (
                np.concatenate([np.asarray(p[0], np.float64) for p in parts])[:count],
                np.concatenate([np.asarray(p[1], np.float64) for p in parts])[:count],
            )


# ---- places


def narrowed(lines: Lines, low: Array, high: Array, channel: Array, crosses: Array) -> Array:
    """Places (rows, K) within [low, high] where a quantity (-1: 1 / value) crosses 0, or is nearest to it."""
    for _ in range(_ROUNDS):
        z = low[..., None] + (high - low)[..., None] * np.linspace(0.0, 1.0, _PARTS + 1)
        found, values = lines(z.reshape(len(z), -1))
        found, values = found.reshape(*z.shape, found.shape[-1]), values.reshape(z.shape)
        with np.errstate(all="ignore"):
            own = np.take_along_axis(found, np.maximum(channel, 0)[..., None, None], -1)[..., 0]
            own = np.where((channel >= 0)[..., None], own, 1 / values)
        change = ((own[..., :-1] > 0) != (own[..., 1:] > 0)).argmax(-1)
        nearest = np.nan_to_num(np.abs(own), nan=np.inf).argmin(-1)
        first = np.where(crosses, change, np.maximum(nearest - 1, 0))
        last = np.where(crosses, change + 1, np.minimum(nearest + 1, _PARTS))
        low = np.take_along_axis(z, first[..., None], -1)[..., 0]
        high = np.take_along_axis(z, last[..., None], -1)[..., 0]
    z = np.stack([low, (low + high) / 2, high], -1)
    found, values = lines(z.reshape(len(z), -1))
    with np.errstate(all="ignore"):
        found = found.reshape(*z.shape, found.shape[-1])
        own = np.take_along_axis(found, np.maximum(channel, 0)[..., None, None], -1)[..., 0]
        own = np.where((channel >= 0)[..., None], own, 1 / values.reshape(z.shape))
    return np.take_along_axis(z, np.nan_to_num(np.abs(own), nan=np.inf).argmin(-1)[..., None], -1)[..., 0]


def _places(lines: Lines, rows: int, effort: Effort) -> tuple[Array, Array, Array]:
    """Places (rows, K), `END` where there are fewer, and the ends (rows,) of where the function can be computed."""
    half = np.concatenate([np.linspace(0.0, 9.0, effort.grid // 3)[:-1], np.geomspace(9.0, END, effort.grid // 6)])
    grid = np.concatenate([-half[:0:-1], half])
    grid[1:-1] += 0.31 * np.diff(grid)[1:] * np.sin(np.arange(1.0, len(grid) - 1))  # off round numbers
    found, values = lines(np.broadcast_to(grid, (rows, len(grid))))
    usable = ~np.isinf(values)
    low, high = np.where(usable, grid, END).min(1), np.where(usable, grid, -END).max(1)
    with np.errstate(all="ignore"):
        sound = np.isfinite(found)
        crossing = ((found[:, :-1] > 0) != (found[:, 1:] > 0)) & sound[:, :-1] & sound[:, 1:]
        sizes = np.abs(found)
        turning = (sizes[:, 1:-1] < sizes[:, :-2]) & (sizes[:, 1:-1] < sizes[:, 2:])
    turning = np.pad(turning & ~crossing[:, :-1] & ~crossing[:, 1:], ((0, 0), (0, 1), (0, 0)))
    distance = np.abs(grid[:-1])[None, :, None]
    score = np.where(crossing, distance, np.where(turning, distance + 0.5, np.inf)).reshape(rows, -1)
    kept = min(effort.places, score.shape[1])
    best = np.argpartition(score, kept - 1, axis=1)[:, :kept]
    real = np.isfinite(np.take_along_axis(score, best, 1))
    width = int(real.sum(1).max(initial=0))
    if width == 0:
        return np.full((rows, 0), END), low, high
    order = np.argsort(~real, axis=1, kind="stable")[:, :width]
    best, real = np.take_along_axis(best, order, 1), np.take_along_axis(real, order, 1)
    step, channel = best // found.shape[2], best % found.shape[2]
    crosses = np.take_along_axis(crossing.reshape(rows, -1), best, 1)
    after = np.where(crosses, step + 1, np.minimum(step + 2, len(grid) - 1))
    found = np.where(real, narrowed(lines, grid[step], grid[after], channel, crosses), END)
    found = np.where(np.abs(found) < 1e-14, 0.0, found)  # a bisection ends beside 0, and a pole may be there
    # |z - 1| turns where z - 1 is 0, and the latter is known to the last digit.
    near = np.abs(found[:, :, None] - found[:, None, :]) <= 1e-10 * (1 + np.abs(found[:, :, None]))
    return np.where((near & (crosses & real)[:, None, :]).any(2) & ~crosses, END, found), low, high


# ---- panels


def _half(z: Array) -> Array:
    """The root of the density: applied twice, it lets a function grow as far as it can be computed."""
    return np.exp(-z * z / 4) / (2 * math.pi) ** 0.25


def _ease(t: Array) -> Array:
    """S: from 0 to 1, with its first five derivatives 0 at both ends; used up to 1/2."""
    return t**6 * (462 + t * (-1980 + t * (3465 + t * (-3080 + t * (1386 - 252 * t)))))


class _Rows(NamedTuple):
    """What is integrated: lines, their number, and where values are not the lines' own, values with errors and
    sizes."""

    lines: Lines
    count: int
    measured: Callable[[Array], Found] | None = None


def _panels(own: _Rows, row: Array, first: Array, width: Array, left: Array, right: Array) -> Array:
    """(panels, 4): integral, size, error that halving reduces, error that it does not; ends left and right in t."""
    t = ((left + right)[:, None] + (right - left)[:, None] * NODES) / 2
    z = np.where(t < 0.5, first + width * _ease(t), first + width - width * _ease(1 - t))
    slope = width * 2772 * (t * (1 - t)) ** 5
    more = None
    if own.measured is None:
        values = _by_row(own, row, z)
    else:
        values, *more = (x.reshape(z.shape) for x in own.measured(z.reshape(-1)))
    with np.errstate(all="ignore"):
        root = _half(z)
        infinite = np.isinf(values)
        dense = np.where(infinite, 0.0, values) * root * root
        samples = np.where(slope > 0, dense * slope, 0.0)
        half = (right - left) / 2
        size = np.abs(samples)
        sums = samples @ ORDERS.T
        middle = np.abs(sums[:, :3]).sum(1)
        last = np.maximum(np.abs(sums[:, 3:]).sum(1) - 16 * EPS * size.max(1), 0.0)
        error = 10 * last * np.minimum(1.0, last / np.where(middle > 0, middle, 1.0)) ** 2
        # A node that a pole lies on, to rounding, counts for twice as much as those beside it.
        beside = np.maximum(np.pad(size[:, 1:], ((0, 0), (0, 1))), np.pad(size[:, :-1], ((0, 0), (1, 0))))
        lost = 2 * (infinite * beside) @ WEIGHTS
        # The argument's own rounding, where the function is steep.
        strain = EPS * np.abs(np.diff(dense)) * np.abs(z[:, 1:])
        fixed = half * lost + np.where(np.isfinite(strain) & (slope[:, 1:] > 0), strain, 0.0).sum(1)
        total = size @ WEIGHTS
        if more is not None:
            errors, sizes = (np.where(slope > 0, x * root * root * slope, 0.0) @ WEIGHTS for x in more)
            total, fixed = sizes, fixed + half * errors
        return np.stack([half * (samples @ WEIGHTS), half * total, half * error, fixed], 1)


def _by_row(own: _Rows, row: Array, z: Array) -> Array:
    """Values at z (panels, nodes) of the lines that panels belong to, padded to one count a row."""
    counts = np.bincount(row, minlength=own.count)
    order = np.argsort(row, kind="stable")
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.zeros((own.count, counts.max(), z.shape[1]))
    padded[row[order], place] = z[order]
    values = own.lines(padded.reshape(own.count, -1))[1].reshape(padded.shape)
    found = np.empty_like(z)
    found[order] = values[row[order], place]
    return found


def _tails(lines: Lines, end: Array, sign: float) -> tuple[Array, Array]:
    """(rows,): the integral beyond `end` if the integrand's logarithm goes on as a parabola, and an error."""

    def beyond(step: float) -> Array:
        z = end[:, None] - sign * step * np.arange(3.0)
        values = lines(z)[1]
        with np.errstate(all="ignore"):
            logs = np.log(np.abs(values)) - z * z / 2
            slope = -(1.5 * logs[:, 0] - 2 * logs[:, 1] + 0.5 * logs[:, 2]) / step
            bend = -(logs[:, 0] - 2 * logs[:, 1] + logs[:, 2]) / step**2
            last = np.sign(values[:, 0]) * np.exp(logs[:, 0]) / math.sqrt(2 * math.pi)
            flat = np.where(slope > 0, 1 / slope - bend / slope**3, np.inf)
            curved = np.sqrt(math.pi / (2 * bend)) * erfcx(slope / np.sqrt(2 * bend))
            return np.where(last != 0, last * np.where(bend > 1e-9, curved, flat), 0.0)

    far, coarser = beyond(0.5), beyond(1.0)
    with np.errstate(all="ignore"):
        return far, np.where(np.isfinite(far), 4 * np.abs(far - coarser), np.inf)


class _Pieces(NamedTuple):
    """Panels: the row that each is of, where its piece begins and how wide that is, its ends in the piece."""

    row: Array
    first: Array
    width: Array
    left: Array
    right: Array


def _totals(own: _Rows, row: Array, measures: Array) -> tuple[Array, Array, Array, Array]:
    value, size, error, fixed = (np.bincount(row, measures[:, k], own.count) for k in range(4))
    return value, size, error, fixed


def _rough(own: _Rows, pieces: _Pieces, measures: Array, effort: Effort) -> Array:
    """The panels that are not settled, of rows that may have more."""
    sizes = np.bincount(pieces.row, measures[:, 1], own.count)
    counts = np.bincount(pieces.row, minlength=own.count)
    limit = np.where(counts < effort.panels, np.maximum(0.05 * EPS * sizes, np.finfo(float).tiny), np.inf)
    return np.flatnonzero(measures[:, 2] > limit[pieces.row])


def _halved(own: _Rows, pieces: _Pieces, measures: Array, rough: Array) -> tuple[_Pieces, Array]:
    twice = _Pieces(*(np.concatenate([x[rough]] * 2) for x in pieces))
    middle = (pieces.left[rough] + pieces.right[rough]) / 2
    halves = twice._replace(
        left=np.concatenate([pieces.left[rough], middle]), right=np.concatenate([middle, pieces.right[rough]])
    )
    keep = np.ones(len(pieces.row), bool)
    keep[rough] = False
    joined = _Pieces(*(np.concatenate([old[keep], new]) for old, new in zip(pieces, halves, strict=True)))
    return joined, np.concatenate([measures[keep], _panels(own, *halves)])


def _integrated(own: _Rows, effort: Effort) -> Found:
    """E of each row's function of one standard Gaussian."""
    places, low, high = _places(own.lines, own.count, effort)
    beyond = np.zeros(own.count)
    if own.measured is not None:
        low, high, beyond = _computed(own.measured, low, high)
    base = np.concatenate([[-END], -_BASE[:0:-1], _BASE, [END]])
    edges = np.concatenate([np.broadcast_to(base, (own.count, len(base))), places], 1)
    edges = np.sort(np.clip(edges, low[:, None], high[:, None]), 1)
    row, piece = np.nonzero(np.diff(edges) > 0)
    first, width = edges[row, piece][:, None], np.diff(edges)[row, piece][:, None]
    pieces = _Pieces(row, first, width, np.zeros(len(row)), np.ones(len(row)))
    measures = _panels(own, *pieces)
    for _ in range(_HALVINGS):
        rough = _rough(own, pieces, measures, effort)
        if not len(rough):
            break
        pieces, measures = _halved(own, pieces, measures, rough)
    value, size, error, fixed = _totals(own, pieces.row, measures)
    error = error + fixed + beyond + 64 * EPS * size
    if own.measured is None:
        for sign, end in ((-1.0, low), (1.0, high)):
            far, unsure = _tails(own.lines, end, sign)
            with np.errstate(all="ignore"):
                matters = ~(np.abs(far) <= EPS**2 * size)
                value, size = value + np.where(matters, far, 0.0), size + np.where(matters, np.abs(far), 0.0)
                error = error + np.where(matters, unsure, np.abs(far))
    return Found(value, np.where(np.isfinite(value) & ~np.isnan(error), error, np.inf), size)


def _computed(measured: Callable[[Array], Found], low: Array, high: Array) -> tuple[Array, Array, Array]:
    """The ends of where the inner integral is finite, and what the integrand is there."""
    z = np.linspace(-END, END, 105)
    with np.errstate(all="ignore"):
        value = measured(z).value
        sound = ~np.isinf(value)
        first, last = z[sound].min(initial=0.0), z[sound].max(initial=0.0)
        dense = np.abs(value) * _half(z) ** 2
        beyond = dense[z == first].sum() + dense[z == last].sum()
    return np.maximum(low, first), np.minimum(high, last), np.array([10 * beyond])


# ---- one, two and three Gaussians


MOST = 3
"""Gaussians that are integrated over."""


@lru_cache(maxsize=256)
def _mean(
    fn: Callable[..., Any], dimensions: int, shapes: tuple[tuple[int, ...], ...], data: tuple[bytes, ...]
) -> Found:
    numbers = tuple(np.frombuffer(d).reshape(s) for d, s in zip(data, shapes, strict=True))
    return _known_mean(Known(fn, dimensions, numbers))


def mean(fn: Callable[..., Any], dimensions: int, numbers: tuple[Any, ...] = ()) -> Found:
    """E fn(z¹, …, *numbers) for at most `MOST` independent standard Gaussians z; fn static and hashable.

    |value - E| <= error, inf where the integrand still grows at the last point that can be computed.
    """
    assert dimensions <= MOST, "functions of more Gaussians are drawn"
    own = tuple(np.asarray(n, np.float64) for n in numbers)
    return _mean(fn, dimensions, tuple(n.shape for n in own), tuple(n.tobytes() for n in own))


def _known_mean(fn: Known) -> Found:
    if fn.dimensions == 0:
        value = float(fn(np.zeros((0, 1)))[1][0])
        return Found(value, EPS * abs(value), abs(value))
    if fn.dimensions == 1:
        found = _integrated(_Rows(_along(fn, np.zeros((1, 0))), 1), ALONE)
    elif fn.dimensions == 2:

        def inner(z: Array) -> Found:
            parts = [_integrated(_Rows(_along(fn, part[:, None]), len(part)), INNER) for part in _split(z, 256)]
            return Found(*(np.concatenate(x) for x in zip(*parts, strict=True)))

        def outer(z: Array) -> tuple[Array, Array]:
            points = np.stack([z.reshape(-1), np.zeros(z.size)])
            found, values = fn(points)
            return found.reshape(*z.shape, found.shape[-1]), np.where(np.isinf(values), 0.0, values).reshape(z.shape)

        found = _integrated(_Rows(outer, 1, inner), OUTER)
    else:
        return _cube(fn)
    return Found(*(float(x[0]) for x in found))


def _split(z: Array, most: int) -> list[Array]:
    return [z[k : k + most] for k in range(0, len(z), most)]


def _along(fn: Known, given: Array) -> Lines:
    """fn of its last Gaussian, the others `given` (rows, dimensions - 1)."""

    def lines(z: Array) -> tuple[Array, Array]:
        points = [np.broadcast_to(column[:, None], z.shape).reshape(-1) for column in given.T]
        found, values = fn(np.stack([*points, z.reshape(-1)]))
        return found.reshape(*z.shape, found.shape[-1]), values.reshape(z.shape)

    return lines


def _cube(fn: Known) -> Found:
    """By the trapezoidal rule, a coarser one beside it, and draws, which see what lies between the nodes of both;
    narrow peaks between the nodes on grids of their own."""
    values_at = lambda points: fn(points)[1]
    (value, size, edge, points, held), (coarse, *_) = (_on_nodes(values_at, fn.dimensions, nodes) for nodes in _CUBE)
    error = 3 * abs(value - coarse) + 100 * edge + 16 * EPS * size
    with np.errstate(all="ignore"):
        heights = np.log(np.abs(held)).reshape([_CUBE[0]] * fn.dimensions)
    nodes = np.linspace(-_CUBE_REACH, _CUBE_REACH, _CUBE[0])
    narrow = peaks(values_at, np.fmax(heights, -np.inf), nodes)
    if narrow:
        outside = ~np.any([p.holds(points) for p in narrow], 0)
        whole = sum(p.size for p in narrow)
        beside = sum(p.error for p in narrow) + 3 * float(np.abs(held[outside]).sum())
        if whole > 2 * size or beside < error:
            value, error, size = sum(p.value for p in narrow), beside, max(size, whole)
    unit = qmc.Sobol(fn.dimensions, rng=0).random(2**15)
    drawn = values_at(ndtri(np.clip(unit.T, 1e-12, 1 - 1e-12))).reshape(32, -1)
    spread, seen = 4 * drawn.mean(1).std(ddof=1) / math.sqrt(len(drawn)), np.abs(drawn).mean()
    apart = abs(value - drawn.mean())
    # Draws that meet a narrow peak once or not at all know nothing of it.
    missed = bool(narrow) and seen <= size + spread
    error = error if apart <= spread + error or missed else apart + spread
    return Found(
        float(value), float(error) if np.isfinite(value) and not np.isnan(error) else math.inf, float(max(size, seen))
    )


def _on_nodes(fn: Callable[[Array], Array], dimensions: int, nodes: int) -> tuple[float, float, float, Array, Array]:
    """The trapezoidal rule: E f, E |f|, what the nodes at the edge hold, the nodes and f φ there."""
    z = np.linspace(-_CUBE_REACH, _CUBE_REACH, nodes)
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    points = np.stack([a.reshape(-1) for a in np.meshgrid(*[z] * dimensions, indexing="ij")])
    whole = weights
    for _ in range(dimensions - 1):
        whole = np.multiply.outer(whole, weights)
    with np.errstate(all="ignore"):
        held = whole.reshape(-1) * fn(points)
        edge = np.abs(held)[(np.abs(points) == _CUBE_REACH).any(0)].sum()
        return float(held.sum()), float(np.abs(held).sum()), float(edge), points, held
