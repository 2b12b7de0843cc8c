"""The finite network: `init` draws parameters, `apply` runs the program at a finite width as a pure JAX function."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import batch, random_key, require_program
from tensorprog.errors import bad_argument
from tensorprog.gia import reached
from tensorprog.interpret.evaluator import Evaluator, safe_sqrt
from tensorprog.interpret.sizes import sizes
from tensorprog.ir import Bias, Dim, MatMul, Structure, VectorType, Weight, fan, shape
from tensorprog.program import Program

Params = dict[str, jax.Array]

_FROM_INIT = "take them from tp.init(program, key, width) of this program"


def init(program: Program, key: jax.Array, width: int | Mapping[str, int]) -> Params:
    """Parameters of the finite network: θ ~ N(0, var/scale²) by name (standard normals at the default scale).

    Shapes: weights (*sites, *window, rows, cols), biases (*sites, n), in JAX's default float dtype; `apply` casts them
    to the inputs' dtype. Each parameter's key is derived from its name, so adding one does not change the others.
    `width` is one int (times each width's ratio) or one for each name, {"n": 1024}.

    **Raises:** `ProgramError` for a width below 1 or a name that is missing, and for what is no random key.

    ```python
    >>> import jax, tensorprog as tp
    >>> params = tp.init(tp.nets.ZOO["mlp"], jax.random.key(0), width=8)
    >>> params["W1"].shape, params["b1"].shape
    ((8, 4), (8,))

    ```
    """
    structure = require_program(program, "init").structure
    size = sizes(program, width)
    dtype = jnp.result_type(float)
    params = {}
    if structure.parameters:
        key = random_key(key)
    for parameter in structure.parameters:
        dims = tuple(d if isinstance(d, int) else size[d] for d in shape(parameter))
        var = jnp.asarray(program.leaves[parameter.var.index], dtype)
        if parameter.scale is None:
            deviation = jnp.where(jnp.isnan(var), jnp.nan, jnp.where(var > 0, 1.0, 0.0)).astype(dtype)
        else:
            deviation = safe_sqrt(var) / jnp.asarray(program.leaves[parameter.scale.index], dtype)
        params[parameter.name] = deviation * jax.random.normal(_named_key(key, parameter.name), dims, dtype)
    return params


def _named_key(key: jax.Array, name: str) -> jax.Array:
    """A parameter's own key."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def apply(program: Program, params: Mapping[str, jax.Array], x: Any = None, *, at: str | None = None) -> Any:
    """The finite network's outputs: y = f(params, x), a pure JAX function.

    W = scale·θ/√fan and b = scale·θ + mean are formed inside (NTK parameterization). x is (N, *sites, features), or a
    tuple for several inputs, `Data` among them (N, *shape). A readout over sites S gives (N, *S) for one row,
    (N, *S, k) for k rows; a wide vector (N, *S, n); a scalar (N, *S); a tuple of outputs a tuple; a program without
    inputs the same without N. `at` names another vector or scalar of the listing. The dtype is the inputs' (integers:
    the default float dtype), and data, parameters and numbers are cast to it; without inputs it is the parameters'.

    **Raises:** `ProgramError` for data that do not fit, parameters that are missing or of other shapes, unknown names.
    """
    structure = require_program(program, "apply").structure
    outputs = structure.outputs
    if at is not None:
        position = structure.position(at)
        if position is None:
            known = ", ".join(n for n in structure.names if n is not None)
            raise bad_argument("at", f"the program has no {at!r}", f"its names are {known}")
        outputs = (position,)
    _check_params(structure, params)
    arrays = batch(structure, x, "x")
    if not arrays:
        results = run(program, params, (), outputs)
    else:
        results = jax.vmap(lambda *one: run(program, params, one, outputs))(*arrays)
    return results[0] if at is not None or structure.single else results


def _check_params(structure: Structure, params: Any) -> None:
    """Every parameter is there, with its fixed dimensions, and each width has one size."""
    if not isinstance(params, Mapping):
        raise bad_argument(
            "params", f"{type(params).__name__} is no mapping", "take them from tp.init(program, key, width)"
        )
    missing = [p.name for p in structure.parameters if p.name not in params]
    if missing:
        raise bad_argument("params", f"no {', '.join(missing)}", _FROM_INIT)
    sizes: dict[str, int] = {}
    for parameter in structure.parameters:
        wanted, given = shape(parameter), np.shape(params[parameter.name])
        fits = len(given) == len(wanted) and all(
            size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
            for size, dim in zip(given, wanted, strict=True)
        )
        if not fits:
            text = " × ".join(f"{d} = {sizes[d]}" if d in sizes else str(d) for d in wanted)
            raise bad_argument(
                "params", f"{parameter.name} has shape {given}, the program's is {text}",
                _FROM_INIT,
            )  # fmt: skip


def run(
    program: Program, params: Mapping[str, jax.Array], inputs: tuple[jax.Array, ...], outputs: tuple[int, ...]
) -> tuple[jax.Array, ...]:
    """The given instructions' values for one example."""
    structure = program.structure
    evaluator = _Network(program, params, inputs)
    for position in reached(structure, outputs):
        evaluator.values[position] = evaluator.instruction(position)
    return tuple(_output(structure, position, evaluator.values[position]) for position in outputs)


def _output(structure: Structure, position: int, value: jax.Array) -> jax.Array:
    type_ = structure.types[position]
    return value[..., 0] if isinstance(type_, VectorType) and type_.space == "output" and type_.dim == 1 else value


def _sizes(structure: Structure, params: Mapping[str, jax.Array]) -> dict[str, int]:
    """The width's sizes, as the parameters have them."""
    sizes = {}
    for parameter in structure.parameters:
        pairs = zip(shape(parameter), np.shape(params[parameter.name]), strict=True)
        sizes.update({d: n for d, n in pairs if isinstance(d, str)})
    return sizes


def product(theta: jax.Array, weight: Weight, x: jax.Array, transposed: bool) -> jax.Array:
    """θ x or θᵀ x of θ (*sites, *window, rows, cols): a window's matrices are summed over, or stand side by side."""
    if not weight.window and not weight.sites:
        return x @ (theta if transposed else theta.T)
    sites, window = math.prod(weight.sites), math.prod(weight.window)
    theta = theta.reshape(sites, window, *theta.shape[-2:])
    own = len(weight.sites) + (0 if transposed else len(weight.window))
    lead = x.shape[: x.ndim - 1 - own]
    if transposed:
        y = jnp.einsum("lsr,sorc->lsoc", x.reshape(-1, sites, x.shape[-1]), theta)
        return y.reshape(*lead, *weight.sites, *weight.window, y.shape[-1])
    y = jnp.einsum("lsoc,sorc->lsr", x.reshape(-1, sites, window, x.shape[-1]), theta)
    return y.reshape(*lead, *weight.sites, y.shape[-1])


class _Network(Evaluator):
    """A finite network: a wide vector is its n coordinates."""

    def __init__(self, program: Program, params: Mapping[str, jax.Array], inputs: tuple[jax.Array, ...]):
        own = [params[p.name] for p in program.structure.parameters]
        super().__init__(program, inputs, jnp.result_type(*(inputs or own or [float])))
        self.params = params
        self.sizes = _sizes(program.structure, params)

    def parameter(self, name: str) -> jax.Array:
        return jnp.asarray(self.params[name], self.dtype)

    def matmul(self, instruction: MatMul, x: jax.Array) -> jax.Array:
        weight = self.structure.weights[instruction.weight]
        theta = self.parameter(weight.name)
        cols = fan(weight) if isinstance(weight.cols, int) else fan(weight) * theta.shape[-1]
        ratio = theta.shape[-2] / theta.shape[-1]  # rows over columns, of A the other way round where A = Wᵀ
        aspect = ratio ** ((-1 if instruction.transposed else 1) * instruction.aspect / 2)
        return product(theta, weight, x, instruction.transposed) * (self.scale(weight) * (aspect / math.sqrt(cols)))

    def bias(self, bias: Bias) -> jax.Array:
        return self.scale(bias) * self.parameter(bias.name)

    def ones(self, dim: Dim) -> jax.Array:
        return jnp.ones(dim if isinstance(dim, int) else self.sizes[dim], self.dtype)

    def mean(self, values: jax.Array, dim: Dim) -> jax.Array:
        return values.mean(-1)
