"""Derivatives of a Nonlin's function, as functions that Nonlins and Moments of a backward pass can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.functions.frozen import Function, derived

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class Slope:
    """fn -> (args -> ∂fn/∂args[index]), by JAX."""

    index: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(_real(fn), argnums=self.index)


@dataclass(frozen=True)
class Pullback:
    """fn -> ((dy, *args) -> dy · ∂fn/∂args[index])."""

    index: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        slope = Slope(self.index)(fn)
        return lambda dy, *args: dy * slope(*args)


@dataclass(frozen=True)
class ArrayPullback:
    """The same for a function of whole arrays, `shape` in and `result` out; dy comes padded to `size` each axis.

    All arrays come and go in one shape, `size`, the larger of both along each axis: a Nonlin broadcasts what it reads.
    """

    index: int
    shape: tuple[int, ...]
    result: tuple[int, ...]
    size: tuple[int, ...]

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def pulled(dy: jax.Array, *args: jax.Array) -> jax.Array:
            inside = tuple(slice(0, s) for s in self.shape)
            own = [a[inside] for a in args]
            seen = dy[tuple(slice(0, s) for s in self.result)] if self.result else dy[(0,) * dy.ndim]
            (out,) = _vjp(fn, own, self.index)(seen.astype(own[self.index].dtype))
            return jnp.pad(out, [(0, big - s) for big, s in zip(self.size, self.shape, strict=True)])

        return pulled


@dataclass(frozen=True)
class ScalarPullback:
    """fn -> ((cotangent, *args) -> the cotangent of args[index]), for a function of whole arrays."""

    index: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def pulled(dy: jax.Array, *args: jax.Array) -> jax.Array:
            return _vjp(fn, args, self.index)(dy)[0]

        return pulled


@dataclass(frozen=True)
class Batched:
    """fn -> fn mapped over the leading axis of the arguments that have one."""

    mapped: tuple[bool, ...]

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(fn, in_axes=tuple(0 if m else None for m in self.mapped))


def _vjp(fn: Callable[..., Any], args: Sequence[jax.Array], index: int) -> Callable[..., Any]:
    """The reverse pass of one argument."""
    return jax.vjp(lambda at: _real(fn)(*args[:index], at, *args[index + 1 :]), args[index])[1]


def _real(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn with a result of its arguments' dtype: comparisons and integers have the derivative 0."""
    return lambda *args: jnp.asarray(fn(*args)).astype(jnp.result_type(*args))


def _primed(fn: Function, index: int, count: int) -> str:
    """tanh′, or ∂₂f for the second of several arguments."""
    return f"{fn.name}′" if count == 1 else f"∂{index + 1}".translate(_SUBSCRIPTS) + f" {fn.name}"


def slope(fn: Function, index: int, count: int) -> Function:
    """∂fn/∂args[index] of a function of `count` coordinates."""
    return derived(Slope(index), fn, _primed(fn, index, count))


def pullback(fn: Function, index: int, count: int) -> Function:
    """(dy, *args) -> dy · ∂fn/∂args[index]."""
    return derived(Pullback(index), fn, _primed(fn, index, count))


def array_pullback(
    fn: Function, index: int, count: int, shape: tuple[int, ...], result: tuple[int, ...], size: tuple[int, ...]
) -> Function:
    """The pullback of a function of whole site axes."""
    return derived(ArrayPullback(index, shape, result, size), fn, _primed(fn, index, count))


def scalar_pullback(fn: Function, index: int, count: int) -> Function:
    """The pullback of a function of scalars' whole arrays."""
    return derived(ScalarPullback(index), fn, _primed(fn, index, count))


def batched(fn: Function, mapped: tuple[bool, ...]) -> Function:
    """A function of whole arrays, mapped over a leading axis."""
    return derived(Batched(mapped), fn, fn.name)


def is_pullback(fn: Function) -> bool:
    """Whether a Nonlin's function is dy · ∂f, which prints as dy ⊙ f′(…)."""
    return isinstance(getattr(fn.root, "make", None), Pullback | ArrayPullback)
