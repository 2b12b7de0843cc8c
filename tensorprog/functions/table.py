"""THE table: every function whose Gaussian expectations are known in closed form, by name.

An entry lists the callables that are recognised, wherever JAX keeps them, and a rule that makes the closed form from
the arguments of a `functools.partial` around them (None where those leave the family; keyword-only where a positional
argument would take the place of x). Adding a nonlinearity is adding one entry, and a family file where no family has
it: tests, kernels and the docs go through this table.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.erf import bell, error_function, gelu
from tensorprog.functions.exponential import Exponential, Wave, wave
from tensorprog.functions.forms import Coefficient, Form
from tensorprog.functions.frozen import Function
from tensorprog.functions.piecewise import kinked, polynomial
from tensorprog.functions.thaw import ArrayBytes, Items, Node, Number, Opaque, Partial

Given = float | Coefficient  # an argument of a partial: a Python number, or one of the program's numbers
HALF = math.sqrt(0.5)


# ---- functions that JAX does not name -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A function of the table that is no function of JAX: hashable, and called like one."""

    name: str
    form: Form

    def __call__(self, z: Any) -> jax.Array:
        z = jnp.asarray(z)
        return self.form(z if jnp.issubdtype(z.dtype, jnp.inexact) else z.astype(float))


def hermite(k: int) -> Named:
    """The normalised Hermite polynomial He_k(x)/sqrt(k!): E hermite(k)(u) hermite(l)(v) = [k = l] c^k at variance 1."""
    powers = np.polynomial.hermite_e.herme2poly([0.0] * k + [1.0]) / math.sqrt(math.factorial(k))
    return Named(f"hermite({k})", polynomial(*map(float, powers)))


def rectified(k: int) -> Named:
    """relu(x)^k, step(x) for k = 0: the arc-cosine kernels' functions."""
    return Named(f"rectified({k})", kinked(0.0, 1.0, k))


step = Named("step", kinked(0.0, 1.0, 0))
rbf = Named("rbf", bell())  # exp(-x^2)
cdf = Named("cdf", error_function(HALF, 0.5, 0.5))


# ---- rules that need more than a line -------------------------------------------------------------------------------


def _polyval(p: Any) -> Form | None:
    if not isinstance(p, list | tuple | np.ndarray) or np.ndim(p) != 1:
        return None
    return polynomial(*(float(w) if not isinstance(w, Coefficient) else w for w in reversed(list(p))))


def _power(y: Given) -> Form | None:
    return polynomial(*[0.0] * int(y), 1.0) if isinstance(y, float) and y.is_integer() and 0 <= y <= 32 else None


def _normal_cdf(*, loc: Given = 0.0, scale: Given = 1.0) -> Form | None:
    return error_function(HALF / scale, 0.5, 0.5) if loc == 0 and isinstance(scale, float) and scale > 0 else None


def _normal_pdf(*, loc: Given = 0.0, scale: Given = 1.0) -> Form | None:
    if loc != 0 or not isinstance(scale, float) or scale <= 0:
        return None
    return bell(0.5 / scale**2, 1 / (scale * math.sqrt(2 * math.pi)))


