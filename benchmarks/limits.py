"""How long a limit by particles takes: 10⁶ draws of a program of twenty instructions.

    python benchmarks/limits.py [--samples 1000000]

Prints, for each number of draws, the first call (with its compilation), the next one, the number of draws held at a
time, and the largest standard error.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

import tensorprog as tp
from tensorprog.interpret.roads import particles


def alternation(times: int = 6) -> tuple:
    """tanh(W ·) and tanh(Wᵀ ·) by turns, and the second moments of all layers: twenty instructions."""
    n = tp.Width("n")
    W, x = tp.weight("W", n, n, var=2.0), tp.bias("x", n)
    found = []
    for k in range(times):
        x = tp.nonlin(jnp.tanh, (W.T if k % 2 else W) @ x)
        found.append(tp.moment(jnp.square, x))
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**6)
    samples = parser.parse_args().samples
    jax.config.update("jax_enable_x64", True)
    program = tp.trace(alternation)
    structure = program.structure
    print(f"{len(structure.instructions)} instructions, {jax.device_count()} device(s), float64")
    print(f"{'draws':>9}  {'first call':>10}  {'again':>8}  {'at a time':>9}  {'standard error':>14}")
    for count in (samples // 16, samples):
        times = []
        for seed in (0, 1):
            start = time.perf_counter()
            limit = tp.limit(program, samples=count, key=jax.random.key(seed))
            jax.block_until_ready(limit.value)
            times.append(time.perf_counter() - start)
        points, _ = particles(structure, structure.outputs, count, None)
        error = max(float(e) for e in limit.stderr)
        print(f"{count:>9}  {times[0]:>8.2f} s  {times[1]:>6.2f} s  {points:>9}  {error:>14.1e}")


if __name__ == "__main__":
    main()
