"""What training does to a network of constant kernel, and inference with kernels.

Regression: `posterior`, `log_marginal_likelihood`, `leave_one_out`. Training under ½ Σ ‖f − y‖²: `gradient_flow`,
`gradient_descent` with momentum, `max_learning_rate`; over initialisations: `ensemble` (all parameters trained) and
`last_layer` (the readout). Under any other loss: `flow`.

Kernels are arrays, (N, N) or (N, N, *S, *S), of infinitely wide networks (`tp.ntk`, `tp.nngp`) or of finite ones
(`tp.empirical.ntk`); a `KernelWarning` says where they are close to singular.
"""

from tensorprog.errors import KernelWarning
from tensorprog.predict.flows import flow
from tensorprog.predict.regression import LeaveOneOut, Posterior, leave_one_out, log_marginal_likelihood, posterior
from tensorprog.predict.training import ensemble, gradient_descent, gradient_flow, last_layer, max_learning_rate

__all__ = [
    "KernelWarning",
    "LeaveOneOut",
    "Posterior",
    "ensemble",
    "flow",
    "gradient_descent",
    "gradient_flow",
    "last_layer",
    "leave_one_out",
    "log_marginal_likelihood",
    "max_learning_rate",
    "posterior",
]
