"""Loops whose bodies keep their own derivative rules, so that reverse mode goes over reverse mode.

JAX partially evaluates the body of a loop when it is differentiated (to hoist what does not change), and then drops the
rules of `jax.custom_jvp` in it, on the assumption that nobody differentiates once more. The quadratures here loop until
they are done, which only their rules can differentiate. A conditional whose index is not known is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def whole(always: jax.Array, fn: Callable[[Any], Any], operand: Any, like: Any) -> Any:
    """fn(operand), kept in one piece inside a loop.

    **Arguments:** always: true, and depends on the loop's own items; like: what has the result's shapes and dtypes.
    """

    def never(_: Any) -> Any:
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)

    return jax.lax.cond(always, fn, never, operand)


def mapped(fn: Callable[[Any], Any], items: Any) -> Any:
    """`jax.lax.map` over the leading axis of items; one item goes without a loop."""
    count = jax.tree.leaves(items)[0].shape[0]
    first = jax.tree.map(lambda a: a[0], items)
    if count == 1:
        return jax.tree.map(lambda a: a[None], fn(first))
    like = jax.eval_shape(fn, first)
    return jax.lax.map(lambda item: whole(item[0] >= 0, fn, item[1], like), (jnp.arange(count), items))
