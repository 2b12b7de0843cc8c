"""`compare`: kernels of finite networks against their limit, over widths and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tensorprog import empirical
from tensorprog.batch import require_program
from tensorprog.comparison.arguments import Progress, bar, batches, comparable, keys_of, seeds_of, widths_of
from tensorprog.comparison.models import FAR, Finite, check_same, model
from tensorprog.comparison.rates import deviation, fixed, rates_of, relative
from tensorprog.errors import bad_argument
from tensorprog.interpret.finite import init
from tensorprog.kernel import kernels
from tensorprog.plot import comparison_figure
from tensorprog.program import Program

TITLES = {"nngp": "NNGP", "ntk": "NTK"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Relative Frobenius errors ‖K_n − K‖/‖K‖ of finite kernels, and what they say about the rate.

    `widths`, in increasing order; `errors[kind]` (widths, seeds) for kind "nngp" and "ntk", for a network of your own
    "ntk" alone; `limit[kind]` and `finite[kind]`, the limit kernels and the mean over seeds at the widest; `checked`,
    what the check of a network of your own found. `print` shows the table, with `remarks` below it.
    """

    name: str
    widths: tuple[int, ...]
    errors: dict[str, np.ndarray]
    limit: dict[str, np.ndarray]
    finite: dict[str, np.ndarray]
    checked: str = ""

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Slope of log error against log width, with its standard error, by kernel; the theory says −1/2.

        Least squares through the logarithms of the root mean square over seeds; the standard error comes from the
        spread of all seeds about that line (nan where it has none: two widths of one seed). Both are nan where all
        errors of a width are exactly 0.

        **Raises:** `ProgramError` for fewer than two widths.
        """
        return rates_of(self.widths, self.errors)

    @property
    def rate(self) -> float:
        """The NTK's fitted rate."""
        return self.rates["ntk"][0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is told beside the table: a fitted rate that is further than four standard errors from −1/2."""
        found = []
        for kind, (slope, se) in self.rates.items() if len(self.widths) > 1 else ():
            away = abs(slope + 0.5) / se if se > 0 else 0.0
            if np.isfinite(away) and away > FAR:
                why = (
                    "the network may have parameters that the program lacks, or the widths are too small"
                    if slope < -0.5
                    else "the kernels may tend to another limit than the program's"
                )
                found.append(
                    f"the {TITLES[kind]}'s rate {slope:.3f} is {away:.0f} standard errors from −1/2: {why}; compare "
                    "parameters and variances with print(program), and take larger widths"
                )
        return tuple(found)

    def table(self) -> str:
        """Width, relative error of each kernel as mean ± sd over seeds, and the fitted rates."""
        seeds = self.errors["ntk"].shape[1]
        lines = [f"{self.name}: relative Frobenius error, mean ± sd over {seeds} seed{'s' if seeds > 1 else ''}"]
        if self.checked:
            lines.append(self.checked)
        row = lambda first, cells: f"{first:>7}   {'   '.join(f'{cell:^17}' for cell in cells)}"
        lines.append(row("width", [TITLES[kind] for kind in self.errors]).rstrip())
        for i, width in enumerate(self.widths):
            means = [(errors[i].mean(), deviation(errors[i])) for errors in self.errors.values()]
            lines.append(row(width, [f"{fixed(mean, 4)} ± {fixed(sd, 4)}" for mean, sd in means]).rstrip())
        if len(self.widths) > 1:
            cells = [f"{fixed(slope, 3)} ± {fixed(se, 3)}" for slope, se in self.rates.values()]
            lines.append(f"{row('rate', cells)}   (theory: −1/2)")
        lines += self.remarks
        return "\n".join(lines)

    __str__ = __repr__ = table

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib figure: errors against width with the reference slope, limit and widest kernels side by side.

        **Raises:** `ProgramError` when matplotlib is not installed, or `path` can't be written.
        """
        return comparison_figure([self], path)


def compare(
    program: Program,
    x1: Any,
    x2: Any = None,
    *,
    widths: Sequence[int] = (128, 512, 2048),
    seeds: int = 8,
    finite: Finite | None = None,
    convention: str = "multiplier-std",
    key: jax.Array | None = None,
    progress: Progress = False,
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
    - `finite`: a network of your own in place of the program's, finite(width, key) -> (f, params) with
      f(params, x) -> (N, *S), or (N, *S, k) for k rows, a JAX model of any library; it is traced, with `key` a tracer.
      First it must be the program at the narrowest width: where arrays of the model can be told to be the program's
      parameters, the same function, with the same means and variances of arrays; elsewhere the second moment of its
      outputs and its NTK must agree with those of the program's networks, means over 256 of each, within four standard
      errors. Then the NTK is compared with the limit; the NNGP of one network is no average that converges with width.
    - `convention`: what the parameters of `finite` are, as in `tp.ntk`: "standard" where weights themselves have
      variance σ²/fan. The limit is then that at each width.
    - `key`: where the networks are drawn from; a fixed one by default.
    - `progress`: True shows a bar where tqdm is installed; a function is called after each network.

    **Returns:** a `Comparison`.

    **Raises:** `ProgramError` for widths or seeds that are no positive ints, several outputs, no inputs, a `finite`
    that is another network than the program, and where `tp.ntk` does.

    ```python
    >>> import jax, tensorprog as tp
    >>> found = tp.compare(tp.nets.ZOO["mlp"], jax.numpy.eye(4), widths=(32, 128), seeds=2)
    >>> found.table().splitlines()[0]
    'mlp: relative Frobenius error, mean ± sd over 2 seeds'

    ```
    """
    structure = require_program(program, "compare").structure
    widths, seeds = widths_of(widths), seeds_of(seeds)
    comparable(structure)
    if finite is None and convention != "multiplier-std":
        raise bad_argument(
            "convention", "the program's own networks train standard normal parameters",
            "leave it out; it is for a network of your own, finite=",
        )  # fmt: skip
    x1, x2 = batches(program, x1, x2)
    keys = keys_of(key, widths, seeds)
    checked = "" if finite is None else check_same(finite, program, widths[0], convention, x1)
    step, close = bar(progress, len(widths) * seeds)
    errors: dict[str, list[list[float]]] = {}
    limit, mean = {}, {}
    # Compiling takes most of the time: the networks are compiled in threads of their own while the limit is computed
    # and narrower ones run. Tracing stays in this thread, under the caller's configuration.
    with ThreadPoolExecutor(max_workers=2) as compiler:
        try:
            lowered = (_network(program, finite, width, x1, x2).lower(keys[width][0]) for width in widths)
            networks = [compiler.submit(one.compile) for one in lowered]
            limits = _limits(program, finite is not None, convention, widths, x1, x2)
            for width, network, limit in zip(widths, networks, limits, strict=True):
                rows, mean = _errors_of(network, keys[width], limit, step)
                for kind, row in rows.items():
                    errors.setdefault(kind, []).append(row)
        finally:
            compiler.shutdown(wait=False, cancel_futures=True)
            close()
    name = structure.name
    return Comparison(name, widths, {kind: np.array(rows) for kind, rows in errors.items()}, limit, mean, checked)


def _limits(
    program: Program, own: bool, convention: str, widths: Sequence[int], x1: Any, x2: Any
) -> Iterator[dict[str, np.ndarray]]:
    """The limit at each width: of an own network the NTK alone, which grows with the width under "standard"."""
    found = None
    for width in widths:
        if found is None or convention == "standard":
            given = {"convention": convention, "widths": width} if own else {}
            found = kernels(program, x1, x2, **given)
        kept = {"ntk": found.ntk} if own else {"nngp": found.nngp, "ntk": found.ntk}
        yield {kind: np.asarray(kernel, np.float64) for kind, kernel in kept.items()}


def _network(program: Program, finite: Finite | None, width: int, x1: Any, x2: Any) -> Any:
    """key -> kernels by kind of one network of a width, to be compiled once."""
    dtype = x1[0].dtype

    def one(key: jax.Array) -> dict[str, Any]:
        if finite is not None:
            return {"ntk": model(finite, program, width, x1, x2)(key)["ntk"]}
        params = jax.tree.map(lambda p: p.astype(dtype), init(program, key, width))
        found = empirical.nngp(program, params, x1, x2), empirical.ntk(program, params, x1, x2)
        return dict(zip(TITLES, found, strict=True))

    return jax.jit(one)


def _errors_of(
    network: Future[Any], keys: Sequence[jax.Array], limit: dict[str, np.ndarray], step: Callable[[], Any]
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Each seed's relative errors, and the kernels' mean over seeds; `step` is called after each."""
    run = network.result()
    rows: dict[str, list[float]] = {kind: [] for kind in limit}
    mean = {kind: np.zeros_like(kernel) for kind, kernel in limit.items()}
    for key in keys:
        for kind, kernel in run(key).items():
            kernel = np.asarray(kernel, np.float64)
            mean[kind] += kernel / len(keys)
            rows[kind].append(relative(kernel, limit[kind]))
        step()
    return rows, mean
