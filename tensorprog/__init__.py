"""tensorprog: a network written once as a tensor program, and every view of it from that one description.

```python
>>> import jax, jax.numpy as jnp, tensorprog as tp
>>> def mlp(x):
...     n = tp.Width("n")                                    # a dimension that goes to infinity
...     W = tp.weight("W", n, x.features, var=2.0)           # entries N(0, var/cols)
...     h = tp.nonlin(jax.nn.relu, W @ x + tp.bias("b", n, var=0.1))
...     return tp.weight("v", 1, n) @ h                      # readout
>>> program = tp.trace(mlp, tp.Input(3))                     # print(program) shows the listing
>>> x = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
>>> K = tp.ntk(program, x)                                   # (2, 2), symmetric; tp.nngp, tp.kernels likewise
>>> params = tp.init(program, jax.random.key(0), width=512)  # the finite network
>>> y = tp.apply(program, params, x)                         # (2,)

```

The views: `print`, `check`, `recursion` say what the program is; `init`, `apply` are the finite network; `nngp`, `ntk`,
`kernels`, `ntk_by_parameter`, `second_moment` its limit; `backprop` and `sgd_step` make programs of a program, `limit`
is the limit of any average; `empirical` the finite-width kernels of any JAX function, `linearize` and `taylor_expand`
the function near its parameters; `predict` what training does, and inference; `compare` and `compare_training` finite
against limit.
"""

from tensorprog import empirical, functions, nets, predict
from tensorprog.comparison import Comparison, TrainingComparison, compare, compare_training
from tensorprog.errors import KernelWarning, ProgramError
from tensorprog.importing.front import from_equinox, from_flax, from_jax
from tensorprog.importing.heads import attention_over_d, process_heads_over_d
from tensorprog.interpret.check import Reason, Report, check
from tensorprog.interpret.finite import apply, init
from tensorprog.interpret.recursion import Recursion, recursion
from tensorprog.ir import Data, Input
from tensorprog.kernel import Bounds, Kernels, kernels, nngp, ntk, ntk_by_parameter, second_moment
from tensorprog.limits import Limit, limit
from tensorprog.program import Program
from tensorprog.taylor import linearize, taylor_expand
from tensorprog.tracing.builder import Width, source
from tensorprog.tracing.declare import bias, entries, weight
from tensorprog.tracing.run import inner, moment, named, scalar, trace
from tensorprog.tracing.sites import concat, mean, mix, reshape, stack, sum, transpose
from tensorprog.tracing.values import nonlin
from tensorprog.tracing.windows import conv, conv_local, conv_transpose, pad, patches, pool
from tensorprog.transform.passes import backprop
from tensorprog.transform.sgd import sgd_step

__all__ = [
    "Bounds",
    "Comparison",
    "Data",
    "Input",
    "KernelWarning",
    "Kernels",
    "Limit",
    "Program",
    "ProgramError",
    "Reason",
    "Recursion",
    "Report",
    "TrainingComparison",
    "Width",
    "apply",
    "attention_over_d",
    "backprop",
    "bias",
    "check",
    "compare",
    "compare_training",
    "concat",
    "conv",
    "conv_local",
    "conv_transpose",
    "empirical",
    "entries",
    "from_equinox",
    "from_flax",
    "from_jax",
    "functions",
    "init",
    "inner",
    "kernels",
    "limit",
    "linearize",
    "mean",
    "mix",
    "moment",
    "named",
    "nets",
    "nngp",
    "nonlin",
    "ntk",
    "ntk_by_parameter",
    "pad",
    "patches",
    "pool",
    "predict",
    "process_heads_over_d",
    "recursion",
    "reshape",
    "scalar",
    "second_moment",
    "sgd_step",
    "source",
    "stack",
    "sum",
    "taylor_expand",
    "trace",
    "transpose",
    "weight",
]
