"""Callables made from a function by the rules of differentiation: equal when built twice, so that jit caches hit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

_FEW = 16  # entries of an array up to which derivatives in it go forward, which every function can


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
class Entries:
    """z -> d fn / d numbers[index] of an array of `size` entries, all in one row."""

    fn: Callable
    index: int
    size: int

    def __call__(self, z, *numbers):
        def of(number):
            return self.fn(z, *numbers[: self.index], number, *numbers[self.index + 1 :])

        jacobian = jax.jacfwd if self.size <= _FEW else jax.jacrev
        return jacobian(of)(numbers[self.index]).reshape(-1)


@dataclass(frozen=True)
class Repeated:
    """z -> fn(z), each entry `size` times in a row."""

    fn: Callable
    size: int

    def __call__(self, z, *numbers):
        return jnp.repeat(jnp.reshape(self.fn(z, *numbers), -1), self.size)


def width(fn: Callable) -> int:
    """How many entries a function has: one, but for derivatives in arrays."""
    match fn:
        case Slope(fn=inner) | Times(fn=inner) | Partial(fn=inner) | Shifted(fn=inner) | Product(first=inner):
            return width(inner)
        case Entries(fn=inner, size=size) | Repeated(fn=inner, size=size):
            return size * width(inner)
        case _:
            return 1


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
        case Slope(fn=inner) | Times(fn=inner) | Partial(fn=inner) | Entries(fn=inner) | Repeated(fn=inner):
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
    while isinstance(fn, Slope | Times | Partial | Entries | Repeated):
        fn = fn.fn
    return fn
