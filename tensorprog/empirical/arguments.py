"""What a user may pass to the empirical kernels, and the texts that say so when it is something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from tensorprog.arrays import NoNumbers, fits, real_array
from tensorprog.errors import warn
from tensorprog.program import is_concrete


def function_of(f: Any) -> Callable[[Any, Any], Any]:
    """f, which must be a function of (params, x)."""
    if not callable(f):
        raise TypeError(f"f must be a function f(params, x) -> outputs, got {described(f)}.")
    return f


def at_one(f: Callable[[Any, Any], Any], params: PyTree, x: PyTree) -> Any:
    """f of batches at one example, f(params, x[None])[0]."""
    return f(params, jax.tree.map(lambda leaf: leaf[None], x))[0]


def batches(x1: PyTree, x2: PyTree | None) -> tuple[PyTree, PyTree | None]:
    x1 = _batch(x1, "x1")
    if x2 is None:
        return x1, None
    x2 = _batch(x2, "x2")
    if jax.tree.structure(x1) != jax.tree.structure(x2):
        raise ValueError(
            f"x1 and x2 must be the same kind of pytree, got {jax.tree.structure(x1)} and {jax.tree.structure(x2)}."
        )
    for a, b in zip(jax.tree.leaves(x1), jax.tree.leaves(x2), strict=True):
        if a.shape[1:] != b.shape[1:]:
            raise ValueError(f"x1 and x2 must agree in all axes but the first, got shapes {a.shape} and {b.shape}.")
    return x1, x2


def _batch(x: PyTree, name: str) -> PyTree:
    def array(leaf: Any) -> Array:
        try:
            found = leaf if isinstance(leaf, jax.Array) or np.iscomplexobj(leaf) else real_array(leaf)
        except NoNumbers as error:
            told = f"{name} must be an array or a pytree of arrays; it has {described(leaf)}, which {error}."
            raise TypeError(told) from None
        if not fits(found):
            raise TypeError(f"{name} has integers beyond JAX's {jnp.result_type(found)}: pass x.astype(float).")
        leaf = jnp.asarray(found)
        if leaf.ndim == 0:
            raise ValueError(
                f"every leaf of {name} needs a leading axis of examples, and one is a single number: pass an array of"
                " shape (N, ...), jnp.asarray(...) for a list of lists."
            )
        return leaf

    x = jax.tree.map(array, x)
    lengths = sorted({leaf.shape[0] for leaf in jax.tree.leaves(x)})
    if not lengths:
        raise TypeError(f"{name} holds no array: pass an array, or a pytree of arrays, with leading axis N.")
    if len(lengths) > 1:
        raise ValueError(f"the leaves of {name} disagree about the number of examples, their first axis: {lengths}.")
    if lengths == [0]:
        raise ValueError(f"{name} has no examples (N = 0): pass at least one.")
    return x


def partition(params: PyTree) -> tuple[list[Array], Callable[..., PyTree]]:
    """The floating arrays of `params`, and the function that puts such a list back among the other leaves (among None,
    with `only`)."""
    leaves, structure = jax.tree.flatten(params)
    trained = [_is_trained(leaf) for leaf in leaves]
    theta = [jnp.asarray(leaf) for leaf, yes in zip(leaves, trained, strict=True) if yes]
    if sum(leaf.size for leaf in theta) == 0:
        raise ValueError(
            "params has no parameters: no leaf is an array of floating dtype. Pass arrays, jnp.asarray(1.0) for 1.0."
        )

    def merge(theta: list[Any], only: bool = False) -> PyTree:
        new = iter(theta)
        full = [next(new) if yes else None if only else leaf for leaf, yes in zip(leaves, trained, strict=True)]
        return jax.tree.unflatten(structure, full)

    return theta, merge


def paths_of(params: PyTree) -> list[str]:
    """The path of each floating array, as `jax.tree_util.keystr` writes it."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path) for path, leaf in leaves if _is_trained(leaf)]


