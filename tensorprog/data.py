"""Data for the command line: real digits, or a file of numbers."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np

from tensorprog.errors import ProgramError, bad_argument

DIGITS = "digits"


def digits(count: int = 20) -> np.ndarray:
    """Handwritten digits of scikit-learn, (count, 8, 8): the first of each of the ten classes, standardised as a whole.

    They are sorted by class, so that a kernel shows blocks; of 20, two are of each class.

    **Raises:** `ProgramError` when scikit-learn is not installed, and for a count below 1 or above 1797.
    """
    return labelled_digits(count)[0]


def labelled_digits(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The same digits, and which they are, (count,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ProgramError("the digits need scikit-learn: pip install 'tensorprog[sklearn]'") from None
    images, targets = load_digits(return_X_y=True)
    if not 1 <= count <= len(images):
        raise bad_argument("--inputs", f"{count} digits", f"give a number from 1 to {len(images)}")
    images = (images - images.mean()) / images.std()
    by_class = [np.flatnonzero(targets == label) for label in range(10)]
    turns = [int(rows[k]) for k in range(max(map(len, by_class))) for rows in by_class if k < len(rows)]
    chosen = sorted(turns[:count], key=lambda row: (targets[row], row))
    return images[chosen].reshape(count, 8, 8), targets[chosen]


def load(source: str, count: int | None = None) -> np.ndarray:
    """The first `count` examples (N, …) of `digits`, a .npy, a .npz ("file.npz" or "file.npz:name") or a .csv.

    All of a file by default, 20 of the digits; a plain list of N numbers is N examples of one feature.

    **Raises:** `ProgramError` naming the file: missing, of an unknown kind, empty, ragged, not numeric, not finite,
    of fewer than `count` examples.
    """
    if count is not None and count < 1:
        raise bad_argument("--inputs", f"{count} examples", "give at least 1")
    if source == DIGITS:
        return digits(20 if count is None else count)
    path, name = source, ""
    if ".npz:" in source:
        path, _, name = source.rpartition(":")
    if not Path(path).exists():
        raise bad_argument("--data", f"no file {path}", "give 'digits', or the path of a .npy, .npz or .csv file")
    readers = {".npy": _npy, ".npz": lambda p: _npz(p, name), ".csv": _csv}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise bad_argument("--data", f"{path} is of no known kind", "give a .npy, .npz or .csv file")
    array = _numbers(reader(path), path)
    if count is not None and count > len(array):
        raise bad_argument("--inputs", f"{count} examples, and {path} holds {len(array)}", "give fewer, or more data")
    return array[:count]


def _numbers(array: np.ndarray, path: str) -> np.ndarray:
    """The array, if it holds finite numbers and at least one example."""
    if array.dtype.kind not in "fiub":
        raise bad_argument("--data", f"{path} holds {array.dtype}, not numbers", "convert it to numbers first")
    if array.ndim == 0 or array.size == 0:
        raise bad_argument("--data", f"{path} holds no examples", "give an array (N, …) with N of at least 1")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        where = f"first at [{', '.join(map(str, wrong[0].tolist()))}]"
        raise bad_argument("--data", f"{path} holds NaN or infinite values, {where}", "remove or impute them first")
    return array[:, None] if array.ndim == 1 else array


def _npy(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise bad_argument("--data", f"{path} can't be read ({error})", "write it with numpy.save") from None


def _npz(path: str, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a TypeError where the file is no archive but one array
            names = list(arrays.files)
            if not name and len(names) != 1:
                held = ", ".join(names) or "no array"
                raise bad_argument("--data", f"{path} holds {held}", f"say which: {path}:name")
            if name and name not in names:
                raise bad_argument("--data", f"{path} has no array {name!r}", f"its arrays are {', '.join(names)}")
            return arrays[name or names[0]]
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise bad_argument("--data", f"{path} can't be read ({error})", "write it with numpy.savez") from None


def _csv(path: str) -> np.ndarray:
    """Rows of numbers; a first line of names is left out."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_argument(
            "--data", f"{path} can't be read ({error})", "give a text file of comma-separated numbers"
        ) from None
    if rows and not any(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    if not rows:
        raise bad_argument("--data", f"{path} is empty", "give a row of numbers for each example")
    for line, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise bad_argument(
                "--data", f"{path} is ragged: row {line} has {len(row)} numbers, the first {len(rows[0])}", "fill it up"
            )
        wrong = [cell for cell in row if not _is_number(cell)]
        if wrong:
            raise bad_argument("--data", f"{path}, row {line}: {wrong[0]!r} is not a number", "give numbers only")
    return np.array([[float(cell) for cell in row] for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
