"""`tensorprog compare --training`: finite networks trained on a part of the data beside what their limit predicts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorprog.cli.arguments import program_and_data
from tensorprog.cli.prediction import examples, not_negative, share, split
from tensorprog.comparison import TrainingComparison, compare_training
from tensorprog.comparison.arguments import as_given
from tensorprog.data import DIGITS
from tensorprog.errors import bad_argument

DIGITS_COUNT = 150
NET = "mlp"
WIDTHS = (64, 256, 1024)
SEEDS = 3
ONLY = ("targets", "test", "lr", "fall")
"""Options of `compare` that mean nothing without --training."""


def add_training(parser: argparse.ArgumentParser) -> None:
    """--training and what only it reads."""
    parser.add_argument(
        "--training", action="store_true",
        help=f"train the networks on a part of the data, by default {NET} on {DIGITS_COUNT} digits, odd ones against "
        "even ones, and put them beside the predicted curve",
    )  # fmt: skip
    parser.add_argument(
        "--targets", metavar="FILE", help="a number for each example: .npy, .npz, .csv (default: a .csv's last column)"
    )
    parser.add_argument("--test", type=share, metavar="0.33", help="the share that is held out (default: 0.33)")
    parser.add_argument("--lr", type=not_negative, metavar="η", help="learning rate (default: 1/λ_max of the NTK)")
    parser.add_argument(
        "--fall", type=share, metavar="0.9", help="train until this part of the loss is gone (default: 0.9)"
    )


def training(arguments: argparse.Namespace, bar: Callable[[int], Any]) -> TrainingComparison:
    """The comparison that the arguments ask for; `bar(networks)` makes its progress bar."""
    arguments.program = arguments.program or NET
    names = arguments.data or [DIGITS]
    loaded, values = examples(arguments, DIGITS_COUNT)
    if names == [DIGITS]:
        values = np.where(values % 2, -1.0, 1.0)
    program, data = program_and_data(arguments, loaded=loaded)
    if len(data[0]) != len(values):
        raise bad_argument("PROGRAM", "it reads examples in batches", "give a net that reads one at a time")
    if values.dtype.kind not in "fiub":
        raise bad_argument("--targets", "are no numbers", "give numbers, ±1 for two classes")
    values = values[:, 0] if values.shape[1:] == (1,) else values  # a file of one column
    count = len(values)
    held = round((0.33 if arguments.test is None else arguments.test) * count)
    if not 1 <= held < count:
        raise bad_argument("--test", f"{held} of {count} examples", "leave one at least to learn from, and one to test")
    train, test = split(count, held, 0)
    cut = lambda rows: as_given(tuple(array[rows].astype(np.float32) for array in data))
    with bar(len(arguments.widths) * arguments.seeds) as step:
        return compare_training(
            program, cut(train), values[train].astype(np.float32), cut(test), widths=arguments.widths,
            seeds=arguments.seeds, lr=arguments.lr, fall=0.9 if arguments.fall is None else arguments.fall,
            progress=step,
        )  # fmt: skip