def _is_trained(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return False
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise TypeError("params has a complex leaf: the NTK is defined for real parameters; pass its two parts.")
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def multipliers_of(lr: PyTree | None, params: PyTree) -> list[Any]:
    """The multiplier of each floating array of `params`, None for 1."""
    leaves = jax.tree.leaves(params)
    if lr is None:
        return [None for leaf in leaves if _is_trained(leaf)]
    try:
        each = jax.tree.leaves(jax.tree.broadcast(lr, params))
    except ValueError as error:
        raise ValueError(
            "lr must be a pytree prefix of params: one number, or a number for each parameter or subtree of them."
            f" {error}"
        ) from error
    chosen = [(m, leaf) for m, leaf in zip(each, leaves, strict=True) if _is_trained(leaf)]
    for m, leaf in chosen:
        if not _is_multiplier(m, leaf.shape):
            raise ValueError(f"lr has {described(m)}: pass a number, or an array that broadcasts to {leaf.shape}.")
    return [None if isinstance(m, int | float) and m == 1 else m for m, _ in chosen]


def _is_multiplier(m: Any, shape: tuple[int, ...]) -> bool:
    try:
        m = jnp.asarray(m)
        return jnp.issubdtype(m.dtype, jnp.number) and np.broadcast_shapes(m.shape, shape) == shape
    except (TypeError, ValueError):
        return False


def output_shape(f: Callable[[PyTree], Any], x: PyTree) -> tuple[int, ...]:
    """The shape of one example's outputs; found, without computing anything, from batches of two and of one."""
    for n in (2, 1):
        batch = jax.tree.map(lambda leaf, n=n: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), x)
        out = jax.eval_shape(f, batch)
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise TypeError(f"f must return one array, got {described(out)}: choose one of its outputs.")
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise TypeError(f"f must return a floating array, got dtype {out.dtype}: its outputs have no derivatives.")
        if out.shape[:1] != (n,):
            raise ValueError(
                f"f must keep the leading axis of examples, f(params, x) -> (N, ...): for {n} of them it returns shape"
                f" {out.shape}."
            )
        if math.prod(out.shape) == 0:
            raise ValueError(f"f must return at least one output an example, got shape {out.shape}.")
    return out.shape[1:]


def warn_of_batches(f: Callable[[Any, Any], Any], params: PyTree, x: PyTree) -> None:
    """Say so where f draws, or mixes the examples of a batch: its kernel is taken at one example at a time.

    f is called on one example twice, on another, and on both together, which agree up to rounding where it does
    neither. Nothing is said of what is traced.
    """
    floats = [leaf for leaf in jax.tree.leaves(params) if _is_trained(leaf)]
    if not all(map(is_concrete, (*floats, *jax.tree.leaves(x)))):
        return
    pairs = jax.tree.map(lambda leaf: leaf[:2], x)
    if not all(map(is_concrete, jax.tree.leaves(pairs))):  # within a trace, what is cut from known arrays is traced
        return
    first, second = jax.tree.map(lambda pair: pair[:1], pairs), jax.tree.map(_another, pairs)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    params = jax.tree.map(_seen, params)
    with jax.default_matmul_precision("highest"):
        found = [f(params, z) for z in (first, first, second, both)]
    if not all(map(is_concrete, found)):  # f reads what is being traced
        return
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in (found[0], *floats))
    once, again, other, together = (np.asarray(y, np.float64) for y in found)
    alone = np.concatenate([once, other])
    scale = np.nanmax(np.abs([alone, together]), initial=0.0)
    apart = lambda a, b: not np.allclose(a, b, rtol=0.0, atol=eps**0.5 * scale + 100 * eps, equal_nan=True)
    one_at_a_time = "The kernel is that of f(params, x[None])[0], one example at a time."
    if apart(once, again):
        warn(
            f"f draws random numbers: two calls with the same arguments differ. {one_at_a_time} Pass the model as it"
            " is used after training: deterministic=True for dropout, inference mode"
            " (eqx.nn.inference_mode, model.eval()).",
        )
    elif apart(alone, together):
        share = np.nanmax(np.abs(alone - together)) / scale
        warn(
            f"f mixes the examples of a batch: f(params, x[:2]) is {100 * share:.2g} % off f of each of the two, as"
            f" with batch statistics, or dropout under one key. {one_at_a_time} Pass the model as it is used after"
            " training: use_running_average=True for batch normalisation, deterministic=True for dropout, inference"
            " mode (eqx.nn.inference_mode, model.eval()).",
        )


