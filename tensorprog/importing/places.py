"""Axes: reshape, transpose, broadcast, slices, concatenation. A reshape regroups the atoms of axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, assert_never

import numpy as np

from tensorprog.importing.context import Context
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.sizes import Sizes
from tensorprog.importing.values import Atom, Axes, Known, Op, Own, Par, Scal, Value, Vec, sites
from tensorprog.importing.writing import demand_split, plain_vector, write, write_scalar
from tensorprog.tracing.sites import concat, reshape, stack
from tensorprog.tracing.values import Vector, gather

SPLIT = "reshape the width as (heads, size), and back, and only that"


def moved(x: Vec, axes: Axes, v: Vector) -> Vec:
    """The same vector with other axes."""
    return replace(x, axes=axes, v=v, op=None)


def as_vector(context: Context, parameters: Parameters, par: Par) -> Vec:
    """A parameter as an initial vector, with the array's axes."""
    found, layout = parameters.vector(par)
    order = [a for axis in par.axes for a in axis]
    assert found.v is not None, "a declared vector is written"
    own = next((a for a in layout if isinstance(parameters.atom(par, a), Own)), layout[-1] if layout else None)
    fixed = [a for a in layout if a != own]
    wanted = [a for a in order if a != own]
    v = found.v
    if fixed != wanted:
        v = transposed(v, [fixed.index(a) for a in wanted])
    atom: Callable[[int], Atom] = lambda a: Own(parameters.atoms[par.leaf][a]) if a == own else parameters.size(par, a)
    axes = tuple(tuple(atom(a) for a in axis) for axis in par.axes)
    made = Vec(axes, v, None, found.order + par.order, found.cause, found.origins, found.leaf)
    return made if par.coef == 1.0 else times(made, par.coef)


def times(x: Vec, c: float) -> Vec:
    """c·x, not written down."""
    return replace(x, v=None, leaf=None, op=Op(None, (), [x, c], "mul"))


def transposed(v: Vector, order: Sequence[int]) -> Vector:
    """A vector with its sites in another order."""
    if list(order) == list(range(len(order))):
        return v
    return gather([v], lambda source: source.transpose(tuple(order)), "transpose({})")


def transpose(context: Context, x: Value, order: Sequence[int]) -> Value:
    """Array axes in another order."""
    match x:
        case Par():
            return replace(x, axes=tuple(x.axes[k] for k in order))
        case Scal():
            s, shape = write_scalar(context, x), tuple(x.shape[k] for k in order)
            kept = [k for k in range(len(x.shape)) if x.shape[k] != 1]
            moved_to = [kept.index(k) for k in order if x.shape[k] != 1]
            if moved_to != sorted(moved_to):
                s = s.rearranged(lambda source: source.transpose(moved_to), "{}ᵀ")
            return replace(x, shape=shape, s=s, op=None)
        case Vec():
            axes = tuple(x.axes[k] for k in order)
            numbered, count = [], 0
            for axis in x.axes:
                fixed = sum(isinstance(a, int) for a in axis)
                numbered.append(range(count, count + fixed))
                count += fixed
            return moved(x, axes, transposed(write(context, x), [place for k in order for place in numbered[k]]))
        case Known():
            raise AssertionError("numbers are transposed as they are")
        case never:
            assert_never(never)


def inserted(context: Context, x: Value, shape: Sequence[int], places: Sequence[int]) -> Value:
    """Broadcasting: array axis k goes to place places[k]; all others are axes along which the array is constant."""
    match x:
        case Par():
            axes: list[tuple[int, ...]] = [()] * len(shape)
            for axis, place in zip(x.axes, places, strict=True):
                axes[place] = axis
            return replace(x, axes=tuple(axes))
        case Scal():
            sizes = [1] * len(shape)
            for size, place in zip(x.shape, places, strict=True):
                sizes[place] = size
            return _same_scalar(context, x, tuple(sizes))
        case Vec():
            found: list[tuple[Atom, ...]] = [()] * len(shape)
            for axis, place in zip(x.axes, places, strict=True):
                found[place] = axis
            return moved(x, tuple(found), write(context, x))
        case Known():
            raise AssertionError("numbers are broadcast as they are")
        case never:
            assert_never(never)


def _same_scalar(context: Context, x: Scal, shape: tuple[int, ...]) -> Scal:
    """The same scalars in an array of other axes: their sites stay, or are regrouped."""
    s = write_scalar(context, x)
    want = tuple(d for d in shape if d != 1)
    if want != s.sites:
        s = s.rearranged(lambda source: source.reshape(want), "{}")
    return replace(x, shape=shape, s=s, op=None)


