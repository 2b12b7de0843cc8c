"""Closed forms recognised by what is computed: `lambda z: jnp.maximum(z, 0)` is relu, whoever wrote it.

A function's jaxpr is read in normal forms (`functions/normal.py`): each value is what it is on either side of 0. What
comes out is a proof, never a guess from samples: an equation that no rule knows has no value, nor has anything that
reads it. So has a choice by a test that is not settled, unless its cases are the same.

Three things beside the values are held to it. The function is traced in both precisions, since Python may ask for the
dtype. Literals count as they stand. And where a derivative rule of JAX's or of the user's is in it, the slope that it
gives is read too, and must be the derivative of the value: relu's is, a straight-through sign's is not.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions import normal
from tensorprog.functions.derived import Slope
from tensorprog.functions.forms import Coefficient, Form
from tensorprog.functions.jaxprs import CALLS, ClosedJaxpr, Literal, inner
from tensorprog.functions.normal import Outside, Sum
from tensorprog.functions.ruled import Shapes, rules

_SINGLE, _DOUBLE = 1e-5, 1e-12
"""To how many digits two traces of one function agree: in single precision, and in double."""


class Sides(NamedTuple):
    """A value for x < 0 and for x > 0."""

    below: Sum
    above: Sum


class Truth(NamedTuple):
    """A truth value for x < 0 and for x > 0; None where it is not settled."""

    below: bool | None
    above: bool | None


Value = Sides | Truth | None
"""What is known of a variable; None for nothing."""


def _constant(value: float | Coefficient) -> Sides:
    return Sides(*[normal.constant(value)] * 2)


# ---- the door -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def recognised(fn: Callable[..., Any], shapes: Shapes) -> Form | None:
    """The closed form of z -> fn(z, *numbers), numbers of these shapes; None where none is proved."""
    if any(shapes):  # only a 0-d number can be in a coefficient
        return None
    form = _read(fn, len(shapes), np.float64)
    if form is None or not _alike(form, _read(fn, len(shapes), np.float32), _SINGLE):
        return None
    if rules(fn, shapes):
        slope, expected = fn, form
        for _ in range(2):  # the kernel's own derivatives have the second
            slope, expected = Slope(slope), expected.derivative()
            if not _alike(expected, _read(slope, len(shapes), np.float64), _DOUBLE):
                return None
    return form


def _read(fn: Callable[..., Any], count: int, dtype: Any) -> Form | None:
    """The form that fn's jaxpr comes to where its argument has this dtype."""
    try:
        with jax.enable_x64(dtype == np.float64), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # float64 asked for in single precision is told when the function runs
            traced = jax.make_jaxpr(fn)(*[jax.ShapeDtypeStruct((), dtype)] * (1 + count))
    except Exception:  # a function that JAX cannot trace is refused elsewhere, at its line
        return None
    (out,) = traced.out_avals if len(traced.out_avals) == 1 else (None,)
    if out is None or out.shape != () or out.dtype != dtype or traced.jaxpr.effects:
        return None
    try:
        numbers = [_constant(Coefficient.number(index)) for index in range(count)]
        (found,) = _run(traced, [Sides(normal.X, normal.X), *numbers], jnp.dtype(dtype))
        return normal.form(*found) if isinstance(found, Sides) else None
    except Outside:
        return None


def _alike(one: Form, two: Form | None, digits: float) -> bool:
    """Whether two forms are one up to rounding, that of their largest coefficient included."""
    if type(one) is not type(two) or two is None:
        return False
    largest = max((abs(w) for weight, _ in one.terms for w, _ in weight.terms), default=0.0)

    def near(x: Any, y: Any) -> bool:
        if isinstance(x, tuple | list):
            return len(x) == len(y) and all(map(near, x, y))
        return math.isclose(x, y, rel_tol=digits, abs_tol=digits / 16 * largest) if isinstance(x, float) else x == y

    listed = [sorted((astuple(term), weight.terms) for weight, term in form.terms) for form in (one, two)]
    return near(*listed)


# ---- one jaxpr ------------------------------------------------------------------------------------------------------


