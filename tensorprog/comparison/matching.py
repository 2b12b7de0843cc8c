"""Which array of a model is which parameter of a program, found by trying: then the two are the same function."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.interpret.finite import apply
from tensorprog.interpret.sizes import sizes
from tensorprog.ir import Bias, Parameter, fan
from tensorprog.program import Program

Array = jax.Array


@dataclass(frozen=True)
class Layout:
    """How a library lays out a weight: the axis order that brings it to (*window, rows, cols), given the window's rank.

    `whole` is its shape, -1 for the rows, which a dense layer over flattened sites has in two axes.
    """

    order: Callable[[int], tuple[int, ...]]
    whole: Callable[[tuple[int, ...], int], tuple[int, ...]]


LAYOUTS = (
    Layout(lambda w: (*range(w), w + 1, w), lambda window, cols: (*window, cols, -1)),  # Flax
    Layout(lambda w: (*range(2, w + 2), 0, 1), lambda window, cols: (-1, cols, *window)),  # Equinox
    Layout(lambda w: tuple(range(w + 2)), lambda window, cols: (*window, -1, cols)),  # our own
)
#: The most assignments that are tried in each layout.
TRIES = 200
#: Outputs that are this close, in units of the largest, are the same: float32 through a few layers.
CLOSE = 1e-3


@dataclass(frozen=True)
class Expected:
    """A parameter as a model has it, scale·θ + mean, in the program's shape; `second` is E θ²."""

    parameter: Parameter
    shape: tuple[int, ...]
    scale: float
    mean: float
    second: float

    @property
    def name(self) -> str:
        return self.parameter.name

    def brought(self, leaf: Array, layout: Layout) -> Array | None:
        """An array of the model in the program's shape, the first of its k rows; None if it does not fit."""
        p = self.parameter
        if not isinstance(p, Bias) and not p.sites and leaf.ndim in (2, len(p.window) + 2):
            whole = layout.whole(p.window, self.shape[-1])
            if leaf.ndim == 2 and p.window:
                leaf = leaf.reshape(whole) if leaf.size % math.prod(map(abs, whole)) == 0 else leaf
            if leaf.ndim == len(whole):
                leaf = jnp.transpose(leaf, layout.order(len(p.window)))
            leaf = leaf[..., :1, :] if p.rows == 1 else leaf
        elif isinstance(p, Bias) and p.dim == 1 and not p.sites:
            leaf = leaf[:1]
        return leaf if leaf.shape == self.shape else None

    def theta(self, leaf: Array) -> Array:
        return (leaf - self.mean) / (self.scale or 1.0)


@dataclass(frozen=True)
class Match:
    """The paths of the model's arrays by the program's names."""

    paths: dict[str, str]


def expected(program: Program, width: int, convention: str) -> list[Expected]:
    """What the program's parameters are in a model: θ, scale·θ, or scale·θ/√fan under the three conventions."""
    size, number = sizes(program, width), lambda num: float(program.leaves[num.index])
    found = []
    for p in program.structure.parameters:
        var = number(p.var)
        scale = math.sqrt(var) if p.scale is None else number(p.scale)
        second = var / scale**2 if scale else 0.0
        window, dims = ((), (p.dim,)) if isinstance(p, Bias) else (p.window, (p.rows, p.cols))
        if convention == "multiplier-std":
            scale = 1.0
        elif convention == "standard" and not isinstance(p, Bias):
            scale /= math.sqrt(fan(p) * (1 if isinstance(p.cols, int) else size[p.cols]))
        mean = number(p.mean) if isinstance(p, Bias) and p.mean is not None else 0.0
        shape = (*p.sites, *window, *(d if isinstance(d, int) else size[d] for d in dims))
        found.append(Expected(p, shape, scale, mean, second))
    return found


def matched(program: Program, ours: Sequence[Expected], f: Any, params: Any, x: Any) -> Match | None:
    """An assignment of the model's arrays to the program's parameters under which both have the same outputs at `x`.

    None where there is none among those that are tried: arrays in the model's order first, then exchanged among those
    of one shape. Of a model of k rows the first is looked at.
    """
    leaves = named_leaves(params)
    run = jax.jit(lambda theta: apply(program, theta, x))
    orders = [list(_assignments(ours, leaves, layout)) for layout in LAYOUTS]
    for tried in itertools.chain.from_iterable(itertools.zip_longest(*orders)):
        if tried is None:
            continue
        names, theta = tried
        mine = run(theta)
        y = f(params, x)
        y = y[..., 0] if y.ndim > mine.ndim else y
        if float(jnp.abs(mine - y).max()) <= CLOSE * float(jnp.abs(y).max()):
            return Match(names)
    return None


def named_leaves(params: Any) -> dict[str, Array]:
    """Floating arrays by their paths, Dense_2 before Dense_10."""
    found = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    natural = lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
    return dict(sorted(found, key=lambda item: natural(item[0])))


def _assignments(
    ours: Sequence[Expected], leaves: Mapping[str, Array], layout: Layout
) -> Iterator[tuple[dict[str, str], dict[str, Array]]]:
    """Paths and θ by name, each array once: those of one shape in their order, then in all other orders."""
    tried = {(one.name, path): one.brought(leaf, layout) for one in ours for path, leaf in leaves.items()}
    brought = {pair: array for pair, array in tried.items() if array is not None}
    groups: dict[tuple[str, ...], list[Expected]] = {}
    for one in ours:
        fits = tuple(path for path in leaves if (one.name, path) in brought)
        groups.setdefault(fits, []).append(one)
    if len(leaves) != len(ours) or any(len(paths) < len(members) for paths, members in groups.items()):
        return
    members = list(itertools.chain(*groups.values()))
    orders = [itertools.permutations(paths, len(own)) for paths, own in groups.items()]
    for chosen in itertools.islice(itertools.product(*orders), TRIES):
        paths = list(itertools.chain(*chosen))
        if len(set(paths)) == len(paths):
            pairs = dict(zip(members, paths, strict=True))
            yield (
                {one.name: path for one, path in pairs.items()},
                {one.name: one.theta(brought[one.name, path]) for one, path in pairs.items()},
            )
