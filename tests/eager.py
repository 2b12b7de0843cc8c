"""Programs evaluated without compiling them: the library's interpreters on NumPy arrays.

A compilation takes seconds, and of a thousand random programs each is seen once. The interpreters are array code, the
same in NumPy as in `jax.numpy`, so here they run on NumPy: `jnp` and the few transformations of `jax` that they use are
replaced for a while (a vmap is a loop). What is no array code stays JAX, compiled once for all programs: users'
functions and their derivatives, and the expectations of functions of Gaussians.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special

from tensorprog import assembly, decomposition, evaluation, kernel, limits, settling, stripes, tiles
from tensorprog.functions import base
from tensorprog.functions.frozen import Function
from tensorprog.interpret import (
    batch,
    buffers,
    evaluator,
    exact,
    integrals,
    joints,
    linear,
    moments,
    particles,
    plan,
    products,
    roads,
    rules,
    spaces,
    system,
)
from tensorprog.sampling import families

Numbers = tuple[Any, ...]
AT_ONCE, FEW, POINTS = 16, 4, 2048
"""Arguments of one compiled call: of an expectation, of one over several Gaussians, of a user's function."""


# ---- arrays


class Array(np.ndarray):
    """A NumPy array with the `at` of JAX's."""

    @property
    def at(self) -> Any:
        return _At(self)


class _At:
    def __init__(self, array: Array, index: Any = None):
        self.array, self.index = array, index

    def __getitem__(self, index: Any) -> _At:
        return _At(self.array, index)

    def set(self, values: Any) -> Array:
        result = self.array.copy()
        result[self.index] = values
        return result


def array(value: Any) -> Any:
    """The same leaves as arrays of NumPy."""
    return jax.tree.map(lambda a: np.asarray(a).view(Array), value)


class _Numpy:
    """`jax.numpy` by NumPy: results are such arrays, precisions are of no interest."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or name in ("finfo", "shape", "broadcast_shapes", "result_type", "dtype"):
            return found

        def function(*args: Any, precision: Any = None, **options: Any) -> Any:
            result = found(*args, **options)
            return tuple(map(array, result)) if isinstance(result, tuple | list) else np.asarray(result).view(Array)

        setattr(self, name, function)
        return function


NUMPY = _Numpy()


# ---- transformations as loops


def _map(fn: Callable[..., Any], items: Any) -> Any:
    count = len(jax.tree.leaves(items)[0])
    found = [fn(jax.tree.map(lambda a, k=k: a[k], items)) for k in range(count)]
    return jax.tree.map(lambda *a: np.stack(a).view(Array), *found)


def _vmap(fn: Callable[..., Any], in_axes: Any = 0, out_axes: int = 0) -> Callable[..., Any]:
    def mapped(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        moved = [a if k is None else jax.tree.map(lambda x, k=k: np.moveaxis(x, k, 0), a) for a, k in zip(args, axes)]
        count = next(len(jax.tree.leaves(a)[0]) for a, k in zip(moved, axes) if k is not None and jax.tree.leaves(a))
        one = lambda index, a, k: a if k is None else jax.tree.map(lambda x: x[index], a)
        found = [fn(*(one(index, a, k) for a, k in zip(moved, axes))) for index in range(count)]
        return jax.tree.map(lambda *a: np.stack(a, out_axes).view(Array), *found)

    return mapped


def _fori_loop(start: int, end: int, body: Callable[..., Any], state: Any) -> Any:
    for k in range(start, end):
        state = body(k, state)
    return state


def _update_slice(array: Array, rows: Any, start: int, axis: int) -> Array:
    assert axis == 0, "rows are written"
    return array.at[start : start + len(rows)].set(rows)


def _scan(body: Callable[..., Any], carry: Any, items: Any) -> Any:
    for k in range(len(jax.tree.leaves(items)[0])):
        carry, _ = body(carry, jax.tree.map(lambda a, k=k: a[k], items))
    return carry, None


# ---- random numbers; a key is a row of integers


def _key(key: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(key) if isinstance(key, jax.Array) else key, dtype=np.int64).reshape(-1)


def _split(key: Any, count: int = 2) -> np.ndarray:
    return np.stack([np.append(_key(key), [-1, k]) for k in range(count)])


def _draw(key: Any) -> np.random.Generator:
    return np.random.default_rng((_key(key) + 2).tolist())


_RANDOM = SimpleNamespace(
    key=jax.random.key,
    fold_in=lambda key, k: np.append(_key(key), k),
    split=_split,
    bits=lambda key, shape, dtype: _draw(key).integers(0, 2**32, shape, dtype=np.uint32).view(Array),
    uniform=lambda key, shape, dtype, minval: _draw(key).uniform(minval, 1.0, shape).view(Array),
    normal=lambda key, shape, dtype: _draw(key).normal(size=shape).view(Array),
)


def _substituted(triangle: Any, right: Any, order: Any) -> Any:
    """`products._substituted` by LAPACK, for one replicate at a time."""
    if not right.size:
        return right
    alive = np.diagonal(triangle) > 0
    full = triangle + np.diag(np.where(alive, 0.0, 1.0))
    kept = np.where(alive[:, None], right, 0.0)
    found = scipy.linalg.solve_triangular(full, kept, lower=len(order) == 1 or order[0] < order[-1])
    return np.where(alive[:, None], found, 0.0).view(Array)


class _Jax:
    """`jax` with such arrays."""

    numpy = NUMPY
    random = _RANDOM
    vmap = staticmethod(_vmap)
    lax = SimpleNamespace(map=_map, fori_loop=_fori_loop, scan=_scan, stop_gradient=lambda a: a,
                          dynamic_update_slice_in_dim=_update_slice, Precision=jax.lax.Precision)  # fmt: skip
    scipy = SimpleNamespace(special=SimpleNamespace(ndtri=lambda a: scipy.special.ndtri(a).view(Array)))

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    @staticmethod
    def checkpoint(fn: Any, **_: Any) -> Any:
        return fn


class _Host(_Jax):
    """`jax` where results stay NumPy's."""

    device_put = staticmethod(array)


