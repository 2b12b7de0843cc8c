"""Expectations of functions of Gaussians, written apart from the library: NumPy and Gauss-Legendre panels alone.

Panels begin where functions break and are halved until polynomials describe the function on each of them, towards a
pole as far as it takes: points are offsets from the break nearest to them, so that none of their digits cancel.

Every expectation comes with an error, its difference from a rule of lower order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from hunt_points import FAR, Function

Array = np.ndarray


class Costly(Exception):
    """More nodes than a truth is worth."""


MOST = 20_000_000
"""Nodes of an expectation over two Gaussians."""


def _afford(nodes: int) -> None:
    if nodes > MOST:
        raise Costly(f"{nodes} nodes")


# ---- panels


@dataclass(frozen=True)
class Rule:
    """Nodes base + offset and weights of panels; `edges` (panels, 2) as numbers."""

    base: Array
    offset: Array
    weight: Array


def gauss(order: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(order)


ORDER = 16
_TO_COEFFICIENTS = np.linalg.inv(np.polynomial.legendre.legvander(gauss(ORDER)[0], ORDER - 1))


def panels(
    f: Callable[[Array, Array], Array], anchors: Sequence[float], reach: float, widest: float, tolerance: float
) -> tuple[Array, Array, Array]:
    """(anchor, low, high) of panels on each of which every row of f(base, offset) is nearly a polynomial.

    What a panel may leave out is a part of the L¹ norm of its row over all panels so far.
    """
    edges = np.array(sorted({-reach, reach, 0.0, *(b for b in anchors if abs(b) < reach)}))
    half = (edges[1:] - edges[:-1]) / 2
    zero = 0 * half
    todo = np.stack([np.r_[edges[:-1], edges[1:]], np.r_[zero, -half], np.r_[half, zero]])
    done, total = [], 0.0
    for _ in range(240):
        if not todo.shape[1]:
            break
        _afford(1000 * todo.shape[1])
        rule = spread(todo, ORDER)
        values = np.nan_to_num(f(rule.base, rule.offset), nan=0.0, posinf=0.0, neginf=0.0)
        width = todo[2] - todo[1]
        coefficients = np.abs(values @ _TO_COEFFICIENTS.T)  # (rows, panels, order)
        size = (np.abs(values) * rule.weight).sum(-1)
        tail = coefficients[..., -4:].max(-1) * width
        # all of this round counts towards the norm: what is refined later is not counted twice by much
        norm = total + size.sum(-1)
        norm = np.maximum(norm, max(1e-300, 1e-8 * norm.max()))
        good = (tail <= tolerance * norm[:, None]).all(0) & (width <= widest)
        total = total + size[:, good].sum(-1)
        done.append(todo[:, good])
        anchor, low, high = todo[:, ~good]
        middle = (low + high) / 2
        todo = np.concatenate([np.stack([anchor, low, middle]), np.stack([anchor, middle, high])], axis=1)
    return tuple(np.concatenate([*done, todo], axis=1))  # type: ignore[return-value]


def spread(where: Any, order: int) -> Rule:
    """Gauss-Legendre nodes of panels, (panels, order)."""
    anchor, low, high = where
    nodes, weights = gauss(order)
    half = (high - low)[:, None] / 2
    offset = (low + high)[:, None] / 2 + half * nodes
    return Rule(np.broadcast_to(anchor[:, None], offset.shape), offset, half * weights)


def density(z: Array, variance: float) -> Array:
    return np.exp(-(z**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


TIGHT = 1e-13
ORDERS = (ORDER, 11)
"""The rule, and the one that estimates its error."""


def mean(fn: Function, variance: float, size: bool = False) -> tuple[Array, Array]:
    """(E f(z), its error) of each function, with `size` of |f|."""
    deviation = math.sqrt(variance)

    def weighted(base: Array, offset: Array) -> Array:
        values = fn(base, offset)[0]
        return (np.abs(values) if size else values) * density(base + offset, variance)

    where = panels(weighted, fn.breaks(deviation), FAR * deviation, 4 * deviation, TIGHT)
    found = [_total(weighted, where, order) for order in ORDERS]
    return found[0], _error(*found)


def _total(f: Callable[[Array, Array], Array], where: Any, order: int) -> Array:
    rule = spread(where, order)
    values = np.nan_to_num(f(rule.base, rule.offset), nan=0.0, posinf=0.0, neginf=0.0)
    return (values * rule.weight).sum((-2, -1))


def _error(fine: Array, coarse: Array) -> Array:
    return np.abs(fine - coarse) + 1e-14 * np.abs(fine)


# ---- two inputs


_NEAR = 0.25
"""Sines of angles below which inputs are near each other, or opposite."""


@dataclass(frozen=True)
class Pair:
    """E f_r(u) g_s(v) and E f_r′(u) g_s′(v), matrices over r and s, and their errors."""

    value: Array
    slope: Array
    value_error: Array
    slope_error: Array


@dataclass(frozen=True)
class Covariance:
    """Of (u, v): variances, covariance, and the determinant, which the covariance has lost near ±1."""

    first: float
    second: float
    cross: float
    determinant: float

    @property
    def correlation(self) -> float:
        return self.cross / math.sqrt(self.first * self.second)

    @property
    def sine(self) -> float:
        """√(1 − ρ²)."""
        return math.sqrt(max(0.0, self.determinant) / (self.first * self.second))


def pair(f: Sequence[str], g: Sequence[str], cov: Covariance, slopes: bool = True) -> Pair:
    """Expectations of products of functions of two Gaussians."""
    one, two = (Function(*s, scale=math.sqrt(q)) for s, q in ((f, cov.first), (g, cov.second)))
    rho, sine = cov.correlation, cov.sine
    mirrored = Function(*g, scale=math.copysign(math.sqrt(cov.second), rho))
    if sine < 1e-9:
        return _summed(_together(one, mirrored, slopes))
    if sine < _NEAR and not one.poles and not two.poles:
        return _summed(_nearly(one, mirrored, sine))
    return _summed(_apart(one, two, rho, sine, slopes))


def _summed(road: Callable[[int], tuple[Array, Array]]) -> Pair:
    (value, slope), (value2, slope2) = road(ORDER), road(ORDERS[1])
    return Pair(value, slope, np.abs(value - value2), np.abs(slope - slope2))


def _together(one: Function, two: Function, slopes: bool) -> Callable[[int], tuple[Array, Array]]:
    """Of one standard Gaussian."""

    def products(base: Array, offset: Array) -> Array:
        (f, df), (g, dg) = one(base, offset), two(base, offset)
        rows = [f[:, None] * g[None]] + ([df[:, None] * dg[None]] if slopes else [])
        flat = np.concatenate([r.reshape(-1, *f.shape[1:]) for r in rows])
        return flat * density(base + offset, 1.0)

    where = panels(products, [*one.breaks(), *two.breaks()], FAR, 4.0, TIGHT)

    def road(order: int) -> tuple[Array, Array]:
        found = _total(products, where, order).reshape(-1, len(one.sources), len(two.sources))
        return found[0], found[-1] if slopes else 0 * found[0]

    return road


@lru_cache(maxsize=256)
def _own(sources: tuple[str, ...], scale: float, slopes: bool, widest: float) -> Array:
    """Panels of functions of one standard Gaussian in the mean square."""
    fn = Function(*sources, scale=scale)

    def root(base: Array, offset: Array) -> Array:
        value, slope = fn(base, offset)
        return (np.concatenate([value, slope]) if slopes else value) * np.sqrt(density(base + offset, 1.0))

    where = np.stack(panels(root, fn.breaks(), FAR, widest, 10 * TIGHT))
    rule = spread(where, 2)
    rows = np.nan_to_num(root(rule.base, rule.offset), nan=0.0, posinf=0.0, neginf=0.0)
    part = (rows**2 * rule.weight).sum(-1)
    kept = (part > 1e-34 * part.sum(-1, keepdims=True)).any(0)
    return where[:, kept]


def _apart(one: Function, two: Function, rho: float, sine: float, slopes: bool) -> Callable[[int], tuple[Array, Array]]:
    """All nodes of u with all nodes of v, which lie no further apart than the conditional density is wide."""
    widest = 1.4 * 2.0 ** math.floor(math.log2(sine))
    wheres = [_own(fn.sources, fn.scale, slopes, widest) for fn in (one, two)]

    def road(order: int) -> tuple[Array, Array]:
        rules = [spread(where, order) for where in wheres]
        u, v = ((r.base + r.offset).ravel() for r in rules)
        _afford(len(u) * len(v))
        (f, df), (g, dg) = (fn(r.base, r.offset) for fn, r in zip((one, two), rules, strict=True))
        flat = lambda a, r: np.nan_to_num(a, posinf=0.0, neginf=0.0).reshape(len(a), -1) * r.weight.ravel()
        f, df, g, dg = flat(f, rules[0]), flat(df, rules[0]), flat(g, rules[1]), flat(dg, rules[1])
        right = np.concatenate([g, dg]) if slopes else g
        value, slope = np.zeros((len(f), len(g))), np.zeros((len(f), len(g)))
        for start in range(0, len(u), 256):
            part = slice(start, start + 256)
            exponent = ((v - rho * u[part, None]) / sine) ** 2 + u[part, None] ** 2
            inner = np.exp(-exponent / 2) @ right.T / (2 * math.pi * sine)
            value += f[:, part] @ inner[:, : len(g)]
            if slopes:
                slope += df[:, part] @ inner[:, len(g) :]
        return value, slope

    return road


def _nearly(one: Function, two: Function, sine: float) -> Callable[[int], tuple[Array, Array]]:
    """u = p + d, v = p − d for independent p and a small d; panels of p begin at the breaks of both."""
    small = sine**2 / 2 / (1 + math.sqrt(1 - sine**2))  # (1 − ρ)/2
    deviation = math.sqrt(small)
    breaks = [np.array(fn.breaks()) for fn in (one, two)]
    crossing = (breaks[0][:, None] - breaks[1][None]).ravel() / 2
    reach = 9 * deviation
    edges = np.unique(np.r_[np.linspace(-reach, reach, 9), crossing[np.abs(crossing) < reach]])
    edges = edges[np.r_[True, np.diff(edges) > 1e-12]]
    ends = []
    for fn in (one, two):
        where = _own(fn.sources, fn.scale, True, 4.0)
        ends.append(np.unique(np.r_[where[0] + where[1], where[0] + where[2]]))

    def road(order: int) -> tuple[Array, Array]:
        outer = spread((0 * edges[1:], edges[:-1], edges[1:]), order)
        weight = (outer.weight * density(outer.offset, small)).ravel()
        value = np.zeros((len(one.sources), len(two.sources)))
        slope, (nodes, weights) = value.copy(), gauss(order)
        clean = lambda a: np.nan_to_num(a, posinf=0.0, neginf=0.0).reshape(len(a), -1)
        at = outer.offset.ravel()
        _afford(2 * len(at) * order * sum(map(len, ends)))
        for start in range(0, len(at), 16):
            d = at[start : start + 16, None]
            cuts = np.sort(np.concatenate([ends[0] - d, ends[1] + d], axis=1), axis=1)
            half = np.diff(cuts)[..., None] / 2
            middle = (cuts[:, 1:] + cuts[:, :-1])[..., None] / 2 + half * nodes
            shift = d[..., None] + 0 * middle
            (f, df), (g, dg) = one(middle, shift), two(middle, -shift)
            own = (half * weights * density(middle, 1 - small) * weight[start : start + 16, None, None]).ravel()
            value += (clean(f) * own) @ clean(g).T
            slope += (clean(df) * own) @ clean(dg).T
        return value, slope

    return road
