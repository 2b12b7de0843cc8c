"""A program as a plain function of (params, x): the one place where the empirical kernels know of tensor programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from tensorprog.interpret.finite import apply
from tensorprog.ir import Bias, Parameter, VectorType
from tensorprog.program import Program

Function = Callable[[Any, Any], Array]


def outputs_of(program: Program) -> list[tuple[Function, VectorType | None]]:
    """Each output as a function (params, x) -> (N, ...), and its type; None for a scalar."""

    def output(index: int) -> Function:
        single = program.structure.single
        return lambda params, x: apply(program, params, x) if single else apply(program, params, x)[index]

    types = [program.structure.types[position] for position in program.structure.outputs]
    return [(output(i), type_ if isinstance(type_, VectorType) else None) for i, type_ in enumerate(types)]


def has_copies(type_: VectorType | None) -> bool:
    """Whether the output's last axis holds independent copies: rows of a readout, coordinates of a wide vector."""
    return type_ is not None and not (type_.space == "output" and type_.dim == 1)


def readout_variances(program: Program) -> dict[str, Any]:
    """The variance of θ for each parameter of the readouts, by name: var/scale², as `init` draws it."""
    return {p.name: _variance(program, p) for p in program.structure.parameters if _is_readout(p)}


def _is_readout(parameter: Parameter) -> bool:
    return isinstance(parameter.dim if isinstance(parameter, Bias) else parameter.rows, int)


def _variance(program: Program, parameter: Parameter) -> Array:
    var = jnp.asarray(program.leaves[parameter.var.index])
    if parameter.scale is None:  # scale = √var, so standard normals, or nothing at all
        return jnp.where(var > 0, 1.0, 0.0)
    return var / jnp.asarray(program.leaves[parameter.scale.index]) ** 2
