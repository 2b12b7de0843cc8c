"""Reference kernels of `tests/data` by name: what was computed, the inputs, the arrays."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """A network of layers, its inputs and its kernels.

    - `spec`: operations in order, each a dict with "op" and its numbers; `conventions()` defines them.
    - `arrays`: "nngp_12", "ntk_12" (x1 against x2) and, unless the case is only of x1 against x2, "nngp_11", "ntk_11".
    - `graphs`: of networks over graphs, each graph's own matrix, for x1 and for x2.
    - `full`: nothing is read out, the arrays have all pairs of positions, (n1, n2, A, A, B, B) for (A, B).
    - `quadrature`: by array, how far the reference itself moved when its quadrature was refined; empty if exact.
    """

    name: str
    spec: list[dict[str, Any]]
    x1: np.ndarray
    x2: np.ndarray
    arrays: dict[str, np.ndarray]
    words: str
    quadrature: dict[str, float]
    graphs: tuple[np.ndarray, np.ndarray] | None
    full: bool


def case(name: str) -> Case:
    """The case of that name; `names()` lists them."""
    entry, npz = _layers()[1][name], _arrays("layers")
    prefix = f"{name}__"
    graphs = tuple(npz[f"in__{pattern}"] for pattern in entry.get("pattern", ()))
    return Case(
        name=name,
        spec=entry["spec"],
        x1=npz[f"in__{entry['x1']}"],
        x2=npz[f"in__{entry['x2']}"],
        arrays={key.removeprefix(prefix): array for key, array in npz.items() if key.startswith(prefix)},
        words=entry["words"],
        quadrature=entry.get("quadrature_change") or {},
        graphs=(graphs[0], graphs[1]) if graphs else None,
        full=entry.get("full", False),
    )


def names(prefix: str = "") -> list[str]:
    """Names of the cases that start with `prefix`, in the order of the file."""
    return [name for name in _layers()[1] if name.startswith(prefix)]


def conventions() -> dict[str, str]:
    """What each operation of a `spec` means, in formulas."""
    return _layers()[0]["conventions"]


def paper(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A case of the papers, `"rnn_ntk/nb/laststate"`: what it is ("hyper", "model", "phi") and its arrays."""
    prefix = f"{name}/"
    arrays = {key.removeprefix(prefix): array for key, array in _arrays("paper").items() if key.startswith(prefix)}
    return _json("paper")[name], arrays


def papers() -> list[str]:
    return list(_json("paper"))


def theory(name: str) -> dict[str, Any]:
    """An entry of the limits with simulations: `theory("rnn_ntk_T3")`."""
    return _json("theory")[name]


@cache
def _layers() -> tuple[dict[str, Any], dict[str, Any]]:
    content = _json("layers")
    return content, {entry["name"]: entry for entry in content["cases"]}


@cache
def _json(stem: str) -> dict[str, Any]:
    return json.loads((DATA / f"{stem}.json").read_text(encoding="utf-8"))


@cache
def _arrays(stem: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{stem}.npz") as npz:
        return {key: npz[key] for key in npz.files}
