"""What the commands share: which program, which data."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tensorprog.data import DIGITS, load
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.ir import Input
from tensorprog.nets import NETS
from tensorprog.program import Program
from tensorprog.tracing.run import trace


def add_program(parser: argparse.ArgumentParser, *, data: bool) -> None:
    """PROGRAM, --set, --input, and with `data` --data and --inputs."""
    parser.add_argument("program", metavar="PROGRAM", help="a name of the zoo (mlp, rnn, …) or file.py:function")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="a keyword of the function, --set depth=5; may be repeated",
    )  # fmt: skip
    parser.add_argument("--input", metavar="8,16", help="shape of one example: sites, then features")
    if data:
        add_data(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=DIGITS, help="digits (default), or a .npy, .npz (file.npz:name) or .csv file")
    parser.add_argument("--inputs", type=int, metavar="N", help="take the first N examples (digits: 20)")


def integers(text: str) -> tuple[int, ...]:
    """Comma-separated ints, for argparse."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers, 64,128,256") from None


def settings(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs as keywords; values are Python literals, or the text itself."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise bad_argument("--set", f"{pair!r} is no setting", "write NAME=VALUE, as in --set depth=5")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def program_of(arguments: argparse.Namespace, data: np.ndarray | None = None) -> Program:
    """The program that the arguments name, for the shape that they or the data give."""
    fn, shape, keywords = _function(arguments.program)
    keywords = {**keywords, **settings(arguments.settings)}
    _check_keywords(fn, keywords, arguments.program)
    if getattr(arguments, "input", None):
        try:
            shape = tuple(int(part) for part in arguments.input.split(","))
        except ValueError:
            raise bad_argument("--input", f"{arguments.input!r} is no shape", "write --input 8,16") from None
    elif data is not None:
        shape = data.shape[1:] or (1,)
    if shape is None:
        raise bad_argument("--input", "the shape of an example is not known", "write --input 8,16")
    return trace(fn, Input(*shape), **keywords)


def fitted(arguments: argparse.Namespace, data: np.ndarray) -> np.ndarray:
    """Data in the shape that a net of the zoo reads: a flat one takes images as vectors."""
    net = NETS.get(arguments.program)
    flat = net is not None and net.image == "flat" and not arguments.input
    return data.reshape(len(data), -1) if flat or data.ndim == 1 else data


def data_of(arguments: argparse.Namespace) -> np.ndarray:
    """The data that the arguments name, in the shape that the program reads."""
    return fitted(arguments, load(arguments.data, arguments.inputs))


def _function(name: str) -> tuple[Callable[..., Any], tuple[int, ...] | None, dict[str, Any]]:
    """A program's function, the shape of its small instance, and keywords of that instance."""
    if name in NETS:
        net = NETS[name]
        return net.fn, net.inputs[0].shape, dict(net.keywords)
    file, colon, function = name.rpartition(":")
    if not colon:
        known = ", ".join(NETS)
        raise bad_argument("PROGRAM", f"{name!r} is no net of the zoo", f"give one of {known}, or file.py:function")
    path = Path(file)
    if not path.is_file():
        raise bad_argument("PROGRAM", f"no file {file}", "give the path of a Python file, file.py:function")
    module = _module(path)
    fn = getattr(module, function, None)
    if not callable(fn):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise bad_argument(
            "PROGRAM", f"{file} has no function {function!r}", f"its functions are {', '.join(names) or 'none'}"
        )
    return fn, None, {}


def _module(path: Path) -> Any:
    """A user's file, imported; what it raises is told in one line."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise bad_argument("PROGRAM", f"{path} is no Python file", "give file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except ProgramError:
        raise
    except Exception as error:
        raise bad_argument(
            "PROGRAM", f"importing {path} raises {type(error).__name__}: {error}", "mend the file"
        ) from None
    finally:
        sys.path.pop(0)
    return module


def _check_keywords(fn: Callable[..., Any], keywords: dict[str, Any], name: str) -> None:
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
    for keyword in keywords:
        if keyword not in known:
            raise bad_argument(
                "--set", f"{name} has no keyword {keyword!r}", f"its keywords are {', '.join(known) or 'none'}"
            )
