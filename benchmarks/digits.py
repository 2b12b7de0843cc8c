"""Kernel regression on handwritten digits through several architectures, on a held-out half.

    python benchmarks/digits.py [--count 500] [--sampled-count 300] [--out docs/digits.md]

Images of scikit-learn's digits, half of them to learn from, half held out; one-hot targets, kernels of infinitely wide
networks with the zoo's own hyperparameters (nothing is tuned), and beside them nearest neighbours and a support vector
machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import report
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

import tensorprog as tp
from tensorprog.nets import net

SHAPES: dict[str, tuple[int, ...]] = {"flat": (64,), "rows": (8, 8), "pixels": (8, 8, 1)}
NETS = ("mlp", "rnn", "transformer", "cnn_gap", "gru")
CLASSES = 10


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` digits drawn without replacement, standardised as a whole, and their labels; the first half learns."""
    pixels, labels = cast("tuple[np.ndarray, np.ndarray]", load_digits(return_X_y=True))
    chosen = np.random.default_rng(seed).permutation(len(pixels))[:count]
    return ((pixels - pixels.mean()) / pixels.std())[chosen], labels[chosen]


def accuracy(kernel: Any, labels: np.ndarray, ridge: float) -> float:
    """Of argmax K_* (K + λ I)⁻¹ Y on the second half; λ is `ridge` times the mean of K's diagonal."""
    half = len(labels) // 2
    kernel = jnp.asarray(kernel, jnp.float64)
    train = kernel[:half, :half]
    targets = jax.nn.one_hot(labels[:half], CLASSES, dtype=kernel.dtype) - 1 / CLASSES
    weights = jnp.linalg.solve(train + ridge * jnp.trace(train) / half * jnp.eye(half), targets)
    return float((np.argmax(kernel[half:, :half] @ weights, axis=1) == labels[half:]).mean())


def through(name: str, count: int, seed: int, ridge: float, samples: int | None) -> dict[str, Any]:
    """Both kernels of one net in float32: accuracies, standard errors of sampled ones, and the time of both."""
    pixels, labels = images(count, seed)
    shape = SHAPES[net(name).image]
    x = jnp.asarray(pixels.reshape(count, *shape), jnp.float32)
    program = net(name).program(tp.Input(*shape))
    sampled = report.is_sampled(program)
    draws = {"samples": samples, "error": True} if sampled else {}
    kernels, time = report.timed(lambda: tp.kernels(program, x, **draws))
    found: dict[str, Any] = {"count": count, "time": asdict(time)}
    for kind in ("nngp", "ntk"):
        kernel = getattr(kernels, kind)
        error = report.relative(getattr(kernels.error, kind), kernel) if sampled else None
        found[kind] = {"accuracy": accuracy(kernel, labels, ridge), "error": error}
    return found


def beside(count: int, seed: int) -> list[tuple[str, float]]:
    """What other methods make of the same images."""
    pixels, labels = images(count, seed)
    half = count // 2
    methods = {
        "k-NN, k = 3": KNeighborsClassifier(3),
        "SVM, RBF kernel": SVC(C=10.0, gamma="scale"),
    }
    fitted = {name: method.fit(pixels[:half], labels[:half]) for name, method in methods.items()}
    return [(name, float(method.score(pixels[half:], labels[half:]))) for name, method in fitted.items()]


def rows_of(name: str, found: dict[str, Any]) -> list[list[str]]:
    """A line for each kernel; the time is that of both."""
    time = found["time"]
    lines = []
    for kind in ("nngp", "ntk"):
        error = found[kind]["error"]
        lines.append([
            f"{name}, {kind.upper()}", str(found["count"]), percent(found[kind]["accuracy"], found["count"]),
            "none" if error is None else f"{100 * error:.2f} %", f"{time['wall']:.0f} s", f"{time['cpu']:.0f} s",
        ])  # fmt: skip
    return lines


def percent(share: float, count: int) -> str:
    """An accuracy with its binomial standard error over the held-out half."""
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / (count - count // 2)):.1f} %"


def document(rows: Sequence[Sequence[str]], ridge: float) -> str:
    head = ["kernel", "images", "accuracy", "standard error of the kernel", "time of both", "CPU"]
    return f"""# Digits

`python benchmarks/digits.py --out docs/digits.md` wrote this page, on {report.machine()}; kernels in float32.

Kernel regression on scikit-learn's handwritten digits of 8 × 8 pixels: half of the images are learnt from, the other
half is held out; one-hot targets, K_*(K + λI)⁻¹Y with λ = {ridge:g} of the mean diagonal entry. The hyperparameters are
the zoo's own: nothing is tuned. `rnn`, `transformer` and `gru` read the rows of an image one after the other, `cnn_gap`
its pixels, `mlp` all of them at once. The accuracy's ± is the binomial standard error of the held-out half. Kernels of
`gru` are estimated from samples; their standard error is ‖standard errors of the entries‖/‖kernel‖. The time, tracing
and compilation included, is that of NNGP and NTK in one pass, on a machine shared with other work; CPU time is the sum
over cores.

{report.table(head, rows)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", choices=NETS, default=NETS)
    parser.add_argument("--count", type=int, default=500, help="images, half of them held out")
    parser.add_argument("--sampled-count", type=int, default=300, help="images for nets whose kernels are sampled")
    parser.add_argument("--samples", type=int, default=None, help="draws of what is sampled; the library's by default")
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="which images")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("nets", "out")}
    kept = report.Kept(report.KEPT / "digits.json" if arguments.out else None, settings)
    seed, ridge = arguments.seed, arguments.ridge
    rows: list[list[str]] = []
    for name in arguments.nets:
        is_sampled = report.is_sampled(net(name).program())
        count = arguments.sampled_count if is_sampled else arguments.count
        found = kept.get(name, lambda name=name, count=count: through(name, count, seed, ridge, arguments.samples))
        rows += rows_of(name, found)
        print("\n".join(" | ".join(line) for line in rows[-2:]), flush=True)
    for count in dict.fromkeys((arguments.count, arguments.sampled_count)):
        for name, share in beside(count, seed):
            rows.append([name, str(count), percent(share, count), "none", "", ""])
            print(" | ".join(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(document(rows, ridge), encoding="utf-8")
        kept.done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
