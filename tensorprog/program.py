"""A program: a static structure and the numbers in it, a JAX pytree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from tensorprog.arrays import NoNumbers, is_concrete, real_array
from tensorprog.errors import ProgramError
from tensorprog.ir import Num, Structure
from tensorprog.show import listing


def refusal(name: str, value: Any) -> str | None:
    """Why a value cannot be the number of this name, "W.var" or "coef1"; None when it can.

    Variances and learning rates are at least 0, scales and ratios positive, everything is real and finite. Traced
    values are taken as they are.
    """
    try:
        array = real_array(value)
    except NoNumbers as error:
        return f"it is not real: it {error.why}" if "complex" in error.why else f"{value!r} is not a number"
    if not is_concrete(array):
        return None
    array = np.asarray(array, dtype=np.float64)
    if not np.isfinite(array).all():
        return f"{_short(array)} is not finite"
    kind = str(name).rpartition(".")[2]
    if kind in ("var", "lr") and (array < 0).any():
        return f"{_short(array)} is negative"
    if kind in ("scale", "ratio") and (array <= 0).any():
        return f"{_short(array)} is not positive"
    if kind == "ratio" and not 1e-6 <= float(array.min()) <= float(array.max()) <= 1e6:
        return f"{_short(array)} is no proportion of two widths"
    return None


def _short(array: np.ndarray) -> str:
    return f"{float(array):g}" if array.ndim == 0 else f"an entry of the array {array.shape}"


def as_leaf(value: Any, name: str = "") -> Any:
    """A number as a program holds it: inexact, in double precision until an input gives a dtype.

    A traced variance or learning rate that turns out negative, or a scale or ratio that is not positive, is NaN: what
    is traced cannot be refused, and shall not pass for another program's kernel.
    """
    if not isinstance(value, jax.Array):
        return np.asarray(real_array(value), dtype=np.float64)
    value = value if jax.numpy.issubdtype(value.dtype, jax.numpy.inexact) else value.astype(float)
    kind = name.rpartition(".")[2]
    if is_concrete(value) or kind not in ("var", "lr", "scale", "ratio"):
        return value
    return jax.numpy.where(value < 0 if kind in ("var", "lr") else value <= 0, jax.numpy.nan, value)


def _literal(leaf: Any) -> Any:
    """A NumPy number in place of a NumPy array without axes: in a function inside another, JAX keeps the dtype that
    such an array had when it was first traced, and can't compile it any more once `jax_enable_x64` is switched."""
    return leaf[()] if type(leaf) is np.ndarray and leaf.ndim == 0 else leaf


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A network as a tensor program, made by `tensorprog.trace`.

    A pytree: its leaves are its numbers (variances, means, learning rates, coefficients), its structure is static,
    hashable, and equal for equal programs, so one compiled function serves all values of the numbers. Two programs are
    equal when structure and numbers are.
    """

    structure: Structure
    leaves: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(map(_literal, self.leaves)))

    @property
    def numbers(self) -> dict[str, Any]:
        """The program's numbers by name: "W.var", "W.lr", "W.scale", "b.mean", "n.ratio", "coef1", …"""
        return dict(zip(self.structure.numbers, self.leaves, strict=True))

    def replace(self, numbers: Mapping[str, Any]) -> Program:
        """The same program with other values of some numbers ("W.scale" and "b.mean" also where they were left out).

        **Raises:** `ProgramError` for a name that the program does not have, a value of another shape, and values that
        no such number has (a negative variance); a traced one that turns out so is NaN.

        ```python
        >>> import tensorprog as tp
        >>> def linear(x):
        ...     return tp.weight("v", 1, x.features, var=2.0) @ x
        >>> program = tp.trace(linear, tp.Input(3)).replace({"v.var": 0.5})
        >>> float(program.numbers["v.var"])
        0.5

        ```
        """
        if not isinstance(numbers, Mapping):
            raise ProgramError(f'replace: {numbers!r} is no mapping; write program.replace({{"W.var": 1.3}})')
        program = self
        for name, value in numbers.items():
            why = refusal(name, value)
            if why is not None:
                raise ProgramError(f"replace: {name!r} cannot be set: {why}; give another value")
            if name not in program.structure.numbers:
                program = program._with_number(name)
            position = program.structure.numbers.index(name)
            shape = program.structure.number_sites[position]
            if np.shape(value) != shape:
                raise ProgramError(f"replace: {name!r} has shape {shape}, the new value has shape {np.shape(value)}")
            leaves = (*program.leaves[:position], as_leaf(value, name), *program.leaves[position + 1 :])
            program = Program(program.structure, leaves)
        return program

    def _with_number(self, name: str) -> Program:
        """The program with a number of its own where a default stood: a scale, or a bias's mean."""
        owner, _, what = str(name).rpartition(".")
        structure = self.structure
        owners = {"scale": structure.parameters, "mean": structure.biases}.get(what, ())
        if owner not in {p.name for p in owners}:
            known = ", ".join(structure.numbers) or "none"
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
        return Program(structure, (*self.leaves, np.asarray(math.nan)))  # `replace` sets it

    def tree_flatten(self) -> tuple[tuple[Any, ...], Structure]:
        return self.leaves, self.structure

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], Structure]:
        keys = (jax.tree_util.DictKey(name) for name in self.structure.numbers)
        return tuple(zip(keys, self.leaves, strict=True)), self.structure

    @classmethod
    def tree_unflatten(cls, structure: Structure, leaves: Any) -> Program:
        # No checks here: JAX unflattens with placeholders.
        return cls(structure, tuple(leaves))

    def __deepcopy__(self, memo: object) -> Program:
        return self  # immutable; a copy of the functions in it would be other functions

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program) or self.structure != other.structure:
            return False
        return all(_same(a, b) for a, b in zip(self.leaves, other.leaves, strict=True))

    def __hash__(self) -> int:
        return hash(self.structure)

    def __str__(self) -> str:
        return listing(self.structure, self.leaves)

    __repr__ = __str__


def _same(a: Any, b: Any) -> bool:
    """Whether two leaves hold the same values; traced ones only when they are one object."""
    if a is b:
        return True
    return is_concrete(a) and is_concrete(b) and np.array_equal(np.asarray(a), np.asarray(b))
