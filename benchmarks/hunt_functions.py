"""Random functions of one to three Gaussians, as Python source: smooth, kinked, with jumps, poles, growth.

Functions of several are sums of products of functions of orthogonal combinations of them. What the library is given
is one expression in a, b, c; that it falls apart is known here alone, and makes its truth integrals over one Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

HERE = "@"
"""What stands for the variable until it has a name."""
Random = np.random.Generator
Sources = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Made:
    """A function `source` of a, b, c = Σ_r Π_k terms[r][k](u_k), u = turn @ (a, b, c); whether E f² and E ∂f² exist."""

    source: str
    terms: tuple[tuple[str, ...], ...]
    turn: tuple[tuple[float, ...], ...] = ((1.0,),)
    values: bool = True
    slopes: bool = True

    @property
    def count(self) -> int:
        return len(self.turn)

    @property
    def turned(self) -> bool:
        return bool((np.array(self.turn) != np.eye(self.count)).any())


def number(r: Random, low: float, high: float) -> str:
    return f"{r.uniform(low, high):.3g}"


def log_number(r: Random, low: float, high: float) -> str:
    return f"{10 ** r.uniform(np.log10(low), np.log10(high)):.3g}"


def alone(source: str, **exists: bool) -> Made:
    named = source.replace(HERE, "a")
    return Made(named, ((named,),), **exists)


# ---- of one Gaussian; `unit` is its standard deviation, in units of which functions are as steep as `steep`


@dataclass
class Maker:
    r: Random
    unit: float = 1.0
    steep: float = 3.0

    def pick(self, options: Sequence[Callable[[], str]]) -> str:
        return options[self.r.integers(len(options))]()

    def affine(self, inner: str = HERE) -> str:
        unit = self.unit if inner == HERE else 1.0
        slope = log_number(self.r, 0.3 / unit, (self.steep if inner == HERE else 2.0) / unit)
        sign = "-" if self.r.random() < 0.3 else ""
        return f"({sign}{slope}*{inner} - {number(self.r, 0.0, 1.5)})"

    def atom(self, a: str) -> str:
        other = self.affine()
        forms = ("tanh({a})", "sin({a})", "cos({a})", "erf({a})", "sigmoid({a})", "softplus({a})", "arctan({a})",
                 "exp(-({a}*{a}))", "(1/(1 + {a}*{a}))", "sqrt(1 + {a}*{a})", "({a}*sigmoid({b}))",
                 "log(1 + {a}*{a})", "({a}*{a})", "{a}", "({a}*exp(-({b}*{b})))")  # fmt: skip
        return forms[self.r.integers(len(forms))].format(a=a, b=other)

    def smooth(self, depth: int = 1) -> str:
        if depth == 0 or self.r.random() < 0.3:
            return self.atom(self.affine())
        one = self.smooth(depth - 1)
        return self.pick((
            lambda: self.atom(self.affine(one)),
            lambda: f"({one} + {number(self.r, -2, 2)}*{self.smooth(depth - 1)})",
            lambda: f"{one}*{self.smooth(depth - 1)}",
        ))  # fmt: skip

    def broken_argument(self) -> str:
        return self.affine() if self.r.random() < 0.6 else self.affine(self.smooth(0))

    def kinked(self) -> str:
        a, f = self.broken_argument(), self.smooth(0)
        kink = self.pick((
            lambda: f"relu({a})",
            lambda: f"abs({a})",
            lambda: f"hat({a})",
            lambda: f"maximum({a}, {f})",
            lambda: f"where({a} > 0, {a}, {number(self.r, -0.5, 0.5)}*{a})",
        ))  # fmt: skip
        return self.dressed(kink)

    def jumping(self) -> str:
        a, f, g = self.broken_argument(), self.smooth(0), self.smooth(0)
        k = self.r.integers(1, 5)
        jump = self.pick((
            lambda: f"sign({a})",
            lambda: f"floor({a})",
            lambda: f"round({k}*{self.affine()})/{k}",
            lambda: f"where({a} > 0, {f}, {g})",
            lambda: f"{f}*sign({a})",
        ))  # fmt: skip
        return self.dressed(jump)

    def dressed(self, inner: str) -> str:
        """As it is, or beside, times, or inside of something smooth."""
        return self.pick((
            lambda: inner,
            lambda: inner,
            lambda: f"({inner} + {number(self.r, -1, 1)}*{self.smooth(0)})",
            lambda: f"{inner}*{self.smooth(0)}",
            lambda: f"tanh({inner})",
        ))  # fmt: skip

    def any(self) -> str:
        return self.pick((self.smooth, self.kinked, self.jumping))

    def pole(self) -> Made:
        """Of |z − c|^−p, log|z − c| and roots, where values may exist whose slopes do not."""
        c = number(self.r, -1.5 * self.unit, 1.5 * self.unit) if self.r.random() < 0.7 else "0.0"
        near, f = f"abs({HERE} - {c})", self.smooth(0)
        far = 10.0 ** self.r.uniform(-1, 0.3)
        forms = (
            (f"{near}**-{number(self.r, 0.05, 0.4)}", True, False),
            (f"log({near})", True, False),
            (f"{f} + {far:.2g}*log({near})", True, False),
            (f"{f} + {far:.2g}*{near}**-{number(self.r, 0.05, 0.4)}", True, False),
            (f"sqrt({near})", True, False),
            (f"{near}**{number(self.r, 1.1, 2.5)}", True, True),
            (f"{near}**{number(self.r, 0.65, 0.95)}", True, True),
            (f"{near}**-{number(self.r, 0.55, 2)}", False, False),
            (f"{f} + {far:.2g}/({HERE} - {c})", False, False),
        )
        source, values, slopes = forms[self.r.choice(len(forms), p=[0.15, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])]
        return alone(source, values=values, slopes=slopes)

    def growing(self, variance: float, second: bool = True) -> Made:
        """Of exponentials and powers; `second`: it is E f² that is to exist or not, otherwise E f."""
        critical = (1 if second else 2) / (4 * variance)
        part = self.r.uniform(0.3, 0.88) if self.r.random() < 0.7 else self.r.uniform(1.1, 2.0)
        bell, exists = f"exp({part * critical:.4g}*{HERE}*{HERE})", part < 1
        k, n = log_number(self.r, 0.5 / self.unit, 6 / self.unit), self.r.integers(3, 7)
        forms = (
            (bell, exists),
            (f"{self.atom(self.affine())} + {bell}", exists),
            (f"{HERE}*{bell}", exists),
            (f"exp({k}*{HERE})", True),
            (f"sinh({k}*{HERE} - {number(self.r, 0, 1)})", True),
            (f"exp({k}*abs({HERE}))", True),
            (f"{HERE}**{n}", True),
            (f"relu({self.affine()})**{n}", True),
            (f"exp({k}*{HERE})*sin({log_number(self.r, 1 / self.unit, 5 / self.unit)}*{HERE})", True),
        )
        source, exists = forms[self.r.integers(len(forms))]
        return alone(source, values=exists, slopes=exists)


# ---- of several

ROOT = 0.5**0.5
TURNS: dict[int, tuple[tuple[tuple[float, ...], ...], ...]] = {
    1: (((1.0,),),),
    2: (((1.0, 0.0), (0.0, 1.0)), ((0.6, 0.8), (-0.8, 0.6)), ((ROOT, ROOT), (ROOT, -ROOT))),
    3: (
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ((2 / 3, -2 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3), (2 / 3, 1 / 3, -2 / 3)),
        ((0.6, 0.8, 0.0), (-0.8, 0.6, 0.0), (0.0, 0.0, 1.0)),
    ),
}


def combination(row: Sequence[float]) -> str:
    """Σ_k row_k (a, b, c)_k as source."""
    parts = [name if w == 1 else f"{w!r}*{name}" for w, name in zip(row, "abc", strict=False) if w]
    return parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"


def together(terms: Sources, turn: tuple[tuple[float, ...], ...]) -> Made:
    """Σ_r Π_k terms[r][k](u_k), written out."""
    names = [combination(row) for row in turn]
    products = [
        "*".join(f"({s.replace(HERE, u)})" for s, u in zip(term, names, strict=True) if s != "1") for term in terms
    ]
    known = tuple(tuple(s.replace(HERE, "a") for s in term) for term in terms)
    return Made(" + ".join(products), known, turn)


def several(maker: Maker, count: int) -> Made:
    """Of two or three Gaussians, in turned coordinates or in their own."""
    r = maker.r
    turn = TURNS[count][r.integers(len(TURNS[count]))]
    if count == 2 and r.random() < 0.6:
        return _special(maker, turn)
    terms = [[maker.any() for _ in range(count)] for _ in range(r.integers(1, 3))]
    return together(terms, turn)


def _special(maker: Maker, turn: tuple[tuple[float, ...], ...]) -> Made:
    """What steep, narrow and oscillating functions of two Gaussians are made of."""
    r, unit = maker.r, maker.unit
    k, t = log_number(r, 3 / unit, 50 / unit), number(r, -unit, unit)
    w, slow = log_number(r, 1 / unit, 8 / unit), log_number(r, 0.2 / unit**2, 2 / unit**2)
    width, plain, u = log_number(r, 0.5 / unit**2, 200 / unit**2), TURNS[2][0], HERE
    f, g = maker.smooth(0), maker.smooth(0)
    step = f"where({HERE} > {t}, 1.0, 0.0*{HERE})"
    forms: tuple[Callable[[], Made], ...] = (
        lambda: Made("maximum(a, b)", ((f"{ROOT!r}*a", "1"), ("1", f"abs({ROOT!r}*a)")), TURNS[2][2]),
        lambda: together([[u, f"sin({w}*{u})"]], turn),
        lambda: together([[u, f"sigmoid({k}*{u})"]], turn),
        lambda: together([[f"tanh({k}*({u} - {t}))", u]], turn),
        lambda: together([[f"relu({u})", f"relu({u} - {t})"]], turn),
        lambda: together([[f"sign({u} - {t})", f]], turn),
        lambda: together([[f"exp(-{width}*({u} - {t})*({u} - {t}))", f"exp(-{width}*{u}*{u})"]], turn),
        lambda: Made(
            f"where(a > {t}, {f.replace(HERE, 'b')}, {g.replace(HERE, 'b')})",
            tuple(tuple(s.replace(HERE, "a") for s in term) for term in ((step, f), (f"1 - {step}", g))),
            plain,
        ),
        lambda: Made(
            f"cos({slow}*(a*a + b*b))",
            ((f"cos({slow}*a*a)", f"cos({slow}*a*a)"), (f"-sin({slow}*a*a)", f"sin({slow}*a*a)")),
            plain,
        ),
    )
    return forms[r.integers(len(forms))]()