def reshaped(context: Context, parameters: Parameters, x: Value, before: list[Sizes], after: list[Sizes]) -> Value:
    """A reshape from sizes `before` to sizes `after`, at every trial width."""
    match x:
        case Par():
            return _reshaped_parameter(context, parameters, x, after)
        case Scal():
            if any(size == 1 and set(full) != {1} for size, full in zip(x.shape, before, strict=True)):
                x = full_scalar(context, x, before)
            return _same_scalar(context, x, tuple(sizes[0] for sizes in after))
        case Vec():
            return _reshaped_vector(context, x, before, after)
        case Known():
            raise AssertionError("numbers are reshaped as they are")
        case never:
            assert_never(never)


def full_scalar(context: Context, x: Scal, sizes: Sequence[Sizes]) -> Scal:
    """Scalars written at every site along which they are constant."""
    if any(len(set(s)) > 1 for s in sizes):
        context.fail("scalars are spread along the width and taken apart", "keep the width's axis as it is")
    shape = tuple(s[0] for s in sizes)
    s = write_scalar(context, x)
    s = s.rearranged(lambda source: np.squeeze(np.broadcast_to(source.reshape(x.shape), shape)), "{}")
    return replace(x, shape=shape, s=s, op=None)


def full_vector(context: Context, x: Vec, sizes: Sequence[Sizes]) -> Vec:
    """A vector written at every site along which it is constant."""
    v = write(context, x)
    axes: list[tuple[Atom, ...]] = []
    missing = False
    for axis, size in zip(x.axes, sizes, strict=True):
        if axis or set(size) == {1}:
            axes.append(axis)
            continue
        if len(set(size)) > 1:
            context.fail("a vector is constant along another axis that grows", "arrays have one axis that grows")
        axes.append((size[0],))
        missing = True
    if not missing:
        return x
    present = tuple(
        a if axis else 1 for axis, full in zip(x.axes, axes, strict=True) for a in full if isinstance(a, int)
    )
    wanted = sites(tuple(axes))
    v = gather([v], lambda source: np.broadcast_to(source.reshape(present), wanted), "repeat({})")
    return moved(x, tuple(axes), v)


