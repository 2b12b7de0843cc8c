"""Elementwise functions of one Gaussian, and `expect`, the door through which all their expectations go.

An `Elementwise` is static and hashable; the numbers it takes come separately, and may be traced. `expect` takes the
first road that is open: the closed form of the functions' family; one Gaussian instead of two, where one function is
constant or a polynomial; and else `general.pair`, a Hermite series or a nested quadrature with a bound.

Arguments are the variances a of u and b of v and their covariance c, broadcast against each other:
(n1, 1), (1, n2), (n1, n2) for all pairs of inputs. dtypes follow them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from tensorprog.functions import curved, general, kinks
from tensorprog.functions.derived import Product, Shifted
from tensorprog.functions.forms import Form, Numbers, inverse_root
from tensorprog.functions.frozen import Function
from tensorprog.functions.paneled import SHAPES as PANELS
from tensorprog.functions.paneled import Paneled
from tensorprog.functions.piecewise import Piecewise, polynomial
from tensorprog.functions.recognition import recognised
from tensorprog.functions.ruled import Bare, Shapes, own_slope, ruled
from tensorprog.functions.table import recognise

Road = tuple[Array, Callable[[], Array]]
"""A value, and its bound when called."""

CLOSED, REDUCED, GENERAL = "closed form", "one-dimensional integrals", "Hermite series or nested quadrature"
HIGHEST = 6  # degree up to which a polynomial against a function without closed form is worth one integral a degree


@dataclass(frozen=True)
class Elementwise:
    """A function of one Gaussian: fn(z, *numbers) of 0-d values, its closed form if it has one, a name to print.

    `own`: the same with derivative rules of its own, where its slope comes from these; `fn` then has none.
    """

    fn: Callable[..., Any]
    shapes: Shapes
    form: Form | None
    name: str
    own: Callable[..., Any] | None = None

    def __call__(self, z: Array, *numbers: Array) -> Array:
        return self.fn(z, *numbers)

    def __str__(self) -> str:
        return self.name

    @property
    def count(self) -> int:
        """How many numbers it takes."""
        return len(self.shapes)

    @property
    def written(self) -> Callable[..., Any]:
        """The function with whatever rules it has."""
        return self.own or self.fn

    @property
    def curved(self) -> bool:
        """Whether its numbers are the tables of its curves, and it is known by these alone."""
        return isinstance(self.fn, curved.Curved)

    @property
    def degree(self) -> int | None:
        """The degree of a polynomial, else None."""
        return self.form.degree if isinstance(self.form, Piecewise) else None


# ---- callables that hash by what they do ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A frozen function as fn(z, *numbers), its value in the dtype of z."""

    function: Function

    def __call__(self, z: Array, *numbers: Array) -> Array:
        return jnp.asarray(self.function(z, numbers=numbers), jnp.result_type(z))


# ---- making elementwise functions -----------------------------------------------------------------------------------


def elementwise(function: Function, numbers: int | Shapes) -> Elementwise:
    """A frozen function of one vector and so many numbers, or of numbers of these shapes; its closed form is looked up
    in the table, and else in what the function computes."""
    shapes = ((),) * numbers if isinstance(numbers, int) else numbers
    call, form = Call(function), recognise(function)
    if form is None:
        form = recognised(call, shapes)
    if form is None:
        return of_function(call, shapes, function.name)
    return of_form(form, len(shapes), function.name, call)


def of_form(form: Form, count: int, name: str, fn: Callable[..., Any] | None = None) -> Elementwise:
    """A member of a family; without `fn` one that nobody wrote as a function."""
    return Elementwise(fn or form, ((),) * count, form, name)


def of_function(fn: Callable[..., Any], shapes: Shapes, name: str) -> Elementwise:
    """A function that no family has, z -> fn(z, *numbers), numbers of these shapes."""
    return Elementwise(Bare(fn), shapes, None, name, fn) if ruled(fn, shapes) else Elementwise(fn, shapes, None, name)


IDENTITY = of_form(polynomial(0.0, 1.0), 0, "id")
ONE = of_form(polynomial(1.0), 0, "1")


