"""Compiled functions forget what was not used for long."""

import jax
import jax.numpy as jnp

from tensorprog import compiling


def test_static_arguments_and_shapes_are_compiled_for_once() -> None:
    traced = []

    @compiling.compiled("power", "shift")
    def powered(power: int, x: jax.Array, *, shift: float = 0.0) -> jax.Array:
        """x to a power."""
        traced.append((power, shift))
        return (x + shift) ** power

    x = jnp.arange(3.0)
    for _ in range(2):
        assert (powered(2, x) == x**2).all()
        assert (powered(2, x, shift=1.0) == (x + 1) ** 2).all()
        assert (powered(power=3, x=x) == x**3).all()
    assert traced == [(2, 0.0), (2, 1.0), (3, 0.0)]
    assert powered.__name__ == "powered"
    assert powered.__doc__ == "x to a power."
    assert jax.grad(lambda t: powered(3, t))(2.0) == 12.0


def test_what_was_not_used_for_long_is_given_up() -> None:
    traced = []

    @compiling.compiled("k")
    def add(k: int, x: jax.Array) -> jax.Array:
        traced.append(k)
        return x + k

    for k in range(compiling.KEPT + 1):
        add(k, 1.0)
    add(compiling.KEPT, 1.0)
    assert traced == list(range(compiling.KEPT + 1))
    add(0, 1.0)
    assert traced[-1] == 0
