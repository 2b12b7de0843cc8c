"""Systems with K + λI: Cholesky factors with a jitter that is reported, functions of K by its eigenvectors.

A kernel's smallest eigenvalues are often below rounding. A Cholesky factorisation then fails; the smallest jitter of a
short list is added to the diagonal, told in a `KernelWarning` and in the result. Functions ψ(K) = V ψ(Λ) Vᵀ take one
eigendecomposition for all times; their derivative in K is that of the function, not of the eigenvectors, so repeated
eigenvalues do no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import get_lapack_funcs

from tensorprog.errors import ProgramError, bad_argument, warn
from tensorprog.program import is_concrete

Array = jax.Array


#: Digits that solving may lose: a system of condition number κ is solved to κ·eps, and told from here on.
LOST = 1e-2
#: 1 − the correlation of inputs that are nearly equal, in units of √eps.
NEAR = 0.1


class Factor(NamedTuple):
    """K + (ridge + jitter)I = L Lᵀ; `condition` is its condition number (1-norm, estimated), None under a trace."""

    lower: Array
    jitter: Array
    condition: float | None


def solve(lower: Array, b: Array) -> Array:
    """(L Lᵀ)⁻¹ b."""
    return jax.scipy.linalg.cho_solve((lower, True), b)


def solve_half(lower: Array, b: Array) -> Array:
    """L⁻¹ b."""
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True)


def factor(kernel: Array, ridge: Array, name: str = "ktt") -> Factor:
    """The Cholesky factor of K + ridge·I, with the smallest jitter that makes one possible.

    Jitters tried: 0, then eps·10, eps·100, …, √eps times the mean of the diagonal. Inside `jit` and `grad` the jitter
    counts as constant, and a kernel that none of them helps gives NaN; outside it is refused.

    **Raises:** `ProgramError` for a kernel that is not positive semi-definite, or singular beyond the jitters.
    """
    lower, jitter = _cholesky(kernel, ridge.astype(kernel.dtype))
    if not is_concrete(lower):
        return Factor(lower, jitter, None)
    if not np.isfinite(np.asarray(lower)).all():
        values = np.linalg.eigvalsh(np.asarray(kernel))
        raise bad_argument(
            name, f"its eigenvalues go from {values[0]:.3g} to {values[-1]:.3g}: no covariance, even with a jitter of "
            f"{float(jitter):.1e}", "give a kernel of distinct inputs, or a larger ridge",
        )  # fmt: skip
    condition = _condition(np.asarray(lower))
    added = f", a jitter of {float(jitter):.1e} was added to its diagonal" if float(jitter) else ""
    warn_condition(name, condition, kernel.dtype, added)
    if not added and condition * float(jnp.finfo(kernel.dtype).eps) <= LOST:
        _warn_near(name, np.asarray(kernel), condition)
    return Factor(lower, jitter, condition)


@jax.jit
def _cholesky(kernel: Array, ridge: Array) -> tuple[Array, Array]:
    eps = jnp.finfo(kernel.dtype).eps
    scale = jnp.mean(jnp.diagonal(kernel)) + ridge
    sizes = [0.0]
    while (following := max(eps, sizes[-1]) * 10.0) <= 1.01 * float(eps) ** 0.5:
        sizes.append(float(following))
    jitters = jax.lax.stop_gradient(jnp.asarray(sizes, kernel.dtype) * scale)
    identity = jnp.eye(len(kernel), dtype=kernel.dtype)
    fixed = jax.lax.stop_gradient(kernel + ridge * identity)

    def works(index: Array) -> Array:
        return jnp.isfinite(jnp.linalg.cholesky(fixed + jitters[index] * identity)).all()

    # Only the choice is looped over: a loop has no reverse mode, and the factor itself needs one.
    last = len(sizes) - 1
    index = jax.lax.while_loop(lambda i: (i < last) & ~works(i), lambda i: i + 1, jnp.asarray(0))
    return jnp.linalg.cholesky(kernel + (ridge + jitters[index]) * identity), jitters[index]


def _condition(lower: np.ndarray) -> float:
    """κ₁ of L Lᵀ from its factor, by LAPACK's estimator (a lower bound, rarely off by more than 3)."""
    (estimate,) = get_lapack_funcs(("pocon",), (lower,))
    norm = np.abs(lower @ lower.T).sum(0).max()
    reciprocal, _ = estimate(lower, norm, "L")
    return float(1 / reciprocal) if reciprocal else float("inf")


def warn_condition(name: str, condition: float, dtype: Any, added: str = "") -> None:
    """Say so when a system is solved to few digits, or a jitter was needed."""
    lost = condition * float(jnp.finfo(dtype).eps)
    if added or lost > LOST:
        warn(
            f"{name} is ill-conditioned: condition number {condition:.1e} in {jnp.dtype(dtype).name}{added}. "
            "Predictions have few right digits; add a ridge, remove repeated inputs, or take double precision",
        )


