"""Operations on site axes: the fixed axes of a vector (time, height, token, …) before its one wide axis."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tensorprog.arrays import NoNumbers, real_array
from tensorprog.ir import Coef, SiteSum, VectorType
from tensorprog.show import COLUMN
from tensorprog.tracing.builder import failure, is_number
from tensorprog.tracing.calls import site_axes
from tensorprog.tracing.traced import Traced
from tensorprog.tracing.values import Scalar, Vector, gather, scalars_of, taken

AnySites = TypeVar("AnySites", Vector, Scalar)
"""What has sites: a vector or a scalar, in and out alike."""


def vector_of(x: Any, what: str) -> Vector:
    """The operand of a site operation."""
    if isinstance(x, Vector):
        return x
    remedy = "give a traced vector"
    if isinstance(x, Scalar):
        remedy = (
            "scalars have functions of their whole arrays, tp.scalar(jnp.sum, θ); data with features is tp.Input(…)"
        )
    raise failure(what, f"{x!r} is no vector of the program", remedy)


def _together(xs: Any, what: str) -> list[Vector] | list[Scalar]:
    """Operands of one arrangement: vectors, or scalars with numbers among them."""
    if not isinstance(xs, Sequence | Traced):
        raise failure(what, f"{xs!r} is no list of vectors", "give a list of traced vectors, or of scalars")
    values = list(xs)
    if not values:
        raise failure(what, "there is no vector in the list", "give at least one traced vector or scalar")
    first = next((x for x in values if isinstance(x, Scalar)), None)
    if first is None:
        return [vector_of(x, what) for x in values]
    if any(isinstance(x, Vector) for x in values):
        raise failure(what, "vectors and scalars stand in one list", "arrange vectors alone, and scalars alone")
    return scalars_of(first.builder, values, what)


def _arranged(xs: list[Vector] | list[Scalar], rearrange: Callable[..., np.ndarray], text: str) -> Any:
    """One Gather of vectors, or the same of scalars."""
    vectors, scalars = [x for x in xs if isinstance(x, Vector)], [x for x in xs if isinstance(x, Scalar)]
    return gather(vectors, rearrange, text) if vectors else taken(scalars, rearrange, text)


def _axes(x: Vector, axis: int | Sequence[int] | None, what: str) -> tuple[int, ...]:
    """Site axes counted from 0, all of them for None, in ascending order."""
    if axis is None:
        return tuple(range(len(x.sites)))
    return tuple(sorted(site_axes(x.builder, f"{what}(…)", "axis", axis, x.sites)))


def _axis(axis: Any, what: str) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise failure(f"{what}(…, axis={axis!r})", f"{axis!r} is no axis", "give an int; count the site axes from 0")
    return int(axis)


def reshape(x: AnySites, sites: int | Sequence[int]) -> AnySites:
    """The same vectors, or scalars, with another shape of sites; one entry may be -1.

    **Raises:** `ProgramError` for a shape of another size.
    """
    shape: tuple[Any, ...] = tuple(sites) if isinstance(sites, tuple | list) else (sites,)
    text = f"reshape({{}}; {' × '.join(map(str, shape))})"
    return _arranged(_together([x], "reshape(x, …)"), lambda source: source.reshape(shape), text)


def transpose(x: AnySites, axes: Sequence[int] | None = None) -> AnySites:
    """The site axes of a vector or scalar in another order, y[i, j] = x[j, i]; in reverse by default.

    Axis k of the result is axis axes[k] of x, as `numpy.transpose` has it. The wide axis stays last: what is transposed
    are sites. The transpose of a weight is `W.T`.

    **Raises:** `ProgramError` for axes that are not each site axis once.
    """
    xs = _together([x], "transpose(x)")
    b, own = xs[0].builder, xs[0].sites
    order = range(len(own))[::-1] if axes is None else axes
    what = f"transpose(x, {axes!r})"
    places = site_axes(b, what, "axes", order, own)
    if len(places) != len(own):
        b.fail(what, f"axes={axes!r} names {len(places)} of the {len(own)} site axes {own}", "name each axis once")
    text = "transpose({})" if axes is None else f"transpose({{}}; {', '.join(map(str, places))})"
    return _arranged(xs, lambda source: source.transpose(places), text)


def stack(xs: Sequence[AnySites], axis: int = 0) -> AnySites:
    """Vectors of equal sites along a new site axis; or scalars, numbers among them.

    **Raises:** `ProgramError` for vectors of different widths or sites, an axis that is none, an empty list.
    """
    text = "stack({})" if _axis(axis, "stack") == 0 else f"stack({{}}; axis {axis})"
    return _arranged(_together(xs, "stack(…)"), lambda *sources: np.stack(sources, axis), text)


def concat(xs: Sequence[AnySites], axis: int = 0) -> AnySites:
    """Vectors laid end to end along a site axis; or scalars, arrays of numbers among them.

    **Raises:** `ProgramError` for vectors of different widths, sites that do not fit, an axis that is none, no vector.
    """
    text = "concat({})" if _axis(axis, "concat") == 0 else f"concat({{}}; axis {axis})"
    return _arranged(_together(xs, "concat(…)"), lambda *sources: np.concatenate(sources, axis), text)


def sum(x: Vector, axis: int | Sequence[int] | None = None) -> Vector:
    """Σ over site axes (all of them by default).

    **Raises:** `ProgramError` for an axis that is no site axis.
    """
    x = vector_of(x, "sum(x)")
    axes = _axes(x, axis, "sum")
    if any(x.sites[a] == 0 for a in axes):
        x.builder.fail("sum or mean of no sites", f"the vector has sites {x.sites}", "keep at least one site")
    if not axes:
        return x
    type_ = VectorType(tuple(s for i, s in enumerate(x.sites) if i not in axes), x.type.dim, x.type.space)
    return Vector(x.builder, type_, ((Coef(), x.builder.emit(SiteSum(x.position(), axes), type_)),))


def mean(x: Vector, axis: int | Sequence[int] | None = None) -> Vector:
    """The mean over site axes (all of them by default).

    **Raises:** `ProgramError` for an axis that is no site axis.
    """
    x = vector_of(x, "mean(x)")
    return sum(x, axis).scaled(1.0 / math.prod(x.sites[a] for a in _axes(x, axis, "mean")))


def mix(A: Any, x: Vector, axis: int = 0) -> Vector:
    """A matrix over sites, y[…, i, …] = Σ_j A[…, i, j] x[…, j, …], along one site axis.

    `A` is an array, a scalar of the program, or `tp.Data`: (I, J) with J the size of the axis. Axes of A before these
    two run along the site axes before `axis`, and broadcast with them as in NumPy: attention scores (heads, I, J) mix
    tokens x (J,) or (heads, J) (axis 1) into (heads, I).

    **Raises:** `ProgramError` for an array of another shape, and an axis that is no site axis.
    """
    what = "mix(A, x)"
    x = vector_of(x, what)
    if isinstance(A, list | tuple):
        with contextlib.suppress(NoNumbers):
            A = real_array(A)
    if not isinstance(A, Scalar) and not is_number(A):
        x.builder.fail(what, f"{A!r} is no matrix over sites", "give an array (I, J), a scalar with sites, or tp.Data")
    place = _axes(x, _axis(axis, "mix"), "mix")[0]
    shape, size = (A.sites if isinstance(A, Scalar) else np.shape(A)), x.sites[place]
    if len(shape) < 2 or shape[-1] != size:
        x.builder.fail(
            what, f"A has shape {shape}, axis {axis} of the sites {x.sites} has {size}",
            f"give a matrix (I, {size}), a row for each new site",
        )  # fmt: skip
    before, after = x.sites[:place], len(x.sites) - place - 1
    try:
        np.broadcast_shapes(shape[:-2], before)
    except ValueError:
        x.builder.fail(
            what, f"A has shape {shape}: its leading axes do not broadcast with the sites {before} before axis {axis}",
            "give A the site axes before the one that is mixed, or none",
        )  # fmt: skip
    column = gather([x], lambda source: np.expand_dims(source, place), COLUMN)
    spread = lambda source: source.reshape(*source.shape, *(1,) * after)
    if after:
        A = A.rearranged(spread, "{}") if isinstance(A, Scalar) else spread(A)
    terms = column * A
    return sum(terms, len(terms.sites) - after - 1)