def _reshaped_vector(context: Context, x: Vec, before: list[Sizes], after: list[Sizes]) -> Vec:
    if any(not axis and set(size) != {1} for axis, size in zip(x.axes, before, strict=True)):
        x = full_vector(context, x, before)
    trials = len(context.trials)
    waiting: list[Atom] = [a for axis in x.axes for a in axis]
    sized = lambda a: a.sizes if isinstance(a, Own) else (a,) * trials
    axes: list[tuple[Atom, ...]] = []
    for size in after:
        taken: list[Atom] = []
        have = (1,) * trials
        while have != size:
            if not waiting:
                context.fail("a reshape that mixes the width with other axes", SPLIT)
            atom = waiting.pop(0)
            rest = tuple(s // h for s, h in zip(size, have, strict=True))
            if all(r % s == 0 for r, s in zip(rest, sized(atom), strict=True)):
                taken.append(atom)
                have = tuple(h * s for h, s in zip(have, sized(atom), strict=True))
            elif isinstance(atom, int):
                if len(set(rest)) > 1 or atom % rest[0]:
                    context.fail("a reshape that mixes the width with other axes", SPLIT)
                taken.append(rest[0])
                waiting.insert(0, atom // rest[0])
                have = size
            else:
                left = tuple(s // r for s, r in zip(atom.sizes, rest, strict=True))
                if any(r * k != s for r, k, s in zip(rest, left, atom.sizes, strict=True)):
                    context.fail("a reshape that takes the width apart unevenly", SPLIT)
                parts = [r if set(r) != {1} else None for r in (rest, left)]
                new: tuple[Atom, ...] = tuple(Own(p) if len(set(p)) > 1 else p[0] for p in parts if p is not None)
                demand_split(context, [x], new)
        axes.append(_merged(taken))
    v, wanted = write(context, x), sites(tuple(axes))
    return moved(x, tuple(axes), v if v.sites == wanted else reshape(v, wanted))


def _merged(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Sites that became one axis are one site axis; beside the width they stay apart."""
    if any(isinstance(a, Own) for a in atoms):
        return tuple(atoms)
    return (math.prod(a for a in atoms if isinstance(a, int)),) if atoms else ()


def _reshaped_parameter(context: Context, parameters: Parameters, x: Par, after: list[Sizes]) -> Par:
    waiting = [a for axis in x.axes for a in axis]
    axes: list[tuple[int, ...]] = []
    trials = len(context.trials)
    for size in after:
        taken: list[int] = []
        have = (1,) * trials
        while have != size:
            if not waiting:
                context.fail("a parameter is reshaped in a way that mixes its axes", SPLIT)
            atom = waiting.pop(0)
            whole = parameters.atoms[x.leaf][atom]
            rest = tuple(s // h for s, h in zip(size, have, strict=True))
            if all(r % s == 0 for r, s in zip(rest, whole, strict=True)):
                taken.append(atom)
                have = tuple(h * s for h, s in zip(have, whole, strict=True))
            else:
                left = tuple(s // max(r, 1) for s, r in zip(whole, rest, strict=True))
                if any(r * k != s for r, k, s in zip(rest, left, whole, strict=True)):
                    context.fail("a parameter is reshaped in a way that mixes its axes", SPLIT)
                parameters.split(x.leaf, atom, (rest, left))
        axes.append(tuple(taken))
    return replace(x, axes=tuple(axes))


def indexed(context: Context, x: Vec, places: Sequence[Any]) -> Vec:
    """x at slices of its array axes; the vector's own axis is left whole, or one part of it is taken."""
    axes: list[tuple[Atom, ...]] = []
    index: list[Any] = []
    for axis, place in zip(x.axes, places, strict=True):
        if place == slice(None) or not axis:
            index += [slice(None)] * sum(isinstance(a, int) for a in axis)
            axes.append(axis)
        elif len(axis) == 1 and isinstance(axis[0], int):
            count = len(range(axis[0])[place])
            index.append(place.start if count == 1 else place)
            axes.append(() if count == 1 else (count,))
        else:
            context.fail("a vector is cut along the width", SPLIT)
    v = write(context, x)
    return moved(x, tuple(axes), v[tuple(index)] if any(i != slice(None) for i in index) else v)


def part_of_own(context: Context, x: Vec, axis: int, start: Sizes, stop: Sizes) -> Vec:
    """One of several equal parts of the vector's own axis: the gates of an LSTM's fused weights."""
    atoms = x.axes[axis]
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    if len(atoms) == 2 and isinstance(atoms[0], int) and isinstance(atoms[1], Own) and atoms[1].sizes == size:
        place = start[0] // size[0]
        before = sum(isinstance(a, int) for k in x.axes[:axis] for a in k)
        v = write(context, x)[(*[slice(None)] * before, place)]
        return moved(x, (*x.axes[:axis], (atoms[1],), *x.axes[axis + 1 :]), v)
    if len(atoms) == 1 and isinstance(atoms[0], Own):
        whole = atoms[0].sizes
        counts = {w // s if s and not w % s and not a % s else 0 for w, s, a in zip(whole, size, start, strict=True)}
        if len(counts) == 1 and (count := counts.pop()) > 1:
            demand_split(context, [x], (count, Own(size) if len(set(size)) > 1 else size[0]))
    context.fail("a vector is cut along the width", "cut it into equal parts, jnp.split(x, k, axis=-1)")


def joined_sites(context: Context, values: Sequence[Vec], sizes: Sequence[Sequence[Sizes]], axis: int) -> Vec:
    """Vectors laid end to end along a site axis."""
    full = []
    for x, shape in zip(values, sizes, strict=True):
        if any(isinstance(a, Own) for a in x.axes[axis]):
            context.fail(
                "vectors are laid side by side along the width",
                "give each a weight of its own and add the products: W @ [a; b] is W1 @ a + W2 @ b",
            )  # fmt: skip
        full.append(full_vector(context, x, shape))
    first = full[0]
    if {x.order for x in full} != {first.order}:
        context.fail("vectors of different growth are laid end to end", "bring all to one size first")
    before = sum(isinstance(a, int) for k in first.axes[:axis] for a in k)
    vectors = [plain_vector(context, x) for x in full]
    if all(not x.axes[axis] for x in full):
        v = stack(vectors, before)
    else:
        grown = [
            v if x.axes[axis] else gather([v], lambda s: np.expand_dims(s, before), "{}")
            for v, x in zip(vectors, full, strict=True)
        ]
        v = concat(grown, before)
    axes = list(first.axes)
    axes[axis] = (v.sites[before],)
    return Vec(tuple(axes), v, None, first.order, first.cause, frozenset().union(*(x.origins for x in full)))
