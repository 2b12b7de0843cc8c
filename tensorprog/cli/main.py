"""The commands, one function each, and `main`."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.cli.arguments import add_data, add_program, integers, positive, program_and_data, program_of
from tensorprog.cli.prediction import DIGITS_COUNT, add_prediction, predict_command
from tensorprog.cli.training import ONLY, add_training, training
from tensorprog.cli.training import SEEDS as TRAINING_SEEDS
from tensorprog.cli.training import WIDTHS as TRAINING_WIDTHS
from tensorprog.comparison import Comparison, compare
from tensorprog.comparison.arguments import as_given
from tensorprog.data import digits
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.interpret.check import check
from tensorprog.interpret.recursion import recursion
from tensorprog.ir import Input
from tensorprog.kernel import kernels, nngp, ntk
from tensorprog.nets import NETS, net
from tensorprog.planning import kernel_plan
from tensorprog.plot import check_picture, check_writable, comparison_figure, save, training_figure
from tensorprog.program import Program

EXAMPLES = """examples:
  tensorprog compare                                 handwritten digits: finite RNN and MLP against their limits
  tensorprog show rnn --input 8,16                   the program of a recurrent net, as a paper would print it
  tensorprog recursion mlp --set depth=5             its kernel recursion, derived
  tensorprog kernel rnn --data digits --out k.npz    the NNGP and NTK of 20 digits
  tensorprog check my_net.py:net --input 4           which limit theorem applies to a net of your own
  tensorprog compare mlp --widths 64,256 --seeds 4   one net, other widths
  tensorprog compare rnn --training                  its networks in training, beside the predicted curve
  tensorprog predict rnn --kernel nngp --inputs 400  digits told apart by an infinitely wide RNN
