"""What a function of coordinates cannot do: refused at the user's line, with a remedy that works."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp

C = jnp.arange(1.0, 4.0)


def network(fn):
    def f(x):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        return tp.weight("v", 1, n) @ tp.nonlin(fn, h)

    return tp.trace(f, tp.Input(2))


LINE = inspect.getsourcelines(network)[1] + 4

REDUCTIONS = {
    "mean": lambda a: a - a.mean(),
    "maximum": lambda a: a - jnp.max(a),
    "variance": jnp.var,
    "softmax": lambda a: jax.nn.softmax(a),
    "softmax over all": lambda a: jax.nn.softmax(a, axis=None),
    "sort": jnp.sort,
    "sort of one": lambda a: jnp.sort(a[None])[0],
    "argmax": jnp.argmax,
    "cumsum": lambda a: jnp.cumsum(a)[0],
    "norm": jnp.linalg.norm,
    "median": jnp.median,
    "logsumexp": jax.nn.logsumexp,
    "any": lambda a: jnp.any(a > 0),
    "axis": lambda a: a.mean(axis=0),
    "of one axis": lambda a: jax.nn.log_softmax(a[None])[0],
    "NumPy's": lambda a: np.mean(a),
    "rms": lambda a: a / jnp.sqrt(jnp.mean(a**2)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_one_number(name):
    with pytest.raises(tp.ProgramError) as caught:
        network(REDUCTIONS[name])
    text = str(caught.value)
    assert text.startswith(f"{__file__}:{LINE}: nonlin(")
    assert "tp.moment(" in text and "over=axes" in text


def test_remedies_of_reductions_work():
    def f(x):
        n = tp.Width("n")
        x = tp.weight("U", n, x.features) @ x
        m = tp.moment(lambda a: a, x)
        centred = tp.nonlin(lambda a, m: a - m, x, scalars=(m,))
        both = tp.stack([centred, x])
        return tp.weight("v", 1, n) @ tp.nonlin(lambda a: a - a.mean(), both, over=0)[0]

    program = tp.trace(f, tp.Input(2))
    assert tp.apply(program, tp.init(program, jax.random.key(0), width=4), np.ones((3, 2))).shape == (3,)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a: (C * a).sum(),
        lambda a: (C[:1] * a).sum(),
        lambda a: jnp.stack([a, 0.0]).max(),
        lambda a: jnp.stack([a]).sum(),
        lambda a: jnp.dot(C, jnp.sin(C * a)),
        lambda a: jax.nn.logsumexp(jnp.stack([a, -a])),
        lambda a: a - C.mean(),
        lambda a: jnp.interp(a, C, C),
        lambda a: jnp.polyval(C, a),
        lambda a: jnp.digitize(a, C).astype(a.dtype),
        lambda a: jnp.where(a > 0, a, 0.0),
        lambda a: jnp.piecewise(a, [a < 0, a >= 0], [lambda z: 0 * z, lambda z: z]),
        lambda a: jax.lax.cond(a > 0, jnp.sin, jnp.cos, a),
        lambda a: jax.lax.fori_loop(0, 3, lambda i, z: jnp.tanh(z), a),
    ],
)
def test_what_only_looks_like_one_is_taken(fn):
    assert network(fn).structure.outputs


def test_moments_reduce_no_coordinate_either():
    with pytest.raises(tp.ProgramError, match="sees one coordinate"):
        tp.trace(lambda x: tp.moment(lambda a: a.var(), tp.weight("U", tp.Width("n"), x.features) @ x), tp.Input(2))


@jax.custom_vjp
def clipped_gradient(a):
    return jnp.tanh(a)


clipped_gradient.defvjp(lambda a: (jnp.tanh(a), a), lambda a, g: (jnp.clip(g, -0.1, 0.1) * (1 - jnp.tanh(a) ** 2),))


def test_rules_that_are_not_linear_in_the_cotangent():
    with pytest.raises(tp.ProgramError, match="not linear in the cotangent") as caught:
        network(clipped_gradient)
    assert str(caught.value).startswith(f"{__file__}:{LINE}: nonlin(")


def callback(a):
    return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(a.shape, a.dtype), a, vmap_method="expand_dims")


@jax.custom_jvp
def callback_with_slope(a):
    return callback(a)


callback_with_slope.defjvp(
    lambda primals, tangents: (callback(primals[0]), (1 - callback(primals[0]) ** 2) * tangents[0])
)


@pytest.mark.parametrize("fn", [callback, callback_with_slope], ids=["plain", "with a rule"])
def test_callbacks(fn):
    with pytest.raises(tp.ProgramError) as caught:
        network(fn)
    assert str(caught.value).startswith(f"{__file__}:{LINE}: nonlin(")
    assert "pure_callback" in str(caught.value) and "jnp.interp(z, points, values)" in str(caught.value)


@pytest.mark.parametrize(
    "fn", [np.tanh, lambda a: np.exp(-a), lambda a: math.tanh(a), lambda a: a if a > 0 else 0.1 * a]
)
def test_functions_that_ask_for_values(fn):
    with pytest.raises(tp.ProgramError) as caught:
        network(fn)
    assert str(caught.value).startswith(f"{__file__}:{LINE}: nonlin(")
    assert "jax.numpy instead of numpy or math" in str(caught.value)
