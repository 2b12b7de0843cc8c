"""What the comparisons share: checked widths, seeds and batches, random keys, progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import batch, random_key
from tensorprog.errors import bad_argument
from tensorprog.ir import Structure
from tensorprog.program import Program

Progress = bool | Callable[[], Any]


def widths_of(widths: Any) -> tuple[int, ...]:
    """Widths in increasing order, each once."""
    return tuple(sorted(set(_positive("widths", widths))))


def seeds_of(seeds: Any) -> int:
    """How many networks of each width."""
    (count,) = _positive("seeds", (seeds,))
    return count


def _positive(name: str, values: Any) -> tuple[int, ...]:
    """Positive ints, at least one of them; a single one may stand for itself."""
    found: tuple[Any, ...] = tuple(values) if isinstance(values, Sequence | np.ndarray) else (values,)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise bad_argument(name, f"{value!r} is no positive int", f"give {name} of at least 1")
    if not found:
        raise bad_argument(name, "none are given", "give at least one")
    return tuple(int(value) for value in found)


def comparable(structure: Structure) -> None:
    """Refuse a program without inputs, or of several outputs."""
    if not structure.single:
        raise bad_argument("program", "it has several outputs", "trace one that returns the output to compare")
    if not structure.inputs:
        raise bad_argument("program", "it has no inputs", "trace a function of an input, tp.trace(fn, tp.Input(…))")


def batches(program: Program, x1: Any, x2: Any, names: tuple[str, str] = ("x1", "x2")) -> tuple[Any, Any]:
    """Both batches, checked, in one dtype."""
    first = batch(program.structure, x1, names[0])
    second = None if x2 is None else batch(program.structure, x2, names[1])
    dtype = jnp.result_type(*first, *(second or ()))
    return jax.tree.map(lambda a: a.astype(dtype), (first, second))


def as_given(arrays: Any) -> Any:
    """Data as users hand them over: one array, or a tuple for several inputs; None as it is."""
    return arrays if arrays is None or len(arrays) > 1 else arrays[0]


def keys_of(key: Any, widths: Sequence[int], seeds: int) -> dict[int, list[jax.Array]]:
    """A key for each network, by width: that of a seed does not depend on the other widths, nor on how many seeds."""
    key = jax.random.key(0) if key is None else random_key(key)
    own = {width: jax.random.fold_in(key, width) for width in widths}
    return {width: [jax.random.fold_in(own[width], seed) for seed in range(seeds)] for width in widths}


def bar(progress: Progress, total: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What to call after each network, and at the end."""
    if callable(progress):
        return progress, lambda: None
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:
            return lambda: None, lambda: None
        shown = tqdm(total=total, unit="net", leave=False)
        return shown.update, shown.close
    return lambda: None, lambda: None
