"""`compare_training`: finite networks trained by gradient descent beside the curve that their limit predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tensorprog.arrays import NoNumbers, floating, real_array
from tensorprog.batch import require_program
from tensorprog.comparison.arguments import Progress, as_given, bar, batches, comparable, keys_of, seeds_of, widths_of
from tensorprog.comparison.expected import GRID, Band, Ensemble, number
from tensorprog.comparison.paths import Networks, Path, Task
from tensorprog.comparison.rates import deviation, fixed, rates_of
from tensorprog.empirical.programs import readout_variances
from tensorprog.errors import bad_argument
from tensorprog.interpret.finite import apply, init
from tensorprog.kernel import kernels
from tensorprog.plot import training_figure
from tensorprog.program import Program

TITLES = {
    "gap": "from the limit",
    "nonlinear": "from its linearisation",
    "kernel": "change of the NTK",
    "moved": "‖θ_t − θ_0‖/‖θ_0‖",
}


@dataclass(frozen=True, eq=False)
class TrainingComparison:
    """Finite networks in training, by width and seed, beside their limit. `print` shows the table.

    `deviations[kind]` (widths, seeds), all relative, of a network that is trained until its loss has fallen:

    - "gap": test outputs along the path from f_0 − Θ_*Θ⁻¹(1 − (1 − ηΘ)ᵗ)(f_0 − y) with the limit's Θ and the network's
      own f_0: √(Σ_t ‖f_t − p_t‖² / Σ_t ‖p_t − f_0‖²);
    - "nonlinear": the same from the network's own linearisation, which is that formula with its own NTK;
    - "kernel": ‖Θ̂_t − Θ̂_0‖/‖Θ̂_0‖ of the empirical NTK, and "moved": ‖θ_t − θ_0‖/‖θ_0‖, both at the end.

    `paths[width]` are the networks, `band` the ensemble of infinitely wide ones; `inside[width]` the share of test
    outputs within two standard deviations of its mean (95 % in the limit), `left` (widths, seeds) the part of the loss
    that is left. Where there are no test inputs, the training inputs stand in.
    """

    name: str
    widths: tuple[int, ...]
    task: Task
    lr: float
    fall: float
    band: Band
    paths: dict[int, list[Path]]

    titles: ClassVar[Mapping[str, str]] = TITLES

    @property
    def tested(self) -> slice:
        """Which inputs outputs are compared at: the test inputs, or if there are none the training inputs."""
        return slice(self.task.count if len(self.task.x[0]) > self.task.count else 0, None)

    @property
    def deviations(self) -> dict[str, np.ndarray]:
        def away(path: Path, predicted: np.ndarray) -> float:
            f, p = path.outputs[:, self.tested], predicted[:, self.tested]
            return math.sqrt(((f - p) ** 2).sum() / ((p - p[:1]) ** 2).sum())

        measures = {
            "gap": lambda p: away(p, p.limit),
            "nonlinear": lambda p: away(p, p.own),
            "kernel": lambda p: p.kernel_change,
            "moved": lambda p: p.moved,
        }
        return {kind: self._each(measure) for kind, measure in measures.items()}

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Slope of log deviation against log width, with its standard error, as `Comparison.rates`.

        In theory −1/2 for the gap, which is that of the kernel at initialisation; −1 for what comes of training, the
        change of the kernel and the distance to the linearisation; −1 for the parameters too where hidden matrices,
        whose norm grows like n, are most of them.

        **Raises:** `ProgramError` for fewer than two widths.
        """
        return rates_of(self.widths, self.deviations)

    @property
    def left(self) -> np.ndarray:
        return self._each(lambda p: p.loss[-1] / p.loss[0])

    @property
    def inside(self) -> dict[int, float]:
        def share(path: Path) -> np.ndarray:
            common = min(len(path.steps), len(self.band.steps))
            away = np.abs(path.outputs[:common] - self.band.mean[:common])
            return (away <= 2 * self.band.std[:common])[:, self.tested]

        return {w: float(np.mean([share(p).mean() for p in paths])) for w, paths in self.paths.items()}

    def _each(self, measure: Any) -> np.ndarray:
        return np.array([[measure(path) for path in self.paths[width]] for width in self.widths])

    def table(self) -> str:
        """Width, steps and what is left of the loss, the four deviations as mean ± sd over seeds, rates, the band."""
        found, left, seeds = self.deviations, self.left, len(self.paths[self.widths[0]])
        inside = self.inside
        tests = len(self.task.x[0]) - self.task.count
        lines = [
            f"{self.name}: {self.task.count} training and {tests} test inputs, gradient descent with lr {self.lr:.3g} "
            f"until the loss has fallen by {100 * self.fall:.0f} %",
            f"relative deviations, mean ± sd over {seeds} seed{'s' if seeds > 1 else ''}",
            f"{'width':>7}   {'steps':>6}   {'loss left':>9}   "
            + "   ".join(f"{title:^22}" for title in TITLES.values()) + "   in the band",
        ]  # fmt: skip
        for i, width in enumerate(self.widths):
            steps = np.mean([path.steps[-1] for path in self.paths[width]])
            cells = [f"{fixed(d[i].mean(), 4)} ± {fixed(deviation(d[i]), 4)}" for d in found.values()]
            lines.append(
                f"{width:>7}   {steps:>6.0f}   {100 * left[i].mean():>7.1f} %   "
                + "   ".join(f"{cell:^22}" for cell in cells) + f"   {100 * inside[width]:>9.0f} %"
            )  # fmt: skip
        if len(self.widths) > 1:
            cells = [f"{fixed(slope, 2)} ± {fixed(se, 2)}" for slope, se in self.rates.values()]
            lines.append(f"{'rate':>7}   {'':>6}   {'':>9}   " + "   ".join(f"{cell:^22}" for cell in cells).rstrip())
        return "\n".join(lines)

    __str__ = __repr__ = table

    def plot(self, path: str | FilePath | None = None) -> Any:
        """A matplotlib figure: outputs of a test input in the band, the loss, and the deviations against width.

        **Raises:** `ProgramError` when matplotlib is not installed, or `path` can't be written.
        """
        return training_figure([self], path)


