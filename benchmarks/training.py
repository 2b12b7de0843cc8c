"""Training of finite networks on handwritten digits beside what their infinite-width kernels predict.

    python benchmarks/training.py [names …] [--seeds 4] [--out docs/training.md]

An MLP, a CNN and a tied RNN tell odd from even digits by full-batch gradient descent, until the loss has fallen by
90 %. Table and picture: how far test outputs are along the path from the limit's prediction and from the network's own
linearisation, how much NTK and parameters changed, each with the exponent of its fall with the width. With --out,
results are kept as they come: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import base64
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import report
from sklearn.datasets import load_digits

import tensorprog as tp
from tensorprog.nets import net
from tensorprog.plot import training_figure


@dataclass(frozen=True)
class Case:
    """A net of the zoo, how it reads a digit, and the widths of its networks."""

    shape: tuple[int, ...]
    widths: tuple[int, ...]
    keywords: dict[str, Any] = field(default_factory=dict)

    def program(self, name: str) -> tp.Program:
        return net(name).program(tp.Input(*self.shape), **self.keywords)


CASES = {
    "mlp": Case((64,), (32, 128, 512, 2048)),
    "cnn_flatten": Case((8, 8, 1), (16, 64, 256)),
    "rnn": Case((8, 8), (32, 128, 512)),
}


def data(count: int, tests: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits in float32, standardised as a whole, ±1 for even and odd ones; and further ones to look at."""
    pixels, labels = cast("tuple[np.ndarray, np.ndarray]", load_digits(return_X_y=True))
    chosen = np.random.default_rng(0).permutation(len(pixels))[: count + tests]
    x = ((pixels - pixels.mean()) / pixels.std())[chosen].astype(np.float32).reshape(-1, *shape)
    y = np.where(labels[chosen] % 2, -1.0, 1.0).astype(np.float32)
    return x[:count], y[:count], x[count:]


def measured(name: str, count: int, tests: int, seeds: int, widths: Sequence[int] | None) -> tp.TrainingComparison:
    case = CASES[name]
    x, y, x_test = data(count, tests, case.shape)
    return tp.compare_training(case.program(name), x, y, x_test, widths=widths or case.widths, seeds=seeds)


def packed(found: tp.TrainingComparison) -> str:
    """The comparison as text, to be kept."""
    return base64.b64encode(pickle.dumps(found)).decode()


def document(found: Sequence[tp.TrainingComparison], seeds: int, image: str) -> str:
    first = found[0]
    tables = "\n\n".join(f"```text\n{one.table()}\n```" for one in found)
    tests = len(first.task.x[0]) - first.task.count
    return f"""# Networks in training

`python benchmarks/training.py --out docs/training.md` wrote this page and its picture, in float32.

{first.task.count} of scikit-learn's handwritten digits, odd ones against even ones (±1), and {tests} more to look at.
Networks of the zoo in NTK parameterization are trained by full-batch gradient descent, with η = 1/λ_max of the limit's
NTK, each until its own loss has fallen by {100 * first.fall:.0f} %; {seeds} of each width.

- *from the limit*: test outputs along the path from f_0 − Θ_*Θ⁻¹(1 − (1 − ηΘ)ᵗ)(f_0 − y) with the infinite-width NTK
  and the network's own f_0, √(Σ_t ‖f_t − p_t‖²/Σ_t ‖p_t − f_0‖²). It falls like n^(-1/2): the NTK at the start is that
  far from its limit, whatever training does.
- *from its linearisation*: the same with the network's own NTK in place of the limit's. This and the *change of the
  NTK* come of training alone, and fall faster: in theory like 1/n.
- *‖θ_t − θ_0‖/‖θ_0‖*: parameters move by a distance that does not grow, while the norm of hidden matrices grows like n.
- *in the band*: the share of test outputs, over times and networks, within two standard deviations of the mean of
  infinitely wide networks.

{tables}

![Outputs of a test input in the band of the ensemble, losses, and deviations against the width]({image})
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--count", type=int, default=100, help="digits to learn from")
    parser.add_argument("--tests", type=int, default=50, help="digits to look at")
    parser.add_argument("--seeds", type=int, default=4, help="networks of each width")
    parser.add_argument("--widths", nargs="+", type=int, help="other widths, for all nets")
    parser.add_argument("--out", type=Path, help="write the page as Markdown, and its picture beside it")
    arguments = parser.parse_args(argv)
    names = arguments.names or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"{', '.join(unknown)}: give some of {', '.join(CASES)}")
    settings = {key: getattr(arguments, key) for key in ("count", "tests", "seeds", "widths")}
    kept = report.Kept(report.KEPT / "training.json" if arguments.out else None, settings)
    found = []
    for name in names:
        content = kept.get(name, lambda name=name: packed(measured(name, **settings)))
        found.append(pickle.loads(base64.b64decode(content)))
        print(found[-1], end="\n\n", flush=True)
    if arguments.out:
        image = arguments.out.with_suffix(".svg")
        training_figure(found, image)
        arguments.out.write_text(document(found, arguments.seeds, image.name), encoding="utf-8")
        kept.done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
