"""Do the bounds of `tensorprog.functions.general.pair` cover the error, and are they tight?

    python benchmarks/expectation_bounds.py --cases 1000 --seed 0

Draws pairs of functions (smooth, with kinks and jumps at random places, random slopes, compositions), variances
log-uniform in 1e-6 ... 1e4 and correlations of both signs up to 1 - 1e-12; computes E phi psi with a Gauss-Legendre
rule of fixed, much finer panels and exact kinks that shares no code with the library; prints quantiles of bound /
max(error, rounding) with rounding = 1e-14 E |phi psi| + 1e-30 sqrt(E phi^2 E psi^2) (far tails are not chased below
that), and fails unless all errors are covered, the median ratio is at most 10 and 99 % are at most 100.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import jax
import numpy as np
from scipy import special

REACH = 30.0
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class Case:
    """A function for JAX and the same for NumPy, its kinks, and places with the scale on which it changes there."""

    name: str
    fn: Callable
    numpy: Callable
    kinks: tuple[float, ...] = ()
    scale: float = 1.0  # of features, around the kinks and the origin; sin-like ones have it everywhere
    everywhere: bool = False


def families() -> dict[str, Callable[[np.random.Generator], Case]]:
    """Name -> draw of a function. `t`: a random kink, `k`: a random slope."""
    import jax.numpy as jnp

    def place(rng):
        return float(rng.normal() * 10 ** rng.uniform(-1, 0.5))

    def slope(rng):
        return float(10 ** rng.uniform(-1, 1))

    def smooth(name, fn, numpy, scale=1.0):
        def draw(rng):
            k = slope(rng)
            return Case(f"{name}({k:.3g} x)", lambda x: fn(k * x), lambda x: numpy(k * x), (), scale / k)

        return draw

    def kinked(name, fn, numpy, kinks, scale=1.0):
        def draw(rng):
            t, k = place(rng), slope(rng)
            places = tuple(t + x / k for x in kinks)
            title = f"{name}({k:.3g} (x - {t:.3g}))"
            return Case(title, lambda x: fn(k * (x - t)), lambda x: numpy(k * (x - t)), places, scale / k)

        return draw

    def clip(rng):
        low, high = sorted((place(rng), place(rng)))
        title = f"clip({low:.3g}, {high:.3g})"
        return Case(title, lambda x: jnp.clip(x, low, high), lambda x: np.clip(x, low, high), (low, high))

    def waves(rng):
        k = slope(rng) / 3
        return Case(f"cos({k:.3g} x)", lambda x: jnp.cos(k * x), lambda x: np.cos(k * x), (), 1 / k, True)

    def composed(rng):
        t, k = place(rng), slope(rng)
        return Case(f"tanh(relu({k:.3g} (x - {t:.3g})))", lambda x: jnp.tanh(jax.nn.relu(k * (x - t))),
                    lambda x: np.tanh(np.maximum(k * (x - t), 0)), (t,), 1 / k)  # fmt: skip

    def elu(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    silu = lambda x: x * special.expit(x)
    gelu = lambda x: x * special.ndtr(x)
    return {
        "tanh": smooth("tanh", jnp.tanh, np.tanh),
        "erf": smooth("erf", jax.scipy.special.erf, special.erf),
        "sigmoid": smooth("sigmoid", jax.nn.sigmoid, special.expit),
        "softplus": smooth("softplus", jax.nn.softplus, lambda x: np.logaddexp(x, 0)),
        "silu": smooth("silu", jax.nn.silu, silu),
        "gelu": smooth("gelu", lambda x: jax.nn.gelu(x, approximate=False), gelu),
        "bump": smooth("exp(-x^2)", lambda x: jnp.exp(-x * x), lambda x: np.exp(-x * x)),
        "cubic": smooth("x + x^3", lambda x: x + x**3, lambda x: x + x**3),
        "waves": waves,
        "relu": kinked("relu", jax.nn.relu, lambda x: np.maximum(x, 0), (0.0,)),
        "abs": kinked("abs", jnp.abs, np.abs, (0.0,)),
        "step": kinked("step", lambda x: jnp.where(x > 0, 1.0, 0.0), lambda x: np.where(x > 0, 1.0, 0.0), (0.0,)),
        "sign": kinked("sign", jnp.sign, np.sign, (0.0,)),
        "hard tanh": kinked("hard_tanh", jax.nn.hard_tanh, lambda x: np.clip(x, -1, 1), (-1.0, 1.0)),
        "relu6": kinked("relu6", jax.nn.relu6, lambda x: np.clip(x, 0, 6), (0.0, 6.0)),
        "elu": kinked("elu", jax.nn.elu, elu, (0.0,)),
        "leaky": kinked("leaky", jax.nn.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x), (0.0,)),
        "x relu": kinked("x relu", lambda x: x * jax.nn.relu(x), lambda x: x * np.maximum(x, 0), (0.0,)),
        "clip": clip,
        "composed": composed,
    }


def _edges(case: Case, sd: float, low: float, high: float, centres=(), width: float = 0.0) -> np.ndarray:
    """Edges of panels in standard units on [low, high]: even ones, kinks, graded ones around kinks and the origin."""
    edges = [low, high, *np.arange(np.ceil(low), high, 1.0)]
    for place in (0.0, *case.kinks):
        graded = case.scale / sd * 0.35 * 1.5 ** np.arange(0, 60)
        edges += [place / sd, *(place / sd + graded), *(place / sd - graded)]
    if case.everywhere:
        edges += list(np.arange(low, high, 2.5 * case.scale / sd))
    for centre in centres:
        layers = width * np.array([0.5, 1.0, 1.5, 2, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 40, 60])
        edges += [centre, *(centre + layers), *(centre - layers)]
    edges = np.unique(np.clip(edges, low, high))
    return edges


def _rule(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = np.diff(edges)[:, None] / 2
    return ((edges[1:] + edges[:-1])[:, None] / 2 + half * NODES).ravel(), (half * WEIGHTS).ravel()


def exact_correlation(a: float, b: float, c: float) -> tuple[float, float]:
    """(r, sqrt(1 - r^2)) for the floats as they are."""
    gap = 1 - Fraction(c) ** 2 / (Fraction(a) * Fraction(b))
    return float(np.clip(c / (np.sqrt(a) * np.sqrt(b)), -1, 1)), float(np.sqrt(float(max(gap, Fraction(0)))))


def truth(one: Case, two: Case, a: float, b: float, c: float) -> tuple[float, float, float]:
    """(E phi psi, E |phi psi|, sqrt(E phi^2 E psi^2))."""
    sa, sb = np.sqrt(a), np.sqrt(b)
    r, s = exact_correlation(a, b, c)
    density = lambda z: np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    # Layers where psi's features (kinks, and the origin's scale) are smoothed by the conditional spread s.
    centres = [place / sb / r for place in (0.0, *two.kinks)] if abs(r) > 0.05 else []
    x_edges = _edges(one, sa, -REACH, REACH, centres, max(s, 1e-13))
    if abs(r) > 0.05:
        seen = _edges(two, sb, -REACH, REACH) / r
        x_edges = np.unique(np.concatenate([x_edges, seen[np.abs(seen) < REACH]]))
    x, wx = _rule(x_edges)
    wx = wx * density(x)
    phi = one.numpy(sa * x)
    keep = np.abs(phi) * wx > 1e-290
    value = size = 0.0
    if s == 0:
        psi = two.numpy(sb * r * x)
        value, size = float(np.sum(wx * phi * psi)), float(np.sum(wx * np.abs(phi * psi)))
    else:
        cuts = _edges(two, sb, -REACH, REACH)
        largest = np.abs(two.numpy(sb * np.linspace(-REACH, REACH, 201))).max()
        for xi, weight, f in zip(x[keep], wx[keep], phi[keep], strict=True):
            for end in (10.5, REACH):
                w_edges = (cuts - r * xi) / s
                w_edges = np.concatenate([w_edges[np.abs(w_edges) < end], np.arange(-end, end + 0.1, 1.5)])
                w, ww = _rule(np.unique(w_edges))
                psi = two.numpy(sb * (r * xi + s * w)) * ww * density(w)
                if np.abs(psi).sum() > 1e-10 * largest:
                    break  # else psi is zero near its conditional mean: what matters lies further out
            value += weight * f * psi.sum()
            size += weight * abs(f) * np.abs(psi).sum()
    scale = 1.0
    for case, sd in ((one, sa), (two, sb)):
        z, wz = _rule(_edges(case, sd, -REACH, REACH))
        scale *= np.sqrt(np.sum(wz * density(z) * case.numpy(sd * z) ** 2))
    return value, size, float(scale)


def draw(rng: np.random.Generator, cases: int) -> list[tuple[Case, Case, float, float, float]]:
    made = []
    table = families()
    names = list(table)
    for _ in range(cases):
        one = table[rng.choice(names)](rng)
        two = one if rng.random() < 0.5 else table[rng.choice(names)](rng)
        a, b = 10 ** rng.uniform(-6, 4, 2)
        if rng.random() < 0.3:
            b = a
        rho = rng.uniform(-1, 1) if rng.random() < 0.5 else rng.choice([-1, 1]) * (1 - 10 ** -rng.uniform(0, 12))
        if rng.random() < 0.03:
            rho = rng.choice([-1.0, 1.0])
        made.append((one, two, float(a), float(b), float(rho * np.sqrt(a * b))))
    return made


def measure(cases: int, seed: int, functions: int = 25, progress: bool = False) -> list[dict]:
    """Value, bound, truth for each case. Cases share `functions` pairs of functions, so that compilation is not all."""
    import jax.numpy as jnp

    from tensorprog.functions.general import pair

    rng = np.random.default_rng(seed)
    rows = []
    each = -(-cases // functions)
    for group, (one, two, *_) in enumerate(draw(rng, functions)):
        drawn = [d[2:] for d in draw(rng, each)]
        compiled = jax.jit(lambda a, b, c, one=one, two=two: pair(one.fn, two.fn, a, b, c))
        value, bound = compiled(*(jnp.asarray(column) for column in zip(*drawn, strict=True)))
        for (a, b, c), v, bd in zip(drawn, np.asarray(value), np.asarray(bound), strict=True):
            exact, size, scale = truth(one, two, a, b, c)
            row = {"one": one.name, "two": two.name, "a": a, "b": b, "r": exact_correlation(a, b, c)[0]}
            rows.append(row | {"value": v, "bound": bd, "exact": exact, "size": size, "scale": scale})
        if progress:
            print(f"\r{group + 1}/{functions} pairs of functions", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return rows[:cases]


def ratios(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bound / max(error, rounding), covered, error / scale); a case of size 0 must have error and bound 0."""
    error = np.array([abs(r["value"] - r["exact"]) for r in rows])
    # The truth has rounding of its own, some eps of the size: an error below it is not held against a bound.
    own = np.array([4e-15 * r["size"] for r in rows])
    floor = np.array([1e-14 * r["size"] + 1e-30 * r["scale"] for r in rows]) + 1e-150
    bound = np.array([r["bound"] for r in rows])
    scale = np.array([max(r["scale"], 1e-150) for r in rows])
    return bound / np.maximum(error, floor), error <= bound + own, error / scale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--functions", type=int, default=40, help="pairs of functions among the cases")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = measure(arguments.cases, arguments.seed, arguments.functions, progress=True)
    ratio, covered, relative = ratios(rows)
    print("quantile of bound / max(error, 1e-14 E|phi psi|):")
    for q in (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0):
        print(f"  {q:5.0%}  {np.quantile(ratio, q):10.3g}")
    print(f"covered {covered.sum()} of {len(rows)};  error / sqrt(E phi^2 E psi^2): max {relative.max():.1e}, median "
          f"{np.median(relative):.1e}")  # fmt: skip
    print("worst ratios, then worst errors, then uncovered:")
    order = [*np.argsort(-ratio)[:8], *np.argsort(-relative)[:5], *np.flatnonzero(~covered)[:10]]
    for i in order:
        r = rows[i]
        place = f"a {r['a']:.2e} b {r['b']:.2e} 1-|r| {1 - abs(r['r']):.1e} sign {np.sign(r['r']):+.0f}"
        found = f"error {abs(r['value'] - r['exact']):.1e} bound {r['bound']:.1e} size {r['size']:.1e}"
        print(f"  {r['one']:32s} {r['two']:32s} {place} {found} scale {r['scale']:.1e} ratio {ratio[i]:.1e}")
    good = covered.all() and np.median(ratio) <= 10 and np.quantile(ratio, 0.99) <= 100
    print("holds" if good else "FAILS")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