def _threshold(y: Given) -> Form | None:
    return kinked(0.0, 1.0) if y == 0 else None


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One row: what is recognised, its form, and partials of it for the tests and the docs to show."""

    callables: tuple[Callable[..., Any], ...]
    form: Callable[..., Form | None]
    examples: tuple[Callable[[Any], Any], ...] = ()  # where the first callable by itself is none

    def shown(self) -> tuple[Callable[[Any], Any], ...]:
        return self.examples or self.callables[:1]


_partial = functools.partial
TABLE: dict[str, Entry] = {
    # piecewise polynomials
    "identity": Entry((jax.nn.identity, jnp.positive), lambda: polynomial(0.0, 1.0)),
    "negative": Entry((jnp.negative, jax.lax.neg), lambda: polynomial(0.0, -1.0)),
    "square": Entry((jnp.square, jax.lax.square), lambda: polynomial(0.0, 0.0, 1.0)),
    "power": Entry(
        (jax.lax.integer_pow, jax.lax.pow),
        lambda *, y: _power(y),
        (_partial(jax.lax.integer_pow, y=3),),
    ),
    "polyval": Entry((jnp.polyval,), _polyval, (_partial(jnp.polyval, np.array([0.5, -1.0, 0.0, 2.0])),)),
    "relu": Entry((jax.nn.relu,), lambda: kinked(0.0, 1.0)),
    "maximum": Entry((jnp.maximum, jax.lax.max), _threshold, (_partial(jnp.maximum, 0.0),)),
    "leaky_relu": Entry(
        (jax.nn.leaky_relu,),
        lambda *, negative_slope=0.01: kinked(negative_slope, 1.0),
        (jax.nn.leaky_relu, _partial(jax.nn.leaky_relu, negative_slope=0.2)),
    ),
    "abs": Entry((jnp.abs, jnp.absolute, jnp.fabs, jax.lax.abs, abs), lambda: kinked(-1.0, 1.0)),
    "sign": Entry((jnp.sign, jax.lax.sign), lambda: kinked(-1.0, 1.0, 0)),
    # the error function and its kin
    "erf": Entry((jax.scipy.special.erf, jax.lax.erf), lambda: error_function()),
    "erfc": Entry((jax.scipy.special.erfc, jax.lax.erfc), lambda: error_function(1.0, -1.0, 1.0)),
    "ndtr": Entry((jax.scipy.special.ndtr,), lambda: error_function(HALF, 0.5, 0.5)),
    "cdf": Entry((jax.scipy.stats.norm.cdf,), _normal_cdf),
    "pdf": Entry((jax.scipy.stats.norm.pdf,), _normal_pdf),
    "gelu": Entry(
        (jax.nn.gelu,),
        lambda *, approximate=True: None if approximate else gelu(),  # the default is the tanh approximation
        (_partial(jax.nn.gelu, approximate=False),),
    ),
    # exponentials and waves
    "exp": Entry((jnp.exp, jax.lax.exp), lambda: wave("exp")),
    "expm1": Entry((jnp.expm1, jax.lax.expm1), lambda: Exponential.of((1.0, Wave("exp")), (-1.0, Wave("exp", 0.0)))),
    "sinh": Entry((jnp.sinh, jax.lax.sinh), lambda: Exponential.of((0.5, Wave("exp")), (-0.5, Wave("exp", -1.0)))),
    "cosh": Entry((jnp.cosh, jax.lax.cosh), lambda: Exponential.of((0.5, Wave("exp")), (0.5, Wave("exp", -1.0)))),
    "sin": Entry((jnp.sin, jax.lax.sin), lambda: wave("sin")),
    "cos": Entry((jnp.cos, jax.lax.cos), lambda: wave("cos")),
}
READY = (step, rbf, cdf, rectified(2), rectified(3), hermite(2), hermite(5))
ENTRIES = {fn: entry for entry in TABLE.values() for fn in entry.callables}


def recognise(function: Function) -> Form | None:
    """The closed form of a frozen function: a callable of the table, alone or in a `functools.partial`."""
    args: tuple[Node, ...] = ()
    keywords: tuple[tuple[str, Node], ...] = ()
    root = function.root
    if isinstance(root, Partial):
        root, args, keywords = root.fn, root.args, root.keywords
    if not isinstance(root, Opaque):
        return None
    if isinstance(root.value, Named):
        return None if args or keywords else root.value.form
    try:
        entry = ENTRIES.get(root.value)
        if entry is None:
            return None
        given = [_given(arg) for arg in args]
        named = {key: _given(value) for key, value in keywords}
    except TypeError:  # does not hash, or is an argument that no form takes
        return None
    try:
        inspect.signature(entry.form).bind(*given, **named)
    except TypeError:  # arguments that its form does not know
        return None
    return entry.form(*given, **named)


def _given(node: Node) -> Any:
    match node:
        case Number(index):
            return Coefficient.number(index)
        case Opaque(_, bool() as value):
            return value
        case Opaque(_, int() | float() as value):
            return float(value)
        case ArrayBytes(data, dtype, shape, _) if len(shape) <= 1:
            array = np.frombuffer(data, dtype).astype(float).reshape(shape)
            return array if shape else float(array)
        case Items(_, tuple() as items):
            return [_given(item) for item in items]
        case _:
            raise TypeError(f"no argument of a closed form: {node}")


def shown() -> tuple[Callable[[Any], Any], ...]:
    """A function for every row of the table, and some of the ready-made: what the tests and the docs go through."""
    return tuple(fn for entry in TABLE.values() for fn in entry.shown()) + READY