IN_PAIRS = Elementwise(curved.Curved(), (curved.SIDE, curved.MEAN), None, "curve")
"""A function of one Gaussian beside one of another, and with it where both Gaussians are one."""
IN_MEANS = Elementwise(curved.Curved(), (curved.MEAN,), None, "mean curve")
"""A function, or a product of two, whose mean is taken."""

IN_PANELS = Elementwise(Paneled(), PANELS, None, "panels")
"""A function that is evaluated on panels."""


def power(p: int) -> Elementwise:
    return of_form(polynomial(*[0.0] * p, 1.0), 0, f"id^{p}")


def derivative(phi: Elementwise) -> Elementwise:
    """phi' almost everywhere, or what phi's own rule gives: a jump's derivative is 0, as in any network's gradient."""
    assert not phi.curved, "what is known by its curves has no derivative but these"
    if isinstance(phi.fn, Paneled):
        return Elementwise(Paneled(phi.fn.order + 1), PANELS, None, f"{phi.name}'")
    if phi.form is None:
        return of_function(own_slope(phi.written, phi.shapes), phi.shapes, f"{phi.name}'")
    form = phi.form.derivative()
    if form == ONE.form and phi.count == 0:
        return ONE
    return of_form(form, phi.count, f"{phi.name}'")


def product(phi: Elementwise, psi: Elementwise) -> Elementwise:
    """phi(z) psi(z); it takes phi's numbers, then psi's."""
    if phi == ONE:
        return psi
    if psi == ONE:
        return phi
    f, g = _same_family(phi.form, psi.form)
    form = None if f is None or g is None else f.product(g, phi.count)
    name = f"{phi.name}^2" if phi == psi else f"{phi.name}·{psi.name}"
    fn = Product(phi.fn, phi.count, psi.fn)
    own = None if phi.own is psi.own is None else Product(phi.written, phi.count, psi.written)
    return Elementwise(fn, phi.shapes + psi.shapes, form, name, own)


def shifted(phi: Elementwise) -> Elementwise:
    """z -> phi(z + m), m an extra last number."""
    form = None if phi.form is None else phi.form.shifted(phi.count)
    own = None if phi.own is None else Shifted(phi.own)
    return Elementwise(Shifted(phi.fn), (*phi.shapes, ()), form, f"{phi.name}(· + m)", own)


# ---- the door -------------------------------------------------------------------------------------------------------


def expect(
    phi: Elementwise, psi: Elementwise, a: Any, b: Any, c: Any, phi_numbers: Numbers = (), psi_numbers: Numbers = ()
) -> Array:
    """E phi(u) psi(v) for (u, v) ~ N(0, [[a, c], [c, b]])."""
    a, b, c, first, second = _cast(a, b, c, phi_numbers, psi_numbers)
    return _whole(_pair(phi, psi, a, b, c, first, second)[0], a, b, c)


def expect_error(
    phi: Elementwise,
    psi: Elementwise,
    a: Any,
    b: Any,
    c: Any,
    phi_numbers: Numbers = (),
    psi_numbers: Numbers = (),
    given: Any = None,
) -> tuple[Array, Array]:
    """`expect`, and a bound of its error for exact a, b, c; `given`: `sides` of phi at a and of psi at b."""
    a, b, c, first, second = _cast(a, b, c, phi_numbers, psi_numbers)
    value, bound = _pair(phi, psi, a, b, c, first, second, given)
    return _whole(value, a, b, c), _whole(bound(), a, b, c)


def expect_one(
    phi: Elementwise, psi: Elementwise, a: Any, phi_numbers: Numbers = (), psi_numbers: Numbers = ()
) -> Array:
    """E phi(u) psi(u) for u ~ N(0, a): two functions of the same Gaussian."""
    a, _, _, first, second = _cast(a, a, a, phi_numbers, psi_numbers)
    return _whole(_one(phi, psi, a, first, second)[0], a)


