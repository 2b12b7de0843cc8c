"""What the commands share: which program, which data."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import functions
from tensorprog.data import DIGITS, load
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.importing.front import from_model, is_model
from tensorprog.ir import Data, Input
from tensorprog.nets import NETS, Net
from tensorprog.program import Program
from tensorprog.tracing.run import trace

Arrays = Sequence[np.ndarray]
"""An array for each input of a program."""


def add_program(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """PROGRAM, --set and --input."""
    parser.add_argument(
        "program", metavar="PROGRAM", nargs="?" if optional else None,
        help=f"a network of the zoo ({', '.join(NETS)}), or a function of your own, file.py:function",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="a keyword of the function: --set depth=5 --set fn=erf; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--input", type=declared, action="append", default=[], metavar="8,16", dest="input",
        help="shape of one example, sites first and features last (default: the data's; a small one for the zoo); "
        "data:8,8 for data used as scalars; repeated where a program has several inputs",
    )  # fmt: skip


def add_data(parser: argparse.ArgumentParser, *, digits: int = 20) -> None:
    """--data and --inputs."""
    parser.add_argument(
        "--data", metavar="DATA", action="append", default=[],
        help="digits (default: 8×8 grey images), or a file of examples along the first axis: .npy, .npz (file.npz:name "
        "where it holds several arrays), .csv, .tsv or .txt (a row for each example; a line of names is left out); "
        "repeated where a program has several inputs",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", type=positive, metavar="N", help=f"take N examples (default: {digits} digits, or the whole file)"
    )


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def integers(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers of at least 1, for argparse."""
    try:
        return tuple(positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers of at least 1, as in 8,16") from None


def declared(text: str) -> Input | Data:
    """The shape of an input: 8,16, or data:8,8 for data used as scalars."""
    kind, colon, shape = text.rpartition(":")
    if colon and kind != "data":
        raise argparse.ArgumentTypeError(f"{text!r}: an input is 8,16 or data:8,8")
    return Data(*integers(shape)) if colon else Input(*integers(text))


def settings(pairs: list[str], fn: Callable[..., Any]) -> dict[str, Any]:
    """NAME=VALUE pairs as keywords of `fn`: Python literals; functions by name where the default is a function."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise bad_argument("--set", f"{pair!r} is no setting", "write NAME=VALUE, as in --set depth=5")
        default = inspect.signature(fn).parameters.get(name)
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = _named(pair, value) if default is not None and callable(default.default) else value
    return found


def _named(pair: str, name: str) -> Callable[..., Any]:
    """A function by its name in the modules where elementwise functions are."""
    for module in (functions, jax.nn, jnp, jax.scipy.special):
        found = getattr(module, name, None)
        if callable(found):
            return found
    places = "jax.nn, jax.numpy, jax.scipy.special or tensorprog.functions"
    raise bad_argument("--set", f"{pair}: there is no such function in {places}", "write --set fn=tanh, say")


def program_of(arguments: argparse.Namespace) -> Program:
    """The program that the arguments name, for the shape that they give."""
    return program_and_data(arguments, with_data=False)[0]


def program_and_data(
    arguments: argparse.Namespace, *, with_data: bool = True, loaded: Arrays | None = None
) -> tuple[Program, Arrays]:
    """The program that the arguments name, and an array for each input in the shape that it reads.

    The arrays are `loaded`, or what --data names.
    """
    fn, inputs, keywords = _function(arguments.program)
    given = settings(arguments.settings, fn)
    _check_keywords(fn, given, arguments.program)
    inputs = tuple(arguments.input) or inputs
    data: Arrays = ()
    if with_data:
        count = max(1, len(inputs))
        names = arguments.data or ([DIGITS] if count == 1 else [])
        held = len(names) if loaded is None else len(loaded)
        if held != count:
            raise bad_argument(
                "--data", f"{held} arrays for {count} inputs", "give --data for each input, in their order"
            )
        arrays = [load(name, arguments.inputs) for name in names] if loaded is None else loaded
        data = tuple(fitted(arguments, k, array) for k, array in enumerate(arrays))
        if not arguments.input:
            kinds = [type(i) for i in inputs] or [Input]
            inputs = tuple(kind(*a.shape[1:]) for kind, a in zip(kinds, data, strict=True))
    if not inputs:
        raise bad_argument("--input", "the shape of an example is not known", "write --input 8,16")
    return _traced(fn, inputs, {**keywords, **given}, arguments.program), data


def fitted(arguments: argparse.Namespace, place: int, data: np.ndarray) -> np.ndarray:
    """Data in the shape that --input says; else, for a net of the zoo, images as it reads them."""
    net = NETS.get(arguments.program)
    size = math.prod(data.shape[1:])
    if arguments.input:
        shape = arguments.input[place].shape
        # A row of numbers may become an image and an image a row; one image is not silently made another.
        if data.shape[1:] != shape and (size != math.prod(shape) or (data.ndim > 2 and len(shape) > 1)):
            said = ",".join(map(str, shape))
            raise bad_argument(
                "--input", f"{said} does not fit the data, whose examples have shape {data.shape[1:]}", "give theirs"
            )
        return data.reshape(len(data), *shape)
    if net is None or len(net.inputs) > 1:
        return data
    if net.image == "flat":
        return data.reshape(len(data), size)
    if data.ndim == 2:
        raise bad_argument(
            "--input", f"{arguments.program} reads {net.image}, and the data's examples are lists of {size} numbers",
            "say how to cut them, --input 8,8",
        )  # fmt: skip
    if net.image == "pixels" and data.ndim == 3:
        return data[..., None]
    return _batches(net, data) if net.image.startswith("batch") else data


def _batches(net: Net, data: np.ndarray) -> np.ndarray:
    """Examples as batches of the size that the small instance has, for nets that read a batch at a time."""
    declared = net.inputs[0].shape
    if data.ndim - 1 == len(declared):
        return data
    size = declared[0]
    if len(data) < size:
        raise bad_argument("--inputs", f"{len(data)} examples make no batch of {size}", f"give {size} or more")
    kept = data[: len(data) // size * size]
    example = (-1,) if net.image == "batch" else (*data.shape[1:], 1)
    return kept.reshape(len(kept) // size, size, *example)


def _traced(fn: Callable[..., Any], inputs: tuple[Input | Data, ...], keywords: dict[str, Any], name: str) -> Program:
    """The program, of a function or of what makes a model; what the user's code raises is told with its line."""
    try:
        if name not in NETS and is_model(fn):
            return from_model(fn, *inputs)
        return trace(fn, *inputs, **keywords)
    except ProgramError:
        raise
    except Exception as error:
        told = _told(error, Path(name.rpartition(":")[0]))
        raise bad_argument("PROGRAM", f"{name} raises {told}", "mend the function, or what --set gives it") from None


def _told(error: BaseException, file: Path) -> str:
    """An exception in one line, with the last line of the user's file that it went through."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file.resolve()
    ]
    return f"{text} ({file}:{lines[-1]})" if lines else text


def _function(name: str) -> tuple[Callable[..., Any], tuple[Input | Data, ...], dict[str, Any]]:
    """A program's function, the inputs of its small instance, and keywords of that instance."""
    if name in NETS:
        net = NETS[name]
        return net.fn, net.inputs, dict(net.keywords)
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
    return fn, (), {}


def _module(path: Path) -> Any:
    """A user's file, imported; what it raises is told in one line."""
    name = f"tensorprog_program_{path.stem}"  # a name of its own: the user's file may be called json.py
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise bad_argument("PROGRAM", f"{path} is no Python file", "give file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except ProgramError:
        raise
    except (Exception, SystemExit) as error:
        raise bad_argument("PROGRAM", f"importing {path} raises {_told(error, path)}", "mend the file") from None
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
