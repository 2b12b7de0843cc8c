"""Cases of the hunt from seeds, with their truths, as written by this command to `benchmarks/data/hunt.json`.

A case is a small program (functions as sources, numbers, inputs) and what is asked of it. Running the cases needs none
of this file, only what it wrote: truths take minutes, and are looked at once.

Truths of kernels are those of input 0 with each input, and of each input with itself. `None` where an expectation does
not exist: there a refusal is right, and any number is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hunt_functions import Made, Maker, alone, log_number, several, together
from hunt_kernels import Case, Numbers, covariance, layers, products, slopes_in_variance
from hunt_points import Function
from hunt_truths import Costly, mean

PATH = Path(__file__).parent / "data" / "hunt.json"
EACH = 50
WORST = 1e-8
"""A truth that is less certain, as a part of its natural scale, makes no case."""
Random = np.random.Generator


def load(path: Path = PATH) -> list[Case]:
    return [Case(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- inputs


def circle(r: Random, near: float = 1e-5, *, scale: float = 1.0, few: bool = False) -> np.ndarray:
    """Two features: two equal inputs, a near one, one anywhere, one nearly opposite, one opposite."""
    angles = [0.0, 0.0, 10 ** r.uniform(math.log10(near), math.log10(max(0.3, 2 * near))), r.uniform(0.3, 2.8),
              math.pi - 10 ** r.uniform(math.log10(max(near, 1e-3)), -0.5), math.pi]  # fmt: skip
    norms = np.full(len(angles), scale)
    if r.random() < 0.3:
        norms[2:5] *= r.uniform(0.5, 1.5, 3)
    x = math.sqrt(2) * norms[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    x = np.array([[float(f"{v:.9g}") for v in row] for row in x.tolist()])
    x[1], x[5] = x[0], -x[0]
    return x[[0, 3, 4]] if few else x


def settle(case: Case, at: Callable[[np.ndarray, np.ndarray], Numbers], kinds: tuple[str, ...]) -> Case | None:
    """The case with its truths: input 0 with each, each with itself; nothing where a truth is not certain."""
    x = case.inputs
    known: dict[tuple[bytes, bytes], Numbers] = {}

    def entry(i: int, j: int) -> Numbers:
        key = (x[i].tobytes(), x[j].tobytes())
        if key not in known:
            known[key] = at(x[i], x[j])
        return known[key]

    case.truth = {}
    rows = [entry(0, j) for j in range(len(x))]
    diagonal = [entry(j, j) for j in range(len(x))]
    for kind in kinds:
        values = [[e[kind][0] for e in part] for part in (rows, diagonal)]
        errors = [[e[kind][1] for e in part] for part in (rows, diagonal)]
        own = np.array(values[1])
        if case.ask in ("slope", "slopes"):
            scale = np.full(len(x), max(np.abs(values).max(), diagonal[0][kind][2]))
        else:
            scale = np.sqrt(own[0] * own)
        limits = (1e-25, 1e25) if case.dtype == "float32" else (1e-250, 1e250)
        if not (np.isfinite(scale).all() and limits[0] < scale.min() <= scale.max() < limits[1]):
            return None
        if (np.array(errors) > WORST * np.stack([scale, own if case.ask == "kernels" else scale])).any():
            return None
        case.truth[kind] = {"row": values[0], "diagonal": values[1], "errors": errors, "scale": scale.tolist()}
    return case


# ---- kinds


def scales(r: Random, kind: str) -> tuple[float, float]:
    """(size of the inputs, unit of the functions): one in four far from 1, most of these with functions to match."""
    if r.random() < 0.75:
        return 1.0, 1.0
    size = float(f"{10 ** r.uniform(-6, 3):.2g}")
    if size < 1 and r.random() < 0.5 and kind != "jumps":
        return size, 1.0  # functions in their linear range
    return size, size


def precision(r: Random) -> str:
    return "float32" if r.random() < 0.25 else "float64"


def one_layer(r: Random, kind: str, seed: int, source: str, size: float, **more: Any) -> Case:
    bias = float(r.choice([0.0, 0.0, 0.1])) * size**2
    var = float(f"{r.uniform(0.5, 2.5):.2g}")
    return Case(kind, seed, "chain", "kernels", [source], [var], circle(r, scale=size).tolist(), precision(r), [bias],
                error=bool(r.random() < 0.35), cross=bool(r.random() < 0.3), **more)  # fmt: skip


def plain(kind: str, name: str) -> Callable[[Random, int], Case | None]:
    def make(r: Random, seed: int) -> Case | None:
        size, unit = scales(r, kind)
        steep = float(r.choice([3.0, 3.0, 3.0, 40.0]))
        source = alone(getattr(Maker(r, unit, steep), name)()).source
        case = one_layer(r, kind, seed, source, size)
        return settle(case, lambda x, y: layers(case, x, y, True), ("nngp", "ntk"))

    return make


def poles(r: Random, seed: int) -> Case | None:
    var = float(f"{r.uniform(0.5, 2.5):.2g}")
    made = Maker(r, math.sqrt(var)).pole()
    ask = "kernels" if r.random() < (0.3 if made.values and not made.slopes else 0.7) else "nngp"
    x = circle(r, 0.15).tolist()
    case = Case("poles", seed, "chain", ask, [made.source], [var], x, precision(r), error=bool(r.random() < 0.35))
    if not (made.values and (made.slopes or ask == "nngp")):
        case.truth = None
        return case
    kinds = ("nngp", "ntk") if ask == "kernels" else ("nngp",)
    return settle(case, lambda x, y: layers(case, x, y, ask == "kernels"), kinds)


def growth(r: Random, seed: int) -> Case | None:
    var = float(f"{r.uniform(0.5, 2.5):.2g}")
    x = circle(r)
    largest = var / 2 * float((x**2).sum(1).max())
    made = Maker(r, math.sqrt(largest)).growing(largest)
    case = Case("growth", seed, "chain", "kernels", [made.source], [var], x.tolist(), precision(r),
                error=bool(r.random() < 0.35), cross=bool(r.random() < 0.3))  # fmt: skip
    if not made.values:
        case.truth = None
        return case
    return settle(case, lambda x, y: layers(case, x, y, True), ("nngp", "ntk"))


def gaussians(count: int) -> Callable[[Random, int], Case | None]:
    kind = {2: "two", 3: "three"}[count]

    def make(r: Random, seed: int) -> Case | None:
        size = 1.0 if r.random() < 0.85 else float(f"{10 ** r.uniform(-6, 3):.2g}")
        steep = float(r.choice([2.0, 2.0, 10.0]))
        made = several(Maker(r, size, steep), count)
        variances = [float(f"{v:.2g}") for v in r.uniform(0.5, 2.0, count)]
        variances = [variances[0]] * count if made.turned else variances
        x = circle(r, 1e-3, scale=size)[[0, 1, 2, 3, 5] if count == 2 else [0, 2, 3, 5]]
        case = Case(kind, seed, "several", "kernels", [made.source], variances, x.tolist(), precision(r),
                    error=count == 3 or bool(r.random() < 0.5))  # fmt: skip
        return settle(case, lambda x, y: products(case, made, x, y), ("nngp", "ntk"))

    return make


def moments(r: Random, seed: int) -> Case | None:
    """E f of one to three Gaussians, narrow bells among them; or a layer times a moment."""
    if r.random() < 0.2:
        return _scaled(r, seed)
    count = int(r.choice([1, 1, 2, 3]))
    variances = [float(f"{v:.2g}") for v in r.uniform(0.5, 2.0, count)]
    maker = Maker(r, 1.0, float(r.choice([3.0, 20.0])))
    choice = r.random()
    if count == 1:
        variances = variances[:1]
        what = int(r.integers(4))
        if what == 0:
            made = alone(maker.any())
        elif what == 1:
            made = _pole_of_moments(maker)
        else:
            made = maker.growing(variances[0], second=False)
    elif choice < 0.3:
        k = log_number(r, 10, 3000)
        centres = [f"{r.uniform(-1.5, 1.5):.3g}" for _ in range(count)]
        bells = [f"exp(-{k}*(@ - {c})*(@ - {c}))" for c in centres]
        made = together([bells], tuple(tuple(row) for row in np.eye(count).tolist()))
    else:
        made = several(maker, count)
        variances = [variances[0]] * count if made.turned else variances
    x = circle(r, few=True)[: 2 if r.random() < 0.5 else 1]
    case = Case("moments", seed, "moment", "limit", [made.source], variances, x.tolist(), precision(r))
    if not made.values:
        case.truth = None
        return case
    values, errors, sizes = [], [], []
    for row in case.inputs.astype(float):
        parts, sized = [], []
        for k, var in enumerate(variances):
            fn = Function(*[term[k] for term in made.terms])
            parts.append(mean(fn, var / 2 * float(row @ row)))
            sized.append(mean(fn, var / 2 * float(row @ row), size=True)[0])
        values.append(float(np.prod([p[0] for p in parts], axis=0).sum()))
        errors.append(float(sum(np.prod([p[1] if i == k else np.abs(p[0]) for i, p in enumerate(parts)], axis=0).sum()
                                for k in range(len(parts)))))  # fmt: skip
        sizes.append(float(np.prod(sized, axis=0).sum()))
    bound = 1e25 if case.dtype == "float32" else 1e250
    if not (1 / bound < min(sizes) and max(sizes) < bound) or max(np.array(errors) / sizes) > WORST:
        return None
    case.truth = {"limit": {"row": values, "errors": errors, "scale": sizes}}
    return case


def _scaled(r: Random, seed: int) -> Case | None:
    """The moment passes through to the kernels as a number of each input; no gradient does in the limit."""
    maker = Maker(r)
    made = _pole_of_moments(maker) if r.random() < 0.5 else alone(maker.any())
    variance, x = float(f"{r.uniform(0.5, 2.0):.2g}"), circle(r, 1e-3)[[0, 2, 3, 5]]
    case = Case("moments", seed, "scaled", "kernels", [alone(maker.smooth(0)).source, made.source], [variance],
                x.tolist(), precision(r), error=bool(r.random() < 0.5))  # fmt: skip
    if not made.values:
        case.truth = None
        return case

    def at(x: np.ndarray, y: np.ndarray) -> Numbers:
        cov = covariance(x, y, variance)
        own = layers(Case(**{**asdict(case), "functions": case.functions[:1]}), x, y, True)
        (one, error), (two, more) = (mean(Function(made.source), q) for q in (cov.first, cov.second))
        by, part = float(one[0] * two[0]), float(error[0] / abs(one[0]) + more[0] / abs(two[0]))
        return {kind: (by * k, abs(by) * e + abs(by * k) * part) for kind, (k, e) in own.items()}

    return settle(case, at, ("nngp", "ntk"))


def _pole_of_moments(maker: Maker) -> Made:
    c, r = f"{maker.r.uniform(-1.5, 1.5):.3g}", maker.r
    forms = ((f"log(abs(a - {c}))", True), (f"abs(a - {c})**-{r.uniform(0.1, 0.7):.2g}", True),
             (f"1/abs(a - {c})", False), (f"abs(a - {c})**-{r.uniform(1.1, 2):.2g}", False))  # fmt: skip
    source, exists = forms[r.integers(4)]
    return alone(source, values=exists)


def derivatives(r: Random, seed: int) -> Case | None:
    """In the first weight's variance."""
    x = circle(r, 1e-2)[[0, 2, 3, 5]]
    if r.random() < 0.2:
        made = several(Maker(r, 1.0, 3.0), 2)
        variances = [float(f"{v:.2g}") for v in r.uniform(0.5, 2.0, 2)]
        if made.turned:
            return None
        case = Case("derivatives", seed, "several", "slope", [made.source], variances, x.tolist(), precision(r))
        return settle(case, lambda x, y: slopes_in_variance(case, made, x, y), ("nngp",))
    name = str(r.choice(["smooth", "kinked", "jumping"]))
    source = alone(getattr(Maker(r, 1.0, float(r.choice([3.0, 15.0]))), name)()).source
    case = one_layer(r, "derivatives", seed, source, 1.0)
    case.ask, case.error, case.x = "slope" if name == "jumping" else "slopes", False, x.tolist()
    kinds = ("nngp",) if name == "jumping" else ("nngp", "ntk")
    return settle(case, lambda x, y: slopes_in_variance(case, None, x, y), kinds)


