"""The sizes of a program's widths in a finite network, from what a user says they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tensorprog.errors import bad_argument
from tensorprog.program import Program, is_concrete


def sizes(program: Program, width: Any, *, argument: str = "width", traced: bool = False) -> dict[str, Any]:
    """The size of each width, an int: `width` is one int (times each width's ratio) or {name: int}.

    With `traced` a ratio may be without a value, as under `jit`; its size is then an array.

    **Raises:** `ProgramError` naming the argument for a size below 1 or a name that is missing.
    """
    named = program.structure.widths
    if isinstance(width, Mapping):
        missing = [name for name, _ in named if name not in width]
        if missing:
            raise bad_argument(argument, f"no size for {', '.join(missing)}", "give a size for each width, or one int")
        return {name: _checked(width[name], name, argument) for name, _ in named}
    if isinstance(width, bool) or not isinstance(width, int | np.integer):
        raise bad_argument(argument, f"{width!r} is no size", "give a positive int, or {name: int}")
    found = {}
    for name, num in named:
        ratio = program.leaves[num.index]
        if is_concrete(ratio):
            found[name] = _checked(round(int(width) * float(ratio)), name, argument)
        elif traced:
            found[name] = jnp.round(_checked(width, name, argument) * ratio)
        else:
            raise bad_argument(argument, "a width's ratio has no value yet, so it has no size", "give {name: int}")
    return found


def _checked(size: Any, name: str, argument: str) -> int:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise bad_argument(argument, f"the size of {name} is {size!r}", "give a positive int")
    return int(size)