def _another(pair: Array) -> Array:
    """An example to stand beside the first: the second if it is another, else the first turned around, which has its
    values, so that tokens stay in their vocabulary."""
    if len(pair) > 1 and bool((pair[0] != pair[1]).any()):
        return pair[1:2]
    turned = jnp.flip(pair[:1], tuple(range(1, pair.ndim)))
    return turned * 0.5 + 0.25 if jnp.issubdtype(pair.dtype, jnp.floating) else turned


def _seen(leaf: Any) -> Any:
    """An array of zeros, as heads and biases start, hides what stands before it."""
    return jnp.full_like(leaf, 0.1) if _is_trained(leaf) and not np.asarray(leaf).any() else leaf


@dataclass(frozen=True)
class Axes:
    """What becomes of each output axis: kept on both sides, alike on both sides, alike and averaged, summed before."""

    kept: tuple[int, ...]
    diagonal: tuple[int, ...]
    traced: tuple[int, ...]
    summed: tuple[int, ...]

    def size(self, kind: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape[axis] for axis in getattr(self, kind))

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        return self.size("kept", shape), self.size("diagonal", shape), self.size("traced", shape)

    def laid_out(self, y: Array) -> Float[Array, "K E T"]:
        """One example's outputs as kept, diagonal and traced ones."""
        shape = y.shape
        y = y.transpose(*self.kept, *self.diagonal, *self.traced, *self.summed)
        return y.reshape(*self.sizes(shape), -1).sum(-1) if self.summed else y.reshape(self.sizes(shape))


def output_axes(
    shape: tuple[int, ...],
    trace_axes: int | Sequence[int],
    diagonal_axes: int | Sequence[int] = (),
    sum_axes: int | Sequence[int] = (),
) -> Axes:
    """The axes of an example's outputs by what becomes of them. `trace_axes=-1` is the last axis if there is one and
    nothing else is said of it."""
    diagonal, summed = _axes(shape, diagonal_axes, "diagonal_axes"), _axes(shape, sum_axes, "sum_axes")
    if isinstance(trace_axes, int) and trace_axes == -1 and (not shape or len(shape) - 1 in diagonal + summed):
        trace_axes = ()
    traced = _axes(shape, trace_axes, "trace_axes")
    named = diagonal + traced + summed
    if len(set(named)) < len(named):
        raise ValueError(
            "an output axis can be named in one of trace_axes, diagonal_axes and sum_axes only, got"
            f" {traced}, {diagonal} and {summed}."
        )
    return Axes(tuple(axis for axis in range(len(shape)) if axis not in named), diagonal, traced, summed)


def _axes(shape: tuple[int, ...], axes: int | Sequence[int], name: str) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, int) else axes
    for axis in axes:
        if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"{name} has {axis!r}, and an example's outputs have shape {shape}: pass axes of these, the axis of"
                " examples not counted, or () for none."
            )
    found = tuple(sorted({axis % len(shape) for axis in axes}))
    if len(found) < len(axes):
        raise ValueError(f"{name}={tuple(axes)} names an axis twice.")
    return found


def batch_limit(batch_size: int | None, default: int) -> int:
    if batch_size is None:
        return default
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer or None, got {batch_size!r}.")
    return int(batch_size)


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    each = list(range(seeds)) if isinstance(seeds, int | np.integer) else [int(seed) for seed in seeds]
    if not each:
        raise ValueError(f"seeds={seeds!r} leaves nothing to average: pass a positive number of draws, or the seeds.")
    return each


def described(thing: Any) -> str:
    """A short description of a wrong argument."""
    if isinstance(thing, jax.Array | np.ndarray):
        return f"an array of shape {thing.shape}"
    text = repr(thing)
    return f"{type(thing).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
