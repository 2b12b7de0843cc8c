"""How long the kernels of sequences and images take, and how exact those are that are estimated from samples.

    python benchmarks/sequences.py [--out docs/speed.md]
    python benchmarks/sequences.py --cases rnn gru --length 8 --inputs 10

Sequences of 32 steps for recurrent nets, images of 16 × 16 × 3 for a CNN read at its mean, the compilation of a CNN of
20 layers. Every figure is from a process of its own, with no cache of compiled functions: the first call, which
compiles, and a second one. CPU time is that of all cores; on a machine shared with others it is the one to compare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report

import tensorprog as tp
from tensorprog.nets import net
from tensorprog.sampling.kernels import sampled_kernels

SAMPLED = ("gru", "lstm")
"""Recurrent nets whose kernels are estimated; `--samples` is theirs."""
MORE_DRAWS = 2**16


@dataclass(frozen=True)
class Case:
    """A kernel ("nngp" or "ntk") of a net of the zoo for `count` inputs of one shape; `samples` for a sampled one."""

    net: str
    kind: str
    count: int
    shape: tuple[int, ...]
    depth: int | None = None
    samples: int | None = None

    @property
    def name(self) -> str:
        shape = " × ".join(map(str, self.shape))
        depth = f", {self.depth} layers" if self.depth else ""
        draws = f", {self.samples} draws" if self.samples else ""
        return f"{self.net}{depth}, {self.kind.upper()}{draws}, {self.count} of {shape}"

    @property
    def sampled(self) -> bool:
        return self.net in SAMPLED


def cases(length: int, inputs: int, side: int, images: int, layers: int, samples: int | None) -> list[Case]:
    """All of them, in the order of the table."""
    sequence = (length, 16)
    found = [
        Case(name, kind, inputs, sequence, samples=samples if name in SAMPLED else None)
        for name in ("rnn", "rnn_mean", "gru", "lstm")
        for kind in ("nngp", "ntk")
    ]
    if samples is None:
        found.append(Case("gru", "nngp", inputs, sequence, samples=MORE_DRAWS))
    found += [Case("cnn_gap", kind, images, (side, side, 3)) for kind in ("nngp", "ntk")]
    for name in ("cnn_flatten", "cnn_gap"):
        found += [Case(name, kind, 2, (8, 8, 3), depth=layers) for kind in ("nngp", "ntk")]
    return found


def measure(case: Case) -> dict[str, Any]:
    """Times of the first call and of the next, and the relative standard error of a sampled kernel."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(case.count, *case.shape)))
    program = net(case.net).program(tp.Input(*case.shape), **({"depth": case.depth} if case.depth else {}))
    jnp.ones(3).sum().block_until_ready()
    if case.sampled:
        (kernel, error), first = report.timed(lambda: _sampled(program, x, case))
        return {"first": asdict(first), "again": None, "error": report.relative(error, kernel)}
    kernel = lambda: getattr(tp, case.kind)(program, x)
    first, again = (asdict(report.timed(kernel)[1]) for _ in range(2))
    return {"first": first, "again": again, "error": None}


def _sampled(program: tp.Program, x: jax.Array, case: Case) -> tuple[jax.Array, jax.Array]:
    """(kernel, standard error). The NTK comes with its NNGP, as `kernels` has it; the NNGP alone takes less."""
    if case.kind == "ntk":
        both = tp.kernels(program, x, error=True, samples=case.samples)
        return both.ntk, both.error.ntk
    (alone,) = sampled_kernels(program, (x,), None, None, case.samples)
    return alone.nngp, alone.nngp_error


def in_fresh_process(case: Case) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(asdict(case))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{case.name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def row(case: Case, found: dict[str, Any]) -> list[str]:
    def cells(time: dict[str, float] | None) -> list[str]:
        return [f"{time['wall']:.1f} s", f"{time['cpu']:.1f} s"] if time else ["", ""]

    error = f"{100 * found['error']:.1f} %" if found["error"] is not None else "none"
    return [case.name, *cells(found["first"]), *cells(found["again"]), error]


def document(rows: Sequence[Sequence[str]]) -> str:
    head = ["net, kernel, inputs", "first call", "CPU", "again", "CPU", "standard error"]
    return f"""# Times

`python benchmarks/sequences.py --out docs/speed.md` wrote this page, on {report.machine()}, in float64.

Sequences and images of standard normal entries. The first call traces, plans, compiles and computes; the next one only
computes. CPU time is the sum over cores, the figure to compare where a machine is shared with other work.

The kernels of `gru` and `lstm` are estimated from samples, by default as many as some tens of seconds allow; their
standard error is ‖standard errors of the entries‖/‖kernel‖. Errors feed back through time. An NTK of these nets comes
with its NNGP.

{report.table(head, rows)}

Compilation of a deep or recurrent net by itself: `python benchmarks/compilation.py`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", metavar="NET", help="only these nets")
    parser.add_argument("--kinds", nargs="*", choices=("nngp", "ntk"), default=("nngp", "ntk"))
    parser.add_argument("--length", type=int, default=32, help="steps of a sequence")
    parser.add_argument("--inputs", type=int, default=50, help="sequences")
    parser.add_argument("--side", type=int, default=16, help="pixels of an image's side")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--layers", type=int, default=20, help="of the deep CNN")
    parser.add_argument("--samples", type=int, default=None, help="draws of what is sampled; the library's by default")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one case
    arguments = parser.parse_args(argv)
    if arguments.one:
        jax.config.update("jax_enable_x64", True)
        fields = json.loads(arguments.one)
        print(json.dumps(measure(Case(**{**fields, "shape": tuple(fields["shape"])}))))
        return 0
    options = {key: value for key, value in vars(arguments).items() if key not in ("cases", "kinds", "out", "one")}
    chosen = [c for c in cases(**options) if c.kind in arguments.kinds and c.net in (arguments.cases or [c.net])]
    kept = report.Kept(report.KEPT / "sequences.json" if arguments.out else None, options)
    rows = []
    for case in chosen:
        rows.append(row(case, kept.get(case.name, lambda case=case: in_fresh_process(case))))
        print(" | ".join(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(document(rows), encoding="utf-8")
        kept.done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
