"""How long the three ways to an empirical NTK take, and whether the automatic choice is the best of them.

    python benchmarks/empirical.py [--out docs/empirical.md]
    python benchmarks/empirical.py --cases tied_rnn --repeats 3

Every way computes the same kernel of the same network on the same inputs, jitted alike, in float32, in one process; the
best of some repeats counts. Values are compared with those of Jacobian contraction.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import report

from tensorprog import empirical

Method = Literal["structured", "jacobian", "ntvp"]
METHODS: tuple[Method, ...] = ("structured", "jacobian", "ntvp")


@dataclass(frozen=True)
class Case:
    """A network with random parameters and inputs, and which of its kernels is meant: the trace or all of it."""

    text: str
    f: Callable[[Any, Any], jax.Array]
    params: Any
    x: jax.Array
    kernel: str = "trace"

    def ntk(self, params: Any, x: jax.Array, **options: Any) -> Any:
        """In one block: the plain methods would pay for smaller ones, which save memory, by computing anew."""
        axes = -1 if self.kernel == "trace" else ()
        return empirical.ntk(self.f, params, x, trace_axes=axes, batch_size=len(x), **options)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(*widths: int) -> list[dict[str, jax.Array]]:
    return [{"w": normal(i, a, b) / a**0.5, "b": normal(100 + i, b)} for i, (a, b) in enumerate(pairwise(widths))]


def mlp(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def cnn(params: Any, x: jax.Array) -> jax.Array:
    """Three convolutions, the mean over the image, a readout."""
    for w in params["filters"]:
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return x.mean((1, 2)) @ params["v"]


def rnn(params: Any, x: jax.Array) -> jax.Array:
    step = lambda h, row: (jnp.tanh(h @ params["w"] + row @ params["u"] + params["b"]), None)
    h = jnp.zeros((len(x), params["w"].shape[0]), x.dtype)
    return jax.lax.scan(step, h, x.swapaxes(0, 1))[0] @ params["v"]


def cases() -> dict[str, Case]:
    filters = [normal(i, 3, 3, a, 16) / (9 * a) ** 0.5 for i, a in enumerate((3, 16, 16))]
    recurrent = {"w": normal(0, 128, 128) / 128**0.5, "u": normal(1, 16, 128) / 4, "b": normal(2, 128)}
    recurrent |= {"v": normal(3, 128, 4) / 128**0.5}
    wide = dense(784, 1024, 1024, 1024, 10)
    return {
        "wide_mlp": Case("MLP 784-1024³-10, 16 inputs", mlp, wide, normal(9, 16, 784)),
        "one_output": Case("MLP 64-256³-1, 64 inputs", mlp, dense(64, 256, 256, 256, 1), normal(9, 64, 64)),
        "ten_outputs": Case("MLP 64-256³-10, 32 inputs", mlp, dense(64, 256, 256, 256, 10), normal(9, 32, 64)),
        "ten_full": Case("MLP 64-256³-10, 32 inputs", mlp, dense(64, 256, 256, 256, 10), normal(9, 32, 64), "full"),
        "small_cnn": Case(
            "CNN of 3 · 16 channels, 16 × 16 × 3, 10 outputs, 8 inputs",
            cnn,
            {"filters": filters, "v": normal(5, 16, 10) / 4},
            normal(9, 8, 16, 16, 3),
        ),
        "tied_rnn": Case("tied RNN, width 128, 16 steps, 4 outputs, 16 inputs", rnn, recurrent, normal(9, 16, 16, 16)),
    }


@dataclass(frozen=True)
class Measured:
    """Seconds of each way, the way that `auto` takes, and how far the values are apart."""

    seconds: dict[str, float]
    auto: str
    apart: float

    @property
    def over_best(self) -> float:
        return self.seconds[self.auto] / min(self.seconds.values())


def measure(case: Case, repeats: int) -> Measured:
    compiled: dict[str, Any] = {m: jax.jit(lambda p, x, m=m: case.ntk(p, x, method=m)) for m in METHODS}
    values = {m: np.asarray(run(case.params, case.x)) for m, run in compiled.items()}
    seconds = {str(m): float("inf") for m in METHODS}
    for _ in range(repeats):  # in turn, so that what else runs on the machine meets all alike
        for m, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(case.params, case.x))
            seconds[m] = min(seconds[m], time.perf_counter() - start)
    auto = case.ntk(case.params, case.x, explain=True).method
    scale = np.abs(values["jacobian"]).max()
    apart = max(float(np.abs(values[m] - values["jacobian"]).max() / scale) for m in METHODS)
    return Measured(seconds, auto, apart)


def row(case: Case, found: Measured) -> list[str]:
    times = [f"{1e3 * found.seconds[m]:.1f} ms" for m in METHODS]
    gain = found.seconds["jacobian"] / found.seconds["structured"]
    over = f"{found.over_best:.2f}"
    return [f"{case.text}, {case.kernel}", *times, f"{gain:.3g}×", found.auto, over, f"{found.apart:.0e}"]


HEAD = ["network, kernel", *METHODS, "structured against jacobian", "auto", "auto / best", "values apart"]


def document(rows: Sequence[Sequence[str]]) -> str:
    return f"""# Times of empirical kernels

`python benchmarks/empirical.py --out docs/empirical.md` wrote this page, on {report.machine()}, in float32.

The three methods of `tp.empirical.ntk` on the same network and inputs, jitted alike, all inputs in one block, the best
of some repeats in one process; the machine was shared with other work. *Trace* is the kernel averaged over the outputs,
*full* has all pairs of outputs. *Auto / best* is the time of the method that `method="auto"` takes over that of the
fastest; *values apart* the largest difference of an entry from Jacobian contraction's, over the largest entry.

{report.table(HEAD, rows)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(known), default=list(known), help="only these networks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args(argv)
    found = {name: measure(known[name], arguments.repeats) for name in arguments.cases}
    rows = [row(known[name], measured) for name, measured in found.items()]
    print(report.table(HEAD, rows))
    if arguments.out:
        arguments.out.write_text(document(rows), encoding="utf-8")
    wrong = [name for name, m in found.items() if m.apart > 1e-5 or m.over_best > 1.3]
    wrong += ["wide_mlp: gain"] if "wide_mlp" in found and _gain(found["wide_mlp"]) < 60 else []
    if wrong:
        print(f"not as claimed: {', '.join(wrong)}")
    return bool(wrong)


def _gain(found: Measured) -> float:
    return found.seconds["jacobian"] / found.seconds["structured"]


if __name__ == "__main__":
    sys.exit(main())
