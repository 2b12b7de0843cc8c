"""The two ways to a block of the NTK: contraction of Jacobians, and NTK-vector products.

A way is (prepare, contract): `prepare` turns a block of examples into what either side of the kernel needs of it,
`contract` turns two prepared blocks, of a and b examples, into the block (a, b, K, K) of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Outputs = Callable[[list[Array], PyTree], Array]  # (theta, one example) -> (K kept, T traced)
Way = tuple[Callable[[PyTree], Any], Callable[[Any, Any], Array]]


def by_jacobian(outputs: Outputs, theta: list[Array], lr: list[Any], sizes: tuple[int, int]) -> Way:
    """Derivatives (a, K, T, p) of each parameter, then Σ_{t,p}; one parameter after another, never all in one array."""

    def jacobian(x: PyTree) -> list[Array]:
        y, pull = jax.vjp(lambda theta: outputs(theta, x), theta)
        if math.prod(sizes) == 1:
            return [row.reshape(1, 1, -1) for row in pull(jnp.ones_like(y))[0]]
        rows = jax.vmap(lambda e: pull(e)[0])(_basis(sizes, y.dtype))
        return [row.reshape(*sizes, -1) for row in rows]

    def contract(left: list[Array], right: list[Array]) -> Array:
        terms = (
            einsum("aktp,bltp->abkl", _scaled(a, m, leaf.shape), b)
            for a, b, m, leaf in zip(left, right, lr, theta, strict=True)
        )
        return reduce(add, terms) / sizes[1]

    return jax.vmap(jacobian), contract


def by_ntvp(outputs: Outputs, theta: list[Array], lr: list[Any], sizes: tuple[int, int]) -> Way:
    """J (lr · Jᵀe) for each basis vector e of the outputs: one direction of the parameters an example, no Jacobian."""

    def contract(left: PyTree, right: PyTree) -> Array:
        def column(e: Array) -> Array:
            def of_example(x: PyTree) -> Array:
                _, pull = jax.vjp(lambda theta: outputs(theta, x), theta)
                direction = [
                    _scaled(g.reshape(-1), m, g.shape).reshape(g.shape).astype(leaf.dtype)
                    for g, m, leaf in zip(pull(e)[0], lr, theta, strict=True)
                ]
                push = lambda x: jax.jvp(lambda theta: outputs(theta, x), (theta,), (direction,))[1]
                return jnp.sum(jax.vmap(push)(left) * e.sum(0), axis=-1)  # of all t̄ the one that e has

            return jax.vmap(of_example)(right)

        dtype = jax.eval_shape(outputs, theta, jax.tree.map(lambda leaf: leaf[0], right)).dtype
        columns = jax.lax.map(jax.checkpoint(column, prevent_cse=False), _basis(sizes, dtype))  # (K·T, b, a, K)
        return columns.reshape(*sizes, *columns.shape[1:]).mean(1).transpose(2, 1, 3, 0)

    return lambda x: x, contract


def _basis(sizes: tuple[int, int], dtype: Any) -> Float[Array, "KT K T"]:
    return jnp.eye(math.prod(sizes), dtype=dtype).reshape(-1, *sizes)


def _scaled(flat: Float[Array, "*a p"], multiplier: Any, shape: tuple[int, ...]) -> Float[Array, "*a p"]:
    return flat if multiplier is None else flat * jnp.broadcast_to(multiplier, shape).reshape(-1).astype(flat.dtype)


def einsum(subscripts: str, left: Array, right: Array) -> Array:
    dtype = jnp.result_type(left, right, jnp.float32)  # half precision is summed in float32
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype)
