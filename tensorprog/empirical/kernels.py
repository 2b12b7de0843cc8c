"""`ntk` and `nngp` of a finite function: arguments in, kernel out; how is in the files beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from tensorprog.batch import batch
from tensorprog.empirical.arguments import (
    batch_limit,
    batches,
    described,
    function_of,
    multipliers_of,
    output_shape,
    partition,
    seeds_of,
    split_axes,
)
from tensorprog.empirical.blocks import blocked, length, mirror
from tensorprog.empirical.contraction import by_jacobian, by_ntvp, einsum
from tensorprog.empirical.cost import multiply_adds, prefers_jacobian
from tensorprog.empirical.programs import has_copies, learning_rates, outputs_of, readout_variances
from tensorprog.errors import bad_argument
from tensorprog.ir import VectorType
from tensorprog.program import Program

Method = Literal["auto", "jacobian", "ntvp"]

#: Bytes that the derivatives of one block of examples may take, where `batch_size` does not say otherwise.
MEMORY = 2**28

#: Examples whose outputs `nngp` computes at a time, where `batch_size` does not say otherwise.
FORWARD_BATCH = 256


def ntk(
    f: Callable[[Any, Any], Array] | Program,
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: int | Sequence[int] = -1,
    lr: PyTree | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "N1 N2 *S1_S2"]:
    r"""The neural tangent kernel of the finite function `f` at `params`.

    Θ[i, j, s, s̄] = (1/T) Σ_t Σ_p lr_p · ∂f(x1_i)[s, t]/∂θ_p · ∂f(x2_j)[s̄, t]/∂θ_p

    with t over the traced output axes (T values in all) and s over the others. With the default, a trace over the last
    axis divided by its size, this is what `tensorprog.ntk` is the limit of: outputs of a wide network are independent
    copies, and T of them estimate the same number.

    `f` is taken **one example at a time**, as f(params, x[None])[0] under `jax.vmap`: what it does across the examples
    of a batch (batch normalisation in training mode) is not seen.

    **Arguments:**

    - `f`: any JAX function, f(params, x) -> outputs of shape (N, *O), one floating array; or a Program, which is taken
      through `tensorprog.apply` (the default trace is over the rows of a readout, never over sites; several outputs
      give a tuple of kernels; without inputs `x1` is None and the kernel has no axes N1, N2, as in `tensorprog.ntk`).
    - `params`: any pytree. Arrays of floating dtype are the parameters; every other leaf (integers, Python numbers,
      functions, PRNG keys) is handed to `f` as it is.
    - `x1`, `x2`: pytrees of arrays with leading axis N1 and N2. Without `x2` the kernel is that of `x1` with itself,
      symmetric to the last bit: Θ[j, i, s̄, s] is a copy of Θ[i, j, s, s̄].
    - `trace_axes`: output axes (N not counted; negative ones from the end) to trace over. `-1`, the default, is the
      last one if there is any; outputs (N,) have none and give the plain kernel. `()` is the full kernel.
    - `lr`: multipliers of the parameters' terms, a pytree prefix of `params`: a number for all, or for each subtree.
      By default 1; for a Program its own, the numbers "W.lr".
    - `method`: `"jacobian"`, `"ntvp"`, or `"auto"`: the cheaper one by the rule of `cost.prefers_jacobian`. With F the
      multiply-adds of a forward pass for each parameter (1 in a dense net, more where weights are shared), K the kept
      outputs of an example and b the examples of a block, Jacobians are contracted if F·(b - 30) > K·b.
    - `batch_size`: the most examples of a block. Memory is that of their derivatives, batch_size · outputs · P numbers
      a side (`"ntvp"`: batch_size · P); by default as many as fit into `MEMORY` (`jax.vmap` over calls multiplies it).

    **Returns:** (N1, N2, *S, *S), S the output axes that are not traced.

    **Raises:** `TypeError` and `ValueError`, naming the argument and what to pass.

    Works under `jit`, `vmap` and `grad`. A call outside `jit` compiles for itself, since nobody can know whether `f`
    still is what it was; for many calls (seeds, steps) put `jax.jit` around: `jax.jit(lambda p: ntk(f, p, x))`.
    Products ask for full float32 precision, those in `f` that don't set their own included.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from tensorprog import empirical
    >>> f = lambda params, x: x @ params["w"] + params["b"]          # (N, 2) -> (N, 3)
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    >>> print(empirical.ntk(f, params, jnp.array([[1.0, 2.0], [0.0, 1.0]])))    # ⟨x, x̄⟩ + 1
    [[6. 3.]
     [3. 2.]]
    >>> empirical.ntk(f, params, jnp.ones((4, 2)), jnp.ones((5, 2)), trace_axes=()).shape
    (4, 5, 3, 3)

    ```
    """
    if isinstance(f, Program):
        return _ntk_of_program(f, params, x1, x2, trace_axes=trace_axes, lr=lr, method=method, batch_size=batch_size)
    f = function_of(f)
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not known: pass 'auto', 'jacobian' or 'ntvp'.")
    x1, x2 = batches(x1, x2)
    theta, merge = partition(params)
    multipliers = multipliers_of(lr, params)
    shape = output_shape(lambda x: f(params, x), x1)
    kept, traced = split_axes(shape, trace_axes)
    sizes = math.prod(shape[a] for a in kept), math.prod(shape[a] for a in traced)

    def outputs(theta: list[Array], x: PyTree) -> Array:
        y = f(merge(theta), jax.tree.map(lambda leaf: leaf[None], x))[0]
        return y.transpose(*kept, *traced).reshape(sizes)

    bytes_of_parameters = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in theta)
    # what the two methods hold of one example: all its derivatives, or one direction of the parameters
    held = {"jacobian": bytes_of_parameters * math.prod(sizes), "ntvp": bytes_of_parameters}
    limits = {name: batch_limit(batch_size, max(1, MEMORY // held[name])) for name in held}
    if method == "auto":
        block = min(limits["jacobian"], length(x1), length(x1 if x2 is None else x2))
        uses = multiply_adds(outputs, theta, jax.tree.map(lambda leaf: leaf[0], x1)) / sum(leaf.size for leaf in theta)
        method = "jacobian" if prefers_jacobian(block, uses, sizes[0]) else "ntvp"
    way = by_jacobian if method == "jacobian" else by_ntvp

    def kernel(theta: list[Array], x1: PyTree, x2: PyTree | None) -> Array:
        prepare, contract = way(outputs, theta, multipliers, sizes)
        return blocked(prepare, contract, x1, x2, limits[method])

    with jax.default_matmul_precision("highest"):
        flat = jax.jit(kernel)(theta, x1, x2)
    sites = tuple(shape[a] for a in kept)
    return flat.reshape(*flat.shape[:2], *sites, *sites)


def nngp(
    f: Callable[[Any, Any], Array] | Program,
    draw: Callable[[Array], PyTree] | PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    seeds: int | Sequence[int] = 32,
    batch_size: int | None = None,
) -> Float[Array, "N1 N2 *S1_S2"]:
    r"""The second moment of a random function's outputs, averaged over draws of its parameters.

    K[i, j, s, s̄] = (1/(T·S)) Σ_draws Σ_t f(x1_i)[s, t] · f(x2_j)[s̄, t],   t over the last output axis, if there is one

    which tends to the NNGP kernel as both width and number of draws grow; its error falls like 1/√(T·S) at any width.
    As in `ntk`, `f` is taken one example at a time.

    For a Program, `nngp(program, params, x1, x2)` takes one set of parameters and averages nothing: it is the
    second moment of the output given everything but the readout, Σ var·⟨h, h̄⟩/n over its weights plus the variance of
    its bias plus mean times mean (a constant that is added, a bias's mean), which tends to `tensorprog.nngp` with the
    width; for a wide vector it is ⟨h, h̄⟩/n.

    **Arguments:**

    - `f`: any JAX function, f(params, x) -> outputs of shape (N, *O); or a Program.
    - `draw`: draw(key) -> params, a traceable function of a JAX PRNG key: `model.init`, say. For a Program: params.
    - `x1`, `x2`: pytrees of arrays with leading axis N1 and N2; without `x2` the kernel is that of `x1`, symmetric to
      the last bit.
    - `seeds`: how many draws (seeds 0, 1, ...), or the seeds themselves.
    - `batch_size`: the most examples whose outputs are computed at a time.

    **Returns:** (N1, N2, *S, *S), S the output axes but the last.

    **Raises:** `TypeError` and `ValueError`, naming the argument and what to pass.
    """
    if isinstance(f, Program):
        return _nngp_of_program(f, draw, x1, x2, batch_size=batch_size)
    f = function_of(f)
    if not callable(draw):
        raise TypeError(
            f"draw must be a function draw(key) -> params, got {described(draw)}. For a plain function the kernel is"
            " an average over draws of the parameters, so one set of parameters is not enough."
        )
    x1, x2 = batches(x1, x2)
    limit = batch_limit(batch_size, FORWARD_BATCH)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds_of(seeds)))
    shape = output_shape(lambda x: f(draw(jax.random.key(0)), x), x1)
    kept, traced = split_axes(shape, -1)
    sizes = math.prod(shape[a] for a in kept), math.prod(shape[a] for a in traced)

    def gram(key: Array, x1: PyTree, x2: PyTree | None) -> Array:
        params = draw(key)

        def outputs(x: PyTree) -> Array:
            return f(params, jax.tree.map(lambda leaf: leaf[None], x))[0].reshape(sizes)

        left = jax.lax.map(outputs, x1, batch_size=limit)
        right = left if x2 is None else jax.lax.map(outputs, x2, batch_size=limit)
        return einsum("akt,blt->abkl", left, right) / sizes[1]

    def average(x1: PyTree, x2: PyTree | None) -> Array:
        start = jnp.zeros_like(jax.eval_shape(gram, keys[0], x1, x2))
        total, _ = jax.lax.scan(lambda total, key: (total + gram(key, x1, x2), None), start, keys)
        return total / len(keys) if x2 is not None else mirror(total / len(keys))

    with jax.default_matmul_precision("highest"):
        flat = jax.jit(average)(x1, x2)
    sites = tuple(shape[a] for a in kept)
    return flat.reshape(*flat.shape[:2], *sites, *sites)


def _ntk_of_program(
    program: Program,
    params: PyTree,
    x1: Any,
    x2: Any,
    *,
    trace_axes: int | Sequence[int],
    lr: PyTree | None,
    **options: Any,
) -> Any:
    x1, x2 = _data(program, x1, x2)
    if lr is None and isinstance(params, Mapping):
        params = dict(params)
        lr = learning_rates(program, params)

    def kernel(f: Callable[[Any, Any], Array], type_: VectorType | None) -> Array:
        axes = trace_axes if has_copies(type_) or trace_axes != -1 else ()
        return ntk(f, params, x1, x2, trace_axes=axes, lr=lr, **options)

    return _each_output(program, kernel)


def _nngp_of_program(program: Program, params: PyTree, x1: Any, x2: Any, *, batch_size: int | None) -> Any:
    x1, x2 = _data(program, x1, x2)
    variances = readout_variances(program)

    def kernel(f: Callable[[Any, Any], Array], type_: VectorType | None) -> Array:
        if type_ is None:
            raise bad_argument("program", "its output is a scalar, which has no readout", "take tp.apply for its value")
        if type_.space == "wide":
            return nngp(f, lambda key: params, x1, x2, seeds=1, batch_size=batch_size)
        # The output is its mean m plus what is linear in the readout's θ: its second moment given the rest is
        # Σ Var θ · ∂f/∂θ · ∂f̄/∂θ + m · m̄, the NTK of f + t·m in θ and one number t more, with multipliers Var θ and 1.
        readouts = {name: params[name] for name in variances}
        t = jnp.zeros((), jnp.result_type(*readouts.values(), *x1))

        def affine(readouts_and_t: tuple[PyTree, Array], x: Any) -> Array:
            readouts, t = readouts_and_t
            y = f({**params, **readouts}, x)
            return y + t.astype(y.dtype) * f({**params, **jax.tree.map(jnp.zeros_like, readouts)}, x)

        axes = -1 if has_copies(type_) else ()
        return ntk(affine, (readouts, t), x1, x2, trace_axes=axes, lr=(variances, 1.0), batch_size=batch_size)

    return _each_output(program, kernel)


def _each_output(program: Program, kernel: Callable[[Callable[[Any, Any], Array], VectorType | None], Array]) -> Any:
    kernels = tuple(kernel(f, type_) for f, type_ in outputs_of(program))
    if not program.structure.inputs:
        kernels = tuple(k[0, 0] for k in kernels)
    return kernels[0] if program.structure.single else kernels


def _data(program: Program, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Both batches; for a program without inputs one example, of which nothing is read."""
    first = batch(program.structure, x1, "x1")
    second = None if x2 is None else batch(program.structure, x2, "x2")
    return first if program.structure.inputs else (jnp.zeros(1, bool),), second
