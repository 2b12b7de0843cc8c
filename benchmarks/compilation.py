"""What a first call costs, and what a second: `python benchmarks/compilation.py`.

Deep and recurrent programs are unrolled by Python; runs of equal groups of equations are loops, so that
compilation does not grow with depth or length. Every figure is from a process of its own, with no cache of compiled
functions.
"""

from __future__ import annotations

import subprocess
import sys

CASES = {
    "mlp, relu, depth 100, NTK of 5 inputs": (
        "program, x = nets.net('mlp').program(tp.Input(10), depth=100), data(5, 10)"
    ),
    "mlp, relu, depth 100, NTK of 1000 inputs": (
        "program, x = nets.net('mlp').program(tp.Input(10), depth=100), data(1000, 10)"
    ),
    "rnn_mean, tanh, 32 steps, NTK of 5 inputs": (
        "program, x = nets.net('rnn_mean').program(tp.Input(32, 16)), data(5, 32, 16)"
    ),
    "rnn_mean, erf, 32 steps, NTK of 50 inputs": (
        "program, x = nets.net('rnn_mean').program(tp.Input(32, 16), fn=jax.scipy.special.erf), data(50, 32, 16)"
    ),
    "mlp, tanh, depth 3, NTK of 300 inputs": (
        "program, x = nets.net('mlp').program(tp.Input(10), fn=jnp.tanh, var_w=1.5), data(300, 10)"
    ),
}
CODE = """
import time
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
import tensorprog as tp
from tensorprog import nets
def data(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape))
jnp.ones(3).sum().block_until_ready()
{case}
times = []
for x in (x, x, jnp.concatenate([x, x[:1]])):
    start = time.perf_counter()
    jax.block_until_ready(tp.ntk(program, x))
    times.append(time.perf_counter() - start)
print(*times)
"""


def main() -> None:
    print(f"{'NTK, float64':<45} {'first call':>11} {'again':>9} {'another N':>11}")
    for name, case in CASES.items():
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(case=case)], capture_output=True, text=True, check=True
        )
        first, again, other = (float(part) for part in done.stdout.split())
        print(f"{name:<45} {first:>9.2f} s {again:>7.2f} s {other:>9.2f} s")


if __name__ == "__main__":
    main()
