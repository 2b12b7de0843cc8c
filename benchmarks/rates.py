"""Do finite networks of every architecture converge to a limit at the rate 1/√n, and to this limit and no other?

    python benchmarks/rates.py [names …] [--seeds 200 60 100] [--most 400] [--out docs/rates.md]

For each net of the zoo, NNGP and NTK, each output: the slope of log error against log width, and the floor. A slope
alone cannot see a limit that is a few per cent wrong; the floor, an unbiased estimate of what is left at the largest
width once sampling noise is taken out, can. With --out, results are kept as they come: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report

import tensorprog as tp
from tensorprog.nets import ZOO, net

KINDS = ("nngp", "ntk")
WIDTHS = (64, 256, 1024)
SEEDS = (200, 60, 100)
MOST = 400
NOISE = 0.005
"""How far the mean of finite kernels may be from its own limit by chance, where `MOST` seeds suffice for it."""
AGAIN = 4
"""A net that does not hold is measured once more, with so many times the networks, all of them others: of fifty right
kernels one is off by chance, and some have such heavy tails that the first networks say little."""
SMALL: dict[str, tuple[tuple[tp.Input, ...], dict[str, Any]]] = {
    **{name: ((tp.Input(4, 2),), {}) for name in ("cnn_flatten", "cnn_gap", "cnn_maxpool")},
    "resnet": ((tp.Input(4, 2),), {"depth": 1}),
    "wide_resnet": ((tp.Input(4, 2),), {"groups": 2}),
    "swiglu": ((), {"depth": 1}),
    "batchnorm_mlp": ((tp.Input(12, 13),), {"depth": 2}),
    "batchnorm_cnn": ((tp.Input(4, 2, 1, 2),), {"depth": 2, "window": (2, 1)}),
}
"""Nets that are others here than in the zoo: windows of fewer sites, since a wide network of nine matrices a layer is
slow; batches of more examples, since the gradients of small ones have heavy tails; one gated layer, since products of
products converge slowly (of two layers the mean kernel is 17, 6 and 0.4 ± 1.3 % off at n = 128, 512 and 2048)."""

Samples = dict[int, np.ndarray]


@dataclass(frozen=True)
class Rate:
    """log-log slope of the error against width with its standard error, the floor, and how well the floor is known.

    `floor` and `noise`, the root mean square distance of the mean of finite kernels from its expectation, are fractions
    of the limit.
    """

    slope: float
    se: float
    floor: float
    noise: float

    def holds(self) -> bool:
        return abs(self.slope + 0.5) <= 0.05 + 2 * self.se and self.se <= 0.05 and self.floor <= 0.01

    def __str__(self) -> str:
        return f"slope {self.slope:.3f} ± {self.se:.3f}, floor {100 * self.floor:.2f} %"


def rate(limit: Any, samples: Mapping[int, np.ndarray], error: Any = 0.0) -> Rate:
    """From samples (seeds, N1, N2, *S, *S) by width: the slope over all widths, the floor at the largest.

    `error`: standard errors of a limit that is itself estimated; what they add to squared distances is taken out.
    """
    limit = np.asarray(limit, dtype=np.float64)
    scale = np.linalg.norm(limit)
    known = float((np.broadcast_to(np.asarray(error, dtype=np.float64), limit.shape) ** 2).sum() / scale**2)
    widths = sorted(samples)
    logs, errors = [], []
    for width in widths:
        squared = ((samples[width] - limit) ** 2).reshape(len(samples[width]), -1).sum(1) / scale**2
        mean = max(squared.mean() - known, 1e-12)
        logs.append(0.5 * np.log(mean))
        errors.append(0.5 * squared.std(ddof=1) / np.sqrt(len(squared)) / mean)
    x = np.log(widths) - np.log(widths).mean()
    slope = float((x * logs).sum() / (x**2).sum())
    se = float(np.sqrt(((x * errors) ** 2).sum()) / (x**2).sum())
    top = samples[widths[-1]]
    noise = spread(top) ** 2 / len(top) / scale**2
    floor = ((top.mean(0) - limit) ** 2).sum() / scale**2 - noise - known
    return Rate(slope, se, float(np.sqrt(max(0.0, floor))), float(np.sqrt(noise)))


def spread(samples: np.ndarray) -> float:
    """Root mean square distance of kernels (seeds, …) from their mean, in the Frobenius norm."""
    return float(np.sqrt(((samples - samples.mean(0)) ** 2).sum() / (len(samples) - 1)))


def finite(program: tp.Program, x: Any, width: int) -> Callable[[int, int], list[dict[str, np.ndarray]]]:
    """draw(first, count): by output and kind, empirical kernels (count, N, N, *S, *S) of networks of one width.

    Both kernels come from the same parameters, in one compiled function. Everything is float32, the random draws too:
    under float64 they take most of the time.
    """
    program, x = jax.tree.map(lambda a: np.asarray(a, np.float32), (program, x))

    @jax.jit
    def one(key: jax.Array) -> list[dict[str, jax.Array]]:
        params = tp.init(program, key, width)
        nngp, ntk = (f(program, params, x) for f in (tp.empirical.nngp, tp.empirical.ntk))
        pairs = [(nngp, ntk)] if program.structure.single else list(zip(nngp, ntk, strict=True))
        return [dict(zip(KINDS, pair, strict=True)) for pair in pairs]

    def draw(first: int, count: int) -> list[dict[str, np.ndarray]]:
        with jax.enable_x64(False):
            key = jax.random.key(width)
            found = [one(jax.random.fold_in(key, seed)) for seed in range(first, first + count)]
        return jax.tree.map(lambda *a: np.stack([np.asarray(k, np.float64) for k in a]), *found)

    return draw


def networks(
    program: tp.Program,
    x: Any,
    widths: Sequence[int] = WIDTHS,
    seeds: Sequence[int] = SEEDS,
    most: int = MOST,
    *,
    first: int = 0,
    noise: float = NOISE,
) -> list[dict[str, Samples]]:
    """By output and kind, samples by width from seed `first` on; at the largest as many more as `noise` asks for."""
    found: list[dict[str, Samples]] = []
    for width, count in zip(widths, seeds, strict=True):
        draw = finite(program, x, width)
        drawn = draw(first, count)
        if width == widths[-1]:
            needed = max((spread(k) / np.linalg.norm(k.mean(0)) / noise) ** 2 for o in drawn for k in o.values())
            further = min(most, int(np.ceil(needed))) - count
            if further > 0:
                drawn = jax.tree.map(lambda a, b: np.concatenate([a, b]), drawn, draw(first + count, further))
        found = found or [{kind: {} for kind in KINDS} for _ in drawn]
        for output, kernels in zip(found, drawn, strict=True):
            for kind in KINDS:
                output[kind][width] = kernels[kind]
    return found


def limits(program: tp.Program, x: Any) -> list[dict[str, tuple[Any, Any]]]:
    """By output and kind (kernel, error): 0 for exact kernels, standard errors of those that are estimated."""
    if report.is_refused(program):  # W and Wᵀ forward
        found, sampled = tp.kernels(program, x, method="backward", error=True), True
    else:
        sampled = report.is_sampled(program)
        found = tp.kernels(program, x, error=sampled)
    outputs = [found] if program.structure.single else found
    return [{k: (getattr(o, k), getattr(o.error, k) if sampled else 0.0) for k in KINDS} for o in outputs]


def small(name: str) -> tuple[tp.Program, Any]:
    """A small instance of a net, and data for it: two batches for batch norm, three examples for all others.

    Standard normal inputs; data are positive, as adjacency matrices are.
    """
    inputs, keywords = SMALL.get(name, ((), {}))
    program = net(name).program(*inputs, **keywords)
    rng, count = np.random.default_rng(7), 2 if net(name).image.startswith("batch") else 3
    arrays = []
    for declared in program.structure.inputs:
        values = rng.normal(size=(count, *declared.shape))
        arrays.append(jnp.asarray(np.abs(values) if isinstance(declared, tp.Data) else values))
    return program, arrays[0] if len(arrays) == 1 else tuple(arrays)


@dataclass(frozen=True)
class Measured:
    """The rate of one kernel of one output; `error`: the relative standard error of its limit, `seeds` by width.

    `before`: what fewer networks gave, where they did not hold.
    """

    output: int | None
    kind: str
    rate: Rate
    error: float
    seeds: list[int]
    before: str = ""


def measure(
    name: str, widths: Sequence[int] = WIDTHS, seeds: Sequence[int] = SEEDS, most: int = MOST
) -> list[Measured]:
    """The rate test for every kernel of a net; all of them once more where one does not hold."""
    program, x = small(name)
    limit = limits(program, x)
    found = tested(program, limit, networks(program, x, widths, seeds, most))
    if not all(m.rate.holds() for m in found):
        more, noise = [AGAIN * count for count in seeds], NOISE / AGAIN**0.5
        drawn = networks(program, x, widths, more, AGAIN * most, first=max(most, *seeds), noise=noise)
        pairs = zip(found, tested(program, limit, drawn), strict=True)
        found = [replace(now, before="" if then.rate.holds() else str(then.rate)) for then, now in pairs]
    return found


def tested(
    program: tp.Program, limits: Sequence[dict[str, tuple[Any, Any]]], drawn: Sequence[dict[str, Samples]]
) -> list[Measured]:
    """The rate of each kernel of each output."""
    found = []
    for index, (limit, samples) in enumerate(zip(limits, drawn, strict=True)):
        for kind in KINDS:
            kernel, error = limit[kind]
            counts = [len(samples[kind][width]) for width in sorted(samples[kind])]
            output = None if program.structure.single else index
            fitted = rate(kernel, samples[kind], error)
            found.append(Measured(output, kind, fitted, report.relative(error, kernel), counts))
    return found


def rows(name: str, found: Sequence[Measured], time: report.Time) -> list[list[str]]:
    """Lines of the table; the time is that of all kernels of the net."""
    lines = []
    for i, m in enumerate(found):
        title = f"{name}, {m.kind.upper()}" + ("" if m.output is None else f" of output {m.output + 1}")
        lines.append([
            title, f"{m.rate.slope:.3f} ± {m.rate.se:.3f}", f"{100 * m.rate.floor:.2f} %",
            f"{100 * m.rate.noise:.2f} %", f"{100 * m.error:.2f} %" if m.error else "none",
            " / ".join(map(str, m.seeds)),
            ("yes" if m.rate.holds() else "**no**") + (f"; at first {m.before}" if m.before else ""),
            f"{time.cpu:.0f} s" if i == 0 else "",
        ])  # fmt: skip
    return lines


HEAD = ["kernel", "slope", "floor", "its noise", "limit's error", "seeds", "holds", "CPU"]


def document(lines: Sequence[Sequence[str]], nets: Sequence[str], widths: Sequence[int]) -> str:
    words = " / ".join(map(str, widths))
    missing = [name for name in ZOO if name not in nets]
    left = f"Not run: {', '.join(missing)}." if missing else "Every net of the zoo was run."
    return f"""# Finite networks against the limit

