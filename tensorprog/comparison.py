"""`compare`: finite networks against their limit, over widths and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import empirical
from tensorprog.batch import batch, require_program
from tensorprog.errors import bad_argument
from tensorprog.interpret.finite import init
from tensorprog.kernel import kernels
from tensorprog.plot import comparison_figure
from tensorprog.program import Program

KINDS = ("nngp", "ntk")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Relative Frobenius errors ‖K_n − K‖/‖K‖ of finite kernels, and what they say about the rate.

    `widths`, in increasing order; `errors[kind]` (widths, seeds) for kind "nngp" and "ntk"; `limit[kind]` and
    `finite[kind]`, the limit kernels and the mean over seeds at the widest. `print` shows the table.
    """

    name: str
    widths: tuple[int, ...]
    errors: dict[str, np.ndarray]
    limit: dict[str, np.ndarray]
    finite: dict[str, np.ndarray]

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Slope of log error against log width, with its standard error, by kernel; the theory says −1/2.

        Least squares through the logarithms of the root mean square over seeds; the standard error comes from the
        spread of all seeds about that line (nan where it has none: two widths of one seed). Both are nan where all
        errors of a width are exactly 0.

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
        lines.append(f"{'width':>7}   {'NNGP':^17}   {'NTK':^17}".rstrip())
        for i, width in enumerate(self.widths):
            cells = [f"{_fixed(e.mean(), 4)} ± {_fixed(_sd(e), 4)}" for e in (self.errors[kind][i] for kind in KINDS)]
            lines.append(f"{width:>7}   {cells[0]:^17}   {cells[1]:^17}".rstrip())
        if len(self.widths) > 1:
            cells = [f"{_fixed(slope, 3)} ± {_fixed(se, 3)}" for slope, se in (self.rates[kind] for kind in KINDS)]
            lines.append(f"{'rate':>7}   {cells[0]:^17}   {cells[1]:^17}   (theory: −1/2)")
        return "\n".join(lines)

    __str__ = __repr__ = table

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib figure: errors against width with the reference slope, limit and widest kernels side by side.

        **Raises:** `ProgramError` when matplotlib is not installed, or `path` can't be written.
        """
        return comparison_figure([self], path)


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _fixed(value: float, digits: int) -> str:
    """A number, or a dash for what a single seed does not tell."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "—"


