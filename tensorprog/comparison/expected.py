"""What the limit says before any network is trained: a learning rate, how many steps, the law of outputs at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorprog.comparison.paths import Task
from tensorprog.errors import bad_argument
from tensorprog.predict.arguments import matrix_of

#: Recorded times until the expected loss has fallen; a network that takes longer is followed `LONGER` times as far.
GRID = 16
LONGER = 4


@dataclass(frozen=True, eq=False)
class Band:
    """The law of outputs at all inputs after `steps` (T,) steps, over infinitely wide networks: (T, N, *k).

    `loss` (T,): the expected loss, in units of that at the start.
    """

    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    loss: np.ndarray


class Ensemble:
    """Infinitely wide networks under gradient descent on ½ Σ ‖f − y‖², in double precision.

    `theta` (N, n, *S, *S) and `nngp` (N, N, *S, *S) are of all N inputs, of which the first n are trained; `mean` is
    that of the outputs before training, (N, *k).
    """

    def __init__(self, nngp: np.ndarray, theta: np.ndarray, mean: np.ndarray, task: Task):
        self.task, self.sites = task, theta.shape[2 : theta.ndim // 2 + 1]
        matrix = lambda kernel: matrix_of(kernel, self.sites).astype(np.float64)
        self.cross = matrix(theta)
        self.trained = self.cross.shape[1]
        self.values, self.vectors = np.linalg.eigh(self.cross[: self.trained])
        if not self.values[-1] > 0:
            raise bad_argument("x", "the NTK is 0 at these inputs: nothing is learnt", "give a program that trains")
        # Directions below are rounding, and do not move, as in `tp.predict`.
        self.moves = self.values > self.trained * float(np.finfo(theta.dtype).eps) * self.values[-1]
        self.mean = np.asarray(mean, np.float64).reshape(len(self.cross), -1)
        self.prior = matrix(nngp) - self.mean[:, :1] * self.mean[:, 0]  # all rows of a readout have one mean
        self.y = np.asarray(task.y, np.float64).reshape(self.trained, -1) - self.mean[: self.trained]
        own = self.prior[: self.trained, : self.trained]
        spread = np.einsum("ji,jk,ki->i", self.vectors, own, self.vectors)
        self.power = ((self.vectors.T @ self.y) ** 2).sum(1) + self.y.shape[1] * spread
        if not self.power.sum() > 0:
            raise bad_argument("y", "the outputs are these before training", "give targets that are not all 0")

    def rate(self, lr: Any) -> float:
        """η as the user gave it, or 1/λ_max."""
        if lr is None:
            return float(1 / self.values[-1])
        lr = number(lr, "lr", "a positive number, or leave it out")
        if not 0 < lr < np.inf:
            raise bad_argument("lr", f"{lr:g} is no learning rate", "give a positive number, or leave it out")
        if lr * self.values[-1] > 2:
            largest = f"the largest stable one in the limit is {2 / self.values[-1]:.3g}"
            raise bad_argument("lr", f"{lr:g} diverges: {largest}", "give a smaller one, or leave it out")
        return lr

    def grid(self, lr: float, fall: float, max_steps: int) -> list[int]:
        """Steps to look at: `GRID` until the expected loss has fallen by the part `fall`, and on in the same paces."""
        reached = lambda steps: self.left(lr, [steps])[0] <= 1 - fall
        most = 1
        while not reached(most):
            most *= 2
            if most > max_steps:
                left = 100 * self.left(lr, [max_steps])[0]
                raise bad_argument(
                    "fall", f"in the limit {left:.0f} % of the loss are left after {max_steps} steps: these targets "
                    "lie where the kernel is close to singular", "give a smaller fall, other data, or max_steps=",
                )  # fmt: skip
        low = most // 2
        while most - low > 1:
            middle = (low + most) // 2
            low, most = (low, middle) if reached(middle) else (middle, most)
        return sorted({round(most * k / GRID) for k in range(LONGER * GRID + 1)})

    def left(self, lr: float, steps: Sequence[int]) -> np.ndarray:
        """E loss in units of that at the start: Σ_i (1 − ηλ_i)^{2t} (‖u_i·y‖² + k u_iᵀ K u_i), u_i Θ's eigenvectors."""
        remains = (1 - lr * np.where(self.moves, self.values, 0.0)) ** (2.0 * np.asarray(steps)[:, None])
        return remains @ self.power / self.power.sum()

    def band(self, lr: float, steps: Sequence[int]) -> Band:
        """Mean μ + A(y − μ), covariance K − A K_X − K_Xᵀ Aᵀ + A K_XX Aᵀ, A_t = Θ_* Θ⁻¹(1 − (1 − ηΘ)ᵗ)."""
        n, values = self.trained, np.where(self.moves, self.values, 1.0)
        means, spreads = [], []
        for t in steps:
            gain = np.where(self.moves, (1 - (1 - lr * values) ** t) / values, 0.0)
            a = self.cross @ (self.vectors * gain) @ self.vectors.T
            mixed = np.einsum("ij,ij->i", a, self.prior[:, :n])
            kept = np.einsum("ij,jk,ik->i", a, self.prior[:n, :n], a)
            means.append(self.mean + a @ self.y)
            spreads.append(np.sqrt(np.maximum(np.diag(self.prior) - 2 * mixed + kept, 0.0)))
        count = len(self.task.x[0])
        mean = np.stack(means).reshape(len(steps), count, *self.task.y.shape[1:])
        rows = np.stack(spreads).reshape(len(steps), count, *self.sites)  # the same for all rows of a readout
        std = np.broadcast_to(rows.reshape(*rows.shape, *(1,) * (mean.ndim - rows.ndim)), mean.shape)
        return Band(np.asarray(steps), mean, std, self.left(lr, steps))


def number(value: Any, name: str, what: str) -> float:
    """A real number, of Python, NumPy or JAX."""
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(2)
    if isinstance(value, bool | str) or found.ndim or np.isnan(found):
        raise bad_argument(name, f"{value!r} is no number", f"give {what}")
    return float(found)
