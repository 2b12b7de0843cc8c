"""Regression with a kernel as a linear map of the targets: what all estimators fit and predict by.

f(X) = S y with S = Θ G, G = V diag(gain) Vᵀ, and f(x) = Θ(x, X) G y; gains and decays are those of
`tensorprog.predict.spectra`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from tensorprog.predict.solving import spectrum, warn_condition
from tensorprog.predict.spectra import flow_decay, flow_gain
from tensorprog.sklearn.programs import KERNELS, digest


@dataclass(frozen=True)
class Smoother:
    """Eigenvectors of the training kernel (N, N), and the gain and decay of each."""

    vectors: np.ndarray
    gain: np.ndarray
    decay: np.ndarray

    def weights(self, y: np.ndarray) -> np.ndarray:
        """G y."""
        return self.vectors @ (self.gain[:, None] * (self.vectors.T @ y))

    def left_out(self, y: np.ndarray) -> np.ndarray:
        """Each target predicted from the others: y_i − (y − Sy)_i/(1 − S_ii).

        Exact for ridge regression; after a finite time of training an approximation (there is no shortcut). Where
        nothing is left of a row's residual, its limit at ridge → 0.
        """
        squares, turned = self.vectors**2, self.vectors.T @ y
        left = squares @ self.decay
        use = left > len(left) * np.finfo(left.dtype).eps * self.decay.max()  # else rounding of directions that stay
        share = np.where(use, left, squares @ self.gain)
        residual = np.where(
            use[:, None], *(self.vectors @ (rest[:, None] * turned) for rest in (self.decay, self.gain))
        )
        return y - residual / share[:, None]


def smoother(kernel: np.ndarray, ridge: float, time: float, lr: float) -> Smoother:
    """The map for a training kernel, a ridge, and a time of gradient flow; eigenvectors are kept as kernels are."""
    with jax.enable_x64(True):
        found = KERNELS.get(("spectrum", digest(kernel)), lambda: _spectrum(kernel))
        values, cutoff, t, eta, pull = (
            jax.numpy.asarray(number, float) for number in (found["values"], found["cutoff"], time, lr, ridge)
        )
        if np.isinf(time):  # what rounding leaves of a direction is waited for
            largest, least = found["values"][-1] + ridge, found["values"][0] + ridge
            warn_condition("the training kernel", float(largest / least) if least else np.inf, np.float64)
        gain, decay = flow_gain(values, t, eta, pull, cutoff), flow_decay(values, t, eta, pull, cutoff)
        return Smoother(found["vectors"], np.asarray(gain), np.asarray(decay))


def _spectrum(kernel: np.ndarray) -> dict[str, np.ndarray]:
    found = spectrum(jax.numpy.asarray(kernel), "the training kernel")
    return {
        "values": np.asarray(found.values),
        "vectors": np.asarray(found.vectors),
        "cutoff": np.asarray(found.cutoff),
    }
