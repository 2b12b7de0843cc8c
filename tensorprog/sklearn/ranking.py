"""`rank`: architectures × depth × variance by leave-one-out and by evidence, in one call."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_X_y

from tensorprog.nets import net
from tensorprog.sklearn.estimators import one_hot
from tensorprog.sklearn.programs import invalid, kernel_blocks, program_for, value_errors


@dataclass(frozen=True)
class Candidate:
    """An architecture with keywords, and what it makes of the data.

    `loo`: leave-one-out error of NTK regression at the best `ridge` (misclassified share, or root mean square error);
    `evidence`: log p(y) of the NNGP per target at the best `noise` and amplitude.
    """

    program: str
    keywords: dict[str, Any]
    loo: float
    ridge: float
    evidence: float
    noise: float


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first by leave-one-out (`by_loo`) and by evidence (`by_evidence`); `print` shows the table."""

    candidates: tuple[Candidate, ...]
    measure: str

    @property
    def by_loo(self) -> tuple[Candidate, ...]:
        return tuple(sorted(self.candidates, key=lambda c: (c.loo, -c.evidence)))

    @property
    def by_evidence(self) -> tuple[Candidate, ...]:
        return tuple(sorted(self.candidates, key=lambda c: -c.evidence))

    def table(self) -> str:
        """A line for each candidate, best leave-one-out first, with its place by evidence."""
        places = {id(c): k for k, c in enumerate(self.by_evidence, 1)}
        words = [f"{c.program}({', '.join(f'{k}={v}' for k, v in c.keywords.items())})" for c in self.by_loo]
        width = max(map(len, words))
        lines = [f"{'program':<{width}}  {self.measure:>11}  {'ridge':>9}  {'evidence':>9}  {'noise':>9}  place"]
        for word, c in zip(words, self.by_loo, strict=True):
            lines.append(
                f"{word:<{width}}  {c.loo:>11.4f}  {c.ridge:>9.2g}  {c.evidence:>9.4f}  {c.noise:>9.2g}"
                f"  {places[id(c)]:>5}"
            )
        return "\n".join(lines)

    __str__ = __repr__ = table


@value_errors()
def rank(
    X: Any,
    y: Any,
    *,
    programs: Sequence[str] | None = None,
    depths: Sequence[int] | np.ndarray = (1, 2, 4),
    variances: Sequence[float] | np.ndarray = (1.0, 2.0),
    ridges: Sequence[float] | np.ndarray = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    input_shape: tuple[int, ...] | None = None,
    classify: bool | None = None,
    progress: Callable[[], Any] | None = None,
) -> Ranking:
    """Zoo architectures × `depths` × `variances` on your data, ranked by leave-one-out and by evidence.

    Each candidate's kernels are computed once. Leave-one-out: NTK regression of the targets (one-hot for classes), the
    error at the best of `ridges`. Evidence: log p(y) of the NNGP per target, at the best of `ridges` as noise and at
    the best amplitude s of sK, which is s = yᵀ(K + λI)⁻¹y/N in closed form (Rasmussen and Williams 2006, eq. 2.30).

    **Arguments:**

    - `X` (N, features), `y` (N,) numbers or labels.
    - `programs`: zoo names; by default perceptrons, and with an `input_shape` of two axes `rnn` and `cnn_flatten` too.
    - `depths`, `variances`: the keywords `depth` and `var_w`, for nets that have them.
    - `ridges`: relative to the mean of the kernel's diagonal.
    - `input_shape`: how rows are cut, (8, 8). `classify`: whether y are labels; by default as scikit-learn guesses.
    - `progress`: called after each candidate.

    **Returns:** `Ranking`, printed as a table. The best, c = `.by_loo[0]`, is `NTKRegressor(c.program,
    keywords=c.keywords, ridge=c.ridge, normalize_y=True, input_shape=…)`: targets have their mean taken off. For
    labels it is `NTKClassifier(c.program, keywords=c.keywords, ridge=c.ridge, input_shape=…)`.

    **Raises:** ValueError as the estimators, for a grid of nothing, and targets that are all the same.
    """
    x, targets = check_X_y(X, y, dtype="float64")
    classify = type_of_target(targets) in ("binary", "multiclass") if classify is None else classify
    if programs is None:
        programs = ("mlp", "resnet_mlp", "layernorm_mlp")
        if input_shape is not None and len(input_shape) > 1:
            programs = (*programs, "rnn", "cnn_flatten")
    grid: Any = {"programs": programs, "depths": depths, "variances": variances, "ridges": ridges}
    programs, depths, variances, ridges = (_values(name, given) for name, given in grid.items())
    if not min(ridges) > 0:
        raise invalid("ridges", f"{min(ridges)} is not positive", "give positive ridges")
    if np.all(targets == targets[0]):
        raise invalid("y", f"all targets are {targets[0]!s}", "there is nothing to learn: give targets that differ")
    if classify:
        _, places = np.unique(targets, return_inverse=True)
        columns = one_hot(places, places.max() + 1)
    else:
        centred = np.asarray(targets, np.float64) - np.mean(targets)
        columns, places = centred[:, None], None
    found = []
    for name, keywords in _grid(programs, depths, variances):
        program = program_for(name, input_shape, keywords, x.shape[1])
        both = kernel_blocks(program, x, what="ntk")
        loo = [left_out(both["ntk"], columns, ridge, places) for ridge in ridges]
        evidence = [profiled_evidence(both["nngp"], columns, ridge) for ridge in ridges]
        best, likely = int(np.argmin(loo)), int(np.argmax([e for e, _ in evidence]))
        ridge = ridges[best] * float(np.trace(both["ntk"])) / len(x)
        found.append(Candidate(name, keywords, loo[best], ridge, *evidence[likely]))
        if progress is not None:
            progress()
    return Ranking(tuple(found), "LOO error" if classify else "LOO RMSE")


def _values(name: str, given: Any) -> list[Any]:
    """An axis of the grid as a list."""
    values = np.atleast_1d(np.asarray(given)).tolist()
    if not values:
        raise invalid(name, "there are none", "give at least one")
    return values


def _grid(
    programs: Sequence[str], depths: Sequence[int], variances: Sequence[float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in programs:
        has = inspect.signature(net(name).fn).parameters
        axes = {"depth": depths, "var_w": variances}
        mine = {key: values for key, values in axes.items() if key in has}
        for chosen in itertools.product(*mine.values()):
            yield name, dict(zip(mine, chosen, strict=True))


def left_out(kernel: np.ndarray, y: np.ndarray, ridge: float, places: np.ndarray | None) -> float:
    """The leave-one-out error: misclassified share where there are classes, root mean square error else."""
    inverse = np.linalg.inv(kernel + ridge * np.trace(kernel) / len(kernel) * np.eye(len(kernel)))
    gap = inverse @ y / np.diagonal(inverse)[:, None]
    if places is None:
        return float(np.sqrt(np.mean(gap**2)))
    return float(np.mean(np.argmax(y - gap, axis=1) != places))


def profiled_evidence(kernel: np.ndarray, y: np.ndarray, ridge: float) -> tuple[float, float]:
    """max over s of log p(y; s(K + λI)) per target, and the noise sλ."""
    added = ridge * float(np.trace(kernel)) / len(kernel)
    lower = np.linalg.cholesky(kernel + added * np.eye(len(kernel)))
    fit = float(np.sum(np.linalg.solve(lower, y) ** 2))
    scale = fit / y.size
    determinant = 2 * float(np.log(np.diagonal(lower)).sum()) / len(y)
    return -0.5 * (1 + determinant + math.log(2 * math.pi * scale)), scale * added