def compare_training(
    program: Program,
    x: Any,
    y: Any,
    x_test: Any = None,
    *,
    widths: Sequence[int] = (64, 256, 1024),
    seeds: int = 3,
    lr: ArrayLike | None = None,
    fall: ArrayLike = 0.9,
    max_steps: int = 100_000,
    key: jax.Array | None = None,
    progress: Progress = False,
) -> TrainingComparison:
    """Finite networks of growing width, trained, beside what the limit kernel predicts of them.

    Each network is trained by full-batch gradient descent (optax's `sgd`) on ½ Σ ‖f(x_i) − y_i‖² in the program's own
    parameterization and learning rates, until its loss has fallen by the part `fall`. Along its path it is compared
    with f_t − y = (1 − ηΘ)ᵗ(f_0 − y), which is e^{−ηtΘ}(f_0 − y) for small steps, from its own f_0, and with its own
    linearisation; over seeds, with the mean ± 2 sd of infinitely wide networks.

    **Arguments:**

    - `x`, `x_test`: as for `tp.ntk`; everything runs in their dtype. Without `x_test` training inputs are looked at.
    - `y`: targets in the shape of `tp.apply`'s outputs at `x`: (N,), (N, k) for a readout of k rows, (N, *S).
    - `widths`, `seeds`, `key`, `progress`: as for `compare`.
    - `lr`: η, by default 1/λ_max of the limit's NTK, half the largest stable one.
    - `fall`: the part of the loss that is to go, below 1. A network that has not got there in four times the steps that
      the limit takes stops there; the table says what is left of the loss.
    - `max_steps`: the most steps that the limit may take.

    **Returns:** a `TrainingComparison`.

    **Raises:** `ProgramError` for targets of another shape than the outputs, NaN, a `fall` not between 0 and 1, a
    learning rate that is not positive or diverges, and where `compare` does.

    Source: Lee et al. 2019 (1902.06720), §2.2-2.4 and figures 2-4.

    ```python
    >>> import jax.numpy as jnp, tensorprog as tp
    >>> net = tp.nets.net("mlp").program(tp.Input(3), depth=1)
    >>> x, y = jnp.eye(3), jnp.array([1.0, -1.0, 0.5])
    >>> found = tp.compare_training(net, x, y, widths=(64, 256), seeds=2)
    >>> bool((found.left <= 0.1).all())
    True

    ```
    """
    structure = require_program(program, "compare_training").structure
    comparable(structure)
    widths, seeds = widths_of(widths), seeds_of(seeds)
    fall = number(fall, "fall", "a number between 0 and 1, as 0.9")
    if not 0 < fall < 1:
        raise bad_argument("fall", f"{fall:g} is no part of a loss", "give a number between 0 and 1, as 0.9")
    keys = keys_of(key, widths, seeds)
    task = _task(program, widths[0], x, x_test, y)
    step, close = bar(progress, len(widths) * seeds)
    paths: dict[int, list[Path]] = {width: [] for width in widths}
    with jax.default_matmul_precision("highest"):
        try:
            found = kernels(program, as_given(task.x))
            nngp, theta = np.asarray(found.nngp), np.asarray(found.ntk)[:, : task.count]
            ensemble = Ensemble(nngp, theta, _prior_mean(program, widths[0], task), task)
            lr = ensemble.rate(lr)
            grid = ensemble.grid(lr, fall, max_steps)
            for width in widths:
                networks = Networks(program, width, task, lr)
                for own in keys[width]:
                    paths[width].append(networks.path(own, theta, grid, fall))
                    step()
        finally:
            close()
    band = ensemble.band(lr, grid[: GRID + 1])
    return TrainingComparison(structure.name, widths, task, lr, fall, band, paths)


def _task(program: Program, width: int, x: Any, x_test: Any, y: Any) -> Task:
    train, test = batches(program, x, x_test, ("x", "x_test"))
    both = train if test is None else tuple(jnp.concatenate(pair) for pair in zip(train, test, strict=True))
    try:
        targets = floating(real_array(y), train[0].dtype)
    except NoNumbers as error:
        raise bad_argument("y", error.why, error.remedy) from None
    finite = lambda key, x: apply(program, init(program, key, width), as_given(x))
    outputs = jax.eval_shape(finite, jax.random.key(0), train).shape
    if targets.shape != outputs:
        raise bad_argument(
            "y", f"has shape {targets.shape}, and the outputs at x are {outputs}", "give one target each"
        )
    return Task(both, len(train[0]), targets)


def _prior_mean(program: Program, width: int, task: Task) -> np.ndarray:
    """The outputs' mean over networks, (N, *k): what is left of them when the readouts' parameters are 0."""
    params = init(program, jax.random.key(0), width)
    silent = {name: jnp.zeros_like(params[name]) for name in readout_variances(program)}
    return np.asarray(apply(program, {**params, **silent}, as_given(task.x)))
