"""What a function does along a line, wherever it does it: where it is no number, its poles, how fast it grows.

The inspector behind every refusal, at given data, of an expectation of one Gaussian that does not exist. Poles are
looked for where something that the function computes vanishes or turns (`signals`) and beside the peaks of its values;
growth is fitted to the last decades before it overflows. All of it in double precision, whatever the program's: what
exists is no matter of dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tensorprog.functions.integrate import Known, narrowed

CANDIDATES, PARTS = 64, 64


class Pole(NamedTuple):
    """|fn(z)| grows like |z - place|^-power."""

    place: float
    power: float


class Line(NamedTuple):
    """`undefined`: the point nearest to 0 of a stretch where the function is no number, and what it is there. `poles`,
    nearest to 0 first. `rates`: r where log |fn(z)| grows like r z², towards -∞ and +∞: 0 below, inf above."""

    undefined: tuple[float, float] | None
    poles: tuple[Pole, ...]
    rates: tuple[float, float]

    def steepest(self) -> Pole | None:
        return max(self.poles, key=lambda pole: (round(pole.power, 2), -abs(pole.place)), default=None)


def _grid() -> np.ndarray:
    """Points off round numbers: even ones near the origin, and 4 % steps out to 1e9 and in to 1e-9."""
    far, near = np.geomspace(12.017, 1.03e9, 470), np.geomspace(1.07e-9, 1.013e-2, 240)
    even = np.linspace(0.01091, 12.0, 1337)
    half = np.sort(np.concatenate([far, near, even]))
    return np.concatenate([-half[::-1] * 1.0037, half])


GRID = _grid()


def look(fn: Callable[..., Any], numbers: tuple[Any, ...] = ()) -> Line:
    """What z -> fn(z, *numbers) does; fn static and hashable, of 0-d z and of numbers that are known."""
    own = tuple(np.asarray(n, np.float64) for n in numbers)
    return _look(fn, tuple(n.shape for n in own), tuple(n.tobytes() for n in own))


@lru_cache(maxsize=512)
def _look(fn: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], data: tuple[bytes, ...]) -> Line:
    numbers = [np.frombuffer(d).reshape(s) for d, s in zip(data, shapes, strict=True)]
    with np.errstate(all="ignore"):
        known = Known(fn, 1, tuple(numbers))
        at = lambda z: known(z.reshape(1, -1))
        found, values = at(GRID)
        poles = sorted(_poles(at, _candidates(at, found, values)), key=lambda pole: abs(pole.place))
        return Line(_undefined(values), tuple(poles), (_rate(at, values, -1), _rate(at, values, 1)))


def _undefined(values: np.ndarray) -> tuple[float, float] | None:
    """Two neighbours of the grid at which the function is NaN: an isolated 0/0 is nothing."""
    nan = np.isnan(values)
    both = np.flatnonzero(nan & (np.roll(nan, 1) | np.roll(nan, -1)))
    if not len(both):
        return None
    nearest = both[np.abs(GRID[both]).argmin()]
    return float(GRID[nearest]), math.nan


def _candidates(at: Any, found: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places at which a quantity vanishes or turns, or beside which |fn| peaks, to the last digit where it vanishes."""
    sizes = np.abs(np.where(np.isfinite(found), found, np.nan))
    crossing = (found[:-1] > 0) != (found[1:] > 0)
    crossing &= np.isfinite(found[:-1]) & np.isfinite(found[1:])
    turning = (sizes[1:-1] < sizes[:-2]) & (sizes[1:-1] < sizes[2:])
    logs = np.log(np.abs(values))
    peak = (logs[1:-1] > logs[:-2]) & (logs[1:-1] > logs[2:]) | np.isinf(values[1:-1])
    step, channel = np.nonzero(crossing)
    low, high = GRID[step], GRID[step + 1]
    middle, turned = np.nonzero(turning)
    tops = np.flatnonzero(peak)
    low = np.concatenate([low, GRID[middle], GRID[tops]])
    high = np.concatenate([high, GRID[middle + 2], GRID[tops + 2]])
    channel = np.concatenate([channel, turned, np.full(len(tops), -1)])
    kind = np.repeat([0, 1, 2], [len(step), len(middle), len(tops)])
    # The nearest to 0 of each kind: there are many where a function oscillates.
    order = np.lexsort((np.minimum(np.abs(low), np.abs(high)),))
    kept = np.concatenate([order[kind[order] == k][: CANDIDATES // (1 if k == 0 else 2)] for k in (0, 1, 2)])
    low, high, channel, kind = low[kept], high[kept], channel[kept], kind[kept]
    if not len(low):
        return low

    def lines(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own, value = at(z)
        return own.reshape(*z.shape, -1), value.reshape(z.shape)

    return np.unique(narrowed(lines, low[None], high[None], channel[None], (kind == 0)[None]))


def _poles(at: Any, places: np.ndarray) -> list[Pole]:
    """Poles among the candidates, by |fn| in three decades beside them."""
    if not len(places):
        return []
    # A place is known, and can be told from its neighbours, to its rounding.
    scale = np.maximum(np.abs(places), 1e-3)
    steps = scale[:, None] * np.array([1e-4, 1e-7, 1e-10])
    values = np.abs(at(places[:, None, None] + np.array([-1.0, 1.0])[:, None] * steps[:, None, :])[1])
    values = values.reshape(len(places), 2, 3)
    logs = np.log(values)
    slopes = (logs[..., 1:] - logs[..., :-1]) / math.log(1e3)
    power = np.where(
        np.isposinf(values[..., 2]),
        np.inf,
        np.where(np.isfinite(slopes).all(-1) & (slopes > 0).all(-1), slopes[..., 1], 0.0),
    )
    power = np.where(values[..., 2] > 1.5 * values[..., 0], power, 0.0)
    power = np.where(np.isinf(power) & ~np.isfinite(values[..., 0]), 0.0, power).max(1)  # inf all around: no pole
    found: list[Pole] = []
    for place, own in zip(places, power, strict=True):
        if own > 0.02 and not any(abs(place - p.place) <= 1e-6 * (1e-3 + abs(place)) for p in found):
            found.append(Pole(float(place) if abs(place) > 1e-9 else 0.0, float(own)))
    return found


def _rate(at: Any, values: np.ndarray, side: int) -> float:
    """r where log |fn| ~ r z² on one side, from a fit of z², z, log z and 1 over the last octave before an overflow."""
    own = values[GRID * side > 0][::side]
    radii = np.abs(GRID[GRID * side > 0][::side])
    bad = ~np.isfinite(own)
    if not bad[-1]:
        return 0.0
    first = len(bad) - bad[::-1].argmin()  # beyond it nothing is finite
    if first == 0 or bad.all():
        return 0.0
    low, high = radii[first - 1], radii[min(first, len(radii) - 1)]
    for _ in range(6):
        parts = np.linspace(low, high, PARTS + 1)
        finite = np.isfinite(at(side * parts)[1])
        last = int(np.flatnonzero(finite).max(initial=0))
        low, high = parts[last], parts[min(last + 1, PARTS)]
    if math.log(abs(at(side * np.array([low]))[1][0]) + 1e-300) < 250.0:
        return 0.0  # no overflow: 0/0 far away, as (e^z - e^-z) / (e^z + e^-z) has it
    rates = []
    for end in (low, low / 2):
        z = end * (1 - 0.5 * (np.arange(400) + 0.5) / 400)
        logs = np.log(np.abs(at(side * z)[1]))
        kept = np.isfinite(logs)
        if kept.sum() < 40:
            return 0.0
        unit = z[kept] / end
        basis = np.stack([unit**2, unit, np.log(unit), np.ones(kept.sum())], 1)
        rates.append(float(np.linalg.lstsq(basis, logs[kept], rcond=None)[0][0]) / end**2)
    outer, inner = rates
    if outer > 1.2 * inner and outer * low**2 > 50.0:
        return math.inf
    return outer if outer > 0.85 * inner and outer * low**2 > 50.0 else 0.0
