"""A program's kernel for scikit-learn's own machines: `SVC(kernel=...)`, `GaussianProcessRegressor(kernel=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import Kernel

from tensorprog.program import Program
from tensorprog.sklearn.programs import Source, invalid, is_sampled, kernel_blocks, prior_variances, program_for


class ProgramKernel(Kernel):
    """The kernel of a program on flat rows; made by `kernel`. It has no hyperparameters that a GP would tune."""

    def __init__(
        self,
        program: Source = "mlp",
        kind: str = "ntk",
        input_shape: tuple[int, ...] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        self.program = program
        self.kind = kind
        self.input_shape = input_shape
        self.keywords = keywords

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """(N, M) of rows X with rows Y; with `eval_gradient` its derivative in no hyperparameters, (N, N, 0), too."""
        if self.kind not in ("ntk", "nngp"):
            raise invalid("kind", f"{self.kind!r} is no kernel", "give 'ntk' or 'nngp'")
        x = np.atleast_2d(np.asarray(X, np.float64))
        program = self._program(x.shape[1])
        if Y is None:
            found = kernel_blocks(program, x, what=self.kind)
        else:
            found = kernel_blocks(program, np.atleast_2d(np.asarray(Y, np.float64)), x, what=self.kind)
        kernel = found[self.kind].copy()  # scikit-learn adds to its diagonal in place
        return (kernel, np.empty((len(x), len(x), 0))) if eval_gradient else kernel

    def diag(self, X: Any) -> np.ndarray:
        """K(x, x) of each row, (N,)."""
        x = np.atleast_2d(np.asarray(X, np.float64))
        return prior_variances(self._program(x.shape[1]), x, self.kind)

    def _program(self, features: int) -> Program:
        program = program_for(self.program, self.input_shape, self.keywords, features)
        if is_sampled(program):
            raise invalid(
                "program",
                "its kernels are sampled, each call another draw, and here training and test kernels are two calls",
                "take NTKClassifier, NTKRegressor or NNGPRegressor, or one tp.kernels(program, …) of all examples with "
                "SVC(kernel='precomputed')",
            )
        return program

    def is_stationary(self) -> bool:
        return False

    def __repr__(self) -> str:
        name = self.program if isinstance(self.program, str) else getattr(self.program, "__name__", "program")
        return f"{self.kind.upper()}({name})"


def kernel(
    program: Source,
    kind: str = "ntk",
    *,
    input_shape: tuple[int, ...] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ProgramKernel:
    """A program's NTK or NNGP kernel as a callable K(X, Y) for `SVC`, and a Kernel for `GaussianProcessRegressor`.

    Arguments as for `NTKRegressor`; `kind` "ntk" or "nngp". Combines with scikit-learn's: `ConstantKernel() * kernel(…)
    + WhiteKernel()`. Both are computed once for the same data. Programs whose kernels are sampled (`lstm`) are refused:
    training and test kernels would be of two draws.

    ```python
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from tensorprog.sklearn import kernel
    >>> x, y = load_iris(return_X_y=True)
    >>> bool(SVC(kernel=kernel("mlp", keywords={"depth": 1})).fit(x[::3], y[::3]).score(x, y) > 0.9)
    True

    ```
    """
    return ProgramKernel(program, kind, input_shape, keywords)