`python benchmarks/rates.py --out docs/rates.md` wrote this page, on {report.machine()}. {left}

Networks of widths {words} in float32, NNGP and NTK of each from the same parameters; limits in float64.

- slope of log ‖K_n − K‖ against log n, root mean square over seeds; it must be within 0.05 + 2 standard errors of −1/2,
  and its standard error at most 0.05;
- floor at the largest width: b̂² = ‖K̄ − K‖² − Σ_s‖K_s − K̄‖²/(S(S−1)), in units of ‖K‖, at most 1 %: what is left of the
  distance between the mean of S networks and the limit when sampling noise is taken out;
- its noise, √(Σ_s‖K_s − K̄‖²/(S(S−1)))/‖K‖: S grows until it is {100 * NOISE:.1f} % (half of that the second
  time), or S the most that was allowed;
- limit's error: ‖standard errors‖/‖K‖ where the limit itself is estimated from samples; it is taken out of squares too.

Inputs are standard normal (positive for adjacency matrices): three of the zoo's small instance, two batches for batch
norm, of 12 examples in the MLP; convolutions act on rows of 4 sites; `swiglu` has one gated layer: of two the mean
kernel is 17, 6 and 0.4 ± 1.3 % off at n = 128, 512, 2048, a deviation of finite width.

