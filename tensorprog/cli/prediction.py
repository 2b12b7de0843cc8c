"""`tensorprog predict`: regression and classification with a program's kernel, on a held-out part of the data."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensorprog import predict
from tensorprog.cli.arguments import program_and_data
from tensorprog.data import DIGITS, TABLES, labelled_digits, load
from tensorprog.errors import bad_argument
from tensorprog.ir import Data, Input
from tensorprog.kernel import Kernels, kernels, nngp
from tensorprog.plot import check_writable

DIGITS_COUNT = 200


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """Everything about targets, the split, the kernel and training."""
    parser.add_argument(
        "--targets",
        metavar="FILE",
        help="targets of the examples: .npy, .npz, .csv (default: digits' own, a .csv's last column)",
    )
    parser.add_argument("--classify", action="store_true", help="targets are classes, not numbers (digits are anyway)")
    parser.add_argument(
        "--standardise",
        action="store_true",
        help="features to mean 0 and variance 1, by the training part; not of data:8,8",
    )
    parser.add_argument(
        "--test", type=share, default=0.5, metavar="0.5", help="the share that is held out (default: 0.5)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="which part is held out (default: 0)")
    parser.add_argument(
        "--kernel", choices=("ntk", "nngp"), default="ntk", help="train all layers (default), or the last"
    )
    parser.add_argument(
        "--ridge", type=not_negative, default=1e-3, help="added to the kernel's diagonal (default: 0.001)"
    )
    parser.add_argument(
        "--time", type=not_negative, default=math.inf, help="of gradient flow on ½Σ‖f−y‖² (default: inf)"
    )
    parser.add_argument("--lr", type=not_negative, default=1.0, help="its learning rate (default: 1)")
    parser.add_argument(
        "--out",
        metavar="FILE.npz",
        help="write mean, std, targets, which examples were held out, and the kernel; for classes, which column of "
        "mean is whose",
    )


def not_negative(text: str) -> float:
    """A number of at least 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def share(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    value = not_negative(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


@dataclass(frozen=True)
class Task:
    """Inputs, targets (N, k) with their mean `offset` taken off, and which are held out.

    Where targets are classes: `classes` (C,) as the data call them, and `labels`, each example's place among them.
    """

    inputs: tuple[np.ndarray, ...]
    targets: np.ndarray
    offset: np.ndarray
    labels: np.ndarray | None
    classes: np.ndarray
    train: np.ndarray
    test: np.ndarray


def predict_command(arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        if not arguments.out.endswith(".npz"):
            raise bad_argument("--out", f"{arguments.out} does not end in .npz", "give p.npz, say")
        check_writable(arguments.out, "--out")
    for name, value in (("--ridge", arguments.ridge), ("--lr", arguments.lr)):
        if math.isinf(value):
            raise bad_argument(name, "it is infinite", "give a finite number")
    loaded, values = examples(arguments, DIGITS_COUNT)
    arguments.classify = arguments.classify or (arguments.data or [DIGITS]) == [DIGITS]
    program, data = program_and_data(arguments, loaded=loaded)
    structure = program.structure
    if not structure.single or getattr(structure.types[structure.outputs[0]], "sites", ()):
        why = "it returns more than one number an example"
        raise bad_argument("PROGRAM", why, "give a net of one readout, without sites")
    if len(data[0]) != len(values):
        raise bad_argument("PROGRAM", "it reads examples in batches", "give a net that reads one at a time")
    task = _task(arguments, structure.inputs, tuple(data), values)
    start = time.perf_counter()
    ktt, kst, kss = _kernels(arguments, program, task)
    seconds = time.perf_counter() - start
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", predict.KernelWarning)
        post, train, left_out, condition = _predict(arguments, task, ktt, kst, kss)
    for message in dict.fromkeys(str(w.message) for w in told if issubclass(w.category, predict.KernelWarning)):
        print(f"warning: {message}", file=sys.stderr)
    _report(arguments, task, post, train, left_out)
    edge = float(predict.max_learning_rate(getattr(ktt, arguments.kernel)))
    print(f"kernel       condition number {condition:.1e} with its ridge; largest stable learning rate {edge:.3g}")
    print(f"kernels of {len(values)} examples in {seconds:.1f} s, compilation included")
    if arguments.out is not None:
        _write(arguments, task, post, ktt)


def examples(arguments: argparse.Namespace, digits: int) -> tuple[list[np.ndarray], np.ndarray]:
    """An array for each input, and the targets as they stand: (N,), (N, k); by default so many digits."""
    names = arguments.data or [DIGITS]
    if names == [DIGITS]:
        if arguments.targets is not None:
            raise bad_argument("--targets", "digits have their own", "leave it out, or give --data too")
        images, labels = labelled_digits(digits if arguments.inputs is None else arguments.inputs)
        return [images], labels
    loaded = [load(name, arguments.inputs) for name in names]
    if arguments.targets is not None:
        values = load(arguments.targets, arguments.inputs)
    elif len(names) == 1 and Path(names[0]).suffix.lower() in TABLES and loaded[0].shape[1] > 1:
        values, loaded = loaded[0][:, -1], [loaded[0][:, :-1]]
    else:
        raise bad_argument("--targets", "they are not known", "give a file of targets: .npy, .npz (file.npz:y) or .csv")
    if len(values) != len(loaded[0]):
        why = f"{len(values)} targets for {len(loaded[0])} examples"
        raise bad_argument("--targets", why, "give one for each example, in their order")
    return loaded, values


def _task(
    arguments: argparse.Namespace, kinds: Sequence[Input | Data], inputs: tuple[np.ndarray, ...], values: np.ndarray
) -> Task:
    count = len(values)
    held = round(arguments.test * count)
    if not 1 <= held < count:
        raise bad_argument(
            "--test", f"{arguments.test:g} of {count} examples", "leave one at least to learn from, and one to predict"
        )
    train, test = split(count, held, arguments.seed)
    columns = values.reshape(count, -1).astype(float)
    labels, classes = None, np.zeros(0)
    if arguments.classify:
        if columns.shape[1] != 1:
            raise bad_argument(
                "--classify", f"targets have {columns.shape[1]} columns", "give one class for each example"
            )
        classes, labels = np.unique(values.reshape(count), return_inverse=True)
        if len(classes) in (1, count):
            told = "one class only" if len(classes) == 1 else "as many classes as examples"
            raise bad_argument("--classify", told, "leave it out where targets are numbers")
        columns = np.eye(len(classes))[labels]
    if arguments.standardise:
        inputs = tuple(_standard(x, train) if isinstance(i, Input) else x for i, x in zip(kinds, inputs, strict=True))
    offset = columns[train].mean(0) if labels is None else np.full(len(classes), 1 / len(classes))
    return Task(inputs, columns - offset, offset, labels, classes, train, test)


def split(count: int, held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples are learnt from and which `held` are held out, by chance and in their order."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def _standard(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    spread = x[train].std(0)
    return (x - x[train].mean(0)) / np.where(spread > 0, spread, 1.0)


def _kernels(arguments: argparse.Namespace, program: Any, task: Task) -> tuple[Kernels, Kernels, Kernels]:
    """All in one call, since sampled kernels are of one draw only within a call; training, test with it, test."""
    x = tuple(array[np.concatenate([task.train, task.test])].astype(np.float64) for array in task.inputs)
    given: Any = x[0] if len(x) == 1 else x
    progress = sys.stderr.isatty()
    if arguments.kernel == "nngp":
        both = Kernels(nngp(program, given, progress=progress), None)
    else:
        both = kernels(program, given, progress=progress)
    n = len(task.train)
    rows, columns = (slice(0, n), slice(n, None), slice(n, None)), (slice(0, n), slice(0, n), slice(n, None))
    cut = lambda k, i: None if k is None else np.asarray(k)[rows[i], columns[i]]
    ktt, kst, kss = (Kernels(cut(both.nngp, i), cut(both.ntk, i)) for i in range(3))
    return ktt, kst, kss


def _predict(
    arguments: argparse.Namespace, task: Task, ktt: Kernels, kst: Kernels, kss: Kernels
) -> tuple[predict.Posterior, np.ndarray, np.ndarray | None, float]:
    """The law of the test outputs, the training outputs, leave-one-out where there is one, the condition number."""
    y, ridge, end = task.targets[task.train], arguments.ridge, math.isinf(arguments.time) and arguments.lr > 0
    training = {"lr": arguments.lr, "ridge": ridge}
    kernel = getattr(ktt, arguments.kernel)
    if arguments.kernel == "ntk":
        post = predict.ensemble(ktt, kst, kss, y, arguments.time, **training)
    elif end:
        post = predict.posterior(ktt.nngp, kst.nngp, kss.nngp, y, ridge)
    else:
        post = predict.last_layer(ktt.nngp, kst.nngp, kss.nngp, y, arguments.time, **training)
    train, _ = predict.gradient_flow(kernel, y, **training)(arguments.time)
    left_out = np.asarray(predict.leave_one_out(kernel, y, ridge).mean) if end and len(y) > 1 else None
    assert post.condition is not None, "outside jit"
    return post, np.asarray(train), left_out, post.condition


def _report(
    arguments: argparse.Namespace, task: Task, post: predict.Posterior, train: np.ndarray, left_out: np.ndarray | None
) -> None:
    name = {"ntk": "NTK", "nngp": "NNGP"}[arguments.kernel]
    what = (
        f"{len(task.classes)} classes"
        if task.labels is not None
        else f"targets ({len(task.targets)}, {task.targets.shape[1]})"
    )
    until = "∞" if math.isinf(arguments.time) else f"{arguments.time:g}"
    print(f"{arguments.program}: {name}, t = {until}, ridge {arguments.ridge:g}")
    print(f"data         {len(task.train)} examples to learn from, {len(task.test)} held out, {what}")
    found = [
        ("training", train, task.train),
        ("leave-one-out", left_out, task.train),
        ("held out", post.mean, task.test),
    ]
    cells = [f"{words} {_score(task, np.asarray(f), rows)}" for words, f, rows in found if f is not None]
    print(f"{'accuracy' if task.labels is not None else 'RMSE':<12} {', '.join(cells)}")
    if task.labels is None:
        base = math.sqrt(float(np.mean(task.targets[task.test] ** 2)))
        assert post.std is not None, "kss was given"
        print(f"beside       the training mean {base:.4g}; predicted standard deviation {float(np.mean(post.std)):.4g}")


def _score(task: Task, outputs: np.ndarray, rows: np.ndarray) -> str:
    if task.labels is None:
        return f"{math.sqrt(float(np.mean((outputs - task.targets[rows]) ** 2))):.4g}"
    right = float(np.mean(np.argmax(outputs, 1) == task.labels[rows]))
    return f"{100 * right:.1f} ± {100 * math.sqrt(right * (1 - right) / len(rows)):.1f} %"


def _write(arguments: argparse.Namespace, task: Task, post: predict.Posterior, ktt: Kernels) -> None:
    """All in the data's units: outputs with their offset, labels as the data call them."""
    targets = task.targets + task.offset if task.labels is None else task.classes[task.labels]
    arrays = {
        "mean": np.asarray(post.mean) + task.offset, "std": np.asarray(post.std), "targets": targets[task.test],
        "train": task.train, "test": task.test, "kernel": getattr(ktt, arguments.kernel),
    }  # fmt: skip
    if task.labels is not None:
        arrays["classes"] = task.classes
    try:
        with open(arguments.out, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise bad_argument("--out", f"{arguments.out} can't be written ({error})", "give another path") from None
    print(f"arrays {', '.join(arrays)} written to {arguments.out}")
