"""Data as users hand it over: checked, made floating, one array for each input of the program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.arrays import NoNumbers, floating, real_array
from tensorprog.errors import ProgramError, bad_argument
from tensorprog.ir import Data, Input, Structure
from tensorprog.program import Program


def require_program(program: object, caller: str) -> Program:
    """The program, or a ProgramError that says how to make one."""
    if not isinstance(program, Program):
        raise ProgramError(f"{caller}: {program!r} is no Program; make one with tp.trace(fn, tp.Input(…))")
    return program


def random_key(key: Any) -> jax.Array:
    """The user's random key, typed or legacy.

    **Raises:** `ProgramError` for what is no single key.
    """
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError) as error:
        raise bad_argument("key", f"{key!r} is no random key ({error})", "give jax.random.key(0)") from None
    return key


def batch(structure: Structure, x: Any, name: str = "x1") -> tuple[jax.Array, ...]:
    """One array for each input, (N, *sites, features), (N, *shape) for Data, all of one floating dtype.

    The dtype is that of the inputs; data (integers and bools too) are cast to it.

    **Raises:** `ProgramError` naming the argument for a wrong number of arrays, a wrong rank or feature count, N = 0,
    values that are no numbers, NaN or infinite.
    """
    count = len(structure.inputs)
    if x is None and count:
        raise bad_argument(name, "no data, and the program has an input", f"give an array (N{_axes(structure)})")
    values = x if isinstance(x, tuple) else (x,) if count == 1 else tuple(x) if isinstance(x, list) else (x,)
    if count == 0:
        if x is not None:
            raise bad_argument(name, "the program has no inputs", "leave it out")
        return ()
    if len(values) != count:
        inputs = "1 input" if count == 1 else f"{count} inputs"
        remedy = "give one array" if count == 1 else "give a tuple with one array for each input"
        raise bad_argument(name, f"{len(values)} arrays for {inputs}", remedy)
    arrays = [_array(v, name) for v in values]
    inputs = [a for a, i in zip(arrays, structure.inputs, strict=True) if isinstance(i, Input)] or arrays
    floats = [array for array in inputs if jnp.issubdtype(array.dtype, jnp.floating)]
    dtype = jnp.result_type(*floats or [float])
    for array, input_, label in zip(arrays, structure.inputs, structure.input_names, strict=True):
        _check_shape(array, input_, name, f" {label}" if count > 1 else "")
    if len({array.shape[0] for array in arrays}) > 1:
        raise bad_argument(name, "the inputs have different numbers of examples", "give each input the same N")
    return tuple(_cast(array, dtype, name) for array in arrays)


def _array(value: Any, name: str) -> jax.Array | np.ndarray:
    try:
        return real_array(value)
    except NoNumbers as error:
        raise bad_argument(name, error.why, error.remedy) from None


def _axes(structure: Structure) -> str:
    return "), (N".join("".join(f", {s}" for s in input_.shape) for input_ in structure.inputs)


def _check_shape(array: jax.Array | np.ndarray, input_: Input | Data, name: str, label: str) -> None:
    shape = input_.shape
    wanted = f"(N, {', '.join(str(s) for s in shape)})" if shape else "(N,)"
    kind, maker = ("data", "tp.Data") if isinstance(input_, Data) else ("input", "tp.Input")
    told = f"has shape {array.shape}, the program's {kind}{label} is {wanted}"
    if array.ndim != len(shape) + 1:
        hint = f"add the batch axis: {name}[None]" if array.shape == shape else f"give an array {wanted}"
        raise bad_argument(name, told, hint)
    if array.shape[1:] != shape:
        what = "features" if kind == "input" and array.shape[-1] != shape[-1] else "sites"
        raise bad_argument(
            name, f"{told}: {what} do not match", f"reshape the data, or trace the program with another {maker}"
        )
    if array.shape[0] == 0:
        raise bad_argument(name, "has no examples (N = 0)", "give at least one")


def _cast(array: jax.Array | np.ndarray, dtype: Any, name: str) -> jax.Array:
    try:
        return floating(array, dtype)
    except NoNumbers as error:
        raise bad_argument(name, error.why, error.remedy) from None
