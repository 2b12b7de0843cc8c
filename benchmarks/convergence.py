"""The papers' figure: how fast the NTK of finite networks comes to its limit, for an RNN, a transformer and batch norm.

    python benchmarks/convergence.py [--widths 64 128 256 512 1024 2048] [--seeds 100] [--out docs/convergence.md]

Relative Frobenius errors ‖Θ_n − Θ‖/‖Θ‖ over widths and seeds, the fitted law a n^b beside the published one, as a table
and a picture. Networks and inputs are those of the reference cases in `tests/data/paper.json`, batch norm's inputs
standard normal; the trained parameters have their own variances ("init-std").
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report

import tensorprog as tp
from tensorprog.comparison import fitted_rate
from tensorprog.nets import net
from tensorprog.plot import figure, save

PAPER = Path(__file__).parent.parent / "tests" / "data" / "paper.npz"


@dataclass(frozen=True)
class Figure:
    """A curve of the figure: the net, its inputs, and the law a n^b that was published for it (2006.14548)."""

    title: str
    net: str
    inputs: str | tuple[int, ...]
    published: tuple[float, float]
    words: str
    keywords: dict[str, Any] = field(default_factory=dict)

    def program(self, shape: tuple[int, ...]) -> tp.Program:
        """The program under the papers' convention: the multiplier √var of each parameter taken out of its gradient."""
        program = net(self.net).program(tp.Input(*shape), **self.keywords)
        variances = {p.name: float(program.numbers[f"{p.name}.var"]) for p in program.structure.parameters}
        return program.replace({f"{name}.lr": 1 / var for name, var in variances.items()})

    def data(self) -> np.ndarray:
        """The inputs of a reference case, or standard normal ones of a shape."""
        if not isinstance(self.inputs, str):
            return np.random.default_rng(0).normal(size=self.inputs)
        with np.load(PAPER) as arrays:
            return arrays[f"{self.inputs}/inputs"]


FIGURES = (
    Figure(
        "RNN, average pool", "rnn_mean", "rnn_ntk/nb/avgpool", (1.76, -0.497),
        "erf, W and its uses tied over 5 steps, σ_w² = 1, σ_u² = 2, σ_b² = 0.2; two sequences of 3 features",
        {"fn": jax.scipy.special.erf, "var_w": 1.0, "var_u": 2.0, "var_b": 0.2},
    ),
    Figure(
        "transformer", "transformer", "transformer_ntk/A/depth1_vw1.0_vu1.0_vv1.0", (1.1, -0.519),
        "one block, relu, queries, keys and values tied, all variances 1; two sequences of 5 tokens, 3 features",
        {"depth": 1},
    ),
    Figure(
        "batch norm", "batchnorm_mlp", (2, 12, 13), (3.4, -0.461),
        "two layers, relu, no ε; two batches of 12 examples of 13 standard normal features",
        {"depth": 2},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Law:
    """a n^b, and the standard error of b."""

    a: float
    b: float
    se: float


def law(found: tp.Comparison) -> Law:
    """The law through the root mean squares over seeds, as `Comparison.rates` fits its slope."""
    errors = found.errors["ntk"]
    slope, se = fitted_rate(found.widths, errors)
    logs = 0.5 * np.log((errors**2).mean(1))
    return Law(float(np.exp((logs - slope * np.log(found.widths)).mean())), slope, se)


def picture(found: Sequence[tuple[Figure, tp.Comparison, Law]], path: Path) -> None:
    """Errors with their spread over seeds, the fitted law, and the published one."""
    made = figure(12, 3.6)
    axes = made.subplots(1, len(found), squeeze=False)[0]
    for axis, (curve, comparison, fit) in zip(axes, found, strict=True):
        widths, errors = np.array(comparison.widths, dtype=float), comparison.errors["ntk"]
        axis.errorbar(widths, errors.mean(1), errors.std(1, ddof=1), fmt="o", capsize=3, label="finite networks")
        axis.plot(widths, fit.a * widths**fit.b, label=f"{fit.a:.2f} n^{fit.b:.3f}")
        a, b = curve.published
        axis.plot(widths, a * widths**b, "k--", linewidth=1, label=f"published {a} n^{b}")
        axis.set(xscale="log", yscale="log", xlabel="width", title=curve.title)
        axis.set_xticks(widths, map(str, comparison.widths))
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("relative error of the NTK")
    save(made, path)


def document(found: Sequence[tuple[Figure, tp.Comparison, Law]], image: str) -> str:
    def cells(curve: Figure, comparison: tp.Comparison, fit: Law) -> list[str]:
        errors = comparison.errors["ntk"]
        means = [f"{row.mean():.3f}" for row in errors]
        a, b = curve.published
        return [curve.title, *means, f"{fit.a:.2f} n^{fit.b:.3f}", f"{fit.se:.3f}", f"{a} n^{b}"]

    first = found[0][1]
    seeds = first.errors["ntk"].shape[1]
    head = ["network", *[f"n = {width}" for width in first.widths], "fitted", "± exponent", "published"]
    nets = "\n".join(f"- {curve.title}: {curve.words}." for curve, *_ in found)
    return f"""# Convergence of the NTK

`python benchmarks/convergence.py --out docs/convergence.md` wrote this page and its picture, in float32.

Relative Frobenius error ‖Θ_n − Θ‖/‖Θ‖ of the NTK of networks of width n, mean over {seeds} seeds; the
law a n^b is fitted to the root mean square. The theory says b = −1/2. The constant depends on the inputs and the
hyperparameters. Those of the published curves (Tensor Programs II, 2006.14548) were sentences of embedded words and
images; here they are:

{nets}

{report.table(head, [cells(*one) for one in found])}

![Relative error against width]({image})
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=(64, 128, 256, 512, 1024, 2048))
    parser.add_argument("--seeds", type=int, default=100, help="networks of each width")
    parser.add_argument("--nets", nargs="*", choices=[curve.net for curve in FIGURES], help="only these")
    parser.add_argument("--out", type=Path, help="write table (.md) and picture (.svg beside it)")
    arguments = parser.parse_args(argv)
    found = []
    for curve in FIGURES:
        if arguments.nets and curve.net not in arguments.nets:
            continue
        x = jnp.asarray(curve.data(), jnp.float32)
        made, time = report.timed(
            lambda curve=curve, x=x: tp.compare(
                curve.program(x.shape[1:]), x, widths=arguments.widths, seeds=arguments.seeds
            )
        )
        found.append((curve, made, law(made)))
        fit, (a, b) = found[-1][2], curve.published
        print(f"{curve.title}: {fit.a:.2f} n^{fit.b:.3f} ± {fit.se:.3f}, published {a} n^{b} ({time.wall:.0f} s, "
              f"CPU {time.cpu:.0f} s)", flush=True)  # fmt: skip
    if arguments.out:
        image = arguments.out.with_suffix(".svg")
        picture(found, image)
        arguments.out.write_text(document(found, image.name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
