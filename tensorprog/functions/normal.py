"""Normal forms of functions of one Gaussian: what a user's arithmetic comes to, on either side of 0.

A function is kept as two sums, one for x < 0 and one for x > 0, of the products

    x^p exp(-s x^2 + e x) erf(k_1 x) erf(k_2 x) ... cos(w x)   (or sin)

with coefficients that may hold the function's numbers. These products are closed under everything that the families
of closed forms are made of, so that a function may leave a family on the way and come back. Two sides make relu, abs
and `where(z > 0, ...)` plain choices. `form` says at the end which family has the sums, if one has.

What has no such sums, or would have them only by rounding, raises `Outside`: a coefficient that under- or overflows
must not be taken for 0, nor a small difference of large constants for what single precision makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tensorprog.functions.erf import Bell, Erf
from tensorprog.functions.exponential import Exponential, Wave
from tensorprog.functions.forms import Coefficient, Form
from tensorprog.functions.piecewise import Piecewise, Power

MOST = 64
"""Terms that a sum may have, those of its coefficients counted."""
HIGHEST = 32
"""Degree of a power, as in the table."""
ERF_COST, WAVES = 16, 8
"""Beyond so many terms times powers with erf or a bell, or so many waves, a closed form takes longer to compile than
an integral: each pair of terms is an expression of its own, and each power beside erf triples it."""
_RANGE = 1e100
"""Coefficients keep within it and its inverse, so that products of two neither overflow nor vanish."""
_LOST = 1e-4
"""What is left of a difference beside the terms that cancel in it, below which single precision has lost it."""
_TOLD = 1e6
"""Coefficients within it and its inverse, and powers up to 3: their sign survives single precision."""


class Outside(Exception):
    """No normal form is known."""


class Monomial(NamedTuple):
    """x^p exp(-s x^2 + e x) times erf(k x) for k in erfs, times cos(w x) or sin(w x); cos(0 x) is 1."""

    p: int = 0
    s: float = 0.0
    e: float = 0.0
    erfs: tuple[float, ...] = ()
    wave: str = "cos"
    w: float = 0.0


Sum = Mapping[Monomial, Coefficient]
UNIT = Monomial()
X: Sum = {Monomial(p=1): Coefficient.of(1.0)}


# ---- sums and products ----------------------------------------------------------------------------------------------


def collected(terms: Iterable[tuple[Coefficient, Monomial]]) -> Sum:
    """Like terms added, those that cancel left out."""
    found: dict[Monomial, Coefficient] = {}
    for weight, monomial in terms:
        found[monomial] = weight + found.get(monomial, 0.0)
    found = {monomial: weight for monomial, weight in found.items() if weight.terms}
    weights = [abs(w) for weight in found.values() for w, _ in weight.terms]
    if not all(1 / _RANGE < w < _RANGE for w in weights):  # NaN is not within
        raise Outside("coefficients out of range")
    if len(weights) > MOST:
        raise Outside("a long sum")
    if any(monomial.p > HIGHEST for monomial in found):
        raise Outside("a high power")
    return found


def constant(value: float | Coefficient) -> Sum:
    weight = Coefficient.of(value)
    return collected([(weight, UNIT)] if any(w != 0 for w, _ in weight.terms) else [])


def scaled(x: Sum, factor: float | Coefficient) -> Sum:
    return multiplied(x, constant(factor))


def added(x: Sum, y: Sum) -> Sum:
    found = collected([(weight, monomial) for part in (x, y) for monomial, weight in part.items()])
    cancelled = max((_size(x[m]) for m in x.keys() & y.keys() if _size(found.get(m)) < _LOST * _size(x[m])), default=0)
    if found and max(map(_size, found.values())) < _LOST * cancelled:
        # (z + c) - c is z rounded to the digits of c, which is how some functions round.
        raise Outside("a difference that rounding decides")
    return found


def _size(weight: Coefficient | None) -> float:
    return 0.0 if weight is None else max((abs(w) for w, _ in weight.terms), default=0.0)


def multiplied(x: Sum, y: Sum) -> Sum:
    if _length(x) * _length(y) > 16 * MOST:
        raise Outside("a long product")
    return collected(
        (a * b * factor, monomial) for m, a in x.items() for n, b in y.items() for factor, monomial in _product(m, n)
    )


def _length(x: Sum) -> int:
    return sum(len(weight.terms) for weight in x.values())


def _product(m: Monomial, n: Monomial) -> list[tuple[float, Monomial]]:
    """Waves by the addition theorems; all else adds up."""
    both = Monomial(m.p + n.p, m.s + n.s, m.e + n.e, tuple(sorted(m.erfs + n.erfs)))
    near, far = m.w - n.w, m.w + n.w
    match m.wave, n.wave:
        case "sin", "sin":
            parts = [(0.5, "cos", near), (-0.5, "cos", far)]
        case "cos", "cos":
            parts = [(0.5, "cos", near), (0.5, "cos", far)]
        case "sin", "cos":
            parts = [(0.5, "sin", near), (0.5, "sin", far)]
        case _:
            parts = [(-0.5, "sin", near), (0.5, "sin", far)]
    upright = [_upright(kind, w) for _, kind, w in parts]
    return [
        (part[0] * sign, both._replace(wave=kind, w=w)) for part, (sign, kind, w) in zip(parts, upright, strict=True)
    ]


def _upright(kind: str, w: float) -> tuple[float, str, float]:
    """A wave by one of positive frequency: its sign, kind and frequency; sin 0 is 0 times cos 0."""
    if w == 0:
        return (0.0, "cos", 0.0) if kind == "sin" else (1.0, "cos", 0.0)
    return math.copysign(1.0, w) if kind == "sin" else 1.0, kind, abs(w)


def power(x: Sum, n: float) -> Sum:
    if n not in range(HIGHEST + 1):
        raise Outside("a power that is no polynomial")
    found = constant(1.0)
    for _ in range(int(n)):
        found = multiplied(found, x)
    return found


def divided(x: Sum, divisor: float) -> Sum:
    """Weight by weight: x/3 is not x · (1/3) to the last digit."""
    if divisor == 0:
        raise Outside("a division by 0")
    return collected(
        (Coefficient(tuple((w / divisor, atoms) for w, atoms in weight.terms)), monomial)
        for monomial, weight in x.items()
    )


def inverse(x: Sum) -> Sum:
    """1/x of one exponential: every other quotient has a pole or leaves the sums."""
    if len(x) == 1:
        ((monomial, weight),) = x.items()
        if monomial == Monomial(s=monomial.s, e=monomial.e):
            return collected([(Coefficient.of(1.0 / _static(weight)), Monomial(s=-monomial.s, e=-monomial.e))])
    raise Outside("a quotient")


# ---- what a sum is --------------------------------------------------------------------------------------------------


def _static(weight: Coefficient) -> float:
    """A coefficient without numbers."""
    if len(weight.terms) != 1 or weight.terms[0][1]:
        raise Outside("a number where its value must be known")
    return weight.terms[0][0]


def static(x: Sum) -> float:
    """The value of a constant in which no number enters."""
    if not x:
        return 0.0
    if x.keys() != {UNIT}:
        raise Outside("no constant")
    return _static(x[UNIT])


def numberless(x: Sum) -> bool:
    return not any(atoms for weight in x.values() for _, atoms in weight.terms)


def sign(x: Sum, above: bool) -> float:
    """The sign that a sum has everywhere on one side of 0: of powers alone, whose terms agree."""
    signs = set()
    for monomial, weight in x.items():
        w = _static(weight)
        if monomial != Monomial(p=monomial.p) or monomial.p > 3 or not 1 / _TOLD < abs(w) < _TOLD:
            raise Outside("a sign that is not known")
        signs.add(math.copysign(1.0, w) if above or monomial.p % 2 == 0 else -math.copysign(1.0, w))
    if len(signs) > 1:
        raise Outside("a sign that changes away from 0")
    return signs.pop() if signs else 0.0


# ---- functions of sums ----------------------------------------------------------------------------------------------


def _affine(x: Sum) -> tuple[float, Coefficient]:
    """Slope and offset; the slope without numbers, since it goes into a term of a family."""
    if not x.keys() <= {UNIT, Monomial(p=1)}:
        raise Outside("an argument that is not affine")
    slope = x.get(Monomial(p=1))
    return 0.0 if slope is None else _static(slope), x.get(UNIT, Coefficient(()))


def exp(x: Sum) -> Sum:
    """exp(c + e x - s x^2)."""
    rest = {monomial: weight for monomial, weight in x.items() if monomial != Monomial(p=2)}
    s = -_static(x[Monomial(p=2)]) if Monomial(p=2) in x else 0.0
    e, offset = _affine(rest)
    return collected([(_exp(offset), Monomial(s=s, e=e))])


def _exp(offset: Coefficient) -> Coefficient:
    found = Coefficient.of(1.0)
    for w, index in _linear(offset):
        if index is None and abs(w) > 0.8 * math.log(_RANGE):
            raise Outside("an exponential that vanishes or overflows")
        found = found * (math.exp(w) if index is None else Coefficient.number(index, "exp", w))
    return found


def wave(kind: str, x: Sum) -> Sum:
    """sin or cos of w x + c, by the addition theorems."""
    w, offset = _affine(x)
    cos, sin = _waves(_linear(offset))
    flip, _, w = _upright("sin", w)
    terms = [(cos, "cos", 1.0), (sin, "sin", -flip)] if kind == "cos" else [(sin, "cos", 1.0), (cos, "sin", flip)]
    terms = [(weight * factor, other) for weight, other, factor in terms if factor != 0]
    return collected((weight, Monomial(wave=other, w=w)) for weight, other in terms)


def _waves(offset: list[tuple[float, int | None]]) -> tuple[Coefficient, Coefficient]:
    """cos and sin of a sum of a constant and multiples of numbers."""
    cos, sin = Coefficient.of(1.0), Coefficient(())
    for w, index in offset:
        if index is None:
            c, s = Coefficient.of(math.cos(w)), Coefficient.of(math.sin(w))
        else:
            c, s = Coefficient.number(index, "cos", w), Coefficient.number(index, "sin", w)
        cos, sin = cos * c - sin * s, sin * c + cos * s
    return cos, sin


def _linear(offset: Coefficient) -> list[tuple[float, int | None]]:
    """A coefficient as multiples of numbers and a constant, whose index is None."""
    found: list[tuple[float, int | None]] = []
    for w, atoms in offset.terms:
        match atoms:
            case ():
                found.append((w, None))
            case (("id", k, index),):
                found.append((w * k, index))
            case _:
                raise Outside("a function of numbers that no coefficient is")
    return found


def erf(x: Sum) -> Sum:
    """erf(k x); of a constant its value."""
    if x.keys() <= {UNIT}:
        return constant(math.erf(static(x)))
    k, offset = _affine(x)
    if offset.terms:
        raise Outside("an error function elsewhere than at 0")
    return collected([(Coefficient.of(math.copysign(1.0, k)), Monomial(erfs=(abs(k),)))])


# ---- the families ---------------------------------------------------------------------------------------------------


def form(below: Sum, above: Sum) -> Form | None:
    """The closed form of the function that is `below` for x < 0 and `above` for x > 0; None where no family has it."""
    monomials = below.keys() | above.keys()
    if all(m == Monomial(p=m.p) for m in monomials):
        return _piecewise(below, above)
    found = _smooth(above) if dict(below) == dict(above) else None
    return found if found is not None and steady(found) and steady(found.derivative()) else None


def _piecewise(below: Sum, above: Sum) -> Piecewise:
    found = []
    for m in sorted(below.keys() | above.keys()):
        low, high = below.get(m, Coefficient(())), above.get(m, Coefficient(()))
        found += [(0.5 * (high + low), Power(m.p)), (0.5 * (high - low), Power(m.p, signed=True))]
    return Piecewise.of(*found)


def _smooth(x: Sum) -> Form | None:
    terms = [(x[m], m) for m in sorted(x)]
    if all(m == Monomial(m.p, m.s, erfs=m.erfs) and m.s >= 0 and len(m.erfs) <= 1 for m in x):
        # With s < 0 there are expectations for small variances alone.
        found = Erf.of(*((w, Bell(m.p, m.s, *m.erfs)) for w, m in terms))
        return found if len(x) * (1 + max(m.p for m in x)) <= ERF_COST else None
    if all(m == Monomial(e=m.e, wave=m.wave, w=m.w) and (m.e == 0 or m.w == 0) for m in x):
        return Exponential.of(*((w, _wave(m)) for w, m in terms)) if len(x) <= WAVES else None
    return None


def _wave(m: Monomial) -> Wave:
    if m.w == 0:
        return Wave("exp", m.e)
    return Wave("sin" if m.wave == "sin" else "cos", m.w)


def steady(found: Form) -> bool:
    """Whether the terms do not cancel where x is small: 1 - exp(-x^2) has no digits left there in its expectations,
    which are sums over pairs of terms, while panels that see the function itself keep them all.

    Exponentials have the constants of their terms, and the first powers, cancel exactly.
    """
    if any(atoms for weight, _ in found.terms for _, atoms in weight.terms):
        return True  # a number's value is not known here
    if isinstance(found, Exponential):
        first = [w * t.k for w, t in _weighted(found) if t.kind != "cos"]
        second = [w * t.k**2 * (-1.0 if t.kind == "cos" else 1.0) for w, t in _weighted(found) if t.kind != "sin"]
        return any(map(_left, (first, second))) or not any(first + second)
    slope = 2 / math.sqrt(math.pi)  # of erf at 0
    starts = [(t.p + 1, w * slope * t.k) if t.k else (t.p, w) for w, t in _weighted(found)]
    lowest = min((order for order, _ in starts), default=0)
    return not starts or _left([w for order, w in starts if order == lowest])


def _weighted(found: Form) -> list[tuple[float, Any]]:
    return [(_static(weight), term) for weight, term in found.terms]


def _left(parts: list[float]) -> bool:
    """Whether a sum is more than a small part of its terms."""
    return abs(sum(parts)) > 1e-3 * sum(map(abs, parts))
