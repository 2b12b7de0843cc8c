"""A function is taken as it is at the call: what changes later changes nothing, and equal functions are equal."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog.functions.frozen import freeze
from tensorprog.functions.thaw import Opaque

ALPHA = 0.3
TABLE = [1.0, 2.0]
SLOPE = jnp.asarray(0.5)


def freeze_static(fn):
    function, numbers = freeze(fn)
    assert numbers == ()
    return function


def scaled(alpha):
    return lambda z: alpha * z


# ---- later changes change nothing -----------------------------------------------------------------------------------


def test_loop_variable_is_copied():
    taken = []
    for power in (1, 2, 3):
        taken.append(freeze_static(lambda z: z**power))  # noqa: B023 (that it is not bound is the point)
    assert [f(2.0) for f in taken] == [2.0, 4.0, 8.0]
    assert len(set(taken)) == 3


def test_captured_list_and_dict_are_copied_to_the_bottom():
    weights, options = [1.0, [2.0]], {"shift": [3.0]}
    f = freeze_static(lambda z: weights[0] * z + weights[1][0] + options["shift"][0])
    weights[0], weights[1][0], options["shift"][0] = 10.0, 20.0, 30.0
    assert f(1.0) == 6.0


def test_captured_numpy_array_is_copied():
    coefficients = np.array([1.0, 2.0])
    f = freeze_static(lambda z: (coefficients * z).sum())
    coefficients[:] = 0.0
    assert f(1.0) == 3.0


def test_plain_global_is_copied(monkeypatch):
    fn = lambda z: jnp.maximum(z, ALPHA * z)
    before = freeze_static(fn)
    monkeypatch.setitem(globals(), "ALPHA", 0.9)
    after = freeze_static(fn)
    np.testing.assert_allclose(before(-1.0), -0.3)
    np.testing.assert_allclose(after(-1.0), -0.9)
    assert before != after


def test_global_read_by_a_nested_function_is_copied(monkeypatch):
    fn = lambda z: sum([scale * z for scale in TABLE if (lambda: ALPHA > 0)()])
    f = freeze_static(fn)
    monkeypatch.setitem(globals(), "ALPHA", -1.0)
    monkeypatch.setitem(globals(), "TABLE", [100.0])
    assert f(1.0) == 3.0


def test_a_global_with_the_name_of_an_attribute_is_not_read(monkeypatch):
    fn = lambda z: jnp.tanh(z)
    before = freeze_static(fn)
    monkeypatch.setitem(globals(), "tanh", 3)
    assert before == freeze_static(fn)


def test_global_of_a_called_function_is_copied(monkeypatch):
    f = freeze_static(lambda z: leaky(z))
    monkeypatch.setitem(globals(), "ALPHA", 0.9)
    np.testing.assert_allclose(f(-1.0), -0.3)


def leaky(z):
    return jnp.where(z > 0, z, ALPHA * z)


def test_defaults_and_partial_arguments_are_copied():
    weights = [2.0]

    def fn(z, w=weights, *, v=weights):
        return w[0] * v[0] * z

    by_default, by_partial = freeze_static(fn), freeze_static(functools.partial(lambda w, z: w[0] * z, weights))
    weights[0] = 7.0
    assert by_default(1.0) == 4.0
    assert by_partial(1.0) == 2.0


def test_mutable_dataclass_is_copied():
    @dataclass
    class Settings:
        gain: float

    settings = Settings(2.0)
    f = freeze_static(lambda z: settings.gain * z)
    settings.gain = 5.0
    assert f(1.0) == 2.0


# ---- equality -------------------------------------------------------------------------------------------------------


def test_equal_closures_made_twice_are_equal_and_others_differ():
    one, same, other = (freeze_static(scaled(alpha)) for alpha in (1.5, 1.5, 2.5))
    assert one == same and hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize(
    "left, right",
    [(1, 1.0), (1, True), (0.0, -0.0), ("a", b"a"), ([1], (1,)), ({"a": 1}, {"a": 2}), (np.zeros(2), np.zeros(3)),
     (np.zeros(2), np.zeros(2, np.float32)), (np.float64(1.0), 1.0), ({1, 2}, {1, 3}), (math.sin, math.cos)],
)  # fmt: skip
def test_captured_values_that_differ_make_functions_that_differ(left, right):
    capture = lambda value: freeze_static(lambda z: (z, value))
    assert capture(left) != capture(right)
    assert capture(left) == capture(left)


def test_nan_equals_itself():
    assert freeze_static(scaled(float("nan"))) == freeze_static(scaled(math.nan * 1.0))


def test_equality_looks_into_captured_functions():
    outer = lambda alpha: (lambda inner: lambda z: inner(z) + 1)(scaled(alpha))
    assert freeze_static(outer(1.0)) == freeze_static(outer(1.0))
    assert freeze_static(outer(1.0)) != freeze_static(outer(2.0))


def test_lines_and_names_do_not_matter_but_code_does():
    def one(z):
        return z * 2.0

    def two(z):
        return z * 2.0

    def three(z):
        return z + 2.0

    assert freeze_static(one) == freeze_static(two)
    assert freeze_static(one) != freeze_static(three)


def test_constants_of_the_code_are_told_apart_by_type():
    assert freeze_static(lambda z: (z, 1)) != freeze_static(lambda z: (z, 1.0))
    assert freeze_static(lambda z: (z, 0.0)) != freeze_static(lambda z: (z, -0.0))


def test_usable_as_static_argument_without_recompiling():
    calls = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, x):
        calls.append(function)
        return function(x)

    for _ in range(3):
        run(freeze_static(scaled(2.0)), jnp.ones(()))
    assert len(calls) == 1


# ---- functions that refer to themselves -----------------------------------------------------------------------------


def test_closure_over_itself():
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)

    f = freeze_static(factorial)
    assert f(5) == 120
    assert f == freeze_static(factorial)


def is_even(n):
    return n == 0 or is_odd(n - 1)


def is_odd(n):
    return n != 0 and is_even(n - 1)


def test_functions_that_call_each_other(monkeypatch):
    f = freeze_static(is_even)
    monkeypatch.setitem(globals(), "is_odd", None)
    assert f(10) and not f(7)


def test_many_functions_that_share_do_not_explode():
    fn = lambda z: z + 1
    for _ in range(60):
        fn = (lambda g, h: lambda z: g(z) if z > 0 else h(z))(fn, fn)
    f = freeze_static(fn)
    assert len(f.records) == 61 and f(1) == 2


def test_container_that_contains_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="contains itself"):
        freeze(lambda z: loop)


def test_empty_cell_stays_empty():
    def maker():
        fn = lambda z: later + z
        function = freeze_static(fn)
        later = 1
        return function, later

    function, _ = maker()
    with pytest.raises(NameError):
        function(1.0)


# ---- arrays become numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda s: lambda z: s * z,
        lambda s: functools.partial(lambda z, gain: gain * z, gain=s),
        lambda s: lambda z, gain=s: gain * z,
        lambda s: (lambda pair: lambda z: pair["a"][0] * z)({"a": [s, 3]}),
        lambda s: (lambda inner: lambda z: inner(z))(lambda z: s * z),
        lambda s: Gain(s, "x"),
        lambda s: Gain(s, "x").apply,
        lambda s: jax.jit(lambda z: s * z),
    ],
)
def test_arrays_are_taken_out_and_given_back(make):
    function, numbers = freeze(make(jnp.asarray(3.0)))
    assert len(numbers) == function.count == 1
    assert function(2.0, numbers=numbers) == 6.0
    assert function(2.0, numbers=(jnp.asarray(5.0),)) == 10.0
    assert function == freeze(make(jnp.asarray(4.0)))[0]  # the value is no part of the function

    def traced(s):
        function, numbers = freeze(make(s))
        return function(2.0, numbers=numbers)

    assert jax.grad(traced)(3.0) == 2.0


@functools.partial(jax.tree_util.register_dataclass, data_fields=["gain"], meta_fields=["label"])
@dataclass
class Gain:
    gain: Any
    label: str

    def __call__(self, z):
        return self.gain * z

    def apply(self, z):
        return self.gain * z


def test_global_array_is_a_number():
    function, numbers = freeze(lambda z: SLOPE * z)
    assert function.count == 1 and numbers[0] is SLOPE
    assert function(2.0, numbers=(jnp.asarray(1.0),)) == 2.0


def test_one_array_used_twice_is_one_number():
    s = jnp.asarray(2.0)
    function, numbers = freeze(lambda z, t=s: s * t * z)
    assert len(numbers) == 1 and function(1.0, numbers=(jnp.asarray(3.0),)) == 9.0


def test_integer_arrays_are_part_of_the_function():
    take = lambda index: lambda z: z + index[0]
    function, numbers = freeze(take(jnp.array([1, 2])))
    assert numbers == () and function(1.0) == 2.0
    assert function == freeze(take(jnp.array([1, 2])))[0]
    assert function != freeze(take(jnp.array([3, 2])))[0]


def test_traced_array_hidden_in_an_object_is_refused():
    class Hidden:
        def __init__(self, gain):
            self.gain = gain

        def __call__(self, z):
            return self.gain * z

    with pytest.raises(TypeError, match="attribute 'gain' is a traced array"):
        jax.grad(lambda s: freeze(Hidden(s))[0](1.0))(2.0)


# ---- what JAX and users make ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn, name",
    [
        (jnp.tanh, "tanh"),
        (jax.nn.relu, "relu"),
        (jax.nn.gelu, "gelu"),
        (jnp.add, "add"),
        (jax.scipy.special.erf, "erf"),
        (functools.partial(jax.nn.leaky_relu, negative_slope=0.2), "leaky_relu(negative_slope=0.2)"),
        (lambda z: z, "lambda"),
        (leaky, "leaky"),
        (jax.jit(leaky), "leaky"),
    ],
)
def test_names(fn, name):
    assert str(freeze(fn)[0]) == name


@pytest.mark.parametrize("fn", [jnp.tanh, jax.nn.relu, jax.nn.gelu, jnp.maximum, jax.nn.silu, jax.lax.erf, math.sin])
def test_library_functions_stay_themselves(fn):
    function = freeze_static(fn)
    assert isinstance(function.root, Opaque) and function.thaw() is fn


@jax.custom_jvp
def straight_through(z):
    return jnp.sign(z)


@straight_through.defjvp
def _(primals, tangents):
    return straight_through(*primals), ALPHA * tangents[0]


def test_custom_jvp_keeps_its_rule(monkeypatch):
    function = freeze_static(straight_through)
    assert function == freeze_static(straight_through)
    monkeypatch.setitem(globals(), "ALPHA", 7.0)
    assert function(2.0) == 1.0
    np.testing.assert_allclose(jax.grad(function)(2.0), 0.3)


def test_custom_vjp_keeps_its_rule():
    @jax.custom_vjp
    def clipped(z):
        return z

    clipped.defvjp(lambda z: (z, None), lambda _, g: (5.0 * g,))
    assert jax.grad(freeze_static(clipped))(1.0) == 5.0


def test_jax_transformations_of_a_closure_are_compared_by_content():
    make = lambda alpha: jax.grad(lambda z: alpha * z**2)
    assert freeze_static(make(3.0)) == freeze_static(make(3.0))
    assert freeze_static(make(3.0)) != freeze_static(make(4.0))
    assert freeze_static(make(3.0))(1.0) == 6.0


@dataclass(frozen=True)
class Cubic:
    gain: float

    def __call__(self, z):
        return self.gain * z**3


def test_callable_objects():
    assert freeze_static(Cubic(2.0)) == freeze_static(Cubic(2.0)) != freeze_static(Cubic(3.0))
    assert freeze_static(Cubic(2.0))(2.0) == 16.0
    assert str(freeze_static(Cubic(2.0))) == "Cubic"


@pytest.mark.parametrize("wrong, text", [(3.0, "expected a function, got float"), (Cubic, "got the class Cubic")])
def test_what_is_no_function_is_refused(wrong, text):
    with pytest.raises(TypeError, match=text):
        freeze(wrong)


def test_a_gradient_prints_as_one() -> None:
    assert freeze(jax.grad(jax.scipy.special.erf))[0].name == "grad(erf)"
    assert freeze(jax.grad(jax.grad(jnp.tanh)))[0].name == "grad(grad(tanh))"
