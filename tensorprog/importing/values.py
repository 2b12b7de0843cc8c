"""What stands for an array of the model while it becomes a program: numbers, parameters, vectors, scalars.

Every axis of an array is a tuple of atoms: a fixed size (a site), `Own` (the vector's own axis: the width, an input's
features, a readout's rows), or none, where the array is constant along it, as unit axes are. A reshape regroups atoms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tensorprog.importing.sizes import Sizes
from tensorprog.tracing.values import Scalar, Vector


@dataclass(frozen=True)
class Own:
    """The one axis of a vector that is no site, by its size at the trial widths."""

    sizes: Sizes

    @property
    def is_wide(self) -> bool:
        return len(set(self.sizes)) > 1


Atom = int | Own
Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]
Place = tuple[int, int]
"""A parameter's axis that makes a vector's own axis: the leaf, and which of its atoms."""


def sites(axes: Axes) -> tuple[int, ...]:
    return tuple(atom for axis in axes for atom in axis if isinstance(atom, int))


def own_axis(axes: Axes) -> int | None:
    """The array axis that holds the vector's own."""
    return next((k for k, axis in enumerate(axes) if any(isinstance(a, Own) for a in axis)), None)


def own(axes: Axes) -> Own | None:
    return next((a for axis in axes for a in axis if isinstance(a, Own)), None)


@dataclass(eq=False)
class Known:
    """Numbers that are there already, at each trial width."""

    arrays: tuple[Any, ...]


@dataclass(eq=False)
class Par:
    """A parameter, before it is known what it is in a program: array axes as atoms (leaf atom numbers) of the leaf."""

    leaf: int
    axes: tuple[tuple[int, ...], ...]
    coef: float = 1.0
    order: float = 0.0
    picked: tuple[tuple[int, int], ...] = ()  # (atom, index): one matrix of a stack of them


@dataclass(eq=False)
class Op:
    """An elementwise equation that is not written down yet."""

    fn: Any
    params: tuple[tuple[str, Any], ...]
    args: list[Any]  # Vec, Scal or numbers
    name: str  # the primitive's
    label: str | None = None  # the function of jax.nn that it is a part of


@dataclass(eq=False)
class Vec:
    """A vector at each site, times n^order: written (`v`), or an equation of others (`op`)."""

    axes: Axes
    v: Vector | None = None
    op: Op | None = None
    order: float = 0.0
    cause: str | None = None
    origins: frozenset[Place] = frozenset()
    leaf: int | None = None  # the parameter whose product or vector this is, alone
    var: Any = field(default=None, repr=False)  # the jaxpr's variable, for the check


@dataclass(eq=False)
class Scal:
    """Scalars, times n^order: an array with unit axes where it is constant; written (`s`), or an equation (`op`)."""

    shape: tuple[int, ...]
    s: Scalar | None = None
    op: Op | None = None
    order: float = 0.0
    cause: str | None = None
    integral: bool = False

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(d for d in self.shape if d != 1)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Value = Known | Par | Vec | Scal
