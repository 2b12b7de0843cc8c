"""Functions of one variable as Python source, evaluated apart from the library: values, slopes, and where they break.

A source is an expression in `a`. It is evaluated on arrays of points that carry their derivative and
note where the function breaks: where the argument of a kink or a jump changes its sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray
FAR = 38.0
"""Standard deviations at which densities end: beyond them they underflow."""
SEEN = 14.0
"""Standard deviations within which breaks are looked for, at so many points."""
GRID = 40_001


@dataclass
class Breaks:
    """Where a function breaks: `exact` places, and arguments (arrays over a grid) that change their sign there."""

    exact: set[float] = field(default_factory=set)
    signs: list[Array] = field(default_factory=list)


class Point:
    """Values of a function with their derivatives in its one variable."""

    __array_ufunc__ = None

    def __init__(self, value: Array, slope: Array, breaks: Breaks):
        self.value, self.slope, self.breaks = value, slope, breaks

    def of(self, value: Any, slope: Any) -> Point:
        return Point(value, slope * self.slope, self.breaks)

    def lift(self, other: Any) -> Point:
        if isinstance(other, Point):
            return other
        return Point(np.full_like(self.value, other), 0 * self.value, self.breaks)

    def __add__(self, other: Any) -> Point:
        other = self.lift(other)
        return Point(self.value + other.value, self.slope + other.slope, self.breaks)

    def __mul__(self, other: Any) -> Point:
        other = self.lift(other)
        slope = self.slope * other.value + self.value * other.slope
        return Point(self.value * other.value, slope, self.breaks)

    def __sub__(self, other: Any) -> Point:
        return self + (-1.0) * self.lift(other)

    def __rsub__(self, other: Any) -> Point:
        return self.lift(other) - self

    def __neg__(self) -> Point:
        return -1.0 * self

    def __truediv__(self, other: Any) -> Point:
        return self * self.lift(other) ** -1.0

    def __rtruediv__(self, other: Any) -> Point:
        return self.lift(other) / self

    def __pow__(self, power: float) -> Point:
        return self.of(self.value**power, power * self.value ** (power - 1))

    def __gt__(self, other: Any) -> Array:
        apart = self - other
        self.breaks.signs.append(apart.value)
        return apart.value > 0

    __radd__, __rmul__ = __add__, __mul__


class Variable(Point):
    """The variable itself, base + offset; less a number, its digits are kept."""

    def __init__(self, base: Array, offset: Array, breaks: Breaks):
        super().__init__(base + offset, np.ones_like(base + offset), breaks)
        self.base, self.offset = base, offset

    def __sub__(self, other: Any) -> Point:
        if isinstance(other, Point):
            return super().__sub__(other)
        self.breaks.exact.add(float(other))
        return Point((self.base - other) + self.offset, self.slope, self.breaks)


def _smooth(fn: Callable, slope: Callable) -> Callable[[Point], Point]:
    return lambda x: x.of(fn(x.value), slope(x.value))


def _broken(fn: Callable, slope: Callable, *argument: Callable) -> Callable[[Point], Point]:
    def call(x: Point) -> Point:
        x.breaks.signs.extend(at(x.value) for at in argument)
        return x.of(fn(x.value), slope(x.value))

    return call


def _where(condition: Array, yes: Any, no: Any) -> Any:
    one = yes if isinstance(yes, Point) else no.lift(yes)
    two = one.lift(no)
    return Point(np.where(condition, one.value, two.value), np.where(condition, one.slope, two.slope), one.breaks)


def _maximum(x: Point, y: Any) -> Point:
    return _where(x > y, x, y)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, 0.0)


NORMAL = math.sqrt(2 * math.pi)
FUNCTIONS: dict[str, Any] = {
    "tanh": _smooth(np.tanh, lambda x: np.cosh(x) ** -2.0),
    "sin": _smooth(np.sin, np.cos),
    "cos": _smooth(np.cos, lambda x: -np.sin(x)),
    "exp": _smooth(np.exp, np.exp),
    "sinh": _smooth(np.sinh, np.cosh),
    "erf": _smooth(special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-(x**2))),
    "sigmoid": _smooth(special.expit, lambda x: special.expit(x) * special.expit(-x)),
    "softplus": _smooth(_softplus, special.expit),
    "arctan": _smooth(np.arctan, lambda x: 1 / (1 + x**2)),
    "sqrt": _smooth(np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "log": _smooth(np.log, lambda x: 1 / x),
    "relu": _broken(lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0), lambda x: x),
    "abs": _broken(np.abs, np.sign, lambda x: x),
    "sign": _broken(np.sign, lambda x: 0 * x, lambda x: x),
    "floor": _broken(np.floor, lambda x: 0 * x, lambda x: np.sin(np.pi * x)),
    "round": _broken(np.round, lambda x: 0 * x, lambda x: np.cos(np.pi * x)),
    "hat": _broken(lambda x: np.clip(x, -1, 1), lambda x: 1.0 * (np.abs(x) < 1), lambda x: x - 1, lambda x: x + 1),
    "maximum": _maximum,
    "where": _where,
}


class Function:
    """Several functions of one variable, by their sources; `mirrored` ones are functions of −a."""

    def __init__(self, *sources: str, scale: float = 1.0):
        self.sources, self.scale = sources, scale
        self.codes = [compile(source, source, "eval") for source in sources]
        self.poles = any("**-" in source or "log(abs" in source or "/(a" in source for source in sources)

    def __call__(self, base: Array, offset: Array) -> tuple[Array, Array]:
        """(values, slopes), (functions, *points), at scale · (base + offset)."""
        value, slope, _ = self._run(base, offset)
        return value, slope

    def _run(self, base: Array, offset: Array) -> tuple[Array, Array, Breaks]:
        breaks = Breaks()
        variable = Variable(self.scale * base, self.scale * offset, breaks)
        with np.errstate(all="ignore"):
            found = [variable.lift(eval(code, {**FUNCTIONS, "a": variable})) for code in self.codes]
        return np.stack([f.value for f in found]), np.stack([f.slope for f in found]), breaks

    def breaks(self, deviation: float = 1.0) -> tuple[float, ...]:
        """Where a function breaks, in its variable before it is scaled; among Gaussians of a standard deviation."""
        return _breaks(self.sources, self.scale, deviation)

    def find(self, deviation: float) -> tuple[float, ...]:
        grid = np.linspace(-SEEN * deviation, SEEN * deviation, GRID) + 1e-5 * deviation
        arguments = self._run(grid, 0 * grid)[2]
        found = [c / self.scale for c in arguments.exact if abs(c / self.scale) < FAR * deviation]
        for number, signs in enumerate(arguments.signs):
            at = np.flatnonzero(np.sign(signs[1:]) != np.sign(signs[:-1]))
            low, high, first = grid[at], grid[at + 1], np.sign(signs[at])
            for _ in range(60 if len(at) else 0):
                middle = (low + high) / 2
                same = np.sign(self._run(middle, 0 * middle)[2].signs[number]) == first
                low, high = np.where(same, middle, low), np.where(same, high, middle)
            found += high.tolist()
        found.sort()
        apart = [b for i, b in enumerate(found) if i == 0 or b - found[i - 1] > 1e-13 * deviation]
        # an exact place beside its bisected twin: the exact one stays
        exact = {c / self.scale for c in arguments.exact}
        close = lambda b: b in exact or all(abs(b - e) > 1e-12 * deviation for e in exact)
        return tuple([b for b in apart if close(b)] + [e for e in exact if e not in apart and e in found])


@lru_cache(maxsize=256)
def _breaks(sources: tuple[str, ...], scale: float, deviation: float) -> tuple[float, ...]:
    return Function(*sources, scale=scale).find(deviation)
