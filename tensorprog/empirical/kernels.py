"""`ntk` of a finite function and its terms: arguments in, kernel out; how is in the files beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from tensorprog.empirical.arguments import (
    Axes,
    at_one,
    batch_limit,
    batches,
    function_of,
    multipliers_of,
    output_axes,
    output_shape,
    partition,
    paths_of,
    warn_of_batches,
)
from tensorprog.empirical.blocks import blocked, length
from tensorprog.empirical.compiled import run
from tensorprog.empirical.plan import Method, Plan, Problem, chosen, explained
from tensorprog.empirical.programs import OneByOne, data_of, each_output, has_copies, learning_rates
from tensorprog.ir import VectorType
from tensorprog.program import Program

Function = Callable[[Any, Any], Array]
OutputAxes = int | Sequence[int]


@overload
def ntk(
    f: Function | Program,
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: OutputAxes = -1,
    diagonal_axes: OutputAxes = (),
    sum_axes: OutputAxes = (),
    lr: PyTree | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
    explain: Literal[False] = False,
) -> Array: ...
@overload
def ntk(
    f: Function | Program,
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: OutputAxes = -1,
    diagonal_axes: OutputAxes = (),
    sum_axes: OutputAxes = (),
    lr: PyTree | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
    explain: Literal[True],
) -> Plan: ...
def ntk(
    f: Function | Program,
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: OutputAxes = -1,
    diagonal_axes: OutputAxes = (),
    sum_axes: OutputAxes = (),
    lr: PyTree | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
    explain: bool = False,
) -> Float[Array, "N1 N2 *D_S1_S2"] | Plan:
    r"""The neural tangent kernel of the finite function `f` at `params`.

    Θ[i, j, d, s, s̄] = (1/T) Σ_t Σ_p lr_p · ∂f(x1_i)[s, d, t]/∂θ_p · ∂f(x2_j)[s̄, d, t]/∂θ_p

    with t over the traced output axes (T values in all), d over the diagonal ones and s over the others. With the
    default, a trace over the last axis divided by its size, this is what `tensorprog.ntk` is the limit of: outputs of a
    wide network are independent copies, and T of them estimate the same number.

    `f` is taken **one example at a time**, as f(params, x[None])[0] under `jax.vmap`: what it does across the examples
    of a batch (batch normalisation in training mode) is not seen, and told in a `KernelWarning`, as is what draws.

    **Arguments:**

    - `f`: any JAX function, f(params, x) -> outputs of shape (N, *O), one floating array; or a Program, which is taken
      through `tensorprog.apply` (the default trace is over the rows of a readout, never over sites; several outputs
      give a tuple of kernels; without inputs `x1` is None and the kernel has no axes N1, N2, as in `tensorprog.ntk`).
    - `params`: any pytree. Arrays of floating dtype are the parameters; every other leaf (integers, Python numbers,
      functions, PRNG keys) is handed to `f` as it is.
    - `x1`, `x2`: pytrees of arrays with leading axis N1 and N2. Without `x2` the kernel is that of `x1` with itself,
      symmetric to the last bit: Θ[j, i, d, s̄, s] is a copy of Θ[i, j, d, s, s̄].
    - `trace_axes`: output axes (N not counted; negative ones from the end) to average over. `-1`, the default, is the
      last one, if there is any that is not named below. `()` is the full kernel.
    - `diagonal_axes`: output axes on which both sides agree: Θ[i, j, d] is the kernel of output d.
    - `sum_axes`: output axes that are summed before anything else: the kernel of the sum of the logits.
    - `lr`: multipliers of the parameters' terms, a pytree prefix of `params`: a number for all, or for each subtree.
      By default 1; for a Program its own, the numbers "W.lr".
    - `method`: `"structured"`: backpropagation is cut at each weight's pre-activation y, and the kernel contracted from
      ∂f/∂y and the layer's input, without ∂f/∂W; what has no such product goes by its derivative. `"jacobian"`: all
      derivatives, contracted. `"ntvp"`: NTK-vector products, one a column. `"auto"` is the cheapest by `cost`.
    - `batch_size`: the most examples of a block; by default as many as keep derivatives within `plan.MEMORY` a side
      (`jax.vmap` over calls multiplies it).
    - `explain`: compute nothing, and return the `Plan`: method, each parameter's road, blocks and memory.

    **Returns:** (N1, N2, *D, *S, *S), D the diagonal output axes, S those that are not named; or a `Plan`.

    **Raises:** `TypeError` and `ValueError`, naming the argument and what to pass.

    Works under `jit`, `vmap` and `grad`. Outside `jit` the function is traced at each call, since nobody can know
    whether it still is what it was, and what was compiled for an equal one is used again, whatever the parameters; for
    many calls of a small network put `jax.jit` around, which traces once: `jax.jit(lambda p: ntk(f, p, x))`.
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
    >>> empirical.ntk(f, params, jnp.ones((4, 2)), method="structured", explain=True).roads
    {"['b']": 'direct', "['w']": 'gram'}

    ```
    """
    options: dict[str, Any] = {"diagonal_axes": diagonal_axes, "sum_axes": sum_axes, "batch_size": batch_size}
    if isinstance(f, Program):
        options |= {"trace_axes": trace_axes, "method": method, "explain": explain}
        return _of_program(ntk, f, params, x1, x2, lr=lr, **options)
    _check_method(method, get_args(Method))
    task = _task(f, params, x1, x2, lr, trace_axes=trace_axes, **options)
    if explain:
        task.look()
        return explained(task.problem, method, get_args(Method)[1:])
    return task.shaped(task.computed(method, get_args(Method)[1:], lambda terms: sum(terms[1:], terms[0])))


def ntk_by_parameter(
    f: Function | Program,
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: OutputAxes = -1,
    diagonal_axes: OutputAxes = (),
    sum_axes: OutputAxes = (),
    lr: PyTree | None = None,
    method: Literal["auto", "structured", "jacobian"] = "auto",
    batch_size: int | None = None,
) -> PyTree[Float[Array, "N1 N2 *D_S1_S2"]]:
    r"""The terms of `ntk`, one for each parameter; they sum to it.

    Θ_p[i, j, d, s, s̄] = (1/T) Σ_t lr_p · ⟨∂f(x1_i)[s, d, t]/∂θ_p, ∂f(x2_j)[s̄, d, t]/∂θ_p⟩

    **Arguments:** as in `ntk`; NTK-vector products know the sum only, so `method` is `"auto"`, `"structured"` or
    `"jacobian"`.

    **Returns:** `params` with the kernel (N1, N2, *D, *S, *S) in place of each parameter, and None in place of leaves
    that are none; for a Program a dict by name.

    **Raises:** `TypeError` and `ValueError`, naming the argument and what to pass.

    ```pycon
    >>> f = lambda params, x: x @ params["w"] + params["b"]
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    >>> print(ntk_by_parameter(f, params, jnp.array([[1.0, 2.0]])))
    {'b': Array([[1.]], dtype=float...), 'w': Array([[5.]], dtype=float...)}

    ```
    """
    options: dict[str, Any] = {"diagonal_axes": diagonal_axes, "sum_axes": sum_axes, "batch_size": batch_size}
    if isinstance(f, Program):
        return _of_program(ntk_by_parameter, f, params, x1, x2, trace_axes=trace_axes, lr=lr, method=method, **options)
    candidates = ("structured", "jacobian")
    _check_method(method, ("auto", *candidates))
    task = _task(f, params, x1, x2, lr, trace_axes=trace_axes, **options)
    stacked = task.computed(method, candidates, lambda terms: jnp.concatenate(terms, axis=2))
    return task.merge([task.shaped(term) for term in jnp.split(stacked, len(task.problem.theta), axis=2)], True)


@dataclass(frozen=True)
class _Task:
    """A problem with its data, and what its results look like."""

    problem: Problem
    x1: PyTree
    x2: PyTree | None
    axes: Axes
    shape: tuple[int, ...]
    merge: Callable[..., PyTree]
    look: Callable[[], None]
    """Says what is odd about the function, if anything is."""

    def computed(self, method: str, candidates: Sequence[str], combined: Callable[[list[Array]], Array]) -> Array:
        """The combined terms (N1, N2, E, K, K) of all blocks, by the method."""
        _, choice, _ = chosen(self.problem, method, candidates)

        def kernel(theta: list[Array], x1: PyTree, x2: PyTree | None) -> Array:
            prepare, contract = choice.way(theta)
            return blocked(prepare, lambda left, right: combined(contract(left, right)), x1, x2, choice.limit)

        with jax.default_matmul_precision("highest"):
            return run(kernel, self.problem.theta, self.x1, self.x2, first=self.look)

    def shaped(self, flat: Float[Array, "N1 N2 E K K"]) -> Float[Array, "N1 N2 *D_S1_S2"]:
        kept, diagonal = (tuple(self.shape[a] for a in axes) for axes in (self.axes.kept, self.axes.diagonal))
        return flat.reshape(*flat.shape[:2], *diagonal, *kept, *kept)


def _task(
    f: Any,
    params: PyTree,
    x1: PyTree,
    x2: PyTree | None,
    lr: PyTree | None,
    *,
    batch_size: int | None,
    **axes: OutputAxes,
) -> _Task:
    f = function_of(f)
    x1, x2 = batches(x1, x2)
    theta, merge = partition(params)
    shape = output_shape(lambda x: f(params, x), x1)
    named = output_axes(shape, **axes)
    look = (lambda: None) if isinstance(f, OneByOne) else lambda: warn_of_batches(f, params, x1)

    def outputs(theta: list[Array], x: PyTree) -> Array:
        return named.laid_out(at_one(f, merge(theta), x))

    problem = Problem(
        outputs,
        theta,
        paths_of(params),
        multipliers_of(lr, params),
        named.sizes(shape),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x1),
        length(x1),
        None if x2 is None else length(x2),
        None if batch_size is None else batch_limit(batch_size, 0),
    )
    return _Task(problem, x1, x2, named, shape, merge, look)


def _check_method(method: Any, known: Sequence[str]) -> None:
    if method not in known:
        texts = [repr(name) for name in known]
        raise ValueError(f"method={method!r} is not known: pass {', '.join(texts[:-1])} or {texts[-1]}.")


def _of_program(
    compute: Any, program: Program, params: PyTree, x1: Any, x2: Any, *, lr: PyTree | None, **options: Any
) -> Any:
    x1, x2 = data_of(program, x1, x2)
    if lr is None and isinstance(params, Mapping):
        params = dict(params)
        lr = learning_rates(program, params)

    def kernel(f: Function, type_: VectorType | None) -> Any:
        axes = options["trace_axes"]
        axes = axes if has_copies(type_) or axes != -1 else ()
        return compute(f, params, x1, x2, lr=lr, **{**options, "trace_axes": axes})

    return each_output(program, kernel)
