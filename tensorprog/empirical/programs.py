"""A program as a plain function of (params, x): the one place where the empirical kernels know of tensor programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorprog.batch import batch
from tensorprog.interpret.finite import apply
from tensorprog.ir import MatMul, Parameter, VectorType, is_entries, is_readout
from tensorprog.program import Program, is_concrete

Function = Callable[[Any, Any], Array]


@dataclass(frozen=True)
class OneByOne:
    """A function (params, x) -> outputs of a program, which takes each example by itself and draws nothing."""

    fn: Function

    def __call__(self, params: Any, x: Any) -> Array:
        return self.fn(params, x)


def outputs_of(program: Program) -> list[tuple[Function, VectorType | None]]:
    """Each output as a function (params, x) -> (N, ...), and its type; None for a scalar.

    Without inputs the outputs don't depend on x, one array in a tuple: it says N.
    """
    structure = program.structure

    def output(index: int) -> Function:
        def one(params: Any, x: Any) -> Array:
            found = apply(program, params, x if structure.inputs else None)
            y = found if structure.single else found[index]
            return y if structure.inputs else jnp.broadcast_to(y, (len(x[0]), *y.shape))

        return OneByOne(one)

    types = [structure.types[position] for position in structure.outputs]
    return [(output(i), type_ if isinstance(type_, VectorType) else None) for i, type_ in enumerate(types)]


def has_copies(type_: VectorType | None) -> bool:
    """Whether the output's last axis holds independent copies: rows of a readout, coordinates of a wide vector."""
    return type_ is not None and not (type_.space == "output" and type_.dim == 1)


def learning_rates(program: Program, params: Mapping[str, Any]) -> dict[str, Any]:
    """The program's own multipliers, its numbers "W.lr", for `params`: 1 for what it does not have."""
    rates = {p.name: program.leaves[p.lr.index] for p in program.structure.parameters}
    own = {name: float(rate) if is_concrete(rate) else rate for name, rate in rates.items()}
    return {name: own.get(name, 1.0) for name in params}


def readout_variances(program: Program) -> dict[str, Any]:
    """The variance of θ for each parameter of the readouts, by name: var/scale², as `init` draws it."""
    return {p.name: _variance(program, p) for p in program.structure.parameters if is_readout(p)}


def entries_apart(program: Program) -> tuple[Program, dict[str, str]]:
    """The program with parameters of their own for readouts' entries, so that outputs are linear in readouts.

    **Returns:** it, and of which parameter each new one is a copy.
    """
    structure = program.structure
    entries = [p for p in range(len(structure.instructions)) if is_entries(structure, p)]
    weights, instructions = list(structure.weights), list(structure.instructions)
    copies: dict[str, str] = {}
    for position in entries:
        product = instructions[position]
        assert isinstance(product, MatMul), "entries are a product"
        own = structure.weights[product.weight]
        name = f"{own.name}′"
        while name in (p.name for p in structure.parameters):
            name += "′"
        if name not in copies:
            copies[name] = own.name
            weights.append(replace(own, name=name))
        place = next(i for i, w in enumerate(weights) if w.name == name)
        instructions[position] = replace(product, weight=place)
    made = replace(structure, weights=tuple(weights), instructions=tuple(instructions))
    return Program(made, program.leaves), copies


def _variance(program: Program, parameter: Parameter) -> Array:
    var = jnp.asarray(program.leaves[parameter.var.index])
    if parameter.scale is None:  # scale = √var, so standard normals, or nothing at all
        return jnp.where(var > 0, 1.0, 0.0)
    return var / jnp.asarray(program.leaves[parameter.scale.index]) ** 2


def each_output(program: Program, kernel: Callable[[Function, VectorType | None], Any]) -> Any:
    """The kernel of each output, a tuple if there are several; without axes N1, N2 if there are no inputs."""
    kernels = tuple(kernel(f, type_) for f, type_ in outputs_of(program))
    if not program.structure.inputs:
        alone = lambda leaf: leaf[0, 0] if isinstance(leaf, jax.Array) else leaf
        kernels = tuple(jax.tree.map(alone, k) for k in kernels)
    return kernels[0] if program.structure.single else kernels


def data_of(program: Program, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Both batches; for a program without inputs one example, of which nothing is read."""
    first = batch(program.structure, x1, "x1")
    second = None if x2 is None else batch(program.structure, x2, "x2")
    return first if program.structure.inputs else (jnp.zeros(1, bool),), second
