"""Regression with a kernel in closed form: posterior, evidence, leave-one-out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tensorprog.predict.arguments import problem, ridge_of
from tensorprog.predict.solving import factor, solve, solve_half

Array = jax.Array


class Posterior(NamedTuple):
    """A Gaussian over test outputs: `mean` (N*, *k), `cov` (N*, N*), the same for each of the k outputs.

    `std` (N*,) is √diag(cov); `jitter` is what was added to the kernel's diagonal beside the ridge, `condition` the
    condition number of K + (λ + jitter)I (None inside `jit`). Kernels over outputs S give (N*, N*, *S, *S) and
    (N*, *S). `cov` and `std` are None when `kss` was.
    """

    mean: Array
    cov: Array | None
    std: Array | None
    jitter: Any = 0.0
    condition: float | None = None


class LeaveOneOut(NamedTuple):
    """Each target predicted from all the others: `mean` (N, *k), `var` (N,) or (N, *S), `log_density` (N,).

    `var` is that of the target, the ridge included; `log_density` the log predictive density of an example's targets,
    summed over the k outputs.
    """

    mean: Array
    var: Array
    log_density: Array
    jitter: Any = 0.0

    @property
    def std(self) -> Array:
        return jnp.sqrt(self.var)


def posterior(ktt: Any, kst: Any, kss: Any, y: Any, ridge: Any = 0.0) -> Posterior:
    """Mean and covariance of a Gaussian process given its values at training inputs.

    mean = K_*(K + λI)⁻¹ y,   cov = K_** − K_*(K + λI)⁻¹ K_*ᵀ

    With NNGP kernels this is the exact posterior of the infinitely wide network (noise variance λ on the targets); with
    the NTK the mean is kernel ridge regression, what the mean network comes to after infinite training (λ = 0), and
    the covariance is no ensemble's: `ensemble` has that.

    **Arguments:**

    - `ktt`: (N, N), the kernel of the training inputs; (N, N, *S, *S) where outputs over S depend on each other.
    - `kst`: (N*, N, …), test with training inputs.
    - `kss`: (N*, N*, …), test inputs with themselves; None for the mean alone.
    - `y`: targets (N,) or (N, k), for kernels over S (N, *S); in the kernel's dtype. The prior mean is 0.
    - `ridge`: λ ≥ 0, added to the diagonal.

    **Returns:** `Posterior`: `.mean` (N*,) or (N*, k), `.cov` (N*, N*), `.std`, `.jitter`, `.condition`.

    **Raises:** `ProgramError` for shapes that do not fit, NaN, a negative ridge, and a kernel that is no covariance.
    Ill-conditioned kernels, and what jitter they took, are told in a `KernelWarning`. Inside `jit` and `grad` values
    are not checked.

    Source: Rasmussen and Williams 2006, eqs. 2.23-2.24.

    ```python
    >>> import jax.numpy as jnp, tensorprog as tp
    >>> program = tp.nets.ZOO["mlp"]
    >>> x, new, y = jnp.eye(4), jnp.ones((2, 4)) / 2, jnp.arange(4.0)
    >>> K = tp.nngp(program, x), tp.nngp(program, new, x), tp.nngp(program, new)
    >>> post = tp.predict.posterior(*K, y, 1e-3)
    >>> post.mean.shape, post.cov.shape, post.std.shape
    ((2,), (2, 2), (2,))

    ```
    """
    p = problem(ktt, y)
    cross = p.cross(kst)
    test = None if kss is None else p.test(kss, cross)
    found = factor(p.kernel, ridge_of(ridge))
    mean, cov = _conditional(found.lower, cross, test, p.targets)
    return Posterior(p.outputs(mean), *p.spread(cov), found.jitter, found.condition)


def log_marginal_likelihood(ktt: Any, y: Any, ridge: Any = 0.0) -> Array:
    """The log evidence log p(y) of targets under a Gaussian process, one number.

    log p(y) = −½ yᵀ(K + λI)⁻¹y − ½ log det(K + λI) − (N/2) log 2π, summed over the k columns of y

    Arguments and errors as for `posterior`. Differentiable in the kernel, so in a program's numbers:
    `jax.grad(lambda p: tp.predict.log_marginal_likelihood(tp.nngp(p, x), y, 0.1))(program)`.

    Source: Rasmussen and Williams 2006, eq. 2.30.
    """
    p = problem(ktt, y)
    found = factor(p.kernel, ridge_of(ridge))
    return _evidence(found.lower, p.targets)


def leave_one_out(ktt: Any, y: Any, ridge: Any = 0.0) -> LeaveOneOut:
    """Each example's targets predicted from the others', from one factorisation in place of N.

    mean_i = y_i − α_i/P_ii,   var_i = 1/P_ii,   P = (K + λI)⁻¹, α = P y

    Where outputs over S depend on each other, P_ii is a block and all outputs of an example are left out together.
    Arguments and errors as for `posterior`.

    Source: Rasmussen and Williams 2006, eqs. 5.10-5.12.
    """
    p = problem(ktt, y)
    found = factor(p.kernel, ridge_of(ridge))
    mean, var, log_density = _left_out(found.lower, p.targets.reshape(p.count, -1, p.targets.shape[1]))
    flat = p.outputs(mean.reshape(p.targets.shape))
    return LeaveOneOut(flat, var.reshape(p.count, *p.sites), log_density, found.jitter)


# What is computed, each compiled as one: a call's many small operations would each compile for themselves.


@jax.jit
def _conditional(lower: Array, cross: Array, test: Array | None, targets: Array) -> tuple[Array, Array | None]:
    with jax.default_matmul_precision("highest"):
        mean = cross @ solve(lower, targets)
        if test is None:
            return mean, None
        half = solve_half(lower, cross.T)
        return mean, test - half.T @ half


@jax.jit
def _evidence(lower: Array, targets: Array) -> Array:
    count, columns = targets.shape
    fit = jnp.sum(solve_half(lower, targets) ** 2)
    determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    return -0.5 * (fit + columns * (determinant + count * math.log(2 * math.pi)))


@jax.jit
def _left_out(lower: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Means (N, S, c), variances (N, S) and log densities (N,) for targets (N, S, c)."""
    count, size, columns = targets.shape
    with jax.default_matmul_precision("highest"):
        inverse = solve(lower, jnp.eye(len(lower), dtype=lower.dtype))
        alpha = (inverse @ targets.reshape(-1, columns)).reshape(targets.shape)
        blocks = jnp.einsum("isit->ist", inverse.reshape(count, size, count, size))
        gap = jnp.linalg.solve(blocks, alpha)  # y − mean
        var = jnp.diagonal(jnp.linalg.inv(blocks), axis1=1, axis2=2)
    _, determinant = jnp.linalg.slogdet(blocks)
    log_density = -0.5 * (jnp.sum(gap * alpha, (1, 2)) + columns * (size * math.log(2 * math.pi) - determinant))
    return targets - gap, var, log_density
