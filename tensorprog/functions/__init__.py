"""Functions, and their Gaussian expectations.

`frozen` takes a user's function as it is at the call; `base` makes it an `Elementwise` and is the door, `expect`, to
E phi(u) psi(v); `table` says which functions have closed forms, `recognition` which others compute the same, and
`piecewise`, `erf`, `exponential` hold them; `general` integrates everything else, with a bound. `batchnorm` is for
functions of a whole batch. Ready-made functions that JAX does not name are exported here.
"""

from tensorprog.functions.batchnorm import batch_norm
from tensorprog.functions.table import cdf, hermite, rbf, rectified, step
