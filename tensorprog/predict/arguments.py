"""What may be passed to the predictions, flattened to matrices, and the texts that say so when it is something else.

Kernels are (N, N), or (N, N, *S, *S) where each example has outputs over S that depend on each other (a readout over
sites, `tp.empirical.ntk(..., trace_axes=())`). Inside, everything is one matrix over M = N·|S| outputs and targets
(M, c). Checks that look at values are left out inside `jit` and `grad`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.arrays import NoNumbers, fits, floating, real_array
from tensorprog.errors import bad_argument
from tensorprog.program import is_concrete

Array = jax.Array

#: The most steps of gradient descent: numbers of steps have 31 bits.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Problem:
    """A kernel of training inputs (M, M) and targets (M, c); `sites` S, and the shape `tail` of one's targets."""

    kernel: Array
    targets: Array
    count: int
    sites: tuple[int, ...]
    tail: tuple[int, ...]

    def outputs(self, values: Array) -> Array:
        """(*T, M', c) back to (*T, N', *tail)."""
        lead, rows = values.shape[:-2], values.shape[-2] // math.prod(self.sites)
        return values.reshape(*lead, rows, *self.tail)

    def spread(self, cov: Array | None) -> tuple[Array | None, Array | None]:
        """A covariance (*T, M', M') as (*T, N', N', *S, *S), and its standard deviations (*T, N', *S)."""
        if cov is None:
            return None, None
        lead, size = cov.shape[:-2], math.prod(self.sites)
        rows = cov.shape[-1] // size
        if not self.sites:
            return cov, _roots(cov)
        split = jnp.swapaxes(cov.reshape(*lead, rows, size, rows, size), -3, -2)
        return (
            split.reshape(*lead, rows, rows, *self.sites, *self.sites),
            _roots(cov).reshape(*lead, rows, *self.sites),
        )

    def cross(self, kst: Any, name: str = "kst") -> Array:
        """A kernel of test with training inputs, (N*, N, *S, *S), as (M*, M)."""
        kernel = array_of(kst, name)
        if (
            kernel.ndim != 2 + 2 * len(self.sites)
            or kernel.shape[2:] != self.sites * 2
            or kernel.shape[1] != self.count
        ):
            wanted = _shape("N*", str(self.count), self.sites)
            swapped = kernel.ndim == 2 and kernel.shape[0] == self.count
            remedy = (
                "transpose it" if swapped else "give the kernel of test inputs with the training inputs, in that order"
            )
            raise bad_argument(name, f"has shape {kernel.shape}, and {wanted} is what fits ktt", remedy)
        return matrix_of(kernel, self.sites).astype(self.kernel.dtype)

    def test(self, kss: Any, cross: Array, name: str = "kss") -> Array:
        """The kernel of the test inputs with themselves, (N*, N*, *S, *S), as (M*, M*)."""
        kernel = array_of(kss, name)
        count = cross.shape[0] // math.prod(self.sites)
        if kernel.shape != (count, count, *self.sites, *self.sites):
            wanted = _shape(str(count), str(count), self.sites)
            raise bad_argument(
                name, f"has shape {kernel.shape}, and {wanted} is what fits kst",
                "give the kernel of the test inputs with themselves",
            )  # fmt: skip
        return matrix_of(kernel, self.sites).astype(self.kernel.dtype)

    def start(self, f0: Any, rows: int, name: str) -> Array:
        """Outputs before training (N', *tail), or a number for all, as (M', c)."""
        values = array_of(f0, name)
        wanted = (rows // math.prod(self.sites), *self.tail)
        if values.ndim and values.shape != wanted:
            raise bad_argument(name, f"has shape {values.shape}, and {wanted} is what fits", "give one output a target")
        return jnp.broadcast_to(values, wanted).reshape(rows, self.targets.shape[1]).astype(self.kernel.dtype)


def problem(ktt: Any, y: Any, name: str = "ktt") -> Problem:
    """The kernel of the training inputs and their targets.

    **Raises:** `ProgramError` for a kernel that is not square, not symmetric, not finite, and targets that do not fit.
    """
    kernel, sites = square(ktt, name)
    count = kernel.shape[0] // math.prod(sites)
    targets = array_of(y, "y")
    if targets.ndim == 0 or targets.shape[0] != count:
        held = "is one number" if targets.ndim == 0 else f"has {targets.shape[0]} targets"
        raise bad_argument("y", f"{held}, and {name} is of {count} inputs", f"give an array ({count},) or ({count}, k)")
    if sites and targets.shape[1:] != sites:
        raise bad_argument(
            "y", f"has shape {targets.shape}, and {name} is a kernel over outputs {sites}",
            f"give targets {(count, *sites)}",
        )  # fmt: skip
    if math.prod(targets.shape) == 0:
        raise bad_argument("y", f"has shape {targets.shape}: no targets", "give at least one for each input")
    flat = targets.reshape(kernel.shape[0], 1 if sites else -1).astype(kernel.dtype)
    return Problem(kernel, flat, count, sites, targets.shape[1:])


def square(ktt: Any, name: str = "ktt") -> tuple[Array, tuple[int, ...]]:
    """A kernel of inputs with themselves as a matrix (M, M), float32 at least, and the shape S of one's outputs."""
    kernel = array_of(ktt, name)
    sites = kernel.shape[2 : kernel.ndim // 2 + 1]
    if kernel.ndim < 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2:] != sites * 2:
        raise bad_argument(
            name, f"has shape {kernel.shape}, which is no kernel of inputs with themselves",
            "give (N, N), or (N, N, *S, *S) for outputs over S, as tp.ntk(program, x) returns it",
        )  # fmt: skip
    if kernel.shape[0] == 0:
        raise bad_argument(name, "is of no inputs (N = 0)", "give at least one")
    matrix = matrix_of(kernel, sites)
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        matrix = matrix.astype(float)
    elif jnp.finfo(matrix.dtype).bits < 32:  # nothing is solved in half precision
        matrix = matrix.astype(jnp.float32)
    if is_concrete(matrix):
        values = np.asarray(matrix)
        size = np.abs(values).max()
        if np.abs(values - values.T).max() > np.sqrt(np.finfo(values.dtype).eps) * size:
            raise bad_argument(
                name, "is not symmetric", "give the kernel of the training inputs with themselves, tp.ntk(program, x)"
            )
    return (matrix + matrix.T) / 2, sites


def at_least_zero(value: Any, name: str, *, infinite: bool = False, what: str = "a number of at least 0") -> Array:
    """A time, ridge or rate: at least 0, no NaN, finite unless it may be infinite."""
    found = array_of(value, name, finite=False)
    if is_concrete(found):
        values = np.asarray(found)
        if np.isnan(values).any() or (values < 0).any() or not (infinite or np.isfinite(values).all()):
            raise bad_argument(name, f"{_told(values)} is not {what}", f"give {what}")
    return found


def ridge_of(ridge: Any) -> Array:
    """λ of K + λI."""
    return _one(at_least_zero(ridge, "ridge", what="a finite number of at least 0"), "ridge")


def rate_of(lr: Any) -> Array:
    """η, the learning rate."""
    return _one(at_least_zero(lr, "lr", what="a finite number of at least 0"), "lr")


def time_of(t: Any) -> Array:
    """Times of training, ∞ among them."""
    return at_least_zero(t, "t", infinite=True, what="a time of at least 0")


def _one(value: Array, name: str) -> Array:
    if value.ndim:
        raise bad_argument(name, f"has shape {value.shape}", "give one number")
    return value


def whole(steps: Any) -> Array:
    """Numbers of steps, whole and at least 0, of 31 bits."""
    try:  # before JAX has them, which wraps what is too large
        given = np.asarray(steps)
        ints = given.dtype.kind in "iuO"
        few, many = ints and np.min(given, initial=0) < 0, ints and np.max(given, initial=0) > LARGEST
    except (TypeError, ValueError):  # traced, or refused below
        few = many = False
    if many:
        raise bad_argument("steps", f"{steps!r} is more than {LARGEST}", "give fewer steps, or gradient_flow's time")
    found = jnp.zeros(()) if few else array_of(steps, "steps", finite=False)
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise bad_argument("steps", f"{steps!r} is no whole number of at least 0", "give an int, or an array of them")
    return found


def no_start(f0_test: Any) -> None:
    """Outputs before training at test inputs, where there are none (no `kst`): refused unless left at 0."""
    if np.ndim(f0_test) or (is_concrete(f0_test) and f0_test != 0):
        raise bad_argument("f0_test", "there is no kst that it could be for", "give kst, test with training inputs")


def momentum_of(momentum: Any) -> Array:
    """β of the momentum, 0 ≤ β < 1."""
    found = _one(array_of(momentum, "momentum", finite=False), "momentum")
    if is_concrete(found) and not (0 <= float(found) < 1):
        raise bad_argument("momentum", f"{momentum!r} is not in [0, 1)", "give 0.9, say")
    return found


def array_of(value: Any, name: str, *, finite: bool = True) -> Array:
    """Real numbers as an array, finite ones unless told otherwise."""
    if isinstance(value, tuple) and hasattr(value, "ntk"):
        raise bad_argument(name, "holds two kernels", "give one of them, .ntk or .nngp")
    if isinstance(value, tuple):
        raise bad_argument(
            name, f"is a tuple of {len(value)}", "give one array: predict one output of the program at a time"
        )
    try:
        array = real_array(value)
        if finite and jnp.issubdtype(array.dtype, jnp.floating):
            return floating(array, jnp.result_type(array))
    except NoNumbers as error:
        raise bad_argument(name, error.why, error.remedy) from None
    return jnp.asarray(array if fits(array) else array.astype(np.float64))


@jax.jit
def _roots(cov: Array) -> Array:
    """√diag, 0 where rounding leaves −1e-17."""
    return jnp.sqrt(jnp.maximum(jnp.diagonal(cov, axis1=-2, axis2=-1), 0.0))


def matrix_of(kernel: Any, sites: tuple[int, ...]) -> Any:
    """(A, B, *S, *S) to (A·|S|, B·|S|), an array of JAX or of NumPy."""
    if not sites:
        return kernel
    a, b, size = *kernel.shape[:2], math.prod(sites)
    return kernel.reshape(a, b, size, size).swapaxes(1, 2).reshape(a * size, b * size)


def _shape(first: str, second: str, sites: tuple[int, ...]) -> str:
    return f"({', '.join([first, second, *map(str, sites * 2)])})"


def _told(values: np.ndarray) -> str:
    return f"{float(values):g}" if values.ndim == 0 else f"an entry of the array {values.shape}"