def _run(body: ClosedJaxpr, inputs: Sequence[Value], dtype: np.dtype) -> list[Value]:
    """The values of a jaxpr's outputs."""
    jaxpr = body.jaxpr
    known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    known.update((var, _literal(value)) for var, value in zip(jaxpr.constvars, body.consts, strict=True))
    read = lambda atom: _literal(atom.val) if isinstance(atom, Literal) else known[atom]
    for equation in jaxpr.eqns:
        known.update(zip(equation.outvars, _equation(equation, [read(a) for a in equation.invars], dtype), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _literal(value: Any) -> Value:
    if np.shape(value) != () or np.iscomplexobj(value):
        return None
    if getattr(value, "dtype", None) == np.dtype(bool) or isinstance(value, bool):
        return Truth(bool(value), bool(value))
    try:
        return _constant(float(value))
    except (TypeError, OverflowError, Outside):  # a key, traced, or beyond what coefficients are
        return None


def _equation(equation: Any, own: list[Value], dtype: np.dtype) -> list[Value]:
    name, bodies = equation.primitive.name, list(inner(equation))
    if name in CALLS and bodies:
        return _run(bodies[0], own, dtype)
    if name == "custom_jvp_call" and bodies and all(map(_numberless, own)):
        # The rule is held against the value's derivative in z, so it must not reach the numbers.
        return _run(bodies[0], own, dtype)
    atoms = (*equation.invars, *equation.outvars)
    if len(equation.outvars) != 1 or None in own or any(atom.aval.shape != () for atom in atoms):
        return [None] * len(equation.outvars)
    try:
        return [_rule(equation, own, dtype)]
    except Outside:
        return [None]


def _numberless(value: Value) -> bool:
    return not isinstance(value, Sides) or all(map(normal.numberless, value))


# ---- one equation ---------------------------------------------------------------------------------------------------


def _rule(equation: Any, own: list[Any], dtype: np.dtype) -> Value:
    """What an equation makes of values of which all are known."""
    name = equation.primitive.name
    if name == "convert_element_type":
        return _converted(own[0], equation.params["new_dtype"], dtype)
    if name == "select_n":
        return _chosen(own)
    if name in ("copy", "copy_p", "broadcast_in_dim", "reshape", "squeeze"):
        return own[0]
    if name in _TRUTHS and all(isinstance(value, Truth) for value in own):
        return Truth(*(_TRUTHS[name](*side) for side in zip(*own, strict=True)))
    if any(atom.aval.dtype != dtype for atom in equation.invars) or not all(isinstance(v, Sides) for v in own):
        raise Outside("arithmetic in other digits than the argument's")
    if name in _ORDERS:
        return Truth(*(_compared(name, *side) for side in _two_sides(own)))
    if equation.outvars[0].aval.dtype != dtype:
        raise Outside("a result in other digits than the argument's")
    if name in _FOLDED and all(normal.numberless(x) and x.keys() <= {normal.UNIT} for x in own[0]):
        return Sides(*(normal.constant(_folded(name, normal.static(x))) for x in own[0]))
    if name == "pow":
        return _power(equation, own)
    rule = _RULES.get(name)
    if rule is None:
        raise Outside(name)
    return Sides(*(rule(equation.params, *side) for side in _two_sides(own)))


def _two_sides(own: list[Any]) -> list[tuple[Any, ...]]:
    """Operands for x < 0, and for x > 0, each with which of the two it is."""
    return [(above, *(value[above] for value in own)) for above in (False, True)]


def _converted(value: Any, target: Any, dtype: np.dtype) -> Value:
    """Other digits round, but for constants, which are known: a test's 0 and 1, an integer that was written."""
    if isinstance(value, Truth):
        if target == np.dtype(bool):
            return value
        settled = [normal.constant(float(side)) for side in value if side is not None]
        if len(settled) < 2:
            raise Outside("a test that is not settled")
        return Sides(*settled)
    if target == dtype:
        return value
    if not any(jnp.issubdtype(target, kind) for kind in (bool, jnp.integer, jnp.floating)):
        raise Outside("complex numbers")
    constants = [normal.static(side) for side in value]
    if target == np.dtype(bool):
        return Truth(*(x != 0 for x in constants))
    if not jnp.issubdtype(target, jnp.floating) and any(abs(x) > 100 for x in constants):
        raise Outside("an integer that its dtype may not have")
    return Sides(*(normal.constant(float(np.asarray(x).astype(target))) for x in constants))


def _chosen(own: list[Any]) -> Value:
    """`select_n`: by a test that is settled, or among cases that are the same."""
    test, *cases = own
    if not isinstance(test, Truth) or len({type(case) for case in cases}) != 1:
        raise Outside("a choice by other than a test")
    found = []
    for side, which in enumerate(test):
        if which is None and any(case[side] != cases[0][side] for case in cases):
            raise Outside("a choice that is not settled")
        found.append(cases[int(which or False)][side])
    return type(cases[0])(*found)


def _sign(above: bool, x: Sum) -> float:
    return normal.sign(x, above)


def _difference(x: Sum, y: Sum) -> Sum:
    return normal.added(x, normal.scaled(y, -1.0))


def _compared(name: str, above: bool, x: Sum, y: Sum) -> bool | None:
    try:
        return _ORDERS[name](normal.sign(_difference(x, y), above), 0.0)
    except Outside:
        return None


def _power(equation: Any, own: list[Any]) -> Value:
    """x^n and c^x, of exponents and bases that stand in the text: others have derivatives with a logarithm."""
    base, exponent = equation.invars
    if isinstance(exponent, Literal):
        return Sides(*(normal.power(x, float(exponent.val)) for x in own[0]))
    if isinstance(base, Literal) and base.val > 0:
        return Sides(*(normal.exp(normal.scaled(x, math.log(base.val))) for x in own[1]))
    raise Outside("a power that is no polynomial")


def _folded(name: str, value: float) -> float:
    """A function of a constant; where its derivative is not finite, a constant that came from z would make NaN."""
    try:
        return float(_FOLDED[name](value))
    except (ValueError, OverflowError, ZeroDivisionError):
        raise Outside("a function of a constant that it does not take") from None


def _positive(function: Callable[[float], float]) -> Callable[[float], float]:
    def on_positive(x: float) -> float:
        if x <= 0:
            raise ValueError("at or beyond a pole")
        return function(x)

    return on_positive


def _either(above: bool, x: Sum, y: Sum, sign: float) -> Sum:
    """max and min; where both are the same, so is the mean of their slopes, which JAX takes."""
    return x if _sign(above, _difference(x, y)) * sign >= 0 else y


def _half_difference(x: Sum, sign: float) -> Sum:
    """sinh and cosh."""
    return normal.scaled(normal.added(normal.exp(x), normal.scaled(normal.exp(normal.scaled(x, -1.0)), sign)), 0.5)


def _quotient(x: Sum, y: Sum) -> Sum:
    return normal.divided(x, normal.static(y)) if y.keys() <= {normal.UNIT} else normal.multiplied(x, normal.inverse(y))


def _plus(x: Sum, value: float) -> Sum:
    return normal.added(x, normal.constant(value))


_TRUTHS: dict[str, Callable[..., bool | None]] = {
    "not": lambda x: None if x is None else not x,
    "and": lambda x, y: False if False in (x, y) else None if None in (x, y) else True,
    "or": lambda x, y: True if True in (x, y) else None if None in (x, y) else False,
    "xor": lambda x, y: None if None in (x, y) else x != y,
}
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip
_FOLDED: dict[str, Callable[[float], float]] = {
    "sqrt": _positive(math.sqrt), "rsqrt": _positive(lambda x: 1 / math.sqrt(x)), "log": _positive(math.log),
    "tanh": math.tanh, "atan": math.atan, "cbrt": _positive(math.cbrt), "lgamma": _positive(math.lgamma),
}  # fmt: skip
"""Functions that constants of the text go through: √2, log 2π."""
_RULES: dict[str, Callable[..., Sum]] = {
    "add": lambda _, above, x, y: normal.added(x, y),
    "add_any": lambda _, above, x, y: normal.added(x, y),
    "sub": lambda _, above, x, y: _difference(x, y),
    "neg": lambda _, above, x: normal.scaled(x, -1.0),
    "mul": lambda _, above, x, y: normal.multiplied(x, y),
    "div": lambda _, above, x, y: _quotient(x, y),
    "square": lambda _, above, x: normal.power(x, 2),
    "integer_pow": lambda params, above, x: normal.power(x, params["y"]),
    "max": lambda _, above, x, y: _either(above, x, y, 1.0),
    "min": lambda _, above, x, y: _either(above, x, y, -1.0),
    "abs": lambda _, above, x: normal.scaled(x, _sign(above, x)),
    "sign": lambda _, above, x: normal.constant(_sign(above, x)),
    "exp": lambda _, above, x: normal.exp(x),
    "exp2": lambda _, above, x: normal.exp(normal.scaled(x, math.log(2.0))),
    "expm1": lambda _, above, x: _plus(normal.exp(x), -1.0),
    "sinh": lambda _, above, x: _half_difference(x, -1.0),
    "cosh": lambda _, above, x: _half_difference(x, 1.0),
    "sin": lambda _, above, x: normal.wave("sin", x),
    "cos": lambda _, above, x: normal.wave("cos", x),
    "erf": lambda _, above, x: normal.erf(x),
    "erfc": lambda _, above, x: _plus(normal.scaled(normal.erf(x), -1.0), 1.0),
}