def fitted_rate(widths: Sequence[int] | np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Least squares of log √(mean over seeds of error²) on log width: (slope, standard error).

    The standard error takes the spread of error² about the fitted line as one over all widths and seeds: each width's
    own, from a few seeds, is too small where one of them lies far out (5 seeds: by a third).
    """
    squares = errors**2
    mean = squares.mean(1)
    logs = 0.5 * np.log(np.where((mean > 0) & (mean < np.inf), mean, np.nan))
    x = np.log(widths) - np.log(widths).mean()
    slope = (x * logs).sum() / (x**2).sum()
    about = squares / np.exp(2 * (logs.mean() + slope * x))[:, None]
    freedom = squares.size - 2
    spread = np.sqrt(((about - 1) ** 2).sum() / freedom) if freedom else np.nan
    return float(slope), float(0.5 * spread / np.sqrt(squares.shape[1] * (x**2).sum()))


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

    For each width and seed a network is drawn; its NTK is `tp.empirical.ntk` under the program's learning rates, its
    NNGP `tp.empirical.nngp`: the output's second moment given all but the readout. The error of each is
    ‖K_n − K‖/‖K‖ in the Frobenius norm.

    **Arguments:**

    - `x1`, `x2`: as for `tp.ntk`; everything runs in their dtype.
    - `widths`: of the finite networks (each `tp.Width` times its ratio); sorted, each taken once.
    - `seeds`: how many networks of each width. They run one after the other in one compiled function a width, so
      memory is that of one network (measured on CPU, 5 at once under `vmap` are no faster).
    - `key`: where the networks are drawn from; a fixed one by default.
    - `progress`: True shows a bar where tqdm is installed; a function is called after each network.

    **Returns:** a `Comparison`.

    **Raises:** `ProgramError` for widths or seeds that are no positive ints, several outputs, no inputs, and where
    `tp.ntk` does.

    ```python
    >>> import jax, tensorprog as tp
    >>> found = tp.compare(tp.nets.ZOO["mlp"], jax.numpy.eye(4), widths=(32, 128), seeds=2)
    >>> found.table().splitlines()[0]
    'mlp: relative Frobenius error, mean ± sd over 2 seeds'

    ```
    """
    structure = require_program(program, "compare").structure
    widths = tuple(sorted(set(_positive("widths", widths))))
    (seeds,) = _positive("seeds", (seeds,))
    if not structure.single:
        raise bad_argument("program", "it has several outputs", "trace one that returns the output to compare")
    if not structure.inputs:
        raise bad_argument("program", "it has no inputs", "trace a function of an input, tp.trace(fn, tp.Input(…))")
    x1, x2 = _batches(program, x1, x2)
    key = jax.random.key(0) if key is None else key
    keys = {width: _seeds(jax.random.fold_in(key, width), seeds) for width in widths}
    step, close = _bar(progress, len(widths) * seeds)
    errors: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    finite: dict[str, np.ndarray] = {}
    # Compiling takes most of the time: the networks are compiled in threads of their own while the limit is computed
    # and narrower ones run. Tracing stays in this thread, under the caller's configuration.
    with ThreadPoolExecutor(max_workers=2) as compiler:
        try:
            lowered = (_network(program, width, x1, x2).lower(keys[width][0]) for width in widths)
            networks = [compiler.submit(one.compile) for one in lowered]
            limits = kernels(program, x1, x2)
            limit = {"nngp": np.asarray(limits.nngp, np.float64), "ntk": np.asarray(limits.ntk, np.float64)}
            for width, network in zip(widths, networks, strict=True):
                rows, finite = _errors_of(network, keys[width], limit, step)
                for kind in KINDS:
                    errors[kind].append(rows[kind])
        finally:
            compiler.shutdown(wait=False, cancel_futures=True)
            close()
    return Comparison(structure.name, widths, {kind: np.array(errors[kind]) for kind in KINDS}, limit, finite)


def _batches(program: Program, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Both batches, checked, in one dtype."""
    first = batch(program.structure, x1, "x1")
    second = None if x2 is None else batch(program.structure, x2, "x2")
    dtype = jnp.result_type(*first, *(second or ()))
    return jax.tree.map(lambda a: a.astype(dtype), (first, second))


def _seeds(key: jax.Array, count: int) -> list[jax.Array]:
    return [jax.random.fold_in(key, seed) for seed in range(count)]


def _network(program: Program, width: int, x1: Any, x2: Any) -> Any:
    """key -> (NNGP, NTK) of one network of a width, to be compiled once."""
    dtype = x1[0].dtype

    @jax.jit
    def one(key: jax.Array) -> tuple[Any, Any]:
        params = jax.tree.map(lambda p: p.astype(dtype), init(program, key, width))
        return empirical.nngp(program, params, x1, x2), empirical.ntk(program, params, x1, x2)

    return one


def _errors_of(
    network: Future[Any], keys: Sequence[jax.Array], limit: dict[str, np.ndarray], step: Callable[[], Any]
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Each seed's relative errors, and the kernels' mean over seeds; `step` is called after each."""
    run = network.result()
    rows: dict[str, list[float]] = {kind: [] for kind in KINDS}
    mean = {kind: np.zeros_like(limit[kind]) for kind in KINDS}
    for key in keys:
        for kind, kernel in zip(KINDS, run(key), strict=True):
            kernel = np.asarray(kernel, np.float64)
            mean[kind] += kernel / len(keys)
            rows[kind].append(_relative(kernel, limit[kind]))
        step()
    return rows, mean


def _relative(kernel: np.ndarray, limit: np.ndarray) -> float:
    """‖K − limit‖/‖limit‖; 0 where both are 0, as the NNGP of a readout that starts at 0."""
    distance, scale = float(np.linalg.norm(kernel - limit)), float(np.linalg.norm(limit))
    if scale:
        return distance / scale
    return float("inf") if distance else 0.0


def _positive(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Positive ints, at least one of them; a single one may stand for itself."""
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
