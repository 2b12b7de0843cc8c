"""`compare`: finite networks against their limit, over widths and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import empirical
from tensorprog.batch import require_program
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.interpret.finite import init
from tensorprog.kernel import kernels
from tensorprog.plot import comparison_figure
from tensorprog.program import Program

KINDS = ("nngp", "ntk")


@dataclass(frozen=True)
class Comparison:
    """Relative Frobenius errors ‖K_n − K‖/‖K‖ of finite kernels, and what they say about the rate.

    `widths`; `errors[kind]` (widths, seeds) for kind "nngp" and "ntk"; `limit[kind]` and `finite[kind]`, the limit
    kernels and the mean over seeds at the widest.
    """

    name: str
    widths: tuple[int, ...]
    errors: dict[str, np.ndarray]
    limit: dict[str, np.ndarray]
    finite: dict[str, np.ndarray]

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Slope of log error against log width, with its standard error, by kernel; the theory says −1/2.

        The error of a width is the root of the mean square over seeds; its standard error comes from their spread.

        **Raises:** `ProgramError` for fewer than two widths.
        """
        if len(self.widths) < 2:
            raise bad_argument("widths", "one width has no rate", "compare at two widths or more")
        return {kind: fitted_rate(self.widths, self.errors[kind]) for kind in KINDS}

    @property
    def rate(self) -> float:
        """The NTK's fitted rate."""
        return self.rates["ntk"][0]

    def table(self) -> str:
        """Width, relative error of each kernel as mean ± sd over seeds, and the fitted rates."""
        seeds = self.errors["ntk"].shape[1]
        lines = [f"{self.name}: relative Frobenius error, mean ± sd over {seeds} seed{'s' if seeds > 1 else ''}"]
        lines.append(f"{'width':>7}   {'NNGP':^17}   {'NTK':^17}")
        for i, width in enumerate(self.widths):
            cells = [f"{e.mean():.4f} ± {_sd(e):.4f}" for e in (self.errors[kind][i] for kind in KINDS)]
            lines.append(f"{width:>7}   {cells[0]:^17}   {cells[1]:^17}".rstrip())
        if len(self.widths) > 1:
            cells = [f"{slope:.3f} ± {se:.3f}" for slope, se in (self.rates[kind] for kind in KINDS)]
            lines.append(f"{'rate':>7}   {cells[0]:^17}   {cells[1]:^17}   (theory: −1/2)")
        return "\n".join(lines)

    __str__ = __repr__ = table

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib figure: errors against width with the reference slope, limit and widest kernels side by side.

        **Raises:** `ProgramError` when matplotlib is not installed, or `path` can't be written.
        """
        return comparison_figure([self], path)


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def fitted_rate(widths: Sequence[int], errors: np.ndarray) -> tuple[float, float]:
    """Least squares of log √(mean over seeds of error²) on log width: (slope, standard error)."""
    squares = errors**2
    mean = np.maximum(squares.mean(1), np.finfo(float).tiny)
    x = np.log(widths) - np.log(widths).mean()
    slope = float((x * 0.5 * np.log(mean)).sum() / (x**2).sum())
    spread = squares.std(1, ddof=1) / np.sqrt(squares.shape[1]) if squares.shape[1] > 1 else np.full(len(mean), np.nan)
    se = float(np.sqrt(((x * 0.5 * spread / mean) ** 2).sum()) / (x**2).sum())
    return slope, se


def compare(
    program: Program,
    x1: Any,
    x2: Any = None,
    *,
    widths: Sequence[int] = (128, 512, 2048),
    seeds: int = 8,
    key: jax.Array | None = None,
    progress: bool | Callable[[], Any] = False,
) -> Comparison:
    """Finite networks of growing width beside their limit: NNGP and NTK at `x1` (against `x2`).

    For each width and seed a network is drawn; its NTK is `tp.empirical.ntk`, its NNGP the output's covariance given
    all but the readout. The finite networks run in the inputs' dtype. `progress=True` shows a bar; a function is called
    after each network.

    **Raises:** `ProgramError` for widths or seeds that are no positive ints, several outputs, and where `tp.ntk` does.

    ```python
    >>> import jax, tensorprog as tp
    >>> found = tp.compare(tp.nets.ZOO["mlp"], jax.numpy.eye(4), widths=(32, 128), seeds=2)
    >>> found.table().splitlines()[0]
    'mlp: relative Frobenius error, mean ± sd over 2 seeds'

    ```
    """
    require_program(program, "compare")
    widths = _positive("widths", widths)
    (seeds,) = _positive("seeds", (seeds,))
    if not program.structure.single:
        raise ProgramError("compare: the program has several outputs; trace one that returns the output to compare")
    limits = kernels(program, x1, x2)
    limit = {"nngp": np.asarray(limits.nngp, np.float64), "ntk": np.asarray(limits.ntk, np.float64)}
    dtype = limits.ntk.dtype
    cast = lambda x: None if x is None else jax.tree.map(lambda a: jnp.asarray(a, dtype), x)
    x1, x2 = cast(x1), cast(x2)
    key = jax.random.key(0) if key is None else key
    step, close = _bar(progress, len(widths) * seeds)
    errors: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    finite: dict[str, np.ndarray] = {}
    for width in widths:
        one = _network(program, width, x1, x2, dtype)
        totals = {kind: np.zeros_like(limit[kind]) for kind in KINDS}
        rows: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for seed in range(seeds):
            found = one(jax.random.fold_in(jax.random.fold_in(key, width), seed))
            for kind, kernel in zip(KINDS, found, strict=True):
                kernel = np.asarray(kernel, np.float64)
                rows[kind].append(float(np.linalg.norm(kernel - limit[kind]) / np.linalg.norm(limit[kind])))
                totals[kind] += kernel / seeds
            step()
        for kind in KINDS:
            errors[kind].append(rows[kind])
        finite = totals
    close()
    return Comparison(program.structure.name, widths, {kind: np.array(errors[kind]) for kind in KINDS}, limit, finite)


def _network(program: Program, width: int, x1: Any, x2: Any, dtype: Any) -> Callable[[jax.Array], tuple[Any, Any]]:
    """key -> (NNGP, NTK) of one network of a width, compiled once."""

    @jax.jit
    def one(key: jax.Array) -> tuple[Any, Any]:
        params = jax.tree.map(lambda p: p.astype(dtype), init(program, key, width))
        return empirical.nngp(program, params, x1, x2), empirical.ntk(program, params, x1, x2)

    return one


def _positive(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Positive ints, at least one."""
    found: tuple[Any, ...] = tuple(values) if isinstance(values, Sequence | np.ndarray) else (values,)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise bad_argument(name, f"{value!r} is no positive int", f"give {name} of at least 1")
    if not found:
        raise bad_argument(name, "none are given", "give at least one")
    return tuple(int(value) for value in found)


def _bar(progress: bool | Callable[[], Any], total: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What to call after each network, and at the end."""
    if callable(progress):
        return progress, lambda: None
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:
            return lambda: None, lambda: None
        bar = tqdm(total=total, unit="net", leave=False)
        return bar.update, bar.close
    return lambda: None, lambda: None
