"""Expectations of functions that grow, have poles, or are narrow: right to their bounds, or refused with the reason."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma

import tensorprog as tp
from tensorprog.errors import KernelWarning
from tensorprog.functions.integrate import mean
from tensorprog.functions.lines import look
from tensorprog.functions.signals import MOST, signals

BESIDE = -0.20849581843469428  # E log|z - 1|, by fifty digits


def average(fn: Any, var: float = 1.0, vectors: int = 1) -> tp.Program:
    def program() -> Any:
        n = tp.Width("n")
        return tp.moment(fn, *(tp.bias(f"x{k}", n, var=var) for k in range(vectors)))

    return tp.trace(program)


def normal(fn: Any, *edges: float) -> float:
    """E fn(z), by quadrature between edges."""
    at = lambda z: fn(z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    parts = zip([-12.0, *edges], [*edges, 12.0], strict=True)
    return sum(quad(at, low, high, epsabs=1e-13, epsrel=1e-13, limit=400)[0] for low, high in parts)


def square_root(q: float) -> float:
    """E |z|^q."""
    return 2 ** (q / 2) * gamma((1 + q) / 2) / math.sqrt(math.pi)


# ---- right


RIGHT = {
    "exp(.48z²)": (lambda z: jnp.exp(0.48 * z * z), 5.0),
    "exp(.499z²)": (lambda z: jnp.exp(0.499 * z * z), 0.002**-0.5),
    "exp(10z)": (lambda z: jnp.exp(10 * z), math.exp(50)),
    "exp(12z)": (lambda z: jnp.exp(12 * z), math.exp(72)),
    "sinh(5z)²": (lambda z: jnp.sinh(5 * z) ** 2, (math.exp(50) - 1) / 2),
    "z²⁰": (lambda z: z**20, 654729075.0),
    "log|z|": (lambda z: jnp.log(jnp.abs(z)), -(np.euler_gamma + math.log(2)) / 2),
    "log|z-1|": (lambda z: jnp.log(jnp.abs(z - 1)), BESIDE),
    "|z|^-1/2": (lambda z: jnp.abs(z) ** -0.5, square_root(-0.5)),
    "1/(z²+1e-6)": (lambda z: 1 / (z * z + 1e-6), math.sqrt(math.pi / 2) * 1e3 * math.exp(5e-7) * math.erfc(5e-7**0.5)),
    "bump": (lambda z: jnp.exp(-1e6 * (z - 0.3) ** 2), (1 + 2e6) ** -0.5 * math.exp(-0.09e6 / (1 + 2e6))),
    "kink": (lambda z: jnp.abs(z - 0.37), normal(lambda z: abs(z - 0.37), 0.37)),
    "jumps": (lambda z: jnp.round(4 * z) / 4 * z, None),
    "exp|z|^1.5": (lambda z: jnp.exp(jnp.abs(z) ** 1.5), 6.20315575039994),
}
RIGHT["jumps"] = (
    RIGHT["jumps"][0],
    0.25 * sum(2 * math.exp(-(((k + 0.5) / 4) ** 2) / 2) / math.sqrt(2 * math.pi) for k in range(60)),
)


@pytest.mark.parametrize("name", RIGHT)
def test_integrals_are_right_to_their_bounds(name: str) -> None:
    fn, truth = RIGHT[name]
    found = mean(fn, 1)
    assert abs(found.value - truth) <= found.error + 4e-16 * abs(truth)
    assert found.error <= 1e-9 * found.size


def test_a_pole_beside_zero_is_bounded() -> None:
    """Near 2 a number is known to 4e-16: |z - 2|^-½ to eight digits, and the bound says so."""
    found = mean(lambda z: jnp.abs(z - 2) ** -0.5, 1)
    density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    truth = 2 * quad(lambda s: density(2 + s * s) + density(2 - s * s), 0.0, 4.0, epsabs=1e-13)[0]  # z = 2 ± s²
    assert abs(found.value - truth) <= found.error < 1e-6


def test_two_gaussians() -> None:
    bump = mean(lambda a, b: 1e5 * jnp.exp(-1000 * ((a - 1) ** 2 + (b - 2) ** 2)), 2)
    truth = 1e5 / 2001 * math.exp(-5000 / 2001)
    assert abs(bump.value - truth) <= bump.error <= 1e-9 * truth
    kinked = mean(lambda a, b: jnp.maximum(a - b, 0.0) * jnp.exp(a), 2)
    # By a's exponential: e^½ E max(a + 1 - b, 0), a - b of variance 2.
    shifted = math.exp(0.5) * (math.exp(-0.25) / math.sqrt(math.pi) + (1 + math.erf(0.5)) / 2)
    assert abs(kinked.value - shifted) <= kinked.error <= 1e-9 * shifted


def bells(height: float) -> Any:
    """Two narrow bells of three Gaussians, far from every node of a grid of steps of 0.4."""

    def fn(a: Any, b: Any, c: Any) -> Any:
        one = jnp.exp(-1120 * ((a - 0.552) ** 2 + (b - 0.701) ** 2 + (c + 0.787) ** 2))
        return one + height * jnp.exp(-700 * ((a + 1) ** 2 + (b - 0.2) ** 2 + (c - 0.1) ** 2))

    return fn


@pytest.mark.parametrize("height", [0.0, 2.0])
def test_narrow_functions_of_three_gaussians(height: float) -> None:
    """Neither nodes nor draws see them, and no number is said that is not theirs."""

    def bell(rate: float, *middle: float) -> float:
        return math.prod(math.exp(-rate * m * m / (1 + 2 * rate)) / math.sqrt(1 + 2 * rate) for m in middle)

    found = mean(bells(height), 3)
    true = bell(1120, 0.552, 0.701, -0.787) + height * bell(700, -1, 0.2, 0.1)
    assert abs(found.value - true) <= found.error + 1e-13 * true and found.error <= 1e-9 * true


@pytest.mark.slow
def test_limits_say_how_exact_they_are() -> None:
    for fn, var, truth in (
        (lambda z: jnp.exp(0.3 * z * z), 1.5, 0.1**-0.5),
        (lambda z: jnp.log(jnp.abs(z)), 4.0, math.log(2) - (np.euler_gamma + math.log(2)) / 2),
    ):
        found = tp.limit(average(fn, var))
        assert found.method == "exact" and abs(found.value - truth) <= 1e-9 * abs(truth)
    fast = tp.limit(average(lambda z: jnp.cos(1e6 * z)), samples=2**14)
    assert fast.method == "particles" and abs(fast.value) <= 4 * fast.stderr


def test_moments_that_read_moments_carry_their_errors() -> None:
    def program() -> Any:
        x = tp.bias("x", tp.Width("n"))
        c = tp.moment(lambda z: jnp.exp(0.45 * z * z), x)
        return tp.moment(lambda z, c: jnp.log(jnp.abs(z)) * c, x, scalars=(c,)), tp.scalar(jnp.log, c)

    found = tp.limit(tp.trace(program))
    root = 0.1**-0.5
    np.testing.assert_allclose(found.value, [-0.635181422730739 * root, math.log(root)], rtol=1e-12)
    assert found.method == "exact" and 0 < found.stderr[0] < 1e-9


# ---- refused


MISSING = {
    "exp(.6z²)": (lambda z: jnp.exp(0.6 * z * z), 1.0, "grows too fast"),
    "exp(.3z²)": (lambda z: jnp.exp(0.3 * z * z), 2.0, "variance 2: the function grows too fast"),
    "exp(exp(z))": (lambda z: jnp.exp(jnp.exp(z)), 0.01, "grows too fast"),
    "1/|z-1|": (lambda z: 1 / jnp.abs(z - 1), 4.0, "a pole at z = 1"),
    "1/(1+z)": (lambda z: 1 / (1 + z), 1.0, "a pole at z = -1"),
    "tan": (jnp.tan, 1.0, "a pole at z = 1.571"),
    "log1p": (jnp.log1p, 1.0, "nan at z = -1.0"),
    "exp(40z)": (lambda z: jnp.exp(40 * z), 1.0, "double precision"),
}


@pytest.mark.parametrize("name", MISSING)
def test_limits_that_do_not_exist_are_refused(name: str) -> None:
    fn, var, why = MISSING[name]
    with pytest.raises(tp.ProgramError, match=rf"test_existence.py:\d+[\s\S]*{why}"):
        tp.limit(average(fn, var))


@pytest.mark.slow
def test_limits_of_two_vectors_that_do_not_exist() -> None:
    for fn in (lambda a, b: a / b, lambda a, b: jnp.exp(0.3 * (a + b) ** 2)):
        with pytest.raises(tp.ProgramError, match="does not exist"):
            tp.limit(average(fn, vectors=2))


@pytest.mark.slow
def test_second_moments_on_nodes_and_draws_that_do_not_exist() -> None:
    def squared() -> Any:
        return tp.moment(jnp.square, tp.nonlin(lambda z: jnp.exp(0.3 * z * z), tp.bias("x", tp.Width("n"))))

    def multiplied() -> Any:
        n = tp.Width("n")
        s = tp.nonlin(lambda z: jnp.abs(z - 1) ** -0.6, tp.bias("x", n))
        return tp.moment(jnp.square, tp.weight("W", n, n) @ s)

    for fn, why in ((squared, "grows too fast"), (multiplied, "a pole at z = 1")):
        with pytest.raises(tp.ProgramError, match=why):
            tp.limit(tp.trace(fn), samples=2**10)


def test_a_limit_as_uncertain_as_it_is_large_is_told() -> None:
    def program() -> Any:
        n = tp.Width("n")
        s = tp.nonlin(lambda *z: jnp.exp(4 * sum(z)), *(tp.bias(f"x{k}", n) for k in range(4)))
        return tp.moment(lambda s: s, s)

    with pytest.warns(KernelWarning, match=r"test_existence.py:\d+[\s\S]*±"):
        tp.limit(tp.trace(program), samples=2**12)


def network(fn: Any, *, moment: bool = False) -> tp.Program:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        return tp.weight("v", 1, n) @ (h * tp.moment(fn, h) if moment else tp.nonlin(fn, h))

    return tp.trace(net, tp.Input(2))


@pytest.mark.parametrize(
    ("fn", "kernel", "why"),
    [
        (lambda z: jnp.sqrt(jnp.abs(z - 1)), tp.ntk, r"'\(z\)² does not exist[\s\S]*a pole at z = 1"),
        (lambda z: jnp.log(jnp.abs(z)), tp.ntk, r"'\(z\)² does not exist[\s\S]*\|z\|\^-1"),
        (lambda z: jnp.abs(z - 2) ** -0.5, tp.nngp, r"\^-0.5, z the distance from a pole at z = 2"),
        (jnp.tan, tp.nngp, "a pole at z = 1.571"),
        (jnp.log1p, tp.nngp, "nan at z = -1.0"),
    ],
)
def test_kernels_that_do_not_exist_are_refused_before_they_are_computed(fn: Any, kernel: Any, why: str) -> None:
    with pytest.raises(tp.ProgramError, match=rf"test_existence.py:\d+[\s\S]*{why}"):
        kernel(network(fn), jnp.ones((1, 2)))


def test_a_moment_inside_a_kernel_that_does_not_exist() -> None:
    with pytest.raises(tp.ProgramError, match=r"E lambda\(z\) does not exist[\s\S]*a pole at z = 1"):
        tp.nngp(network(lambda z: 1 / jnp.abs(z - 1), moment=True), jnp.ones((1, 2)))


def test_a_pole_of_one_site_alone_is_seen() -> None:
    """Numbers of a function differ from site to site."""

    def function(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.nonlin(lambda z, c: 1 / (jnp.abs(z) + c), tp.weight("W", n, 2) @ x, scalars=(np.array([1.0, 0.0]),))
        return tp.weight("v", 1, n) @ h

    with pytest.raises(tp.ProgramError, match=r"test_existence.py:\d+[\s\S]*a pole at z = 0"):
        tp.nngp(tp.trace(function, tp.Input(2, 2)), jnp.ones((1, 2, 2)))


def test_a_limit_that_overflows_everywhere_is_refused() -> None:
    program = tp.trace(lambda x: tp.moment(lambda a: jnp.exp(a + 800.0), tp.bias("x", tp.Width("n"))), tp.Input(2))
    with pytest.raises(tp.ProgramError, match="out of reach of double precision"):
        tp.limit(program, jnp.ones((1, 2)))


def test_a_function_with_many_kinks_keeps_its_value() -> None:
    kinks = jnp.linspace(-1.0, 1.0, MOST + 7)
    fn = lambda z: sum(jnp.abs(z - k) for k in kinks)
    found, value = signals(fn)(jnp.asarray(35.0))
    assert found.shape == (MOST + 1,)
    assert found[-1] == value == fn(jnp.asarray(35.0))


@pytest.mark.full
def test_a_moment_with_a_logarithm_in_a_kernel() -> None:
    found = tp.nngp(network(lambda z: jnp.log(jnp.abs(z - 1)), moment=True), jnp.ones((1, 2)))
    np.testing.assert_allclose(found, BESIDE**2, rtol=1e-8)


@pytest.mark.full
def test_a_moment_of_which_no_digit_is_known_is_refused() -> None:
    with pytest.raises(tp.ProgramError, match=r"test_existence.py:\d+[\s\S]*known to no digit"):
        tp.nngp(network(lambda z: jnp.cos(1e6 * z) * jnp.exp(z), moment=True), jnp.ones((1, 2)))


@pytest.mark.slow
def test_overflow_names_the_range_and_a_remedy_that_works() -> None:
    program, x = tp.nets.net("mlp").program(tp.Input(2), depth=2), np.array([[1.0, 2.0]])
    with pytest.raises(tp.ProgramError, match=r"float32 \(up to 3e\+38\)[\s\S]*float64"):
        tp.nngp(program, (x * 1e20).astype(np.float32))
    assert np.isfinite(tp.nngp(program, x * 1e20)).all()
    with pytest.raises(tp.ProgramError, match=r"float64 \(up to 2e\+308\)[\s\S]*scale the inputs"):
        tp.nngp(program, x * 1e160)


# ---- the inspector


def test_what_functions_do_along_a_line() -> None:
    assert look(lambda z: jnp.tanh(z) + 1e-5 / jnp.abs(z - 1.3)).poles[0].place == pytest.approx(1.3)
    assert look(jax.grad(lambda z: jnp.sqrt(jnp.abs(z - 1)))).poles[0].power == pytest.approx(0.5, abs=1e-4)
    assert look(lambda z: z**20 * jnp.exp(0.3 * z * z)).rates == pytest.approx((0.3, 0.3))
    assert look(lambda z: jnp.exp(jnp.exp(z))).rates == (0.0, math.inf)
    for tame in (
        jax.nn.gelu,
        jax.nn.softplus,
        jnp.sinc,
        lambda z: jnp.sin(z) / z,
        lambda z: jnp.exp(jnp.abs(z) ** 1.5),
    ):
        line = look(tame)
        assert line.undefined is None and line.poles == () and line.rates == (0.0, 0.0)
    by_hand = look(lambda z: (jnp.exp(z) - jnp.exp(-z)) / (jnp.exp(z) + jnp.exp(-z)))
    assert by_hand.undefined is not None and abs(by_hand.undefined[0]) > 300 and by_hand.rates == (0.0, 0.0)


# ---- calibration of what is drawn


def _drawn(fn: Any, count: int = 4) -> tp.Program:
    """E fn(g¹ + … ) over sums of as many Gaussians as only draws take."""

    def program() -> Any:
        n = tp.Width("n")
        s = tp.nonlin(lambda *z: sum(z) / math.sqrt(count), *(tp.bias(f"x{k}", n) for k in range(count)))
        return tp.moment(fn, s)

    return tp.trace(program)


DRAWN = {
    "exp(z/2)": (lambda z: jnp.exp(z / 2), math.exp(1 / 8)),
    "exp(z)": (jnp.exp, math.exp(0.5)),
    "exp(1.5z)": (lambda z: jnp.exp(1.5 * z), math.exp(9 / 8)),
    "exp(2z)": (lambda z: jnp.exp(2 * z), math.exp(2)),
    "cosh": (jnp.cosh, math.exp(0.5)),
    "sinh": (jnp.sinh, 0.0),
    "exp(.1z²)": (lambda z: jnp.exp(0.1 * z * z), 0.8**-0.5),
    "exp(.2z²)": (lambda z: jnp.exp(0.2 * z * z), 0.6**-0.5),
    "z⁴": (lambda z: z**4, 3.0),
    "z⁶": (lambda z: z**6, 15.0),
    "|z|": (jnp.abs, math.sqrt(2 / math.pi)),
    "relu(z-1)": (lambda z: jnp.maximum(z - 1, 0.0), normal(lambda z: max(z - 1, 0.0), 1.0)),
    "|z-.3|": (lambda z: jnp.abs(z - 0.3), normal(lambda z: abs(z - 0.3), 0.3)),
    "z>0.5": (lambda z: jnp.where(z > 0.5, 1.0, 0.0), math.erfc(0.5 / math.sqrt(2)) / 2),
    "sign(z)z": (lambda z: jnp.sign(z) * z, math.sqrt(2 / math.pi)),
    "floor": (jnp.floor, -0.5),
    "exp(-50(z-1)²)": (lambda z: jnp.exp(-50 * (z - 1) ** 2), 101**-0.5 * math.exp(-50 / 101)),
    "exp(-500z²)": (lambda z: jnp.exp(-500 * z * z), 1001**-0.5),
    "tanh(50(z-1))": (lambda z: jnp.tanh(50 * (z - 1)), normal(lambda z: math.tanh(50 * (z - 1)), 0.8, 1.0, 1.2)),
    "1/(1e-2+z²)": (
        lambda z: 1 / (1e-2 + z * z),
        math.sqrt(math.pi / 2) * 10 * math.exp(0.005) * math.erfc(math.sqrt(0.005)),
    ),
}


def coverage(names: Any, keys: int, samples: int) -> float:
    inside = []
    for name in names:
        fn, truth = DRAWN[name]
        program = _drawn(fn)
        for seed in range(keys):
            found = tp.limit(program, samples=samples, key=jax.random.key(seed), method="particles")
            inside.append(abs(float(found.value) - truth) <= 2 * float(found.stderr))
    return float(np.mean(inside))


@pytest.mark.slow
def test_errors_of_draws_are_calibrated() -> None:
    """Three of the twenty programs below, a growing, a kinked and a narrow one."""
    assert 0.88 <= coverage(["exp(z)", "relu(z-1)", "exp(-50(z-1)²)"], 40, 2**11) <= 0.99


@pytest.mark.full
@pytest.mark.slow
def test_errors_of_draws_are_calibrated_for_twenty_programs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)  # sinh's mean is 0
        assert 0.9 <= coverage(DRAWN, 200, 2**13) <= 0.99
