"""Pictures. matplotlib is an extra, imported when a picture is made; no global state of pyplot is touched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensorprog.errors import ProgramError, bad_argument

COLOURS = {"nngp": "tab:blue", "ntk": "tab:orange"}
LABELS = {"nngp": "NNGP", "ntk": "NTK"}


def figure(width: float, height: float) -> Any:
    """A new matplotlib figure.

    **Raises:** `ProgramError` when matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ProgramError("pictures need matplotlib: pip install 'tensorprog[plot]'") from None
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def check_picture(path: str | Path, argument: str = "path") -> None:
    """Refuse, before the work rather than after, a picture that could not be written; `argument` is what to name.

    **Raises:** `ProgramError` when matplotlib is not installed, for an ending it does not know, for a folder that is
    missing or not writable.
    """
    known = figure(1, 1).canvas.get_supported_filetypes()
    ending = Path(path).suffix.lower().lstrip(".")
    if ending not in known:
        raise bad_argument(argument, f"{path} ends in no format of pictures", "end it in .png, .pdf or .svg")
    check_writable(path, argument)


def check_writable(path: str | Path, argument: str = "path") -> None:
    """Refuse a path that can't be written.

    **Raises:** `ProgramError` for a folder that is missing or not writable, and for a folder itself.
    """
    folder = Path(path).resolve().parent
    if Path(path).is_dir():
        raise bad_argument(argument, f"{path} is a folder", "give the path of a file")
    if not folder.is_dir():
        raise bad_argument(
            argument, f"{path} can't be written: there is no folder {folder}", "make it, or give another"
        )
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise bad_argument(argument, f"{path} can't be written: permission denied", "give a path that you may write")


def comparison_figure(comparisons: Sequence[Any], path: str | Path | None = None) -> Any:
    """A row for each comparison: errors against width with the slope −1/2, then limit and widest kernels.

    **Raises:** `ProgramError` when matplotlib is not installed, or `path` can't be written.
    """
    made = figure(15, 3.4 * len(comparisons))
    axes = made.subplots(len(comparisons), 5, squeeze=False)
    for row, found in zip(axes, comparisons, strict=True):
        _errors(row[0], found)
        for column, kind in ((1, "nngp"), (3, "ntk")):
            pair = row[column : column + 2]
            if kind in found.limit:
                _kernels(made, pair, found, kind)
            else:
                for axis in pair:
                    axis.set_axis_off()
    if path is not None:
        save(made, path)
    return made


def _errors(axis: Any, found: Any) -> None:
    widths = np.array(found.widths, dtype=float)
    # The axes are logarithmic: errors that are 0 have no place on them.
    shown = {kind: errors for kind, errors in found.errors.items() if errors.mean(1).min() > 0}
    for kind, errors in shown.items():
        spread = errors.std(1, ddof=1) if errors.shape[1] > 1 else 0 * widths
        rate = f", rate {found.rates[kind][0]:.2f}" if len(widths) > 1 else ""
        style = {"fmt": "o-", "capsize": 3, "color": COLOURS[kind]}
        axis.errorbar(widths, errors.mean(1), spread, label=LABELS[kind] + rate, **style)
    if shown:
        start = next(iter(shown.values()))[0].mean()
        axis.plot(widths, start * (widths / widths[0]) ** -0.5, "k--", linewidth=1, label="slope −1/2")
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(widths, map(str, found.widths))
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=8)
    axis.set(xlabel="width", ylabel="relative error", title=found.name)


def _kernels(made: Any, axes: Sequence[Any], found: Any, kind: str) -> None:
    pictures = [_square(found.limit[kind]), _square(found.finite[kind])]
    low, high = min(p.min() for p in pictures), max(p.max() for p in pictures)
    for axis, picture, title in zip(axes, pictures, ("limit", f"width {found.widths[-1]}"), strict=True):
        image = axis.imshow(picture, vmin=low, vmax=high, cmap="viridis")
        axis.set(title=f"{LABELS[kind]}, {title}", xticks=[], yticks=[])
    made.colorbar(image, ax=list(axes), shrink=0.8)


def _square(kernel: np.ndarray) -> np.ndarray:
    """A kernel as a picture: over sites, their mean."""
    return kernel if kernel.ndim == 2 else kernel.reshape(*kernel.shape[:2], -1).mean(-1)


def training_figure(comparisons: Sequence[Any], path: str | Path | None = None) -> Any:
    """A row for each comparison: a test output in its band, the loss, the four deviations against width.

    **Raises:** `ProgramError` when matplotlib is not installed, or `path` can't be written.
    """
    made = figure(15, 3.8 * len(comparisons))
    axes = made.subplots(len(comparisons), 3, squeeze=False)
    for row, found in zip(axes, comparisons, strict=True):
        _one_output(row[0], found)
        _losses(row[1], found)
        _deviations(row[2], found)
    if path is not None:
        save(made, path)
    return made


def _one_output(axis: Any, found: Any) -> None:
    """The first output compared: the ensemble's mean ± 2 sd, networks of the largest width, predictions dashed."""
    first = lambda values: values.reshape(*values.shape[:2], -1)[:, found.tested][:, 0, 0]
    band = found.band
    mean, std = first(band.mean), first(band.std)
    axis.fill_between(band.steps, mean - 2 * std, mean + 2 * std, alpha=0.2, color="tab:blue", label="limit ± 2 sd")
    axis.plot(band.steps, mean, color="tab:blue")
    for number, one in enumerate(found.paths[found.widths[-1]]):
        labels = (f"width {found.widths[-1]}", "predicted from f₀") if number == 0 else (None, None)
        axis.plot(one.steps, first(one.outputs), "-", color="tab:orange", linewidth=1, label=labels[0])
        axis.plot(one.steps, first(one.limit), "k--", linewidth=1, label=labels[1])
    axis.set(xlabel="steps", ylabel="output of one input", title=found.name)
    axis.legend(fontsize=8)


def _losses(axis: Any, found: Any) -> None:
    band = found.band
    axis.plot(band.steps, band.loss, "k--", label="limit, expected")
    for width, paths in found.paths.items():
        colour = axis.plot(paths[0].steps, paths[0].loss / paths[0].loss[0], linewidth=1, label=f"width {width}")
        for one in paths[1:]:
            axis.plot(one.steps, one.loss / one.loss[0], linewidth=1, color=colour[0].get_color())
    axis.set(xlabel="steps", ylabel="loss / loss at the start", yscale="log")
    axis.legend(fontsize=8)


def _deviations(axis: Any, found: Any) -> None:
    widths = np.array(found.widths, dtype=float)
    for kind, values in found.deviations.items():
        if values.mean(1).min() <= 0:  # no place on logarithmic axes
            continue
        rate = f", rate {found.rates[kind][0]:.2f}" if len(widths) > 1 else ""
        spread = values.std(1, ddof=1) if values.shape[1] > 1 else 0 * widths
        axis.errorbar(widths, values.mean(1), spread, fmt="o-", capsize=3, label=found.titles[kind] + rate)
    axis.set(xscale="log", yscale="log", xlabel="width", ylabel="relative deviation")
    axis.set_xticks(widths, map(str, found.widths))
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=8)


def save(made: Any, path: str | Path, argument: str = "path") -> None:
    """Write a figure; the format is the path's ending."""
    try:
        made.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise bad_argument(
            argument, f"{path} can't be written ({error})", "give a path of a folder that exists"
        ) from None