def _warn_near(name: str, kernel: np.ndarray, condition: float) -> None:
    """Say so where two inputs are nearly equal and not equal: with eps in their correlation, the angle between them,
    and so the NTK of a function with a kink, has √eps."""
    eps = float(np.finfo(kernel.dtype).eps)
    if condition * eps**0.5 <= LOST:
        return
    scale = np.sqrt(np.diagonal(kernel))
    apart = 1 - kernel / np.outer(scale, scale)
    apart[apart <= 8 * eps] = np.inf  # equal ones have the kernel of themselves
    i, j = np.unravel_index(np.argmin(apart), apart.shape)
    if apart[i, j] < NEAR * eps**0.5:
        warn(
            f"{name} has inputs that are nearly equal: 1 − the correlation of rows {i} and {j} is {apart[i, j]:.1e}, "
            f"in {kernel.dtype.name}, with condition number {condition:.1e}. Where functions have kinks such entries "
            "have half the digits, and predictions few; add a ridge, or keep one of such inputs",
        )


# ------------------------------------------------------------------------------------------------ functions of K


class Spectrum(NamedTuple):
    """K = V diag(λ) Vᵀ, and K itself, through which derivatives go; eigenvalues below `cutoff` are rounding."""

    kernel: Array
    values: Array
    vectors: Array
    cutoff: Array


def spectrum(kernel: Array, name: str = "ktt") -> Spectrum:
    """The eigendecomposition of a kernel, its negative eigenvalues of rounding taken as 0.

    **Raises:** `ProgramError` for a kernel that is not positive semi-definite.
    """
    values, vectors, cutoff = _eigh(kernel)
    if is_concrete(values):
        lowest, highest = float(values[0]), float(values[-1])
        if highest <= 0 or lowest < -(float(jnp.finfo(kernel.dtype).eps) ** 0.5) * highest:
            raise bad_argument(
                name,
                f"its eigenvalues go from {lowest:.3g} to {highest:.3g}: no covariance",
                "give a kernel, tp.ntk(program, x)",
            )
    return Spectrum(kernel, jnp.maximum(values, 0.0), vectors, cutoff)


@jax.jit
def _eigh(kernel: Array) -> tuple[Array, Array, Array]:
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(kernel))
    return values, vectors, len(kernel) * jnp.finfo(kernel.dtype).eps * values[-1]


Filter = Callable[..., Array]
"""ψ(λ, *numbers): from (N,) to (*T, N)."""


def filtered(psi: Filter, found: Spectrum, b: Array, numbers: tuple[Any, ...]) -> Array:
    """ψ(K) b = V ψ(Λ) Vᵀ b, (*T, M, c), differentiable once in K, and in b and the numbers of ψ."""
    return _filtered(psi, found.values, found.vectors, found.kernel, b, numbers)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _filtered(psi: Filter, values: Array, vectors: Array, kernel: Array, b: Array, numbers: Any) -> Array:
    with jax.default_matmul_precision("highest"):
        return vectors @ (psi(values, *numbers)[..., None] * (vectors.T @ b))


@_filtered.defjvp
def _(psi: Filter, primals: Any, tangents: Any) -> tuple[Array, Array]:
    values, vectors, kernel, b, numbers = primals
    _, _, d_kernel, d_b, d_numbers = tangents
    vectors = vectors + 0 * _once(kernel)
    with jax.default_matmul_precision("highest"):
        turned = vectors.T @ b
        out = vectors @ (psi(values, *numbers)[..., None] * turned)
        # dψ(K) = V (Ψ ∘ VᵀdKV) Vᵀ with the divided differences Ψ_ij = ψ[λ_i, λ_j] (Daleckii and Krein 1965).
        rotated = vectors.T @ d_kernel @ vectors
        by_kernel = vectors @ ((_differences(psi, values, numbers) * rotated) @ turned)
        fixed = lambda b, numbers: vectors @ (psi(values, *numbers)[..., None] * (vectors.T @ b))
        _, rest = jax.jvp(fixed, (b, numbers), (d_b, d_numbers))
    return out, by_kernel + rest


def _differences(psi: Filter, values: Array, numbers: Any) -> Array:
    """(ψ(λ_i) − ψ(λ_j))/(λ_i − λ_j); for eigenvalues closer than a third of the digits, ψ' at their mean."""
    found = psi(values, *numbers)
    left, right = values[:, None], values[None, :]
    near = jnp.abs(left - right) <= jnp.finfo(values.dtype).eps ** (1 / 3) * (left + right)
    middle = ((left + right) / 2).reshape(-1)
    _, slopes = jax.jvp(lambda z: psi(z, *numbers), (middle,), (jnp.ones_like(middle),))
    slopes = slopes.reshape(*found.shape[:-1], *near.shape)
    return jnp.where(near, slopes, (found[..., :, None] - found[..., None, :]) / jnp.where(near, 1.0, left - right))


@jax.custom_jvp
def _once(kernel: Array) -> Array:
    return kernel


@_once.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The rule above holds eigenvectors constant, so a derivative of it would be wrong.
    raise ProgramError(
        "ktt: second derivatives of training curves in the kernel are not there; take first ones, or "
        "tp.predict.posterior and tp.predict.log_marginal_likelihood, which have them"
    )
