"""What rules inside of a kernel refuse without knowing lines, told at the line of the program that it is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.errors import bad_argument, problem
from tensorprog.functions.breaks import Jumps, refuse_jumps
from tensorprog.functions.joint import Partial, Plain
from tensorprog.interpret.system import Moments, joint_sides
from tensorprog.program import Program
from tensorprog.show import Printer


@contextmanager
def jumps_at_their_line(program: Program, m: Moments) -> Iterator[None]:
    """A derivative rule refuses what jumps, and knows no lines: the program's are looked through for the function."""
    try:
        yield
    except Jumps as refused:
        position = _jumping(m)
        if position is None:
            raise
        text = Printer(program.structure, [None] * len(program.leaves)).expression(position, top=True)
        raise problem(program.structure.line(position), text, refused.why, refused.remedy) from None


@contextmanager
def mapped_without_check(*inputs: Any) -> Iterator[None]:
    """Inside a `jax.shard_map` that checks over which axes values vary: loops that start from constants do not say."""
    try:
        yield
    except TypeError as error:
        kinds = [jax.typeof(a).sharding.mesh.axis_types for a in jax.tree.leaves(inputs)]
        mapped = any(jax.sharding.AxisType.Manual in kind for kind in kinds)
        if not mapped or not any(word in str(error) for word in ("varying", "manual axis types")):
            raise
        raise bad_argument(
            "jax.shard_map", "series and quadratures loop until they are done, from values that vary over no axis",
            "write jax.shard_map(…, check_vma=False)",
        ) from error  # fmt: skip


def _jumping(m: Moments) -> int | None:
    """The first Nonlin of several Gaussians that jumps, or else one whose slope does."""
    kinked = None
    for e, _, alone, slots, owner in joint_sides(m.demand):
        given = (tuple(jnp.ones(e.numbers.shape[1])), ())
        if _refused(alone, len(slots), given):
            return owner
        if kinked is None and any(_refused(Partial(alone, i), len(slots), given) for i in range(len(slots))):
            kinked = owner
    return kinked


def _refused(fn: Any, size: int, given: Any) -> bool:
    try:
        with jax.ensure_compile_time_eval():
            refuse_jumps(Plain(fn), jnp.eye(size), given)
    except Jumps:
        return True
    return False
