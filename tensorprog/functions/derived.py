"""Callables made from a function by the rules of differentiation: equal when built twice, so that jit caches hit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Slope:
    """z -> d fn / dz."""

    fn: Callable

    def __call__(self, z, *numbers):
        return jax.jvp(lambda at: self.fn(at, *numbers), (z,), (jnp.ones_like(z),))[1]


@dataclass(frozen=True)
class Times:
    """z -> z fn(z)."""

    fn: Callable

    def __call__(self, z, *numbers):
        return z * self.fn(z, *numbers)


@dataclass(frozen=True)
class Partial:
    """z -> d fn / d numbers[index]."""

    fn: Callable
    index: int

    def __call__(self, z, *numbers):
        def of(number):
            return self.fn(z, *numbers[: self.index], number, *numbers[self.index + 1 :])

        return jax.jvp(of, (numbers[self.index],), (jnp.ones_like(numbers[self.index]),))[1]


@dataclass(frozen=True)
class Product:
    """first(z, *numbers[:count]) * second(z, *numbers[count:])."""

    first: Callable
    count: int
    second: Callable

    def __call__(self, z, *numbers):
        return self.first(z, *numbers[: self.count]) * self.second(z, *numbers[self.count :])


@dataclass(frozen=True)
class Shifted:
    """fn(z + m, *numbers) of (z, *numbers, m)."""

    fn: Callable

    def __call__(self, z, *numbers):
        return self.fn(z + numbers[-1], *numbers[:-1])


Origin = tuple[Callable, tuple, tuple]
"""A function that others were made from, its numbers, and how far its argument is shifted: it has their kinks."""


def origins(fn: Callable, numbers: tuple, shift: tuple = ()) -> Iterator[Origin]:
    """The functions that a derived one was made from."""
    match fn:
        case Slope(fn=inner) | Times(fn=inner) | Partial(fn=inner):
            yield from origins(inner, numbers, shift)
        case Product(first=first, count=count, second=second):
            yield from origins(first, numbers[:count], shift)
            yield from origins(second, numbers[count:], shift)
        case Shifted(fn=inner):
            yield from origins(inner, numbers[:-1], (*shift, numbers[-1]))
        case _:
            yield fn, numbers, shift


def origin(fn: Callable) -> Callable:
    """The function that a derivative was taken of: it has the same numbers, and all the jumps."""
    while isinstance(fn, Slope | Times | Partial):
        fn = fn.fn
    return fn
