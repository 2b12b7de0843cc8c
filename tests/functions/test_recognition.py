"""Closed forms recognised by what is computed: what must be, what must not, and that a fault would show."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf, erfc, ndtr
from scipy import special

import tensorprog as tp
from tensorprog.functions import cdf, normal, rbf, recognition, rectified, step
from tensorprog.functions.base import Call, Elementwise, elementwise, expect
from tensorprog.functions.forms import Coefficient, Form
from tensorprog.functions.frozen import freeze
from tensorprog.functions.piecewise import polynomial
from tensorprog.functions.recognition import recognised

Z = np.concatenate([-np.geomspace(1e-3, 4.0, 13), np.geomspace(1.1e-3, 4.1, 13)])
GELU = functools.partial(jax.nn.gelu, approximate=False)


def made(fn: Callable[..., Any]) -> Elementwise:
    function, numbers = freeze(fn)
    return elementwise(function, len(numbers))


def form_of(fn: Callable[..., Any]) -> Form | None:
    """What is proved of fn, without what else `elementwise` does with functions of which nothing is."""
    function, numbers = freeze(fn)
    return recognised(Call(function), ((),) * len(numbers))


def terms(form: Form | None) -> Any:
    """A form's terms and weights to 14 digits, in whatever order."""
    assert form is not None
    rounded = lambda x: float(f"{x:.14g}") if isinstance(x, float) else x
    listed = [
        (type(term), tuple(map(rounded, vars(term).values())), [(rounded(w), atoms) for w, atoms in weight.terms])
        for weight, term in form.terms
    ]
    return type(form), sorted(map(repr, listed))


def same(found: Any, expected: Any) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-10, atol=1e-12))


def computes(fn: Callable[..., Any]) -> bool:
    """Whether fn has a form whose value and slope are those of fn itself, as JAX computes them, on both sides of 0."""
    form, numbers, z = form_of(fn), freeze(fn)[1], jnp.asarray(Z)
    if form is None:
        return False
    value = lambda t: jnp.asarray(fn(t), t.dtype)
    found, slope = form(z, *numbers), form.derivative()(z, *numbers)
    return same(found, jax.vmap(value)(z)) and same(slope, jax.vmap(jax.grad(value))(z)) and found.dtype == z.dtype


# ---- what must be recognised ----------------------------------------------------------------------------------------

