"""Programs evaluated without compiling them: for many small programs, each of which is seen once.

Under `jax.disable_jit()` a program's equations run as they stand. What all programs share stays compiled: the
expectations of functions of Gaussians, for a fixed number of arguments at a time, one compilation for each function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from tensorprog.functions import base
from tensorprog.interpret import integrals, plan
from tensorprog.program import is_concrete

AT_ONCE, FEW = 64, 4
Numbers = tuple[Any, ...]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _call(road: Callable[..., Any], functions: Any, bounds: bool, arguments: Any, numbers: Any) -> Any:
    found = road(*functions, *arguments, *numbers)
    if not isinstance(found[0], tuple):
        return found
    return [(value, bound() if bounds else None) for value, bound in found]


def _shared(road: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function of `base`, of `count` functions, compiled once for each of them whatever program asks."""

    def compiled(*given: Any) -> Any:
        functions, rest = given[:count], given[count:]
        arguments = [jnp.asarray(a) for a in rest if not isinstance(a, tuple)]
        numbers = tuple(a for a in rest if isinstance(a, tuple))
        if not all(map(is_concrete, jax.tree.leaves((arguments, numbers)))):
            return road(*given)
        shape = jnp.broadcast_shapes(*(a.shape for a in arguments))
        flat = [jnp.broadcast_to(a, shape).reshape(-1) for a in arguments]
        size = flat[0].size
        padded = [jnp.pad(a, (0, -size % AT_ONCE), mode="edge").reshape(-1, AT_ONCE) for a in flat]

        def run(bounds: bool) -> Any:
            with jax.disable_jit(False):
                parts = [_call(road, functions, bounds, block, numbers) for block in zip(*padded, strict=True)]
            return jax.tree.map(lambda *a: jnp.concatenate(a)[:size].reshape(shape), *parts)

        found = run(False)
        if isinstance(found, list):
            return tuple((value, lambda k=k: run(True)[k][1]) for k, (value, _) in enumerate(found))
        return found

    return compiled


@partial(jax.jit, static_argnums=(0, 1))
def _call_joint(road: Callable[..., Any], functions: Any, cov: Any, numbers: Any) -> Any:
    return road(*functions, cov, numbers)


def _joint(road: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same for expectations over several Gaussians, whose covariances are matrices."""

    def compiled(*given: Any) -> Any:
        functions, (covs, numbers) = given[:count], given[count:]
        if not all(map(is_concrete, jax.tree.leaves((covs, numbers)))):
            return road(*given)
        leaves, tree = jax.tree.flatten(covs)
        shape = jnp.broadcast_shapes(*(a.shape[:-2] for a in leaves))
        flat = [jnp.broadcast_to(a, (*shape, *a.shape[-2:])).reshape(-1, *a.shape[-2:]) for a in leaves]
        size = len(flat[0])
        padded = [jnp.pad(a, ((0, -size % FEW), (0, 0), (0, 0)), mode="edge") for a in flat]
        blocks = zip(*(a.reshape(-1, FEW, *a.shape[1:]) for a in padded), strict=True)
        with jax.disable_jit(False):
            parts = [_call_joint(road, functions, tree.unflatten(block), tuple(numbers)) for block in blocks]
        return jax.tree.map(lambda *a: jnp.concatenate(a)[:size].reshape(shape), *parts)

    return compiled


@contextmanager
def eager() -> Iterator[None]:
    """Everything in the block runs without compiling whole programs."""
    doors = {"expect_slope": 2, "expect_error": 2, "expect_one_slope": 2, "expect_one_error": 2, "mean": 1,
             "mean_error": 1}  # fmt: skip
    with ExitStack() as stack:
        for name, count in doors.items():
            stack.enter_context(mock.patch.object(base, name, _shared(getattr(base, name), count)))
        joint, crossing = _joint(integrals.joint_expectation, 2), _joint(integrals.crossing, 3)
        stack.enter_context(mock.patch.object(integrals, "joint_expectation", joint))
        stack.enter_context(mock.patch.object(integrals, "crossing", crossing))
        # What is known of one input by itself would be tabulated once a program: here nothing is.
        stack.enter_context(mock.patch.object(plan, "tabulated", lambda *_: False))
        stack.enter_context(jax.disable_jit())
        yield
