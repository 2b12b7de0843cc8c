"""`NTKRegressor`, `NNGPRegressor`, `NTKClassifier`: infinitely wide networks as scikit-learn estimators."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from tensorprog.sklearn.programs import (
    Joint,
    Source,
    invalid,
    is_sampled,
    joint_blocks,
    kernel_blocks,
    program_for,
    value_errors,
)
from tensorprog.sklearn.smoothing import Smoother, smoother

TEMPERATURES = (1e-2, 1e2)


class KernelEstimator(BaseEstimator):
    """What the estimators share: parameters of the program, kernels, and weights of the training examples."""

    program: Any
    input_shape: Any
    keywords: Any
    ridge: Any
    kind = "ntk"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; with `deep` the program's keywords too, as `keywords__depth`."""
        found = super().get_params(deep=deep)
        if deep and isinstance(self.keywords, Mapping):
            found |= {f"keywords__{name}": value for name, value in self.keywords.items()}
        return found

    def set_params(self, **params: Any) -> KernelEstimator:
        """Set parameters; `keywords__depth=3` sets one keyword of the program."""
        own = {name: value for name, value in params.items() if not name.startswith("keywords__")}
        super().set_params(**own)
        inner = {name.removeprefix("keywords__"): value for name, value in params.items() if name not in own}
        if inner:
            self.keywords = {**(self.keywords or {}), **inner}
        return self

    @value_errors()
    def _learn(self, x: np.ndarray, y: np.ndarray) -> Smoother:
        """Fit targets (N, k); returns the map it was done by."""
        for name, infinite in (("ridge", False), ("time", True), ("learning_rate", False)):
            value = getattr(self, name, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value >= 0 or (
                math.isinf(value) and not infinite
            ):  # fmt: skip
                raise invalid(name, f"{value!r} is no number of at least 0", "give 1e-3, say")
        self.program_ = program_for(self.program, self.input_shape, self.keywords, x.shape[1])
        self.X_fit_, self._targets = x, y
        found = self._smoother(kernel_blocks(self.program_, x, what=self.kind))
        self.dual_coef_ = found.weights(y)
        return found

    def _joint(self, test: np.ndarray) -> Joint:
        return joint_blocks(self.program_, self.X_fit_, test, what=self.kind)

    def _smoother(self, train: dict[str, np.ndarray]) -> Smoother:
        time, rate = getattr(self, "time", math.inf), getattr(self, "learning_rate", 1.0)
        return smoother(train[self.kind], self.ridge, time, rate)

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        """(N*, k). Sampled kernels are of one draw only within a call: there the training block is solved again."""
        if is_sampled(self.program_):
            joint = self._joint(x)
            return joint.cross[self.kind] @ self._smoother(joint.train).weights(self._targets)
        return kernel_blocks(self.program_, self.X_fit_, x, what=self.kind)[self.kind] @ self.dual_coef_

    def _checked(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        checked: Any = validate_data(self, x, reset=False, dtype=np.float64)
        return checked


class KernelRegressor(RegressorMixin, KernelEstimator, ABC):
    """Regression; targets (N,) or (N, k), standardised first where `normalize_y` says so."""

    normalize_y: Any

    def fit(self, X: Any, y: Any) -> KernelRegressor:
        """Compute the training kernel and solve; X (N, features), y (N,) or (N, k)."""
        checked: Any = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        x, targets = checked
        targets = np.asarray(targets, np.float64)
        self._tail = targets.shape[1:]
        columns = targets.reshape(len(targets), -1)
        self.y_mean_ = columns.mean(0) if self.normalize_y else np.zeros(columns.shape[1])
        spread = columns.std(0) if self.normalize_y else np.ones(columns.shape[1])
        self.y_scale_ = np.where(spread > 0, spread, 1.0)
        standard = (columns - self.y_mean_) / self.y_scale_
        left_out = self._learn(x, standard).left_out(standard)
        self.leave_one_out_ = (left_out * self.y_scale_ + self.y_mean_).reshape(targets.shape)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Outputs (N*,) or (N*, k); with `return_std` their standard deviations too, of outputs, not noisy targets."""
        x = self._checked(X)
        tail = (len(x), *self._tail)
        mean = (self._outputs(x) * self.y_scale_ + self.y_mean_).reshape(tail)
        if not return_std:
            return mean
        std = np.sqrt(np.maximum(self._variances(x), 0.0))  # rounding leaves −1e-17
        return mean, (std[:, None] * self.y_scale_).reshape(tail)

    @abstractmethod
    def _variances(self, x: np.ndarray) -> np.ndarray:
        """Of outputs with standardised targets, (N*,)."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class NTKRegressor(KernelRegressor):
    """Regression by an infinitely wide network trained with gradient flow: the NTK.

    f(x) = Θ(x, X) (Θ + λI)⁻¹(1 − e^{−ηt(Θ + λI)}) y

    the mean over initialisations of networks trained for a time t on ½ Σ ‖f − y‖² + (λ/2)‖θ − θ_0‖²; the standard
    deviation of `predict(return_std=True)` is theirs (`tp.predict.ensemble`).

    **Arguments:**

    - `program`: a name of the zoo, a function on traced values, or a Program of one input and one number an example.
    - `input_shape`: how flat rows are cut, (8, 8); by default not at all. Zoo nets of pixels add the channel.
    - `keywords`: of the zoo net or function, {"depth": 2, "var_w": 1.5}; searched as `keywords__depth`.
    - `ridge`: λ ≥ 0; `time`: t, ∞ by default; `learning_rate`: η of a loss that is a sum.
    - `normalize_y`: standardise targets first. The prior has mean 0.

    Kernels are computed in double precision, once for each program and data: a search over `ridge`, `time` or
    `learning_rate` computes each only once in a process. Features should be standardised, in a Pipeline. Sampled
    kernels (`gru`, `lstm`) are drawn anew in each `predict`, of training and test examples together: predictions vary
    with the call's other rows, within their sampling error; `dual_coef_` and `leave_one_out_` are of the draw of `fit`.

    **Attributes:** `program_`, `dual_coef_` (N, k), `X_fit_`, `n_features_in_`; `leave_one_out_`, each training target
    as predicted from the others (exactly at t = ∞).

    **Raises:** ValueError for parameters and data that cannot be, as other estimators.

    ```python
    >>> import numpy as np
    >>> from tensorprog.sklearn import NTKRegressor
    >>> x = np.linspace(-1, 1, 8)[:, None]
    >>> model = NTKRegressor("mlp", keywords={"depth": 1}, ridge=1e-6).fit(x, np.sin(3 * x[:, 0]))
    >>> mean, std = model.predict(x, return_std=True)
    >>> bool(np.abs(mean - np.sin(3 * x[:, 0])).max() < 1e-2)
    True

    ```
    """

    def __init__(
        self,
        program: Source = "mlp",
        *,
        input_shape: tuple[int, ...] | None = None,
        keywords: Mapping[str, Any] | None = None,
        ridge: float = 1e-3,
        time: float = math.inf,
        learning_rate: float = 1.0,
        normalize_y: bool = False,
    ) -> None:
        self.program = program
        self.input_shape = input_shape
        self.keywords = keywords
        self.ridge = ridge
        self.time = time
        self.learning_rate = learning_rate
        self.normalize_y = normalize_y

    def _variances(self, x: np.ndarray) -> np.ndarray:
        """diag(K_** − A K_*ᵀ − K_* Aᵀ + A K Aᵀ), A = Θ_* G."""
        joint = self._joint(x)
        a = self._smoother(joint.train).weights(joint.cross["ntk"].T).T
        return joint.prior + np.sum(a * (a @ joint.train["nngp"] - 2 * joint.cross["nngp"]), 1)


class NNGPRegressor(KernelRegressor):
    """Bayesian regression by an infinitely wide network: the posterior of its NNGP, noise variance λ.

    mean = K_*(K + λI)⁻¹ y,   std² = diag(K_** − K_*(K + λI)⁻¹K_*ᵀ)

    Arguments and attributes as for `NTKRegressor`; `ridge` is the noise's variance.
    """

    kind = "nngp"

    def __init__(
        self,
        program: Source = "mlp",
        *,
        input_shape: tuple[int, ...] | None = None,
        keywords: Mapping[str, Any] | None = None,
        ridge: float = 1e-3,
        normalize_y: bool = False,
    ) -> None:
        self.program = program
        self.input_shape = input_shape
        self.keywords = keywords
        self.ridge = ridge
        self.normalize_y = normalize_y

    def _variances(self, x: np.ndarray) -> np.ndarray:
        joint = self._joint(x)
        cross = joint.cross["nngp"]
        return joint.prior - np.sum(self._smoother(joint.train).weights(cross.T).T * cross, 1)


class NTKClassifier(ClassifierMixin, KernelEstimator):
    """Classification by an infinitely wide network trained with gradient flow on the squared loss of one-hot targets.

    The class is the largest of the outputs f_c(x), targets 1 − 1/C for the class and −1/C for the others. Probabilities
    are softmax(f/T); the temperature T makes the leave-one-out predictions of the training examples most likely.

    Arguments as for `NTKRegressor`. **Attributes:** `classes_`, `temperature_`, and those of `NTKRegressor`.

    **Raises:** ValueError as other classifiers; for a single class too.
    """

    def __init__(
        self,
        program: Source = "mlp",
        *,
        input_shape: tuple[int, ...] | None = None,
        keywords: Mapping[str, Any] | None = None,
        ridge: float = 1e-3,
        time: float = math.inf,
        learning_rate: float = 1.0,
    ) -> None:
        self.program = program
        self.input_shape = input_shape
        self.keywords = keywords
        self.ridge = ridge
        self.time = time
        self.learning_rate = learning_rate

    def fit(self, X: Any, y: Any) -> NTKClassifier:
        """Compute the training kernel and solve; X (N, features), labels y (N,) of any kind."""
        checked: Any = validate_data(self, X, y, dtype=np.float64)
        x, labels = checked
        check_classification_targets(labels)
        self.classes_, places = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise invalid(
                "y", f"there is only one class, {self.classes_.tolist()[0]!r}", "a classifier needs two or more"
            )
        targets = one_hot(places, len(self.classes_))
        found = self._learn(x, targets)
        self.temperature_ = _temperature(found.left_out(targets), places)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs (N*, C); of two classes the second's less the first's, (N*,)."""
        outputs = self._outputs(self._checked(X))
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """Labels (N*,)."""
        places = np.argmax(self._outputs(self._checked(X)), axis=1)
        return self.classes_[places]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N*, C) of `classes_`."""
        outputs = self._outputs(self._checked(X)) / self.temperature_
        shares = np.exp(outputs - outputs.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)


def one_hot(places: np.ndarray, count: int) -> np.ndarray:
    """1 − 1/C for the class, −1/C for the others: rows that sum to 0."""
    return np.eye(count)[places] - 1 / count


def _temperature(outputs: np.ndarray, places: np.ndarray) -> float:
    """The T that makes softmax(outputs/T) give the classes the highest likelihood."""

    def loss(log: float) -> float:
        scaled = outputs / math.exp(log)
        top = scaled.max(1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
        return float((log_sum - scaled[np.arange(len(places)), places]).mean())

    low, high = map(math.log, TEMPERATURES)
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return math.exp(float(found.x))