def networks(r: Random, seed: int) -> Case | None:
    """Two or three layers; a few of them with an identity branch around the last."""
    depth = int(r.integers(2, 4))
    maker = Maker(r, 1.0, float(r.choice([2.0, 2.0, 10.0])))
    sources = [alone(maker.any() if r.random() < 0.3 else maker.smooth()).source for _ in range(depth)]
    variances = [float(f"{v:.2g}") for v in r.uniform(0.5, 2.0, depth)]
    biases = [float(f"{v:.2g}") for v in r.uniform(0.0, 0.3, depth)]
    residual = float(r.choice([0.0, 0.0, 0.7]))
    case = Case("networks", seed, "chain", "kernels", sources, variances, circle(r, 3e-2).tolist(), precision(r),
                biases, residual, error=bool(r.random() < 0.35))  # fmt: skip
    return settle(case, lambda x, y: layers(case, x, y, True), ("nngp", "ntk"))


KINDS: dict[str, Callable[[Random, int], Case | None]] = {
    "smooth": plain("smooth", "smooth"),
    "kinked": plain("kinked", "kinked"),
    "jumps": plain("jumps", "jumping"),
    "poles": poles,
    "growth": growth,
    "two": gaussians(2),
    "three": gaussians(3),
    "moments": moments,
    "derivatives": derivatives,
    "networks": networks,
}