def expect_one_error(
    phi: Elementwise, psi: Elementwise, a: Any, phi_numbers: Numbers = (), psi_numbers: Numbers = ()
) -> tuple[Array, Array]:
    """`expect_one`, and a bound of its error."""
    a, _, _, first, second = _cast(a, a, a, phi_numbers, psi_numbers)
    value, bound = _one(phi, psi, a, first, second)
    return _whole(value, a), _whole(bound(), a)


def mean(phi: Elementwise, a: Any, numbers: Numbers = ()) -> Array:
    """E phi(u) for u ~ N(0, a)."""
    a, _, _, numbers, _ = _cast(a, a, a, numbers, ())
    return _whole(_mean(phi, a, numbers)[0], a)


def mean_error(phi: Elementwise, a: Any, numbers: Numbers = ()) -> tuple[Array, Array]:
    """`mean`, and a bound of its error."""
    a, _, _, numbers, _ = _cast(a, a, a, numbers, ())
    value, bound = _mean(phi, a, numbers)
    return _whole(value, a), _whole(bound(), a)


def general_road(phi: Elementwise, psi: Elementwise) -> bool:
    """Whether E phi(u) psi(v), and so E phi'(u) psi'(v), are got by series and quadrature."""
    if phi.curved:
        return True
    return method(phi, psi) == method(derivative(phi), derivative(psi)) == GENERAL


def sides(phi: Elementwise, a: Array, numbers: Numbers = (), *, slope: bool) -> Any:
    """What the general road needs to know of phi at variances a, made once an input: for `expect_error`, or with
    `slope` for `expect_slope`."""
    if phi.curved:
        return curved.sides(numbers[0], a, slope=slope)
    return general.sides((phi.fn, derivative(phi).fn) if slope else (phi.fn,), a, numbers)


def expect_slope(
    phi: Elementwise,
    psi: Elementwise,
    a: Any,
    b: Any,
    c: Any,
    phi_numbers: Numbers = (),
    psi_numbers: Numbers = (),
    given: Any = None,
) -> tuple[Road, Road]:
    """E phi(u) psi(v) and E phi'(u) psi'(v), each (value, bound when called): one integration where both need one.

    `given`: `sides` of phi at a and of psi at b, where they were made before.
    """
    a, b, c, first, second = _cast(a, b, c, phi_numbers, psi_numbers)
    if phi.curved:
        value, slope = _by_curves(a, b, c, first, second, given, slope=True)
        return value, slope
    slopes = derivative(phi), derivative(psi)
    if general_road(phi, psi):
        fns = (phi.fn, slopes[0].fn), (psi.fn, slopes[1].fn)
        values, bounds = general.pairs(*fns, a, b, c, first, second, given)
        roads = [(values[..., k], lambda k=k: bounds[..., k]) for k in (0, 1)]
    else:
        roads = [_pair(*pair, a, b, c, first, second) for pair in ((phi, psi), slopes)]
    value, slope = ((_whole(v, a, b, c), lambda bound=bound: _whole(bound(), a, b, c)) for v, bound in roads)
    return value, slope


def expect_one_slope(
    phi: Elementwise, psi: Elementwise, a: Any, phi_numbers: Numbers = (), psi_numbers: Numbers = ()
) -> tuple[Road, Road]:
    """`expect_slope` of one Gaussian: E phi(u) psi(u) and E phi'(u) psi'(u)."""
    a, _, _, first, second = _cast(a, a, a, phi_numbers, psi_numbers)
    if phi.curved:
        value, slope = _mean_by_curves(a, first, 2)
        return value, slope
    slopes = derivative(phi), derivative(psi)
    if all(f.form is None for f in (phi, psi, *slopes)):
        fns = tuple(product(*pair).fn for pair in ((phi, psi), slopes))
        values, bounds = general.means(fns, a, first + second)
        roads = [(values[..., k], lambda k=k: bounds[..., k]) for k in (0, 1)]
    else:
        roads = [_one(*pair, a, first, second) for pair in ((phi, psi), slopes)]
    value, slope = ((_whole(v, a), lambda bound=bound: _whole(bound(), a)) for v, bound in roads)
    return value, slope