The floor of a right limit, whose noise is {100 * NOISE:.1f} %, is above 1 % about once in a hundred times, and some
kernels have heavy tails. So a net of which a row does not hold is measured once more, with {AGAIN} times as many
networks, all of them others; that is what stands, beside what was found at first.

{report.table(HEAD, lines)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="nets of the zoo; all by default")
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="networks of each width")
    parser.add_argument("--most", type=int, default=MOST, help="networks of the largest width at most")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args(argv)
    names = arguments.names or list(ZOO)
    for name in names:
        net(name)  # a name that is wrong is told before the work
    jax.config.update("jax_enable_x64", True)
    settings = {key: getattr(arguments, key) for key in ("widths", "seeds", "most")}
    kept = report.Kept(report.KEPT / "rates.json" if arguments.out else None, settings)

    def result(name: str) -> dict[str, Any]:
        found, time = report.timed(lambda: measure(name, **settings))
        jax.clear_caches()
        return {"found": [asdict(m) for m in found], "time": asdict(time)}

    lines, holds = [], True
    for name in names:
        made = kept.get(name, lambda name=name: result(name))
        found = [Measured(**{**m, "rate": Rate(**m["rate"])}) for m in made["found"]]
        lines += rows(name, found, report.Time(**made["time"]))
        holds = holds and all(m.rate.holds() for m in found)
        print("\n".join(" | ".join(line) for line in lines[-len(found) :]), flush=True)
    if arguments.out:
        arguments.out.write_text(document(lines, names, arguments.widths), encoding="utf-8")
        kept.done()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
