"""The listing, to the letter."""

from __future__ import annotations

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.show import ratio_text


def rnn(x, *, var_w=1.0, var_u=1.0, var_b=0.1):
    n = tp.Width("n")
    W = tp.weight("W", n, n, var=var_w)
    U = tp.weight("U", n, x.features, var=var_u)
    b = tp.bias("b", n, var=var_b)
    v = tp.weight("v", 1, n)
    s = None
    for t in range(x.sites[0]):
        g = U @ x[t] + b if s is None else W @ s + U @ x[t] + b
        s = tp.nonlin(jnp.tanh, g)
    return v @ s


def two_widths(x):
    n, m = tp.Width("n"), tp.Width("m", ratio=0.5)
    U = tp.weight("U", n, x.features)
    b = tp.bias("b", n, var=0.0, scale=1.0, mean=-0.5, lr=0.1)
    h = tp.nonlin(jax.nn.relu, U @ x + b)
    c = tp.moment(jnp.square, h)
    z = tp.named("z", tp.weight("W", m, n, var=2.0) @ h / (1 + c))
    y = tp.nonlin(lambda a, c: a / jnp.sqrt(c), z, scalars=(c,))
    return tp.mean(tp.weight("v", 1, m) @ y) + 0.5, tp.scalar(jnp.sum, c)


def body(text: str) -> str:
    """The listing without the lines of this file, which move when it is edited."""
    lines = [line.split("test_show.py:")[0].rstrip() for line in text.splitlines()]
    return "\n".join(lines)


def exactly(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


def test_rnn():
    program = tp.trace(rnn, tp.Input(3, 16), var_w=1.2)
    assert body(str(program)) == exactly("""
        rnn(x: 3 × 16)              n → ∞
          W  n × n   N(0, 1.2/n)    U  n × 16  N(0, 1/16)
          b  n       N(0, 0.1)      v  1 × n   N(0, 1/n)
          g1 = U x[0] + b
          s1 = tanh(g1)
          g2 = W s1 + U x[1] + b
          s2 = tanh(g2)
          g3 = W s2 + U x[2] + b
          s3 = tanh(g3)
          return v s3               GIA check: holds
    """)


def test_lines_stand_where_they_change():
    first = rnn.__code__.co_firstlineno
    right = [line[28:].strip() for line in str(tp.trace(rnn, tp.Input(2, 16), var_w=1.2)).splitlines()[3:-1]]
    assert right == [f"test_show.py:{first + n}" for n in (8, 9, 8, 9)]
    same = str(tp.trace(lambda x: tp.nonlin(jnp.tanh, tp.weight("U", tp.Width("n"), 3) @ x), tp.Input(3)))
    assert same.count("test_show.py:") == 1


def test_mlp():
    lines = str(tp.nets.net("mlp").program(tp.Input(5), depth=2)).splitlines()
    assert [line.split("multilayer.py:")[0].rstrip() for line in lines] == exactly("""
        mlp(x: 5)                 n → ∞
          W1  n × 5  N(0, 2/5)    b1  n      N(0, 0.1)
          W2  n × n  N(0, 2/n)    b2  n      N(0, 0.1)
          v   1 × n  N(0, 1/n)
          g1 = W1 x + b1
          s1 = relu(g1)
          g2 = W2 s1 + b2
          s2 = relu(g2)
          return v s2             GIA check: holds
    """).splitlines()


def test_two_widths_and_a_moment():
    assert body(str(tp.trace(two_widths, tp.Input(4, 3)))) == exactly("""
        two_widths(x: 4 × 3)             n, m (ratio 0.5) → ∞
          U  n × 3  N(0, 1/3)            b  n      N(−0.5, 0), scale 1, lr 0.1
          W  m × n  N(0, 2/n)            v  1 × m  N(0, 1/m)
          g1 = U x + b
          s1 = relu(g1)
          c1 = (1/n) Σ square(s1)
          z = (1 / (c1 + 1)) W s1
          s2 = lambda(z; c1)
          c2 = sum(c1)
          return mean(v s2) + 0.5, c2    GIA check: fails
    """)


def test_tied_weights_are_declared_once():
    text = str(tp.nets.ZOO["mlp_tied"])
    assert text.count("N(0, 1.5/n)") == 1 and text.count("= W s") == 3


def test_traced_numbers_print_by_name():
    seen = []

    def net(var, gain):
        program = tp.trace(lambda x: gain * (tp.weight("v", 1, x.features, var=var) @ x), tp.Input(3))
        seen.append(str(program))
        return program.numbers["v.var"]

    jax.jit(net)(1.0, 2.0)
    assert body(seen[0]) == exactly("""
        program(x: 3)
          v  1 × 3  N(0, v.var/3)
          return coef1 v x           GIA check: holds
    """)


def test_a_tree_of_anything_prints():
    program = tp.trace(rnn, tp.Input(2, 3))
    assert "N(0, W.var/n)" in str(jax.tree.map(lambda _: None, program, is_leaf=lambda leaf: leaf is None))
    assert "N(0, W.var/n)" in str(jax.tree.map(lambda _: "a", program))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.25"),
        (1 / 3, "1/3"),
        (2 / 7, "2/7"),
        (1 / 128, "0.0078125"),
        (np.pi, "3.14159"),
        (1e-9, "1e-09"),
        (3.0, "3"),
    ],
)
def test_coefficients(value, text):
    assert ratio_text(value) == text


