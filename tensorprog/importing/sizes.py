"""Sizes and numbers at three trial widths, and what each is of the width n: r·n, or c·n^p.

A function is traced at three widths. What does not change is fixed; what changes must be a power of the width, which
the first two widths determine and the third confirms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Sizes = tuple[int, ...]
"""One dimension at each trial width."""


class NoPower(Exception):
    """A size or a number that changes with the width, and is no power of it."""


@dataclass(frozen=True)
class Power:
    """c·n^p."""

    c: float
    p: float


def ratio(widths: Sequence[int], sizes: Sizes) -> Fraction | None:
    """r where the sizes are r·n; None where they do not change.

    **Raises:** `NoPower` for sizes that change otherwise: n + 1, n // 2, n².
    """
    if len(set(sizes)) == 1:
        return None
    r = Fraction(sizes[0], widths[0])
    if any(r * n != size for n, size in zip(widths, sizes, strict=True)):
        told = ", ".join(f"{size} at width {n}" for n, size in zip(widths, sizes, strict=True))
        raise NoPower(f"a size is {told}: no fixed multiple of the width")
    return r


def width_name(r: Fraction) -> str:
    """n, 3n, n/2, 3n/2."""
    return f"{'' if r.numerator == 1 else r.numerator}n{'' if r.denominator == 1 else f'/{r.denominator}'}"


def power(widths: Sequence[int], values: Sequence[float], *, digits: float = 1e-6) -> Power:
    """c and p of numbers that are c·n^p at the trial widths, 2p a whole number.

    **Raises:** `NoPower` for numbers that change otherwise.
    """
    first, last = float(values[0]), float(values[-1])
    if all(float(v) == first for v in values):
        return Power(first, 0.0)
    told = ", ".join(f"{float(v):.6g} at width {n}" for n, v in zip(widths, values, strict=True))
    if first * last <= 0:
        raise NoPower(f"a number is {told}: no power of the width")
    p = round(2 * math.log(last / first) / math.log(widths[-1] / widths[0])) / 2
    found = [float(v) / n**p for n, v in zip(widths, values, strict=True)]
    if any(abs(c - found[0]) > digits * abs(found[0]) for c in found):
        raise NoPower(f"a number is {told}: no power of the width")
    return Power(snapped(found[0], digits), p)


def snapped(c: float, digits: float = 1e-6) -> float:
    """The plain fraction that a number is up to rounding, 2/3 for 0.66666669, or the number itself."""
    near = Fraction(c).limit_denominator(64)
    return float(near) if abs(float(near) - c) <= digits * abs(c) else c


def order_text(p: float) -> str:
    """n, √n, 1/n, n^1.5: how something grows or vanishes."""
    named = {1.0: "n", 0.5: "√n", -0.5: "1/√n", -1.0: "1/n"}
    return named.get(p, f"n^{p:g}")


def collapsed(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Arrays at the trial widths with axes of size 1 where they are constant along an axis.

    Axes whose size changes with the width must be such.
    """
    made = [np.asarray(a) for a in arrays]
    for axis in range(made[0].ndim):
        firsts = [a.take([0], axis) if a.shape[axis] else a for a in made]
        if all(a.shape[axis] and (a == f).all() for a, f in zip(made, firsts, strict=True)):
            made = firsts
        elif len({a.shape[axis] for a in made}) > 1:
            raise NoPower("an array of numbers differs along an axis that goes to infinity")
    return made