#: source, and a function that the table knows by name
NAMED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (lambda z: jax.nn.relu(z), jax.nn.relu),
    "max(z, 0)": (lambda z: jnp.maximum(z, 0), jax.nn.relu),
    "max(0, z)": (lambda z: jnp.maximum(0, z), jax.nn.relu),
    "max(z, 0.) in steps": (lambda z: jnp.maximum(z + 0.0 * z, 0.0) * 1.0, jax.nn.relu),
    "clip at 0": (lambda z: jnp.clip(z, 0), jax.nn.relu),
    "-min(-z, 0)": (lambda z: -jnp.minimum(-z, 0.0), jax.nn.relu),
    "where >= 0": (lambda z: jnp.where(z >= 0, z, 0), jax.nn.relu),
    "where <": (lambda z: jnp.where(z < 0, 0.0, z), jax.nn.relu),
    "where not": (lambda z: jnp.where(~(z > 0) | (z < 0), 0.0, z), jax.nn.relu),
    "z (z > 0)": (lambda z: z * (z > 0), jax.nn.relu),
    "(z + |z|)/2": (lambda z: (z + jnp.abs(z)) / 2, jax.nn.relu),
    "relu of relu": (lambda z: jax.nn.relu(3 * jax.nn.relu(z)) / 3, jax.nn.relu),
    "a checkpoint": (lambda z: jax.checkpoint(jax.nn.relu)(z), jax.nn.relu),
    "a jit inside": (lambda z: jax.jit(jnp.maximum)(z, 0.0), jax.nn.relu),
    "leaky where": (lambda z: jnp.where(z > 0, z, 0.01 * z), jax.nn.leaky_relu),
    "leaky max": (lambda z: jnp.maximum(z, 0.01 * z), jax.nn.leaky_relu),
    "leaky_relu": (lambda z: jax.nn.leaky_relu(z), jax.nn.leaky_relu),
    "abs": (lambda z: jnp.abs(z), jnp.abs),
    "max(z, -z)": (lambda z: jnp.maximum(z, -z), jnp.abs),
    "z sign z": (lambda z: z * jnp.sign(z), jnp.abs),
    "sign": (lambda z: jnp.sign(z), jnp.sign),
    "where ±1": (lambda z: jnp.where(z > 0, 1.0, -1.0), jnp.sign),
    "step": (lambda z: (z > 0).astype(float), step),
    "step by int": (lambda z: (z > 0).astype(int), step),
    "step by bool": (lambda z: z > 0, step),
    "step by where": (lambda z: jnp.where(z > 0, 1.0, 0.0), step),
    "heaviside": (lambda z: jnp.heaviside(z, 0.5), step),
    "relu²": (lambda z: jax.nn.relu(z) ** 2, rectified(2)),
    "z² (z > 0)": (lambda z: jnp.where(z > 0, z**2, 0.0), rectified(2)),
    "z ** 2": (lambda z: z**2, jnp.square),
    "z ** 2.0": (lambda z: z**2.0, jnp.square),
    "z z": (lambda z: z * z, jnp.square),
    "square": (lambda z: jnp.square(z), jnp.square),
    "|z|²": (lambda z: jnp.abs(z) ** 2, jnp.square),
    "z ** 3": (lambda z: z**3, functools.partial(jax.lax.integer_pow, y=3)),
    "erf": (lambda z: erf(z), jax.lax.erf),
    "1 - erf": (lambda z: 1 - erf(z), jax.lax.erfc),
    "erfc": (lambda z: erfc(z), jax.lax.erfc),
    "ndtr": (lambda z: ndtr(z), cdf),
    "norm.cdf": (lambda z: jax.scipy.stats.norm.cdf(z), cdf),
    "(1 + erf)/2": (lambda z: 0.5 * (1 + erf(z * 0.7071067811865476)), cdf),
    "gelu": (lambda z: jax.nn.gelu(z, approximate=False), GELU),
    "gelu by erf": (lambda z: 0.5 * z * (1 + erf(z / 1.4142135623730951)), GELU),
    "gelu by erf, root inside": (lambda z: z * (1 + erf(z / jnp.sqrt(2.0))) / 2, GELU),
    "z ndtr": (lambda z: z * ndtr(z), GELU),
    "exp(-z²)": (lambda z: jnp.exp(-(z**2)), rbf),
    "1/exp(z²)": (lambda z: 1 / jnp.exp(z * z), rbf),
    "norm.pdf": (lambda z: jax.scipy.stats.norm.pdf(z), jax.scipy.stats.norm.pdf),
    "exp": (lambda z: jnp.exp(z), jnp.exp),
    "exp - 1": (lambda z: jnp.exp(z) - 1, jnp.expm1),
    "(e^z + e^-z)/2": (lambda z: (jnp.exp(z) + jnp.exp(-z)) / 2, jnp.cosh),
    "sinh": (lambda z: jnp.sinh(z), jnp.sinh),
    "-sin(-z)": (lambda z: -jnp.sin(-z), jnp.sin),
    "2 sin cos": (lambda z: 2 * jnp.sin(0.5 * z) * jnp.cos(0.5 * z), jnp.sin),
    "cos² - sin²": (lambda z: jnp.cos(z / 2) ** 2 - jnp.sin(z / 2) ** 2, jnp.cos),
}
A, B, C = (jnp.asarray(value) for value in (0.3, -0.7, 1.9))
OTHERS: dict[str, Callable[..., Any]] = {
    "affine of relu": lambda z: 2 * jax.nn.relu(z) - 1,
    "relu scaled inside": lambda z: jax.nn.relu(-3 * z) + z,
    "slopes": lambda z: jnp.where(z > 0, 2 * z, -0.3 * z) + jnp.sign(z),
    "by hand": lambda z: 0.5 + z * (1.5 - z * (0.25 + 2 * z)),
    "factored": lambda z: (z - 1) * (z + 1) * (z**2 - 3),
    "relu relu(-z) and more": lambda z: jax.nn.relu(z) * jax.nn.relu(-z) + jax.nn.relu(z) * z**2,
    "squared leaky": lambda z: jnp.square(jax.nn.leaky_relu(z, 0.2)) - 0.3,
    "a cubic on one side": lambda z: jnp.where(z > 0, z**3 - z, z),
    "a constant": lambda z: 0.0 * z + 2.5,
    "bell": lambda z: jnp.exp(-0.5 * z * z),
    "z bell": lambda z: z * jnp.exp(-0.5 * z**2) / jnp.sqrt(2 * jnp.pi),
    "gelu with another scale": lambda z: z * (1 + erf(0.6 * z)),
    "erf and a line": lambda z: erf(-2 * z) + 3 * z - 1,
    "gelu's slope": jax.grad(GELU),
    "relu's slope": jax.grad(lambda z: jax.nn.relu(z) ** 2),
    "erf of |z| times sign": lambda z: jnp.sign(z) * erf(jnp.abs(z)),
    "waves": lambda z: jnp.sin(30 * z) + jnp.cos(2 * z + 0.3),
    "half turn": lambda z: jnp.sin(z + jnp.pi),
    "wave times wave": lambda z: jnp.sin(z) * jnp.cos(3 * z - 1),
    "exponentials": lambda z: jnp.exp(0.3 * z + 1) - 2 * jnp.cosh(0.5 * z),
    "2^z": lambda z: 2.0**z,
    "2^z by its name": functools.partial(jnp.power, 2.0),
    "a slope in the place of z": functools.partial(jax.nn.leaky_relu, 0.2),
    "a number before": lambda z: A * jax.nn.relu(z) + B,
    "a number as slope": lambda z: jnp.where(z > 0, z, A * z),
    "numbers of a polynomial": lambda z: A + B * z + A * B * z**2,
    "a number in a phase": lambda z: jnp.cos(2 * z + B) + A * jnp.exp(z - 2 * C),
    "numbers in a phase": lambda z: jnp.sin(z + 2 * A - B + 0.1),
    "a number squared": lambda z: A**2 * erf(z) * 2 - A / 3,
    "a number added inside": lambda z: (z + A) ** 3,
}


