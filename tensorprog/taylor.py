"""A network to first or higher order in its parameters: `linearize`, `taylor_expand`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tensorprog.empirical.arguments import partition
from tensorprog.errors import bad_argument
from tensorprog.functions.jaxprs import pushforward
from tensorprog.interpret.finite import apply
from tensorprog.program import Program


def linearize(f: Callable[..., Any] | Program, params: PyTree) -> Callable[..., Any]:
    """A network to first order around `params`: the model whose NTK never changes.

    lin(θ, x) = f(θ_0, x) + ∂f/∂θ(θ_0, x) · (θ − θ_0)

    **Arguments:**

    - `f`: any JAX function f(params, x) -> outputs, an array or a pytree of arrays; or a Program. Further arguments
      are handed on.
    - `params`: θ_0, any pytree. Arrays of floating dtype are the parameters; every other leaf stays as it is in θ_0.

    **Returns:** lin(params, x), of the same signature as `f`, for parameters of the same structure. One forward-mode
    pass a call; works under `jit`, `grad`, `vmap`, so it trains with optax as `f` does.

    **Raises:** `ProgramError` when `f` is no function, and for parameters of another structure or shape.

    Source: Lee et al. 2019 (1902.06720), eq. 7.

    ```python
    >>> import jax.numpy as jnp, tensorprog as tp
    >>> f = lambda params, x: (params["w"] * x) ** 2
    >>> lin = tp.linearize(f, {"w": jnp.array(1.0)})
    >>> float(lin({"w": jnp.array(1.5)}, jnp.array(1.0)))       # 1 + 2 · 0.5
    2.0

    ```
    """
    return taylor_expand(f, params, 1)


def taylor_expand(f: Callable[..., Any] | Program, params: PyTree, degree: int) -> Callable[..., Any]:
    """A network to order `degree` in its parameters around `params`.

    f(θ_0, x) + Σ_{k ≤ degree} (1/k!) ∂ᵏf/∂θᵏ(θ_0, x) [θ − θ_0, …, θ − θ_0]

    Arguments, result and errors as for `linearize`; `degree` 0 is f at θ_0, whatever the parameters. Derivatives are
    nested forward passes, so a call costs about 2^degree times one of `f`.

    **Raises:** `ProgramError` where f is no function, `degree` no whole number of at least 0, and as `linearize`.
    """
    if isinstance(f, Program):
        program = f
        f = lambda params, x=None: apply(program, params, x)
    if not callable(f):
        raise bad_argument("f", f"{f!r} is no function", "give f(params, x) -> outputs, or a Program")
    if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or degree < 0:
        raise bad_argument("degree", f"{degree!r} is no whole number of at least 0", "give 1 for the linearisation")
    theta, merge = partition(params)
    function: Callable[..., Any] = f

    def expanded(params_: PyTree, *args: Any, **keywords: Any) -> Any:
        steps = [new - old for new, old in zip(_like(params, params_), theta, strict=True)]

        def derivatives(order: int, at: list[jax.Array]) -> tuple[Any, ...]:
            """f and its derivatives along `steps` up to an order, by one forward pass of those below it."""
            if order == 0:
                return (function(merge(at), *args, **keywords),)
            values, slopes = pushforward(lambda at: derivatives(order - 1, at), (at,), (steps,))
            return (*values, slopes[-1])

        def total(*terms: jax.Array) -> jax.Array:
            if not jnp.issubdtype(terms[0].dtype, jnp.inexact):
                return terms[0]  # a count, say: it has no derivatives
            return reduce(add, (term / math.factorial(k) for k, term in enumerate(terms)))

        return jax.tree.map(total, *derivatives(int(degree), theta))

    return expanded


def _like(params: PyTree, new: PyTree) -> list[jax.Array]:
    """The floating arrays of new parameters, in the dtypes of the old ones."""
    old_structure, structure = jax.tree.structure(params), jax.tree.structure(new)
    if structure != old_structure:
        raise bad_argument(
            "params", f"have the structure {structure}, and the expansion is around {old_structure}",
            "give parameters as f takes them",
        )  # fmt: skip
    found = []
    for old, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        if not (isinstance(old, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(old.dtype, jnp.floating)):
            continue
        if jnp.shape(leaf) != old.shape:
            raise bad_argument(
                "params", f"have a leaf of shape {jnp.shape(leaf)}, and the expansion's has {old.shape}",
                "give parameters as f takes them",
            )  # fmt: skip
        found.append(jnp.asarray(leaf, old.dtype))
    return found
