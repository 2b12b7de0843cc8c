"""`nngp` of a finite function: the second moment of its outputs, averaged over draws of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from tensorprog.empirical.arguments import (
    at_one,
    batch_limit,
    batches,
    described,
    function_of,
    output_axes,
    output_shape,
    seeds_of,
    warn_of_batches,
)
from tensorprog.empirical.blocks import mirror
from tensorprog.empirical.compiled import run
from tensorprog.empirical.contraction import einsum
from tensorprog.empirical.kernels import ntk
from tensorprog.empirical.programs import OneByOne, data_of, each_output, entries_apart, has_copies, readout_variances
from tensorprog.errors import bad_argument
from tensorprog.ir import VectorType
from tensorprog.program import Program

#: Examples whose outputs are computed at a time, where `batch_size` does not say otherwise.
FORWARD_BATCH = 256


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
    axes = output_axes(shape, -1)
    look = (lambda: None) if isinstance(f, OneByOne) else lambda: warn_of_batches(f, draw(jax.random.key(0)), x1)
    sizes = axes.size("kept", shape), axes.size("traced", shape)

    def gram(key: Array, x1: PyTree, x2: PyTree | None) -> Array:
        params = draw(key)

        def outputs(x: PyTree) -> Array:
            return at_one(f, params, x).reshape(sizes)

        left = jax.lax.map(outputs, x1, batch_size=limit)
        right = left if x2 is None else jax.lax.map(outputs, x2, batch_size=limit)
        return einsum("akt,blt->abkl", left, right) / sizes[1]

    def average(x1: PyTree, x2: PyTree | None) -> Array:
        start = jnp.zeros_like(jax.eval_shape(gram, keys[0], x1, x2))
        total, _ = jax.lax.scan(lambda total, key: (total + gram(key, x1, x2), None), start, keys)
        return total / len(keys) if x2 is not None else mirror(total / len(keys))

    with jax.default_matmul_precision("highest"):
        flat = run(average, x1, x2, first=look)
    sites = tuple(shape[a] for a in axes.kept)
    return flat.reshape(*flat.shape[:2], *sites, *sites)


def _nngp_of_program(program: Program, params: PyTree, x1: Any, x2: Any, *, batch_size: int | None) -> Any:
    x1, x2 = data_of(program, x1, x2)
    variances = readout_variances(program)
    program, copies = entries_apart(program)
    params = {**params, **{copy: params[name] for copy, name in copies.items() if name in params}}

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
        return ntk(OneByOne(affine), (readouts, t), x1, x2, trace_axes=axes, lr=(variances, 1.0), batch_size=batch_size)

    return each_output(program, kernel)