@pytest.mark.parametrize("fn, named", NAMED.values(), ids=NAMED)
def test_written_otherwise(fn, named):
    assert terms(made(fn).form) == terms(made(named).form)
    assert computes(fn)


@pytest.mark.parametrize("fn", OTHERS.values(), ids=OTHERS)
def test_recognised(fn):
    assert computes(fn)


def test_the_users_function_and_name_stay():
    fn = lambda z: jnp.maximum(z, 0)
    phi = made(fn)
    assert phi.name == "lambda" and phi.own is None and phi.fn is not phi.form
    assert phi == made(lambda z: jnp.maximum(z, 0)), "equal functions are equal"
    assert phi != made(lambda z: jnp.maximum(z, 0.0)), "and others are not, though their forms are"
    with jax.enable_x64(False):
        recognised.cache_clear()
        assert terms(made(fn).form) == terms(phi.form)


def test_numbers_are_differentiated():
    function, numbers = freeze(OTHERS["a number in a phase"])
    phi = elementwise(function, len(numbers))
    assert phi.form is not None
    for z in (-0.4, 1.3):
        slopes = (jax.grad(f, range(1, 1 + len(numbers)))(z, *numbers) for f in (phi.form, phi.fn))
        np.testing.assert_allclose(*map(np.asarray, slopes), rtol=1e-13)


# ---- whatever is written -------------------------------------------------------------------------------------------

ONE = (
    jax.nn.relu, jnp.abs, jnp.sign, jnp.exp, jnp.sin, jnp.cos, jnp.sinh, jnp.expm1, erf, erfc, jnp.square,
    functools.partial(jax.nn.leaky_relu, negative_slope=0.2), lambda t: -0.5 * t, lambda t: t + 1.0, lambda t: t**3,
    lambda t: (t > 0).astype(float), lambda t: -0.5 * t * t,
)  # fmt: skip
TWO = (
    jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum, lambda s, t: jnp.where(s > 0, s, t),
    lambda s, t: jnp.where(s < 0, t, s * t), lambda s, t: jnp.where(s >= t, s, t), lambda s, t: s / jnp.exp(t),
)  # fmt: skip


def grown(rng: np.random.Generator, depth: int) -> Callable[..., Any]:
    """A function made of such parts."""
    if depth == 0 or rng.random() < 0.15:
        return lambda z: z
    if rng.random() < 0.6:
        outer, inside = ONE[rng.integers(len(ONE))], grown(rng, depth - 1)
        return lambda z: outer(inside(z))
    both, left, right = TWO[rng.integers(len(TWO))], grown(rng, depth - 1), grown(rng, depth - 1)
    return lambda z: both(left(z), right(z))