def method(phi: Elementwise, psi: Elementwise) -> str:
    """How `expect` gets E phi(u) psi(v), as the recursion prints it."""
    if _closed(phi, psi):
        return CLOSED
    if 0 in (phi.degree, psi.degree):
        return CLOSED if phi.form is not None and psi.form is not None else REDUCED
    return REDUCED if _short(phi) or _short(psi) else GENERAL


def crowded(phi: Elementwise, variance: float, numbers: Numbers = ()) -> bool:
    """Whether phi, its numbers known, has more jumps than integrals are split at within reach of u ~ N(0, variance)."""
    return phi.form is None and kinks.crowded(phi.fn, numbers, np.sqrt(variance), jnp.result_type(float))


def polynomially_bounded(phi: Elementwise) -> bool | None:
    """Whether |phi(x)| <= C |x|^p + c; None where the table does not know."""
    return None if phi.form is None else phi.form.polynomially_bounded


# ---- the roads: each gives the value, and the bound when asked ------------------------------------------------------


def _pair(
    phi: Elementwise, psi: Elementwise, a: Array, b: Array, c: Array, first: Numbers, second: Numbers, given: Any = None
) -> Road:
    if phi.curved:
        return _by_curves(a, b, c, first, second, given, slope=False)[0]
    if _closed(phi, psi):
        return _closed_pair(phi, psi, a, b, c, first, second)
    if phi.degree == 0:
        return _times_constant(phi, first, _mean(psi, b, second))
    if psi.degree == 0:
        return _times_constant(psi, second, _mean(phi, a, first))
    if _short(phi):
        return _polynomial_side(phi, psi, a, b, c, first, second)
    if _short(psi):
        return _polynomial_side(psi, phi, b, a, c, second, first)
    values, bounds = general.pairs((phi.fn,), (psi.fn,), a, b, c, first, second, given)
    return values[..., 0], lambda: bounds[..., 0]


def _one(phi: Elementwise, psi: Elementwise, a: Array, first: Numbers, second: Numbers) -> Road:
    if phi.curved:
        return _mean_by_curves(a, first, 1)[0]
    f, g = _same_family(phi.form, psi.form)
    if f is not None and g is not None:
        return f.square(g, a, first, second), lambda: f.rounding(g, a, a, a, first, second)
    if _closed(phi, psi):
        return _closed_pair(phi, psi, a, a, a, first, second)
    return _mean(product(phi, psi), a, first + second)


def _by_curves(a: Array, b: Array, c: Array, first: Numbers, second: Numbers, given: Any, *, slope: bool) -> list[Road]:
    one, two = given or (curved.sides(numbers[0], x, slope=slope) for numbers, x in ((first, a), (second, b)))
    return [(value, lambda bound=bound: bound) for value, bound in curved.pairs(one, two, a, b, c)]


def _mean_by_curves(a: Array, numbers: Numbers, count: int) -> list[Road]:
    return [(value, lambda bound=bound: bound) for value, bound in curved.means(numbers[-1], a, count)]


def _mean(phi: Elementwise, a: Array, numbers: Numbers) -> Road:
    if phi.curved:
        return _mean_by_curves(a, numbers, 1)[0]
    form = phi.form
    if form is not None:
        return form.mean(a, numbers), lambda: 32 * jnp.finfo(a.dtype).eps * form.scale(a, numbers)
    value, bound = general.mean(phi.fn, a, numbers)
    return value, lambda: bound


def _closed(phi: Elementwise, psi: Elementwise) -> bool:
    """Whether a family, or a polynomial against a smooth family, gives E phi(u) psi(v)."""
    if phi.form is None or psi.form is None:
        return False
    if type(phi.form) is type(psi.form):
        return True
    return (phi.degree is not None and psi.form.smooth) or (psi.degree is not None and phi.form.smooth)


def _same_family(f: Form | None, g: Form | None) -> tuple[Form, Form] | tuple[None, None]:
    return (f, g) if f is not None and g is not None and type(f) is type(g) else (None, None)