def expression(fn, *sites):
    """How the one output of a function of h, s and W prints."""

    def net(x):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        return fn(h, tp.nonlin(jnp.tanh, h), tp.weight("W", n, n))

    return str(tp.trace(net, tp.Input(*sites, 3))).splitlines()[-2].split(" = ")[1].split("  ")[0]


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda h, s, W: h + h, "2 g1"),
        (lambda h, s, W: s - h / 3, "s1 − 1/3 g1"),
        (lambda h, s, W: -0.5 * s - 1.5, "−0.5 s1 − 1.5"),
        (lambda h, s, W: W @ (s + h), "W (s1 + g1)"),
        (lambda h, s, W: W @ (2 * s), "W (2 s1)"),
        (lambda h, s, W: h * s, "g1 ⊙ s1"),
        (lambda h, s, W: h / s, "g1 / s1"),
        (lambda h, s, W: 1 / h, "1 / g1"),
        (lambda h, s, W: np.ones(2) * s, "array(2) s1"),
        (lambda h, s, W: tp.mean(s), "mean(s1)"),
        (lambda h, s, W: W @ tp.mean(s), "W mean(s1)"),
        (lambda h, s, W: h[0] - 0.5 * tp.mean(s), "g1[0] − 0.5 mean(s1)"),
        (lambda h, s, W: tp.sum(tp.stack([h, s]), axis=1), "sum(stack(g1, s1); over axis 1)"),
        (lambda h, s, W: s[::-1], "s1[::-1]"),
        (lambda h, s, W: (W @ s)[0], "(W s1)[0]"),
        (lambda h, s, W: tp.concat([s[:1], h]), "concat(s1[:1], g1)"),
        (lambda h, s, W: tp.reshape(s, (2, 1)), "reshape(s1; 2 × 1)"),
        (lambda h, s, W: tp.stack([s] * 9), "stack(s1, s1, …, s1)"),
        (lambda h, s, W: tp.nonlin(jax.nn.softmax, h, over=0), "softmax(g1; over axis 0)"),
    ],
)
def test_expressions(fn, text):
    assert expression(fn, 2) == text


def test_a_users_function_called_mul_prints_by_its_name():
    def mul(a, b):
        return a + b

    assert expression(lambda h, s, W: tp.nonlin(mul, h, s), 2) == "mul(g1, s1)"