def test_what_is_recognised_of_many_is_right():
    found = 0
    for seed in range(70):
        fn = grown(np.random.default_rng(seed), 4)
        if form_of(fn) is not None:
            found += 1
            assert computes(fn), jax.make_jaxpr(fn)(1.0)
    assert found > 20


# ---- expectations ---------------------------------------------------------------------------------------------------

#: source, the same in NumPy
EXPECTED: dict[str, tuple[Callable[..., Any], Callable[[np.ndarray], np.ndarray]]] = {
    "where": (lambda z: jnp.where(z > 0, z, 0.1 * z), lambda z: np.where(z > 0, z, 0.1 * z)),
    "affine of relu": (OTHERS["affine of relu"], lambda z: 2 * np.maximum(z, 0) - 1),
    "steps": (lambda z: jnp.where(z > 0, 2.0, z), lambda z: np.where(z > 0, 2.0, z)),
    "polynomial": (OTHERS["by hand"], lambda z: 0.5 + 1.5 * z - 0.25 * z**2 - 2 * z**3),
    "gelu": (OTHERS["gelu with another scale"], lambda z: z * (1 + special.erf(0.6 * z))),
    "bell": (OTHERS["z bell"], lambda z: z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)),
    "waves": (lambda z: jnp.cos(2 * z + 0.3) * jnp.sin(z), lambda z: np.cos(2 * z + 0.3) * np.sin(z)),
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(80)


