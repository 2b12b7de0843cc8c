"""A model as what is traced of it: its function, its parameters and how these are drawn, at three trial widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import ProgramError, bad_argument
from tensorprog.functions.jaxprs import ClosedJaxpr
from tensorprog.importing.sizes import NoPower, ratio
from tensorprog.ir import Data, Input

Build = Callable[[int, Any], tuple[Callable[[Any, Any], Any], Any]]
"""build(width, key) -> (f, params), f(params, x) with a leading axis of examples."""

BASE = (97, 101, 103)
"""Trial widths: primes, so that no fixed size is a multiple of all three by chance."""
MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
"""What the trial widths are multiplied by until heads and groups divide them."""


@dataclass(frozen=True)
class Model:
    """What was traced: jaxprs of f and of the draw of its parameters at each trial width, and the parameters' names."""

    build: Build
    widths: tuple[int, ...]
    names: tuple[str, ...]
    paths: tuple[str, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]  # leaf -> its shape at each width
    bodies: tuple[ClosedJaxpr, ...]
    draws: tuple[ClosedJaxpr, ...]
    outputs: Any  # the tree of what f returns


def traced(build: Build, inputs: Sequence[Input | Data], widths: Sequence[int] | None) -> Model:
    """The model traced at three widths, multiples of which are tried until the build takes them.

    **Raises:** `ProgramError` for what is no such build; whatever it raises itself at every width.
    """
    if not callable(build):
        raise bad_argument("build", f"{build!r} is no function", "give build(width, key) -> (f, params)")
    for value in inputs:
        if not isinstance(value, Input | Data):
            raise bad_argument("inputs", f"{value!r} describes no input", "write tp.Input(*sites, features)")
    if not inputs:
        raise bad_argument("inputs", "there is none", "write tp.Input(*sites, features), the shape of one example")
    if widths is not None:
        given = tuple(widths)
        if len(given) != 3 or len(set(given)) < 3 or not all(isinstance(n, int) and n > 1 for n in given):
            raise bad_argument("widths", f"{widths!r} are no trial widths", "give three different ones, (96, 160, 224)")
        return _at(build, inputs, given)
    first: Exception | None = None
    for k in MULTIPLES:
        try:
            model = _at(build, inputs, tuple(k * n for n in BASE))
        except ProgramError:
            raise
        except Exception as error:  # a width that heads do not divide; told if no other one is taken
            first = first or error
            continue
        if not _rounded_down(model):
            return model
        first = None
    if first is not None:
        raise first
    return _at(build, inputs, BASE)


def _rounded_down(model: Model) -> bool:
    """Whether a parameter has h·(n // h) entries along an axis, which is n where the heads divide the width."""
    for shapes in model.shapes:
        for sizes in zip(*shapes, strict=True):
            try:
                ratio(model.widths, sizes)
            except NoPower:
                if any(all(s == h * (n // h) for s, n in zip(sizes, model.widths, strict=True)) for h in range(2, 65)):
                    return True
    return False


def _at(build: Build, inputs: Sequence[Input | Data], widths: tuple[int, ...]) -> Model:
    trials = [_trial(build, inputs, n) for n in widths]
    paths = [t.paths for t in trials]
    if any(p != paths[0] for p in paths):
        raise bad_argument("build", "its parameters are others at another width", "build one network at every width")
    return Model(
        build, widths, _short(paths[0]), paths[0], tuple(zip(*(t.shapes for t in trials), strict=True)),
        tuple(t.body for t in trials), tuple(t.draw for t in trials), trials[0].outputs,
    )  # fmt: skip


@dataclass(frozen=True)
class _Trial:
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    body: ClosedJaxpr
    draw: ClosedJaxpr
    outputs: Any


def made(build: Build, width: int, key: Any) -> tuple[Callable[[Any, Any], Any], Any]:
    """What build returns, which must be (f, params)."""
    found = build(width, key)
    if not (isinstance(found, tuple) and len(found) == 2 and callable(found[0])):
        raise bad_argument(
            "build", f"build({width}, key) returns {type(found).__name__}, not (f, params)",
            "return a function f(params, x) -> outputs and its parameters; Flax and Equinox modules go to tp.from_flax "
            "and tp.from_equinox",
        )  # fmt: skip
    return found


def _trial(build: Build, inputs: Sequence[Input | Data], width: int) -> _Trial:
    f, params = made(build, width, jax.random.key(0))
    pairs, tree = jax.tree_util.tree_flatten_with_path(params)
    trained = [is_trained(leaf) for _, leaf in pairs]
    given = [leaf for (_, leaf), yes in zip(pairs, trained, strict=True) if yes]

    def whole(leaves: Sequence[Any]) -> Any:
        own = iter(leaves)
        return tree.unflatten([next(own) if yes else leaf for (_, leaf), yes in zip(pairs, trained, strict=True)])

    def one(leaves: Sequence[Any], x: Sequence[Any]) -> Any:
        batch = [a[None] for a in x]
        return jax.tree.map(lambda y: y[0], f(whole(leaves), batch[0] if len(batch) == 1 else tuple(batch)))

    def leaves_of(key: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(made(build, width, key)[1]) if is_trained(leaf)]

    draw = jax.make_jaxpr(leaves_of)(jax.random.key(0))
    with jax.enable_x64(True):
        theta = [jax.ShapeDtypeStruct(leaf.shape, jnp.float64) for leaf in given]
        body, outputs = _body(one, theta, inputs)
    paths = tuple(jax.tree_util.keystr(path) for (path, _), yes in zip(pairs, trained, strict=True) if yes)
    return _Trial(paths, tuple(leaf.shape for leaf in given), body, draw, jax.tree.structure(outputs))


def _body(one: Callable[..., Any], theta: Sequence[Any], inputs: Sequence[Input | Data]) -> tuple[ClosedJaxpr, Any]:
    """The jaxpr of f at one example; data that index something are integers."""
    kinds = [jnp.float64, jnp.int32] if any(isinstance(i, Data) for i in inputs) else [jnp.float64]
    for place, kind in enumerate(kinds):
        x = [jax.ShapeDtypeStruct(i.shape, kind if isinstance(i, Data) else jnp.float64) for i in inputs]
        try:
            return jax.make_jaxpr(one, return_shape=True)(theta, x)
        except TypeError:
            if place + 1 == len(kinds):
                raise
    raise AssertionError("the last kind returns or raises")


def is_trained(leaf: Any) -> bool:
    """Whether a leaf of params is a parameter: a floating array."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _short(paths: Sequence[str]) -> tuple[str, ...]:
    """['params']['Dense_0']['kernel'] as Dense_0.kernel, .layers[0].weight as layers.0.weight."""
    found = []
    for path in paths:
        text = path.replace("'][", ".").replace("['", ".").replace("']", "").replace("][", ".")
        text = text.replace("[", ".").replace("]", "").replace("'", "")
        parts = [part for part in text.split(".") if part and part not in ("params", "value")]
        found.append(".".join(parts) or "w")
    return tuple(found) if len(set(found)) == len(found) else tuple(f"{n}" for n in paths)


def drawn(model: Model, width: int, seed: int = 0) -> tuple[Callable[..., Any], Any, list[np.ndarray]]:
    """f, params and the parameters among its leaves, at one width."""
    f, params = made(model.build, width, jax.random.key(seed))
    return f, params, [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params) if is_trained(leaf)]
