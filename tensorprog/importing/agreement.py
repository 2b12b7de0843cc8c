"""The program beside the function it was made of, at one width, and what differs first where they do not agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import ProgramError
from tensorprog.importing.lowering import Lowered
from tensorprog.importing.models import Model, drawn, is_trained
from tensorprog.importing.parameters import theta
from tensorprog.interpret.finite import apply
from tensorprog.ir import Data, Input
from tensorprog.ir import shape as shape_of

CLOSE = 1e-4
"""How far outputs may be apart, in units of the largest: libraries compute their norms in single precision."""
EXAMPLES = 2


def check_agreement(model: Model, made: Lowered, inputs: Sequence[Input | Data]) -> None:
    """Hold the program against the function, with the model's own parameters at its first trial width.

    **Raises:** `ProgramError` for functions that mix examples; where the program is not the function.
    """
    width = model.widths[0]
    f, params, arrays = drawn(model, width)
    with jax.enable_x64(True):
        whole = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) if is_trained(leaf) else leaf, params)
        x = [_example(value, k) for k, value in enumerate(inputs)]
        theirs = _called(f, whole, x)
        _check_examples(f, whole, x, theirs)
        dims = {
            name: round(float(made.program.leaves[num.index]) * width) for name, num in made.program.structure.widths
        }
        given = {}
        for p in made.program.structure.parameters:
            full = tuple(d if isinstance(d, int) else dims[d] for d in shape_of(p))
            given[p.name] = jnp.asarray(theta(made.mapped[p.name], arrays[made.mapped[p.name].leaf], width, 0, full))
        ours = jax.tree.leaves(apply(made.program, given, x[0] if len(x) == 1 else tuple(x)))
        for a, b in zip(ours, theirs, strict=True):
            b = np.asarray(b)
            gap, size = np.abs(np.ravel(a) - np.ravel(b)).max(), np.abs(b).max()
            if not gap <= CLOSE * max(size, 1e-30):
                raise ProgramError(
                    f"the program is not the function: at width {width} their outputs are {gap / size:.2g} apart, in "
                    "units of the largest; this is a fault of the import, not of your model: please report it with the "
                    "listing, from_jax(…, check=False)"
                )


def _example(value: Input | Data, place: int) -> Any:
    rng = np.random.default_rng(place)
    draws = rng.normal(size=(EXAMPLES, *value.shape))
    return jnp.asarray(draws if isinstance(value, Input) else rng.integers(0, 2, size=draws.shape))


def _called(f: Any, params: Any, x: Sequence[Any]) -> list[Any]:
    return jax.tree.leaves(f(params, x[0] if len(x) == 1 else tuple(x)))


def _check_examples(f: Any, params: Any, x: Sequence[Any], whole: Sequence[Any]) -> None:
    """Each example's output is a function of that example."""
    alone = [_called(f, params, [a[k : k + 1] for a in x]) for k in range(EXAMPLES)]
    for k, y in enumerate(whole):
        apart = np.concatenate([np.asarray(one[k]) for one in alone])
        if not np.allclose(apart, np.asarray(y), rtol=1e-4, atol=1e-5 * float(np.abs(y).max())):
            raise ProgramError(
                "build: f mixes examples: what it returns for one depends on the others; normalise over features or "
                "with fixed statistics (use_running_average=True), and give batches that belong together as sites"
            )
