"""The empirical NTK times a vector: one backward pass and one forward derivative, no kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from tensorprog.empirical.arguments import (
    at_one,
    batch_limit,
    batches,
    described,
    function_of,
    multipliers_of,
    output_shape,
    partition,
    warn_of_batches,
)
from tensorprog.empirical.blocks import examples, length
from tensorprog.empirical.compiled import run
from tensorprog.empirical.contraction import directed
from tensorprog.empirical.programs import OneByOne, data_of, each_output, learning_rates
from tensorprog.functions.jaxprs import pushforward
from tensorprog.program import Program

#: Examples that go through the network at a time, where `batch_size` does not say otherwise.
BATCH = 128


def ntk_vector_product(
    f: Callable[[Any, Any], Array] | Program,
    params: PyTree,
    x1: PyTree,
    v: Float[Array, "N2 ..."],
    x2: PyTree | None = None,
    *,
    lr: PyTree | None = None,
    batch_size: int | None = None,
) -> Float[Array, "N1 ..."]:
    r"""The full neural tangent kernel of `f` times `v`, without the kernel.

    (Θ v)[i, s] = Σ_j Σ_s̄ Θ[i, j, s, s̄] v[j, s̄] = J(x1_i) (lr · Σ_j J(x2_j)ᵀ v_j),   J = ∂f/∂θ

    in the time of a step of training on `x2` and a forward derivative on `x1`: for iterative solvers, and for kernels
    of more examples than fit into memory.

    **Arguments:**

    - `f`, `params`, `x1`, `x2`, `lr`: as in `ntk`; without `x2` the kernel is that of `x1` with itself.
    - `v`: (N2, *O), of the shape of f(params, x2).
    - `batch_size`: the most examples that go through the network at a time; memory is that of their activations.

    **Returns:** (N1, *O).

    **Raises:** `TypeError` and `ValueError`, naming the argument and what to pass.

    ```pycon
    >>> f = lambda params, x: x @ params["w"] + params["b"]          # (N, 2) -> (N, 3)
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    >>> ntk_vector_product(f, params, jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 2.0]]))    # (⟨x, x⟩ + 1) v
    Array([[ 6.,  0., 12.]], dtype=float...)

    ```
    """
    if isinstance(f, Program):
        first, second = data_of(f, x1, x2)
        params = dict(params)
        rates = learning_rates(f, params) if lr is None else lr
        vs = iter([v] if f.structure.single else v)
        one = lambda g, type_: ntk_vector_product(g, params, first, next(vs), second, lr=rates, batch_size=batch_size)
        return each_output(f, one)
    f = function_of(f)
    x1, x2 = batches(x1, x2)
    theta, merge = partition(params)
    multipliers = multipliers_of(lr, params)
    shape = output_shape(lambda x: f(params, x), x1)
    look = (lambda: None) if isinstance(f, OneByOne) else lambda: warn_of_batches(f, params, x1)
    v = _vector(v, (length(x1 if x2 is None else x2), *shape))
    limit = batch_limit(batch_size, BATCH)

    def outputs(theta: list[Array], x: PyTree) -> Array:
        return jax.vmap(lambda one: at_one(f, merge(theta), one))(x)

    def product(theta: list[Array], x1: PyTree, x2: PyTree, v: Array) -> Array:
        def pulled(total: list[Array], block: tuple[PyTree, Array, Array]) -> tuple[list[Array], None]:
            x, v, real = block
            y, pull = jax.vjp(lambda theta: outputs(theta, x), theta)
            v = v.astype(y.dtype) * real.astype(y.dtype).reshape(-1, *[1] * len(shape))
            return jax.tree.map(jnp.add, total, pull(v)[0]), None

        def pushed(x: PyTree) -> Array:
            return pushforward(lambda theta: outputs(theta, x), (theta,), (direction,))[1]

        n = length(v)
        blocks = examples((x2, v), limit)
        real = np.arange(length(blocks) * blocks[1].shape[1]).reshape(blocks[1].shape[:2]) < n  # the rest are copies
        zeros = [jnp.zeros_like(leaf) for leaf in theta]
        total, _ = jax.lax.scan(jax.checkpoint(pulled), zeros, (*blocks, jnp.asarray(real)))
        direction = directed(total, theta, multipliers)
        out = jax.lax.map(jax.checkpoint(pushed), examples(x1, limit))
        return out.reshape(-1, *shape)[: length(x1)]

    with jax.default_matmul_precision("highest"):
        return run(product, theta, x1, x1 if x2 is None else x2, v, first=look)


def _vector(v: Any, shape: tuple[int, ...]) -> Array:
    try:
        v = jnp.asarray(v)
    except (TypeError, ValueError) as error:
        raise TypeError(f"v must be an array of shape {shape}, got {described(v)}.") from error
    if v.shape != shape:
        raise ValueError(f"v must have the shape of f's outputs at x2 (x1 without x2), {shape}, got {v.shape}.")
    if not jnp.issubdtype(v.dtype, jnp.floating):
        v = v.astype(float)
    return v
