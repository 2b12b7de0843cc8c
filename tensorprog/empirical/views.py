"""What an array is of a parameter: some of its entries in another order, times a number.

Between a parameter and the product it enters stand reshapes, transposes, broadcasts, slices and factors. A `View`
follows them, each axis of the array as a row-major list of `Atom`s, steps along one axis of the parameter: the strides
of a NumPy view, except that an axis may be made of several. Nothing is computed; views are compared by their atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class Atom(NamedTuple):
    """`size` steps of `step` entries along the parameter's axis `axis`; axis -1 repeats, along no axis."""

    axis: int
    size: int
    step: int

    def split(self, inner: int) -> tuple[Atom, Atom]:
        return Atom(self.axis, self.size // inner, self.step * inner), Atom(self.axis, inner, self.step)


Axis = tuple[Atom, ...]  # outermost first; () for size 1


@dataclass(frozen=True, eq=False)
class View:
    """An array that is linear in one parameter; `scale` is the factor, a number known when the network runs, or 1.

    `outer` has, for each loop that was entered, the axis that it runs along, or None where every step sees it all.
    """

    parameter: int
    axes: tuple[Axis, ...]
    start: tuple[int, ...]
    scale: Any = None
    outer: tuple[Axis | None, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size(axis) for axis in self.axes)

    def transposed(self, permutation: Sequence[int]) -> View:
        return replace(self, axes=tuple(self.axes[i] for i in permutation))

    def broadcast(self, shape: Sequence[int], dimensions: Sequence[int]) -> View:
        """As `jax.lax.broadcast_in_dim`."""
        axes: list[Axis] = [(Atom(-1, n, 0),) if n > 1 else () for n in shape]
        for axis, at in zip(self.axes, dimensions, strict=True):
            if axis:
                axes[at] = axis
        return replace(self, axes=tuple(axes))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The same entries in order; None where a new axis would begin or end inside what no atom divides into."""
        rest = [atom for axis in self.axes for atom in axis][::-1]
        axes: list[Axis] = []
        for n in shape:
            taken: list[Atom] = []
            while n > 1:
                atom = rest.pop()
                if n % atom.size == 0:
                    taken.append(atom)
                    n //= atom.size
                elif atom.size % n == 0:
                    outer, inner = atom.split(atom.size // n)
                    taken.append(outer)
                    rest.append(inner)
                    n = 1
                else:
                    return None
            axes.append(tuple(taken))
        return replace(self, axes=tuple(axes))

    def sliced(self, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int] | None) -> View | None:
        """As `jax.lax.slice`; None where an axis that is cut is made of several atoms."""
        start, axes = list(self.start), list(self.axes)
        for i, (lo, hi) in enumerate(zip(starts, limits, strict=True)):
            stride = strides[i] if strides else 1
            n = len(range(lo, hi, stride))
            if n == size(axes[i]):
                continue
            if len(axes[i]) != 1 or n == 0:
                return None
            (atom,) = axes[i]
            if atom.axis >= 0:
                start[atom.axis] += lo * atom.step
            axes[i] = (Atom(atom.axis, n, atom.step * stride),) if n > 1 else ()
        return replace(self, axes=tuple(axes), start=tuple(start))

    def scaled(self, factor: Any) -> View:
        return replace(self, scale=factor if self.scale is None else self.scale * factor)

    def entered(self) -> View:
        """In a loop whose every step sees it all."""
        return replace(self, outer=(*self.outer, None))

    def stepped(self) -> View:
        """In a loop that runs along its first axis."""
        first = self.axes[0]
        along = None if is_spread(first) else first
        return replace(self, axes=self.axes[1:], outer=(*self.outer, along))


def size(axis: Axis) -> int:
    return math.prod(atom.size for atom in axis)


def is_spread(axis: Axis) -> bool:
    """Whether the axis is more than one copy of the same entries."""
    return bool(axis) and all(atom.axis < 0 for atom in axis)


def is_entries(axis: Axis) -> bool:
    """Whether the axis runs over entries of the parameter only."""
    return all(atom.axis >= 0 for atom in axis)


def joined(axes: Iterable[Axis]) -> Axis:
    """Several axes as one, with atoms that continue each other as one, so that equal axes have equal atoms."""
    atoms: list[Atom] = []
    for atom in (atom for axis in axes for atom in axis):
        last = atoms[-1] if atoms else None
        if last and last.axis == atom.axis and last.step == atom.size * atom.step:
            atoms[-1] = Atom(atom.axis, last.size * atom.size, atom.step)
        else:
            atoms.append(atom)
    return tuple(atoms)


def box(start: Sequence[int], axes: Iterable[Axis]) -> list[tuple[int, int]]:
    """First and last index along each axis of the parameter."""
    last = list(start)
    for atom in (atom for axis in axes for atom in axis):
        last[atom.axis] += (atom.size - 1) * atom.step
    return list(zip(start, last, strict=True))
