"""Compiled functions that forget: what is compiled for a static argument is given up when others were used since.

`jax.jit` keeps what it compiled for each value of a static argument as long as the process lives. Where these are
programs and functions, of which a session meets hundreds, that is memory without bound, and Linux allows a process some
65 000 pieces of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import jax

KEPT = 64
"""Values of the static arguments for which a function stays compiled, the last ones that were used."""


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` with these arguments static, of bounded memory."""

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(fn)

        @lru_cache(maxsize=KEPT)
        def made(values: tuple[Any, ...]) -> Callable[..., Any]:
            own = dict(zip(static, values, strict=True))
            run = lambda moving: fn(**own, **moving)
            run.__name__ = fn.__name__
            return jax.jit(run)

        @wraps(fn)
        def call(*arguments: Any, **named: Any) -> Any:
            given = signature.bind(*arguments, **named)
            given.apply_defaults()
            moving = {name: value for name, value in given.arguments.items() if name not in static}
            return made(tuple(given.arguments[name] for name in static))(moving)

        return call

    return decorate
