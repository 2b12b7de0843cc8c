"""How fast something falls with the width, and numbers as the tables print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tensorprog.errors import bad_argument


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


def rates_of(widths: Sequence[int], errors: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The fitted rate of each kind of error (widths, seeds).

    **Raises:** `ProgramError` for fewer than two widths.
    """
    if len(widths) < 2:
        raise bad_argument("widths", "one width has no rate", "compare at two widths or more")
    return {kind: fitted_rate(widths, values) for kind, values in errors.items()}


def relative(values: np.ndarray, reference: np.ndarray) -> float:
    """‖values − reference‖/‖reference‖; 0 where both are 0, as the NNGP of a readout that starts at 0."""
    distance, scale = float(np.linalg.norm(values - reference)), float(np.linalg.norm(reference))
    if scale:
        return distance / scale
    return float("inf") if distance else 0.0


def deviation(values: np.ndarray) -> float:
    """Standard deviation over seeds; nan of one."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def fixed(value: float, digits: int) -> str:
    """A number, or a dash for what a single seed does not tell."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "—"
