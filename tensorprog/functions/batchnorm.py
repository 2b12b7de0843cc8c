"""Batch normalisation: the function that programs call, and its Gaussian expectations.

F(h) = phi(sqrt(B) g / |g|), g = h - mean h, for h ~ N(0, S) over a batch of B examples and phi linear on each side of 0
(`Sides`): `mean`, `same` and `cross` are its first and second moments, the tangents those of its derivatives. eps is 0
and there is no affine map: that is linear, and comes after.

All of them are pure JAX functions of covariances with any leading axes, in float64 or float32, under `jit`, `vmap` and
derivatives of any order. Work is of one integral (`same`, `mean`) or two (`cross`) over B x B matrices, whose nodes and
their range follow from the eigenvalues of G S G (`batch_integrals`, `tilted`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from tensorprog.functions.batch_integrals import (
    NODES,
    Sides,
    Sums,
    cross_sums,
    mean_sums,
    noise,
    same_sums,
    same_tangent_sums,
    spectrum,
)
from tensorprog.functions.forms import Form, Numbers
from tensorprog.functions.frozen import Function
from tensorprog.functions.piecewise import Piecewise, Power
from tensorprog.functions.thaw import Opaque, Partial

IDENTITY, RELU, ABS = Sides(1.0, -1.0), Sides(1.0, 0.0), Sides(1.0, 1.0)
ANGLE = 0.2  # a tangent, averaged over the nodes, knows angles near 0 between u and v to this times sqrt(eps)


# ---- the function ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchNorm:
    """`batch_norm`: hashable, so that programs which hold it are equal."""

    name = "batch_norm"

    def __call__(self, z: Any, *, eps: float = 0.0) -> Array:
        """z minus its mean over its standard deviation, over all axes of z jointly.

            batch_norm(z) = (z - mean z) / sqrt(mean (z - mean z)^2 + eps)

        In a program: `tp.nonlin(tp.functions.batch_norm, h, over=0)`, with the site axes of the batch (and of height
        and width) in `over`. Where all entries are equal, to rounding, and eps is 0, value and gradient are 0. With eps
        (`functools.partial(batch_norm, eps=1e-5)`) the expectations of this file do not apply.

        **Arguments:** z: any shape, at least one axis; eps: added to the variance. **Returns:** an array like z.

        ```python
        >>> batch_norm(jnp.array([1.0, 2.0, 3.0])).round(3)
        Array([-1.225,  0.   ,  1.225], dtype=...)

        ```
        """
        z = jnp.asarray(z)
        z = z if jnp.issubdtype(z.dtype, jnp.inexact) else z.astype(float)
        centred = z - z.mean()
        variance = (centred * centred).mean()
        # The mean of equal numbers is off by rounding, which must not be blown up to 1.
        some = (variance > (4 * jnp.finfo(z.dtype).eps * jnp.abs(z).max()) ** 2) | (eps > 0)
        return jnp.where(some, centred / jnp.sqrt(jnp.where(some, variance + eps, 1.0)), 0.0)


batch_norm = BatchNorm()


def normalises(function: Function) -> bool:
    """Whether a frozen function is `batch_norm` with eps = 0."""
    match function.root:
        case Opaque(_, BatchNorm()):
            return True
        case Partial(Opaque(_, BatchNorm()), (), (("eps", Opaque(_, value)),)):
            return isinstance(value, int | float) and value == 0
        case _:
            return False


def sides(form: Form | None, numbers: Numbers = ()) -> Sides | None:
    """A closed form of the table (relu, leaky relu, abs, the identity, multiples) as `Sides`; None if it is no such."""
    if not isinstance(form, Piecewise) or any(term.p != 1 for _, term in form.terms):
        return None
    parts = {term: weight for weight, term in form.values(numbers)}
    odd, even = parts.get(Power(1), 0.0), parts.get(Power(1, signed=True), 0.0)
    return Sides(odd + even, even - odd)


# ---- where expectations exist ---------------------------------------------------------------------------------------


def dimensions(S: Float[ArrayLike, "*n B B"]) -> Array:
    """In how many dimensions g = h - mean h varies, (*n,): B - 1, less one for each example that repeats another.

    Expectations of F exist from 1 on. At 0 all examples are equal, batch norm is undefined, and everything here is nan.
    Expectations of products of two derivatives of F, and with them the NTK, exist from 3 on, as E |g|^-2 does: a batch
    needs 4 different examples. Below, the tangents are nan.
    """
    return jnp.vectorize(lambda S: (spectrum(S)[0] > 0).sum(), signature="(b,b)->()")(*_floating(S))


# ---- expectations ---------------------------------------------------------------------------------------------------


def mean(S: Float[ArrayLike, "*n B B"], phi: Sides) -> Float[Array, "*n B"]:
    """E F(h), h ~ N(0, S)."""
    return _vectorized(lambda S: mean_sums(S, phi), "(b,b)->(b),(b)")(*_floating(S))[0]


def mean_error(S: ArrayLike, phi: Sides) -> tuple[Array, Array]:
    """`mean`, and a bound of its error."""
    work = _vectorized(lambda S: mean_sums(S, phi), "(b,b)->(b),(b)")
    return _bounded(work, _floating(S), axes=1)


def same(S: Float[ArrayLike, "*n B B"], phi: Sides, psi: Sides | None = None) -> Float[Array, "*n B B"]:
    """E F(h) H(h)^T within one batch; H is F with psi in place of phi (None: the same).

    **Arguments:** S: covariances of h, symmetric; leading axes are batched over. **Returns:** nan where S has no
    `dimensions`. It can be differentiated any number of times; derivatives in S are finite where examples differ.
    """
    return _same_sums(phi, psi)(*_floating(S))[0]


def same_error(S: ArrayLike, phi: Sides, psi: Sides | None = None) -> tuple[Array, Array]:
    """`same`, and a bound of its error, one for all entries of a matrix."""
    return _bounded(_same_sums(phi, psi), _floating(S))


def same_tangent(
    S: Float[ArrayLike, "*n B B"], T: Float[ArrayLike, "*n B B"], phi: Sides, psi: Sides | None = None
) -> Float[Array, "*n B B"]:
    """sum_ij E[d_i F_k d_j H_l] T_ij: how E F_k(h) H_l(hbar) moves with Cov(h_i, hbar_j), at hbar = h.

    Linear in T, which need not be symmetric. With P = s K and phi' almost everywhere, by Stein's lemma,

        B int_0^inf delta { dV(P)[T - TP - PT + (PTP + P T^T P)/2] + tr(TP) V(P)/2 } ds,

    dV the derivative of V in an entry's covariance and two variances. That of u_k moves by (PTP - 2TP)_kk, that of u_l
    by (PTP - 2PT)_ll. It is the transpose of the map D -> D' of the backward pass (L1 + L2 - L3 in the papers).

    **Returns:** nan where S has fewer than three `dimensions`.
    """
    return _same_tangent_sums(phi, psi)(*_floating(S, T))[0]


def same_tangent_error(S: ArrayLike, T: ArrayLike, phi: Sides, psi: Sides | None = None) -> tuple[Array, Array]:
    """`same_tangent`, and a bound of its error."""
    S, T = _floating(S, T)
    return _bounded(_same_tangent_sums(phi, psi), (S,), (T,), angle=ANGLE)


def cross(
    S1: Float[ArrayLike, "*n A A"],
    S2: Float[ArrayLike, "*n B B"],
    X: Float[ArrayLike, "*n A B"],
    phi: Sides,
    psi: Sides | None = None,
) -> Float[Array, "*n A B"]:
    """E F(h) H(hbar)^T for two batches; H is the second's batch norm, with psi in place of phi (None: the same).

    **Arguments:** S1, S2: covariances of h and hbar; X: Cov(h, hbar). Leading axes broadcast: (n1, 1), (1, n2) and
    (n1, n2) for all pairs. What depends on one batch only is then done once for it. **Returns:** nan where S1 or S2 has
    no `dimensions`.
    """
    return _cross_sums(phi, psi)(*_floating(S1, S2, X))[0]


def cross_error(
    S1: ArrayLike, S2: ArrayLike, X: ArrayLike, phi: Sides, psi: Sides | None = None
) -> tuple[Array, Array]:
    """`cross`, and a bound of its error, one for all entries of a matrix."""
    S1, S2, X = _floating(S1, S2, X)
    # In one dimension the integrand falls slowly, to where angles are rounding.
    one = jnp.minimum(dimensions(S1), dimensions(S2)) < 2
    angle = jnp.where(one, 2.0, 0.0)[..., None, None]
    return _bounded(_cross_sums(phi, psi), (S1, S2), (X,), angle=angle)


def cross_tangent(
    S1: Float[ArrayLike, "*n A A"],
    S2: Float[ArrayLike, "*n B B"],
    X: Float[ArrayLike, "*n A B"],
    T: Float[ArrayLike, "*n A B"],
    phi: Sides,
    psi: Sides | None = None,
) -> Float[Array, "*n A B"]:
    """sum_ij E[d_i F_k(h) d_j H_l(hbar)] T_ij: the derivative of `cross` as X moves along T (Price's theorem).

    **Returns:** nan where S1 or S2 has fewer than three `dimensions`.
    """
    return _cross_tangent_sums(phi, psi)(*_floating(S1, S2, X, T))[0]


def cross_tangent_error(
    S1: ArrayLike, S2: ArrayLike, X: ArrayLike, T: ArrayLike, phi: Sides, psi: Sides | None = None
) -> tuple[Array, Array]:
    """`cross_tangent`, and a bound of its error. It is large (1e-4) where both batches are the same four examples."""
    S1, S2, X, T = _floating(S1, S2, X, T)
    return _bounded(_cross_tangent_sums(phi, psi), (S1, S2), (X, T), angle=5 * ANGLE)


def reach(S: Float[ArrayLike, "*n B B"], phi: Sides) -> Float[Array, "*n"]:
    """r(S) such that sum_ij |E[d_i F_k(h) d_j H_l(hbar)]| <= r(S) r(S') for every k, l: how far a tangent reaches.

    With u = g/|g| the derivative is J = phi' sqrt(B)/|g| (I - 11^T/B - u u^T). Rows of a projection have norms of at
    most 1, hence absolute sums of at most sqrt(B); E B/|g|^2 is the trace of E J J^T at phi = id over that of the
    projection, B - 2. The product follows by Cauchy-Schwarz.

    **Returns:** nan where S has fewer than three `dimensions`.
    """
    (S,) = _floating(S)
    B = S.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(B, dtype=S.dtype), S.shape)
    squares = jnp.trace(same_tangent(S, eye, IDENTITY), axis1=-2, axis2=-1) / max(1, B - 2)
    steepest = jnp.maximum(jnp.abs(phi.above), jnp.abs(phi.below))
    return steepest * math.sqrt(B) * jnp.sqrt(jnp.maximum(squares, 0.0))


# ---- batches of matrices --------------------------------------------------------------------------------------------


def _same_sums(phi: Sides, psi: Sides | None) -> Callable[..., Sums]:
    return _vectorized(lambda S: same_sums(S, phi, _other(phi, psi)), "(b,b)->(b,b),(b,b)")


def _same_tangent_sums(phi: Sides, psi: Sides | None) -> Callable[..., Sums]:
    return _vectorized(lambda S, T: same_tangent_sums(S, T, phi, _other(phi, psi)), "(b,b),(b,b)->(b,b),(b,b)")


def _cross_sums(phi: Sides, psi: Sides | None) -> Callable[..., Sums]:
    first, second = phi, _other(phi, psi)

    def sums(S1: Array, S2: Array, X: Array) -> Sums:
        if X.shape[-1] > X.shape[-2]:  # the second batch's eigenvectors are wanted at every node of the first
            fine, coarse = _cross_sums(second, first)(S2, S1, X.mT)
            return fine.mT, coarse.mT
        work = _vectorized(lambda S1, S2, X: cross_sums(S1, S2, X, first, second), "(a,a),(b,b),(a,b)->(a,b),(a,b)")
        return work(S1, S2, X)

    return sums


def _cross_tangent_sums(phi: Sides, psi: Sides | None) -> Callable[..., Sums]:
    def sums(S1: Array, S2: Array, X: Array, T: Array) -> Sums:
        X, T = jnp.broadcast_arrays(X, T)
        _, (fine, coarse) = jax.jvp(lambda X: _cross_sums(phi, psi)(S1, S2, X), (X,), (T,))
        exists = ((dimensions(S1) >= 3) & (dimensions(S2) >= 3))[..., None, None]
        return jnp.where(exists, fine, jnp.nan), coarse

    return sums


def _vectorized(work: Callable[..., Sums], signature: str) -> Callable[..., Sums]:
    return jnp.vectorize(work, signature=signature)


def _other(phi: Sides, psi: Sides | None) -> Sides:
    return phi if psi is None else psi


def _bounded(
    work: Callable[..., Sums],
    given: tuple[Array, ...],
    held: tuple[Array, ...] = (),
    *,
    axes: int = 2,
    angle: Any = 0.0,
) -> tuple[Array, Array]:
    """What work(*given, *held) makes of the covariances that are given, and a bound of its error.

    Halving the step of a trapezoid rule squares its relative error, or nearly so: the change tells the error of the
    coarser rule, and its power 1.4 covers that of the finer one. How much rounding matters is seen by moving the
    covariances by as much. The rest is what lies beyond the last node, and angles near 0.
    """
    most = max(S.ndim for S in given + held)
    first = [S[(None,) * (most - S.ndim)] for S in given]
    moved = [S + noise(S)[..., None, None] / 2 * jnp.eye(S.shape[-1], dtype=S.dtype) for S in first]
    sums = work(*(jnp.stack(pair) for pair in zip(first, moved)), *held)
    (fine, after), (coarse, _) = sums
    dims = tuple(range(-axes, 0))
    largest = lambda x: jnp.abs(x).max(dims, keepdims=True)
    size = jnp.maximum(largest(fine), jnp.finfo(fine.dtype).tiny)
    eps = float(jnp.finfo(fine.dtype).eps)
    relative = 10 * (largest(fine - coarse) / size) ** 1.4 + 64 * eps + 1e-11 + angle * math.sqrt(eps)
    return fine, jnp.broadcast_to(size * relative + 2 * largest(after - fine), fine.shape)


def _floating(*arrays: Any) -> tuple[Array, ...]:
    dtype = jnp.result_type(*arrays)
    dtype = dtype if dtype in NODES else jnp.result_type(float)
    return tuple(jnp.asarray(x, dtype) for x in arrays)