"""
WIDTHS = (64, 128, 256, 512, 1024, 2048)
SEEDS = 5
INTERRUPTED, BROKEN_PIPE = 130, 141
"""What shells call the end by SIGINT and by SIGPIPE."""


def show_command(arguments: argparse.Namespace) -> None:
    print(program_of(arguments))


def check_command(arguments: argparse.Namespace) -> None:
    print(check(program_of(arguments)))


def recursion_command(arguments: argparse.Namespace) -> None:
    found = recursion(program_of(arguments))
    print(found.latex() if arguments.latex else found)


def kernel_command(arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        _writable_arrays(arguments.out)
    program, data = program_and_data(arguments)
    dtype = np.float32 if arguments.float32 else np.float64
    x = tuple(a.astype(dtype) for a in data)
    if arguments.plan:
        tangent = arguments.what != "nngp"
        print(kernel_plan(program, len(x[0]), itemsize=np.dtype(dtype).itemsize, tangent=tangent))
        return
    given: Any = x[0] if len(x) == 1 else x
    start = time.perf_counter()
    arrays = _kernels(program, given, arguments.what, arguments.convention)
    seconds = time.perf_counter() - start
    for kind, kernel in arrays.items():
        print(
            f"{kind.upper()}: {' × '.join(map(str, kernel.shape))}, {kernel.dtype}, "
            f"smallest {kernel.min():.6g}, mean {kernel.mean():.6g}, largest {kernel.max():.6g}"
        )
        with np.printoptions(precision=4, suppress=True):
            print(kernel[:4, :4] if kernel.ndim == 2 else kernel[0, 0])
    print(f"{len(data[0])} inputs in {seconds:.1f} s, compilation included")
    if arguments.out is not None:
        try:
            with open(arguments.out, "wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            raise bad_argument("--out", f"{arguments.out} can't be written ({error})", "give another path") from None
        print(f"arrays {', '.join(arrays)} written to {arguments.out}")


def _kernels(program: Program, x: Any, what: str, convention: str) -> dict[str, np.ndarray]:
    """The kernels that were asked for; the NNGP alone exists for programs that have no NTK."""
    progress = sys.stderr.isatty()
    if what == "nngp":
        found = {"nngp": nngp(program, x, progress=progress)}
    elif what == "ntk":
        found = {"ntk": ntk(program, x, convention=convention, progress=progress)}
    else:
        both = kernels(program, x, convention=convention, progress=progress)
        if not hasattr(both, "ntk"):
            raise bad_argument("PROGRAM", "it returns several outputs", "give a function that returns one")
        found = {"nngp": both.nngp, "ntk": both.ntk}
    if any(isinstance(kernel, tuple) for kernel in found.values()):
        raise bad_argument("PROGRAM", "it returns several outputs", "give a function that returns one")
    return {kind: np.asarray(kernel) for kind, kernel in found.items()}


def _writable_arrays(out: str) -> None:
    if not out.endswith(".npz"):
        raise bad_argument(
            "--out", f"{out} does not end in .npz", "the arrays are written by numpy.savez: give k.npz, say"
        )
    check_writable(out, "--out")


def compare_command(arguments: argparse.Namespace) -> None:
    check_picture(arguments.out, "--out")
    widths, seeds = (TRAINING_WIDTHS, TRAINING_SEEDS) if arguments.training else (WIDTHS, SEEDS)
    arguments.widths, arguments.seeds = arguments.widths or widths, arguments.seeds or seeds
    if arguments.training:
        trained = training(arguments, _Bar)
        print(trained, end="\n\n")
        picture = training_figure([trained])
    else:
        picture = comparison_figure(_compared(arguments))
    save(picture, arguments.out, "--out")
    print(f"picture written to {arguments.out}")


def _compared(arguments: argparse.Namespace) -> list[Comparison]:
    """Kernels of finite networks beside their limits, printed as they come."""
    for option in ONLY:
        if getattr(arguments, option) is not None:
            raise bad_argument(f"--{option}", "it is read in training only", "add --training, or leave it out")
    if arguments.program is None:
        for option, value in (("--set", arguments.settings), ("--input", arguments.input), ("--data", arguments.data)):
            if value:
                raise bad_argument(
                    option, "there is no PROGRAM that it could be for", "write tensorprog compare mlp, say"
                )
        return _digits(arguments)
    program, data = program_and_data(arguments)
    with _Bar(len(arguments.widths) * arguments.seeds) as bar:
        found = compare(program, _cast(data), widths=arguments.widths, seeds=arguments.seeds, progress=bar)
    print(found, end="\n\n")
    return [found]


def _digits(arguments: argparse.Namespace) -> list[Comparison]:
    """The main job: digits through a tied RNN that reads rows, and through an MLP."""
    count = 20 if arguments.inputs is None else arguments.inputs
    images = digits(count)
    print(f"{count} handwritten digits (8×8, scikit-learn): finite networks against their infinite-width limits\n")
    found = []
    with _Bar(2 * len(arguments.widths) * arguments.seeds) as bar:
        bar.start()
        for name, x in (("rnn", images), ("mlp", images.reshape(count, -1))):
            program = net(name).program(Input(*x.shape[1:]))
            result = compare(program, _cast([x]), widths=arguments.widths, seeds=arguments.seeds, progress=bar)
            bar.clear()
            print(result, end="\n\n")
            found.append(result)
    return found


def _cast(x: Sequence[np.ndarray]) -> Any:
    """Finite networks are compared in single precision: their own fluctuations are far larger."""
    return as_given(tuple(a.astype(np.float32) for a in x))


class _Bar:
    """A progress bar on stderr, when tqdm is there: called once a network; shown from `start` or the first one on."""

    def __init__(self, total: int):
        self.total, self.bar = total, None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def start(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.bar = tqdm(total=self.total, unit="net", desc="finite networks", leave=False, file=sys.stderr)

    def __call__(self) -> None:
        if self.bar is None:
            self.start()
        if self.bar is not None:
            self.bar.update()

    def clear(self) -> None:
        if self.bar is not None:
            self.bar.clear()


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are a ProgramError: one line, as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ProgramError(f"{message}; see '{self.prog} --help'")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(
        prog="tensorprog", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Networks written once as tensor programs: their listing, their infinite-width kernels (NNGP and\n"
        "NTK), and finite networks beside the limit. 'tensorprog COMMAND --help' explains a command.",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], brief: str, more: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=brief, description=f"{brief[0].upper()}{brief[1:]}. {more}")
        one.set_defaults(run=run)
        return one

    add_program(command("show", show_command, "print the program, as a paper would", "Its name, shapes and numbers."))
    add_program(command(
        "check", check_command, "say which limit theorem applies, and if none, why",
        "The exit status is 0 whatever the answer.",
    ))  # fmt: skip
    one = command(
        "recursion", recursion_command, "derive and print the kernel recursion",
        "C is a covariance of hidden vectors, D the derivative of the NNGP in it.",
    )  # fmt: skip
    add_program(one)
    one.add_argument("--latex", action="store_true", help="print it as LaTeX")
    one = command(
        "kernel", kernel_command, "compute the infinite-width kernels of data",
        "Prints a summary; --out keeps the matrices. In double precision, unless --float32 is given.",
    )  # fmt: skip
    add_program(one)
    add_data(one)
    _add_kernel(one)
    one = command(
        "compare", compare_command, "finite networks against the limit, over widths and seeds",
        "Prints, for each width, how far kernels of finite networks are from the limit (relative Frobenius error, mean "
        "± sd over seeds) and the fitted rate, which theory puts at −1/2; draws a picture. In single precision. "
        "Without PROGRAM: 20 handwritten digits through a tied RNN that reads rows, and through an MLP.",
    )  # fmt: skip
    add_program(one, optional=True)
    add_data(one)
    one.add_argument(
        "--widths", type=integers, metavar="64,128", help="widths (default: 64,128,…,2048; in training 64,256,1024)"
    )
    one.add_argument("--seeds", type=positive, metavar="S", help="networks of each width (default: 5; in training 3)")
    add_training(one)
    one.add_argument(
        "--out",
        metavar="FILE.png",
        default="compare.png",
        help="the picture, .png, .pdf or .svg (default: compare.png)",
    )
    one = command(
        "predict", predict_command, "learn from a part of the data with a kernel, and predict the rest",
        "Digits are classified; of a .csv the last column is the target, other files need --targets. Prints accuracy "
        "or error, and how well conditioned the kernel is. In double precision.",
    )  # fmt: skip
    add_program(one)
    add_data(one, digits=DIGITS_COUNT)
    add_prediction(one)
    return top


def _add_kernel(one: argparse.ArgumentParser) -> None:
    one.add_argument("--what", choices=("nngp", "ntk", "both"), default="both", help="which kernels (default: both)")
    one.add_argument(
        "--convention", choices=("multiplier-std", "init-std"), default="multiplier-std",
        help="of the NTK: multiplier-std (default; weights drawn from N(0, 1) are trained) or init-std (the papers)",
    )  # fmt: skip
    precision = one.add_mutually_exclusive_group()
    precision.add_argument("--float64", action="store_true", help="double precision (default)")
    precision.add_argument("--float32", action="store_true", help="single precision: faster, errors to 1e-5")
    one.add_argument(
        "--plan", action="store_true", help="say what it would take, memory above all, and compute nothing"
    )
    one.add_argument("--out", metavar="FILE.npz", help="write the arrays here, named nngp and ntk")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0, 1 with a one-line reason on stderr for a mistake, 130 and 141 where it was interrupted or the
    reader of its output went away, as shells have it."""
    given = sys.argv[1:] if argv is None else argv
    name = " ".join(["tensorprog", *given[:1]])
    if sys.stdout is None:
        print(f"{name}: there is no standard output to write to", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks ᵀ or ∞ gets a question mark, not an exception
    try:
        status = _run(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        if argv is None:
            # XLA's threads still compute, and would find the interpreter's memory gone: leave without taking it down.
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED
    except OSError as error:
        told = error.strerror or str(error)
        told = f"{error.filename}: {told}" if error.filename else f"its output can't be written ({told})"
        print(f"{name}: {told}", file=sys.stderr)
        # What is left in the buffer has nowhere to go, also when Python closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1
    return status


def _run(argv: Sequence[str]) -> int:
    before = jnp.result_type(float) == np.float64
    try:
        arguments = parser().parse_args(argv)
    except ProgramError as error:
        print(f"tensorprog: {error}", file=sys.stderr)
        return 1
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    try:
        jax.config.update(
            "jax_enable_x64", arguments.command in ("kernel", "predict", "recursion") and not _is_single(arguments)
        )
        arguments.run(arguments)
    except ProgramError as error:
        print(f"tensorprog {arguments.command}: {_told(error, arguments)}", file=sys.stderr)
        return 1
    finally:
        jax.config.update("jax_enable_x64", before)
    return 0


def _is_single(arguments: argparse.Namespace) -> bool:
    return getattr(arguments, "float32", False)


def _told(error: ProgramError, arguments: argparse.Namespace) -> str:
    """The error's text; of a net of the zoo in one line, without the place: no line there is the user's."""
    text = str(error)
    if arguments.program not in (None, *NETS):
        return text
    return "; ".join(part.strip() for part in re.sub(r"^\S+:\d+: ", "", text).splitlines())
