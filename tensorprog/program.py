"""A program: a static structure and the numbers in it, a JAX pytree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from tensorprog.errors import ProgramError
from tensorprog.ir import Num, Structure
from tensorprog.show import listing


@jax.tree_util.register_pytree_node_class
class Program:
    """A network as a tensor program, made by `tensorprog.trace`.

    A pytree: its leaves are its numbers (variances, means, learning rates, coefficients), its structure is static,
    hashable, and equal for equal programs, so one compiled function serves all values of the numbers.
    """

    def __init__(self, structure: Structure, leaves: tuple[Any, ...]):
        self.structure = structure
        self.leaves = tuple(leaves)

    @property
    def numbers(self) -> dict[str, Any]:
        """The program's numbers by name: "W.var", "W.lr", "b.mean", "n.ratio", "coef1", …"""
        return dict(zip(self.structure.numbers, self.leaves, strict=True))

    def replace(self, numbers: Mapping[str, Any]) -> Program:
        """The same program with other values of some numbers ("W.scale" and "b.mean" also where they were left out).

        **Raises:** `ProgramError` for a name that the program does not have.
        """
        program = self
        for name, value in numbers.items():
            if name not in program.structure.numbers:
                program = program._with_number(name)
            position = program.structure.numbers.index(name)
            old = program.leaves[position]
            if np.shape(value) != np.shape(old):
                raise ProgramError(f"replace: {name!r} has shape {np.shape(old)}, the new value {np.shape(value)}")
            new = value if isinstance(value, jax.Array) else np.asarray(value, dtype=np.float64)
            leaves = (*program.leaves[:position], new, *program.leaves[position + 1 :])
            program = Program(program.structure, leaves)
        return program

    def _with_number(self, name: str) -> Program:
        """The program with a number of its own where a default stood: a scale, or a bias's mean."""
        owner, _, what = name.rpartition(".")
        structure = self.structure
        owners = {"scale": structure.parameters, "mean": structure.biases}.get(what, ())
        if owner not in {p.name for p in owners}:
            known = ", ".join(structure.numbers)
            raise ProgramError(f"replace: the program has no number {name!r}; its numbers are {known}")
        num = Num(len(self.leaves))

        def given(parameter: Any) -> Any:
            return replace(parameter, **{what: num}) if parameter.name == owner else parameter

        structure = replace(
            structure,
            weights=tuple(given(w) for w in structure.weights),
            biases=tuple(given(b) for b in structure.biases),
            numbers=(*structure.numbers, name),
            number_sites=(*structure.number_sites, ()),
        )
        return Program(structure, (*self.leaves, np.asarray(1.0)))

    def tree_flatten(self) -> tuple[tuple[Any, ...], Structure]:
        return self.leaves, self.structure

    @classmethod
    def tree_unflatten(cls, structure: Structure, leaves: tuple[Any, ...]) -> Program:
        # No checks here: JAX unflattens with placeholders.
        program = object.__new__(cls)
        program.structure, program.leaves = structure, tuple(leaves)
        return program

    def __str__(self) -> str:
        return listing(self.structure, self.leaves)

    __repr__ = __str__
