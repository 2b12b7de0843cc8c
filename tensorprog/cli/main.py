"""The commands, one function each, and `main`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.cli.arguments import add_data, add_program, data_of, integers, program_of
from tensorprog.comparison import Comparison, compare
from tensorprog.data import digits
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.interpret.check import check
from tensorprog.interpret.recursion import recursion
from tensorprog.ir import Input
from tensorprog.kernel import kernels
from tensorprog.nets import net
from tensorprog.plot import comparison_figure, save

EXAMPLES = """examples:
  tensorprog compare                                 handwritten digits: finite RNN and MLP against their limits
  tensorprog show rnn --input 8,16                   the program of a recurrent net, as a paper would print it
  tensorprog recursion mlp --set depth=5             its kernel recursion, derived
  tensorprog kernel rnn --data digits --out k.npz    the NNGP and NTK of 20 digits
  tensorprog check my_net.py:net --input 4           which limit theorem applies to a net of your own
  tensorprog compare mlp --widths 64,256 --seeds 4   one net, other widths
"""
WIDTHS = (64, 128, 256, 512, 1024, 2048)


def show_command(arguments: argparse.Namespace) -> None:
    print(program_of(arguments))


def check_command(arguments: argparse.Namespace) -> None:
    print(check(program_of(arguments)))


def recursion_command(arguments: argparse.Namespace) -> None:
    found = recursion(program_of(arguments))
    print(found.latex() if arguments.latex else found)


def kernel_command(arguments: argparse.Namespace) -> None:
    data = data_of(arguments)
    program = program_of(arguments, data)
    _writable(arguments.out)
    start = time.perf_counter()
    x = data.astype(np.float32 if arguments.float32 else np.float64)
    found = kernels(program, x, convention=arguments.convention, progress=sys.stderr.isatty())
    seconds = time.perf_counter() - start
    arrays = {kind: np.asarray(getattr(found, kind)) for kind in ("nngp", "ntk") if arguments.what in (kind, "both")}
    for kind, kernel in arrays.items():
        print(
            f"{kind.upper()}: {' × '.join(map(str, kernel.shape))}, {kernel.dtype}, "
            f"smallest {kernel.min():.6g}, mean {kernel.mean():.6g}, largest {kernel.max():.6g}"
        )
        with np.printoptions(precision=4, suppress=True):
            print(kernel[:4, :4] if kernel.ndim == 2 else kernel[0, 0])
    print(f"{len(data)} inputs in {seconds:.1f} s, compilation included")
    if arguments.out:
        with open(arguments.out, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        print(f"written to {arguments.out}")


def compare_command(arguments: argparse.Namespace) -> None:
    out = arguments.out or "compare.png"
    _writable(out)
    if arguments.program is None:
        found = _digits(arguments)
    else:
        data = data_of(arguments)
        program = program_of(arguments, data)
        with _Bar(len(arguments.widths) * arguments.seeds) as bar:
            found = [compare(program, _cast(data), widths=arguments.widths, seeds=arguments.seeds, progress=bar)]
        print(found[0])
    save(comparison_figure(found), out)
    print(f"picture written to {out}")


def _digits(arguments: argparse.Namespace) -> list[Comparison]:
    """The main job: digits through a tied RNN that reads rows, and through an MLP."""
    count = 20 if arguments.inputs is None else arguments.inputs
    images = digits(count)
    print(f"{count} handwritten digits (8×8, scikit-learn): finite networks against their infinite-width limits\n")
    found = []
    with _Bar(2 * len(arguments.widths) * arguments.seeds) as bar:
        for name, x in (("rnn", images), ("mlp", images.reshape(count, -1))):
            program = net(name).program(Input(*x.shape[1:]))
            result = compare(program, _cast(x), widths=arguments.widths, seeds=arguments.seeds, progress=bar)
            bar.clear()
            print(result, end="\n\n")
            found.append(result)
    return found


def _cast(x: np.ndarray) -> np.ndarray:
    """Finite networks are compared in single precision: their own fluctuations are far larger."""
    return x.astype(np.float32)


class _Bar:
    """A progress bar on stderr, when tqdm is there: called once a network, from the first one on; a context manager."""

    def __init__(self, total: int):
        self.total, self.bar = total, None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self) -> None:
        if self.bar is None:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=self.total, unit="net", desc="finite networks", leave=False, file=sys.stderr)
        self.bar.update()

    def clear(self) -> None:
        if self.bar is not None:
            self.bar.clear()


def _writable(path: str | None) -> None:
    """Refuse an output path before the work, not after."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise bad_argument("--out", f"{path} can't be written", "give a file in a folder that exists")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="tensorprog", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Networks written once as tensor programs: their listing, their infinite-width kernels (NNGP and "
        "NTK), and finite networks beside the limit.",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("show", help="print the program, as a paper would")
    add_program(one, data=False)
    one.set_defaults(run=show_command)
    one = commands.add_parser("check", help="say which limit theorem applies, and if none, why")
    add_program(one, data=False)
    one.set_defaults(run=check_command)
    one = commands.add_parser("recursion", help="derive and print the kernel recursion")
    add_program(one, data=False)
    one.add_argument("--latex", action="store_true", help="as LaTeX")
    one.set_defaults(run=recursion_command)
    one = commands.add_parser("kernel", help="compute the infinite-width kernels of data")
    add_program(one, data=True)
    one.add_argument("--what", choices=("nngp", "ntk", "both"), default="both", help="which kernels (default: both)")
    one.add_argument(
        "--convention", default="multiplier-std",
        help="of the NTK: multiplier-std (default; weights drawn from N(0, 1) are trained) or init-std (the papers)",
    )  # fmt: skip
    one.add_argument("--float32", action="store_true", help="single precision (default: double)")
    one.add_argument("--out", metavar="FILE.npz", help="write the arrays here")
    one.set_defaults(run=kernel_command)
    one = commands.add_parser(
        "compare", help="finite networks against the limit, over widths and seeds",
        description="Without PROGRAM: 20 handwritten digits through a tied RNN and an MLP.",
    )  # fmt: skip
    add_compare(one)
    return top


def add_compare(one: argparse.ArgumentParser) -> None:
    one.add_argument("program", metavar="PROGRAM", nargs="?", help="a name of the zoo or file.py:function")
    one.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="a keyword of it"
    )
    one.add_argument("--input", metavar="8,16", help="shape of one example: sites, then features")
    add_data(one)
    one.add_argument("--widths", type=integers, default=WIDTHS, metavar="64,128", help="widths (default: 64,…,2048)")
    one.add_argument("--seeds", type=int, default=5, help="networks of each width (default: 5)")
    one.add_argument("--out", metavar="FILE.png", help="the picture (default: compare.png)")
    one.set_defaults(run=compare_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0, or 1 with a one-line reason for a user's mistake (2 for wrong usage, as argparse has it)."""
    arguments = parser().parse_args(argv)
    double = arguments.command in ("kernel", "recursion") and not getattr(arguments, "float32", False)
    before = jnp.result_type(float) == np.float64
    try:
        jax.config.update("jax_enable_x64", double)
        arguments.run(arguments)
        sys.stdout.flush()
    except ProgramError as error:
        print(f"tensorprog {arguments.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader went away; what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"tensorprog {arguments.command}: interrupted", file=sys.stderr)
        return 130
    finally:
        jax.config.update("jax_enable_x64", before)
    return 0
