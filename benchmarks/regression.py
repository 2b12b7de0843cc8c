"""NTK and NNGP regression on handwritten digits beside an RBF support vector machine and nearest neighbours.

    python benchmarks/regression.py [--count 600] [--repeats 3] [--out docs/regression.md]

Half of the images to learn from, half held out. Every method is tuned by 5-fold cross-validation on the learning half:
the ridge and depth of kernel regression, C and γ of the SVM, the number of neighbours and their weights.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import report
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from tensorprog.predict import KernelWarning
from tensorprog.sklearn import NTKClassifier

RIDGES = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
FOLDS = 5

Method = tuple[Any, dict[str, list[Any]]]


def methods(names: Sequence[str]) -> dict[str, Method]:
    """An estimator and the grid it is tuned over, by title."""
    depths = {"keywords__depth": [1, 2, 4]}
    nets: dict[str, Method] = {
        "mlp": (NTKClassifier("mlp"), depths),
        "resnet_mlp": (NTKClassifier("resnet_mlp"), depths),
        "layernorm_mlp": (NTKClassifier("layernorm_mlp"), depths),
        "cnn_flatten": (NTKClassifier("cnn_flatten", input_shape=(8, 8)), depths),
        "rnn": (NTKClassifier("rnn", input_shape=(8, 8)), {}),
    }
    found = {f"NTK regression, {name}": (nets[name][0], {"ridge": RIDGES, **nets[name][1]}) for name in names}
    c = [0.1, 1.0, 10.0, 100.0, 1000.0]
    found["SVM, RBF kernel"] = (SVC(), {"C": c, "gamma": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]})
    neighbours = {"n_neighbors": [1, 2, 3, 5, 7, 9], "weights": ["uniform", "distance"]}
    found["k-NN"] = (KNeighborsClassifier(), neighbours)
    return found


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` digits drawn without replacement, standardised as a whole, and their labels; the first half learns."""
    pixels, labels = cast("tuple[np.ndarray, np.ndarray]", load_digits(return_X_y=True))
    chosen = np.random.default_rng(seed).permutation(len(pixels))[:count]
    return ((pixels - pixels.mean()) / pixels.std())[chosen], labels[chosen]


def measure(method: Method, count: int, repeats: int) -> dict[str, Any]:
    """Held-out accuracies over draws of the images, what was chosen in the first of them, and the time."""
    estimator, grid = method
    scores, chosen, time = [], {}, report.Time(0.0, 0.0)
    for seed in range(repeats):
        x, y = images(count, seed)
        half = count // 2
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KernelWarning)
            search = GridSearchCV(estimator, grid, cv=folds, error_score="raise")
            _, took = report.timed(lambda search=search, x=x, y=y, half=half: search.fit(x[:half], y[:half]) and 0)
        time = report.Time(time.wall + took.wall, time.cpu + took.cpu)
        chosen = chosen or search.best_params_
        scores.append(float(search.score(x[half:], y[half:])))
    return {"scores": scores, "chosen": chosen, "time": asdict(time)}


def row_of(title: str, found: dict[str, Any]) -> list[str]:
    scores, time = 100 * np.array(found["scores"]), found["time"]
    spread = f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
    chosen = ", ".join(f"{name.removeprefix('keywords__')}={value}" for name, value in found["chosen"].items())
    return [title, f"{scores.mean():.1f}{spread} %", chosen, f"{time['wall']:.0f} s", f"{time['cpu']:.0f} s"]


def document(rows: Sequence[Sequence[str]], count: int, repeats: int) -> str:
    head = ["method", "accuracy", "chosen in the first draw", "time", "CPU"]
    half = count // 2
    error = 100 * np.sqrt(0.97 * 0.03 / (count - half))
    return f"""# Regression with kernels, beside other methods

`python benchmarks/regression.py --out docs/regression.md` wrote this page, on {report.machine()}.

scikit-learn's handwritten digits of 8 × 8 pixels: {repeats} draws of {count} images, {half} to learn from and
{count - half} held out. Each method is tuned on the learning half alone, by {FOLDS}-fold cross-validation: ridge and
depth of `tensorprog.sklearn.NTKClassifier` (all other hyperparameters are the zoo's own), C and γ of the support vector
machine, number and weights of the neighbours. `rnn` reads the rows of an image one after the other, `cnn_flatten` its
pixels, the others all of them at once. Accuracy on the held-out half, mean ± sd over the draws; a single draw has a
binomial standard error of {error:.1f} % at 97 %. Time is that of tuning and fitting in all draws, compilation included,
on a machine shared with other work; a search computes each kernel once. CPU is the processor time
of the process, over all its cores, which other work on the machine does not change.

{report.table(head, rows)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    names = ("mlp", "resnet_mlp", "layernorm_mlp", "rnn", "cnn_flatten")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", choices=names, default=names)
    parser.add_argument("--count", type=int, default=600, help="images, half of them held out")
    parser.add_argument("--repeats", type=int, default=3, help="draws of the images")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args(argv)
    settings = {"count": arguments.count, "repeats": arguments.repeats}
    kept = report.Kept(report.KEPT / "regression.json" if arguments.out else None, settings)
    rows = []
    for title, method in methods(arguments.nets).items():
        found = kept.get(title, lambda method=method: measure(method, **settings))
        rows.append(row_of(title, found))
        print(" | ".join(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(document(rows, **settings), encoding="utf-8")
        kept.done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