def _closed_pair(
    phi: Elementwise, psi: Elementwise, a: Array, b: Array, c: Array, first: Numbers, second: Numbers
) -> Road:
    f, g = phi.form, psi.form
    assert f is not None and g is not None, "a closed form needs two"
    if type(f) is type(g):
        return f.pair(g, a, b, c, first, second), lambda: f.rounding(g, a, b, c, first, second)
    if phi.degree is None:
        return _closed_pair(psi, phi, b, a, c, second, first)
    # E phi(u) psi(v) = sum_k c^k/k! E phi^(k)(u) E psi^(k)(v), which ends with phi's degree and has nothing singular.
    value, bound = jnp.zeros_like(c), jnp.zeros_like(c)
    for k in range(phi.degree + 1):
        weight = c**k / math.factorial(k) if k else jnp.ones_like(c)
        value = value + weight * (f.mean(a, first) * g.mean(b, second))
        bound = bound + jnp.abs(weight) * (f.scale(a, first) * g.scale(b, second))
        f, g = f.derivative(), g.derivative()
    return value, lambda: bound * (32 * float(jnp.finfo(c.dtype).eps))


def _short(phi: Elementwise) -> bool:
    return phi.degree is not None and phi.degree <= HIGHEST


def _times_constant(constant: Elementwise, numbers: Numbers, road: Road) -> Road:
    assert constant.form is not None, "a constant is a polynomial"
    factor = sum((weight for weight, _ in constant.form.values(numbers)), 0.0)
    return factor * road[0], lambda: jnp.abs(factor) * road[1]()


def _polynomial_side(
    phi: Elementwise, psi: Elementwise, a: Array, b: Array, c: Array, first: Numbers, second: Numbers
) -> Road:
    """A polynomial phi against any psi: sum_k E phi^(k)(u)/k! (c/sqrt b)^k E psi(v) He_k(v/sqrt b).

    Degree 1 is E u psi(v) = (c/b) E v psi(v). Only moments of psi(v) v^j are integrated, one Gaussian at a time.
    """
    f, inverse = phi.form, inverse_root(b)
    assert f is not None and phi.degree is not None, "phi is a polynomial"
    moments: dict[int, Road] = {}
    value, bounds = jnp.zeros_like(c), []
    for k in range(phi.degree + 1):
        weight = f.mean(a, first) * ((c * inverse) ** k / math.factorial(k) if k else 1.0)
        f = f.derivative()
        for j, h in enumerate(np.polynomial.hermite_e.herme2poly([0.0] * k + [1.0])):
            if h == 0:
                continue
            if j not in moments:
                moments[j] = _mean(product(power(j), psi) if j else psi, b, second)
            factor = weight * (float(h) * inverse**j if j else float(h))
            value = value + factor * moments[j][0]
            bounds.append((factor, moments[j][1]))
    return value, lambda: sum((jnp.abs(w) * bound() for w, bound in bounds), jnp.zeros_like(c))


# ---- arguments ------------------------------------------------------------------------------------------------------


def _cast(a: Any, b: Any, c: Any, first: Numbers, second: Numbers) -> tuple[Array, Array, Array, Numbers, Numbers]:
    """Everything in the dtype of the variances, which is float32 at least."""
    a, b, c = (jnp.asarray(x) for x in (a, b, c))
    dtype = jnp.result_type(a, b, c)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    a, b, c = (x.astype(dtype) for x in (a, b, c))
    return a, b, c, tuple(jnp.asarray(x, dtype) for x in first), tuple(jnp.asarray(x, dtype) for x in second)


def _whole(value: Array, *arguments: Array) -> Array:
    """Broadcast to the shape of the arguments: a constant's expectation does not depend on them all."""
    return jnp.broadcast_to(value, jnp.broadcast_shapes(*(x.shape for x in arguments)))


__all__ = [
    "IDENTITY", "ONE", "Elementwise", "derivative", "elementwise", "expect", "expect_error", "expect_one",
    "expect_one_error", "mean", "mean_error", "method", "polynomially_bounded", "power", "product", "shifted",
]  # fmt: skip
