"""dot_general: weights times vectors, inner products over the width, sites mixed by scalars or numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tensorprog.importing.context import PRODUCT, Context
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.places import as_vector, full_scalar, full_vector, inserted, moved, transpose, transposed
from tensorprog.importing.sizes import Sizes
from tensorprog.importing.values import Atom, Axes, Axis, Known, Op, Own, Par, Scal, Value, Vec, own, own_axis
from tensorprog.importing.writing import averaged, demand_split, plain_vector, write_scalar
from tensorprog.tracing.run import inner, scalar
from tensorprog.tracing.sites import mix
from tensorprog.tracing.values import Vector, gather, scalars_of


@dataclass(frozen=True)
class Side:
    """An operand of a product: its value, its sizes, and which of its axes are contracted, and which shared."""

    value: Value
    sizes: tuple[Sizes, ...]
    contracted: tuple[int, ...]
    shared: tuple[int, ...]

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.sizes)) if k not in self.contracted and k not in self.shared)


def dot(context: Context, parameters: Parameters, left: Side, right: Side, params: dict[str, Any]) -> Value:
    """The product of two arrays, axes (shared, left free, right free)."""
    pair = left.value, right.value
    if any(context.is_zero(v) for v in pair):
        return Known(tuple(np.zeros(_shape(left, right, k)) for k in range(len(context.trials))))
    left, right = _roles(context, parameters, left, right)
    match left.value, right.value:
        case Par(), Vec():
            return _weight(context, parameters, left, right, first=True)
        case Vec(), Par():
            return _weight(context, parameters, right, left, first=False)
        case Vec(), Vec():
            return _inner(context, left, right)
        case (Scal() | Known(), Vec()):
            return _mixed(context, left, right, first=True)
        case (Vec(), Scal() | Known()):
            return _mixed(context, right, left, first=False)
        case (Scal() | Known(), Scal() | Known()):
            return _scalars(context, left, right, params)
        case _:  # a parameter on one side, and no vector on the other
            pass
    context.fail("a product of two parameters, and no vector", "write W @ (V @ x), a weight times a vector each time")


def _shape(left: Side, right: Side, k: int) -> tuple[int, ...]:
    axes = [left.sizes[a] for a in (*left.shared, *left.free)] + [right.sizes[a] for a in right.free]
    return tuple(s[k] for s in axes)


def _roles(context: Context, parameters: Parameters, left: Side, right: Side) -> tuple[Side, Side]:
    """Parameters that are no matrix here as vectors."""

    def wide(side: Side) -> int:
        assert isinstance(side.value, Par)
        atoms = [a for axis in side.value.axes for a in axis]
        return sum(isinstance(parameters.atom(side.value, a), Own) for a in atoms)

    def vector(side: Side) -> Side:
        assert isinstance(side.value, Par)
        return replace(side, value=as_vector(context, parameters, side.value))

    if isinstance(left.value, Par) and isinstance(right.value, Par):
        if wide(left) > 1 and wide(right) > 1:
            context.fail(
                f"{parameters.name(left.value)} and {parameters.name(right.value)} are two weights that are multiplied",
                "write W @ (V @ x), a weight times a vector each time",
            )  # fmt: skip
        return (vector(left), right) if wide(left) < wide(right) else (left, vector(right))
    if isinstance(left.value, Par) and not isinstance(right.value, Vec):
        return vector(left), right
    if isinstance(right.value, Par) and not isinstance(left.value, Vec):
        return left, vector(right)
    return left, right


# ---- a weight times a vector


def _weight(context: Context, parameters: Parameters, w: Side, x: Side, *, first: bool) -> Vec:
    par, vec = w.value, x.value
    assert isinstance(par, Par) and isinstance(vec, Vec)
    vec = full_vector(context, vec, [s if k in x.contracted else (1,) for k, s in enumerate(x.sizes)])
    window: list[int] = []
    cols: int | None = None
    for wa, xa in zip(w.contracted, x.contracted, strict=True):
        atoms = _matched(context, parameters, par, wa, vec, xa)
        for atom, place in zip(par.axes[wa], atoms, strict=True):
            if isinstance(place, Own):
                cols = atom
            else:
                window.append(atom)
    if cols is None:
        _no_width(context, parameters, par)
    shared = [a for k in w.shared for a in par.axes[k]]
    free = [a for k in w.free for a in par.axes[k]]
    wide = [a for a in free if isinstance(parameters.atom(par, a), Own)]
    if len(wide) > 1:
        context.fail(
            f"{parameters.name(par)} has more than two axes that go to infinity", "a weight has rows and columns"
        )
    assert cols is not None, "else it is refused above"
    rows = wide[0] if wide else free[-1] if free else None
    new = [a for a in free if a != rows]
    matrix, growth, cause = parameters.matrix(par, [*shared, *new], window, rows, cols)
    rest = [k for k in range(len(x.sizes)) if k not in x.contracted and k not in x.shared]
    v = _laid(context, vec, x, rest, [parameters.size(par, a) for a in new])
    y = matrix.over_windows(v) if window or shared or new else matrix @ v
    own_atom: Own | None = None if rows is None else Own(parameters.atoms[par.leaf][rows])
    shared_axes = [vec.axes[k] for k in x.shared]
    # The product's sites are (x's free, shared, new); its array axes are (shared, left's free, right's free).
    x_axes = [vec.axes[k] for k in rest]
    atom_of = lambda a: own_atom if own_atom is not None and a == rows else parameters.size(par, a)
    w_axes: list[Axis] = [tuple(map(atom_of, par.axes[k])) for k in w.free]
    counts = [sum(isinstance(a, int) for axis in group for a in axis) for group in (x_axes, shared_axes, w_axes)]
    at = [list(range(sum(counts[:k]), sum(counts[: k + 1]))) for k in range(3)]
    if first:
        axes, sequence = (*shared_axes, *w_axes, *x_axes), at[1] + at[2] + at[0]
    else:
        axes, sequence = (*shared_axes, *x_axes, *w_axes), at[1] + at[0] + at[2]
    y = transposed(y, sequence)
    origins = frozenset() if rows is None else frozenset({(par.leaf, parameters.sources[par.leaf][rows])})
    made = Vec(tuple(axes), y, None, vec.order + growth + par.order, cause or vec.cause, origins, par.leaf)
    return made if par.coef == 1.0 else replace(made, v=None, leaf=None, op=Op(None, (), [made, par.coef], "mul"))


def _matched(context: Context, parameters: Parameters, par: Par, axis: int, x: Vec, place: int) -> tuple[Atom, ...]:
    """The atoms of a contracted axis, which parameter and vector must split alike."""
    trials = len(context.trials)
    theirs = x.axes[place]
    sized = [a.sizes if isinstance(a, Own) else (a,) * trials for a in theirs]
    ours = [parameters.atoms[par.leaf][a] for a in par.axes[axis]]
    if ours == sized:
        return theirs
    if len(ours) <= len(sized):
        if len(ours) == 1:
            parameters.split(par.leaf, par.axes[axis][0], sized)
    elif len(sized) == 1 and isinstance(theirs[0], Own):
        demand_split(context, [x], tuple(Own(s) if len(set(s)) > 1 else s[0] for s in ours))
    context.fail(
        f"{parameters.name(par)} and what it multiplies are taken apart in different ways",
        "reshape both as (heads, size)",
    )  # fmt: skip


def _no_width(context: Context, parameters: Parameters, par: Par) -> Any:
    context.fail(
        f"{parameters.name(par)} multiplies site axes, not the width: a random matrix of fixed size stays random in "
        "the limit", "mix sites by fixed numbers, or give each site a weight of its own that reads the width",
    )  # fmt: skip


def _laid(context: Context, vec: Vec, x: Side, rest: Sequence[int], new: Sequence[int]) -> Vector:
    """The vector over sites (free, shared, new, window), as a weight with sites and a window reads it."""
    v = plain_vector(context, vec)
    numbered: dict[int, list[int]] = {}
    count = 0
    for k, axis in enumerate(vec.axes):
        fixed = sum(isinstance(a, int) for a in axis)
        numbered[k] = list(range(count, count + fixed))
        count += fixed
    lead = [p for k in (*rest, *x.shared) for p in numbered[k]]
    tail = [p for k in x.contracted for p in numbered[k]]
    v = transposed(v, lead + tail)
    if new:
        shape = (*v.sites[: len(lead)], *new, *v.sites[len(lead) :])
        spread = (*v.sites[: len(lead)], *(1,) * len(new), *v.sites[len(lead) :])
        v = gather([v], lambda source: np.broadcast_to(source.reshape(spread), shape), "repeat({})")
    return v


# ---- vectors with vectors


def _inner(context: Context, left: Side, right: Side) -> Scal:
    one, other = left.value, right.value
    assert isinstance(one, Vec) and isinstance(other, Vec)
    a, b = own_axis(one.axes), own_axis(other.axes)
    pairs = dict(zip(left.contracted, right.contracted, strict=True))
    if a is None or b is None or pairs.get(a) != b:
        context.fail(
            "a product of two vectors that is no sum over their width",
            "contract the width of both, or mix sites by scalars: x_i = Σ_j A_ij x_j",
        )  # fmt: skip
    one = full_vector(context, one, [s if k in left.contracted else (1,) for k, s in enumerate(left.sizes)])
    other = full_vector(context, other, [s if k in right.contracted else (1,) for k, s in enumerate(right.sizes)])
    mine = own(one.axes)
    assert mine is not None
    r = context.ratio(mine.sizes)
    order = one.order + other.order + (1.0 if r is not None else 0.0)
    size = float(r) if r is not None else float(mine.sizes[0])
    if not left.shared and len(one.axes[a]) == 1 and len(left.contracted) == 1:
        s = inner(plain_vector(context, one), plain_vector(context, other))
        shape = tuple(_count(v.axes[k]) for v, side in ((one, left), (other, right)) for k in side.free)
        made = Scal(shape, s, None, order, PRODUCT)
    else:
        made = _broadcast_inner(context, one, other, left, right, order)
    return made if size == 1.0 else _times(made, size)


def _times(s: Scal, c: float) -> Scal:
    return Scal(s.shape, None, Op(operator.mul, (), [s, c], "mul"), s.order, s.cause)


def _count(axis: tuple[Atom, ...]) -> int:
    return int(np.prod([a for a in axis if isinstance(a, int)], dtype=int)) if axis else 1


def _broadcast_inner(context: Context, one: Vec, other: Vec, left: Side, right: Side, order: float) -> Scal:
    """Inner products at shared sites: the Moment of a product over sites (shared, free, contracted)."""
    rank = len(left.shared) + len(left.free) + len(right.free)
    total = rank + len(left.contracted)

    def spread(x: Vec, side: Side, start: int) -> Vec:
        places = {k: i for i, k in enumerate(side.shared)}
        places |= {k: start + i for i, k in enumerate(side.free)}
        places |= {k: rank + i for i, k in enumerate(side.contracted)}
        arranged = transpose(
            context, moved(x, x.axes, plain_vector(context, x)), sorted(places, key=lambda k: places[k])
        )
        made = inserted(context, arranged, [0] * total, sorted(places.values()))
        assert isinstance(made, Vec)
        return replace(made, leaf=None)

    x, y = spread(one, left, len(left.shared)), spread(other, right, len(left.shared) + len(left.free))
    axes: Axes = tuple(p or q for p, q in zip(x.axes, y.axes, strict=True))
    product = Vec(axes, None, Op(operator.mul, (), [x, y], "mul"))
    s = averaged(context, product)
    extra = sum(isinstance(a, int) for axis in axes[rank:] for a in axis)
    if extra:
        summed = tuple(range(len(s.sites) - extra, len(s.sites)))
        s = scalar(_Sum(summed), s)
    return Scal(tuple(_count(axis) for axis in axes[:rank]), s, None, order, PRODUCT)


@dataclass(frozen=True)
class _Sum:
    """The sum of an array of scalars over axes."""

    axes: tuple[int, ...]
    name: str = "sum"

    def __call__(self, array: Any) -> Any:
        return jnp.sum(array, self.axes)


# ---- sites mixed


def _mixed(context: Context, a: Side, x: Side, *, first: bool) -> Value:
    """Σ_j A[…, i, j] x[…, j, …]: A scalars or numbers."""
    vec = x.value
    assert isinstance(vec, Vec)
    place = own_axis(vec.axes)
    if place in x.contracted:
        return _summed_with_numbers(context, a, x)
    matrix = a.value
    if isinstance(matrix, Known):
        array, power = context.array(matrix)
        array = np.broadcast_to(array, [s[0] for s in a.sizes])
        shape, order, cause = array.shape, power, None
        s = scalars_of(context.builder, [np.array(array)], "a matrix of numbers")[0]
    else:
        assert isinstance(matrix, Scal)
        matrix = full_scalar(context, matrix, a.sizes) if matrix.shape != tuple(z[0] for z in a.sizes) else matrix
        s, shape, order, cause = write_scalar(context, matrix), matrix.shape, matrix.order, matrix.cause
    rest = x.free
    vec = full_vector(context, vec, [z if k in (*x.contracted, *x.shared) else (1,) for k, z in enumerate(x.sizes)])
    numbered: dict[int, list[int]] = {}
    count = 0
    for k, axis in enumerate(vec.axes):
        fixed = sum(isinstance(q, int) for q in axis)
        numbered[k] = list(range(count, count + fixed))
        count += fixed
    lead, summed = [p for k in x.shared for p in numbered[k]], [p for k in x.contracted for p in numbered[k]]
    tail = [p for k in rest for p in numbered[k]]
    v = transposed(plain_vector(context, vec), lead + summed + tail)
    size = int(np.prod([v.sites[k] for k in range(len(lead), len(lead) + len(summed))], dtype=int))
    v = (
        gather([v], lambda q: q.reshape(*q.shape[: len(lead)], size, *q.shape[len(lead) + len(summed) :]), "{}")
        if len(summed) != 1
        else v
    )
    sequence = [*a.shared, *a.free, *a.contracted]
    rows = int(np.prod([shape[k] for k in a.free], dtype=int))
    leading = tuple(_count(vec.axes[k]) for k in x.shared if vec.axes[k])
    kept = [k for k in range(len(shape)) if shape[k] != 1]
    turned = [kept.index(k) for k in sequence if shape[k] != 1]
    want = (*leading, rows, size)

    def arranged(source: np.ndarray) -> np.ndarray:
        return source.transpose(turned).reshape(want)

    trivial = turned == sorted(turned) and want == s.sites
    s = s if trivial else s.rearranged(arranged, "{}" if turned == sorted(turned) else "{}ᵀ")
    y = mix(s, v, axis=len(lead))
    free = tuple(shape[k] for k in a.free if shape[k] != 1)
    y = gather([y], lambda q: q.reshape(*leading, *free, *q.shape[len(lead) + 1 :]), "{}") if (*free,) != (rows,) else y
    shared_axes = tuple(vec.axes[k] for k in x.shared)
    a_axes = tuple((shape[k],) if shape[k] != 1 else () for k in a.free)
    x_axes = tuple(vec.axes[k] for k in rest)
    if first:
        axes = (*shared_axes, *a_axes, *x_axes)
    else:
        axes = (*shared_axes, *x_axes, *a_axes)
        count_x = len(tail)
        base = len(leading)
        order_of = [*range(base), *range(base + len(free), base + len(free) + count_x), *range(base, base + len(free))]
        y = transposed(y, order_of)
    return Vec(axes, y, None, vec.order + order, vec.cause or cause, vec.origins)


def _summed_with_numbers(context: Context, a: Side, x: Side) -> Value:
    """Σ over the width with one number for all units: an average."""
    context.fail(
        "a vector is multiplied by an array of numbers along the width", "write averages over the width as jnp.mean"
    )


def _scalars(context: Context, left: Side, right: Side, params: dict[str, Any]) -> Scal:
    values = []
    order = 0.0
    for side in (left, right):
        value = side.value
        if isinstance(value, Known):
            array, p = context.array(value)
            values.append(np.broadcast_to(array, [z[0] for z in side.sizes]))
            order += p
        else:
            assert isinstance(value, Scal)
            values.append(
                full_scalar(context, value, side.sizes) if value.shape != tuple(z[0] for z in side.sizes) else value
            )
            order += value.order
    fn = _Dot(params["dimension_numbers"])
    return Scal(_shape(left, right, 0), None, Op(fn, (), values, "dot_general"), order)


@dataclass(frozen=True)
class _Dot:
    """A product of two arrays of scalars."""

    numbers: Any
    __name__ = "dot"

    def __call__(self, a: Any, b: Any) -> Any:
        dtype = jnp.result_type(a, b)
        return lax.dot_general(a.astype(dtype), b.astype(dtype), self.numbers, precision="highest")
