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
import numpy as np

from tensorprog.interpret.finite import apply
from tensorprog.interpret.sizes import sizes
from tensorprog.ir import Bias, Parameter, fan, shape
from tensorprog.program import Program

Array = jax.Array
Arrays = dict[str, Array]


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
#: Deviation of the entries that are tried, where a model's own array is 0.
SMALL = 0.3


@dataclass(frozen=True)
class Expected:
    """A parameter as a model has it, scale·θ + mean, in the program's shape; `second` is E θ².

    `width` is that of the network: a readout's row is not one of the rows of a square matrix.
    """

    parameter: Parameter
    shape: tuple[int, ...]
    scale: float
    mean: float
    second: float
    width: int

    @property
    def name(self) -> str:
        return self.parameter.name

    def brought(self, leaf: Array, layout: Layout) -> Array | None:
        """An array of the model in the program's shape, the first of its k rows; None if it does not fit."""
        p = self.parameter
        if isinstance(p, Bias):
            if p.dim == 1 and not p.sites and leaf.ndim <= 1 and leaf.size != self.width:
                leaf = leaf.reshape(-1)[:1]
        elif p.rows == 1 and not p.sites and not p.window and leaf.ndim == 1:  # a readout written as a vector
            leaf = leaf[None]
        elif not p.sites and leaf.ndim in (2, len(p.window) + 2):
            whole = layout.whole(p.window, self.shape[-1])
            if leaf.ndim == 2 and p.window:
                leaf = leaf.reshape(whole) if leaf.size % math.prod(map(abs, whole)) == 0 else leaf
            if leaf.ndim == len(whole):
                leaf = jnp.transpose(leaf, layout.order(len(p.window)))
                leaf = leaf[..., :1, :] if p.rows == 1 and leaf.shape[-2] != self.width else leaf
        return leaf if leaf.shape == self.shape else None

    def theta(self, leaf: Any) -> Any:
        return (leaf - self.mean) / (self.scale or 1.0)


def expected(program: Program, width: int, convention: str) -> list[Expected]:
    """What the program's parameters are in a model: θ, scale·θ, or scale·θ/√fan under the three conventions."""
    size, number = sizes(program, width), lambda num: float(program.leaves[num.index])
    found = []
    for p in program.structure.parameters:
        var = number(p.var)
        scale = math.sqrt(var) if p.scale is None else number(p.scale)
        second = var / scale**2 if scale else 0.0
        mean = number(p.mean) if isinstance(p, Bias) and p.mean is not None else 0.0
        if convention == "multiplier-std":
            scale, mean = 1.0, 0.0  # the function adds the mean
        elif convention == "standard" and not isinstance(p, Bias):
            scale /= math.sqrt(fan(p) * (1 if isinstance(p.cols, int) else size[p.cols]))
        dims = tuple(d if isinstance(d, int) else size[d] for d in shape(p))
        found.append(Expected(p, dims, scale, mean, second, width))
    return found