# ---- what stays compiled


def _blocks(arrays: list[Any], size: int) -> tuple[tuple[int, ...], Iterator[tuple[Any, ...]]]:
    """Arrays broadcast together and cut into blocks of one size, the last filled up."""
    whole = np.broadcast_arrays(*arrays)
    flat = [np.pad(a.reshape(-1), (0, -a.size % size), mode="edge") for a in whole]
    return whole[0].shape, zip(*(a.reshape(-1, size) for a in flat))


def _joined(parts: list[Any], shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape, dtype=int))
    return jax.tree.map(lambda *a: np.concatenate(list(map(np.asarray, a)))[:size].reshape(shape).view(Array), *parts)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _expectation(road: Any, functions: Any, bounds: bool, arguments: Any, numbers: Any) -> Any:
    found = road(*functions, *arguments, *numbers)
    return [(v, b() if bounds else None) for v, b in found] if isinstance(found[0], tuple) else found


def _expected(road: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function of `base`, of `count` functions, compiled once for each of them whatever program asks."""

    def compiled(*given: Any) -> Any:
        functions, rest = given[:count], given[count:]
        numbers = tuple(a for a in rest if isinstance(a, tuple))
        if any(np.ndim(n) for own in numbers for n in own):
            assert all(np.ndim(n) == 0 for own in numbers for n in own), "numbers are of one call"
        shape, blocks = _blocks([np.asarray(a) for a in rest if not isinstance(a, tuple)], AT_ONCE)
        cut = list(blocks)
        run = lambda bounds: _joined([_expectation(road, functions, bounds, block, numbers) for block in cut], shape)
        found = run(False)
        if isinstance(found, list):
            return tuple((value, lambda k=k: run(True)[k][1]) for k, (value, _) in enumerate(found))
        return found

    return compiled


@partial(jax.jit, static_argnums=(0, 1, 2))
def _several(road: Any, functions: Any, bounds: bool, cov: Any, numbers: Any) -> Any:
    return road(*functions, cov, numbers, bounds=bounds)


def _several_expected(road: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same for expectations over several Gaussians, whose covariances are matrices."""

    def compiled(*given: Any, bounds: bool) -> Any:
        functions, (covs, numbers) = given[:count], given[count:]
        leaves, tree = jax.tree.flatten(covs)
        shape = np.broadcast_shapes(*(a.shape[:-2] for a in leaves))
        flat = [np.broadcast_to(a, (*shape, *a.shape[-2:])).reshape(-1, *a.shape[-2:]) for a in leaves]
        padded = [np.pad(a, ((0, -len(a) % FEW), (0, 0), (0, 0)), mode="edge") for a in flat]
        blocks = zip(*(a.reshape(-1, FEW, *a.shape[1:]) for a in padded))
        return _joined([_several(road, functions, bounds, tree.unflatten(b), tuple(numbers)) for b in blocks], shape)

    return compiled


@partial(jax.jit, static_argnums=0)
def _pointwise(fn: Function, arguments: Any, numbers: Any) -> Any:
    at = lambda *coordinate: jnp.asarray(fn(*coordinate, numbers=numbers), float)
    return jax.vmap(at)(*arguments)


@partial(jax.jit, static_argnums=0)
def _whole(fn: Function, arguments: Any, numbers: Any) -> Any:
    return _plain(fn, *arguments, numbers=numbers)


_plain = Function.__call__


def _function(self: Function, *args: Any, numbers: Numbers = ()) -> Any:
    """A function of whole arrays, compiled where they are NumPy's."""
    if args and all(isinstance(a, np.ndarray | np.generic) for a in args):
        return array(_whole(self, args, numbers))
    return _plain(self, *args, numbers=numbers)


def _at_points(self: Any, fn: Any, numbers: Any, vectors: Any, scalars: Any, over: Any) -> Any:
    assert over is None, "functions over sites are not among random programs"
    arguments = [self.values[v] for v in vectors] + [self.scalar(s)[..., None] for s in scalars]
    shape, blocks = _blocks(arguments, POINTS)
    values = tuple(self.number(n) for n in numbers)
    return _joined([_pointwise(fn, block, values) for block in blocks], shape)


@contextmanager
def _changed(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        system.moments.cache_clear()  # plans are made of what they are made with
        stack.callback(system.moments.cache_clear)
        yield


def _on_numpy() -> list[tuple[Any, str, Any]]:
    """What makes the rules of moments NumPy's."""
    uses_numpy = (
        assembly,
        evaluation,
        stripes,
        tiles,
        buffers,
        moments,
        rules,
        integrals,
        joints,
        batch,
        system,
        linear,
        kernel,
    )
    uses_jax = (moments, rules, integrals, joints, system)
    return [
        *((module, "jnp", NUMPY) for module in uses_numpy),
        (settling, "curving", lambda *_: None),  # curves are for many inputs
        *((module, "jax", _Jax()) for module in uses_jax),
        (integrals, "mapped", _map),
        (joints, "mapped", _map),
        (batch, "mapped", _map),
        (moments, "whole", lambda always, fn, operand, like: fn(operand)),
    ]


def uncompiled() -> list[tuple[Any, str, Any]]:
    """Stripes of one block, as many inputs as a random program is given, and no compilation to share."""
    same = [(stripes, name, inspect.unwrap(getattr(stripes, name))) for name in ("panel", "stripe")]
    return [
        *same,
        (stripes, "shape", lambda m: stripes.Shape(2, 2)),
        *((module, "jax", _Host()) for module in (evaluation, tiles)),
    ]


def rules_on_numpy() -> Any:
    """A context in which rules of moments are NumPy, the expectations that they call what they were."""
    return _changed(_on_numpy())


@contextmanager
def eager() -> Iterator[None]:
    """In the block programs are evaluated by NumPy; not under another transformation, nor for bounds of errors."""
    shim = _Jax()
    one = {"expect_slope": 2, "expect_error": 2, "expect_one_slope": 2, "expect_one_error": 2, "mean": 1}
    several = {"joint_expectation": 2, "crossing": 3}
    given = kernel.batch
    changes: list[tuple[Any, str, Any]] = [
        *_on_numpy(),
        *((module, "jnp", NUMPY) for module in (evaluator, particles, products, spaces, roads, exact, decomposition)),
        *((module, "jax", shim) for module in (evaluator, particles, products, spaces, roads, exact)),
        *((base, name, _expected(getattr(base, name), count)) for name, count in one.items()),
        *((joints, name, _several_expected(getattr(joints, name), count)) for name, count in several.items()),
        (products, "_substituted", _substituted),
        (plan, "tabulated", lambda *_: False),  # tables are for many inputs
        *uncompiled(),
        (families, "_grown", inspect.unwrap(families._grown)),  # it takes its factor from `products`
        (limits, "expectations", inspect.unwrap(roads.expectations)),
        (exact, "_run", inspect.unwrap(exact._run)),
        (kernel, "batch", lambda *args: array(given(*args))),
        (evaluator.Evaluator, "pointwise", _at_points),
        (Function, "__call__", _function),
    ]
    with _changed(changes):
        yield
