"""Which parameters of a function go by structured derivatives: its jaxpr looked through once, nothing computed.

The uses of one parameter whose factors cover the same entries in the same order are one `Group`: their positions stand
side by side, so that a tied weight's cross terms come out of one contraction. Uses of W and of Wᵀ are one group too,
the latter *swapped*. Uses of disjoint parts of a parameter (a layer of a stack, a gate) have no cross terms; uses that
overlap in any other way leave the parameter to plain differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from tensorprog.empirical.replay import DIRECT, WHOLE, Cut, Tape, Value, run
from tensorprog.empirical.uses import Left, Rows, Use
from tensorprog.empirical.views import Atom, Axis, View, box, size


@dataclass(frozen=True)
class Member:
    """A use: which of the cuts, which of the uses there, whether its factors are swapped, how many positions it has."""

    cut: int
    use: int
    swapped: bool
    positions: int
    rows: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Uses of one part of a parameter: entries [s, α, β] of the derivative are Σ_p left[s, p, α] right[s, p, β]."""

    parameter: int
    shared: Axis
    left: Axis
    right: Axis
    start: tuple[int, ...]
    members: list[Member] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return size(self.shared), size(self.left), size(self.right)

    @property
    def rows(self) -> bool:
        """Whether its left factors are rows of an embedding throughout, told apart by their numbers."""
        return all(member.rows and not member.swapped for member in self.members)

    def positions(self, swapped: bool) -> int:
        return sum(member.positions for member in self.members if member.swapped == swapped)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A function of (theta, one example) with its cuts: which parameters are cut, and what the others are."""

    jaxpr: Any
    cut: frozenset[int]
    notes: dict[int, int]
    cuts: list[Cut]
    groups: list[Group]

    def direct(self, parameter: int) -> bool:
        return self.notes[parameter] == DIRECT

    @property
    def plain(self) -> list[int]:
        """The parameters that are differentiated in the plain way."""
        return sorted(self.notes)

    def replayed(
        self, theta: Sequence[Any], x: PyTree, offsets: Sequence[Array]
    ) -> tuple[Array, list[tuple[Left, ...]]]:
        """The outputs, and the left factors of every cut."""
        (y,), tape = _replayed(self.jaxpr, theta, x, self.cut, offsets, {})
        return y, tape.lefts


def anatomy(outputs: Callable[[Any, Any], Array], theta: Sequence[Any], x: PyTree, whole: set[int]) -> Anatomy:
    """Of `outputs` at shapes as these; the parameters in `whole` are not cut."""
    jaxpr = jax.make_jaxpr(outputs)(list(theta), x)
    notes = dict.fromkeys(whole, WHOLE)
    while True:
        cut = frozenset(range(len(theta))) - set(notes)
        found: dict[int, int] = {}
        tapes: list[Tape] = []

        def look(theta: Sequence[Any], x: PyTree) -> Any:
            _, tape = _replayed(jaxpr, theta, x, cut, None, found)  # noqa: B023
            tapes.append(tape)  # noqa: B023
            return tape.lefts

        lefts = jax.eval_shape(look, list(theta), x)
        if not found:
            groups, mixed = _grouped(tapes[-1].cuts, lefts)
            if not mixed:
                return Anatomy(jaxpr, cut, notes, tapes[-1].cuts, groups)
            found = dict.fromkeys(mixed, WHOLE)
        notes |= found


def _replayed(
    jaxpr: Any, theta: Sequence[Any], x: PyTree, cut: frozenset[int], offsets: Any, notes: dict[int, int]
) -> tuple[list[Array], Tape]:
    def whole(i: int, shape: Sequence[int]) -> View:
        axes: list[Axis] = [(Atom(axis, n, 1),) if n > 1 else () for axis, n in enumerate(shape)]
        return View(i, tuple(axes), (0,) * len(shape))

    tape = Tape(offsets, notes)
    values = [
        Value(leaf, (whole(i, jnp.shape(leaf)),) if i in cut else (), uniform=jnp.size(leaf) == 1)
        for i, leaf in enumerate(theta)
    ]
    found = run(jaxpr, [*values, *(Value(leaf, active=True) for leaf in jax.tree.leaves(x))], tape)
    tape.note(found, WHOLE)
    return [value.array for value in found], tape


def _grouped(cuts: Sequence[Cut], lefts: Sequence[tuple[Any, ...]]) -> tuple[list[Group], set[int]]:
    """The groups, and the parameters whose uses overlap in ways that have no common order of entries."""
    groups: list[Group] = []
    for c, (cut, own) in enumerate(zip(cuts, lefts, strict=True)):
        for u, (use, left) in enumerate(zip(cut.uses, own, strict=True)):
            positions = (left.index if isinstance(left, Rows) else left).shape[1]
            group, swapped = _group_of(use, groups)
            group.members.append(Member(c, u, swapped, positions, isinstance(left, Rows)))
    mixed = {
        a.parameter
        for i, a in enumerate(groups)
        for b in groups[:i]
        if a.parameter == b.parameter and not _are_disjoint(a, b)
    }
    return groups, mixed


def _group_of(use: Use, groups: list[Group]) -> tuple[Group, bool]:
    for group in groups:
        if (group.parameter, group.start, group.shared) == (use.parameter, use.start, use.shared):
            if (group.left, group.right) == (use.left, use.right):
                return group, False
            if (group.left, group.right) == (use.right, use.left):
                return group, True
    groups.append(Group(use.parameter, use.shared, use.left, use.right, use.start))
    return groups[-1], False


def _are_disjoint(a: Group, b: Group) -> bool:
    """Whether two parts of a parameter are apart along some axis."""
    boxes = zip(*(box(g.start, (g.shared, g.left, g.right)) for g in (a, b)), strict=True)
    return any(last < first or last2 < first2 for (first2, last), (first, last2) in boxes)