@dataclass(frozen=True)
class Match:
    """Which array of the model is which parameter, by the parameter's name; what has no counterpart in the other."""

    paths: dict[str, str]
    arrays: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def matched(program: Program, ours: Sequence[Expected], f: Any, params: Any, x: Any) -> Match | None:
    """An assignment of the model's arrays to the program's parameters under which both are the same function at `x`.

    None where there is no such assignment among those that are tried: arrays in the model's order first, then exchanged
    among those of one shape. Both functions take Gaussian numbers in place of the model's, so that an array of zeros
    hides nothing. Where one of them has more, the rest are at 0, or in the model as it holds them, and are told. Of a
    model of k rows the first is looked at.
    """
    leaves, rebuilt = named_leaves(params)
    numbers = {path: _number(path, leaf) for path, leaf in leaves.items()}
    run = jax.jit(lambda theta: apply(program, theta, x))
    model = jax.jit(lambda leaves: f(rebuilt(leaves), x))
    zeros = {one.name: jnp.zeros(one.shape, x.dtype if hasattr(x, "dtype") else x[0].dtype) for one in ours}
    layouts = LAYOUTS if any(not isinstance(o.parameter, Bias) and o.parameter.window for o in ours) else LAYOUTS[:2]
    for kept in _kept(ours, len(leaves)):
        orders = [itertools.islice(_assignments(kept, leaves, layout), TRIES) for layout in layouts]
        for tried in itertools.chain.from_iterable(itertools.zip_longest(*orders)):
            if tried is None:
                continue
            layout, names = tried
            rest = tuple(path for path in leaves if path not in names.values())
            # What the program holds at 0 stays what it is in the model.
            given = {**numbers, **{names[one.name]: leaves[names[one.name]] for one in kept if not one.scale}}
            mine = run(zeros | {o.name: o.theta(o.brought(given[names[o.name]], layout)) for o in kept})
            for others in [{}] if not rest else [{p: leaves[p] for p in rest}, {p: 0 * leaves[p] for p in rest}]:
                y = model({**given, **others})
                y = y[..., 0] if y.ndim > mine.ndim else y
                size = float(jnp.abs(y).max())
                if size > 0 and float(jnp.abs(mine - y).max()) <= CLOSE * size:
                    return Match(names, rest, tuple(one.name for one in ours if one not in kept))
    return None


def _kept(ours: Sequence[Expected], count: int) -> Iterator[Sequence[Expected]]:
    """The parameters that may be in a model of so many arrays: all of them, else all but one or two biases."""
    if len(ours) <= count:
        yield ours
    biases = [one for one in ours if isinstance(one.parameter, Bias) and not one.mean]
    for left_out in (1, 2):
        for out in itertools.combinations(biases, left_out):
            if len(ours) - left_out <= count:
                yield [one for one in ours if one not in out]


def _number(path: str, leaf: Array) -> Array:
    """Gaussian entries of the size of the array's own."""
    rng = np.random.default_rng(list(path.encode()))
    size = float(jnp.sqrt(jnp.mean(leaf**2))) or SMALL
    return jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)


def named_leaves(params: Any) -> tuple[Arrays, Callable[[Arrays], Any]]:
    """Floating arrays by their paths, Dense_2 before Dense_10, and the function that puts others in their places."""
    pairs, tree = jax.tree_util.tree_flatten_with_path(params)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in pairs]
    kinds = jax.Array | np.ndarray | np.generic
    found = {n: jnp.asarray(a) for n, a in named if isinstance(a, kinds) and jnp.issubdtype(a.dtype, jnp.floating)}
    natural = lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
    ordered = {name: found[name] for name in sorted(found, key=natural)}
    return ordered, lambda leaves: tree.unflatten([leaves.get(name, leaf) for name, leaf in named])


def _assignments(
    ours: Sequence[Expected], leaves: Mapping[str, Array], layout: Layout
) -> Iterator[tuple[Layout, dict[str, str]]]:
    """A path for each parameter, each array once: in their own order first, then with two exchanged, or one by
    an array that nothing has, then with more."""
    fits = [tuple(path for path, leaf in leaves.items() if one.brought(leaf, layout) is not None) for one in ours]

    def chosen(place: int, before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if place == len(ours):
            yield before
            return
        for path in fits[place]:
            if path not in before:
                yield from chosen(place + 1, (*before, path))

    waiting = [paths for paths in [next(chosen(0, ()), None)] if paths is not None]
    seen = set(waiting)
    while waiting:
        paths = waiting.pop(0)
        yield layout, dict(zip([one.name for one in ours], paths, strict=True))
        for i, j in itertools.combinations(range(len(ours)), 2):
            if paths[j] in fits[i] and paths[i] in fits[j]:
                exchanged = tuple({i: paths[j], j: paths[i]}.get(k, path) for k, path in enumerate(paths))
                if exchanged not in seen:
                    seen.add(exchanged)
                    waiting.append(exchanged)
        for i, path in itertools.product(range(len(ours)), leaves):
            if path in fits[i] and path not in paths:
                exchanged = (*paths[:i], path, *paths[i + 1 :])
                if exchanged not in seen:
                    seen.add(exchanged)
                    waiting.append(exchanged)