def halves(middle: Any) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on [-9, middle] and [middle, 9] and their weights times the normal density, along the last axis."""
    middle = np.clip(np.asarray(middle)[..., None], -9, 9)
    z = np.concatenate([(middle - 9) / 2 + (middle + 9) / 2 * NODES, (middle + 9) / 2 + (9 - middle) / 2 * NODES], -1)
    weights = np.concatenate([(middle + 9) / 2 * WEIGHTS, (9 - middle) / 2 * WEIGHTS], -1)
    return z, weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("fn, twin", EXPECTED.values(), ids=EXPECTED)
def test_expectations_are_quadrature(fn, twin):
    phi = made(fn)
    assert phi.form is not None
    a, b, r = 1.3, 0.6, 0.7
    u, outer = halves(0.0)
    w, inner = halves(-r * u / math.sqrt(1 - r * r))
    given = (inner * twin(math.sqrt(b) * (r * u[:, None] + math.sqrt(1 - r * r) * w))).sum(-1)
    truth = (outer * twin(math.sqrt(a) * u) * given).sum()
    np.testing.assert_allclose(expect(phi, phi, a, b, r * math.sqrt(a * b)), truth, rtol=1e-11)


def test_high_powers_do_not_overflow():
    phi = made(lambda z: z**24)
    value = expect(phi, phi, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(value, float(special.factorial2(23, exact=True)) ** 2, rtol=1e-12)


# ---- what must not be recognised ------------------------------------------------------------------------------------


def ruled(value: Callable[..., Any], slope: Callable[..., Any]) -> Callable[..., Any]:
    fn = jax.custom_jvp(value)
    fn.defjvp(lambda primals, tangents: (value(*primals), slope(*primals) * tangents[0]))
    return lambda z: fn(z)


def with_backward(z):
    fn = jax.custom_vjp(lambda z: jnp.maximum(z, 0.0))
    fn.defvjp(lambda z: (jnp.maximum(z, 0.0), z), lambda z, g: (g,))
    return fn(z)


def by_its_digits(z):
    return jnp.maximum(z, 0.0) if z.dtype == np.float64 else jnp.maximum(z, 0.1 * z)


def second_rule_wrong(z):
    """The rule of z² is right, but that of its slope is not."""
    inner = ruled(lambda z: 2 * z, lambda z: 5.0)
    return ruled(lambda z: z * z, inner)(z)


def forgetful(z):
    """A z, whose rule gives the slope in z and none in A."""
    fn = jax.custom_jvp(lambda z, a: a * z)
    fn.defjvp(lambda primals, tangents: (primals[0] * primals[1], primals[1] * tangents[0]))
    return fn(z, A)


TRAPS: dict[str, Callable[..., Any]] = {
    "relu that falls at 50": lambda z: jnp.where(z > 50, 0.0, jax.nn.relu(z)),
    "relu and a narrow bump": lambda z: jax.nn.relu(z) + 1e-3 * jnp.exp(-1000 * (z - 7) ** 2),
    "a bump without height in the text": lambda z: jax.nn.relu(z) + jnp.exp(-5000 * (z - 7) ** 2),
    "gelu's tanh form": lambda z: jax.nn.gelu(z),
    "a rule of slope 1": ruled(lambda z: jnp.maximum(z, 0.0), lambda z: jnp.ones_like(z)),
    "a rule that is wrong for z < 0 alone": ruled(jax.nn.relu, lambda z: jnp.where(z > 0, 1.0, 0.01)),
    "a rule with rounding of its own": ruled(jnp.square, lambda z: 2.0001 * z),
    "a rule in a composition": lambda z: 2 * ruled(jnp.sign, lambda z: jnp.exp(-(z**2)))(z) + 1,
    "a rule whose slope's rule is wrong": second_rule_wrong,
    "a rule that forgets a number": forgetful,
    "a backward rule": with_backward,
    "stop_gradient": lambda z: jax.lax.stop_gradient(z) + z**2,
    "stop_gradient in a factor": lambda z: z * jax.lax.stop_gradient(z > 0),
    "bfloat16": lambda z: jax.nn.relu(z.astype(jnp.bfloat16)),
    "float32 and back": lambda z: jax.nn.relu(z.astype(jnp.float32)).astype(z.dtype),
    "float16 inside": lambda z: jnp.where(z > 0, z, z.astype(jnp.float16)),
    "reduced precision": lambda z: jax.lax.reduce_precision(jax.nn.relu(z), 8, 7),
    "complex": lambda z: jnp.real(jnp.exp(1j * z)),
    "complex constants": lambda z: z * jnp.real((0.0 * z + 1).astype(complex)) * jnp.real(np.complex128(1 + 1j)),
    "int": lambda z: jax.nn.relu(z).astype(int),
    "floor": lambda z: jnp.floor(z) * 1.0,
    "rounding by a large constant": lambda z: (z + 6755399441055744.0) - 6755399441055744.0,
    "rounding by a large constant, with relu": lambda z: jax.nn.relu((z + 12582912.0) - 12582912.0),
    "relu6": lambda z: jax.nn.relu6(z),
    "hard tanh": lambda z: jax.nn.hard_tanh(z),
    "clip": lambda z: jnp.clip(z, -1, 1),
    "a kink elsewhere": lambda z: jax.nn.relu(z - 0.1),
    "a kink near 0": lambda z: jnp.where(z > 1e-12, z, 0.0),
    "two kinks": lambda z: jnp.maximum(z, z**2),
    "a number's sign": lambda z: jax.nn.relu(A * z),
    "a kink at a number": lambda z: jnp.where(z > A, z, 0.0),
    "a number as frequency": lambda z: jnp.sin(A * z),
    "a number in a rule": lambda z: jax.nn.relu(z + A),
    "a case in its digits": by_its_digits,
    "softplus": lambda z: jax.nn.softplus(z),
    "silu": lambda z: z * jax.nn.sigmoid(z),
    "elu": lambda z: jax.nn.elu(z),
    "erf elsewhere": lambda z: erf(z - 0.5),
    "erf of a square": lambda z: erf(z**2),
    "z sin z": lambda z: z * jnp.sin(z),
    "relu and sine": lambda z: jax.nn.relu(z) + 1e-12 * jnp.sin(z),
    "exp(-|z|)": lambda z: jnp.exp(-jnp.abs(z)),
    "exp(z²)": lambda z: jnp.exp(0.1 * z**2),
    "a vanishing exponential": lambda z: z + jnp.exp(2 * z - 800),
    "a tiny coefficient": lambda z: z + 1e-200 * jnp.exp(z),
    "1/z": lambda z: 1 / z,
    "z⁻²": lambda z: z**-2,
    "√z²": lambda z: jnp.sqrt(z**2),
    "NaN on one side": lambda z: jnp.where(z > 0, z, jnp.nan),
    "an unknown side that is not taken": lambda z: jnp.where(z > 0, z, jnp.where(z > 0, jnp.sqrt(-z), 0.0)),
    "where a bell has no digits": lambda z: jnp.where(jnp.exp(-(z**2)) > 0, z, 0.0),
    "a sign of what single precision loses": lambda z: z * (1e-9 * z > 0),
    "where a power has no digits": lambda z: jnp.sign(z**21),
    "terms that cancel at 0": lambda z: 1 - jnp.exp(-(z**2)),
    "waves that cancel at 0": lambda z: 2 * jnp.sin(z) - jnp.sin(2 * z),
    "a loop": lambda z: jax.lax.fori_loop(0, 3, lambda _, t: jax.nn.relu(t), z),
    "|·| of a sine": lambda z: jnp.abs(jnp.sin(z)),
}


@pytest.mark.parametrize("fn", TRAPS.values(), ids=TRAPS)
def test_not_recognised(fn):
    assert form_of(fn) is None


def test_a_constant_in_single_precision_keeps_its_value():
    single = np.float32(0.1)
    expected = terms(polynomial(0.0, float(single)))
    assert terms(form_of(lambda z: jnp.float32(0.1) * z)) == terms(form_of(lambda z: single * z)) == expected


def test_arrays_are_no_coefficients():
    table = jnp.asarray([0.1, 0.2])
    fn = lambda z: table[0] * z
    function, _ = freeze(fn)
    assert elementwise(function, ((2,),)).form is None


# ---- a fault would show ---------------------------------------------------------------------------------------------

RULES, ORDERS = recognition._RULES, recognition._ORDERS
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "max is min": (RULES, "max", RULES["min"]),
    "a sum is a difference": (RULES, "add", RULES["sub"]),
    "erfc without 1": (RULES, "erfc", lambda params, above, x: normal.scaled(normal.erf(x), -1.0)),
    "abs keeps the sign below 0": (RULES, "abs", lambda params, above, x: x),
    "cos is sin": (RULES, "cos", RULES["sin"]),
    "sinh is cosh": (RULES, "sinh", RULES["cosh"]),
    "powers one short": (RULES, "integer_pow", lambda params, above, x: normal.power(x, params["y"] - 1)),
    "> is <": (ORDERS, "gt", ORDERS["lt"]),
    ">= is <=": (ORDERS, "ge", ORDERS["le"]),
    "not is nothing": (recognition._TRUTHS, "not", lambda x: x),
    "roots forgotten": (recognition._FOLDED, "sqrt", lambda x: x),
}


@pytest.fixture
def planted(monkeypatch):
    recognised.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    recognised.cache_clear()


@pytest.mark.parametrize("table, name, fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_rule_would_show(planted, table, name, fault):
    planted.setitem(table, name, fault)
    assert not all(map(computes, [fn for fn, _ in NAMED.values()] + list(OTHERS.values())))


GUARDS: dict[str, tuple[Any, str, Any, str]] = {
    "rules are believed": (recognition, "rules", lambda fn, shapes: frozenset(), "a rule of slope 1"),
    "rules reach numbers": (recognition, "_numberless", lambda value: True, "a rule that forgets a number"),
    "one trace": (recognition, "_alike", lambda one, two, digits: True, "a case in its digits"),
    "differences keep all digits": (normal, "_LOST", 0.0, "rounding by a large constant, with relu"),
    "signs of small powers": (normal, "_TOLD", 1e13, "a sign of what single precision loses"),
    "terms may cancel": (normal, "steady", lambda form: True, "terms that cancel at 0"),
    "exponentials may vanish": (
        normal,
        "_exp",
        lambda offset: Coefficient.of(math.exp(offset.terms[0][0]) if offset.terms else 1.0),
        "a vanishing exponential",
    ),
}


@pytest.mark.parametrize("module, name, fault, trap", GUARDS.values(), ids=GUARDS)
def test_a_guard_left_out_would_show(planted, module, name, fault, trap):
    planted.setattr(module, name, fault)
    assert form_of(TRAPS[trap]) is not None


# ---- end to end -----------------------------------------------------------------------------------------------------

X = np.array([[1.0, 0.4, -0.3], [0.2, -1.1, 0.9], [1.0, 0.5, -0.2]])


def two_layers(phi: Callable[..., Any]) -> tp.Program:
    def network(x):
        n = tp.Width("n")
        h = tp.nonlin(phi, tp.weight("U", n, x.features) @ x)
        return tp.weight("v", 1, n) @ tp.nonlin(phi, tp.weight("W", n, n) @ h)

    return tp.trace(network, tp.Input(3))


@pytest.mark.parametrize(
    "fn, named",
    [(lambda t: jnp.where(t > 0, t, 0), jax.nn.relu), (lambda t: t * 0.5 * erfc(-t / jnp.sqrt(2)), GELU)],
    ids=["relu", "gelu"],
)
def test_kernels_are_those_of_the_named_function(fn, named):
    found, expected = (tp.ntk(two_layers(phi), X) for phi in (fn, named))
    np.testing.assert_allclose(found, expected, rtol=1e-14)
