"""Data for the command line: real digits, or a file of numbers."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tensorprog.errors import ProgramError, bad_argument

DIGITS = "digits"
TABLES = (".csv", ".tsv", ".txt")
"""Endings of files of text: numbers between commas, semicolons, tabs or blanks."""


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
    """The first `count` examples (N, …) of `digits`, a .npy, a .npz ("file.npz" or "file.npz:name"), a .csv,
    .tsv or .txt.

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
        raise bad_argument(
            "--data", f"no file {path}", "give 'digits', or the path of a .npy, .npz, .csv, .tsv or .txt file"
        )
    readers = {".npy": _npy, ".npz": lambda p: _npz(p, name), **dict.fromkeys(TABLES, _table)}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise bad_argument("--data", f"{path} is of no known kind", "give a .npy, .npz, .csv, .tsv or .txt file")
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


_DECIMAL = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
"""A number written with a decimal comma."""


def _table(path: str) -> np.ndarray:
    """Rows of numbers between commas, semicolons, tabs or blanks; a first line of names, # comments are left out."""
    try:
        text = _text(Path(path).read_bytes())
        rows = [(n, row) for n, row in _rows(text) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_argument(
            "--data", f"{path} can't be read ({error})", "give a text file of numbers between commas"
        ) from None
    if rows and all(not row[-1].strip() for _, row in rows):
        rows = [(n, row[:-1]) for n, row in rows]  # each line ends in a comma
    if rows and not any(_number(cell) is not None for cell in rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise bad_argument("--data", f"{path} is empty", "give a row of numbers for each example")
    first, width = rows[0][0], len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            told = f"{path} is ragged: line {line} has {len(row)} numbers, line {first} has {width}"
            raise bad_argument("--data", told, "fill it up")
        wrong = [cell.strip() for cell in row if _number(cell) is None]
        if wrong:
            held = f"{wrong[0]!r} is not a number" if wrong[0] else "a number is missing"
            raise bad_argument("--data", f"{path}, line {line}: {held}", "give numbers only, 1.5 for one and a half")
    return np.array([[_number(cell) for cell in row] for _, row in rows])


def _text(content: bytes) -> str:
    """What a file says, whether a spreadsheet marked its encoding or not."""
    return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with its line in the file."""
    lines = ["" if line.lstrip().startswith("#") else line for line in text.splitlines()]
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    counts = {mark: sum(mark in line for line in bare) for mark in "\t;,"}
    mark = max(counts, key=lambda mark: counts[mark])  # of equal ones the first: commas may be decimal ones
    if not counts[mark]:
        yield from ((n, line.split()) for n, line in enumerate(lines, 1))
        return
    decimal = mark != "," and not any("." in line for line in bare)
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=mark, skipinitialspace=True)
    before = 0
    for row in reader:
        cells = [cell.replace(",", ".") if decimal and _DECIMAL.fullmatch(cell.strip()) else cell for cell in row]
        yield before + 1, cells
        before = reader.line_num


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None