def case(kind: str, seed: int) -> Case:
    """The case of a seed: the first of its draws whose truth is certain."""
    for attempt in range(1000):
        r = np.random.default_rng([seed, attempt, list(KINDS).index(kind)])
        try:
            made = KINDS[kind](r, seed)
        except Costly:
            continue
        if made is not None:
            return made
    raise AssertionError(f"no case of {kind} from seed {seed}")


def text(case: Case) -> str:
    """A line of the file: truths to 13 digits, the largest of their errors as a part of the natural scale."""

    def rounded(a: Any) -> Any:
        if isinstance(a, list):
            return [rounded(v) for v in a]
        return float(f"{a:.13g}") if isinstance(a, float) else a

    fields = asdict(case)
    for known in (fields["truth"] or {}).values():
        if not isinstance(known["errors"], float):
            known["errors"] = float(f"{(np.array(known['errors']) / known['scale']).max():.1e}")
        known.update({name: rounded(value) for name, value in known.items()})
        if case.ask in ("kernels", "nngp"):
            known.pop("scale", None)  # the diagonal says it
    return json.dumps(fields)


def line(which: tuple[str, int]) -> str:
    """The line of a kind and a seed."""
    return text(case(*which))


def lines(kinds: list[str], seeds: range, workers: int) -> Iterator[str]:
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(line, [(kind, seed) for seed in seeds for kind in kinds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, EACH), metavar=("FIRST", "END"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("w", encoding="utf-8") as file:
        for line in lines(list(arguments.kinds), range(*arguments.seeds), arguments.workers):
            print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
