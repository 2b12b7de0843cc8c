"""Two ways to a block of the NTK that need only `jax.vjp` and `jax.jvp`: Jacobian contraction and NTK-vector products.

A way is (prepare, contract): `prepare` turns a block of examples into what either side of the kernel needs of it,
`contract` turns two prepared blocks, of a and b examples, into the terms (a, b, E, K, K) of the kernel, one for each
parameter (of NTK-vector products: their sum). The outputs of an example are (K kept, E diagonal, T traced).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from tensorprog.functions.jaxprs import pushforward

Sizes = tuple[int, int, int]  # outputs kept on both sides; alike on both sides; alike, and summed
Outputs = Callable[[list[Array], PyTree], Array]  # (theta, one example) -> (K, E, T)
Way = tuple[Callable[[PyTree], Any], Callable[[Any, Any], list[Array]]]


def by_jacobian(outputs: Outputs, theta: list[Array], lr: list[Any], sizes: Sizes) -> Way:
    """Derivatives (a, K, E, T, p) of each parameter, then Σ_{t,p}; one parameter after another."""

    def jacobian(x: PyTree) -> list[Array]:
        y, pull = jax.vjp(lambda theta: outputs(theta, x), theta)
        if math.prod(sizes) == 1:
            return [row.reshape(*sizes, -1) for row in pull(jnp.ones_like(y))[0]]
        rows = jax.vmap(lambda e: pull(e)[0])(basis(sizes, y.dtype))
        return [row.reshape(*sizes, -1) for row in rows]

    def contract(left: list[Array], right: list[Array]) -> list[Array]:
        return [
            by_rows(scaled(a, m, leaf.shape), b) / sizes[2]
            for a, b, m, leaf in zip(left, right, lr, theta, strict=True)
        ]

    return jax.vmap(jacobian), contract


def by_rows(left: Float[Array, "a K E T p"], right: Float[Array, "b K E T p"]) -> Float[Array, "a b E K K"]:
    return einsum("aketp,bletp->abekl", left, right)


def by_ntvp(outputs: Outputs, theta: list[Array], lr: list[Any], sizes: Sizes) -> Way:
    """J (lr · Jᵀe) for each basis vector e of the outputs: one direction of the parameters an example, no Jacobian."""

    def contract(left: PyTree, right: PyTree) -> list[Array]:
        def column(e: Array) -> Array:
            def of_example(x: PyTree) -> Array:
                _, pull = jax.vjp(lambda theta: outputs(theta, x), theta)
                direction = directed(pull(e)[0], theta, lr)
                push = lambda x: pushforward(lambda theta: outputs(theta, x), (theta,), (direction,))[1]
                return jnp.sum(jax.vmap(push)(left) * e.sum(0), axis=(-1, -2))  # of all ē, t̄ those that e has

            return jax.vmap(of_example)(right)

        dtype = jax.eval_shape(outputs, theta, jax.tree.map(lambda leaf: leaf[0], right)).dtype
        columns = jax.lax.map(jax.checkpoint(column, prevent_cse=False), basis(sizes, dtype))  # (K·E·T, b, a, K)
        columns = columns.reshape(*sizes, *columns.shape[1:]).mean(2)  # (K̄, E, b, a, K)
        return [columns.transpose(3, 2, 1, 4, 0)]

    return lambda x: x, contract


def directed(gradient: list[Array], theta: list[Array], lr: list[Any]) -> list[Array]:
    """lr · gradient, a direction of the parameters."""
    return [
        scaled(g.reshape(-1), m, g.shape).reshape(g.shape).astype(leaf.dtype)
        for g, m, leaf in zip(gradient, lr, theta, strict=True)
    ]


def basis(sizes: Sizes, dtype: Any) -> Float[Array, "KET K E T"]:
    return jnp.eye(math.prod(sizes), dtype=dtype).reshape(-1, *sizes)


def scaled(flat: Float[Array, "*a p"], multiplier: Any, shape: tuple[int, ...]) -> Float[Array, "*a p"]:
    return flat if multiplier is None else flat * jnp.broadcast_to(multiplier, shape).reshape(-1).astype(flat.dtype)


def einsum(subscripts: str, left: Array, right: Array) -> Array:
    """In the wider of both dtypes, at least float32. Operands are cast to it, or rather their dtypes are: of two weakly
    typed float64 arrays `jnp.result_type` with float32 is float32."""
    dtype = jnp.promote_types(left.dtype, right.dtype)
    left, right = (jax.lax.convert_element_type(a, dtype) for a in (left, right))
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=wide)
